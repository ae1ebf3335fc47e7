"""What is printed harms nobody: not the run when nobody reads it, and not the exit code when it cannot be written."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from trainmgr.base import errors
from trainmgr.base.paths import RunPaths, list_runs
from trainmgr.contract import events
from trainmgr.log import audit, history
from trainmgr.terminal import output
from trainmgr.terminal.markup import Grid, marked, quoted
from trainmgr.testing import TIME_LIMIT, wait_for, write_child

PIPE_SIZE = 1031  # F_SETPIPE_SZ
WORDS = "what the script says, → and →, again and again " * 4
TALKATIVE = f"""
recipe = {{"lr": 0.1}}
with Workload("talkative", objective="loss", total_steps=1000, metrics={{"loss": "made up"}}) as w:
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.01, high=1.0)
    for step in w.steps():
        w.log("info", {WORDS!r})
        if step % 100 == 0:
            w.eval(step, {{"loss": 1.0}})
sys.exit(7)
"""


def command(*arguments: str | Path, patch: str = "") -> list[str]:
    before = "from trainmgr import cli; from trainmgr.terminal import consoles, output, screen, tables"
    start = ["-c", f"{before}\n{patch}\ncli.main()"] if patch else ["-m", "trainmgr"]
    return [sys.executable, *start, *map(str, arguments)]


@pytest.fixture
def talkative(tmp_path: Path) -> list[str | Path]:
    """How a run is started that prints more than a pipe takes, and ends with 7."""
    return ["run", write_child(tmp_path, TALKATIVE), "-m", "none", "--runs-dir", tmp_path / "runs"]


def ended(folder: Path) -> RunPaths:
    """The run, when its end is on record."""

    def closed() -> bool:
        found = [history.run_file(paths) for paths in list_runs(folder / "runs")]
        return bool(found) and found[0] is not None and found[0].closing is not None

    wait_for(closed, "the end of the run")
    return list_runs(folder / "runs")[0]


# ---- a reader that does not read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_a_reader_that_does_not_read_holds_nothing_up_and_misses_nothing_when_it_reads_at_last(
    tmp_path: Path, talkative: list[str | Path], stream: str
) -> None:
    """A paused pager, a terminal after Ctrl-S."""
    both: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: subprocess.PIPE}
    more = ["--json", "--manager", "schedule:cosine"] if stream == "stdout" else []
    with subprocess.Popen(command(*talkative, *more), cwd=tmp_path, **both) as process:
        reader = getattr(process, stream)
        if stream == "stdout":
            fcntl.fcntl(reader.fileno(), PIPE_SIZE, 4096)
        paths = ended(tmp_path)
        said = reader.read().decode()
    assert process.returncode == 7
    if stream == "stdout":
        assert [json.loads(line) for line in said.splitlines()] == [e.values() for e in audit.read(paths.audit)]
    else:
        assert said.count(WORDS.strip()) == 1000


ENDLESS = f"""
w = Workload("endless", objective="loss", total_steps=10**8, metrics={{"loss": "made up"}})
w.command("stop", lambda to: None)
with w:
    for step in w.steps():
        w.step(step, {{"loss": 1.0}})
        w.log("info", {WORDS!r})
        time.sleep(0.0005)
