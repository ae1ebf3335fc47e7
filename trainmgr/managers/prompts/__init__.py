"""The prompts, by version: how each is worded, and what it shows. What a version makes of a snapshot is never changed
once it was released, since logs are replayed by it: a new one is added."""

VERSION = "v4"  # of live runs
VARIANTS = 4  # wordings of the system prompt: 0 is used, the others show how much the wording matters
