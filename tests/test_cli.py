"""The command line as people use it: real processes, real runs of workloads/minimal.py."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from factories.command_line import trainmgr
from typer.main import get_command

from trainmgr import cli
from trainmgr.base import errors

ROOT = Path(__file__).parents[1]
MINIMAL = ROOT / "workloads" / "minimal.py"
COMMANDS = sorted(get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one managed run of the minimal workload."""
    folder = tmp_path_factory.mktemp("cli")
    done = trainmgr("run", MINIMAL, "--manager", "rules", "--seed", "1", cwd=folder)
    assert "val_loss ended at" in done.stdout
    assert "Next: trainmgr show" in done.stdout
    return folder


def test_a_run_says_what_was_done_and_what_to_type_next(runs: Path) -> None:
    done = trainmgr("show", "latest", cwd=runs)
    assert "interventions" in done.stdout
    assert "roll back to best" in done.stdout


def test_audit_and_replay_hold(runs: Path) -> None:
    assert "hold" in trainmgr("audit", "latest", cwd=runs).stdout
    assert "byte for byte" in trainmgr("replay", "latest", cwd=runs).stdout
    assert "valid" in trainmgr("replay", "latest", "--manager", "schedule:cosine", cwd=runs).stdout


def test_the_digest_to_keep_elsewhere(runs: Path) -> None:
    head = trainmgr("audit", "latest", "--head", cwd=runs).stdout.strip()
    assert re.fullmatch("[0-9a-f]{64}", head)
    trainmgr("audit", "latest", "--expect", head, cwd=runs)
    trainmgr("audit", "latest", "--expect", "0" * 64, cwd=runs, expect=errors.EXIT_FAILED)


@pytest.mark.parametrize("command", ["runs", "show", "audit", "replay"])
def test_what_reads_speaks_json(runs: Path, command: str) -> None:
    assert json.loads(trainmgr(command, "--json", cwd=runs).stdout)


def test_runs_says_whether_a_supervisor_lives(runs: Path, tmp_path: Path) -> None:
    (run,) = (runs / "runs").iterdir()
    died = shutil.copytree(run, tmp_path / "runs" / run.name)
    lives = shutil.copytree(run, tmp_path / "runs" / run.name.replace("minimal", "lives"))
    for copy in (died, lives):
        values = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps({**values, "closing": None}))
    with (lives / "audit.jsonl").open("rb") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        table = trainmgr("runs", cwd=tmp_path).stdout
        found = {run["run"]: run["status"] for run in json.loads(trainmgr("runs", "--json", cwd=tmp_path).stdout)}
    assert found == {lives.name: "running", died.name: "supervisor died"}
    assert f"trainmgr attach {died.name}" in table
    assert f"trainmgr attach {lives.name}" not in table
    status = json.loads(trainmgr("runs", "--json", cwd=runs).stdout)[0]["status"]
    assert status in ("stopped", "completed")  # so short a run may end before it hears of its stop


@pytest.mark.parametrize("command", ["run", "attach"])
def test_quiet_is_short_everywhere(command: str) -> None:
    parameters = get_command(cli.app).commands[command].params  # type: ignore[attr-defined]
    assert any({"--quiet", "-q"} <= set(parameter.opts) for parameter in parameters)


def test_a_run_as_json_lines_and_its_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "crash.py"
    script.write_text("import sys\nprint('why it failed', file=sys.stderr)\nsys.exit(7)\n")
    done = trainmgr("run", script, "--json", cwd=tmp_path, expect=7)
    kinds = [json.loads(line)["kind"] for line in done.stdout.splitlines()]
    assert kinds[0] == "run started"
    assert kinds[-1] == "run ended"
    done = trainmgr("run", script, cwd=tmp_path, expect=7)
    assert "why it failed" in done.stdout
    assert "exit code 7" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.py"], "nowhere.py"),
        (["run", MINIMAL.parent], "is a folder"),
        (["run", MINIMAL, "--manager", "magic"], "There is no manager 'magic'"),
        (["run", MINIMAL, "--manager", "schedule:magic"], "There is no schedule 'magic'"),
        (["run", MINIMAL, "--policy", "nowhere.toml"], "cannot be read"),
        (["audit", "2020"], "No run in"),
        (["replay", "latest", "--train", "--watch"], "Choose one"),
        (["compare", MINIMAL, "--seeds", "one"], "--seeds 'one'"),
        (["compare", MINIMAL, "--seeds", "3-1"], "names no seed"),
        (["schema", "/proc/schemas"], "cannot be written"),
        (["attach", "latest"], "has ended"),
    ],
)
def test_mistakes_are_answered_with_the_way_out(runs: Path, arguments: list[str], message: str) -> None:
    code = errors.EXIT_WORKLOAD if arguments[1] in ("nowhere.py", MINIMAL.parent) else errors.EXIT_USAGE
    assert message in trainmgr(*arguments, cwd=runs, expect=code).stderr


