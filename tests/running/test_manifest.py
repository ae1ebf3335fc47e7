"""What run.json says of the code, and that asking a stranger's repository runs nothing of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from trainmgr.contract.run_file import Git
from trainmgr.running import manifest

CANARY = "canary-8c1d52e07f3b"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Git with no other settings than those of this folder's .gitconfig."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith(("GIT_", "XDG_CONFIG"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (folder / ".gitconfig").write_text("[user]\nname = a\nemail = a@example.org\n")
    return folder


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path) -> Path:
    """One commit of ``train.py``; the script."""
    folder.mkdir()
    git(folder, "init", "-q")
    script = folder / "train.py"
    script.write_text("print()\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return script


def trap(folder: Path, name: str) -> str:
    """A program that leaves a file with its environment in ``folder``/traps, and passes on what it reads."""
    (folder / "traps").mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\nenv > '{folder}/traps/{name}'\ncase {name} in filter|user) cat;; esac\n")
    path.chmod(0o755)
    return str(path)


def sprung(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "traps").iterdir())


def test_the_revision_and_whether_the_tree_is_dirty(home: Path, tmp_path: Path) -> None:
    assert manifest.git_of(tmp_path / "train.py") is None
    script = repository(tmp_path / "code")
    revision = git(script.parent, "rev-parse", "HEAD")
    assert manifest.git_of(script) == Git(revision=revision, dirty=False)
    script.touch()  # is not a change
    assert manifest.git_of(script) == Git(revision=revision, dirty=False)
    (script.parent / "new.py").write_text("")
    assert manifest.git_of(script) == Git(revision=revision, dirty=True)


def test_a_name_that_is_not_utf8_is_a_name(home: Path, tmp_path: Path) -> None:
    script = repository(tmp_path / "code")
    git(script.parent, "config", "core.quotePath", "false")
    Path(os.fsdecode(os.fsencode(script.parent) + b"/f\xfcr.py")).write_text("")
    found = manifest.git_of(script)
    assert found is not None
    assert found.dirty


def test_nothing_that_a_repository_names_is_run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor of its files, a hook, a filter, a submodule with a monitor, a fetch of what a partial clone lacks."""
    script = repository(tmp_path / "code")
    folder = script.parent
    part = repository(tmp_path / "part").parent
    git(folder, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(part), "part")
    (folder / ".gitattributes").write_text("*.py filter=x.y=z\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "second")
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "post-index-change").symlink_to(trap(tmp_path, "hook"))
    settings = {
        "core.fsmonitor": trap(tmp_path, "monitor"),
        "core.hooksPath": str(hooks),
        "filter.x.y=z.clean": trap(tmp_path, "filter"),
        "filter.x.y=z.required": "true",
    }
    for key, value in settings.items():
        git(folder, "config", key, value)
    git(folder / "part", "config", "core.fsmonitor", trap(tmp_path, "submodule"))
    (folder / "part" / "train.py").write_text("changed\n")
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    script.touch()
    found = manifest.git_of(script)
    assert found is not None
    assert sprung(tmp_path) == []
    assert found == Git(revision=git(folder, "-c", "core.fsmonitor=", "rev-parse", "HEAD"), dirty=False)
    script.touch()
    git(folder, "status", "--porcelain")
    assert sprung(tmp_path) == ["filter", "hook", "monitor", "submodule"]  # they would all have been run


def test_what_a_partial_clone_lacks_is_not_fetched(home: Path, tmp_path: Path) -> None:
    script = repository(tmp_path / "code")
    folder = script.parent
    tree = git(folder, "rev-parse", "HEAD^{tree}")
    (folder / ".git/objects" / tree[:2] / tree[2:]).unlink()
    settings = {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.url": f"ext::{trap(tmp_path, 'fetch')}",
        "remote.origin.promisor": "true",
        "protocol.ext.allow": "always",
    }
    for key, value in settings.items():
        git(folder, "config", key, value)
    found = manifest.git_of(script)
    assert found is not None
    assert found.dirty  # which cannot be told
    assert sprung(tmp_path) == []
    subprocess.run(["git", "-C", str(folder), "status"], check=False, capture_output=True)
    assert sprung(tmp_path) == ["fetch"]


def test_a_filter_of_the_user_is_run_without_the_key(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git-lfs is one: a large file that was only touched is unchanged."""
    git(tmp_path, "config", "--global", "filter.lfs.clean", trap(tmp_path, "user"))
    script = repository(tmp_path / "code")
    (script.parent / ".gitattributes").write_text("*.py filter=lfs\n")
    git(script.parent, "add", ".")
    git(script.parent, "commit", "-q", "-m", "second")
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("HOUSE_KEY", f"{CANARY}-2")
    script.touch()
    found = manifest.git_of(script, ("HOUSE_KEY",))
    assert found is not None
    assert not found.dirty
    assert "HOME=" in (tmp_path / "traps/user").read_text()
    assert CANARY not in (tmp_path / "traps/user").read_text()
