"""Where the text of `tinystories.py` comes from, and how it becomes tokens.

`load` takes the first of: the folder that the user named; the local cache; the Hugging Face hub (only the
first 2 MB and 1 MB of two files, kept in the cache); stories of our own grammar (`story_grammar.py`), which
are marked as not genuine. `tokenize` turns the text into characters or byte-level BPE and keeps the result in
the cache.

Environment: TRAINMGR_TINYSTORIES (folder with train.txt and valid.txt), TRAINMGR_OFFLINE=1 or
HF_HUB_OFFLINE=1 (do not try the hub), XDG_CACHE_HOME (the cache is `trainmgr/tinystories` in it, `~/.cache`
if unset).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import queue
import random
import re
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from story_grammar import tell

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HUB = "roneneldan/TinyStories"
HUB_BYTES = {"train": 2_000_000, "valid": 1_000_000}  # of 1.9 GB and 19 MB: more than any profile reads
HUB_FIRST_SECONDS = 4.0  # wait for the first bytes; name lookup, connection and TLS are all inside it
HUB_STALL_SECONDS = 8.0  # wait for each further piece
HUB_TOTAL_SECONDS = 60.0
BUILT_IN = "built-in stories (not TinyStories)"
BUILT_IN_TRAIN_CHARS = 1_000_000  # where the caller asks for the whole text
BUILT_IN_VALID_CHARS = 240_000
TOKENS_VERSION = 2  # raise when the meaning of a cached token file changes

_END_OF_STORY = re.compile(r"\s*<\|endoftext\|>\s*")
# What may separate two stories, most certain first. Excerpts come without the marker: there a new story
# follows a line break, or opens with the formula of TinyStories.
_BOUNDARIES = (
    re.compile(r"<\|endoftext\|>\s*"),
    re.compile(r"\n+(?=Once upon a time)"),
    re.compile(r"(?<!\n)\n(?!\n)"),
    re.compile(r"\n+"),
    re.compile(r"\s+"),
)


class DataError(ValueError):
    """The data or the request is at fault: the message says what was found and what is needed."""


class _HubError(Exception):
    """The hub gave no text. Never leaves this module: the built-in stories follow."""


@dataclass(frozen=True)
class Corpus:
    """Text for training and validation, both non-empty."""

    train: str
    valid: str
    source: str
    """Where it came from, for people: "folder /path", "cache /path", "hub NAME", or `BUILT_IN`."""
    genuine: bool
    """False for the built-in stories: nothing measured on them is a TinyStories figure."""


@dataclass(frozen=True)
class Tokens:
    """Token ids, each in [0, vocab), one dimension."""

    train: npt.NDArray[np.int64]
    valid: npt.NDArray[np.int64]
    """The first half of the validation text."""
    test: npt.NDArray[np.int64]
    """The second half of the validation text, from the story boundary nearest its middle."""
    vocab: int
    """Number of ids. For BPE at most what was asked for: a short text has fewer pairs to merge."""


def load(data: Path | None, *, train_chars: int, seed: int) -> Corpus:
    """Find the text, in the order that the module describes.

    `data` is the folder that the user named, or None. The training text is cut to its first `train_chars`
    characters (0: not cut). `seed` matters to the built-in stories only. A source may hold fewer characters
    than asked for. Raises DataError when a named folder cannot be used; waits for the hub a few seconds at
    most when it is away.
    """
    if train_chars < 0:
        raise DataError(f"train_chars is {train_chars}; it must be 0 (the whole text) or more")
    named = os.environ.get("TRAINMGR_TINYSTORIES")
    if data is not None:
        return _from_folder(data, "--data", train_chars)
    if named:
        return _from_folder(Path(named), "TRAINMGR_TINYSTORIES", train_chars)
    cache = cache_dir()
    cached = _from_cache(cache, train_chars)
    if cached is not None:
        return cached
    try:
        texts = _fetch()
    except _HubError as error:
        _note(f"no TinyStories ({error}); using {BUILT_IN}. --data DIR names a folder with the real text")
        return built_in(train_chars=train_chars, seed=seed)
    for name, text in texts.items():
        _keep(cache / f"{name}.txt", partial(_write_text, text))
    return Corpus(_cut(texts["train"], train_chars), texts["valid"], f"hub {HUB}", True)


def built_in(*, train_chars: int, seed: int) -> Corpus:
    """Stories of our own grammar, the same for the same seed on every machine and Python version.

    The validation text does not depend on `train_chars`, and a longer training text begins with the shorter
    one. No story of the one text is in the other.
    """
    valid, held_out = _stories(f"valid/{seed}", BUILT_IN_VALID_CHARS, set())
    train, _ = _stories(f"train/{seed}", train_chars or BUILT_IN_TRAIN_CHARS, held_out)
    return Corpus(_cut(train, train_chars), valid, BUILT_IN, False)


def tokenize(corpus: Corpus, kind: str, vocab: int) -> Tokens:
    """Token ids of a corpus; what is learned (characters, BPE merges) is learned from its training text only.

    `kind` "char": one id a character of the training text, in code point order, and one last id for all
    others; `vocab` is ignored. `kind` "bpe": byte-level BPE of at most `vocab` entries (256 or more), the
    same on every run. The result is read from, or kept in, the cache. Raises DataError for an unknown kind, a
    vocabulary that is too small, a text that is too short to split, or a missing `tokenizers` package.
    """
    if kind not in ("bpe", "char"):
        raise DataError(f'tokenizer is {kind!r}; it must be "bpe" or "char"')
    if kind == "bpe" and vocab < 256:
        raise DataError(f"BPE vocabulary is {vocab}; it must be 256 or more, one entry for each byte value")
    if not corpus.train:
        raise DataError(f"the training text of {corpus.source} is empty")
    valid, test = split_validation(corpus.valid)
    path = cache_dir() / "tokens" / f"{_key(corpus, kind, vocab)}.npz"
    cached = _read_tokens(path)
    if cached is not None:
        return cached
    texts = (corpus.train, valid, test)
    if kind == "char":
        alphabet = char_alphabet(corpus.train)
        train_ids, valid_ids, test_ids = (char_ids(text, alphabet) for text in texts)
        size = len(alphabet) + 1
    else:
        tokenizer = train_bpe(corpus.train, vocab)
        train_ids, valid_ids, test_ids = (np.array(tokenizer.encode(text).ids, np.int64) for text in texts)
        size = tokenizer.get_vocab_size()
    tokens = Tokens(train_ids, valid_ids, test_ids, size)
    _keep(path, partial(_write_tokens, tokens))
    return tokens


def split_validation(text: str) -> tuple[str, str]:
    """The validation text and the test text: two non-empty halves that join to `text`.

    The cut is at the story boundary nearest the middle; of several kinds of boundary the most certain one
    counts that occurs between a quarter and three quarters of the text. Raises DataError for less than two
    characters.
    """
    if len(text) < 2:
        raise DataError(f"the validation text has {len(text)} characters; two halves are made of it")
    middle, first, last = len(text) // 2, len(text) // 4, len(text) * 3 // 4
    for boundary in _BOUNDARIES:
        ends = [match.end() for match in boundary.finditer(text, first, last) if 0 < match.end() < len(text)]
        if ends:
            middle = min(ends, key=lambda end: abs(end - middle))
            break
    return text[:middle], text[middle:]


def char_alphabet(text: str) -> npt.NDArray[np.int64]:
    """The code points of a text, ascending, each once; a character's id is its place here."""
    return np.unique(_code_points(text))


