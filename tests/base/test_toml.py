"""Files that people hand over: whatever is in them, a command answers at once, with little memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from pathlib import Path

import hostile
import pytest

from trainmgr.base import toml
from trainmgr.base.errors import PolicyError, UserError
from trainmgr.comparison import results
from trainmgr.testing import PYTHON, TIME_LIMIT

MEMORY = 2 << 30
N = 100_000
BOMBS = {
    "a long key": "a." * (N // 2) + "a = 1",
    "a long header": "[" + "a." * (N // 2) + "a]",
    "a long key inside": "x = {" + "a." * (N // 2) + "a = 1}",
    "long keys in many lines": "".join(f"b{i}.{'a.' * 198}a = 1\n" for i in range(600)),
    "deep lists": "a = " + "[" * N,
    "deep tables": "a = " + "{a = " * N,
    "a long number": "a = " + "9" * N,
    "too many bytes": "# " + "x" * (1 << 20),
    "no UTF-8": "a = '\udcff'",
    "zeros": "\0" * 1000,
}


def answered(folder: Path, *arguments: str) -> str:
    """What a command says that refuses: in a process with little memory, and not for ever."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    done = subprocess.run(
        [PYTHON, "-m", "trainmgr", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
        preexec_fn=limit,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.startswith("trainmgr: ")
    assert len(done.stderr) < 2000
    return done.stderr


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
def test_a_toml_file_that_would_take_all_memory_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.py").write_text("")
    bomb = tmp_path / "bomb.toml"
    bomb.write_bytes(content.encode(errors="surrogateescape"))
    assert "policy file" in answered(tmp_path, "run", "x.py", "-m", "none", "--policy", "bomb.toml")
    if content[:2] != "b0":  # which is TOML, as large as it may be
        with pytest.raises(UserError, match="experiment file"):
            toml.load(bomb, "experiment file")


@pytest.mark.parametrize("kind", ["FIFO", "device", "directory", "nothing", "too long a name"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.py").write_text("")
    for ending, command in ((".toml", ("run", "x.py", "-m", "none", "--policy")), (".json", ("compare",))):
        path = tmp_path / f"{kind}{len(command)}{ending}"
        match kind:
            case "FIFO":
                os.mkfifo(path)
            case "device":
                if len(command) > 1:
                    path = Path("/dev/zero")
                else:
                    path.symlink_to("/dev/zero")
            case "directory":
                path.mkdir()
            case "too long a name":
                path = path.with_name("x" * 300 + ending)
        said = answered(tmp_path, *command, str(path))
        assert "cannot be read" in said or "too long" in said


def test_a_policy_of_a_variant_cannot_have_a_name_that_no_file_has(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("")
    (tmp_path / "e.toml").write_text('script = "x.py"\npolicy = "a\\u0000b"\n')
    assert "no file has such a name" in answered(tmp_path, "compare", "e.toml")


def test_results_beyond_any_size_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "r.json").open("wb") as file:
        file.truncate(1 << 30)
    assert f"more than {results.LARGEST:,} bytes" in answered(tmp_path, "compare", "r.json")


@pytest.mark.parametrize("fill", [("seeds", '"",'), ("runs", "{},"), ("managers", "7,"), ("arguments", "[],")])
def test_results_full_of_mistakes_are_refused_at_the_first(tmp_path: Path, fill: tuple[str, str]) -> None:
    name, item = fill
    whole = json.loads(results.render(hostile.comparison()))
    whole["cases"][0][name] = "HERE"
    items = item * ((results.LARGEST - 50_000) // len(item))
    (tmp_path / "r.json").write_text(json.dumps(whole).replace('"HERE"', f"[{items[:-1]}]"))
    assert f"cases.0.{name}.0" in answered(tmp_path, "compare", "r.json")


def test_results_without_the_arm_to_compare_with_say_so(tmp_path: Path) -> None:
    whole = json.loads(results.render(hostile.comparison()))
    whole["cases"][0]["reference"] = "another"
    (tmp_path / "r.json").write_text(json.dumps(whole))
    assert "has no manager 'another'" in answered(tmp_path, "compare", "r.json").replace("results have", "results has")


def test_a_line_with_a_few_dots_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(f'a = "{"." * toml.DOTS}"\n')
    assert toml.load(path, "policy file") == {"a": "." * toml.DOTS}
    path.write_text(f'\na = "{"." * toml.DOTS}."\n')
    with pytest.raises(PolicyError, match=r"line 2: it has more than 200 dots\. Break the line"):
        toml.load(path, "policy file", PolicyError)
