"""`rules`: a deterministic diagnosis and response, from the snapshot alone. The embedded default.

It has no memory but the snapshot's, and knows parameters by their declared group and scale, never by name: of group
"optimizer", a logarithmic one is a learning rate; of group "regularization", each regularizes more the higher it is; of
group "averaging", one with an `off` value is the decay of an average of weights. The first rule that fits answers.

The thresholds are the policy's; those that come from pilots were tried on seeds 11 and 12 of workloads/tinystories.py
and chosen by validation loss.
"""

from __future__ import annotations

import math
from typing import Any

from trainmgr.policy import Rules
from trainmgr.proposal import Diagnosis, Expectation, Proposal, keep
from trainmgr.snapshot import RecipeRow, Snapshot
from trainmgr.wire import Value, plain

Changes = dict[str, Value]


class RulesManager:
    """Keeps unless a rule fits."""

    name = "rules"
    deterministic = True

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def decide(self, snapshot: Snapshot) -> Any:
        for rule in (
            self._divergence,
            self._last_chance,
            self._instability,
            self._overfitting,
            self._annealing,
            self._plateau,
        ):
            proposal = rule(snapshot)
            if proposal is not None:
                return plain(proposal)
        return plain(keep("overfitting" if self._risen(snapshot) else "healthy", _figures(snapshot)))

    # -- the rules, in order -----------------------------------------------------------------------------------------

    def _divergence(self, snapshot: Snapshot) -> Proposal | None:
        """Not finite, or training itself is worse than at the beginning, beyond noise: back to the best and slower.

        At once, since there is nothing to wait for.
        """
        signals = snapshot.signals
        if not signals.non_finite and not (signals.diverging and self._beyond_noise(snapshot)):
            return None
        evidence = f"{signals.non_finite} non-finite values; {_figures(snapshot)}"
        response = self._retreat(snapshot, "divergence", evidence, self._slower(snapshot))
        return response or keep("divergence", f"nothing is left to do; {evidence}")

    def _last_chance(self, snapshot: Snapshot) -> Proposal | None:
        """The last evaluation before the end is worse than the best: end on the best.

        Where a stop is not allowed: go back to it, and take the last steps as slowly as is allowed.
        """
        left, rise = _left(snapshot), snapshot.signals.rise
        if left is None or left > 1.5 * _spacing(snapshot) or not rise or rise < 0:
            return None
        evidence = f"{left} steps are left; {_figures(snapshot)}"
        if "stop" in snapshot.actions and snapshot.best_checkpoint is not None:
            return Proposal(
                diagnosis="scheduled",
                evidence=evidence,
                action="stop",
                to="best",
                expected=Expectation(metric=snapshot.objective, direction="flat"),
            )
        if "rollback" not in snapshot.actions:
            return None
        return self._retreat(snapshot, "scheduled", evidence, self._scaled(snapshot, 0.0, self._rules.anneal_to))

    def _instability(self, snapshot: Snapshot) -> Proposal | None:
        """Gradient norms far outside their habit, often: slower."""
        share = snapshot.signals.grad_spikes
        if share <= self._rules.spike_share or _since_change(snapshot) < self._rules.patience:
            return None
        evidence = f"{share:.0%} of the gradient norms since the last evaluation were outliers; {_figures(snapshot)}"
        return self._adjust(snapshot, "instability", evidence, self._slower(snapshot))

    def _overfitting(self, snapshot: Snapshot) -> Proposal | None:
        """The objective is above its best beyond noise, and stays there: back to the best, slower, more regularized.

        Where the gap to the training data is no wider than it was at the best, training lost ground itself: that is no
        overfitting, and slower is enough. Where nobody measures that gap, overfitting is assumed.
        """
        if not self._risen(snapshot):
            return None
        slower, now, then = self._slower(snapshot), _gap(snapshot), _gap_at_best(snapshot)
        if now is not None and then is not None and now <= then:
            return self._retreat(snapshot, "instability", _figures(snapshot), slower) if slower else None
        changes = {**slower, **self._tighter(snapshot), **self._averaged(snapshot)}
        return self._retreat(snapshot, "overfitting", _figures(snapshot), changes) if changes else None

    def _annealing(self, snapshot: Snapshot) -> Proposal | None:
        """The last part of the run: the learning rate falls in a straight line, to end on settled weights.

        Every ``patience`` evaluations it takes its share of the way that is left, so that where the line began need not
        be remembered (cooling a constant rate down at the end: Hägele et al. 2024, https://arxiv.org/abs/2405.18392).
        """
        left = _left(snapshot)
        if left is None or not self._late(snapshot) or _since_change(snapshot) < self._rules.patience:
            return None
        share = 1 - min(1.0, self._rules.patience * _spacing(snapshot) / max(left, 1))
        changes = {**self._scaled(snapshot, share, self._rules.anneal_to), **self._averaged(snapshot)}
        return self._adjust(snapshot, "scheduled", f"{left} steps are left; {_figures(snapshot)}", changes)

    def _plateau(self, snapshot: Snapshot) -> Proposal | None:
        """No new best for long, and no rise either. The gap to the training data says what is in the way.

        Wide: still overfitting, so averaged and more regularized. Narrow: over-regularization, so what the rules have
        tightened goes one notch back; or underfitting, so a rate that they have cut to its floor rises again. In all
        other cases, and without a gap to look at, slower.
        """
        if _settled(snapshot) < self._rules.plateau_evals or self._late(snapshot):
            return None
        gap, evidence, slower = _gap(snapshot), _figures(snapshot), self._slower(snapshot)
        changes = self._averaged(snapshot)
        if gap is not None and gap > self._rules.wide_gap:
            changes |= self._tighter(snapshot)
        elif gap is not None and gap < self._rules.narrow_gap:
            if looser := self._looser(snapshot):
                return self._adjust(snapshot, "over-regularization", evidence, looser)
            if not slower and not snapshot.signals.diverging:
                return self._adjust(snapshot, "underfitting", evidence, self._faster(snapshot))
        return self._adjust(snapshot, "plateau", evidence, changes or slower)

    def _risen(self, snapshot: Snapshot) -> bool:
        """Whether the objective is above its best beyond noise, for long enough."""
        return self._beyond_noise(snapshot) and _settled(snapshot) >= self._rules.patience

    def _beyond_noise(self, snapshot: Snapshot) -> bool:
        """Whether the objective is above its best by more than noise explains, or not finite."""
        rise, noise = snapshot.signals.rise, snapshot.signals.noise or 0.0
        return rise is not None and not rise <= max(self._rules.rise, self._rules.noise_factor * noise)

    def _late(self, snapshot: Snapshot) -> bool:
        """Whether this is the last part of the run."""
        left, total = _left(snapshot), snapshot.progress.total_steps
        return left is not None and total is not None and left <= self._rules.anneal * total

    # -- responses ---------------------------------------------------------------------------------------------------

    def _slower(self, snapshot: Snapshot) -> Changes:
        """Every learning rate times the policy's factor, down to its floor."""
        changes: Changes = {}
        for row in _rates(snapshot):
            least = float(row.start_value) * self._rules.lr_floor
            changes |= _move(row, max(float(row.value) * self._rules.lr_factor, least), up=False)
        return changes

    def _faster(self, snapshot: Snapshot) -> Changes:
        """Every learning rate up by the same factor, not over its start."""
        changes: Changes = {}
        for row in _rates(snapshot):
            changes |= _move(row, min(float(row.value) / self._rules.lr_factor, float(row.start_value)), up=True)
        return changes

    def _scaled(self, snapshot: Snapshot, share: float, floor: float) -> Changes:
        """Every learning rate down to ``share`` of its distance from ``floor`` times its start."""
        changes: Changes = {}
        for row in _rates(snapshot):
            least = float(row.start_value) * floor
            changes |= _move(row, least + share * (float(row.value) - least), up=False)
        return changes

    def _tighter(self, snapshot: Snapshot) -> Changes:
        """Every regularizer one notch up."""
        changes: Changes = {}
        for row in _free(snapshot, "regularization"):
            value, low, span = _span(row)
            notch = self._rules.first_notch if value <= low else self._rules.notch
            changes |= _move(row, value + notch * span, up=True)
        return changes

    def _looser(self, snapshot: Snapshot) -> Changes:
        """Every regularizer that is above its start one notch down, not below its start."""
        changes: Changes = {}
        for row in _free(snapshot, "regularization"):
            value, _, span = _span(row)
            changes |= _move(row, max(value - self._rules.notch * span, float(row.start_value)), up=False)
        return changes

    def _averaged(self, snapshot: Snapshot) -> Changes:
        """Every average of weights that is off, on: over about one spacing of evaluations."""
        changes: Changes = {}
        for row in _real(snapshot, "averaging"):
            if not row.resting and row.off is not None and row.value == row.off:
                changes |= _move(row, 1 - 1 / max(1.0, _spacing(snapshot)), up=True)
        return changes

    def _retreat(self, snapshot: Snapshot, diagnosis: Diagnosis, evidence: str, changes: Changes) -> Proposal | None:
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

    def _adjust(self, snapshot: Snapshot, diagnosis: Diagnosis, evidence: str, changes: Changes) -> Proposal | None:
        if not changes or "adjust" not in snapshot.actions:
            return None
        return Proposal(
            diagnosis=diagnosis,
            evidence=evidence,
            action="adjust",
            changes=changes,
            expected=_better(snapshot),
            falsifier="no new best before the next change",
        )


