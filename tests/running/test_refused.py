"""What a disk or a workload refuses: nothing is changed that is not on record, and attach takes over what is left."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from factories.faults import LOOSE, STAYS, command, messages, one, real
from recorded import holds, of
from rich.console import Console

from trainmgr.base import files, process
from trainmgr.base.errors import PolicyError, SupervisorError, UserError
from trainmgr.base.paths import RunPaths, list_runs
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Policy, Process, Staleness
from trainmgr.contract.run_file import render_run_file
from trainmgr.log import audit, history, orders
from trainmgr.readers import proof
from trainmgr.running import launch
from trainmgr.state.run_state import RunState
from trainmgr.terminal import tables
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


def shown(paths: RunPaths) -> str:
    """The last lines of the run."""
    said = Console(file=io.StringIO(), width=500)
    tables.print_closing(said, history.latest(paths))
    return said.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@contextlib.contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, of ``size``."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("only root can mount a file system that is small enough to be full")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def orphan(folder: Path, body: str, manager: str = "schedule:cosine") -> Iterator[tuple[RunPaths, int]]:
    """A run whose supervisor was killed while its script waits for a file "go"; the run, and the script's process."""
    script = write_child(folder, body)
    running = subprocess.Popen(
        command(folder, script, manager=manager), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    pid, paths = 0, None
    try:
        wait_for(lambda: bool(list_runs(folder / "runs")), "the run")
        paths = one(folder)
        wait_for(lambda: paths.telemetry.exists() and b'"step":8,' in paths.telemetry.read_bytes(), "the fourth eval")
        pid = json.loads(paths.telemetry.read_bytes().splitlines()[0])["pid"]
        running.kill()
        running.wait()
        yield paths, pid
    finally:
        running.kill()
        running.wait()
        if pid and paths and process.belongs(pid, "TRAINMGR_RUN_DIR", str(paths.root)):
            process.signal_group(pid, signal.SIGKILL)


# -- writing -----------------------------------------------------------------------------------------------------------


DEALT_WITH = """
def dealt_with(count):
    failed = {e["decision"] for e in log() if e["kind"] == "error" and e["decision"]}
    ruled = {e["decision"]: e for e in log() if e["kind"] == "verdict"}
    if len(failed | ruled.keys()) < count - at_the_end():
        return False
    last = list(ruled.values())[-1] if ruled else None
    if last is None or last["decision"] in failed or not last["changes"]:
        return True
    return (RUN / "control.json").exists() and f'"{last["decision"]}"' in (RUN / "control.json").read_text()


"""


@pytest.mark.parametrize("nth", range(2, 16))
@pytest.mark.parametrize("how", ["nothing of it", "half of it", "half, which stays"])
def test_a_write_of_the_log_that_fails_costs_nothing_that_cannot_be_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int, how: str
) -> None:
    write, cut, count = os.write, os.ftruncate, 0

    def failing(fd: int, data: Any) -> int:
        nonlocal count
        if b'"prev":' in bytes(data) and (count := count + 1) in (nth, nth + 1):
            if how != "nothing of it":
                write(fd, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    def stuck(fd: int, length: int) -> None:
        if how == "half, which stays" and count in (nth, nth + 1) and not refused:
            refused.append(length)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        cut(fd, length)

    refused: list[int] = []
    monkeypatch.setattr(files.os, "write", failing)
    monkeypatch.setattr(files.os, "ftruncate", stuck)
    answers = [answer("adjust", {"lr": 0.3}), answer("adjust", {"decay": 0.05}), answer("adjust", {"lr": 0.2})] * 3
    body = DEALT_WITH + LINE.replace("until(lambda: settled(evals))", "until(lambda: dealt_with(evals))")
    paths, closing, heard = supervise(tmp_path, write_child(tmp_path, body), ScriptedManager(answers), policy=LOOSE)
    assert (closing.status, closing.steps) == ("completed", 24)
    assert any(text.startswith("audit.jsonl cannot be written: No space left") for text in messages(paths, "audit"))
    applied = [record.revision for record in heard.of(protocol.Applied)]
    assert [event.revision for event in of(paths, events.Acknowledged) if event.result == "applied"] == applied
    assert len(of(paths, events.SnapshotTaken)) == 11
    holds(paths)


def test_nothing_stands_behind_the_end_of_a_run_though_the_disk_refuses_it_and_the_display_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refused = os.write, 0

    def failing(fd: int, data: Any) -> int:
        nonlocal refused
        if b'"kind":"run ended"' in bytes(data) and not refused:
            refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    def heard(event: events.Payload) -> None:
        if isinstance(event, events.RunEnded):
            raise BrokenPipeError

    monkeypatch.setattr(files.os, "write", failing)
    listener = Recorder(on_event=heard)
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path), listener=listener)
    assert (closing.status, closing.exit_code, refused) == ("completed", 0, 1)
    assert any("No space left" in failure.message for failure in listener.of(events.Failure))
    assert isinstance([event.data for event in audit.read(paths.audit)][-1], events.RunEnded)
    holds(paths)


