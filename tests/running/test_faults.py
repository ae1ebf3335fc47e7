"""A failing disk, a file system that loses its grip, a fault of our own: the training goes on, nothing is changed that
is not on record, management goes on as soon as it can, and audit holds or names exactly the damage."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from factories.faults import LOOSE, STAYS, messages, one, real
from recorded import holds, of
from watchdog.utils import BaseThread

from trainmgr.base import files, process
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Process
from trainmgr.log import audit, journal
from trainmgr.readers import proof
from trainmgr.running import launch, supervisor
from trainmgr.state.ledger import Ledger
from trainmgr.testing import (
    EXACT,
    LINE,
    PYTHON,
    TIME_LIMIT,
    Recorder,
    ScriptedManager,
    answer,
    supervise,
    wait_for,
    write_child,
    write_shell,
)

# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["ESTALE", "EIO", "EMFILE"])
def test_a_look_at_telemetry_that_fails_is_taken_again(tmp_path: Path, code: str) -> None:
    fault = f"""
looks = 0
def fault(path):
    global looks
    if path.endswith("telemetry.jsonl"):
        looks += 1
        if looks in (2, 3, 5, 7):
            raise OSError(errno.{code}, os.strerror(errno.{code}), path)
"""
    done = real(tmp_path, write_child(tmp_path), fault)
    paths = one(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (of(paths, events.RunEnded)[0].closing.steps, len(of(paths, events.Verdict))) == (24, 11)
    (told,) = messages(paths, "reading")
    assert told.startswith(f"telemetry.jsonl cannot be read: {os.strerror(getattr(errno, code))}")
    assert told in " ".join(done.stderr.split())
    holds(paths)


def test_a_read_that_fails_in_the_middle_loses_no_record_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, handed = files.Tail.lines, 0

    def failing(tail: files.Tail, until: int | None = None) -> Iterator[bytes]:
        nonlocal handed
        for line in lines(tail, until):
            handed += 1
            yield line
            if handed % 5 == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    script = write_child(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files.Tail, "lines", failing)
        paths, closing, heard = supervise(tmp_path, script, ScriptedManager([answer("adjust", {"lr": 0.2})]))
    assert (closing.status, closing.steps, closing.interventions) == ("completed", 24, 1)
    assert [record.seq for record in heard.records] == list(range(len(heard.records)))
    assert len(messages(paths, "reading")) == 1
    holds(paths)


def test_an_end_that_could_not_be_read_is_called_that_and_not_written_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk gives nothing back from step 8 on, and all of it once the run is closed."""
    real, broken = files.open_regular, False

    def opened(path: Path) -> Any:
        if broken and path.name == "telemetry.jsonl":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    def heard(record: Any, _: Any) -> None:
        nonlocal broken
        if isinstance(record, protocol.Eval) and record.step == 8:
            broken = True
            (one(tmp_path).root / "go").touch()

    monkeypatch.setattr(files, "open_regular", opened)
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, STAYS), listener=Recorder(on_record=heard))
    monkeypatch.undo()
    assert (closing.exit_code, closing.steps) == (0, 8)
    found = proof.prove(paths)
    assert [str(finding) for finding in found.findings] == []
    assert any("are not anchored: the log says that the supervisor could not read them" in note for note in found.notes)


def test_a_read_that_failed_once_holds_up_none_that_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, sleep, failed, waits = files.Tail.lines, time.sleep, False, 0

    def once(tail: files.Tail, until: int | None = None) -> Iterator[bytes]:
        nonlocal failed
        if not tail.path.exists() or b'"end"' not in tail.path.read_bytes():
            return iter(())
        if not failed:
            failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return lines(tail, until)

    def slept(seconds: float) -> None:
        nonlocal waits
        waits += seconds == supervisor.PAUSE
        sleep(0 if seconds == supervisor.PAUSE else seconds)

    monkeypatch.setattr(files.Tail, "lines", once)
    monkeypatch.setattr(supervisor, "SLICE", 1)
    monkeypatch.setattr(supervisor, "PAUSE", 0.123)
    monkeypatch.setattr(time, "sleep", slept)
    paths, closing, heard = supervise(tmp_path, write_child(tmp_path, STAYS.replace("evals != 4 or", "True or")))
    assert (closing.status, closing.steps, len(heard.records) > 30) == ("completed", 24, True)
    assert waits <= 1
    holds(paths)


