"""Scripts that write their own telemetry, with what other languages and other people make of it: said where a run is
shown, and nothing claimed that was not read. Real processes, real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainmgr.base import errors

FOREIGN = r"""
import json, math, os, sys

seq = 0
file = open(os.path.join(os.environ["TRAINMGR_RUN_DIR"], "telemetry.jsonl"), "ab", buffering=0)


def put(event, end=b"\n", begin=b"", **more):
    global seq
    line = json.dumps({"v": 1, "seq": seq, "t": float(seq), "event": event, **more}).encode()
    file.write(begin + line + end)
    seq += 1


def start(**more):
    put("start", workload="own", pid=1, total_steps=40, objective={"metric": "val_loss", "mode": "min"}, **more)


def train(**wrong):
    for step in range(1, 41):
        put("step", step=step, metrics={"loss": 1.0})
        if step % 10 == 0:
            put("eval", step=step, metrics={"val_loss": step / 10, "acc": 0.5, **(wrong if step >= 20 else {})})
    put("end", status="completed", step=40)
"""


def trainmgr(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "400", "NO_COLOR": "1", "TRAINMGR_RUNS_DIR": str(folder / "runs")}
    return subprocess.run(
        [sys.executable, "-m", "trainmgr", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def supervise(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    (folder / "own.py").write_text(FOREIGN + body)
    return trainmgr(folder, "run", "own.py", "--manager", "none")


def show(folder: Path) -> dict[str, object]:
    found = json.loads(trainmgr(folder, "show", "--json").stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("body", [
    "start(begin=b'\\xef\\xbb\\xbf')\ntrain()", "start(end=b'\\r\\n')\ntrain()",
    "start(seed=3.0, action_space=[dict(name='n', type='int', low=1.0, high=9.0, value=3.0)])\ntrain()",
])  # fmt: skip
def test_the_habits_of_other_writers_cost_nothing(tmp_path: Path, body: str) -> None:
    done = supervise(tmp_path, body)
    assert done.returncode == 0
    assert "val_loss ended at 4; its best was 1 at step 10" in done.stdout
    assert show(tmp_path)["notices"] == {}
    assert trainmgr(tmp_path, "audit").returncode == errors.EXIT_OK


@pytest.mark.parametrize(("wrong", "said"), [
    ("f1=None", "3 entries of records were left out; the first: line 23: metrics.f1: must be a number (found None). "),
    ("f1=[1]", "3 entries of records were left out; the first: line 23: metrics.f1: must be a number (found [1]). "),
    ("f1=math.nan", "3 numbers that JSON does not have were read all the same; the first: line 23: metrics.f1: NaN "),
    ("**{'x' * 82: 1.0}", f"3 values have names that are not followed; the first: line 23: {'x' * 39}… (82 charac"),
])  # fmt: skip
def test_a_good_objective_beside_a_bad_metric_is_kept_and_the_rest_is_said(
    tmp_path: Path, wrong: str, said: str
) -> None:
    done = supervise(tmp_path, f"start()\ntrain({wrong})")
    assert done.returncode == 0
    assert "val_loss ended at 4; its best was 1 at step 10 (300.0% worse)." in done.stdout
    assert said in done.stdout  # as a count in the last lines
    first = next(line for line in done.stderr.splitlines() if "line 23: " in line)  # ... and at the first one
    assert first.startswith("step      20  1 ")
    assert said in trainmgr(tmp_path, "show").stdout
    ((_, notice),) = show(tmp_path)["notices"].items()  # type: ignore[attr-defined]
    assert notice["count"] == 3
    audit = trainmgr(tmp_path, "audit")
    assert audit.returncode == errors.EXIT_OK  # a note, no finding
    assert f"note: telemetry.jsonl: {said.strip()}" in audit.stdout


def test_an_objective_that_is_nan_from_some_step_on_ends_at_nan(tmp_path: Path) -> None:
    done = supervise(tmp_path, "start()\ntrain(val_loss=math.nan)")
    assert "val_loss ended at nan; its best was 1 at step 10." in done.stdout
    assert "line 23: metrics.val_loss: NaN without quotes." in done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        "train(val_loss=None)",
        "train(val_loss='low')",
        "json.dumps = lambda v: repr(v).replace(\"'\", '\"')\ntrain(acc=math.nan)",
    ],
)
def test_the_end_is_not_claimed_from_before_evaluations_that_are_lost(tmp_path: Path, wrong: str) -> None:
    done = supervise(tmp_path, f"start()\n{wrong}")
    assert done.returncode == 0
    assert "ended at" not in done.stdout
    assert "val_loss was 1 at step 10; 3 later evaluations could not be read (line 23: " in done.stdout
    found = show(tmp_path)
    assert (found["final"], found["best"], found["evaluations_lost"]) == (None, 1.0, 3)
    assert found["notices"]


def test_telemetry_without_a_start_that_can_be_read_is_not_no_telemetry(tmp_path: Path) -> None:
    done = supervise(tmp_path, "start(seed='three')\ntrain()")
    assert done.returncode == errors.EXIT_WORKLOAD
    assert (
        "1 line of telemetry could not be read: line 1: start.seed: must be a whole number (found 'three')."
        in done.stdout
    )
    assert (
        "The script wrote 46 lines of telemetry and no `start` record that can be read, so nothing was" in done.stdout
    )
    assert "wrote no telemetry" not in done.stdout
    assert "line 1: start.seed: must be a whole number (found 'three')." in done.stderr
    shown = trainmgr(tmp_path, "show")
    assert (shown.returncode, shown.stderr) == (errors.EXIT_OK, "")


def test_records_that_no_line_break_ends_are_not_no_telemetry(tmp_path: Path) -> None:
    done = supervise(tmp_path, "start(end=b'\\r')")
    assert "The script wrote 0 lines of telemetry and no `start` record that can be read" in done.stdout
    assert "What follows the last line break of telemetry was not read" in done.stdout
    assert "The script wrote no telemetry, so nothing was supervised." in supervise(tmp_path, "").stdout


def test_a_last_record_without_its_line_break_is_said(tmp_path: Path) -> None:
    done = supervise(
        tmp_path, "start()\nput('step', step=1, metrics={})\nput('end', status='completed', step=1, end=b'')"
    )
    assert "What follows the last line break of telemetry was not read: every record ends with one." in done.stdout


def test_lines_that_are_no_records_stay_findings_of_the_audit(tmp_path: Path) -> None:
    done = supervise(tmp_path, "start()\nfile.write(b'loss: 1.5\\n' * 2)\ntrain()")
    assert "2 lines of telemetry could not be read; the first: line 2: not JSON: Expecting value at" in done.stdout
    audit = trainmgr(tmp_path, "audit")
    assert audit.returncode == errors.EXIT_FAILED
    assert "telemetry.jsonl line 3: not a record" in audit.stdout


def test_a_wrong_name_of_the_objective_gets_the_nearest(tmp_path: Path) -> None:
    done = supervise(tmp_path, "start()\nput('eval', step=1, metrics={'loss': 1.0, 'Val/Loss': 2.0})\ntrain()")
    assert "it has: loss, Val/Loss. Nothing can be managed without it. Was Val/Loss meant?" in done.stderr


def test_what_was_read_replays(tmp_path: Path) -> None:
    body = (
        "start(action_space=[dict(name='lr', type='float', low=0.0, high=1.0, value=0.5)], commands=[])\ntrain(f1=None)"
    )
    (tmp_path / "own.py").write_text(FOREIGN + body)
    assert trainmgr(tmp_path, "run", "own.py", "--manager", "rules").returncode == 0
    assert trainmgr(tmp_path, "replay").returncode == errors.EXIT_OK


def test_an_objective_that_was_never_finite_ends_at_what_it_is(tmp_path: Path) -> None:
    done = supervise(
        tmp_path, "start()\nput('eval', step=1, metrics={'val_loss': 'NaN'})\nput('end', step=1, status='completed')"
    )
    assert "val_loss ended at nan; it was not finite at any of " in done.stdout


@pytest.mark.parametrize(("last", "said"), [
    ("{'acc': 0.5}", "val_loss ended at 4; its best was 1 at step 10 (300.0% worse)."),
    ("{'val_loss': 3.0}", "val_loss ended at 3; its best was 1 at step 10 (200.0% worse)."),
])  # fmt: skip
def test_another_evaluation_of_the_last_step_does_not_hide_the_objective(tmp_path: Path, last: str, said: str) -> None:
    body = "start()\nend = put\nput = lambda event, **more: None if event == 'end' else end(event, **more)\ntrain()\n"
    done = supervise(tmp_path, f"{body}put('eval', step=40, metrics={last})\nend('end', status='completed', step=40)")
    assert said in done.stdout
    assert trainmgr(tmp_path, "audit").returncode == errors.EXIT_OK


def test_an_objective_under_another_name_from_some_step_on_is_said_with_when_it_was_last(tmp_path: Path) -> None:
    body = """
