"""`none`: observes, and never asks for anything."""

from __future__ import annotations

from typing import Any

from trainmgr.base.wire import plain
from trainmgr.contract.proposal import keep
from trainmgr.deciding.snapshot import Snapshot


class NoManager:
    name = "none"
    deterministic = True

    def decide(self, snapshot: Snapshot) -> Any:
        return plain(keep("unclear", "Nobody manages this run."))
