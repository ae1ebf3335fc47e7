"""run.json: what a run was started with, and how it ended."""

from __future__ import annotations

import json
import operator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainmgr.base.wire import Number, Whole, Wire
from trainmgr.contract.policy import Policy, known
from trainmgr.contract.protocol import Mode
from trainmgr.contract.summary import Status

RunMode = Literal["auto", "shadow", "approve"]
EDITION = 2  # of the rules by which decisions are made


def _first(edition: int) -> bool:
    return edition == 1


class Git(Wire):
    """Where the training script came from."""

    revision: str
    dirty: bool
    """Whether the working tree had uncommitted changes."""


class Manifest(Wire):
    """What a run was started with. Never edited: what changed later is in the audit log."""

    version: str
    """trainmgr's version."""
    id: str
    created: float
    """Seconds since 1970."""
    command: list[str]
    """What was executed."""
    script: str
    arguments: list[str]
    directory: str
    """Working directory."""
    seed: int | None
    git: Git | None
    python: str
    packages: dict[str, str]
    """Versions of those that matter, as far as they are installed."""
    machine: dict[str, str | int]
    manager: str
    mode: RunMode
    blocking: bool = False
    """Whether training stood still during decisions: only to measure what that costs."""
    replay_of: str | None = None
    """The run whose overrides this run repeats at their recorded steps."""
    reading: Annotated[list[str], Field(exclude_if=operator.not_)] = []
    """How a script that reports nothing is read, as options of `trainmgr run`; empty for one that reports itself."""
    edition: Annotated[int, Field(ge=1, exclude_if=_first)] = 1
    """By which rules snapshots are taken, questions asked and changes judged: an old log is read again by its own."""
    policy: Annotated[Policy, BeforeValidator(known)]
    """What another version wrote into it, and this one does not know, is left out."""


def _absent(value: object) -> bool:
    return value is None


class Measured(Wire):
    """What runs are compared by, in bounded size: nobody has to read a run again for it."""

    goal: Mode | None
    """Which way the objective is better; null where the workload never began."""
    on_best: bool
    """Whether it was ended on its best checkpoint."""
    curve: list[tuple[Whole, Number]]
    """(step, objective) of every evaluation that had it, without those that a restart went back behind; of a long run,
    of each `every`-th, from the first on, and of the last."""
    every: Annotated[int, Field(ge=1)]
    course: str | None
    """Digest of the objective at all evaluations; null without any. Runs of the same course are copies."""
    figures: str | None
    """Digest of every figure of the evaluations and of the last step before each."""
    held_out: list[str]
    """Metrics of the end that no step or evaluation had, as far as that is known: no decision can have seen them."""
    calls: Whole
    """Of a language model, retries among them."""
    tokens: Whole
    """Read and written."""
    money: float | None
    """By the policy's prices; null where the price of a call was not known."""


class Closing(Wire):
    """How a run ended."""

    ended: float
    """Seconds since 1970."""
    status: Status
    exit_code: int
    """The child's; 128 + n for signal n."""
    exit: str
    """The same in words."""
    steps: int
    interventions: int
    objective: str | None
    final: Number | None
    """The objective as reported at the end, on the weights that were kept; else at the last evaluation. Null where that
    is without it or could not be read, or the weights went back to others since."""
    best: Number | None
    best_step: int | None
    metrics: dict[str, Number]
    """What the workload reported at its end."""
    info: dict[str, Any]
    """What the workload said of itself at its start."""
    reversals: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """How often changes were taken back."""
    steps_lost: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """What harm and rollbacks in vain have cost, until it was seen."""
    steps_in_vain: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """Steps in trials of other changes that brought nothing."""
    demoted: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether the manager had lost so much that nothing of it was applied any more."""
    challenges: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """How often the recipe of the start was put on trial against the manager's."""
    measured: Annotated[Measured | None, Field(exclude_if=_absent)] = None
    """Null where telemetry was not whole any more, and of versions that did not record it."""


class RunFile(Wire):
    """run.json. Derived from the audit log, which repeats every field of it."""

    manifest: Manifest
    closing: Closing | None = None
    """Null while the run goes on."""


def render_run_file(manifest: dict[str, Any], closing: dict[str, Any] | None) -> bytes:
    """The exact bytes of run.json, from JSON values as the audit log has them: ``trainmgr audit`` renders them again.

    From values and not from the types above, so that a later version, with more fields, still renders the same.
    """
    return json.dumps({"manifest": manifest, "closing": closing}, indent=2, ensure_ascii=False).encode() + b"\n"
