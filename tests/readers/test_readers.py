"""The reading commands on damaged, hostile, large and live run directories: real processes, real files."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trainmgr import managers
from trainmgr.base import errors
from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import plain
from trainmgr.contract import events
from trainmgr.contract.run_file import Manifest, render_run_file
from trainmgr.log import audit
from trainmgr.managers.schedules import SCHEDULES
from trainmgr.readers import proof

(EXAMPLE,) = (Path(__file__).parents[1] / "example").iterdir()


def trainmgr(*arguments: str | Path, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, in which ``before`` runs first."""
    code = f"{before}\nfrom trainmgr.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False,
        stdin=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "300", "NO_COLOR": "1", **environment},
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    """A copy of the committed run."""
    return RunPaths(shutil.copytree(EXAMPLE, tmp_path / "runs" / EXAMPLE.name))


def replaced(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    match kind:
        case "directory":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "nothing":
            path.symlink_to("/nowhere")
        case _:
            with path.open("wb") as file:
                file.truncate(200_000_000)  # no line break anywhere


KINDS = ("directory", "FIFO", "device", "nothing", "endless line")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["telemetry.jsonl", "audit.jsonl", "run.json"])
def test_something_else_in_place_of_a_file_is_said(run: RunPaths, name: str, kind: str) -> None:
    replaced(run.root / name, kind)
    proven = trainmgr("audit", run.root)
    assert proven.returncode == errors.EXIT_FAILED
    assert f"✗ {name}" in proven.stdout
    other = trainmgr("runs", "--runs-dir", run.root.parent) if name == "run.json" else trainmgr("show", run.root)
    assert other.returncode in (errors.EXIT_OK, errors.EXIT_FAILED)
    assert name in other.stdout + other.stderr
    for done in (proven, other):
        assert "Traceback" not in done.stderr
    if kind in ("directory", "FIFO", "device") and name != "run.json":
        assert f"it is a {kind}, not a regular file" in proven.stdout
        assert f"it is a {kind}, not a regular file" in other.stderr


def test_what_is_not_a_control_file_is_a_finding(run: RunPaths) -> None:
    replaced(run.control, "FIFO")
    proven = trainmgr("audit", run.root)
    assert "✗ control.json: cannot be read: it is a FIFO, not a regular file" in proven.stdout


def test_a_log_without_a_lock_and_no_file_is_not_waited_for(run: RunPaths) -> None:
    manifest = json.loads(run.manifest.read_bytes())
    run.manifest.write_text(json.dumps({**manifest, "closing": None}))
    replaced(run.audit, "FIFO")
    done = trainmgr("runs", "--runs-dir", run.root.parent)
    assert (done.returncode, run.id in done.stdout) == (errors.EXIT_OK, True)


@pytest.mark.parametrize("call", ["open", "pread"])
@pytest.mark.parametrize("command", ["show", "audit", "replay"])
def test_a_failed_read_is_said_in_words(run: RunPaths, call: str, command: str) -> None:
    """Whichever of the reads of telemetry it is; the log is read before it."""
    before = f"""
import errno, os
real, names = os.{call}, {{}}
opened = os.open


def fails(first, *rest, **more):
    path = first if "{call}" == "open" else os.readlink(f"/proc/self/fd/{{first}}")
    if str(path).endswith("telemetry.jsonl"):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return real(first, *rest, **more)


os.{call} = fails
"""
    done = trainmgr(command, run.root, before=before)
    assert done.returncode == errors.EXIT_FAILED
    assert "telemetry.jsonl: it cannot be read: Stale file handle" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("keep", [1, 30, 400])
def test_a_torn_last_line_is_no_refusal(run: RunPaths, keep: int) -> None:
    """A crash in the middle of writing; before, every command refused for ever."""
    *whole, last = run.audit.read_bytes().splitlines(keepends=True)
    run.audit.write_bytes(b"".join(whole) + last[:keep])
    manifest = json.loads(run.manifest.read_bytes())
    run.manifest.write_bytes(render_run_file(manifest["manifest"], None))
    proven = trainmgr("audit", run.root)
    assert proven.returncode == errors.EXIT_OK
    size = run.audit.stat().st_size
    assert (
        f"note: audit.jsonl line {len(whole) + 1}: {keep} bytes without a line break (bytes {size - keep} to {size})"
        in proven.stdout
    )
    assert trainmgr("show", run.root).returncode == errors.EXIT_OK
    assert trainmgr("replay", run.root).returncode == errors.EXIT_OK


def test_a_torn_line_behind_the_end_is_a_finding(run: RunPaths) -> None:
    count = len(run.audit.read_bytes().splitlines())
    with run.audit.open("ab") as file:
        file.write(b'{"seq":')
    proven = trainmgr("audit", run.root)
    assert proven.returncode == errors.EXIT_FAILED
    assert f"✗ audit.jsonl line {count + 1}: 7 bytes without a line break, behind the end of the run" in proven.stdout
    assert trainmgr("show", run.root).returncode == errors.EXIT_OK


