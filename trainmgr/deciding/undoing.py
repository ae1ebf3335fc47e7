"""What a manager may take back: its last change that is in force, and which checkpoints it may go back to. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from trainmgr.base.wire import Value
from trainmgr.state.interventions import Intervention
from trainmgr.state.lineage import Saved
from trainmgr.state.situation import Situation
from trainmgr.state.trial import same


@dataclass(frozen=True)
class Undo:
    """A change that can be undone."""

    decision: str
    step: int
    """At which it took effect."""
    revisions: tuple[int, ...]
    values: dict[str, Value]
    """As they were before, of what still is as it made it; empty for a rollback alone."""
    saved: Saved | None
    """The checkpoint of right before it; None where none is kept."""


def last(now: Situation) -> Undo | None:
    """The manager's last change that is in force: all revisions of one decision. None where there is none."""
    ledger, items = now.ledger, now.state.interventions
    for item in reversed(items):
        name = ledger.revisions.get(item.revision, "")
        decision = ledger.decisions.get(name)
        if decision is None or decision.undoes or ledger.origins.get(item.revision) not in ("manager", "plan"):
            continue
        mine = [one for one in items if ledger.revisions.get(one.revision) == name]
        if any(one.revision in ledger.taken_back for one in mine):
            continue
        values, saved = _before(now, mine), _saved(now, mine)
        if values or (saved is not None and any(one.command for one in mine)):
            return Undo(name, mine[0].step, tuple(one.revision for one in mine), values, saved)
    return None


def _before(now: Situation, items: list[Intervention]) -> dict[str, Value]:
    first: dict[str, Value] = {}
    made: dict[str, Value] = {}
    for item in items:
        for name, (old, new) in item.changes.items():
            first.setdefault(name, old)
            made[name] = new
    recipe = now.state.recipe
    return {
        name: value
        for name, value in first.items()
        if name in recipe and same(recipe[name], made[name]) and not same(value, made[name])
    }


def _saved(now: Situation, items: list[Intervention]) -> Saved | None:
    """The checkpoint that was kept for this change: none that came after another."""
    state, began = now.state, items[0].step
    after = [item.step for item in state.interventions if item.step > began and item not in items]
    for saved in kept(now):
        if saved.step >= began and all(saved.step < step for step in after):
            return saved
    return None


def kept(now: Situation) -> list[Saved]:
    """The checkpoints from before changes that are still on disk."""
    return [saved for saved in (now.state.lineage.trial, now.state.lineage.later) if saved is not None]


def checkpoints(now: Situation) -> dict[str, str]:
    """What a rollback may name, and what the workload calls it: the best, the initial one, and those that are kept from
    before changes, by their step. But for the best, only where a manager may lose what that undoes."""
    if now.manifest.edition == 1:
        return {"best": "best", "initial": "initial"}
    initial, left = now.state.lineage.initial, spare(now)
    known = {"initial": initial} if initial is not None else {}
    known |= {f"step {saved.step}": saved for saved in kept(now)}
    trained = now.state.lineage.trained(now.state.step)
    there = [name for name, saved in known.items() if left is None or trained - saved.trained <= left]
    return {"best": "best"} | {name: name if name == "initial" else known[name].path for name in there}


def costs(now: Situation, undo: Undo) -> int:
    """Steps of training that are in vain if its weights go back, too."""
    return max(0, now.state.step - undo.step)


def spare(now: Situation) -> int | None:
    """Steps that a manager on probation may still lose; None for any number, or where no number is planned."""
    total = now.state.total_steps
    if total is None or not now.ledger.on_probation:
        return None
    on_trial = sum(trial.undone for trial in now.ledger.trials)
    return max(0, int(now.policy.probation.loss_budget * total) - now.ledger.lost - on_trial)
