"""Honest runs that are not like others: what looks like a forgery and is none."""

from __future__ import annotations

import errno
import json
import os
import queue
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories.forging import ALONE, edited, of, rewritten
from recorded import holds

from trainmgr.base import files, process
from trainmgr.base.paths import RunPaths, list_runs
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Actions, Limits, Policy, Process
from trainmgr.contract.run_file import Closing, Manifest
from trainmgr.log import audit
from trainmgr.readers import proof
from trainmgr.running import launch, supervisor
from trainmgr.state.situation import Situation
from trainmgr.testing import (
    EXACT,
    LINE,
    Recorder,
    ScriptedManager,
    answer,
    supervise,
    wait_for,
    write_child,
    write_shell,
)

SAYS = """
T=$TRAINMGR_RUN_DIR/telemetry.jsonl
echo '{"v":1,"seq":0,"t":1.0,"event":"start","workload":"says","pid":'$$',"objective":{"metric":"loss","mode":"min"}}' >> $T
echo '{"v":1,"seq":1,"t":1.0,"event":"end","status":"STATUS","step":0}' >> $T
exit CODE
"""  # noqa: E501


class Dies(BaseException):
    """A supervisor that is killed."""


def dying(patch: pytest.MonkeyPatch, at: Callable[[events.Payload], bool]) -> None:
    """Whoever writes the log is killed right behind the first event that ``at`` finds."""
    append, dead = audit.Log.append, False

    def last(log: audit.Log, payload: events.Payload, t: float) -> audit.Event:
        nonlocal dead
        event = append(log, payload, t)
        if at(payload) and not dead:
            dead = True
            raise Dies
        return event

    patch.setattr(audit.Log, "append", last)


def ends(paths: RunPaths) -> Closing:
    """Another supervisor closes it; everything holds."""
    closing = launch.attach(paths, paths.root.parent, lambda *_: Recorder())
    holds(paths)
    return closing


@pytest.mark.parametrize(("said", "code", "status"), [
    ("done", 0, "completed"), ("unknown", 0, "completed"), ("done", 3, "failed"), ("interrupted", 130, "interrupted"),
])  # fmt: skip
def test_how_a_script_itself_calls_its_end_is_no_forgery(tmp_path: Path, said: str, code: int, status: str) -> None:
    body = SAYS.replace("STATUS", said).replace("CODE", str(code))
    paths, closing, _ = supervise(tmp_path, write_shell(tmp_path, body))
    assert (closing.status, closing.exit_code) == (status, code)
    holds(paths)


def test_a_stop_that_comes_before_anything_was_read_is_no_stop_that_was_not_issued(tmp_path: Path) -> None:
    """Nobody knew yet that the script can be asked for it; it says so in its last moment."""
    start = SAYS.splitlines()[2].replace('"pid"', '"commands":["stop"],"pid"')
    body = f"""T=$TRAINMGR_RUN_DIR/telemetry.jsonl
last() {{
{start}
exit 0
}}
trap last INT
touch $TRAINMGR_RUN_DIR/ready
while true; do sleep 0.01; done
"""
    known: list[Any] = []

    class Presses(Recorder):
        def tick(self, now: Situation) -> None:
            if self.paths is not None and (self.paths.root / "ready").exists() and not now.ledger.ending:
                known[0].interrupt("Ctrl-C")

    listener = Presses()

    def listen(paths: RunPaths, _: Any) -> Recorder:
        listener.paths = paths
        return listener

    request = launch.Request(script=write_shell(tmp_path, body), manager="none", policy=EXACT, seed=1,
                             runs_dir=tmp_path / "runs", directory=tmp_path)  # fmt: skip
    paths, closing = launch.launch(request, listen, known.append)
    assert closing.status == "interrupted"
    assert [type(e.data) for e in audit.read(paths.audit)] == [events.RunStarted, events.Operator, events.RunEnded]
    assert b'"stop"' in paths.telemetry.read_bytes()
    holds(paths)


def test_a_disk_that_refuses_the_end_puts_nothing_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, refused = audit.Log.append, 0

    def scarce(log: audit.Log, payload: events.Payload, t: float) -> audit.Event:
        nonlocal refused
        if isinstance(payload, events.RunEnded) and (refused := refused + 1) <= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return append(log, payload, t)

    monkeypatch.setattr(audit.Log, "append", scarce)
    paths, _, heard = supervise(tmp_path, write_child(tmp_path))
    assert isinstance([event.data for event in audit.read(paths.audit)][-1], events.RunEnded)
    assert any("No space left" in failure.message for failure in heard.of(events.Failure))
    holds(paths)


