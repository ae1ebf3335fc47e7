"""What a training script imports: report metrics, receive bounded changes.

Standard library only, and nothing else of trainmgr: a script that uses it trains the same with and without a
supervisor. Without one (no ``TRAINMGR_RUN_DIR`` in the environment) nothing is read, and nothing is written unless a
``directory`` is named.

    with Workload("minimal", objective="loss", mode="min", total_steps=1000) as w:
        w.float("lr", get=lambda: lr, set=set_lr, low=1e-4, high=1.0, scale="log", max_ratio=2.0)
        for step in w.steps():
            loss = train_one_step()
            w.step(step, {"loss": loss})

Parameters and commands may be declared until the first report. Overrides are applied, and setters called, only inside
``step``, ``eval`` and ``checkpoint``: between two training steps, in the thread that trains. A bad control file never
raises there; it is answered with a ``refused`` or a ``log`` record, and training goes on as it was.

Numbers of numpy and torch are numbers. What cannot be one raises where it is declared; in a report it is left out (a
step that is no whole number is rounded down) and a ``log`` record says so once: a report never stops training.

The cost is kept out of the loop: ``step`` appends to a list. Every 50 ms the list is written (a SIGKILL loses at most
that) and the control file looked at with one ``stat``.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trainmgr.workload.checkpoints import CHECK_VARIABLE, Checkpoints
from trainmgr.workload.lines import MAX_TEXT, dump
from trainmgr.workload.optimizers import Managed
from trainmgr.workload.overrides import BOUNDARIES, Inbox
from trainmgr.workload.parameters import Declarations, Switch, Whole
from trainmgr.workload.persistence import Change, Lost, Persistence
from trainmgr.workload.ranks import Group
from trainmgr.workload.records import PROTOCOL_VERSION, SEVERAL, Metric, Writer, goal
from trainmgr.workload.surroundings import ODD, PAUSES, odd, patiently, setting
from trainmgr.workload.values import label, named, same, text, whole

__all__ = ["RUN_DIR_VARIABLE", "Checkpoints", "Metric", "Workload", "default_seed", "resume_path"]

RUN_DIR_VARIABLE = "TRAINMGR_RUN_DIR"
SEED_VARIABLE = "TRAINMGR_SEED"
RESUME_VARIABLE = "TRAINMGR_RESUME"

PERIOD = 0.05  # seconds between two flushes and two looks at the control file
_NEVER = sys.maxsize

Scalar = float | int | bool | str


def default_seed(fallback: int = 0) -> int:
    """The seed that the supervisor asked for (``TRAINMGR_SEED``, a whole number of 64 bits), or ``fallback``."""
    return setting(SEED_VARIABLE, fallback, -(1 << 63), (1 << 64) - 1)


def resume_path() -> str | None:
    """The checkpoint to resume from (``TRAINMGR_RESUME``), set when the supervisor restarts a crashed workload. None
    where it is not there any more, which is said: training begins anew then."""
    path = os.environ.get(RESUME_VARIABLE) or None
    try:
        if path is not None:
            os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return odd(RESUME_VARIABLE, f"names {path}, which is not there: training begins anew", None)
    except OSError:  # whoever reads it will see
        pass
    return path


class Workload(Declarations):
    """The training script's side of the protocol.

    ``objective`` is the name of the evaluation metric that decides what is better, ``mode`` is "min" or "max".
    ``counterpart`` is the evaluation metric that measures the same on training data, where there is one.
    ``scale`` is the difference that counts as 100%: by default the absolute best, no good where that is near 0.
    ``metrics`` describes each metric in words with its unit, or as a `Metric`. ``info`` holds scalars for people.
    ``directory`` is where telemetry.jsonl and checkpoints/ go when nobody supervises (None: no telemetry).

    Ranks are those of ``torch.distributed`` where it is initialized at the start, else of ``RANK`` and ``WORLD_SIZE``.
    Only rank 0 touches files. Every ``sync_every`` steps and at every evaluation and checkpoint, which all ranks must
    call, it hands what it read to the others through ``broadcast`` (an object in, rank 0's object out; by default
    ``torch.distributed``), for the same step. A change that would not reach all processes that train is refused.
    """

    def __init__(
        self,
        name: str,
        *,
        objective: str,
        mode: str = "min",
        counterpart: str | None = None,
        scale: float | None = None,
        total_steps: Whole | None = None,
        seed: Whole | None = None,
        metrics: Mapping[str, str | Metric] | None = None,
        info: Mapping[str, Scalar] | None = None,
        directory: str | os.PathLike[str] | None = None,
        resumed_from: str | os.PathLike[str] | None = None,
        resumed_step: Whole = 0,
        broadcast: Callable[[Any], Any] | None = None,
        sync_every: Whole = 10,
    ) -> None:
        super().__init__()
        self.name = text(name, "the name of the workload")
        self.total_steps = None if total_steps is None else whole(total_steps, "total_steps", least=0)
        self.stopping = False  # True once a stop was accepted
        self.seed = default_seed() if seed is None else whole(seed, "seed", None)
        self.objective, self.mode = label(objective), mode
        self.resumed_from = Path(resumed_from) if resumed_from else None
        self.resumed_step = whole(resumed_step, "resumed_step", least=0)
        self._objective = goal(objective, mode, counterpart, scale)
        described = {} if metrics is None else metrics
        self._metrics = {named(name, "a metric's name"): Metric.of(metric) for name, metric in described.items()}
        if self.objective in self._metrics and self._metrics[self.objective].depends:
            raise ValueError(f"the objective {objective} must be comparable whatever is changed; it depends on nothing")
        self._info = json.loads(dump(dict({} if info is None else info)))  # as it is now, whoever writes into it
        self._resumed = {"path": str(resumed_from), "step": self.resumed_step} if resumed_from else None
        self._group = Group(broadcast)
        self.primary = self._group.rank == 0  # whether this process touches the files
        self._sync_every = max(1, whole(sync_every, "sync_every"))

        run_dir = os.environ.get(RUN_DIR_VARIABLE)
        self.supervised = bool(run_dir)
        place = run_dir or directory
        self.directory = Path(place) if place else None
        self._checkpoints: Path | None = None

        needed = {"objective": self.objective, "counterpart": self._objective["counterpart"]}
        self._writer = Writer(self.name, {role: name for role, name in needed.items() if name is not None})
        self._inbox = Inbox()
        self._started = self._applying = self._ended = False
        self._step = self.resumed_step
        self._flushed = 0.0
        self._period = 0.0 if os.environ.get(CHECK_VARIABLE) else PERIOD
        self._handled = -1  # the last revision that was acknowledged
        self._desired: dict[str, Any] = {}  # the overrides in force
        self._inherited: set[str] = set()  # of them, those that a training before this one was asked for
        self._persistence = Persistence()
        self._pending: list[dict[str, Any]] = []
        self._coarsest = 0  # of the boundaries passed so far
        self._due = _NEVER  # no pending entry can apply before this step
        self._stepped: Whole | None = None  # the last step at the "step" boundary
        self._passed: tuple[Whole, set[str]] = (-1, set())  # a step, and the other boundaries passed at it

    # -- life of a run -----------------------------------------------------------------------------------------------

    @property
    def another(self) -> bool:
        """Whether the training before this one in the run came to its end: nothing of it counts here. Known to the
        process that writes, once it is started; False for a training that goes on from a checkpoint."""
        return bool(self._writer.ended) and self.resumed_from is None

    @property
    def checkpoints(self) -> Path:
        """The folder for checkpoints; it exists, unless the supervisor's run directory cannot be written. A temporary
        one where neither a run nor a directory was named."""
        if self._checkpoints is None:
            if self.directory is None:
                import tempfile

                self._checkpoints = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
            else:
                self._checkpoints = self.directory / "checkpoints"
                try:
                    self._checkpoints.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    if not self.supervised:
                        raise
                    self._warn(f"there is no folder for checkpoints: {error}")
        return self._checkpoints

    def __enter__(self) -> Workload:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._ended:
            return
        leaves = kind is not None and issubclass(kind, SystemExit) and not getattr(error, "code", None)
        if kind is None or leaves:
            self.end(self._step)
        elif issubclass(kind, KeyboardInterrupt):
            self.end(self._step, status="interrupted")
        else:
            self.log("error", f"{kind.__name__}: {error}")
            self.end(self._step, status="failed")

    def start(self) -> None:
        """Open the files. The ``start`` record itself is written with the first report, after all declarations."""
        if self._started:
            return
        self._started, self.primary = True, self._group.settle()
        if self.directory is None or not self.primary:
            return
        try:
            patiently(partial(self.directory.mkdir, parents=True, exist_ok=True))
            alone = self._writer.open(self.directory / "telemetry.jsonl")
        except OSError as error:
            if not self.supervised:
                raise
            what = f"telemetry cannot be opened in {RUN_DIR_VARIABLE} ({error})"
            self._writer.complain(f"{what}: nothing is reported, and no changes come; training goes on")
            return
        if not alone:
            self.primary = self._group.leave()
            return
        self._handled = self._writer.handled
        if self.supervised:
            self._inbox.open(self.directory / "control.json")
        atexit.register(self.flush)

    def _announce(self) -> None:
        """Write the ``start`` record, once: before the first step of ``steps``, else with the first report."""
        if self._announced:
            return
        self.start()
        self._announced = True
        if not self._writer.leads():
            self.primary = self._group.leave()
        for name, metric in self._metrics.items():
            if strange := set(metric.depends) - set(self._parameters):
                raise ValueError(f"{name} depends on {min(strange)!r}, which is no parameter of this workload")
        self._converge()
        for name, message in ODD.items():
            self._writer.say(name, message)
        for parameter in self._parameters.values():
            if parameter.managed is not None and parameter.managed.moves:
                parameter.spec["scheduled"] = True
            if parameter.managed is not None and self._writer.fd is not None:
                parameter.managed.watch()
        self._writer.report(
            "start",
            protocol=PROTOCOL_VERSION,
            workload=self.name,
            pid=os.getpid(),
            seed=self.seed,
            total_steps=self.total_steps,
            objective=self._objective,
            action_space=[{**p.spec, "value": p.get()} for p in self._parameters.values()],
            metrics={name: metric.spec() for name, metric in self._metrics.items()},
            commands=sorted(self._commands),
            info=self._info,
            resumed=self._resumed,
        )
        for parameter in self._parameters.values():
            objection = parameter.objection(parameter.get())
            if objection and not parameter.spec.get("scheduled"):
                self.log("warning", f"at the start {objection}: widen the range, or start inside it")
        if self.another:
            self._leave_behind()

    def _leave_behind(self) -> None:
        """Refuse what still waits, for it was asked of the training before this one."""
        control, ended = self._read(PAUSES), self._writer.ended
        for entry in (control["schedule"] or [control]) if control else []:
            if entry["revision"] > self._handled:
                self._refuse(entry["revision"], self._step, f"it was for the training before this one, {ended}")
        if not self._writer.several:
            self.log(
                "warning",
                f"{SEVERAL}: one is {ended}, and another begins with values of its own, which no change made before "
                "reaches. Start a run for each, or pass resumed_from where it goes on from a checkpoint",
            )

    def _converge(self) -> None:
        """After a restart: put the overrides that were already acknowledged back into effect, without a new answer.

        After another training of this run: those that it was asked for come again with whatever is asked next, and are
        not asked of this one.
        """
        control = self._read(PAUSES) if self._writer.resuming else None
        self._inbox.again()  # what is newer is fetched again, as a pending override
        answered = control is not None and control["revision"] <= self._handled
        params, shares = control["params"] if control and answered else {}, self._writer.shares
        inherited: dict[str, Any] = {}
        if self.another and control:
            params, inherited = {}, {**control["params"], **({} if answered else self._writer.effects)}
        if self._group.world > 1 and (share := self._group.share()[0]):
            params, shares, inherited = share((params, shares, inherited))
        self._desired, self._inherited = dict(inherited), set(inherited)
        for name, value in params.items():
            parameter = self._parameters.get(name)
            if parameter is None or parameter.objection(value) is not None:
                continue
            try:
                before = shares.get(name)
                if parameter.managed is not None and before is not None:
                    parameter.managed.resume(before)  # its schedule has moved on since
                else:
                    parameter.set(value)
                self._desired[name] = value
            except Exception as error:  # training comes first here too; the next override sets it again
                self.log("error", f"{name} could not be set to {value} again: {type(error).__name__}: {error}")

    def steps(self, first: Whole | None = None) -> Iterator[Whole]:
        """Count the steps ``first`` (default: the one after the resumed step) to ``total_steps``, until a stop.

        After the last one the groups of optimizers hold what was in effect in them.
        """
        if self.total_steps is None:
            raise ValueError("steps() needs total_steps")
        self._announce()
        for step in range(self._step + 1 if first is None else whole(first, "first"), self.total_steps + 1):
            if self.stopping:
                break
            yield step
        for managed in self._managed():
            managed.leave()

    def _managed(self) -> list[Managed]:
        return [parameter.managed for parameter in self._parameters.values() if parameter.managed is not None]

    def end(self, step: Whole, metrics: Mapping[str, Any] | None = None, status: str | None = None) -> None:
        """Report the end. ``status`` is "completed" or "stopped" when not given."""
        if self._ended:
            return
        self._ended = True
        status = status or ("stopped" if self.stopping else "completed")
        step = self._writer.count(step)
        numbers = self._writer.numbers(step, metrics or {})
        self._look(step)
        for managed in self._managed():
            managed.release()
        self._report("end", status=status, step=step, metrics=numbers)
        self._writer.close()
        atexit.unregister(self.flush)

    # -- reports -----------------------------------------------------------------------------------------------------

    def step(self, step: Whole, metrics: Mapping[str, Any]) -> None:
        """Report that training step ``step`` is done, with any of the training metrics (numbers; NaN is welcome)."""
        if type(step) is not int:
            step = self._writer.count(step)
        self._step = step
        if not self._announced:
            self._announce()
        if self._writer.fd is not None:
            finite = self._writer.step(step, metrics)
            now = time.monotonic()
            if now - self._flushed >= self._period:
                self._flushed = now
                self.flush()
                if self._group.world == 1 and not self._applying:
                    self._poll()
            elif not finite:
                self.flush()
        else:
            self._writer.late()
        if self._persistence.recent and not self._applying:
            self._look(step)
        if self._group.world > 1 and step % self._sync_every == 0 and not self._applying:
            self._poll()
        if step >= self._due and not self._applying and step != self._stepped:
            self._apply(step, "step")
        self._stepped = step

    def eval(
        self,
        step: Whole,
        metrics: Mapping[str, Any],
        split: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Report an evaluation, the objective among its metrics (numbers; NaN is welcome); then the "eval" boundary."""
        step, writer = self._writer.count(step), self._writer
        numbers = writer.numbers(step, metrics, needed=True)
        parts = writer.tables(step, split)
        tables: dict[str, Any] = {"split": parts} if parts else {}
        if not self._applying:  # a setter that measures: what it sets is not acknowledged yet
            self._look(step)
            self._unused(step)
        moving = self._moving(step)
        tables |= {"moving": moving} if moving else {}
        params = {} if self._applying else self._values()
        self._report("eval", step=step, metrics=numbers, params=params, **tables)
        self._boundary(step, "eval")

    def checkpoint(
        self,
        step: Whole,
        path: str | os.PathLike[str],
        metrics: Mapping[str, Any] | None = None,
        best: Switch = False,
    ) -> None:
        """Report a checkpoint that is complete on disk; then the "checkpoint" boundary."""
        place, step = Path(path), self._writer.count(step)
        if self.directory is not None and place.is_absolute() and place.is_relative_to(self.directory.absolute()):
            place = place.relative_to(self.directory.absolute())
        elif self.directory is not None and place.is_relative_to(self.directory):
            place = place.relative_to(self.directory)
        numbers = self._writer.numbers(step, metrics or {})
        self._report("checkpoint", step=step, path=str(place), metrics=numbers, best=bool(best))
        self._boundary(step, "checkpoint")

    def log(self, level: str, message: str) -> None:
        """Say something to the people who read the log; level "info", "warning" or "error"."""
        self._report("log", level=str(level), message=str(message)[:MAX_TEXT])

    def _warn(self, message: str) -> None:
        """Say what went wrong on standard error, and in the log as soon as everything is declared."""
        self._writer.complain(message)
        if self._announced:
            self.log("warning", message)
        else:
            self._writer.say(message, message)

    def flush(self) -> None:
        """Write what was gathered. A full disk costs records, never the training run."""
        self._writer.flush()

    def _report(self, event: str, **fields: Any) -> None:
        self._announce()
        self._writer.report(event, **fields)

    def _values(self) -> dict[str, Any]:
        """Of all parameters that can be read at the moment."""
        found = {}
        for name, parameter in self._parameters.items():
            value, problem = parameter.read()
            if problem:
                self._writer.say(f"parameter {name}", f"{name} cannot be read at step {self._step}: {problem}")
            else:
                found[name] = value
        return found

    def _moving(self, step: Whole) -> dict[str, Any]:
        """Of the values that a schedule moves: what they would be without us, and what they will end on with us."""
        moving = {}
        for name, parameter in self._parameters.items():
            found = parameter.managed
            if found is None:
                continue
            with contextlib.suppress(ValueError):  # its groups are gone
                if found.look():
                    parameter.spec["scheduled"] = True
                    what = f"the script moves {name} by itself"
                    self.log("info", f"{what}: declare it with scheduler=... or scheduled=True")
                if parameter.spec["scheduled"]:
                    moving[name] = {"value": found.own(), "end": found.planned(step, self.total_steps)}
        return moving

    def _look(self, step: Whole) -> None:
        """Report what is not in effect any more although it was acknowledged."""
        for lost in self._persistence.look(step, lambda name: self._parameters[name].get()):
            self._lost(lost)

    def _unused(self, step: Whole) -> None:
        """Report what was changed in an optimizer that does not train any more."""
        if self._group.world > 1:  # one rank alone must not drop what the others keep
            return
        managed = {name: p.managed for name, p in self._parameters.items() if p.managed}
        for lost in self._persistence.unused(step, lambda name: (managed[name].steps, managed[name].own())):
            self._lost(lost)
            managed[lost.name].drop()
            what = f"{lost.name} was set to {lost.change.new} at step {lost.change.step}"
            self.log("warning", f"{what}, and no step of its optimizer has used that: declare the one that trains, and "
                                "write nothing else there in its hooks")  # fmt: skip

    def _lost(self, lost: Lost) -> None:
        self._report(
            "overwritten",
            name=lost.name,
            revision=lost.change.revision,
            set_at=lost.change.step,
            value=lost.change.new,
            step=lost.step,
            found=lost.found,
        )

    # -- overrides ---------------------------------------------------------------------------------------------------

    def _boundary(self, step: Whole, kind: str) -> None:
        self._step = max(self._step, step)
        if self._applying:  # a command of ours reports: what waits comes after it
            return
        if self._passed[0] != step:
            self._passed = (step, set())
        if kind in self._passed[1]:  # a second one at this step is none: a replay could not tell the two apart
            return
        self._passed[1].add(kind)
        if gap := self._group.news(self._writer.fd):
            self.log("warning", f"changes are refused: {gap}")
        self._coarsest = max(self._coarsest, BOUNDARIES.index(kind))
        self._poll()
        if step >= self._due:
            self._apply(step, kind)

    def _poll(self) -> None:
        """Look for a new control file; under several ranks, hand its entries to all of them."""
        entries = self._fetch()
        if self._group.world > 1:
            share, why = self._group.share()
            if share is None:
                for entry in entries:
                    self._refuse(entry["revision"], self._step, why)
                return
            entries = share(entries)
        if entries:
            fresh = {entry["revision"] for entry in entries}
            for entry in self._pending:
                if entry["revision"] > self._handled and entry["revision"] not in fresh:
                    self._refuse(entry["revision"], self._step, f"superseded by revision {min(fresh)}")
            self._pending = entries
            self._due = min(entry["at_step"] or 0 for entry in entries)

    def _fetch(self) -> list[dict[str, Any]]:
        control = self._read() if self._writer.fd is not None else None  # what cannot be answered is not done
        if control is None:
            return []
        entries = control["schedule"] or [control]
        fresh = [entry for entry in entries if entry["revision"] > self._handled]
        return [entry for entry in fresh if not (self.another and self._foreign(entry))]

    def _foreign(self, entry: dict[str, Any]) -> Switch:
        """Whether it rests on a step that this training has not reached: then it is of the one before, and refused."""
        based = entry.get("based_on_step")
        if not isinstance(based, int) or based <= self._step:
            return False
        self._refuse(entry["revision"], self._step, f"it rests on step {based} of the training before this one")
        return True

    def _read(self, pauses: Sequence[float] = ()) -> dict[str, Any] | None:
        """The control file, if it is new and holds what it should; complaints go to the log. ``pauses``: see
        ``patiently``."""
        try:
            return patiently(self._inbox.read, pauses)
        except ValueError as error:
            self.log("warning", f"control file ignored: {error}")
        except OSError as error:
            what = f"control.json cannot be read ({error}); it is looked at again"
            self._writer.say(f"control {error.errno}", what)
        return None

    def _apply(self, step: Whole, kind: str) -> None:
        """Apply every pending entry whose moment this is; answer each revision exactly once."""
        waiting = []
        for entry in self._pending:
            if entry["revision"] <= self._handled:
                continue
            at_step, until = entry["at_step"], entry["valid_until_step"]
            if at_step is not None and step > at_step:
                late = f"too late: it was for step {at_step}, this is step {step}{self._unmet(entry)}"
                self._refuse(entry["revision"], step, late)
            elif until is not None and step > until:
                late = f"too late: it was valid until step {until}, this is step {step}{self._unmet(entry)}"
                self._refuse(entry["revision"], step, late)
            elif (at_step is None or step == at_step) and self._ripe(entry, kind):
                self._carry_out(entry, step, kind)
            else:
                waiting.append(entry)
        self._pending = waiting
        self._due = min((entry["at_step"] or 0 for entry in waiting), default=_NEVER)

    def _ripe(self, entry: dict[str, Any], kind: str) -> Switch:
        """Whether a boundary of this kind is coarse enough for everything that the entry changes."""
        if entry["at_boundary"] is not None:
            return bool(entry["at_boundary"] == kind)
        return BOUNDARIES.index(kind) >= self._needed(entry)

    def _needed(self, entry: dict[str, Any]) -> Whole:
        """The boundary that the entry waits for, by its place from fine to coarse."""
        changed = [self._parameters[name].spec for name in self._changes(entry) if name in self._parameters]
        return max((BOUNDARIES.index(spec["boundary"]) for spec in changed), default=0)

    def _unmet(self, entry: dict[str, Any]) -> str:
        """That it waited for something that the script has never reported, if so."""
        needed = self._needed(entry)
        if needed <= self._coarsest:
            return ""
        return f"; it waited for {('a step', 'an evaluation', 'a checkpoint')[needed]}, and none has been reported"

    def _changes(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What the entry asks for that was not asked for before (a scheduler may have moved the rest since)."""
        missing, params = object(), entry["params"]
        asked = {n: v for n, v in params.items() if self._desired.get(n, missing) != v}
        if not asked and len(params) == 1 and self._inherited.issuperset(params) and not entry["command"]:
            return dict(params)  # what else would it ask for
        return asked

    def _objection(self, entry: dict[str, Any]) -> str | None:
        for name, value in entry["params"].items():
            parameter = self._parameters.get(name)
            objection = parameter.objection(value) if parameter else f"{name}: no such parameter"
            if objection:
                return objection
        command = entry["command"]
        if command and command["name"] not in self._commands:
            return f"this workload offers no {command['name']}"
        return None

    def _carry_out(self, entry: dict[str, Any], step: Whole, kind: str) -> None:
        revision = entry["revision"]
        if objection := self._group.gap(self._writer.fd) or self._objection(entry):
            self._refuse(revision, step, objection)
            return
        before = {name: parameter.get() for name, parameter in self._parameters.items()}
        memos: dict[str, Callable[[], None]] = {}
        command = entry["command"]
        changes = self._changes(entry)
        self._applying, done = True, False
        try:
            memos |= {name: parameter.memo() for name, parameter in self._parameters.items()}
            if problem := self._unkept(entry["keep"]):
                self.log("warning", problem)
            if command:
                self._commands[command["name"]](command["to"] or "")
                done = True
                for restore in memos.values():
                    restore()
            self._set(changes)
            objection = self._unheard(changes, before)
        except Exception as error:  # the training loop must survive whatever a setter raises
            objection = f"{type(error).__name__}: {error}"
        finally:
            self._applying = False
        if objection:
            self._restore(memos)
            if not done:
                self._refuse(revision, step, objection)
                return
            changes = {}
            self.log("warning", f"{command['name']} was done, and the values stay as they were: {objection}")
        self._desired.update(entry["params"])
        self._inherited.difference_update(changes)
        self._handled = revision
        after = self._values()
        managed = {name: p.managed for name, p in self._parameters.items() if p.managed and name in changes}
        shares = {name: pair for name, found in managed.items() if (pair := found.pair)}
        self._report(
            "applied",
            revision=revision,
            step=step,
            boundary=kind,
            changes={n: [before[n], after[n]] for n in after if n in changes or before[n] != after[n]},
            command=command,
            groups={name: found.values() for name, found in managed.items()},
            **({"shares": shares} if shares else {}),
        )
        for name in changes:
            moves = bool(self._parameters[name].spec.get("scheduled"))
            change = Change(revision, step, before[name], after[name], moves)
            if name in managed and managed[name].lasts:
                self._persistence.used(name, change, managed[name].steps)
            else:
                self._persistence.changed(name, change)
        if command and command["name"] == "stop":
            self.stopping = True

    def _set(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._parameters[name].set(value)

    def _unheard(self, changes: Mapping[str, Any], before: Mapping[str, Any]) -> str:
        """What is in effect now although it was not asked for, or may not be; "" where all is as it should."""
        for name, parameter in self._parameters.items():
            found, problem = parameter.read()
            if name in changes and problem:
                return f"set({changes[name]!r}) left {name} unreadable: {problem}"
            if name in changes and not same(found, changes[name]):
                return f"set({changes[name]!r}) left {name} at {found!r}"
            moved = found != before[name] and not parameter.spec.get("scheduled")
            if moved and name not in changes and (objection := parameter.objection(found)):
                return f"set() of {', '.join(changes) or 'nothing'} moved {objection}"
        return ""

    def _restore(self, memos: Mapping[str, Callable[[], None]]) -> None:
        for name, restore in memos.items():
            try:
                restore()
            except Exception as error:
                self.log("error", f"{name} could not be set back: {type(error).__name__}: {error}")

    def _refuse(self, revision: Whole, step: Whole, reason: str) -> None:
        self._handled = max(self._handled, revision)
        self._report("refused", revision=revision, step=step, reason=reason[:MAX_TEXT])
