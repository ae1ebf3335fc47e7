"""The loop with real children: whatever the manager, the child, the disk or the person does, training comes first and
the log explains everything."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from recorded import holds, of, payloads
from rich.console import Console

from trainmgr.base import process
from trainmgr.base.errors import ManagerError, UserError, WorkloadError
from trainmgr.base.paths import RUN_DIR_VARIABLE, RunPaths, list_runs
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Approval, Cadence, Limits, ParameterLimits, Policy, Probation, Process
from trainmgr.deciding import control
from trainmgr.log import audit, history, telemetry
from trainmgr.readers import proof, replay
from trainmgr.running import launch, supervisor
from trainmgr.state.run_state import RunState
from trainmgr.terminal import display, screen, tables
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


def unwatched(**sections: Any) -> Policy:
    """A policy under which a manager is asked from the first evaluation on, and nothing is taken back."""
    return Policy(probation=Probation(enabled=False), **sections)


SIMPLE = """
recipe = {"lr": 0.1}
w = Workload("simple", objective="loss", total_steps=200, metrics={"loss": "made up"})
w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.01, high=1.0, max_ratio=2.0)
"""


def failures(paths: RunPaths) -> list[tuple[str, str]]:
    return [(failure.where, failure.message) for failure in of(paths, events.Failure)]


# ---- decisions -------------------------------------------------------------------------------------------


def test_a_whole_run(tmp_path: Path) -> None:
    answers = [answer(), answer("adjust", {"lr": 0.2}), answer("rollback", {"lr": 0.1, "decay": 0.02}, to="best")]
    paths, closing, heard = supervise(tmp_path, write_child(tmp_path), ScriptedManager(answers))
    assert (closing.status, closing.exit_code, closing.steps, closing.interventions) == ("completed", 0, 24, 2)
    first, second = of(paths, events.Acknowledged)
    assert (first.result, first.step, first.changes) == ("applied", 5, {"lr": (0.4, 0.2)})
    assert (second.result, second.step) == ("applied", 7)
    assert second.changes == {"lr": (0.2, 0.1), "decay": (0.0, 0.02)}
    assert [o.closed for o in of(paths, events.Outcome)] == ["next change", "measured"]
    assert payloads(paths) == heard.events
    assert json.loads(paths.manifest.read_bytes())["closing"]["best"] == closing.best
    content = protocol.Control.model_validate_json(paths.control.read_bytes())
    assert (content.revision, content.params) == (2, {"lr": 0.1, "decay": 0.02})
    holds(paths)


def test_a_rejected_decision_never_reaches_the_control_file(tmp_path: Path) -> None:
    answers = [answer("adjust", {"lr": 0.9}), answer("adjust", {"nothing": 1.0}), answer("adjust", {"lr": 0.4}),
               answer("adjust"), answer("rollback", to="/etc/passwd"), answer("stop", {"lr": 0.2})]  # fmt: skip
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path), ScriptedManager(answers))
    assert [v.result for v in of(paths, events.Verdict)][:6] == ["rejected"] * 6
    assert not paths.control.exists()
    assert (closing.status, closing.interventions) == ("completed", 0)
    holds(paths)


def test_shadow_decides_and_applies_nothing(tmp_path: Path) -> None:
    manager = ScriptedManager([answer("adjust", {"lr": 0.2}), answer("stop")])
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path), manager, mode="shadow")
    assert [v.result for v in of(paths, events.Verdict)][:2] == ["accepted", "accepted"]
    assert not paths.control.exists()
    assert closing.status == "completed"
    holds(paths)


@pytest.mark.parametrize(("person", "logged"), [(True, "yes"), (False, "no"), (None, "none")])
def test_approval_is_what_the_person_says_and_silence_means_no(
    tmp_path: Path, person: bool | None, logged: str
) -> None:
    manager = ScriptedManager([answer("adjust", {"lr": 0.2})])
    listener = Recorder(approve=person)
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path), manager, mode="approve", listener=listener)
    assert [a.answer for a in of(paths, events.Approval)] == [logged]
    assert paths.control.exists() == (person is True)
    assert closing.interventions == (1 if person else 0)
    holds(paths)


def test_a_person_who_does_not_answer_in_time_said_no(tmp_path: Path) -> None:
    class Absent(Recorder):
        def ask(self, ruling: events.Verdict, answer: Callable[[bool | None], None]) -> None:
            self.late = answer

        def event(self, event: events.Payload, *rest: Any) -> None:
            super().event(event, *rest)
            if isinstance(event, events.Approval):
                self.late(True)  # too late

    policy = unwatched(approval=Approval(timeout=0.01))
    manager = ScriptedManager([answer("adjust", {"lr": 0.2})])
    paths, _, _ = supervise(tmp_path, write_child(tmp_path), manager, mode="approve", policy=policy, listener=Absent())
    assert [a.answer for a in of(paths, events.Approval)] == ["none"]
    assert not paths.control.exists()


# ---- managers at their worst -----------------------------------------------------------------------------


class Hideous:
    def __repr__(self) -> str:
        raise RuntimeError("not even this")


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


GARBAGE: list[Any] = [
    None, float("nan"), b"\xff\xfe", b"bytes", [1, 2], "x" * 2_000_000, object(), Hideous(), {1: 2}, {"action": print},
    {(1, 2): 3}, "\ud800", {"\udcff": 1}, deep(150), deep(199), deep(5000), 10**5000, {1, 2}, True, range(3),
    answer("adjust", {"lr": float("nan")}), answer("adjust", {"lr": float("inf")}), answer("adjust", {"lr": 10**400}),
    answer("adjust", {"lr": "0.2"}), answer("adjust", {"lr": True}), answer("adjust", {"lr": [0.2]}),
    answer("format the disk"), answer("adjust", {"lr": 0.2}, confidence="high"), answer(evidence="x" * 1001),
    {**answer(), "extra": 1},
]  # fmt: skip


def test_a_manager_that_answers_garbage_costs_nothing_and_all_of_it_is_on_record(tmp_path: Path) -> None:
    body = LINE.replace("STEPS, EVERY = 24, 2", f"STEPS, EVERY = {2 * len(GARBAGE) + 2}, 2")
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), ScriptedManager(GARBAGE))
    verdicts = of(paths, events.Verdict)
    assert [v.result for v in verdicts] == ["rejected"] * len(GARBAGE) + ["accepted"]
    assert all(v.changes == {} and v.command is None for v in verdicts)
    assert len(of(paths, events.Response)) == len(GARBAGE) + 1
    assert not paths.control.exists()
    assert (closing.status, failures(paths)) == ("completed", [])
    assert paths.audit.stat().st_size < 2_000_000
    holds(paths)


def test_a_manager_that_raises_is_asked_again_next_time(tmp_path: Path) -> None:
    class OddError(Exception):
        pass

    manager = ScriptedManager(
        [RuntimeError("secret-in-a-message"), ManagerError("no answer: \ud800"), SystemExit(3), OddError(),
         KeyboardInterrupt(), answer("adjust", {"lr": 0.2})]
    )  # fmt: skip
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path), manager)
    assert [message for _, message in failures(paths)] == [
        "RuntimeError in manager scripted", "no answer: ?", "SystemExit in manager scripted",
        "OddError in manager scripted", "KeyboardInterrupt in manager scripted",
    ]  # fmt: skip
    assert b"secret-in-a-message" not in paths.audit.read_bytes()
    assert (closing.status, closing.interventions) == ("completed", 1)
    holds(paths)


def test_training_goes_on_while_the_manager_thinks_and_a_stale_answer_is_dropped_but_kept(tmp_path: Path) -> None:
    body = (
        SIMPLE
        + """
