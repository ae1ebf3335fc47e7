"""`trainmgr compare`: experiments of many runs, and what they prove."""