def test_a_supervisor_that_dies_before_it_issues_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its successor has an answer to acknowledge first."""
    body = LINE.replace("until(lambda: settled(evals))", "evals != 1 or until(lambda: (RUN / 'go').exists())")
    known: list[Any] = []

    def issued(event: events.Payload) -> None:
        if isinstance(event, events.OverrideIssued):
            known[0].interrupt("Ctrl-C")

    script, listener = write_child(tmp_path, body), Recorder(on_event=issued)
    policy = EXACT.model_copy(update={"limits": Limits()})
    request = launch.Request(script=script, manager="none", policy=policy, seed=1, runs_dir=tmp_path / "runs",
                             directory=tmp_path)  # fmt: skip
    manager = ScriptedManager([answer("adjust", {"lr": 0.3})])
    with monkeypatch.context() as patch:
        dying(patch, lambda event: isinstance(event, events.Operator))
        with pytest.raises(Dies):
            launch.launch(request, lambda *_: listener, known.append, manager=manager)
    (paths,) = list_runs(tmp_path / "runs")
    pid = json.loads(paths.telemetry.read_bytes().splitlines()[0])["pid"]
    (paths.root / "go").touch()
    wait_for(lambda: not process.alive(pid), "the end of the script")
    assert ends(paths).interventions == 1
    payloads = [event.data for event in audit.read(paths.audit)]
    at = of(payloads, events.Operator)
    assert [type(payload) for payload in payloads[at + 1 : at + 3]] == [events.Acknowledged, events.Attached]


def test_a_supervisor_that_dies_before_it_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was on trial is taken back all the same."""
    body = LINE.replace(
        "            until(lambda: settled(evals))\n",
        "            until(lambda: settled(evals))\n"
        "            if any(e['kind'] == 'acknowledged' for e in log()):\n                os._exit(9)\n",
    )
    policy = Policy(process=Process(restarts=1))
    with monkeypatch.context() as patch:
        dying(patch, lambda event: isinstance(event, events.Reverted) and event.why == "crash")
        with pytest.raises(Dies):
            supervise(
                tmp_path, write_child(tmp_path, body), ScriptedManager([answer("adjust", {"lr": 0.3})] * 9),
                policy=policy,
            )  # fmt: skip
    (paths,) = list_runs(tmp_path / "runs")
    assert ends(paths).reversals == 1
    payloads = [event.data for event in audit.read(paths.audit)]
    at = of(payloads, events.Reverted)
    assert [type(payload) for payload in payloads[at + 1 : at + 3]] == [events.OverrideIssued, events.Attached]


def test_a_supervisor_that_dies_before_it_writes_the_schedule_of_a_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = [protocol.Override(revision=1, params={"lr": 0.3}, based_on_step=4, valid_until_step=None, at_step=5,
                                  decision="d1")]  # fmt: skip
    with monkeypatch.context() as patch:
        dying(patch, lambda event: isinstance(event, events.OverrideIssued))
        with pytest.raises(Dies):
            supervise(tmp_path, write_child(tmp_path), schedule=schedule)
    (paths,) = list_runs(tmp_path / "runs")
    assert not paths.control.exists()
    assert ends(paths).status == "failed"


LATE = """
import signal

def late(*_):
    w.eval(10, {"loss": 10.0})
    w.flush()
    os._exit(3)

w = Workload("late", objective="loss", total_steps=12)
w.float("lr", get=lambda: 0.1, set=lambda v: None, low=0.0, high=1.0)
w.command("stop", lambda to: None)
with w:
    for step in w.steps():
        w.step(step, {"loss": float(step)})
        if step % 2 == 0:
            w.eval(step, {"loss": float(step)})
        if step == 2:
            w.checkpoint(step, "checkpoints/none", {"loss": 2.0}, best=True)
        if step == 8 and not (RUN / "once").exists():
            (RUN / "once").touch()
            signal.signal(signal.SIGTERM, late)
            w.flush()
            time.sleep(60)
"""


