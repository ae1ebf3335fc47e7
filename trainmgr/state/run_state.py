"""The state of a run as a pure fold over its telemetry: no clock, no I/O, no randomness, and bounded memory.

Folding the records a and then b gives what folding a + b gives, so that a live run, a replay and an audit see the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from trainmgr.base.wire import MAX_NAME, Value, moved, short
from trainmgr.contract import protocol
from trainmgr.contract.action_space import ActionSpace
from trainmgr.state.course import Course
from trainmgr.state.evaluations import Evaluation, Norms, Window, thinned
from trainmgr.state.finiteness import Finiteness
from trainmgr.state.interventions import NOTHING, Drift, Intervention, Moves
from trainmgr.state.lineage import Lineage
from trainmgr.state.notices import Notices

ROWS = 48  # evaluations kept; past that the older ones are thinned by half
RECENT = 16  # of them, the latest kept whole
NAMES = 64  # distinct metric names followed; more, and longer ones, are counted and not kept
INTERVENTIONS = 16
OUTCOME_EVALS = 5  # evaluations after which a change counts as measured
MEASURED = 32  # objectives kept whole, for trials of changes
TEXTS = 8
TEXT = 200  # characters


@dataclass
class RunState:
    """Everything that telemetry says, in constant space.

    What it cannot say is whether a change was decided anew or is a part of a plan: that ``fold`` is told."""

    start: protocol.Start | None = None
    starts: int = 0
    end: protocol.End | None = None
    records: int = 0
    next_seq: int = 0
    gaps: int = 0
    """Records that are missing in the count of seq, or came twice."""
    unreadable: int = 0
    """Lines that are no records since the last one that is: they explain as many missing ones."""
    garbage: int = 0
    unknown: int = 0
    notices: Notices = field(default_factory=Notices)
    """What could not be used as it was reported."""
    first_time: float | None = None
    last_time: float | None = None
    step: int = 0
    overrun: bool = False
    """Whether a step or an evaluation was beyond the steps planned: the plan says nothing any more."""
    recipe: dict[str, Value] = field(default_factory=dict)
    begun: dict[str, Value] = field(default_factory=dict)
    """The recipe of the first start; a restart begins with other values."""
    drifts: list[Drift] = field(default_factory=list)
    drift_count: int = 0
    overwritten: dict[str, int] = field(default_factory=dict)
    """Parameters to how many changes of theirs the script itself overwrote."""
    moving: dict[str, protocol.Moving] = field(default_factory=dict)
    """Of the parameters that the script moves by itself, as of the last evaluation."""
    stopped_at: int | None = None
    """The step at which the workload first said that it stops; None before."""
    changed_at: dict[str, int] = field(default_factory=dict)
    """Parameter to the number of evaluations when it was last changed; parts of a plan do not count."""
    parts: dict[str, int] = field(default_factory=dict)
    """Parameter to the last revision that took it a part of a plan's way."""
    windows: dict[str, Window] = field(default_factory=dict)
    norms: Norms = field(default_factory=Norms)
    non_finite: int = 0
    """Non-finite values since the last evaluation, whatever they mean."""
    non_finite_total: int = 0
    finiteness: Finiteness = field(default_factory=Finiteness)
    """What they mean."""
    evals: int = 0
    """How many there were; several of one step are one where only one of them has the objective."""
    trained_since: bool = False
    """Whether a step was trained since the last of them."""
    trained: protocol.Step | None = None
    """The last step since then."""
    course: Course = field(default_factory=Course)
    """Of them all, for comparisons with other runs."""
    evaluations: list[Evaluation] = field(default_factory=list)
    measured: list[tuple[int, int, float]] = field(default_factory=list)
    """(number of the evaluation, step, objective) of the last evaluations that had the objective."""
    first_objective: float | None = None
    first_counterpart: float | None = None
    best: tuple[int, float] | None = None
    """(step, objective) of the best evaluation."""
    evals_since_best: int = 0
    """Of those with the objective; 0 as long as there is no best, since then nothing stands still."""
    without: int = 0
    """Evaluations since the best without the objective, ..."""
    unseen: int = 0
    """... and since the last one that had it."""
    rolled_back: bool = False
    """Whether the weights went back to others since the objective was measured last."""
    lineage: Lineage = field(default_factory=Lineage)
    """Of the weights of now, with the checkpoints."""
    split: dict[str, dict[str, float]] = field(default_factory=dict)
    interventions: list[Intervention] = field(default_factory=list)
    intervention_count: int = 0
    rollback_at: int | None = None
    """The number of evaluations at the last rollback."""
    acknowledged: int = 0
    """The highest revision that was applied or refused."""
    texts: list[tuple[str, str]] = field(default_factory=list)
    """(level, message) of the last log records."""

    # -- what follows from it ----------------------------------------------------------------------------------------

    @property
    def space(self) -> ActionSpace:
        """What the workload declared, at the values now in effect."""
        if self.start is None:
            return ActionSpace([], [])
        known = {p.name: {"value": self.recipe[p.name]} for p in self.start.action_space}
        for name in self.moving.keys() & known.keys():  # which the script may not have known at its start
            known[name]["scheduled"] = True
        parameters = [p.model_copy(update=known[p.name]) for p in self.start.action_space]
        return ActionSpace(parameters, list(self.start.commands))

    @property
    def lines(self) -> int:
        """Lines of telemetry, those that are no records among them."""
        return self.records + self.garbage + self.unknown

    @property
    def total_steps(self) -> int | None:
        return self.start.total_steps if self.start else None

    @property
    def steps_left(self) -> int | None:
        """Steps still to come; None where nobody knows: without a plan, or where it was overrun."""
        return None if self.total_steps is None or self.overrun else self.total_steps - self.step

    def worse(self, value: float) -> float:
        """The objective turned so that more is worse."""
        return -value if self.start is not None and self.start.objective.mode == "max" else value

    def objective_of(self, evaluation: Evaluation) -> float | None:
        return evaluation.metrics.get(self.start.objective.metric) if self.start else None

    @property
    def latest(self) -> float | None:
        """The objective of the last evaluation; None before the first, and where that was without it."""
        return self.objective_of(self.evaluations[-1]) if self.evaluations else None

    @property
    def evals_left(self) -> float | None:
        """Evaluations still to come, by the distance of the last two; not rounded. None where nobody knows."""
        if self.steps_left is None or len(self.evaluations) < 2 or self.spacing is None:
            return None
        return self.steps_left / self.spacing

    @property
    def spacing(self) -> int | None:
        """Steps from one evaluation to the next, by the last two, or from 0 to the only one; None for no distance."""
        before, last = [0, 0, *(evaluation.step for evaluation in self.evaluations[-2:])][-2:]
        return last - before if last > before else None

    @property
    def trained_on(self) -> int:
        """Steps that were trained after the workload had said that it stops."""
        return 0 if self.stopped_at is None else max(0, self.step - self.stopped_at)

    @property
    def kept_best(self) -> bool:
        """Whether the run was stopped on its best weights."""
        last = self.interventions[-1].command if self.interventions else None
        return last is not None and (last.name, last.to) == ("stop", "best")

    @property
    def nearly_over(self) -> bool:
        """Whether this was the last evaluation before the end."""
        left = self.evals_left
        return left is not None and left <= 1.5

    # -- the fold ----------------------------------------------------------------------------------------------------

    def fold(self, record: protocol.Telemetry | protocol.Unreadable, moves: Moves = NOTHING) -> None:
        """Take one record in. ``moves``: of a revision that was applied, what plans had to do with it."""
        if isinstance(record, protocol.Unreadable):
            if record.kind == "unknown":
                self.unknown += 1
                self.next_seq += 1  # a record all the same
            else:
                self.garbage += 1
                self.unreadable += 1
            self.notices.unreadable(record, self.lines)
            return
        self.records += 1
        self.notices.record(record, self.records + self.garbage + self.unknown)
        seq = record.seq
        if seq != self.next_seq:
            self.gaps += max(1, seq - self.next_seq)
            if not 0 < seq - self.next_seq <= self.unreadable:
                self.notices.gap(record, self.next_seq, self.lines)
        self.next_seq, self.unreadable = seq + 1, 0
        if self.end is not None and isinstance(record, protocol.Step | protocol.Eval):
            self.notices.went_on(record, self.lines)
            self.end = None
        if self.first_time is None:
            self.first_time = record.t
        self.last_time = record.t
        match record:
            case protocol.Step():
                self._step(record)
            case protocol.Eval():
                self._eval(record)
            case protocol.Applied():
                self._applied(record, moves)
            case protocol.Checkpoint():
                self._checkpoint(record)
            case protocol.Start():
                self._start(record)
            case protocol.Overwritten():
                self._overwritten(record)
            case protocol.Refused():
                self.acknowledged = max(self.acknowledged, record.revision)
            case protocol.Log():
                self.texts = [*self.texts, (record.level[:16], record.message[:TEXT])][-TEXTS:]
            case protocol.End():
                self.end = record
                self.step = max(self.step, record.step)
                self._close_last("end")

    def finish(self) -> None:
        """The run is over, whether the workload said so or not: what is being measured stays as it is."""
        self._close_last("end")

    def _start(self, record: protocol.Start) -> None:
        self.starts += 1
        self.end = None
        recipe: dict[str, Value] = {}
        for parameter in record.action_space:
            before = self.recipe.get(parameter.name)
            if before is not None and before != parameter.value and not parameter.scheduled:
                self._drift(Drift(record.resumed.step if record.resumed else 0, parameter.name, before,
                                  parameter.value, restart=True))  # fmt: skip
            recipe[parameter.name] = parameter.value
        self.recipe = recipe
        self.begun = {name: self.begun.get(name, value) for name, value in recipe.items()}
        self.changed_at = {name: at for name, at in self.changed_at.items() if name in recipe}
        self.step = record.resumed.step if record.resumed else 0
        self.stopped_at = None
        self.start = record
        self.overrun = False
        if self.starts > 1:
            self._forget(self.step)

    def _forget(self, step: int) -> None:
        """The workload is back at ``step``: what was measured and saved beyond it is of weights that are no more."""
        self._close_last("end")
        self.evaluations = [evaluation for evaluation in self.evaluations if evaluation.step <= step]
        self.lineage.forget(step)
        self.measured = [row for row in self.measured if row[1] <= step]
        values = [(e.step, v) for e in self.evaluations if (v := self.objective_of(e)) is not None and math.isfinite(v)]
        if self.best is not None and self.best[0] > step:
            self.best = min(values, key=lambda pair: self.worse(pair[1]), default=None)
        self.evals_since_best = sum(s > self.best[0] for s, _ in values) if self.best else 0
        self.without = sum(
            e.step > self.best[0] and self.objective_of(e) is None for e in self.evaluations if self.best
        )
        self.unseen, self.rolled_back = 0, False
        self.windows, self.non_finite, self.trained = {}, 0, None
        self.course.back_to(step)
        self.norms.restart()
        self.finiteness.restart()

    def _goes_to(self, step: int) -> None:
        self.step = step
        if not self.overrun:
            total = self.total_steps
            self.overrun = total is not None and step > total

    def _step(self, record: protocol.Step) -> None:
        step, metrics, windows = record.step, record.metrics, self.windows
        self._goes_to(step)
        self.trained = record
        if not self.trained_since:
            self.trained_since = not self.evaluations or step != self.evaluations[-1].step
        self.finiteness.step(metrics)
        for name, value in metrics.items():
            window = windows.get(name)
            if window is None:
                if len(windows) >= NAMES or len(name) > MAX_NAME:
                    self._skip([name])
                    continue
                window = windows[name] = Window()
                self.course.see(name)
            if not window.add(value):
                self.non_finite += 1
                self.non_finite_total += 1
            elif "grad_norm" in name:
                self.norms.add(value)

    def _eval(self, record: protocol.Eval) -> None:
        self._goes_to(max(self.step, record.step))
        metrics = self._followed(record.metrics)
        if len(metrics) < len(record.metrics):
            self._skip([name for name in record.metrics if name not in metrics])
        bad = sum(not math.isfinite(value) for value in metrics.values())
        self.non_finite, self.non_finite_total = self.non_finite + bad, self.non_finite_total + bad
        found = Evaluation(
            step=record.step,
            metrics=metrics,
            means={name: window.mean for name, window in self.windows.items() if window.count},
            spikes=self.norms.spikes,
            non_finite=self.non_finite,
            recipe=self.recipe | {name: now for name, now in record.params.items() if name in self.recipe},
        )
        value = self.objective_of(found)
        self.course.evaluated(self.trained, record, value)
        if self._belongs(found):
            self.evaluations[-1] = self.evaluations[-1].joined(found)
        else:
            self.evaluations = thinned([*self.evaluations, found], ROWS, RECENT)
            self.evals += 1
            self.without += value is None and self.best is not None
            self.unseen += value is None
        self.trained_since, self.trained = False, None
        self.windows, self.non_finite = {}, 0
        self.norms.restart()
        self.split = {part: self._followed(row) for part, row in list(record.split.items())[:16]}
        self._read_back(record)
        if self.start is not None:
            self.finiteness.evaluate(metrics, self.start.objective.metric, self.start.objective.counterpart)
        self.moving = {name: found for name, found in record.moving.items() if name in self.recipe}
        if value is None:
            self.notices.unmeasured(record, self.lines)
            return
        self.notices.measured()
        self.unseen, self.rolled_back = 0, False
        self.measured = [*self.measured, (self.evals, record.step, value)][-MEASURED:]
        self.lineage.measured(record.step, value)
        name = self.start.objective.counterpart if self.start else None
        counterpart = self.evaluations[-1].metrics.get(name) if name else None
        if self.first_objective is None and math.isfinite(value):
            self.first_objective, self.first_counterpart = value, counterpart
        elif counterpart is not None and not math.isfinite(self.first_counterpart or 0.0):
            self.first_counterpart = counterpart  # the first one said nothing
        if math.isfinite(value) and (self.best is None or self.worse(value) < self.worse(self.best[1])):
            self.best = (record.step, value)
            self.evals_since_best = self.without = 0
        elif self.best is not None:
            self.evals_since_best += 1
        if self.interventions and self.interventions[-1].closed is None:
            last = self.interventions[-1]
            last.after.append((record.step, value))
            if len(last.after) >= OUTCOME_EVALS:
                last.closed = "measured"

    def _belongs(self, found: Evaluation) -> bool:
        """Whether it is of the same weights as the evaluation before, and only one of the two has the objective."""
        last = self.evaluations[-1] if self.evaluations else None
        if last is None or last.step != found.step or self.trained_since or self.rollback_at == self.evals:
            return False
        return self.objective_of(last) is None or self.objective_of(found) is None

    def _skip(self, names: list[str]) -> None:
        for name in names:
            self.course.see(name)
        why = f"{len(names[0])} characters" if len(names[0]) > MAX_NAME else f"beyond the first {NAMES} names"
        self.notices.note("name", self.lines, f"{short(names[0], 40)} ({why})", len(names))

    def _followed(self, metrics: dict[str, float]) -> dict[str, float]:
        """The first NAMES metrics whose names are not too long, those of the objective before all others."""
        objective = self.start.objective if self.start else None
        first = [objective.metric, objective.counterpart] if objective else []
        names = [name for name in first if name in metrics] + [name for name in metrics if name not in first]
        return {name: metrics[name] for name in [name for name in names if len(name) <= MAX_NAME][:NAMES]}

    def _read_back(self, record: protocol.Eval) -> None:
        scheduled = {p.name for p in self.start.action_space if p.scheduled} if self.start else set()
        scheduled |= record.moving.keys()  # found out since
        for name, found in record.params.items():
            expected = self.recipe.get(name)
            if expected is None or expected == found:
                continue
            if name not in scheduled:
                self._undone(record.step, name, self._set_by(name), expected, found)
            self.recipe[name] = found

    def _overwritten(self, record: protocol.Overwritten) -> None:
        if record.name in self.recipe:
            item = next((i for i in self.interventions if i.revision == record.revision), None)
            if self.parts.get(record.name) == record.revision:
                item = self._set_by(record.name)
            self._undone(record.step, record.name, item, record.value, record.found)
            self.recipe[record.name] = record.found

    def _set_by(self, name: str) -> Intervention | None:
        """The last change of a parameter, where it is in force as far as is known."""
        item = next((item for item in reversed(self.interventions) if name in item.changes), None)
        return item if item is not None and name not in item.lost else None

    def _drift(self, drift: Drift) -> None:
        self.drift_count += 1
        self.drifts = [*self.drifts, drift][-INTERVENTIONS:]

    def _undone(self, step: int, name: str, item: Intervention | None, expected: Value, found: Value) -> None:
        """A parameter is found at a value that no override gave it; ``item`` had set it before."""
        self._drift(Drift(step, name, expected, found, restart=False, set_at=item.step if item else None))
        if item is not None and name not in item.lost:
            item.lost[name] = (step, found)
            self.overwritten[name] = self.overwritten.get(name, 0) + 1

    def _applied(self, record: protocol.Applied, moves: Moves) -> None:
        self.acknowledged = max(self.acknowledged, record.revision)
        changes = {name: change for name, change in record.changes.items() if name in self.recipe}
        self.recipe |= {name: new for name, (_, new) in changes.items()}
        begin = {name: (value := self.recipe[name], value) for name in moves.begin if name in self.recipe} | {
            name: pair for name, pair in changes.items() if name in moves.begin
        }
        changes = moved(changes)
        self._go_on({name: changes.pop(name) for name in moves.go_on & changes.keys()}, record.revision)
        changes |= begin  # moved or not: a plan counts from here on
        self.changed_at |= dict.fromkeys(changes, self.evals)
        if not changes and record.command is None:
            return
        self.lineage.changed(record.step, record.command)
        self._part(changes)
        self._close_last("next change")
        self.interventions = [
            *self.interventions,
            Intervention(record.revision, record.step, record.boundary, changes, record.command, self.latest),
        ][-INTERVENTIONS:]
        self.intervention_count += 1
        if record.command is not None and record.command.name == "rollback":
            self.rollback_at, self.rolled_back = self.evals, True
            self.finiteness.roll_back()
        if record.command is not None and record.command.name == "stop" and self.stopped_at is None:
            self.stopped_at = record.step

    def _go_on(self, parts: dict[str, tuple[Value, Value]], revision: int) -> None:
        """Parts of plans: each belongs to the change that its plan began with."""
        self._part(parts)
        for name, (_, new) in parts.items():
            self.parts[name] = revision
            item = next((item for item in reversed(self.interventions) if name in item.changes), None)
            if item is not None:
                item.changes = {**item.changes, name: (item.changes[name][0], new)}

    def _part(self, changes: Iterable[str]) -> None:
        """Forget what cannot be compared with what is to come: the metrics that depend on what was changed."""
        described = self.start.metrics if self.start else {}
        changed = set(changes)
        gone = {name for name, info in described.items() if changed.intersection(info.depends)}
        if not gone:
            return
        self.evaluations = [evaluation.without(gone) for evaluation in self.evaluations]
        self.windows = {name: window for name, window in self.windows.items() if name not in gone}

    def _close_last(self, why: str) -> None:
        if self.interventions and self.interventions[-1].closed is None:
            self.interventions[-1].closed = why

    def _checkpoint(self, record: protocol.Checkpoint) -> None:
        objective = record.metrics.get(self.start.objective.metric) if self.start else None
        self.lineage.saved(record.step, record.path, objective, best=record.best)


def figures(state: RunState) -> dict[str, Any]:
    """What a run's closing says of its course: everything in it that follows from telemetry alone."""
    reported = state.end.metrics.get(state.start.objective.metric) if state.start and state.end else None
    before = state.notices.lost or state.rolled_back  # evaluations that are lost, or other weights: that was no end
    measured = None if before else state.latest
    final = measured if reported is None else reported
    if reported is None and state.best and state.kept_best:
        since = state.evaluations and state.stopped_at is not None and state.evaluations[-1].step > state.stopped_at
        final = state.best[1] if not state.trained_on else final if since else None
    return {
        "steps": state.step,
        "interventions": state.intervention_count,
        "objective": state.start.objective.metric if state.start else None,
        "final": final,
        "best": state.best[1] if state.best else None,
        "best_step": state.best[0] if state.best else None,
        "metrics": state.end.metrics if state.end else {},
        "info": state.start.info if state.start else {},
    }
