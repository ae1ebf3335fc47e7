"""Files that survive crashes: no line is lost, doubled, torn or half replaced, wherever reading and writing stop."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import stat
import tempfile
import tracemalloc
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.base import files
from trainmgr.base.files import Appender, Tail

CONTENT = st.lists(st.binary(max_size=12) | st.text(max_size=6).map(str.encode) | st.just(b"\r"), max_size=12).map(
    b"\n".join
)


def behind(data: bytes) -> tuple[int, str]:
    """What ``Tail.rest`` says of these bytes."""
    return len(data), files.sha256(data) if data else ""


@examples(80)
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
        assert tail.rest() == behind(data[tail.offset :])
        assert not tail.truncated


@examples(50)
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


@examples(80)
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
    assert tail.rest() == (0, "")
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


def test_going_on_after_any_line_reads_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a supervisor does that reads a few records, looks at its queue, and reads on."""
    path = tmp_path / "t"
    data = b"".join(b"%d\n" % i for i in range(5_000))
    path.write_bytes(data)
    read, sizes = os.pread, [0]

    def counted(fd: int, size: int, position: int) -> bytes:
        found = read(fd, size, position)
        sizes[0] += len(found)
        return found

    monkeypatch.setattr(os, "pread", counted)
    tail, got = Tail(path), b""
    while some := list(islice(tail.lines(), 7)):
        got += b"".join(some)
        assert tail.offset == len(got)
        assert tail.digest() == files.sha256(got)
    assert got == data
    assert sizes[0] <= len(data) + 2 * Tail.LAST


@pytest.mark.parametrize("call", ["open", "pread"])
@pytest.mark.parametrize("limit", [None, 6])
def test_a_failed_read_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, limit: int | None
) -> None:
    path = tmp_path / "t"
    data = b"a\nbcd\n" + b"x" * 30 + b"\nefg\n\ntorn"
    path.write_bytes(data)
    real, chance = getattr(os, call), random.Random(1)

    def fails(*arguments: object) -> object:
        if chance.random() < 0.2:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(*arguments)

    monkeypatch.setattr(os, call, fails)
    tail, got, failed = Tail(path, limit), [], 0
    tail.CHUNK = 4
    for _ in range(300):
        try:
            for line in tail.lines():
                got.append(line)
        except OSError:
            failed += 1
    monkeypatch.undo()
    assert failed > 10
    long = b"x" * 30 if limit is None else b"x" * limit
    assert got == [b"a\n", b"bcd\n", long + b"\n", b"efg\n", b"\n"]
    assert (tail.offset, tail.digest()) == (len(data) - 4, files.sha256(data[:-4]))
    assert tail.rest() == behind(b"torn")
    assert not tail.truncated


def test_reading_ends_although_the_writer_is_faster(tmp_path: Path) -> None:
    """The file is taken as it was when it was opened; what came since is for the next look."""
    path = tmp_path / "t"
    path.write_bytes(b"a\nb\n")
    tail, got = Tail(path), []
    with path.open("ab", buffering=0) as file:
        for line in tail.lines():
            got.append(line)
            file.write(b"more\n")
    assert got == [b"a\n", b"b\n"]
    assert list(tail.lines()) == [b"more\n"] * 2


@pytest.fixture(params=["directory", "FIFO", "socket", "device", "link to a device"])
def odd(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Something else where a file belongs."""
    path = tmp_path / "odd"
    with socket.socket(socket.AF_UNIX) as server:
        match request.param:
            case "directory":
                path.mkdir()
            case "FIFO":
                os.mkfifo(path)
            case "socket":
                server.bind(str(path))
            case "device":
                if os.geteuid():
                    pytest.skip("only root can make a device")
                os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero, which never ends
            case _:
                path.symlink_to("/dev/zero")
        yield path


def test_what_is_no_file_is_refused_at_once(odd: Path) -> None:
    tail = Tail(odd)
    for read in (lambda: list(tail.lines()), tail.rest, lambda: files.read_regular(odd)):
        with pytest.raises(OSError, match=r"it is a \w+, not a regular file|No such device or address"):
            read()
    assert (tail.offset, tail.truncated) == (0, False)


def test_a_link_to_nothing_is_no_file_yet(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.symlink_to(tmp_path / "later")
    tail = Tail(path)
    assert list(tail.lines()) == []
    (tmp_path / "later").write_bytes(b"a\n")
    assert list(tail.lines()) == [b"a\n"]


def test_what_is_behind_the_last_line_is_hashed_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with path.open("wb") as file:
        file.write(b"a\n")
        file.truncate(200_000_002)  # a hole, which costs no disk
    tail = Tail(path)
    assert next(tail.lines()) == b"a\n"
    tracemalloc.start()
    size, digest = tail.rest()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (size, digest) == (200_000_000, files.sha256(bytes(200_000_000)))
    assert peak < 8 << 20


def test_a_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"x" * 100)
    assert files.read_regular(path, 100) == b"x" * 100
    with pytest.raises(OSError, match="it has more than 99 bytes"):
        files.read_regular(path, 99)


def test_a_file_whose_look_fails_keeps_no_descriptor_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "telemetry.jsonl"
    path.write_bytes(b"a\n")

    def stale(_: int) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    before = sorted(Path("/proc/self/fd").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fstat", stale)
        with pytest.raises(OSError, match=r"Stale file handle: '.*telemetry.jsonl'"), files.open_regular(path):
            pass
    assert sorted(Path("/proc/self/fd").iterdir()) == before
