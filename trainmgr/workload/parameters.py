"""What a workload lets be changed, as it declares it."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from trainmgr.workload.optimizers import Managed, Optimizer
from trainmgr.workload.overrides import BOUNDARIES, COMMANDS, Boundary
from trainmgr.workload.values import MAX_INT, MAX_NAME, SLACK, described, figure, label, plain, text, whole

MAX_PARAMETERS = 64
MAX_CHOICES = 64


class Parameter:
    """One thing that may be changed while the run goes on. Made by ``Workload.float`` and its siblings."""

    __slots__ = ("_get", "_known", "managed", "set", "spec")

    def __init__(
        self, spec: dict[str, Any], get: Callable[[], Any], set: Callable[[Any], object], managed: Managed | None = None
    ) -> None:
        self.spec, self._get, self.set, self.managed = spec, get, set, managed
        self._known = self.found()

    def memo(self) -> Callable[[], None]:
        """What puts it back as it is now, whatever was set or restored since."""
        if self.managed is not None:
            return self.managed.memo()
        value = self.get()

        def restore() -> None:
            now, problem = self.read()
            if problem or now != value:
                self.set(value)

        return restore

    def found(self) -> Any:
        """What the script returns, as a number, a switch or a text of Python where it is one: of numpy and torch too.

        Raises what the script raises.
        """
        return plain(self._get(), self.spec["type"])

    def read(self) -> tuple[Any, str]:
        """The value in effect, and "". Where it cannot be read, what it was when it last could, and why it cannot."""
        try:
            value = self.found()
            problem = flaw(self.spec["type"], value)
        except Exception as error:  # a report never stops training
            return self._known, f"`get` raised {type(error).__name__}: {error}"
        if problem:
            return self._known, f"its value {problem}"
        self._known = value
        return value, ""

    def get(self) -> Any:
        """The value in effect, or the last one that could be read."""
        return self.read()[0]

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
        low, high = spec["low"], spec["high"]
        slack = SLACK if kind == "float" else 0
        if value == spec.get("off") or low - slack * abs(low) <= value <= high + slack * abs(high):
            return None
        return f"{name}: {value!r} is outside [{spec['low']}, {spec['high']}]"


class Declarations:
    """Parameters and commands; they may be declared until the first report.

    In this class `float`, `int` and `bool` are methods: a type checker that reads those names in a signature takes them
    for the methods, so signatures say `builtins.float`.
    """

    def __init__(self) -> None:
        self._parameters: dict[str, Parameter] = {}
        self._commands: dict[str, Callable[[str], object]] = {}
        self._announced = False  # whether the declarations are on record

    def float(
        self,
        name: str,
        *,
        get: Callable[[], builtins.float],
        set: Callable[[builtins.float], object],
        low: builtins.float,
        high: builtins.float,
        scale: Literal["linear", "log"] = "linear",
        max_ratio: builtins.float | None = None,
        min_ratio: builtins.float | None = None,
        max_delta: builtins.float | None = None,
        off: builtins.float | None = None,
        boundary: Boundary = "step",
        group: str = "other",
        description: str = "",
        scheduled: builtins.bool = False,
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
        get: Callable[[], builtins.int],
        set: Callable[[builtins.int], object],
        low: builtins.int,
        high: builtins.int,
        max_delta: builtins.int | None = None,
        boundary: Boundary = "step",
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
        get: Callable[[], builtins.bool],
        set: Callable[[builtins.bool], object],
        boundary: Boundary = "step",
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
        set: Callable[[str], object],
        choices: Sequence[str],
        boundary: Boundary = "step",
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
        optimizer: Optimizer,
        *,
        key: str,
        index: builtins.int | None = None,
        low: builtins.float,
        high: builtins.float,
        scale: Literal["linear", "log"] = "log",
        max_ratio: builtins.float | None = None,
        min_ratio: builtins.float | None = None,
        max_delta: builtins.float | None = None,
        groups: Sequence[builtins.int] | None = None,
        boundary: Boundary = "step",
        group: str = "optimizer",
        description: str = "",
        scheduled: builtins.bool = False,
        scheduler: object = None,
    ) -> None:
        """Declare ``param_groups[i][key]`` of an optimizer as one parameter: the value in effect in its update.

        A change is a factor on what the script has there, put on right before each step of the optimizer and taken off
        after it. So it survives every scheduler, which goes on as if nothing had happened, and a restored optimizer;
        the ratios between groups stay as the script makes them, and a group at 0 stays at 0. Between two steps the
        groups hold the script's own values.

        ``index`` is the place of the value where ``key`` has a tuple: 0 for the first of Adam's betas. ``groups`` are
        indices; None means all, those too that are added later. The value shown is that of the first
        group that is not 0; acknowledgments carry the values of all. ``scheduler`` is the learning-rate scheduler,
        where there is one: then managers are told what it will end on. ``scheduled`` says that the script moves the
        value by itself; it need not be said where a ``scheduler`` is given, or one of torch is found.

        Raises ValueError for a group that another parameter has already.
        """
        managed = Managed(optimizer, key, low, high, groups, scheduler, index=index, moves=bool(scheduled))
        for other in self._parameters.values():
            if other.managed is not None and other.managed.shares(managed):
                raise ValueError(f"{name}: {other.spec['name']} has {key!r} of one of these groups already")
        spec = {
            "name": name, "type": "float", "low": low, "high": high, "scale": scale, "max_ratio": max_ratio,
            "min_ratio": min_ratio, "max_delta": max_delta, "off": None, "scheduled": scheduled,
        }  # fmt: skip
        self._declare(spec, boundary, group, description, managed.get, managed.set, managed)

    def command(self, name: Literal["rollback", "checkpoint", "stop"], do: Callable[[str], object]) -> None:
        """Offer "rollback", "checkpoint" or "stop".

        ``do(to)`` is called between two steps. For a rollback ``to`` is "best", "initial" or a checkpoint's path
        relative to the run directory; for a stop it is "best" (end on the best weights) or "" (end as it is); for a
        checkpoint the name to keep it under, or "".
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
        set: Callable[[Any], object],
        managed: Managed | None = None,
    ) -> None:
        name = spec["name"] = label(spec["name"]) if isinstance(spec["name"], str) else spec["name"]
        self._undeclarable(name)
        group, description = text(group, f"{name}: group"), text(description, f"{name}: description")
        spec.update(boundary=boundary, group=group, description=description)
        for key in _NUMBERS.intersection(key for key, value in spec.items() if value is not None):
            exact = spec["type"] == "int" and key != "max_delta"
            spec[key] = whole(spec[key], f"{name}: {key}") if exact else figure(spec[key], f"{name}: {key}")
        if "scheduled" in spec:
            spec["scheduled"] = bool(spec["scheduled"])
        parameter = Parameter(spec, get, set, managed)
        problem = "declared twice" if name in self._parameters else contradiction(spec, parameter.found())
        if problem is None and len(self._parameters) >= MAX_PARAMETERS:
            problem = f"there are {MAX_PARAMETERS} parameters already"
        if problem:
            raise ValueError(f"{name}: {problem}")
        self._parameters[name] = parameter


