"""docs/architecture.md is true: every place that it names exists. (test_imports holds its list of packages.)"""

from __future__ import annotations

import importlib
import re
from functools import reduce
from itertools import groupby
from pathlib import Path

import pytest
from factories.modules import MODULES

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
SECTIONS = dict(zip(*[iter(re.split(r"^## (.*)\n", TEXT, flags=re.MULTILINE)[1:])] * 2, strict=True))
WALKS = [title for title in SECTIONS if title.startswith("One ")]
STEP = re.compile(r"^\d+\. `([a-z_]+)/([a-z_]+)\.py:([A-Za-z_.]+)` ", re.MULTILINE)


def test_every_place_that_it_names_exists() -> None:
    for row in SECTIONS["Where something goes"].splitlines():
        for place in re.findall(r"`([a-z_/]+(?:\.py|/))`", row):
            assert (ROOT / "trainmgr" / place).exists() or "(to come)" in row, place


@pytest.mark.parametrize("title", WALKS)
def test_each_step_of_a_walk_is_a_function_there_is(title: str) -> None:
    lines = [line for line in SECTIONS[title].splitlines() if line]
    steps = STEP.findall(SECTIONS[title])
    assert len(steps) == len(lines)
    for package, module, name in steps:
        assert f"{package}.{module}" in MODULES
        found = importlib.import_module(f"trainmgr.{package}.{module}")
        assert callable(reduce(getattr, name.split("."), found)), name


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_enters_each_package_once(title: str) -> None:
    entered = [package for package, _ in groupby(package for package, _, _ in STEP.findall(SECTIONS[title]))]
    assert len(entered) == len(set(entered))