def char_ids(text: str, alphabet: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Ids in [0, len(alphabet)]; the last one is for characters that are not in the alphabet."""
    points = _code_points(text)
    ids = np.minimum(np.searchsorted(alphabet, points), len(alphabet) - 1)
    return np.where(alphabet[ids] == points, ids, len(alphabet)).astype(np.int64)


def train_bpe(text: str, vocab: int) -> Tokenizer:
    """Byte-level BPE of at most `vocab` entries: every text can be encoded, and decodes to itself."""
    # One thread: the run counts its threads, and the merges of a small text take under a second anyway.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise DataError(
            "BPE needs the package tokenizers, which is missing: pip install tokenizers (or use characters)"
        ) from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,  # a merge seen once is a token that is never trained on again
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def cache_dir() -> Path:
    """Folder of the cache; it need not exist."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(root) if root else Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in some containers
        base = Path(tempfile.gettempdir())
    return base / "trainmgr" / "tinystories"


def _from_folder(folder: Path, named: str, train_chars: int) -> Corpus:
    who = f"{named} names {folder}"
    need = "it needs train.txt and valid.txt, both UTF-8 text and not empty"
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{who}, which {found}; {need}")
    texts = {}
    for name, chars in (("train", train_chars), ("valid", 0)):
        file = folder / f"{name}.txt"
        try:
            text = _read(file, chars)
        except FileNotFoundError:
            held = sorted(entry.name for entry in folder.iterdir())
            found = ", ".join(held[:8]) + (f" and {len(held) - 8} more" if len(held) > 8 else "") or "nothing"
            raise DataError(f"{who}, which has no {file.name} (found: {found}); {need}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{who}, but its {file.name} is unreadable ({error}); {need}") from error
        if not text.strip():
            raise DataError(f"{who}, but its {file.name} is empty; {need}")
        texts[name] = text
    return Corpus(texts["train"], texts["valid"], f"folder {folder}", True)


def _from_cache(cache: Path, train_chars: int) -> Corpus | None:
    """The cached excerpt of the hub, or None where it is not there, not whole or not readable."""
    try:
        train, valid = _read(cache / "train.txt", train_chars), _read(cache / "valid.txt", 0)
    except (OSError, UnicodeDecodeError):
        return None
    return Corpus(train, valid, f"cache {cache}", True) if train.strip() and valid.strip() else None


def _fetch() -> dict[str, str]:
    """The beginnings of both hub files, stories separated by one line break. Raises _HubError, at once or in
    time.

    The requests run in a daemon thread, because nothing else bounds a name lookup that hangs; this thread
    only waits.
    """
    for variable in ("TRAINMGR_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise _HubError(f"{variable} is set")
    try:
        # By name, so that a type checker needs neither the package nor its (missing) annotations.
        hub: Any = importlib.import_module("huggingface_hub")
        utils: Any = importlib.import_module("huggingface_hub.utils")
    except ImportError as error:
        raise _HubError("the package huggingface_hub is missing: pip install 'huggingface_hub>=1'") from error
    utils.logging.set_verbosity_error()  # its warnings about retries would come on top of our own line
    pieces: queue.Queue[tuple[str, bytes] | Exception | None] = queue.Queue()
    given_up = threading.Event()
    threading.Thread(target=_download, args=(hub, utils, pieces, given_up), daemon=True).start()
    parts: dict[str, list[bytes]] = {name: [] for name in HUB_BYTES}
    wait, deadline = HUB_FIRST_SECONDS, time.monotonic() + HUB_TOTAL_SECONDS
    # disable=None: tqdm draws the bar in a terminal only.
    total = sum(HUB_BYTES.values())
    with utils.tqdm(desc=HUB, total=total, unit="B", unit_scale=True, disable=None) as bar:
        try:
            while True:
                piece = pieces.get(timeout=max(0.0, min(wait, deadline - time.monotonic())))
                if piece is None:
                    break
                if isinstance(piece, Exception):
                    raise _HubError(f"{HUB}: {type(piece).__name__}: {str(piece).partition(chr(10))[0]}")
                parts[piece[0]].append(piece[1])
                bar.update(len(piece[1]))
                wait = HUB_STALL_SECONDS
        except queue.Empty:
            raise _HubError(f"{HUB}: the hub is away or too slow, gave up after {wait:g} s") from None
        finally:
            given_up.set()
    return {name: _whole_stories(b"".join(part)) for name, part in parts.items()}


def _download(
    hub: Any, utils: Any, pieces: queue.Queue[tuple[str, bytes] | Exception | None], given_up: threading.Event
) -> None:
    """Put each received piece as (file, bytes), then None; or the exception that ended it. Writes no file."""
    try:
        for name, size in HUB_BYTES.items():
            url = hub.hf_hub_url(HUB, f"TinyStories-{name}.txt", repo_type="dataset")
            headers = {**utils.build_hf_headers(), "Range": f"bytes=0-{size - 1}"}
            # Not HfFileSystem: it asks for the tree first and makes each request up to six times, with waits.
            request = utils.http_stream_backoff("GET", url, max_retries=0, headers=headers, timeout=HUB_STALL_SECONDS)
            with request as answer:
                utils.hf_raise_for_status(answer)
                if answer.status_code != 206:  # the whole file would follow, 1.9 GB
                    raise OSError(f"asked for the first {size} bytes, got status {answer.status_code}")
                for piece in answer.iter_bytes(65_536):
                    if given_up.is_set():
                        return
                    pieces.put((name, piece))
        pieces.put(None)
    except Exception as error:  # whatever the client library raises: the waiting thread reports it
        pieces.put(error)


def _whole_stories(content: bytes) -> str:
    """Complete stories of a cut file, one line break between two of them, as in the excerpts of our tests."""
    stories = _END_OF_STORY.split(content.decode("utf-8", errors="ignore"))[:-1]
    if not stories:
        raise _HubError(f"{HUB}: no whole story in {len(content)} bytes")
    return "\n".join(story for story in stories if story) + "\n"


def _stories(stream: str, chars: int, taken: set[str]) -> tuple[str, set[str]]:
    """Distinct stories of one random stream, none of them in `taken`: at least `chars` characters in all."""
    told: dict[str, None] = {}
    length = number = 0
    while length < chars:
        story = tell(random.Random(f"{stream}/{number}"))
        number += 1
        if story not in taken and story not in told:
            told[story] = None
            length += len(story) + 1
    return "".join(f"{story}\n" for story in told), set(told)


def _key(corpus: Corpus, kind: str, vocab: int) -> str:
    """Name of a cached token file. The library's version counts: another one may learn other merges."""
    digest = hashlib.sha256()
    library = ""
    if kind == "bpe":
        with suppress(importlib.metadata.PackageNotFoundError):
            library = importlib.metadata.version("tokenizers")
    settings = (str(TOKENS_VERSION), kind, str(vocab) if kind == "bpe" else "", library)
    for part in (*settings, corpus.train, corpus.valid):
        content = part.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:32]


def _read_tokens(path: Path) -> Tokens | None:
    """Cached tokens, or None where there are none or the file is damaged (it is then written anew)."""
    try:
        # Opened here, because numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            arrays = {name: held[name] for name in ("train", "valid", "test", "vocab")}
        if any(array.dtype != np.int64 or array.ndim != 1 or not len(array) for array in arrays.values()):
            raise ValueError("not one-dimensional int64 arrays")
        vocab = int(arrays.pop("vocab")[0])
        if any(array.min() < 0 or array.max() >= vocab for array in arrays.values()):
            raise ValueError(f"ids outside [0, {vocab})")
    except FileNotFoundError:
        return None
    # RuntimeError, NotImplementedError: a damaged header can name an encryption or a compression nobody has
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        _note(f"tokens are made again, {path} is damaged ({error})")
        return None
    return Tokens(arrays["train"], arrays["valid"], arrays["test"], vocab)


def _write_tokens(tokens: Tokens, file: IO[bytes]) -> None:
    size = np.array([tokens.vocab], np.int64)
    np.savez_compressed(file, train=tokens.train, valid=tokens.valid, test=tokens.test, vocab=size)


def _keep(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a cache file beside its place, then move it there. A cache that cannot be written only warns."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise
    except OSError as error:
        _note(f"cannot keep {path.name} in the cache ({error}); XDG_CACHE_HOME names another place")


def _write_text(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())


def _read(file: Path, chars: int) -> str:
    """The first `chars` characters of a UTF-8 file (0: all of it)."""
    with file.open(encoding="utf-8") as text:
        return text.read(chars or -1)


def _cut(text: str, chars: int) -> str:
    return text[:chars] if chars else text


def _code_points(text: str) -> npt.NDArray[np.int64]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64)


def _note(message: str) -> None:
    print(f"stories: {message}", file=sys.stderr, flush=True)