with w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step % 10 == 0:
            w.eval(step, {"loss": 1.0 / step})
        if step == 10:
            until(lambda: any(e["kind"] == "snapshot" for e in log()))
        if step == 100:
            until(lambda: settled(1))
        if step == 101:
            until(lambda: settled(2))
"""
    )
    text = "a long thought, " * 50
    manager = ScriptedManager(
        [answer("adjust", {"lr": 0.2}, evidence=text), answer("adjust", {"lr": 0.15})], block_at=0
    )

    def release(record: Any, state: Any) -> None:
        if isinstance(record, protocol.Step) and record.step == 100:
            manager.release.set()

    paths, closing, _ = supervise(
        tmp_path, write_child(tmp_path, body), manager, policy=unwatched(), listener=Recorder(on_record=release)
    )
    late, next_one = of(paths, events.Verdict)[:2]
    assert late.result == "rejected"
    assert [(c.name, c.reason) for c in late.checks if not c.ok] == [
        ("fresh", "the snapshot is 90 steps old; 10 are allowed")
    ]
    assert of(paths, events.Response)[0].raw["evidence"] == text
    assert next_one.result == "accepted"
    assert manager.snapshots[1].rejections == ["the snapshot is 90 steps old; 10 are allowed"]
    assert (closing.steps, closing.interventions) == (200, 1)
    holds(paths)


def test_a_manager_that_never_answers_does_not_keep_the_run(tmp_path: Path) -> None:
    manager = ScriptedManager([answer("adjust", {"lr": 0.2})], block_at=0)
    body = (
        SIMPLE
        + """
with w:
    w.eval(1, {"loss": 1.0})
    until(lambda: any(e["kind"] == "snapshot" for e in log()))
"""
    )
    try:
        paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), manager)
    finally:
        manager.release.set()
    assert closing.status == "completed"
    assert failures(paths) == [("manager", "the run ended before the answer came")]
    holds(paths)


def test_an_answer_after_ctrl_c_is_kept_and_not_applied(tmp_path: Path) -> None:
    manager = ScriptedManager([answer("adjust", {"lr": 0.2})], block_at=0)
    body = (
        SIMPLE
        + """
