"""The snapshots of a recorded run, put to another manager, or to the same one in other words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from trainmgr.base.errors import ManagerError
from trainmgr.base.paths import RunPaths
from trainmgr.contract import events, protocol
from trainmgr.contract.proposal import Proposal
from trainmgr.contract.run_file import EDITION
from trainmgr.deciding import guard, snapshot
from trainmgr.log import audit
from trainmgr.log.history import History, manifest_of
from trainmgr.log.telemetry import Feed
from trainmgr.managers.base import Answer, Consultant, Exchange, Manager
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation


@dataclass(frozen=True)
class Opinion:
    """What two managers made of one snapshot."""

    decision: str
    step: int
    recorded: str
    other: str
    valid: bool
    """Whether the guard would have accepted the other's answer at the moment of the snapshot."""
    same_action: bool
    same_diagnosis: bool
    seconds: float
    """How long the other took."""
    tokens: int
    money: float | None
    """What it cost; None where nobody was asked, or no price is known."""


@dataclass(frozen=True)
class Reworded:
    """One snapshot, put to a language model in several wordings of the prompt."""

    decision: str
    step: int
    answers: tuple[str, ...]
    """In the order of the wordings; the first is the one that runs use."""
    same_action: int
    """How many of the rewordings got the first one's action ..."""
    same_diagnosis: int
    """... and its diagnosis."""
    asked: int
    """How many rewordings there were."""


class Asked:
    """A manager that is asked outside a run, with what that took."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._ledger = Ledger()
        self._priced = False

    def decide(self, view: snapshot.Snapshot, name: str) -> tuple[Any, str | None, float, int, float | None]:
        """The raw answer or why there is none; the seconds, the tokens and the money that it took."""
        before, self._priced = self._ledger.spent, False
        if isinstance(self._manager, Consultant):
            self._manager.begin(name, before, self._hear)
        begin = time.monotonic()
        raw, error = None, None
        try:
            raw = self._manager.decide(view)
            raw = raw.raw if isinstance(raw, Answer) else raw
        except ManagerError as problem:
            error = str(problem)
        seconds, after = round(time.monotonic() - begin, 3), self._ledger.spent
        money = after.money - before.money if self._priced else None
        return raw, error, seconds, after.tokens - before.tokens, money

    def _hear(self, exchange: Exchange) -> None:
        self._ledger.fold(exchange)
        self._priced |= isinstance(exchange, events.Reply) and exchange.money is not None


def opinions(paths: RunPaths, manager: Manager) -> Iterator[Opinion]:
    """Each snapshot of a run with the recorded and the other answer.

    A run without decisions (`none`) is asked about at each of its evaluations.
    """
    answers = {
        event.data.decision: event.data.raw
        for event in audit.read(paths.audit)
        if isinstance(event.data, events.Response)
    }
    asked, any_asked = Asked(manager), False
    for moment in History(paths).moments():
        data = moment.event.data
        if isinstance(data, events.SnapshotTaken) and moment.now.state.start is not None:
            any_asked = True
            yield _opinion(asked, moment.now, data.decision, data.trigger, answers)
    if not any_asked:
        yield from _observed(paths, asked)


@runtime_checkable
class Wordy(Manager, Protocol):
    """A manager whose question has several wordings."""

    variant: int


def reworded(paths: RunPaths, manager: Wordy, count: int) -> Iterator[Reworded]:
    """Each recorded snapshot, asked in the usual wording and in ``count`` others."""
    asked = Asked(manager)
    for moment in History(paths).moments():
        data = moment.event.data
        if not isinstance(data, events.SnapshotTaken) or moment.now.state.start is None:
            continue
        view = snapshot.take(moment.now, data.trigger)
        answers = []
        for manager.variant in range(count + 1):
            answers.append(asked.decide(view, data.decision)[:2])
        first, *others = [guard.read(raw)[0] if error is None else None for raw, error in answers]
        yield Reworded(
            decision=data.decision,
            step=moment.now.state.step,
            answers=tuple(_told(raw) if error is None else f"no answer: {error}" for raw, error in answers),
            same_action=sum(bool(first and other and first.action == other.action) for other in others),
            same_diagnosis=sum(bool(first and other and first.diagnosis == other.diagnosis) for other in others),
            asked=len(others),
        )


def _observed(paths: RunPaths, asked: Asked) -> Iterator[Opinion]:
    state, ledger = RunState(), Ledger()
    ledger.fold(events.RunStarted(manifest=manifest_of(paths)))
    for record in Feed(paths.telemetry).records():
        state.fold(record)
        if isinstance(record, protocol.Eval) and state.start is not None:
            yield _opinion(asked, Situation(state, ledger), f"eval {state.evals}", "evaluation", {})


def _opinion(asked: Asked, now: Situation, name: str, why: str, answers: dict[str, Any]) -> Opinion:
    raw, error, seconds, tokens, money = asked.decide(snapshot.take(now, why), name)
    judged = guard.judge(raw, _today(now), decision=name, based_on_step=now.state.step, age_seconds=0.0)
    recorded, _ = guard.read(answers.get(name))
    other = judged.proposal if error is None else None
    return Opinion(
        decision=name,
        step=now.state.step,
        recorded=_told(answers.get(name)),
        other=_told(raw) if error is None else f"no answer: {error}",
        valid=error is None and judged.result != "rejected",
        same_action=bool(recorded and other and recorded.action == other.action),
        same_diagnosis=bool(recorded and other and recorded.diagnosis == other.diagnosis),
        seconds=seconds,
        tokens=tokens,
        money=money,
    )


def _today(now: Situation) -> Situation:
    """The same as if the run was begun today: what managers may answer has grown since."""
    started = events.RunStarted(manifest=now.manifest.model_copy(update={"edition": EDITION}))
    return replace(now, ledger=replace(now.ledger, started=started))


def _told(raw: Any) -> str:
    """An answer in a few words."""
    if raw is None:
        return "–"
    proposal, objection = guard.read(raw)
    if proposal is None:
        return f"unreadable: {objection}"
    return told(proposal)


def told(proposal: Proposal) -> str:
    parts = [f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"
             for name, value in proposal.changes.items()]  # fmt: skip
    parts += [f"{name} to {plan.to:g} by step {plan.by_step:,}" for name, plan in proposal.plans.items()]
    head = proposal.action if proposal.to is None else f"{proposal.action} to {proposal.to}"
    return f"{proposal.diagnosis}: {head}" + (f" ({', '.join(parts)})" if parts else "")
