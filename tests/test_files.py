"""Files that survive crashes: no line is lost, doubled, torn or half replaced, wherever reading and writing stop."""

from __future__ import annotations

import hashlib
import os
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainmgr import files
from trainmgr.files import Appender, Tail

CONTENT = st.lists(st.binary(max_size=12) | st.text(max_size=6).map(str.encode) | st.just(b"\r"), max_size=12).map(
    b"\n".join
)


@settings(deadline=None, max_examples=80)
@given(CONTENT, st.lists(st.integers(0, 200), max_size=6), st.integers(1, 9))
def test_tail_over_any_cut_gives_every_complete_line_once(data: bytes, cuts: list[int], chunk: int) -> None:
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        tail, got = Tail(path), []
        tail.CHUNK = chunk
        for begin, end in pairwise(ends):
            with path.open("ab") as file:
                file.write(data[begin:end])
            got += list(tail.lines())
            complete = data[: data[:end].rfind(b"\n") + 1]
            assert b"".join(got) == complete
            assert (tail.offset, tail.digest()) == (len(complete), hashlib.sha256(complete).hexdigest())
        assert got == [line + b"\n" for line in data.split(b"\n")[:-1]]
        assert tail.rest() == data[tail.offset :]
        assert not tail.truncated


@settings(deadline=None, max_examples=50)
@given(CONTENT, st.integers(0, 150))
def test_tail_until_stops_before_the_line_that_crosses_it(data: bytes, until: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        path.write_bytes(data)
        tail = Tail(path)
        first = b"".join(tail.lines(until))
        assert first == data[: data[:until].rfind(b"\n") + 1]
        assert tail.digest() == hashlib.sha256(first).hexdigest()
        assert first + b"".join(tail.lines()) == data[: data.rfind(b"\n") + 1]


@settings(deadline=None, max_examples=80)
@given(CONTENT, st.lists(st.integers(0, 200), max_size=6), st.integers(1, 9), st.integers(1, 9))
def test_a_line_over_the_limit_is_cut_and_nothing_else_changes(
    data: bytes, cuts: list[int], chunk: int, limit: int
) -> None:
    """Wherever reading stops, and with which chunks; ``until`` included, as a replay reads."""
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        tail, again, got, repeated = Tail(path, limit), Tail(path, limit), [], []
        tail.CHUNK = chunk
        for begin, end in pairwise(ends):
            with path.open("ab") as file:
                file.write(data[begin:end])
            got += list(tail.lines())
            complete = data[: data[:end].rfind(b"\n") + 1]
            assert (tail.offset, tail.digest()) == (len(complete), hashlib.sha256(complete).hexdigest())
            repeated += list(again.lines(tail.offset))
            assert (again.offset, again.digest(), again.rest()) == (tail.offset, tail.digest(), tail.rest())
        whole = [line + b"\n" for line in data.split(b"\n")[:-1]]
        assert got == repeated == [line if len(line) <= limit else line[:limit] + b"\n" for line in whole]
        assert not tail.truncated


def test_an_endless_line_is_read_once_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "t"
    tail = Tail(path, 100)
    tail.CHUNK = 1000
    with path.open("ab") as file:
        for _ in range(20):
            file.write(b"x" * 5000)
            file.flush()
            assert list(tail.lines()) == []
            assert (tail.offset, tail.truncated) == (0, False)
        assert tracked(tail) < 1000
        file.write(b"\nb\n")
    assert list(tail.lines()) == [b"x" * 100 + b"\n", b"b\n"]
    assert (tail.offset, tail.digest()) == (100_003, files.sha256(path.read_bytes()))


def tracked(tail: Tail) -> int:
    """Bytes of the file that a tail keeps."""
    return sum(len(value) for value in vars(tail).values() if isinstance(value, bytes))


def test_what_a_consumer_left_is_handed_out_next_time(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"a\nb\nc\n")
    tail = Tail(path)
    assert next(tail.lines()) == b"a\n"
    assert list(tail.lines()) == [b"b\n", b"c\n"]


def test_no_file_yet(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "t")
    assert list(tail.lines()) == []
    assert tail.rest() == b""
    (tmp_path / "t").write_bytes(b"a\n")
    assert list(tail.lines()) == [b"a\n"]


@pytest.mark.parametrize("content", [b"", b"a\n"])
def test_a_file_that_is_removed_after_it_was_there_is_noticed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    tail = Tail(path)
    assert len(list(tail.lines())) == content.count(b"\n")
    path.unlink()
    assert list(tail.lines()) == []
    assert tail.truncated
    path.write_bytes(b"a\nb\n")
    assert list(tail.lines()) == []


@pytest.mark.parametrize("new", [b"", b"a\n", b"x\ny\nz\n", b"x\ny\nz\nand more\n"])
def test_truncation_is_noticed_and_nothing_is_read_again(tmp_path: Path, new: bytes) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"a\nb\nc\n")
    tail = Tail(path)
    assert len(list(tail.lines())) == 3
    path.write_bytes(new)  # in place: the inode stays
    assert list(tail.lines()) == []
    assert tail.truncated
    with path.open("ab") as file:
        file.write(b"d\n" * 9)
    assert list(tail.lines()) == []
    assert tail.offset == 6


def test_replacement_by_a_longer_file_with_the_same_beginning_is_noticed(tmp_path: Path) -> None:
    path, other = tmp_path / "t", tmp_path / "u"
    path.write_bytes(b"a\n")
    tail = Tail(path)
    assert list(tail.lines()) == [b"a\n"]
    other.write_bytes(b"a\nb\n")
    other.replace(path)
    assert list(tail.lines()) == []
    assert tail.truncated


def test_replace_is_private_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    for content in (b"old", b"new"):
        files.replace(path, content)
        assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_replace_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    path = tmp_path / "control.json"
    files.replace(path, b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(*((os, "fsync", fail) if call == "fsync" else (Path, "replace", fail)))
    with pytest.raises(type(error)):
        files.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("how", ["torn", "full", "not durable"])
def test_a_failed_append_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path = tmp_path / "audit.jsonl"
    appender, write = Appender(path), os.write
    appender.append(b"first\n")

    def fail(fd: int, data: bytes = b"") -> int:
        if how == "torn" and data == b"second\n":
            return write(fd, data[:3])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync" if how == "not durable" else "write", fail)
        with pytest.raises(OSError, match="No space"):
            appender.append(b"second\n")
        assert path.read_bytes() == b"first\n"
    appender.append(b"third\n")
    appender.close()
    assert path.read_bytes() == b"first\nthird\n"
    assert path.stat().st_mode & 0o777 == 0o600
