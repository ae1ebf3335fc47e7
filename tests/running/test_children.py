"""A child that crashes, hangs or outlives its supervisor: what becomes of it, and who looks after it then."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from factories.supervised import SIMPLE, failures, unwatched
from recorded import holds, of, payloads

from trainmgr.base import process
from trainmgr.base.errors import UserError, WorkloadError
from trainmgr.base.paths import list_runs
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import ParameterLimits, Process
from trainmgr.log import orders
from trainmgr.readers import replay
from trainmgr.running import launch
from trainmgr.testing import (
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

# -- children at their worst -------------------------------------------------------------------------------------------


def test_a_crash_keeps_the_exit_code_and_the_last_words(tmp_path: Path) -> None:
    body = (
        SIMPLE
        + """
w.step(1, {"loss": 1.0})
raise SystemExit(["CUDA out of memory", sys.stderr.write("first\\nsecond\\n")][0])
"""
    )
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body))
    assert (closing.status, closing.exit_code, closing.exit) == ("failed", 1, "ended with exit code 1")
    assert process.last_lines(paths.stderr, 3) == ["first", "second", "CUDA out of memory"]
    holds(paths)


def test_a_child_that_is_killed_from_outside(tmp_path: Path) -> None:
    body = SIMPLE + "w.step(1, {'loss': 1.0}); os.kill(os.getpid(), 9)"
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body))
    assert (closing.status, closing.exit_code, closing.exit) == ("killed", 137, "was killed by SIGKILL")
    holds(paths)


def test_a_child_that_says_nothing_at_all(tmp_path: Path) -> None:
    paths, closing, _ = supervise(tmp_path, write_shell(tmp_path, "exit 0"), ScriptedManager())
    assert (closing.status, closing.steps, closing.objective) == ("completed", 0, None)
    holds(paths)


def test_a_script_that_cannot_be_executed_leaves_a_closed_run(tmp_path: Path) -> None:
    script = tmp_path / "no-interpreter"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o700)
    with pytest.raises(WorkloadError, match="cannot be started"):
        supervise(tmp_path, script)
    (paths,) = list_runs(tmp_path / "runs")
    assert [end.closing.exit_code for end in of(paths, events.RunEnded)] == [127]
    holds(paths)


RESUMING = """
resume, start = resume_path(), 0
if resume:
    start = int(Path(resume).read_text())
recipe = {"lr": 0.1, "depth": 1.0}
w = Workload("resuming", objective="loss", total_steps=12, resumed_from=resume, resumed_step=start)
w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.01, high=1.0)
w.float("depth", get=lambda: recipe["depth"], set=lambda v: recipe.update(depth=v), low=0.0, high=9.0,
        boundary="checkpoint")
evals = 0
with w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step % 2 == 0:
            w.eval(step, {"loss": 1.0 / step})
            evals += 1
            if not resume and step <= 6:
                until(lambda: settled(evals))
        if step == 4 and not resume:
            (w.checkpoints / "c4").write_text("4")
            w.checkpoint(4, w.checkpoints / "c4")
        if step == 7 and not resume:
            os.write(w._writer.fd, b'{"v":1,"seq":99,"t":1.0,"ev')  # killed in the middle of a line
            os._exit(9)
