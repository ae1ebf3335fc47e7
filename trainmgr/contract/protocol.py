"""The contract between the two processes: the lines of telemetry.jsonl and the content of control.json.

Read leniently (a newer workload may know more, and one bad metric must not cost an evaluation), written strictly.
``trainmgr schema`` writes these types to ``schemas/``, which is the contract for workloads in other languages.
"""

from __future__ import annotations

import json
import math
import operator
import re
from functools import reduce
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, Field, PrivateAttr, TypeAdapter, ValidationError, field_validator
from pydantic_core import ErrorDetails, from_json

from trainmgr.base.wire import MAX_INT, NON_FINITE, Lenient, Name, Number, Value, Whole, Wire, quoted, short
from trainmgr.contract.action_space import Boundary, Parameter

MAX_PARAMETERS = 64
MAX_FACTS = 16
MAX_LINE = 64 * 1024  # bytes of one telemetry record, line break included

CommandName = Literal["checkpoint", "rollback", "stop"]
Mode = Literal["min", "max"]
EndStatus = Literal["completed", "stopped", "interrupted", "failed", "unknown"]


class Command(Wire):
    """Something to be done once."""

    id: str
    """Unique within the run."""
    name: CommandName
    to: str | None = None
    """rollback: "best", "initial" or a checkpoint's path; stop: "best" to end on the best weights, or null; checkpoint:
    the name to keep it under, or null."""


class Flaw(NamedTuple):
    """Something in a line of telemetry that cost a part of the record, and not the record."""

    kind: Literal["left out", "spelling", "status"]
    """left out: a part that cannot be read is not there; spelling: it was read all the same; status: as unknown."""
    reason: str


class Record(Lenient):
    """What every telemetry record has."""

    v: Literal[1]
    """Protocol version."""
    seq: Annotated[int, Field(ge=0, le=MAX_INT)]
    """Counts the records of a run from 0 without gaps, across restarts."""
    t: float
    """When, in seconds since 1970."""
    _flaws: tuple[Flaw, ...] = PrivateAttr(())

    @property
    def flaws(self) -> tuple[Flaw, ...]:
        """What was wrong with the line it was read from."""
        private = self.__pydantic_private__  # as pydantic reads it, and much faster: a look at every record
        flaws: tuple[Flaw, ...] = private["_flaws"] if private else ()
        return flaws


class Objective(Lenient):
    """What the run is for."""

    metric: Name
    """Name of the evaluation metric."""
    mode: Mode
    """Whether less or more of it is better."""
    counterpart: Name | None = None
    """The evaluation metric that measures the same on training data: their difference is the generalization gap."""
    scale: Annotated[float, Field(gt=0)] | None = None
    """A difference of this much counts as 100%; null: of the absolute best. For what may be 0 or change its sign."""


class MetricInfo(Lenient):
    """What a metric means."""

    description: str = ""
    """In words, with the unit."""
    role: str | None = None
    """What it says of any run of its kind, so that it can be understood without its name. Known are

    - success, unsafe: shares of episodes, from 0 to 1, that ended well, in harm; the others ended in neither;
    - policy step: how far an update moved the policy, as a multiple of what it may (a KL divergence over its target);
    - action noise: standard deviation of the actions over the largest action;
    - loss gradient: norm of the gradient of one weighted term of the loss; the term's weight is in `depends`."""
    depends: Annotated[list[Name], Field(max_length=MAX_PARAMETERS)] = []
    """Parameters that it is a direct function of: once one is changed, earlier values are not comparable."""


class Resumed(Lenient):
    """Where a workload took up again."""

    path: str
    step: Whole


