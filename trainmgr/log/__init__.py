"""Telemetry in, the audit log out: reading and writing both files of a run. Above `state`."""