def test_a_log_is_read_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log, over = audit.Log(path), threading.Event()

    def write() -> None:
        for number in itertools.count():
            log.append(events.Failure(where="x", message="y" * (number % 500)), float(number))
            if over.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        counts = [sum(1 for _ in audit.read(path)) for _ in range(150) if path.exists()]
    finally:
        over.set()
        writer.join()
        log.close()
    assert counts == sorted(counts)
    assert counts[-1] <= sum(1 for _ in audit.read(path))


PEAK = """
import atexit, re, sys
from pathlib import Path
from trainmgr.cli import main
said = sys.stderr
atexit.register(lambda: print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1], file=said))
main()
"""
"""The command line, which tells its peak of memory in the end. That of a finished child (getrusage) would be the one of
the process that it was forked from, if that was larger."""


def test_memory_does_not_grow_with_the_records(tmp_path: Path, manifest: Manifest) -> None:
    """300,000 records took 560 MB when all between two events were kept."""
    run = RunPaths(tmp_path / "run")
    run.root.mkdir()
    log = audit.Log(run.audit)
    log.append(events.RunStarted(manifest=manifest), 0.0)
    log.close()
    run.manifest.write_bytes(render_run_file(plain(manifest), None))
    step = '{"v":1,"seq":%d,"t":1.5,"event":"step","step":%d,"metrics":{"loss":%.6f,"grad_norm":1.5}}\n'
    with run.telemetry.open("w") as file:
        file.write('{"v":1,"seq":0,"t":1.5,"event":"start","workload":"many","pid":1,"total_steps":300000,'
                   '"objective":{"metric":"val_loss","mode":"min"}}\n')  # fmt: skip
        file.writelines(step % (n, n, 1 / n) for n in range(1, 300_001))
    for command in ("show", "audit"):
        call = [sys.executable, "-c", PEAK, command, str(run.root)]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == errors.EXIT_OK
        assert "300,000" in done.stdout or "300001 telemetry records" in done.stdout
        assert int(done.stderr.split()[-1]) < 150 * 1024


def test_an_audit_of_garbage_lists_the_first_of_it(tmp_path: Path, run: RunPaths) -> None:
    whole = run.telemetry.read_bytes().splitlines(keepends=True)
    run.telemetry.write_bytes(b"".join(b"garbage\n" + line for line in whole * 2))
    run.audit.write_bytes(run.audit.read_bytes().splitlines(keepends=True)[0])
    found = proof.prove(run)
    assert len(whole) * 2 > proof.FINDINGS == len(found.findings) - 1
    assert str(found.findings[-1]) == "and more: only the first 1000 findings are listed"


# -- completion --------------------------------------------------------------------------------------------------------


def offered(folder: Path, *words: str, **environment: str) -> list[str]:
    """What a Tab behind these words offers in a real bash, which breaks them at colons."""
    (folder / "trainmgr").write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'trainmgr'\nfrom trainmgr.cli import main\nmain()\n"
    )
    (folder / "trainmgr").chmod(0o700)
    broken = [part for word in words for part in word.replace(":", "\n:\n").split("\n") if part or not word]
    listed = " ".join(f"'{word}'" for word in broken)
    script = f"""
complete_trainmgr() {{
    local IFS=$'\\n'
    COMPREPLY=( $( env COMP_WORDS="${{COMP_WORDS[*]}}" COMP_CWORD=$COMP_CWORD _TRAINMGR_COMPLETE=complete_bash $1 ) )
}}
COMP_WORDS=({listed}); COMP_CWORD={len(broken) - 1}
complete_trainmgr trainmgr
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True, cwd=folder,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment},
    )  # fmt: skip
    assert not done.stderr
    return done.stdout.split()


def test_a_tab_knows_the_runs_and_the_managers(run: RunPaths) -> None:
    folder = run.root.parents[1]
    second = RunPaths(shutil.copytree(run.root, run.root.with_name("20991231-000000-other-0000")))
    for command in ("show", "audit", "attach", "replay"):
        assert offered(folder, "trainmgr", command, "") == ["latest", second.id, run.id]
    assert offered(folder, "trainmgr", "show", "2099") == [second.id]
    assert offered(folder, "trainmgr", "show", "--runs-dir", "elsewhere", "") == ["latest"]
    elsewhere = folder / "elsewhere"
    run.root.parent.rename(elsewhere)
    assert offered(folder, "trainmgr", "show", "") == ["latest"]
    assert offered(folder, "trainmgr", "show", "--runs-dir", str(elsewhere), "2099") == [second.id]
    assert offered(folder, "trainmgr", "show", "2099", TRAINMGR_RUNS_DIR=str(elsewhere)) == [second.id]
    assert offered(folder, "trainmgr", "run", "x.py", "--manager", "r") == ["rules", "replay:", "random"]
    assert offered(folder, "trainmgr", "replay", "latest", "-m", "schedule:c") == ["cosine"]
    environment = {"TRAINMGR_RUNS_DIR": str(elsewhere)}
    assert offered(folder, "trainmgr", "run", "x.py", "--manager", "replay:2099", **environment) == [second.id]


def test_the_names_of_the_managers_are_those_that_there_are() -> None:
    assert [n.partition(":")[2] for n in managers.NAMES if n.startswith("schedule:")] == list(SCHEDULES)
