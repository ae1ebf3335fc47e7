"""What a person sees in a terminal. Imports base, contract, state, log, managers, running, checking, readers."""
