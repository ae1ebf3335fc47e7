"""The words of version 3, as logs of its time have it: small aligned tables. Never edited: they are replayed by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import get_args

from trainmgr.contract.proposal import Diagnosis
from trainmgr.deciding.snapshot import Past, RecipeRow, Snapshot
from trainmgr.managers.prompts.game import Game
from trainmgr.managers.prompts.words import NAME, aligned, exact, figure, last, limit_of, quote, step, value, word
from trainmgr.state.evaluations import thinned

BRIEF = 0  # tokens: it has one length only
REASON, TEXT, CHOICES = 160, 120, 160  # characters of a rejection, a log line, and of all values of a choice


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


def system(frame: str, view: Snapshot, game: Game, *, brief: bool) -> str:  # noqa: ARG001  (what others need)
    """The system prompt: the same for all programs and policies."""
    return frame


def user(body: Template, view: Snapshot, detail: Detail, *, reasoning: str, advice: str) -> str:  # noqa: ARG001  (the same)
    """The report and the task."""
    return body.substitute(
        report=report(view, detail),
        diagnoses=", ".join(get_args(Diagnosis)),
        actions=", ".join(view.actions),
        unavailable="".join(f"Not allowed: {name}, {reason}.\n" for name, reason in view.unavailable.items()),
        reasoning=quote(reasoning, detail.reasoning),
    )


def changeable(view: Snapshot, detail: Detail) -> tuple[str, ...]:
    """The parameters that are shown and may be changed now."""
    return tuple(row.name for row in shown(view, detail) if not row.resting)


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
        *(f"rejected lately: {quote(reason, REASON)}" for reason in last(view.rejections, detail.reasons)),
        *(f"log of the program: {quote(text, TEXT)}" for text in last(view.texts, detail.texts)),
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
    lines = [[step(row[0]), *(figure(row[at]) for at in shown)] for row in rows]
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


def shown(view: Snapshot, detail: Detail) -> list[RecipeRow]:
    """Those whose name can be given letter by letter: whoever is to answer it must have read it."""
    return [row for row in view.recipe if exact(row.name) is not None][: detail.parameters]


def _parameters(view: Snapshot, detail: Detail) -> list[str]:
    rows = shown(view, detail)
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
            text[i] += f"  or {limit_of(int(row.off) if row.type == 'int' else row.off)}: off"
        text[i] += _moves(row)
        if row.description and detail.description:
            text[i] += f"  {quote(row.description, detail.description)}"
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
    return [str(limit) if row.type == "int" else limit_of(limit) for limit in row.reach]


def _choices(choices: Sequence[str]) -> str:
    shown = ""
    for i, choice in enumerate(choices):
        more = ", " * bool(i) + (exact(choice) or quote(choice, NAME))
        if i and len(shown) + len(more) > CHOICES:
            return f"{shown} and {len(choices) - i} more"
        shown += more
    return shown


def _changes(view: Snapshot, detail: Detail) -> list[str]:
    shown = last(view.interventions, detail.past)
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
        reason = {"harm": "it did harm and was", "no proof": "no help; it was"}.get(past.taken_back, "a crash; it was")
        state = f" ({reason} taken back)"
    if past.overwritten:
        names = ", ".join(word(name, detail.name) for name in past.overwritten[: detail.changes])
        state += f" (did not last: the program overwrote {names})"
    own = "probation" if past.decision.startswith("probation") else "unknown"
    return (
        f"step {past.step}, {past.diagnosis or own}: {'; '.join(what)}{expected}; "
        f"before {figure(past.before)}, after {after}{state}"
    )
