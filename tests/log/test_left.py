"""Whoever reads a log or telemetry and leaves half-way leaves no file open."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainmgr.base.paths import RunPaths
from trainmgr.log import audit
from trainmgr.log.history import History
from trainmgr.log.telemetry import Feed

(RUN,) = (RunPaths(path) for path in (Path(__file__).parents[1] / "example").iterdir())
READERS: dict[str, Callable[[RunPaths], Iterator[Any]]] = {
    "telemetry": lambda paths: Feed(paths.telemetry).records(),
    "audit log": lambda paths: audit.read(paths.audit),
    "history": lambda paths: History(paths).moments(),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_left_half_way_closes_its_file_whenever_it_is_collected(
    reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as part of a cycle, as an error and its traceback are, and where the file is of a younger generation than
    its reader: those are finalized first."""
    said: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: said.append(repr(found.exc_value)))

    def leave() -> None:
        reading: list[Any] = [READERS[reader](RUN)]
        reading.append(reading)
        gc.collect(0)
        next(reading[0])

    gc.collect()
    before = sorted(Path("/proc/self/fd").iterdir())
    gc.disable()
    try:
        leave()
        gc.collect()
    finally:
        gc.enable()
    assert said == []
    assert sorted(Path("/proc/self/fd").iterdir()) == before
