"""A supervised run at the terminal: what is shown of it meanwhile, its last words, and its exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from trainmgr.base.errors import RecordError
from trainmgr.base.paths import RunPaths
from trainmgr.contract.run_file import Closing, Manifest
from trainmgr.log import history
from trainmgr.running import launch
from trainmgr.running.exit_code import exit_code
from trainmgr.running.listener import Listener
from trainmgr.running.supervisor import Supervisor
from trainmgr.terminal import consoles, display, screen, tables

T = TypeVar("T")
Listening = Callable[[RunPaths, Manifest], Listener]


def run(request: launch.Request, *, quiet: bool = False, json: bool = False) -> int:
    """Start it and supervise it to its end; its exit code. ``quiet``: only its last words; ``json``: each event as a
    line on stdout instead of them.

    Raises what ``launch`` does.
    """
    return _supervised(lambda listener, begun: launch.launch(request, listener, begun)[1], quiet, json)


def attach(paths: RunPaths, runs_dir: Path, *, quiet: bool = False, json: bool = False) -> int:
    """The same for a run whose supervisor died."""
    say = (lambda _: None) if quiet else consoles.aside
    return _supervised(lambda listener, begun: launch.attach(paths, runs_dir, listener, begun, say=say), quiet, json)


def watched(request: launch.Request) -> RunPaths:
    """Run it to its end for somebody who wants nothing but its files."""
    with consoles.unhindered():
        return _shown(lambda listener: launch.launch(request, listener)[0])


def _supervised(call: Callable[[Listening, Callable[[Supervisor], None]], Closing], quiet: bool, json: bool) -> int:
    """Supervise to the end, say what there is to say, and the exit code: whatever becomes of the saying."""
    known: list[Supervisor] = []

    def begun(supervisor: Supervisor) -> None:
        known.append(supervisor)
        launch.hear(supervisor)

    with consoles.unhindered(json) as printers:
        closing = _shown(lambda listener: call(listener, begun), quiet, json)
        launch.settled([printer.give_up for printer in printers])
        code = exit_code(closing, known[0].state, known[0].ledger)
        if not json:
            for printer in printers:  # else the last lines could come before those that were said
                printer.drain()
            try:
                _last_words(known[0])
            except Exception as error:
                consoles.aside(
                    f"the last lines cannot be shown: {type(error).__name__}; try: trainmgr show {known[0].paths.id}"
                )
    launch.settled()
    return code


def _shown(call: Callable[[Listening], T], quiet: bool = False, json: bool = False) -> T:
    """Make the call with the view that fits: JSON lines, the live view in a terminal, plain lines elsewhere."""
    narration = consoles.narration
    if json:
        return call(lambda *_: display.JsonLines(consoles.data.file, narration.file))
    if quiet or not narration.is_terminal:
        return call(lambda *_: display.Lines(narration.file, quiet=quiet))
    views: list[screen.LiveView] = []

    def live(*_: Any) -> screen.LiveView:
        views.append(screen.LiveView(narration))
        return views[0].__enter__()

    try:
        return call(live)
    finally:
        for view in views:
            view.__exit__(None, None, None)


def _last_words(supervisor: Supervisor) -> None:
    """What its supervisor knows: to read a long run again would take a while. It did not read one that was over."""
    lacking, known = supervisor.lacking(), supervisor.now
    if not supervisor.state.records:
        with contextlib.suppress(RecordError, OSError):
            known = history.latest(supervisor.paths)
    tables.print_closing(consoles.data, known, stderr=supervisor.paths.stderr, lacking=lacking)