def test_nothing_is_applied_that_is_not_on_record_and_a_question_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, refused = audit.Log.append, 0

    def scarce(log: audit.Log, payload: events.Payload, t: float) -> audit.Event:
        nonlocal refused
        if isinstance(payload, events.SnapshotTaken) and refused < 3:
            refused += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return append(log, payload, t)

    monkeypatch.setattr(audit.Log, "append", scarce)
    manager = ScriptedManager([answer("adjust", {"lr": 0.3})])
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path), manager)
    assert (closing.status, closing.interventions) == ("completed", 1)
    assert [event.decision for event in of(paths, events.SnapshotTaken)][:2] == ["d1", "d2"]
    assert len(messages(paths, "audit")) == 3
    holds(paths)


def test_a_control_file_is_written_as_soon_as_the_disk_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refused = orders.write, 0

    def scarce(paths: RunPaths, content: protocol.Control) -> None:
        nonlocal refused
        if (refused := refused + 1) <= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(paths, content)

    monkeypatch.setattr(orders, "write", scarce)
    manager = ScriptedManager([answer("adjust", {"lr": 0.3}), answer("adjust", {"lr": 0.2})])
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path), manager)
    assert (closing.status, closing.interventions) == ("completed", 2)
    assert messages(paths, "control") == ["control.json cannot be written: No space left on device"]
    holds(paths)


FULL = """
def full(size):
    try:
        with open(RUN.parent / "filler", "ab") as file:
            while True:
                file.write(b"0" * size)
                file.flush()
    except OSError:
        return size == 1 or full(1)

"""


def test_a_disk_that_is_full_for_a_while(tmp_path: Path) -> None:
    """Telemetry, log, control file and the script's output lie on it. With space again, everything goes on."""
    body = (
        DEALT_WITH
        + FULL
        + LINE.replace(
            "            until(lambda: settled(evals))\n",
            """
            if evals <= 4:
                until(lambda: settled(evals))
            if evals == 4:
                full(4096)
            if evals == 8:
                until(lambda: "No space left on device" in Path(sys.argv[0]).with_name("said").read_text())
                (RUN.parent / "filler").unlink()
            if evals > 8:
                until(lambda: dealt_with(evals - 5))
""",
        )
    )
    script = write_child(tmp_path, body)
    with tmpfs(tmp_path / "runs", "256k"):
        done = real(tmp_path, script)
        paths = one(tmp_path)
        assert done.returncode == 0, done.stderr
        assert "No space left on device" in done.stderr
        last = of(paths, events.SnapshotTaken)[-1]
        assert last.snapshot["progress"]["step"] >= 20
        assert of(paths, events.RunEnded)[0].closing.steps == 24
        holds(paths)


def test_a_script_that_cannot_report_on_a_full_disk_does_not_hang(tmp_path: Path) -> None:
    body = FULL + LINE.replace(
        "            until(lambda: settled(evals))\n",
        """
            if evals == 4:
                full(4096)
            if evals == 8:
                time.sleep(3.0)  # longer than the limit
                (RUN.parent / "filler").unlink()
""",
    )
    policy = EXACT.model_copy(update={"process": Process(stall_timeout=2.0)})
    script = write_child(tmp_path, body)
    with tmpfs(tmp_path / "runs", "256k"):
        paths, closing, _ = supervise(tmp_path, script, policy=policy)
        assert (closing.status, closing.steps) == ("completed", 24)
        holds(paths)


