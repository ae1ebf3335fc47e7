"""Ctrl-C, signals that are not for the supervisor, and scripts that do not stop."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from factories.situations import situation
from factories.supervised import SIMPLE, unwatched
from recorded import holds, of
from rich.console import Console

from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Process
from trainmgr.log import history
from trainmgr.readers import proof
from trainmgr.state.run_state import RunState
from trainmgr.terminal import display, screen, tables
from trainmgr.testing import (
    EXACT,
    LINE,
    TIME_LIMIT,
    Recorder,
    ScriptedManager,
    answer,
    supervise,
    write_child,
)

# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


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
    now = history.latest(paths)
    assert display.event_in_words(asked, now) == f"{name}: the script is asked to stop"
    said.print(screen.render(now, width=180))
    tables.print_closing(said, now)
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
    assert display.event_in_words(before, situation(RunState())) == "Ctrl-C or SIGTERM: the script is asked to stop"


# -- signals that are not for the supervisor ---------------------------------------------------------------------------


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
    words = [display.event_in_words(event, situation(RunState())) for event in heard.of(events.Signalled)]
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
    assert display.event_in_words(came, situation(RunState())) == "SIGHUP: the terminal is gone; the run goes on"
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
