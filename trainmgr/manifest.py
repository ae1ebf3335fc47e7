"""What run.json says of the place and the code that a run was started from."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from trainmgr.errors import WorkloadError
from trainmgr.events import Git

PACKAGES = ("trainmgr", "torch", "numpy", "tokenizers", "gymnasium", "mujoco", "pydantic", "openai", "xllamacpp")


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


def recordable(*names: str) -> None:
    """Raises WorkloadError for a name that is not UTF-8: the files of a run are JSON, which has no others."""
    for name in names:
        if not name.isascii() and name.encode(errors="replace").decode() != name:
            raise WorkloadError(f"{name!r} is not UTF-8, and could not be recorded. Give it another name, or a link.")


def git_of(script: Path) -> Git | None:
    """The git revision of the script's folder, and whether its tree is dirty; None outside a repository."""
    revision = _git(script.parent, "rev-parse", "HEAD")
    if revision is None:
        return None
    return Git(revision=revision, dirty=bool(_git(script.parent, "status", "--porcelain")))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
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