sys.exit(7)
"""


def test_sigterm_is_obeyed_while_nobody_reads(tmp_path: Path) -> None:
    script = write_child(tmp_path, ENDLESS)
    words = command("run", script, "-m", "none", "--runs-dir", tmp_path / "runs")
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        telemetry = "runs/*/telemetry.jsonl"
        wait_for(lambda: any(file.stat().st_size > 400_000 for file in tmp_path.glob(telemetry)), "many lines")
        run.send_signal(signal.SIGTERM)
        paths = ended(tmp_path)
        assert run.stderr is not None
        assert run.stderr.read()
    assert run.returncode == errors.EXIT_INTERRUPTED
    file = history.run_file(paths)
    assert file is not None
    assert file.closing is not None
    assert (file.closing.status, file.closing.exit_code) == ("interrupted", 7)


def test_no_signal_changes_the_exit_code_of_a_run_that_is_over(tmp_path: Path, talkative: list[str | Path]) -> None:
    """Not even while it waits for somebody to read its last lines: that wait is what the signal ends."""
    with subprocess.Popen(command(*talkative), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        ended(tmp_path)
        while run.poll() is None:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                run.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):  # without a pause it would do nothing but hear signals
                run.wait(0.002)
        assert run.returncode == 7


def test_what_nobody_took_in_time_is_counted(tmp_path: Path, talkative: list[str | Path]) -> None:
    patch = "consoles.JSON_LIMIT = 2000; output.PATIENCE = 0.2"
    words = command(*talkative, "--json", "--manager", "schedule:cosine", patch=patch)
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        fcntl.fcntl(process.stdout.fileno(), PIPE_SIZE, 4096)
        assert process.wait(TIME_LIMIT) == 7
        said, told = process.stdout.read(), process.stderr.read().decode()
    (paths,) = list_runs(tmp_path / "runs")
    lost = len([*audit.read(paths.audit)]) - said.count(b"\n")
    assert lost > 1
    assert f"{lost} events were not read from stdout in time; audit.jsonl has all of them" in told


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, Any]]:
    """A pipe of one page: the end to read from, and the other as a stream."""
    read, write = os.pipe()
    fcntl.fcntl(read, PIPE_SIZE, 4096)
    with os.fdopen(write, "w", encoding="utf-8") as stream:
        yield read, stream
    os.close(read)


def everything(read: int, until: str) -> str:
    text = b""
    while not text.endswith(until.encode()):
        assert select.select([read], [], [], TIME_LIMIT)[0]
        text += os.read(read, 65536)
    return text.decode()


def test_lines_that_were_dropped_are_told_as_soon_as_there_is_room() -> None:
    with pipe() as (read, stream):
        printer = output.Printer(stream, limit=10_000, notice="({} lines were not shown)\n")
        for number in range(1000):
            printer.write(f"line {number:>4} {'x' * 80}\n")
        assert printer.behind
        lost = printer.missing
        assert 800 < lost < 1000
        notice = f"({lost} lines were not shown)\n"
        said = everything(read, notice).splitlines()
        assert len(said) == 1001 - lost
        assert said[0].startswith("line    0 ")
        wait_for(lambda: not printer.behind)
        printer.write("and on\n")
        printer.close()
        printer.write("too late\n")
        assert os.read(read, 100) == b"and on\n"
        assert printer.missing == lost


def test_a_reader_that_is_gone_costs_what_it_would_have_read() -> None:
    with pipe() as (read, stream):
        os.set_blocking(stream.fileno(), False)  # as some who share a terminal leave it
        printer = output.Printer(stream)
        printer.write("x" * 10_000)
        assert len(os.read(read, 4096)) == 4096
    printer.write("y")
    printer.close()
    assert not printer.behind


# ---- a reader that is gone, a full disk, no stream at all --------------------------------------------------------


@pytest.mark.parametrize(
    ("redirection", "json"),
    [
        (">&-", False), (">&- 2>&- <&-", True), ("> /dev/full 2>&1", False), ("> /dev/full", True),
        ("2>&1 | true", False), ("2> /dev/null | head -n 1 > /dev/null", True),
    ],
)  # fmt: skip
def test_an_exit_code_is_that_of_the_run_whatever_becomes_of_what_is_printed(
    tmp_path: Path, talkative: list[str | Path], redirection: str, json: bool
) -> None:
    words = " ".join(command(*talkative, *["--json"] * json))
    before, bar, after = redirection.partition("|")
    script = f"{{ {words} {before}; echo $? > code; }} {bar} {after}"
    done = subprocess.run(["/bin/sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=TIME_LIMIT,
                          check=False)  # fmt: skip
    assert (tmp_path / "code").read_text() == "7\n", done.stderr
    assert "Traceback" not in done.stderr
    assert [e.data for e in audit.read(ended(tmp_path).audit) if isinstance(e.data, events.Failure)] == []


def test_a_disk_that_is_full_is_said_where_the_output_was_all_that_was_asked_for(tmp_path: Path) -> None:
    script = " ".join(command("policy")) + " > /dev/full"
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    said = "trainmgr: stdout cannot be written: No space left on device.\n"
    assert (done.returncode, done.stderr) == (errors.EXIT_FAILED, said)


# ---- other alphabets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("character", "shown"),
    [("→", "->"), ("⣿", "."), ("é", "\\u00e9"), ("\U0001f680", "\\ud83d\\ude80"), ("\udcff", "\\udcff")],
)
def test_what_a_stream_has_no_sign_for_is_spelled_and_json_stays_json(character: str, shown: str) -> None:
    assert character.encode("ascii", output.ERRORS).decode() == shown
    if shown.startswith("\\"):
        assert json.loads(f'"{shown}"') == character


ASCII = {"PYTHONIOENCODING": "ascii"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("settings", [ASCII, LATIN, PLAIN])
def test_every_command_works_in_a_terminal_that_knows_few_characters(
    tmp_path: Path, settings: dict[str, str]
) -> None:  # fmt: skip
    script = write_child(
        tmp_path, TALKATIVE.replace("1000", "200").replace("sys.exit(7)", "sys.exit(len(sys.argv) - 1)")
    )
    runs = ["--runs-dir", str(tmp_path / "runs")]
    environment = {**os.environ, "COLUMNS": "100"}
    environment.pop("PYTHONIOENCODING", None)

    def said(*arguments: str | Path, code: int = 0, more: list[str] = runs) -> str:
        done = subprocess.run(command(*arguments, *more), cwd=tmp_path, env={**environment, **settings},
                              capture_output=True, timeout=TIME_LIMIT, check=False)  # fmt: skip
        text = (done.stdout + done.stderr).decode("latin-1" if settings is LATIN else "ascii")
        assert done.returncode == code, text
        assert "Traceback" not in text
        return text

    assert "-> and ->" in said("run", script, "-m", "none", code=2, more=[*runs, "--", "a", "b"])
    assert "+-" in said("show")
    if settings is not ASCII:
        return
    assert said("run", script, "-m", "none", "--json")
    assert json.loads(said("audit", "--json"))
    for name in ("replay", "runs"):
        assert said(name)
    assert said("compare", script, "--managers", "none", "--seeds", "1")
    assert "keeps to the protocol" in said("check", script, more=[])
    assert "Usage" in said("run", "--help", more=[])


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "bad"], ["check", "bad"], ["compare", "bad"], ["run", "child.py", "--", "bad"],
        ["compare", "child.py", "--", "bad"], ["compare", "child.py", "--managers", "bad"],
        ["run", "child.py", "--policy", "bad"], ["run", "child.py", "-m", "bad"], ["run", "child.py", "-m", "llm:bad"],
        ["show", "bad"], ["attach", "bad"], ["compare", "bad.json"], ["compare", "bad.toml"],
    ],
)  # fmt: skip
def test_a_name_that_is_not_utf_8_is_refused_in_words_before_anything_starts(
    tmp_path: Path, arguments: list[str]
) -> None:  # fmt: skip
    write_child(tmp_path, TALKATIVE)
    os.link(tmp_path / "child.py", os.fsencode(tmp_path) + b"/b\xffd")
    done = subprocess.run(
        [sys.executable, "-m", "trainmgr", *(word.encode().replace(b"bad", b"b\xffd") for word in arguments)],
        cwd=tmp_path, env={**os.environ, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, capture_output=True, text=True,
        timeout=TIME_LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode in (errors.EXIT_USAGE, errors.EXIT_WORKLOAD), done.stderr
    assert "Traceback" not in done.stderr
    assert "b\\udcffd" in done.stderr or "b\ufffdd" in done.stderr or arguments[0] in ("show", "attach")
    assert not (tmp_path / "runs").exists()


def test_runs_can_be_kept_in_a_folder_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    write_child(tmp_path, TALKATIVE.replace("sys.exit(7)", ""))
    runs = ["--runs-dir", os.fsencode(tmp_path) + b"/r\xffns"]
    for words in (["run", "child.py", "-m", "none"], ["show", "--json"], ["audit"], ["runs"]):
        done = subprocess.run([sys.executable, "-m", "trainmgr", *words, *runs], cwd=tmp_path, capture_output=True,
                              text=True, timeout=TIME_LIMIT, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


# ---- terminals ---------------------------------------------------------------------------------------------------


def in_terminal(
    arguments: list[str | Path], folder: Path, size: tuple[int, int], patch: str = "", after: int = 0
) -> int:
    """Its exit code, in a terminal of that size (rows, columns), which goes away after so many bytes, if any."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, size)
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        command(*arguments, patch=patch), cwd=folder, stdin=slave, stdout=slave, stderr=slave,
        env={**environment, "TERM": "xterm"}, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    read = 0
    with contextlib.suppress(OSError):  # EIO: it has ended
        while not after or read < after:
            read += len(os.read(master, 65536))
    os.close(master)
    return process.wait(TIME_LIMIT)


