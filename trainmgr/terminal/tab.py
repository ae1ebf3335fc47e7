"""What a Tab offers. Nothing is imported for it that takes time."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainmgr import managers
from trainmgr.base.paths import RUNS_DIR_VARIABLE, run_ids

BASH = ("_TRAINMGR_COMPLETE", "complete_bash")  # a variable that bash sets, and to what


def runs(ctx: Any, incomplete: str) -> list[str]:
    """The ids of the folder that the command line (a context of typer), or the environment, names."""
    folder = ctx.params.get("runs_dir") or os.environ.get(RUNS_DIR_VARIABLE) or "runs"
    return [name for name in ("latest", *run_ids(Path(folder))) if name.startswith(incomplete)]


def names(ctx: Any, incomplete: str) -> list[str]:
    """Names of managers; behind `replay:` the runs."""
    kind, colon, begun = incomplete.partition(":")
    if kind == "replay" and colon:
        return [f"replay:{run}" for run in runs(ctx, begun)]
    known = [name.partition("[")[0] for name in managers.NAMES]
    known = [name if name.islower() else name[: name.index(":") + 1] for name in known]  # replay:RUN
    return [name for name in known if name.startswith(incomplete)]


def asked_by_bash() -> bool:
    variable, value = BASH
    return os.environ.get(variable) == value


def in_bash(app: Callable[[], object]) -> None:
    """Print what bash is offered. It breaks words at colons, so that `replay:2026` arrives in three, and it replaces
    only what stands behind the last of them."""
    words, place = os.environ.get("COMP_WORDS", "").split("\n"), os.environ.get("COMP_CWORD", "")
    joined: list[str] = []
    for number, word in enumerate(words[: int(place) + 1] if place.isdigit() else []):
        if number > 1 and ":" in (word, words[number - 1]):
            joined[-1] += word
        else:
            joined.append(word)
    if joined:
        os.environ.update(COMP_WORDS="\n".join(joined), COMP_CWORD=str(len(joined) - 1))
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            app()
    finally:
        cut = joined[-1].rfind(":") + 1 if joined else 0
        print("".join(line[cut:] for line in said.getvalue().splitlines(keepends=True)), end="")
