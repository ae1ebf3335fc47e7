"""The training script's side of the protocol: what it reports, and what it declares that may be changed."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, SupportsFloat

from trainmgr.workload.lines import dump
from trainmgr.workload.optimizers import Managed, Optimizer
from trainmgr.workload.overrides import Boundary
from trainmgr.workload.parameters import Declarations
from trainmgr.workload.persistence import Lost
from trainmgr.workload.ranks import Group
from trainmgr.workload.reconciler import Reconciler
from trainmgr.workload.records import PROTOCOL_VERSION, Metric, Writer, goal
from trainmgr.workload.surroundings import CHECK_VARIABLE, ODD, RUN_DIR_VARIABLE, default_seed, patiently
from trainmgr.workload.values import facts as declared
from trainmgr.workload.values import label, named, text, whole

if TYPE_CHECKING:
    from trainmgr.integrations.torch import TorchCheckpoints

Scalar = float | int | bool | str


class Stateful(Protocol):
    """What saves and loads as modules, optimizers and scalers of torch do."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


class Workload(Declarations):
    """The training script's side of the protocol.

    ``objective`` is the name of the evaluation metric that decides what is better, ``mode`` is "min" or "max".
    ``counterpart`` is the evaluation metric that measures the same on training data, where there is one.
    ``scale`` is the difference that counts as 100%: by default the absolute best, no good where that is near 0.
    ``metrics`` describes each metric in words with its unit, or as a `Metric`. ``info`` holds scalars for people.
    ``facts`` are what a manager should know from the start: the sizes of data, model and batch, the passes over the
    data that are planned, what is scored at the end. At most 16: numbers, switches, texts of up to 64 characters.
    ``directory`` is where telemetry.jsonl and checkpoints/ go when nobody supervises (None: no telemetry).

    Ranks are those of ``torch.distributed`` where it is initialized at the start, else of ``RANK`` and ``WORLD_SIZE``.
    Only rank 0 touches files. Every ``sync_every`` steps and at every evaluation and checkpoint, which all ranks must
    call, it hands what it read to the others through ``broadcast`` (an object in, rank 0's object out; by default
    ``torch.distributed``), for the same step. A change that would not reach all processes that train is refused.
    """

    PERIOD = 0.05
    """Seconds between two flushes and two looks at the control file."""

    def __init__(
        self,
        name: str,
        *,
        objective: str,
        mode: Literal["min", "max"] = "min",
        counterpart: str | None = None,
        scale: float | None = None,
        total_steps: int | None = None,
        seed: int | None = None,
        metrics: Mapping[str, str | Metric] | None = None,
        info: Mapping[str, Scalar] | None = None,
        facts: Mapping[str, Scalar] | None = None,
        directory: str | os.PathLike[str] | None = None,
        resumed_from: str | os.PathLike[str] | None = None,
        resumed_step: int = 0,
        broadcast: Callable[[Any], Any] | None = None,
        sync_every: int = 10,
    ) -> None:
        super().__init__()
        self.name = text(name, "the name of the workload")
        self.total_steps = None if total_steps is None else whole(total_steps, "total_steps", least=0)
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
        self._facts = declared(facts)
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
        self._overrides = Reconciler(
            self._parameters,
            self._commands,
            self._writer,
            self._group,
            step=self.resumed_step,
            resumed=self.resumed_from is not None,
        )
        self._started = self._ended = False
        self._flushed = 0.0
        self._period = 0.0 if os.environ.get(CHECK_VARIABLE) else self.PERIOD
        self._stepped: int | None = None  # the last step at the "step" boundary

    # -- life of a run -----------------------------------------------------------------------------------------------

    @property
    def another(self) -> bool:
        """Whether the training before this one in the run came to its end: nothing of it counts here. Known to the
        process that writes, once it is started; False for a training that goes on from a checkpoint."""
        return self._overrides.another

    @property
    def stopping(self) -> bool:
        """Whether a stop was accepted: the loop is to end. A script that sets it ends its own."""
        return self._overrides.stopping

    @stopping.setter
    def stopping(self, stop: bool) -> None:
        self._overrides.stopping = stop

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
                    self.warn(f"there is no folder for checkpoints: {error}")
        return self._checkpoints

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._ended:
            return
        leaves = kind is not None and issubclass(kind, SystemExit) and not getattr(error, "code", None)
        if kind is None or leaves:
            self.end(self._overrides.step)
        elif issubclass(kind, KeyboardInterrupt):
            self.end(self._overrides.step, status="interrupted")
        else:
            self.log("error", f"{kind.__name__}: {error}")
            self.end(self._overrides.step, status="failed")

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
        self._overrides.open(self.directory / "control.json" if self.supervised else None)
        atexit.register(self.flush)

    def announce(self) -> None:
        """Write the ``start`` record, once: everything is declared. ``steps`` does it before its first step, else the
        first report does."""
        if self._announced:
            return
        self.start()
        self._announced = True
        if not self._writer.leads():
            self.primary = self._group.leave()
        for name, metric in self._metrics.items():
            if strange := set(metric.depends) - set(self._parameters):
                raise ValueError(f"{name} depends on {min(strange)!r}, which is no parameter of this workload")
        self._overrides.converge()
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
            facts=self._facts,
            resumed=self._resumed,
        )
        for parameter in self._parameters.values():
            objection = parameter.objection(parameter.get())
            if objection and not parameter.spec.get("scheduled"):
                self.log("warning", f"at the start {objection}: widen the range, or start inside it")
        if self.another:
            self._overrides.leave_behind()

    def steps(self, first: int | None = None) -> Iterator[int]:
        """Count the steps ``first`` (default: the one after the resumed step) to ``total_steps``, until a stop.

        After the last one the groups of optimizers hold what was in effect in them.
        """
        if self.total_steps is None:
            raise ValueError("steps() needs total_steps")
        self.announce()
        for step in range(self._overrides.step + 1 if first is None else whole(first, "first"), self.total_steps + 1):
            if self._overrides.stopping:
                break
            yield step
        for managed in self._managed():
            managed.leave()

    def _managed(self) -> list[Managed]:
        return [parameter.managed for parameter in self._parameters.values() if parameter.managed is not None]

    # -- frameworks --------------------------------------------------------------------------------------------------

    def torch(
        self,
        optimizer: Optimizer,
        model: object,
        *,
        scheduler: object = None,
        scaler: Stateful | None = None,
        clip: float | None = None,
        weights: MutableMapping[str, float] | None = None,
        also: Mapping[str, Stateful] | None = None,
        bounds: Mapping[str, tuple[float, float] | None] | None = None,
        every: int = 1,
    ) -> TorchCheckpoints:
        """Declare what is found in a training with torch (learning rate, weight decay, momentum or betas, dropouts, the
        norm to ``clip`` to, ``weights`` of the loss), and offer rollback, checkpoint and stop: see `TorchCheckpoints`.
        """
        from trainmgr.integrations.torch import TorchCheckpoints  # imports torch, as the script has

        if "rollback" in self._commands:
            raise ValueError(
                "a rollback is offered already: w.torch is called once, with all that is trained. Several optimizers "
                "are declared one by one with w.optimizer(...), and saved by one Checkpoints(w, save, load)"
            )
        return TorchCheckpoints(
            self, optimizer, model, scheduler=scheduler, scaler=scaler, clip=clip, weights=weights, also=also,
            bounds=bounds, every=every,
        )  # fmt: skip

    def end(
        self,
        step: int,
        metrics: Mapping[str, SupportsFloat] | None = None,
        status: Literal["completed", "stopped", "interrupted", "failed"] | None = None,
    ) -> None:
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

    def step(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Report that training step ``step`` is done, with any of the training metrics (numbers; NaN is welcome)."""
        overrides = self._overrides
        if type(step) is not int:
            step = self._writer.count(step)
        overrides.step = step
        if not self._announced:
            self.announce()
        if self._writer.fd is not None:
            finite = self._writer.step(step, metrics)
            now = time.monotonic()
            if now - self._flushed >= self._period:
                self._flushed = now
                self.flush()
                if self._group.world == 1 and not overrides.applying:
                    overrides.poll()
            elif not finite:
                self.flush()
        else:
            self._writer.late()
        if overrides.persistence.recent and not overrides.applying:
            self._look(step)
        if self._group.world > 1 and step % self._sync_every == 0 and not overrides.applying:
            overrides.poll()
        if step >= overrides.due and not overrides.applying and step != self._stepped:
            overrides.apply(step, "step")
        self._stepped = step

    def eval(
        self,
        step: int,
        metrics: Mapping[str, SupportsFloat],
        split: Mapping[str, Mapping[str, SupportsFloat]] | None = None,
    ) -> None:
        """Report an evaluation, the objective among its metrics (numbers; NaN is welcome); then the "eval" boundary."""
        step, writer = self._writer.count(step), self._writer
        numbers = writer.numbers(step, metrics, needed=True)
        parts = writer.tables(step, split)
        tables: dict[str, Any] = {"split": parts} if parts else {}
        if not self._overrides.applying:  # a setter that measures: what it sets is not acknowledged yet
            self._look(step)
            self._unused(step)
        moving = self._moving(step)
        tables |= {"moving": moving} if moving else {}
        params = {} if self._overrides.applying else self._overrides.values()
        self._report("eval", step=step, metrics=numbers, params=params, **tables)
        self._overrides.boundary(step, "eval")

    def checkpoint(
        self,
        step: int,
        path: str | os.PathLike[str],
        metrics: Mapping[str, SupportsFloat] | None = None,
        best: bool = False,
    ) -> None:
        """Report a checkpoint that is complete on disk; then the "checkpoint" boundary."""
        place, step = Path(path), self._writer.count(step)
        if self.directory is not None and place.is_absolute() and place.is_relative_to(self.directory.absolute()):
            place = place.relative_to(self.directory.absolute())
        elif self.directory is not None and place.is_relative_to(self.directory):
            place = place.relative_to(self.directory)
        numbers = self._writer.numbers(step, metrics or {})
        self._report("checkpoint", step=step, path=str(place), metrics=numbers, best=bool(best))
        self._overrides.boundary(step, "checkpoint")

    def boundary(self, step: int, kind: Boundary) -> None:
        """Pass a boundary with nothing to report there: a checkpoint, say, that could not be saved on this rank. All
        ranks must pass the same ones."""
        self.announce()
        self._overrides.boundary(step, kind)

    def log(self, level: Literal["info", "warning", "error"], message: str) -> None:
        """Say something to the people who read the log."""
        self.announce()
        self._writer.log(str(level), str(message))

    def warn(self, message: str) -> None:
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
        self.announce()
        self._writer.report(event, **fields)

    def _moving(self, step: int) -> dict[str, Any]:
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

    def _look(self, step: int) -> None:
        """Report what is not in effect any more although it was acknowledged."""
        for lost in self._overrides.persistence.look(step, lambda name: self._parameters[name].get()):
            self._lost(lost)

    def _unused(self, step: int) -> None:
        """Report what was changed in an optimizer that does not train any more."""
        if self._group.world > 1:  # one rank alone must not drop what the others keep
            return
        managed = {name: p.managed for name, p in self._parameters.items() if p.managed}
        for lost in self._overrides.persistence.unused(step, lambda name: (managed[name].steps, managed[name].own())):
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
