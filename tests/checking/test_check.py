"""`trainmgr check`: a good workload passes, and every breach of a bad one is named with its fix."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from trainmgr.base import process
from trainmgr.base.paths import RunPaths
from trainmgr.checking import breaches, check
from trainmgr.checking.checked import Checked
from trainmgr.contract import protocol
from trainmgr.contract.policy import Process
from trainmgr.terminal import tables
from trainmgr.testing import LINE, wait_for, write_child, write_shell
from trainmgr.workload import rehearsal

WORKLOADS = Path(__file__).resolve().parents[2] / "workloads"

BASE = """
recipe = {"lr": 0.1}
w = Workload("bad", objective="loss", total_steps=10**6, seed=default_seed(), metrics={"loss": "made up"})
w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.01, high=1.0)
learned = 0
def rollback(to):
    global learned
    learned = 0
w.command("rollback", rollback)
w.command("stop", lambda to: None)
def loss():
    return 2 - min(learned, 150) / 100 + w.seed / 1e9
def train(**metrics):
    global learned
    for step in w.steps():
        learned += 1
        w.step(step, {"loss": loss()})
        if step % 20 == 0:
            w.eval(step, metrics or {"loss": loss()})
            time.sleep(0.01)  # stands for work
    w.end(step)
"""


KEPT = """
from trainmgr.workload import Checkpoints
recipe, weights, step = {"lr": 0.1}, [0.0], 0
w = Workload("kept", objective="loss", total_steps=10**6, seed=default_seed(), metrics={"loss": "made up"})
w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.01, high=1.0)
def save(path):
    path.write_text(json.dumps(weights))
def load(path):
    weights[:] = json.loads(path.read_text())
keep = Checkpoints(w, save, load, suffix=".json")
def train():
    global step
    keep.begin()
    while not w.stopping:
        step += 1
        weights[0] = 0.98 * weights[0] + 0.02 + w.seed / 1e9
        w.step(step, {"loss": 2 - weights[0]})
        if step % 20 == 0:
            keep.eval(step, {"loss": 2 - weights[0]})
            time.sleep(0.01)
        keep.report(step)
    keep.end(step)
"""

SCHEDULED = """
import copy, torch
torch.manual_seed(default_seed())
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t / 100))
w = Workload("scheduled", objective="loss", total_steps=10**6, seed=default_seed(), metrics={"loss": "made up"})
w.optimizer("lr", optimizer, key="lr", low=1e-6, high=0.1, max_ratio=2.0, scheduler=scheduler)
def state():
    return copy.deepcopy([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()])
initial = state()
def rollback(to):
    model.load_state_dict(initial[0])
    optimizer.load_state_dict(initial[1])
w.command("rollback", rollback)
w.command("stop", lambda to: None)
for step in w.steps():
    x = torch.randn(32, 4)
    loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    w.step(step, {"loss": loss.item()})
    if step % 20 == 0:
        with torch.no_grad():
            loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
        w.eval(step, {"loss": loss.item()})
