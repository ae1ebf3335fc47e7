"""Finished and live runs, read again: audit, replay, other opinions. Imports base, sources, contract, state, deciding,
log, managers, running.
"""
