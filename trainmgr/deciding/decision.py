"""The life of a decision, as pure functions from state to audit events.

The supervisor appends what they return; replay and audit call them again on the recorded files and compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from trainmgr.base.paths import usable
from trainmgr.base.wire import plain, short, to_json
from trainmgr.contract import events, protocol
from trainmgr.deciding import control, guard, plans, probation, snapshot
from trainmgr.state.ledger import Ledger
from trainmgr.state.lineage import TRIAL
from trainmgr.state.situation import Situation

OVERDUE = 2  # evaluations beyond its validity after which a revision counts as unanswered
UNHEARD = 12  # the same after its issue, where it is valid for ever
MAX_ANSWER = 1 << 20  # bytes of a manager's answer that are kept


def take_snapshot(now: Situation, why: str) -> tuple[snapshot.Snapshot, events.SnapshotTaken]:
    """The snapshot to decide on, and its record."""
    view = snapshot.take(now, why)
    event = events.SnapshotTaken(
        decision=f"d{now.ledger.asked + 1}",
        trigger=why,
        telemetry_offset=now.mark.offset,
        telemetry_sha256=now.mark.sha256,
        snapshot=plain(view),
    )
    return view, event


def response(decision: str, manager: str, raw: Any, seconds: float, instead: str = "") -> events.Response:
    """An answer exactly as it reads from the log again, since that is what the guard judges, now and in a replay.

    What no JSON can hold, or is too long to keep, becomes a description of itself.
    """
    found = events.Response(decision=decision, manager=manager, raw=raw, seconds=seconds, instead=instead)
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


def verdict(raw: Any, now: Situation, *, age_seconds: float) -> events.Verdict:
    """What the guard says of an answer to the decision that is waited for, in the situation of this moment."""
    decision = now.ledger.waiting
    assert decision is not None
    judgment = guard.judge(
        raw, now, decision=decision, based_on_step=now.ledger.last_step or 0, age_seconds=age_seconds
    )
    proposal = judgment.proposal
    rejected = judgment.result == "rejected"
    return events.Verdict(
        decision=decision,
        telemetry_offset=now.mark.offset,
        telemetry_sha256=now.mark.sha256,
        age_seconds=age_seconds,
        result=judgment.result,
        action=proposal.action if proposal else "keep",
        diagnosis=proposal.diagnosis if proposal else None,
        changes={} if rejected else judgment.changes,
        plans={} if rejected else judgment.plans,
        command=None if rejected else judgment.command,
        expected=proposal.expected if proposal else None,
        evidence=proposal.evidence if proposal else "",
        checks=judgment.checks,
        helpless=proposal.helpless if proposal and proposal.action == "keep" and not rejected else "",
        falsifier=proposal.falsifier if proposal and now.manifest.edition > 1 else "",
        ask_again_in=None if rejected else judgment.ask_again_in,
        ask_again_when=None if rejected else judgment.ask_again_when,
        note=proposal.note if proposal and not rejected else "",
        undoes=[] if rejected else list(judgment.undoes),
        judge_after=probation.judge_after(proposal, now) if proposal and not rejected else None,
    )


def override(ruling: events.Verdict, now: Situation, issued: protocol.Issued) -> events.OverrideIssued | None:
    """What an accepted verdict puts into the control file; None where there is nothing to apply, or nothing may be."""
    ledger, policy, based_on_step = now.ledger, now.policy, now.ledger.last_step or 0
    if not acts(ruling):
        return None
    if ledger.demoted or ledger.overtaken or ledger.challenged:
        return None
    due, age = policy.due(based_on_step), policy.max_age(now.state.total_steps)
    content = control.next_control(
        ledger,
        now.manifest.id,
        ruling.decision,
        changes={**ruling.changes, **plans.first(now, ruling.decision, ruling.plans, based_on_step)},
        command=ruling.command,
        issued=issued,
        based_on_step=based_on_step,
        valid_until_step=None if age is None else max(based_on_step + age, due or 0),
        at_step=due,
        keep=probation.keeps(now, ruling.command) if not ruling.undoes or ruling.command is None else None,
    )
    return events.OverrideIssued(
        decision=ruling.decision,
        origin="manager",
        control=content,
        telemetry_offset=now.mark.offset if ruling.plans else None,
        telemetry_sha256=now.mark.sha256 if ruling.plans else None,
    )


def acts(ruling: events.Verdict) -> bool:
    """Whether there is anything to apply."""
    return ruling.result != "rejected" and bool(ruling.changes or ruling.plans or ruling.command is not None)


def unanswered(now: Situation) -> events.Unanswered | None:
    """The revision that the workload has not answered in the time in which it could; None where there is none.

    What was issued to prevent harm, or to end the run, is wanted for as long as it takes.
    """
    ledger, control = now.ledger, now.ledger.outstanding
    if control is None or isinstance(ledger.carrying, events.Reverted | events.Ending):
        return None
    if ledger.origins.get(control.revision) == "operator":
        return None
    last, patience = control.valid_until_step, OVERDUE
    if last is None:
        last, patience = control.issued.step, UNHEARD
    if sum(evaluation.step > last for evaluation in now.state.evaluations) < patience:
        return None
    return events.Unanswered(
        decision=control.decision, revision=control.revision, telemetry_offset=now.mark.offset, step=now.state.step
    )


def restarted(words: str, now: Situation) -> events.Restarted:
    """Of a child that ended as ``words`` say, once what was on trial is taken back."""
    return events.Restarted(
        attempt=now.ledger.restarts + 1, exit=words, resume=resume(now), telemetry_offset=now.mark.offset
    )


def resume(now: Situation) -> str | None:
    """The checkpoint that a crashed workload goes on from: of before what is on trial, if it was kept, or the last.

    None without one, and where its path cannot be used.
    """
    kept, last, due = now.state.lineage.trial, now.state.lineage.last, now.ledger.due
    since = now.ledger.trials[0].step if now.ledger.trials else None
    if isinstance(due, events.Reverted) and due.why == "crash":  # on record already, right before the restart
        since = due.since
    if kept is not None and since is not None and kept.step >= since:
        last = kept
    return last.path if last and usable(last.path) else None


def own(now: Situation, issued: protocol.Issued) -> events.OverrideIssued | None:
    """The override that follows from what was put on record last; None where nothing is due."""
    due = now.ledger.due
    if due is None:
        return None
    challenge = due if isinstance(due, events.Challenged) else None
    content = control.next_control(
        _held(now.ledger),
        now.manifest.id,
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
    now: Situation, origin: Literal["operator", "restart"], issued: protocol.Issued, *, stop: bool
) -> events.OverrideIssued:  # fmt: skip
    """A revision of our own: what is in force, without the change that nobody answered; with ``stop``, that command."""
    name = f"{origin}{now.ledger.revision + 1}"
    content = control.next_control(
        _held(now.ledger),
        now.manifest.id,
        name,
        changes={},
        command=protocol.Command(id=name, name="stop", to=None) if stop else None,
        issued=issued,
        based_on_step=issued.step,
        valid_until_step=None,
        at_step=None,
    )
    return events.OverrideIssued(decision=name, origin=origin, control=content)


def _held(ledger: Ledger) -> Ledger:
    """The ledger as if the revision that nobody answered yet had not been issued."""
    return ledger if ledger.outstanding is None else replace(ledger, in_force=ledger.held)


def acknowledgment(record: protocol.Applied | protocol.Refused, now: Situation) -> events.Acknowledged:
    """The workload's answer to a revision, as our own record; of what goes on trial with the forecast without it."""
    applied = isinstance(record, protocol.Applied)
    return events.Acknowledged(
        decision=now.ledger.revisions.get(record.revision, "unknown"),
        revision=record.revision,
        telemetry_offset=now.mark.offset,
        result="applied" if applied else "refused",
        step=record.step,
        boundary=record.boundary if isinstance(record, protocol.Applied) else None,
        changes=record.changes if isinstance(record, protocol.Applied) else {},
        reason=record.reason if isinstance(record, protocol.Refused) else "",
        **probation.acknowledged(record, now),
    )


def outcomes(now: Situation, *, over: bool = False) -> Iterator[events.Outcome]:
    """What was measured of the changes whose measuring ended and is not on record yet.

    ``over``: the run is, whether its script said so or not, so that measuring ended for all of them.
    """
    for item in now.state.interventions:
        closed = item.closed or ("end" if over else None)
        if closed is not None and item.revision > now.ledger.outcomes:
            yield events.Outcome(
                decision=now.ledger.revisions.get(item.revision, "unknown"),
                revision=item.revision,
                telemetry_offset=now.mark.offset,
                step=item.step,
                before=item.before,
                after=item.after,
                closed=closed,
            )
