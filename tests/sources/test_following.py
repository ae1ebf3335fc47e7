"""Streams and files line by line, rows, and the steps of lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.sources.clock import Clock
from trainmgr.sources.lines import MAX_LINE, Lines
from trainmgr.sources.reader import reader
from trainmgr.sources.reading import Reading
from trainmgr.sources.record import Record
from trainmgr.sources.rows import Csv, JsonLines, Unseen
from trainmgr.sources.tail import Tail


def texts(data: bytes) -> list[str]:
    lines = Lines()
    return [line.text for line in lines.feed(data) + lines.rest()]


# -- lines -------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_wherever_a_stream_is_cut_its_lines_are_the_same(data: bytes, cuts: list[int]) -> None:
    lines, found, place = Lines(), [], 0
    for cut in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
        found += lines.feed(data[place:cut])
        place = cut
    assert [line.text for line in found + lines.rest()] == texts(data)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"one\r\ntwo\n\nthree", ["one", "two", "three"]),
        (b"\r 1/3 a\r 2/3 b\x1b[K\r 3/3 c\n", [" 1/3 a", " 2/3 b", " 3/3 c"]),
        (b"\x1b[1;32mval\x1b[0m 0.5\x1b[A\n", ["val 0.5"]),
        (b"\x1b]0;title\x07step 1\n", ["step 1"]),
        (b"1/2\b\b\b2/2\n", ["1/2", "2/2"]),
        (b"\xff\xfe step 1\n", ["�� step 1"]),
        (b" \t \n", []),
    ],
)
def test_what_ends_a_line_and_what_only_colours_it(data: bytes, found: list[str]) -> None:
    assert texts(data) == found


def test_a_bar_is_redrawn_and_a_line_is_not() -> None:
    assert [line.redrawn for line in Lines().feed(b"1/2\r2/2\n")] == [True, False]


def test_a_line_without_end_takes_no_room() -> None:
    lines = Lines()
    found = [line for _ in range(8) for line in lines.feed(b"x" * MAX_LINE)] + lines.feed(b"y\nnext\n")
    assert [len(line.text) for line in found] == [MAX_LINE, len("next")]


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_may_come_late_grow_and_be_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    tail = Tail(path)
    assert tail.look() == (False, [])
    path.write_text("a,b\n1,")
    assert [line.text for line in tail.look()[1]] == ["a,b"]
    with path.open("a") as file:
        file.write("2\n3,4")
    assert [line.text for line in tail.look()[1]] == ["1,2"]
    assert tail.look() == (False, [])
    path.write_text("a,b,c\n1,2,\n3,4,\n5,6,7\n")  # longer than before, and not the same
    anew, lines = tail.look()
    assert anew
    assert [line.text for line in lines] == ["a,b,c", "1,2,", "3,4,", "5,6,7"]
    path.write_text("a")
    assert tail.look() == (True, [])
    other = tmp_path / "other"
    other.write_text("a,b\n7,8")
    other.replace(path)
    assert [line.text for line in tail.look()[1]] == ["a,b"]
    assert [line.text for line in tail.rest()] == ["7,8"]


def test_a_file_that_is_written_over_with_the_same_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("a\n1\n")
    tail = Tail(path)
    assert tail.look()[0] is False
    os.utime(path, ns=(0, 0))  # whatever the clock of the file system
    assert [line.text for line in tail.look()[1]] == ["a", "1"]
    with path.open("a") as file:
        file.write("2\n")
    anew, lines = tail.look()
    assert (anew, [line.text for line in lines]) == (False, ["2"])
    (tmp_path / "other").write_text("a\n1\n2\n3\n")
    (tmp_path / "other").replace(path)
    assert tail.look()[0]


def test_what_is_no_file_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert Tail(tmp_path / "pipe").look() == (False, [])
    assert Tail(tmp_path).look() == (False, [])


# -- rows --------------------------------------------------------------------------------------------------------------


def rows(table: Csv | JsonLines, *lines: str) -> list[dict[str, float]]:
    return [row for line in lines if (row := table.read(line))]


def test_a_header_may_come_late_and_again() -> None:
    found = rows(
        Csv(), "Training", "# by hand", "1,2", " epoch, loss ,phase", "1,0.5,train", ",,", "epoch,val", "2,.25"
    )
    assert found == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "val": 0.25}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_rows_may_have_holes_and_text(delimiter: str) -> None:
    lines = ("epoch,step,train_loss,val_loss", "0,49,0.5,", "0,49,,0.4", "1,99,,nan,7")
    found = rows(Csv(), *(line.replace(",", delimiter) for line in lines))
    assert found[:2] == [{"epoch": 0, "step": 49, "train_loss": 0.5}, {"epoch": 0, "step": 49, "val_loss": 0.4}]
    assert list(found[2]) == ["epoch", "step", "val_loss"]


def test_a_first_column_without_a_name_is_an_index() -> None:
    assert rows(Csv(), ",loss", "0,0.5") == [{"loss": 0.5}]


def test_objects_in_objects_are_flat_and_what_is_no_number_is_left_out() -> None:
    line = '{"step": 1, "val": {"loss": 0.5, "n": {"x": "Infinity"}}, "ok": true, "name": "x", "all": [1], "no": null}'
    assert rows(JsonLines(), line, "[1]", "{broken", "text") == [{"step": 1, "val.loss": 0.5, "val.n.x": float("inf")}]
    assert rows(JsonLines(), '{"a":' * 5000) == []


def test_a_table_that_is_written_anew_says_only_what_is_new() -> None:
    table = Unseen(Csv())
    old = ["step,loss", "1,0.5", "2,0.4"]
    assert [table.read(line) for line in old][1:] == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]
    table.anew()
    assert [table.read(line) for line in ["step,loss,val", "1,0.50,", "2,0.4,", "2,,0.3"]][1:] == [
        None, None, {"step": 2, "val": 0.3},
    ]  # fmt: skip
    table.anew()  # another training: nothing of the old one comes first
    assert [table.read(line) for line in ["step,loss", "1,0.7", "2,0.4"]][1:] == [
        {"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.4},
    ]  # fmt: skip


def test_rows_of_an_earlier_run_do_not_stand_for_those_of_this_one() -> None:
    table = Unseen(Csv())
    lines = ["step,loss", "1,0.5"]
    assert [table.read(line) for line in lines] == [None, {"step": 1, "loss": 0.5}]
    table.settle()
    table.anew()  # the script has truncated it, and trains as it did before
    assert [table.read(line) for line in lines] == [None, {"step": 1, "loss": 0.5}]


# -- steps -------------------------------------------------------------------------------------------------------------


def steps(*places: float | None, kinds: str = "") -> list[int]:
    clock = Clock()
    kind = [int(kind) for kind in kinds] or [0] * len(places)
    return [clock.at(Record({}, place, k, counted=place is None)) for place, k in zip(places, kind, strict=True)]


def test_a_counter_that_begins_again_is_counted_on() -> None:
    assert steps(10, 20, 10, 20, 10) == [10, 20, 30, 40, 50]
    assert steps(0, 1, 0, 1) == [0, 1, 2, 3]
    assert steps(10, 20, 20, 10, 20, 20, kinds="001001") == [10, 20, 20, 30, 40, 40]


def test_a_line_of_another_kind_that_comes_late_is_of_the_step_that_the_run_is_at() -> None:
    assert steps(10, 20, 10, 30, 20, kinds="00101") == [10, 20, 20, 30, 30]


def test_lines_count_where_nothing_does() -> None:
    assert steps(None, None) == [1, 2]
    assert steps(0.5, 1.0, 1.5, 2.0) == [1, 2, 3, 4]
    assert steps(float("nan"), -3.0) == [1, 2]


@given(st.lists(st.none() | st.integers(0, 100) | st.floats(), max_size=30))
def test_steps_never_go_back(places: list[float | None]) -> None:
    found = steps(*places)
    assert found == sorted(found)


def places(reading: Reading, *lines: str) -> list[tuple[float | None, bool]]:
    found = reader(reading)
    records = [found.read(line) for text in lines for line in Lines().feed(f"{text}\n".encode())]
    return [(record.place, record.counted) for record in records if record is not None]


def test_an_epoch_is_a_step_where_there_is_no_other() -> None:
    reading = Reading("val", "min", patterns=("epoch {epoch} loss {loss}", "val {val}"))
    assert places(reading, "epoch 3 loss 1", "val 2") == [(3, False), (None, False)]
    reading = Reading("val", "min", patterns=("epoch {epoch} step {step} loss {loss}", "epoch {epoch} val {val}"))
    assert places(reading, "epoch 3 step 7 loss 1", "epoch 3 val 2") == [(7, False), (None, False)]
    reading = Reading("val", "min", patterns=("loss {loss}", "val {val}"))
    assert places(reading, "loss 1", "val 2") == [(None, True), (None, False)]
    assert places(Reading("val", "min", patterns=("val {val}",)), "val 2") == [(None, True)]


def test_the_column_of_the_step_is_found_or_named() -> None:
    lines = ("updates,epoch,global_step,val", "7,1,50,0.5", ",2,,0.4")
    assert places(Reading("val", "min", csv="x"), *lines) == [(50, False), (None, False)]
    assert places(Reading("val", "min", csv="x", step="updates"), *lines) == [(7, False), (None, False)]
    assert places(Reading("val", "min", csv="x"), "a,val", "7,0.5") == [(None, True)]
    assert places(Reading("val", "min", csv="x"), "epoch,val", "7,0.5") == [(7, False)]
