"""A snapshot as a language model reads it: small aligned tables, within a number of tokens whatever the run's length.

Pure, and deterministic to the byte: a replay renders the same prompt again. Text of the workload appears quoted, in
ASCII and cut short; a line of it cannot look like one of ours.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Template
from typing import Literal, get_args

from trainmgr.proposal import Diagnosis
from trainmgr.snapshot import Past, RecipeRow, Snapshot
from trainmgr.wire import Value, short

VERSION = "v1"
VARIANTS = 4  # wordings of the system prompt: 0 is used, the others show how much the wording matters
Task = Literal["decide", "reason", "format"]
REASONING = 2000  # characters of a reasoner's text that its formatter gets
NAME = 40  # characters of a foreign name

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./%@-]*")
_PIECE = re.compile(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]|\n| {2,}")


@dataclass(frozen=True)
class Detail:
    """How much of a snapshot is shown."""

    rows: int
    columns: int
    texts: int
    past: int
    parameters: int
    description: int
    """Characters."""


DETAILS = (
    Detail(24, 8, 4, 6, 64, 60),
    Detail(20, 7, 4, 5, 64, 40),
    Detail(16, 6, 3, 4, 48, 24),
    Detail(12, 5, 2, 3, 32, 0),
    Detail(10, 4, 1, 3, 24, 0),
    Detail(8, 3, 0, 2, 16, 0),
    Detail(6, 3, 0, 1, 8, 0),
    Detail(4, 3, 0, 1, 4, 0),
    Detail(3, 3, 0, 0, 2, 0),
)


@dataclass(frozen=True)
class Prompt:
    """What is sent, and what it lets be answered."""

    template: str
    """Version and wording, such as "v1/0"."""
    sha256: str
    """Of the templates."""
    system: str
    user: str
    parameters: tuple[str, ...]
    """Those that are shown and may be changed now: no answer may name another."""
    tokens: int
    """Estimated."""


def estimate(text: str) -> int:
    """Tokens of ``text``, on the high side: one for each digit, sign, line end and run of blanks, one for every five
    letters begun, three for what is not ASCII. Tokenizers of current models need fewer for our prompts."""
    count = 0
    for piece in _PIECE.findall(text):
        if piece[0].isalpha() and piece.isascii():
            count += -(-len(piece) // 5)
        else:
            count += 1 if piece.isascii() else 3
    return count


def render(view: Snapshot, limit: int, *, task: Task = "decide", variant: int = 0, reasoning: str = "") -> Prompt:
    """The prompt for a snapshot in at most ``limit`` estimated tokens, as detailed as fits.

    ``reasoning`` is what a reasoner said, for the task "format". Where even the least detail is too long, that is sent.
    """
    system, body, digest = _templates(task, variant)
    prompt: Prompt | None = None
    for detail in DETAILS:
        rows = _shown(view, detail)
        user = body.substitute(
            report=report(view, detail),
            diagnoses=", ".join(get_args(Diagnosis)),
            actions=", ".join(view.actions),
            unavailable="".join(f"Not allowed: {name}, {reason}.\n" for name, reason in view.unavailable.items()),
            reasoning=_quote(reasoning, REASONING),
        )
        changeable = tuple(row.name for row in rows if not row.resting)
        tokens = estimate(system) + estimate(user)
        prompt = Prompt(f"{VERSION}/{variant}", digest, system, user, changeable, tokens)
        if tokens <= limit:
            break
    assert prompt is not None
    return prompt


def repair(objection: str) -> str:
    """The message after an answer that was not valid."""
    return Template(_read("repair.md")).substitute(objection=short(objection, 500))


@cache
def _templates(task: Task, variant: int) -> tuple[str, Template, str]:
    """System prompt, task and the SHA-256 of both."""
    if not 0 <= variant < VARIANTS:
        raise ValueError(f"there are {VARIANTS} wordings, 0 to {VARIANTS - 1}")
    system, body = _read(f"system-{variant}.md" if variant else "system.md"), _read(f"{task}.md")
    return system, Template(body), hashlib.sha256(f"{system}\0{body}".encode()).hexdigest()


@cache
def _read(name: str) -> str:
    return (resources.files("trainmgr.prompts") / VERSION / name).read_text(encoding="utf-8")


# -- the report --------------------------------------------------------------------------------------------------------


def report(view: Snapshot, detail: Detail) -> str:
    """Everything that was measured, between two marks."""
    parts = [
        "BEGIN DATA",
        *_head(view),
        "",
        *_evaluations(view, detail),
        *_splits(view, detail),
        "",
        *_parameters(view, detail),
        *_changes(view, detail),
        *(f"rejected lately: {_quote(reason, 160)}" for reason in view.rejections[-2:]),
        *(f"log of the program: {_quote(text, 120)}" for text in view.texts[-detail.texts :] if detail.texts),
        "END DATA",
    ]
    return "\n".join(parts)


def _head(view: Snapshot) -> list[str]:
    progress, signals = view.progress, view.signals
    total = f" of {progress.total_steps}" if progress.total_steps is not None else ""
    goal = "minimized" if view.mode == "min" else "maximized"
    counterpart = f"; on training data: {word(view.counterpart)}" if view.counterpart else ""
    best = "" if signals.best_step is None else f" at step {signals.best_step}"
    saved = "none yet" if view.best_checkpoint is None else f"step {view.best_checkpoint}"
    changed = "-" if signals.evals_since_change is None else signals.evals_since_change
    diverging = "yes" if signals.diverging else "no"
    left = "" if view.interventions_left is None else f"; changes left: {view.interventions_left}"
    return [
        f"program {word(view.workload)}, step {progress.step}{total}, evaluations {progress.evaluations}",
        f"asked because of: {view.trigger}",
        f"objective {word(view.objective)}, to be {goal}{counterpart}",
        f"latest {figure(signals.latest)}, best {figure(signals.best)}{best}, first {figure(signals.first)}",
        f"evaluations since best {signals.evals_since_best}, since the last change {changed}",
        f"rise {figure(signals.rise)}, noise {figure(signals.noise)}, slope {figure(signals.slope)} per evaluation",
        f"gap to training data {figure(signals.gap)}, its slope {figure(signals.gap_slope)}",
        f"gradient outliers {figure(signals.grad_spikes)}, non-finite values {signals.non_finite}",
        f"diverging {diverging}, best checkpoint: {saved}{left}",
    ]


def _evaluations(view: Snapshot, detail: Detail) -> list[str]:
    table = view.evaluations
    first = [name for name in ("step", view.objective, view.counterpart) if name in table.columns]
    names = [*first, *(name for name in table.columns if name not in first)][: detail.columns]
    at = [table.columns.index(name) for name in names]
    rows = list(table.rows)
    while len(rows) > detail.rows:  # older ones thinned, as in the snapshot
        half = max(1, detail.rows // 2)
        rows = [*rows[:-half][::2], *rows[-half:]] if len(rows) > half + 1 else rows[-detail.rows :]
    lines = [[figure(row[i]) if name != "step" else f"{row[i]:g}" for i, name in zip(at, names, strict=True)]
             for row in rows]  # fmt: skip
    missing = len(table.columns) - len(names)
    note = f" ({missing} more columns are not shown)" if missing else ""
    return [f"evaluations, oldest first{note}:", *aligned([[word(name) for name in names], *lines])]


def _splits(view: Snapshot, detail: Detail) -> list[str]:
    if not view.split:
        return []
    columns = list(dict.fromkeys(name for row in view.split.values() for name in row))[: detail.columns]
    rows = [
        [word(name), *(figure(row.get(column)) for column in columns)]
        for name, row in list(view.split.items())[: detail.rows]
    ]
    return ["", "last evaluation by part:", *aligned([["part", *map(word, columns)], *rows])]


def _shown(view: Snapshot, detail: Detail) -> list[RecipeRow]:
    return view.recipe[: detail.parameters]


def _parameters(view: Snapshot, detail: Detail) -> list[str]:
    rows = _shown(view, detail)
    head = ["name", "now", "next_min", "next_max", "at_start", "group"]
    lines = [[word(row.name), value(row.value), *_reach(row), value(row.start_value), word(row.group)] for row in rows]
    text = aligned([head, *lines])
    for i, row in enumerate(rows, start=1):
        if row.resting:
            text[i] += "  rests: its last change is still being measured"
        elif row.off is not None:
            text[i] += f"  or {value(row.off)}: off"
        if row.description and detail.description:
            text[i] += f"  {_quote(row.description, detail.description)}"
    hidden = len(view.recipe) - len(rows)
    note = f" ({hidden} more are not shown and stay as they are)" if hidden else ""
    return [f"parameters{note}:", *text]


def _reach(row: RecipeRow) -> list[str]:
    if row.choices is not None:
        return [_quote(" | ".join(row.choices), 120), ""]
    if row.type == "bool":
        return ["false", "true"]
    return [value(row.reach_low), value(row.reach_high)]


def _changes(view: Snapshot, detail: Detail) -> list[str]:
    shown = view.interventions[-detail.past :] if detail.past else []
    return ["", "earlier changes, what was expected and what was measured until the next one:",
            *map(_change, shown)] if shown else []  # fmt: skip


def _change(past: Past) -> str:
    what = [past.command] if past.command else []
    what += [f"{word(name)} {value(old)} to {value(new)}" for name, (old, new) in past.changes.items()]
    expected = f"; expected {word(past.expected.metric)} {past.expected.direction}" if past.expected else ""
    after = ", ".join(f"{step}: {figure(objective)}" for step, objective in past.after) or "nothing yet"
    state = f" ({past.closed})" if past.closed else ""
    return (
        f"step {past.step}, {past.diagnosis or 'unknown'}: {'; '.join(what)}{expected}; "
        f"before {figure(past.before)}, after {after}{state}"
    )


# -- words and figures -------------------------------------------------------------------------------------------------


def word(text: str) -> str:
    """A foreign name: as it is where it is an ordinary one, else quoted, in ASCII."""
    return text if len(text) <= NAME and _PLAIN.fullmatch(text) else _quote(text, NAME)


def _quote(text: str, limit: int) -> str:
    """Foreign text as one quoted line in ASCII: what looks like another letter is seen to be one."""
    cut = short(text, limit).replace("`", "'")
    quoted = json.dumps(cut)
    while len(quoted) > 2 * limit + 2:  # escapes are long
        cut = cut[: len(cut) // 2]
        quoted = json.dumps(cut + "...")
    return quoted


def figure(number: float | None) -> str:
    """Four digits: enough to see a trend."""
    return "-" if number is None else f"{number:.4g}"


def value(of: Value | None) -> str:
    """A parameter's value or limit, in the digits in which it may be answered."""
    if of is None:
        return "-"
    if isinstance(of, bool):
        return "true" if of else "false"
    if isinstance(of, str):
        return word(of)
    return f"{of:.6g}" if isinstance(of, float) and math.isfinite(of) else str(of)


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns under their heads: the first to the left, all others to the right."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        " ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
