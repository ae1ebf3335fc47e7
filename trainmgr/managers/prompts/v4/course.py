"""What came of the changes so far, and the table of evaluations."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from trainmgr.base.wire import Value
from trainmgr.contract.proposal import NOTE
from trainmgr.deciding.account import FALSIFIER, Account, Said, Told
from trainmgr.deciding.asking import MEAN
from trainmgr.deciding.snapshot import Past, Snapshot
from trainmgr.managers.prompts.v4.detail import Detail
from trainmgr.managers.prompts.words import aligned, figure, last, quote, step, value, word
from trainmgr.state.evaluations import thinned

DUST = 1e-9  # of the largest number of a column: what is less is rounding
WORDS = {
    "kept": "kept", "neutral": "kept as harmless", "harm": "did harm", "no proof": "not proven", "crash": "a crash",
    "measured": "not judged", "open": "not measured", "on trial": "on trial",
}  # fmt: skip

# -- changes -----------------------------------------------------------------------------------------------------------


def changes(view: Snapshot, detail: Detail) -> list[str]:
    """Every change of the run; those that are not told one by one, as counts."""
    told = view.account.changes if view.account else [_told(past) for past in view.interventions]
    shown = last(told, detail.changes)
    counts = dict(view.account.before) if view.account else {}
    for change in told[: len(told) - len(shown)]:
        counts[change.fate] = counts.get(change.fate, 0) + 1
    if not shown and not counts:
        return ["", "changes of the run so far: none"]
    lines = ["", "changes of the run, oldest first:"]
    if counts:
        each = ", ".join(f"{count} {WORDS[fate]}" for fate, count in sorted(counts.items()))
        lines.append(f"{sum(counts.values())} earlier ones: {each}")
    return lines + [_change(change, detail) for change in shown]


def _told(past: Past) -> Told:
    """An earlier change as a snapshot of edition 1 has it."""
    at, measured = past.after[-1] if past.after else (None, None)
    fate = past.taken_back or ("open" if at is None else "measured")
    author = "supervisor" if past.decision.startswith("probation") else "manager"
    return Told(step=past.step, author=author, diagnosis=past.diagnosis,
                changes=past.changes, command=past.command or "", fate=fate, at=at, forecast=past.before,
                measured=measured)  # fmt: skip


def _change(change: Told, detail: Detail) -> str:
    what = [_command(change.command, detail)] if change.command else []
    moved = list(change.changes.items())
    what += [
        f"{word(name, detail.name)} {_cell(old, detail)} to {_cell(new, detail)}"
        for name, (old, new) in moved[: detail.together]
        if name not in change.plans
    ]
    what += [
        f"{word(name, detail.name)} to {value(plan.to)} by step {plan.by_step} ({plan.shape})"
        for name, plan in list(change.plans.items())[: detail.together]
    ]
    more = change.more + max(0, len(moved) - detail.together)
    what += [f"{more} more"] if more else []
    own = {"challenge": "the start's recipe put on trial, unasked", "supervisor": "by probation"}
    who = change.diagnosis or own.get(change.author, "unknown")
    return f"step {change.step}, {who}: {', '.join(what) or 'nothing'}; {_fate(change)}"


def _command(command: str, detail: Detail) -> str:
    """Its second word may have come from the workload."""
    name, _, to = command.partition(" ")
    return " to ".join(word(part, detail.name) for part in (name, to) if part)


def _fate(change: Told) -> str:
    at, measured, forecast = change.at, figure(change.measured), figure(change.forecast)
    weights = ", weights too" if change.undone else ""
    match change.fate:
        case "on trial":
            until = "" if at is None else f" until {at}"
            return f"on trial{until}, forecast for now {forecast}"
        case "kept":
            return f"kept at {at}: {measured}, forecast {forecast}"
        case "neutral":
            return f"kept as harmless at {at}: {measured}, forecast {forecast}"
        case "harm":
            return f"taken back at {at} for harm{weights}: {measured}, forecast {forecast}"
        case "no proof":
            return f"taken back at {at} for want of proof{weights}: {measured}, forecast {forecast}"
        case "crash":
            return "taken back after a crash"
        case "measured":
            return f"{measured} at {at}, {forecast} before"
        case _:
            return "not measured yet"


def said(view: Snapshot, detail: Detail) -> list[str]:
    """The manager's own words of earlier: what it expected, what would show it wrong, and its note."""
    lines = [_said(words, detail) for words in last(view.account.said if view.account else [], detail.said)]
    if view.note:
        lines.append(f"your note of step {view.noted_at}: {quote(view.note, NOTE)}")
    return ["", "your own words of earlier:", *lines] if lines else []


def _said(words: Said, detail: Detail) -> str:
    text = f"step {words.step}:"
    if words.direction:
        by = "" if words.by_step is None else f" by step {words.by_step}"
        came = {None: "too early to say", True: "it came", False: _missed(words)}[words.came]
        since = (
            f"{figure(words.was)} before, {figure(words.now)} at {words.at}"
            if words.at is not None
            else "nothing since"
        )
        text += f" expected {word(words.metric, detail.name)} {words.direction}{by}: {since}, {came};"
    if words.falsifier:
        text += f" would show you wrong: {quote(words.falsifier, FALSIFIER)}"
    return text.rstrip(";:")


