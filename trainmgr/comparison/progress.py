"""How far a comparison is: a bar with the time left in a terminal, a line for each run that ends elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from trainmgr.base.foreign import on_terminal
from trainmgr.comparison.trials import Cell, Outcome
from trainmgr.terminal import consoles
from trainmgr.terminal.words import clock


class Bar:
    """A trials.Watcher."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            BarColumn(), TextColumn("{task.description}"), console=console, transient=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("")
        self._lock = threading.Lock()  # several runs end and tell how far they are, each in its thread
        self._begun = time.monotonic()
        self._total = self._count = self._trained = self._missing = 0
        self._shares: dict[int, float] = {}
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, total: int, reused: int) -> None:
        self._total, self._missing = total, total - reused
        self._begun = time.monotonic()
        self._bar.update(self._task, total=float(total), description=f"{reused} of {total} runs")
        if self._missing and not self._console.is_terminal:  # there the bar shows it
            self._say(f"runs to train: {self._missing}" + f"; trained before: {reused}" * bool(reused))

    def ended(self, outcome: Outcome) -> None:
        with self._lock:
            self._count += 1
            self._trained += not outcome.reused
            self._shares.pop(id(outcome.cell), None)
            run = outcome.paths.id if outcome.paths else ""
            how = f"reused: {run}" if outcome.reused else f"{outcome.seconds:.0f} s"
            end = outcome.failure or outcome.status
            left = "" if self._console.is_terminal or outcome.reused else self._left()
            self._say(f"[{self._count}/{self._total}] {outcome.cell.words}: {end} ({how}){left}")
            self._draw()

    def share(self, cell: Cell, share: float) -> None:
        with self._lock:
            self._shares[id(cell)] = share
            self._draw()

    def note(self, text: str) -> None:
        """The same text once only."""
        with self._lock:
            if text not in self._told:
                self._told.add(text)
                self._say(text)

    def _say(self, text: str) -> None:
        self._console.print(Text(on_terminal(text)), soft_wrap=True)

    def _draw(self) -> None:
        going = sum(self._shares.values())
        self._bar.update(
            self._task, completed=self._count + going,
            description=f"{self._count} of {self._total} runs{self._left()}",
        )  # fmt: skip

    def _left(self) -> str:
        """By what was trained since the beginning; empty before anything was, and at the end."""
        done = self._trained + sum(self._shares.values())
        if not done or done >= self._missing:
            return ""
        return f", about {clock((time.monotonic() - self._begun) / done * (self._missing - done))} left"


@contextlib.contextmanager
def shown() -> Iterator[Bar]:
    """The bar of a comparison on stderr, for which no run waits."""
    with consoles.unhindered(), Bar(consoles.narration) as bar:
        yield bar
