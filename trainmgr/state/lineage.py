"""Where the weights of now come from, across rollbacks: pure, and in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from trainmgr.contract.protocol import Command

COURSE = 12  # evaluations that a forecast rests on
TRIAL = "trial"  # the name under which the weights from before a change on trial are kept, ...
LATER = "retrial"  # ... and those from before the last one, while the first is on trial still


def is_trial(path: str) -> bool:
    """Whether a checkpoint's path says that it was kept before a change on trial."""
    return PurePosixPath(path).stem in (TRIAL, LATER)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was reported."""

    step: int
    path: str
    objective: float | None
    trained: int
    """Steps that its weights were trained for."""


@dataclass
class Lineage:
    """The checkpoints of a run, and which evaluations and how many steps led to the weights of now."""

    initial: Saved | None = None
    best: Saved | None = None
    last: Saved | None = None
    trial: Saved | None = None
    """Of before the oldest change on trial, where the workload keeps that, ..."""
    later: Saved | None = None
    """... and of before the last one."""
    course: list[tuple[int, float]] = field(default_factory=list)
    """(step, objective) of the last evaluations that led to the weights of now, without what a rollback undid."""
    course_before: list[tuple[int, float]] = field(default_factory=list)
    """The same right before the last change."""
    courses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """The same of the checkpoints "best", "initial", TRIAL and LATER."""
    undone: int = 0
    """Steps of training that the last rollback undid; 0 where nobody knows."""
    set_back: int = 0
    """By so many steps the weights of now were trained less than the run has counted."""
    set_back_before: int = 0
    """The same right before the last change."""
    changed_at: int = -1
    """The step of the last change."""
    since_eval: bool = False
    """Whether that came after the last evaluation."""

    def trained(self, step: int) -> int:
        """Steps that the weights of now were trained for, at ``step`` of the run."""
        return step - self.set_back

    def measured(self, step: int, objective: float) -> None:
        self.since_eval = False
        self.course = [*self.course, (step, objective)][-COURSE:]

    def changed(self, step: int, command: Command | None) -> None:
        """Something was changed at ``step``; with a rollback, the weights too."""
        self.course_before, self.set_back_before, self.changed_at = self.course, self.set_back, step
        self.since_eval = True
        if command is None or command.name != "rollback":
            return
        to, known = command.to or "best", {"best": self.best, "initial": self.initial}
        for name, kept in ((TRIAL, self.trial), (LATER, self.later)):
            if kept is not None and to == kept.path:
                to, known = name, {name: kept}
        self.course, self.undone, saved = self.courses.get(to, self.course), 0, known.get(to)
        if saved is not None:
            self.undone = max(0, self.trained(step) - saved.trained)
            self.set_back = step - saved.trained

    def saved(self, step: int, path: str, objective: float | None, *, best: bool) -> None:
        saved = Saved(step, path, objective, self.trained(step))
        if is_trial(path):
            after = self.changed_at == step  # it is saved before the change; reported may be the change before it
            saved = replace(saved, trained=step - self.set_back_before) if after else saved
            name = PurePosixPath(path).stem
            self.trial, self.later = (saved, self.later) if name == TRIAL else (self.trial, saved)
            self.courses[name] = self.course_before if after else self.course
            return
        if self.initial is None:
            self.initial, self.courses["initial"] = saved, self.course
        if best:  # it is on disk before its evaluation is reported, at whose boundary a rollback may follow
            after = self.since_eval and self.changed_at == step
            self.best = replace(saved, trained=step - self.set_back_before) if after else saved
            self.courses["best"] = self.course_before if after else self.course
        self.last = saved

    def forget(self, step: int) -> None:
        """The workload is back at ``step``: what was measured and saved beyond it is of weights that are no more."""
        self.course = [pair for pair in self.course if pair[0] <= step]
        for saved in (self.last, self.trial, self.later):  # one of these it goes on from
            if saved is not None and saved.step == step:
                self.set_back = step - saved.trained
        if self.best is not None and self.best.step > step:
            self.best = None
            self.courses.pop("best", None)
        if self.last is not None and self.last.step > step:
            self.last = None
        if self.trial is not None and self.trial.step > step:
            self.trial = None
        if self.later is not None and self.later.step > step:
            self.later = None