start()
for step in range(1, 41):
    put("step", step=step, metrics={"loss": 1.0})
    if step % 10 == 0:
        put("eval", step=step, metrics={"val_loss" if step < 30 else "valid_loss": 1 / step})
put("end", status="completed", step=40)
"""
    done = supervise(tmp_path, body)
    said = "val_loss is not in the last 2 evaluations; it was 0.05 last, at step 20; its best was 0.05 at step 20."
    assert said in done.stdout
    assert said in trainmgr(tmp_path, "show").stdout
    compared = trainmgr(tmp_path, "compare", "own.py", "--managers", "none", "--seeds", "1,2")
    assert "Without a figure: val_loss of none seeds 1 and 2, measured last at step 20 of 40." in compared.stdout
    assert "best val_loss" in compared.stdout


@pytest.mark.parametrize(("objective", "values", "said"), [
    ({}, (0.0, 5.0), "val_loss ended at 5; its best was 0 at step 10."),
    ({"scale": 2.0}, (0.0, 5.0), "val_loss ended at 5; its best was 0 at step 10 (250.0% of its scale worse)."),
    ({}, (2.0, 1.0), "val_loss ended at 1; its best was 1 at step 20."),
    ({"mode": "max"}, (99.5, 80.0), "val_loss ended at 80; its best was 99.5 at step 10 (19.6% worse)."),
    ({"mode": "max"}, (-4.0, -5.0), "val_loss ended at -5; its best was -4 at step 10 (25.0% worse)."),
])  # fmt: skip
def test_the_end_is_worse_than_the_best_or_not_compared(
    tmp_path: Path, objective: dict[str, object], values: tuple[float, float], said: str
) -> None:
    goal = {"metric": "val_loss", "mode": "min", **objective}
    body = f"put('start', workload='own', pid=1, total_steps=40, objective={goal!r})\n" + "".join(
        f"put('eval', step={10 * i}, metrics={{'val_loss': {value}}})\n" for i, value in enumerate(values, start=1)
    )
    assert said in supervise(tmp_path, f"{body}put('end', status='completed', step=20)").stdout


def test_a_run_that_goes_on_after_its_end_is_managed_on_and_what_came_twice_is_said(tmp_path: Path) -> None:
    """As where a fork of the training left by sys.exit(): it reported an end, with a seq that was used."""
    body = """
