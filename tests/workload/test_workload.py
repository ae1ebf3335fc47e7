"""The library inside of a training script: what it writes, what it accepts, and what it never lets happen."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainmgr import workload
from trainmgr.contract import protocol
from trainmgr.log.telemetry import Feed
from trainmgr.state.run_state import RunState
from trainmgr.workload import Metric, Workload, ranks
from trainmgr.workload.lines import MAX_LINE, MAX_TEXT
from trainmgr.workload.records import ROLES

pytestmark = pytest.mark.usefixtures("alone")


class Script:
    """A training script in miniature: three parameters at three boundaries, and every command."""

    def __init__(self, **more: Any) -> None:
        self.recipe: dict[str, Any] = {"lr": 0.1, "depth": 3, "mix": 0.5, "flip": False, "kind": "a"}
        self.done: list[str] = []
        self.set_calls: list[tuple[str, Any]] = []
        self.w = Workload("test", objective="loss", total_steps=100, **more)
        declare = {"float": {"low": 0.01, "high": 1.0}, "int": {"low": 1, "high": 9}}
        self.w.float("lr", get=self.get("lr"), set=self.put("lr"), scale="log", max_ratio=2.0, **declare["float"])
        self.w.int("depth", get=self.get("depth"), set=self.put("depth"), boundary="checkpoint", **declare["int"])
        self.w.float("mix", get=self.get("mix"), set=self.put("mix"), low=0.2, high=1.0, off=0.0, boundary="eval")
        self.w.bool("flip", get=self.get("flip"), set=self.put("flip"))
        self.w.choice("kind", get=self.get("kind"), set=self.put("kind"), choices=["a", "b"])
        self.w.command("rollback", self.rollback)
        self.w.command("checkpoint", lambda to: self.done.append(f"checkpoint {to} lr {self.recipe['lr']}"))
        self.w.command("stop", lambda to: self.done.append(f"stop {to}"))

    def get(self, name: str) -> Callable[[], Any]:
        return lambda: self.recipe[name]

    def put(self, name: str) -> Callable[[Any], None]:
        def put(value: Any) -> None:
            self.set_calls.append((name, value))
            self.recipe[name] = value

        return put

    def rollback(self, to: str) -> None:
        self.done.append(f"rollback {to}")
        self.recipe["lr"] = 0.1  # as restoring an optimizer does

    def __enter__(self) -> Script:
        self.w.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.w.flush()


def control(run: Path, revision: int, params: dict[str, Any] | None = None, **more: Any) -> None:
    """Put a control file in place as the supervisor does: in one step."""
    content = {"v": 1, "run": run.name, "revision": revision, "issued": {"t": 0.0, "step": 0}, "params": params or {},
               "based_on_step": 0, "decision": f"d{revision}", **more}  # fmt: skip
    put(run, json.dumps(content))


def put(run: Path, text: str) -> None:
    new = run / "control.new"
    new.write_text(text)
    new.replace(run / "control.json")


def command(name: str, to: str | None = None) -> dict[str, Any]:
    return {"id": "c1", "name": name, "to": to}


def records(run: Path, event: str = "") -> list[dict[str, Any]]:
    lines = (run / "telemetry.jsonl").read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") for line in lines)
    found = [json.loads(line) for line in lines]
    return [record for record in found if not event or record["event"] == event]


def folded(run: Path) -> RunState:
    """Read by the other side: every line is a record of the protocol."""
    state = RunState()
    for item in Feed(run / "telemetry.jsonl").records():
        assert not isinstance(item, protocol.Unreadable), item
        state.fold(item)
    assert state.gaps == 0
    return state


# ---- what is written -------------------------------------------------------------------------------------


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
    described = protocol.MetricInfo.model_fields["role"].description or ""
    assert all(role in described for role in ROLES)


# ---- the control file: what is ignored -------------------------------------------------------------------

GOOD = {"v": 1, "run": "run", "revision": 1, "issued": {"t": 0.0, "step": 0}, "params": {"lr": 0.2},
        "based_on_step": 0, "decision": "d1"}  # fmt: skip

IGNORED = {
    "half-written": json.dumps(GOOD)[:40],
    "empty": "",
    "no object": "[1, 2]",
    "null": "null",
    "deep": "[" * 100_000,
    "not text": "\udcff\udcfe",
    "wrong version": json.dumps({**GOOD, "v": 2}),
    "no version": json.dumps({k: v for k, v in GOOD.items() if k != "v"}),
    "another run": json.dumps({**GOOD, "run": "other"}),
    "unknown key": json.dumps({**GOOD, "paramz": {}}),
    "revision as text": json.dumps({**GOOD, "revision": "1"}),
    "revision true": json.dumps({**GOOD, "revision": True}),
    "params a list": json.dumps({**GOOD, "params": ["lr"]}),
    "at_step a float": json.dumps({**GOOD, "at_step": 1.5}),
    "unknown boundary": json.dumps({**GOOD, "at_boundary": "epoch"}),
    "boundary a list": json.dumps({**GOOD, "at_boundary": ["step"]}),
    "unknown command": json.dumps({**GOOD, "command": command("format")}),
    "command a list": json.dumps({**GOOD, "command": ["stop"]}),
    "command name a list": json.dumps({**GOOD, "command": {"id": "c", "name": ["stop"], "to": None}}),
    "command to a number": json.dumps({**GOOD, "command": {"id": "c", "name": "stop", "to": 3}}),
    "schedule a number": json.dumps({**GOOD, "schedule": 3}),
    "keep a path": json.dumps({**GOOD, "keep": "../x"}),
    "keep true": json.dumps({**GOOD, "keep": True}),
    "schedule of numbers": json.dumps({**GOOD, "schedule": [3]}),
    "schedule with unknown key": json.dumps({**GOOD, "schedule": [{"revision": 1, "params": {}, "v": 1}]}),
}


@pytest.mark.parametrize("name", IGNORED)
def test_a_bad_control_file_is_ignored_with_a_log_record_and_the_next_good_one_applies(run: Path, name: str) -> None:
    with Script() as script:
        (run / "control.json").write_bytes(IGNORED[name].encode(errors="surrogateescape"))
        script.w.step(1, {"loss": 1.0})
        script.w.step(2, {"loss": 1.0})
        assert script.recipe["lr"] == 0.1
        assert [r["message"][:20] for r in records(run, "log")] == ["control file ignored"]
        control(run, 1, {"lr": 0.3})
        script.w.step(3, {"loss": 1.0})
        assert script.recipe["lr"] == 0.3
    assert [r["revision"] for r in records(run, "applied")] == [1]
    folded(run)


REFUSED: dict[str, dict[str, Any]] = {
    "NaN": {"lr": math.nan},
    "infinite": {"lr": math.inf},
    "1e999": {"lr": 1e999},
    "huge int": {"lr": 10**400},
    "too high": {"lr": 1.00001},
    "a whole number too high": {"depth": 10},
    "too low": {"lr": 0.0},
    "text": {"lr": "0.2"},
    "true": {"lr": True},
    "null": {"lr": None},
    "list": {"lr": [0.2]},
    "object": {"lr": {"value": 0.2}},
    "float for int": {"depth": 4.0},
    "number for bool": {"flip": 1},
    "unknown choice": {"kind": "c"},
    "list for choice": {"kind": ["a"]},
    "unknown name": {"momentum": 0.9},
    "one good, one bad": {"lr": 0.2, "depth": 99},
    "between off and low": {"mix": 0.1},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_cannot_be_is_refused_and_changes_nothing(run: Path, name: str) -> None:
    with Script() as script:
        before = dict(script.recipe)
        control(run, 1, REFUSED[name])
        script.w.step(1, {"loss": 1.0})
        script.w.eval(1, {"loss": 1.0})
        script.w.checkpoint(1, "checkpoints/a")
        assert script.recipe == before
        assert script.set_calls == []
        control(run, 2, {"lr": 0.2})
        script.w.step(2, {"loss": 1.0})
        assert script.recipe["lr"] == 0.2
    assert [r["revision"] for r in records(run, "refused")] == [1]
    assert next(iter(REFUSED[name])) in records(run, "refused")[0]["reason"] or "depth" in REFUSED[name]
    folded(run)


# ---- the control file: when it applies -------------------------------------------------------------------


def test_each_revision_is_answered_exactly_once(run: Path) -> None:
    with Script() as script:
        for revision, lr in enumerate((0.2, 0.3, 5.0, 0.1), start=1):
            control(run, revision, {"lr": lr})
            for step in range(revision * 10, revision * 10 + 3):
                script.w.step(step, {"loss": 1.0})
        control(run, 4, {"lr": 0.1})  # written again: a new file, an old revision
        script.w.step(50, {"loss": 1.0})
        control(run, 2, {"lr": 0.3})
        script.w.step(51, {"loss": 1.0})
    answers = [(r["event"], r["revision"], r["step"]) for r in records(run) if r["event"] in ("applied", "refused")]
    assert answers == [("applied", 1, 10), ("applied", 2, 20), ("refused", 3, 30), ("applied", 4, 40)]
    assert records(run, "applied")[1]["changes"] == {"lr": [0.2, 0.3]}


def test_changes_wait_for_their_boundary_the_coarsest_of_them_for_all(run: Path) -> None:
    with Script() as script:
        w = script.w
        control(run, 1, {"lr": 0.2, "depth": 4})
        w.step(1, {"loss": 1.0})
        w.eval(1, {"loss": 1.0})
        assert script.recipe["lr"] == 0.1
        w.step(2, {"loss": 1.0})
        w.checkpoint(2, "checkpoints/a")
        assert (script.recipe["lr"], script.recipe["depth"]) == (0.2, 4)
        control(run, 2, {"lr": 0.2, "depth": 4, "mix": 0.0})  # "off"; of the others nothing is asked anew
        w.step(3, {"loss": 1.0})
        assert script.recipe["mix"] == 0.5
        w.eval(3, {"loss": 1.0})
        assert script.recipe["mix"] == 0.0
    first, second = records(run, "applied")
    assert (first["boundary"], first["step"], list(first["changes"])) == ("checkpoint", 2, ["lr", "depth"])
    assert (second["boundary"], second["step"], list(second["changes"])) == ("eval", 3, ["mix"])


def test_a_revision_that_is_superseded_while_it_waits_is_refused_once(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"depth": 4})
        script.w.step(1, {"loss": 1.0})
        control(run, 2, {"lr": 0.2})
        script.w.step(2, {"loss": 1.0})
        script.w.checkpoint(3, "checkpoints/a")
    assert script.recipe["depth"] == 3
    assert [(r["revision"], r["reason"]) for r in records(run, "refused")] == [(1, "superseded by revision 2")]
    assert [r["revision"] for r in records(run, "applied")] == [2]


def test_what_comes_too_late_is_refused(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2}, valid_until_step=4)
        script.w.step(5, {"loss": 1.0})
        control(run, 2, {"lr": 0.2}, valid_until_step=6)
        script.w.step(6, {"loss": 1.0})
        control(run, 3, {"lr": 0.3}, at_step=6)
        script.w.step(7, {"loss": 1.0})
        control(run, 4, {"lr": 0.2, "depth": 5}, valid_until_step=9)  # waits for a checkpoint, too long
        script.w.step(8, {"loss": 1.0})
        script.w.checkpoint(10, "checkpoints/a")
    assert [(r["revision"], r["reason"]) for r in records(run, "refused")] == [
        (1, "too late: it was valid until step 4, this is step 5"),
        (3, "too late: it was for step 6, this is step 7"),
        (4, "too late: it was valid until step 9, this is step 10"),
    ]
    assert script.recipe["lr"] == 0.2


def test_what_waits_for_something_that_never_comes_is_refused_with_that_reason(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"depth": 5}, valid_until_step=3)  # at a checkpoint
        for step in range(1, 5):
            script.w.step(step, {"loss": 1.0})
            script.w.eval(step, {"loss": 1.0})
        control(run, 2, {"depth": 6}, at_step=5)
        script.w.step(5, {"loss": 1.0})
        script.w.step(6, {"loss": 1.0})
        script.w.checkpoint(6, "c")
        control(run, 3, {"depth": 7}, valid_until_step=7)
        script.w.step(7, {"loss": 1.0})
        script.w.step(8, {"loss": 1.0})
        control(run, 4, {"lr": 0.2}, valid_until_step=7)
        script.w.step(9, {"loss": 1.0})
    waited = "; it waited for a checkpoint, and none has been reported"
    assert [r["reason"] for r in records(run, "refused")] == [
        f"too late: it was valid until step 3, this is step 4{waited}",
        f"too late: it was for step 5, this is step 6{waited}",
        "too late: it was valid until step 7, this is step 8",
        "too late: it was valid until step 7, this is step 9",
    ]


def test_a_change_at_evaluations_waits_for_the_first_of_them(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"mix": 0.7}, valid_until_step=1)
        script.w.step(1, {"loss": 1.0})
        script.w.step(2, {"loss": 1.0})
    (refused,) = records(run, "refused")
    assert refused["reason"].endswith("; it waited for an evaluation, and none has been reported")


def test_at_step_and_at_boundary_are_exact(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2}, at_step=3, at_boundary="eval")
        seen = []
        for step in range(1, 5):
            script.w.step(step, {"loss": 1.0})
            seen.append(script.recipe["lr"])
            script.w.eval(step, {"loss": 1.0})
            seen.append(script.recipe["lr"])
    assert seen == [0.1] * 5 + [0.2] * 3


def test_a_step_has_each_boundary_once_so_that_a_replay_finds_the_same_one(run: Path) -> None:
    with Script() as script:
        w = script.w
        w.step(1, {"loss": 1.0})
        w.eval(1, {"loss": 1.0})
        w.checkpoint(1, "checkpoints/best")
        control(run, 1, {"lr": 0.2})
        w.checkpoint(1, "checkpoints/last")
        w.eval(1, {"loss": 1.0})
        w.step(1, {"loss": 1.0})
        assert script.recipe["lr"] == 0.1
        w.step(2, {"loss": 1.0})
        assert script.recipe["lr"] == 0.2


def test_a_schedule_applies_each_entry_at_its_step(run: Path) -> None:
    back = command("rollback", "best")
    entries = [
        {"revision": 1, "params": {"lr": 0.2}, "at_step": 2, "at_boundary": "step"},
        {"revision": 2, "params": {"lr": 0.2}, "at_step": 4, "at_boundary": "eval", "command": back},
        {"revision": 3, "params": {"lr": 0.3}, "at_step": 4, "at_boundary": "eval"},
        {"revision": 4, "params": {"lr": 0.3, "depth": 5}, "at_step": 5, "at_boundary": "checkpoint"},
    ]  # fmt: skip
    with Script() as script:
        control(run, 4, {"lr": 0.3, "depth": 5}, schedule=[e | {"decision": "d", "based_on_step": 0} for e in entries])
        for step in range(1, 7):
            script.w.step(step, {"loss": 1.0})
            script.w.eval(step, {"loss": 1.0})
            script.w.checkpoint(step, "checkpoints/a")
    assert [(r["revision"], r["step"], r["boundary"]) for r in records(run, "applied")] == [
        (1, 2, "step"), (2, 4, "eval"), (3, 4, "eval"), (4, 5, "checkpoint"),
    ]  # fmt: skip
    assert script.done == ["rollback best"]
    assert (script.recipe["lr"], script.recipe["depth"]) == (0.3, 5)


# ---- a report never stops training -----------------------------------------------------------------------


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


# ---- several trainings in one run ------------------------------------------------------------------------


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


# ---- commands --------------------------------------------------------------------------------------------


def test_a_command_is_done_once_even_when_the_file_is_read_again_and_after_a_restart(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
        control(run, 2, {"lr": 0.2}, command=command("rollback", "best"))
        script.w.step(2, {"loss": 1.0})
        control(run, 2, {"lr": 0.2}, command=command("rollback", "best"))
        script.w.step(3, {"loss": 1.0})
        assert script.done == ["rollback best"]
    with Script(resumed_from="a", resumed_step=2) as script:  # crashed, and started again
        for step in script.w.steps():
            script.w.step(step, {"loss": 1.0})
            if step == 10:
                break
        assert script.done == []
        assert script.recipe["lr"] == 0.2  # it converges to what is in force, without a new answer
    assert records(run, "start")[1]["action_space"][0]["value"] == 0.2
    assert [r["revision"] for r in records(run) if r["event"] in ("applied", "refused")] == [1, 2]
    assert folded(run).drift_count == 0


def test_a_restart_applies_what_came_while_it_was_down_and_nothing_else(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
    control(run, 2, {"lr": 0.3})
    with Script(resumed_from="a", resumed_step=1) as script:
        script.w.step(2, {"loss": 1.0})
        script.w.step(3, {"loss": 1.0})
    assert [(r["revision"], r["step"]) for r in records(run, "applied")] == [(1, 1), (2, 2)]


def test_a_setter_that_raises_during_a_restart_does_not_stop_training(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
    w = Workload("test", objective="loss", resumed_from="a", resumed_step=1)

    def broken(value: float) -> None:
        raise RuntimeError("out of order")

    w.float("lr", get=lambda: 0.1, set=broken, low=0.01, high=1.0)
    w.step(2, {"loss": 1.0})
    assert "out of order" in records(run, "log")[0]["message"]


def test_the_recipe_in_force_survives_a_rollback_that_overwrites_it(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
        control(run, 2, {"lr": 0.2}, command=command("rollback", "best"))
        script.w.step(2, {"loss": 1.0})
        assert script.recipe["lr"] == 0.2
        control(run, 3, {"lr": 0.4}, command=command("rollback", "initial"))
        script.w.step(3, {"loss": 1.0})
        assert script.recipe["lr"] == 0.4
    assert [r["changes"] for r in records(run, "applied")[1:]] == [{}, {"lr": [0.2, 0.4]}]
    assert script.done == ["rollback best", "rollback initial"]


def test_a_checkpoint_is_kept_first_where_that_is_wanted(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2}, keep="trial")
        script.w.step(1, {"loss": 1.0})
        control(run, 2, {"lr": 0.3}, command=command("rollback", "best"), keep="trial")
        script.w.step(2, {"loss": 1.0})
    assert script.done == ["checkpoint trial lr 0.1", "checkpoint trial lr 0.2", "rollback best"]


def test_a_checkpoint_that_cannot_be_kept_and_a_script_that_keeps_none_change_all_the_same(run: Path) -> None:
    def full(to: str) -> None:
        raise OSError("no space left")

    w, recipe = Workload("test", objective="loss"), {"lr": 0.1}
    w.float("lr", get=lambda: recipe["lr"], set=lambda value: recipe.update(lr=value), low=0.01, high=1.0)
    control(run, 1, {"lr": 0.2}, keep="trial")
    w.step(1, {"loss": 1.0})
    assert recipe["lr"] == 0.2
    w._commands["checkpoint"] = full
    control(run, 2, {"lr": 0.3}, keep="trial")
    w.step(2, {"loss": 1.0})
    assert recipe["lr"] == 0.3
    assert [r["message"] for r in records(run, "log")] == ["no checkpoint was kept as 'trial': OSError: no space left"]


def test_a_command_that_refuses_is_refused_and_one_that_is_not_offered_too(run: Path) -> None:
    done = []

    def rollback(to: str) -> None:
        done.append(to)
        raise ValueError("there is no checkpoint")

    w = Workload("test", objective="loss")
    w.command("rollback", rollback)
    control(run, 1, command=command("rollback", "best"))
    w.step(1, {"loss": 1.0})
    control(run, 2, command=command("stop"))
    w.step(2, {"loss": 1.0})
    assert done == ["best"]
    assert not w.stopping
    assert [r["reason"] for r in records(run, "refused")] == [
        "ValueError: there is no checkpoint", "this workload offers no stop",
    ]  # fmt: skip


def test_a_stop_ends_the_loop_after_its_acknowledgment(run: Path) -> None:
    with Script() as script:
        steps = []
        for step in script.w.steps():
            if step == 3:
                control(run, 1, command=command("stop", "best"))
            script.w.step(step, {"loss": 1.0})
            steps.append(step)
        script.w.end(steps[-1])
    assert steps == [1, 2, 3]
    assert script.done == ["stop best"]
    assert [r["event"] for r in records(run)][-2:] == ["applied", "end"]
    assert records(run)[-1]["status"] == "stopped"


def test_a_command_may_report_by_itself(run: Path) -> None:
    w = Workload("test", objective="loss")
    w.command("checkpoint", lambda to: w.checkpoint(1, "checkpoints/a"))
    control(run, 1, command=command("checkpoint"))
    w.step(1, {"loss": 1.0})
    w.step(2, {"loss": 1.0})
    assert [r["event"] for r in records(run)] == ["start", "step", "checkpoint", "applied", "step"]


def test_a_setter_that_raises_is_refused_and_everything_is_set_back(run: Path) -> None:
    recipe = {"a": 0.1, "b": 0.1}
    w = Workload("test", objective="loss")

    def set_b(value: float) -> None:
        recipe["b"] = value
        if value > 0.5:
            raise RuntimeError("cannot be")

    w.float("a", get=lambda: recipe["a"], set=lambda v: recipe.update(a=v), low=0.0, high=1.0)
    w.float("b", get=lambda: recipe["b"], set=set_b, low=0.0, high=1.0)
    control(run, 1, {"a": 0.9, "b": 0.9})
    w.step(1, {"loss": 1.0})
    assert recipe == {"a": 0.1, "b": 0.1}
    assert records(run, "refused")[0]["reason"] == "RuntimeError: cannot be"
    control(run, 2, {"a": 0.9, "b": 0.2})
    w.step(2, {"loss": 1.0})
    assert recipe == {"a": 0.9, "b": 0.2}
    assert records(run, "applied")[0]["changes"] == {"a": [0.1, 0.9], "b": [0.1, 0.2]}


def test_the_acknowledgment_carries_what_is_in_effect_not_what_was_asked(run: Path) -> None:
    w, recipe = Workload("test", objective="loss"), {"lr": np.float32(0.1)}
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=np.float32(v)), low=1e-4, high=1.0)
    control(run, 1, {"lr": 1e-4})
    w.step(1, {"loss": 1.0})
    assert records(run, "applied")[0]["changes"] == {"lr": [float(np.float32(0.1)), float(np.float32(1e-4))]}
    assert folded(run).space.parameters["lr"].objection(float(np.float32(1e-4))) is None  # a little below low


def test_a_bound_that_went_through_float32_is_inside(run: Path) -> None:
    w, recipe = Workload("test", objective="loss"), {"lr": np.float32(1e-4)}
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=np.float32(v)), low=1e-4, high=1.0)
    w.step(1, {"loss": 1.0})
    assert records(run, "log") == []


UNHEARD = {  # a setter, what is asked, and what it says
    "does nothing": (lambda recipe, value: None, 0.9, "set(0.9) left lr at 0.1"),
    "clamps": (lambda recipe, value: recipe.update(lr=min(value, 0.5)), 0.9, "set(0.9) left lr at 0.5"),
    "rounds": (lambda recipe, value: recipe.update(lr=round(value, 1)), 0.77, "set(0.77) left lr at 0.8"),
    "loses": (lambda recipe, value: recipe.update(lr=None), 0.9,
              "set(0.9) left lr unreadable: its value is None; `get` must return a number"),
    "moves another one": (lambda recipe, value: recipe.update(lr=value, mix=-value), 0.9,
                          "set() of lr moved mix: -0.9 is outside [0.0, 1.0]"),
}  # fmt: skip


@pytest.mark.parametrize("how", UNHEARD)
def test_a_setter_that_does_something_else_is_refused_and_everything_is_set_back(run: Path, how: str) -> None:
    w, recipe = Workload("test", objective="loss"), {"lr": 0.1, "mix": 0.5}
    setter, asked, reason = UNHEARD[how]

    def put(value: float) -> None:
        recipe.update(lr=value) if value == 0.1 else setter(recipe, value)

    w.float("mix", get=lambda: recipe["mix"], set=lambda v: recipe.update(mix=v), low=0.0, high=1.0)
    w.float("lr", get=lambda: recipe["lr"], set=put, low=0.0, high=1.0)
    control(run, 1, {"lr": asked} | ({} if how == "moves another one" else {"mix": 0.6}))
    w.step(1, {"loss": 1.0})
    assert recipe == {"lr": 0.1, "mix": 0.5}
    assert [r["reason"] for r in records(run, "refused")] == [reason]
    assert records(run, "applied") == []
    folded(run)


def test_a_command_that_was_done_is_acknowledged_though_the_values_beside_it_are_not_taken(run: Path) -> None:
    done: list[str] = []
    w = Workload("test", objective="loss")
    w.float("lr", get=lambda: 0.1, set=lambda value: None, low=0.0, high=1.0)
    w.command("rollback", done.append)
    control(run, 1, {"lr": 0.9}, command=command("rollback", "best"))
    w.step(1, {"loss": 1.0})
    assert done == ["best"]
    assert [(r["changes"], r["command"]["name"]) for r in records(run, "applied")] == [({}, "rollback")]
    assert [r["message"] for r in records(run, "log")] == [
        "rollback was done, and the values stay as they were: set(0.9) left lr at 0.1"
    ]


def test_a_setter_that_measures_overwrites_nothing_and_loses_no_revision(run: Path) -> None:
    w, recipe = Workload("test", objective="loss"), {"lr": 0.1}

    def put(value: float) -> None:
        recipe["lr"] = value
        if value == 0.3:
            control(run, 3, {"lr": 0.4})
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0})

    w.float("lr", get=lambda: recipe["lr"], set=put, low=0.0, high=1.0)
    for step in range(1, 6):
        if step in (2, 3):
            control(run, step - 1, {"lr": step / 10})
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0})
    assert records(run, "overwritten") == []
    assert [r["revision"] for r in records(run, "applied")] == [1, 2, 3]
    assert folded(run).drift_count == 0


def test_an_evaluation_of_an_earlier_step_does_not_put_the_run_back(run: Path) -> None:
    with Workload("test", objective="loss") as w:
        w.step(50, {"loss": 1.0})
        w.eval(25, {"loss": 1.0})
    assert [r["step"] for r in records(run, "end")] == [50]


# ---- optimizers ------------------------------------------------------------------------------------------


def test_an_optimizer_keeps_the_ratios_of_its_groups_and_reports_all_of_them(run: Path) -> None:
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-3}, {"lr": 1e-4}, {"lr": 0.0}])
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1e-1)
    control(run, 1, {"lr": 5e-3})
    w.step(1, {"loss": 1.0})
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([5e-3, 5e-4, 0.0])
    (applied,) = records(run, "applied")
    assert applied["changes"] == {"lr": [1e-3, 5e-3]}
    assert applied["groups"]["lr"] == pytest.approx([5e-3, 5e-4, 0.0])


def test_groups_that_are_not_named_are_left_alone(run: Path) -> None:
    optimizer = SimpleNamespace(param_groups=[{"wd": 0.1}, {"wd": 0.3}])
    w = Workload("test", objective="loss")
    w.optimizer("wd", optimizer, key="wd", low=0.0, high=1.0, scale="linear", groups=[1])
    control(run, 1, {"wd": 0.6})
    w.step(1, {"loss": 1.0})
    assert [g["wd"] for g in optimizer.param_groups] == [0.1, 0.6]


def test_a_warm_up_from_zero_keeps_the_ratios_that_come_after_it(run: Path) -> None:
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}, {"lr": 0.0}])
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1e-1, scheduled=True)
    w.step(1, {"loss": 1.0})
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 1e-3, 1e-4  # the scheduler
    control(run, 1, {"lr": 5e-3})
    w.step(2, {"loss": 1.0})
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([5e-3, 5e-4])


def test_a_value_that_the_script_overwrites_is_reported_once_with_what_it_is(run: Path) -> None:
    recipe = {"lr": 0.1}
    w = Workload("test", objective="loss")
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.001, high=1.0)
    for step in range(1, 6):
        if step == 2:
            control(run, 1, {"lr": 0.05})
        if step == 4:
            recipe["lr"] = 0.09
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0})
    (lost,) = records(run, "overwritten")
    assert {n: lost[n] for n in ("name", "revision", "set_at", "value", "step", "found")} == {
        "name": "lr", "revision": 1, "set_at": 2, "value": 0.05, "step": 4, "found": 0.09,
    }  # fmt: skip
    state = folded(run)
    assert state.overwritten == {"lr": 1}
    assert [(d.step, d.expected, d.found, d.set_at) for d in state.drifts] == [(4, 0.05, 0.09, 2)]
    assert state.interventions[0].lost == {"lr": (4, 0.09)}
    assert state.recipe == {"lr": 0.09}


@pytest.mark.parametrize("computed", [True, False])
def test_of_a_value_that_moves_by_itself_a_change_that_is_gone_is_told_from_one_that_moves_on(
    run: Path, computed: bool
) -> None:
    recipe = {"lr": 0.1}
    w = Workload("test", objective="loss")
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=1e-5, high=1.0, scheduled=True)
    for step in range(1, 41):
        recipe["lr"] = 0.1 * 0.95**step if computed else 0.95 * recipe["lr"]
        if step in (10, 20, 30):
            control(run, step, {"lr": {10: 0.05, 20: 0.08, 30: 0.03}[step]})
        w.step(step, {"loss": 1.0})
        if step % 4 == 0:
            w.eval(step, {"loss": 1.0})
    assert [r["set_at"] for r in records(run, "overwritten")] == ([10, 20, 30] if computed else [])
    assert folded(run).overwritten == ({"lr": 3} if computed else {})


def test_a_number_that_the_supervisor_finds_overwritten_by_itself(run: Path) -> None:
    """A workload in another language reports what it reads back, and nothing else."""
    state = RunState()
    for line in (
        {"event": "start", "workload": "w", "pid": 1, "objective": {"metric": "loss", "mode": "min"}, "action_space": [
            {"name": "lr", "type": "float", "low": 0.001, "high": 1.0, "value": 0.1}]},
        {"event": "applied", "revision": 1, "step": 2, "boundary": "step", "changes": {"lr": [0.1, 0.05]}},
        {"event": "eval", "step": 3, "metrics": {"loss": 1.0}, "params": {"lr": 0.1}},
        {"event": "eval", "step": 4, "metrics": {"loss": 1.0}, "params": {"lr": 0.1}},
    ):  # fmt: skip
        record = protocol.parse_telemetry(json.dumps({"v": 1, "seq": state.next_seq, "t": 0.0, **line}).encode())
        assert not isinstance(record, protocol.Unreadable), record
        state.fold(record)
    assert state.overwritten == {"lr": 1}
    assert state.interventions[0].lost == {"lr": (3, 0.1)}
    assert [(d.step, d.set_at) for d in state.drifts] == [(3, 2)]


# ---- several ranks ---------------------------------------------------------------------------------------

RANKS = """
import json, os, sys
from pathlib import Path
import torch.distributed as dist
from trainmgr.workload import Workload

