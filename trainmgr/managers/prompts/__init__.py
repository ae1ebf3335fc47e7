"""The templates of the prompts, by version; a version is never edited once it was released, a new one is added."""

VARIANTS = 4  # wordings of the system prompt: 0 is used, the others show how much the wording matters
