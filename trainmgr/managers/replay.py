"""`replay:RUN`: the recorded decisions of another run, given again at the same steps, whatever happens meanwhile.

This repeats the decisions in open loop, through the guard, for instance under another seed. To repeat a run exactly, at
its exact steps, there is ``trainmgr replay RUN --train``.
"""

from __future__ import annotations

from typing import Any

from trainmgr import audit, events
from trainmgr.errors import UserError
from trainmgr.paths import RunPaths
from trainmgr.proposal import keep
from trainmgr.snapshot import Snapshot
from trainmgr.wire import plain


class Recorded:
    deterministic = True

    def __init__(self, paths: RunPaths) -> None:
        self.name = f"replay:{paths.id}"
        steps: dict[str, int] = {}
        self._answers: dict[int, Any] = {}
        try:
            for event in audit.read(paths.audit):
                if isinstance(event.data, events.SnapshotTaken):
                    steps[event.data.decision] = int(event.data.snapshot["progress"]["step"])
                elif isinstance(event.data, events.Response):
                    self._answers[steps[event.data.decision]] = event.data.raw
        except FileNotFoundError:
            raise UserError(f"The run {paths.id} has no audit.jsonl: there is nothing to replay.") from None

    def decide(self, snapshot: Snapshot) -> Any:
        """The answer recorded for this step; "keep" where there is none."""
        answer = self._answers.get(snapshot.progress.step)
        return answer if answer is not None else plain(keep("unclear", "Nothing was decided at this step."))