Workload.PERIOD = 0.0
rank, store = int(os.environ["RANK"]), sys.argv[1]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
run, recipe, seen = Path(os.environ["TRAINMGR_RUN_DIR"]), {"lr": 0.1}, []
w = Workload("ranks", objective="loss", total_steps=40, sync_every=4)
w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.0, high=1.0)
w.command("stop", lambda to: None)
for step in w.steps():
    if rank == 0 and step in (6, 17):
        entry = {"v": 1, "run": run.name, "revision": 1 if step == 6 else 2, "issued": {"t": 0.0, "step": 0},
                 "params": {"lr": 0.5}, "based_on_step": 0, "decision": "d",
                 "command": None if step == 6 else {"id": "c", "name": "stop", "to": None}}
        (run / "control.new").write_text(json.dumps(entry))
        (run / "control.new").replace(run / "control.json")
    w.step(step, {"loss": 1.0})
    if step % 10 == 0:
        w.eval(step, {"loss": 1.0})
    seen.append((step, recipe["lr"]))
w.end(seen[-1][0])
Path(sys.argv[2]).write_text(json.dumps(seen))
dist.destroy_process_group()
"""


def test_two_ranks_apply_the_same_change_at_the_same_step_and_one_writes(run: Path, tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    children = []
    for rank in range(2):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
                       "TRAINMGR_RUN_DIR": str(run), "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
        command = [sys.executable, str(script), str(tmp_path / "store"), str(tmp_path / f"seen{rank}")]
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    try:
        for child in children:
            _, err = child.communicate(timeout=120)
            assert child.returncode == 0, err.decode()
    finally:
        for child in children:
            child.kill()
            child.wait()
    seen = [json.loads((tmp_path / f"seen{rank}").read_text()) for rank in range(2)]
    assert seen[0] == seen[1]
    assert [lr for _, lr in seen[0]] == [0.1] * 7 + [0.5] * 13  # read at step 8, stopped at step 20 (sync or eval)
    assert [(r["revision"], r["step"]) for r in records(run, "applied")] == [(1, 8), (2, 20)]
    assert len(records(run, "start")) == 1
    folded(run)


def test_several_ranks_without_a_way_to_broadcast_refuse(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "torch_broadcast", lambda: None)
    with Script(sync_every=1) as script:
        control(run, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
        script.w.step(2, {"loss": 1.0})
    assert script.recipe["lr"] == 0.1
    assert [r["reason"] for r in records(run, "refused")] == ["several ranks, and no way to broadcast between them"]


# ---- as a child ------------------------------------------------------------------------------------------


STANDARD = (  # what importing it may import; what these import in turn is theirs
    *("__future__", "atexit", "builtins", "collections.abc", "contextlib", "errno", "functools", "itertools", "json"),
    *("math", "operator", "os", "pathlib", "stat", "sys", "time", "types", "typing"),
)


def test_importing_it_imports_few_modules_all_of_them_standard() -> None:
    code = f"""
