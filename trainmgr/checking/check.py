"""`trainmgr check SCRIPT`: runs a workload briefly and does to it, once each, everything that a manager may do."""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainmgr.base.paths import CHECK_VARIABLE, RUN_DIR_VARIABLE, SEED_VARIABLE, RunPaths
from trainmgr.base.process import Child, Exit, clean_environment, end_all, last_lines
from trainmgr.base.wire import Value, to_json
from trainmgr.checking import breaches
from trainmgr.checking.checked import Checked
from trainmgr.checking.seen import KEPT, Rollback, Seen, Sent, alike, kept_path
from trainmgr.contract import protocol
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Process
from trainmgr.contract.protocol import Command, Control, Issued
from trainmgr.log.telemetry import Feed, Item
from trainmgr.running import manifest
from trainmgr.state.interventions import Drift
from trainmgr.state.run_state import RunState

LOOK = 0.01  # seconds between two looks at the telemetry
GRACE = Process().grace  # seconds to end after the stop: as patient as a supervisor is
ENDS = 10.0  # seconds to end after a signal
AHEAD = 0.2  # seconds that a change for a certain step is sent before that
LATE = 0.75  # of the time: then there is no more waiting for what is only good to know
FEW = 3  # evaluations before the first rollback: so much must have been learned that can be lost
QUIET = 0.25  # of the time, at most, until the first evaluation: so long nothing is changed, for the seeds
AGAIN = 20.0  # seconds that another seed may take longer than the first one did, or as much as that again

Until = Callable[[], bool]
"""Whether what is waited for has come."""


@dataclass
class Attempt:
    """One run of the script: what it has written so far, and the control file that it is told with."""

    paths: RunPaths
    items: list[Item] = field(default_factory=list)
    state: RunState = field(default_factory=RunState)
    evals: list[protocol.Eval] = field(default_factory=list)
    """Those after the first step."""
    answers: dict[int, protocol.Applied | protocol.Refused] = field(default_factory=dict)
    sent: dict[int, Sent] = field(default_factory=dict)
    drifts: dict[tuple[str, bool], Drift] = field(default_factory=dict)
    """The first of each kind; the state forgets old ones."""
    exit: Exit | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._feed = Feed(self.paths.telemetry)

    def read(self) -> None:
        for item in self._feed.records():
            self.items.append(item)
            self.state.fold(item)
            for drift in self.state.drifts if isinstance(item, protocol.Eval | protocol.Overwritten) else ():
                self.drifts.setdefault((drift.name, drift.set_at is None), drift)
            if isinstance(item, protocol.Applied | protocol.Refused):
                self.answers[item.revision] = item
            elif isinstance(item, protocol.Eval) and item.step > 0:
                self.evals.append(item)

    def send(self, params: dict[str, Value], command: Command | None = None, at_step: int | None = None) -> int:
        """Issue a revision; returns its number."""
        revision = len(self.sent) + 1
        self.sent[revision] = Sent(params, command, time.time(), len(self.items), at_step)
        refused = {number for number, item in self.answers.items() if isinstance(item, protocol.Refused)}
        every = {n: v for number, sent in self.sent.items() if number not in refused for n, v in sent.params.items()}
        content = Control(
            run=self.paths.id, revision=revision, issued=Issued(t=0.0, step=self.state.step), params=every,
            based_on_step=self.state.step, command=command, at_step=at_step, decision=f"check{revision}",
        )  # fmt: skip
        new = self.paths.root / "control.new"
        new.write_bytes(to_json(content))
        new.replace(self.paths.control)
        return revision

    def over(self) -> bool:
        return self.ended.is_set() or self.state.end is not None


