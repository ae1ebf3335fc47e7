"""What a command may import before it does anything: that is what its start costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainmgr.testing import PYTHON, TIME_LIMIT

EXAMPLE = next((Path(__file__).parent / "example").iterdir())
STARTED = """
import sys
before = set(sys.modules)  # what the environment imports into every Python
import atexit, json

def tell():
    new = sorted(set(sys.modules) - before)
    print(json.dumps([name for name in new if getattr(sys.modules[name], "__spec__", None)]), file=sys.stderr)

atexit.register(tell)
sys.argv[0] = "trainmgr"
from trainmgr.__main__ import main
main()
"""

EVERY = {  # of trainmgr: what every command imports
    *("__main__", "cli", "base", "base.concealment", "base.errors", "base.paths", "managers", "managers.prompts"),
    *("terminal", "terminal.output", "terminal.tab"),
}
LIST = {"base.files", "base.foreign", "contract", "contract.summary", "terminal.consoles", "terminal.listing",
        "terminal.markup", "terminal.words"}  # fmt: skip
# Of others, at most: other versions of typer, rich and pydantic take less.
TYPER = {"typer", "annotated_doc", "click", "shellingham", "typing_extensions"}
PARSING = {*TYPER, "pydantic", "pydantic_core", "annotated_types", "typing_inspection"}  # typer itself, from 0.29 on
RICH = {"rich", "pygments"}
HELP = {*RICH, "markdown_it", "mdurl"}
TAB = {"_TRAINMGR_COMPLETE": "complete_bash", "COMP_WORDS": "trainmgr\nshow\n", "COMP_CWORD": "2"}


def imported(*arguments: str, **environment: str) -> tuple[set[str], set[str], str]:
    """The modules of trainmgr that a command imports, the packages of others, and what it printed."""
    done = subprocess.run([PYTHON, "-c", STARTED, *arguments], capture_output=True, text=True, timeout=TIME_LIMIT,
                          check=False, env={**os.environ, **environment})  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stderr.splitlines()[-1])
    ours = {name.removeprefix("trainmgr.") for name in names if name.startswith("trainmgr.")}
    heads = {name.partition(".")[0] for name in names if not name.startswith(("trainmgr", "_"))}
    return ours, heads - sys.stdlib_module_names, done.stdout


@pytest.mark.parametrize(
    ("arguments", "parser"), [(["--help"], TYPER), (["run", "--help"], PARSING), (["compare", "--help"], PARSING)]
)
def test_help_imports_what_draws_it(arguments: list[str], parser: set[str]) -> None:
    ours, others, said = imported(*arguments)
    assert "Usage" in said
    assert ours == EVERY
    assert others <= parser | HELP


def test_a_tab_imports_what_parses_a_command_line(tmp_path: Path) -> None:
    (tmp_path / EXAMPLE.name).mkdir()
    ours, others, said = imported(**TAB, TRAINMGR_RUNS_DIR=str(tmp_path))
    assert said.split() == ["latest", EXAMPLE.name]
    assert ours == EVERY
    assert others <= PARSING


def test_a_list_of_runs_imports_no_type_of_a_run(tmp_path: Path) -> None:
    died = shutil.copytree(EXAMPLE, tmp_path / EXAMPLE.name.replace("minimal", "died"))
    (died / "run.json").write_text(json.dumps({**json.loads((died / "run.json").read_text()), "closing": None}))
    shutil.copytree(EXAMPLE, tmp_path / EXAMPLE.name)
    ours, others, said = imported("runs", "--runs-dir", str(tmp_path))
    assert "supervisor died" in said
    assert ours == EVERY | LIST
    assert others <= PARSING | RICH
