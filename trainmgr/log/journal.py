"""The log as the loop has it: an event is put on record and taken in; what the disk refuses is kept and written first.

The ledger is never behind what happened, and the file never has an event that the ones before it do not explain: what
was refused is written later, in order, before anything new. Whoever acts on an event acts only once it is on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from trainmgr.contract import events
from trainmgr.log import audit
from trainmgr.state.ledger import Ledger

LIMIT = 1024  # events that are kept; of messages, from which nothing follows, none beyond that


class Journal:
    """Appends to one log, and folds what it appends into ``ledger``."""

    def __init__(
        self, log: audit.Log, ledger: Ledger, tell: Callable[[events.Payload], None], clock: Callable[[], float]
    ) -> None:
        """``tell`` gets every event, and what is to be known of the disk. ``clock``: seconds since 1970."""
        self.ledger = ledger
        self._log = log
        self._tell = tell
        self._clock = clock
        self._kept: deque[tuple[events.Payload, float]] = deque()
        self._refusal = ""  # why the disk takes nothing; "" while it does
        self._dropped = 0

    @property
    def kept(self) -> int:
        """Events that are not on disk yet."""
        return len(self._kept)

    def append(self, payload: events.Payload) -> bool:
        """Put on record what happened, and take it in. False while it is not on disk: then nothing may follow.

        Nothing is put on record behind the end of the run.
        """
        if self.ledger.ended is not None:
            self._tell(payload)
            return False
        if self.kept >= LIMIT and _is_message(payload):
            self._dropped += 1
            return False
        self._take_in(payload)
        done = self.flush()
        self._tell(payload)
        return done

    def offer(self, payload: events.Payload) -> bool:
        """Put on record what is to happen. False where the disk refuses it: then it does not happen."""
        if not self.flush():
            return False
        try:
            self._log.append(payload, self._now())
        except OSError as error:
            self._refused(error)
            return False
        self.ledger.fold(payload)
        self._tell(payload)
        return True

    def flush(self) -> bool:
        """Write what is kept, the oldest first; whether nothing is left."""
        while self._kept:
            payload, t = self._kept[0]
            try:
                self._log.append(payload, t)
            except OSError as error:
                self._refused(error)
                return False
            self._kept.popleft()
        if self._refusal:
            self._refusal = ""
            dropped, self._dropped = self._dropped, 0
            lost = f"; {dropped} messages were too many to keep" if dropped else ""
            self._tell(events.Failure(where="audit", message=f"audit.jsonl is written again{lost}"))
        return True

    def _now(self) -> float:
        return round(self._clock(), 3)

    def _take_in(self, payload: events.Payload) -> None:
        self._kept.append((payload, self._now()))
        self.ledger.fold(payload)

    def _refused(self, error: OSError) -> None:
        """Say once for each time what the disk says; on record that comes with the rest."""
        if not self._refusal:
            self._refusal = error.strerror or str(error)
            text = f"audit.jsonl cannot be written: {self._refusal}; what happens is kept, nothing is changed meanwhile"
            failure = events.Failure(where="audit", message=text)
            if self.ledger.ended is None:  # nothing comes behind the end
                self._take_in(failure)
            self._tell(failure)


def _is_message(payload: events.Payload) -> bool:
    """Whether it may come as often as somebody likes, and says nothing of a decision."""
    return isinstance(payload, events.Signalled) or (isinstance(payload, events.Failure) and payload.decision is None)
