"""Scripts that report nothing, under `trainmgr run`: real processes, which wait for what is to happen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from factories.command_line import trainmgr

from trainmgr.base.paths import RunPaths
from trainmgr.base.process import alive
from trainmgr.testing import wait_for, write_child

READ = ["--read", "step {step} loss {loss}", "--read", "step {step} .* val {val_loss}", "--objective", "val_loss:min"]

WAITS = """
import signal

sys.argv = [*sys.argv, "40"]
evals = 0


def reported(text):
    return lambda: (RUN / "telemetry.jsonl").exists() and text.encode() in (RUN / "telemetry.jsonl").read_bytes()


def told():
    return (RUN / "control.json").exists() and b'"stop"' in (RUN / "control.json").read_bytes()


def evaluation(step, value, form="step {} | val {}"):
    '''Print it, and wait until it was decided on. A script that is told to stop waits for the signal.'''
    global evals
    print(form.format(step, value))
    evals += 1
    until(lambda: settled(evals))
    while told():
        signal.pause()
"""
"""Behind PREAMBLE: a script that only prints, and that looks at the files of the run to be exact in a test."""

OVERFITS = """
for step in range(1, 41):
    print(f"step {step} loss {1 / step:.4f}")
    if step % 2 == 0:
        evaluation(step, 0.5 + (step / 4 - 2) ** 2)
"""


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path) -> None:
    (tmp_path / "quick.toml").write_text("[process]\ngrace = 0.05\n")


def run(folder: Path, body: str, *options: str, manager: str = "none", expect: int = 0) -> RunPaths:
    script = write_child(folder, WAITS + body, "script.py")
    trainmgr("run", *options, "--manager", manager, script, cwd=folder, expect=expect)
    (root,) = (folder / "runs").iterdir()
    return RunPaths(root)


def records(paths: RunPaths, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in paths.telemetry.read_bytes().splitlines()]
    return [record for record in found if record["event"] == event]


def curve(paths: RunPaths, event: str, name: str) -> list[tuple[int, float]]:
    return [(record["step"], record["metrics"][name]) for record in records(paths, event) if name in record["metrics"]]


def said(paths: RunPaths, level: str) -> str:
    return "\n".join(record["message"] for record in records(paths, "log") if record["level"] == level)


def holds(paths: RunPaths, folder: Path) -> None:
    assert "hold" in trainmgr("audit", paths.root, cwd=folder).stdout
    assert "byte for byte" in trainmgr("replay", paths.root, cwd=folder).stdout


# -- what is read ------------------------------------------------------------------------------------------------------


def test_a_script_that_never_flushes_is_read_while_it_runs(tmp_path: Path) -> None:
    body = """
print("step 1 loss 0.5")
until(reported('"loss":0.5'))
print("step 1 | val 0.25 and", end=" ")
print("nothing else", file=sys.stderr)
print("so on")
until(reported('"val_loss":0.25'))
"""
    paths = run(tmp_path, body, *READ)
    assert curve(paths, "step", "loss") == [(1, 0.5)]
    assert curve(paths, "eval", "val_loss") == [(1, 0.25)]
    assert paths.stdout.read_text() == "step 1 loss 0.5\nstep 1 | val 0.25 and so on\n"
    assert paths.stderr.read_text() == "nothing else\n"
    holds(paths, tmp_path)


def test_a_bar_is_read_whenever_it_is_drawn(tmp_path: Path) -> None:
    body = """
for epoch in (1, 2):
    for batch in (1, 1, 2):
        sys.stderr.write(f"\\rEpoch {epoch}: 50%|\\x1b[32m##  \\x1b[0m| {batch}/2 [00:00, 9it/s, loss={batch / epoch}]")
    sys.stderr.write(f"\\rEpoch {epoch}: 100%|####| 2/2 [00:01, 9it/s, loss={2 / epoch}, val_loss={1 / epoch}]\\r")
    sys.stderr.write(f"\\rEpoch {epoch}: 100%|####| 2/2 [00:01, 9it/s, loss={2 / epoch}, val_loss={1 / epoch}]\\n")
"""
    patterns = [r"\| {step}/.* loss={loss}", "val_loss={val_loss}"]
    options = [part for pattern in patterns for part in ("--read", pattern)]
    paths = run(tmp_path, body, *options, "--objective", "val_loss:min")
    assert curve(paths, "step", "loss") == [(1, 1.0), (2, 2.0), (3, 0.5), (4, 1.0)]
    assert dict(curve(paths, "eval", "val_loss")) == {2: 1.0, 4: 0.5}
    assert "counted on" in said(paths, "info")


def test_json_that_is_printed(tmp_path: Path) -> None:
    body = """
print("loading")
for step in (10, 20):
    print(json.dumps({"global_step": step, "train": {"loss": 1 / step}}))
    print(json.dumps({"global_step": step, "val": {"loss": float("nan") if step > 10 else 2.0}, "name": "x"}))
