"""What a list of runs shows of run.json, read without the types of ``run_file``: to build a model of pydantic, however
small, takes longer than all else that a list needs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from trainmgr.base.files import read_regular

T = TypeVar("T")
Status = Literal["completed", "stopped", "interrupted", "failed", "killed", "hung", "unknown"]
NON_FINITE = ("NaN", "Infinity", "-Infinity")


@dataclass(frozen=True)
class Begun:
    """Of what a run was started with. Each field is explained in ``run_file``, and so are those of its end."""

    created: float
    seed: int | None
    manager: str


@dataclass(frozen=True)
class Ended:
    """Of how a run ended."""

    ended: float
    status: str
    steps: int
    interventions: int
    objective: str | None
    final: float | None
    best: float | None


@dataclass(frozen=True)
class Summary:
    begun: Begun
    ended: Ended | None
    """None while the run goes on."""


def read(path: Path) -> Summary | None:
    """What a run.json says, or None where there is none that can be read."""
    try:
        file = json.loads(read_regular(path))
        begun, closing = _made(Begun, file["manifest"]), file.get("closing")
        if closing is None:
            return Summary(begun, None)
        return Summary(begun, _made(Ended, closing)) if closing["status"] in get_args(Status) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _made(kind: type[T], values: dict[str, Any]) -> T:
    """Raises TypeError where a value is not what its annotation says, which is a type here and no text."""
    return kind(**{name: _taken(values[name], annotation) for name, annotation in kind.__annotations__.items()})


def _taken(value: Any, annotation: Any) -> Any:
    if isinstance(value, annotation):
        return value
    if isinstance(0.0, annotation) and (isinstance(value, int) or value in NON_FINITE):
        return float(value)
    raise TypeError
