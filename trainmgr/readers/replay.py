"""A recorded run, again: decided again byte for byte, or trained again bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trainmgr.base.errors import RecordError, UserError
from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import to_json
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import is_hybrid
from trainmgr.contract.run_file import EDITION
from trainmgr.deciding import asking, decision, plans, probation, snapshot
from trainmgr.log import audit
from trainmgr.log.history import History, Moment
from trainmgr.log.telemetry import Feed
from trainmgr.managers import answer, hybrid, prompt
from trainmgr.managers.base import Manager
from trainmgr.managers.prompts.game import game_of
from trainmgr.state.lineage import is_trial
from trainmgr.state.situation import Situation

ANSWERS = ("decide", "format", "repair")  # calls whose reply is an answer

# -- decided again -------------------------------------------------------------------------------------------------


@dataclass
class Rebuilt:
    """How a replay compares with the log, event by event."""

    run: str
    counts: dict[str, int] = field(default_factory=dict)
    """Events compared, by kind."""
    differences: list[tuple[int, str]] = field(default_factory=list)
    """(line of audit.jsonl, what differs)."""
    note: str = ""
    """What was not compared, and why; "" where all of it was."""


def rebuild(paths: RunPaths, manager: Manager | None = None) -> Rebuilt:
    """Fold the telemetry again and derive every snapshot, verdict, override, acknowledgment and outcome anew.

    With a deterministic ``manager`` (the run's own) its proposals are asked for again too; without one the recorded
    answers are taken. Raises RecordError where the files do not hold together.
    """
    result = Rebuilt(paths.id)
    views: dict[str, snapshot.Snapshot] = {}
    for moment in History(paths).moments():
        data = moment.event.data
        line = moment.event.seq + 1
        asks = manager is not None and manager.deterministic
        if asks and isinstance(data, events.SnapshotTaken) and moment.now.state.start is not None:  # one at a time
            views = {data.decision: snapshot.take(moment.now, data.trigger)}
        expected = derived(moment)
        if expected is not None:
            result.counts[data.kind] = result.counts.get(data.kind, 0) + 1
        if (text := difference(data, expected)) is not None:
            result.differences.append((line, text))
        if isinstance(data, events.Response) and manager is not None and asks:
            if data.decision not in views:
                result.differences.append((line, f"{data.decision} is answered, and nobody was asked about it"))
                continue
            result.counts["proposal"] = result.counts.get("proposal", 0) + 1
            raw = manager.decide(views[data.decision])
            if json.dumps(raw) != json.dumps(data.raw):
                result.differences.append((line, f"the manager answers {json.dumps(raw)[:200]} now"))
    return result


FOLLOWING = (
    events.SnapshotTaken | events.Verdict | events.OverrideIssued | events.PlanEnded | events.Acknowledged
    | events.Unanswered | events.Judgment | events.Outcome
)  # fmt: skip
"""What follows from the records before it, always: nothing else can have been its cause."""


def difference(data: events.Payload, expected: events.Payload | None) -> str | None:
    """How an event differs from what is ``derived`` of its moment; None where it does not, or may be anything."""
    if expected is None and isinstance(data, FOLLOWING):
        return f"{data.kind}: decided again, nothing of the kind was due"
    if expected is None or (found := to_json(data)) == (wanted := to_json(expected)):
        return None
    a, b = json.loads(found), json.loads(wanted)
    name = next((name for name in a if a[name] != b.get(name)), "?")
    return f"{data.kind}: `{name}` is {_cut(a.get(name))}; decided again it is {_cut(b.get(name))}"


def derived(moment: Moment) -> events.Payload | None:
    """The event as it follows from the state of its moment, which stays as it is; None where nothing of its kind does.

    Of what an event says itself only what comes from outside is taken over: times, ages, texts of a language model.
    """
    data, now = moment.event.data, moment.now
    if now.ledger.started is None:
        return None
    match data:
        case events.SnapshotTaken():
            why = asking.trigger(now)
            return None if why is None else decision.take_snapshot(now, why)[1]
        case events.Request():
            return _request(data, moment)
        case events.Response():
            return _response(data, moment)
        case events.Verdict() if now.ledger.waiting is not None:
            return _worded(data, decision.verdict(moment.raw, now, age_seconds=data.age_seconds), now)
        case events.OverrideIssued():
            return _override(data, moment)
        case events.Acknowledged():
            return None if moment.answer is None else decision.acknowledgment(moment.answer, now)
        case events.PlanEnded():
            return plans.over(now)
        case events.Unanswered():
            return decision.unanswered(now)
        case events.Reverted(why="crash"):
            return probation.crashed(now)
        case events.Reverted() | events.Kept() | events.Challenged() | events.Ending():
            return probation.assess(now)
        case events.Restarted():
            return decision.restarted(data.exit, now)
        case events.Outcome():
            return next(decision.outcomes(now, over=data.closed == "end"), None)
        case _:
            return None


def _worded(data: events.Verdict, found: events.Verdict, now: Situation) -> events.Verdict:
    """A verdict on what was no proposal in an earlier edition: why not, it says in words that have changed since."""
    unread = all(verdict.checks and not verdict.checks[0].ok for verdict in (data, found))
    return found.model_copy(update={"checks": data.checks}) if unread and now.manifest.edition < EDITION else found


def _override(data: events.OverrideIssued, moment: Moment) -> events.OverrideIssued | None:
    now, ruling, issued = moment.now, moment.ruling, data.control.issued
    match data.origin:
        case "manager":
            if ruling is None or ruling.decision in now.ledger.revisions.values():  # one decision, one override
                return None
            if now.manifest.mode == "auto":  # issued at once, so that nothing more can have been read
                issued = issued.model_copy(update={"step": now.state.step})
            return decision.override(ruling, now, issued)
        case "probation":
            return decision.own(now, issued)
        case "operator" | "restart":
            return decision.instead(now, data.origin, issued, stop=data.origin == "operator")
        case "plan":
            return plans.going_on(now, issued.model_copy(update={"step": now.state.step}))
        case "replay":  # what another run had in effect, all of it, before anything else
            return data if moment.event.seq == 1 and data.control.schedule else None


def _request(request: events.Request, moment: Moment) -> events.Request | None:
    """The request with its prompt rendered anew; None where this version does not have its templates."""
    if moment.view is None or (wording := prompt.known(request.template)) is None:
        return None
    version, variant = wording
    view = snapshot.Snapshot.model_validate_json(json.dumps(moment.view))
    said = [reply.text for earlier, reply in moment.calls if earlier.purpose == "reason" and reply is not None]
    task: prompt.Task = "reason" if request.purpose == "reason" else "format" if said else "decide"
    manifest = moment.now.manifest
    advice = hybrid.advice(_opinion(moment, view).raw) if is_hybrid(manifest.manager) else ""
    made = prompt.render(
        view,
        prompt.room(manifest.policy, manifest.manager, version),
        task=task,
        variant=variant,
        reasoning=said[-1] if said else "",
        advice=advice,
        game=game_of(manifest.policy, manifest.manager),
        version=version,
    )
    if made.sha256 != request.template_sha256:
        return None
    schema = answer.form(manifest.manager, version)(view, made.parameters)
    parts = (("system", made.system), ("user", made.user))
    head = [events.Message.model_validate({"role": role, "content": content}) for role, content in parts]
    return request.model_copy(
        update={
            "template": made.template,
            "messages": [*head, *request.messages[2:]],
            "answer_schema": schema if request.answer_schema is not None else None,
        }
    )


def _opinion(moment: Moment, view: snapshot.Snapshot) -> hybrid.Opinion:
    """What the rules of a hybrid make of a snapshot."""
    policy = moment.now.policy
    return hybrid.consider(view, hybrid.rules(policy), policy)


def _response(response: events.Response, moment: Moment) -> events.Response | None:
    """What a language model's text reads as, and what the rules of a hybrid say; None where neither led to the
    response, or the rules are other ones by now."""
    manifest = moment.now.manifest
    texts = [reply.text for request, reply in moment.calls
             if request.purpose in ANSWERS and reply is not None and reply.error is None]  # fmt: skip
    raw = answer.read(texts[-1]) if texts else None
    if not is_hybrid(manifest.manager):
        if not texts or response.manager != manifest.manager:
            return None
        return decision.response(response.decision, response.manager, raw, response.seconds)
    if manifest.edition != EDITION or moment.view is None:
        return None
    view = snapshot.Snapshot.model_validate_json(json.dumps(moment.view))
    opinion = _opinion(moment, view)
    instead = response.instead if opinion.doubt else ""
    if texts and opinion.doubt and not (instead := hybrid.unusable(raw, view)):
        by = f"llm:{manifest.manager.partition(':')[2]}"
        return decision.response(response.decision, by, raw, response.seconds)
    return decision.response(response.decision, "rules", opinion.raw, response.seconds, instead)


def _cut(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


# -- trained again ---------------------------------------------------------------------------------------------------


def schedule_of(paths: RunPaths) -> list[protocol.Override]:
    """Every override that took effect, at the exact step and boundary where it did.

    Raises UserError for runs whose telemetry alone cannot repeat them (a restarted one),
    RecordError for impossible ones.
    """
    overrides: dict[int, protocol.Override] = {}
    schedule: list[protocol.Override] = []
    for event in audit.read(paths.audit):
        data = event.data
        if isinstance(data, events.Restarted):
            raise UserError(f"{paths.id} was restarted in the middle; such a run cannot be trained again exactly.")
        if isinstance(data, events.OverrideIssued):
            for override in data.control.schedule or [data.control]:
                overrides[override.revision] = override
        elif isinstance(data, events.Acknowledged) and data.result == "applied":
            if data.revision not in overrides:
                raise RecordError(f"{paths.id}: the workload applied revision {data.revision}, which was never issued.")
            override = overrides[data.revision]
            schedule.append(
                protocol.Override(
                    revision=len(schedule) + 1,
                    params=override.params,
                    based_on_step=override.based_on_step,
                    valid_until_step=None,
                    at_step=data.step,
                    at_boundary=data.boundary,
                    command=override.command,
                    keep=override.keep,
                    decision=override.decision,
                )
            )
    return schedule


@dataclass
class Comparison:
    """Two trainings, record by record."""

    compared: int = 0
    values: int = 0
    """Single numbers compared."""
    first: str | None = None
    """The first difference, in words."""


def compare_training(a: RunPaths, b: RunPaths) -> Comparison:
    """Every metric of every record of two runs, bit for bit; times and process ids are left out.

    The grouping of records with the same step is as it was reported: nothing is sorted.
    """
    result = Comparison()
    left, right = _measured(a), _measured(b)
    for x in left:
        y = next(right, None)
        if y is None:
            result.first = f"the second run ends before {x[0]} at step {x[1]}"
            return result
        result.compared += 1
        result.values += len(x[2])
        if x != y:
            result.first = _first_difference(x, y)
            return result
    extra = next(right, None)
    if extra is not None:
        result.first = f"the second run goes on with {extra[0]} at step {extra[1]}"
    return result


Measured = tuple[str, int, dict[str, str]]


def _measured(paths: RunPaths) -> Iterator[Measured]:
    for record in Feed(paths.telemetry).records():
        match record:
            case protocol.Checkpoint() if is_trial(record.path):
                continue  # kept before a change that the workload then refused: nothing is repeated of that
            case protocol.Step() | protocol.Eval() | protocol.Checkpoint() | protocol.End():
                yield record.event, record.step, {name: value.hex() for name, value in record.metrics.items()}
            case protocol.Applied():
                yield record.event, record.step, {name: repr(pair) for name, pair in record.changes.items()}
            case _:
                continue


def _first_difference(x: Measured, y: Measured) -> str:
    if x[:2] != y[:2]:
        return f"{x[0]} at step {x[1]} where the other has {y[0]} at step {y[1]}"
    for name in {**x[2], **y[2]}:
        if x[2].get(name) != y[2].get(name):
            return f"{name} of {x[0]} at step {x[1]}: {_readable(x[2].get(name))} and {_readable(y[2].get(name))}"
    return f"{x[0]} at step {x[1]}"


def _readable(value: str | None) -> str:
    if value is None:
        return "nothing"
    try:
        return repr(float.fromhex(value))
    except ValueError:
        return value
