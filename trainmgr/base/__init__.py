"""Files, paths, processes, the wire format and errors: it knows nothing of training. Imports nothing of ours."""
