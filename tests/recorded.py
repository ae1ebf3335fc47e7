"""What the files of a real run hold, and what every run must show whatever happened in it."""

from __future__ import annotations

from typing import Any

from trainmgr.base.paths import RunPaths
from trainmgr.contract import events
from trainmgr.log import audit
from trainmgr.readers import proof, replay


def payloads(paths: RunPaths) -> list[events.Payload]:
    return [event.data for event in audit.read(paths.audit)]


def of(paths: RunPaths, kind: type[Any]) -> list[Any]:
    """The events of one kind, in order."""
    return [payload for payload in payloads(paths) if isinstance(payload, kind)]


def holds(paths: RunPaths) -> None:
    """It proves itself, and decides the same again."""
    assert [str(finding) for finding in proof.prove(paths).findings] == []
    assert replay.rebuild(paths).differences == []
