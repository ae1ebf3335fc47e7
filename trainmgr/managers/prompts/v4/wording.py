"""The words of version 4: a hand-over to somebody who knows the trade, and nothing of this run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import Template

from trainmgr.deciding.snapshot import RecipeRow, Snapshot
from trainmgr.managers.prompts.v4.course import changes, evaluations, said
from trainmgr.managers.prompts.v4.detail import DETAILS, Detail
from trainmgr.managers.prompts.v4.system import system
from trainmgr.managers.prompts.words import NAME, aligned, exact, figure, last, limit_of, quote, value, word

REASON, TEXT, CHOICES, ADVICE = 160, 120, 160, 300  # characters of a rejection, a log line, a choice's values, advice
UNDONE = 8  # parameters of a change that may be undone
BRIEF = 3000  # tokens of a prompt below which the system prompt has to be short
WINDOW, NOISE = 5, 12  # evaluations that slope and noise are of
PER_EVALUATION = ("worse per evaluation", "better per evaluation")
DUST = 1e-9  # of the scale: what is less is rounding

__all__ = ["BRIEF", "DETAILS", "changeable", "system", "user"]


def user(body: Template, view: Snapshot, detail: Detail, *, reasoning: str, advice: str) -> str:
    """The report and the task."""
    return body.substitute(
        report=report(view, detail),
        actions=", ".join(_action(view, action) for action in view.actions),
        unavailable="".join(f"Not allowed: {name}, {reason}.\n" for name, reason in view.unavailable.items()),
        advice=f"The built-in rules would now: {quote(advice, ADVICE)}.\n" if advice else "",
        reasoning=quote(reasoning, detail.reasoning),
    )


def _action(view: Snapshot, action: str) -> str:
    """An action that is allowed now, with what it may go to."""
    if action == "rollback" and view.checkpoints:
        return f"rollback (to {', '.join(view.checkpoints)})"
    if action == "undo" and view.undo is not None:
        back = ", ".join(f"{word(name)} back to {value(of)}" for name, of in list(view.undo.values.items())[:UNDONE])
        weights = '; "weights" takes the weights back too' if view.undo.weights else "; the weights stay"
        return f"undo (of step {view.undo.step}: {back or 'the rollback'}{weights})"
    return action


def changeable(view: Snapshot, detail: Detail) -> tuple[str, ...]:
    """The parameters that are shown and may be changed now."""
    return tuple(row.name for row in _shown(view, detail) if not row.resting)


def report(view: Snapshot, detail: Detail) -> str:
    """Everything that was measured and done, between two marks."""
    parts = [
        "BEGIN DATA",
        *_run(view, detail),
        "",
        *_standing(view, detail),
        *changes(view, detail),
        *said(view, detail),
        *evaluations(view, detail),
        *_splits(view, detail),
        *_parameters(view, detail),
        *(f"rejected lately: {quote(reason, REASON)}" for reason in last(view.rejections, detail.reasons)),
        *(f"log of the program: {quote(text, TEXT)}" for text in last(view.texts, detail.texts)),
        "END DATA",
    ]
    return "\n".join(parts)


# -- the run, and how it stands ----------------------------------------------------------------------------------------


def _run(view: Snapshot, detail: Detail) -> list[str]:
    progress, account = view.progress, view.account
    total = f" of {progress.total_steps}" if progress.total_steps is not None else ""
    if progress.overrun:
        total += " planned (it has gone beyond them, so how many are left is not known)"
    left = every = ""
    if account and account.evals_left is not None:
        left = f", {account.evals_left} left"
    if account and account.every is not None:
        every = f" (one every {account.every} steps)"
    line = (
        f"program {word(view.workload, detail.name)}: step {progress.step}{total}; evaluations {progress.evaluations}"
    )
    lines = [f"{line}{left}{every}{_questions(view)}"]
    facts = list(account.facts.items())[: detail.facts] if account else []
    if facts:
        text = ", ".join(f"{word(name, detail.name)} {value(of, 2 * NAME)}" for name, of in facts)
        lines.append(f"declared: {text}")
    return [*lines, f"asked because of: {view.trigger}"]


def _questions(view: Snapshot) -> str:
    account = view.account
    if account is None or account.questions_left is None:
        changes_left = ""
    elif account.next_question is None:
        changes_left = "; this is the last question"
    else:
        changes_left = f"; questions left {account.questions_left}, the next at step {account.next_question}"
    return changes_left + ("" if view.interventions_left is None else f"; changes left {view.interventions_left}")


def _standing(view: Snapshot, detail: Detail) -> list[str]:
    signals, account = view.signals, view.account
    goal = "minimized" if view.mode == "min" else "maximized"
    counterpart = (
        f"; its counterpart on training data is {word(view.counterpart, detail.name)}" if view.counterpart else ""
    )
    lines = [f"objective {word(view.objective, detail.name)}, to be {goal}{counterpart}"]
    lines.append(f"{_latest(view)}{_saved(view)}; first {figure(signals.first)}")
    lines.append(f"evaluations since the best {signals.evals_since_best}, {_since_change(signals.evals_since_change)}")
    noise = _own(view, signals.noise)
    if noise is not None:
        slope = _difference(view, signals.slope, PER_EVALUATION, "none").removeprefix(", ")
        there = view.progress.evaluations
        trend = f"; trend of the last {min(WINDOW, there)}: {slope}" if slope else ""
        known = f"noise {figure(noise)}" if noise else "noise not seen yet"
        lines.append(f"{known} (last {min(NOISE, there)} evaluations){trend}")
    if account and account.level is not None:
        ahead = (
            "" if account.ahead is None else f"; without it {figure(account.ahead)} is expected by the end of its trial"
        )
        lines.append(f"a change made now is judged from {figure(account.level)}{ahead}")
    if account and (spent := account.spent):
        lines.append(f"spent of what trials may cost: harm {spent.harm} of {spent.harm_limit} steps, "
                     f"trials that brought nothing {spent.idle} of {spent.idle_limit}")  # fmt: skip
    if signals.gap is not None:
        trend = _difference(view, signals.gap_slope, ("wider per evaluation", "narrower per evaluation"), "steady")
        lines.append(f"gap: objective minus counterpart {figure(_tidy(view, signals.gap))}{trend}")
    return [*lines, _health(view, detail)]


def _latest(view: Snapshot) -> str:
    """The latest objective beside the best."""
    signals = view.signals
    unseen = f" (not in the last {signals.unseen} evaluations)" if signals.unseen else ""
    best = f"{figure(signals.best)} at step {signals.best_step}" if signals.best_step is not None else "-"
    if signals.best_step is not None and not signals.evals_since_best and not unseen and signals.latest == signals.best:
        return f"latest {best}, which is the best"
    behind = _difference(view, signals.rise, ("worse than the best", "better than the best"), "level with the best")
    return f"latest {figure(signals.latest)}{unseen}{behind}; best {best}"


def _since_change(evals: int | None) -> str:
    return "no change yet" if evals is None else f"since the last change {evals}"


def _saved(view: Snapshot) -> str:
    """Where a rollback to the best leads, if that is not the best itself."""
    step = view.best_checkpoint
    if step is None:
        return " (no checkpoint yet)"
    if not view.signals.evals_since_best:  # it is being saved
        return ""
    return "" if step == view.signals.best_step else f" (its checkpoint has the weights of step {step})"


def _own(view: Snapshot, share: float | None) -> float | None:
    """A fraction of the scale in the objective's own unit."""
    scale = view.account.scale if view.account else None
    return None if share is None or scale is None else _tidy(view, share * scale)


