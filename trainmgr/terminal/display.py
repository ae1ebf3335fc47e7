"""Records as a person reads them: plain lines."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import IO

from trainmgr.base.foreign import in_json, on_terminal
from trainmgr.base.wire import Value, moved, plain, same, short
from trainmgr.contract import events, protocol
from trainmgr.contract.proposal import Plan
from trainmgr.log.telemetry import Item
from trainmgr.state.interventions import Drift, Intervention
from trainmgr.state.ledger import Ailment, Ledger
from trainmgr.state.lineage import is_trial
from trainmgr.state.notices import Kind
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation
from trainmgr.terminal.words import number, steps

TOLD = 256  # parameters that are not what they were set to, each named once


def changes_in_words(changes: dict[str, tuple[Value, Value]]) -> str:
    """name old → new, ..."""
    return ", ".join(f"{name} {shown(old)} → {shown(new)}" for name, (old, new) in changes.items())


def plan_in_words(name: str, plan: Plan, old: Value | None = None) -> str:
    """name old to V by step S, linear."""
    begin = "" if old is None else f"{shown(old)} "
    return f"{name} {begin}to {shown(plan.to)} by step {plan.by_step:,}, {plan.shape}"


def done_in_words(changes: dict[str, tuple[Value, Value]], plans: Mapping[str, Plan]) -> str:
    """What was changed at once, and what is brought somewhere little by little: that with where it has come, as long
    as it is not there."""
    at_once = {name: pair for name, pair in changes.items() if name not in plans}
    parts = [changes_in_words(at_once)] if at_once else []
    for name, plan in plans.items():
        if name in changes:
            old, new = changes[name]
            parts.append(
                plan_in_words(name, plan, old) + (f" (reached {shown(new)})" if not same(new, plan.to) else "")
            )
    return ", ".join(parts)


def shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def drift_in_words(drift: Drift) -> str:
    """What a parameter was found at, and what was in force."""
    expected, found = shown(drift.expected), shown(drift.found)
    if drift.set_at is None or drift.restart:
        return f"{drift.name} went from {expected} to {found} at step {drift.step:,}, and nobody here asked for it"
    return (
        f"{drift.name} was set to {expected} at step {drift.set_at:,} and is {found} at step {drift.step:,}: "
        "something overwrites it"
    )


def lost_in_words(item: Intervention) -> str:
    """Which changes of an intervention something else overwrote; empty where all of them hold."""
    names = ", ".join(f"{name} was {shown(found)} at step {step:,}" for name, (step, found) in item.lost.items())
    return f"overwritten: {names}" if names else ""


def command_in_words(command: protocol.Command | None) -> str:
    match command:
        case None:
            return ""
        case protocol.Command(name="rollback"):
            before = command.to is not None and is_trial(command.to)
            return f"roll back to {'what was before' if before else command.to}"
        case protocol.Command(name="stop"):
            return "stop, on the best" if command.to else "stop"
        case _:
            return command.name


def proposal_in_words(ruling: events.Verdict) -> str:
    """diagnosis: what is to be done (evidence)."""
    values = [f"{name} = {shown(value)}" for name, value in ruling.changes.items()]
    wanted = ", ".join((*values, *(plan_in_words(name, plan) for name, plan in ruling.plans.items())))
    todo = "; ".join(part for part in (command_in_words(ruling.command), wanted) if part)
    return f"{ruling.diagnosis}: {todo}  ({ruling.evidence})"


def reversal_in_words(event: events.Reverted) -> str:
    """What was taken back, why, and how."""
    back = ", ".join(f"{name} = {shown(value)}" for name, value in event.parameters.items())
    todo = "; ".join(part for part in (command_in_words(event.command), back) if part)
    if event.challenge:
        what = "crashed with" if event.why == "crash" else "did harm with"
        text = (
            f"the workload {what} the recipe of the start: {number(event.measured)} where {number(event.forecast)} was"
        )
        text += " forecast"
        return f"{text}: {todo or 'nothing is changed'}"
    why = {"harm": "", "no proof": "no proof that it helped, ", "crash": "the workload crashed meanwhile, "}[event.why]
    cost = losses_in_words(event.lost, event.idle)
    text = (
        f"{', '.join(event.decisions[-4:])} taken back: {why}{number(event.measured)} where {number(event.forecast)} "
        f"was forecast (± {number(event.tolerance)}), {cost}: {todo or 'nothing is changed'}"
    )
    if not event.demoted:
        return text
    return f"{text}. Nothing more of the manager is applied: {losses_in_words(event.lost_in_all, event.idle_in_all)}"


def losses_in_words(lost: int, idle: int) -> str:
    """What changes that were taken back have cost."""
    parts = [f"{steps(lost)} lost"] * bool(lost) + [f"{steps(idle)} in vain"] * bool(idle)
    return ", ".join(parts) or "nothing lost"


def watched_in_words(now: Situation) -> str:
    """What is on trial, and how it stands; empty where nothing is and nothing was taken back."""
    parts, state, ledger = [], now.state, now.ledger
    if ledger.trials:
        oldest = ledger.trials[0]
        expected = oldest.forecast.at(state.evals - oldest.forecast.evals)
        decisions = [decision for trial in ledger.trials for decision in trial.decisions]
        parts.append(
            f"on trial since step {oldest.step:,}: {', '.join(decisions[-4:])}, forecast {number(expected)}, "
            f"measured {number(state.latest)}"
        )
    if ledger.reversals:
        times = f"taken back {ledger.reversals} time{'s' * (ledger.reversals > 1)}"
        parts.append(f"{times}, {losses_in_words(ledger.lost, ledger.idle)}")
    if ledger.trust:
        parts.append("trust " + ", ".join(f"{name} {trust:.2g}" for name, trust in ledger.trust.items()))
    if ledger.demoted:
        parts.append("the manager has lost too much: nothing more of it is applied")
    if lacking := unguarded_in_words(now):
        parts.append(lacking)
    return "; ".join(parts)


def unguarded_in_words(now: Situation) -> str:
    """What probation cannot take back in this workload; empty where there is nothing, or nobody is on probation."""
    if now.state.start is None or not now.ledger.on_probation:
        return ""
    if "rollback" not in now.state.start.commands:
        return (
            "the script offers no rollback: of what harms the values are taken back, not what they did to the weights"
        )
    if "checkpoint" not in now.state.start.commands:
        return "the script offers no checkpoint: weights go back to the best ones, not to those from before a change"
    return ""


def begun(event: events.Payload, ledger: Ledger) -> Ailment | None:
    """What a verdict is the first to say of this run: an ailment that the manager can do nothing about."""
    if not isinstance(event, events.Verdict) or not event.helpless or event.diagnosis is None:
        return None
    found = ledger.ailments.get(event.diagnosis)
    return found if found is not None and found.since == found.last else None


def ailment_in_words(ailment: Ailment, ledger: Ledger) -> str:
    """overfitting since step 380; nothing was declared that could help: ..."""
    span = f"since step {ailment.since:,}"
    if ailment.last != ledger.last_step:
        span = f"at step {ailment.since:,}"
        if ailment.last > ailment.since:
            span = f"from step {ailment.since:,} to step {ailment.last:,}"
    return f"{ailment.diagnosis} {span}; {ailment.why}"


def origin_in_words(ledger: Ledger, revision: int) -> str:
    """Who asked for a change that is no manager's: probation, Ctrl-C, SIGTERM, a restart, the run that is repeated."""
    match ledger.origins.get(revision):
        case "replay" if ledger.started is not None and ledger.started.manifest.replay_of is not None:
            return f"as in {ledger.started.manifest.replay_of}"
        case "operator":
            return ledger.stopped_by or "operator"
        case origin:
            return origin or "–"


