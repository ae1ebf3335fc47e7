"""`trainmgr compare`: experiments of many runs, and what they prove. Imports base, contract, state, deciding, log,
managers, running, terminal.
"""
