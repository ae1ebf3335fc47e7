"""`rules`: a deterministic diagnosis and response, from the snapshot alone. The embedded default.

It knows parameters by their group and scale, never by name: those of group "optimizer" with a logarithmic scale are
learning rates, those of group "regularization" regularize more the higher they are. The first rule that fits answers.
"""

from __future__ import annotations

import math
from typing import Any

from trainmgr.policy import Rules
from trainmgr.proposal import Diagnosis, Expectation, Proposal, keep
from trainmgr.snapshot import RecipeRow, Snapshot
from trainmgr.wire import Value, plain

FIRST, NEXT = 0.4, 0.2  # a regularizer moves by this fraction of its range, from off and from then on


class RulesManager:
    """Keeps unless a rule fits."""

    name = "rules"
    deterministic = True

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def decide(self, snapshot: Snapshot) -> Any:
        for rule in (self._broken, self._unstable, self._overfitting, self._ending, self._flat):
            proposal = rule(snapshot)
            if proposal is not None:
                return plain(proposal)
        return plain(keep("healthy", _figures(snapshot)))

    def _broken(self, snapshot: Snapshot) -> Proposal | None:
        """Divergence: go back and go slower; there is nothing to wait for."""
        signals = snapshot.signals
        if not (signals.diverging or signals.non_finite):
            return None
        evidence = f"{signals.non_finite} non-finite values; {_figures(snapshot)}"
        return self._retreat(snapshot, "divergence", evidence, self._slower(snapshot))

    def _unstable(self, snapshot: Snapshot) -> Proposal | None:
        """Instability: gradient norms far outside their habit, often."""
        share = snapshot.signals.grad_spikes
        if share <= self._rules.spike_share:
            return None
        changes = self._slower(snapshot)
        evidence = f"{share:.0%} of the gradient norms since the last evaluation were outliers"
        return self._adjust(snapshot, "instability", evidence, changes)

    def _overfitting(self, snapshot: Snapshot) -> Proposal | None:
        """The objective rises over its best beyond noise: back to the best, slower, and more regularized."""
        signals = snapshot.signals
        if signals.rise is None or signals.evals_since_best < self._rules.patience:
            return None
        if signals.rise <= max(self._rules.rise, self._rules.noise_factor * (signals.noise or 0.0)):
            return None
        changes = {**self._slower(snapshot), **self._regularize(snapshot)}
        return self._retreat(snapshot, "overfitting", _figures(snapshot), changes)

    def _ending(self, snapshot: Snapshot) -> Proposal | None:
        """The run is about to end on weights that are worse than its best ones: end near the best."""
        progress, signals = snapshot.progress, snapshot.signals
        if progress.total_steps is None or not progress.evaluations or "rollback" not in snapshot.actions:
            return None
        left = progress.total_steps - progress.step
        spacing = progress.step / max(1, progress.evaluations - 1)
        if left > 1.5 * spacing or not signals.rise or signals.rise <= 0:
            return None
        evidence = f"{left} steps are left; {_figures(snapshot)}"
        return self._retreat(snapshot, "overfitting", evidence, {})

    def _flat(self, snapshot: Snapshot) -> Proposal | None:
        """Plateau: no new best for long, and no rise either: a lower learning rate may find one."""
        signals = snapshot.signals
        waited = signals.evals_since_best
        if signals.evals_since_change is not None:
            waited = min(waited, signals.evals_since_change)
        if waited < self._rules.plateau_evals:
            return None
        return self._adjust(snapshot, "plateau", _figures(snapshot), self._slower(snapshot))

    # -- responses ---------------------------------------------------------------------------------------------------

    def _slower(self, snapshot: Snapshot) -> dict[str, Value]:
        """Every learning rate times the policy's factor, down to its floor."""
        changes: dict[str, Value] = {}
        for row in snapshot.recipe:
            if row.group != "optimizer" or row.scale != "log" or row.resting:
                continue
            value, start = float(row.value), float(row.start_value)
            assert row.reach_low is not None
            wanted = max(value * self._rules.lr_factor, start * self._rules.lr_floor, row.reach_low)
            if wanted < value:
                changes[row.name] = _tidy(wanted)
        return changes

    def _regularize(self, snapshot: Snapshot) -> dict[str, Value]:
        """Every regularizer one notch up."""
        changes: dict[str, Value] = {}
        for row in snapshot.recipe:
            if row.group != "regularization" or row.resting or row.type != "float" or row.off is not None:
                continue
            wanted = _notch(row)
            if wanted > float(row.value):
                changes[row.name] = wanted
        return changes

    def _retreat(
        self, snapshot: Snapshot, diagnosis: Diagnosis, evidence: str, changes: dict[str, Value]
    ) -> Proposal | None:
        """Back to the best checkpoint with ``changes``; without a way back, the changes alone."""
        if "rollback" not in snapshot.actions:
            return self._adjust(snapshot, diagnosis, evidence, changes)
        return Proposal(
            diagnosis=diagnosis,
            evidence=evidence,
            action="rollback",
            to="best",
            changes=changes,
            expected=_better(snapshot),
            falsifier="no new best, and a rise like this one again",
        )

    def _adjust(
        self, snapshot: Snapshot, diagnosis: Diagnosis, evidence: str, changes: dict[str, Value]
    ) -> Proposal | None:
        if not changes or "adjust" not in snapshot.actions:
            return None
        return Proposal(
            diagnosis=diagnosis,
            evidence=evidence,
            action="adjust",
            changes=changes,
            expected=_better(snapshot),
            falsifier="no new best within as many evaluations as this one took",
        )


def _notch(row: RecipeRow) -> float:
    """The next stronger value of a regularizer, within its reach."""
    assert row.low is not None
    assert row.high is not None
    assert row.reach_high is not None
    value, span = float(row.value), float(row.high) - float(row.low)
    return _tidy(min(value + (FIRST if value <= row.low else NEXT) * span, row.reach_high))


def _tidy(value: float) -> float:
    return float(f"{value:.6g}")


def _better(snapshot: Snapshot) -> Expectation:
    return Expectation(metric=snapshot.objective, direction="down" if snapshot.mode == "min" else "up")


def _figures(snapshot: Snapshot) -> str:
    """The figures that the rules look at, in words."""
    signals = snapshot.signals
    if signals.latest is None or signals.best is None:
        return "no evaluation yet"
    text = f"{snapshot.objective} {signals.latest:.4g}, best {signals.best:.4g} at step {signals.best_step}"
    if signals.rise is not None and math.isfinite(signals.rise):
        text += f" ({signals.rise:+.1%}, {signals.evals_since_best} evaluations ago)"
    if signals.gap is not None and math.isfinite(signals.gap):
        text += f", gap {signals.gap:.3g}"
    return text
