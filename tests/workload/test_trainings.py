"""Several trainings in one run, after each other or at once: each is told from the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from factories.reporting import Script, command, control, folded, records

from trainmgr import workload
from trainmgr.workload import Workload

pytestmark = pytest.mark.usefixtures("alone")


def test_a_second_training_begins_with_its_own_values_and_is_spared_what_was_asked_of_the_first(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2, "mix": 0.7})
        script.w.step(1, {"loss": 1.0})
        script.w.eval(1, {"loss": 1.0})
        script.w.end(1)
    control(run, 2, {"lr": 0.3, "mix": 0.7}, command=command("stop"))  # too late for it
    with Script() as script:
        script.w.step(1, {"loss": 1.0})
        assert (script.recipe["lr"], script.recipe["mix"], script.done) == (0.1, 0.5, [])
        control(run, 3, {"lr": 0.2, "mix": 0.7, "flip": True})  # complete, as the supervisor writes it
        script.w.step(2, {"loss": 1.0})
        script.w.eval(2, {"loss": 1.0})
        assert (script.recipe["lr"], script.recipe["mix"], script.recipe["flip"]) == (0.1, 0.5, True)
        control(run, 4, {"lr": 0.4, "mix": 0.7, "flip": True})
        script.w.step(3, {"loss": 1.0})
        assert (script.recipe["lr"], script.recipe["mix"]) == (0.4, 0.5)
        script.w.end(3)
    assert [p["value"] for p in records(run, "start")[1]["action_space"]] == [0.1, 3, 0.5, False, "a"]
    assert [(r["revision"], r["reason"]) for r in records(run, "refused")] == [
        (2, "it was for the training before this one, completed")
    ]
    assert [r["changes"] for r in records(run, "applied")[1:]] == [{"flip": [False, True]}, {"lr": [0.1, 0.4]}]
    with Script() as script:  # a third one: it has been said
        script.w.step(1, {"loss": 1.0})
    (said,) = records(run, "log")
    assert said["message"].startswith("this run has several trainings: one is completed, and another begins")
    folded(run)


def test_what_rests_on_a_step_of_the_training_before_is_refused_whenever_it_comes(run: Path) -> None:
    for last in (50, 3):
        with Script() as script:
            script.w.step(1, {"loss": 1.0})
            if last == 3:
                control(run, 1, {"lr": 0.2}, based_on_step=50)
                script.w.step(2, {"loss": 1.0})
                control(run, 2, {"lr": 0.2}, based_on_step=2)
            script.w.step(last, {"loss": 1.0})
            script.w.end(last)
    assert [r["reason"] for r in records(run, "refused")] == ["it rests on step 50 of the training before this one"]
    assert script.recipe["lr"] == 0.2


def test_the_value_that_the_training_before_had_may_be_asked_of_the_next_one(run: Path) -> None:
    for revision in (1, 2):
        with Script() as script:
            script.w.step(1, {"loss": 1.0})
            control(run, revision, {"lr": 0.2})
            script.w.step(2, {"loss": 1.0})
            script.w.end(2)
    assert [r["changes"] for r in records(run, "applied")] == [{"lr": [0.1, 0.2]}] * 2


ENDS = {  # how the first training ends, whether the second is another process, and whether it is another training
    "completed": ("w.end(1)", False, True),
    "completed, another process": ("w.end(1)", True, True),
    "failed, and the script goes on": ("w.end(1, status='failed')", False, True),
    "failed, and started again": ("w.end(1, status='failed')", True, False),
    "interrupted, and started again": ("w.end(1, status='interrupted')", True, False),
    "crashed": ("w.flush(); os._exit(0)", True, False),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_training_started_again_is_told_from_another_one(run: Path, how: str) -> None:
    end, process, another = ENDS[how]
    code = f"""