def test_telemetry_that_cannot_be_read_is_no_script_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = LINE.replace("until(lambda: settled(evals))", "(evals == 4) and until(lambda: (RUN / 'go').exists())")
    lines, failed = files.Tail.lines, 0

    def deaf(tail: files.Tail, until: int | None = None) -> Iterator[bytes]:
        nonlocal failed
        if listener.paths and listener.records and failed < 60:  # longer than the limit
            failed += 1
            if failed == 60:
                (listener.paths.root / "go").touch()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return lines(tail, until)

    monkeypatch.setattr(files.Tail, "lines", deaf)
    monkeypatch.setattr(supervisor, "POLL", 0.05)
    listener = Recorder()
    policy = EXACT.model_copy(update={"process": Process(stall_timeout=2.0)})
    _, closing, _ = supervise(tmp_path, write_child(tmp_path, body), listener=listener, policy=policy)
    assert (closing.status, closing.steps) == ("completed", 24)


def test_a_script_that_is_faster_than_its_reader_is_managed_and_can_be_stopped(tmp_path: Path) -> None:
    """It writes until it is told to stop: a reader that first reads everything would never come to tell it."""
    body = """
recipe = {"lr": 0.1}
w = Workload("fast", objective="loss", total_steps=10**9)
w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.01, high=1.0, max_ratio=2.0)
w.command("stop", lambda to: None)
record = '{"v":1,"seq":%d,"t":1.0,"event":"step","step":%d,"metrics":{"loss":1.0}}\\n'
now = 0
with w:
    for block in range(1, 1000):
        w.flush()
        first = w._writer.seq
        os.write(w._writer.fd, "".join(record % (first + i, now + 1 + i) for i in range(5000)).encode())
        w._writer.seq, now = first + 5000, now + 5000
        w.eval(now, {"loss": 1.0 / block})
        if w.stopping:
            break
        time.sleep(0.1)
"""
    asked = 0

    def heard(event: events.Payload) -> None:
        nonlocal asked
        asked += isinstance(event, events.Verdict)
        if asked == 2 and isinstance(event, events.Verdict):
            known[0].interrupt("SIGTERM")

    known: list[supervisor.Supervisor] = []
    listener = Recorder(on_event=heard)
    listener.records = Forgetful()
    request = launch.Request(
        script=write_child(tmp_path, body), manager="none", policy=LOOSE, seed=1, runs_dir=tmp_path / "runs",
        directory=tmp_path,
    )  # fmt: skip
    manager = ScriptedManager([answer("adjust", {"lr": 0.2})])
    paths, closing = launch.launch(request, lambda *_: listener, known.append, manager=manager)
    assert (closing.status, closing.exit_code) == ("interrupted", 0)
    assert asked >= 2
    assert [operator.by for operator in of(paths, events.Operator)] == ["SIGTERM"]
    holds(paths)


class Forgetful(list[Any]):
    """Records that nobody wants to keep."""

    def append(self, item: Any) -> None:
        pass


def test_a_script_that_goes_on_reporting_in_the_background_is_not_read_for_ever(tmp_path: Path) -> None:
    """What was started has ended; what it left behind writes faster than anybody reads."""
    body = """
record = "".join('{"v":1,"seq":%d,"t":1.0,"event":"step","step":%d,"metrics":{"loss":1.0}}\\n' % (i, i)
                 for i in range(1, 1001)).encode()
with Workload("fast", objective="loss", total_steps=10**9) as w:
    w.eval(1, {"loss": 1.0})
    limit = time.monotonic() + 60
    while not (RUN / "go").exists() and time.monotonic() < limit:
        os.write(w._writer.fd, record)
        time.sleep(0.01)
"""
    write_child(tmp_path, body)
    wrapper = write_shell(
        tmp_path,
        f"""{PYTHON} {tmp_path}/child.py > /dev/null 2>&1 &
until grep -q eval "$TRAINMGR_RUN_DIR/telemetry.jsonl"; do sleep 0.1; done
""",
    )
    listener = Recorder()
    listener.records = Forgetful()
    paths, closing, _ = supervise(tmp_path, wrapper, listener=listener)
    try:
        (failure,) = [e for e in listener.of(events.Failure) if e.where == "workload"]
        assert "goes on unsupervised" in failure.message
        assert (closing.status, closing.exit_code) == ("failed", 0)
    finally:
        (paths.root / "go").touch()
        wait_for(lambda: not process.living("TRAINMGR_RUN_DIR", str(paths.root)), "the end of the script")