"""


def test_a_crashed_child_is_started_again_from_its_last_checkpoint_with_its_recipe(tmp_path: Path) -> None:
    answers = [answer("adjust", {"lr": 0.2}), answer(), answer("adjust", {"depth": 2.0})]
    policy = unwatched(process=Process(restarts=1))
    paths, closing, heard = supervise(
        tmp_path, write_child(tmp_path, RESUMING), ScriptedManager(answers), policy=policy
    )
    assert (closing.status, closing.exit_code, closing.steps) == ("completed", 0, 12)
    (restart,) = of(paths, events.Restarted)
    assert (restart.attempt, restart.exit, restart.resume) == (1, "ended with exit code 9", "checkpoints/c4")
    assert [r.step for r in heard.of(protocol.Step)] == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9, 10, 11, 12]
    second = heard.of(protocol.Start)[1]
    assert [p.value for p in second.action_space] == [0.1, 1.0]
    applied = heard.of(protocol.Applied)[1]
    assert (applied.revision, applied.step, applied.changes) == (3, 5, {"lr": (0.1, 0.2)})
    # The change that waited for a checkpoint when the child died is taken back, and the decisions go on.
    assert [(o.origin, o.control.params) for o in of(paths, events.OverrideIssued)] == [
        ("manager", {"lr": 0.2}), ("manager", {"lr": 0.2, "depth": 2.0}), ("restart", {"lr": 0.2}),
    ]  # fmt: skip
    assert [(a.revision, a.result) for a in of(paths, events.Acknowledged)] == [(1, "applied"), (3, "applied")]
    holds(paths)
    with pytest.raises(UserError, match="restarted in the middle"):
        replay.schedule_of(paths)


def test_restarts_are_counted(tmp_path: Path) -> None:
    body = SIMPLE + "w.step(1, {'loss': 1.0}); sys.exit(5)"
    policy = unwatched(process=Process(restarts=2))
    paths, closing, heard = supervise(tmp_path, write_child(tmp_path, body), policy=policy)
    assert (closing.status, closing.exit_code) == ("failed", 5)
    assert len(heard.of(protocol.Start)) == 3
    assert [r.resume for r in of(paths, events.Restarted)] == [None, None]
    holds(paths)


def test_a_hung_child_is_stopped_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        SIMPLE
        + """
import signal, subprocess
w.step(1, {"loss": 1.0})
left = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; sleep 300; sleep 300"])
(RUN / "left").write_text(str(left.pid))
print("waiting for the loader")
signal.pause()
"""
    )
    policy = unwatched(process=Process(stall_timeout=2.0, grace=30.0))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), policy=policy)
    assert (closing.status, closing.exit_code) == ("hung", 143)
    assert len(of(paths, events.Stalled)) == 1
    assert paths.stdout.read_text() == "waiting for the loader\n"  # what it printed says where it hung
    left = paths.root / "left"
    assert left.exists()
    wait_for(lambda: not process.alive(int(left.read_text())), "the end of the grandchild")
    holds(paths)


def test_a_policy_that_does_not_fit_the_workload_ends_the_run(tmp_path: Path) -> None:
    policy = unwatched(parameters={"momentum": ParameterLimits(frozen=True)})
    body = SIMPLE + "w.step(1, {'loss': 1.0}); until(lambda: False)"
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), ScriptedManager(), policy=policy)
    assert (closing.status, closing.exit_code) == ("failed", 143)
    assert "no such parameter" in failures(paths)[0][1]
    holds(paths)


# -- its own death -----------------------------------------------------------------------------------------------------


ORPHANED = """
            if step <= 8:
                until(lambda: settled(evals))
            if step == 10:
                until(lambda: (RUN / "go").exists())
            if step == 12:
                until(handed_over)
"""
HANDED_OVER = """
def handed_over():
    events = log()
    cut = [e["kind"] for e in events].index("attached")
    issued = [e["control"]["revision"] for e in events[cut:] if e["kind"] == "override"]
    return bool(issued) and json.loads((RUN / "control.json").read_bytes())["revision"] >= issued[0]


