"""The checkpoints that the library keeps for a script, in runs of a script whose state is one number."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.log.telemetry import Feed
from trainmgr.state.run_state import RunState
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
    ("max", [math.inf, 5.0], 5.0), ("min", [-math.inf, math.inf], math.nan), ("min", [2.0, 2.0], 2.0),
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


def test_a_second_training_does_not_go_back_to_weights_of_the_first(tmp_path: Path) -> None:
    first = Script(tmp_path)
    first.keep.begin()
    first.train(3.0, 1.0)
    first.keep.end(2)
    first.w.end(2)
    second = Script(tmp_path)
    with pytest.raises(ValueError, match="there is no checkpoint 'best' yet"):
        second.keep.rollback("best")
    assert second.state == 0.0
    second.keep.begin()
    second.train(2.5)
    second.keep.rollback("best")
    assert second.state == 2.5
    folder = tmp_path / "checkpoints"
    assert [float((folder / f"{name}-before.pt").read_text()) for name in ("initial", "best", "last")] == [0, 1, 1]
    again = Script(tmp_path, resumed_from=str(second.keep.last), resumed_step=1)  # it crashed
    assert (again.keep.best_value, again.keep.best_step) == (2.5, 1)


def test_a_second_training_that_crashed_early_has_no_best_of_the_first(tmp_path: Path) -> None:
    first = Script(tmp_path)
    first.train(3.0, 1.0)
    first.w.end(2)
    second = Script(tmp_path)
    second.keep.begin()
    again = Script(tmp_path, resumed_from=str(second.keep.initial), resumed_step=0)
    assert math.isnan(again.keep.best_value)
    with pytest.raises(ValueError, match="there is no checkpoint 'best' yet"):
        again.keep.rollback("best")


def test_a_best_from_beyond_the_resumed_step_is_forgotten(tmp_path: Path) -> None:
    first = Script(tmp_path)
    first.train(3.0, 1.0)

    def best(resumed_step: int) -> float:
        return Script(tmp_path, resumed_from=str(first.keep.last), resumed_step=resumed_step).keep.best_value

    assert (best(2), first.keep.best.read_text()) == (1.0, "1.0")
    assert best(1) == 3.0
    assert not first.keep.best.exists()  # it was of weights that are no more
    assert (tmp_path / "checkpoints/best-beyond.pt").read_text() == "1.0"
    assert math.isnan(best(0))
    note = tmp_path / "checkpoints/best-value.json"
    note.write_text('{"bests": [[2, 1.0]]}')
    assert best(2) == 1.0
    assert math.isnan(best(1))
    for wrong in ("[]", "{", '{"bests": [[1, Infinity]]}', '{"bests": 3}', '{"value": 1.0, "step": 1}'):
        note.write_text(wrong)
        assert math.isnan(best(2))


OBJECTIVES = st.lists(st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 1.0, 2.0]), min_size=1, max_size=11)


@examples(60)
@given(st.lists(st.tuples(OBJECTIVES, st.integers(0, 14)), min_size=1, max_size=4), st.sampled_from(["min", "max"]))
def test_the_best_is_the_same_one_for_the_script_and_for_the_supervisor(
    lives: list[tuple[list[float], int]], mode: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        script, step = Script(Path(name), mode=mode), 0
        for objectives, back in lives:
            script.train(*objectives, first=step + 1)
            assert best_of(Path(name)) == known(script)
            step = max(0, step + len(objectives) - back)  # what is resumed from
            script = Script(Path(name), mode=mode, resumed_from=str(script.keep.last), resumed_step=step)
            assert not script.keep.best.exists() or script.keep.best_step <= step


def known(script: Script) -> tuple[int, float] | None:
    keep = script.keep
    return None if math.isnan(keep.best_value) else (keep.best_step, keep.best_value)


def best_of(folder: Path) -> tuple[int, float] | None:
    state = RunState()
    for record in Feed(folder / "telemetry.jsonl").records():
        state.fold(record)
    return state.best


def test_an_evaluation_without_the_objective_is_reported_and_no_best(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.keep.begin()
    for step, metrics in enumerate(({"Loss_": 1.0}, {"loss": None}, {"loss": [1.0, 2.0]}, {"loss": 2.0}), start=1):
        script.keep.eval(step, metrics)
    assert [r["metrics"] for r in records(tmp_path, "eval")] == [{"Loss_": 1.0}, {}, {}, {"loss": 2.0}]
    assert [r["message"] for r in records(tmp_path, "log")] == [
        "the evaluation at step 1 is without the objective 'loss'; it has: Loss_. Was 'Loss_' meant?",
        "'loss' is left out: it is None at step 2, no number; leave out what was not measured, or report float('nan')",
    ]
    assert [(step, best) for step, _, best in saved(tmp_path) if best] == [(4, True)]
    assert [r["metrics"] for r in records(tmp_path, "checkpoint")][1:] == [{}, {}, {}, {"loss": 2.0}, {"loss": 2.0}]


def test_steps_and_objectives_of_numpy_and_torch_are_kept_as_numbers(tmp_path: Path) -> None:
    script = Script(tmp_path)
    for step, loss in zip(np.arange(1, 4), (np.float32(3.0), torch.tensor(1.0), torch.tensor([2.0])), strict=True):
        script.keep.eval(step, {"loss": loss})
    assert (script.keep.best_value, script.keep.best_step) == (1.0, 2)
    assert best_of(tmp_path) == (2, 1.0)
    again = Script(tmp_path, resumed_from=str(script.keep.last), resumed_step=np.int64(3))
    assert (again.keep.best_value, again.keep.best_step) == (1.0, 2)


def test_a_save_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(tmp_path)
    script.train(3.0)

    def torn(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(script.keep, "_save", torn)
    script.train(1.0, first=2)
    assert script.keep.best.read_text() == "3.0"
    assert not list(tmp_path.rglob("*.new"))


def test_a_save_that_raises_is_said_until_one_succeeds_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, broken = Script(tmp_path), {0, 2, 3, 5}

    def save(path: Path) -> None:
        if step in broken:
            raise RuntimeError("no space left")
        path.write_text(str(script.state))

    script.keep._save = save
    step = 0
    script.keep.begin()
    for step, loss in enumerate((4.0, 3.0, 2.0, 1.0), start=1):
        script.state = loss
        script.w.step(step, {})
        script.keep.eval(step, {"loss": loss})
        if step == 3:
            script.keep.rollback("best")
            assert script.state == 4.0  # the last one that could be saved
        script.keep.report(step)
    step = 5
    script.keep.end(5)
    assert saved(tmp_path) == [(1, "best.pt", True), (1, "last.pt", False), (4, "best.pt", True), (4, "last.pt", False)]
    assert [r["step"] for r in records(tmp_path, "eval")] == [1, 2, 3, 4]
    failed = [
        "initial.pt could not be saved at step 0: RuntimeError: no space left; there is none",
        "best.pt could not be saved at step 2: RuntimeError: no space left; the one before it is kept",
        "last.pt could not be saved at step 5: RuntimeError: no space left; the one before it is kept",
    ]
    went = f"the rollback went to the best.pt from before: {failed[1].replace('2', '3').partition(';')[0]}"
    assert [r["message"] for r in records(tmp_path, "log")] == [*failed[:2], went, failed[2]]
    assert capsys.readouterr().err.splitlines() == [f"test: {text}" for text in failed]


@pytest.mark.parametrize("metrics", [None, [], 3, [("loss", 1.0)], torch.ones(2)], ids=repr)
def test_metrics_that_are_none_do_not_stop_an_evaluation(tmp_path: Path, metrics: Any) -> None:
    script = Script(tmp_path)
    script.keep.eval(1, metrics)
    script.keep.eval(2, {"loss": 1.0}, split=metrics)
    assert [r["metrics"] for r in records(tmp_path, "eval")] == [{}, {"loss": 1.0}]
    assert saved(tmp_path)[1] == (2, "best.pt", True)


class Halves(Script):
    """Trains two numbers; a load puts the first one back and may then find that the second one does not fit."""

    broken: tuple[float, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.second = 0.0
        super().__init__(folder)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps([self.state, self.second]))

    def load(self, path: Path) -> None:
        self.state, second = json.loads(path.read_text())
        if self.state in self.broken:
            raise RuntimeError("the optimizer has 2 groups, and the file has 1")
        self.second = second


def test_a_rollback_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    script = Halves(tmp_path)
    script.keep.begin()
    script.train(3.0)
    script.second, script.broken = 7.0, (0.0,)
    for back in (script.keep.rollback, script.w._commands["rollback"]):
        with pytest.raises(RuntimeError, match="the optimizer has 2 groups"):
            back("initial")
        assert (script.state, script.second) == (3.0, 7.0)
    assert sorted(path.name for path in script.keep.last.parent.iterdir()) == [
        "best-value.json", "best.pt", "initial.pt", "last.pt",
    ]  # fmt: skip


class Full(Script):
    full = False

    def save(self, path: Path) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().save(path)


def test_a_full_disk_does_not_keep_a_run_from_going_back(tmp_path: Path) -> None:
    script = Full(tmp_path)
    script.keep.begin()
    script.train(3.0)
    script.full = True
    script.keep.rollback("initial")
    assert script.state == 0.0
    assert [r["message"] for r in records(tmp_path, "log")] == [
        "last.pt could not be saved: OSError: [Errno 28] No space left on device; the one before it is kept"
    ]


def test_a_rollback_that_fails_twice_says_that_the_model_is_half_loaded(tmp_path: Path) -> None:
    script = Halves(tmp_path)
    script.keep.begin()
    script.train(3.0)
    script.broken = (0.0, 3.0)
    with pytest.raises(ValueError, match=r"failed \(RuntimeError: the optimizer .* is half loaded") as raised:
        script.keep.rollback("initial")
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.parametrize(("loaded", "words"), [
    (1, r"load\(\) put back only 1 of 8 in initial\.pt that had changed since"), (4, None),
])  # fmt: skip
def test_a_check_sees_how_much_a_load_puts_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: int, words: str | None
) -> None:
    monkeypatch.setenv("TRAINMGR_CHECK", "1")
    tensors = [torch.full((3,), float(n)) for n in range(8)]

    def load(path: Path) -> None:
        for there, value in zip(tensors[:loaded], torch.load(path), strict=False):
            there.copy_(value)

    w = Workload("test", objective="loss", directory=tmp_path)
    keep = Checkpoints(w, lambda path: torch.save(tensors, path), load)
    keep.begin()
    for tensor in tensors:
        tensor += 0.5
    if words:
        with pytest.raises(ValueError, match=words):
            keep.rollback("initial")
    else:
        keep.rollback("initial")
        w.flush()
        assert [(r["level"], r["message"]) for r in records(tmp_path, "log")] == [
            ("warning", "load() put back 4 of 8 in initial.pt that had changed since")
        ]


def test_a_save_that_adds_an_ending_of_its_own(tmp_path: Path) -> None:
    """As numpy's does, unless the path has it."""
    weights = np.zeros(3)

    def load(path: Path) -> None:
        weights[:] = np.load(path)["weights"]

    w = Workload("numpy", objective="loss", directory=tmp_path)
    keep = Checkpoints(w, lambda path: np.savez(path, weights=weights), load, suffix=".npz")
    keep.begin()
    weights[:] = 1.0
    keep.eval(1, {"loss": 1.0})
    keep.rollback("initial")
    assert weights.tolist() == [0.0] * 3
    assert [path.name for path in sorted(keep.last.parent.glob("*.npz"))] == ["best.npz", "initial.npz", "last.npz"]
    wrong = Checkpoints(Workload("numpy", objective="loss", directory=tmp_path / "b"), keep._save, load)
    wrong.begin()
    (said,) = [r["message"] for r in records(tmp_path / "b", "log")]
    assert "save() left initial.new.pt.npz where" in said
    assert "give Checkpoints(..., suffix=...) the ending that it adds" in said


