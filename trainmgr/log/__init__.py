"""The files of a run while it goes on: telemetry in, the audit log and the control file out. Imports base, contract,
state.
"""
