"""Whoever shows a run while it is supervised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from trainmgr.contract import events
from trainmgr.log.telemetry import Item
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation


class Listener(Protocol):
    """Called in the supervisor's thread; must return quickly."""

    def record(self, record: Item, state: RunState) -> None: ...
    def event(self, event: events.Payload, now: Situation) -> None: ...
    def tick(self, now: Situation) -> None: ...
    def ask(self, ruling: events.Verdict, answer: Callable[[bool | None], None]) -> None:
        """Ask the person whether to apply; call ``answer`` from any thread, once."""
        ...
