"""What a language model may answer to one snapshot: the JSON schema of it, and how its text is read. Pure.

Nothing rests on the schema: the text is read by us, and the guard judges it like any other answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trainmgr.base.wire import Value, quoted, short
from trainmgr.contract.proposal import NOTE, Plan, Proposal
from trainmgr.contract.protocol import explain
from trainmgr.deciding.snapshot import RecipeRow, Snapshot
from trainmgr.managers.prompts import VERSION
from trainmgr.managers.prompts.v3.schema import grammar, targets_of, typed
from trainmgr.managers.prompts.v3.schema import schema as schema_of_the_moment
from trainmgr.managers.prompts.v4.schema import schema

EVIDENCE, FALSIFIER = 1000, 500  # characters, as in Proposal
NEW = ("plans", "judge_after", "ask_again_in", "ask_again_when", "note")  # keys whose null stands for nothing
DEPTH = 12  # of nesting
CANDIDATES = 32  # places of a long text where an object may begin


def form(manager: str, version: str = VERSION) -> Callable[[Snapshot, tuple[str, ...]], dict[str, Any]]:
    """How answers of a manager of this name are formed, asked by a prompt of this version: ``grammar`` for the embedded
    server, else ``schema``."""
    if manager.startswith("local:"):
        return grammar
    return schema_of_the_moment if version == "v3" else schema


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
        answer["changes"] = _given(answer["changes"])
    if isinstance(answer.get("plans"), dict):
        answer["plans"] = {name: _given(plan) if isinstance(plan, dict) else plan
                           for name, plan in _given(answer["plans"]).items()}  # fmt: skip
    answer = {name: value for name, value in answer.items() if value is not None or name not in NEW}
    for name, limit in (("evidence", EVIDENCE), ("falsifier", FALSIFIER), ("note", NOTE)):
        if isinstance(answer.get(name), str):
            answer[name] = short(answer[name], limit)
    return answer


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


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
    return _unfit(proposal, view) or _impossible(proposal, view, parameters)


def _unfit(proposal: Proposal, view: Snapshot) -> str | None:
    """Why the parts of an answer do not go together, or not now."""
    action, wanted = proposal.action, {**proposal.changes, **proposal.plans}
    if action not in view.actions:
        why = f": {view.unavailable[action]}" if action in view.unavailable else ""
        return f'the action "{action}" is not allowed now{why}; allowed are {", ".join(view.actions)}'
    if action not in ("adjust", "rollback") and wanted:
        return f'"{action}" takes no changes' + (" and no plans" if proposal.plans else "")
    if action == "adjust" and not wanted:
        return '"adjust" needs at least one change' + (" or plan" if view.account else "")
    if twice := proposal.changes.keys() & proposal.plans.keys():
        return f"{quoted(min(twice))} is both changed at once and planned: one of the two"
    if proposal.to is not None and proposal.to not in (targets := targets_of(action, view)):
        those = ", ".join(json.dumps(target) for target in targets)
        return f'"to" = {quoted(proposal.to)} is nothing that "{action}" takes; that is {those}'
    return None


def _impossible(proposal: Proposal, view: Snapshot, parameters: tuple[str, ...]) -> str | None:
    """Why a value or a plan cannot be."""
    rows = {row.name: row for row in view.recipe if row.name in parameters}
    rests = view.account.rests if view.account else {}
    for name in (*proposal.changes, *proposal.plans):
        if name not in rows:
            rest = f": it rests until step {rests[name]}" if name in rests else ""
            those = ", ".join(rows) or "none"
            return f"{quoted(name)} is not a parameter that may be changed now{rest}; those are {those}"
    for name, value in proposal.changes.items():
        if wrong := _out_of_reach(rows[name], value):
            return f"{name} = {quoted(value)} {wrong}"
    for name, plan in proposal.plans.items():
        if wrong := _no_plan(rows[name], plan, view):
            return f"the plan for {name} {wrong}"
    return None


def _no_plan(row: RecipeRow, plan: Plan, view: Snapshot) -> str | None:
    progress = view.progress
    if row.type not in ("float", "int") or row.low is None or row.high is None:
        return "cannot be: it is no number"
    if not row.low <= plan.to <= row.high:
        return f"ends at {plan.to!r}, which is not between {row.low!r} and {row.high!r}"
    if plan.by_step <= progress.step:
        return f"ends at step {plan.by_step}; the run is at step {progress.step}"
    total = None if progress.overrun else progress.total_steps
    if total is not None and plan.by_step > total:
        return f"ends at step {plan.by_step}; {total} steps are planned"
    if row.moves:
        return "cannot be: the program itself moves it, and a change at once goes on from there"
    if row.value == row.off:
        return "cannot be: it is off, and has to be switched on at once first"
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
    also = "" if row.off is None else f" or {typed(row, row.off)!r}"
    return f"is not between {low!r} and {high!r}{also}"