@pytest.mark.parametrize(("size", "after"), [((0, 0), 0), ((1, 1), 0), ((24, 80), 500)])
def test_a_terminal_without_a_size_or_that_goes_away_costs_the_picture(
    tmp_path: Path, talkative: list[str | Path], size: tuple[int, int], after: int
) -> None:
    assert in_terminal(talkative, tmp_path, size, after=after) == 7
    paths = ended(tmp_path)
    assert [e.data for e in audit.read(paths.audit) if isinstance(e.data, events.Failure)] == []


def test_a_display_that_raises_costs_the_picture_and_says_so_on_record(
    tmp_path: Path, talkative: list[str | Path]
) -> None:  # fmt: skip
    patch = "def fail(*_, **__): raise ZeroDivisionError\nscreen.render = tables.print_closing = fail"
    assert in_terminal(talkative, tmp_path, (24, 80), patch) == 7
    failures = [e.data for e in audit.read(ended(tmp_path).audit) if isinstance(e.data, events.Failure)]
    assert [(f.where, f.message) for f in failures] == [("display", "ZeroDivisionError: nothing more is shown")]


@pytest.mark.parametrize("width", [30, 60, 200])
@pytest.mark.parametrize("color", [False, True])
def test_a_table_is_the_same_whoever_lays_it_out(width: int, color: bool) -> None:
    """Ours, which is quick, and that of rich, which folds what is too wide."""
    grid, other = Grid("run", "a", "[x]"), Table(box=None, padding=(0, 2), header_style="dim")
    for column in grid.columns:
        other.add_column(column.header, overflow="fold")
    rows = [
        ("[red]died[/]", quoted("[/x]"), "漢字 5"),
        ("ab",),
        ("a" * 20, "", "[bold]7[/] steps"),
        ("two\nlines", "1"),
    ]
    for row in rows[: 3 if width == 200 else 4]:
        grid.row(*row)
        other.add_row(*map(marked, row))
    printed = []
    for table in (grid, other):
        console = Console(width=width, file=io.StringIO(), color_system="truecolor" if color else None,
                          force_terminal=color)  # fmt: skip
        console.print(table)
        printed.append(console.file.getvalue())
    plain = [re.sub("\x1b\\[[0-9;]*m", "", text) for text in printed]
    assert plain[0] == plain[1]
    assert color == ("\x1b" in printed[0])
