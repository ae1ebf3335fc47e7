"""What several test modules need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from factories import profiles
from factories.tables import ROW, Row
from hypothesis import settings

from trainmgr.contract.policy import Policy
from trainmgr.contract.run_file import Manifest
from trainmgr.workload import Workload, surroundings

profiles.register()
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        version="0", id="20260101-000000-test-0000", created=0.0, command=["test"], script="test.py", arguments=[],
        directory=".", seed=1, git=None, python="3.11", packages={}, machine={}, manager="rules", mode="auto",
        policy=Policy(),
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
