"""What several test modules need."""

from __future__ import annotations

import pytest

from trainmgr import events
from trainmgr.policy import Policy


@pytest.fixture
def manifest() -> events.Manifest:
    return events.Manifest(
        version="0", id="20260101-000000-test-0000", created=0.0, command=["test"], script="test.py", arguments=[],
        directory=".", seed=1, git=None, python="3.11", packages={}, machine={}, manager="rules", mode="auto",
        policy=Policy(),
    )  # fmt: skip