"""


def test_the_child_outlives_its_supervisor_and_attach_takes_over(tmp_path: Path) -> None:
    body = HANDED_OVER + LINE.replace("            until(lambda: settled(evals))\n", ORPHANED)
    script = write_child(tmp_path, body)
    command = [PYTHON, "-m", "trainmgr", "run", str(script), "--manager", "schedule:cosine", "--runs-dir",
               str(tmp_path / "runs"), "--seed", "1", "--quiet"]  # fmt: skip
    supervisor = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = 0
    try:
        wait_for(lambda: bool(list_runs(tmp_path / "runs")), "the run")
        (paths,) = list_runs(tmp_path / "runs")

        def reported(step: int) -> bool:
            lines = paths.telemetry.read_bytes().splitlines() if paths.telemetry.exists() else []
            return any(b'"event":"eval","step":%d,' % step in line for line in lines)

        wait_for(lambda: reported(10), "the tenth step")
        pid = json.loads(paths.telemetry.read_bytes().splitlines()[0])["pid"]
        with pytest.raises(UserError, match="has a supervisor already"):
            launch.attach(paths, tmp_path / "runs", lambda *_: Recorder())
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait(TIME_LIMIT)
        assert process.alive(pid)
        assert not of(paths, events.RunEnded)

        attached: list[bool] = []

        def go(event: events.Payload) -> None:
            if isinstance(event, events.Attached):
                attached.append(True)
                (paths.root / "go").touch()

        closing = launch.attach(paths, tmp_path / "runs", lambda *_: Recorder(on_event=go))
        assert attached == [True]
    finally:
        supervisor.kill()
        supervisor.wait()
        if pid and process.belongs(pid, "TRAINMGR_RUN_DIR", str(paths.root)):
            process.signal_group(pid, signal.SIGKILL)
    assert (closing.status, closing.steps, closing.exit) == ("completed", 24, "ended, unseen by its supervisor")
    kinds = [payload.kind for payload in payloads(paths)]
    cut = kinds.index("attached")
    assert "acknowledged" in kinds[:cut]
    assert "acknowledged" in kinds[cut:]
    assert kinds[-1] == "run ended"
    holds(paths)
    with pytest.raises(UserError, match="has ended"):
        launch.attach(paths, tmp_path / "runs", lambda *_: Recorder())


def test_an_override_that_was_logged_and_not_written_is_written_by_attach(tmp_path: Path) -> None:
    """The supervisor dies between the log and the control file; its child is one of ours here, so that it can be."""

    class Died(BaseException):
        pass

    body = (
        SIMPLE
        + """
with w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step == 2:
            w.eval(step, {"loss": 1.0})
            until(lambda: settled(1))
"""
    )
    script = write_child(tmp_path, body)
    real_write, real_signal = orders.write, process.Child.signal

    def die(*_: Any) -> None:
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orders, "write", die)
        patch.setattr(process.Child, "signal", lambda *_: None)
        patch.setattr(process.Child, "join", lambda *_: True)
        with pytest.raises(Died):
            supervise(tmp_path, script, ScriptedManager([answer("adjust", {"lr": 0.2})]))
    assert orders.write is real_write
    assert process.Child.signal is real_signal
    (paths,) = list_runs(tmp_path / "runs")
    assert not paths.control.exists()
    closing = launch.attach(paths, tmp_path / "runs", lambda *_: Recorder(), manager=ScriptedManager())
    assert (closing.status, closing.interventions) == ("completed", 1)
    assert [(a.revision, a.result) for a in of(paths, events.Acknowledged)] == [(1, "applied")]
    holds(paths)


def test_an_adopted_child_that_dies_without_a_word_did_not_complete(tmp_path: Path) -> None:
    body = (
        SIMPLE
        + """
w.step(1, {"loss": 1.0})
until(lambda: any(e["kind"] == "attached" for e in log()))
os.kill(os.getpid(), 9)
"""
    )
    script = write_child(tmp_path, body)

    class Died(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Died

    from trainmgr.running.supervisor import Supervisor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process.Child, "signal", lambda *_: None)
        patch.setattr(process.Child, "join", lambda *_: True)
        patch.setattr(Supervisor, "_clocks", lambda self: die() if self.state.step else None)
        with pytest.raises(Died):
            supervise(tmp_path, script)
    (paths,) = list_runs(tmp_path / "runs")
    closing = launch.attach(paths, tmp_path / "runs", lambda *_: Recorder())
    assert (closing.status, closing.exit_code) == ("failed", 1)
    holds(paths)
