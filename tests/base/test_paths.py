"""How a run is found by what a person types."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainmgr.base.errors import UserError
from trainmgr.base.paths import find_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for number in range(7):
        (tmp_path / f"20261127-14305{number}-digits-000{number}").mkdir()
    (tmp_path / "20261128-090000-reacher-00aa").mkdir()
    return tmp_path


def refused(runs: Path, typed: str) -> str:
    with pytest.raises(UserError) as caught:
        find_run(runs, typed)
    return str(caught.value)


def test_the_beginning_of_one_run_names_it(runs: Path) -> None:
    assert find_run(runs, "20261127-143051").id == "20261127-143051-digits-0001"
    assert find_run(runs, "latest").id == "20261128-090000-reacher-00aa"


def test_the_beginning_of_several_runs_names_all_of_them_a_line_each(runs: Path) -> None:
    lines = refused(runs, "20261127").splitlines()
    assert lines[0] == "'20261127' is the beginning of 7 runs:"
    assert lines[1:8] == [f"  20261127-14305{number}-digits-000{number}" for number in range(7)]
    assert lines[8] == "Type more of the name."


def test_a_few_stand_in_the_sentence(runs: Path) -> None:
    (runs / "20261128-090001-reacher-00bb").mkdir()
    assert refused(runs, "20261128") == (
        "'20261128' is the beginning of 2 runs: 20261128-090000-reacher-00aa, 20261128-090001-reacher-00bb. "
        "Type more of the name."
    )


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("reacher", "20261128-090000-reacher-00aa"),  # the name without its date
        ("reecher", "20261128-090000-reacher-00aa"),
        ("00aa", "20261128-090000-reacher-00aa"),
        ("20261128-090001", "20261128-090000-reacher-00aa"),  # a digit wrong
        ("runs/20261128-090000-reacher-00ab", "20261128-090000-reacher-00aa"),
        ("lates", "latest"),
    ],
)
def test_a_near_miss_is_answered_with_what_was_meant(runs: Path, typed: str, meant: str) -> None:
    assert f"begins with {typed!r}. Perhaps you mean: {meant}. `trainmgr runs` lists" in refused(runs, typed)


@pytest.mark.parametrize("typed", ["2020", "zebra", ""])
def test_what_is_like_none_is_answered_without_a_guess(runs: Path, typed: str) -> None:
    assert "Perhaps" not in refused(runs, typed)
