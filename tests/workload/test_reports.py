"""What a training script writes is of the protocol whatever it reports, and no report ever stops training."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories.reporting import Script, control, folded, records

from trainmgr.base.wire import explained
from trainmgr.contract import protocol
from trainmgr.log.telemetry import Feed
from trainmgr.state.run_state import RunState
from trainmgr.workload import Metric, Workload
from trainmgr.workload.lines import MAX_LINE, MAX_TEXT
from trainmgr.workload.records import ROLES

pytestmark = pytest.mark.usefixtures("alone")


# -- what is written ---------------------------------------------------------------------------------------------------


def test_without_a_supervisor_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Script() as script:
        assert not script.w.supervised
        for step in script.w.steps():
            script.w.step(step, {"loss": 1.0})
        script.w.eval(100, {"loss": 1.0})
        script.w.log("info", "hello")
        script.w.end(100)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_gets_telemetry_and_no_control_file_is_read(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with Script(directory=place) as script:
        control(place, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
        script.w.eval(1, {"loss": 1.0})
        script.w.checkpoint(1, script.w.checkpoints / "a.pt", best=True)
        script.w.end(1, {"loss": 1.0})
    assert [r["event"] for r in records(place)] == ["start", "step", "eval", "checkpoint", "end"]
    assert records(place, "checkpoint")[0]["path"] == "checkpoints/a.pt"
    assert script.recipe["lr"] == 0.1
    state = folded(place)
    assert state.end is not None
    assert state.end.status == "completed"


def test_every_record_is_one_of_the_protocol_whatever_the_script_reports(run: Path) -> None:
    class Odd:
        def __float__(self) -> float:
            raise RuntimeError("a tensor with two elements")

    with Script(metrics={"loss": "–"}, info={"path": Path("/x"), "odd": "\ud800"}) as script:
        w = script.w
        w.step(1, {"loss": 10**400, "acc": True, "x": -(10**5000)})
        w.step(2, {"a%sb": 1.5, 'qu"ote': 2, "ü\n": 3})
        w.log("warning", "half a pair: \ud800, a break:\n, " + "x" * 10_000)
        w.eval(2, {"loss": float("-inf")}, split={"en": {"loss": math.nan}})
        w.checkpoint(2, "checkpoints/\udcff")
        w.end(2)
    state = folded(run)
    assert state.records == 7
    first, second = records(run, "step")
    assert first["metrics"] == {"loss": "Infinity", "acc": 1, "x": "-Infinity"}
    assert second["metrics"] == {"a%sb": 1.5, 'qu"ote': 2, "ü\n": 3}
    assert len(records(run, "log")[0]["message"]) == MAX_TEXT

    with Script(directory=None) as script:  # goes on in the same file
        script.w.step(3, {"loss": Odd()})
        script.w.step(4, {"loss": [1, 2]})
        script.w.step(5, {"loss": 1.0})
    assert [r["seq"] for r in records(run)] == list(range(len(records(run))))


def test_nan_is_written_at_once_and_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workload, "PERIOD", 1e9)
    with Script() as script:
        script.w.step(1, {"loss": 1.0})  # the first one is always written
        script.w.step(2, {"loss": 2.0})
        assert [r["step"] for r in records(run, "step")] == []
        script.w.step(3, {"loss": math.nan, "grad_norm": math.inf})
        assert [r["step"] for r in records(run, "step")] == [1, 2, 3]
        assert records(run)[-1]["metrics"] == {"loss": "NaN", "grad_norm": "Infinity"}
    assert folded(run).non_finite_total == 2


def test_seq_has_no_gaps_across_a_restart_after_a_torn_line(run: Path) -> None:
    with Script() as script:
        for step in range(1, 6):
            script.w.step(step, {"loss": float(step)})
    telemetry = run / "telemetry.jsonl"
    whole = telemetry.read_bytes()
    telemetry.write_bytes(whole[:-9])  # killed in the middle of the last line
    with Script(resumed_from="x", resumed_step=3) as script:
        script.w.step(4, {"loss": 4.0})
        script.w.end(4)
    lines = telemetry.read_bytes().splitlines()
    assert lines[5] == whole.splitlines()[5][:-8]
    state = RunState()
    for item in Feed(telemetry).records():
        state.fold(item)
    assert (state.gaps, state.garbage, state.starts) == (0, 1, 2)


def longest(run: Path) -> int:
    return max(map(len, (run / "telemetry.jsonl").read_bytes().splitlines(keepends=True)))


def test_a_record_too_long_is_written_without_what_can_be_spared(run: Path) -> None:
    many = {f"per_class/class_{i:05d}/f1": 0.123456789 for i in range(2000)}
    with Script(counterpart="train") as script:
        for step in (1, 2):
            script.w.step(step, {"a": 1.0, **many})
            script.w.eval(step, {"a": 1.0, **many, "loss": 2.0, "train": 3.0})
            script.w.eval(step, {"loss": 4.0, "train": 5.0}, split={name: {"loss": 1.0} for name in many})
    big, parts, *_ = records(run, "eval")
    assert (big["metrics"]["loss"], big["metrics"]["train"], big["metrics"]["a"]) == (2.0, 3.0, 1.0)
    assert list(big["metrics"])[1:-2] == list(many)[: len(big["metrics"]) - 3]
    assert 1500 < len(big["metrics"]) < 2000
    assert (parts["metrics"], len(parts["split"]) > 1000) == ({"loss": 4.0, "train": 5.0}, True)
    assert MAX_LINE - 50 < longest(run) <= MAX_LINE
    left = [f"left out: {2002 - len(big['metrics']) + 1:,} of 2,003 entries of metrics"]
    said = [r["message"] for r in records(run, "log")]
    assert said[1].startswith("the record eval at step 1 has ")
    assert said[1].endswith(left[0])
    assert said[0].startswith("the record step at step 1 has ")
    assert len(said) == 2
    state = folded(run)
    assert (state.evals, state.step, state.latest) == (4, 2, 4.0)


def test_a_start_too_long_is_written_without_info_and_descriptions(run: Path) -> None:
    metrics = {f"metric {i}": "x" * 1000 for i in range(60)}
    with Script(info={f"arg_{i}": "x" * 100 for i in range(700)}, metrics=metrics) as script:
        control(run, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
    assert script.recipe["lr"] == 0.2
    (start,) = records(run, "start")
    assert start["metrics"]["metric 0"] == {"description": "x" * 1000}
    assert "left out: " in records(run, "log")[0]["message"]
    assert longest(run) <= MAX_LINE
    assert folded(run).starts == 1


def test_a_start_too_long_with_its_descriptions_is_written_without_them(run: Path) -> None:
    metrics = {f"metric {i}": Metric("x" * 1000, "success") for i in range(100)}
    with Script(info={"a": 1}, metrics=metrics) as script:
        script.w.step(1, {"loss": 1.0})
    (start,) = records(run, "start")
    assert (start["metrics"]["metric 9"], start["info"]) == ({"description": "", "role": "success"}, {})
    assert records(run, "log")[0]["message"].endswith("left out: 1 of 1 entries of info, descriptions of metrics")


def test_a_record_of_which_nothing_can_be_spared_is_replaced_by_a_word_about_it(run: Path) -> None:
    with Script() as script:
        script.w.checkpoint(1, "x" * MAX_LINE)
    assert records(run, "log")[0]["message"].startswith("the record checkpoint at step 1 has 65,")
    assert records(run, "log")[0]["message"].endswith("bytes, and 65,536 are allowed; it is dropped")
    folded(run)


def test_a_counterpart_that_is_never_there_is_said_once(run: Path) -> None:
    with Script(counterpart="train_los") as script:
        script.w.eval(1, {"loss": 1.0, "train_loss": 1.0})
        script.w.eval(2, {"loss": 1.0, "train_loss": 1.0})
    (said,) = records(run, "log")
    assert said["message"] == (
        "the evaluation at step 1 is without the counterpart 'train_los'; it has: loss, train_loss. "
        "Was 'train_loss' meant?"
    )


def test_a_counterpart_that_is_measured_now_and_then_is_none_to_speak_of(run: Path) -> None:
    with Script(counterpart="train") as script:
        script.w.eval(1, {"loss": 1.0, "train": 1.0})
        script.w.eval(2, {"loss": 1.0})
    assert records(run, "log") == []


def test_a_full_disk_costs_records_and_never_the_training_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "telemetry.jsonl").symlink_to("/dev/full")
    with Script() as script:
        steps = 0
        for step in script.w.steps():
            script.w.step(step, {"loss": 1.0})
            steps += 1
        script.w.eval(100, {"loss": 1.0})
        script.w.end(100)
    assert steps == 100
    assert capsys.readouterr().err.count("telemetry cannot be written") == 1


def test_what_a_full_disk_refused_is_written_when_there_is_room_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, [40]

    def scarce(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        count = write(fd, data[: room[0]])
        room[0] -= count
        return count

    with Script() as script:
        monkeypatch.setattr(os, "write", scarce)
        script.w.step(1, {"loss": 1.0})  # torn in the middle of a line
        script.w.step(2, {"loss": 2.0})
        room[0] = 1 << 30
        script.w.step(3, {"loss": 3.0})
        monkeypatch.undo()
    assert [r["step"] for r in records(run, "step")] == [1, 2, 3]
    folded(run)


def test_past_its_limit_the_backlog_shows_as_a_gap(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmgr.workload.backlog.MAX_BACKLOG", 200)
    with Script() as script:
        script.w.step(1, {"loss": 1.0})
        real = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: (_ for _ in ()).throw(OSError(28, "full")))
        for step in range(2, 20):
            script.w.step(step, {"loss": 1.0})
        monkeypatch.setattr(os, "write", real)
        script.w.step(20, {"loss": 1.0})
    state = RunState()
    for item in Feed(run / "telemetry.jsonl").records():
        assert not isinstance(item, protocol.Unreadable)
        state.fold(item)
    assert state.gaps > 0
    assert state.step == 20


def test_the_end_says_how_it_came(run: Path) -> None:
    for error, status in ((None, "completed"), (KeyboardInterrupt(), "interrupted"), (ValueError("no"), "failed")):
        (run / "telemetry.jsonl").unlink(missing_ok=True)
        try:
            with Workload("test", objective="loss") as w:
                w.step(7, {"loss": 1.0})
                if error:
                    raise error
        except (KeyboardInterrupt, ValueError):
            pass
        assert (records(run)[-1]["event"], records(run)[-1]["status"], records(run)[-1]["step"]) == ("end", status, 7)


def test_declarations_that_cannot_be(run: Path) -> None:
    def declare(**more: Any) -> None:
        values = {"low": 0.1, "high": 1.0, **more}
        Workload("test", objective="loss").float("x", get=lambda: 1.0, set=print, **values)

    for wrong in ({"low": 1.0}, {"low": math.nan}, {"high": math.inf}, {"low": 0.0, "scale": "log"}, {"scale": "exp"},
                  {"boundary": "epoch"}):  # fmt: skip
        with pytest.raises(ValueError, match="x: "):
            declare(**wrong)
    with pytest.raises(ValueError, match="allowed are 'min' and 'max'"):
        Workload("test", objective="loss", mode="least")
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="must be greater than 0 and finite"):
            Workload("test", objective="loss", scale=scale)
    with pytest.raises(ValueError, match="'winning' is no role of a metric; there are: success, unsafe, "):
        Workload("test", objective="loss", metrics={"won": Metric("share", "winning")})
    with pytest.raises(ValueError, match="the objective loss must be comparable"):
        Workload("test", objective="loss", metrics={"loss": Metric("x", depends=("lr",))})
    with (
        pytest.raises(ValueError, match="won depends on 'rl', which is no parameter"),
        Script(metrics={"won": Metric("share", "success", ("lr", "rl"))}) as script,
    ):
        script.w.step(1, {})
    with Script() as script:
        with pytest.raises(ValueError, match="declared twice"):
            script.w.bool("flip", get=bool, set=print)
        with pytest.raises(ValueError, match="allowed are checkpoint, rollback, stop"):
            script.w.command("restart", print)
        script.w.step(1, {})
        with pytest.raises(RuntimeError, match="before"):
            script.w.command("stop", print)


def test_what_a_metric_means_is_announced(run: Path) -> None:
    metrics = {"loss": "nats", "won": Metric("share", "success"), "pay": Metric("reward", depends=("lr",))}
    with Script(metrics=metrics, scale=2.0) as script:
        script.w.step(1, {})
    (start,) = records(run, "start")
    assert start["metrics"] == {
        "loss": {"description": "nats"},
        "won": {"description": "share", "role": "success"},
        "pay": {"description": "reward", "depends": ["lr"]},
    }
    assert folded(run).start.objective.scale == 2.0  # type: ignore[union-attr]
    described = explained(protocol.MetricInfo)["role"]
    assert all(role in described for role in ROLES)


# -- a report never stops training -------------------------------------------------------------------------------------


class Broken:
    """What a parameter's ``get`` may come to return; "raise" raises."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        if self.value == "raise":
            raise AttributeError("'DataParallel' object has no attribute 'p'")
        return self.value


