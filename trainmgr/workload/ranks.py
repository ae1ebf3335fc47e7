"""Which of several processes that train one run this is, and whether a change reaches all of them.

The rank comes from ``torch.distributed`` where it is initialized, else from ``RANK`` and ``WORLD_SIZE``. Replicas that
neither of them tells of (``torch.multiprocessing.spawn``) find each other at the telemetry that all of them would
write, by locks on single bytes of it. Those are POSIX locks: they belong to a process and end with it, however it ends,
and forks of it, such as the workers of a data loader, do not have them. A fork may train in its place before anything
is reported; later ones are helpers, and write nothing. A file system without locks lets everybody write, as if nobody
had asked.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

from trainmgr.workload.surroundings import setting

Broadcast = Callable[[Any], Any]

WRITER, FORK, RIVAL = 0, 1, 2  # the bytes: held by who opened it, by one fork of that, by all who may not write
MOST = 1 << 24  # ranks
PATIENCE = 60.0  # seconds that the ranks wait for one another, once
PAUSE = 0.01  # seconds between two looks

APART = "Several processes train this run, and a change would reach one of them only"
REMEDY = (
    "Call torch.distributed.init_process_group before the Workload starts, or set RANK and WORLD_SIZE for each process"
)


class Group:
    """The processes that get the same changes at the same steps. ``broadcast`` is the script's own way to do that."""

    def __init__(self, broadcast: Broadcast | None) -> None:
        self.rank, self.world = here()
        self._broadcast = broadcast
        self._refusal: str | None = None  # why the ranks do not share; "" once they agreed to
        self._gap = ""
        self._told = False

    def settle(self) -> bool:
        """Once more: the script may have initialized torch.distributed since. Whether this is rank 0."""
        self.rank, self.world = here()
        return self.rank == 0

    def leave(self) -> bool:
        """This process takes no part: no rank 0 any more."""
        self.rank, self.world = -1, 1
        return False

    def share(self) -> tuple[Broadcast | None, str]:
        """Gives every rank what rank 0 has; or None, and why. All ranks call it at the same places."""
        if self._broadcast is not None:
            return self._broadcast, ""
        broadcast = torch_broadcast()
        if broadcast is None:
            return None, "several ranks, and no way to broadcast between them"
        if self._refusal is None:
            self._refusal = "" if _agreed(self.rank) else (
                f"several ranks, and not all of them came with a Workload within {PATIENCE:.0f} s. Start one on every "
                "rank, and report the same steps on all of them; or give broadcast=lambda value: value where only "
                "rank 0 has what is changed"
            )  # fmt: skip
        return (None, self._refusal) if self._refusal else (broadcast, "")

    def gap(self, fd: int | None) -> str:
        """Why a change would not reach all that train, from then on; "" where it would. ``fd``: of our telemetry."""
        if self.world > 1:  # all get it, or share() knows why not
            return self._refusal or ""
        if not self._gap and self._broadcast is None and (ranks := here()[1]) > 1:
            self._gap = (
                f"{APART}: torch.distributed has {ranks} ranks, and was initialized after the Workload was started. "
                f"{REMEDY}"
            )
        if not self._gap and fd is not None and rivals(fd):
            self._gap = f"{APART}: another one has a Workload of its own. {REMEDY}"
        return self._gap

    def news(self, fd: int | None) -> str:
        """The gap, once."""
        found = "" if self._told else self.gap(fd)
        self._told = self._told or bool(found)
        return found


def here() -> tuple[int, int]:
    """The rank of this process, and how many there are."""
    distributed = _initialized()
    if distributed is not None and distributed.get_world_size() > 1:
        return distributed.get_rank(), distributed.get_world_size()
    return setting("RANK", 0, 0, MOST), setting("WORLD_SIZE", 1, 1, MOST)


def torch_broadcast() -> Broadcast | None:
    """Rank 0's object for every rank through torch.distributed, where the script has initialized it; else None."""
    distributed = _initialized()
    if distributed is None:
        return None

    def share(value: Any) -> Any:
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    return share


def _initialized() -> Any:
    distributed = sys.modules.get("torch.distributed")
    there = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return distributed if there else None


_rounds = itertools.count()


def _agreed(rank: int) -> bool:
    """Whether all ranks of torch.distributed came here, each with the rank that it has there.

    A rank that broadcasts while another does not would wait for it for ever, or get what was meant for the training.
    Whoever comes or gives up decides for all: who is the first to count up, which is atomic.
    """
    distributed = _initialized()
    try:
        store = distributed.distributed_c10d._get_default_store()
    except Exception:  # MPI has none
        return True
    place = f"trainmgr/{next(_rounds)}"
    own, world = distributed.get_rank(), distributed.get_world_size()
    store.set(f"{place}/{own}", "same" if own == rank else "other")
    everybody = [f"{place}/{other}" for other in range(world)]
    came = _came(store, everybody if own == 0 else [f"{place}/verdict"])
    if (own == 0 or not came) and store.add(f"{place}/decided", 1) == 1:
        together = own == 0 and came and all(store.get(key) == b"same" for key in everybody)
        store.set(f"{place}/verdict", "together" if together else "apart")
    return _came(store, [f"{place}/verdict"]) and bool(store.get(f"{place}/verdict") == b"together")


def _came(store: Any, keys: list[str]) -> bool:
    """Wait for them, open to signals."""
    limit = time.monotonic() + PATIENCE
    while not store.check(keys):
        if time.monotonic() > limit:
            return False
        time.sleep(PAUSE)
    return True


# -- the right to write ------------------------------------------------------------------------------------------------


def claim(fd: int, byte: int) -> bool:
    """Take it for this process until that ends; False where another process has it. ``fd`` is open for both."""
    return _lock(fd, byte, "LOCK_EX")


def rival(fd: int) -> None:
    """Let the one who writes see that this process trains, too. Ends with ``fd``."""
    _lock(fd, RIVAL, "LOCK_SH")


def rivals(fd: int) -> bool:
    """Whether there are others that would write."""
    if not _lock(fd, RIVAL, "LOCK_EX"):
        return True
    _lock(fd, RIVAL, "LOCK_UN")
    return False


def _lock(fd: int, byte: int, how: str) -> bool:
    """False where another process stands in the way."""
    try:
        import fcntl

        if stat.S_ISREG(os.fstat(fd).st_mode):
            fcntl.lockf(fd, getattr(fcntl, how) | (0 if how == "LOCK_UN" else fcntl.LOCK_NB), 1, byte)
    except ImportError:  # not on this system
        return True
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
