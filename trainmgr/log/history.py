"""A recorded run, walked through event by event with the state of that very moment: what replay and audit share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trainmgr.base import files
from trainmgr.base.errors import RecordError
from trainmgr.base.paths import RunPaths
from trainmgr.contract import events, protocol
from trainmgr.contract.run_file import Manifest, RunFile
from trainmgr.log import audit
from trainmgr.log.telemetry import Feed, Item
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Mark, Situation


@dataclass(frozen=True)
class Moment:
    """One event of the log, with everything that was known right before it was written."""

    event: audit.Event
    now: Situation
    """The fold of telemetry up to the event's offset, where it has one, else to that of the event before it; and the
    fold of the events before this one."""
    raw: Any
    """The manager's last recorded answer."""
    ruling: events.Verdict | None
    """The guard's last recorded verdict."""
    answer: protocol.Applied | protocol.Refused | None
    """The workload's last answer to a revision."""
    view: dict[str, Any] | None
    """The last snapshot, as recorded."""
    calls: tuple[tuple[events.Request, events.Reply | None], ...]
    """The calls to a language model that were made on it."""


class History:
    """Reads a run directory, in constant memory. ``folded`` is called after each record of telemetry, which is line
    number ``lines``, with the state that it left; those since the last event begin at line ``first``. ``key``
    is that of the log, if it is to be proven with it.
    """

    def __init__(
        self, paths: RunPaths, folded: Callable[[Item], None] = lambda _: None, *, key: bytes | None = None
    ) -> None:
        self.paths = paths
        self._folded = folded
        self.state = RunState()
        self.ledger = Ledger()
        self.feed = Feed(paths.telemetry)
        self.lines = 0
        self.first = 1
        self.log = audit.read(paths.audit, key)
        self._raw: Any = None
        self._ruling: events.Verdict | None = None
        self._answer: protocol.Applied | protocol.Refused | None = None
        self._view: dict[str, Any] | None = None
        self._calls: tuple[tuple[events.Request, events.Reply | None], ...] = ()

    @property
    def now(self) -> Situation:
        """Everything that was read so far."""
        return Situation(self.state, self.ledger, Mark(self.feed.offset, self.feed.digest()))

    def moments(self) -> Iterator[Moment]:
        """Each event in turn; the state is shared, so look before you go on.

        Raises RecordError where the chain breaks, telemetry is shorter than the log says, or one of them cannot be
        read; FileNotFoundError without a log.
        """
        for event in self.log:
            self.first = self.lines + 1
            offset = offset_of(event.data)
            if offset is not None:
                self._advance(offset, event.seq + 1)
            yield Moment(
                event,
                self.now,
                self._raw,
                self._ruling,
                self._answer,
                self._view,
                self._calls,
            )
            self.ledger.fold(event.data)
            self._remember(event.data)

    def _remember(self, payload: events.Payload) -> None:
        match payload:
            case events.SnapshotTaken():
                self._view, self._calls = payload.snapshot, ()
            case events.Request():
                self._calls = (*self._calls, (payload, None))
            case events.Reply() if self._calls:
                self._calls = (*self._calls[:-1], (self._calls[-1][0], payload))
            case events.Response():
                self._raw = payload.raw
            case events.Verdict():
                self._ruling = payload
            case _:
                pass

    def rest(self) -> None:
        """Fold what no event refers to: the end of a run that has not ended, or what was appended to one that has.

        Raises RecordError where it cannot be read.
        """
        self.first = self.lines + 1
        self._fold(None)

    def behind(self) -> tuple[int, str]:
        """What stands behind the lines of telemetry that were folded: how many bytes, and their SHA-256; "" for none.

        Raises RecordError where it cannot be read.
        """
        try:
            return self.feed.tail.rest()
        except OSError as error:
            raise _unread(error) from None

    def _advance(self, offset: int, line: int) -> None:
        before = self.feed.offset
        if offset < before:
            raise RecordError(f"audit.jsonl line {line}: it speaks of telemetry byte {offset} after byte {before}")
        self._fold(offset)
        if self.feed.offset != offset:
            raise RecordError(
                f"telemetry.jsonl bytes {before} to {offset} (lines {self.lines + 1} and after): "
                f"no line ends at byte {offset}, where the log says one does"
            )

    def _fold(self, until: int | None) -> None:
        fold, folded, ledger = self.state.fold, self._folded, self.ledger
        try:
            for item in self.feed.records(until):
                self.lines += 1
                if isinstance(item, protocol.Applied):
                    fold(item, ledger.plans.of(item.revision))
                else:
                    fold(item)
                if isinstance(item, protocol.Applied | protocol.Refused):
                    self._answer = item
                folded(item)
        except OSError as error:
            raise _unread(error) from None


def _unread(error: OSError) -> RecordError:
    return RecordError(f"telemetry.jsonl: it cannot be read: {error.strerror}")


def offset_of(payload: events.Payload) -> int | None:
    """How much telemetry had been read when the event was written, where it says so."""
    if isinstance(payload, events.RunEnded):
        return payload.telemetry_length
    offset: int | None = getattr(payload, "telemetry_offset", None)
    return offset


def manifest_of(paths: RunPaths) -> Manifest:
    """What a run was started with, from its log.

    Raises RecordError when the log does not begin with it.
    """
    try:
        first = next(audit.read(paths.audit), None)
    except FileNotFoundError:
        first = None
    if first is None or not isinstance(first.data, events.RunStarted):
        raise RecordError(f"{paths.id}: audit.jsonl does not begin with the start of a run.")
    return first.data.manifest


def latest(paths: RunPaths, each: Callable[[Moment], None] = lambda _: None) -> Situation:
    """Everything that is known of a run now, ended or not. Its manifest is there. ``each`` gets every moment in turn.

    Raises RecordError where its files do not hold together.
    """
    history = History(paths)
    try:
        for moment in history.moments():
            each(moment)
    except FileNotFoundError:
        raise RecordError(f"{paths.id}: there is no audit.jsonl.") from None
    history.rest()
    if history.ledger.started is None:
        raise RecordError(f"{paths.id}: audit.jsonl does not begin with the start of a run.")
    if history.ledger.ended is not None:
        history.state.finish()
    return history.now


def run_file(paths: RunPaths) -> RunFile | None:
    """run.json, or None where there is none that can be read."""
    try:
        return RunFile.model_validate_json(files.read_regular(paths.manifest))
    except (OSError, ValidationError):
        return None
