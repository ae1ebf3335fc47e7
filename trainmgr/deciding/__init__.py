"""From a situation to an override: what may be known, answered and done. Pure. Imports base, contract, state."""
