"""What a list of runs shows of run.json: a part of ``run_file``, whose other types take longer to build than all else
that a list needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, ValidationError

from trainmgr.base.files import read_regular
from trainmgr.base.wire import Lenient, Number

Status = Literal["completed", "stopped", "interrupted", "failed", "killed", "hung", "unknown"]


def known_status(value: object) -> object:
    """Versions that let scripts name their own end have other texts in their logs."""
    return "unknown" if isinstance(value, str) and value not in get_args(Status) else value


class Begun(Lenient):
    """Of what a run was started with."""

    created: float
    seed: int | None
    manager: str


class Ended(Lenient):
    """Of how a run ended."""

    ended: float
    status: Annotated[Status, BeforeValidator(known_status)]
    steps: int
    interventions: int
    objective: str | None
    final: Number | None
    best: Number | None


class Summary(Lenient):
    """Of run.json. Each field is explained there."""

    manifest: Begun
    closing: Ended | None = None


def read(path: Path) -> Summary | None:
    """What a run.json says, or None where there is none that can be read."""
    try:
        return Summary.model_validate_json(read_regular(path))
    except (OSError, ValidationError):
        return None