w.command("stop", lambda to: until(lambda: any(e["kind"] == "verdict" for e in log())))
with w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0})
        if step == 3:
            until(lambda: (RUN / "control.json").exists())
"""
    )

    def on_event(event: events.Payload) -> None:
        if isinstance(event, events.SnapshotTaken):
            os.kill(os.getpid(), signal.SIGINT)
        if isinstance(event, events.OverrideIssued):
            manager.release.set()

    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), manager, listener=Recorder(on_event=on_event))
    assert closing.status == "interrupted"
    assert len(of(paths, events.Response)) == 1
    assert [o.origin for o in of(paths, events.OverrideIssued)] == ["operator"]
    holds(paths)


def test_a_display_that_breaks_costs_the_display(tmp_path: Path) -> None:
    def broken(*_: Any) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    manager = ScriptedManager([answer("adjust", {"lr": 0.2})])
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path), manager, listener=Recorder(on_record=broken))
    assert (closing.status, closing.interventions) == ("completed", 1)
    assert failures(paths) == [("display", "BrokenPipeError: nothing more is shown")]
    holds(paths)


# ---- children at their worst -----------------------------------------------------------------------------


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


# ---- Ctrl-C ----------------------------------------------------------------------------------------------


def interrupt_at(step: int, *, again_on: type[Any] | None = None, number: int = signal.SIGINT) -> Recorder:
    """Presses Ctrl-C, or gets a signal, when a step is reported; presses it once more at the first event of a kind."""

    def press(record: Any, _: Any) -> None:
        if isinstance(record, protocol.Step) and record.step == step:
            os.kill(os.getpid(), number)

    def again(event: events.Payload) -> None:
        if again_on is not None and isinstance(event, again_on):
            os.kill(os.getpid(), signal.SIGINT)

    return Recorder(on_record=press, on_event=again)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_ctrl_c_asks_the_workload_to_stop(tmp_path: Path, number: int, name: str) -> None:
    body = (
        SIMPLE
        + """
w.command("stop", lambda to: None)
with w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step == 5:
            until(lambda: (RUN / "control.json").exists())
"""
    )
    paths, closing, heard = supervise(tmp_path, write_child(tmp_path, body), listener=interrupt_at(5, number=number))
    assert (closing.status, closing.exit_code) == ("interrupted", 0)
    assert closing.steps in (5, 6)  # the stop may be there before the step that asked for it has looked
    assert [e.status for e in heard.of(protocol.End)] == ["stopped"]
    (asked,) = of(paths, events.Operator)
    assert (asked.action, asked.by) == ("stop", name)
    holds(paths)
    said = Console(file=io.StringIO(), width=200)
    manifest, state, ledger = history.latest(paths)
    assert display.event_in_words(asked, state) == f"{name}: the script is asked to stop"
    said.print(screen.render(state, ledger, manifest, width=180))
    tables.print_closing(said, manifest, state, ledger)
    tables.print_proof(said, proof.prove(paths))
    text = said.file.getvalue()  # type: ignore[attr-defined]
    for words in (
        f"1 intervention by {name}:",
        f"{name}: stop",
        f"operator: {name}",
        f"The workload ended with exit code 0 (interrupted by {name}).",
    ):
        assert words in text
    assert not re.search(r"\byou\b", text)


def test_a_log_that_does_not_say_who_asked_for_the_end_still_reads() -> None:
    before = events.reread(b'{"kind":"operator","action":"stop"}')
    assert before == events.Operator(action="stop")
    assert before.model_dump(mode="json") == {"kind": "operator", "action": "stop"}
    assert display.event_in_words(before, RunState()) == "Ctrl-C or SIGTERM: the script is asked to stop"


# ---- signals that are not for the supervisor -------------------------------------------------------------

LISTENING = """
import signal
heard = []
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGQUIT, signal.SIGURG, signal.SIGRTMIN + 3):
    signal.signal(number, lambda number, _: heard.append(number))
with w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step == 5:
            until(lambda: any(e["kind"] == "signal" for e in log()))
            until(lambda: heard or GONE)
            break