class Foldered(Script):
    """A checkpoint is a folder, as ``save_pretrained`` makes them."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.parts = ["a", "b"]
        self.state = 0.0
        self.w = Workload("test", objective="loss", total_steps=100, directory=folder, **more)
        self.keep = Checkpoints(self.w, self.save, self.load, suffix="")

    def save(self, path: Path) -> None:
        for part in self.parts:
            (path / part).mkdir(parents=True)
            (path / part / "weights").write_text(str(self.state))

    def load(self, path: Path) -> None:
        self.state = float((path / "a" / "weights").read_text())


@pytest.mark.parametrize("checked", [False, True])
def test_a_checkpoint_may_be_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: bool) -> None:
    if checked:
        monkeypatch.setenv("TRAINMGR_CHECK", "1")
    script = Foldered(tmp_path / "a")
    script.keep.begin()
    script.train(3.0, 1.0, 2.0)
    script.parts = ["a"]
    script.keep.end(4)
    assert [path.name for path in script.keep.last.iterdir()] == ["a"]  # nothing of an older one
    script.w._commands["checkpoint"]("trial")
    script.w._commands["checkpoint"]("trial")
    for to, expected in (("initial", 0.0), ("best", 1.0), ("checkpoints/trial", 2.0)):
        script.keep.rollback(to)
        assert script.state == expected
        assert (script.keep.last / "a" / "weights").read_text() == str(expected)
    names = ["best", "best-value.json", "initial", "last", "trial"]
    assert sorted(path.name for path in script.keep.last.parent.iterdir()) == names
    for step, best in ((2, 1.0), (1, math.nan)):
        again = Foldered(tmp_path / "b", resumed_from=str(script.keep.last), resumed_step=step)
        assert again.keep.best.exists() == (step == 2)
        again.keep.rollback("initial")
        assert again.state == 0.0
        assert again.keep.best_value == best or math.isnan(best)


def test_a_folder_that_cannot_be_put_in_place_leaves_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Foldered(tmp_path)
    script.train(3.0)
    replace = Path.replace

    def refused(path: Path, to: Path) -> Path:
        if path.name.endswith(".new"):
            raise OSError(5, "Input/output error")
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", refused)
    script.train(2.0, first=2)
    assert sorted(path.name for path in script.keep.best.parent.iterdir()) == ["best", "best-value.json", "last"]
    script.keep.rollback("best")
    assert script.state == 3.0
    monkeypatch.undo()
    script.train(2.5, first=3)
    assert saved(tmp_path) == [(1, "best", True), (1, "last", False), (3, "best", True), (3, "last", False)]
    last = [r["message"] for r in records(tmp_path, "log")][-1]
    assert last.startswith("the rollback went to the best from before: best could not be saved at step 2: OSError: ")


def test_a_command_to_save_that_fails_does_not_report_the_one_before(tmp_path: Path) -> None:
    script = Full(tmp_path)
    script.train(3.0)
    script.full = True
    with pytest.raises(OSError, match="No space left"):
        script.w._commands["checkpoint"]("")
    with pytest.raises(OSError, match="No space left"):
        script.w._commands["checkpoint"]("trial")
    with pytest.raises(
        ValueError, match=r"no checkpoint 'checkpoints/trial\.pt' yet: trial\.pt could not be saved: OSErr"
    ):
        script.keep.rollback("checkpoints/trial.pt")
    script.keep.report(1)
    assert script.keep.last.read_text() == "3.0"
    assert saved(tmp_path) == [(1, "best.pt", True), (1, "last.pt", False)]


def test_a_folder_that_was_put_aside_for_one_that_never_came_is_back_at_the_next_start(tmp_path: Path) -> None:
    first = Foldered(tmp_path)
    first.train(3.0)
    first.keep.best.rename(first.keep.best.with_name("best.old"))  # and then the power was cut
    Foldered(tmp_path, resumed_from=str(first.keep.last), resumed_step=1).keep.rollback("best")
    assert not (tmp_path / "checkpoints" / "best.old").exists()


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    script = Script(tmp_path)
    script.keep.begin()
    script.keep.end(0)
    assert not list(tmp_path.rglob("*.pt"))


def test_as_a_context_it_begins_and_ends_at_the_last_step_that_was_reported(tmp_path: Path) -> None:
    script = Script(tmp_path)
    with script.w, script.keep as keep:
        for step in (1, 2, 3):
            keep.step(step, {"x": 1.0})
    assert saved(tmp_path) == [(0, "initial.pt", False), (3, "last.pt", False)]
    assert [r["step"] for r in records(tmp_path, "step")] == [1, 2, 3]
    assert records(tmp_path, "end")[0]["status"] == "completed"


def test_as_a_context_it_saves_nothing_of_a_training_that_failed(tmp_path: Path) -> None:
    script = Script(tmp_path)
    with pytest.raises(ZeroDivisionError), script.w, script.keep as keep:
        keep.step(1, {"x": 1 / 0})
    assert saved(tmp_path) == [(0, "initial.pt", False)]
    assert records(tmp_path, "end")[0]["status"] == "failed"
