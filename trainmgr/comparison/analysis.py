"""From the results of a comparison to what may be said of them. Pure but for the statistics.

For each metric the other arms are compared with the reference on the same seeds. A win is only called proven where all
planned seeds have the pair, Holm's p over the arms is under 0.05, and the interval of the paired difference does not
contain 0; with so few seeds that no such p is possible, that is what is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from trainmgr.comparison import statistics
from trainmgr.comparison.results import Case, Results, Run, goal_of, metric_names
from trainmgr.comparison.statistics import Summary, Test
from trainmgr.protocol import Mode

DIVERGED = 1e100  # a larger figure is no figure: its square is no number

Verdict = Literal["reference", "incomplete", "too few seeds to prove", "no proven win", "better", "worse", "different"]


@dataclass(frozen=True)
class Entry:
    """One metric of one arm."""

    metric: str
    goal: Mode | None
    held_out: bool
    values: dict[int, float]
    """Seed to value; without NaN, the infinities, and what is beyond DIVERGED."""
    summary: Summary | None
    """None where no run has the metric."""
    runs: int
    """That counted, with this metric or without."""
    seeds: int
    """Planned."""
    difference: Difference | None
    """None for the reference."""


@dataclass(frozen=True)
class Difference:
    """Of an arm from the reference, on the same seeds."""

    values: dict[int, float]
    """Seed to difference."""
    summary: Summary | None
    base: float | None
    """Mean of the reference over these seeds."""
    p: float | None
    adjusted: float | None
    """The same after Holm's correction over the arms."""
    least: float
    """The smallest that ``adjusted`` can be with so many planned seeds and arms."""
    verdict: Verdict
    assumed: bool
    """Whether that rests on the differences being normal: with so few pairs no test without it could say so."""

    @property
    def relative(self) -> float | None:
        """The mean difference as a fraction of the reference; None where that is 0."""
        return self.summary.mean / abs(self.base) if self.summary and self.base else None


@dataclass(frozen=True)
class Arm:
    """One manager in one case."""

    manager: str
    reference: bool
    runs: list[Run]
    """In the order of the seeds; failed ones among them."""
    entries: dict[str, Entry]

    @property
    def good(self) -> list[Run]:
        return [run for run in self.runs if run.failure is None]


@dataclass(frozen=True)
class Section:
    """One case."""

    case: Case
    metrics: list[str]
    """What the tables show, those that a manager could see first."""
    arms: list[Arm]

    def shown(self, *, held_out: bool) -> list[str]:
        return [name for name in self.metrics if (name in self.case.held_out) is held_out]


def analyse(results: Results, test: Test) -> list[Section]:
    """Everything that the tables show."""
    return [_section(results, case, test) for case in results.cases]


def _section(results: Results, case: Case, test: Test) -> Section:
    metrics = results.metrics or list(metric_names(case))
    metrics = [*(m for m in metrics if m not in case.held_out), *(m for m in metrics if m in case.held_out)]
    by_manager = {manager: [run for run in case.runs if run.manager == manager] for manager in case.managers}
    entries: dict[str, dict[str, Entry]] = {manager: {} for manager in case.managers}
    for metric in metrics:
        for manager, entry in _entries(case, metric, goal_of(results, case, metric), by_manager, test).items():
            entries[manager][metric] = entry
    arms = [Arm(m, m == case.reference, by_manager[m], entries[m]) for m in case.managers]
    return Section(case, metrics, arms)


def _entries(case: Case, metric: str, goal: Mode | None, runs: dict[str, list[Run]], test: Test) -> dict[str, Entry]:
    """One metric of all arms of a case: a family of comparisons."""
    found = {}
    for manager, mine in runs.items():
        good = [run for run in mine if run.failure is None]
        values = {r.seed: r.metrics[metric] for r in good if abs(r.metrics.get(metric, math.nan)) < DIVERGED}
        found[manager] = Entry(
            metric, goal, metric in case.held_out, values, statistics.summary([*values.values()]), len(good),
            len(case.seeds), None,
        )  # fmt: skip
    others = [manager for manager in runs if manager != case.reference]
    reference = found[case.reference].values
    pairs = [_difference(found[manager].values, reference, test) for manager in others]
    adjusted = statistics.holm([pair.p for pair in pairs])
    least = statistics.least_p(len(case.seeds), len(others), test) if others else 1.0
    for manager, pair, p in zip(others, pairs, adjusted, strict=True):
        assumed = test == "t" and len(case.seeds) < statistics.needed(len(others))
        pair = replace(pair, adjusted=p, least=least, assumed=assumed)
        pair = replace(pair, verdict=_verdict(pair, len(case.seeds), goal))
        found[manager] = replace(found[manager], difference=pair)
    return found


