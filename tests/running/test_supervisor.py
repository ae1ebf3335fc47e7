"""Whatever the manager does and whatever kind of script it is, training comes first and the log explains everything."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from factories.supervised import SIMPLE, failures, unwatched
from recorded import holds, of, payloads
from rich.console import Console

from trainmgr.base import process
from trainmgr.base.errors import ManagerError
from trainmgr.base.paths import RUN_DIR_VARIABLE
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Approval, Cadence, Limits, Process
from trainmgr.log import history, telemetry
from trainmgr.running import supervisor
from trainmgr.terminal import tables
from trainmgr.testing import (
    EXACT,
    LINE,
    PYTHON,
    Recorder,
    ScriptedManager,
    answer,
    supervise,
    wait_for,
    write_child,
    write_shell,
)

# -- decisions ---------------------------------------------------------------------------------------------------------


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


# -- managers at their worst -------------------------------------------------------------------------------------------


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
    body = LINE.replace("STEPS, EVERY = 24, 2", f"STEPS, EVERY = {2 * len(GARBAGE) + 3}, 2")
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


# -- workloads of another kind -----------------------------------------------------------------------------------------


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
    now = history.latest(paths)
    said = Console(file=io.StringIO(), width=200)
    tables.print_closing(said, now)
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
