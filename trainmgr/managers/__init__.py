"""Who decides: one small protocol, and a module for each kind."""
