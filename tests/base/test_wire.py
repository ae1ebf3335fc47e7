"""Everything on disk: one way to become bytes, and no number that is none."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import pytest
from factories import JSON, SURROGATE
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from trainmgr.base.wire import MAX_INT, NON_FINITE, Number, Value, plain, quoted, short, to_json
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Policy
from trainmgr.contract.proposal import Proposal
from trainmgr.deciding.snapshot import Snapshot

TEXT = st.text(max_size=8)
WHOLE = st.integers(0, MAX_INT)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


SCALAR = st.booleans() | st.integers(-MAX_INT, MAX_INT) | FINITE | TEXT
PARAMS = st.dictionaries(TEXT, SCALAR, max_size=3)
METRICS = st.dictionaries(TEXT, st.floats(), max_size=3)
CHANGES = st.dictionaries(TEXT, st.tuples(SCALAR, SCALAR), max_size=2)
HEAD = {"v": st.just(1), "seq": WHOLE, "t": FINITE}
COMMAND = st.none() | st.builds(protocol.Command, id=TEXT, name=st.sampled_from(["checkpoint", "rollback", "stop"]),
                                to=st.none() | TEXT)  # fmt: skip
OVERRIDE = {"revision": st.integers(1, MAX_INT), "params": PARAMS, "based_on_step": WHOLE, "command": COMMAND,
            "valid_until_step": st.none() | WHOLE, "at_step": st.none() | WHOLE, "decision": TEXT}  # fmt: skip
CONTROL = st.builds(
    protocol.Control, **OVERRIDE, run=TEXT, issued=st.builds(protocol.Issued, t=FINITE, step=WHOLE),
    schedule=st.none() | st.lists(st.builds(protocol.Override, **OVERRIDE), max_size=2),
)  # fmt: skip


def record(kind: Any, event: str, **fields: Any) -> st.SearchStrategy[Any]:
    return st.builds(kind, **HEAD, event=st.just(event), **fields)


TELEMETRY = st.one_of(
    record(protocol.Step, "step", step=WHOLE, metrics=METRICS),
    record(protocol.Eval, "eval", step=WHOLE, metrics=METRICS, params=PARAMS,
           split=st.dictionaries(TEXT, METRICS, max_size=2)),
    record(protocol.Checkpoint, "checkpoint", step=WHOLE, path=TEXT, metrics=METRICS, best=st.booleans()),
    record(protocol.Applied, "applied", revision=WHOLE, step=WHOLE, boundary=st.just("eval"), changes=CHANGES,
           command=COMMAND, groups=st.dictionaries(TEXT, st.lists(st.floats(), max_size=2), max_size=2)),
    record(protocol.Refused, "refused", revision=WHOLE, step=WHOLE, reason=TEXT),
    record(protocol.Log, "log", level=TEXT, message=TEXT),
    record(protocol.End, "end", status=st.sampled_from(get_args(protocol.EndStatus)), step=WHOLE, metrics=METRICS),
)  # fmt: skip
AUDIT = st.one_of(
    st.builds(events.Verdict, decision=TEXT, telemetry_offset=WHOLE, telemetry_sha256=TEXT, age_seconds=FINITE,
              result=st.sampled_from(["accepted", "clipped", "rejected"]), action=st.just("adjust"),
              diagnosis=st.none() | st.just("plateau"), changes=PARAMS, command=COMMAND, expected=st.none(),
              evidence=TEXT, checks=st.lists(st.builds(events.Check, name=TEXT, ok=st.booleans(), reason=TEXT),
                                             max_size=2)),
    st.builds(events.OverrideIssued, decision=TEXT, origin=st.just("manager"), control=CONTROL),
    st.builds(events.Acknowledged, decision=TEXT, revision=WHOLE, telemetry_offset=WHOLE, result=st.just("applied"),
              step=WHOLE, boundary=st.none() | st.just("step"), changes=CHANGES, reason=TEXT),
    st.builds(events.Outcome, decision=TEXT, revision=WHOLE, telemetry_offset=WHOLE, step=WHOLE,
              before=st.none() | st.floats(), after=st.lists(st.tuples(WHOLE, st.floats()), max_size=3), closed=TEXT),
    st.builds(events.Response, decision=TEXT, manager=TEXT, raw=st.none() | PARAMS, seconds=FINITE),
    st.builds(events.Attached, telemetry_offset=WHOLE, telemetry_sha256=TEXT),
    st.builds(events.Approval, decision=TEXT, answer=st.just("none")),
    st.builds(events.Stalled, seconds=FINITE, step=WHOLE),
    st.builds(events.Restarted, attempt=WHOLE, exit=TEXT, resume=st.none() | TEXT),
    st.builds(events.Operator, action=TEXT, by=TEXT),
    st.builds(events.Signalled, name=TEXT, passed=st.booleans()),
    st.builds(events.Failure, where=TEXT, message=TEXT, decision=st.none() | TEXT),
    st.builds(events.SnapshotTaken, decision=TEXT, trigger=TEXT, telemetry_offset=WHOLE, telemetry_sha256=TEXT,
              snapshot=st.fixed_dictionaries({"progress": st.fixed_dictionaries({"step": WHOLE, "evaluations": WHOLE}),
                                              "recipe": PARAMS})),
)  # fmt: skip
PROPOSAL = st.builds(Proposal, diagnosis=st.just("plateau"), evidence=TEXT, action=st.just("adjust"), changes=PARAMS,
                     to=st.none() | TEXT, falsifier=TEXT, confidence=st.none() | st.floats(0, 1))  # fmt: skip


def survives(item: Any) -> None:
    data = to_json(item)
    again = type(item).model_validate_json(data)
    assert to_json(again) == data == to_json(item)
    assert plain(again) == json.loads(data, parse_constant=pytest.fail)


@examples(300)
@given(TELEMETRY | CONTROL | AUDIT | PROPOSAL)
def test_every_record_survives_a_round_trip_byte_for_byte(item: Any) -> None:
    survives(item)


@examples(100)
@given(TELEMETRY)
def test_telemetry_reads_back_through_the_parser(item: Any) -> None:
    assert to_json(protocol.parse_telemetry(to_json(item) + b"\n")) == to_json(item)


def test_non_finite_numbers_are_strings() -> None:
    item = protocol.Step(v=1, seq=0, t=0.0, event="step", step=1,
                         metrics={"a": math.nan, "b": math.inf, "c": -math.inf})  # fmt: skip
    assert plain(item)["metrics"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity"}
    again = protocol.Step.model_validate_json(to_json(item)).metrics
    assert math.isnan(again["a"])
    assert (again["b"], again["c"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("text", ["true", "false", "null", '"0.1"', '"nan"', '"inf"', '"+Infinity"', "[]", "{}",
                                  "1e999", "-1e999", "NaN", "Infinity", "9" * 400])  # fmt: skip
def test_what_is_no_number_is_no_metric(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Number).validate_json(text)
    line = f'{{"v":1,"seq":0,"t":1.0,"event":"step","step":1,"metrics":{{"loss":{text},"acc":0.5}}}}'
    item = protocol.parse_telemetry(line.encode())
    assert isinstance(item, protocol.Step)
    assert item.metrics["acc"] == 0.5
    assert list(item.metrics) == (["loss", "acc"] if text in NON_FINITE else ["acc"])
    assert [flaw.kind for flaw in item.flaws] == ["spelling" if text in NON_FINITE else "left out"]


@pytest.mark.parametrize("field", ["t", "seq", "step"])
@pytest.mark.parametrize("text", ["true", "null", '"1"', '"NaN"', "1e999", "NaN", "9" * 400])
def test_what_is_no_number_is_refused_in_the_head(field: str, text: str) -> None:
    fields = {"v": "1", "seq": "0", "t": "1.0", "event": '"step"', "step": "1", "metrics": "{}", field: text}
    line = "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"
    assert isinstance(protocol.parse_telemetry(line.encode()), protocol.Unreadable)


@pytest.mark.parametrize("text", ["null", "1e999", "NaN", "9" * 400, "[]", f'"{"x" * 65}"'])
def test_what_no_parameter_can_have_is_no_value(text: str) -> None:
    head = '"revision":1,"based_on_step":1,"decision":"d1","run":"r","issued":{"t":1,"step":1}'
    protocol.Control.model_validate_json(f'{{{head},"params":{{"lr":1}}}}')
    with pytest.raises(ValidationError):
        protocol.Control.model_validate_json(f'{{{head},"params":{{"lr":{text}}}}}')


@pytest.mark.parametrize(("text", "kind"), [("1", int), ("1.0", float), ("true", bool), ('"1"', str)])
def test_a_value_keeps_its_type(text: str, kind: type) -> None:
    assert type(TypeAdapter(Value).validate_json(text, strict=True)) is kind


@pytest.mark.parametrize("kind", [protocol.Control, Proposal, Policy, Snapshot, events.Verdict])
def test_unknown_keys_are_errors_in_what_is_ours(kind: Any) -> None:
    with pytest.raises(ValidationError, match="surprise"):
        kind.model_validate({"surprise": 1})


@examples(200)
@given(JSON | st.text(max_size=300))
def test_quoted_and_short_are_one_printable_line(value: Any) -> None:
    assert len(quoted(value)) <= 60
    assert quoted(value).isprintable()
    if isinstance(value, str):
        assert len(short(value, 20)) <= 20
        assert short(value, 20).isprintable()


def test_quoted_never_raises() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert quoted(deep) == "a value of type list"
    assert quoted(10**5000) == "a value of type int"
    assert quoted(SURROGATE) == r"'\ud800'"
    while deep:  # taken apart by hand: the garbage collector's way would be as deep
        deep = deep[0]
