"""A manager that follows a script."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from trainmgr.base.wire import Value, plain
from trainmgr.contract.proposal import keep
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.testing.waiting import TIME_LIMIT


class ScriptedManager:
    """Gives the listed answers in order, then keeps.

    An answer is given raw, whatever it is; an exception is raised, a function is called with the snapshot. The call
    number ``block_at`` (from 0) sets ``asked`` and waits for ``release`` before it answers.
    """

    def __init__(
        self,
        answers: Sequence[Any] = (),
        *,
        name: str = "scripted",
        block_at: int | None = None,
        deterministic: bool = True,
    ) -> None:
        self.name = name
        self.deterministic = deterministic
        self.snapshots: list[Snapshot] = []
        self.asked = threading.Event()
        self.release = threading.Event()
        self._answers = list(answers)
        self._block_at = block_at

    def decide(self, snapshot: Snapshot) -> Any:
        number = len(self.snapshots)
        self.snapshots.append(snapshot)
        if number == self._block_at:
            self.asked.set()
            self.release.wait(TIME_LIMIT)
        if number >= len(self._answers):
            return plain(keep("healthy", "the script has ended"))
        answer = self._answers[number]
        if isinstance(answer, BaseException):
            raise answer
        return answer(snapshot) if callable(answer) else answer


def answer(action: str = "keep", changes: Mapping[str, Value] | None = None, **more: Any) -> dict[str, Any]:
    """A proposal as a manager gives it."""
    return {"diagnosis": "unclear", "evidence": "scripted", "action": action, "changes": dict(changes or {}), **more}
