"""A listener that keeps what a supervisor tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainmgr.base.paths import RunPaths
from trainmgr.contract import events
from trainmgr.log.telemetry import Item
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation


class Recorder:
    """A listener that keeps what it hears. ``on_record`` and ``on_event`` are called in the supervisor's thread."""

    def __init__(
        self,
        *,
        on_record: Callable[[Item, RunState], None] | None = None,
        on_event: Callable[[events.Payload], None] | None = None,
        approve: bool | None = None,
    ) -> None:
        self.records: list[Item] = []
        self.events: list[events.Payload] = []
        self.paths: RunPaths | None = None
        self._on_record, self._on_event, self._approve = on_record, on_event, approve

    def record(self, record: Item, state: RunState) -> None:
        self.records.append(record)
        if self._on_record is not None:
            self._on_record(record, state)

    def event(self, event: events.Payload, now: Situation) -> None:  # noqa: ARG002
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)

    def tick(self, now: Situation) -> None:
        pass

    def ask(self, ruling: events.Verdict, answer: Callable[[bool | None], None]) -> None:  # noqa: ARG002
        answer(self._approve)

    def of(self, kind: type[Any]) -> list[Any]:
        """The events and records of one type, in order."""
        return [item for item in (*self.events, *self.records) if isinstance(item, kind)]
