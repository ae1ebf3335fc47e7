"""What run.json says of the place and the code that a run was started from."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from trainmgr.base.errors import WorkloadError
from trainmgr.base.process import clean_environment
from trainmgr.base.wire import MAX_NAME
from trainmgr.contract.run_file import Git
from trainmgr.sources.reading import Reading

PACKAGES = ("trainmgr", "torch", "numpy", "tokenizers", "gymnasium", "mujoco", "pydantic", "openai", "xllamacpp")
PASSIVE = ("-c", "core.fsmonitor=", "-c", f"core.hooksPath={os.devnull}")  # a program, and a folder of programs
EMPTY = "TRAINMGR_EMPTY"  # a variable for git: only from one can a setting be taken whose name holds a "="
IDLE = {
    EMPTY: "",
    "GIT_OPTIONAL_LOCKS": "0",  # no index is written, so that no hook is due
    "GIT_NO_LAZY_FETCH": "1",  # what a partial clone lacks is not fetched,
    "GIT_ALLOW_PROTOCOL": "",  # by a git that does not know this variable either
}


def command_of(script: Path, arguments: list[str]) -> list[str]:
    """How a script is started: Python files with this interpreter, anything executable by itself.

    Raises WorkloadError for what is neither, or cannot be recorded.
    """
    recordable(str(script), *arguments)
    if script.is_dir():
        raise WorkloadError(f"{script} is a folder. Name the training script in it.")
    if not script.is_file():
        raise WorkloadError(f"There is no file {script}. Name the training script to run.")
    if script.suffix == ".py":
        return [sys.executable, str(script), *arguments]
    if os.access(script, os.X_OK):
        return [str(script.resolve()), *arguments]
    raise WorkloadError(f"{script} is neither a .py file nor executable. Make it executable with chmod +x.")


def watching(command: list[str], reading: Reading, name: str, grace: float) -> list[str]:
    """What is started in place of ``command``, so that what it prints or writes is reported. Nothing that lies in the
    working directory can come before the modules of Python there (-P).

    Raises WorkloadError for what cannot be recorded.
    """
    recordable(*reading.options())
    ours = [f"--name={name[:MAX_NAME]}", f"--grace={grace:g}", *reading.options()]
    return [sys.executable, "-P", "-m", "trainmgr.sources", *ours, "--", *command]


def recordable(*names: str) -> None:
    """Raises WorkloadError for a name that is not UTF-8: the files of a run are JSON, which has no others."""
    for name in names:
        if not name.isascii() and name.encode(errors="replace").decode() != name:
            raise WorkloadError(f"{name!r} is not UTF-8, and could not be recorded. Give it another name, or a link.")


def git_of(script: Path, secrets: Sequence[str] = ()) -> Git | None:
    """The git revision of the script's folder, and whether its tree is dirty; None outside a repository.

    Dirty is also what git cannot tell of: too slow, too old, damaged. Nothing that the repository's own configuration
    names is run, and git sees no secret: neither the manager's nor what the variables ``secrets`` hold. Changes within
    submodules do not count.
    """
    revision = _git(script.parent, secrets, "rev-parse", "HEAD")
    if revision is None:
        return None
    off = [f"--config-env={name}={EMPTY}" for name in _filters(script.parent, secrets)]
    changes = _git(script.parent, secrets, *off, "status", "--porcelain", "--ignore-submodules=dirty")
    return Git(revision=revision, dirty=changes != "")


def _filters(folder: Path, secrets: Sequence[str]) -> list[str]:
    """Settings that switch off the filters (as of git-lfs) which the repository configures, not those of the user:
    without them a large file would count as changed."""
    listed = _git(folder, secrets, "config", "--show-scope", "--name-only", "--get-regexp", r"^filter\.") or ""
    rows = [row.partition("\t") for row in listed.splitlines()]
    names = {name.rpartition(".")[0] for scope, _, name in rows if scope not in ("system", "global", "command")}
    return [f"{name}.{key}" for name in sorted(names) for key in ("clean", "process", "required")]


def _git(folder: Path, secrets: Sequence[str], *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-pager", *PASSIVE, "-C", str(folder), *arguments], capture_output=True, text=True,
            errors="replace", timeout=10, check=False, stdin=subprocess.DEVNULL, env=clean_environment(IDLE, secrets),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def packages() -> dict[str, str]:
    """The versions of PACKAGES that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int]:
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
