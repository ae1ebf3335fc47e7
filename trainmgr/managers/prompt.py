"""A snapshot as a language model reads it: small aligned tables, within a number of tokens whatever the run's length.

Pure, and deterministic to the byte: a replay renders the same prompt again. Text of the workload appears quoted, in
ASCII and cut short; a line of it cannot look like one of ours.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Template
from typing import Literal, TypeVar, get_args

from trainmgr.base.wire import MAX_NAME, Value, short
from trainmgr.contract.proposal import Diagnosis
from trainmgr.deciding.snapshot import Past, RecipeRow, Snapshot
from trainmgr.managers.prompts import VARIANTS
from trainmgr.state.evaluations import thinned

T = TypeVar("T")
VERSION = "v3"
Task = Literal["decide", "reason", "format"]
NAME = 40  # characters of a foreign name
REASON, TEXT, CHOICES = 160, 120, 160  # characters of a rejection, a log line, and of all values of a choice

_PLAIN = re.compile(r"(?!(?:BEGIN|END|DATA)\Z)[A-Za-z_][A-Za-z0-9_./%@-]*")  # not the words of our marks
_PIECE = re.compile(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]|\n| {2,}")


@dataclass(frozen=True)
class Detail:
    """How much of a snapshot is shown."""

    rows: int
    columns: int
    parts: int
    """Of the last evaluation."""
    texts: int
    """Log lines."""
    reasons: int
    """Why earlier answers were rejected."""
    past: int
    changes: int
    """Parameters in each of these."""
    parameters: int
    description: int
    """Characters."""
    name: int
    """Characters of a foreign name."""
    reasoning: int
    """Characters of a reasoner's text that its formatter gets."""


DETAILS = (
    Detail(24, 8, 16, 4, 2, 6, 16, 64, 60, NAME, 2000),
    Detail(20, 7, 12, 4, 2, 5, 12, 64, 40, NAME, 2000),
    Detail(16, 6, 8, 3, 2, 4, 8, 48, 24, NAME, 2000),
    Detail(12, 5, 6, 2, 2, 3, 8, 32, 0, NAME, 2000),
    Detail(10, 4, 4, 1, 1, 3, 6, 24, 0, NAME, 1600),
    Detail(8, 3, 2, 0, 1, 2, 4, 16, 0, 32, 1200),
    Detail(6, 3, 0, 0, 1, 1, 4, 8, 0, 24, 800),
    Detail(4, 3, 0, 0, 0, 1, 2, 4, 0, 16, 500),
    Detail(3, 3, 0, 0, 0, 0, 0, 2, 0, 16, 300),
    Detail(2, 2, 0, 0, 0, 0, 0, 1, 0, 12, 150),
)


@dataclass(frozen=True)
class Prompt:
    """What is sent, and what it lets be answered."""

    template: str
    """Version and wording, such as "v3/0"."""
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
            reasoning=_quote(reasoning, detail.reasoning),
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
    return (resources.files("trainmgr.managers.prompts") / VERSION / name).read_text(encoding="utf-8")


# -- the report --------------------------------------------------------------------------------------------------------


def report(view: Snapshot, detail: Detail) -> str:
    """Everything that was measured, between two marks."""
    parts = [
        "BEGIN DATA",
        *_head(view, detail),
        "",
        *_evaluations(view, detail),
        *_splits(view, detail),
        "",
        *_parameters(view, detail),
        *_changes(view, detail),
        *(f"rejected lately: {_quote(reason, REASON)}" for reason in _last(view.rejections, detail.reasons)),
        *(f"log of the program: {_quote(text, TEXT)}" for text in _last(view.texts, detail.texts)),
        "END DATA",
    ]
    return "\n".join(parts)


