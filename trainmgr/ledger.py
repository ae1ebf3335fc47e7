"""What was decided so far, as a pure fold over the audit log. The counterpart of ``run_state`` for our own side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainmgr import events
from trainmgr.budget import Spent
from trainmgr.proposal import Diagnosis, Expectation
from trainmgr.protocol import Control
from trainmgr.wire import Value

KEPT = 32  # decisions remembered


@dataclass(frozen=True)
class Decision:
    """An accepted decision, for the memory that a snapshot shows."""

    id: str
    diagnosis: Diagnosis | None
    expected: Expectation | None
    evidence: str


@dataclass
class Ledger:
    """Everything that the audit log says, in constant space."""

    started: events.RunStarted | None = None
    ended: events.RunEnded | None = None
    asked: int = 0
    """Decisions asked for."""
    last_step: int | None = None
    """Step of the last snapshot."""
    last_evals: int = 0
    """Evaluations at the last snapshot."""
    last_alarm: int | None = None
    """Evaluations at the last snapshot that a value that is not finite asked for."""
    alarms: frozenset[str] = frozenset()
    """The alarms that held at the last snapshot: only a new one asks again."""
    waiting: str | None = None
    """The decision that has no verdict yet."""
    answered: int = 0
    spent: Spent = field(default_factory=Spent)
    """On a language model."""
    accepted: int = 0
    rejected: int = 0
    revision: int = 0
    """The highest revision issued."""
    in_force: dict[str, Value] = field(default_factory=dict)
    """The overrides that the workload was told and did not refuse."""
    outstanding: Control | None = None
    """The revision that waits for its acknowledgment."""
    held: dict[str, Value] = field(default_factory=dict)
    """What was in force before the outstanding revision."""
    applied: int = 0
    refused: int = 0
    acknowledged: int = 0
    """The highest revision that the workload answered."""
    decisions: dict[str, Decision] = field(default_factory=dict)
    revisions: dict[int, str] = field(default_factory=dict)
    """Revision to decision."""
    outcomes: int = 0
    """The highest revision whose outcome is on record."""
    rejections: list[str] = field(default_factory=list)
    """The last reasons for which answers were rejected or refused."""
    restarts: int = 0
    failures: int = 0
    failure: events.Failure | None = None
    """The last one."""

    def fold(self, payload: events.Payload) -> None:
        """Take one event in."""
        match payload:
            case events.RunStarted():
                self.started = payload
            case events.SnapshotTaken():
                self.asked += 1
                self.last_step = int(payload.snapshot["progress"]["step"])
                self.last_evals = int(payload.snapshot["progress"]["evaluations"])
                self.waiting = payload.decision
                if payload.trigger == "alarm":
                    self.last_alarm = self.last_evals
                self.alarms = self._alarms(payload.snapshot.get("signals", {}))
            case events.Request():
                self.spent = self.spent.asked()
            case events.Reply():
                self.spent = self.spent.answered(
                    payload.prompt_tokens, payload.completion_tokens, payload.money, payload.seconds
                )
            case events.Response():
                self.answered += 1
            case events.Verdict():
                self.waiting = None
                if payload.result == "rejected":
                    self.rejected += 1
                    self._rejection(next((check.reason for check in payload.checks if not check.ok), "rejected"))
                elif payload.action != "keep":
                    self.accepted += 1
                    decision = Decision(payload.decision, payload.diagnosis, payload.expected, payload.evidence)
                    self.decisions = dict([*self.decisions.items(), (payload.decision, decision)][-KEPT:])
            case events.OverrideIssued():
                self._issued(payload)
            case events.Acknowledged():
                self._acknowledged(payload)
            case events.Outcome():
                self.outcomes = max(self.outcomes, payload.revision)
            case events.Restarted():
                self.restarts += 1
            case events.Failure():
                self.failures += 1
                self.failure = payload
                if payload.decision == self.waiting:
                    self.waiting = None
            case events.RunEnded():
                self.ended = payload
            case _:
                pass

    def _alarms(self, signals: dict[str, Any]) -> frozenset[str]:
        if self.started is None:
            return frozenset()
        rise, noise = (None if signals.get(name) is None else float(signals[name]) for name in ("rise", "noise"))
        return self.started.manifest.policy.alarms(bool(signals.get("diverging")), rise, noise)

    def _issued(self, payload: events.OverrideIssued) -> None:
        control = payload.control
        self.revision = max(self.revision, control.revision)
        if self.outstanding is None:  # else what was held before the superseded revision still is
            self.held = dict(self.in_force)
        for override in control.schedule or [control]:
            self.revisions = dict([*self.revisions.items(), (override.revision, override.decision)][-KEPT:])
        if control.schedule is None:
            self.outstanding = control
            self.in_force = dict(control.params)

    def _acknowledged(self, payload: events.Acknowledged) -> None:
        self.acknowledged = max(self.acknowledged, payload.revision)
        if payload.result == "applied":
            self.applied += 1
        else:
            self.refused += 1
            self._rejection(f"refused by the workload: {payload.reason}")
        if self.outstanding is not None and payload.revision >= self.outstanding.revision:
            if payload.result == "refused":
                self.in_force = dict(self.held)
            self.outstanding = None

    def _rejection(self, reason: str) -> None:
        self.rejections = [*self.rejections, reason][-4:]
