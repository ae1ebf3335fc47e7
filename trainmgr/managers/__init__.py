"""Who decides: one small protocol, and a module for each kind. Imports base, contract, state, deciding, log."""

NAMES = (  # here, and not where they are made, which takes a second to import
    "auto",
    "llm[:MODEL]",
    "hybrid[:MODEL]",
    "local:FILE.gguf",
    "rules",
    "schedule:cosine",
    "schedule:warm-restarts",
    "schedule:plateau",
    "schedule:early-stopping",
    "replay:RUN",
    "random[:STREAM]",
    "adversary",
    "flipflop",
    "late[:SECONDS]",
    "none",
)
