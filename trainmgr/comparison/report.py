"""The tables of a comparison, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from operator import attrgetter

from trainmgr.base.foreign import in_csv, in_markdown
from trainmgr.base.wire import short
from trainmgr.comparison import samples, statistics
from trainmgr.comparison.analysis import Arm, Difference, Entry, Section, mean_of, notes
from trainmgr.comparison.results import Case, Results, Run
from trainmgr.comparison.samples import Copies, named
from trainmgr.comparison.statistics import Summary, Test
from trainmgr.terminal.words import clock

NOTHING = "–"
REASON = 80  # characters of why a run failed, in a table
ABSOLUTE = ("changes", "reversals", "demoted")  # what is no more or less of what the reference took
VERSIONS = ("trainmgr", "python", "torch", "numpy", "mujoco")  # others are in results.json
HELD_OUT = "Test metrics, which no manager saw"
WAYS = {"min": "less is better", "max": "more is better", None: "no goal known"}
TESTS = {
    "permutation": f"a sign-flip permutation test of the mean paired difference (exact up to {statistics.EXACT} pairs)",
    "wilcoxon": "Wilcoxon's signed-rank test",
    "t": "the paired t test, which takes the differences to be normal",
}


# -- figures -----------------------------------------------------------------------------------------------------------


def _style(summary: Summary) -> str:
    """How to write it: with two digits of the standard deviation."""
    spread = summary.deviation or abs(summary.mean) / 100
    if not 1e-6 < max(spread, abs(summary.mean) / 100) < 1e6:
        return ".3g"
    return f".{max(0, min(8, 1 - math.floor(math.log10(spread))))}f"


def spread(entry: Entry) -> str:
    """mean ± standard deviation [interval] (how many have it), after the runs that a mean cannot hold."""
    summary, some = entry.summary, f"{len(entry.values)} of {entry.runs}"
    lost = [
        f"{named(seeds)} {how}"
        for how, seeds in (("diverged", entry.diverged), ("not finite", entry.infinite))
        if seeds
    ]
    if summary is None:
        return (some + f": {', '.join(lost)}" * bool(lost)) if entry.runs else NOTHING
    style = _style(summary)
    deviation = f" ± {summary.deviation:{style}}" if summary.deviation is not None else ""
    remarks = [some] * (len(entry.values) < entry.runs)
    remarks += [_samples(summary.count)] * (summary.count < len(entry.values))
    text = f"{summary.mean:{style}}{deviation}{_interval(summary, style)}" + f" ({', '.join(remarks)})" * bool(remarks)
    return f"{', '.join(lost)}; the others: {text}" if lost else text


def _samples(count: int) -> str:
    return f"{count} sample{'s' * (count != 1)}"


def change(difference: Difference) -> str:
    """The mean paired difference with its interval; where a run diverged or failed, said to be that of the others."""
    summary = difference.summary
    if summary is None:
        return NOTHING
    style = f"+{_style(summary)}"
    others = "the others: " * (difference.lost or difference.ranked)
    return f"{others}{summary.mean:{style}}{_interval(summary, style)}"


def _interval(summary: Summary, style: str) -> str:
    if summary.interval is None:
        return ""
    return f" [{summary.interval[0]:{style}}, {summary.interval[1]:{style}}]"


def share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.1%}"


def probability(p: float | None) -> str:
    return NOTHING if p is None else f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def figure(value: float | None) -> str:
    """A single value."""
    return NOTHING if value is None else f"{value:.5g}"


def verdict(difference: Difference, arms: int, test: Test, lost: str = "") -> str:
    """In words, with what would be needed. ``lost``: which runs diverged or failed."""
    match difference.verdict:
        case "one sample":
            return "no verdict: all seeds are one sample, see the warning"
        case "incomplete" if difference.lost:
            return f"no verdict: {lost}; the other seeds alone prove nothing"
        case "incomplete":
            return "incomplete: not every seed has the pair"
        case "too few seeds to prove":
            fewest = statistics.needed(arms, test)
            needed = f"p ≥ {difference.least:.3g}, at least {fewest} are needed"
            return f"too few seeds to prove{', as copies count once' * difference.copied}: {needed}"
        case "better" | "worse" | "different":
            if difference.assumed:
                return f"{difference.verdict}, if the differences are normal"
            return f"proven {difference.verdict}" + f" in ranks, where {lost}" * difference.ranked
        case other:
            return other


# -- tables ------------------------------------------------------------------------------------------------------------

Table = tuple[list[str], list[list[str]]]


def overview(section: Section, metrics: list[str]) -> Table:
    """An arm a row: every metric's mean, standard deviation and interval, and what it took."""
    rows = []
    for arm in section.arms:
        row = [arm.manager, _counted(section.case, arm, metrics), *(spread(arm.entries[metric]) for metric in metrics)]
        rows.append([*row, *_took(arm)])
    return ["manager", "runs", *metrics, "changes", "seconds"], rows


