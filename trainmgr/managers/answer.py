"""What a language model may answer to one snapshot: the JSON schema of it, and how its text is read. Pure.

The schema is made from the action space of this moment, so that an endpoint which keeps to it cannot name what is not
allowed now. Nothing rests on that: the text is read by us, and the guard judges it like any other answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from trainmgr.base.wire import Value, quoted, short
from trainmgr.contract.proposal import Diagnosis, Proposal
from trainmgr.contract.protocol import explain
from trainmgr.deciding.snapshot import RecipeRow, Snapshot

EVIDENCE, FALSIFIER = 1000, 500  # characters, as in Proposal
METRICS = 32  # of which an effect may be expected
CHOICES = 5  # values of a parameter that a grammar offers
TOGETHER = 8  # parameters that it lets be adjusted at once, of those that follow each other
DEPTH = 12  # of nesting
CANDIDATES = 32  # places of a long text where an object may begin


def form(manager: str) -> Callable[[Snapshot, tuple[str, ...]], dict[str, Any]]:
    """How answers of a manager of this name are formed: ``grammar`` for the embedded server, else ``schema``."""
    return grammar if manager.startswith("local:") else schema


def schema(view: Snapshot, parameters: tuple[str, ...]) -> dict[str, Any]:
    """The strict JSON schema of an answer: every key required, none besides, and limits as minimum and maximum.

    ``parameters`` are those that may be named. The evidence comes first, so that a model has written the figures before
    it decides.
    """
    adjustable = parameters if {"adjust", "rollback"} & set(view.actions) else ()
    targets = dict.fromkeys(to for action in view.actions for to in (*_targets(action, view), None))
    return _object(
        {
            "evidence": {"type": "string"},
            "diagnosis": _one_of(get_args(Diagnosis)),
            "action": _one_of(view.actions),
            "to": {"type": ["string", "null"], "enum": list(targets)},
            "changes": _object({row.name: _limits(row) for row in view.recipe if row.name in adjustable}),
            "expected": _expected(view),
            "falsifier": {"type": "string"},
            "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        }
    )


def grammar(view: Snapshot, parameters: tuple[str, ...]) -> dict[str, Any]:
    """The same for llama.cpp, which makes a grammar of it: that knows no minimum and maximum of fractions, but lengths
    and alternatives. One alternative for each action, with what belongs to it, and a few values of each parameter to
    choose from: whoever keeps to it is valid.
    """
    rows = [row for row in view.recipe if row.name in parameters]
    alternatives = []
    for action in view.actions:
        changes = {"keep": [_changes(())], "stop": [_changes(())], "rollback": [_changes(rows)]}
        adjusted = [_changes(rows[i : i + TOGETHER], first=True) for i, row in enumerate(rows) if _choices(row)]
        allowed = changes.get(action, adjusted)
        if not allowed:
            continue
        alternatives.append(
            _object(
                {
                    "evidence": {"type": "string", "maxLength": 160},
                    "diagnosis": _one_of(get_args(Diagnosis)),
                    "action": {"const": action},
                    "to": {"enum": _targets(action, view)},
                    "changes": allowed[0] if len(allowed) == 1 else {"anyOf": allowed},
                    "expected": _expected(view),
                    "falsifier": {"type": "string", "maxLength": 80},
                    "confidence": {"enum": [0.1, 0.3, 0.5, 0.7, 0.9]},
                }
            )
        )
    return {"anyOf": alternatives}


def _changes(rows: Sequence[RecipeRow], *, first: bool = False) -> dict[str, Any]:
    """Changes of these or of none; with ``first``, of the first one in any case."""
    return _object({row.name: {"enum": [*_choices(row), *([] if first and not i else [None])]}
                    for i, row in enumerate(rows)})  # fmt: skip


def _targets(action: str, view: Snapshot) -> list[str | None]:
    """What an action may go to."""
    if action == "rollback":
        return ["best", "initial"]
    return ["best", None] if action == "stop" and view.best_checkpoint is not None else [None]


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _one_of(names: Iterable[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(names)}


def _expected(view: Snapshot) -> dict[str, Any]:
    names = (view.objective, *view.evaluations.columns[1:])  # of which two long ones may look the same
    metrics = list(dict.fromkeys(name for name in names if name))
    return _object(
        {
            "metric": _one_of(metrics[:METRICS]),
            "direction": _one_of(("down", "up", "flat")),
            "by_step": {"type": ["integer", "null"]},
        }
    )


def _limits(row: RecipeRow) -> dict[str, Any]:
    """One parameter: null leaves it."""
    null = {"type": "null"}
    if row.type == "choice":
        return {"anyOf": [{"type": "string", "enum": row.choices}, null]}
    if row.type == "bool":
        return {"type": ["boolean", "null"]}
    kind = "integer" if row.type == "int" else "number"
    low, high = row.reach
    ranges: list[dict[str, Any]] = [{"type": kind, "minimum": low, "maximum": high}] if low <= high else []
    if row.off is not None:
        ranges.append({"type": kind, "enum": [_typed(row, row.off)]})
    return {"anyOf": [*ranges, null]}


def _typed(row: RecipeRow, value: float) -> float:
    return int(value) if row.type == "int" else value


def _choices(row: RecipeRow) -> list[Value]:
    """A few other values that one change reaches, from low to high, evenly in the parameter's scale."""
    if row.type in ("bool", "choice"):
        there: list[Value] = [False, True] if row.type == "bool" else [*(row.choices or [])]
        return [value for value in there if value != row.value]
    low, high = row.reach
    found: list[Value] = [] if row.off is None else [_typed(row, row.off)]
    for i in range(CHOICES if low <= high else 0):
        share = i / (CHOICES - 1)
        value = low * (high / low) ** share if row.scale == "log" and low > 0 else low + (high - low) * share
        value = min(max(float(f"{value:.3g}"), low), high)
        found.append(round(value) if row.type == "int" else value)
    return [value for value in dict.fromkeys(found) if value != row.value]


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoken:
    """A model's text, parted into its answer and the thoughts before it."""

    said: str
    thoughts: str
    inside: bool
    """Whether it ends within its thoughts."""


