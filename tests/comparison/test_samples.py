"""Which runs of an arm are samples of their own: copies, and runs that diverged."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.comparison import samples
from trainmgr.comparison.results import Case, Run

COURSE = [(10, 0.912345), (20, 0.5), (30, 0.25), (40, 0.125), (50, 0.0625), (60, 0.03125)]
FIGURES = {"loss": 0.03125, "best loss": 0.03125, "seconds": 3.5}


def run(seed: int, metrics: dict[str, float] | None = None, **changed: Any) -> Run:
    values: dict[str, Any] = {
        "manager": "none", "seed": seed, "run": f"r{seed}", "status": "completed", "steps": 60,
        "course": "c", "figures": "f", "metrics": FIGURES if metrics is None else metrics, "curve": COURSE,
    }  # fmt: skip
    return Run(**values | changed)


def case(runs: list[Run], objective: str | None = "loss") -> Case:
    return Case(
        name="", arguments=[], policy=None, managers=["none"], reference="none", seeds=[run.seed for run in runs],
        objective=objective, goal="min", held_out=[], runs=runs,
    )  # fmt: skip


def found(*runs: Run, objective: str | None = "loss") -> list[samples.Copies]:
    return samples.copies(case([*runs], objective), runs)


def shifted(course: list[tuple[int, float]], by: float, since: int = 0) -> list[tuple[int, float]]:
    return [(step, value + by * (step >= since)) for step, value in course]


ZERO: dict[str, Any] = {"curve": [(step, 0.0) for step, _ in COURSE]}
STILL = {"loss": 0.0, "best loss": 0.0}


@pytest.mark.parametrize(
    ("first", "second", "copied"),
    [
        ({}, {}, True),
        ({"course": None, "figures": None}, {"course": None, "figures": None}, True),  # by a version without them
        ({}, {"course": None, "figures": None}, True),
        ({}, {"course": "other"}, False),  # the last digit of an evaluation
        ({}, {"figures": "other"}, True),  # a clock among the evaluations
        ({}, {"metrics": FIGURES | {"seconds": 4.5}}, True),  # and one among the figures of the end
        ({}, {"curve": COURSE[1::2]}, True),  # thinned in another part
        ({}, {"metrics": FIGURES | {"loss": math.nextafter(0.03125, 1)}}, False),  # the last digit
        ({}, {"metrics": FIGURES | {"best loss": 0.03}}, False),
        ({"course": None}, {"curve": shifted(COURSE, 1e-6, since=50)}, False),
        ({}, {"steps": 50}, False),
        ({}, {"failure": "failed: it ended with exit code 1"}, False),
        # An agent that never succeeds: the objective agrees by itself, and only other figures could tell.
        (ZERO | {"metrics": STILL}, ZERO | {"metrics": STILL}, False),
        (ZERO | {"metrics": STILL | {"kl": 0.1}}, ZERO | {"metrics": STILL | {"kl": 0.2}}, False),
        (ZERO | {"metrics": STILL | {"kl": 0.1}}, ZERO | {"metrics": STILL | {"kl": 0.1}}, True),
        # A coarse one agrees by chance: it takes more than three values where anything else differs.
        ({"curve": COURSE[:2], "figures": "a"}, {"curve": COURSE[:2], "figures": "b"}, False),
        ({"curve": COURSE[:2]}, {"curve": COURSE[:2]}, True),
        ({"curve": []}, {"curve": []}, True),
        ({"metrics": {}}, {"metrics": {}}, True),
        ({"metrics": {}, "curve": []}, {"metrics": {}, "curve": []}, False),
        # Diverged: NaN is like NaN, and proves nothing.
        ({"metrics": {"loss": math.nan, "best loss": 0.25}}, {"metrics": {"loss": math.nan, "best loss": 0.25}}, True),
        ({"metrics": {"loss": math.nan}}, {"metrics": {"loss": math.inf}}, False),
        ({"metrics": {"loss": math.nan}, "curve": [(10, math.nan)]},) * 2 + (False,),
    ],
)  # fmt: skip
def test_what_a_copy_is(first: dict[str, Any], second: dict[str, Any], copied: bool) -> None:
    assert bool(found(run(1, **first), run(2, **second))) is copied
    assert bool(found(run(1, **second), run(2, **first))) is copied


def test_copies_are_named_by_their_seeds() -> None:
    other = {"curve": shifted(COURSE, 0.1), "metrics": FIGURES | {"loss": 0.13125}}
    assert found(run(1), run(2), run(3)) == [samples.Copies([1, 2, 3], "figures", every=True)]
    assert found(run(1), run(2, **other), run(3)) == [samples.Copies([1, 3], "figures", every=False)]
    assert found(run(1), run(2, run="r1")) == [samples.Copies([1, 2], "run", every=True)]
    assert found(run(1)) == found() == []
    assert found(run(1), run(2), objective=None) == [samples.Copies([1, 2], "figures", every=True)]


def changed(seed: int, by: float, **more: Any) -> Run:
    """A run that differs from the others since step 40."""
    return run(seed, {"loss": 0.03125 + by}, curve=shifted(COURSE, by, since=40), changes=3, course=str(by), **more)


def test_runs_that_only_changes_set_apart_began_alike() -> None:
    runs = [changed(1, 0.1), changed(2, 0.2), changed(3, 0.3)]
    assert found(*runs) == [samples.Copies([1, 2, 3], "beginning", every=True)]
    assert found(run(4), *runs)[0].alike == "beginning"  # one that changed nothing
    assert found(*runs[:2]) == []  # three values of two runs may agree by chance
    unchanged = [one.model_copy(update={"changes": 0}) for one in runs]
    assert found(*unchanged) == []  # so something else sets them apart
    assert found(*runs[:2], changed(3, 0.3).model_copy(update={"curve": shifted(COURSE, 0.3)})) == []
    still = [one.model_copy(update={"curve": [(10, 0.0), (20, 0.0), (30, 0.0), (40, one.seed)]}) for one in runs]
    assert found(*still) == []


@pytest.mark.parametrize(
    ("changes", "diverged"),
    [
        ({}, False),
        ({"metrics": {"loss": math.nan, "best loss": 0.25}}, True),
        ({"metrics": {"loss": math.inf}}, True),
        ({"metrics": {"loss": 1e101}}, True),
        ({"metrics": {"loss": 0.5}, "curve": [(10, 0.5), (20, math.nan)]}, False),  # measured again at the end
        ({"metrics": {"accuracy": 0.1}, "curve": [(10, 0.5), (20, math.nan)]}, True),
        ({"metrics": {"accuracy": 0.1}, "curve": [(10, 0.5), (20, math.nan)], "on_best": True}, False),
        ({"metrics": {}, "curve": [(10, math.inf)], "failure": "failed: it ended with exit code 1"}, True),
        ({"metrics": {}, "curve": []}, False),
        ({"metrics": {"loss": 0.5, "other": math.nan}}, False),
    ],
)
def test_what_diverged(changes: dict[str, Any], diverged: bool) -> None:
    one = run(1, **changes)
    assert samples.diverged(case([one]), one) is diverged
    assert not samples.diverged(case([one], objective=None), one)


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ([3], "seed 3"), ([1, 2], "seeds 1 and 2"), ([1, 2, 3], "seeds 1 to 3"), ([4, 1], "seeds 1 and 4"),
        ([1, 2, 3, 5, 6, 9], "seeds 1 to 3, 5, 6 and 9"), ([0, 1, 2, 10, 11, 12], "seeds 0 to 2 and 10 to 12"),
    ],
)  # fmt: skip
def test_seeds_in_words(seeds: list[int], words: str) -> None:
    assert samples.named(seeds) == words


SEEDS = st.lists(st.integers(0, 9), unique=True, min_size=1)


@given(SEEDS, st.lists(st.lists(SEEDS, max_size=3), max_size=2))
def test_every_seed_is_in_one_group_and_what_is_alike_is_together(
    seeds: list[int], arms: list[list[list[int]]]
) -> None:
    copies = [[samples.Copies(found, "figures", every=False) for found in arm] for arm in arms]
    groups = samples.joined(seeds, *copies)
    assert sorted(seed for group in groups for seed in group) == sorted(seeds)
    alike = [set(found) & set(seeds) for arm in arms for found in arm]
    assert all(sum(not found.isdisjoint(group) for group in groups) <= 1 for found in alike)
    for group in groups:  # and nothing is together that no chain of copies holds
        reached = {group[0]}
        for _ in group:
            reached |= {seed for found in alike if found & reached for seed in found}
        assert reached == set(group)


@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3]), min_size=1, max_size=6))
def test_groups_are_the_runs_that_are_equal(kinds: list[float]) -> None:
    runs = [
        run(seed, {"loss": 0.03125 + by}, curve=shifted(COURSE, by), course=str(by)) for seed, by in enumerate(kinds)
    ]
    alike = {tuple(copies.seeds) for copies in found(*runs)}
    expected = {tuple(seed for seed, kind in enumerate(kinds) if kind == by) for by in kinds}
    assert alike == {seeds for seeds in expected if len(seeds) > 1}
