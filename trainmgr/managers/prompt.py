"""A snapshot as a language model reads it, within a number of tokens whatever the run's length.

Pure, and deterministic to the byte: a replay renders the same prompt again, by the version that the log names. Text of
the workload appears quoted, in ASCII and cut short; a line of it cannot look like one of ours.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Template
from typing import Literal

from trainmgr.base.wire import short
from trainmgr.contract.policy import Policy
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.managers.prompts import VARIANTS, VERSION
from trainmgr.managers.prompts.game import Game
from trainmgr.managers.prompts.v3 import wording as v3
from trainmgr.managers.prompts.v4 import wording as v4
from trainmgr.managers.prompts.words import estimate

Task = Literal["decide", "reason", "format"]
__all__ = ["VARIANTS", "VERSION", "Prompt", "Task", "estimate", "known", "render", "repair", "room"]

WORDINGS = {"v3": v3, "v4": v4}
"""By version: its ``DETAILS``, what it says in the two messages, which parameters it shows, and below how many tokens
it is ``BRIEF``."""
ANSWER = 1536  # tokens of an embedded server's context that are left for the answer
UNWATCHED = Game(Policy(), watched=False)


@dataclass(frozen=True)
class Prompt:
    """What is sent, and what it lets be answered."""

    template: str
    """Version and wording, such as "v4/0"."""
    sha256: str
    """Of the templates."""
    system: str
    """The same for all decisions of a run, so that an endpoint finds it in its cache."""
    user: str
    parameters: tuple[str, ...]
    """Those that are shown and may be changed now: no answer may name another."""
    tokens: int
    """Estimated."""


def render(
    view: Snapshot,
    limit: int,
    *,
    task: Task = "decide",
    variant: int = 0,
    reasoning: str = "",
    advice: str = "",
    game: Game = UNWATCHED,
    version: str = VERSION,
) -> Prompt:
    """The prompt for a snapshot in at most ``limit`` estimated tokens, as detailed as fits.

    ``reasoning`` is what a reasoner said, for the task "format"; ``advice`` what the built-in rules would do, if it is
    to be told; ``game`` the rules that the answer is treated by. Where even the least detail is too long, that is sent.
    """
    wording = WORDINGS[version]
    brief = limit < wording.BRIEF
    frame, body, digest = _templates(version, task, variant, brief)
    system = wording.system(frame, view, game, brief=brief)
    prompt: Prompt | None = None
    for detail in wording.DETAILS:
        user = wording.user(body, view, detail, reasoning=reasoning, advice=advice)
        tokens = estimate(system) + estimate(user)
        prompt = Prompt(f"{version}/{variant}", digest, system, user, wording.changeable(view, detail), tokens)
        if tokens <= limit:
            break
    assert prompt is not None
    return prompt


def room(policy: Policy, manager: str, version: str = VERSION) -> int:
    """The tokens that a prompt may have for a manager of this name: an embedded server has no room for more."""
    wanted = policy.llm.prompt_tokens
    embedded = manager.startswith("local:") and version != "v3"
    return min(wanted, max(500, policy.llm.context - ANSWER)) if embedded else wanted


def known(template: str) -> tuple[str, int] | None:
    """Version and wording that the name of a template stands for; None where this program does not have it."""
    version, _, variant = template.partition("/")
    there = version in WORDINGS and variant.isdigit() and int(variant) < VARIANTS
    return (version, int(variant)) if there else None


def repair(objection: str) -> str:
    """The message after an answer that was not valid."""
    return Template(_read(VERSION, "repair.md")).substitute(objection=short(objection, 500))


@cache
def _templates(version: str, task: Task, variant: int, brief: bool = False) -> tuple[str, Template, str]:
    """System prompt, task and the SHA-256 of both; ``brief`` has one wording."""
    if not 0 <= variant < VARIANTS:
        raise ValueError(f"there are {VARIANTS} wordings, 0 to {VARIANTS - 1}")
    name = "brief.md" if brief else f"system-{variant}.md" if variant else "system.md"
    system = _read(version, name)
    body = _read(version, f"{task}.md")
    return system, Template(body), hashlib.sha256(f"{system}\0{body}".encode()).hexdigest()


@cache
def _read(version: str, name: str) -> str:
    return (resources.files("trainmgr.managers.prompts") / version / name).read_text(encoding="utf-8")