_WORD = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|analysis|scratchpad|reflection)"
_THOUGHT = re.compile(  # how different models begin and end their thoughts; the end may come alone
    rf"(?P<end></{_WORD}>|<\|?/{_WORD}\|?>|<\|?end_(?:of_)?{_WORD}\|?>|\[/think\]|◁/think▷|<channel\|>)"
    rf"|<{_WORD}(?:\s[^<>]{{0,80}})?>|<\|(?:start_|begin_of_)?{_WORD}\|>|\[think\]|◁think▷|<\|channel>(?:thought\b)?",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"(to=(?:functions\.)?decide\s*)?<\|channel\|>([^<]*)(?:<\|constrain\|>[^<]*)?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_FINAL = re.compile(r"\s*(?:final\b|\w+ to=(?:functions\.)?decide\b)")  # the second is a tool call
_BARE = re.compile(r"\s*analysis(?=[A-Z0-9{\[(\"'*])")  # the same without its signs: analysisWe ... assistantfinal{
_BARE_FINAL = re.compile(r"assistantfinal|assistantcommentary to=(?:functions\.)?decide")


def spoken(text: str) -> Spoken:
    """What a model says, without what it says to itself: in tags, in channels, begun in the prompt, or cut off."""
    if "<|channel|>" in text:
        return _channels(text)
    *thoughts, said = _BARE_FINAL.split(text)
    if thoughts or _BARE.match(text):
        return Spoken(said, "", False) if thoughts else Spoken("", "", True)
    return _tagged(text)


def _channels(text: str) -> Spoken:
    said: list[str] = []
    inside = True
    for header in _CHANNEL.finditer(text):
        end = _CHANNEL_END.search(text, header.end())
        inside = not header[1] and _FINAL.match(header[2]) is None
        if not inside:
            said.append(text[header.end() : end.start() if end else len(text)])
    return Spoken("\n".join(said), "", inside)


def _tagged(text: str) -> Spoken:
    said: list[str] = []
    thoughts: list[str] = []
    at, inside = 0, False
    for mark in _THOUGHT.finditer(text):
        if mark["end"] is not None:
            if not inside:  # begun in the prompt: nothing was said yet
                thoughts, said = [*thoughts, *said], []
            thoughts.append(text[at : mark.start()])
            at, inside = mark.end(), False
        elif not inside:
            said.append(text[at : mark.start()])
            at, inside = mark.end(), True
    (thoughts if inside else said).append(text[at:])
    return Spoken("\n".join(said), "\n".join(thoughts), inside)


def read(text: str) -> Any:
    """The answer in a model's text: a proposal as JSON values if there is an object in it, else the text, shortened.

    Tolerant of prose and code fences around the object, of JSON within JSON, of null for what is left alone, and of
    long explanations, which are cut; of nothing else. An object among a model's thoughts is a draft, unless it is all
    that it thought and said. Never raises.
    """
    found = whole(text)
    if found is None:
        parts = spoken(text)
        found = extract(parts.said)
        if found is None and not parts.said.strip() and not parts.inside:
            found = whole(parts.thoughts)
    if found is None:
        return short(text, 500)
    if "action" not in found and isinstance(found.get("arguments"), str):  # of a tool call that was written as text
        found = whole(found["arguments"]) or found
    answer = dict(found)
    if isinstance(answer.get("changes"), dict):
        answer["changes"] = {name: value for name, value in answer["changes"].items() if value is not None}
    for name, limit in (("evidence", EVIDENCE), ("falsifier", FALSIFIER)):
        if isinstance(answer.get(name), str):
            answer[name] = short(answer[name], limit)
    return answer


def whole(text: str) -> dict[str, Any] | None:
    """The object with an "action" that a text is, in a code fence or as a JSON string perhaps, with nothing besides."""
    value: Any = text
    for _ in range(3):
        if not isinstance(value, str):
            break
        value = value.strip()
        if (fence := re.match(r"```\w*", value)) and value.endswith("```"):
            value = value[fence.end() : -3]
        try:
            value = json.loads(value, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) and "action" in value and _shallow(value) else None


def extract(text: str) -> dict[str, Any] | None:
    """The JSON object in a text that has an "action", else the object that begins first, if it is whole: what stands in
    the rest of an answer that was cut off is none. None, too, where several have an action and differ: all but one are
    drafts, and which is not is a guess."""
    first: dict[str, Any] | None = None
    decided: dict[str, Any] | None = None
    at = -1
    for tried in range(CANDIDATES):
        at = text.find("{", at + 1)
        if at < 0:
            break
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):  # not JSON, a key twice, a number of 5,000 digits, nesting without end
            continue
        if not _shallow(value):
            continue
        if "action" in value:
            if decided is not None and value != decided:
                return None
            decided, at = decided or dict(value), end - 1
        elif not tried:
            first = value
    return decided or first


