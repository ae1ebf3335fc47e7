"""The list of runs."""

from __future__ import annotations

from rich.console import Console

from trainmgr.base.files import is_held
from trainmgr.base.paths import RunPaths
from trainmgr.contract.summary import Begun, Summary
from trainmgr.terminal import words
from trainmgr.terminal.markup import Grid, quoted, say

DIED = "supervisor died"
UNREADABLE = "run.json cannot be read"


def status(paths: RunPaths, ended: str | None) -> str:
    """How a run ended, which is ``ended``; for one that has not, whether its supervisor lives."""
    return ended or {True: "running", False: DIED, None: f"running, or {DIED}"}[is_held(paths.audit)]


def print_runs(console: Console, found: list[tuple[RunPaths, Summary | None]]) -> None:
    """A row for each; None where run.json cannot be read."""
    table = Grid("run", "manager", "seed", "status", "steps", "objective", "final", "best", "changes", "took")
    died = []
    for paths, summary in found:
        if summary is None:
            table.row(quoted(paths.id), f"[red]{UNREADABLE}[/]")
            continue
        begun, ended = summary.begun, summary.ended
        if ended is None:
            table.row(quoted(paths.id), quoted(begun.manager), _seed(begun), text := status(paths, None))
            if text == DIED:
                died.append(quoted(paths.id))
            continue
        table.row(
            quoted(paths.id), quoted(begun.manager), _seed(begun), ended.status, f"{ended.steps:,}",
            quoted(ended.objective or "–"), words.number(ended.final), words.number(ended.best),
            str(ended.interventions), f"{ended.ended - begun.created:.0f} s",
        )  # fmt: skip
    console.print(table)
    for run in died:
        say(
            console, f"The supervisor of {run} died; its training may go on. Take over: trainmgr attach {run}", "yellow"
        )


def _seed(begun: Begun) -> str:
    return "–" if begun.seed is None else str(begun.seed)
