"""The lines of audit.jsonl: everything that the supervisor did, as records."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, field_validator

from trainmgr.base.wire import NON_FINITE, Number, Value, Wire
from trainmgr.contract.action_space import Boundary
from trainmgr.contract.forecast import Forecast
from trainmgr.contract.policy import Level
from trainmgr.contract.proposal import Action, Condition, Diagnosis, Expectation, Plan
from trainmgr.contract.protocol import Command, Control
from trainmgr.contract.run_file import Closing, Manifest


def _missing(value: object) -> bool:
    return value is None


class Check(Wire):
    """One check of the guard."""

    name: str
    ok: bool
    reason: str = ""
    """In plain words; empty where there is nothing to say."""


class RunStarted(Wire):
    kind: Literal["run started"] = "run started"
    manifest: Manifest
    key: Annotated[str, Field(pattern="^([0-9a-f]{16})?$", exclude_if=operator.not_)] = ""
    """Of a log that is keyed: the id of the key that its hashes are made with."""


class Attached(Wire):
    """Another supervisor process took over."""

    kind: Literal["attached"] = "attached"
    telemetry_offset: int
    telemetry_sha256: str


class SnapshotTaken(Wire):
    kind: Literal["snapshot"] = "snapshot"
    decision: str
    trigger: str
    telemetry_offset: int
    """The state shown is the fold of this many bytes of telemetry.jsonl ..."""
    telemetry_sha256: str
    """... whose SHA-256 is this."""
    snapshot: dict[str, Any]

    @field_validator("snapshot")
    @classmethod
    def _folds(cls, view: dict[str, Any]) -> dict[str, Any]:
        """What the ledger reads of it is there: somebody may have written the log anew."""
        progress, signals = view.get("progress"), view.get("signals", {})
        if not isinstance(progress, dict) or not isinstance(signals, dict):
            raise ValueError("a snapshot without its progress or its signals")
        if any(type(progress.get(name)) is not int for name in ("step", "evaluations")):
            raise ValueError("the progress of a snapshot has no step or no evaluations")
        for name in ("rise", "noise"):
            if not isinstance(value := signals.get(name), int | float | None) and value not in NON_FINITE:
                raise ValueError(f"{name} is not a number")
        return view


class Message(Wire):
    """One part of a prompt."""

    role: Literal["system", "user", "assistant"]
    content: str


class Request(Wire):
    """A call to a language model, recorded before it is made."""

    kind: Literal["request"] = "request"
    decision: str
    purpose: Literal["decide", "reason", "format", "repair", "probe"]
    """What for; "probe": before the run, to see whether the model answers. It is on record with the first decision."""
    attempt: int
    """Calls made for this decision before this one."""
    endpoint: str
    model: str
    level: Level
    """How the answer is to be formed: as the endpoint is known to support it."""
    form: Annotated[Literal["", "asked", "seen", "enforced"], Field(exclude_if=operator.not_)] = ""
    """What is known of that form. "enforced": our own server makes a grammar of it. "seen": the endpoint gives it to
    the model, which answered the probe in a form that no prompt tells. "asked": it is no more than asked for, since it
    stands in the prompt only, or an answer came outside of it. "": none of these is known."""
    template: str
    template_sha256: str
    messages: list[Message]
    """The exact prompt."""
    answer_schema: dict[str, Any] | None
    """The JSON schema of the answer; null where plain English is asked for."""
    parameters: dict[str, Any]
    """Everything else that was sent."""
    prompt_tokens: int
    """Estimated."""


class Reply(Wire):
    """What came of a call, whether an answer or not."""

    kind: Literal["reply"] = "reply"
    decision: str
    text: str
    """The whole answer; of one that is too long, its beginning."""
    error: str | None = None
    """What went wrong, without secrets."""
    finish: str | None = None
    """Why the model ended, in the endpoint's word."""
    model: str | None = None
    """What the endpoint says that it is."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """Of the prompt's tokens, those from the endpoint's cache, ..."""
    cache_write_tokens: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """... and those that were put into it."""
    reasoning_tokens: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """Of the completion's tokens, those of thoughts, where the endpoint tells."""
    outside: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether the answer is outside the form that the endpoint was given, which shows that it does not enforce it."""
    estimated: bool = False
    """Whether the endpoint did not count the tokens, so that we had to."""
    money: float | None = None
    """By the policy's prices; null where none is known."""
    seconds: float