print(*heard)
"""


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGUSR1, "SIGUSR1"),
        (signal.SIGUSR2, "SIGUSR2"),
        (signal.SIGXCPU, "SIGXCPU"),
        (signal.SIGQUIT, "SIGQUIT"),
        (signal.SIGURG, "SIGURG"),
        (signal.SIGRTMIN + 3, "SIGRTMIN+3"),
    ],
)
def test_a_warning_of_a_batch_system_reaches_the_script_and_ends_nobody(
    tmp_path: Path, number: int, name: str
) -> None:  # fmt: skip
    script = write_child(tmp_path, SIMPLE + LISTENING.replace("GONE", "False"))
    before = signal.signal(number, signal.SIG_DFL)  # a shell starts what is in the background with SIGQUIT ignored
    try:
        paths, closing, _ = supervise(tmp_path, script, listener=interrupt_at(5, number=number))
        assert signal.getsignal(number) is signal.SIG_DFL  # as it was
    finally:
        signal.signal(number, before)
    assert (closing.status, closing.exit_code, closing.steps) == ("completed", 0, 5), paths.stderr.read_text()
    assert paths.stdout.read_text() == f"{int(number)}\n"
    assert [(s.name, s.passed) for s in of(paths, events.Signalled)] == [(name, True)]
    holds(paths)


def test_a_script_that_does_not_listen_to_a_warning_dies_of_it_and_the_log_says_why(tmp_path: Path) -> None:
    body = SIMPLE + "w.step(1, {'loss': 1.0}); until(lambda: False)"
    paths, closing, heard = supervise(
        tmp_path, write_child(tmp_path, body), listener=interrupt_at(1, number=signal.SIGUSR1)
    )
    assert (closing.status, closing.exit_code, closing.exit) == ("killed", 138, "was killed by SIGUSR1")
    words = [display.event_in_words(event, RunState()) for event in heard.of(events.Signalled)]
    assert words == ["SIGUSR1: passed on to the script"]
    holds(paths)


def test_a_terminal_that_is_closed_does_not_end_a_run(tmp_path: Path) -> None:
    script = write_child(tmp_path, SIMPLE + LISTENING.replace("GONE", "True"))
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        paths, closing, _ = supervise(tmp_path, script, listener=interrupt_at(5, number=signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (closing.status, closing.exit_code, closing.steps) == ("completed", 0, 5)
    (came,) = of(paths, events.Signalled)
    assert (came.name, came.passed) == ("SIGHUP", False)
    assert display.event_in_words(came, RunState()) == "SIGHUP: the terminal is gone; the run goes on"
    holds(paths)


IGNORED = """
import signal, sys
from pathlib import Path
from trainmgr.testing import supervise, write_shell

if sys.argv[2] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
script = write_shell(Path(sys.argv[1]), "grep SigIgn /proc/self/status")
paths, _, _ = supervise(Path(sys.argv[1]), script)
ignored = int(paths.stdout.read_text().split()[1], 16)
print(*(number for number in range(1, 32) if ignored >> number - 1 & 1))
"""
"""Those from 32 to SIGRTMIN are the C library's own; a parent that was started by make ignores one of them."""


@pytest.mark.parametrize(("how", "ignored"), [("", ""), ("nohup", str(int(signal.SIGHUP)))])
def test_a_script_has_the_signals_that_it_would_have_alone(tmp_path: Path, how: str, ignored: str) -> None:
    command = [sys.executable, "-c", IGNORED, str(tmp_path), how]
    for number in (signal.SIGHUP, signal.SIGQUIT):  # whoever runs the tests in the background may ignore them
        command = ["env", f"--default-signal={number.name[3:]}", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=True)
    assert done.stdout.strip() == ignored


def test_ctrl_c_interrupts_a_workload_that_knows_no_stop(tmp_path: Path) -> None:
    body = (
        SIMPLE
        + """
with w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step == 5:
            until(lambda: False)
"""
    )
    paths, closing, heard = supervise(tmp_path, write_child(tmp_path, body), listener=interrupt_at(5))
    assert (closing.status, closing.exit_code) == ("interrupted", 130)
    assert [e.status for e in heard.of(protocol.End)] == ["interrupted"]
    holds(paths)


def test_ctrl_c_twice_kills(tmp_path: Path) -> None:
    body = (
        SIMPLE
        + """
w.command("stop", lambda to: None)
for step in w.steps():
    w.step(step, {"loss": 1.0})
    if step == 5:
        until(lambda: (RUN / "control.json").exists())
until(lambda: False)
"""
    )
    listener = interrupt_at(5, again_on=events.Acknowledged)
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), listener=listener)
    assert (closing.status, closing.exit_code) == ("interrupted", 137)
    assert [(o.action, o.by) for o in of(paths, events.Operator)] == [("stop", "Ctrl-C"), ("kill", "Ctrl-C")]
    holds(paths)


def test_a_child_that_ignores_the_stop_is_terminated_and_then_killed(tmp_path: Path) -> None:
    body = (
        SIMPLE
        + """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
w.command("stop", lambda to: None)
w.step(1, {"loss": 1.0})
while True:
    signal.pause()
"""
    )
    policy = unwatched(process=Process(grace=0.05))
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), policy=policy, listener=interrupt_at(1))
    assert (closing.status, closing.exit_code) == ("interrupted", 137)
    holds(paths)


