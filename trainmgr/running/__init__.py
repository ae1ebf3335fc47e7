"""One run, from its start to its end: the only place that wires the parts. Above `managers` and `log`."""
