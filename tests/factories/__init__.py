"""What several test modules build: records and folded states are named here, the rest in a module for each room."""

from factories.records import (
    FREE,
    TOTAL,
    applied,
    augment,
    batch,
    checkpoint,
    curve,
    dropout,
    ema,
    end,
    evaluation,
    everything,
    fold,
    kind,
    log,
    lr,
    refused,
    start,
    step,
)
from factories.situations import view
from factories.strategies import JSON, NUMBERS, SCALARS, SURROGATE, TEXTS, parameters

__all__ = [
    "FREE", "JSON", "NUMBERS", "SCALARS", "SURROGATE", "TEXTS", "TOTAL", "applied", "augment", "batch", "checkpoint",
    "curve", "dropout", "ema", "end", "evaluation", "everything", "fold", "kind", "log", "lr", "parameters", "refused",
    "start", "step", "view",
]  # fmt: skip
