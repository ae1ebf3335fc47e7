"""Curves of runs of different lengths, at the same steps."""

from __future__ import annotations

from trainmgr.comparison import gathering


def test_curves_are_drawn_at_the_distance_of_the_one_that_has_the_fewest_points() -> None:
    short = [(step, 1.0) for step in range(7)]
    long = [(step, 2.0) for step in range(0, 41, 4)] + [(43, 2.0)]
    (first, second, none) = gathering._even([short, long, []], [1, 4, 2])
    assert [step for step, _ in first] == [0, 4, 6]
    assert second == long
    assert none == []
    assert gathering._even([short], [1]) == [short]
