"""What one run measured and took, and what several were made with."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator

from trainmgr.base.errors import RecordError
from trainmgr.base.paths import RunPaths
from trainmgr.contract.run_file import Closing, Measured, RunFile
from trainmgr.log import history
from trainmgr.state.ledger import Ledger
from trainmgr.state.measured import measured
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation

NOTHING = Situation(RunState(), Ledger())
MACHINE = ("system", "architecture", "processor", "cores", "threads")


def read(paths: RunPaths | None, file: RunFile | None) -> Measured:
    """As its supervisor wrote it down; where that did not, from the whole of its files. Empty where there is no run."""
    closing = file.closing if file else None
    if closing is not None and closing.measured is not None:
        return closing.measured
    now = NOTHING
    if paths is not None:
        with contextlib.suppress(RecordError, OSError):
            now = history.latest(paths)
    return measured(now)


def same_training(one: Measured, two: Measured) -> bool:
    """Whether two runs measured the same to the last digit, and more than one value."""
    same = (one.course, one.figures) == (two.course, two.figures)
    return same and len({value for _, value in one.curve}) > 1


def final_metrics(closing: Closing) -> dict[str, float]:
    """What a run ended with: what its workload says, or else the objective at the last evaluation and its best."""
    if closing.metrics or closing.objective is None:
        return dict(closing.metrics)
    final = {} if closing.final is None else {closing.objective: closing.final}  # None: its last evaluation lacks it
    best = {} if closing.best is None else {f"best {closing.objective}": closing.best}  # None: it was never finite
    return {**final, **best}


# -- what several runs were made with ----------------------------------------------------------------------------------


def revision(file: RunFile) -> str | None:
    """The script's git revision, shortened, with "+" where the tree was dirty."""
    git = file.manifest.git
    return git.revision[:12] + "+" * git.dirty if git else None


def revisions(files: Iterable[RunFile]) -> dict[str, int]:
    """Each revision with the number of runs."""
    return dict(Counter(revision(file) or "unknown" for file in files))


def versions(files: Iterable[RunFile]) -> dict[str, list[str]]:
    """Every version of trainmgr, Python and each package that a run was made with."""
    found: dict[str, dict[str, int]] = {}
    for file in files:
        m = file.manifest
        for name, version in {"trainmgr": m.version, "python": m.python, **m.packages}.items():
            found.setdefault(name, {})[version] = 1
    return {name: sorted(each) for name, each in found.items()}


def machines(files: Iterable[RunFile]) -> list[dict[str, str | int]]:
    """Every machine that a run was made on, each once, as far as it matters for speed and rounding."""
    found: list[dict[str, str | int]] = []
    for file in files:
        machine = {name: value for name, value in file.manifest.machine.items() if name in MACHINE}
        if machine not in found:
            found.append(machine)
    return found


def wall_seconds(files: Iterable[RunFile]) -> float:
    """The time during which at least one of the runs was going on."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(_spans(files)):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return round(total, 1)


def _spans(files: Iterable[RunFile]) -> Iterator[tuple[float, float]]:
    return ((file.manifest.created, file.closing.ended) for file in files if file.closing)
