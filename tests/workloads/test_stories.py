"""The data half of the TinyStories workload: where the text comes from, what becomes of it. No network."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stories
import story_grammar
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinystories"
SMALL = stories.Corpus("the cat sat. " * 200, "the dog sat.\n" * 40, "test", True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no data named, and the hub switched off: no test here can reach the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TRAINMGR_TINYSTORIES", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TRAINMGR_OFFLINE", "1")
    return stories.cache_dir()


def folder(path: Path, train: str, valid: str = "valid text. one more.") -> Path:
    path.mkdir(parents=True)
    (path / "train.txt").write_text(train, encoding="utf-8")
    (path / "valid.txt").write_text(valid, encoding="utf-8")
    return path


# ---- sources, in order -----------------------------------------------------------------------------------


def test_the_argument_comes_before_the_variable_the_cache_and_our_own_stories(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in = stories.load(None, train_chars=500, seed=1)
    assert (built_in.source, built_in.genuine) == ("built-in stories (not TinyStories)", False)
    folder(cache, "from the cache")
    cached = stories.load(None, train_chars=0, seed=1)
    assert (cached.train, cached.source, cached.genuine) == ("from the cache", f"cache {cache}", True)
    variable = folder(tmp_path / "variable", "from the variable")
    monkeypatch.setenv("TRAINMGR_TINYSTORIES", str(variable))
    assert stories.load(None, train_chars=0, seed=1).train == "from the variable"
    argument = folder(tmp_path / "argument", "from the argument")
    named = stories.load(argument, train_chars=0, seed=1)
    assert (named.train, named.source, named.genuine) == ("from the argument", f"folder {argument}", True)


def test_the_cache_lies_under_home_without_the_xdg_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert stories.cache_dir() == Path("/home/somebody/.cache/trainmgr/tinystories")


@pytest.mark.parametrize("damage", ["missing", "empty", "binary"])
def test_a_cache_that_is_not_whole_is_passed_over(cache: Path, damage: str) -> None:
    folder(cache, "from the cache")
    valid = cache / "valid.txt"
    valid.unlink() if damage == "missing" else valid.write_bytes(b"" if damage == "empty" else b"\xff\xfe\x00")
    assert not stories.load(None, train_chars=100, seed=1).genuine


@given(chars=st.integers(0, 40))
def test_training_text_is_cut_to_characters_not_bytes(chars: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = "Zoë's Fußball 🎈 flew.\nAway!"
    corpus = stories.load(folder(tmp_path_factory.mktemp("cut") / "data", text), train_chars=chars, seed=0)
    assert corpus.train == (text[:chars] if chars else text)
    assert corpus.valid == "valid text. one more."


@pytest.mark.parametrize(
    ("prepare", "found"),
    [
        (lambda path: path.rmdir(), "does not exist"),
        (lambda path: (path.rmdir(), path.write_text("x")), "is not a folder"),
        (lambda path: None, "has no train.txt (found: nothing)"),
        (lambda path: (path / "train.txt").write_text("x"), "has no valid.txt (found: train.txt)"),
        (
            lambda path: [(path / n).write_text(" \n") for n in ("train.txt", "valid.txt")],
            "train.txt is empty",
        ),
        (lambda path: (path / "train.txt").write_bytes(b"\xff"), "train.txt is unreadable"),
        (lambda path: (path / "train.txt").mkdir(), "train.txt is unreadable"),
    ],
)
@pytest.mark.parametrize("named_by", ["--data", "TRAINMGR_TINYSTORIES"])
def test_a_named_folder_that_cannot_be_used_is_an_error_that_says_what_is_needed(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[Path], object],
    found: str,
    named_by: str,
) -> None:
    folder(cache, "never read: the user named a folder")
    path = tmp_path / "named"
    path.mkdir()
    prepare(path)
    monkeypatch.setenv("TRAINMGR_TINYSTORIES", str(path) if named_by != "--data" else "/nowhere")
    with pytest.raises(stories.DataError, match=re.escape(found)) as caught:
        stories.load(path if named_by == "--data" else None, train_chars=0, seed=0)
    assert str(caught.value).startswith(f"{named_by} names {path}, ")
    assert "it needs train.txt and valid.txt" in str(caught.value)


# ---- the hub, with a fake in the place of the package ----------------------------------------------------

HUB_TEXT = "A cat sat.\n\nIt ran.\n<|endoftext|>\n\nZoë sang.<|endoftext|>\nThis one is cut of"


class FakeBar:
    def __init__(self, **_: object) -> None: ...
    def __enter__(self) -> FakeBar:
        return self

    def __exit__(self, *_: object) -> None: ...
    def update(self, count: int) -> None: ...


def fake_hub(monkeypatch: pytest.MonkeyPatch, pieces: Callable[[], Iterator[bytes]], status: int = 206) -> list[Any]:
    """Put a fake `huggingface_hub` in place that answers with `pieces()`; returns the requests made."""
    requests: list[Any] = []

    @contextlib.contextmanager
    def stream(method: str, url: str, **options: Any) -> Iterator[SimpleNamespace]:
        requests.append((method, url, options))
        yield SimpleNamespace(status_code=status, iter_bytes=lambda size: pieces())

    utils = SimpleNamespace(
        tqdm=FakeBar,
        logging=SimpleNamespace(set_verbosity_error=lambda: None),
        build_hf_headers=lambda: {"user-agent": "test"},
        hf_raise_for_status=lambda answer: None,
        http_stream_backoff=stream,
    )
    hub = SimpleNamespace(utils=utils, hf_hub_url=lambda repo, name, repo_type: f"{repo_type}:{repo}/{name}")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    monkeypatch.delenv("TRAINMGR_OFFLINE")
    return requests


def test_the_hub_gives_the_beginnings_of_both_files_once(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    content = HUB_TEXT.encode()
    requests = fake_hub(monkeypatch, lambda: iter([content[:40], content[40:]]))  # also inside a character
    fetched = stories.load(None, train_chars=5, seed=1)
    assert fetched == stories.Corpus("A cat", "A cat sat.\n\nIt ran.\nZoë sang.\n", f"hub {stories.HUB}", True)
    assert [url for _, url, _ in requests] == [
        f"dataset:{stories.HUB}/TinyStories-{name}.txt" for name in ("train", "valid")
    ]
    assert requests[0][2]["headers"] == {"user-agent": "test", "Range": "bytes=0-1999999"}
    assert requests[0][2]["max_retries"] == 0
    assert sorted(entry.name for entry in cache.iterdir()) == ["train.txt", "valid.txt"]
    again = stories.load(None, train_chars=0, seed=1)
    assert (again.train, again.source, len(requests)) == (fetched.valid, f"cache {cache}", 2)


@pytest.mark.parametrize(
    ("pieces", "status", "reason"),
    [
        (lambda: iter([b"x"]), 200, "got status 200"),  # a server without ranges would send 1.9 GB
        (lambda: iter([b"no story ends here"]), 206, "no whole story"),
        (lambda: iter(()).__next__(), 206, "StopIteration"),
    ],
)
def test_a_hub_that_fails_leads_to_our_own_stories_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    pieces: Callable[[], Iterator[bytes]],
    status: int,
    reason: str,
) -> None:
    fake_hub(monkeypatch, pieces, status)
    assert not stories.load(None, train_chars=100, seed=1).genuine
    assert reason in capsys.readouterr().err
    assert not cache.exists()


def test_a_hub_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    release = threading.Event()

    def hang() -> Iterator[bytes]:
        release.wait(30)
        yield b""

    fake_hub(monkeypatch, hang)
    monkeypatch.setattr(stories, "HUB_FIRST_SECONDS", 0.01)
    try:
        assert not stories.load(None, train_chars=100, seed=1).genuine
    finally:
        release.set()
    assert "away or too slow" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["TRAINMGR_OFFLINE", "HF_HUB_OFFLINE"])
def test_the_offline_variables_skip_the_hub(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    requests = fake_hub(monkeypatch, lambda: iter([HUB_TEXT.encode()]))
    monkeypatch.setenv(variable, "1")
    assert not stories.load(None, train_chars=100, seed=1).genuine
    assert requests == []
    assert f"{variable} is set" in capsys.readouterr().err


def test_without_the_package_the_message_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRAINMGR_OFFLINE")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert not stories.load(None, train_chars=100, seed=1).genuine
    assert "pip install 'huggingface_hub" in capsys.readouterr().err


def test_a_late_piece_is_not_kept_after_giving_up() -> None:
    """The abandoned thread ends at the next piece and reports nothing more."""
    pieces: queue.Queue[Any] = queue.Queue()
    given_up = threading.Event()
    given_up.set()
    answer = SimpleNamespace(status_code=206, iter_bytes=lambda size: iter([b"late", b"later"]))
    utils = SimpleNamespace(
        build_hf_headers=dict,
        hf_raise_for_status=lambda answer: None,
        http_stream_backoff=lambda *_, **__: contextlib.nullcontext(answer),
    )
    stories._download(SimpleNamespace(hf_hub_url=lambda *_, **__: "url"), utils, pieces, given_up)
    assert pieces.empty()


# ---- our own stories -------------------------------------------------------------------------------------


def test_our_stories_depend_on_the_seed_alone() -> None:
    first = stories.built_in(train_chars=30_000, seed=3)
    assert first == stories.built_in(train_chars=30_000, seed=3)
    assert len(first.train) == 30_000
    longer, other = stories.built_in(train_chars=60_000, seed=3), stories.built_in(train_chars=30_000, seed=4)
    assert longer.train.startswith(first.train)
    assert longer.valid == first.valid
    assert first.train != other.train
    assert first.valid != other.valid


def test_our_stories_are_the_same_in_every_release() -> None:
    """Measured figures are about this text: who changes the grammar changes them, and should know."""
    corpus = stories.built_in(train_chars=20_000, seed=1)
    assert stories._key(corpus, "char", 0) == "c2b2db0ee9d68e0d6ffaaae6a14fff87"


def test_thousands_of_stories_are_distinct_and_rarely_share_a_sentence() -> None:
    told = [story_grammar.tell(random.Random(f"many/{number}")) for number in range(3000)]
    assert len(set(told)) == 3000
    words = [len(story.split()) for story in told]
    assert all(80 <= count <= 200 for count in words)
    sentences = [sentence for story in told for sentence in re.split(r"(?<=[.!?])\s", story)]
    sentences = [sentence for sentence in sentences if sentence.count(" ") > 4]
    assert len(set(sentences)) > 0.95 * len(sentences)
    assert len(set(re.findall(r"[a-z]+", " ".join(told).lower()))) > 1500
    assert not re.search(r"[{}_]|  | [.,!?]", " ".join(told)), "an open slot or a wrong blank"
    assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", " ".join(told)), "a wrong article"


def test_training_and_validation_share_no_story() -> None:
    corpus = stories.built_in(train_chars=0, seed=1)
    assert len(corpus.train) >= 1_000_000
    assert len(corpus.valid) >= 200_000
    train, valid = (re.split(r"(?<!\n)\n(?!\n)", text.strip()) for text in (corpus.train, corpus.valid))
    assert len(train) > 1000
    assert len(valid) > 200
    assert len(set(train)) == len(train)
    assert not set(train) & set(valid)


def test_the_same_story_in_both_streams_goes_to_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "BUILT_IN_VALID_CHARS", 4)
    monkeypatch.setattr(stories, "tell", lambda rng: f"{int(rng.random() * 12)}.")
    corpus = stories.built_in(train_chars=12, seed=0)
    assert not set(corpus.train.split()) & set(corpus.valid.split())
    assert len(set(corpus.train.split())) == len(corpus.train.split())


@given(st.integers(0, 10**9))
def test_pronouns_agree(seed: int) -> None:
    rng = random.Random(seed)
    cast = story_grammar._cast(rng, story_grammar._picker(rng))
    for name, he in ((cast["name"], cast["he"]), (cast["friend"], cast["fhe"])):
        assert (he == "she") == (name in story_grammar.GIRLS)
        assert (he == "he") == (name in story_grammar.BOYS)
    assert cast["name"] != cast["friend"]


def test_every_slot_of_the_templates_has_a_word_list_or_a_cast() -> None:
    rng = random.Random(0)
    known = {*story_grammar.WORDS, *story_grammar._cast(rng, story_grammar._picker(rng))}
    groups: list[tuple[str, ...]] = [row for plot in story_grammar.PLOTS for row in plot]
    groups += [story_grammar.OPENINGS, story_grammar.SETTINGS, story_grammar.FEELINGS, story_grammar.MEETINGS]
    groups += [story_grammar.ASKING, story_grammar.THANKS, story_grammar.ENDINGS, story_grammar.LESSONS]
    slots = {slot.removesuffix("_cap") for row in groups for text in row for slot in re.findall(r"\{(\w*)\}", text)}
    assert slots <= known
    for name, words in story_grammar.WORDS.items():
        assert len(set(words)) == len(words), f"{name} has a word twice"


# ---- halves of the validation text -----------------------------------------------------------------------


@given(st.text(min_size=2, max_size=300))
def test_the_halves_join_to_the_whole_and_neither_is_empty(text: str) -> None:
    valid, test = stories.split_validation(text)
    assert valid + test == text
    assert valid
    assert test


@pytest.mark.parametrize("separator", ["\n<|endoftext|>\n", "\n", "\n\n"])
def test_the_cut_is_at_the_story_boundary_nearest_the_middle(separator: str) -> None:
    told = [f"Once upon a time, {'x' * size}.\n\nOne day it ended." for size in (90, 40, 30, 50, 70)]
    text = separator.join(told)
    valid, test = stories.split_validation(text)
    assert test.startswith("Once upon a time")
    ends = [len(separator.join(told[:count]) + separator) for count in range(1, 5)]
    assert len(valid) == min(ends, key=lambda end: abs(end - len(text) // 2))


def test_our_own_validation_text_is_cut_between_stories() -> None:
    valid, test = stories.split_validation(stories.built_in(train_chars=100, seed=1).valid)
    assert valid.endswith((".\n", "!\n", "?\n", '"\n'))
    assert abs(len(valid) - len(test)) < 2000
    split = [set(re.split(r"(?<!\n)\n(?!\n)", half.strip())) for half in (valid, test)]
    assert not split[0] & split[1]


def test_a_text_too_short_for_two_halves_is_an_error() -> None:
    with pytest.raises(stories.DataError, match="has 1 characters"):
        stories.split_validation("x")


# ---- tokens ----------------------------------------------------------------------------------------------


def check(tokens: stories.Tokens) -> None:
    for array in (tokens.train, tokens.valid, tokens.test):
        assert array.dtype == np.int64
        assert array.ndim == 1
        assert len(array)
        assert array.min() >= 0
        assert array.max() < tokens.vocab


def same(one: stories.Tokens, other: stories.Tokens) -> bool:
    arrays = [(one.train, other.train), (one.valid, other.valid), (one.test, other.test)]
    return one.vocab == other.vocab and all(np.array_equal(a, b) for a, b in arrays)


def test_characters_are_numbered_in_order_with_one_id_for_unknown_ones() -> None:
    tokens = stories.tokenize(stories.Corpus("cab\n", "bad\ncZ", "test", True), "char", 0)
    check(tokens)
    assert tokens.vocab == 5
    assert tokens.train.tolist() == [3, 1, 2, 0]
    assert tokens.valid.tolist() + tokens.test.tolist() == [2, 1, 4, 0, 3, 4]


@given(train=st.text(min_size=1, max_size=60), other=st.text(max_size=60))
def test_characters_round_trip(train: str, other: str) -> None:
    alphabet = stories.char_alphabet(train)
    ids = stories.char_ids(train, alphabet)
    assert "".join(chr(alphabet[i]) for i in ids) == train
    for character, i in zip(other, stories.char_ids(other, alphabet).tolist(), strict=True):
        assert chr(alphabet[i]) == character if i < len(alphabet) else character not in train


def test_bpe_stays_in_its_vocabulary_and_decodes_to_the_text() -> None:
    corpus = stories.built_in(train_chars=30_000, seed=1)
    tokens = stories.tokenize(corpus, "bpe", 2048)
    check(tokens)
    assert tokens.vocab == 2048  # 30 KB of our stories fill the vocabulary of the quick profile
    assert len(np.unique(tokens.train)) > 1000
    tokenizer = stories.train_bpe(corpus.train, 2048)
    halves = stories.split_validation(corpus.valid)
    for ids, text in zip((tokens.train, tokens.valid, tokens.test), (corpus.train, *halves), strict=True):
        assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text


@given(st.text(max_size=40))
@examples(50)
def test_bpe_knows_every_character(text: str) -> None:
    tokenizer = stories.train_bpe(SMALL.train, 300)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_two_processes_learn_the_same_tokens() -> None:
    """Also with different hash seeds; and the cache key, hence the text, is the same too."""
    script = (
        "import stories, hashlib; c = stories.built_in(train_chars=20000, seed=2);"
        "t = stories.tokenize(c, 'bpe', 1024); ids = t.train.tobytes() + t.test.tobytes();"
        "print(stories._key(c, 'bpe', 1024), hashlib.sha256(ids).hexdigest())"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={
                **os.environ,
                "PYTHONPATH": path,
                "PYTHONHASHSEED": seed,
                "XDG_CACHE_HOME": "/dev/null/none",
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_cached_result_equals_a_fresh_one(cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    fresh = stories.tokenize(SMALL, kind, 300)
    (kept,) = (cache / "tokens").iterdir()
    monkeypatch.setattr(stories, "train_bpe", None)  # nothing is learned again
    monkeypatch.setattr(stories, "char_ids", None)
    assert same(stories.tokenize(SMALL, kind, 300), fresh)
    assert kept.suffix == ".npz"


def test_the_cache_key_holds_all_that_the_tokens_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = stories.Corpus(SMALL.train + SMALL.valid[:1], SMALL.valid[1:], "test", True)
    keys = [stories._key(corpus, "bpe", 300) for corpus in (SMALL, moved)]
    keys += [stories._key(SMALL, "bpe", 301), stories._key(SMALL, "char", 300)]
    monkeypatch.setattr(stories, "TOKENS_VERSION", -1)
    keys.append(stories._key(SMALL, "bpe", 300))
    assert len(set(keys)) == len(keys)


def test_a_damaged_cache_file_is_written_anew(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = stories.tokenize(SMALL, "char", 0)
    (kept,) = (cache / "tokens").iterdir()
    whole = kept.read_bytes()
    rng = random.Random(0)
    damaged = [b"", b"not a zip", whole[: len(whole) // 2], whole + b"x" * 50]
    for _ in range(150):
        at = rng.randrange(len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
    for content in damaged:
        kept.write_bytes(content)
        assert same(stories.tokenize(SMALL, "char", 0), fresh)
        assert same(stories._read_tokens(kept) or fresh, fresh)
    assert "is damaged" in capsys.readouterr().err
    kept.write_bytes(b"")
    stories.tokenize(SMALL, "char", 0)
    assert stories._read_tokens(kept) is not None


@pytest.mark.parametrize(
    "arrays",
    [
        {"train": np.array([1], object)},
        {"train": np.array([1], np.int32)},
        {"train": np.array([[1]])},
        {"train": np.array([7])},
        {"train": np.array([-1])},
        {"train": np.array([], np.int64)},
    ],
)
def test_a_cache_file_of_the_wrong_shape_is_not_believed(tmp_path: Path, arrays: dict[str, Any]) -> None:
    one = np.array([1])
    np.savez(tmp_path / "t.npz", **{"train": one, "valid": one, "test": one, "vocab": np.array([3]), **arrays})
    assert stories._read_tokens(tmp_path / "t.npz") is None


def test_a_cache_that_cannot_be_written_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    check(stories.tokenize(SMALL, "char", 0))
    assert "cannot keep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stories.tokenize(SMALL, "words", 300), 'must be "bpe" or "char"'),
        (lambda: stories.tokenize(SMALL, "bpe", 255), "vocabulary is 255; it must be 256 or more"),
        (
            lambda: stories.tokenize(stories.Corpus("", "ab", "x", True), "char", 0),
            "training text of x is empty",
        ),
        (lambda: stories.load(None, train_chars=-1, seed=0), "train_chars is -1; it must be 0"),
    ],
)
def test_a_wrong_request_is_an_error_that_says_what_is_allowed(call: Callable[[], object], message: str) -> None:
    with pytest.raises(stories.DataError, match=re.escape(message)):
        call()


def test_without_the_tokenizers_package_the_message_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(stories.DataError, match="pip install tokenizers"):
        stories.tokenize(SMALL, "bpe", 300)
    check(stories.tokenize(SMALL, "char", 0))


@pytest.mark.skipif(not REAL.is_dir(), reason="the excerpts of TinyStories are not on this machine")
def test_the_real_excerpts() -> None:
    corpus = stories.load(REAL, train_chars=30_000, seed=0)
    valid, test = stories.split_validation(corpus.valid)
    assert test.startswith("Once upon a time")
    assert abs(len(valid) - len(test)) < 5000
    check(stories.tokenize(corpus, "bpe", 2048))
