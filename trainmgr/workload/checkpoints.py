"""The checkpoints that a run may go back to, kept for a script: the initial, the best, the last and named ones."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, SupportsFloat

from trainmgr.workload.surroundings import CHECK_VARIABLE, no_room
from trainmgr.workload.values import entries, label, now, real, taken
from trainmgr.workload.workload import Workload

BESTS = 32  # that are noted
LEAST = 0.2  # of the tensors must come back: weights without the moments of an optimizer are a quarter
BEYOND = "best-beyond"  # a best one of a later step than a run was resumed from
BEFORE = "{}-before"  # what the training before this one in the same run had left


class Checkpoints:
    """Offers "rollback", "checkpoint" and "stop", and reports evaluations together with what they leave on disk.

        w = Workload(...)
        with w, Checkpoints(w, save, load) as keep:  # keep.begin(), and keep.end() where nothing was raised
            for step in w.steps():
                ...
                keep.step(step, {"loss": loss})  # instead of w.step
                if step % 100 == 0:
                    keep.eval(step, {"val_loss": evaluate()})  # instead of w.eval

    ``save(path)`` writes one file, or makes one folder, with all that a resume needs and all that is evaluated
    (averaged weights too); a crash in the middle leaves the old one whole. The path ends in ``suffix``, which is ""
    for a folder.
    Where ``save`` raises, whatever that is, standard error and a ``log`` record say so (once, until one succeeds), no
    checkpoint is reported, the one before it stays, and training goes on.
    ``load(path)`` is for a rollback: it puts back weights and optimizer, and nothing that counts or plans. The step
    counter, the learning-rate scheduler and the place in the data go on, or the run would count its steps twice and
    its schedule would begin again; only a resume restores them. The recipe in force stays, whatever the optimizer's
    state says. It fills the objects that training uses, rather than make new ones, and raises for a file that does not
    fit: the state from before is loaded again then. `trainmgr check` tries all of that.
    ``every``: evaluations from one "last" to the next.

    Where the run was resumed, the initial and the best one are taken along, from another folder too. Where the run had
    a training before, which came to its end, what that left is kept beside, as best-before and so on, and nobody can go
    back to it. Under `torchrun` all ranks call this, and rank 0 writes.
    """

    def __init__(
        self,
        workload: Workload,
        save: Callable[[Path], object],
        load: Callable[[Path], object],
        *,
        every: int = 1,
        suffix: str = ".pt",
    ) -> None:
        self._w, self._save, self._load, self._every = workload, save, load, max(1, every)
        folder = workload.checkpoints
        self.initial, self.best, self.last = (folder / f"{name}{suffix}" for name in ("initial", "best", "last"))
        self.best_value = math.nan
        """Of the objective; NaN before the first that is finite."""
        self.best_step = 0
        self._leftover: list[Path] = []  # of rollbacks: a process was killed in one, or they could not be removed
        if workload.primary:
            with contextlib.suppress(OSError):
                self._leftover = list(folder.glob("rollback-*"))
            for path in (self.initial, self.best, self.last):
                _recover(path)
        self._note = folder / "best-value.json"  # the last bests, for a resume
        self._bests: list[tuple[int, float]] = []  # (step, value), each better than those before it; all were saved
        self._unnoted = False
        self._evals = 0
        self._settled = self._failed = False
        self._troubles: dict[Path, str] = {}  # why one is not as new as it should be, or not there
        self._unusable: set[Path] = set()  # nobody may go back to them, and they could not be put aside
        self._unreported: list[tuple[Path, bool]] = []  # of a command, inside of a report, where no other can be made
        self._reached = workload.resumed_step  # the last step that was reported here
        if workload.resumed_from is not None:
            self._take_along(workload.resumed_from.parent)
        workload.command("rollback", self.rollback)
        workload.command("checkpoint", self._checkpoint)
        workload.command("stop", self._stop)

    def begin(self) -> None:
        """Save and report the initial checkpoint, unless the run was resumed."""
        if self._w.resumed_from is None:
            self._told(0, self.initial, self._kept(self.initial, 0))

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.end(self._reached)

    def step(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Report that a training step is done, and what a command has saved in it."""
        self._w.step(step, metrics)
        self.report(step)

    def better(self, value: float) -> bool:
        """Whether it is a new best, by the supervisor's rule: NaN and the infinities never are."""
        return self._beats(value, self.best_value)

    def _beats(self, value: float, best: float) -> bool:
        if not math.isfinite(value) or math.isnan(best):
            return math.isfinite(value)
        return value < best if self._w.mode == "min" else value > best

    def eval(
        self,
        step: int,
        metrics: Mapping[str, SupportsFloat],
        split: Mapping[str, Mapping[str, SupportsFloat]] | None = None,
    ) -> None:
        """Report an evaluation. A new best is on disk before anybody hears of it and may ask for it.

        One without the objective is reported all the same, and is no best. After a best that could not be saved, what
        is better than the one on disk is saved in its place.
        """
        step, metrics, split = now(step), taken(metrics), taken(split, taken)  # save() may change what they are in
        objective = self._w.objective
        worth = {text: found for name, found in (entries(metrics) or {}).items() if (text := label(name)) == objective}
        value = real(worth.get(objective))
        if better := self.better(value):
            self.best_value, self.best_step = value, step
        due = self._evals % self._every == 0
        self._evals += 1
        if due and self._beats(value, self._bests[-1][1] if self._bests else math.nan):
            better = True  # than what is on disk; ranks without a disk do not know that, but all report a "last" one
        best = better and self._kept(self.best, step)
        if best:
            self._bests = [*self._bests, (step, value)][-BESTS:]
        if best or self._unnoted:
            self._take_down(step)
        last = due and self._kept(self.last, step)
        self._w.eval(step, metrics, split)
        if better:
            self._told(step, self.best, best, worth, best=True)
        if due:
            self._told(step, self.last, last, worth)
        self.report(step)

    def report(self, step: int) -> None:
        """Report what a command has saved since; call it after each ``w.step`` where parameters change at steps."""
        self._reached = step
        while self._unreported:
            self._told(step, *self._unreported.pop())

    def end(self, step: int) -> None:
        """Save and report the last one."""
        self._told(step, self.last, self._kept(self.last, step))

    def rollback(self, to: str) -> None:
        """Go back to "best", "initial" or a file of this run's, named relative to the run directory.

        Raises ValueError for anything else, and where there is no such checkpoint.
        """
        named = {"best": self.best, "initial": self.initial}
        self._settle()
        path = named.get(to) or (self._w.directory or self.best.parent.parent) / to
        if path.resolve().parent != self.best.parent.resolve():
            raise ValueError(f"{to!r} is none of this run's: best, initial, checkpoints/{self.last.name}")
        trouble = self._troubles.get(path, "")
        if path in self._unusable:
            raise ValueError(f"{to!r} is of weights that are no more, and could not be put aside")
        if not path.exists():
            raise ValueError(f"there is no checkpoint {to!r} yet{trouble and ': '}{trouble}")
        import tempfile  # seldom needed, and slow to import

        beside = path.parent / "rollback-"
        with contextlib.suppress(OSError):
            beside = Path(tempfile.mkdtemp(prefix=beside.name, dir=path.parent))
        try:
            present = beside / self.last.name
            self._keep(present)  # without it, on a full disk say, to go back is worth more than to be sure
            try:
                if os.environ.get(CHECK_VARIABLE) and self._w.primary:
                    self._rehearse(path, present)
                else:
                    self._load(path)
            except Exception as error:  # load() may have done half of it
                self._return(present, error)
                raise
        finally:
            self._leftover.append(beside)
            self._clear()
        if trouble:
            self._w.log("warning", f"the rollback went to the {path.name} from before: {trouble}")
        self._unreported.append((self.last, self._kept(self.last)))  # a crash must not undo this

    def _clear(self) -> None:
        """Remove what was left over; what cannot be removed now is tried again with the next checkpoint."""
        for path in list(self._leftover):
            with contextlib.suppress(OSError):
                _remove(path)
                self._leftover.remove(path)

    def _keep(self, path: Path) -> None:
        """Save what training has at this moment, for a load that fails; each rank its own, as far as it can."""
        try:
            self._save(path)
        except Exception:
            with contextlib.suppress(OSError):
                _remove(path)

    def _return(self, path: Path, error: Exception) -> None:
        """Load the state from before a rollback that failed. Raises ValueError where that cannot be done either."""
        try:
            self._load(path)
        except Exception as again:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"the rollback failed ({why}), and the state before it could not be loaded either "
                f"({type(again).__name__}: {again}): what is trained is half loaded"
            ) from error

    def _rehearse(self, path: Path, present: Path) -> None:
        """Load, and see by what is saved before and after whether that did anything."""
        from trainmgr.workload.rehearsal import back, contents  # seldom needed, and slow to import

        trial = present.with_stem("rehearsal")
        self._save(trial)
        before, again = contents(present), contents(trial)
        self._load(path)
        _remove(trial)
        self._save(trial)
        came, total = back(contents(path), before, contents(trial), again)
        if came == 0 < total:
            raise ValueError(f"load() put nothing back of {path.name}: what is saved after it is what was saved before")
        if came < LEAST * total:
            raise ValueError(f"load() put back only {came} of {total} in {path.name} that had changed since")
        if total:
            what = f"load() put back {came} of {total} in {path.name} that had changed since"
            self._w.log("info" if came == total else "warning", what)

    def _checkpoint(self, name: str) -> None:
        path = self.last.with_stem(name) if name else self.last
        if path in (self.initial, self.best) or path.parent != self.last.parent:
            raise ValueError(f"a checkpoint cannot be kept as {name!r}")
        saved = False
        try:
            if name and self._w.primary:
                _remove(path)  # an older one of that name is not what is asked for
            self._write(path)
            saved = True
        except Exception as error:
            self._troubles[path] = f"{path.name} could not be saved: {type(error).__name__}: {error}"
            raise
        finally:  # on all ranks, whether or not the one that writes succeeds
            self._unreported.append((path, saved))

    def _stop(self, to: str) -> None:
        if to not in ("", "best"):
            raise ValueError(f"a stop ends on the weights as they are ('') or on the 'best', not on {to!r}")
        if to:
            self.rollback(to)

    def _write(self, path: Path, write: Callable[[Path], object] | None = None) -> None:
        """Write a file so that there is always a whole one."""
        self._settle()
        self._clear()
        if not self._w.primary:
            return
        new = path.with_stem(f"{path.stem}.new")  # some functions look at the suffix, and some add their own
        try:
            new.parent.mkdir(exist_ok=True)  # somebody may have removed it
            _remove(new)  # of a save that was cut off
            self._make(new, write or self._save)
            _replace(new, path)
        except BaseException as error:
            full = isinstance(error, Exception) and not isinstance(error, OSError) and no_room(path.parent)
            with contextlib.suppress(OSError):  # half a file is of no use, and the disk may be full
                _remove(new)
            _recover(path)
            if full:  # torch does not say so
                why = f"{os.strerror(errno.ENOSPC)} ({type(error).__name__}: {error})"
                raise OSError(errno.ENOSPC, why, str(path)) from error
            raise
        self._troubles.pop(path, None)
        self._unusable.discard(path)

    def _make(self, new: Path, write: Callable[[Path], object]) -> None:
        write(new)
        if not new.exists():
            found = [other.name for other in new.parent.glob(f"{new.name}*")]
            raise FileNotFoundError(
                f"save() left {', '.join(found) or 'nothing'} where {new} was asked for: "
                "let it write to the path that it gets, or give Checkpoints(..., suffix=...) the ending that it adds"
            )
        for part in (*new.rglob("*"), new):
            if part.is_file():
                with part.open("rb") as file:
                    os.fsync(file.fileno())

    def _kept(self, path: Path, step: int | None = None, write: Callable[[Path], object] | None = None) -> bool:
        """Write a file. Where that fails, say so, once for all until one succeeds, and train on."""
        try:
            self._write(path, write)
        except Exception as error:
            at = "" if step is None else f" at step {step}"
            self._troubles[path] = f"{path.name} could not be saved{at}: {type(error).__name__}: {error}"
            if not self._failed:
                self._failed = True
                left = "the one before it is kept" if os.access(path, os.F_OK) else "there is none"
                self._w.warn(f"{self._troubles[path]}; {left}")
            return False
        self._failed = False
        return True

    def _told(
        self, step: int, path: Path, saved: bool, metrics: Mapping[str, Any] | None = None, *, best: bool = False
    ) -> None:
        """Report a checkpoint that was saved. The other ranks pass that boundary where it was not, too."""
        if saved:
            self._w.checkpoint(step, path, metrics, best)
        else:
            self._w.boundary(step, "checkpoint")

    def _settle(self) -> None:
        """Put aside, once, what a training that ended before this one has left: nobody may go back to that."""
        if self._settled:
            return
        self._settled = True
        if self._w.resumed_from is not None:
            return
        self._w.announce()
        if self._w.another and self._w.primary:
            with contextlib.suppress(OSError):
                self._note.unlink(missing_ok=True)
            for path in (self.initial, self.best, self.last):
                self._put_aside(path, BEFORE.format(path.stem))

    def _put_aside(self, path: Path, stem: str) -> None:
        """Keep one under another name. Where that cannot be done, nobody may go back to it until it is written anew."""
        try:
            if path.exists():
                _replace(path, path.with_stem(stem))
        except OSError as error:
            _recover(path)
            self._unusable.add(path)
            self._w.warn(f"{path.name} could not be put aside, and nobody goes back to it: {error}")

    def _take_down(self, step: int) -> None:
        """Write the bests down, for a resume; again at the next evaluation where that fails."""
        self._unnoted = not self._kept(
            self._note, step, lambda path: path.write_text(json.dumps({"bests": self._bests}))
        )

    def _take_along(self, folder: Path) -> None:
        """What was measured beyond the resumed step is forgotten, as the supervisor does it: it is of weights that are
        no more. The best one is put aside if it is of such weights; there is none then until there is a better one."""
        import shutil  # seldom needed, and slow to import

        for path in (self.initial, self.best, self._note):
            there = folder / path.name
            if self._w.primary and os.access(there, os.F_OK) and not os.access(path, os.F_OK):
                copy = shutil.copytree if there.is_dir() else shutil.copy
                self._kept(path, write=partial(copy, there))
        try:
            noted = json.loads(self._note.read_text())["bests"]
            bests = [(int(step), float(value)) for step, value in noted]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        kept = [(step, value) for step, value in bests if step <= self._w.resumed_step and math.isfinite(value)]
        if kept:
            self.best_step, self.best_value = kept[-1]
        if kept != bests and self._w.primary:
            self._put_aside(self.best, BEYOND)
        self._bests = kept[-BESTS:]
        self._take_down(self._w.resumed_step)


def _remove(path: Path) -> None:
    """A file, or a folder with all that is in it; what is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        import shutil  # seldom needed, and slow to import

        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace(new: Path, path: Path) -> None:
    """Put a file or a folder in the place of another. A folder cannot be replaced in one move: the old one stands
    beside for a moment, and `_recover` brings it back if that was the last one."""
    if not (new.is_dir() or path.is_dir()):
        new.replace(path)
        return
    old = _aside(path)
    if path.exists():
        _remove(old)
        path.replace(old)
    new.replace(path)
    with contextlib.suppress(OSError):  # the next one tries again
        _remove(old)


def _aside(path: Path) -> Path:
    return path.with_stem(f"{path.stem}.old")


def _recover(path: Path) -> None:
    """Bring back a folder that was put aside for one that never came; an error leaves it there."""
    with contextlib.suppress(OSError):
        if not path.exists() and _aside(path).exists():
            _aside(path).replace(path)
