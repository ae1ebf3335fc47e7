"""How long anything here waits for what is to happen."""

from __future__ import annotations

import time
from collections.abc import Callable

TIME_LIMIT = 60.0  # seconds, at most


def wait_for(condition: Callable[[], bool], what: str = "it") -> None:
    """Wait until ``condition()`` holds; raises TimeoutError after TIME_LIMIT."""
    limit = time.monotonic() + TIME_LIMIT
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"{what} did not come about in {TIME_LIMIT:.0f} s")
        time.sleep(0.005)
