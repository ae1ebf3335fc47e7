"""Files, paths, processes, the wire format and errors: it knows nothing of training and imports nothing of ours."""