"""

ORPHAN = """
line = {"v": 1, "seq": 0, "t": 1.0, "event": "step", "step": 1, "metrics": {}}
(RUN / "telemetry.jsonl").write_text(json.dumps(line) + "\\n")
"""


def checked(folder: Path, body: str, seconds: float = 60.0) -> Checked:
    return check.Probe(write_child(folder, body), [], seconds).run()


def errors(found: Checked) -> list[str]:
    return [breach.what for breach in found.breaches if breach.severity == "error"]


def warnings(found: Checked) -> list[str]:
    return [breach.what for breach in found.breaches if breach.severity == "warning"]


def test_minimal_passes() -> None:
    found = check.Probe(WORKLOADS / "minimal.py", [], 60.0).run()
    assert (errors(found), warnings(found)) == ([], [])
    assert found.ok
    assert "lr: a change takes effect and is read back" in found.passed
    assert "no parameter moves by itself, and every change stays in effect" in found.passed
    assert breaches.as_json(found)["ok"] is True


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
        (BASE + "train(accuracy=1.0, Loss_=2.0)", "The objective 'loss' is in none of the evaluations."),
        (BASE.replace("recipe.update(lr=v)", "None") + "train()",
         "A change of lr within its bounds was refused: set(0.505) left lr at 0.1"),
        (BASE.replace("recipe.update(lr=v)", "1 / 0") + "train()",
         "A change of lr within its bounds was refused: ZeroDivisionError: division by zero"),
        (BASE.replace("w.step(step, {", "recipe.update(lr=0.1); w.step(step, {") + "train()",
         ": something overwrites it."),
        (BASE.replace("w.eval(step, ", "recipe.update(lr=0.1 + step / 1e3); w.eval(step, ") + "train()",
         "lr went from 0.1 to 0.12 at step 20 by itself."),
        (BASE.replace("    learned = 0\n", "    pass\n") + "train()",
         "A rollback to the initial weights changed nothing"),
        (BASE.replace("in w.steps()", "in range(1, 3001)").replace("10**6", "3000") + "train()",
         "steps, to its usual end."),
        (BASE.replace(" + w.seed / 1e9", "") + "train()",
         "The seeds 12345 and 54321 gave the same figures (loss at step "),  # the last that both have reached
        (BASE + "w.command('checkpoint', lambda to: None); train()",
         "It was told to keep a checkpoint as 'check', and reported none."),
        (BASE + "w.command('checkpoint', lambda to: w.checkpoint(w._overrides.step, f'checkpoints/{to}')); train()",
         "It reported the checkpoint checkpoints/check, and there is none."),
        (KEPT.replace("weights[:] = ", "ignored = ") + "train()",
         "load() put nothing back of check.json: what is saved after it is what was saved before"),
        (KEPT.replace("dumps(weights)", "dumps([*weights, step])")
         .replace("    weights[:] = json", "    global step\n    *weights[:], step = json") + "train()",
         "the script counts on from step"),
        (BASE + "w.step(1, {'loss': 1.0}); w._writer.seq += 3; train()", "3 records are missing in the count of seq."),
        (BASE + "w.step(1, {'loss': 1.0}); w._writer.report('step', step=2, metrics={'loss': 'low'}); train()",
         "1 entry of a record was left out: line 3: metrics.loss: 'low' is not a number;"),
        (BASE + "w.step(9, {'loss': 1.0}); w.step(3, {'loss': 1.0}); train()",
         "The step went back once: line 3: from 9 to 3."),
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
    assert all(b.fix or b.what.startswith("The script warns: ") for b in found.breaches)


AVERAGED = KEPT.replace("weights, step =", "weights, average, step =").replace("[0.0], 0", "[0.0], [0.0], 0").replace(
    "        w.step(step", "        average[0] = 0.95 * average[0] + 0.05 * weights[0]\n        w.step(step"
).replace('keep.eval(step, {"loss": 2 - weights[0]})', 'keep.eval(step, {"loss": 2 - average[0]})')  # fmt: skip


@pytest.mark.parametrize(
    ("body", "breach"),
    [
        (AVERAGED, "After a rollback to the initial weights it evaluates as before it: loss was "),
        (KEPT.replace("dumps(weights)", "dumps([weights, time.time()])").replace("weights[:] = ", "ignored = "),
         "A rollback to the initial weights changed nothing: loss was "),
        (KEPT.replace("    weights[:] = ", "    global shown\n    shown = ")
         .replace("dumps(weights)", "dumps(shown)").replace("def save", "shown = weights\ndef save")
         .replace('keep.eval(step, {"loss": 2 - weights[0]})', 'keep.eval(step, {"loss": 2 - shown[0]})'),
         "After a rollback nothing is learned any more: loss is "),
    ],
    ids=["averaged", "stamped", "new"],
)  # fmt: skip
def test_a_load_that_does_not_reach_what_is_evaluated_is_an_error(tmp_path: Path, body: str, breach: str) -> None:
    found = checked(tmp_path, body + "train()")
    assert [what for what in errors(found) if breach in what], errors(found)


def test_averaged_weights_that_are_saved_pass(tmp_path: Path) -> None:
    body = AVERAGED.replace("dumps(weights)", "dumps([weights, average])").replace(
        "weights[:] = ", "weights[:], average[:] = "
    )
    found = checked(tmp_path, body + "train()")
    assert (errors(found), warnings(found)) == ([], [])
    assert any(line.startswith("rollback: loss is ") for line in found.passed)


def test_a_rollback_comes_right_before_an_evaluation(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    lines = [{"event": "step", "step": step, "metrics": {}} for step in range(1, 31)]
    for step in (30, 20, 10):
        lines.insert(step, {"event": "eval", "step": step, "metrics": {"loss": 1.0}})

    def found(lines: list[dict[str, object]], pace: float) -> int | None:
        text = [json.dumps({"v": 1, "seq": n, "t": line["step"] / pace, **line}) for n, line in enumerate(lines)]
        paths.telemetry.write_text("\n".join(text) + "\n")
        run = check.Attempt(paths)
        run.read()
        return check.before_evaluation(run)

    assert found(lines, 10.0) == 39
    assert found(lines, 100.0) == 59  # 49 would be in less than two tenths of a second, and two steps
    assert found(lines[:15], 10.0) is None  # too few
    assert found([line for line in lines if line["event"] == "eval" or line["step"] != 19], 10.0) is None
    assert found([line if line["step"] != 10 else {**line, "step": 9} for line in lines], 10.0) is None


def fixes(found: Checked) -> str:
    return " ".join(breach.fix for breach in found.breaches)


def test_a_wrong_name_of_the_objective_gets_the_nearest(tmp_path: Path) -> None:
    found = checked(tmp_path, BASE + "train(accuracy=1.0, Loss_=2.0)")
    assert "They have: accuracy, Loss_. Name one of them as the objective. Was Loss_ meant?" in fixes(found)
    assert any("is without the objective 'loss'" in what for what in warnings(found))


def test_many_lines_with_one_fault_are_one_breach_with_their_count(tmp_path: Path) -> None:
    body = """
