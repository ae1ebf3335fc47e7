"""What one run measured and took, read from its files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from trainmgr.base.files import Tail, sha256
from trainmgr.base.paths import RunPaths
from trainmgr.contract import protocol
from trainmgr.contract.protocol import MAX_LINE, Mode, parse_telemetry
from trainmgr.contract.run_file import Closing, RunFile

MACHINE = ("system", "architecture", "processor", "cores", "threads")
_WORTH = (b'"start"', b'"eval"', b'"applied"', b"test")  # a line without any of them is not parsed: most are of steps


@dataclass
class Measured:
    """What run.json does not say."""

    objective: str | None = None
    goal: Mode | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, objective) of every evaluation, without those that a restart went back behind."""
    on_best: bool = False
    """Whether it ended on its best checkpoint: the last command that it carried out was a stop there."""
    figures: str | None = None
    """Digest of every figure of the evaluations and of the last step before each; None without evaluations."""
    shown: set[str] = field(default_factory=set)
    """Test metrics that a manager could see: those of steps and evaluations with "test" in their name."""
    calls: int = 0
    """Of a language model, retries among them."""
    tokens: int = 0
    money: float | None = 0.0
    """None where the price of a call was not known."""

    @property
    def course(self) -> str | None:
        """Digest of the curve; None without one."""
        return sha256(repr(self.curve).encode())[:16] if self.curve else None


def read(paths: RunPaths | None) -> Measured:
    """From telemetry and the audit log; nothing where there is no run."""
    found = Measured()
    if paths is None:
        return found
    digest, before = hashlib.sha256(), b""
    for line in Tail(paths.telemetry, MAX_LINE).lines():
        record = parse_telemetry(line) if any(word in line for word in _WORTH) else None
        if record is not None:
            _take(found, record)
        if not isinstance(record, protocol.Eval):
            before = line
            continue
        for each in (parse_telemetry(before), record):
            if isinstance(each, protocol.Step | protocol.Eval):
                digest.update(f"{each.step} {sorted(each.metrics.items())}\n".encode())
        found.figures = digest.hexdigest()[:16]
    _add_calls(found, paths)
    return found


def _take(found: Measured, record: protocol.Telemetry | protocol.Unreadable) -> None:
    match record:
        case protocol.Start():
            found.objective, found.goal = record.objective.metric, record.objective.mode
            resumed = record.resumed.step if record.resumed else -1
            found.curve = [point for point in found.curve if point[0] <= resumed]
            found.on_best = False
        case protocol.Eval() | protocol.Step():
            found.shown.update(name for name in record.metrics if "test" in name)
            if isinstance(record, protocol.Eval) and found.objective in record.metrics:
                found.curve.append((record.step, record.metrics[found.objective]))
        case protocol.Applied():
            found.on_best = record.command is not None and (record.command.name, record.command.to) == ("stop", "best")
        case _:
            pass


def _add_calls(found: Measured, paths: RunPaths) -> None:
    for line in Tail(paths.audit).lines():
        if b'"kind":"request"' in line:
            found.calls += json.loads(line)["data"]["kind"] == "request"
        elif b'"kind":"reply"' in line and (reply := json.loads(line)["data"])["kind"] == "reply":
            found.tokens += reply["prompt_tokens"] + reply["completion_tokens"]
            known = found.money is not None and reply["money"] is not None
            found.money = found.money + reply["money"] if known else None


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