def spent_in_words(ledger: Ledger) -> str:
    """What the language model has taken so far; empty where nobody was asked."""
    spent = ledger.spent
    if not spent.calls:
        return ""
    money = f", cost {spent.money:.4g}" if spent.money else ""
    return f"{spent.calls} call{'s' * (spent.calls > 1)}, {spent.tokens:,} tokens{money}, {spent.seconds:.0f} s waited"


def undone_in_words(now: Situation, *, nothing: bool) -> str:
    """What the last override asked for and is not in effect although it was acknowledged; empty where all of it is.

    ``nothing``: it changed nothing, so that what is in force from before was asked for again.
    """
    state, ledger = now.state, now.ledger
    asked = {name: value for name, value in ledger.in_force.items()
             if ledger.held.get(name) != value or (nothing and name not in state.moving)}  # fmt: skip
    lacking = [name for name, value in asked.items() if name in state.recipe and not same(value, state.recipe[name])]
    return ", ".join(f"{name} = {shown(asked[name])} was asked for, and {shown(state.recipe[name])} is in effect"
                     for name in lacking)  # fmt: skip


def event_in_words(event: events.Payload, now: Situation) -> str | None:
    """One line for what a person wants to know, None for the rest. ``now`` knows which command was done, and what was
    asked for."""
    match event:
        case events.Response() if event.instead:
            return f"the rules' answer stands: {event.instead}"
        case events.Verdict() if event.result == "rejected":
            reason = next((check for check in event.checks if not check.ok), None)
            return f"rejected: {reason.name}: {reason.reason}" if reason else "rejected"
        case events.Verdict() if event.action != "keep":
            return proposal_in_words(event)
        case events.Acknowledged(result="applied") if now.ledger.origins.get(event.revision) == "plan":
            return None  # where it goes was said when the plan began
        case events.Acknowledged(result="applied"):
            command = next((i.command for i in now.state.interventions if i.revision == event.revision), None)
            parts = [command_in_words(command), changes_in_words(moved(now.ledger.plans.own(event)))]
            last = now.ledger.revision == event.revision
            lacking = undone_in_words(now, nothing=not any(parts)) if last else ""
            if lacking and not any(parts):
                return f"acknowledged at step {event.step}, and nothing was changed: {lacking}"
            done = "; ".join(part for part in (*parts, lacking) if part)
            return f"in effect at step {event.step}: {done or 'no change was needed'}"
        case events.Acknowledged():
            return f"refused by the workload at step {event.step}: {event.reason}"
        case events.PlanEnded():
            return f"the plan of {event.decision} for {event.name} has ended: {event.why}"
        case events.Unanswered():
            return f"not answered by the workload until step {event.step}: revision {event.revision} counts as not made"
        case events.Reverted():
            return reversal_in_words(event)
        case events.Challenged():
            back = ", ".join(f"{name} = {shown(value)}" for name, value in event.parameters.items())
            return f"no new best since step {event.best_step:,}: the recipe of the start goes on trial: {back}"
        case events.Kept(challenge=True):
            expected = number(event.forecast)
            return f"the recipe of the start does no harm: it stays ({number(event.measured)}, forecast {expected})"
        case events.Kept(neutral=True):
            return f"{', '.join(event.decisions[-4:])} did neither good nor harm, and stays: that costs nothing"
        case events.Kept():
            expected = f" where {number(event.forecast)} was forecast" if event.forecast is not None else ""
            return f"{', '.join(event.decisions[-4:])} proved good: {number(event.measured)}{expected}"
        case events.Ending():
            return f"{number(event.measured)} is worse than the best, {number(event.best)}: ends on that"
        case events.Stalled():
            return f"no telemetry for {event.seconds:.0f} s: the workload counts as hung"
        case events.Restarted():
            return f"restart {event.attempt} (it {event.exit}), from {event.resume or 'the beginning'}"
        case events.BudgetSpent():
            return f"nobody is asked: {event.reason}; {event.then}"
        case events.Failure():
            return f"{event.where}: {event.message}"
        case events.Operator():
            todo = "is killed" if event.action == "kill" else f"is asked to {event.action}"
            return f"{event.by or 'Ctrl-C or SIGTERM'}: the script {todo}"
        case events.Signalled(passed=True):
            return f"{event.name}: passed on to the script"
        case events.Signalled():
            return f"{event.name}: the terminal is gone; the run goes on"
        case events.Approval(answer="none"):
            return "nobody answered, which means no"
        case events.Approval():
            return f"your answer: {event.answer}"
        case _:
            return None


