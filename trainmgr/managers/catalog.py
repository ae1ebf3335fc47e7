"""Managers by name."""

from __future__ import annotations

from pathlib import Path

from trainmgr.errors import UserError
from trainmgr.managers.base import Manager
from trainmgr.managers.none import NoManager
from trainmgr.managers.replay import Recorded
from trainmgr.managers.rules import RulesManager
from trainmgr.managers.schedules import SCHEDULES, Schedule
from trainmgr.paths import find_run
from trainmgr.policy import Policy

NAMES = ("auto", "none", "rules", *(f"schedule:{name}" for name in SCHEDULES), "replay:RUN")


def make(name: str, policy: Policy, runs_dir: Path) -> Manager:
    """The manager called ``name``; "auto" is `rules`.

    Raises UserError for a name that there is not.
    """
    kind, _, rest = name.partition(":")
    match kind, rest:
        case (("auto" | "rules"), ""):
            return RulesManager(policy.rules)
        case "none", "":
            return NoManager()
        case "schedule", _:
            return Schedule(rest)
        case "replay", _ if rest:
            return Recorded(find_run(runs_dir, rest))
        case _:
            raise UserError(f"There is no manager {name!r}; there are: {', '.join(NAMES)}.")
