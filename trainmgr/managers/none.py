"""`none`: observes, and never asks for anything."""

from __future__ import annotations

from typing import Any

from trainmgr.proposal import keep
from trainmgr.snapshot import Snapshot
from trainmgr.wire import plain


class NoManager:
    name = "none"
    deterministic = True

    def decide(self, snapshot: Snapshot) -> Any:
        return plain(keep("unclear", "Nobody manages this run."))