def _head(view: Snapshot, detail: Detail) -> list[str]:
    progress, signals = view.progress, view.signals
    total = f" of {progress.total_steps}" if progress.total_steps is not None else ""
    if progress.overrun:
        total += " planned (it has gone beyond them, so how many are left is not known)"
    goal = "minimized" if view.mode == "min" else "maximized"
    counterpart = f"; on training data: {word(view.counterpart, detail.name)}" if view.counterpart else ""
    best = "" if signals.best_step is None else f" at step {signals.best_step}"
    saved = "none yet" if view.best_checkpoint is None else f"step {view.best_checkpoint}"
    changed = "-" if signals.evals_since_change is None else signals.evals_since_change
    diverging = "yes" if signals.diverging else "no"
    left = "" if view.interventions_left is None else f"; changes left: {view.interventions_left}"
    unseen = f" (not in the last {signals.unseen} evaluations)" if signals.unseen else ""
    return [
        f"program {word(view.workload, detail.name)}, step {progress.step}{total}, evaluations {progress.evaluations}",
        f"asked because of: {view.trigger}",
        f"objective {word(view.objective, detail.name)}, to be {goal}{counterpart}",
        f"latest {figure(signals.latest)}{unseen}, best {figure(signals.best)}{best}, first {figure(signals.first)}",
        f"evaluations since best {signals.evals_since_best}, since the last change {changed}",
        f"rise {figure(signals.rise)}, noise {figure(signals.noise)}, slope {figure(signals.slope)} per evaluation",
        f"gap to training data {figure(signals.gap)}, its slope {figure(signals.gap_slope)}",
        f"gradient outliers {figure(signals.grad_spikes)}, {_non_finite(view, detail)}",
        f"diverging {diverging}, best checkpoint: {saved}{left}",
    ]


def _non_finite(view: Snapshot, detail: Detail) -> str:
    signals = view.signals
    text = f"non-finite values {signals.non_finite}"
    for head, names in ((" in a row of", signals.lost), ("; never finite yet:", signals.unmeasured)):
        if names:
            text += f"{head} {', '.join(word(name, detail.name) for name in names[-3:])}"
    return text + (f"; skipped or not measured: {signals.stray}" if signals.stray else "")


