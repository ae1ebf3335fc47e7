"""From a situation to an override: what may be known, answered and done; pure but for one write. Above `state`."""
