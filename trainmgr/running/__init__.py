"""One run, from its start to its end: the supervisor, which alone wires the parts. Imports base, sources, contract,
state, deciding, log, managers.
"""