class BudgetSpent(Wire):
    """Nobody is asked any more, or not for a while."""

    kind: Literal["budget"] = "budget"
    decision: str
    reason: str
    then: str
    """Who decides instead."""


class Response(Wire):
    """What the manager said, before any check."""

    kind: Literal["response"] = "response"
    decision: str
    manager: str
    """Who made it: of a hybrid "rules" or the language model."""
    raw: Any
    """The proposal, or whatever came instead."""
    seconds: float
    """How long it took, with every call."""
    instead: Annotated[str, Field(exclude_if=operator.not_)] = ""
    """Of a hybrid whose language model was asked: why the answer of the rules stands."""


class Verdict(Wire):
    """What the guard said."""

    kind: Literal["verdict"] = "verdict"
    decision: str
    telemetry_offset: int
    """The checks were made on the fold of this many bytes of telemetry.jsonl."""
    telemetry_sha256: str
    age_seconds: float
    """Age of the snapshot at that moment."""
    result: Literal["accepted", "clipped", "rejected"]
    action: Action
    diagnosis: Diagnosis | None
    """None where the answer could not be read."""
    changes: dict[str, Value]
    """What may be applied."""
    command: Command | None
    expected: Expectation | None
    evidence: str
    checks: list[Check]
    helpless: Annotated[str, Field(exclude_if=operator.not_)] = ""
    """Of a "keep": why the manager could do nothing about the diagnosis, and what would help."""
    plans: Annotated[dict[str, Plan], Field(exclude_if=operator.not_)] = {}
    """What is carried out little by little once it is applied."""
    undoes: Annotated[list[int], Field(exclude_if=operator.not_)] = []
    """Of an "undo": the revisions that it takes back."""
    falsifier: Annotated[str, Field(exclude_if=operator.not_)] = ""
    """What would show it wrong."""
    judge_after: Annotated[int | None, Field(exclude_if=_missing)] = None
    """Steps before which the change is not judged to have brought nothing."""
    ask_again_in: Annotated[int | None, Field(exclude_if=_missing)] = None
    """Steps until the next question."""
    ask_again_when: Annotated[Condition | None, Field(exclude_if=_missing)] = None
    """What asks the next question before."""
    note: Annotated[str, Field(exclude_if=operator.not_)] = ""
    """What the manager wants to read again."""


class Approval(Wire):
    """What the person at the terminal said."""

    kind: Literal["approval"] = "approval"
    decision: str
    answer: Literal["yes", "no", "none"]


class OverrideIssued(Wire):
    """Written before control.json is: no change may exist that this log cannot explain."""

    kind: Literal["override"] = "override"
    decision: str
    origin: Literal["manager", "operator", "restart", "replay", "probation", "plan"]
    control: Control
    plans: Annotated[dict[str, str], Field(exclude_if=operator.not_)] = {}
    """Of parts of plans: the parameters that go on, each with the decision that plans it."""
    telemetry_offset: Annotated[int | None, Field(exclude_if=_missing)] = None
    """Where the values of plans are in it: they follow from the fold of this many bytes of telemetry.jsonl ..."""
    telemetry_sha256: Annotated[str | None, Field(exclude_if=_missing)] = None
    """... whose SHA-256 is this."""


