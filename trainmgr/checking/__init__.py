"""`trainmgr check`: a script is tried out before it costs anyone a day. Above `log`."""