def _counted(case: Case, arm: Arm, metrics: list[str]) -> str:
    """How many runs count; where some failed, of how many, and how; and those that diverged, though every metric shown
    is finite."""
    failures: dict[str, list[int]] = {}
    for run in arm.runs:
        if run.failure is not None:
            why = short(run.failure, REASON) + ", its objective not finite" * samples.diverged(case, run)
            failures.setdefault(why, []).append(run.seed)
    said = {seed for metric in metrics for seed in arm.entries[metric].diverged}
    if unsaid := [run.seed for run in arm.good if run.seed not in said and samples.diverged(case, run)]:
        failures["diverged"] = unsaid
    count = f"{len(arm.good)}" + f" of {len(arm.runs)}" * (len(arm.good) < len(arm.runs))
    return "; ".join([count, *(f"{named(seeds)} {why}" for why, seeds in failures.items())])


def _took(arm: Arm) -> list[str]:
    changes, seconds = mean_of(arm.good, lambda run: run.changes), mean_of(arm.good, lambda run: run.seconds)
    return [NOTHING if changes is None else f"{changes:.1f}", NOTHING if seconds is None else f"{seconds:.0f}"]


def by_seed(section: Section, metrics: list[str]) -> Table:
    """A run a row."""
    rows = []
    for seed in section.case.seeds:
        for arm, run in ((each, run) for each in section.arms for run in each.runs if run.seed == seed):
            row = [str(seed), run.manager, *(figure(run.metrics.get(metric)) for metric in metrics)]
            rows.append([*row, str(run.changes), f"{run.seconds:.0f}", _ended(section.case, arm, run)])
    return ["seed", "manager", *metrics, "changes", "seconds", "ended"], rows


def _ended(case: Case, arm: Arm, run: Run) -> str:
    original = _original(arm.copies, run)
    how = [run.failure or run.status, *["diverged"] * samples.diverged(case, run)]
    return ", ".join([*how, *[f"a copy of seed {original}"] * (original is not None)])


def _original(copies: Iterable[Copies], run: Run) -> int | None:
    """The first seed of which a run is a copy; None where it is none."""
    seeds = next((found.seeds for found in copies if found.alike != "beginning" and run.seed in found.seeds), [])
    return seeds[0] if run.seed in seeds[1:] else None


def differences(section: Section, metrics: list[str], test: Test) -> Table:
    """Each arm against the reference on the same seeds, a metric and an arm a row."""
    others = [arm for arm in section.arms if not arm.reference]
    reference = next(arm for arm in section.arms if arm.reference)
    rows = []
    for metric in metrics:
        for arm in others:
            entry = arm.entries[metric]
            pair = entry.difference
            if pair is not None:
                pairs = f"{pair.compared} of {entry.seeds}"
                pairs += f", {pair.compared - len(pair.values)} in rank only" * pair.ranked
                pairs += f", {_samples(pair.samples)}" * pair.copied
                rows.append([
                    f"{metric} ({WAYS[entry.goal]})", arm.manager, pairs, change(pair),
                    share(pair.relative), probability(pair.p), probability(pair.adjusted),
                    verdict(pair, len(others), test, _lost(arm, reference, metric)),
                ])  # fmt: skip
    return ["metric", "manager", "pairs", "difference", "relative", "p", "p (Holm)", "verdict"], rows


def _lost(one: Arm, two: Arm, metric: str) -> str:
    """Which runs of two arms diverged or failed."""
    return ", ".join(
        f"{named(seeds)} of {arm.manager} {how}"
        for arm in (one, two)
        for how, seeds in (("diverged", arm.entries[metric].diverged), ("failed", arm.entries[metric].failed))
        if seeds
    )