class Start(Record):
    """The workload begins, or begins again after a restart."""

    event: Literal["start"]
    workload: str
    pid: Whole
    seed: int | None = None
    total_steps: Whole | None = None
    """Planned number of training steps; null where there is no plan."""
    objective: Objective
    action_space: Annotated[list[Parameter], Field(max_length=MAX_PARAMETERS)] = []
    metrics: dict[str, MetricInfo] = {}
    commands: list[CommandName] = []
    """What the workload can be told to do."""
    info: dict[str, Any] = {}
    """Scalars about the run, for people."""
    facts: Annotated[dict[str, Value], Field(max_length=MAX_FACTS)] = {}
    """What a manager should know of the run from its start on: size of the data and of the model, batch, what is scored
    at the end."""
    resumed: Resumed | None = None

    @field_validator("action_space")
    @classmethod
    def _distinct(cls, parameters: list[Parameter]) -> list[Parameter]:
        if len({parameter.name for parameter in parameters}) != len(parameters):
            raise ValueError("two parameters have the same name")
        return parameters


class Step(Record):
    """A training step is done."""

    event: Literal["step"]
    step: Whole
    metrics: dict[str, Number]
    """Any of the training metrics, as sparse as the workload likes."""


class Moving(Lenient):
    """A parameter that the script moves by itself, as a learning-rate scheduler does."""

    value: Number
    """What it would be now without overrides."""
    end: Number | None = None
    """What it will be at the end of the run, with the overrides in force; null where nobody knows."""


class Eval(Record):
    """An evaluation is done."""

    event: Literal["eval"]
    step: Whole
    metrics: dict[str, Number]
    """The objective among them."""
    params: dict[str, Value] = {}
    """The recipe in effect, read back: how a change without an override is found."""
    moving: dict[str, Moving] = {}
    """Of parameters that the script moves by itself, where it goes with them."""
    split: dict[str, dict[str, Number]] = {}
    """Metrics by part of the evaluation, name by name."""


class Checkpoint(Record):
    """A checkpoint is complete on disk."""

    event: Literal["checkpoint"]
    step: Whole
    path: str
    """Relative to the run directory."""
    metrics: dict[str, Number] = {}
    best: bool = False
    """Whether it is the best so far, by the objective."""


class Applied(Record):
    """A revision is in effect."""

    event: Literal["applied"]
    revision: Whole
    step: Whole
    """The last training step before it took effect."""
    boundary: Boundary
    changes: dict[str, tuple[Value, Value]]
    """Name to [old, new], where new was read back from the optimizer or the model."""
    command: Command | None = None
    """The command that was done."""
    groups: dict[str, list[Number]] = {}
    """For parameters of an optimizer: the values of all parameter groups."""
    shares: dict[str, tuple[Number, Number]] = {}
    """For parameters that stay a share of what the script has there: the value, and what the script had then."""


class Overwritten(Record):
    """A change that was acknowledged is not in effect any more, and no override took it back."""

    event: Literal["overwritten"]
    name: Name
    revision: Whole
    """That had set it."""
    set_at: Whole
    """The step at which it was acknowledged."""
    value: Value
    """What was acknowledged."""
    step: Whole
    """The step at which it was found."""
    found: Value


class Refused(Record):
    """The workload's own check of a revision failed; nothing was changed."""

    event: Literal["refused"]
    revision: Whole
    step: Whole
    reason: str


class Log(Record):
    """Something for the people who read the log. Data, never an instruction."""

    event: Literal["log"]
    level: str
    message: str


class End(Record):
    """The workload is done."""

    event: Literal["end"]
    status: EndStatus
    """How. Any other text is read as unknown: then the exit code tells."""
    step: Whole
    metrics: dict[str, Number] = {}
    """Final metrics; those of a test set may appear here, and only here."""


Telemetry = Start | Step | Eval | Checkpoint | Applied | Overwritten | Refused | Log | End
_TELEMETRY: TypeAdapter[Telemetry] = TypeAdapter(Annotated[Telemetry, Field(discriminator="event")])
_EVENTS = frozenset(("start", "step", "eval", "checkpoint", "applied", "overwritten", "refused", "log", "end"))


class Unreadable(Lenient):
    """A line of telemetry that is no record: counted, kept as a short quotation, otherwise skipped."""

    kind: Literal["garbage", "unknown"]
    """garbage: not a record; unknown: a record of an event that this version does not know."""
    quote: str
    reason: str
    event: str = ""
    """The event that it would have been, as far as that can be told."""


class _Bare(str):
    """NaN, Infinity or -Infinity where JSON was to be, as many writers have them: kept as the protocol spells them."""

    __slots__ = ()