start(action_space=[dict(name="lr", type="float", low=0.0, high=1.0, value=0.5)], commands=[])
for step in range(1, 41):
    put("step", step=step, metrics={"loss": 1.0})
    if step % 10 == 0:
        put("eval", step=step, metrics={"val_loss": 1 / step})
    if step == 20:
        put("end", status="completed", step=step)
        seq -= 1
    if step == 30:
        limit = time.monotonic() + 60
        while b'"step":30,' not in log.read_bytes() and time.monotonic() < limit:
            time.sleep(0.002)
put("end", status="completed", step=40)
"""
    head = "import time\nfrom pathlib import Path\nlog = Path(os.environ['TRAINMGR_RUN_DIR'], 'audit.jsonl')\n"
    (tmp_path / "own.py").write_text(FOREIGN + head + body)
    done = trainmgr(tmp_path, "run", "own.py", "--manager", "rules")
    assert '"step":30,' in next((tmp_path / "runs").glob("*/audit.jsonl")).read_text()  # a snapshot of after the end
    twice = "1 record is missing or came twice: line 25: seq 23 where 24 was to come."
    went = "he run went on after its end: line 25: step 21 came after it."
    for text in (twice, went):
        assert text in done.stderr
        assert text in done.stdout
        assert text in trainmgr(tmp_path, "show").stdout
    assert "val_loss ended at 0.025" in done.stdout


REMOVED = """
import shutil, time
start()
put("step", step=10, metrics={"loss": 1.0})
put("eval", step=10, metrics={"val_loss": 0.5})
log = os.path.join(os.environ["TRAINMGR_RUN_DIR"], "audit.jsonl")
with open(log, "rb") as events:  # until the supervisor has read what is there
    limit = time.monotonic() + 60
    while b'"snapshot"' not in events.read() and time.monotonic() < limit:
        time.sleep(0.002)
    %s
    while b'"where":"telemetry"' not in events.read() and time.monotonic() < limit:
        time.sleep(0.002)
    put("eval", step=20, metrics={"val_loss": 9.0})
    put("end", status="completed", step=20)