class Probe:
    """Brief runs: in one, everything that is offered is done once; the others only have another seed, and the same."""

    def __init__(self, script: Path, arguments: list[str], seconds: float, *, deterministic: bool = False) -> None:
        self._script = script
        self._command = manifest.command_of(script, arguments)
        self._seconds = seconds
        self._deterministic = deterministic
        self._quiet = True
        self._late = False
        self._patience = -math.inf  # until when the end of the script is waited for, whatever time that takes
        self._rollbacks: list[Rollback] = []
        self._kept: int | None = None

    def run(self) -> Checked:
        """Raises WorkloadError when the script cannot be started at all."""
        with tempfile.TemporaryDirectory(prefix="trainmgr-check-") as folder:
            first = Attempt(RunPaths(Path(folder) / "check"))
            begin = time.monotonic()
            over = self._supervised(first, breaches.SEEDS[0], self._seconds, self._course(first))
            seen = Seen(
                script=str(self._script),
                items=first.items,
                state=first.state,
                evals=first.evals,
                answers=first.answers,
                sent=first.sent,
                drifts=list(first.drifts.values()),
                rollbacks=self._rollbacks,
                kept=self._kept,
                checkpoints=[str(path.relative_to(first.paths.root)) for path in first.paths.checkpoints.rglob("*")],
                over=over,
                exit=first.exit,
                output=last_lines(first.paths.stderr),
                deterministic=self._deterministic,
            )
            if first.state.step or first.evals:
                took = time.monotonic() - begin
                seen.other = self._other(Path(folder) / "other", first, took)
                spent = time.monotonic() - begin
                if alike(seen.alone, seen.other, "") == "" and 2 * spent - took < self._seconds:
                    seen.again = self._again(Path(folder) / "again", spent - took)
            return breaches.judge(seen)

    def _other(self, root: Path, first: Attempt, took: float) -> list[Item]:
        """What the script reports with another seed, as far as the first run was left alone."""
        other = Attempt(RunPaths(root))
        alone = first.items[: min((sent.after for sent in first.sent.values()), default=len(first.items))]
        wanted = sum(isinstance(item, protocol.Eval) and item.step > 0 for item in alone)
        steps = [item.step for item in alone if isinstance(item, protocol.Step)]
        begun = [answer.seq for r in self._rollbacks[-1:] if (answer := first.answers.get(r.revision))]
        after = [item.step for item in first.evals if begun and item.seq > begun[0] and item.moving][:2]
        shown = max(after, default=0)  # evaluated there it shows where the schedules would be without a rollback

        def course() -> Iterator[Until]:
            yield lambda: len(other.evals) >= wanted and other.state.step >= max(steps, default=0)
            yield lambda: not shown or any(item.step >= shown for item in other.evals)  # after the step's own record

        self._supervised(other, breaches.SEEDS[1], max(2 * took, took + AGAIN), course())
        return other.items

    def _again(self, root: Path, took: float) -> list[Item]:
        """The first figures of another run with the first seed."""
        again = Attempt(RunPaths(root))

        def course() -> Iterator[Until]:
            yield lambda: bool(again.evals) or any(isinstance(i, protocol.Step) and i.metrics for i in again.items)

        self._supervised(again, breaches.SEEDS[0], took + AGAIN, course())
        return again.items

    def _supervised(self, attempt: Attempt, seed: int, seconds: float, course: Iterator[Until]) -> bool:
        """Run the script along a course; whether it was over by itself before that."""
        attempt.paths.root.mkdir()

        def note(end: Exit) -> None:
            attempt.exit = end
            attempt.ended.set()

        extra = {RUN_DIR_VARIABLE: str(attempt.paths.root), SEED_VARIABLE: str(seed), CHECK_VARIABLE: "1"}
        child = Child(
            self._command,
            environment=clean_environment(extra),
            directory=Path.cwd(),
            stdout=attempt.paths.stdout,
            stderr=attempt.paths.stderr,
            ended=note,
        )
        try:
            self._drive(attempt, course, seconds)
            over = attempt.over()
        finally:
            try:
                child.signal(15)
                child.join(ENDS)
            finally:  # who asks twice to be ended does not want to wait
                child.signal(9)  # and what it started
                end_all(RUN_DIR_VARIABLE, str(attempt.paths.root))
                child.join(ENDS)
        attempt.read()
        return over

    def _drive(self, attempt: Attempt, course: Iterator[Until], seconds: float) -> None:
        """Go along the course as long as there is time, and the script runs."""
        begin = time.monotonic()
        until = next(course, None)
        while until is not None and not attempt.ended.wait(LOOK):
            attempt.read()
            spent = time.monotonic() - begin
            self._quiet, self._late = spent < QUIET * seconds, spent > LATE * seconds
            while until is not None and not attempt.over() and until():
                until = next(course, None)
            if attempt.state.end is not None:
                attempt.ended.wait(GRACE)
                return
            if spent > seconds and time.monotonic() > self._patience:
                return

    # -- what is done to it ------------------------------------------------------------------------------------------

    def _course(self, run: Attempt) -> Iterator[Until]:
        yield lambda: run.state.start is not None and (run.state.step > 0 or bool(run.evals))
        yield lambda: bool(run.evals) or not self._quiet
        start = run.state.start
        assert start is not None
        yield from self._parameters(run, start)
        yield lambda: len(run.evals) >= FEW
        if "checkpoint" in start.commands:
            yield from self._checkpoint(run)
        if "rollback" in start.commands:
            yield from self._rollback(run)
        if "stop" in start.commands:
            last = run.send({}, Command(id="check", name="stop", to=None))
            yield lambda: last in run.answers
            self._patience = time.monotonic() + GRACE
            yield lambda: time.monotonic() > self._patience  # or its end, of course

    def _parameters(self, run: Attempt, start: protocol.Start) -> Iterator[Until]:
        """Change each once, those first that need not wait; then let an evaluation tell what is still in effect."""
        for parameter in sorted(start.action_space, key=lambda p: p.boundary != "step"):
            if parameter.boundary != "step":
                yield lambda: bool(run.evals)
            now = parameter.model_copy(update={"value": run.state.recipe[parameter.name]})
            yield _answered(run, run.send({parameter.name: other(now)}))
        if start.action_space:
            yield _evaluated(run, 1)

    def _checkpoint(self, run: Attempt) -> Iterator[Until]:
        """Keep one by name, and go back to it when some more was learned."""
        self._kept = run.send({}, Command(id="checkpoint", name="checkpoint", to=KEPT))
        yield _answered(run, self._kept)
        yield _evaluated(run, 1)
        path = kept_path(run.items)
        if path is not None and run.state.start is not None and "rollback" in run.state.start.commands:
            yield from self._back(run, path)

    def _rollback(self, run: Attempt) -> Iterator[Until]:
        """Back to the beginning, with the recipe of the start: what is learned then is known from the first time."""
        assert run.state.start is not None
        begun = {p.name: p.value for p in run.state.start.action_space if p.objection(p.value) is None}
        if changed := {n: v for n, v in begun.items() if run.state.recipe.get(n) != v and not run.state.moving.get(n)}:
            yield _answered(run, run.send(changed))
        yield from self._back(run, "initial")
        answer = run.answers.get(len(run.sent))
        if isinstance(answer, protocol.Refused) and "load()" not in answer.reason:
            yield from self._back(run, "best")

    def _back(self, run: Attempt, to: str) -> Iterator[Until]:
        """Roll back, right before an evaluation if it is known when that comes: nothing is learned again until then."""
        for at_step in (before_evaluation(run), None):
            revision = run.send({}, Command(id=f"rollback {to}", name="rollback", to=to), at_step)
            yield _answered(run, revision)
            answer = run.answers[revision]
            if not (isinstance(answer, protocol.Refused) and answer.reason.startswith("too late")):
                break
        self._rollbacks.append(Rollback(revision, to))
        if isinstance(answer, protocol.Applied):
            yield _evaluated(run, 1)
            again = _evaluated(run, 1)
            yield lambda: again() or self._late or to != "initial"  # whether it still learns