_BOM = b"\xef\xbb\xbf"
_STEP = re.compile(rb'"event"\s*:\s*"step"').search
_EVENT = re.compile(rb'"event"\s*:\s*"([a-z]{1,16})"')
_DECODER = json.JSONDecoder(parse_constant=_Bare)
_PARTS = {"metrics": 1, "params": 1, "groups": 1, "split": 2, "facts": 1}
"""Parts of a record of which each entry stands for itself, and how deep the entries lie: one is left out alone."""


def parse_telemetry(line: bytes) -> Telemetry | Unreadable:
    """One line as a record, with its ``flaws``. Never raises: what cannot be read says why.

    Left out is what is no number among metrics and no value among parameters. NaN and the infinities are read without
    quotes too, whole numbers in the form 100.0, and a byte order mark before the line is skipped.

    A line of the protocol is parsed once; only what is odd about one costs more.
    """
    return (_STEP(line) and _plain_step(line)) or _parsed(line)


_FLOATS = {float}
_STEP_FIELDS = set(Step.model_fields)
_FIELDS = len(_STEP_FIELDS)
_QUOTES = 2 * (_FIELDS + 1)  # of its keys and of "step"


def _plain_step(line: bytes) -> Step | None:
    """A training step with nothing odd about it, as nearly every line is: the same record that ``_parsed`` makes of it,
    in a third of the time. None where anything is odd, or the line is something else.
    """
    try:
        value = from_json(line)
        seq, t, step, metrics = value["seq"], value["t"], value["step"], value["metrics"]
        if value["event"] != "step" or len(value) != _FIELDS or type(v := value["v"]) is not int or v != 1:
            return None
        if type(t) is int and -MAX_INT <= t <= MAX_INT:
            t = float(t)
        texts = 0
        if {*map(type, metrics.values())} != _FLOATS:
            texts = _convert(metrics)
        elif not math.isfinite(sum(metrics.values())):
            return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if (
        type(seq) is not int or type(step) is not int or type(t) is not float
        or not 0 <= seq <= MAX_INT or not -MAX_INT <= step <= MAX_INT or not math.isfinite(t)
        or len(line) > MAX_LINE
        # A key that comes twice, or is spelled with an escape, shows in the count of quotes.
        or b"\\" in line or line.count(b'"') != _QUOTES + 2 * (len(metrics) + texts)
    ):  # fmt: skip
        return None
    record = _new(Step)
    _set_values(record, {"v": 1, "seq": seq, "t": t, "event": "step", "step": step, "metrics": metrics})
    _set_given(record, _STEP_FIELDS)
    _set_extra(record, None)
    _set_private(record, {"_flaws": ()})
    return record


_new, _slots = object.__new__, vars(BaseModel)  # a frozen model, without its validation
_set_values, _set_given = _slots["__dict__"].__set__, _slots["__pydantic_fields_set__"].__set__
_set_extra, _set_private = _slots["__pydantic_extra__"].__set__, _slots["__pydantic_private__"].__set__


def _convert(metrics: dict[str, Any]) -> int:
    """Make floats of whole numbers and of the strings of the protocol; how many strings there were.

    Raises ValueError for anything else.
    """
    texts = 0
    for name, value in metrics.items():
        if type(value) is str and value in NON_FINITE:
            metrics[name] = NON_FINITE[value]
            texts += 1
        elif type(value) is int and -MAX_INT <= value <= MAX_INT:
            metrics[name] = float(value)
        elif type(value) is not float or not math.isfinite(value):
            raise ValueError
    return texts


def _parsed(line: bytes) -> Telemetry | Unreadable:
    """Any line as a record, or why it is none."""
    if len(line) > MAX_LINE:
        return _unreadable(line, f"too long: a line has at most {MAX_LINE} bytes")
    line = line.removeprefix(_BOM)
    try:
        # Strict validation of JSON text, not of Python values: a JSON array is a tuple there.
        return _TELEMETRY.validate_json(line)
    except ValidationError as error:
        return _odd(line, error)


