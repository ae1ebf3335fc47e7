"""One run, from its start to its end: the supervisor, which alone wires the parts. Imports base, contract, state,
deciding, log, managers.
"""
