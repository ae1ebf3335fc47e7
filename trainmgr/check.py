"""`trainmgr check SCRIPT`: runs a workload briefly and names every breach of the protocol, with its fix."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainmgr import manifest, protocol
from trainmgr.action_space import Boundary, Parameter
from trainmgr.paths import RUN_DIR_VARIABLE, SEED_VARIABLE, RunPaths
from trainmgr.process import Child, Exit, clean_environment, last_lines
from trainmgr.protocol import Command, Control, Issued
from trainmgr.run_state import RunState
from trainmgr.telemetry import Feed, Item
from trainmgr.wire import Value, to_json

LOOK = 0.1  # seconds between two looks at the telemetry
GRACE = 10.0  # seconds to end after the stop
ENOUGH = 3  # evaluations after which the workload is told to stop
HEARD = 1.0  # seconds after which a workload that passes a boundary must have seen a change
PASSED: dict[Boundary, tuple[type[Item], ...]] = {  # what a workload reports at a boundary, or at a coarser one
    "step": (protocol.Step, protocol.Eval, protocol.Checkpoint),
    "eval": (protocol.Eval, protocol.Checkpoint),
    "checkpoint": (protocol.Checkpoint,),
}


@dataclass(frozen=True)
class Breach:
    """Something that the workload does wrong, or could do better."""

    severity: str
    """error: it cannot be managed like this; warning: it can, but less well."""
    what: str
    fix: str


@dataclass
class Checked:
    """What a brief run showed."""

    script: str
    breaches: list[Breach] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    records: int = 0
    output: list[str] = field(default_factory=list)
    """The last lines of stderr, where the workload failed."""

    @property
    def ok(self) -> bool:
        return not any(breach.severity == "error" for breach in self.breaches)

    def error(self, what: str, fix: str) -> None:
        self.breaches.append(Breach("error", what, fix))

    def warning(self, what: str, fix: str) -> None:
        self.breaches.append(Breach("warning", what, fix))


class Probe:
    """One brief run: lets the workload start, changes each parameter that can be changed at a step, stops it."""

    def __init__(self, script: Path, arguments: list[str], seconds: float) -> None:
        self.checked = Checked(str(script))
        self._command = manifest.command_of(script, arguments)
        self._seconds = seconds
        self._state = RunState()
        self._revision = 0
        self._asked: dict[int, dict[str, Value]] = {}
        self._items: list[Item] = []
        self._answers: dict[int, Item] = {}
        self._sent: dict[int, float] = {}
        self._over = False  # by itself, before we stopped it
        self._exit: Exit | None = None

    def run(self) -> Checked:
        """Raises WorkloadError when the script cannot be started at all."""
        with tempfile.TemporaryDirectory(prefix="trainmgr-check-") as folder:
            paths = RunPaths(Path(folder) / "check")
            paths.root.mkdir()
            ended = threading.Event()

            def note(end: Exit) -> None:
                self._exit = end
                ended.set()

            child = Child(
                self._command,
                environment=clean_environment({RUN_DIR_VARIABLE: str(paths.root), SEED_VARIABLE: "12345"}),
                directory=Path.cwd(),
                stdout=paths.stdout,
                stderr=paths.stderr,
                ended=note,
            )
            try:
                self._drive(paths, ended)
                self._over = ended.is_set() or self._state.end is not None
            finally:
                child.signal(15)
                child.join(GRACE)
                child.signal(9)  # and what it started
                child.join(GRACE)
            self._judge(Feed(paths.telemetry), paths)
        return self.checked

    def _drive(self, paths: RunPaths, ended: threading.Event) -> None:
        feed = Feed(paths.telemetry)
        left = self._seconds
        stopped: int | None = None
        while left > 0 and not ended.wait(LOOK):
            left -= LOOK
            for item in feed.records():
                self._state.fold(item)
                if isinstance(item, protocol.Applied | protocol.Refused):
                    self._answers[item.revision] = item
            if self._state.start is None or self._state.end is not None:
                continue
            if self._revision > max(self._answers, default=0):
                continue
            untried = [p for p in self._state.start.action_space if not any(p.name in a for a in self._asked.values())]
            stepwise = [p for p in untried if p.boundary == "step" or self._state.evals]
            if self._state.step and stepwise:
                self._send(paths, {stepwise[0].name: _other(stepwise[0])}, None)
            elif stopped is None and not untried and self._state.evals >= ENOUGH:
                if "stop" not in self._state.start.commands:
                    return
                stopped = self._revision + 1
                left = max(left, GRACE)
                self._send(paths, {}, Command(id="check", name="stop", to=None))

    def _send(self, paths: RunPaths, params: dict[str, Value], command: Command | None) -> None:
        self._revision += 1
        self._asked[self._revision] = params
        refused = {revision for revision, item in self._answers.items() if isinstance(item, protocol.Refused)}
        every = {n: v for revision, asked in self._asked.items() if revision not in refused for n, v in asked.items()}
        content = Control(
            run=paths.id, revision=self._revision, issued=Issued(t=0.0, step=self._state.step), params=every,
            based_on_step=self._state.step, command=command, decision=f"check{self._revision}",
        )  # fmt: skip
        new = paths.root / "control.new"
        new.write_bytes(to_json(content))
        new.replace(paths.control)
        self._sent[self._revision] = time.time()

    # -- what it showed ----------------------------------------------------------------------------------------------

    def _judge(self, feed: Feed, paths: RunPaths) -> None:
        checked, items = self.checked, list(feed.records())
        checked.records = len(items)
        state = RunState()
        for item in items:
            state.fold(item)
            if isinstance(item, protocol.Applied | protocol.Refused):
                self._answers[item.revision] = item  # also those that came with the end
        if self._exit is not None and self._exit.code not in (0, 143):
            checked.output = last_lines(paths.stderr)
            checked.error(f"The script {self._exit.words}.", "Run it by itself first: `python SCRIPT`.")
        if not items:
            checked.error(
                "No telemetry was written.",
                "Create a trainmgr.workload.Workload and report steps; see workloads/minimal.py.",
            )
            return
        for number, item in enumerate(items, start=1):
            if isinstance(item, protocol.Unreadable):
                checked.error(
                    f"Line {number} is no record: {item.reason}: {item.quote[:80]}", "See schemas/telemetry.json."
                )
        if not isinstance(items[0], protocol.Start):
            checked.error("The first record is no `start`.", "Write `start` before everything else.")
        if state.gaps:
            checked.error(
                f"{state.gaps} records are missing in the count of seq.", "Count seq from 0, one up for each record."
            )
        if state.start is not None:
            self._judge_start(state.start)
            self._judge_reports(state, items)
            self._judge_answers(state, items)

    def _judge_start(self, start: protocol.Start) -> None:
        checked = self.checked
        if not start.action_space:
            checked.warning("There is no parameter to change.", "Declare some: w.float(...), w.optimizer(...).")
        if start.total_steps is None:
            checked.warning("The number of steps is not known.", "Pass total_steps: progress and schedules need it.")
        if start.seed != 12345:
            checked.warning(
                f"The seed asked for was 12345, the workload used {start.seed}.",
                "Take it from trainmgr.workload.default_seed().",
            )
        if "rollback" not in start.commands:
            checked.warning("It cannot roll back.", "Offer w.command('rollback', ...): harm in the weights stays else.")
        if "stop" not in start.commands:
            checked.warning("It cannot be told to stop.", "Offer w.command('stop', ...), and leave the loop.")
        for parameter in start.action_space:
            objection = parameter.objection(parameter.value)
            if objection:
                checked.error(f"The value at the start: {objection}.", "Widen the bounds or start inside them.")
            limited = parameter.max_ratio or parameter.max_delta or parameter.type in ("bool", "choice")
            if not limited and parameter.scale == "log":
                checked.warning(
                    f"{parameter.name} may jump from one bound to the other in one change.", "Give max_ratio."
                )

    def _judge_reports(self, state: RunState, items: list[Item]) -> None:
        assert state.start is not None
        metric = state.start.objective.metric
        evals = [item for item in items if isinstance(item, protocol.Eval)]
        if not evals:
            self.checked.warning(
                "No evaluation was reported in the time of this check.",
                f"Report the objective with w.eval(step, {{{metric!r}: ...}}), or give --seconds more.",
            )
        elif not any(metric in item.metrics for item in evals):
            self.checked.error(
                f"The objective {metric!r} is in none of the evaluations.",
                f"They have: {', '.join(evals[0].metrics)}. Name one of them as the objective.",
            )
        else:
            self.checked.passed.append(f"{len(evals)} evaluations carry the objective {metric!r}")
        names = {n for item in items if isinstance(item, protocol.Step | protocol.Eval) for n in item.metrics}
        silent = sorted(names - set(state.start.metrics))
        if silent:
            self.checked.warning(
                f"Metrics without a description: {', '.join(silent[:5])}.", "Describe them in `metrics`."
            )
        for drift in state.drifts:
            self.checked.error(
                f"{drift.name} went from {drift.expected} to {drift.found} at step {drift.step} by itself.",
                "If a scheduler moves it, declare it with scheduled=True; else find who sets it.",
            )
        if not state.drifts and evals:
            self.checked.passed.append("no parameter moves by itself")

    def _judge_answers(self, state: RunState, items: list[Item]) -> None:
        assert state.start is not None
        asked = {name for params in self._asked.values() for name in params}
        untried = [p.name for p in state.start.action_space if p.name not in asked]
        for revision, params in self._asked.items():
            answer = self._answers.get(revision)
            if answer is None:
                if self._over and params and not self._passed_by(revision, state.start, items):
                    untried += params
                elif state.step and (params or self._exit is None):
                    self.checked.error(
                        f"The change of {', '.join(params) or 'stop'} was never answered.",
                        "Read control.json at the boundary you declared, and write `applied` or `refused`.",
                    )
            elif isinstance(answer, protocol.Refused):
                names = ", ".join(params) or "stop"
                self.checked.error(f"A change of {names} within its bounds was refused: {answer.reason}", "Accept it.")
            elif isinstance(answer, protocol.Applied):
                self._judge_applied(answer, params)
        if untried and (self._over or len(self._answers) == len(self._asked)):
            self.checked.warning(
                f"The {'run' if self._over else 'time'} was over before {', '.join(untried)} could be tried.",
                "Let it train longer (at least one evaluation), or give --seconds more.",
            )

    def _passed_by(self, revision: int, start: protocol.Start, items: list[Item]) -> bool:
        """Whether the workload came to a boundary at which it should have answered, well after the change was sent."""
        boundaries = [p.boundary for p in start.action_space if p.name in self._asked[revision]]
        late = self._sent[revision] + HEARD
        return any(isinstance(i, PASSED[boundary]) and i.t > late for i in items for boundary in boundaries)  # type: ignore[union-attr]

    def _judge_applied(self, answer: protocol.Applied, params: dict[str, Value]) -> None:
        for name, value in params.items():
            new = answer.changes.get(name, (None, None))[1]
            close = isinstance(new, float | int) and isinstance(value, float | int)
            if new == value or (close and abs(float(new) - float(value)) <= 1e-6 * abs(float(value))):  # type: ignore[arg-type]
                self.checked.passed.append(f"{name}: a change takes effect and is read back")
            else:
                self.checked.error(
                    f"{name} was set to {value}, and {new} is in effect.",
                    "`get` must read where training reads, and nothing may overwrite what `set` wrote.",
                )


def _other(parameter: Parameter) -> Value:
    """A value other than the one in effect, within the bounds and within one change."""
    if parameter.type == "bool":
        return not parameter.value
    if parameter.type == "choice":
        return next((c for c in parameter.choices or [] if c != parameter.value), parameter.value)
    reach = parameter.reach(parameter.value)
    assert reach is not None
    for candidate in _candidates(reach):
        value: Value = round(candidate) if parameter.type == "int" else candidate
        if value != parameter.value and not parameter.objection(value):
            return value
    return parameter.value


def _candidates(reach: tuple[float, float]) -> Iterator[float]:
    low, high = reach
    yield (low + high) / 2
    yield low + (high - low) / 4
    yield high
    yield low


def as_json(checked: Checked) -> dict[str, Any]:
    return {
        "script": checked.script,
        "ok": checked.ok,
        "records": checked.records,
        "breaches": [vars(breach) for breach in checked.breaches],
        "passed": checked.passed,
        "output": checked.output,
    }