DEAF = (
    LINE.replace("STEPS, EVERY = 24, 2", "STEPS, EVERY = 10**6, 2")
    .replace("for step in w.steps():", "for step in range(1, LAST + 1):")
    .replace("    until(lambda: settled(evals))", "    until(lambda: w.stopping or settled(evals))")
)
"""A loop of its own that never looks at ``w.stopping``."""


def stop_at_once() -> ScriptedManager:
    return ScriptedManager([answer(), answer("stop", to="best")])


def test_a_script_that_trains_on_after_its_stop_is_told_so_and_ended(tmp_path: Path) -> None:
    body = "LAST = 10**6\n" + DEAF + "            time.sleep(0.01)\n"
    policy = EXACT.model_copy(update={"process": Process(grace=0.2)})
    paths, closing, recorder = supervise(tmp_path, write_child(tmp_path, body), stop_at_once(), policy=policy)
    assert (closing.status, closing.exit_code) == ("stopped", 143)
    said = [event.message for event in recorder.of(events.Failure) if event.where == "stop"]
    assert len(said) == 2
    assert "was told to stop at step 5 and trains on; it has 0.2 s more" in said[0]
    assert "w.stopping" in said[0]
    assert "ended with SIGTERM" in said[1]
    evals = [record for record in recorder.of(protocol.Eval) if record.step > 5]
    assert closing.final == (evals[-1].metrics["val_loss"] if evals else None)
    holds(paths)


def test_what_a_run_is_said_to_have_ended_at_was_measured_after_its_last_step(tmp_path: Path) -> None:
    """Not the best, on whose weights the script was to stop, where it did not."""
    deaf = write_child(tmp_path, "LAST = 40\n" + DEAF)
    paths, closing, recorder = supervise(tmp_path, deaf, stop_at_once())
    last = recorder.of(protocol.Eval)[-1]
    assert (closing.status, closing.final, closing.steps) == ("stopped", last.metrics["val_loss"], 40)
    assert closing.best is not None
    assert proof.prove(paths).notes == ["The script was told to stop at step 5 and trained on for 35 steps."]
    few = write_child(tmp_path, "LAST = 7\n" + DEAF.replace("step % EVERY == 0", "step in (2, 4)"), "few.py")
    _, closing, _ = supervise(tmp_path, few, stop_at_once())
    assert (closing.steps, closing.final) == (7, None)
    _, closing, _ = supervise(tmp_path, write_child(tmp_path, LINE, "good.py"), stop_at_once())
    assert (closing.status, closing.steps) == ("stopped", 5)
    assert closing.final == closing.best


def test_a_stop_does_not_wait_for_the_boundary_of_a_change_that_waits(tmp_path: Path) -> None:
    body = (
        SIMPLE
        + """
w.float("depth", get=lambda: 1.0, set=lambda v: None, low=0.0, high=9.0, boundary="checkpoint")
w.command("stop", lambda to: None)
with w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step == 2:
            w.eval(step, {"loss": 1.0})
            until(lambda: settled(1))
        if step == 5:
            until(lambda: any(e["kind"] == "override" and e["origin"] == "operator" for e in log())
                  and json.loads((RUN / "control.json").read_bytes())["revision"] == 2)
"""
    )
    manager = ScriptedManager([answer("adjust", {"depth": 2.0})])
    paths, closing, heard = supervise(
        tmp_path, write_child(tmp_path, body), manager, policy=unwatched(), listener=interrupt_at(5)
    )
    assert (closing.status, closing.exit_code) == ("interrupted", 0)
    assert closing.steps in (5, 6)  # the stop may be there before the step that asked for it has looked
    assert [(r.revision, r.reason) for r in heard.of(protocol.Refused)] == [(1, "superseded by revision 2")]
    (applied,) = heard.of(protocol.Applied)
    assert (applied.revision, applied.changes) == (2, {})
    holds(paths)


# ---- its own death ---------------------------------------------------------------------------------------


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
    real_write, real_signal = control.write, process.Child.signal

    def die(*_: Any) -> None:
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "write", die)
        patch.setattr(process.Child, "signal", lambda *_: None)
        patch.setattr(process.Child, "join", lambda *_: True)
        with pytest.raises(Died):
            supervise(tmp_path, script, ScriptedManager([answer("adjust", {"lr": 0.2})]))
    assert control.write is real_write
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


# ---- files at their worst --------------------------------------------------------------------------------


def test_every_override_is_in_the_log_before_it_is_in_the_control_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = control.write, []

    def watched(paths: RunPaths, content: protocol.Control) -> None:
        last = payloads(paths)[-1]
        assert isinstance(last, events.OverrideIssued)
        assert last.control == content
        written.append(content.revision)
        write(paths, content)

    monkeypatch.setattr(control, "write", watched)
    answers = [answer("adjust", {"lr": 0.2}), answer("rollback", to="best"), answer("adjust", {"lr": 0.1})]
    _, closing, _ = supervise(tmp_path, write_child(tmp_path), ScriptedManager(answers))
    assert closing.status == "completed"
    assert written == [1, 2, 3]