# -- what the snapshot says --------------------------------------------------------------------------------------------


def _since_change(snapshot: Snapshot) -> float:
    """Evaluations since the last change; infinite before the first."""
    since = snapshot.signals.evals_since_change
    return math.inf if since is None else since


def _settled(snapshot: Snapshot) -> float:
    """Evaluations that found no new best since the recipe is what it is."""
    return min(snapshot.signals.evals_since_best, _since_change(snapshot))


def _spacing(snapshot: Snapshot) -> float:
    """Steps from one evaluation to the next, on average. The first one may have been before the first step."""
    progress = snapshot.progress
    return progress.step / max(1, progress.evaluations - 1)


def _left(snapshot: Snapshot) -> int | None:
    """Steps to the end; None without a plan, or before anything was evaluated."""
    progress = snapshot.progress
    return progress.total_steps - progress.step if progress.total_steps is not None and progress.evaluations else None


def _gap(snapshot: Snapshot) -> float | None:
    """How much worse the objective is than on training data, as a fraction of the absolute best."""
    return _relative(snapshot, snapshot.signals.gap)


def _gap_at_best(snapshot: Snapshot) -> float | None:
    """The same at the best evaluation; None where the table has thinned it out."""
    table, step = snapshot.evaluations, snapshot.signals.best_step
    for values in table.rows:
        row = dict(zip(table.columns, values, strict=True))
        ours, theirs = row.get(snapshot.objective), row.get(snapshot.counterpart or "")
        if row["step"] == step and ours is not None and theirs is not None:
            return _relative(snapshot, ours - theirs)
    return None