# -- too little of the system ------------------------------------------------------------------------------------------


def test_a_thread_that_cannot_be_had_costs_one_answer_and_the_events_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third question has nobody to ask, the watcher of the file none to watch: supervision goes on."""
    start, asked = threading.Thread.start, 0

    def started(thread: threading.Thread) -> None:
        nonlocal asked
        asked += thread.name == "manager"
        if (thread.name == "manager" and asked == 3) or isinstance(thread, BaseThread):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", started)
    monkeypatch.setattr(supervisor, "POLL", 0.05)
    manager = ScriptedManager([answer("adjust", {"lr": 0.3})])
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path), manager, policy=LOOSE)
    assert (closing.status, closing.exit_code) == ("completed", 0)
    assert messages(paths, "manager") == ["nobody could be asked: can't start new thread"]
    assert len(of(paths, events.SnapshotTaken)) == len(of(paths, events.Verdict)) + 1 > 3
    holds(paths)


def test_messages_that_are_too_many_to_keep_cost_no_word_on_a_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses the log: signals may come as often as somebody likes, and whoever waits must hear of its end."""
    log = audit.Log(tmp_path / "audit.jsonl")
    kept = journal.Journal(log, Ledger(), lambda _: None, lambda: 0.0)
    with log:
        kept.ledger.waiting = "d1"
        monkeypatch.setattr(log, "append", refuse)
        for _ in range(2 * journal.LIMIT):
            kept.append(events.Signalled(name="SIGUSR1", passed=True))
        assert kept.kept == journal.LIMIT
        kept.append(events.Failure(where="manager", message="no answer", decision="d1"))
        assert kept.ledger.waiting is None
        monkeypatch.undo()
        assert kept.flush()
    assert [e.data.decision for e in audit.read(tmp_path / "audit.jsonl") if isinstance(e.data, events.Failure)] == [
        None, "d1",
    ]  # fmt: skip


def refuse(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- a fault of our own ------------------------------------------------------------------------------------------------


def test_a_fault_of_our_own_leaves_the_script_running_and_says_how_to_attach(tmp_path: Path) -> None:
    fault = """
from trainmgr.state.run_state import RunState
def broken(self, record, *more, fold=RunState.fold):
    if self.step >= 8:
        raise KeyError("a fault of ours")
    fold(self, record, *more)
RunState.fold = broken
"""
    done = real(tmp_path, write_child(tmp_path, STAYS), fault)
    paths = one(tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    assert "KeyError in" in said
    assert f"trainmgr attach {paths.id}" in said
    (told,) = messages(paths, "supervisor")
    assert told.endswith("the script is left running")
    pid = json.loads(paths.telemetry.read_bytes().splitlines()[0])["pid"]
    assert process.belongs(pid, "TRAINMGR_RUN_DIR", str(paths.root))
    (paths.root / "go").touch()
    closing = launch.attach(paths, tmp_path / "runs", lambda *_: Recorder())
    assert (closing.status, closing.steps) == ("completed", 24)
    holds(paths)


# -- clocks ------------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_makes_no_answer_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [2_000_000_000.0]

    def jumping() -> float:
        now[0] -= 3600.0
        return now[0]

    monkeypatch.setattr(launch, "Supervisor", partial(supervisor.Supervisor, clock=jumping))
    manager = ScriptedManager([answer("adjust", {"lr": 0.2})])
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path), manager)
    assert closing.interventions == 1
    assert all(0 <= ruling.age_seconds < TIME_LIMIT for ruling in of(paths, events.Verdict))
    holds(paths)
