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

The cost is kept out of the loop: ``step`` appends to a list, and every 50 ms the list is written and the control file
looked at with one ``stat``. A SIGKILL loses at most one such period.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

PROTOCOL_VERSION = 1
RUN_DIR_VARIABLE = "TRAINMGR_RUN_DIR"
SEED_VARIABLE = "TRAINMGR_SEED"
RESUME_VARIABLE = "TRAINMGR_RESUME"

PERIOD = 0.05  # seconds between two flushes and two looks at the control file
MAX_LINE = 64 * 1024  # bytes, line break included
MAX_BACKLOG = 8 * 1024 * 1024  # bytes kept while the disk refuses them
MAX_TEXT = 2_000  # characters of a log message or a reason
BOUNDARIES = ("step", "eval", "checkpoint")  # from fine to coarse
COMMANDS = ("checkpoint", "rollback", "stop")
_NEVER = sys.maxsize
_PLAIN = frozenset((float, int))
_ENTRY_KEYS = frozenset(
    ("revision", "params", "based_on_step", "valid_until_step", "at_step", "at_boundary", "command", "decision")
)
_CONTROL_KEYS = _ENTRY_KEYS | {"v", "run", "issued", "schedule"}

_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=float).encode

Scalar = float | int | bool | str
# Inside Workload the names of these builtins are methods.
Real: TypeAlias = float
Whole: TypeAlias = int
Switch: TypeAlias = bool


def default_seed(fallback: int = 0) -> int:
    """The seed that the supervisor asked for (``TRAINMGR_SEED``), or ``fallback``."""
    text = os.environ.get(SEED_VARIABLE, "")
    return int(text) if text.lstrip("-").isdigit() else fallback


def resume_path() -> str | None:
    """The checkpoint to resume from (``TRAINMGR_RESUME``), set when the supervisor restarts a crashed workload."""
    return os.environ.get(RESUME_VARIABLE) or None


class Parameter:
    """One thing that may be changed while the run goes on. Made by ``Workload.float`` and its siblings."""

    __slots__ = ("get", "groups", "set", "spec")

    def __init__(
        self,
        spec: dict[str, Any],
        get: Callable[[], Any],
        set: Callable[[Any], None],
        groups: Callable[[], list[float]] | None = None,
    ) -> None:
        self.spec, self.get, self.set, self.groups = spec, get, set, groups

    def objection(self, value: object) -> str | None:
        """Why ``value`` may not be set, or None: the same rules as the supervisor's, checked once more."""
        spec = self.spec
        name, kind = spec["name"], spec["type"]
        if kind == "choice":
            return None if value in spec["choices"] else f"{name}: {value!r} is not one of {spec['choices']}"
        if kind == "bool":
            return None if isinstance(value, bool) else f"{name}: {value!r} is not true or false"
        if isinstance(value, bool) or not isinstance(value, int if kind == "int" else (int, float)):
            return f"{name}: {value!r} is not of type {kind}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name}: {value!r} is not finite"
        if value == spec.get("off") or spec["low"] <= value <= spec["high"]:
            return None
        return f"{name}: {value!r} is outside [{spec['low']}, {spec['high']}]"