def test_a_policy_with_a_typing_mistake_names_the_key(runs: Path) -> None:
    (runs / "bad.toml").write_text("[limits]\nclipp = true\n")
    done = trainmgr("run", MINIMAL, "--policy", "bad.toml", cwd=runs, expect=errors.EXIT_USAGE)
    assert "limits.clipp" in done.stderr


def test_a_policy_for_another_workload_ends_the_run(runs: Path) -> None:
    (runs / "other.toml").write_text("[parameters.temperature]\nhigh = 1.0\n")
    done = trainmgr(
        "run", MINIMAL, "--policy", "other.toml", "--runs-dir", "elsewhere", cwd=runs, expect=errors.EXIT_USAGE
    )
    assert "no such parameter" in done.stderr
    assert "It has: lr" in done.stderr


def test_a_script_that_reports_nothing_was_not_supervised(runs: Path) -> None:
    (runs / "silent.py").write_text("print('training')\n")
    done = trainmgr("run", "silent.py", "--runs-dir", "elsewhere", cwd=runs, expect=errors.EXIT_WORKLOAD)
    assert "wrote no telemetry" in done.stdout
    assert "Next:" not in done.stdout  # there is nothing to look at


def test_a_changed_control_file_does_not_hold(runs: Path, tmp_path: Path) -> None:
    (run,) = (runs / "runs").iterdir()
    copy = shutil.copytree(run, tmp_path / run.name)
    (copy / "control.json").write_text('{"lr": 3}')
    assert "control.json" in trainmgr("audit", copy, cwd=runs, expect=errors.EXIT_FAILED).stdout


def test_the_documented_policy_is_a_policy(runs: Path) -> None:
    text = trainmgr("policy", cwd=runs).stdout
    assert tomllib.loads(text)["limits"]["clip"] is False


def test_schemas_are_written(tmp_path: Path) -> None:
    trainmgr("schema", "out", cwd=tmp_path)
    assert (tmp_path / "out" / "telemetry.json").is_file()


def test_check_passes_on_the_minimal_workload(tmp_path: Path) -> None:
    assert "keeps to the protocol" in trainmgr("check", MINIMAL, cwd=tmp_path).stdout


def test_compare_prints_a_table_and_reuses_what_is_there(tmp_path: Path) -> None:
    arguments = ["compare", MINIMAL, "--managers", "none,rules", "--seeds", "1,2", "--jobs", "2"]
    first = trainmgr(*arguments, cwd=tmp_path)
    assert "| manager | runs | val_loss | best val_loss | changes | seconds |" in first.stdout
    assert "| none | 2 |" in first.stdout
    second = trainmgr(*arguments, cwd=tmp_path)
    assert second.stderr.count("reused") == 4
    assert first.stdout == second.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    text = get_command(cli.app).commands[command].help or ""  # type: ignore[attr-defined]
    assert "Example" in text
    assert f"`trainmgr {command}" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"trainmgr {command}" in (ROOT / "README.md").read_text()


def test_every_command_line_of_the_readme_parses() -> None:
    """Names of commands and options, as typed in the README's code blocks."""
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    typed = [line.split() for line in lines if line.startswith("trainmgr ")]
    assert typed
    for words in typed:
        command = get_command(cli.app).commands[words[1]]  # type: ignore[attr-defined]
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        ours = words[2 : words.index("--")] if "--" in words else words[2:]
        assert {word for word in ours if word.startswith("-")} <= known, words


def test_the_version() -> None:
    done = subprocess.run([sys.executable, "-m", "trainmgr", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"trainmgr \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--stall-timeout", "-1"], "--stall-timeout must be greater than 0 (found -1.0)"),
        (["--stall-timeout", "nan"], "--stall-timeout must be"),
        (["--stall-timeout", "inf"], "--stall-timeout must be"),
        (["--restarts", "9" * 20], "--restarts must be at most"),
        (["--seed", "9" * 20], "--seed"),
    ],
)
def test_a_flag_is_refused_that_no_log_could_hold(tmp_path: Path, flags: list[str], said: str) -> None:
    """What is not a value of the policy would make the first line of the log one that nobody can read."""
    done = trainmgr("run", MINIMAL, "-q", *flags, cwd=tmp_path, expect=2)
    assert said in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_name_that_is_too_long_for_a_folder_is_cut(tmp_path: Path) -> None:
    script = tmp_path / f"{'long' * 60}.py"
    script.write_text("")
    trainmgr("run", script, "-q", "--manager", "none", cwd=tmp_path, expect=errors.EXIT_WORKLOAD)
    (run,) = (tmp_path / "runs").iterdir()
    assert "longlong" in run.name
    assert run.name[:20] in trainmgr("runs", cwd=tmp_path).stdout


INTERRUPTED = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "trainmgr.%s":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from trainmgr.__main__ import main
sys.argv[1:] = ["runs"]
main()
"""


@pytest.mark.parametrize("name", ["cli", "base.paths"])
def test_ctrl_c_while_the_command_is_being_imported_ends_it_without_a_word(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED % name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
