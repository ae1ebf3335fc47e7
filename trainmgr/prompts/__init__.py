"""The templates of the prompts, by version; a version is never edited once it was released, a new one is added."""