sys.exit(%d)
"""
FILE = 'os.remove(os.path.join(os.environ["TRAINMGR_RUN_DIR"], "telemetry.jsonl"))'
FOLDER = 'shutil.rmtree(os.environ["TRAINMGR_RUN_DIR"])'


@pytest.mark.parametrize("what", [FILE, FOLDER])
@pytest.mark.parametrize("code", [0, 3])
def test_files_that_the_script_removes_cost_neither_its_exit_code_nor_the_last_lines(
    tmp_path: Path, what: str, code: int
) -> None:
    (tmp_path / "own.py").write_text(FOREIGN + REMOVED % (what, code))
    done = trainmgr(tmp_path, "run", "own.py", "--manager", "rules")
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    said = "telemetry.jsonl was removed; nothing more is read from it, after step 10"
    assert said in done.stderr
    assert said in done.stdout
    assert "val_loss was 0.5 at step 10, the last that was read; its best was 0.5 at step 10." in done.stdout
    assert "do not hold together any more, so all of this is from memory" in done.stdout
    assert "Next:" not in done.stdout
    assert ("ended with exit code 3 (failed)" in done.stdout) is (code == 3)


def test_an_exception_that_the_script_catches_outside_of_the_workload_keeps_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("""
from trainmgr.workload import Workload
try:
    with Workload("own", objective="val_loss") as w:
        w.step(1, {"loss": 1.0})
        w.eval(1, {"val_loss": 1.0})
        raise StopIteration("early: enough")
except StopIteration:
    pass
""")
    done = trainmgr(tmp_path, "run", "own.py", "--manager", "none")
    assert done.returncode == 0
    text = "The workload ended with StopIteration, and the script went on: it ended with exit code 0."
    assert text in done.stdout
    assert trainmgr(tmp_path, "audit").returncode == errors.EXIT_OK


def test_a_wrong_name_of_the_counterpart_gets_the_nearest(tmp_path: Path) -> None:
    body = """
objective = {"metric": "val_loss", "mode": "min", "counterpart": "train_los"}
put("start", workload="own", pid=1, total_steps=40, objective=objective)
put("eval", step=1, metrics={"val_loss": 1.0, "train_loss": 1.0})
put("end", step=1, status="completed")
"""
    done = supervise(tmp_path, body)
    said = "has no train_los, without which overfitting cannot be told; it has: val_loss, train_loss. Was train_loss"
    assert said in done.stderr
    right = supervise(tmp_path, body.replace('train_los"', 'train_loss"'))
    assert "counterpart" not in right.stderr
