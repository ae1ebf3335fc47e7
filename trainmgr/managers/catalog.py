"""Managers by name."""

from __future__ import annotations

from pathlib import Path

from trainmgr.base.errors import UserError
from trainmgr.base.paths import find_run
from trainmgr.contract.policy import Policy
from trainmgr.managers import NAMES, llm
from trainmgr.managers.adversaries import Adversary, FlipFlop, Late, Random
from trainmgr.managers.base import Manager
from trainmgr.managers.hybrid import HybridManager
from trainmgr.managers.local import LocalServer
from trainmgr.managers.none import NoManager
from trainmgr.managers.replay import Recorded
from trainmgr.managers.rules import RulesManager
from trainmgr.managers.schedules import Schedule


def known(name: str) -> bool:
    """Whether a manager could have this name, by its part before the colon."""
    return name.partition(":")[0] in {entry.partition("[")[0].partition(":")[0] for entry in NAMES}


def choose(name: str, policy: Policy) -> tuple[str, str]:
    """The manager that "auto" stands for, and why; any other name stands for itself."""
    if name != "auto":
        return name, ""
    why = llm.configured(policy)
    return ("llm", why) if why else ("rules", "no language model is configured")


def make(name: str, policy: Policy, runs_dir: Path) -> Manager:
    """The manager called ``name``; "auto" is what ``choose`` says.

    Raises UserError for a name that there is not, or a language model that cannot be asked.
    """
    kind, _, rest = choose(name, policy)[0].partition(":")
    match kind, rest:
        case "rules", "":
            return RulesManager(policy)
        case "llm", _:
            return llm.LlmManager(policy, rest or None)
        case "hybrid", _:
            return HybridManager(policy, rest or None)
        case "local", _ if rest:
            path = Path(rest).expanduser().resolve()
            secrets = (policy.llm.api_key_env,)
            server = LocalServer(path, context=policy.llm.context, threads=policy.llm.threads, secrets=secrets)
            return llm.LlmManager(policy, server=server, name=f"local:{path}")
        case "none", "":
            return NoManager()
        case "schedule", _:
            return Schedule(rest)
        case "replay", _ if rest:
            return Recorded(find_run(runs_dir, rest))
        case "random", _:
            return Random(rest)
        case "adversary", "":
            return Adversary()
        case "flipflop", "":
            return FlipFlop()
        case "late", _:
            return Late(policy, rest)
        case _:
            raise UserError(f"There is no manager {name!r}; there are: {', '.join(NAMES)}.")
