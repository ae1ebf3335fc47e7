"""The life of a decision, as pure functions from state to audit events.

The supervisor appends what they return; replay and audit call them again on the recorded files and compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from trainmgr.base.paths import usable
from trainmgr.base.wire import moved, plain, short, to_json
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Policy, asks_model
from trainmgr.deciding import control, guard, probation, snapshot
from trainmgr.state import signals
from trainmgr.state.ledger import Ledger
from trainmgr.state.lineage import TRIAL
from trainmgr.state.run_state import RunState

OVERDUE = 2  # evaluations beyond its validity after which a revision counts as unanswered
UNHEARD = 12  # the same after its issue, where it is valid for ever
MAX_ANSWER = 1 << 20  # bytes of a manager's answer that are kept


@dataclass(frozen=True)
class Mark:
    """A place in telemetry.jsonl: so many bytes, with this SHA-256."""

    offset: int
    sha256: str


def trigger(state: RunState, ledger: Ledger, policy: Policy) -> str | None:
    """Why a manager should be asked now, or None.

    Never while a decision is pending or a change waits for its acknowledgment.
    """
    if state.start is None or state.end is not None or ledger.waiting is not None or ledger.outstanding is not None:
        return None
    if state.stopped_at is not None:  # nothing but its end is wanted of it
        return None
    manager = ledger.started.manifest.manager if ledger.started else ""
    if ledger.challenged:  # what a manager changed meanwhile would spoil the comparison
        return None
    if ledger.demoted and asks_model(manager):  # its answers cost, and would not be applied
        return None
    watches = policy.watches(manager)
    early = watches and state.evals < policy.probation.first_evals
    lost = policy.cadence.on_alarm and state.finiteness.lost
    if lost and ledger.last_alarm != state.evals and (state.evals or not early):
        return "alarm"
    if early or (watches and state.best is None):  # nothing can be compared yet
        return None
    new = state.evals - ledger.last_evals
    if policy.cadence.every_steps is not None:
        return _planned(state, ledger, policy)
    if new <= 0:
        return None
    if policy.cadence.on_alarm and (begun := _alarms(state, policy) - ledger.alarms):
        return f"alarm: {', '.join(sorted(begun))}"
    least = policy.min_steps(manager, state.total_steps)
    steps = state.step - ledger.last_step if ledger.last_step is not None else least
    if new >= policy.cadence.every_evals and not 0 <= steps < least:  # below 0: after a restart
        return "evaluation"
    return None


def _planned(state: RunState, ledger: Ledger, policy: Policy) -> str | None:
    """Whether the next step for which an answer is wanted is near enough, and nobody was asked for it yet."""
    due = policy.due(state.step)
    assert due is not None
    begin = policy.asks_from(due)
    asked = ledger.last_step is not None and begin <= ledger.last_step <= state.step
    return f"step {due} is near" if state.evals and state.step >= begin and not asked else None


def _alarms(state: RunState, policy: Policy) -> frozenset[str]:
    found = signals.measure(state)
    return policy.alarms(found.diverging, found.rise, found.noise)


def next_id(ledger: Ledger) -> str:
    return f"d{ledger.asked + 1}"


def take_snapshot(
    state: RunState, ledger: Ledger, policy: Policy, mark: Mark, why: str
) -> tuple[snapshot.Snapshot, events.SnapshotTaken]:
    """The snapshot to decide on, and its record."""
    view = snapshot.take(state, ledger, policy, why)
    event = events.SnapshotTaken(
        decision=next_id(ledger),
        trigger=why,
        telemetry_offset=mark.offset,
        telemetry_sha256=mark.sha256,
        snapshot=plain(view),
    )
    return view, event


def response(decision: str, manager: str, raw: Any, seconds: float) -> events.Response:
    """An answer exactly as it reads from the log again, since that is what the guard judges, now and in a replay.

    What no JSON can hold, or is too long to keep, becomes a description of itself.
    """
    found = events.Response(decision=decision, manager=manager, raw=raw, seconds=seconds)
    try:
        line = to_json(found)
        again = events.reread(line)
        if isinstance(again, events.Response) and len(line) <= MAX_ANSWER:
            return again
        text = f"an answer of {len(line)} bytes, which begins with {line[:1000]!r}"
    except Exception:
        try:
            text = repr(raw)
        except Exception:
            text = f"an answer of type {type(raw).__name__}"
    return found.model_copy(update={"raw": short(text, 2000)})


def verdict(
    raw: Any,
    state: RunState,
    ledger: Ledger,
    policy: Policy,
    mark: Mark,
    *,
    decision: str,
    based_on_step: int,
    age_seconds: float,
) -> events.Verdict:
    """What the guard says of an answer, on the state of this moment."""
    judgment = guard.judge(
        raw, state, ledger, policy, decision=decision, based_on_step=based_on_step, age_seconds=age_seconds
    )
    proposal = judgment.proposal
    rejected = judgment.result == "rejected"
    return events.Verdict(
        decision=decision,
        telemetry_offset=mark.offset,
        telemetry_sha256=mark.sha256,
        age_seconds=age_seconds,
        result=judgment.result,
        action=proposal.action if proposal else "keep",
        diagnosis=proposal.diagnosis if proposal else None,
        changes={} if rejected else judgment.changes,
        command=None if rejected else judgment.command,
        expected=proposal.expected if proposal else None,
        evidence=proposal.evidence if proposal else "",
        checks=judgment.checks,
        helpless=proposal.helpless if proposal and proposal.action == "keep" and not rejected else "",
    )


def override(
    ruling: events.Verdict, ledger: Ledger, policy: Policy, *, run: str, issued: protocol.Issued, based_on_step: int,
    total_steps: int | None, commands: Sequence[str] = (),
) -> events.OverrideIssued | None:  # fmt: skip
    """What an accepted verdict puts into the control file; None where there is nothing to apply, or nothing may be.

    ``commands`` are those that the workload offers.
    """
    if ruling.result == "rejected" or (not ruling.changes and ruling.command is None):
        return None
    if ledger.demoted or ledger.overtaken or ledger.challenged:
        return None
    due = policy.due(based_on_step)
    age = policy.max_age(total_steps)
    return events.OverrideIssued(
        decision=ruling.decision,
        origin="manager",
        control=control.next_control(
            ledger,
            run,
            ruling.decision,
            changes=ruling.changes,
            command=ruling.command,
            issued=issued,
            based_on_step=based_on_step,
            valid_until_step=None if age is None else max(based_on_step + age, due or 0),
            at_step=due,
            keep=_keep(ledger, policy, commands),
        ),
    )


def _keep(ledger: Ledger, policy: Policy, commands: Sequence[str]) -> str | None:
    """The name under which the workload keeps its weights first; None where it cannot, or something is on trial."""
    wanted = ledger.on_probation and policy.probation.checkpoint and not ledger.trials
    return TRIAL if wanted and "checkpoint" in commands else None


def watched(state: RunState, ledger: Ledger, policy: Policy, mark: Mark) -> events.Judgment | None:
    """What probation says of the last evaluation; to be asked again until it is None."""
    return probation.assess(state, ledger, policy, mark.offset, mark.sha256)


def unanswered(state: RunState, ledger: Ledger, mark: Mark) -> events.Unanswered | None:
    """The revision that the workload has not answered in the time in which it could; None where there is none.

    What was issued to prevent harm, or to end the run, is wanted for as long as it takes.
    """
    control = ledger.outstanding
    if control is None or isinstance(ledger.carrying, events.Reverted | events.Ending):
        return None
    if ledger.origins.get(control.revision) == "operator":
        return None
    last, patience = control.valid_until_step, OVERDUE
    if last is None:
        last, patience = control.issued.step, UNHEARD
    if sum(evaluation.step > last for evaluation in state.evaluations) < patience:
        return None
    return events.Unanswered(
        decision=control.decision, revision=control.revision, telemetry_offset=mark.offset, step=state.step
    )


def crashed(state: RunState, ledger: Ledger, mark: Mark) -> events.Reverted | None:
    """What probation says before a workload that crashed or hung is started again."""
    return probation.crashed(state, ledger, mark.offset, mark.sha256)


def restarted(words: str, state: RunState, ledger: Ledger, offset: int) -> events.Restarted:
    """Of a child that ended as ``words`` say, once what was on trial is taken back."""
    return events.Restarted(
        attempt=ledger.restarts + 1, exit=words, resume=resume(state, ledger), telemetry_offset=offset
    )


def resume(state: RunState, ledger: Ledger) -> str | None:
    """The checkpoint that a crashed workload goes on from: of before what is on trial, if it was kept, or the last.

    None without one, and where its path cannot be used.
    """
    kept, last, due = state.lineage.trial, state.lineage.last, ledger.due
    since = ledger.trials[0].step if ledger.trials else None
    if isinstance(due, events.Reverted) and due.why == "crash":  # on record already, right before the restart
        since = due.since
    if kept is not None and since is not None and kept.step >= since:
        last = kept
    return last.path if last and usable(last.path) else None


def own(ledger: Ledger, *, run: str, issued: protocol.Issued) -> events.OverrideIssued | None:
    """The override that follows from what was put on record last; None where nothing is due."""
    due = ledger.due
    if due is None:
        return None
    base = ledger if ledger.outstanding is None else replace(ledger, in_force=ledger.held)
    challenge = due if isinstance(due, events.Challenged) else None
    content = control.next_control(
        base,
        run,
        due.decision,
        changes={} if isinstance(due, events.Ending) else due.parameters,
        command=None if isinstance(due, events.Challenged) else due.command,
        issued=issued,
        based_on_step=due.step,
        valid_until_step=challenge.valid_until_step if challenge else None,
        at_step=None,
        keep=TRIAL if challenge else None,
    )
    return events.OverrideIssued(decision=due.decision, origin="probation", control=content)


def instead(
    ledger: Ledger, origin: Literal["operator", "restart"], *, run: str, issued: protocol.Issued, based_on_step: int,
    stop: bool,
) -> events.OverrideIssued:  # fmt: skip
    """A revision of our own: what is in force, without the change that nobody answered; with ``stop``, that command."""
    base = ledger if ledger.outstanding is None else replace(ledger, in_force=ledger.held)
    name = f"{origin}{ledger.revision + 1}"
    content = control.next_control(
        base, run, name, changes={}, command=protocol.Command(id=name, name="stop", to=None) if stop else None,
        issued=issued, based_on_step=based_on_step, valid_until_step=None, at_step=None,
    )  # fmt: skip
    return events.OverrideIssued(decision=name, origin=origin, control=content)


def acknowledgment(
    record: protocol.Applied | protocol.Refused, state: RunState, ledger: Ledger, offset: int
) -> events.Acknowledged:
    """The workload's answer to a revision, as our own record; of what goes on trial with the forecast without it."""
    applied = isinstance(record, protocol.Applied)
    on_trial = _on_trial(record, state, ledger)
    return events.Acknowledged(
        decision=ledger.revisions.get(record.revision, "unknown"),
        revision=record.revision,
        telemetry_offset=offset,
        result="applied" if applied else "refused",
        step=record.step,
        boundary=record.boundary if isinstance(record, protocol.Applied) else None,
        changes=record.changes if isinstance(record, protocol.Applied) else {},
        reason=record.reason if isinstance(record, protocol.Refused) else "",
        forecast=probation.expect(state) if on_trial else None,
        undone=state.lineage.undone if on_trial and isinstance(record, protocol.Applied) and _rolled(record) else 0,
    )


def _on_trial(record: protocol.Applied | protocol.Refused, state: RunState, ledger: Ledger) -> bool:
    if not isinstance(record, protocol.Applied):
        return False
    challenge = isinstance(ledger.carrying, events.Challenged) and record.revision == ledger.revision
    if ledger.origins.get(record.revision) != "manager" and not challenge:
        return False
    return ledger.on_probation and state.start is not None and bool(moved(record.changes) or _rolled(record))


def _rolled(record: protocol.Applied) -> bool:
    return record.command is not None and record.command.name == "rollback"


def outcomes(state: RunState, ledger: Ledger, offset: int, *, over: bool = False) -> Iterator[events.Outcome]:
    """What was measured of the changes whose measuring ended and is not on record yet.

    ``over``: the run is, whether its script said so or not, so that measuring ended for all of them.
    """
    for item in state.interventions:
        closed = item.closed or ("end" if over else None)
        if closed is not None and item.revision > ledger.outcomes:
            yield events.Outcome(
                decision=ledger.revisions.get(item.revision, "unknown"),
                revision=item.revision,
                telemetry_offset=offset,
                step=item.step,
                before=item.before,
                after=item.after,
                closed=closed,
            )
