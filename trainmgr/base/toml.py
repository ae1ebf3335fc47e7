"""TOML files that people write: policies and experiments. The only reader of TOML.

What is larger or deeper than any of them is refused before it is parsed: Python's parser takes memory with the square
of the parts of a key, so that 100 kB of ``a.a.a...`` were 8 GB.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from trainmgr.base.errors import UserError
from trainmgr.base.files import read_regular

LARGEST = 256 * 1024  # bytes
DOTS = 200  # in one line, which a key cannot leave


def load(path: Path, what: str, wrong: type[UserError] = UserError) -> dict[str, Any]:
    """The values in the file ``path``, which is a ``what``: "policy file", say.

    Raises ``wrong`` for what is no file, too large, or no TOML.
    """
    try:
        data = read_regular(path, LARGEST)
    except OSError as error:
        raise wrong(f"The {what} {path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise wrong(f"The {what} {path} cannot be read: no file has such a name.") from None
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.count(b".") > DOTS:
            raise wrong(f"The {what} {path}, line {number}: it has more than {DOTS} dots. Break the line.")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or beyond what Python parses
        raise wrong(f"The {what} {path} is not TOML: {error}.") from None