import os
from trainmgr.workload import Workload
recipe = {{"lr": 0.1}}
w = Workload("test", objective="loss")
w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.01, high=1.0)
w.step(1, {{"loss": 1.0}})
{end}
"""
    control(run, 1, {"lr": 0.2})
    again = code.replace(end, "w.flush()")
    for script in [code, again] if process else [code + again]:
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert [start["action_space"][0]["value"] for start in records(run, "start")] == [0.1, 0.1 if another else 0.2]
    assert ("several trainings" in str(records(run, "log"))) is another


def test_a_training_that_goes_on_from_a_checkpoint_keeps_what_is_in_force(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
        script.w.end(1)
    with Script(resumed_from="a", resumed_step=1) as script:
        script.w.step(2, {"loss": 1.0})
    assert script.recipe["lr"] == 0.2
    assert records(run, "log") == []


def test_a_training_that_was_never_ended_is_over_when_the_next_one_of_its_process_reports(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Script() as first:
        control(run, 1, {"lr": 0.2})
        first.w.step(1, {"loss": 1.0})
        monkeypatch.setattr(Workload, "PERIOD", 1e9)
        first.w._period = 1e9
        first.w.step(2, {"loss": 1.0})  # gathered
        second = Script()
        second.w.step(1, {"loss": 2.0})
        second.w.flush()
        assert second.recipe["lr"] == 0.1
        first.w.eval(3, {"loss": 1.0})
        first.w.step(3, {"loss": 1.0})
    assert [(r["event"], r.get("step")) for r in records(run)] == [
        ("start", None), ("step", 1), ("applied", 1), ("step", 2), ("start", None), ("log", None), ("step", 1),
    ]  # fmt: skip
    assert "one is over, and another begins" in records(run, "log")[0]["message"]
    err = capsys.readouterr().err
    assert err == "test: a report is not written: test reports this run since; training goes on\n"
    folded(run)


def test_of_two_workloads_at_once_in_one_process_the_first_reports_and_is_managed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keeps = [workload.Checkpoints(s, lambda path, k=k: path.write_text(k), lambda path: None) for s, k in (
        (Workload("gen", objective="loss", total_steps=9), "gen"), (Workload("disc", objective="loss"), "disc"))
    ]  # fmt: skip
    first, second = (keep._w for keep in keeps)
    with first, second:
        for step in range(1, 4):
            for keep in keeps:
                if step == 1:
                    keep.begin()
                keep._w.step(step, {"loss": 1.0})
                keep.eval(step, {"loss": 1.0})
    assert [start["workload"] for start in records(run, "start")] == ["gen"]
    assert [r["step"] for r in records(run, "eval")] == [1, 2, 3]
    assert len(records(run, "end")) == 1
    assert (run / "checkpoints/initial.pt").read_text() == (run / "checkpoints/best.pt").read_text() == "gen"
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("disc: gen reports this run in the same process, so disc reports nothing")
    folded(run)


def test_reports_after_the_end_are_said_once_and_dropped(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Script() as script:
        script.w.step(1, {"loss": 1.0})
        script.w.end(1)
        for step in range(2, 5):
            script.w.step(step, {"loss": 1.0})
            script.w.eval(step, {"loss": 1.0})
            script.w.checkpoint(step, "x")
            script.w.log("info", "x")
        script.w.end(5)
    assert records(run)[-1]["event"] == "end"
    assert capsys.readouterr().err == "test: a report is not written: it was ended before; training goes on\n"


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_something_has_closed_is_never_taken_for_another(run: Path, gone: bool) -> None:
    code = f"""
import os
from trainmgr.workload import Workload
with Workload("test", objective="loss", total_steps=9) as w:
    w.step(1, {{"loss": 1.0}})
    w.eval(1, {{"loss": 1.0}})
    if {gone}:
        os.rename("{run}/telemetry.jsonl", "{run}/away")
        open("{run}/telemetry.jsonl", "w").close()
    os.closerange(3, 256)  # as daemons do
    with open("{run}/model", "wb", buffering=0) as model:
        for step in range(2, 10):
            w.step(step, {{"loss": 1.0}})
            w.eval(step, {{"loss": 1.0}})
        w.end(9)
        model.write(b"MODEL")  # still open
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (run / "model").read_text() == "MODEL"
    if gone:
        assert records(run) == []
        assert len((run / "away").read_text().splitlines()) == 3
        assert done.stderr.count("something has closed the file of telemetry") == 1
    else:
        assert [r["step"] for r in records(run, "eval")] == list(range(1, 10))
        assert records(run)[-1]["event"] == "end"
        assert done.stderr == ""
        folded(run)