def _odd(line: bytes, error: ValidationError) -> Telemetry | Unreadable:
    """A line that has ``error`` as a record without what is wrong with it, or why it is none."""
    try:
        value = _DECODER.decode(line.decode())
    except (ValueError, RecursionError) as reason:
        return _unreadable(line, _not_json(line, reason))
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        return _unreadable(line, "no object with an `event`")
    if value["event"] not in _EVENTS:
        return _unreadable(line, f"event {value['event'][:40]!r} is not known", "unknown")
    try:
        return _mended(value, error)
    except ValidationError as left:
        return _unreadable(line, explain(left))
    except RecursionError:
        return _unreadable(line, explain(error))


def _unreadable(line: bytes, reason: str, kind: Literal["garbage", "unknown"] = "garbage") -> Unreadable:
    event = _EVENT.search(line)
    quote = line[:120].decode(errors="replace").rstrip("\n")
    return Unreadable(kind=kind, quote=quote, reason=reason, event=event[1].decode() if event else "")


def _not_json(line: bytes, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError) or b"\0" in line:
        return "not UTF-8" + ": it has zero bytes, as UTF-16 has" * (b"\0" in line)
    where = f": {error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
    return f"not JSON{where}"


def _mended(value: Any, error: ValidationError) -> Telemetry:
    """The record without the entries that ``error`` complains of; raises ValidationError where that is not enough.

    ``value`` is the line as JSON has it, and is changed.
    """
    flaws: dict[tuple[int | str, ...], Flaw] = {}
    for place, items in _findings(error).items():
        path = place[1:]  # without the event
        try:
            parent: Any = reduce(operator.getitem, path[:-1], value)
            found = parent[path[-1]]
        except (LookupError, TypeError):  # it is missing, or what it was in is left out already
            continue
        depth = 1 + _PARTS.get(str(path[0]), 0)
        entry = path[:depth]
        if isinstance(found, _Bare) and len(path) >= depth and value["event"] != "start":
            flaws[path] = Flaw("spelling", f"{_shown(path)}: {found} without quotes")
        elif isinstance(found, float) and found.is_integer() and items[0]["type"] in ("int_type", "literal_error"):
            parent[path[-1]] = int(found)
        elif path == ("status",) and isinstance(found, str):
            parent["status"] = "unknown"
            flaws[path] = Flaw("status", quoted(found))
        elif path == ("facts",):
            parent["facts"] = dict(list(found.items())[:MAX_FACTS]) if isinstance(found, dict) else {}
            flaws[path] = Flaw("left out", _said(path, items))
        elif path[0] == "action_space":
            _make_whole(found)
        elif len(entry) > 1:
            del reduce(operator.getitem, entry[:-1], value)[entry[-1]]
            flaws[entry] = Flaw("left out", _said(path, items))
    record = _TELEMETRY.validate_json(json.dumps(value))
    record._flaws = tuple(flaws.values())
    return record


def _make_whole(parameter: Any) -> None:
    """Write the numbers of a whole-number parameter that have the form 32.0 as 32."""
    if isinstance(parameter, dict) and parameter.get("type") == "int":
        for name in ("low", "high", "value"):
            if isinstance(number := parameter.get(name), float) and number.is_integer():
                parameter[name] = int(number)


class Issued(Wire):
    """When a control file was written."""

    t: float
    step: Whole


class Override(Wire):
    """One revision of the desired state."""

    revision: Annotated[int, Field(ge=1, le=MAX_INT)]
    """Grows by one."""
    params: dict[str, Value]
    """The complete set of overrides in force, absolute values. What is not named is left as it is."""
    based_on_step: Whole
    """The step whose telemetry the decision rests on."""
    valid_until_step: Whole | None = None
    """The workload refuses what it reads later than this."""
    at_step: Whole | None = None
    """Apply at exactly this step, or refuse."""
    at_boundary: Boundary | None = None
    """With at_step, for replay: at exactly this boundary of it."""
    command: Command | None = None
    """Something to be done once, before the parameters are set."""
    keep: Annotated[Annotated[str, Field(pattern=r"^[a-z]{1,32}$")] | None, Field(exclude_if=operator.not_)] = None
    """A name under which a workload that offers "checkpoint" saves one first, before anything is changed."""
    decision: str
    """The decision's id in the audit log."""