def test_without_a_log_line_no_override_reaches_the_control_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, write, decisions = audit.Log.append, control.write, []

    def scarce(log: audit.Log, payload: events.Payload, t: float) -> audit.Event:
        if isinstance(payload, events.OverrideIssued) and payload.decision == "d2":
            raise OSError(28, "No space left on device")
        return append(log, payload, t)

    def watched(paths: RunPaths, content: protocol.Control) -> None:
        decisions.append(content.decision)
        write(paths, content)

    monkeypatch.setattr(audit.Log, "append", scarce)
    monkeypatch.setattr(control, "write", watched)
    listener = Recorder()

    def go(event: events.Payload) -> None:
        if isinstance(event, events.Failure) and event.where == "audit" and listener.paths:
            (listener.paths.root / "go").touch()

    listener._on_event = go
    body = LINE.replace("settled(evals)", "settled(evals) or (evals == 2 and (RUN / 'go').exists())")
    answers = [answer("adjust", {"lr": 0.3}), answer("adjust", {"decay": 0.1}), answer("adjust", {"lr": 0.2})]
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), ScriptedManager(answers), listener=listener)
    assert closing.status == "completed"
    assert decisions == ["d1", "d3"]
    assert protocol.Control.model_validate_json(paths.control.read_bytes()).params == {"lr": 0.2}
    holds(paths)


def test_a_disk_that_stays_full_stops_the_managing_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = audit.Log.append

    def full(log: audit.Log, payload: events.Payload, t: float) -> audit.Event:
        if log._seq >= 5:
            raise OSError(28, "No space left on device")
        return append(log, payload, t)

    monkeypatch.setattr(audit.Log, "append", full)
    body = LINE.replace("until(lambda: settled(evals))", "evals == 1 and until(lambda: settled(evals))")
    manager = ScriptedManager([answer("adjust", {"lr": 0.3}), *[answer("adjust", {"lr": 0.2})] * 20])
    paths, closing, heard = supervise(tmp_path, write_child(tmp_path, body), manager)
    assert (closing.status, closing.steps) == ("completed", 24)
    assert [p.kind for p in payloads(paths)] == ["run started", "snapshot", "response", "verdict", "override"]
    assert protocol.Control.model_validate_json(paths.control.read_bytes()).revision == 1
    assert len(heard.of(protocol.Applied)) == 1


def test_a_log_that_cannot_be_begun_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit.Log, "append", full)
    with pytest.raises(UserError, match="nothing was started"):
        supervise(tmp_path, write_child(tmp_path))


def test_a_control_file_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(control, "write", full)
    body = LINE.replace("settled(evals)", "any(e['kind'] == 'error' for e in log())")
    paths, closing, _ = supervise(
        tmp_path, write_child(tmp_path, body), ScriptedManager([answer("adjust", {"lr": 0.3})])
    )
    assert closing.status == "completed"
    assert failures(paths) == [("control", "control.json cannot be written: No space left on device")]
    holds(paths)


def test_garbage_partial_and_endless_lines_are_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    lines = [b"garbage\n", b"\xff\xfe\x00\n", b"[]\n", b"\n", b"x" * 70 * 1024 + b"\n", b"{}\n",
             b"[" * 5000 + b"\n",
             b'{"event":"step","v":1,"seq":1,"t":1.0,"step":1,"metrics":{"loss":nan}}\n']  # fmt: skip
    body = LINE.replace(
        "    for step in w.steps():",
        f"""    for step in w.steps():
        if step <= {len(lines)}:
            w.flush()
            line = {lines!r}[step - 1]
            os.write(w._writer.fd, line[:5])
            os.write(w._writer.fd, line[5:])""",
    )
    paths, closing, heard = supervise(
        tmp_path, write_child(tmp_path, body), ScriptedManager([answer("adjust", {"lr": 0.2})])
    )
    assert (closing.status, closing.steps, closing.interventions) == ("completed", 24, 1)
    unreadable = heard.of(protocol.Unreadable)
    assert len(unreadable) == len(lines)
    assert all(len(item.quote) <= 200 for item in unreadable)
    found = proof.prove(paths)
    assert {finding.what for finding in found.findings} == {"not a record"}
    assert len(found.findings) > 0


