"""The diagnosis of a loss with several terms: terms whose gradients are too small to be heard beside the largest.

For workloads that declare which metrics are norms of the gradients of weighted terms, and on which weight each depends.
Names are not looked at. What is compared is the norm that training sees, weight included. The weights of the small ones
rise, since that leaves the size of an update nearly as it is: the sum is hardly larger than its largest term was.

The thresholds come from pilots on seeds 11 and 12 of workloads/pinn.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainmgr.contract.policy import Imbalance
from trainmgr.deciding.snapshot import RecipeRow, Snapshot
from trainmgr.managers import reading
from trainmgr.managers.reading import Changes


@dataclass(frozen=True)
class Terms:
    """Gradient norms of the weighted terms, by their metric, at the evaluations since a weight was last changed."""

    rows: list[dict[str, float]]
    """Oldest first; those at which all of them were finite and none was zero."""
    weights: dict[str, str]
    """Metric to the parameter that is its weight, where it has one of its own."""

    def mean(self, last: int) -> dict[str, float]:
        """Each norm over the last evaluations: their geometric mean, since they scatter by factors."""
        rows = self.rows[-last:]
        return {name: math.exp(sum(math.log(row[name]) for row in rows) / len(rows)) for name in rows[-1]}

    def ratio(self, last: int) -> float:
        """The largest of these over the smallest; 1 is balance. NaN before there is any."""
        if not self.rows:
            return math.nan
        found = self.mean(last).values()
        return max(found) / min(found)

    @property
    def ratios(self) -> list[float]:
        """The same at each evaluation, oldest first."""
        return [max(row.values()) / min(row.values()) for row in self.rows]

    def __str__(self) -> str:
        if not self.rows:
            return "gradient norms of the terms not measured since a weight was changed"
        shown = (f"{self.weights.get(name, name)} {value:.3g}" for name, value in self.rows[-1].items())
        ratios = ", ".join(f"{ratio:.3g}" for ratio in self.ratios[-3:])
        return f"gradient norms by weight: {', '.join(shown)}; largest over smallest {ratios}"


def terms(snapshot: Snapshot) -> Terms | None:
    """None for a workload that does not say which of its metrics these are, or has one term only."""
    found = [meaning for meaning in snapshot.meanings if meaning.role == "loss gradient"]
    if len(found) < 2:
        return None
    known = {row.name for row in snapshot.recipe if row.group == "loss weight"}
    weights = {m.column: m.depends[0] for m in found if len(m.depends) == 1 and m.depends[0] in known}
    rows = []
    for values in snapshot.evaluations.rows:
        row = dict(zip(snapshot.evaluations.columns, values, strict=True))
        norms = {meaning.column: norm for meaning in found if (norm := row.get(meaning.column)) is not None}
        if len(norms) == len(found) and all(0 < norm < math.inf for norm in norms.values()):
            rows.append(norms)
    return Terms(rows, weights)


def tilted(now: Terms, limits: Imbalance) -> bool:
    """Whether the terms are not balanced, as far as was measured since a weight was changed."""
    return not now.ratio(limits.patience) <= limits.balanced


def unbalanced(snapshot: Snapshot, now: Terms, limits: Imbalance, *, stuck: bool) -> bool:
    """Whether to do something about it: for long enough beyond what is tolerated, which is less where the objective is
    stuck; or begun, and not done yet.

    Done is what was balanced once: the norms scatter, and who goes on for long goes too far.
    """
    if now.rows and balancing(snapshot, now) and min(now.ratios) > limits.balanced:
        return True
    tolerated = limits.balanced if stuck else limits.trigger
    return len(now.rows) >= limits.patience and now.ratio(limits.patience) > tolerated


def raised(snapshot: Snapshot, now: Terms, limits: Imbalance) -> Changes:
    """The weights of small terms up, to where their gradients have their share of the largest, as far as one reaches.

    Those that the workload moves by itself are left alone.
    """
    norms = now.mean(limits.patience)
    wanted = limits.share * max(norms.values())
    rows = {row.name: row for row in reading.free(snapshot, "loss weight") if not moves(snapshot, row)}
    changes: Changes = {}
    for metric, norm in norms.items():
        row = rows.get(now.weights.get(metric, ""))
        if row is not None and row.high is not None and norm < wanted and float(row.value) > 0:
            changes |= reading.move(row, min(float(row.value) * (wanted / norm), float(row.high)), up=True)
    return changes


def moves(snapshot: Snapshot, row: RecipeRow) -> bool:
    """Whether a parameter is not where it was put, so that somebody else must be moving it.

    It takes two evaluations to be seen. Of one that was last changed longer ago than the snapshot reaches back, it
    cannot be told, and it is taken to be so.
    """
    put = next(
        (past.changes[row.name][1] for past in reversed(snapshot.interventions) if row.name in past.changes),
        row.start_value,
    )
    return not reading.number(put) or not math.isclose(float(row.value), float(put), rel_tol=1e-6)


def balancing(snapshot: Snapshot, now: Terms) -> bool:
    """Whether the last change of a weight was made to balance them."""
    weights = set(now.weights.values())
    last = next((past for past in reversed(snapshot.interventions) if weights & past.changes.keys()), None)
    return last is not None and last.diagnosis == "loss-imbalance"
