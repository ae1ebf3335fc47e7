"""`trainmgr compare`: one workload under several managers and seeds, as ordinary supervised runs, in one table.

Finished runs are found again by what they were started with, so that an interrupted comparison goes on where it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

from trainmgr import display, events
from trainmgr.errors import TrainmgrError
from trainmgr.history import run_file
from trainmgr.launch import Request, launch
from trainmgr.managers import catalog
from trainmgr.paths import list_runs
from trainmgr.policy import Budget, Llm, Policy, Rules, asks_model
from trainmgr.supervisor import Supervisor

GOOD = ("completed", "stopped")


@dataclass(frozen=True)
class Cell:
    """One manager with one seed."""

    manager: str
    seed: int


@dataclass
class Result:
    """What came of a cell."""

    cell: Cell
    run: str | None = None
    closing: events.Closing | None = None
    seconds: float = 0.0
    failure: str | None = None
    reused: bool = False


@dataclass
class Arm:
    """One manager over all seeds."""

    manager: str
    results: list[Result] = field(default_factory=list)

    def values(self, metric: str) -> list[float]:
        """The metric at the end of each good run, in the order of the seeds."""
        found = [final_metrics(r.closing) for r in self.results if r.closing]
        return [metrics[metric] for metrics in found if metric in metrics]


def final_metrics(closing: events.Closing) -> dict[str, float]:
    """What a run ended with: what its workload says, or else the objective at the last evaluation and its best."""
    if closing.metrics or closing.objective is None or closing.final is None or closing.best is None:
        return dict(closing.metrics)
    return {closing.objective: closing.final, f"best {closing.objective}": closing.best}


def cells(managers: list[str], seeds: list[int]) -> list[Cell]:
    """Seed by seed, so that a comparison which is cut short is still balanced."""
    return [Cell(manager, seed) for seed in seeds for manager in managers]


def compare(
    request: Request,
    managers: list[str],
    seeds: list[int],
    jobs: int,
    progress: Callable[[Result, int, int], None],
) -> list[Arm]:
    """Run what is missing, ``jobs`` at a time; failed runs are results too."""
    names = [catalog.make(manager, request.policy, request.runs_dir).name for manager in managers]
    todo = cells(names, seeds)
    done = {cell: found for cell in todo if (found := find(request, cell)) is not None}
    count = 0
    for result in done.values():
        count += 1
        progress(result, count, len(todo))
    running: list[Supervisor] = []
    pool = ThreadPoolExecutor(max_workers=max(1, jobs), thread_name_prefix="run")
    try:
        futures = [pool.submit(_run, request, cell, running) for cell in todo if cell not in done]
        for future in as_completed(futures):
            result = future.result()
            done[result.cell] = result
            count += 1
            progress(result, count, len(todo))
    except KeyboardInterrupt:
        # Their workloads do not hear the keyboard; the next comparison trains these cells again.
        pool.shutdown(wait=False, cancel_futures=True)
        for supervisor in running:
            supervisor.interrupt()
            supervisor.interrupt()
        raise
    finally:
        pool.shutdown()
    arms = [Arm(name) for name in names]
    for arm in arms:
        arm.results = [done[Cell(arm.manager, seed)] for seed in seeds]
    return arms


def find(request: Request, cell: Cell) -> Result | None:
    """The finished run of a cell among those that are there, started with the same script, arguments and policy."""
    for paths in reversed(list_runs(request.runs_dir)):
        found = run_file(paths)
        if found is None or found.closing is None or found.closing.status not in GOOD or found.closing.exit_code:
            continue
        m = found.manifest
        same = (m.script, m.arguments, m.manager, m.seed, m.mode, m.replay_of) == (
            str(request.script), request.arguments, cell.manager, cell.seed, request.mode, None,
        ) and _relevant(m.policy, cell.manager) == _relevant(request.policy, cell.manager)  # fmt: skip
        if same:
            return Result(cell, paths.id, found.closing, found.closing.ended - m.created, reused=True)
    return None


def _relevant(policy: Policy, manager: str) -> Policy:
    """The policy without what this manager does not read."""
    if asks_model(manager):
        return policy
    unread: dict[str, Any] = {"llm": Llm(), "budget": Budget(), "prices": {}}
    return policy.model_copy(update=unread if manager == "rules" else {**unread, "rules": Rules()})


def _run(request: Request, cell: Cell, running: list[Supervisor]) -> Result:
    result = Result(cell)
    slug = f"{request.name or request.script.stem}-{cell.manager.replace(':', '-')}-s{cell.seed}"
    try:
        paths, closing = launch(
            replace(request, manager=cell.manager, seed=cell.seed, name=slug),
            lambda *_: display.Lines(quiet=True),
            running.append,
        )
    except TrainmgrError as error:
        result.failure = str(error)
        return result
    result.run, result.closing = paths.id, closing
    found = run_file(paths)
    result.seconds = closing.ended - found.manifest.created if found else 0.0
    if closing.status not in GOOD or closing.exit_code:
        result.failure = f"{closing.status}: it {closing.exit}"
    return result


def rows(arms: list[Arm], metrics: list[str]) -> Iterator[list[str]]:
    """The table: an arm a row, the mean and standard deviation of each metric, and the mean against the first arm."""
    reference = [_mean(arms[0].values(metric)) for metric in metrics]
    for arm in arms:
        row = [arm.manager, str(sum(1 for r in arm.results if r.closing and not r.failure))]
        for metric, base in zip(metrics, reference, strict=True):
            values = arm.values(metric)
            mean = _mean(values)
            deviation = statistics.stdev(values) if len(values) > 1 else None
            spread = f" ± {deviation:.3f}" if deviation is not None else ""
            against = f" ({(mean / base - 1):+.1%})" if mean is not None and base and arm is not arms[0] else ""
            row.append("–" if mean is None else f"{mean:.3f}{spread}{against}")
        changed = [r.closing.interventions for r in arm.results if r.closing]
        row.append(f"{statistics.fmean(changed):.1f}" if changed else "–")
        row.append(f"{statistics.fmean([r.seconds for r in arm.results]):.0f}")
        yield row


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def header(metrics: list[str]) -> list[str]:
    return ["manager", "runs", *metrics, "changes", "seconds"]


def as_json(arms: list[Arm]) -> list[dict[str, Any]]:
    return [
        {
            "manager": arm.manager,
            "runs": [
                {
                    "seed": r.cell.seed,
                    "run": r.run,
                    "failure": r.failure,
                    "seconds": round(r.seconds, 1),
                    "interventions": r.closing.interventions if r.closing else None,
                    "metrics": final_metrics(r.closing) if r.closing else {},
                }
                for r in arm.results
            ],
        }
        for arm in arms
    ]


def markdown(arms: list[Arm], metrics: list[str]) -> str:
    """The table as Markdown."""
    lines = ["| " + " | ".join(header(metrics)) + " |", "|" + " --- |" * (len(metrics) + 4)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(arms, metrics)]
    return "\n".join(lines)