def cost(section: Section) -> Table:
    """What an arm took, as means over its runs, and time and steps against the reference too; of "demoted" the share of
    the runs whose manager lost its right to change anything."""
    reference = next(arm for arm in section.arms if arm.reference)
    digits = {"seconds": 1, "steps": 0, "changes": 1}
    if any(run.reversals for run in section.case.runs):
        digits |= {"reversals": 1, "demoted": 2}
    if any(run.calls for run in section.case.runs):
        digits |= {"calls": 1, "tokens": 0, "money": 4}
    rows = []
    for arm in section.arms:
        row = [arm.manager]
        for name, places in digits.items():
            value, base = mean_of(arm.good, attrgetter(name)), mean_of(reference.good, attrgetter(name))
            if value is None:
                row.append("unknown" if arm.good else NOTHING)
                continue
            against = f" ({value / base - 1:+.1%})" if base and not arm.reference and name not in ABSOLUTE else ""
            row.append(f"{value:,.{places}f}{against}")
        rows.append(row)
    return ["manager", *digits], rows


# -- Markdown ----------------------------------------------------------------------------------------------------------


def markdown(results: Results, sections: list[Section], test: Test, *, show_seeds: bool = False) -> str:
    """All tables."""
    parts = [f"# {in_markdown(results.title)}"] if results.title else []
    for section in sections:
        if section.case.name:
            parts.append(f"## {in_markdown(section.case.name)}")
        parts += [in_markdown(text, paragraph=True) for text in section.warnings]
        for held_out in (False, True):
            metrics = section.shown(held_out=held_out)
            if not metrics and (held_out or section.metrics):
                continue
            if held_out:
                parts.append(f"{HELD_OUT}:")
            parts.append(_table(*overview(section, metrics)))
            if show_seeds:
                parts.append(_table(*by_seed(section, metrics)))
            table = differences(section, metrics, test)
            if table[1]:
                parts += [f"Against {in_markdown(section.case.reference)} on the same seeds:", _table(*table)]
        parts += ["What it took, on average:", _table(*cost(section))]
    parts += [in_markdown(text, paragraph=True) for text in footnotes(results, sections, test)]
    return "\n\n".join(parts)


def footnotes(results: Results, sections: list[Section], test: Test) -> list[str]:
    """How the figures were made, what is to be known of the runs, and what the experiment discloses."""
    text = (
        f"Mean ± standard deviation over the seeds; in brackets the {statistics.LEVEL:.0%} bootstrap interval of the "
        "mean."
    )
    fewest = min((len(section.case.seeds) for section in sections), default=0)
    if fewest in statistics.COVERAGE:
        text += (
            f" With {fewest} seeds such an interval holds the true mean in about {statistics.COVERAGE[fewest]:.0%} of "
            "experiments (simulated with normal values)."
        )
    found = [text]
    if any(len(section.arms) > 1 for section in sections):
        found.append(
            f"p is two-sided, from {TESTS[test]}; p (Holm) is corrected for the number of managers compared, but not "
            "for the number of metrics or cases. Proven means: p (Holm) is under 0.05, the interval of the difference "
            "does not contain 0, and no pair is missing."
        )
        found[-1] += (
            " Without that assumption no test of n pairs can give a p below 2/2^n; where that is not small enough, the "
            "verdict names the assumption."
            if test == "t"
            else " With n pairs the smallest possible p is 2/2^n, so nothing is proven with fewer than "
            f"{statistics.needed()} seeds."
        )
    if lost := [f"{case} {manager} {named(seeds)}".lstrip() for case, manager, seeds in _diverged(sections)]:
        found.append(
            f"Diverged: {', '.join(lost)}. A run has diverged when its objective is not finite at its end. No mean can "
            "include it, and the mean of the other seeds makes its manager look better than it is. "
        )
        found[-1] += (
            "Wilcoxon's test counts it as worse than every finite run, and such a verdict in ranks rests on p alone; "
            "means, intervals and differences are those of the other seeds."
            if test == "wilcoxon"
            else "The other seeds alone are therefore not tested; --test wilcoxon counts a diverged run as worse than "
            "every finite one."
        )
    if absent := [text for section in sections for text in _absent(section)]:
        found.append(
            f"Without a figure: {'; '.join(absent)}. A run has none where its last evaluation is without the "
            "objective, or the weights went back to others after it: report it at every evaluation, and under one name."
        )
    parts = [*found, *notes(results), took(results), made_with(results)]
    return [*(part for part in parts if part), *([results.disclosure] if results.disclosure else [])]