@pytest.mark.parametrize(("value", "problem"), [
    ("raise", "`get` raised AttributeError: 'DataParallel' object has no attribute 'p'"),
    (None, "its value is None; `get` must return a number"),
    ([0.1, 0.2], "its value is a list of 2; `get` must return a number"),
    (math.nan, "its value is nan; `get` must return a finite number"),
    (True, "its value is True; `get` must return a number"),
])  # fmt: skip
def test_a_value_that_cannot_be_read_any_more_is_left_out_and_said_once(run: Path, value: Any, problem: str) -> None:
    get, recipe = Broken(0.1), {"mix": 0.5}
    w = Workload("test", objective="loss", total_steps=9)
    w.float("lr", get=get, set=lambda v: setattr(get, "value", v), low=0.01, high=1.0)
    w.float("mix", get=lambda: recipe["mix"], set=lambda v: recipe.update(mix=v), low=0.0, high=1.0)
    for step in range(1, 9):
        if step == 2:
            control(run, 1, {"lr": 0.2})
        if step == 4:
            get.value = value
            control(run, 2, {"lr": 0.2, "mix": 0.6})
        if step == 7:
            get.value = 0.2
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0})
    (said,) = records(run, "log")
    assert said["message"] == f"lr cannot be read at step 4: {problem}"
    lrs = [r["params"].get("lr") for r in records(run, "eval")]
    assert lrs == [0.1, 0.2, 0.2, None, None, None, 0.2, 0.2]
    assert [r["changes"] for r in records(run, "applied")] == [{"lr": [0.1, 0.2]}, {"mix": [0.5, 0.6]}]
    assert records(run, "overwritten") == []
    folded(run)