class Told:
    """Which notices of a run have been said: each kind once, when the first of it comes."""

    def __init__(self, known: Iterable[Kind] = ()) -> None:
        self._kinds = set(known)

    def new(self, state: RunState) -> list[str]:
        fresh = tuple(state.notices.kinds.keys() - self._kinds)
        if not fresh:  # asked at every record
            return []
        self._kinds.update(fresh)
        return list(state.notices.in_words(fresh))


class Keyboard:
    """Reads answers from the terminal in a thread of its own, so that nobody waits for the person."""

    NOBODY = (
        "Nobody can be asked: standard input is no terminal. No answer means no, so nothing will be applied. "
        "Start it in a terminal, or with --mode auto."
    )

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[bool | None], None]] = queue.SimpleQueue()
        self._there = sys.stdin is not None and sys.stdin.isatty()
        self._told = False
        if self._there:
            threading.Thread(target=self._read, name="keyboard", daemon=True).start()

    def ask(
        self, ruling: events.Verdict, answer: Callable[[bool | None], None], tell: Callable[[str], None]
    ) -> str | None:
        """Wait for the answer to the question that is returned; None where nobody can be asked, which is told once."""
        if self._there:
            self._waiting.put(answer)
            return f"Apply? {on_terminal(proposal_in_words(ruling))}  [y/N]"
        if not self._told:
            self._told = True
            tell(self.NOBODY)
        answer(None)
        return None

    def _read(self) -> None:
        """A line typed before the question is no answer to it: the last question that waits gets the next line."""
        while line := sys.stdin.readline():
            answer = None
            while not self._waiting.empty():
                answer = self._waiting.get_nowait()
            if answer is not None:
                answer(line.strip().lower() in ("y", "yes"))
        while True:  # end of input: nobody is there, and nobody answering means no
            self._waiting.get()(None)


