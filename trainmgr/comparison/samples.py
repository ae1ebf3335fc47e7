"""Which runs of an arm say something of their own: not those that diverged, and of copies one. Pure.

A script that does not use its seed trains the same run under every seed: six of them are one sample, and no test of
six pairs may be made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from trainmgr.comparison.results import Case, Run, of_objective

DIVERGED = 1e100  # a larger figure is no figure: its square is no number
BEGINNING = 3  # evaluations
FEW = 2  # different values that copies must share where no figure differs: a run that stands still tells nothing
MANY = 6  # where one differs, a clock say: so many values of the objective do not agree by chance

Likeness = Literal["run", "figures", "beginning"]


@dataclass(frozen=True)
class Copies:
    """Seeds of one arm that are one sample."""

    seeds: list[int]
    alike: Likeness
    """What they have in common: they are one and the same run, all figures of the objective are the same to the last
    digit, or those of the first evaluations are, before anything was changed."""
    every: bool
    """Whether these are all good runs of the arm."""


def finite(value: float | None) -> bool:
    """Whether it can enter a mean: there, no NaN, no infinity, and not beyond DIVERGED."""
    return value is not None and abs(value) < DIVERGED


def diverged(case: Case, run: Run) -> bool:
    """Whether its objective was not finite at the end, on the weights that were kept."""
    if case.objective is None:
        return False
    if case.objective in run.metrics:
        return not finite(run.metrics[case.objective])
    return bool(run.curve) and not run.on_best and not finite(run.curve[-1][1])


def copies(case: Case, runs: Sequence[Run]) -> list[Copies]:
    """The copies among the runs of one arm, whose seeds differ; failed runs are none."""
    good = [run for run in runs if run.failure is None]
    groups: list[list[Run]] = []
    for run in good:
        group = next((group for group in groups if _same(case, group[0], run)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    if len(groups) > 1 and _begin_alike(groups):
        return [Copies([run.seed for run in good], "beginning", every=True)]
    return [
        Copies([run.seed for run in group], _likeness(group), every=len(groups) == 1)
        for group in groups
        if len(group) > 1
    ]


def _likeness(group: list[Run]) -> Likeness:
    return "run" if group[0].run is not None and len({run.run for run in group}) == 1 else "figures"


def _same(case: Case, one: Run, two: Run) -> bool:
    """Whether two runs are the same training.

    All figures of the objective must agree to the last digit: its course, the last and the best. Other figures that
    differ may be clocks, so they only ask for more agreement; an objective that stands still, as that of an agent
    which never succeeds, agrees with everything and proves nothing.
    """
    if one.run is not None and one.run == two.run:
        return True
    if one.steps != two.steps or (None not in (one.course, two.course) and one.course != two.course):
        return False
    a, b = dict(one.curve), dict(two.curve)
    shared = {(a[step], b[step]) for step in a.keys() & b.keys()}  # each part of pooled results has its own steps
    if a and b and not shared:
        return False
    differs = None not in (one.figures, two.figures) and one.figures != two.figures
    for name in one.metrics.keys() | two.metrics.keys():
        pair = (one.metrics.get(name), two.metrics.get(name))
        if repr(pair[0]) == repr(pair[1]):  # NaN, too
            shared.add((one.metrics[name], two.metrics[name]))
        elif name in of_objective(case):
            return False
        else:
            differs = True
    if any(repr(x) != repr(y) for x, y in shared):
        return False
    return len({x for x, _ in shared if finite(x)}) >= (MANY if differs else FEW)


def _begin_alike(groups: list[list[Run]]) -> bool:
    """Whether all runs of an arm begin with the same figures and only changes set them apart."""
    first = [run.curve[:BEGINNING] for group in groups for run in group]
    values = {value for _, value in first[0] if finite(value)}
    unchanged = sum(not group[0].changes for group in groups)
    alike = all(repr(other) == repr(first[0]) for other in first)
    return alike and unchanged <= 1 and len(values) == BEGINNING and len(values) * (len(first) - 1) >= MANY


def joined(seeds: Iterable[int], *arms: list[Copies]) -> list[list[int]]:
    """The seeds in groups that are one sample each, where pairs with a copy in any of the arms go together."""
    groups = [[seed] for seed in seeds]
    for found in (found for copies in arms for found in copies):
        together = [group for group in groups if not set(found.seeds).isdisjoint(group)]
        for other in together[1:]:
            groups.remove(other)
            together[0].extend(other)
    return groups


def named(seeds: Sequence[int]) -> str:
    """In words: seed 3; seeds 1 and 4; seeds 1 to 6. There must be one."""
    spans: list[list[int]] = []
    for seed in sorted(seeds):
        if spans and seed == spans[-1][-1] + 1:
            spans[-1].append(seed)
        else:
            spans.append([seed])
    parts = [
        part
        for span in spans
        for part in ([f"{span[0]} to {span[-1]}"] if len(span) > 2 else [str(seed) for seed in span])
    ]
    text = ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1]
    return f"seed{'s' * (len(seeds) > 1)} {text}"
