"""The results of one experiment that was measured in parts, put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from trainmgr.base.errors import UserError
from trainmgr.base.wire import quoted
from trainmgr.comparison.results import Case, Results, Run, metric_names
from trainmgr.contract.protocol import Mode

Item = TypeVar("Item")


def pool(parts: Sequence[Results]) -> Results:
    """The results of one experiment that was measured in parts: other seeds, other managers or other cases in each.

    Title, metrics and references are those of the first part. The parts may come from several machines, which
    `machines` says. A run that failed gives way to one that did not. Raises UserError where the parts are not of one
    experiment, or measured the same run twice: which of two counts is not ours to choose.
    """
    first, goals = parts[0], dict[str, Mode]()
    if other := next((part.script for part in parts if Path(part.script).name != Path(first.script).name), None):
        raise UserError(f"These results are of two scripts, {first.script} and {other}. Pool those of one experiment.")
    for metric, goal in ((metric, goal) for part in parts for metric, goal in part.goals.items()):
        if goals.setdefault(metric, goal) != goal:
            raise UserError(f"These results disagree on which way {metric} is better. Pool those of one experiment.")
    cases: dict[str, Case] = {}
    for case in (case for part in parts for case in part.cases):
        cases[case.name] = _pooled(cases[case.name], case) if case.name in cases else case
    revisions: dict[str, int] = {}
    for name, count in ((name, count) for part in parts for name, count in part.revisions.items()):
        revisions[name] = revisions.get(name, 0) + count
    packages = dict.fromkeys(name for part in parts for name in part.versions)
    return first.model_copy(
        update={
            "goals": goals,
            "disclosure": " ".join(_disclosures(parts)),
            "versions": {name: sorted(_all(part.versions.get(name, []) for part in parts)) for name in packages},
            "machines": _all(part.machines for part in parts),
            "revisions": revisions,
            "wall_seconds": round(sum(part.wall_seconds for part in parts), 1),
            "cases": [*cases.values()],
        }
    )


def _pooled(one: Case, two: Case) -> Case:
    where = f"Case {one.name!r}" if one.name else "These results"
    for field in ("arguments", "settings", "objective", "goal"):
        a, b = getattr(one, field), getattr(two, field)
        if a != b and not (field in ("objective", "goal") and None in (a, b)):  # which only a run knows
            raise UserError(
                f"{where} cannot be put together: the {field} of the parts differ ({quoted(a)} and {quoted(b)}). "
                "Take runs that were started alike."
            )
    for name in one.variants.keys() & two.variants.keys():
        a, b = one.variants[name], two.variants[name]
        if a != b:
            raise UserError(
                f"{where} cannot be put together: {name!r} is {a.words} in one part and {b.words} in another. "
                "Give one of them another name."
            )
    there = {(run.manager, run.seed): run for run in one.runs}
    for run in two.runs:
        other = there.get((run.manager, run.seed))
        if other is not None and other.failure is None and run.failure is None:
            raise UserError(
                f"{where} cannot be put together: {run.manager} with seed {run.seed} was measured twice, by "
                f"{other.run} and {run.run}. Train each once: `--seeds`, or `--reuse` with what is there."
            )
        if other is None or other.failure is not None:
            there[run.manager, run.seed] = run
    managers = _all((one.managers, two.managers))
    for manager in managers:
        _alike(where, [run for run in there.values() if run.manager == manager])
    return one.model_copy(
        update={
            "objective": one.objective or two.objective,
            "goal": one.goal or two.goal,
            "managers": managers,
            "variants": {**one.variants, **two.variants},
            "seeds": sorted(_all((one.seeds, two.seeds))),
            "held_out": _held_out(one, two),
            "runs": sorted(there.values(), key=lambda run: (managers.index(run.manager), run.seed)),
        }
    )


def _alike(where: str, runs: list[Run]) -> None:
    """Raises UserError where the runs of one manager had other settings or another model."""
    for what, found in (
        ("settings", {run.policy_digest for run in runs if run.policy_digest is not None}),
        ("models", {run.asked for run in runs if run.asked is not None}),
    ):
        if len(found) > 1:
            raise UserError(
                f"{where} cannot be put together: the {what} of {runs[0].manager} differ"
                f"{': ' + ', '.join(sorted(found)) if what == 'models' else ', or the defaults of two versions do'}. "
                "Take runs that were started alike."
            )


def _held_out(one: Case, two: Case) -> list[str]:
    """Test metrics that no manager saw in either part, where a part whose runs all lack one says nothing of it."""
    known = {id(case): {*metric_names(case)} for case in (one, two)}
    return [
        name
        for name in _all((one.held_out, two.held_out))
        if all(name in case.held_out or name not in known[id(case)] for case in (one, two))
    ]


def _disclosures(parts: Sequence[Results]) -> list[str]:
    """What each part discloses, but for what is said in another."""
    said = list(dict.fromkeys(part.disclosure.strip() for part in parts))
    return [one for one in said if not any(one != other and one in other for other in said)]


def _all(lists: Iterable[list[Item]]) -> list[Item]:
    """The items of all lists, each once, in the order in which they come."""
    found: list[Item] = []
    for item in (item for items in lists for item in items):
        if item not in found:
            found.append(item)
    return found
