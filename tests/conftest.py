"""What several test modules need."""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
from factories import profiles
from factories.tables import ROW, Row
from hypothesis import settings

from trainmgr.contract.policy import Policy
from trainmgr.contract.run_file import EDITION, Manifest
from trainmgr.workload import Workload, surroundings

CORE = (
    "test_imports.py", "base/test_files.py", "base/test_paths.py", "base/test_wire.py", "contract",
    "sources/test_following.py", "sources/test_pattern.py", "sources/test_options.py",
    "state", "deciding", "log", "managers/test_adversaries.py", "managers/test_answer.py",
    "managers/test_completion.py", "managers/test_exploration.py", "managers/test_prompt.py",
    "managers/test_remedies.py", "managers/test_rules.py", "managers/test_schedules.py", "readers/test_example.py",
    "terminal/test_screen.py", "workload/test_control_file.py", "workload/test_reports.py",
    "workloads/test_minimal.py",
)  # fmt: skip
"""What ``--core`` runs: folds, guard, probation, rules, prompts, readers, a command line, and a run of the minimal
workload; but for what is marked ``slow``."""
TRAINING = ("torch", "mujoco", "gymnasium", "transformers", "tokenizers", "xllamacpp")
TESTS = Path(__file__).parent

profiles.register()
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


class Absent(MetaPathFinder):
    """As if nothing of what trains were installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in TRAINING:
            raise ModuleNotFoundError(f"{name}: a test of --core imports nothing that trains", name=name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--core", action="store_true", help="only what needs none of " + ", ".join(TRAINING))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes seconds of processor time; no part of --core")
    if config.getoption("core"):
        assert not set(TRAINING) & set(sys.modules)
        sys.meta_path.insert(0, Absent())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``--core``: modules that are no part of it are not even imported."""
    if not config.getoption("core") or collection_path.suffix != ".py":
        return None
    place = collection_path.relative_to(TESTS)
    return None if any(place.is_relative_to(part) for part in CORE) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("core"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """``-n auto``: one more than there are processors, since most tests wait for a child now and then."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        version="0", id="20260101-000000-test-0000", created=0.0, command=["test"], script="test.py", arguments=[],
        directory=".", seed=1, git=None, python="3.11", packages={}, machine={}, manager="rules", mode="auto",
        policy=Policy(), edition=EDITION,
    )  # fmt: skip


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names no run and no other process."""
    for name in ("TRAINMGR_RUN_DIR", "TRAINMGR_SEED", "TRAINMGR_RESUME", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    surroundings.ODD.clear()  # what was said of others


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: None) -> Path:
    """A run directory that the environment names; the control file is looked at after every step."""
    root = tmp_path / "run"
    root.mkdir()
    monkeypatch.setenv("TRAINMGR_RUN_DIR", str(root))
    monkeypatch.setattr(Workload, "PERIOD", 0.0)
    return root


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    """``row(title, cell, ...)`` adds a line to the table of that title, which is printed after the tests."""

    def add(title: str, *cells: str) -> None:
        # With the report of the test, since the tests may run in other processes than the one that prints.
        request.node.user_properties.append((ROW, (title, *cells)))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tables: dict[str, list[tuple[str, ...]]] = {}
    reports = [report for found in terminalreporter.stats.values() for report in found]
    for report in reports:
        if getattr(report, "when", "") == "call":
            for name, value in report.user_properties:
                if name == ROW:
                    tables.setdefault(value[0], []).append(tuple(value[1:]))
    for title, rows in tables.items():
        terminalreporter.section(title)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for cells in rows:
            line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            terminalreporter.write_line(line.rstrip())