import sys, {", ".join(STANDARD)}
before = set(sys.modules)
import trainmgr.workload
print(*sorted(set(sys.modules) - before))
"""
    root = Path(workload.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    parts = (
        *("backlog", "checkpoints", "lines", "optimizers", "overrides", "parameters", "persistence", "ranks"),
        *("reconciler", "records", "surroundings", "values", "workload"),
    )
    assert done.stdout.split() == ["trainmgr", "trainmgr.workload", *(f"trainmgr.workload.{n}" for n in parts)]


def test_a_child_without_end_writes_what_it_had_gathered_at_exit(run: Path) -> None:
    code = """
from trainmgr.workload import Workload
w = Workload("child", objective="loss", total_steps=200)
for step in w.steps():
    w.step(step, {"loss": 1.0})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert [r["step"] for r in records(run, "step")] == list(range(1, 201))


def test_seed_and_resume_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (workload.default_seed(7), workload.resume_path()) == (7, None)
    for given in ("-3", " -3 "):
        monkeypatch.setenv("TRAINMGR_SEED", given)
        assert workload.default_seed(7) == -3
    monkeypatch.setenv("TRAINMGR_RESUME", __file__)
    assert workload.resume_path() == __file__


ENVIRONMENT = {  # name: (variables, what is printed, what is said)
    "no seed": ({"TRAINMGR_SEED": ""}, "7 None 0", None),
    "a seed of spaces": ({"TRAINMGR_SEED": " "}, "7 None 0", None),
    "a long seed": ({"TRAINMGR_SEED": str((1 << 64) - 1)}, f"{(1 << 64) - 1} None 0", None),
    "two signs": ({"TRAINMGR_SEED": "--5"}, "7 None 0", "TRAINMGR_SEED is '--5', no whole number from "),
    "a digit that is none": ({"TRAINMGR_SEED": "\u00b2"}, "7 None 0", "TRAINMGR_SEED is '\u00b2', no whole number"),
    "a seed too long": ({"TRAINMGR_SEED": str(1 << 64)}, "7 None 0", "TRAINMGR_SEED is '18446744073709551616', no "),
    "a seed far too long": ({"TRAINMGR_SEED": "9" * 9_999}, "7 None 0", f"TRAINMGR_SEED is '{'9' * 64}', no whole "),
    "a rank in words": ({"RANK": "first", "WORLD_SIZE": "1"}, "7 None 0", "RANK is 'first', no whole number from 0"),
    "a size in words": ({"RANK": "0", "WORLD_SIZE": "two"}, "7 None 0", "WORLD_SIZE is 'two', no whole number from 1"),
    "a rank of no group": ({"RANK": "-1", "WORLD_SIZE": ""}, "7 None 0", "RANK is '-1', no whole number from 0"),
    "a checkpoint that is gone": (
        {"TRAINMGR_RESUME": "/tmp/none/last.pt"}, "7 None 0",
        "TRAINMGR_RESUME names /tmp/none/last.pt, which is not there: training begins anew",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ENVIRONMENT)
def test_an_environment_that_is_not_as_it_should_be_is_said_and_stops_nothing(run: Path, what: str) -> None:
    code = """
from trainmgr import workload
print(workload.default_seed(7), workload.resume_path(), end=" ")
with workload.Workload("test", objective="loss", total_steps=9) as w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
    print(w.seed if w.seed < 9 else 0)
"""
    variables, printed, said = ENVIRONMENT[what]
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONUTF8": "1", **variables}, capture_output=True,
        text=True, timeout=60, check=True, encoding="utf-8",
    )  # fmt: skip
    assert done.stdout == f"{printed}\n"
    found = [r["message"] for r in records(run, "log")]
    assert [text[: len(said or "")] for text in found] == ([said] if said else [])
    assert done.stderr.splitlines() == found
    assert len(records(run, "step")) == 9
    folded(run)