class Control(Override):
    """control.json: level-triggered, replaced atomically."""

    v: Literal[1] = 1
    """Protocol version."""
    run: str
    """The run's id, so that a file of another run is refused."""
    issued: Issued
    schedule: list[Override] | None = None
    """For replay: every revision with its at_step. The revision above is then the last of them."""


_TABLE = "must be a table of keys and values"
_WORDS = {  # pydantic's kinds of errors in words for people, who may never have heard of it
    "missing": "missing",
    "extra_forbidden": "unknown key",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": _TABLE,
    "model_type": _TABLE,
    "model_attributes_type": _TABLE,
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "string_too_long": "too long: at most {max_length} characters are allowed",
    "string_too_short": "too short: at least {min_length} character(s) are needed",
    "too_long": "too many: at most {max_length} are allowed",
    "too_short": "too few: at least {min_length} are needed",
    "value_error": "{error}",
}
_BRANCH = "constrained-int"  # of a Value, which pydantic reports branch by branch


def explain(error: ValidationError, model: type[BaseModel] | None = None, limit: int = 3) -> str:
    """The first findings of a validation error as one line: where, and what is wrong. Quotes no long input.

    With ``model``, the type that was wanted, it says which keys there are where one is unknown.
    """
    findings = _findings(error)
    parts = [_said(place, items, model) for place, items in list(findings.items())[:limit]]
    left = len(findings) - limit
    return "; ".join(parts) + (f"; and {left} more" if left > 0 else "")


def _findings(error: ValidationError) -> dict[tuple[int | str, ...], list[ErrorDetails]]:
    """What is wrong, by its place."""
    findings: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    every = error.errors(include_url=False)
    unions = {item["loc"][:-1] for item in every if item["loc"] and item["loc"][-1] == _BRANCH}
    for item in every:
        place = item["loc"][:-1] if item["loc"][:-1] in unions else item["loc"]
        findings.setdefault(place, []).append(item)
    return findings


def _said(place: tuple[int | str, ...], items: list[ErrorDetails], model: type[BaseModel] | None = None) -> str:
    """One finding: where, and what is wrong."""
    text, more = _in_words(items), ""
    if items[0]["type"] == "extra_forbidden":
        known = ", ".join(_keys(model, place[:-1]))
        more = f"; known are {short(known, 300)}" if known else ""
    elif items[0]["type"] not in ("missing", "value_error"):
        more = f" (found {quoted(items[0]['input'])})"
    return f"{_shown(place)}: {text}{more}"


def _shown(place: tuple[int | str, ...]) -> str:
    return short(".".join(map(str, place)), 100) or "value"


def _in_words(items: list[ErrorDetails]) -> str:
    """What is wrong at one place: one error, or one for each branch of a union."""
    item = next((item for item in items if not item["type"].endswith("_type")), items[0])
    if len(items) > 1 and item["type"].endswith("_type"):
        wanted = [_WORDS[i["type"]].removeprefix("must be ") for i in items if i["type"] in _WORDS]
        return "must be " + " or ".join(text for text in wanted if text != "a whole number")  # which is a number too
    if item["type"] not in _WORDS:
        return short(item["msg"], 200)
    context = item.get("ctx", {}).items()
    whole = {n: int(v) if isinstance(v, float) and v.is_integer() else v for n, v in context}  # 0, not 0.0
    return short(_WORDS[item["type"]].format(**whole), 200)


def _keys(kind: Any, place: tuple[int | str, ...]) -> list[str]:
    """The keys that the part at ``place`` of a type may have."""
    for part in place:
        if get_origin(kind) in (dict, list):
            kind = get_args(kind)[-1]
        else:
            field = getattr(kind, "model_fields", {}).get(part)
            kind = field.annotation if field else None
        if get_origin(kind) in (Union, UnionType):
            kind = next((branch for branch in get_args(kind) if hasattr(branch, "model_fields")), None)
    return list(getattr(kind, "model_fields", {}))
