"""The exit code of a supervised run. Pure."""

from __future__ import annotations

from trainmgr.base import errors
from trainmgr.contract.run_file import Closing
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState


def exit_code(closing: Closing, state: RunState, ledger: Ledger) -> int:
    """The script's own, except where there is more to say than it knows; by what was read, whatever is left of it."""
    if closing.status == "interrupted":
        return errors.EXIT_INTERRUPTED
    if closing.status == "failed" and ledger.misfit is not None:
        return errors.EXIT_USAGE
    if closing.exit_code == 0 and closing.objective is None:  # there was no start that could be read
        return errors.EXIT_WORKLOAD
    own = state.end is not None and state.end.status == closing.status  # the script's word for how it ended
    if closing.exit_code == 0 and closing.status in ("hung", "failed") and not own:
        return errors.EXIT_FAILED
    return closing.exit_code
