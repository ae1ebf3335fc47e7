"""The work of `trainmgr compare`: from what was asked for to what it proves."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainmgr.base.errors import UserError
from trainmgr.base.paths import POLICY_VARIABLE
from trainmgr.comparison import (
    analysis,
    experiment,
    gathering,
    page,
    pooling,
    progress,
    report,
    results,
    statistics,
    trials,
)
from trainmgr.running import launch, manifest


@dataclass(frozen=True)
class Request:
    """What to compare, and how."""

    what: Path
    """A script, an experiment (.toml), or earlier results (.json)."""
    arguments: list[str] = field(default_factory=list)
    """Of the script; of results: more of them."""
    managers: str | None = None
    """Their names, separated by commas."""
    seeds: str | None = None
    """1-3 or 1,2,5."""
    reference: str | None = None
    """The manager that the others are compared with."""
    cases: list[str] = field(default_factory=list)
    """Of the experiment; empty: all."""
    metrics: str = ""
    """At the end of a run, separated by commas, each perhaps with =min or =max."""
    test: statistics.Test = "permutation"
    show_seeds: bool = False
    """Whether there is a row for each run."""
    out: Path | None = None
    """Where the results are written."""
    reuse: Path | None = None
    """Earlier results, whose runs count as well."""
    jobs: int = 1
    """Runs at a time."""
    policy: Path | None = None
    runs_dir: Path = Path("runs")


@dataclass(frozen=True)
class Comparison:
    """What came of it."""

    results: results.Results
    text: str
    """In Markdown: what is proven."""
    written: list[Path]
    failed: list[str]
    """Each run that failed, in a line."""

    def json(self) -> str:
        """The results, as a later comparison reads them."""
        return results.render(self.results).rstrip()


def compare(request: Request, say: Callable[[str], None]) -> Comparison:
    """Train what is missing, or read what was measured, and analyse it. ``say`` gets what a person should know.

    Raises UserError for what cannot be, before anything is started.
    """
    statistics.require()
    names, goals = metrics_of(request.metrics)
    found = _read(request) if request.what.suffix == ".json" else _trained(request, names, say)
    found = found.model_copy(update={"goals": found.goals | goals, "metrics": names or found.metrics})
    sections = analysis.analyse(found, request.test)
    return Comparison(
        found,
        report.markdown(found, sections, request.test, show_seeds=request.show_seeds),
        page.write(request.out, found, sections, request.test) if request.out is not None else [],
        [
            f"{case.name} {run.manager} seed {run.seed} ({run.run}): {run.failure}".lstrip()
            for case in found.cases for run in case.runs if run.failure
        ],
    )  # fmt: skip


def _read(request: Request) -> results.Results:
    """Earlier results, put together where there are several."""
    files = [request.what, *map(Path, request.arguments)]
    training = request.managers or request.seeds or request.reuse or request.cases
    if training or any(file.suffix != ".json" for file in files):
        raise UserError(
            f"{request.what} is printed again as it was measured. Only other results (.json), --reference, --metrics, "
            "--test, --show-seeds and --out may follow it. To train, name a script or an experiment."
        )
    found = pooling.pool([results.load(file) for file in files])
    return results.against(found, request.reference) if request.reference else found


def _trained(request: Request, metrics: list[str], say: Callable[[str], None]) -> results.Results:
    """An experiment, trained as far as there is nothing to reuse."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    launch.end_as_at_the_keyboard()
    plan = planned(request)
    folder = request.what.parent if request.what.suffix == ".toml" else Path()
    cells = trials.cells(plan, folder, request.runs_dir)
    there = _reused(plan, cells, request.reuse, say) if request.reuse else None
    todo = trials.balanced(gathering.missing(cells, there) if there else cells)
    with progress.shown() as bar:
        outcomes = trials.run(todo, request.runs_dir, request.jobs, bar, metrics or plan.metrics)
    return gathering.gather(plan, outcomes, there)


def planned(request: Request) -> experiment.Experiment:
    """An experiment file with what the flags say instead, or an experiment of flags alone."""
    what, policy = request.what, request.policy
    manifest.recordable(
        str(what), *request.arguments, request.managers or "", request.reference or "", str(policy or "")
    )
    flags: dict[str, Any] = {}
    if request.managers is not None:
        flags["managers"] = [name.strip() for name in request.managers.split(",")]
    if request.seeds is not None:
        flags["seeds"] = experiment.seeds_of(request.seeds, "--seeds")
    if request.reference is not None:
        flags["reference"] = request.reference
    if what.suffix == ".toml" and (request.arguments or policy):
        raise UserError(
            f"{what} says which arguments and which policy there are; `--` and --policy (or {POLICY_VARIABLE}) are "
            "for a script. Write them into the file, or leave them out."
        )
    if what.suffix == ".toml":
        plan = experiment.load(what).narrowed(**flags)
    else:
        plan = experiment.Experiment(
            script=str(what), arguments=request.arguments, policy=str(policy) if policy else None, **flags
        )
    return plan.only(request.cases)


def _reused(
    plan: experiment.Experiment, cells: list[list[trials.Cell]], file: Path, say: Callable[[str], None]
) -> results.Results:
    """What of the results in a file need not be trained; says how much that is."""
    before = results.load(file)
    there = gathering.kept(plan, cells, before)
    had, took = (sum(len(case.runs) for case in each.cases) for each in (before, there))
    text = f"{took} of {sum(map(len, cells))} runs are taken from {file}"
    if took < had:
        text += f"; {had - took} of its runs differ from these in case, arguments, settings, manager, model or seed"
    say(text)
    return there


def metrics_of(text: str) -> tuple[list[str], dict[str, Any]]:
    """The names in "a=min,b", and which way those are better of which it is said.

    Raises UserError for another word than min or max.
    """
    names, goals = [], {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        name, _, goal = part.partition("=")
        if goal not in ("", "min", "max"):
            raise UserError(f"--metrics {part!r}: after the name comes =min, =max or nothing.")
        names.append(name)
        if goal:
            goals[name] = goal
    return names, goals
