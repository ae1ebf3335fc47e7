"""`trainmgr check`: a good workload passes, and every breach of a bad one is named with its fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainmgr import check
from trainmgr.testing import LINE, write_child, write_shell

WORKLOADS = Path(__file__).resolve().parents[1] / "workloads"

BASE = """
recipe = {"lr": 0.1}
w = Workload("bad", objective="loss", total_steps=10**6, seed=default_seed(), metrics={"loss": "made up"})
w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.01, high=1.0)
w.command("rollback", lambda to: None)
w.command("stop", lambda to: None)
def train(**metrics):
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step % 20 == 0:
            w.eval(step, metrics or {"loss": 1.0})
            time.sleep(0.01)  # stands for work
    w.end(step)
"""


ORPHAN = """
line = {"v": 1, "seq": 0, "t": 1.0, "event": "step", "step": 1, "metrics": {}}
(RUN / "telemetry.jsonl").write_text(json.dumps(line) + "\\n")
"""


def checked(folder: Path, body: str, seconds: float = 60.0) -> check.Checked:
    return check.Probe(write_child(folder, body), [], seconds).run()


def errors(found: check.Checked) -> list[str]:
    return [breach.what for breach in found.breaches if breach.severity == "error"]


def warnings(found: check.Checked) -> list[str]:
    return [breach.what for breach in found.breaches if breach.severity == "warning"]


def test_minimal_passes() -> None:
    found = check.Probe(WORKLOADS / "minimal.py", [], 60.0).run()
    assert (errors(found), warnings(found)) == ([], [])
    assert found.ok
    assert "lr: a change takes effect and is read back" in found.passed
    assert "no parameter moves by itself" in found.passed
    assert check.as_json(found)["ok"] is True


def test_a_workload_of_ours_in_shape_passes(tmp_path: Path) -> None:
    found = checked(tmp_path, BASE + "train()")
    assert (errors(found), warnings(found)) == ([], [])


def test_every_kind_of_parameter_is_tried_at_its_boundary(tmp_path: Path) -> None:
    body = (
        BASE
        + """
recipe.update(n=3, flag=False, kind="a", wd=0.0)
w.int("n", get=lambda: recipe["n"], set=lambda v: recipe.update(n=v), low=1, high=9, max_delta=1, boundary="eval")
w.bool("flag", get=lambda: recipe["flag"], set=lambda v: recipe.update(flag=v))
w.choice("kind", get=lambda: recipe["kind"], set=lambda v: recipe.update(kind=v), choices=["a", "b"])
w.float("wd", get=lambda: recipe["wd"], set=lambda v: recipe.update(wd=v), low=0.0, high=1.0, max_ratio=2.0)
train()
"""
    )
    found = checked(tmp_path, body)
    assert errors(found) == []
    tried = {line.partition(":")[0] for line in found.passed if "takes effect" in line}
    assert tried == {"lr", "n", "flag", "kind", "wd"}


@pytest.mark.parametrize(
    ("body", "breach"),
    [
        ("print('training')", "No telemetry was written."),
        (BASE + "train(accuracy=1.0)", "The objective 'loss' is in none of the evaluations."),
        (BASE.replace("recipe.update(lr=v)", "None") + "train()", "lr was set to 0.505, and 0.1 is in effect."),
        (BASE.replace("recipe.update(lr=v)", "1 / 0") + "train()",
         "A change of lr within its bounds was refused: ZeroDivisionError: division by zero"),
        (BASE.replace("w.step(step, {", "recipe.update(lr=0.1 + step % 2 / 10); w.step(step, {") + "train()",
         "by itself"),
        (BASE + "w.step(1, {'loss': 1.0}); w._writer.seq += 3; train()", "3 records are missing in the count of seq."),
        (BASE + "w.step(1, {'loss': 'low'}); train()", "is no record: step.metrics.loss"),
        (BASE.replace('"lr": 0.1', '"lr": 5.0') + "train()", "The value at the start: lr = 5 is outside [0.01, 1]"),
        (BASE + "w.step(1, {'loss': 1.0}); sys.exit('CUDA out of memory')", "The script ended with exit code 1."),
        (BASE + "w.step(1, {'loss': 1.0}); os.kill(os.getpid(), 11)", "The script was killed by SIGSEGV."),
        (ORPHAN, "The first record is no `start`."),
    ],
)  # fmt: skip
def test_a_breach_is_an_error_with_a_fix(tmp_path: Path, body: str, breach: str) -> None:
    found = checked(tmp_path, body, seconds=20.0)
    assert not found.ok
    assert any(breach in what for what in errors(found)), errors(found)
    assert all(b.fix for b in found.breaches)


def test_a_crash_shows_its_last_lines(tmp_path: Path) -> None:
    found = checked(tmp_path, BASE + "sys.exit('CUDA out of memory')")
    assert found.output == ["CUDA out of memory"]


def test_a_change_that_is_never_answered_is_named(tmp_path: Path) -> None:
    """A shell script that reports and never reads control.json."""
    script = write_shell(
        tmp_path,
        r"""
T="$TRAINMGR_RUN_DIR/telemetry.jsonl"
GOAL='"objective":{"metric":"loss","mode":"min"}'
SPACE='{"name":"lr","type":"float","low":0.0,"high":1.0,"value":0.5}'
say() { printf '%s\n' "$1" >> "$T"; }
say '{"v":1,"seq":0,"t":1.0,"event":"start","workload":"deaf","pid":1,'"$GOAL"',"action_space":['"$SPACE"']}'
say '{"v":1,"seq":1,"t":1.0,"event":"step","step":1,"metrics":{"loss":1.0}}'
say '{"v":1,"seq":2,"t":1.0,"event":"eval","step":1,"metrics":{"loss":1.0}}'
sleep 300
""",
    )
    found = check.Probe(script, [], 1.0).run()
    assert errors(found) == ["The change of lr was never answered."]


def test_what_could_be_better_is_a_warning(tmp_path: Path) -> None:
    body = "w = Workload('bare', objective='loss', seed=3)\nw.step(1, {'loss': 1.0})\n"
    found = checked(tmp_path, body)
    assert found.ok
    said = " ".join(warnings(found))
    for word in ("no parameter", "number of steps", "seed asked for", "roll back", "told to stop", "No evaluation"):
        assert word in said


def test_a_run_that_ends_without_ever_answering_is_no_run_that_was_over_too_early(tmp_path: Path) -> None:
    body = BASE.replace("10**6", "400").replace("sleep(0.01)", "sleep(0.1)")
    found = checked(tmp_path, body + "w._poll = lambda: None\ntrain()")
    assert errors(found) == ["The change of lr was never answered."]


def test_a_run_that_is_over_before_it_could_answer_says_so(tmp_path: Path) -> None:
    body = """
w._poll = lambda: None  # the change may be there before the evaluation that comes at once
w.step(1, {"loss": 1.0})
w.eval(1, {"loss": 1.0})
until((RUN / "control.json").exists)
w.end(1)
"""
    found = checked(tmp_path, BASE + body)
    assert (errors(found), warnings(found)) == ([], ["The run was over before lr could be tried."])


def test_a_run_that_is_over_before_everything_was_tried_says_so(tmp_path: Path) -> None:
    found = checked(tmp_path, LINE.replace("STEPS, EVERY = 24, 2", "STEPS, EVERY = 2, 2"))
    assert any("could be tried" in what for what in warnings(found))
