"""From what was asked for on the command line to a supervised run."""

from __future__ import annotations

import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from trainmgr import __version__, audit, events, manifest, protocol
from trainmgr.errors import UserError
from trainmgr.history import latest
from trainmgr.managers import catalog
from trainmgr.managers.base import Consultant, Manager, Repeating
from trainmgr.paths import AUDIT_KEY_FILE_VARIABLE, RUN_DIR_VARIABLE, RunPaths, new_run
from trainmgr.policy import Policy
from trainmgr.process import HARMLESS, STAYING, belongs
from trainmgr.supervisor import Listener, Supervisor


@dataclass(frozen=True)
class Request:
    """What to run, and how."""

    script: Path
    arguments: list[str] = field(default_factory=list)
    manager: str = "auto"
    mode: events.RunMode = "auto"
    policy: Policy = field(default_factory=Policy)
    seed: int | None = None
    runs_dir: Path = Path("runs")
    name: str | None = None
    directory: Path = field(default_factory=Path.cwd)
    blocking: bool = False
    """Let training stand still during decisions, to measure what that costs."""
    say: Callable[[str], None] = lambda _: None
    """Gets what a person should know before it starts."""
    replay_of: str | None = None
    schedule: list[protocol.Override] | None = None


def attach(
    paths: RunPaths,
    runs_dir: Path,
    listener: Callable[[RunPaths, events.Manifest], Listener],
    begun: Callable[[Supervisor], None] = lambda _: None,
    *,
    manager: Manager | None = None,
) -> events.Closing:
    """Take over a run whose supervisor died while its workload goes on. ``manager`` stands for the one recorded;
    ``begun`` gets the supervisor.

    Raises UserError when there is nothing to take over; RecordError when its files do not hold together.
    """
    record, state, ledger = latest(paths)
    if ledger.ended is not None:
        raise UserError(f"{paths.id} has ended ({ledger.ended.closing.status}); there is nothing to attach to.")
    if state.start is None or not belongs(state.start.pid, RUN_DIR_VARIABLE, str(paths.root)):
        raise UserError(
            f"The workload of {paths.id} is not running any more. `trainmgr show {paths.id}` tells what is known."
        )
    key, mark = audit.given_key(), ledger.started.key if ledger.started else ""
    if mark and key is None:
        raise UserError(
            f"The log of {paths.id} is keyed, and only its key ({mark}) can write it on: set "
            f"{AUDIT_KEY_FILE_VARIABLE} to the file that holds it."
        )
    manager = manager or catalog.make(record.manager, record.policy, runs_dir)
    with ready(manager):
        supervisor = Supervisor(
            paths, record, None if manager.name == "none" else manager, listener(paths, record), key=key
        )
        begun(supervisor)
        with _keyboard(supervisor):
            return supervisor.attach(state.start.pid)


def launch(
    request: Request,
    listener: Callable[[RunPaths, events.Manifest], Listener],
    begun: Callable[[Supervisor], None] = lambda _: None,
    *,
    manager: Manager | None = None,
) -> tuple[RunPaths, events.Closing]:
    """Run it to its end.

    ``manager`` stands for the one that the request names. ``begun`` gets the supervisor, for whoever wants to interrupt
    it from another thread.

    Raises UserError for what cannot be, before anything is started; WorkloadError when the script cannot be started.
    """
    script = request.directory / request.script  # a replay may come from elsewhere
    command = manifest.command_of(script, request.arguments)
    key = audit.given_key()
    manager = manager or catalog.make(request.manager, request.policy, request.runs_dir)
    with ready(manager, say=request.say):
        now = time.time()
        paths = new_run(request.runs_dir, request.name or request.script.stem, datetime.fromtimestamp(now).astimezone())
        record = events.Manifest(
            version=__version__,
            id=paths.id,
            created=round(now, 3),
            command=command,
            script=str(request.script),
            arguments=request.arguments,
            directory=str(request.directory),
            seed=request.seed,
            git=manifest.git_of(script),
            python=platform.python_version(),
            packages=manifest.packages(),
            machine=manifest.machine(),
            manager=manager.name,
            mode=request.mode,
            blocking=request.blocking,
            replay_of=request.replay_of,
            policy=request.policy,
        )
        supervisor = Supervisor(
            paths,
            record,
            None if manager.name == "none" else manager,
            listener(paths, record),
            schedule=request.schedule,
            key=key,
        )
        begun(supervisor)
        with _keyboard(supervisor):
            closing = supervisor.run()
        if isinstance(manager, Repeating) and (text := manager.left_out()):
            request.say(text)
        return paths, closing


@contextmanager
def ready(manager: Manager, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """A manager that needs something outside gets it first, and gives it back. ``say`` gets what it may cost."""
    if not isinstance(manager, Consultant):
        yield
        return
    try:
        manager.open()
        say(manager.preflight())
        yield
    finally:
        manager.close()


def end_as_at_the_keyboard() -> None:
    """Let every signal that would end this process end what it started, too, as Ctrl-C does.

    For a process with several runs: a script that leaves early at a warning which is passed on would count as complete.
    """
    others = _unheard({signal.SIGHUP} | (signal.valid_signals() - STAYING - HARMLESS))
    for number in {signal.SIGTERM, *others}:
        signal.signal(number, signal.default_int_handler)


def _unheard(numbers: Iterable[int]) -> set[int]:
    """Those that nobody handles or ignores yet."""
    return {number for number in numbers if signal.getsignal(number) is signal.SIG_DFL}


@contextmanager
def _keyboard(supervisor: Supervisor) -> Iterator[None]:
    """Hand Ctrl-C, SIGTERM and what is meant for the script to the supervisor. Other threads than the first cannot.

    A terminal that is closed (SIGHUP) is no reason to leave the run alone. Every one of them gets a handler, since what
    is ignored here would be ignored in the script, too. What was ignored before (``nohup``) stays so in both; what
    another part of this process handles stays with it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(number: int, _: object) -> None:
        if number == signal.SIGINT:
            supervisor.interrupt("Ctrl-C")
        elif number == signal.SIGTERM:
            supervisor.interrupt("SIGTERM")
        else:
            supervisor.signalled(number)

    numbers = {signal.SIGINT, signal.SIGTERM, *_unheard({signal.SIGHUP} | (signal.valid_signals() - STAYING))}
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
