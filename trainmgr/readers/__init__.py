"""Finished and live runs, read again: audit, replay, other opinions. Above `running`."""