_NUMBERS = frozenset(("low", "high", "max_ratio", "min_ratio", "max_delta", "off"))
_TYPES: dict[str, tuple[Any, str]] = {  # of a value, by the type of its parameter
    "choice": (str, "one of the choices"),
    "bool": (bool, "true or false"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
}


def contradiction(spec: dict[str, Any], value: Any) -> str | None:
    """What is wrong with a declaration, or None: the same rules by which the supervisor reads it."""
    name, kind = spec["name"], spec["type"]
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        return f"a name has 1 to {MAX_NAME} printable characters"
    if spec["boundary"] not in BOUNDARIES:
        return f"boundary is {spec['boundary']!r}; allowed are {', '.join(BOUNDARIES)}"
    if kind == "choice":
        texts = spec["choices"]
        fine = all(isinstance(choice, str) and 0 < len(choice) <= MAX_NAME for choice in texts)
        if not fine or not 0 < len(texts) <= MAX_CHOICES:
            return f"choices are 1 to {MAX_CHOICES} texts of 1 to {MAX_NAME} characters"
    if problem := flaw(kind, value):
        return f"its value at the start {problem}"
    if kind in ("choice", "bool"):
        return None
    low, high, off = spec["low"], spec["high"], spec.get("off")
    if spec.get("scale", "linear") not in ("linear", "log"):
        return f"scale is {spec['scale']!r}; allowed are 'linear' and 'log'"
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return f"the range [{low}, {high}] is not finite and increasing"
    if spec.get("scale") == "log" and low <= 0:
        return f"a log scale needs low > 0, not {low}"
    if off is not None and (not math.isfinite(off) or low <= off <= high):
        return f"off = {off} must lie outside [{low}, {high}]"
    most, least, delta = spec.get("max_ratio"), spec.get("min_ratio"), spec.get("max_delta")
    if most is not None and not 1 <= most < math.inf:
        return f"max_ratio = {most} must be 1 or more"
    if least is not None and not 0 < least <= 1:
        return f"min_ratio = {least} must lie in (0, 1]"
    if delta is not None and not 0 < delta < math.inf:
        return f"max_delta = {delta} must be positive"
    return None


def flaw(kind: str, value: Any) -> str | None:
    """Why a parameter of this type cannot have this value, whatever its range, or None."""
    wanted, words = _TYPES[kind]
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
        return f"is {described(value)}; `get` must return {words}"
    if kind == "choice" and len(value) > MAX_NAME:
        return f"has {len(value)} characters; {MAX_NAME} are allowed"
    if kind == "int" and abs(value) > MAX_INT:
        return f"is beyond {MAX_INT}"
    if kind == "float" and not math.isfinite(value):
        return f"is {value}; `get` must return a finite number"
    return None
