"""`trainmgr check`: a script is tried out before it costs anyone a day. Imports base, contract, state, log, running."""
