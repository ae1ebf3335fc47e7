"""From the results of a comparison to what may be said of them. Pure but for the statistics.

For each metric the other arms are compared with the reference on the same seeds. A win is only called proven where all
planned seeds have the pair, Holm's p over the arms is under 0.05, and the interval of the paired difference does not
contain 0; with so few seeds that no such p is possible, that is what is said.

Seeds that gave the same run are one sample. A run that diverged has no value to average: only in the ranks of
Wilcoxon's test does it count, as worse than every finite one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from trainmgr.comparison import samples, statistics
from trainmgr.comparison.results import Case, Results, Run, check, goal_of, metric_names
from trainmgr.comparison.samples import Copies, finite, named
from trainmgr.comparison.statistics import Summary, Test
from trainmgr.contract.protocol import Mode

SEEDS = "See what the script does with TRAINMGR_SEED (trainmgr.workload.default_seed())."
NO_SEED = (
    "the script does not use TRAINMGR_SEED, or nothing in it is random. Take the seed from "
    "trainmgr.workload.default_seed(). All these runs are one sample, so no verdict rests on them."
)
ALIKE = {
    "figures": "gave the same figures to the last digit",
    "beginning": "began with the same figures and differ only since something was changed",
}

Verdict = Literal[
    "reference", "one sample", "incomplete", "too few seeds to prove", "no proven win", "better", "worse", "different"
]


@dataclass(frozen=True)
class Entry:
    """One metric of one arm."""

    metric: str
    goal: Mode | None
    held_out: bool
    values: dict[int, float]
    """Seed to value, finite ones only."""
    diverged: list[int]
    """Seeds whose run diverged and has no finite value of this metric."""
    infinite: list[int]
    """Other seeds whose value is not finite."""
    failed: list[int]
    """Seeds whose run failed."""
    copies: list[Copies]
    summary: Summary | None
    """Of the values, copies once; None where no run has the metric."""
    runs: int
    """That did not fail, with this metric or without."""
    seeds: int
    """Planned."""
    difference: Difference | None
    """None for the reference."""

    @property
    def lost(self) -> list[int]:
        """Seeds that say nothing for a reason which a mean of the others would hide."""
        return [*self.diverged, *self.failed]

    def standing(self, seed: int) -> float | None:
        """The value; for a run that diverged the infinity that is worse than every value; None where neither is."""
        if seed in self.diverged and self.goal is not None:
            return math.inf if self.goal == "min" else -math.inf
        return self.values.get(seed)


@dataclass(frozen=True)
class Difference:
    """Of an arm from the reference, on the same seeds."""

    values: dict[int, float]
    """Seed to difference, finite ones only."""
    compared: int
    """Seeds that the test takes in: in ranks also those whose run diverged."""
    samples: int
    """Of the planned seeds, with copies counted once."""
    copied: bool
    """Whether one of the arms has copies."""
    lost: bool
    """Whether pairs are missing because a run diverged or failed: then the others alone are not tested."""
    direction: float
    """Below 0 where the arm has the smaller values: the mean, or in ranks the rank sum."""
    summary: Summary | None
    """Of the finite differences, copies once."""
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
    def ranked(self) -> bool:
        """Whether diverged runs are among the ranks, as worse than every finite one."""
        return self.compared > len(self.values)

    @property
    def relative(self) -> float | None:
        """The mean difference as a fraction of the reference; None where that is 0, or runs diverged or failed."""
        partial = self.lost or self.ranked
        return self.summary.mean / abs(self.base) if self.summary and self.base and not partial else None


@dataclass(frozen=True)
class Arm:
    """One manager in one case."""

    manager: str
    reference: bool
    runs: list[Run]
    """In the order of the seeds; failed ones among them."""
    copies: list[Copies]
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

    @property
    def warnings(self) -> list[str]:
        """What must be read before the tables, in sentences."""
        whole: dict[str, list[str]] = {}
        found = []
        for arm, copies in ((each, copies) for each in self.arms for copies in each.copies):
            seeds = f"{named(copies.seeds)} of {arm.manager}"
            if copies.alike == "run":
                found.append(f"Warning: {seeds} are one and the same run, and count as one sample. Train each seed.")
            elif copies.every:
                whole.setdefault(ALIKE[copies.alike], []).append(seeds)
            else:
                found.append(f"Warning: {seeds} {ALIKE[copies.alike]}, and count as one sample. {SEEDS}")
        facts = "; ".join(f"{' and '.join(seeds)} {alike}" for alike, seeds in whole.items())
        return [*[f"Warning: {facts}: {NO_SEED}"] * bool(facts), *found]


def analyse(results: Results, test: Test) -> list[Section]:
    """Everything that the tables show. Raises UserError where there is nothing to compare with."""
    check(results)
    return [_section(results, case, test) for case in results.cases]


def _section(results: Results, case: Case, test: Test) -> Section:
    metrics = results.metrics or list(metric_names(case))
    metrics = [*(m for m in metrics if m not in case.held_out), *(m for m in metrics if m in case.held_out)]
    by_manager = {manager: [run for run in case.runs if run.manager == manager] for manager in case.managers}
    copies = {manager: samples.copies(case, runs) for manager, runs in by_manager.items()}
    entries: dict[str, dict[str, Entry]] = {manager: {} for manager in case.managers}
    for metric in metrics:
        for manager, entry in _entries(case, metric, goal_of(results, case, metric), by_manager, copies, test).items():
            entries[manager][metric] = entry
    arms = [Arm(m, m == case.reference, by_manager[m], copies[m], entries[m]) for m in case.managers]
    return Section(case, metrics, arms)


def _entries(
    case: Case, metric: str, goal: Mode | None, runs: dict[str, list[Run]], copies: dict[str, list[Copies]], test: Test
) -> dict[str, Entry]:
    """One metric of all arms of a case: a family of comparisons."""
    found = {manager: _entry(case, metric, goal, mine, copies[manager]) for manager, mine in runs.items()}
    others = [manager for manager in runs if manager != case.reference]
    pairs = [_difference(found[manager], found[case.reference], case.seeds, test) for manager in others]
    # An arm that cannot be tested, for its copies or its lost runs, was compared all the same: it stays in the family.
    adjusted = statistics.holm([1.0 if pair.p is None and (pair.copied or pair.lost) else pair.p for pair in pairs])
    for manager, pair, p in zip(others, pairs, adjusted, strict=True):
        pair = replace(
            pair,
            adjusted=None if pair.p is None else p,
            least=statistics.least_p(pair.samples, len(others), test),
            assumed=test == "t" and pair.samples < statistics.needed(len(others)),
        )
        pair = replace(pair, verdict=_verdict(pair, len(case.seeds), goal))
        found[manager] = replace(found[manager], difference=pair)
    return found


def _entry(case: Case, metric: str, goal: Mode | None, runs: list[Run], copies: list[Copies]) -> Entry:
    good = [run for run in runs if run.failure is None]
    values = {run.seed: run.metrics[metric] for run in good if finite(run.metrics.get(metric))}
    diverged = [run.seed for run in good if run.seed not in values and samples.diverged(case, run)]
    return Entry(
        metric=metric,
        goal=goal,
        held_out=metric in case.held_out,
        values=values,
        diverged=diverged,
        infinite=[run.seed for run in good if metric in run.metrics and run.seed not in (*values, *diverged)],
        failed=[run.seed for run in runs if run.failure is not None],
        copies=copies,
        summary=statistics.summary(_means(values, samples.joined(values, copies))),
        runs=len(good),
        seeds=len(case.seeds),
        difference=None,
    )


def _difference(mine: Entry, reference: Entry, seeds: list[int], test: Test) -> Difference:
    values = {seed: value - reference.values[seed] for seed, value in mine.values.items() if seed in reference.values}
    tested = values
    if test == "wilcoxon":
        both = ((seed, mine.standing(seed), reference.standing(seed)) for seed in seeds)
        tested = {seed: 0.0 if a == b else a - b for seed, a, b in both if a is not None and b is not None}
    groups = samples.joined(seeds, mine.copies, reference.copies)
    summary = statistics.summary(_means(values, groups))
    pair = Difference(
        values=values,
        compared=len(tested),
        samples=len(groups),
        copied=bool(mine.copies or reference.copies),
        lost=len(tested) < len(seeds) and bool(mine.lost or reference.lost),
        direction=0.0,
        summary=summary,
        base=fmean(_means({seed: reference.values[seed] for seed in values}, groups)) if values else None,
        p=None,
        adjusted=None,
        least=1.0,
        verdict="incomplete",
        assumed=False,
    )
    if pair.lost or (pair.copied and pair.samples == 1):
        return pair
    single = _means(tested, groups)
    scale = max((abs(entry.values[seed]) for seed in values for entry in (mine, reference)), default=0.0)
    direction = statistics.rank_sum(single) if pair.ranked else summary.mean if summary else 0.0
    return replace(pair, p=statistics.p_value(single, test, scale), direction=direction)


def _means(values: dict[int, float], groups: list[list[int]]) -> list[float]:
    """One value for each group that has any: copies count once."""
    found = [[values[seed] for seed in group if seed in values] for group in groups]
    means = [sum(group) / len(group) for group in found if group]
    return [0.0 if math.isnan(mean) else mean for mean in means]  # of ranks beyond all others on both sides


def _verdict(pair: Difference, seeds: int, goal: Mode | None) -> Verdict:
    if pair.copied and pair.samples == 1:
        return "one sample"
    if pair.compared < seeds:
        return "incomplete"
    if pair.least >= statistics.ALPHA:
        return "too few seeds to prove"
    if pair.adjusted is None or pair.adjusted >= statistics.ALPHA:
        return "no proven win"
    if not pair.ranked:
        interval = pair.summary.interval if pair.summary else None
        if interval is None or interval[0] <= 0.0 <= interval[1]:
            return "no proven win"
    if goal is None:
        return "different"
    return "better" if (pair.direction < 0) is (goal == "min") else "worse"


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
    text = f"{', '.join(some)} ended on their best weights, all other runs on their last ones. "
    return [f"{text}Figures at the end therefore compare best weights with last ones; figures of the best do not."]


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
        found.append(f"{len(failed)} of {len(every)} runs failed, and no figure includes them: {', '.join(failed)}.")
    there = dict.fromkeys(name for case in results.cases for name in metric_names(case))
    if unknown := [name for name in dict.fromkeys([*results.metrics, *results.goals]) if name not in there]:
        found.append(f"No run reported {', '.join(unknown)} at its end. Reported: {', '.join(there) or 'nothing'}.")
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