def _relative(snapshot: Snapshot, gap: float | None) -> float | None:
    best = snapshot.signals.best
    if gap is None or not best or not math.isfinite(gap):
        return None
    return (gap if snapshot.mode == "min" else -gap) / abs(best)


def _rates(snapshot: Snapshot) -> list[RecipeRow]:
    """The learning rates that may be changed now."""
    return [row for row in _free(snapshot, "optimizer") if row.scale == "log"]


def _free(snapshot: Snapshot, group: str) -> list[RecipeRow]:
    """The real-valued parameters of a group that may be changed now."""
    return [row for row in _real(snapshot, group) if row.off is None and not row.resting]


def _real(snapshot: Snapshot, group: str) -> list[RecipeRow]:
    """The real-valued parameters of a group. One that drifted to something else than a number is left alone."""
    return [
        row
        for row in snapshot.recipe
        if row.group == group and row.type == "float" and _number(row.value) and _number(row.start_value)
    ]


def _number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _span(row: RecipeRow) -> tuple[float, float, float]:
    """Value, lowest value and range."""
    assert row.low is not None
    assert row.high is not None
    return float(row.value), float(row.low), float(row.high) - float(row.low)


def _move(row: RecipeRow, wanted: float, *, up: bool) -> Changes:
    """The change of a parameter towards ``wanted`` as far as one change reaches; none in the other direction."""
    assert row.low is not None
    assert row.high is not None
    assert row.reach_low is not None
    assert row.reach_high is not None
    low, high = max(row.low, row.reach_low), min(row.high, row.reach_high)  # a reach is shown in six digits
    value = float(min(max(_tidy(wanted), low), high))
    return {row.name: value} if (value > float(row.value) if up else value < float(row.value)) else {}


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
