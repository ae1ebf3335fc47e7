"""`replay:RUN`: the decisions of one run, given again in another that is asked at other moments."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from trainmgr.base.errors import RecordError, TrainmgrError, UserError
from trainmgr.base.paths import RunPaths
from trainmgr.contract import events
from trainmgr.contract.policy import Limits
from trainmgr.deciding.snapshot import Progress, Snapshot
from trainmgr.log import audit
from trainmgr.managers.replay import Recorded
from trainmgr.readers import proof, replay
from trainmgr.running import launch
from trainmgr.testing import EXACT, PYTHON, Recorder, ScriptedManager, answer, supervise, write_child

FAST = """
recipe = {"lr": 0.5, "decay": 0.5}
w = Workload("fast", objective="loss", total_steps=400)
for name in recipe:
    w.float(name, get=lambda n=name: recipe[n], set=lambda v, n=name: recipe.update({n: v}), low=1e-3, high=1.0)
with w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        time.sleep(0.001)
        if step % 10 == 0:
            w.eval(step, {"loss": 1.0 / step})
            if sys.argv[1:]:
                until(lambda: settled(step // 10))
"""
"""40 evaluations in half a second; with an argument it waits for each decision."""
ANSWERS = [answer("adjust", {"lr" if i % 2 else "decay": 0.5 + i / 100}) if i % 3 == 0 else answer()
           for i in range(1, 41)]  # fmt: skip

QUICK = EXACT.model_copy(update={"limits": Limits()})  # a change takes effect when it is there


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repeated")


@pytest.fixture(scope="module")
def recorded(folder: Path) -> RunPaths:
    """Asked at each of its 40 evaluations but the last; 13 decisions changed something."""
    paths, closing, _ = supervise(folder, write_child(folder, FAST), ScriptedManager(ANSWERS), arguments=["waits"])
    assert closing.interventions == 13
    return paths


def at(evals: int) -> Snapshot:
    """A snapshot as far as the manager looks."""
    progress = Progress(step=10 * evals, total_steps=400, evaluations=evals, steps_per_second=None)
    return Snapshot.model_construct(progress=progress)


def given(manager: Recorded, *asked: int) -> list[Any]:
    return [manager.decide(at(evals))["changes"] for evals in asked]


def test_each_decision_comes_back_where_it_is_asked_at_the_same_evaluations(recorded: RunPaths) -> None:
    manager = Recorded(recorded)
    assert [manager.decide(at(evals)) for evals in range(1, 40)] == ANSWERS[:39]
    assert manager.left_out() == ""


def test_asked_later_it_gives_what_was_due_and_says_what_it_passed_over(recorded: RunPaths) -> None:
    manager = Recorded(recorded)  # 3, 6, 9, ... changed something
    assert given(manager, 4, 5, 7) == [{"lr": 0.53}, {}, {"decay": 0.56}]
    late = manager.decide(at(14))  # 9 and 12 were due
    assert late["changes"] == {"decay": 0.62}
    assert late["evidence"] == f"[d9 (evaluation 9) of {recorded.id} passed over] scripted"
    assert given(manager, 14, 15) == [{}, {"lr": 0.65}]
    said = manager.left_out()
    assert said.startswith(f"replay:{recorded.id}: 4 of 13 decisions that changed something were given again, not d9 ")
    assert said.count("(evaluation ") == 8
    assert "and 1 more" in said


@pytest.mark.parametrize("seed", [1, 2])
def test_on_a_fast_script_what_did_not_come_back_is_counted(recorded: RunPaths, folder: Path, seed: int) -> None:
    said: list[str] = []
    request = launch.Request(
        script=write_child(folder, FAST, "quick.py"), manager=f"replay:{recorded.id}", policy=QUICK, seed=seed,
        runs_dir=folder / "runs", directory=folder, say=said.append,
    )  # fmt: skip
    paths, closing = launch.launch(request, lambda *_: Recorder())
    assert closing.status == "completed"
    answers = [event.data.raw for event in audit.read(paths.audit) if isinstance(event.data, events.Response)]
    changing = [raw["changes"] for raw in answers if raw["changes"]]
    assert changing == [raw["changes"] for raw in ANSWERS if raw["changes"] in changing]  # each once, in order
    unheard = any(isinstance(event.data, events.Failure) for event in audit.read(paths.audit))  # it came after the end
    counts = {len(changing), len(changing) + unheard}
    assert any(f"{count} of 13" in said[0] for count in counts) if said else 13 in counts
    assert [str(finding) for finding in proof.prove(paths).findings] == []
    assert replay.rebuild(paths, Recorded(recorded)).differences == []


def test_damaged_missing_and_hostile_runs_are_refused_in_words(recorded: RunPaths, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / recorded.id)
    paths.root.mkdir()
    paths.telemetry.touch()
    with pytest.raises(UserError, match=r"has no audit\.jsonl: there is nothing to replay"):
        Recorded(paths)
    good = recorded.audit.read_bytes()
    lines = good.splitlines(keepends=True)
    paths.audit.write_bytes(b"".join([*lines[:5], *lines[6:]]))
    with pytest.raises(RecordError, match=r"cannot be replayed\. audit\.jsonl line \d+"):
        Recorded(paths)
    paths.audit.write_bytes(good.replace(b'"lr":0.53', b'"lr":0.54', 1))
    with pytest.raises(RecordError, match="it was changed"):
        Recorded(paths)
    paths.audit.unlink()
    paths.audit.mkdir()
    with pytest.raises(TrainmgrError):
        Recorded(paths)


def test_a_snapshot_without_what_is_read_of_it_is_no_event(recorded: RunPaths, tmp_path: Path) -> None:
    """Sealed by a forger: no reader may trip over it."""
    paths = RunPaths(tmp_path / recorded.id)
    paths.root.mkdir()
    paths.telemetry.write_bytes(recorded.telemetry.read_bytes())
    paths.manifest.write_bytes(recorded.manifest.read_bytes())
    hostile: list[Any] = [{}, {"progress": 1}, {"progress": {"step": "x", "evaluations": 1}},
                          {"progress": {"step": 1, "evaluations": 1}, "signals": {"rise": "much"}}]  # fmt: skip
    for view in hostile:
        paths.audit.unlink(missing_ok=True)
        log = audit.Log(paths.audit)
        for event in audit.read(recorded.audit):
            data = event.data
            if isinstance(data, events.SnapshotTaken):
                data = events.SnapshotTaken.model_construct(**{**dict(data), "snapshot": view})
            log.append(data, event.t)
        log.close()
        for command in (["audit"], ["replay"], ["show"], ["attach"], ["run", "x.py", "-m", f"replay:{paths.root}"]):
            named = command if command[0] == "run" else [*command, str(paths.root)]
            (tmp_path / "x.py").touch()
            done = subprocess.run([PYTHON, "-m", "trainmgr", *named], capture_output=True, text=True, cwd=tmp_path,
                                  check=False)  # fmt: skip
            assert done.returncode in (1, 2)
            assert "not an event of this version" in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
