"""The two consoles of a command: its results go to stdout, and to stderr what a person may want to know besides."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from trainmgr.base.foreign import on_terminal
from trainmgr.terminal import output

data = Console(width=None if os.isatty(1) else 160)  # a pipe has no width: tables get room
narration = Console(stderr=True)
JSON_LIMIT = 1 << 24  # characters of events that wait for their reader
UNREAD = "({} lines were not shown: they were not taken in time)\n"


def aside(text: str, style: str = "dim") -> None:
    """A line that a person may want to know, and no program."""
    narration.print(Text(on_terminal(text)), style=style, soft_wrap=True)


@contextlib.contextmanager
def unhindered(json: bool = False) -> Iterator[list[output.Printer]]:
    """While a run is supervised, nobody waits for the reader of stdout or stderr. Yields what prints there."""
    limit, notice = (JSON_LIMIT, "") if json else (output.LIMIT, UNREAD)
    with output.printing(sys.stderr, notice=UNREAD) as err, output.printing(sys.stdout, limit, notice) as out:
        narration.file, data.file = err, out
        try:
            yield [stream for stream in (err, out) if isinstance(stream, output.Printer)]
            if json and isinstance(out, output.Printer):
                out.close()
                if out.missing:
                    aside(f"{out.missing} events were not read from stdout in time; audit.jsonl has all of them")
        finally:
            narration.file = data.file = None  # type: ignore[assignment]  # whatever these are then
