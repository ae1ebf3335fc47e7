"""The part of run.json that a list of runs reads says what the whole of it says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from trainmgr.contract import summary
from trainmgr.contract.run_file import RunFile

EXAMPLE = next((Path(__file__).parents[1] / "example").glob("*/run.json"))
WHOLE = json.loads(EXAMPLE.read_bytes())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.json"


def written(file: Path, part: str, **changes: Any) -> Path:
    """run.json of the committed run, with other values in one of its two parts."""
    file.write_text(json.dumps({**WHOLE, part: {**WHOLE[part], **changes}}))
    return file


def equal(one: Any, other: Any) -> bool:
    return one == other or (one != one and other != other)  # NaN


@pytest.mark.parametrize("changes", [
    {}, {"final": "NaN", "best": "-Infinity"}, {"final": 3, "best": None},
    {"objective": "NaN", "final": None},
])  # fmt: skip
def test_it_reads_what_the_types_of_run_json_read(file: Path, changes: dict[str, Any]) -> None:
    written(file, "closing", **changes)
    found, whole = summary.read(file), RunFile.model_validate_json(file.read_bytes())
    assert found is not None
    assert found.ended is not None
    for part, types in ((found.begun, whole.manifest), (found.ended, whole.closing)):
        for name, value in vars(part).items():
            assert equal(value, getattr(types, name)), name
    assert found.ended.final is None or isinstance(found.ended.final, float)


def test_a_run_that_goes_on_has_no_end(file: Path) -> None:
    file.write_text(json.dumps({**WHOLE, "closing": None}))
    found = summary.read(file)
    assert found is not None
    assert found.ended is None


@pytest.mark.parametrize(("part", "name", "value"), [
    ("manifest", "manager", ["rules"]), ("manifest", "seed", "1"), ("manifest", "created", None),
    ("closing", "final", "nan"), ("closing", "final", [1.0]), ("closing", "steps", 1.5), ("closing", "status", 1),
    ("closing", "status", "\x1b[2Jdone"),
    ("closing", "ended", 10**400), ("closing", "objective", {}),
])  # fmt: skip
def test_a_value_of_another_kind_cannot_be_read(file: Path, part: str, name: str, value: Any) -> None:
    assert summary.read(written(file, part, **{name: value})) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"manifest": 1}', "[" * 10**5, '{"manifest": {"seed": 1}}'])
def test_what_is_no_run_json_cannot_be_read(file: Path, text: str) -> None:
    file.write_text(text)
    assert summary.read(file) is None
    assert summary.read(file.with_name("nowhere")) is None


def test_infinity_is_read_as_a_number(file: Path) -> None:
    found = summary.read(written(file, "closing", best="Infinity"))
    assert found is not None
    assert found.ended is not None
    assert found.ended.best == math.inf
