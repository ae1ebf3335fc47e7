"""What a command costs before it does anything: processor time, as a multiple of a Python that does nothing.

    python workloads/experiments/start.py [--rounds 9] [--folders 20]

Each round starts each of them once, one after another; "ratio" is the median of processor time (user and system) over
that of ``python -c pass``, so that a machine which does other things, too, changes little. Bytecode is read from files,
as where the package is installed: the first start of each, which writes them, is not counted.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

MINIMAL = Path(__file__).parents[1] / "minimal.py"
TRAINMGR = (str(Path(sys.executable).with_name("trainmgr")),)
Command = tuple[tuple[str, ...], Mapping[str, str]]


def spent(command: Command) -> float:
    """Seconds of processor time; raises CalledProcessError where it fails."""
    words, environment = command
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, env={**os.environ, **environment}, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def folders(runs: Path, count: int) -> None:
    """So many runs, of which the first is real and the others are links to it, by other names."""
    words = (*TRAINMGR, "run", str(MINIMAL), "--manager", "none", "--quiet", "--runs-dir", str(runs))
    subprocess.run(words, capture_output=True, check=True)
    (first,) = runs.iterdir()
    for number in range(count - 1):
        other = first.with_name(f"{first.name[:-4]}{number:04x}")
        if not other.exists():
            other.symlink_to(first)


def tab(words: str, runs: Path) -> Command:
    """What bash runs at a Tab behind these words."""
    return TRAINMGR, {
        "_TRAINMGR_COMPLETE": "complete_bash", "COMP_WORDS": words.replace(" ", "\n"),
        "COMP_CWORD": str(words.count(" ")), "TRAINMGR_RUNS_DIR": str(runs),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folders", type=int, default=20)
    chosen = parser.parse_args(arguments)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as name:
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(name) / "bytecode")
        runs = Path(name) / "runs"
        folders(runs, chosen.folders)
        nothing = "python -c pass"
        commands: dict[str, Command] = {
            nothing: ((sys.executable, "-c", "pass"), {}),
            "import trainmgr.workload": ((sys.executable, "-c", "import trainmgr.workload"), {}),
            "import typer": ((sys.executable, "-c", "import typer"), {}),
            "trainmgr --help": ((*TRAINMGR, "--help"), {}),
            "trainmgr run --help": ((*TRAINMGR, "run", "--help"), {}),
            "Tab after 'trainmgr show '": tab("trainmgr show ", runs),
            f"trainmgr runs ({chosen.folders} folders)": ((*TRAINMGR, "runs", "--runs-dir", str(runs)), {}),
            "trainmgr show": ((*TRAINMGR, "show", "--runs-dir", str(runs)), {}),
        }
        taken: dict[str, list[float]] = {title: [] for title in commands}
        for number in range(chosen.rounds + 1):
            for title, command in commands.items():
                seconds = spent(command)
                if number:
                    taken[title].append(seconds)
    base = statistics.median(taken[nothing])
    print(f"{'':<32}{'CPU seconds':>12}{'ratio':>8}")
    for title, seconds in ((title, statistics.median(each)) for title, each in taken.items()):
        print(f"{title:<32}{seconds:>12.3f}{seconds / base:>8.1f}")


if __name__ == "__main__":
    main()
