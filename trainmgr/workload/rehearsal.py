"""What a checkpoint holds, as far as two can be compared: how `trainmgr check` sees whether a load did anything.

A file of torch is an archive with a member for each tensor. Their checksums are compared wherever they stand, since an
optimizer that has made no step yet has fewer of them; everything else in it may differ for good reasons, as a step
counter does that goes on. Any other file is compared as a whole.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from pathlib import Path

Contents = Counter[tuple[int, int]]
_TENSORS = "data"  # the folder that they have in the archive


def contents(path: Path) -> Contents:
    """Checksum and size of each tensor in a file, or of the file."""
    files = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
    found: Contents = Counter()
    for file in files:
        if not zipfile.is_zipfile(file):
            data = file.read_bytes()
            found[int.from_bytes(hashlib.sha256(data).digest()[:8]), len(data)] += 1
            continue
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        tensors = [member for member in members if _TENSORS in Path(member.filename).parts[:-1]]
        found.update((member.CRC, member.file_size) for member in tensors or members)
    return found


def back(wanted: Contents, before: Contents, after: Contents, again: Contents) -> tuple[int, int]:
    """Of what a checkpoint has and the state before the load had not: how much the state after it has, and of how much.

    ``again`` is the state before the load, saved a second time: what differs then (the time of day) differs after the
    load, too, and does not count. Both are 0 where there was nothing to bring back, or nothing that can be compared.
    Where only whole files can be, a state that is neither as before nor as wanted counts as brought back: something in
    it may have gone on for good reasons.
    """
    lacking = wanted - before
    came = (lacking & after).total()
    total = max(came, lacking.total() - (before - again).total())
    if total == wanted.total() == 1 and not came and after != before:
        return 1, 1
    return came, total