"""
    objective = ["--objective", "val.loss:min", "--counterpart", "train.loss"]
    paths = run(tmp_path, body, "--jsonl", "-", *objective, "--total-steps", "20")
    assert curve(paths, "step", "train.loss") == [(10, 0.1), (20, 0.05)]
    assert curve(paths, "eval", "val.loss") == [(10, 2.0), (20, "NaN")]
    assert curve(paths, "eval", "train.loss") == [(10, 0.1), (20, 0.05)]  # the mean of the steps since the last one
    assert records(paths, "start")[0]["total_steps"] == 20


def test_a_csv_file_that_comes_late_and_is_written_anew_with_more_columns(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,loss,val_loss\n0,9,0.1,\n0,9,,0.01\n")  # of an earlier run
    body = """
path = Path("metrics.csv")
path.unlink()
rows = []
for epoch, step in ((0, 10), (1, 20)):
    rows.append(f"{epoch},{step},{1 / step},")
    path.write_text("\\n".join(["epoch,step,loss", *rows, ""]))
    until(reported(f'"loss":{1 / step}'))
path.write_text("\\n".join(["epoch,step,loss,val_loss", *rows, "1,20,,0.4", ""]))
until(reported('"val_loss":0.4'))
with path.open("a") as file:
    file.write("2,30,,0.3")  # without an end
"""
    paths = run(tmp_path, body, "--csv", "metrics.csv", "--objective", "val_loss:min")
    assert curve(paths, "step", "loss") == [(10, 0.1), (20, 0.05)]
    assert curve(paths, "eval", "val_loss") == [(20, 0.4), (30, 0.3)]
    holds(paths, tmp_path)


def test_json_lines_of_a_file_from_where_they_end_now(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"val": 9, "it": 1}\n')
    body = """
with open("log.jsonl", "a") as file:
    file.write('{"val": 2, "it": 1}\\n{"val": 1, "it": 2, "note": "x"}\\n')
"""
    paths = run(tmp_path, body, "--jsonl", "log.jsonl", "--step", "it", "--objective", "val:max")
    assert curve(paths, "eval", "val") == [(1, 2), (2, 1)]


def test_what_was_never_found_is_said_with_what_was_there(tmp_path: Path) -> None:
    paths = run(tmp_path, "print('Iteration 1: error 2')\nprint('step 1 loss 3')\n", *READ)
    assert said(paths, "warning").splitlines() == [
        "--read 'step {step} .* val {val_loss}' found nothing in 2 lines, the first of them: Iteration 1: error 2",
        "no line had the objective val_loss; found: loss",
    ]
    for folder, options in ((tmp_path / "a", ["--csv", "none.csv"]), (tmp_path / "b", ["--jsonl", "-"])):
        folder.mkdir()
        paths = run(folder, "print('{')\n", *options, "--objective", "val:min")
        assert said(paths, "warning").startswith(f"{' '.join(options)} found no")


def test_ranks_are_the_business_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    paths = run(tmp_path, "print('step 1 | val', os.environ['RANK'])\n", *READ)
    assert curve(paths, "eval", "val_loss") == [(1, 1)]


# -- how it ends -------------------------------------------------------------------------------------------------------


def test_it_is_stopped_early_by_a_signal(tmp_path: Path) -> None:
    body = f"try:\n{indent(OVERFITS, '    ')}\nexcept KeyboardInterrupt:\n    print('saved')\n    sys.exit(5)"
    paths = run(tmp_path, body, *READ, manager="schedule:early-stopping")
    assert paths.stdout.read_text().endswith("saved\n")
    (applied,) = records(paths, "applied")
    assert applied["command"]["name"] == "stop"
    (end,) = records(paths, "end")
    assert (end["status"], end["step"]) == ("stopped", applied["step"])
    assert said(paths, "info") == "the script was told to stop with SIGINT and ended with exit code 5"
    assert json.loads(paths.manifest.read_bytes())["closing"]["exit_code"] == 0
    holds(paths, tmp_path)


def test_it_is_trained_again_to_the_same_stop(tmp_path: Path) -> None:
    body = """
import time
for step in range(1, 61):
    print(f"step {step} loss {1 / step:.4f}")
    if step % 2 == 0 and "replay" not in str(RUN):
        evaluation(step, 0.5 + (step / 4 - 2) ** 2)
    elif step % 2 == 0:
        print(f"step {step} | val {0.5 + (step / 4 - 2) ** 2}")
