"""The next content of control.json. Pure."""

from __future__ import annotations

from trainmgr.base.wire import MAX_INT, Value
from trainmgr.contract.protocol import Command, Control, Issued
from trainmgr.state.ledger import Ledger


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
    """The desired state after ``changes``: everything in force, and the next revision.

    A script may count its steps up to the last whole number there is; what would lie beyond is that.
    """
    return Control(
        run=run,
        revision=min(ledger.revision + 1, MAX_INT),
        issued=issued,
        params={**ledger.in_force, **changes},
        based_on_step=based_on_step,
        valid_until_step=None if valid_until_step is None else min(valid_until_step, MAX_INT),
        at_step=None if at_step is None else min(at_step, MAX_INT),
        command=command,
        keep=keep,
        decision=decision,
    )
