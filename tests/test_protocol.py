"""The contract between the processes: read without ever raising, and kept equal to schemas/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories import JSON
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trainmgr import protocol, schemas
from trainmgr.policy import Policy
from trainmgr.proposal import Proposal
from trainmgr.protocol import MAX_LINE, Unreadable, parse_telemetry
from trainmgr.wire import to_json

FOLDER = Path(__file__).resolve().parents[1] / "schemas"
EXAMPLES: list[dict[str, Any]] = schemas.EXAMPLES["telemetry"]


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def check(line: bytes) -> None:
    """Whatever it is, the parser's answer can be kept, shown and written."""
    item = parse_telemetry(line)
    if isinstance(item, Unreadable):
        assert item.reason
        assert len(item.quote) <= 120
        assert len(item.reason) < 1500
    assert to_json(item)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_any_bytes(line: bytes) -> None:
    check(line)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(EXAMPLES), st.data())
def test_any_record_with_any_part_replaced(example: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(example)))
    value = data.draw(JSON)
    line = encode({**example, key: value})
    check(line)
    check(line[: len(line) // 2])


@pytest.mark.parametrize("line", [
    b"", b"\n", b"null\n", b"[]", b'"event"', b'{"event":null}', b'{"event":["step"]}', b"\xff\xfe\x00", b"\x00" * 99,
    "{}".encode("utf-16"), b"\xef\xbb\xbf" + encode(EXAMPLES[1]), b"[" * 60_000, b'{"event":' * 7_000,
    b'{"event":"step","step":' + b"9" * 60_000 + b"}", b'{"event":"\\ud800"}', b"loss: --\n", b"NaN",
    b'{"v":1,"seq":0,"t":1,"event":"start","info":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
])  # fmt: skip
def test_hostile_lines(line: bytes) -> None:
    check(line)
    assert isinstance(parse_telemetry(line), Unreadable)


def test_a_line_may_have_64_kib_and_no_byte_more() -> None:
    head, tail = encode({**EXAMPLES[7], "message": ""})[:-2], b'"}\n'
    fits = head + b"x" * (MAX_LINE - len(head) - len(tail)) + tail
    assert len(fits) == MAX_LINE
    assert isinstance(parse_telemetry(fits), protocol.Log)
    longer = parse_telemetry(head + b"x" * 70_000 + tail)
    assert isinstance(longer, Unreadable)
    assert longer.reason == "too long: a line has at most 65536 bytes"
    check(head + b"x" * 70_000 + tail)


def test_what_a_newer_workload_says_besides_is_skipped() -> None:
    new = parse_telemetry(encode({**EXAMPLES[1], "novelty": {"a": 1}}))
    assert new == parse_telemetry(encode(EXAMPLES[1]))
    event = parse_telemetry(encode({**EXAMPLES[1], "event": "novelty"}))
    assert isinstance(event, Unreadable)
    assert event.kind == "unknown"
    version = parse_telemetry(encode({**EXAMPLES[1], "v": 2}))
    assert isinstance(version, Unreadable)
    assert version.kind == "garbage"


def test_two_parameters_of_one_name_are_refused() -> None:
    start = EXAMPLES[0]
    twice = parse_telemetry(encode({**start, "action_space": start["action_space"] * 2}))
    assert isinstance(twice, Unreadable)
    assert "same name" in twice.reason


def test_the_examples_are_every_event_and_parse() -> None:
    items = [parse_telemetry(encode(example)) for example in EXAMPLES]
    assert not [item for item in items if isinstance(item, Unreadable)]
    assert {item.event for item in items} == protocol._EVENTS  # type: ignore[union-attr]


@pytest.mark.parametrize("name", sorted(schemas.EXAMPLES))
def test_the_examples_are_valid(name: str) -> None:
    for example in schemas.EXAMPLES[name]:
        schemas.ADAPTERS[name].validate_json(encode(example))


def test_the_committed_schemas_are_those_of_the_types() -> None:
    """`python -m trainmgr schema schemas` writes them."""
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == schemas.documents()


def test_write(tmp_path: Path) -> None:
    assert {path.name for path in schemas.write(tmp_path / "new")} == set(schemas.documents())


GOOD = {"diagnosis": "unclear", "evidence": "", "action": "keep"}


@pytest.mark.parametrize(
    ("model", "values", "said"),
    [
        (Policy, {"limits": {"clipp": True}},
         "limits.clipp: unknown key; known are clip, cooldown_evals, max_interventions, lead_steps"),
        (Policy, {"parameters": {"lr": {"hgh": 1.0}}},
         "parameters.lr.hgh: unknown key; known are frozen, low, high, max_ratio, min_ratio, max_delta"),
        (Policy, {"limits": 3}, "limits: must be a table of keys and values (found 3)"),
        (Policy, {"limits": {"clip": "yes"}}, "limits.clip: must be true or false (found 'yes')"),
        (Policy, {"cadence": {"every_evals": 1.5}}, "cadence.every_evals: must be a whole number (found 1.5)"),
        (Policy, {"cadence": {"every_evals": 0}}, "cadence.every_evals: must be at least 1 (found 0)"),
        (Policy, {"staleness": {"max_age_seconds": 0}},
         "staleness.max_age_seconds: must be greater than 0 (found 0)"),
        (Proposal, {}, "diagnosis: missing; evidence: missing; action: missing"),
        (Proposal, 5, "value: must be a table of keys and values (found 5)"),
        (Proposal, {**GOOD, "action": "fly"}, "action: must be 'keep', 'adjust', 'rollback' or 'stop' (found 'fly')"),
        (Proposal, {**GOOD, "to": 3}, "to: must be text (found 3)"),
        (Proposal, {**GOOD, "to": "x" * 201}, "to: too long: at most 200 characters are allowed (found 'xxxx"),
        (Proposal, {**GOOD, "changes": {str(i): 1 for i in range(65)}}, "changes: too many: at most 64 are allowed"),
        (Proposal, {**GOOD, "changes": {"lr": None}},
         "changes.lr: must be true or false or a number or text (found None)"),
        (Proposal, {**GOOD, "changes": {"float": "x" * 65}}, "changes.float: too long: at most 64 characters"),
        (Proposal, {**GOOD, "changes": {"lr": float("nan")}}, "changes.lr: must be a finite number (found nan)"),
        (Proposal, {**GOOD, "expected": {"metric": "", "direction": "up", "by": 1}},
         "are needed (found ''); expected.by: unknown key; known are metric, direction, by_step"),
        (Proposal, {**GOOD, **{f"{i}": i for i in range(9)}}, "; and 6 more"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_our_words(model: Any, values: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    assert said in protocol.explain(caught.value, model)
    assert "nput" not in protocol.explain(caught.value)