@pytest.mark.parametrize(
    ("declaration", "problem"),
    [
        ({"name": "x" * 65}, "printable characters"),
        ({"name": "a\nb"}, "printable characters"),
        ({"max_ratio": 0.5}, "max_ratio = 0.5 must be 1 or more"),
        ({"min_ratio": 2.0}, "min_ratio = 2.0 must lie in"),
        ({"max_delta": 0.0}, "max_delta = 0.0 must be positive"),
        ({"off": 0.5}, "off = 0.5 must lie outside"),
        ({"low": 1.0, "high": 0.0}, "not finite and increasing"),
        ({"low": 0.0, "scale": "log"}, "a log scale needs low > 0"),
        ({"scale": "cubic"}, "scale is 'cubic'"),
        ({"boundary": "epoch"}, "boundary is 'epoch'"),
        ({"get": lambda: float("nan")}, "its value at the start is nan"),
    ],
)
def test_a_declaration_that_the_supervisor_would_not_read_is_refused_at_once(
    declaration: dict[str, object], problem: str
) -> None:
    w = Workload("w", objective="loss")
    good = {"name": "lr", "get": lambda: 0.1, "set": lambda _: None, "low": 0.01, "high": 1.0}
    with pytest.raises(ValueError, match=re.escape(problem)):
        w.float(**{**good, **declaration})  # type: ignore[arg-type]
