"""What could help against a diagnosis, and why none of it can: for the person, who alone can declare more."""

from __future__ import annotations

from collections.abc import Sequence

from trainmgr.contract.proposal import Diagnosis
from trainmgr.deciding.allowed import NOT_OFFERED
from trainmgr.deciding.snapshot import RecipeRow, Snapshot
from trainmgr.managers import reading

ROLLBACK = "rollback"
WORDS = {
    "optimizer": 'a learning rate (group "optimizer", scale "log")',
    "regularization": 'a regularizer (group "regularization")',
    "averaging": "",  # helps beside the others only
    "loss weight": 'a weight of each term of the loss (group "loss weight")',
    "trust region": 'a clip range or target KL (group "trust region")',
    "exploration": 'an entropy coefficient (group "exploration")',
    "penalty": 'a weight of harm (group "penalty")',
    "reward": 'a weight of success (group "reward")',
    ROLLBACK: "the command rollback",
}
EXPLORING = ("optimizer", "trust region", "exploration", "penalty", "reward")
REMEDIES: dict[Diagnosis, tuple[str, ...]] = {
    "overfitting": ("optimizer", "regularization", "averaging", ROLLBACK),
    "worsening": ("optimizer", "regularization", "averaging", ROLLBACK),
    "divergence": ("optimizer", ROLLBACK),
    "instability": ("optimizer", ROLLBACK),
    "plateau": ("optimizer",),
    "loss-imbalance": ("loss weight",),
    "exploration-collapse": EXPLORING,
    "unsafe-exploration": EXPLORING,
}
SHOWN = 6  # parameters


def rows(snapshot: Snapshot, group: str) -> list[RecipeRow]:
    """The parameters of a group that the rules know how to move, whether they rest or not."""
    if group == "averaging":
        return [row for row in reading.real(snapshot, group) if row.off is not None]
    if group in ("optimizer", "regularization", "loss weight"):
        found = [row for row in reading.real(snapshot, group) if row.off is None]
        return [row for row in found if row.scale == "log"] if group == "optimizer" else found
    return reading.real(snapshot, group, ("float", "int"))


def helpless(snapshot: Snapshot, diagnosis: Diagnosis, frozen: Sequence[str] = ()) -> str:
    """Why nothing can be done, where the rules found nothing to do; empty where something rests only, and will be.

    ``frozen`` are the parameters that the policy lets nobody change.
    """
    groups = REMEDIES[diagnosis]
    there = [row for group in groups for row in rows(snapshot, group)]
    if any(row.resting for row in there):
        return ""
    lacking = [WORDS[group] for group in groups if WORDS[group] and not _declared(snapshot, group)]
    held = f" (the policy freezes {_listed(frozen)})" if frozen else ""
    if not there:
        return f"nothing was declared that could help: {' or '.join(_comma(lacking))}{held}"
    if "adjust" not in snapshot.actions:
        return f"nothing may be changed: {snapshot.unavailable.get('adjust', 'not now')}"
    values = [f"{row.name} {row.value:.4g}" for row in there if not isinstance(row.value, str)]
    text = f"everything that could help is already as far as the rules take it: {_listed(values)}"
    if lacking:
        text += f"; {' and '.join(_comma(lacking))} would help too, but {_are(lacking)} not declared{held}"
    return text


def _declared(snapshot: Snapshot, group: str) -> bool:
    if group == ROLLBACK:
        return snapshot.unavailable.get(ROLLBACK) != NOT_OFFERED
    return bool(rows(snapshot, group))


def _comma(words: list[str]) -> list[str]:
    """All but the last in one, to be joined with it."""
    return [", ".join(words[:-1]), words[-1]] if len(words) > 1 else words


def _are(words: list[str]) -> str:
    return "are" if len(words) > 1 else "is"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