class PlanEnded(Wire):
    """A plan ends before its target, and no decision asked for that: what its parameter is at stays."""

    kind: Literal["plan ended"] = "plan ended"
    decision: str
    """That had planned it."""
    name: str
    """The parameter."""
    why: str
    telemetry_offset: int
    """Seen on the fold of this many bytes of telemetry.jsonl ..."""
    telemetry_sha256: str
    """... whose SHA-256 is this."""
    step: int


class Acknowledged(Wire):
    kind: Literal["acknowledged"] = "acknowledged"
    decision: str
    revision: int
    telemetry_offset: int
    """Where the workload's answer ends."""
    result: Literal["applied", "refused"]
    step: int
    boundary: Boundary | None
    changes: dict[str, tuple[Value, Value]]
    reason: str
    forecast: Annotated[Forecast | None, Field(exclude_if=operator.not_)] = None
    """Of a manager's change, which is on trial from now on: what the objective was to be without it. Of a reversal of
    our own: what it is to be now, for what is on trial still."""
    undone: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """With a rollback on trial: the steps of training that it undid."""
    ends: Annotated[list[int], Field(exclude_if=operator.not_)] = []
    """The revisions whose trials end with it, without a verdict: it put back what they had changed."""
    lost: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """Of an undo that brought weights back: the steps that were trained in vain."""


class Unanswered(Wire):
    """A revision is past its validity, and the workload has neither applied nor refused it: it counts as not made."""

    kind: Literal["unanswered"] = "unanswered"
    decision: str
    revision: int
    telemetry_offset: int
    """Seen on the fold of this many bytes of telemetry.jsonl."""
    step: int
    """Of the evaluation at which it was given up."""


class Reverted(Wire):
    """A change on trial is taken back; up to edition 1, after a crash and with a demotion, all of them. The override
    that does it comes next."""

    kind: Literal["reverted"] = "reverted"
    why: Literal["harm", "no proof", "crash"]
    """What the evaluations showed: harm, or until the end of the trial nothing that proves the changes good. Or the
    workload is started again, and nobody will know."""
    decision: str
    """Our own, under which it is issued."""
    telemetry_offset: int
    """Seen on the fold of this many bytes of telemetry.jsonl ..."""
    telemetry_sha256: str
    decisions: list[str]
    """What is taken back, oldest first (the last 32); effects that overlap are not told apart."""
    revisions: list[int]
    since: int
    """The step at which the oldest of them took effect."""
    step: int
    """The step of the last evaluation."""
    forecast: Number | None
    """What the objective was to be there."""
    tolerance: Number
    """How much worse would have been no harm."""
    measured: Number
    parameters: dict[str, Value]
    """What goes back into force."""
    command: Command | None
    """A rollback, where there is a way back."""
    trust: dict[str, float]
    """What was changed to the share of its declared reach that its next change has; "rollback" for that command."""
    lost: int
    """Steps of training that are lost with it."""
    lost_in_all: int
    idle: int
    """Instead: steps of a trial that did no harm, and brought nothing."""
    idle_in_all: int
    demoted: bool
    """Whether that was too much: from now on the manager is asked, and nothing of it is applied."""
    challenge: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether it was the recipe of the start that was on trial, and did harm: nothing of it is the manager's fault."""


class Kept(Wire):
    """Changes on trial have proven themselves, and stay: the oldest, and what else was in effect at the proof."""

    kind: Literal["kept"] = "kept"
    decisions: list[str]
    """Oldest first, the last 32."""
    revisions: list[int]
    trials: Annotated[int, Field(ge=1)]
    """How many trials that ends: up to edition 1 there is one for all changes between the same two evaluations."""
    telemetry_offset: int
    telemetry_sha256: str
    step: int
    forecast: Number | None
    measured: Number | None
    trust: dict[str, float]
    """What grew, as in "reverted"."""
    neutral: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether they did neither good nor harm, and stay since that costs nothing."""
    challenge: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether it was the recipe of the start that was on trial, and did no harm: then ``trust`` is what shrank."""


