"""What a script declares of its run, for a manager to know from the start on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainmgr.contract import protocol
from trainmgr.workload import Workload

pytestmark = pytest.mark.usefixtures("alone")


def started(folder: Path, facts: Any) -> protocol.Start:
    with Workload("w", objective="loss", facts=facts, directory=folder) as w:
        w.eval(1, {"loss": 1.0})
    record = protocol.parse_telemetry((folder / "telemetry.jsonl").read_bytes().splitlines()[0])
    assert isinstance(record, protocol.Start)
    assert record.flaws == ()
    return record


def test_facts_reach_the_start_record(tmp_path: Path) -> None:
    given = {"tokens": np.int64(26_000), "passes": np.float32(118.25), "mixed": True, "scored": "the final weights"}
    assert started(tmp_path, given).facts == {"tokens": 26_000, "passes": 118.25, "mixed": True,
                                              "scored": "the final weights"}  # fmt: skip


def test_without_any_there_are_none(tmp_path: Path) -> None:
    assert started(tmp_path, None).facts == {}


@pytest.mark.parametrize(("facts", "error", "why"), [
    (["tokens"], TypeError, "facts is a list of 1; it must be a dictionary of names and values"),
    ({f"f{i}": i for i in range(17)}, ValueError, "there are 17 facts; at most 16 are told to a manager"),
    ({"x": None}, TypeError, "the fact 'x' is None; it must be a number, true or false, or short text"),
    ({"x": [1]}, TypeError, "the fact 'x' is a list of 1; it must be a number"),
    ({"x": "t" * 65}, ValueError, "the fact 'x' is a text of 65 characters; at most 64 are told"),
    ({"x": float("nan")}, ValueError, "the fact 'x' is nan; it must be a number that JSON has exactly"),
    ({"x": 2**60}, ValueError, "the fact 'x' is 1152921504606846976; it must be a number that JSON has exactly"),
    ({1: 1}, ValueError, "the name of a fact is 1; it must be text of 1 to 64 characters"),
    ({"": 1}, ValueError, "the name of a fact is"),
])  # fmt: skip
def test_what_cannot_be_a_fact_is_said_where_it_is_given(facts: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error) as raised:
        Workload("w", objective="loss", facts=facts)
    assert str(raised.value).startswith(why)


@pytest.mark.parametrize(("facts", "read"), [
    ({"good": 1, "bad": [1], "long": "t" * 65}, {"good": 1}),
    ({f"f{i}": i for i in range(20)}, {f"f{i}": i for i in range(16)}),
    ([1, 2], {}),
])  # fmt: skip
def test_those_of_another_writer_are_read_as_far_as_they_can_be(facts: Any, read: Any) -> None:
    line = {"v": 1, "seq": 0, "t": 0.0, "event": "start", "workload": "w", "pid": 1,
            "objective": {"metric": "loss", "mode": "min"}, "facts": facts}  # fmt: skip
    record = protocol.parse_telemetry(json.dumps(line).encode())
    assert isinstance(record, protocol.Start)
    assert record.facts == read
    assert {flaw.kind for flaw in record.flaws} == {"left out"}