@pytest.mark.parametrize(
    "how", ["os.truncate(T, 0)", "T.rename(RUN / 'old.jsonl'); T.touch()", "T.unlink(); T.touch()"]
)
def test_telemetry_that_is_cut_or_replaced_is_told_and_the_run_goes_on(tmp_path: Path, how: str) -> None:
    body = (
        SIMPLE
        + f"""
T = RUN / "telemetry.jsonl"
with w:
    w.step(1, {{"loss": 1.0}})
    w.eval(1, {{"loss": 1.0}})
    until(lambda: settled(1))
    w.step(2, {{"loss": 1.0}})
    until(lambda: any(e["kind"] == "acknowledged" for e in log()))
    {how}
    until(lambda: any(e["kind"] == "error" and e["where"] == "telemetry" for e in log()))
    for step in range(3, 100):
        w.step(step, {{"loss": 1.0}})
        w.eval(step, {{"loss": 1.0}})
"""
    )
    manager = ScriptedManager([answer("adjust", {"lr": 0.2})])
    policy = unwatched(process=Process(stall_timeout=60.0))
    paths, closing, heard = supervise(tmp_path, write_child(tmp_path, body), manager, policy=policy)
    assert (closing.status, closing.exit_code) == ("completed", 0)
    assert heard.of(protocol.Unreadable) == []
    assert [where for where, _ in failures(paths)] == ["telemetry"]
    assert not proof.prove(paths).holds


# ---- workloads of another kind ---------------------------------------------------------------------------


def test_a_workload_without_parameters(tmp_path: Path) -> None:
    body = """
w = Workload("bare", objective="loss")
with w:
    for step in range(1, 4):
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0})
        until(lambda: settled(step))
"""
    manager = ScriptedManager([answer("adjust", {"lr": 0.2}), answer("rollback", to="best"), answer("stop")])
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), manager)
    assert [v.result for v in of(paths, events.Verdict)] == ["rejected"] * 3
    assert manager.snapshots[0].actions == ["keep"]
    assert closing.status == "completed"
    holds(paths)


BEGIN = r"""
GOAL='"objective":{"metric":"loss","mode":"min"}'
SPACE='{"name":"lr","type":"float","low":0.0,"high":1.0,"value":0.5,"from the future":1}'
T="$TRAINMGR_RUN_DIR/telemetry.jsonl"
say() { printf '%s\n' "$1" >> "$T"; }
WHO='"event":"start","workload":"shell","pid":'$$
say '{"v":1,"seq":0,"t":1.0,'"$WHO"',"total_steps":40,'"$GOAL"',"action_space":['"$SPACE"']}'
"""

REPLYING = r"""
say '{"v":1,"seq":1,"t":2.0,"event":"step","step":1,"metrics":{"loss":"NaN"}}'
say '{"v":1,"seq":2,"t":3.0,"event":"from the future","step":1}'
say '{"v":1,"seq":3,"t":3.0,"event":"eval","step":1,"metrics":{"loss":0.75}}'
i=0
while [ ! -f "$TRAINMGR_RUN_DIR/control.json" ] && [ $i -lt 3000 ]; do sleep 0.02; i=$((i + 1)); done
grep -q '"lr":0.25' "$TRAINMGR_RUN_DIR/control.json" || exit 4
say '{"v":1,"seq":4,"t":4.0,"event":"applied","revision":1,"step":1,"boundary":"eval","changes":{"lr":[0.5,0.25]}}'
say '{"v":1,"seq":5,"t":5.0,"event":"eval","step":4,"metrics":{"loss":0.5},"params":{"lr":0.25}}'
say '{"v":1,"seq":6,"t":6.0,"event":"end","status":"completed","step":4}'
"""


def test_a_shell_script_is_a_workload_too(tmp_path: Path) -> None:
    policy = unwatched(limits=Limits(lead_steps=0))
    answers = [answer("adjust", {"lr": 0.25})] * 2  # an alarm asks first, for the NaN
    manager = ScriptedManager(answers)
    paths, closing, _ = supervise(tmp_path, write_shell(tmp_path, BEGIN + REPLYING), manager, policy=policy)
    assert (closing.status, closing.exit_code, closing.final, closing.interventions) == ("completed", 0, 0.5, 1)
    holds(paths)


AT_ONCE = r"""
measured() { printf '{"v":1,"seq":%s,"t":1.0,"event":"eval","step":%s,"metrics":{"loss":0.75}}' "$1" "$2"; }
stepped() { printf '{"v":1,"seq":%s,"t":1.0,"event":"step","step":%s,"metrics":{"loss":0.75}}' "$1" "$2"; }
printf '%s\n%s\n%s\n%s\n%s\n' \
    "$(stepped 1 9)" "$(measured 2 10)" "$(stepped 3 14)" "$(stepped 4 15)" "$(stepped 5 16)" >> "$T"
i=0
while [ ! -f "$TRAINMGR_RUN_DIR/control.json" ] && [ $i -lt 3000 ]; do sleep 0.02; i=$((i + 1)); done
say '{"v":1,"seq":6,"t":4.0,"event":"applied","revision":1,"step":20,"boundary":"step","changes":{"lr":[0.5,0.25]}}'
say '{"v":1,"seq":7,"t":6.0,"event":"end","status":"completed","step":20}'
"""