class Workload:
    """The training script's side of the protocol.

    ``objective`` is the name of the evaluation metric that decides what is better, ``mode`` is "min" or "max".
    ``counterpart`` is the evaluation metric that measures the same on training data, where there is one.
    ``metrics`` describes every metric in words with its unit. ``info`` holds scalars about the run for people.
    ``directory`` is where ``telemetry.jsonl`` and ``checkpoints/`` go when nobody supervises (None: no telemetry).

    Under ``torchrun`` (``WORLD_SIZE`` > 1) only rank 0 touches the files. Every ``sync_every`` steps and at every
    evaluation and checkpoint, which all ranks must call, rank 0 hands what it read to the others through
    ``broadcast`` (an object in, rank 0's object out; by default ``torch.distributed`` where it is initialized), so
    that all of them apply the same change at the same step. Without a way to broadcast, changes are refused.
    """

    def __init__(
        self,
        name: str,
        *,
        objective: str,
        mode: str = "min",
        counterpart: str | None = None,
        total_steps: Whole | None = None,
        seed: Whole | None = None,
        metrics: Mapping[str, str] | None = None,
        info: Mapping[str, Scalar] | None = None,
        directory: str | os.PathLike[str] | None = None,
        resumed_from: str | None = None,
        resumed_step: Whole = 0,
        broadcast: Callable[[Any], Any] | None = None,
        sync_every: Whole = 10,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode is {mode!r}; allowed are 'min' and 'max'")
        self.name = name
        self.total_steps = total_steps
        self.stopping = False  # True once a stop was accepted
        self.seed = default_seed() if seed is None else seed
        self._objective = {"metric": objective, "mode": mode, "counterpart": counterpart}
        self._metrics = dict(metrics or {})
        self._info = dict(info or {})
        self._resumed = {"path": str(resumed_from), "step": resumed_step} if resumed_from else None
        self._parameters: dict[str, Parameter] = {}
        self._commands: dict[str, Callable[[str], None]] = {}

        self._rank = int(os.environ.get("RANK") or 0)
        self._world = int(os.environ.get("WORLD_SIZE") or 1)
        self._broadcast = broadcast
        self._sync_every = max(1, sync_every)

        run_dir = os.environ.get(RUN_DIR_VARIABLE)
        self.supervised = bool(run_dir)
        place = run_dir or directory
        self.directory = Path(place) if place else None
        self._checkpoints: Path | None = None
        self._fd: Whole | None = None
        self._control: str | None = None

        self._started = self._announced = self._resuming = self._applying = self._ended = False
        self._seq = 0
        self._step = resumed_step
        self._steps: list[tuple[Whole, Real, Mapping[str, Any]]] = []  # step records not yet formatted
        self._names: tuple[str, ...] = ()  # of the last step's metrics ...
        self._template = "{}"  # ... and their JSON, values left open
        self._lines: list[bytes] = []  # formatted lines not yet written
        self._backlog = b""  # what the disk refused; a torn line's rest comes first
        self._complained = False
        self._flushed = 0.0
        self._seen: tuple[Whole, Whole, Whole] | None = None
        self._handled = -1  # the last revision that was acknowledged
        self._desired: dict[str, Any] = {}  # the overrides in force
        self._pending: list[dict[str, Any]] = []
        self._due = _NEVER  # no pending entry can apply before this step
        self._stepped: Whole | None = None  # the last step at the "step" boundary
        self._passed: tuple[Whole, set[str]] = (-1, set())  # a step, and the other boundaries passed at it

    # -- declaration -------------------------------------------------------------------------------------------------

    def float(
        self,
        name: str,
        *,
        get: Callable[[], Real],
        set: Callable[[Real], None],
        low: Real,
        high: Real,
        scale: str = "linear",
        max_ratio: Real | None = None,
        min_ratio: Real | None = None,
        max_delta: Real | None = None,
        off: Real | None = None,
        boundary: str = "step",
        group: str = "other",
        description: str = "",
        scheduled: Switch = False,
    ) -> None:
        """Declare a real parameter within [low, high].

        One change multiplies it by at most ``max_ratio`` and at least ``min_ratio`` (1 / max_ratio when not given), or
        moves it by at most ``max_delta``. ``off`` is one more allowed value, outside the range, that switches the
        mechanism off. ``scheduled`` says that the script moves the value by itself too, as a learning-rate scheduler
        does. ``get`` must return the value in effect, read back from where training takes it.
        """
        spec = {
            "name": name, "type": "float", "low": low, "high": high, "scale": scale, "max_ratio": max_ratio,
            "min_ratio": min_ratio, "max_delta": max_delta, "off": off, "scheduled": scheduled,
        }  # fmt: skip
        self._declare(spec, boundary, group, description, get, set)

    def int(
        self,
        name: str,
        *,
        get: Callable[[], Whole],
        set: Callable[[Whole], None],
        low: Whole,
        high: Whole,
        max_delta: Whole | None = None,
        boundary: str = "step",
        group: str = "other",
        description: str = "",
    ) -> None:
        """Declare a whole-number parameter within [low, high]; one change moves it by at most ``max_delta``."""
        spec = {"name": name, "type": "int", "low": low, "high": high, "max_delta": max_delta}
        self._declare(spec, boundary, group, description, get, set)

    def bool(
        self,
        name: str,
        *,
        get: Callable[[], Switch],
        set: Callable[[Switch], None],
        boundary: str = "step",
        group: str = "other",
        description: str = "",
    ) -> None:
        """Declare a switch."""
        self._declare({"name": name, "type": "bool"}, boundary, group, description, get, set)

    def choice(
        self,
        name: str,
        *,
        get: Callable[[], str],
        set: Callable[[str], None],
        choices: Sequence[str],
        boundary: str = "step",
        group: str = "other",
        description: str = "",
    ) -> None:
        """Declare a parameter that takes one of ``choices``."""
        self._declare(
            {"name": name, "type": "choice", "choices": list(choices)}, boundary, group, description, get, set
        )

    def optimizer(
        self,
        name: str,
        optimizer: Any,
        *,
        key: str,
        low: Real,
        high: Real,
        scale: str = "log",
        max_ratio: Real | None = None,
        min_ratio: Real | None = None,
        max_delta: Real | None = None,
        groups: Sequence[Whole] | None = None,
        boundary: str = "step",
        group: str = "optimizer",
        description: str = "",
        scheduled: Switch = False,
    ) -> None:
        """Declare ``param_groups[i][key]`` of an optimizer as one parameter, with the value of the first group named.

        The ratios between the groups are those of this moment and are kept (discriminative learning rates survive);
        acknowledgments carry the values of all groups. ``groups`` are indices; None means all.
        """
        indices = list(groups) if groups is not None else list(range(len(optimizer.param_groups)))
        reference = optimizer.param_groups[indices[0]][key]
        ratios = [optimizer.param_groups[i][key] / reference for i in indices] if reference else []

        def read() -> list[Any]:
            return [optimizer.param_groups[i][key] for i in indices]

        def write(value: Any) -> None:
            now = read()
            kept = ratios or [x / now[0] if now[0] else 1.0 for x in now]  # a warm-up from 0 has no ratios yet
            for i, ratio in zip(indices, kept, strict=True):
                optimizer.param_groups[i][key] = value * ratio

        spec = {
            "name": name, "type": "float", "low": low, "high": high, "scale": scale, "max_ratio": max_ratio,
            "min_ratio": min_ratio, "max_delta": max_delta, "off": None, "scheduled": scheduled,
        }  # fmt: skip
        self._declare(spec, boundary, group, description, lambda: read()[0], write, read)

    def command(self, name: str, do: Callable[[str], None]) -> None:
        """Offer "rollback", "checkpoint" or "stop".

        ``do(to)`` is called between two steps. For a rollback ``to`` is "best", "initial" or a checkpoint's path
        relative to the run directory; for a stop it is "best" (end on the best weights) or "" (end as it is).
        Raise ``ValueError`` with the reason to refuse. The recipe in force survives a rollback: values that ``do``
        changes by restoring an optimizer are set back.
        """
        if name not in COMMANDS:
            raise ValueError(f"command is {name!r}; allowed are {', '.join(COMMANDS)}")
        self._undeclarable(name)
        self._commands[name] = do

    def _undeclarable(self, name: str) -> None:
        if self._announced:
            raise RuntimeError(f"{name!r} is declared after the first report; declare everything before it")

    def _declare(
        self,
        spec: dict[str, Any],
        boundary: str,
        group: str,
        description: str,
        get: Callable[[], Any],
        set: Callable[[Any], None],
        groups: Callable[[], list[Any]] | None = None,
    ) -> None:
        name = spec["name"]
        self._undeclarable(name)
        if boundary not in BOUNDARIES:
            raise ValueError(f"{name}: boundary is {boundary!r}; allowed are {', '.join(BOUNDARIES)}")
        if name in self._parameters:
            raise ValueError(f"{name}: declared twice")
        if spec.get("scale") not in (None, "linear", "log"):
            raise ValueError(f"{name}: scale is {spec['scale']!r}; allowed are 'linear' and 'log'")
        if spec["type"] in ("float", "int"):
            low, high = spec["low"], spec["high"]
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"{name}: the range [{low}, {high}] is not finite and increasing")
            if spec.get("scale") == "log" and low <= 0:
                raise ValueError(f"{name}: a log scale needs low > 0, not {low}")
        spec.update(boundary=boundary, group=group, description=description)
        self._parameters[name] = Parameter(spec, get, set, groups)

    # -- life of a run -----------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        """The folder for checkpoints; it exists. A temporary one where neither a run nor a directory was named."""
        if self._checkpoints is None:
            if self.directory is None:
                import tempfile

                self._checkpoints = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
            else:
                self._checkpoints = self.directory / "checkpoints"
                self._checkpoints.mkdir(parents=True, exist_ok=True)
        return self._checkpoints

    def __enter__(self) -> Workload:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._ended:
            return
        if kind is None:
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
        self._started = True
        if self.directory is None or self._rank != 0:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "telemetry.jsonl"
        self._take_up(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if self.supervised:
            self._control = str(self.directory / "control.json")
        atexit.register(self.flush)

    def _take_up(self, path: Path) -> None:
        """Go on after the records of an earlier life of this run: the next seq, the revisions already answered."""
        if not path.exists() or path.stat().st_size == 0:
            return
        last, torn = -1, False
        with path.open("rb") as file:
            for line in file:
                torn = not line.endswith(b"\n")
                if torn:  # no record: its number is free
                    break
                try:
                    record = json.loads(line) if b'"applied"' in line or b'"refused"' in line else None
                    last = int(line[line.index(b'"seq":') + 6 :].split(b",", 1)[0])
                except ValueError:
                    continue
                if record and record.get("event") in ("applied", "refused"):
                    self._handled = max(self._handled, record["revision"])
        self._seq = last + 1
        self._resuming = True
        if torn:  # a line that a crash cut short must not swallow the next one
            with path.open("ab") as file:
                file.write(b"\n")

    def _announce(self) -> None:
        """Write the ``start`` record, once: before the first step of ``steps``, else with the first report."""
        self.start()
        self._announced = True
        self._converge()
        if self._fd is None:
            return
        self._emit(
            "start",
            protocol=PROTOCOL_VERSION,
            workload=self.name,
            pid=os.getpid(),
            seed=self.seed,
            total_steps=self.total_steps,
            objective=self._objective,
            action_space=[{**p.spec, "value": p.get()} for p in self._parameters.values()],
            metrics={name: {"description": text} for name, text in self._metrics.items()},
            commands=sorted(self._commands),
            info=self._info,
            resumed=self._resumed,
        )
        self.flush()

    def _converge(self) -> None:
        """After a restart: put the overrides that were already acknowledged back into effect, without a new answer."""
        control = self._read_control() if self._resuming else None
        self._seen = None  # what is newer is fetched again, as a pending override
        params = control["params"] if control and control["revision"] <= self._handled else {}
        if self._world > 1 and (share := self._broadcast or _torch_broadcast()):
            params = share(params)
        for name, value in params.items():
            parameter = self._parameters.get(name)
            if parameter is None or parameter.objection(value) is not None:
                continue
            try:
                parameter.set(value)
                self._desired[name] = value
            except Exception as error:  # training comes first here too; the next override sets it again
                self.log("error", f"{name} could not be set to {value} again: {type(error).__name__}: {error}")

    def steps(self, first: Whole | None = None) -> Iterator[Whole]:
        """Count the steps ``first`` (default: the one after the resumed step) to ``total_steps``, until a stop."""
        if self.total_steps is None:
            raise ValueError("steps() needs total_steps")
        if not self._announced:
            self._announce()
        for step in range(self._step + 1 if first is None else first, self.total_steps + 1):
            if self.stopping:
                return
            yield step

    def end(self, step: Whole, metrics: Mapping[str, Any] | None = None, status: str | None = None) -> None:
        """Report the end. ``status`` is "completed" or "stopped" when not given."""
        if self._ended:
            return
        self._ended = True
        status = status or ("stopped" if self.stopping else "completed")
        self._report("end", status=status, step=step, metrics=_counted(metrics or {}))
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        atexit.unregister(self.flush)

    # -- reports -----------------------------------------------------------------------------------------------------

    def step(self, step: Whole, metrics: Mapping[str, Any]) -> None:
        """Report that training step ``step`` is done, with any of the training metrics (numbers; NaN is welcome)."""
        self._step = step
        if not self._announced:
            self._announce()
        if self._fd is not None:
            self._steps.append((step, time.time(), dict(metrics)))
            now = time.monotonic()
            if now - self._flushed >= PERIOD:
                self._flushed = now
                self.flush()
                if self._world == 1:
                    self._poll()
            elif not _all_finite(metrics):
                self.flush()
        if self._world > 1 and step % self._sync_every == 0:
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
        """Report an evaluation, the objective among its metrics; then the "eval" boundary."""
        tables = {"split": {name: _counted(row) for name, row in split.items()}} if split else {}
        self._report("eval", step=step, metrics=_counted(metrics), params=self._values(), **tables)
        self._boundary(step, "eval")

    def checkpoint(
        self,
        step: Whole,
        path: str | os.PathLike[str],
        metrics: Mapping[str, Any] | None = None,
        best: Switch = False,
    ) -> None:
        """Report a checkpoint that is complete on disk; then the "checkpoint" boundary."""
        place = Path(path)
        if self.directory is not None and place.is_absolute() and place.is_relative_to(self.directory.absolute()):
            place = place.relative_to(self.directory.absolute())
        elif self.directory is not None and place.is_relative_to(self.directory):
            place = place.relative_to(self.directory)
        self._report("checkpoint", step=step, path=str(place), metrics=_counted(metrics or {}), best=best)
        self._boundary(step, "checkpoint")

    def log(self, level: str, message: str) -> None:
        """Say something to the people who read the log; level "info", "warning" or "error"."""
        self._report("log", level=level, message=message[:MAX_TEXT])

    def flush(self) -> None:
        """Write what was gathered. A full disk costs records, never the training run: the loss is reported later."""
        if self._fd is None:
            return
        for step, t, metrics in self._steps:
            head = f'{{"v":{PROTOCOL_VERSION},"seq":{self._seq},"t":{t:.6f},"event":"step","step":{step},"metrics":'
            self._seq += 1
            self._lines.append(self._fit(f"{head}{self._numbers(metrics)}}}\n"))
        self._steps.clear()
        data = self._backlog + b"".join(self._lines)
        self._lines.clear()
        self._backlog = b""
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            # Past the limit only the rest of a torn line is kept: the gap in seq then shows how many were lost.
            self._backlog = data if len(data) <= MAX_BACKLOG else data[: data.index(b"\n") + 1]
            if not self._complained:
                self._complained = True
                print(f"{self.name}: telemetry cannot be written ({error}); training goes on", file=sys.stderr)

    def _numbers(self, metrics: Mapping[str, Any]) -> str:
        """The metrics of a step as JSON. Most steps have the names of the step before and plain finite numbers."""
        names, values = tuple(metrics), tuple(metrics.values())
        if names != self._names:
            self._names = names
            self._template = "{" + ",".join(f"{json.dumps(str(name)).replace('%', '%%')}:%r" for name in names) + "}"
        try:
            if _PLAIN.issuperset(map(type, values)) and math.isfinite(sum(values)):
                return self._template % values
        except (ValueError, OverflowError):  # an int beyond every float
            pass
        return _dump(_counted(metrics))

    def _fit(self, line: str) -> bytes:
        data = line.encode(errors="replace")  # lone surrogates
        if len(data) <= MAX_LINE:
            return data
        text = f"a record of {len(data)} bytes was dropped; {MAX_LINE} are allowed"
        seq = json.loads(line)["seq"]
        return (_dump(self._common("log", seq) | {"level": "warning", "message": text}) + "\n").encode()

    def _common(self, event: str, seq: Whole) -> dict[str, Any]:
        return {"v": PROTOCOL_VERSION, "seq": seq, "t": round(time.time(), 6), "event": event}

    def _emit(self, event: str, **fields: Any) -> None:
        record = self._common(event, self._seq) | fields
        self._seq += 1
        self._lines.append(self._fit(_dump(record) + "\n"))

    def _report(self, event: str, **fields: Any) -> None:
        if not self._announced:
            self._announce()
        if self._fd is None:
            return
        self.flush()  # the steps before it, in order, and the start record
        self._emit(event, **fields)
        self.flush()

    def _values(self) -> dict[str, Any]:
        return {name: parameter.get() for name, parameter in self._parameters.items()}

    # -- overrides ---------------------------------------------------------------------------------------------------

    def _boundary(self, step: Whole, kind: str) -> None:
        self._step = step
        if self._applying:  # a command of ours reports: what waits comes after it
            return
        if self._passed[0] != step:
            self._passed = (step, set())
        if kind in self._passed[1]:  # a second one at this step is none: a replay could not tell the two apart
            return
        self._passed[1].add(kind)
        self._poll()
        if step >= self._due:
            self._apply(step, kind)

    def _poll(self) -> None:
        """Look for a new control file; under several ranks, hand its entries to all of them."""
        entries: list[dict[str, Any]] | None = self._fetch() if self._control is not None else []
        if self._world > 1:
            share = self._broadcast or _torch_broadcast()
            if share is None:
                for entry in entries or []:
                    self._refuse(entry["revision"], self._step, "several ranks, and no way to broadcast between them")
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
        control = self._read_control()
        if control is None:
            return []
        entries = control["schedule"] or [control]
        return [entry for entry in entries if entry["revision"] > self._handled]

    def _read_control(self) -> dict[str, Any] | None:
        """The control file, if it changed since the last look and holds what it should; complaints go to the log."""
        if self._control is None:
            return None
        try:
            status = os.stat(self._control)
            signature = (status.st_mtime_ns, status.st_ino, status.st_size)
            if signature == self._seen:
                return None
            self._seen = signature
            with open(self._control, "rb") as file:
                control = _check_control(json.loads(file.read()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            self.log("warning", f"control file ignored: {error}")
            return None
        if control["run"] != Path(self._control).absolute().parent.name:
            self.log("warning", f"control file ignored: it is for run {control['run']!r}")
            return None
        return control

    def _apply(self, step: Whole, kind: str) -> None:
        """Apply every pending entry whose moment this is; answer each revision exactly once."""
        waiting = []
        for entry in self._pending:
            if entry["revision"] <= self._handled:
                continue
            at_step, until = entry["at_step"], entry["valid_until_step"]
            if at_step is not None and step > at_step:
                self._refuse(entry["revision"], step, f"too late: it was for step {at_step}, this is step {step}")
            elif until is not None and step > until:
                self._refuse(entry["revision"], step, f"too late: it was valid until step {until}, this is step {step}")
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
        needed = [self._parameters[n].spec["boundary"] for n in self._changes(entry) if n in self._parameters]
        return all(BOUNDARIES.index(kind) >= BOUNDARIES.index(boundary) for boundary in needed)

    def _changes(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What the entry asks for that was not asked for before (a scheduler may have moved the rest since)."""
        missing = object()
        return {n: v for n, v in entry["params"].items() if self._desired.get(n, missing) != v}

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
        objection = self._objection(entry)
        if objection:
            self._refuse(revision, step, objection)
            return
        before = self._values()
        command = entry["command"]
        changes = self._changes(entry)
        self._applying = True
        try:
            if command:
                self._commands[command["name"]](command["to"] or "")
                self._set({n: v for n, v in before.items() if self._parameters[n].get() != v})
            self._set(changes)
        except Exception as error:  # the training loop must survive whatever a setter raises
            self._restore(before)
            self._refuse(revision, step, f"{type(error).__name__}: {error}")
            return
        finally:
            self._applying = False
        self._desired.update(entry["params"])
        self._handled = revision
        after = self._values()
        groups = {n: p.groups() for n, p in self._parameters.items() if p.groups and n in changes}
        self._report(
            "applied",
            revision=revision,
            step=step,
            boundary=kind,
            changes={n: [before[n], after[n]] for n in after if n in changes or before[n] != after[n]},
            command=command,
            groups=groups,
        )
        if command and command["name"] == "stop":
            self.stopping = True

    def _set(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._parameters[name].set(value)

    def _restore(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            try:
                if self._parameters[name].get() != value:
                    self._parameters[name].set(value)
            except Exception as error:
                self.log("error", f"{name} could not be set back to {value}: {type(error).__name__}: {error}")

    def _refuse(self, revision: Whole, step: Whole, reason: str) -> None:
        self._handled = max(self._handled, revision)
        self._report("refused", revision=revision, step=step, reason=reason[:MAX_TEXT])


def _dump(value: Any) -> str:
    """Compact JSON in which NaN and the infinities are the strings of the protocol."""
    try:
        return _encode(value)
    except Exception:  # numbers of other libraries raise what they like (torch: RuntimeError)
        return _encode(_wire(value))


def _counted(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics are numbers: true counts as 1."""
    return {name: int(value) if isinstance(value, bool) else value for name, value in metrics.items()}


def _wire(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 1023 else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _wire(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_wire(item) for item in value]
    try:
        number = float(value)
    except Exception:
        return str(value)[:MAX_TEXT]
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _all_finite(metrics: Mapping[str, Any]) -> bool:
    try:
        return math.isfinite(sum(metrics.values()))  # a sum that overflows costs one early flush
    except Exception:  # not a number: `trainmgr check` names it
        return False


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_entry(entry: Any, keys: frozenset[str]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError("an entry is not an object")
    unknown = sorted(set(entry) - keys)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}")
    if not _whole(entry.get("revision")):
        raise ValueError("revision is not a whole number")
    if not isinstance(entry.get("params"), dict):
        raise ValueError("params is not an object")
    for key in ("valid_until_step", "at_step"):
        if entry.setdefault(key, None) is not None and not _whole(entry[key]):
            raise ValueError(f"{key} is neither a whole number nor null")
    if entry.setdefault("at_boundary", None) not in (None, *BOUNDARIES):
        raise ValueError(f"at_boundary is {entry['at_boundary']!r}; allowed are {', '.join(BOUNDARIES)}")
    command = entry.setdefault("command", None)
    if command is not None:
        if not isinstance(command, dict) or set(command) != {"id", "name", "to"} or command["name"] not in COMMANDS:
            raise ValueError(f"command is not one of {', '.join(COMMANDS)} with id, name and to")
        if not isinstance(command["to"], (str, type(None))):
            raise ValueError("command.to is neither a string nor null")
    return entry


def _check_control(control: Any) -> dict[str, Any]:
    """The same shape as ``schemas/control.json``, without pydantic; raises ValueError saying what is wrong."""
    entry = _check_entry(control, _CONTROL_KEYS)
    if entry.get("v") != PROTOCOL_VERSION:
        raise ValueError(f"protocol version {entry.get('v')!r}; this library speaks {PROTOCOL_VERSION}")
    schedule = entry.setdefault("schedule", None)
    if schedule is not None:
        if not isinstance(schedule, list):
            raise ValueError("schedule is not a list")
        for item in schedule:
            _check_entry(item, _ENTRY_KEYS)
    return entry


def _torch_broadcast() -> Callable[[Any], Any] | None:
    """Rank 0's object for every rank through torch.distributed, where the script has initialized it; else None."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None

    def share(value: Any) -> Any:
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    return share
