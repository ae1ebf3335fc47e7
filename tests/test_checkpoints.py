"""The checkpoints that the library keeps for a script, in runs of a script whose state is one number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from trainmgr.workload import Checkpoints, Workload


class Script:
    """Trains one number."""

    def __init__(self, folder: Path, *, mode: str = "min", every: int = 1, total: int = 100, **more: Any) -> None:
        self.state = 0.0
        self.w = Workload("test", objective="loss", mode=mode, total_steps=total, directory=folder, **more)
        self.keep = Checkpoints(self.w, self.save, self.load, every=every)

    def save(self, path: Path) -> None:
        path.write_text(str(self.state))

    def load(self, path: Path) -> None:
        self.state = float(path.read_text())

    def train(self, *losses: float, first: int = 1) -> None:
        for step, loss in enumerate(losses, start=first):
            self.state = loss
            self.w.step(step, {})
            self.keep.eval(step, {"loss": loss})


def records(folder: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "telemetry.jsonl").read_text().splitlines()]
    return [record for record in found if record["event"] == event]


def saved(folder: Path) -> list[tuple[int, str, bool]]:
    return [(r["step"], r["path"].removeprefix("checkpoints/"), r["best"]) for r in records(folder, "checkpoint")]


def test_an_evaluation_leaves_the_best_and_the_last_on_disk(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.keep.begin()
    script.train(3.0, 1.0, 2.0)
    script.keep.end(4)
    assert saved(tmp_path) == [
        (0, "initial.pt", False),
        (1, "best.pt", True), (1, "last.pt", False),
        (2, "best.pt", True), (2, "last.pt", False),
        (3, "last.pt", False), (4, "last.pt", False),
    ]  # fmt: skip
    assert [float(p.read_text()) for p in (script.keep.initial, script.keep.best, script.keep.last)] == [0.0, 1.0, 2.0]
    assert (script.keep.best_value, script.keep.best_step) == (1.0, 2)
    assert not list(tmp_path.rglob("*.new"))


def test_the_best_is_on_disk_before_it_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, seen = Script(tmp_path), []
    report = script.w.eval
    monkeypatch.setattr(script.w, "eval", lambda *given: (seen.append(script.keep.best.read_text()), report(*given)))
    script.train(3.0, 1.0)
    assert seen == ["3.0", "1.0"]


@pytest.mark.parametrize(("mode", "values", "best"), [
    ("max", [1.0, 3.0, 2.0], 3.0), ("min", [math.nan, 2.0, math.nan], 2.0), ("min", [math.nan], math.nan),
    ("max", [math.inf, 5.0], math.inf), ("min", [2.0, 2.0], 2.0),
])  # fmt: skip
def test_what_is_best(tmp_path: Path, mode: str, values: list[float], best: float) -> None:
    script = Script(tmp_path, mode=mode)
    script.train(*values)
    assert script.keep.best_value == best or (math.isnan(best) and math.isnan(script.keep.best_value))
    assert script.keep.best.exists() == (not math.isnan(best))


def test_the_last_one_may_be_rarer(tmp_path: Path) -> None:
    Script(tmp_path, every=3).train(*range(7, 0, -1))
    assert [step for step, name, _ in saved(tmp_path) if name == "last.pt"] == [1, 4, 7]


def test_a_rollback_brings_back_what_is_asked_for_and_survives_a_crash(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.keep.begin()
    script.train(3.0, 1.0, 2.0)
    for to, expected in (("best", 1.0), ("initial", 0.0), ("checkpoints/best.pt", 1.0)):
        script.keep.rollback(to)
        assert script.state == expected
        assert float(script.keep.last.read_text()) == expected
    script.keep.report(3)
    assert saved(tmp_path)[-3:] == [(3, "last.pt", False)] * 3


def test_a_checkpoint_may_be_kept_under_a_name(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.train(3.0, 1.0, 2.0)
    keep = script.w._commands["checkpoint"]
    keep("trial")
    script.train(5.0, first=4)
    assert saved(tmp_path)[-2:] == [(4, "last.pt", False), (4, "trial.pt", False)]
    script.keep.rollback("checkpoints/trial.pt")
    assert script.state == 2.0
    for name in ("best", "initial", "../trial", "/tmp/trial", "a/b"):
        with pytest.raises(ValueError, match=r"cannot be kept as|Invalid name"):
            keep(name)


@pytest.mark.parametrize("to", ["other.pt", "../best.pt", "/etc/passwd", "checkpoints/../../x"])
def test_nothing_else_is_loaded(tmp_path: Path, to: str) -> None:
    script = Script(tmp_path)
    script.train(1.0)
    with pytest.raises(ValueError, match=r"is none of this run's: best, initial, checkpoints/last\.pt"):
        script.keep.rollback(to)


@pytest.mark.parametrize("to", ["best", "initial", "checkpoints/never.pt"])
def test_what_is_not_there_yet_is_refused(tmp_path: Path, to: str) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint"):
        Script(tmp_path).keep.rollback(to)


def test_the_commands_are_offered_and_a_stop_ends_on_the_best(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.train(3.0, 1.0, 2.0)
    assert records(tmp_path, "start")[0]["commands"] == ["checkpoint", "rollback", "stop"]
    stop = script.w._commands["stop"]
    stop("")
    assert script.state == 2.0
    stop("best")
    assert script.state == 1.0
    with pytest.raises(ValueError, match="not on 'initial'"):
        stop("initial")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_resumed_run_takes_the_way_back_along(tmp_path: Path, elsewhere: bool) -> None:
    first = Script(tmp_path / "a")
    first.keep.begin()
    first.train(3.0, 1.0, 2.0)
    folder = tmp_path / ("b" if elsewhere else "a")
    again = Script(folder, resumed_from=str(first.keep.last), resumed_step=3)
    again.keep.begin()  # no initial one: there is one
    assert (again.keep.best_value, again.keep.best_step) == (1.0, 2)
    again.train(1.5, first=4)
    assert (folder / "checkpoints/best.pt").read_text() == "1.0"
    again.keep.rollback("initial")
    assert again.state == 0.0


def test_a_best_from_beyond_the_resumed_step_is_forgotten(tmp_path: Path) -> None:
    first = Script(tmp_path)
    first.train(3.0, 1.0)
    again = Script(tmp_path, resumed_from=str(first.keep.last), resumed_step=1)
    assert math.isnan(again.keep.best_value)
    (tmp_path / "checkpoints/best-value.json").write_text("[]")
    assert math.isnan(Script(tmp_path, resumed_from=str(first.keep.last), resumed_step=2).keep.best_value)


def test_a_save_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(tmp_path)
    script.train(3.0)

    def torn(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(script.keep, "_save", torn)
    with pytest.raises(OSError, match="disk full"):
        script.train(1.0, first=2)
    assert script.keep.best.read_text() == "3.0"


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    script = Script(tmp_path)
    script.keep.begin()
    script.keep.end(0)
    assert not list(tmp_path.rglob("*.pt"))