def _tidy(view: Snapshot, of: float) -> float:
    scale = view.account.scale if view.account else None
    return 0.0 if scale and abs(of) < DUST * scale else of


def _difference(view: Snapshot, share: float | None, words: tuple[str, str], none: str) -> str:
    """A fraction of the scale, turned so that more is worse, in the objective's unit and in noise; ``words`` are for
    more and for less."""
    own, noise = _own(view, share), _own(view, view.signals.noise)
    if own is None or not math.isfinite(own):
        return ""
    if not own:
        return f", {none}"
    beside = f", {abs(own) / noise:.2g} x noise" if noise and math.isfinite(noise) else ""
    return f", {figure(abs(own))} {words[own < 0]}{beside}"


def _health(view: Snapshot, detail: Detail) -> str:
    signals = view.signals
    text = f"diverging {'yes' if signals.diverging else 'no'}"
    if signals.grad_spikes:
        text += f", outlying gradient norms in {100 * signals.grad_spikes:.2g}% of the steps since the last evaluation"
    text += f", non-finite values {signals.non_finite}"
    for head, names in ((" in a row of", signals.lost), ("; never finite yet:", signals.unmeasured)):
        if names:
            text += f"{head} {', '.join(word(name, detail.name) for name in names[-3:])}"
    return text + (f"; skipped or not measured: {signals.stray}" if signals.stray else "")