def test_a_disk_that_stays_full_ends_no_training_and_the_run_is_closed_later(tmp_path: Path) -> None:
    body = FULL + LINE.replace(
        "            until(lambda: settled(evals))\n",
        """
            if evals <= 4:
                until(lambda: settled(evals))
            if evals == 4:
                full(4096)
""",
    )
    script = write_child(tmp_path, body + "\nopen(sys.argv[0] + '.done', 'w').write(str(step))\n")
    with tmpfs(tmp_path / "runs", "256k"):
        done = real(tmp_path, script)
        paths = one(tmp_path)
        assert done.returncode == 0, done.stderr
        assert Path(f"{script}.done").read_text() == "24"
        said = " ".join(done.stderr.split())
        assert "No space left on device" in said
        assert f"trainmgr attach {paths.id}" in said
        assert json.loads(paths.manifest.read_bytes())["closing"] is None  # the log's end may have had room in its page
        (paths.root.parent / "filler").unlink()
        launch.attach(paths, tmp_path / "runs", lambda *_: Recorder())
        assert len(of(paths, events.RunEnded)) == 1
        assert json.loads(paths.manifest.read_bytes())["closing"] is not None
        holds(paths)


# -- a workload that does not answer -----------------------------------------------------------------------------------


MUTE = """
T=$TRAINMGR_RUN_DIR/telemetry.jsonl
A=$TRAINMGR_RUN_DIR/audit.jsonl
LR='{"name":"lr","type":"float","low":0.01,"high":1.0,"value":0.1,"boundary":"step"}'
OBJECTIVE='{"metric":"loss","mode":"min"}'
say() { echo '{"v":1,"seq":'$1',"t":1.0,"event":'$2'}' >> $T; }
asked() { grep -c '"kind":"snapshot"' $A; }
say 0 '"start","workload":"mute","pid":'$$',PLAN"objective":'$OBJECTIVE',"action_space":['$LR']'
seq=1
while [ $seq -le 60 ]; do
  say $seq '"eval","step":'$seq',"metrics":{"loss":1.0}'
  seq=$((seq + 1))
  LATE
  tries=0
  while [ $(asked) -eq 0 ] && [ $tries -lt 1000 ]; do sleep 0.01; tries=$((tries + 1)); done
  sleep 0.02
done
"""


def mute(*, plan: bool, late: str = "") -> str:
    return MUTE.replace("PLAN", '"total_steps":1000,' if plan else "").replace("LATE", late or ":")


@pytest.mark.parametrize("age", [5, None])
def test_a_revision_that_nobody_answers_is_given_up_and_management_goes_on(tmp_path: Path, age: int | None) -> None:
    policy = LOOSE.model_copy(update={"staleness": Staleness(max_age_steps=age)})
    manager = ScriptedManager([answer("adjust", {"lr": 0.2}), answer("adjust", {"lr": 0.3})])
    paths, closing, _ = supervise(tmp_path, write_shell(tmp_path, mute(plan=age is not None)), manager, policy=policy)
    assert closing.status == "completed"
    given_up = of(paths, events.Unanswered)
    assert given_up[0].revision == 1
    assert [event.decision for event in given_up][:2] == ["d1", "d2"]
    assert len(of(paths, events.SnapshotTaken)) >= 3
    last = of(paths, events.OverrideIssued)[1].control
    assert last.params == {"lr": 0.3}
    assert f"Not applied: {len(given_up)} answers; the last: not answered by the workload" in shown(paths)
    holds(paths)


def test_an_answer_that_comes_after_all_is_in_force(tmp_path: Path) -> None:
    late = """
  if [ $seq -eq 40 ]; then
    say $seq '"applied","revision":1,"step":39,"boundary":"step","changes":{"lr":[0.1,0.2]}'
    seq=$((seq + 1))
  fi"""
    manager = ScriptedManager([answer("adjust", {"lr": 0.2}), *[answer()] * 3])
    paths, _, _ = supervise(tmp_path, write_shell(tmp_path, mute(plan=False, late=late)), manager, policy=LOOSE)
    assert [event.revision for event in of(paths, events.Unanswered)] == [1]
    assert [(event.revision, event.result) for event in of(paths, events.Acknowledged)] == [(1, "applied")]
    assert "Not applied" not in shown(paths)
    holds(paths)


# -- attach ------------------------------------------------------------------------------------------------------------


