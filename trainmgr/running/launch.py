"""From what was asked for on the command line to a supervised run."""

from __future__ import annotations

import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from trainmgr import __version__
from trainmgr.base import files
from trainmgr.base.errors import RecordError, TrainmgrError, UserError
from trainmgr.base.paths import RunPaths, new_run
from trainmgr.base.process import HARMLESS, STAYING
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Policy
from trainmgr.contract.run_file import EDITION, Closing, Manifest, RunMode, render_run_file
from trainmgr.log import audit
from trainmgr.log.history import manifest_of
from trainmgr.managers import catalog
from trainmgr.managers.base import Consultant, Manager, Repeating
from trainmgr.running import manifest
from trainmgr.running.listener import Listener
from trainmgr.running.supervisor import Supervisor
from trainmgr.sources.reading import Reading


@dataclass(frozen=True)
class Request:
    """What to run, and how."""

    script: Path
    arguments: list[str] = field(default_factory=list)
    manager: str = "auto"
    mode: RunMode = "auto"
    policy: Policy = field(default_factory=Policy)
    seed: int | None = None
    runs_dir: Path = Path("runs")
    name: str | None = None
    directory: Path = field(default_factory=Path.cwd)
    blocking: bool = False
    """Let training stand still during decisions, to measure what that costs."""
    reading: Reading | None = None
    """How the script is read, where it reports nothing itself."""
    say: Callable[[str], None] = lambda _: None
    """Gets what a person should know before it starts."""
    replay_of: str | None = None
    schedule: list[protocol.Override] | None = None


def attach(
    paths: RunPaths,
    runs_dir: Path,
    listener: Callable[[RunPaths, Manifest], Listener],
    begun: Callable[[Supervisor], None] = lambda _: None,
    *,
    manager: Manager | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Closing:
    """Take over a run whose supervisor died: go on while its workload does, else close it. ``manager`` stands for the
    one recorded; ``begun`` gets the supervisor, ``say`` what a person should know.

    Raises UserError when there is nothing to take over; RecordError when its log does not hold together.
    """
    record, key = manifest_of(paths), audit.given_key()
    with audit.Log(paths.audit, key) as log:  # what is read from here on is the last of it
        supervisor = Supervisor(paths, record, None, listener(paths, record), key=key)
        begun(supervisor)
        try:
            pid = supervisor.take_up(log)
        except UserError:
            closing = _restored(paths)
            if closing is None:
                raise
            say(f"{paths.id} has ended ({closing.status}); run.json did not say so, and was written again")
            return closing
        except (TrainmgrError, OSError):
            raise
        except Exception as error:
            raise supervisor.left_alone(error) from error
        if pid is None:
            say(f"the workload of {paths.id} is not running any more: the run is closed")
            return supervisor.close()
        manager = manager or catalog.make(record.manager, record.policy, runs_dir)
        with ready(manager, say), _keyboard(supervisor):
            return supervisor.attach(pid, None if manager.name == "none" else manager)


def _restored(paths: RunPaths) -> Closing | None:
    """How a run whose log has its end ended, where run.json did not have that and was written again; else None."""
    first: audit.Event | None = None
    last: audit.Event | None = None
    for event in audit.read(paths.audit):
        first, last = first or event, event
    if first is None or last is None or not isinstance(last.data, events.RunEnded):
        return None
    content = render_run_file(first.values()["manifest"], last.values()["closing"])
    with suppress(OSError):  # nothing there, or something else in its place
        if files.read_regular(paths.manifest) == content:
            return None
    try:
        files.replace(paths.manifest, content)
    except OSError as error:
        raise RecordError(f"{paths.manifest} cannot be written: {error.strerror}.") from None
    return last.data.closing


def launch(
    request: Request,
    listener: Callable[[RunPaths, Manifest], Listener],
    begun: Callable[[Supervisor], None] = lambda _: None,
    *,
    manager: Manager | None = None,
) -> tuple[RunPaths, Closing]:
    """Run it to its end.

    ``manager`` stands for the one that the request names. ``begun`` gets the supervisor, for whoever wants to interrupt
    it from another thread.

    Raises UserError for what cannot be, before anything is started; WorkloadError when the script cannot be started.
    """
    script = request.directory / request.script  # a replay may come from elsewhere
    command = manifest.command_of(script, request.arguments)
    if request.reading is not None:
        if request.blocking:
            raise UserError("--blocking stops what reports, and a script that is only read would go on. Leave it out.")
        grace = request.policy.process.grace
        command = manifest.watching(command, request.reading, request.name or request.script.stem, grace)
    key = audit.given_key()
    manager = manager or catalog.make(request.manager, request.policy, request.runs_dir)
    if request.reading is not None and manager.name != "none":
        request.say(f"a script that is only read has nothing to change: all that {manager.name} can do is stop it")
    manifest.recordable(str(request.directory), manager.name)
    with ready(manager, say=request.say):
        now = time.time()
        paths = new_run(request.runs_dir, request.name or request.script.stem, datetime.fromtimestamp(now).astimezone())
        record = Manifest(
            version=__version__,
            id=paths.id,
            created=round(now, 3),
            command=command,
            script=str(request.script),
            arguments=request.arguments,
            directory=str(request.directory),
            seed=request.seed,
            git=manifest.git_of(script, (request.policy.llm.api_key_env,)),
            python=platform.python_version(),
            packages=manifest.packages(),
            machine=manifest.machine(),
            manager=manager.name,
            mode=request.mode,
            blocking=request.blocking,
            replay_of=request.replay_of,
            reading=request.reading.options() if request.reading is not None else [],
            edition=EDITION,
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
        for line in manager.preflight().splitlines():
            say(line)
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


def hear(supervisor: Supervisor) -> dict[int, Any]:
    """Hand Ctrl-C, SIGTERM and what is meant for the script to the supervisor; the handlers that were there before.

    A terminal that is closed (SIGHUP) is no reason to leave the run alone. Every one of them gets a handler, since what
    is ignored here would be ignored in the script, too. What was ignored before (``nohup``) stays so in both; what
    another part of this process handles stays with it. Other threads than the first cannot.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}

    def heard(number: int, _: object) -> None:
        if number == signal.SIGINT:
            supervisor.interrupt("Ctrl-C")
        elif number == signal.SIGTERM:
            supervisor.interrupt("SIGTERM")
        else:
            supervisor.signalled(number)

    numbers = {signal.SIGINT, signal.SIGTERM, *_unheard({signal.SIGHUP} | (signal.valid_signals() - STAYING))}
    return {number: signal.signal(number, heard) for number in numbers}


@contextmanager
def _keyboard(supervisor: Supervisor) -> Iterator[None]:
    """``hear`` while it is supervised."""
    before = hear(supervisor)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def settled(do: Sequence[Callable[[], object]] = ()) -> None:
    """The exit code is known: no signal changes it any more, each does only that. Without it, until the very end."""

    def heard(*_: object) -> None:
        for each in do:
            each()

    _instead(heard if do else signal.SIG_IGN)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whoever presses Ctrl-C twice, or a batch system that repeats itself, does not interrupt what ends the runs."""
    before = _instead(lambda *_: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _instead(handler: Any) -> dict[int, Any]:
    """Give to a handler what is handled by another; the handlers that were there before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} | (signal.valid_signals() - STAYING)
    return {number: signal.signal(number, handler) for number in numbers if callable(signal.getsignal(number))}
