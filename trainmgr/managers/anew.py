"""Beginning a run anew, from its initial weights: where the recipe of the start overfits early.

The best weights are the work of a wrong recipe then, and little is lost. (Pilots: a run that goes on from them, however
it is regularized, stays behind one that begins anew; seed 11 of workloads/tinystories.py.)
"""

from __future__ import annotations

import math

from trainmgr.contract.policy import Rules
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.managers import reading
from trainmgr.managers.reading import Changes

WINDOW = 12  # evaluations: so many of the latest are in the snapshot, whatever was thinned out


def fits(snapshot: Snapshot, limits: Rules) -> bool:
    """Whether the run is in its first part, overfits for certain, and has had its regularizers and learning rates from
    the start. Not where the workload refused to go back lately: it may have no initial checkpoint."""
    step, total = snapshot.progress.step, snapshot.progress.total_steps
    if total is None or step > limits.early * total or "rollback" not in snapshot.actions:
        return False
    if snapshot.refused:
        return False
    averages = {row.name for row in snapshot.recipe if row.group == "averaging"}
    if any(past.command is not None or not past.changes.keys() <= averages for past in snapshot.interventions):
        return False
    now, then = reading.gap(snapshot), reading.gap_at_best(snapshot)
    return None not in (now, then, snapshot.signals.noise) and now > then + limits.rise  # type: ignore[operator]


def rates(snapshot: Snapshot, limits: Rules) -> Changes:
    """Every learning rate as such a run is given it; none where one change does not reach so far, or where the script
    moves the rate by itself: its schedule does not begin anew."""
    changes: Changes = {}
    for row in reading.rates(snapshot):
        wanted = float(row.start_value) * limits.anew
        changes |= reading.move(row, wanted, up=False)
        if row.moves or float(row.value) > float(row.start_value) or float(changes.get(row.name, 0.0)) > 1.01 * wanted:
            return {}
    return changes


def climbing(snapshot: Snapshot, limits: Rules) -> bool:
    """Whether the run went back to its initial weights, has no new best yet, and is on its way there.

    That is: its best since then is one of the latest evaluations, and it has not yet had as many steps as its rate
    accounts for, being so much lower.
    """
    past = next((past for past in reversed(snapshot.interventions) if past.command), None)
    if past is None or past.command != "rollback initial" or (snapshot.signals.best_step or 0) > past.step:
        return False
    steps, evals = snapshot.progress.step - past.step, min(limits.plateau_evals, WINDOW)
    if steps * limits.anew > past.step:
        return False
    turn, table, since = 1 if snapshot.mode == "min" else -1, snapshot.evaluations, []
    for values in table.rows:
        row = dict(zip(table.columns, values, strict=True))
        value = row.get(snapshot.objective)
        if (row["step"] or 0) > past.step and value is not None and math.isfinite(value):
            since.append(turn * value)
    if not since:
        return steps <= evals * reading.spacing(snapshot)
    return not since[:-evals] or min(since[-evals:]) < min(since[:-evals])