def test_what_is_measured_while_a_hung_script_is_ended_is_not_judged(tmp_path: Path) -> None:
    """The restart lifts that; it was read before. Older logs do not say how much had been read by then."""
    policy = EXACT.model_copy(
        update={"process": Process(restarts=1, stall_timeout=1.0), "actions": Actions(end_on_best=True)}
    )
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, LATE), policy=policy)
    payloads = [event.data for event in audit.read(paths.audit)]
    restart = payloads[of(payloads, events.Restarted)]
    before = paths.telemetry.read_bytes()[: restart.telemetry_offset].splitlines()
    assert json.loads(before[-1])["event"] == "eval"
    assert closing.status in ("completed", "stopped")
    holds(paths)
    assert rewritten(paths, tmp_path / "old", edited(events.Restarted, 0, telemetry_offset=None)) == []


def test_an_end_of_telemetry_that_could_not_be_read_is_said_and_no_forgery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, read = files.Tail.lines, 0

    def broken(tail: files.Tail, until: int | None = None) -> Any:
        nonlocal read
        for line in lines(tail, until) if read < 20 else ():
            yield line
            if (read := read + 1) == 20:
                break
        if read >= 20:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def unread(_: files.Tail) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(files.Tail, "lines", broken)
        patch.setattr(files.Tail, "rest", unread)
        patch.setattr(supervisor, "PAUSE", 0.0)
        paths, _, _ = supervise(tmp_path, write_child(tmp_path))
    holds(paths)
    assert any("the log says that the supervisor could not read them" in note for note in proof.prove(paths).notes)


def test_a_disk_that_refuses_the_log_until_the_end_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop is on record in the end, and was never written into the control file."""
    append, full = audit.Log.append, False

    def scarce(log: audit.Log, payload: events.Payload, t: float) -> audit.Event:
        nonlocal full
        full |= isinstance(payload, events.Operator)
        if full and listener.events and not any(isinstance(e, events.RunEnded) for e in listener.events):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return append(log, payload, t)

    def press(record: Any, _: Any) -> None:
        if isinstance(record, protocol.Step) and record.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(audit.Log, "append", scarce)
    listener = Recorder(on_record=press)
    body = ALONE + "        if step == 4:\n            time.sleep(60)\n"
    policy = EXACT.model_copy(update={"process": Process(grace=0.2)})
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), listener=listener, policy=policy)
    assert closing.status == "interrupted"
    assert not paths.control.exists()
    holds(paths)


def test_telemetry_that_was_replaced_by_a_copy(tmp_path: Path) -> None:
    """As a rotation does it: nothing more is read, so that nothing final is known; what was read is whole."""
    body = (
        ALONE
        + """        if step == 6:
            until(lambda: (RUN / "read").exists())
            telemetry = RUN / "telemetry.jsonl"
            (RUN / "copy").write_bytes(telemetry.read_bytes())
            os.rename(RUN / "copy", telemetry)
            until(lambda: (RUN / "seen").exists())
"""
    )

    def six(record: Any, _: Any) -> None:
        if isinstance(record, protocol.Eval) and record.step == 6:
            assert listener.paths is not None
            (listener.paths.root / "read").touch()

    def cut(event: events.Payload) -> None:
        if isinstance(event, events.Failure) and event.where == "telemetry":
            assert listener.paths is not None
            (listener.paths.root / "seen").touch()

    listener = Recorder(on_record=six, on_event=cut)
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), listener=listener)
    assert (closing.status, closing.exit_code, closing.final) == ("completed", 0, None)
    holds(paths)


def test_what_comes_while_the_end_is_read_keeps_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call to a language model, and the answer that it led to."""

    class Later(queue.SimpleQueue[Any]):
        """Somebody posts right when it was found empty."""

        def empty(self) -> bool:
            found = super().empty()
            if found and last:
                self.put(last.pop())
            return found

    paths = RunPaths(tmp_path)
    policy = Policy()
    manifest = Manifest.model_construct(id="x", policy=policy, created=0.0, blocking=False, mode="auto")
    one = supervisor.Supervisor(paths, manifest, None, Recorder())
    first, second = supervisor.Signalled(10), supervisor.Signalled(12)
    last = [second]
    one._queue = Later()
    one._queue.put(first)
    monkeypatch.setattr(one, "_again", lambda: None)
    monkeypatch.setattr(supervisor, "SLICE", 1)
    paths.telemetry.write_bytes(b'{"v":1,"seq":0,"t":1.0,"event":"log","level":"info","message":"x"}\n' * 3)
    one._read_to_the_end()
    assert [one._next(), one._next()] == [first, second]
