"""Who answered, and what came with the answers: a note, and a wish to be left alone. A part of the ledger."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainmgr.contract import events
from trainmgr.contract.policy import asks_model, is_hybrid
from trainmgr.contract.proposal import Condition

NOTHING = "-"  # the note that takes back the one before


@dataclass(frozen=True)
class Wait:
    """When a manager wants to be asked again."""

    step: int
    """Of the snapshot that it answered, ..."""
    evals: int
    """... and the evaluations until then."""
    steps: int | None
    """In so many."""
    when: Condition | None
    """Before that, if this comes true."""


@dataclass(frozen=True)
class Answers:
    """The answers so far, in constant space."""

    hybrid: bool = False
    """Whether rules and a language model answer in turn."""
    step: int | None = None
    """Of the last snapshot."""
    evals: int = 0
    """Evaluations until then."""
    by: str = ""
    """Who gave the last answer: of a hybrid, its rules or its model."""
    by_model: int = 0
    """Answers of a language model."""
    model_step: int | None = None
    """Step of the last snapshot that a language model was asked about."""
    heard: bool = False
    """Whether it gave an answer then that was accepted."""
    stood_in: int = 0
    """Answers of a hybrid's rules in place of its model, which was asked, ..."""
    stood_in_why: str = ""
    """... and why the last time."""
    wait: Wait | None = None
    """What the last answer asked for; None where that was nothing, or something happened that it could not know of."""
    note: str = ""
    """What the manager wants to read again, ..."""
    noted_at: int | None = None
    """... and the step of the snapshot on which it wrote that."""

    def after(self, payload: events.Payload) -> Answers:
        """With one more event."""
        match payload:
            case events.RunStarted():
                return replace(self, hybrid=is_hybrid(payload.manifest.manager))
            case events.SnapshotTaken():
                progress = payload.snapshot["progress"]
                return replace(self, step=int(progress["step"]), evals=int(progress["evaluations"]))
            case events.Request(purpose="decide" | "reason"):
                return replace(self, model_step=self.step, heard=False)
            case events.Response():
                found = replace(self, by=payload.manager, by_model=self.by_model + asks_model(payload.manager))
                stood_in = replace(found, stood_in=found.stood_in + 1, stood_in_why=payload.instead)
                return stood_in if payload.instead else found
            case events.Verdict() if payload.result != "rejected":  # whose wishes do not count
                return self._wished(payload)
            case events.Acknowledged(result="refused") | events.Approval(answer="no" | "none"):
                return replace(self, wait=None)
            case events.Reverted() | events.Challenged() | events.Unanswered() | events.Restarted():
                return replace(self, wait=None)
            case _:
                return self

    def _wished(self, payload: events.Verdict) -> Answers:
        if self.hybrid and not asks_model(self.by):  # what its model wants holds until its rules change something
            return self if payload.action == "keep" else replace(self, wait=None)
        steps, when = payload.ask_again_in, payload.ask_again_when
        wants = self.step is not None and (steps is not None or when is not None)
        found = replace(
            self, heard=asks_model(self.by), wait=Wait(self.step or 0, self.evals, steps, when) if wants else None
        )
        if not (note := payload.note.strip()):
            return found
        gone = note == NOTHING
        return replace(found, note="" if gone else payload.note, noted_at=None if gone else self.step)