def _splits(view: Snapshot, detail: Detail) -> list[str]:
    shown = list(view.split.items())[: detail.parts]
    if not shown:
        return []
    columns = list(dict.fromkeys(name for _, row in shown for name in row))[: detail.columns]
    head = ["part", *(word(column, detail.name) for column in columns)]
    rows = [[word(name, detail.name), *(figure(row.get(column)) for column in columns)] for name, row in shown]
    return ["", "last evaluation by part:", *aligned([head, *rows])]


# -- parameters --------------------------------------------------------------------------------------------------------


def _shown(view: Snapshot, detail: Detail) -> list[RecipeRow]:
    """Those whose name can be given letter by letter: whoever is to answer it must have read it."""
    return [row for row in view.recipe if exact(row.name) is not None][: detail.parameters]


def _parameters(view: Snapshot, detail: Detail) -> list[str]:
    rows = _shown(view, detail)
    head = ["name", "now", "at_start", "low", "high", "next_min", "next_max", "group"]
    lines = [
        [exact(row.name) or "", value(row.value, detail.name), value(row.start_value, detail.name), *_limits(row),
         word(row.group, detail.name)]
        for row in rows
    ]  # fmt: skip
    text = aligned([head, *lines])
    for i, row in enumerate(rows, start=1):
        text[i] += _state(view, row) + _moves(row)
        if row.description and detail.description:
            text[i] += f"  {quote(row.description, detail.description)}"
    hidden = len(view.recipe) - len(rows)
    note = f" ({hidden} more are not shown and stay as they are)" if hidden else ""
    return ["", f"parameters{note}:", *text]


def _limits(row: RecipeRow) -> list[str]:
    """Hard limits, and beside them the reach of the next change."""
    if row.type == "bool":
        return ["", "", "false", "true"]
    if row.reach_low is None or row.reach_high is None or row.low is None or row.high is None:
        return ["", "", "", ""]
    return [str(limit) if row.type == "int" else limit_of(float(limit)) for limit in (row.low, row.high, *row.reach)]


def _state(view: Snapshot, row: RecipeRow) -> str:
    """What keeps a parameter from being changed, and what it may be set to besides."""
    text = ""
    if row.plan is not None:
        text += f"  on its way to {value(row.plan.to)} by step {row.plan.by_step} ({row.plan.shape})"
    if row.resting:
        until = (view.account.rests if view.account else {}).get(row.name)
        return text + ("  rests" if until is None else f"  rests until step {until}")
    if row.choices is not None:
        text += f"  one of: {_choices(row.choices)}"
    elif row.off is not None:
        text += f"  or {limit_of(int(row.off) if row.type == 'int' else row.off)}: off"
    return text + (f"  takes effect at the next {row.boundary}" if row.boundary != "step" else "") + _average(row)


def _average(row: RecipeRow) -> str:
    """How far an average of weights reaches back."""
    if row.group != "averaging" or not isinstance(row.value, float) or not 0 < row.value < 1:
        return ""
    return f"  reaches {1 / (1 - row.value):.0f} steps back"


def _moves(row: RecipeRow) -> str:
    """What becomes of the value without a manager."""
    if row.overwritten:
        return "  changes do not last: the program overwrites it"
    if row.end is not None:
        return f"  the program's schedule brings it to {figure(row.end)} by the end"
    return "  the program's schedule moves it" if row.moves else ""


def _choices(choices: Sequence[str]) -> str:
    shown = ""
    for i, choice in enumerate(choices):
        more = ", " * bool(i) + (exact(choice) or quote(choice, NAME))
        if i and len(shown) + len(more) > CHOICES:
            return f"{shown} and {len(choices) - i} more"
        shown += more
    return shown