with open(RUN / "telemetry.jsonl", "a") as file:
    file.write('{"v": 1, "event": "step", "loss": nan}\\n' * 16 + 'loss: 1.5\\n')
"""
    found = checked(tmp_path, BASE.replace("10**6", "100") + "w.step(1, {})" + body + "train()")
    unreadable = [what for what in errors(found) if "is no record" in what]
    assert len(unreadable) == 2
    assert "not JSON: Expecting value at character 35: " in unreadable[0]
    assert unreadable[0].endswith("(and 15 more for the same reason)")
    assert unreadable[1].endswith("not JSON: Expecting value at character 1: loss: 1.5")


def test_what_the_script_warns_of_is_a_warning_once(tmp_path: Path) -> None:
    found = checked(tmp_path, BASE + "w.log('warning', 'the loader is slow'); train(loss=1.0, f1=None)")
    said = [what for what in warnings(found) if what.startswith("The script warns: ")]
    assert said[0] == "The script warns: the loader is slow"
    assert said[1].startswith("The script warns: 'f1' is left out: it is None at step 20, no number;")
    assert len(said) == 2
    assert found.ok


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
    found = checked(tmp_path, body + "w._overrides.poll = lambda: None\ntrain()")
    assert errors(found) == ["The change of lr was never answered."]


def test_a_run_that_is_over_before_it_could_answer_says_so(tmp_path: Path) -> None:
    body = """