def test_an_optimizer_whose_groups_are_gone_refuses_a_change_and_stops_nothing(run: Path) -> None:
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-3}])
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1e-1)
    w.step(1, {"loss": 1.0})
    optimizer.param_groups = []
    control(run, 1, {"lr": 5e-3})
    w.step(2, {"loss": 1.0})
    w.eval(2, {"loss": 1.0})
    assert [r["reason"] for r in records(run, "refused")] == [
        "ValueError: the optimizer has none of these groups any more"
    ]
    assert records(run, "eval")[0]["params"] == {}
    folded(run)


@pytest.mark.parametrize("line", [
    '{"v":1,"seq":0,"t":0.0,"event":"applied","revision":"x","step":1,"boundary":"step","changes":{}}',
    '{"v":1,"seq":0,"t":0.0,"event":"applied","revision":1,"step":1,"boundary":"step","changes":{"lr":3}}',
    '{"v":1,"seq":0,"t":0.0,"event":"applied","revision":1,"shares":[]}', '["applied", {"seq":0,}]',
    '{"v":1,"seq":0,"t":0.0,"event":"end"}', '{"v":1,"seq":0,"t":0.0,"event":"end","status":["completed"]}',
])  # fmt: skip
def test_records_of_another_writer_that_are_none_do_not_stop_training(run: Path, line: str) -> None:
    (run / "telemetry.jsonl").write_text(line + "\n")
    with Script() as script:
        script.w.step(1, {"loss": 1.0})
    assert '"event":"step","step":1,' in (run / "telemetry.jsonl").read_text()


