"""Every type that reaches a disk, and the JSON schemas. Imports base."""
