"""workloads/minimal.py: what it says is saved is saved, and after a crash it goes on from there."""

from __future__ import annotations

import json
from pathlib import Path

from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Actions, Policy, Process
from trainmgr.readers import proof
from trainmgr.testing import ScriptedManager, answer, supervise

MINIMAL = Path(__file__).parents[2] / "workloads" / "minimal.py"
WORK = "time.sleep(0.002)  # stands for the work of a real step"


def test_it_resumes_from_its_last_checkpoint_after_a_crash(tmp_path: Path) -> None:
    text = MINIMAL.read_text()
    assert WORK in text
    script = tmp_path / "minimal.py"
    script.write_text(text.replace(WORK, "step == 300 and not saved and exit(1)"))
    policy = Policy(process=Process(restarts=1))
    paths, closing, heard = supervise(tmp_path, script, policy=policy)
    assert (closing.status, closing.steps) == ("completed", 1000)
    first, second = heard.of(protocol.Start)
    assert first.resumed is None
    before = [item.step for item in heard.of(protocol.Checkpoint) if item.seq < second.seq]
    assert second.resumed is not None
    assert (second.resumed.step, second.resumed.path) == (before[-1], str(paths.checkpoints / "last.json"))
    saved = {item.path for item in heard.of(protocol.Checkpoint)}
    assert saved == {f"checkpoints/{name}.json" for name in ("initial", "best", "last")}
    step, _ = json.loads((paths.checkpoints / "best.json").read_text())
    assert step == closing.best_step
    assert proof.prove(paths).holds


def test_after_a_crash_it_goes_on_from_before_what_was_on_trial(tmp_path: Path) -> None:
    wait = 'while not saved and step == 110 and not (w.directory / "control.json").exists(): time.sleep(0.001)'
    text = MINIMAL.read_text().replace(WORK, f"step == 120 and not saved and exit(1)\n        {wait}")
    script = tmp_path / "minimal.py"
    script.write_text(text.replace("SEED, STEPS", "Workload.PERIOD = 0.0\nSEED, STEPS"))
    manager = ScriptedManager([answer("adjust", {"lr": 0.5})])
    policy = Policy(process=Process(restarts=1), actions=Actions(end_on_best=False))
    paths, closing, heard = supervise(tmp_path, script, manager, policy=policy)
    _, second = heard.of(protocol.Start)
    at = heard.of(protocol.Applied)[0].step
    assert second.resumed is not None
    assert (second.resumed.step, second.resumed.path) == (at, str(paths.checkpoints / "trial.json"))
    (back,) = heard.of(events.Reverted)
    assert (back.why, back.since, back.lost) == ("crash", at, 119 - at)
    assert heard.of(protocol.Applied)[-1].changes == {"lr": (0.4, 0.4)}
    assert closing.status == "completed"
    assert proof.prove(paths).holds
