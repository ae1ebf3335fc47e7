"""`replay:RUN`: the recorded decisions of another run, given again at the same evaluations, whatever happens meanwhile.

This repeats the decisions in open loop, through the guard, for instance under another seed. To repeat a run exactly, at
its exact steps, there is ``trainmgr replay RUN --train``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainmgr.base.errors import RecordError, UserError
from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import plain
from trainmgr.contract import events
from trainmgr.contract.proposal import keep
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.log import audit

MAX_EVIDENCE = 1000  # characters, as proposals have it
NAMED = 8  # decisions in a sentence


@dataclass
class Recording:
    """One answer of the run that is repeated."""

    decision: str
    evals: int
    """Evaluations when it was asked for."""
    raw: Any
    acts: bool = False
    """Whether the guard accepted it, with something to change."""


class Recorded:
    """Asked at other evaluations than the run was, it gives what was due by then and not given yet.

    Of several decisions the latest that changed something: an older one that is passed over is counted as missed, and
    named in the evidence of the answer and in ``left_out``.
    """

    deterministic = True

    def __init__(self, paths: RunPaths) -> None:
        """Raises UserError without a log, RecordError for one that does not hold."""
        self.name = f"replay:{paths.id}"
        self._run = paths.id
        self._left: list[Recording] = []
        asked: dict[str, int] = {}
        found: dict[str, Recording] = {}
        try:
            for event in audit.read(paths.audit):
                match event.data:
                    case events.SnapshotTaken() as taken:
                        asked[taken.decision] = int(taken.snapshot["progress"]["evaluations"])
                    case events.Response() as said if said.decision in asked:
                        found[said.decision] = Recording(said.decision, asked[said.decision], said.raw)
                    case events.Verdict() as ruling if ruling.decision in found:
                        found[ruling.decision].acts = ruling.result != "rejected" and ruling.action != "keep"
                    case _:
                        pass
        except FileNotFoundError:
            raise UserError(f"The run {paths.id} has no audit.jsonl: there is nothing to replay.") from None
        except OSError as error:
            raise UserError(f"The log of the run {paths.id} cannot be read: {error.strerror}.") from None
        except RecordError as error:
            raise RecordError(f"The decisions of {paths.id} cannot be replayed. {error}") from None
        self._left = sorted(found.values(), key=lambda recording: recording.evals)
        self._acting = sum(recording.acts for recording in self._left)
        self._missed: list[Recording] = []

    def decide(self, snapshot: Snapshot) -> Any:
        """The answer that was recorded by this evaluation and not given yet; "keep" where there is none."""
        now = snapshot.progress.evaluations
        due = [recording for recording in self._left if recording.evals <= now]
        candidates = [recording for recording in due if recording.acts] or due
        if not candidates:
            return plain(keep("unclear", "Nothing else was decided by this evaluation."))
        latest = candidates[-1].evals
        chosen = next(recording for recording in candidates if recording.evals == latest)
        at = self._left.index(chosen)
        passed = [recording for recording in self._left[:at] if recording.acts]
        self._missed, self._left = [*self._missed, *passed], self._left[at + 1 :]
        return _explained(chosen.raw, f"{_listed(passed)} of {self._run} passed over") if passed else chosen.raw

    def left_out(self) -> str:
        """At the end: which decisions that changed something were not given again; "" where all were."""
        missed = [*self._missed, *(recording for recording in self._left if recording.acts)]
        if not missed:
            return ""
        given = self._acting - len(missed)
        return (
            f"{self.name}: {given} of {self._acting} decisions that changed something were given again, not "
            f"{_listed(missed)}: nobody was asked at their evaluations, or soon after."
        )


def _explained(raw: Any, note: str) -> Any:
    """An answer with a note in its evidence, if it has any."""
    if not isinstance(raw, dict) or not isinstance(evidence := raw.get("evidence"), str):
        return raw
    return {**raw, "evidence": f"[{note}] {evidence}"[:MAX_EVIDENCE]}


def _listed(recordings: list[Recording]) -> str:
    """d3 (evaluation 7), d4 (evaluation 9)."""
    names = [f"{recording.decision} (evaluation {recording.evals})" for recording in recordings[:NAMED]]
    more = len(recordings) - NAMED
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
