"""The plans in force: parameters on their way to a value. A pure fold, and in bounded memory: a parameter has one at
most.

A plan begins when the workload acknowledges the decision that holds it, and ends at its target, with any later decision
that names its parameter, when probation takes its decision back, and where its own words say so (``PlanEnded``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from trainmgr.base.wire import Value, moved
from trainmgr.contract import events
from trainmgr.contract.proposal import Plan
from trainmgr.contract.protocol import Control
from trainmgr.state.interventions import NOTHING, Moves

KEPT = 32  # revisions of which it is remembered what plans had to do with them
NEVER = -1  # a step before all others


@dataclass(frozen=True)
class Underway:
    """One plan in force."""

    plan: Plan
    decision: str
    begun: float
    """The value that it starts from, ..."""
    since: int
    """... and the step."""
    at: int
    """The step that its last part rests on; NEVER where a restart may have gone back behind it."""
    refused: str = ""
    """Why the workload refused a part; "" where it did not."""

    def value_at(self, step: int) -> float:
        """Where it is at a step: exactly ``to`` from ``by_step`` on."""
        plan = self.plan
        if step >= plan.by_step:
            return plan.to
        share = min(max((step - self.since) / (plan.by_step - self.since), 0.0), 1.0)
        if plan.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        low, high = sorted((self.begun, float(plan.to)))
        return min(max((1 - share) * self.begun + share * plan.to, low), high)


@dataclass(frozen=True)
class Plans:
    """The fold over the log that a `Ledger` keeps of them."""

    underway: dict[str, Underway] = field(default_factory=dict)
    """By parameter."""
    moves: dict[int, Moves] = field(default_factory=dict)
    """By revision, the last ones."""

    def of(self, revision: int) -> Moves:
        """What of a revision is due to plans."""
        return self.moves.get(revision, NOTHING)

    def own(self, payload: events.Acknowledged) -> dict[str, tuple[Value, Value]]:
        """What a revision changed itself: not what only went on."""
        go_on = self.of(payload.revision).go_on
        return {name: pair for name, pair in payload.changes.items() if name not in go_on}

    def issued(
        self, payload: events.OverrideIssued, named: Collection[str], begin: Collection[str], before: Control | None
    ) -> Plans:
        """With an override. ``named``: what the decision behind it changes or plans; ``begin``: what it plans.
        ``before`` is the revision that it supersedes, whose part of the way it takes over; None where nothing waits."""
        control, underway = payload.control, self.underway
        if payload.origin == "plan":
            go_on = frozenset(payload.plans)
            further = go_on & underway.keys()
            underway = underway | {name: replace(underway[name], at=control.based_on_step) for name in further}
        else:
            earlier = self.of(before.revision).go_on if before is not None else frozenset()
            go_on = frozenset(
                name for name in earlier - {*named}
                if before is not None and control.params.get(name) == before.params.get(name)
            )  # fmt: skip
        moves = self.moves
        if begin or go_on:
            moves = dict([*moves.items(), (control.revision, Moves(frozenset(begin), go_on))][-KEPT:])
        return replace(self, underway=underway, moves=moves)

    def applied(
        self,
        payload: events.Acknowledged,
        named: Collection[str],
        plans: Mapping[str, Plan],
        control: Control | None,
        origin: str | None,
    ) -> Plans:
        """With what took effect. ``named`` and ``plans``: of the decision behind it. ``control`` is what was
        acknowledged, where known."""
        params: Mapping[str, Value] = control.params if control is not None else {}
        if origin == "probation":
            named = {*moved(payload.changes)} - self.of(payload.revision).go_on
        underway = {name: found for name, found in self.underway.items() if name not in {*named}}
        for name, plan in plans.items():
            begun = payload.changes[name][0] if name in payload.changes else params.get(name)
            if isinstance(begun, int | float) and not isinstance(begun, bool):
                since = control.based_on_step if control is not None else payload.step
                underway[name] = Underway(plan, payload.decision, float(begun), since, at=since)
        return self._only({name: found for name, found in underway.items() if params.get(name) != found.plan.to})

    def refused(self, payload: events.Acknowledged, control: Control) -> Plans:
        """The workload refused a part. One that only came too late for its step is made up for by the next one."""
        if control.at_step is not None and payload.step > control.at_step:
            return self
        reason, parts = payload.reason or "it gave no reason", self.of(control.revision).go_on & self.underway.keys()
        return self._only(self.underway | {name: replace(self.underway[name], refused=reason) for name in parts})

    def taken_back(self, decisions: Collection[str]) -> Plans:
        """Without those of these decisions."""
        return self._only({name: found for name, found in self.underway.items() if found.decision not in decisions})

    def demoted(self) -> Plans:
        """Nothing of the manager is applied any more."""
        return self._only({})

    def restarted(self) -> Plans:
        """The workload goes on from an earlier step: what follows rests on evaluations that come again."""
        return self._only({name: replace(found, at=NEVER) for name, found in self.underway.items()})

    def ended(self, payload: events.PlanEnded) -> Plans:
        """Without the one that could not go on."""
        return self._only({name: found for name, found in self.underway.items() if name != payload.name})

    def _only(self, underway: dict[str, Underway]) -> Plans:
        return replace(self, underway=underway)