"""
    paths = run(tmp_path, body, *READ, manager="schedule:early-stopping")
    assert records(paths, "end")[0]["status"] == "stopped"
    assert "bit for bit" in trainmgr("replay", paths.root, "--train", cwd=tmp_path).stdout


def test_the_rules_stop_what_only_gets_worse(tmp_path: Path) -> None:
    paths = run(tmp_path, OVERFITS, *READ, "--counterpart", "loss", manager="rules")
    assert records(paths, "end")[0]["status"] == "stopped"
    (verdict,) = [e for e in map(json.loads, paths.audit.read_bytes().splitlines())
                  if e["data"]["kind"] == "verdict" and e["data"]["command"]]  # fmt: skip
    assert verdict["data"]["diagnosis"] == "overfitting"
    holds(paths, tmp_path)


@pytest.mark.parametrize("manager", ["schedule:cosine", "random", "adversary"])
def test_managers_that_have_nothing_to_change_keep(tmp_path: Path, manager: str) -> None:
    body = "for step in range(1, 13):\n    evaluation(step, 1 / step)\n"
    paths = run(tmp_path, body, *READ, manager=manager)
    assert records(paths, "applied") == []
    assert records(paths, "end")[0]["status"] == "completed"
    holds(paths, tmp_path)


def test_a_script_that_ignores_signals_is_killed(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + OVERFITS
    paths = run(tmp_path, body, *READ, "--policy", "quick.toml", manager="schedule:early-stopping")
    assert said(paths, "info") == "the script was told to stop with SIGKILL and was ended by SIGKILL"
    assert records(paths, "end")[0]["status"] == "stopped"


@pytest.mark.parametrize(("how", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)])
def test_a_crash_keeps_its_exit_code_and_its_last_words(tmp_path: Path, how: str, code: int) -> None:
    body = f"print('step 1 | val 0.5')\nprint('why it failed', file=sys.stderr)\n{how}\n"
    paths = run(tmp_path, body, *READ, expect=code)
    assert paths.stderr.read_text().startswith("why it failed\n")
    assert records(paths, "end")[0]["status"] == "failed"
    assert curve(paths, "eval", "val_loss") == [(1, 0.5)]
    holds(paths, tmp_path)


def test_what_it_leaves_running_does_not_hold_the_run_open(tmp_path: Path) -> None:
    body = """
import subprocess
print("step 1 | val 0.5")
left = subprocess.Popen(["sh", "-c", "while :; do sleep 1; done"])
Path("left").write_text(str(left.pid))
"""
    paths = run(tmp_path, body, *READ)
    pid = int((tmp_path / "left").read_text())
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)
    assert records(paths, "end")[0]["status"] == "completed"


def test_a_signal_that_is_for_the_script_reaches_it(tmp_path: Path) -> None:
    body = """
heard = []
signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
until(reported('"start"'))
os.kill(os.getppid(), signal.SIGUSR1)
until(lambda: heard)
print("step 1 | val 0.5")
"""
    assert curve(run(tmp_path, body, *READ), "eval", "val_loss") == [(1, 0.5)]


def test_ctrl_c_reaches_a_script_that_prints_nothing_more_and_once(tmp_path: Path) -> None:
    body = """
print("step 1 | val 0.5")
try:
    until(lambda: False)
except KeyboardInterrupt:
    print("heard")
"""
    script = write_child(tmp_path, WAITS + body, "script.py")
    command = [sys.executable, "-m", "trainmgr", "run", *READ, "--manager", "none", "-q", str(script)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: [path for path in tmp_path.glob("runs/*/telemetry.jsonl") if b'"eval"' in path.read_bytes()])
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    (root,) = (tmp_path / "runs").iterdir()
    assert RunPaths(root).stdout.read_text() == "step 1 | val 0.5\nheard\n"
    assert records(RunPaths(root), "end")[0]["status"] == "stopped"


def test_it_ends_with_the_process_that_stands_in_for_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, signal\nopen('pid', 'w').write(f'{os.getpid()}\\n')\nsignal.pause()\n")
    ours = [sys.executable, "-m", "trainmgr.sources", "--read=x {x}", "--objective=x:min", "--", sys.executable]
    with subprocess.Popen([*ours, str(script)], cwd=tmp_path) as process:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
        process.kill()
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not alive(pid))


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (READ[:4], "--objective val_loss:min"),
        ([*READ[:4], "--objective", "valloss:min"], "they have: step, loss, val_loss"),
        (["--read", "{a", "--objective", "a:min"], "names no number"),
        ([*READ, "--csv", "x"], "two places to read from"),
        (["--objective", "a:min"], "for a script that is only read"),
        ([*READ, "--blocking"], "--blocking stops what reports"),
    ],
)
def test_a_mistake_is_said_before_anything_starts(tmp_path: Path, options: list[str], said: str) -> None:
    script = write_child(tmp_path, "Path('started').touch()")
    assert said in trainmgr("run", *options, script, cwd=tmp_path, expect=2).stderr
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "started").exists()


def test_files_beside_the_script_that_are_named_like_modules_are_none(tmp_path: Path) -> None:
    for name in ("signal", "csv", "json", "selectors"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    script = tmp_path / "deep" / "script.py"
    script.parent.mkdir()
    script.write_text("print('step 1 | val 0.5')\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainmgr", "run", *READ, "-m", "none", "-q", str(script)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "val_loss ended at 0.5" in done.stdout


def test_an_executable_that_is_no_python_is_read_too(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text('#!/bin/sh\necho "accuracy $1 %"\nexit 3\n')
    script.chmod(0o700)
    options = ["--read", "accuracy {acc} %", "--objective", "acc:max", "-m", "none"]
    done = trainmgr("run", *options, script, "--", "93.5", cwd=tmp_path, expect=3)
    assert "acc ended at 93.5" in done.stdout
    assert "exit code 3" in done.stdout