def _diverged(sections: list[Section]) -> Iterable[tuple[str, str, list[int]]]:
    """(case, manager, seeds) where runs that did not fail diverged."""
    for section in sections:
        for arm in section.arms:
            if seeds := [run.seed for run in arm.good if samples.diverged(section.case, run)]:
                yield section.case.name, arm.manager, seeds


def _absent(section: Section) -> Iterable[str]:
    """Which runs that did not fail have no objective at their end although they had it before, and when that was."""
    objective = section.case.objective
    for arm in section.arms:
        runs = [run for run in arm.good if objective and run.curve and objective not in run.metrics]
        runs = [run for run in runs if f"best {objective}" in run.metrics and not samples.diverged(section.case, run)]
        if runs:
            last = ", ".join(dict.fromkeys(f"{run.curve[-1][0]:,} of {run.steps:,}" for run in runs))
            where = f"{section.case.name} {arm.manager} {named([run.seed for run in runs])}".lstrip()
            yield f"{objective} of {where}, measured last at step {last}"


def took(results: Results) -> str:
    """How long all of it took, and on what."""
    runs = [run for case in results.cases for run in case.runs]
    seconds = {run.run: run.seconds for run in runs}
    text = f"{len(seconds)} run{'s' * (len(seconds) != 1)} took {clock(sum(seconds.values()))} in total, "
    text += f"{clock(results.wall_seconds)} of wall-clock time"
    for machine in results.machines:
        threads = machine.get("threads") or "not limited"
        text += f"; {machine.get('processor') or 'unknown processor'}, {machine.get('cores', '?')} cores, threads per "
        text += f"run: {threads}"
    return f"{text}."


def made_with(results: Results) -> str:
    """The seeds, the versions that matter for the figures, and the script's revision where there is one."""
    by_case = {case.name: ", ".join(map(str, case.seeds)) for case in results.cases}
    same = len(set(by_case.values())) == 1
    seeds = [seeds if same else f"{seeds} ({name})" for name, seeds in by_case.items()][: 1 if same else None]
    parts = [f"Seeds {'; '.join(seeds)}"] * bool(seeds)
    parts += [f"{name} {' and '.join(found)}" for name, found in results.versions.items() if name in VERSIONS and found]
    if len(results.revisions) == 1:  # several are named with what they were used for
        parts += [f"revision {name}" for name in results.revisions if name != "unknown"]
    return f"{', '.join(parts)}." if parts else ""


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = ["| " + " | ".join(map(in_markdown, header)) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(in_markdown, row)) + " |" for row in rows)])


# -- CSV ---------------------------------------------------------------------------------------------------------------


def as_csv(results: Results) -> str:
    """A single figure a row: case, manager, seed, run, what it is, its value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["case", "manager", "seed", "run", "figure", "value"])
    for case in results.cases:
        arms = {manager: [run for run in case.runs if run.manager == manager] for manager in case.managers}
        copies = {manager: samples.copies(case, runs) for manager, runs in arms.items()}
        for run in case.runs:
            for name, value in _figures(case, copies.get(run.manager, []), run):
                writer.writerow(map(in_csv, [case.name, run.manager, run.seed, run.run or "", name, value]))
    return out.getvalue()


def _figures(case: Case, copies: list[Copies], run: Run) -> Iterable[tuple[str, object]]:
    yield "status", run.failure or run.status
    if samples.diverged(case, run):
        yield "diverged", 1
    if (original := _original(copies, run)) is not None:
        yield "copy of seed", original
    for name in ("seconds", "steps", "changes", "reversals", "demoted", "calls", "tokens", "money"):
        value = getattr(run, name)
        yield name, "" if value is None else int(value) if isinstance(value, bool) else value
    yield from run.metrics.items()