@pytest.mark.parametrize(("exact", "based_on"), [
    ({"limits": Limits(lead_steps=10)}, 10), ({"cadence": Cadence(every_steps=20, ahead_steps=5)}, 15),
])  # fmt: skip
def test_how_many_records_are_read_at_once_does_not_move_an_exact_change(
    tmp_path: Path, exact: dict[str, Any], based_on: int
) -> None:
    manager = ScriptedManager([answer("adjust", {"lr": 0.25})])
    script = write_shell(tmp_path, BEGIN + AT_ONCE)
    paths, closing, _ = supervise(tmp_path, script, manager, policy=unwatched(**exact))
    [issued] = of(paths, events.OverrideIssued)
    assert (issued.control.based_on_step, issued.control.at_step) == (based_on, 20)
    assert closing.interventions == 1
    holds(paths)


def test_nobody_is_asked_about_what_a_dead_script_had_left_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "Watcher", lambda *_: nullcontext())
    monkeypatch.setattr(supervisor, "POLL", 60.0)  # so that the end of the child is the first that is heard of it
    manager = ScriptedManager([answer("adjust", {"lr": 0.25})])
    script = write_shell(tmp_path, BEGIN + AT_ONCE[: AT_ONCE.index("i=0")] + "exit 3")
    paths, closing, _ = supervise(tmp_path, script, manager, policy=unwatched(limits=Limits(lead_steps=10)))
    assert (closing.status, closing.exit_code, closing.steps) == ("failed", 3, 16)
    assert (manager.snapshots, failures(paths)) == ([], [])
    holds(paths)


def test_the_run_directory_is_named_in_time_and_script(tmp_path: Path) -> None:
    paths, _, _ = supervise(tmp_path, write_shell(tmp_path, "exit 0", "my train.sh"))
    assert re.fullmatch(r"\d{8}-\d{6}-my-train-[0-9a-f]{4}", paths.id)


def test_the_last_lines_say_why_decisions_got_no_answer(tmp_path: Path) -> None:
    manager = ScriptedManager([ManagerError("the model is away"), ManagerError("status 429: no more today")])
    paths, _, _ = supervise(tmp_path, write_child(tmp_path), manager)
    manifest, state, ledger = history.latest(paths)
    said = Console(file=io.StringIO(), width=200)
    tables.print_closing(said, manifest, state, ledger)
    assert isinstance(said.file, io.StringIO)
    assert "No answer to 2 decisions; the last: status 429: no more today." in said.file.getvalue()


def test_a_wrapper_that_leaves_the_script_in_the_background_is_no_end_of_the_training(tmp_path: Path) -> None:
    body = "until((RUN / 'go').exists)\n" + LINE
    write_child(tmp_path, body)
    wrapper = write_shell(tmp_path, f"{PYTHON} {tmp_path}/child.py > /dev/null 2>&1 &\n")
    heard = Recorder()
    paths, closing, _ = supervise(tmp_path, wrapper, listener=heard)
    try:
        (failure,) = [e for e in heard.of(events.Failure) if e.where == "workload"]
        assert "goes on unsupervised: let it wait for the script, without nohup or &" in failure.message
        assert (closing.status, closing.exit_code) == ("failed", 0)
    finally:
        (paths.root / "go").touch()
        wait_for(lambda: not process.living(RUN_DIR_VARIABLE, str(paths.root)), "the end of the script")


def test_a_loop_that_only_evaluates_and_ignores_its_stop_is_told_so_once_and_ended(tmp_path: Path) -> None:
    """And asked nothing more: a second stop would begin the count anew."""
    body = """
value = [3.0, 2.0, 1.0, *[1.0 + i / 10 for i in range(1, 10**5)]]
w = Workload("epochs", objective="loss", total_steps=10**6, metrics={"loss": "made up"})
w.command("stop", lambda to: None)
w.command("rollback", lambda to: None)
for epoch in range(1, 10**5):
    w.eval(epoch, {"loss": value[epoch]})
    w.checkpoint(epoch, "checkpoints/none", best=epoch == 2)
    until(lambda: w.stopping or settled(epoch))
    time.sleep(0.002)  # stands for an epoch
"""
    manager = ScriptedManager([answer(), *[answer("stop", to="best") for _ in range(50)]])
    policy = EXACT.model_copy(update={"process": Process(grace=0.2), "limits": Limits()})
    paths, closing, recorder = supervise(tmp_path, write_child(tmp_path, body), manager, policy=policy)
    assert (closing.status, closing.exit_code) == ("stopped", 143)
    assert len([e for e in recorder.of(events.Failure) if e.where == "stop"]) == 2
    assert len([e for e in recorder.of(events.OverrideIssued) if e.control.command]) == 1
    last = recorder.of(protocol.Eval)[-1]
    assert closing.final == last.metrics["loss"]
    assert closing.best == 1.0
    holds(paths)