w._overrides.poll = lambda: None  # the change may be there before the evaluation that comes at once
w.step(1, {"loss": 1.0})
w.eval(1, {"loss": 1.0})
until((RUN / "control.json").exists)
w.end(1)
"""
    found = checked(tmp_path, BASE + body)
    assert errors(found) == []
    assert warnings(found)[0] == "The run was over before rollback, stop, lr could be tried."


def test_a_run_that_is_over_before_everything_was_tried_says_so(tmp_path: Path) -> None:
    found = checked(tmp_path, LINE.replace("STEPS, EVERY = 24, 2", "STEPS, EVERY = 2, 2"))
    assert any("could be tried" in what for what in warnings(found))


def test_checkpoints_of_ours_pass(tmp_path: Path) -> None:
    found = checked(tmp_path, KEPT + "train()")
    assert (errors(found), warnings(found)) == ([], [])
    assert "checkpoint: checkpoints/check.json is there" in found.passed
    assert "rollback to checkpoints/check.json: done" in found.passed
    assert "stop: it ends" in found.passed
    assert "another seed gives other figures" in found.passed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_check_that_is_ended_ends_the_script(tmp_path: Path, number: int) -> None:
    body = "(RUN.parent.parent / 'pid').write_text(str(os.getpid()))\ntime.sleep(1000)\n"
    script = write_child(tmp_path, body)
    command = [sys.executable, "-m", "trainmgr", "check", str(script)]
    place = tmp_path / "place"
    place.mkdir()
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(place)}, stderr=subprocess.PIPE) as check:
        wait_for(lambda: (place / "pid").exists() and (place / "pid").read_text() != "")
        pid = int((place / "pid").read_text())
        check.send_signal(number)
        check.wait(60)
    assert check.returncode == 130
    assert not process.alive(pid)
    assert [path.name for path in place.iterdir()] == ["pid"]


def test_a_schedule_that_goes_on_after_a_rollback_passes(tmp_path: Path) -> None:
    found = checked(tmp_path, SCHEDULED)
    assert (errors(found), warnings(found)) == ([], [])


def test_a_load_that_begins_the_schedule_again_is_a_breach(tmp_path: Path) -> None:
    body = SCHEDULED.replace("(initial[1])", "(initial[1])\n    scheduler.load_state_dict(initial[2])")
    (what,) = errors(checked(tmp_path, body))
    assert "After a rollback the schedule of lr began again: it is 0.00" in what


def test_a_slow_schedule_that_a_load_sets_back_is_a_breach(tmp_path: Path) -> None:
    body = SCHEDULED.replace("LambdaLR(optimizer, lambda t: 1 / (1 + t / 100))", "CosineAnnealingLR(optimizer, 10**6)")
    (what,) = errors(
        checked(tmp_path, body.replace("(initial[1])", "(initial[1])\n    scheduler.load_state_dict(initial[2])"))
    )
    assert "After a rollback the schedule of lr began again: it is 0.00" in what
    found = checked(tmp_path, body)
    assert (errors(found), warnings(found)) == ([], [])


def test_another_seed_is_waited_for_until_it_evaluated_where_the_schedule_is_compared(tmp_path: Path) -> None:
    """It was ended between the record of that step and that of its evaluation: rarely, and then nothing was found."""
    slow = f"    if w.seed == {breaches.SEEDS[1]} and step % 20 == 0 and step > 20:\n        time.sleep(0.2)\n"
    body = SCHEDULED.replace("(initial[1])", "(initial[1])\n    scheduler.load_state_dict(initial[2])")
    body = body.replace("    if step % 20 == 0:\n", slow + "    if step % 20 == 0:\n")
    (what,) = errors(checked(tmp_path, body))
    assert "After a rollback the schedule of lr began again" in what


def test_a_slow_schedule_is_compared_at_more_than_the_step_after_the_rollback(tmp_path: Path) -> None:
    """One step after it, early in the run, what began again is still the same to the last digit."""
    body = SCHEDULED.replace("LambdaLR(optimizer, lambda t: 1 / (1 + t / 100))", "CosineAnnealingLR(optimizer, 10**6)")
    body = body.replace("(initial[1])", "(initial[1])\n    scheduler.load_state_dict(initial[2])")
    (what,) = errors(checked(tmp_path, body + "    time.sleep(0.01)  # stands for work\n"))
    assert "After a rollback the schedule of lr began again" in what


def test_a_schedule_that_could_not_be_compared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "AGAIN", 0.0)
    slow = f"    if w.seed == {breaches.SEEDS[1]}:\n        time.sleep(1.0)\n"
    found = checked(tmp_path, SCHEDULED + slow)
    assert errors(found) == []
    assert any(what.startswith("Whether the schedule of lr goes on after a rollback") for what in warnings(found))


def test_a_schedule_that_begins_again_by_itself_passes(tmp_path: Path) -> None:
    kind = "CosineAnnealingWarmRestarts(optimizer, 50)"
    found = checked(tmp_path, SCHEDULED.replace("LambdaLR(optimizer, lambda t: 1 / (1 + t / 100))", kind))
    assert errors(found) == []


def test_a_schedule_whose_end_nobody_knows_is_a_warning(tmp_path: Path) -> None:
    found = checked(tmp_path, SCHEDULED.replace(", scheduler=scheduler", ""))
    assert errors(found) == []
    assert warnings(found) == ["lr follows a schedule, and nobody knows what that ends on."]


def test_a_loop_that_looks_at_the_end_of_an_epoch_only_is_a_warning(tmp_path: Path) -> None:
    body = BASE.replace("in w.steps()", "in range(1, 10**6)").replace(
        "        if step % 20 == 0:\n",
        "        if step % 20 == 0:\n            if w.stopping:\n                break\n",
    )
    found = checked(tmp_path, body + "train()")
    assert errors(found) == []
    assert any("trained on for" in what and "before it ended" in what for what in warnings(found))


SPARSE = BASE.replace('{"loss": loss()})\n        if', '{"epsilon": 1 - step / 1e4, "lr": recipe["lr"]})\n        if')


@pytest.mark.parametrize("value", ["0.0", "0.1"])
def test_what_never_changes_and_what_is_planned_tell_nothing_of_the_seed(tmp_path: Path, value: str) -> None:
    """As a success that is 0 before anything is learned, beside an exploration that follows the count of steps."""
    found = checked(
        tmp_path, SPARSE + f"loss = lambda: {value} if learned < 100 else w.seed / 1e5 + 1 / learned\ntrain()"
    )
    assert errors(found) == []
    assert any(what.startswith("Whether the seed matters cannot be told") for what in warnings(found))


def test_a_script_that_says_that_nothing_is_random(tmp_path: Path) -> None:
    script = write_child(tmp_path, BASE.replace(" + w.seed / 1e9", "") + "train()")
    found = check.Probe(script, [], 60.0, deterministic=True).run()
    assert (errors(found), warnings(found)) == ([], [])
    assert "nothing is random: another seed gives the same figures" in found.passed
    assert any(
        "say so: `trainmgr check --deterministic`" in b.fix for b in check.Probe(script, [], 60.0).run().breaches
    )
    random = check.Probe(write_child(tmp_path, BASE + "train()"), [], 60.0, deterministic=True).run()
    assert errors(random) == ["The seeds 12345 and 54321 gave other figures: something in the script is random."]


def test_a_script_that_seeds_nothing_is_warned_of(tmp_path: Path) -> None:
    found = checked(tmp_path, BASE.replace("w.seed / 1e9", "chance") + "chance = time.time_ns() % 10**6 / 1e6\ntrain()")
    (what,) = [what for what in warnings(found) if "gave other figures the second time" in what]
    assert what.startswith("The same seed, 12345, gave other figures the second time: loss at step 1 was ")
    assert "another seed gives other figures" not in found.passed


def test_what_a_load_brings_back_is_seen_tensor_by_tensor(tmp_path: Path) -> None:
    """Wherever a tensor stands in the file, and whatever else has changed in it."""
    import torch

    def saved(name: str, **state: object) -> rehearsal.Contents:
        torch.save(state, tmp_path / name)
        return rehearsal.contents(tmp_path / name)

    one, two, three = (torch.full((3,), float(n)) for n in (1, 2, 3))
    wanted = saved("best.pt", step=1, model=one, moments=two)
    before = saved("before.pt", step=9, model=two, moments=three)
    assert rehearsal.back(wanted, before, before, before) == (0, 1)  # a load that does nothing
    assert rehearsal.back(wanted, before, saved("a.pt", step=9, moments=two, model=one), before) == (1, 1)
    initial = saved("initial.pt", step=0, model=three)
    assert rehearsal.back(initial, wanted, saved("b.pt", step=9, moments=two, model=three), wanted) == (1, 1)
    both = saved("c.pt", step=0, model=torch.full((3,), 7.0), moments=torch.full((3,), 8.0))
    assert rehearsal.back(both, before, saved("d.pt", model=torch.full((3,), 7.0), moments=three), before) == (1, 2)


def test_what_differs_by_itself_is_nothing_that_a_load_has_brought_back(tmp_path: Path) -> None:
    def saved(*texts: str) -> rehearsal.Contents:
        (tmp_path / "one").write_text(texts[0])
        return rehearsal.contents(tmp_path / "one")

    wanted, before, again, after = (saved(text) for text in ("0 at 1 h", "9 at 2 h", "9 at 3 h", "9 at 4 h"))
    assert rehearsal.back(wanted, before, after, again) == (0, 0)
    assert rehearsal.back(wanted, before, after, before) == (1, 1)  # else it is the load that has changed it


def test_a_counterpart_that_is_never_measured_and_a_goal_against_its_name_are_asked_about(tmp_path: Path) -> None:
    body = BASE.replace('objective="loss",', 'objective="accuracy", mode="min", counterpart="train_acuracy",')
    found = checked(tmp_path, body + "train(accuracy=0.5, train_accuracy=0.5)", 8.0)
    fixes = {breach.what: breach.fix for breach in found.breaches if breach.severity == "warning"}
    absent = "The counterpart 'train_acuracy' is in none of the evaluations: overfitting cannot be told."
    assert fixes[absent].endswith(" Was train_accuracy meant?")
    turned = "The objective 'accuracy' has mode 'min', and its name says that more is better."
    assert fixes[turned].startswith("Is that meant? If not, pass mode='max'")


def test_a_warning_that_says_nothing_to_do_gets_no_advice(tmp_path: Path) -> None:
    found = checked(tmp_path, BASE + 'w.log("warning", "the loader is slow")\ntrain()', 8.0)
    (fix,) = [breach.fix for breach in found.breaches if breach.what == "The script warns: the loader is slow"]
    assert fix == ""
    out = io.StringIO()
    tables.print_checked(Console(file=out, width=200), found)
    assert "! The script warns: the loader is slow\n" in out.getvalue()
    assert "fix: \n" not in out.getvalue()


@pytest.mark.parametrize(("metric", "mode", "asks"), [
    ("accuracy", "min", True), ("val/top1_acc", "min", True), ("evalF1", "min", True), ("ep_return", "min", True),
    ("mean_reward", "min", True), ("AUC", "min", True), ("val_loss", "max", True), ("error_rate", "max", True),
    ("test.perplexity", "max", True), ("accuracy", "max", False), ("val_loss", "min", False), ("score", "min", False),
    ("neg_reward", "min", False), ("negative_log_loss", "max", False), ("accuracy_loss", "min", False),
    ("glossary", "max", False), ("accumulated", "min", False), ("x", "max", False),
])  # fmt: skip
def test_a_goal_against_the_name_of_the_objective_is_asked_about(metric: str, mode: protocol.Mode, asks: bool) -> None:
    found = Checked("x.py")
    breaches._goal(found, protocol.Objective(metric=metric, mode=mode))
    assert bool(found.breaches) is asks
    assert found.ok


def test_a_check_is_as_patient_with_a_stop_as_a_supervisor_is() -> None:
    assert Process().grace == check.GRACE
