"""Every type that reaches a disk, and their schemas. Above `base`."""