@pytest.mark.parametrize("split", [[("a", {"loss": 1.0})], 3, {"a": 1.0}, {"a": None}], ids=repr)
def test_a_split_that_is_none_does_not_stop_an_evaluation(run: Path, split: Any) -> None:
    with Script() as script:
        script.w.eval(1, {"loss": 1.0}, split=split)
        script.w.eval(2, {"loss": 1.0}, split=split)
    assert [r["metrics"] for r in records(run, "eval")] == [{"loss": 1.0}] * 2
    (said,) = records(run, "log")
    assert " at step 1 " in said["message"]
    folded(run)


@pytest.mark.parametrize("how", [
    "sys.stderr.close()", "sys.stderr = None", "os.close(2)", "full",
    "ends = os.pipe(); os.close(ends[0]); os.dup2(ends[1], 2)", "sys.stderr = open(os.devnull, 'w', encoding='ascii')",
    "sys.stderr.reconfigure(encoding='ascii', errors='strict')",
])  # fmt: skip
def test_what_cannot_be_said_on_standard_error_does_not_stop_training(run: Path, how: str) -> None:
    (run / "telemetry.jsonl").symlink_to("/dev/full")
    code = f"""
import os, sys
from trainmgr.workload import Workload
with Workload("\u00e9", objective="loss", total_steps=20) as w:
    {"pass" if how == "full" else how}
    for step in w.steps():
        w.step(step, {{"loss": 1.0}})
        w.eval(step, {{"loss": 1.0}})
print("trained to", step)
"""
    with Path("/dev/full").open("w") as full:
        error = full if how == "full" else subprocess.PIPE
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=error, text=True, timeout=60, check=False
        )
    assert (done.stdout, done.returncode) == ("trained to 20\n", 0)