class Drifts:
    """Tells each parameter that is not what it was set to, once for each time that it was set."""

    def __init__(self) -> None:
        self._count = 0
        self._told: set[tuple[str, int | None]] = set()

    def new(self, state: RunState) -> list[str]:
        """What is new in words since the last call."""
        fresh = state.drifts[-(state.drift_count - self._count) :] if state.drift_count > self._count else []
        self._count = state.drift_count
        found = []
        for drift in fresh:
            if not drift.restart and (drift.name, drift.set_at) not in self._told and len(self._told) < TOLD:
                self._told.add((drift.name, drift.set_at))
                found.append(drift_in_words(drift))
        return found


class Lines:
    """A plain line for each event, for logs and pipes."""

    def __init__(self, out: IO[str] | None = None, quiet: bool = False) -> None:
        """``out`` None is stderr."""
        self._out = out or sys.stderr
        self._quiet = quiet
        self._keyboard: Keyboard | None = None
        self._ledger = Ledger()
        self._drifts = Drifts()
        self._told = Told(["warning"])  # which are lines of their own

    def _say(self, step: int, text: str) -> None:
        self._line(f"step {step:>7}  {on_terminal(text)}")

    def _line(self, text: str) -> None:
        self._out.write(f"{text}\n")  # at once: a line is shown whole, or not at all
        self._out.flush()

    def record(self, record: Item, state: RunState) -> None:
        if self._quiet:
            return
        for text in self._drifts.new(state):
            self._say(state.step, text)
        match record:
            case protocol.Start():
                planned = record.total_steps or "?"
                self._say(state.step, f"{short(record.workload, 200)} started, {planned} steps, seed {record.seed}")
                if lacking := unguarded_in_words(Situation(state, self._ledger)):
                    self._say(state.step, lacking)
            case protocol.Eval() if state.start is not None and state.start.objective.metric in record.metrics:
                mark = "  best" if state.best is not None and state.evals_since_best == 0 else ""
                self._say(record.step, f"{state.start.objective.metric} {number(state.latest)}{mark}")
            case protocol.Log():
                self._say(state.step, f"{short(record.level, 16)}: {record.message[:200]}")
            case protocol.End():
                self._say(record.step, f"{record.status}")
        for text in self._told.new(state):
            self._say(state.step, text)

    def event(self, event: events.Payload, now: Situation) -> None:
        self._ledger = ledger = now.ledger
        text = event_in_words(event, now)
        shadow = ledger.demoted or (ledger.started is not None and ledger.started.manifest.mode == "shadow")
        if text and shadow and isinstance(event, events.Verdict) and event.result != "rejected":
            text = f"would ({'demoted' if ledger.demoted else 'shadow'}): {text}"
        if ailment := begun(event, ledger):
            text = ailment_in_words(ailment, ledger)
        if text and not self._quiet:
            self._say(now.state.step, text)

    def tick(self, now: Situation) -> None:
        pass

    def ask(self, ruling: events.Verdict, answer: Callable[[bool | None], None]) -> None:
        self._keyboard = self._keyboard or Keyboard()
        question = self._keyboard.ask(ruling, answer, self._line)
        if question:
            self._line(question)


class JsonLines(Lines):
    """Every audit event as a JSON line, for programs; questions to a person go to ``out``."""

    def __init__(self, data: IO[str], out: IO[str]) -> None:
        super().__init__(out)
        self._data = data

    def event(self, event: events.Payload, now: Situation) -> None:
        self._data.write(f"{in_json(json.dumps(plain(event)))}\n")
        self._data.flush()

    def record(self, record: Item, state: RunState) -> None:
        pass
