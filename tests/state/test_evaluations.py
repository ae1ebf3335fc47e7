"""Which of many evaluations are kept."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trainmgr.state.evaluations import thinned


@given(st.integers(0, 300), st.integers(1, 60), st.data())
def test_what_is_thinned_keeps_the_first_and_the_latest(count: int, most: int, data: st.DataObject) -> None:
    recent, rows = data.draw(st.integers(1, most)), list(range(count))
    kept = thinned(rows, most, recent)
    assert kept == sorted(set(kept))
    assert len(kept) <= most
    assert kept[-recent:] == rows[-recent:]
    assert kept == rows or len(kept) > most // 2  # not more than it takes
    if recent < most:
        assert kept[:1] == rows[:1]
        gaps = [after - before for before, after in pairwise(kept)]
        assert set(gaps[: -recent - 1]) <= {gaps[0] if gaps else 1}  # the older ones are evenly spaced
    assert thinned(kept, most, recent) == kept


def test_rows_that_come_one_by_one_are_thinned_where_there_is_no_room() -> None:
    rows: list[int] = []
    for row in range(11):
        rows = thinned([*rows, row], 6, 3)
    assert rows == [0, 6, 8, 9, 10]