def test_attach_cuts_a_torn_line_off_the_log_and_says_so(tmp_path: Path) -> None:
    with orphan(tmp_path, STAYS) as (paths, _):
        with paths.audit.open("ab") as file:
            file.write(b'{"seq":99,"t":1.0,"da')
        closing = launch.attach(
            paths, tmp_path / "runs", lambda *_: Recorder(on_event=lambda _: (paths.root / "go").touch())
        )
    assert (closing.status, closing.steps) == ("completed", 24)
    assert messages(paths, "audit") == [
        "21 bytes of a line that was never finished were cut off the end of audit.jsonl"
    ]
    holds(paths)


def test_attach_reads_the_log_after_it_has_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its predecessor writes one more line in between: read before, the chain would be broken for good."""
    with orphan(tmp_path, STAYS) as (paths, _):
        begin = audit.Log.__init__

        def waits(log: audit.Log, path: Path, *more: Any, **named: Any) -> None:
            *_, last = audit.read(path)
            with monkeypatch.context() as patch:
                patch.setattr(audit.Log, "__init__", begin)
                with audit.Log(path) as predecessor:
                    size = path.stat().st_size
                    predecessor.go_on(last.seq + 1, last.line_hash, size)
                    predecessor.append(events.Signalled(name="SIGUSR1", passed=True), 1.0)
            begin(log, path, *more, **named)

        monkeypatch.setattr(audit.Log, "__init__", waits)
        launch.attach(paths, tmp_path / "runs", lambda *_: Recorder(on_event=lambda _: (paths.root / "go").touch()))
    assert [event.name for event in of(paths, events.Signalled)] == ["SIGUSR1"]
    holds(paths)


def test_attach_closes_a_run_whose_script_ended_unsupervised(tmp_path: Path) -> None:
    said: list[str] = []
    with orphan(tmp_path, STAYS) as (paths, pid):
        (paths.root / "go").touch()
        wait_for(lambda: not process.alive(pid), "the end of the script")
    closing = launch.attach(paths, tmp_path / "runs", lambda *_: Recorder(), say=said.append)
    assert (closing.status, closing.exit_code, closing.steps) == ("completed", 0, 24)
    assert said == [f"the workload of {paths.id} is not running any more: the run is closed"]
    assert json.loads(paths.manifest.read_bytes())["closing"]["status"] == "completed"
    holds(paths)

    paths.manifest.write_bytes(render_run_file(json.loads(paths.manifest.read_bytes())["manifest"], None))
    assert not proof.prove(paths).holds
    assert launch.attach(paths, tmp_path / "runs", lambda *_: Recorder(), say=said.append) == closing
    assert said[-1].endswith("run.json did not say so, and was written again")
    holds(paths)

    paths.manifest.unlink()
    os.mkfifo(paths.manifest)  # which nobody writes into
    assert launch.attach(paths, tmp_path / "runs", lambda *_: Recorder()) == closing
    holds(paths)
    with pytest.raises(UserError, match="has ended"):
        launch.attach(paths, tmp_path / "runs", lambda *_: Recorder())


def test_a_fault_of_our_own_while_a_run_is_taken_up_leaves_it_for_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a fault of ours")

    with orphan(tmp_path, STAYS) as (paths, pid):
        with monkeypatch.context() as patch:
            patch.setattr(RunState, "fold", broken)
            with pytest.raises(SupervisorError, match=f"KeyError in .*trainmgr attach {paths.id}"):
                launch.attach(paths, tmp_path / "runs", lambda *_: Recorder())
        assert process.alive(pid)
        closing = launch.attach(
            paths, tmp_path / "runs", lambda *_: Recorder(on_event=lambda _: (paths.root / "go").touch())
        )
    assert (closing.status, closing.steps) == ("completed", 24)
    holds(paths)


def test_attach_with_a_policy_that_does_not_fit_any_more_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with orphan(tmp_path, STAYS) as (paths, _):

        def misfit(*_: Any) -> None:
            raise PolicyError("no such parameter")

        monkeypatch.setattr(Policy, "narrow", misfit)
        closing = launch.attach(
            paths, tmp_path / "runs", lambda *_: Recorder(on_event=lambda _: (paths.root / "go").touch())
        )
    assert (closing.status, closing.steps) == ("completed", 24)
    assert "nothing is changed any more: no such parameter" in messages(paths, "supervisor")