def _difference(values: dict[int, float], reference: dict[int, float], test: Test) -> Difference:
    both = [seed for seed in values if seed in reference]
    differences = {seed: values[seed] - reference[seed] for seed in both}
    base = statistics.summary([reference[seed] for seed in both])
    mine = [*differences.values()]
    scale = max((abs(value) for seed in both for value in (values[seed], reference[seed])), default=0.0)
    return Difference(
        differences, statistics.summary(mine), base.mean if base else None, statistics.p_value(mine, test, scale), None,
        1.0, "incomplete", assumed=False,
    )  # fmt: skip


def _verdict(pair: Difference, seeds: int, goal: Mode | None) -> Verdict:
    if len(pair.values) < seeds or pair.summary is None:
        return "incomplete"
    if pair.least >= statistics.ALPHA:
        return "too few seeds to prove"
    interval = pair.summary.interval
    if pair.adjusted is None or pair.adjusted >= statistics.ALPHA or interval is None:
        return "no proven win"
    if interval[0] <= 0.0 <= interval[1]:
        return "no proven win"
    if goal is None:
        return "different"
    return "better" if (pair.summary.mean < 0) is (goal == "min") else "worse"


def mean_of(runs: list[Run], figure: Callable[[Run], float | None]) -> float | None:
    """The mean of a figure that every run has; None without runs, or where one of them does not know it."""
    values = [figure(run) for run in runs]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _on_best(results: Results) -> list[str]:
    """Which arms ended on their best weights: what the last weights of others are worth is no match for that."""
    arms: dict[str, list[bool]] = {}
    for run in (run for case in results.cases for run in case.runs):
        if run.failure is None and run.on_best is not None:
            arms.setdefault(run.manager, []).append(run.on_best)
    some = [f"{manager} ({sum(ended)} of {len(ended)} runs)" for manager, ended in arms.items() if any(ended)]
    if not some or all(all(ended) for ended in arms.values()):
        return []
    text = f"On their best weights ended {', '.join(some)}; all others on their last ones. "
    return [f"{text}Figures of the end compare the two kinds, figures of the best weights do not."]


def _variants(results: Results) -> list[str]:
    """What the names stand for that are no manager's."""
    cases: dict[tuple[str, str], list[str]] = {}
    for case in results.cases:
        for name, variant in case.variants.items():
            cases.setdefault((name, variant.words), []).append(case.name)
    names = [name for name, _ in cases]
    where = {
        key: f" ({', '.join(filter(None, found))})" if names.count(key[0]) > 1 else "" for key, found in cases.items()
    }
    return [f"{name}{where[name, words]}: {words}." for name, words in cases]


def notes(results: Results) -> list[str]:
    """What a reader must know about how the runs were made."""
    found = []
    every = [(case, run) for case in results.cases for run in case.runs]
    found += _variants(results)
    found += _on_best(results)
    if failed := [f"{case.name} {run.manager} seed {run.seed}".lstrip() for case, run in every if run.failure]:
        found.append(f"{len(failed)} of {len(every)} runs failed, and count nowhere: {', '.join(failed)}.")
    there = dict.fromkeys(name for case in results.cases for name in metric_names(case))
    if unknown := [name for name in dict.fromkeys([*results.metrics, *results.goals]) if name not in there]:
        found.append(f"No run ended with {', '.join(unknown)}. There are: {', '.join(there) or 'none'}.")
    if len(results.revisions) > 1:
        each = ", ".join(f"{name} ({count})" for name, count in results.revisions.items())
        found.append(f"The runs were made with {len(results.revisions)} revisions of the script's repository: {each}.")
    elif any(name.endswith("+") for name in results.revisions):
        found.append("The script's repository had changes that were not committed.")
    for name, versions in results.versions.items():
        if len(versions) > 1:
            found.append(f"The runs were made with several versions of {name}: {', '.join(versions)}.")
    if len(results.machines) > 1:
        found.append(f"The runs were made in {len(results.machines)} settings of machine and threads.")
    return found