def _answered(run: Attempt, revision: int) -> Until:
    return lambda: revision in run.answers


def _evaluated(run: Attempt, more: int) -> Until:
    wanted = len(run.evals) + more
    return lambda: len(run.evals) >= wanted


def before_evaluation(run: Attempt) -> int | None:
    """The last step before an evaluation that is not too near; None where evaluations come at uneven steps, or the
    steps before them are not reported."""
    *_, first, second, third = (None, None, None, *run.evals)
    if first is None or second is None or third is None:
        return None
    gap = third.step - second.step
    reported = {item.step for item in run.items if isinstance(item, protocol.Step)}
    if second.step - first.step != gap or gap < 2 or not {second.step - 1, third.step - 1} <= reported:
        return None
    pace = 2 * gap / max(third.t - first.t, 1e-3)  # steps a second
    ahead = run.state.step + 1 + AHEAD * pace - third.step
    step = third.step + gap * max(1, math.ceil((ahead + 1) / gap)) - 1
    total = run.state.total_steps
    return step if total is None or step < total else None


def other(parameter: Parameter) -> Value:
    """A value other than the one in effect, within the bounds and within one change."""
    if parameter.type == "bool":
        return not parameter.value
    if parameter.type == "choice":
        return next((c for c in parameter.choices or [] if c != parameter.value), parameter.value)
    reach = parameter.reach(parameter.value)
    assert reach is not None
    low, high = reach
    for candidate in ((low + high) / 2, low + (high - low) / 4, high, low):
        value: Value = round(candidate) if parameter.type == "int" else candidate
        if value != parameter.value and not parameter.objection(value):
            return value
    return parameter.value