def _missed(words: Said) -> str:
    """In what way it did not come."""
    rise = (words.now or 0.0) - (words.was or 0.0)
    within = words.direction != "flat" and (rise > 0 if words.direction == "up" else rise < 0)
    return "not beyond the noise" if within else "it did not come"


# -- evaluations -------------------------------------------------------------------------------------------------------

Column = tuple[str, Sequence[Value | None]]


def evaluations(view: Snapshot, detail: Detail) -> list[str]:
    """The table: the objective, its counterpart, other metrics that say something, and the recipe beside them."""
    table, account = view.evaluations, view.account
    steps = [row[0] for row in table.rows]
    columns: list[Column] = [(name, _dusted([row[at] for row in table.rows]))
                             for at, name in enumerate(table.columns) if at]  # fmt: skip
    first = [*(name for name in (view.objective, view.counterpart) if name), *_named(view)]
    told, left_out = _telling(columns, first, detail)
    shown = told[: detail.columns]
    beside = _recipe(account, detail)
    at = thinned(range(len(steps)), detail.rows, max(1, detail.rows // 2))
    marks = account.marks if account else [""] * len(steps)
    head = ["step", *(word(name, detail.name) for name, _ in (*shown, *beside))]
    lines = [head]
    above = [None, *at]
    for i, before in zip(at, above, strict=False):
        cells = [_cell(values[i], detail) for _, values in shown]
        cells += [_moved(values, i, before, detail) for _, values in beside]
        lines.append([step(steps[i]), *cells])
    text = aligned(lines)
    marked = [f"{line}  {marks[i]}".rstrip() for i, line in zip(at, text[1:], strict=True)]
    note = f" ({len(told) - len(shown)} more columns are not shown)" if len(told) > len(shown) else ""
    with_recipe = ", then the recipe in effect (. as above)" if beside else ""
    return ["", f"evaluations, oldest first{with_recipe}{note}:", text[0], *marked, *left_out,
            *_definitions(account, [name for name, _ in shown], detail)]  # fmt: skip


def _named(view: Snapshot) -> list[str]:
    """The metrics that the manager's own words name, with or without their prefix: what it decides by must be shown."""
    said = view.account.said if view.account else []
    words = " ".join([view.note, *(f"{one.metric} {one.falsifier}" for one in said)])
    there = {name.rstrip(".") for name in re.findall(r"[\w./-]+", words)}
    return [name for name in view.evaluations.columns if name in there or name.removeprefix(MEAN) in there]


def _telling(columns: Sequence[Column], first: Sequence[str], detail: Detail) -> tuple[list[Column], list[str]]:
    """The columns that say something, those of ``first`` in front; and a line for those that do not: the same at every
    row, or the same as another."""
    leading = [next(column for column in columns if column[0] == name)
               for name in dict.fromkeys(first) if any(column[0] == name for column in columns)]  # fmt: skip
    told, constant, double = list(leading), [], []
    for column in columns:
        if any(column is other for other in leading):
            continue
        name, values = column
        there = [value for value in values if value is not None]
        if not there:
            continue
        twin = next((other for other, theirs in told if _same(values, theirs)), None)
        if twin is not None:
            double.append(f"{word(name, detail.name)} as {word(twin, detail.name)}")
        elif len(there) > 1 and len(set(map(repr, there))) == 1:
            constant.append(f"{word(name, detail.name)} {_cell(there[0], detail)}")
        else:
            told.append(column)
    lines = [f"constant: {', '.join(constant[: 2 * detail.columns])}"] if constant and detail.columns > 2 else []
    return told, lines + ([f"the same: {', '.join(double[: detail.columns])}"] if double and detail.columns > 2 else [])


def _same(one: Sequence[Value | None], other: Sequence[Value | None]) -> bool:
    """Whether two columns have the same figures at every row, as they are shown."""
    pairs = list(zip(one, other, strict=True))
    return len(pairs) > 1 and all(
        (a is None) == (b is None) and (a is None or _plain(a) == _plain(b)) for a, b in pairs
    )  # fmt: skip


def _plain(of: Value | None) -> str:
    return figure(of) if isinstance(of, float) else repr(of)


def _dusted(values: Sequence[float | None]) -> list[float | None]:
    """Without the last digits of sums that are 0."""
    largest = max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)
    least = max(DUST * largest, 1e-15)
    return [0.0 if v is not None and abs(v) < least < 1 else v for v in values]


def _recipe(account: Account | None, detail: Detail) -> list[Column]:
    there: Mapping[str, Sequence[Value | None]] = account.recipe if account else {}
    return list(there.items())[: detail.recipe]


def _cell(of: Value | None, detail: Detail) -> str:
    if of is None:
        return "-"
    return figure(of) if isinstance(of, float) else value(of, detail.name)


def _moved(values: Sequence[Value | None], at: int, before: int | None, detail: Detail) -> str:
    """A value of the recipe, where it is not that of the row above."""
    return "." if before is not None and values[at] == values[before] else _cell(values[at], detail)


def _definitions(account: Account | None, names: Sequence[str], detail: Detail) -> list[str]:
    if account is None or not detail.definitions:
        return []
    known = [(name, account.definitions[name]) for name in names if name in account.definitions]
    return [f"{word(name, detail.name)}: {quote(text, detail.definitions)}" for name, text in known]
