"""The next content of control.json, and its writing."""

from __future__ import annotations

from trainmgr import files
from trainmgr.ledger import Ledger
from trainmgr.paths import RunPaths
from trainmgr.protocol import Command, Control, Issued
from trainmgr.wire import Value, to_json


def next_control(
    ledger: Ledger,
    run: str,
    decision: str,
    *,
    changes: dict[str, Value],
    command: Command | None,
    issued: Issued,
    based_on_step: int,
    valid_until_step: int | None,
    at_step: int | None,
    keep: str | None = None,
) -> Control:
    """The desired state after ``changes``: everything in force, and the next revision. Pure."""
    return Control(
        run=run,
        revision=ledger.revision + 1,
        issued=issued,
        params={**ledger.in_force, **changes},
        based_on_step=based_on_step,
        valid_until_step=valid_until_step,
        at_step=at_step,
        command=command,
        keep=keep,
        decision=decision,
    )


def write(paths: RunPaths, control: Control) -> None:
    """Replace control.json in one step, readable by its owner only."""
    files.replace(paths.control, to_json(control) + b"\n", mode=0o600)
