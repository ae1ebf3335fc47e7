"""`rules`: a deterministic diagnosis and response, from the snapshot alone. The embedded default.

It has no memory but the snapshot's, and knows parameters by their declared group and scale, never by name: of group
"optimizer", a logarithmic one is a learning rate; of group "regularization", each regularizes more the higher it is; of
group "averaging", one with an `off` value is the decay of an average of weights. The first rule that fits answers.

The thresholds are the policy's; those that come from pilots were tried on seeds 11 and 12 of workloads/tinystories.py
and chosen by validation loss. What other kinds of runs need is in modules of its own, with other pilots.
"""

from __future__ import annotations

from typing import Any

from trainmgr.base.wire import plain
from trainmgr.contract.policy import Policy
from trainmgr.contract.proposal import Diagnosis, Expectation, Proposal, keep
from trainmgr.deciding.allowed import NOT_OFFERED
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.managers import anew, exploration, imbalance, reading, remedies
from trainmgr.managers.reading import NO_PLANS, Changes, Plans

EVIDENCE = 1000  # characters that a proposal may have of it
AGAIN = 2.0  # an average is lengthened when it may be this many times as long
LONGEST = 1e5  # steps: six digits say no more
SPARE = 2  # interventions, where they are limited


class RulesManager:
    """Keeps unless a rule fits."""

    name = "rules"
    deterministic = True

    def __init__(self, policy: Policy, *, watched: bool | None = None) -> None:
        """``watched``: whether its changes are on probation, where going back to the initial weights is harm. Default:
        as the policy has it for `rules`."""
        self._watched = policy.watches(self.name) if watched is None else watched
        self._rules, self._explore, self._balance = policy.rules, policy.exploration, policy.imbalance
        self._frozen = [name for name, limits in policy.parameters.items() if limits.frozen]

    def decide(self, snapshot: Snapshot) -> Any:
        supervised = (
            self._imbalanced,
            self._instability,
            self._overfitting,
            self._annealing,
            self._averaging,
            self._plateau,
        )
        learning = exploration.declared(snapshot)
        for rule in (
            self._lost,
            self._divergence,
            self._last_chance,
            *((self._exploration,) if learning else supervised),
        ):
            proposal = rule(snapshot)
            if proposal is not None:
                return plain(proposal)
        return plain(self._kept(snapshot))

    # -- the rules, in order -----------------------------------------------------------------------------------------

    def _lost(self, snapshot: Snapshot) -> Proposal | None:
        """Nothing can be changed and there is no way back, as of a script that is only read: what is beyond noise above
        its best for as long as a plateau takes is ended. A plateau alone is not: the script's own schedule may end it.
        """
        bare = not snapshot.recipe and snapshot.unavailable.get(remedies.ROLLBACK) == NOT_OFFERED
        if not bare or "stop" not in snapshot.actions or not self._beyond_noise(snapshot):
            return None
        if reading.settled(snapshot) < self._rules.plateau_evals:
            return None
        diagnosis, evidence = self._rise(snapshot)
        return Proposal(
            diagnosis="divergence" if snapshot.signals.lost else diagnosis,
            evidence=evidence[:EVIDENCE],
            action="stop",
            expected=Expectation(metric=snapshot.objective, direction="flat"),
        )

    def _divergence(self, snapshot: Snapshot) -> Proposal | None:
        """What was finite is not any more, or training itself is worse than at the beginning, beyond noise: back to the
        best and slower.

        At once, since there is nothing to wait for.
        """
        signals = snapshot.signals
        if signals.lost:
            values = f"{signals.non_finite} value{'s' * (signals.non_finite > 1)}"
            why = f"{', '.join(signals.lost)} no longer finite ({values})"
        elif signals.diverging and self._beyond_noise(snapshot) and not self._climbing(snapshot):
            why = "training itself is worse than at the first evaluation"
        else:
            return None
        evidence = f"{why}; {reading.figures(snapshot)}"
        response = self._retreat(snapshot, "divergence", evidence, self._slower(snapshot))
        return response or self._resigned(snapshot, "divergence", evidence)

    def _last_chance(self, snapshot: Snapshot) -> Proposal | None:
        """The last evaluation before the end is worse than the best: end on the best.

        In reinforcement learning beyond noise only: shares of few episodes have a best by luck. Where a stop is not
        allowed: go back to it, and take the last steps as slowly as is allowed.
        """
        left, rise = reading.left(snapshot), snapshot.signals.rise
        if left is None or left > 1.5 * reading.spacing(snapshot) or not rise or rise < 0:
            return None
        if exploration.declared(snapshot) and not self._beyond_noise(snapshot):
            return None
        evidence = f"{left} steps are left; {reading.figures(snapshot)}"
        if "stop" in snapshot.actions and snapshot.best_checkpoint is not None:
            return Proposal(
                diagnosis="routine",
                evidence=evidence,
                action="stop",
                to="best",
                expected=Expectation(metric=snapshot.objective, direction="flat"),
            )
        if "rollback" not in snapshot.actions:
            return None
        return self._retreat(snapshot, "routine", evidence, self._scaled(snapshot, 0.0, self._rules.anneal_to))

    def _exploration(self, snapshot: Snapshot) -> Proposal | None:
        """In reinforcement learning: what episodes say."""
        now = exploration.episodes(snapshot)
        found = exploration.diagnose(snapshot, now, self._explore) if now else None
        if found is None:
            return None
        if not found.changes and not found.plans:
            return self._resigned(snapshot, found.diagnosis, found.evidence)
        if found.back is None or (snapshot.checkpoints and found.back not in snapshot.checkpoints):
            return self._adjust(snapshot, found.diagnosis, found.evidence, found.changes, found.plans)
        return self._retreat(snapshot, found.diagnosis, found.evidence, found.changes, found.back)

    def _imbalanced(self, snapshot: Snapshot) -> Proposal | None:
        """A loss of several terms, some of whose gradients are drowned by another's: more weight for these.

        On a plateau for less of it: there the weights are tried before the learning rate. Not in the last part of the
        run, where that falls.
        """
        now = imbalance.terms(snapshot)
        if now is None or self._late(snapshot) or not self._unbalanced(snapshot, now):
            return None
        changes = imbalance.raised(snapshot, now, self._balance)
        return self._adjust(snapshot, "loss-imbalance", f"{now}; {reading.figures(snapshot)}", changes)

    def _instability(self, snapshot: Snapshot) -> Proposal | None:
        """Gradient norms far outside their habit, often: slower.

        Not where the terms of the loss are out of balance: then one of them makes the norm, and slower helps none.
        """
        if not self._spiking(snapshot):
            return None
        return self._adjust(snapshot, "instability", self._spikes(snapshot), self._slower(snapshot))

    def _overfitting(self, snapshot: Snapshot) -> Proposal | None:
        """The objective is above its best beyond noise, and stays there: back to the best, slower, more regularized.

        Where the gap to the training data is no wider than it was at the best, training lost ground itself: that is no
        overfitting, and slower is enough. Where nobody measures that gap, it may be either: slower first, and more
        regularized if that was tried; nothing where the gradients of several terms are measured, since how the terms
        are weighed explains a rise as well.

        Early in the run, with the recipe of the start: anew from the initial weights, still slower.
        """
        if not self._risen(snapshot):
            return None
        diagnosis, evidence = self._rise(snapshot)
        slower, to = self._slower(snapshot), "best"
        if diagnosis == "instability":
            return self._retreat(snapshot, diagnosis, evidence, slower) if slower else None
        if not self._watched and anew.fits(snapshot, self._rules) and (rates := anew.rates(snapshot, self._rules)):
            slower, to = rates, "initial"
        again = any(past.diagnosis == "worsening" for past in snapshot.interventions)
        tighter = self._tighter(snapshot) if diagnosis == "overfitting" or again or not slower else {}
        changes = {**slower, **tighter, **self._averaged(snapshot)}
        return self._retreat(snapshot, diagnosis, evidence, changes, to) if changes else None

    def _annealing(self, snapshot: Snapshot) -> Proposal | None:
        """The last part of the run: the learning rate falls in a straight line, to end on settled weights.

        One plan for each rate, until the end (cooling a constant rate down: Hägele et al. 2024,
        https://arxiv.org/abs/2405.18392); where another rule has changed the rate meanwhile, anew from there. A rate
        that the script moves as well takes its share of the way that is left every ``patience`` evaluations.
        """
        left = reading.left(snapshot)
        if not left or not self._late(snapshot) or reading.since_change(snapshot) < self._rules.patience:
            return None
        plans: Plans = {}
        share = 1 - min(1.0, self._rules.patience * reading.spacing(snapshot) / max(left, 1))
        changes = self._averaged(snapshot)
        for row in reading.rates(snapshot):
            least = reading.origin(row) * self._rules.anneal_to
            if not row.moves:
                plans |= reading.settle(snapshot, row, least)
            elif not reading.settles(row):
                changes |= reading.move(row, least + share * (float(row.value) - least), up=False)
        evidence = f"{left} steps are left; {reading.figures(snapshot)}"
        return self._adjust(snapshot, "routine", evidence, changes, plans)

    def _averaging(self, snapshot: Snapshot) -> Proposal | None:
        """Averages of weights that are on reach back over a share of the run so far: longer, each time it has doubled.

        (Averages whose length grows with the run: Karras et al. 2024, https://arxiv.org/abs/2312.02696.) Not on the
        way back to the best, which a longer average would make slower, not in the last part of the run where rates are
        brought down, and not with the last changes that are left.
        """
        if self._late(snapshot) and any(not reading.settles(row) for row in reading.rates(snapshot)):
            return None
        spare = snapshot.interventions_left is None or snapshot.interventions_left > SPARE
        if reading.since_change(snapshot) < self._rules.patience or self._climbing(snapshot) or not spare:
            return None
        length, changes = min(self._rules.average * snapshot.progress.step, LONGEST), Changes()
        for row in reading.real(snapshot, "averaging"):
            if length > 1 and not row.resting and row.off is not None and row.value != row.off:
                longer = reading.move(row, 1 - 1 / length, up=True)
                if longer and AGAIN * (1 - float(longer[row.name])) <= 1 - float(row.value):
                    changes |= longer
        return self._adjust(snapshot, "routine", reading.figures(snapshot), changes)

    def _plateau(self, snapshot: Snapshot) -> Proposal | None:
        """No new best for long, and no rise either. The gap to the training data says what is in the way.

        Wide: still overfitting, so averaged and more regularized; where that was tried since the best, it was too much:
        back to the best, a notch looser, and slower, once. Narrow: over-regularization, so what the rules
        have tightened goes one notch back; or underfitting, so a rate that they have cut to its floor rises again.
        In all other cases, and without a gap to look at, slower.
        """
        if not self._stuck(snapshot) or self._late(snapshot):
            return None
        gap, evidence = reading.gap(snapshot), reading.figures(snapshot)
        slower = self._slower(snapshot, settling=False)
        changes = self._averaged(snapshot)
        if gap is not None and gap > self._rules.wide_gap:
            if not reading.moved(snapshot, "regularization", up=True):
                changes |= self._tighter(snapshot)
            elif not reading.moved(snapshot, "regularization", up=False) and (looser := self._looser(snapshot)):
                return self._retreat(snapshot, "over-regularization", evidence, {**slower, **looser})
        elif gap is not None and gap < self._rules.narrow_gap:
            if looser := self._looser(snapshot):
                return self._adjust(snapshot, "over-regularization", evidence, looser)
            if not slower and not snapshot.signals.diverging:
                return self._adjust(snapshot, "underfitting", evidence, self._faster(snapshot))
        return self._adjust(snapshot, "plateau", evidence, changes or slower)

    def _kept(self, snapshot: Snapshot) -> Proposal:
        """What is the matter although nothing is done. Episodes do not overfit."""
        now, figures = imbalance.terms(snapshot), reading.figures(snapshot)
        if not exploration.declared(snapshot):
            if now is not None and self._unbalanced(snapshot, now):
                bare = not remedies.rows(snapshot, "loss weight")
                return self._resigned(snapshot, "loss-imbalance", figures) if bare else keep("loss-imbalance", figures)
            if self._risen(snapshot):
                return self._resigned(snapshot, *self._rise(snapshot))
            if self._spiking(snapshot):
                return self._resigned(snapshot, "instability", self._spikes(snapshot))
            if self._stuck(snapshot) and not self._late(snapshot) and not remedies.rows(snapshot, "optimizer"):
                return self._resigned(snapshot, "plateau", figures)
        return self._unmeasured(snapshot) or self._without_scale(snapshot) or keep("healthy", figures)

    def _resigned(self, snapshot: Snapshot, diagnosis: Diagnosis, evidence: str) -> Proposal:
        """Keep where something is the matter, with why nothing can be done about it."""
        return keep(diagnosis, evidence[:EVIDENCE], remedies.helpless(snapshot, diagnosis, self._frozen)[:EVIDENCE])

    def _unmeasured(self, snapshot: Snapshot) -> Proposal | None:
        """What was never finite did not diverge, and there are no good weights to go back to.

        A loss should be finite from its first report on. An objective may have to wait for its first episode, for as
        long as a plateau would take.
        """
        goals, names = (snapshot.objective, snapshot.counterpart), snapshot.signals.unmeasured
        bad = [name for name in names if name not in goals]
        if bad:
            why = f"{', '.join(bad)} never finite so far"
            todo = "no rollback and no other recipe can help: look at the data, the loss and the number format"
        elif snapshot.objective in names and snapshot.progress.evaluations >= self._rules.plateau_evals:
            why = f"{snapshot.objective} not finite in any of {snapshot.progress.evaluations} evaluations"
            todo = "nothing can be judged without it: look at how it is computed"
        else:
            return None
        return keep("unclear", f"{why}; {reading.figures(snapshot)}"[:EVIDENCE], f"{why}; {todo}"[:EVIDENCE])

    def _without_scale(self, snapshot: Snapshot) -> Proposal | None:
        """A rise is a share of the best, which is none of 0."""
        if not reading.immeasurable(snapshot):
            return None
        why = f"the best {snapshot.objective} is 0, of which nothing is a share, so a rise from it cannot be judged"
        return keep("unclear", f"{why}; {reading.figures(snapshot)}"[:EVIDENCE],
                    f"{why}: declare scale=, the difference that counts as 100%"[:EVIDENCE])  # fmt: skip

    def _rise(self, snapshot: Snapshot) -> tuple[Diagnosis, str]:
        """What a rise of the objective is called, and what shows it."""
        figures, shown = reading.figures(snapshot), reading.overfits(snapshot, self._rules.wide_gap)
        if shown is not None:
            return "overfitting" if shown else "instability", figures
        unknown = "the gap to training data is not known, now or at the best"
        if snapshot.counterpart is None:
            unknown = "no counterpart on training data is declared"
        return "worsening", f"{figures}; {unknown}, so overfitting cannot be told from lost ground"

    def _spiking(self, snapshot: Snapshot) -> bool:
        now = imbalance.terms(snapshot)
        if now is not None and imbalance.tilted(now, self._balance):
            return False
        often = snapshot.signals.grad_spikes > self._rules.spike_share
        return often and reading.since_change(snapshot) >= self._rules.patience

    def _spikes(self, snapshot: Snapshot) -> str:
        share = snapshot.signals.grad_spikes
        return f"{share:.0%} of the gradient norms since the last evaluation were outliers; {reading.figures(snapshot)}"

    def _unbalanced(self, snapshot: Snapshot, now: imbalance.Terms) -> bool:
        return imbalance.unbalanced(snapshot, now, self._balance, stuck=self._stuck(snapshot))

    def _stuck(self, snapshot: Snapshot) -> bool:
        """No new best and no change for long, and not on the way back to the best either."""
        return reading.settled(snapshot) >= self._rules.plateau_evals and not self._climbing(snapshot)

    def _risen(self, snapshot: Snapshot) -> bool:
        """Whether the objective is above its best beyond noise, for long enough to be put down to overfitting."""
        now, patience = imbalance.terms(snapshot), self._rules.patience
        if self._climbing(snapshot):
            return False
        if now is not None and reading.gap(snapshot) is None:
            return False
        if now is not None and imbalance.balancing(snapshot, now):
            patience = max(patience, self._balance.grace)
        return self._beyond_noise(snapshot) and reading.settled(snapshot) >= patience

    def _beyond_noise(self, snapshot: Snapshot) -> bool:
        """Whether the objective is above its best by more than noise explains, or not finite."""
        rise, noise = snapshot.signals.rise, snapshot.signals.noise or 0.0
        return rise is not None and not rise <= max(self._rules.rise, self._rules.noise_factor * noise)

    def _climbing(self, snapshot: Snapshot) -> bool:
        """Whether the run began anew, and is still on its way back to the best it had."""
        return anew.climbing(snapshot, self._rules)

    def _late(self, snapshot: Snapshot) -> bool:
        """Whether this is the last part of the run."""
        left, total = reading.left(snapshot), snapshot.progress.total_steps
        return left is not None and total is not None and left <= self._rules.anneal * total

    # -- responses ---------------------------------------------------------------------------------------------------

    def _slower(self, snapshot: Snapshot, *, settling: bool = True) -> Changes:
        """Every learning rate times the policy's factor, down to its floor: a share of what the script itself has.

        ``settling``: also those that the script's own schedule brings down.
        """
        changes: Changes = {}
        for row in reading.rates(snapshot):
            if settling or not reading.settles(row):
                least = reading.origin(row) * self._rules.lr_floor
                changes |= reading.move(row, max(float(row.value) * self._rules.lr_factor, least), up=False)
        return changes

    def _faster(self, snapshot: Snapshot) -> Changes:
        """Every learning rate up by the same factor, not over what the script itself has, or had at the start."""
        changes: Changes = {}
        for row in reading.rates(snapshot):
            changes |= reading.move(row, min(float(row.value) / self._rules.lr_factor, reading.origin(row)), up=True)
        return changes

    def _scaled(self, snapshot: Snapshot, share: float, floor: float) -> Changes:
        """Every learning rate down to ``share`` of its distance from ``floor`` times its start.

        Not those that the script's own schedule brings down.
        """
        changes: Changes = {}
        for row in reading.rates(snapshot):
            if not reading.settles(row):
                least = reading.origin(row) * floor
                changes |= reading.move(row, least + share * (float(row.value) - least), up=False)
        return changes

    def _tighter(self, snapshot: Snapshot) -> Changes:
        """Every regularizer one notch up."""
        changes: Changes = {}
        for row in reading.free(snapshot, "regularization"):
            place = reading.place(row)
            notch = self._rules.first_notch if place <= 0 else self._rules.notch
            changes |= reading.move(row, reading.at(row, min(place + notch, 1.0)), up=True)
        return changes

    def _looser(self, snapshot: Snapshot) -> Changes:
        """Every regularizer that is above its start one notch down, not below its start."""
        changes: Changes = {}
        for row in reading.free(snapshot, "regularization"):
            wanted = reading.at(row, max(reading.place(row) - self._rules.notch, 0.0))
            changes |= reading.move(row, max(wanted, float(row.start_value)), up=False)
        return changes

    def _averaged(self, snapshot: Snapshot) -> Changes:
        """Every average of weights that is off, on: over about one spacing of evaluations."""
        changes: Changes = {}
        for row in reading.real(snapshot, "averaging"):
            if not row.resting and row.off is not None and row.value == row.off:
                changes |= reading.move(row, 1 - 1 / max(1.0, reading.spacing(snapshot)), up=True)
        return changes

    def _retreat(
        self, snapshot: Snapshot, diagnosis: Diagnosis, evidence: str, changes: Changes, to: str = "best"
    ) -> Proposal | None:
        """Back to a checkpoint with ``changes``; without a way back, the changes alone."""
        if "rollback" not in snapshot.actions:
            return self._adjust(snapshot, diagnosis, evidence, changes)
        return Proposal(
            diagnosis=diagnosis,
            evidence=evidence[:EVIDENCE],
            action="rollback",
            to=to,
            changes=changes,
            expected=reading.better(snapshot),
            falsifier="no new best, and a rise like this one again",
        )

    def _adjust(
        self, snapshot: Snapshot, diagnosis: Diagnosis, evidence: str, changes: Changes, plans: Plans = NO_PLANS
    ) -> Proposal | None:
        if not (changes or plans) or "adjust" not in snapshot.actions:
            return None
        return Proposal(
            diagnosis=diagnosis,
            evidence=evidence[:EVIDENCE],
            action="adjust",
            changes=changes,
            plans=plans,
            expected=reading.better(snapshot),
            falsifier="no new best before the next change",
        )