class Challenged(Wire):
    """Nothing new was learned for long: the recipe of the start goes on trial. The override that does it comes next."""

    kind: Literal["challenged"] = "challenged"
    decision: str
    telemetry_offset: int
    telemetry_sha256: str
    step: int
    measured: Number | None
    best: Number
    best_step: int
    evals: int
    """Evaluations until now."""
    parameters: dict[str, Value]
    """The values of the start, of what a manager has changed."""
    valid_until_step: int | None
    """The last step at which it may take effect."""


class Ending(Wire):
    """By the policy the run ends on its best checkpoint. The stop comes next."""

    kind: Literal["ending"] = "ending"
    decision: str
    telemetry_offset: int
    telemetry_sha256: str
    step: int
    measured: Number | None
    """The objective at the last evaluation before the end, ..."""
    best: Number
    """... which is worse than this."""
    best_step: int
    command: Command


Judgment = Reverted | Kept | Challenged | Ending
"""What probation says of an evaluation."""


class Outcome(Wire):
    """What was measured after a change, until the next one: facts, no attribution beyond them."""

    kind: Literal["outcome"] = "outcome"
    decision: str
    revision: int
    telemetry_offset: int
    """Measured on the fold of this many bytes of telemetry.jsonl."""
    step: int
    before: Number | None
    after: list[tuple[int, Number]]
    closed: str


class Stalled(Wire):
    """No telemetry for the time that the policy allows."""

    kind: Literal["stalled"] = "stalled"
    seconds: float
    step: int


class Restarted(Wire):
    kind: Literal["restarted"] = "restarted"
    attempt: int
    exit: str
    """How the child ended, in words."""
    resume: str | None
    """The checkpoint it goes on from; null: from the beginning."""
    telemetry_offset: int
    """How many bytes of telemetry.jsonl that rests on."""


class Operator(Wire):
    """The person at the terminal, or a job scheduler, asked for the end."""

    kind: Literal["operator"] = "operator"
    action: str
    """stop, then kill."""
    by: str
    """How: Ctrl-C, SIGTERM."""


class Signalled(Wire):
    """The supervisor got a signal that asks nothing of itself."""

    kind: Literal["signal"] = "signal"
    name: str
    """SIGUSR1, SIGRTMIN+3."""
    passed: bool
    """Whether it was passed on to the process that was started; false for the end of the terminal (SIGHUP)."""


class Failure(Wire):
    """Something went wrong around the run; training went on."""

    kind: Literal["error"] = "error"
    where: str
    message: str
    decision: str | None = None


class RunEnded(Wire):
    """The last line."""

    kind: Literal["run ended"] = "run ended"
    closing: Closing
    telemetry_length: int
    """Bytes of telemetry.jsonl in complete lines."""
    telemetry_sha256: str
    """Of these bytes."""
    torn: str
    """SHA-256 of what stands behind them: the line that a killed workload did not finish; "" where there is nothing."""
    run_json_sha256: str


Payload = (
    RunStarted
    | Attached
    | SnapshotTaken
    | Request
    | Reply
    | BudgetSpent
    | Response
    | Verdict
    | Approval
    | OverrideIssued
    | PlanEnded
    | Acknowledged
    | Unanswered
    | Reverted
    | Kept
    | Challenged
    | Ending
    | Outcome
    | Stalled
    | Restarted
    | Operator
    | Signalled
    | Failure
    | RunEnded
)
PAYLOAD: TypeAdapter[Payload] = TypeAdapter(Annotated[Payload, Field(discriminator="kind")])

_NESTED: TypeAdapter[dict[str, Payload]] = TypeAdapter(dict[str, Annotated[Payload, Field(discriminator="kind")]])


def reread(line: bytes) -> Payload:
    """A payload as it reads from within a line of the log, which is nested one level deeper than it is alone."""
    return _NESTED.validate_json(b'{"data":' + line + b"}")["data"]