def _shallow(value: Any) -> bool:
    """Whether nothing is nested deeper than an answer can be, by far."""
    layer = [value]
    for _ in range(DEPTH):
        inner = [x.values() if isinstance(x, dict) else x for x in layer if isinstance(x, dict | list)]
        layer = [value for values in inner for value in values]
        if not layer:
            return True
    return False


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


# -- objections --------------------------------------------------------------------------------------------------------


def objection(answer: Any, view: Snapshot, parameters: tuple[str, ...]) -> str | None:
    """Why an answer is not valid for this snapshot, in words that a model can mend it by; None for a valid one."""
    if not isinstance(answer, dict):
        return "there is no JSON object in it, or several that differ"
    try:
        proposal = Proposal.model_validate(answer)
    except ValidationError as error:
        return explain(error, Proposal)
    if proposal.action not in view.actions:
        return f'the action "{proposal.action}" is not allowed now; allowed are {", ".join(view.actions)}'
    if proposal.action in ("keep", "stop") and proposal.changes:
        return f'"{proposal.action}" takes no changes'
    if proposal.action == "adjust" and not proposal.changes:
        return '"adjust" needs at least one change'
    if proposal.to is not None and proposal.to not in _targets(proposal.action, view):
        return f'"to" = {quoted(proposal.to)} is nothing that "{proposal.action}" takes'
    rows = {row.name: row for row in view.recipe if row.name in parameters}
    for name, value in proposal.changes.items():
        if name not in rows:
            return f"{quoted(name)} is not a parameter that may be changed now; those are {', '.join(rows) or 'none'}"
        wrong = _out_of_reach(rows[name], value)
        if wrong:
            return f"{name} = {quoted(value)} {wrong}"
    return None


def _out_of_reach(row: RecipeRow, value: Value) -> str | None:
    if row.type == "choice":
        return None if value in (row.choices or []) else f"is not one of {short(', '.join(row.choices or []), 200)}"
    if row.type == "bool":
        return None if isinstance(value, bool) else "is not true or false"
    if isinstance(value, bool | str) or (row.type == "int" and not isinstance(value, int)):
        return f"is not of type {row.type}"
    low, high = row.reach
    if low <= value <= high or value == row.off:
        return None
    if value == row.value and row.low is not None and row.high is not None and row.low <= value <= row.high:
        return None  # it is there already, between two limits that were rounded inwards
    also = "" if row.off is None else f" or {_typed(row, row.off)!r}"
    return f"is not between {low!r} and {high!r}{also}"