def _evaluations(view: Snapshot, detail: Detail) -> list[str]:
    table = view.evaluations
    there = range(1, len(table.columns))  # by place: two long names may look the same
    first = [at for name in (view.objective, view.counterpart) for at in there if table.columns[at] == name][:2]
    shown = [*first, *(at for at in there if at not in first)][: detail.columns - 1]
    rows = thinned(table.rows, detail.rows, max(1, detail.rows // 2))
    head = ["step", *(word(table.columns[at], detail.name) for at in shown)]
    lines = [[_step(row[0]), *(figure(row[at]) for at in shown)] for row in rows]
    missing = len(there) - len(shown)
    note = f" ({missing} more columns are not shown)" if missing else ""
    return [f"evaluations, oldest first{note}:", *aligned([head, *lines])]


def _splits(view: Snapshot, detail: Detail) -> list[str]:
    shown = list(view.split.items())[: detail.parts]
    if not shown:
        return []
    columns = list(dict.fromkeys(name for _, row in shown for name in row))[: detail.columns]
    head = ["part", *(word(column, detail.name) for column in columns)]
    rows = [[word(name, detail.name), *(figure(row.get(column)) for column in columns)] for name, row in shown]
    return ["", "last evaluation by part:", *aligned([head, *rows])]


def _shown(view: Snapshot, detail: Detail) -> list[RecipeRow]:
    """Those whose name can be given letter by letter: whoever is to answer it must have read it."""
    return [row for row in view.recipe if exact(row.name) is not None][: detail.parameters]


def _parameters(view: Snapshot, detail: Detail) -> list[str]:
    rows = _shown(view, detail)
    head = ["name", "now", "next_min", "next_max", "at_start", "group"]
    lines = [
        [exact(row.name) or "", value(row.value, detail.name), *_reach(row), value(row.start_value, detail.name),
         word(row.group, detail.name)]
        for row in rows
    ]  # fmt: skip
    text = aligned([head, *lines])
    for i, row in enumerate(rows, start=1):
        if row.resting:
            text[i] += "  rests: its last change is still being measured"
        elif row.choices is not None:
            text[i] += f"  one of: {_choices(row.choices)}"
        elif row.off is not None:
            text[i] += f"  or {_limit(int(row.off) if row.type == 'int' else row.off)}: off"
        text[i] += _moves(row)
        if row.description and detail.description:
            text[i] += f"  {_quote(row.description, detail.description)}"
    hidden = len(view.recipe) - len(rows)
    note = f" ({hidden} more are not shown and stay as they are)" if hidden else ""
    return [f"parameters{note}:", *text]


def _moves(row: RecipeRow) -> str:
    """What becomes of the value without a manager."""
    if row.overwritten:
        return "  changes do not last: the program overwrites it"
    if row.end is not None:
        return f"  the program's schedule brings it to {figure(row.end)} by the end"
    return "  the program's schedule moves it" if row.moves else ""


def _reach(row: RecipeRow) -> list[str]:
    if row.type == "bool":
        return ["false", "true"]
    if row.reach_low is None or row.reach_high is None:
        return ["", ""]
    return [str(limit) if row.type == "int" else _limit(limit) for limit in row.reach]


def _choices(choices: Sequence[str]) -> str:
    shown = ""
    for i, choice in enumerate(choices):
        more = ", " * bool(i) + (exact(choice) or _quote(choice, NAME))
        if i and len(shown) + len(more) > CHOICES:
            return f"{shown} and {len(choices) - i} more"
        shown += more
    return shown


def _changes(view: Snapshot, detail: Detail) -> list[str]:
    shown = _last(view.interventions, detail.past)
    if not shown:
        return []
    head = "earlier changes, what was expected and what was measured until the next one:"
    return ["", head, *(_change(past, detail) for past in shown)]


def _change(past: Past, detail: Detail) -> str:
    what = []
    if past.command:  # its second word came back from the workload
        name, _, to = past.command.partition(" ")
        what.append(" ".join(word(part, detail.name) for part in (name, to) if part))
    for name, (old, new) in list(past.changes.items())[: detail.changes]:
        what.append(f"{word(name, detail.name)} {value(old, detail.name)} to {value(new, detail.name)}")
    if len(past.changes) > detail.changes:
        what.append(f"{len(past.changes) - detail.changes} more")
    expected = ""
    if past.expected:
        expected = f"; expected {word(past.expected.metric, detail.name)} {past.expected.direction}"
    after = ", ".join(f"{step}: {figure(objective)}" for step, objective in past.after) or "nothing yet"
    state = f" ({past.closed})" if past.closed else ""
    if past.taken_back:
        reason = {"harm": "it did harm and was", "no proof": "no help; it was", "undone": "it was undone and"}.get(
            past.taken_back, "a crash; it was"
        )
        state = f" ({reason} taken back)"
    if past.overwritten:
        names = ", ".join(word(name, detail.name) for name in past.overwritten[: detail.changes])
        state += f" (did not last: the program overwrote {names})"
    own = "probation" if past.decision.startswith("probation") else "unknown"
    return (
        f"step {past.step}, {past.diagnosis or own}: {'; '.join(what)}{expected}; "
        f"before {figure(past.before)}, after {after}{state}"
    )


# -- words and figures -------------------------------------------------------------------------------------------------


def word(text: str, limit: int = NAME) -> str:
    """A foreign name: as it is where it is an ordinary one, else quoted, in ASCII."""
    return text if len(text) <= limit and _PLAIN.fullmatch(text) else _quote(text, limit)


def exact(text: str) -> str | None:
    """A foreign name letter by letter, for whoever must repeat it; None where that takes too long."""
    if len(text) <= MAX_NAME and _PLAIN.fullmatch(text):
        return text
    quoted = _ascii(text)
    return quoted if len(quoted) <= 2 * MAX_NAME + 2 else None


def _quote(text: str, limit: int) -> str:
    """Foreign text as one quoted line in ASCII: what looks like another letter is seen to be one."""
    cut = short(text, limit)
    quoted = _ascii(cut)
    while len(quoted) > 2 * limit + 2:  # escapes are long
        cut = cut[: len(cut) // 2]
        quoted = _ascii(cut + "...")
    return quoted


def _ascii(text: str) -> str:
    """JSON, without the sign that fences are made of."""
    return json.dumps(text).replace("`", "\\u0060")


def _last(texts: Sequence[T], count: int) -> Sequence[T]:
    return texts[-count:] if count else ()


def _step(number: float | None) -> str:
    return "-" if number is None else f"{number:.0f}"


def figure(number: float | None) -> str:
    """Four digits: enough to see a trend."""
    return "-" if number is None else f"{number:.4g}"


def value(of: Value, limit: int = NAME) -> str:
    """A parameter's value, in six digits."""
    if isinstance(of, bool):
        return "true" if of else "false"
    if isinstance(of, str):
        return word(of, limit)
    return f"{of:.6g}" if isinstance(of, float) else str(of)


def _limit(of: float) -> str:
    """A limit, in all the digits that it has: whoever takes it at its word must not be out of reach."""
    text = value(of)
    return text if float(text) == of else repr(of)


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
