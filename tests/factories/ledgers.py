"""Events of the audit log: what was asked, ruled, issued and answered."""

from __future__ import annotations

from typing import Any

from trainmgr.base.wire import Value
from trainmgr.contract import events
from trainmgr.contract.protocol import Control, Issued
from trainmgr.deciding.control import next_control
from trainmgr.state.ledger import Ledger


def asked(number: int, step: int = 0, evals: int = 0, why: str = "evaluation") -> events.SnapshotTaken:
    return events.SnapshotTaken(decision=f"d{number}", trigger=why, telemetry_offset=0, telemetry_sha256="",
                                snapshot={"progress": {"step": step, "evaluations": evals}})  # fmt: skip


def ruled(number: int, result: Any = "accepted", action: Any = "adjust", reason: str = "") -> events.Verdict:
    checks = [events.Check(name="bounds", ok=not reason, reason=reason)]
    return events.Verdict(decision=f"d{number}", telemetry_offset=0, telemetry_sha256="", age_seconds=0.0,
                          result=result, action=action, diagnosis=None, changes={}, command=None, expected=None,
                          evidence="", checks=checks)  # fmt: skip


def control(of: Ledger, changes: dict[str, Value]) -> Control:
    return next_control(of, "run", f"d{of.revision + 1}", changes=changes, command=None, issued=Issued(t=0.0, step=1),
                        based_on_step=1, valid_until_step=None, at_step=None)  # fmt: skip


def issued(of: Ledger, changes: dict[str, Value]) -> events.OverrideIssued:
    content = control(of, changes)
    return events.OverrideIssued(decision=content.decision, origin="manager", control=content)


def answered(revision: int, result: Any = "applied", reason: str = "") -> events.Acknowledged:
    return events.Acknowledged(decision=f"d{revision}", revision=revision, telemetry_offset=0, result=result, step=1,
                               boundary=None, changes={}, reason=reason)  # fmt: skip
