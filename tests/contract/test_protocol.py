"""The contract between the processes: read without ever raising, and kept equal to schemas/."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import JSON
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainmgr.base.wire import plain, to_json
from trainmgr.contract import protocol, schemas
from trainmgr.contract.policy import Policy
from trainmgr.contract.proposal import Proposal
from trainmgr.contract.protocol import MAX_LINE, Unreadable, parse_telemetry

FOLDER = Path(__file__).resolve().parents[2] / "schemas"
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
    else:
        assert all(flaw.reason and len(flaw.reason) < 500 for flaw in item.flaws)
    assert to_json(item)


@examples(300)
@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_any_bytes(line: bytes) -> None:
    check(line)


@examples(300)
@given(st.sampled_from(EXAMPLES), st.data())
def test_any_record_with_any_part_replaced(example: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(example)))
    value = data.draw(JSON)
    line = encode({**example, key: value})
    check(line)
    check(line[: len(line) // 2])


@pytest.mark.parametrize("line", [
    b"", b"\n", b"null\n", b"[]", b'"event"', b'{"event":null}', b'{"event":["step"]}', b"\xff\xfe\x00", b"\x00" * 99,
    "{}".encode("utf-16"), b"[" * 60_000, b'{"event":' * 7_000,
    b'{"event":"step","step":' + b"9" * 60_000 + b"}", b'{"event":"\\ud800"}', b"loss: --\n", b"NaN",
    b'{"v":1,"seq":0,"t":1,"event":"start","info":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
])  # fmt: skip
def test_hostile_lines(line: bytes) -> None:
    check(line)
    assert isinstance(parse_telemetry(line), Unreadable)


EVAL: dict[str, Any] = {
    **EXAMPLES[2],
    "metrics": {"val_loss": 5.54},
    "params": {"lr": 0.003},
    "split": {"a": {"x": 1.0}},
}


@examples(300)
@given(
    st.dictionaries(st.text(max_size=5).filter(lambda name: name != "val_loss"), JSON, max_size=4),
    st.sampled_from(["metrics", "params", "split"]),
)
def test_whatever_stands_beside_a_good_objective_it_is_read(others: dict[str, Any], field: str) -> None:
    try:
        line = json.dumps({**EVAL, field: {**others, **EVAL[field]}}, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair: no JSON of anybody's
        return
    item = parse_telemetry(line)
    assert isinstance(item, protocol.Eval), item
    assert item.metrics["val_loss"] == 5.54
    left = sum(flaw.kind == "left out" for flaw in item.flaws)
    if field != "split":
        assert len(getattr(item, field)) + left == len({*others, *EVAL[field]})


@pytest.mark.parametrize(("text", "said"), [
    ("null", "metrics.x: must be a number (found None)"),
    ("[0.1, 0.2]", "metrics.x: must be a number (found [0.1, 0.2])"),
    ('{"macro": {"f1": 0.5}}', "metrics.x: must be a number (found {'macro': {'f1': 0.5}})"),
    ('"warm"', "metrics.x: 'warm' is not a number; only the strings NaN, Infinity, -Infinity stand for one"),
    ("true", "metrics.x: true and false are not numbers"),
    ("1e999", "metrics.x: not a number of JSON; write one of the strings NaN, Infinity, -Infinity"),
])  # fmt: skip
@pytest.mark.parametrize("event", ["step", "eval", "checkpoint", "end"])
def test_a_metric_that_is_none_is_left_out_with_its_reason(text: str, said: str, event: str) -> None:
    example = next(example for example in EXAMPLES if example["event"] == event)
    item = parse_telemetry(encode({**example, "metrics": {"a": 1.5, "x": "X"}}).replace(b'"X"', text.encode()))
    assert not isinstance(item, Unreadable)
    assert item.metrics == {"a": 1.5}  # type: ignore[union-attr]
    assert item.flaws == (("left out", said),)
    assert plain(item)["metrics"] == {"a": 1.5}


def test_a_bad_entry_costs_itself_only() -> None:
    changed = {"params": {"lr": 0.003, "wd": None}, "split": {"easy": {"success": 0.9, "note": "x"}, "hard": 3}}
    item = parse_telemetry(encode({**EXAMPLES[2], **changed}))
    assert isinstance(item, protocol.Eval)
    assert (item.params, item.split) == ({"lr": 0.003}, {"easy": {"success": 0.9}})
    places = [flaw.reason.split(":")[0] for flaw in item.flaws]
    assert places == ["params.wd", "split.easy.note", "split.hard"]
    start = parse_telemetry(encode({**EXAMPLES[0], "metrics": {"loss": "nats", "acc": {"description": "share"}}}))
    assert isinstance(start, protocol.Start)
    assert list(start.metrics) == ["acc"]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_read_without_quotes_too(text: str) -> None:
    line = encode(EXAMPLES[2]).replace(b"5.54", text.encode()).replace(b"0.9,", text.encode() + b",")
    item, quoted = parse_telemetry(line), parse_telemetry(line.replace(text.encode(), f'"{text}"'.encode()))
    assert isinstance(item, protocol.Eval)
    assert to_json(item) == to_json(quoted)
    assert [flaw.kind for flaw in item.flaws] == ["spelling"] * 2
    assert item.flaws[0].reason == f"metrics.val_loss: {text} without quotes"
    assert quoted.flaws == ()  # type: ignore[union-attr]


def test_whole_numbers_in_the_form_of_others_are_whole_numbers() -> None:
    space = [{"name": "n", "type": "int", "low": 1.0, "high": 64.0, "value": 32.0}]
    changed = {"v": 1.0, "seq": 0.0, "pid": 4711.0, "seed": 3.0, "total_steps": 1e2, "action_space": space,
               "resumed": {"path": "x", "step": 5.0}}  # fmt: skip
    item = parse_telemetry(encode({**EXAMPLES[0], **changed}))
    assert isinstance(item, protocol.Start), item
    assert (item.total_steps, item.seed, item.resumed and item.resumed.step, item.flaws) == (100, 3, 5, ())
    assert repr(item.action_space[0].value) == "32"
    assert type(item.total_steps) is int
    for key, value in (("total_steps", 100.5), ("seed", 0.5), ("seed", "3"), ("pid", True), ("total_steps", 1e300)):
        wrong = parse_telemetry(encode({**EXAMPLES[0], **changed, key: value}))
        assert isinstance(wrong, Unreadable)
        assert wrong.reason.startswith(f"start.{key}: ")
        assert "; " not in wrong.reason  # nothing is blamed that can be read


def test_a_byte_order_mark_is_skipped_and_line_ends_of_windows_are_none_of_ours() -> None:
    line = encode(EXAMPLES[1])
    assert parse_telemetry(b"\xef\xbb\xbf" + line + b"\r\n") == parse_telemetry(line)
    longest = b"\xef\xbb\xbf" + line[:-1] + b" " * MAX_LINE
    assert "too long" in getattr(parse_telemetry(longest), "reason", "")


@pytest.mark.parametrize(("line", "event", "said"), [
    (b'{"event": "eval", "metrics": {"a": nan}}', "eval", "not JSON: Expecting value at character 36"),
    ('{"event": "eval", "metrics": {"\u00e4": 1}}'.encode("latin-1"), "eval", "not UTF-8"),
    ('{"event": "eval"}'.encode("utf-16"), "", "not UTF-8: it has zero bytes, as UTF-16 has"),
    (b'{"event": "eval", "metrics": {"a": ' + b"1" * MAX_LINE, "eval", "too long: a line has at most 65536 bytes"),
    (encode({**EVAL, "step": None}), "eval", "eval.step: must be a whole number (found None)"),
    (encode({**EVAL, "metrics": None}), "eval", "eval.metrics: must be a table of keys and values (found None)"),
    (b"loss: 1.5", "", "not JSON: Expecting value at character 1"),
])  # fmt: skip
def test_what_cannot_be_read_says_why_and_what_it_would_have_been(line: bytes, event: str, said: str) -> None:
    item = parse_telemetry(line)
    assert isinstance(item, Unreadable)
    assert (item.event, item.reason) == (event, said)


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
    found = {path.name: path.read_text() for path in FOLDER.iterdir() if path.name != "README.md"}
    assert found == schemas.documents()


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
        (Proposal, {**GOOD, "action": "fly"}, "'keep', 'adjust', 'rollback', 'stop' or 'undo' (found 'fly')"),
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


def test_a_status_is_one_of_a_few() -> None:
    line = b'{"v":1,"seq":0,"t":0.0,"event":"end","status":"\\u001b[2Jdone","step":4}\n'
    found = protocol.parse_telemetry(line)
    assert isinstance(found, protocol.End)
    assert found.status == "unknown"
    assert [flaw.kind for flaw in found.flaws] == ["status"]
    assert found.flaws[0].reason.isprintable()
    assert isinstance(protocol.parse_telemetry(line.replace(b'"\\u001b[2Jdone"', b"7")), protocol.Unreadable)


# -- the quick way of plain steps ----------------------------------------------------------------------------------

NAMES = st.sampled_from(["loss", "grad_norm", "a b", "é", "", "NaN", "step", "x" * 80]) | st.text(max_size=5)
STEPS = st.fixed_dictionaries({
    "v": st.just(1), "seq": st.integers(0, 2**54), "t": st.floats(0, 1e308) | st.integers(0, 2**54),
    "event": st.just("step"), "step": st.integers(-5, 2**54),
    "metrics": st.dictionaries(NAMES, st.floats(allow_nan=False) | st.integers(-(2**64), 2**64)
                               | st.sampled_from(["NaN", "Infinity", "-Infinity", "nan", True, None, [1]]), max_size=4),
})  # fmt: skip
PIECES = st.sampled_from([
    b"", b'"', b"\\", b"\\u0061", b"-", b"0", b"1", b"9" * 20, b".", b"e5", b"1e999", b"-0", b"-0.0", b"1.0", b"true",
    b"null", b"NaN", b"Infinity", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\t", b"\r", b"\n", b"\x0b", b"\x00",
    b"\xff", b"\xef\xbb\xbf", b"\xc3\xa9", b'"seq":3,', b'"step":"step",', b'"metrics":{},', b'"x":1,"x":2,',
    b'"new":1,', b'"loss":null,', b"//", b"'",
]) | st.binary(max_size=3)  # fmt: skip
EDITS = st.lists(st.tuples(st.integers(0, 400), st.sampled_from([0, 0, 1, 2, 6]), PIECES), max_size=3)


def inside(item: protocol.Telemetry | Unreadable) -> tuple[Any, ...]:
    """Everything that a record holds; NaN is not equal to itself, and 1 is equal to 1.0."""
    private = item.__pydantic_private__
    return type(item), repr(item.__dict__), sorted(item.model_fields_set), item.__pydantic_extra__, private


@examples(1500)
@given(STEPS, st.permutations(["v", "seq", "t", "event", "step", "metrics"]), st.booleans(), EDITS)
def test_a_plain_step_is_read_as_every_other_line(
    step: dict[str, Any], order: list[str], tight: bool, edits: list[tuple[int, int, bytes]]
) -> None:
    """Whatever is done to it: what is refused, mended and noted is the same, too."""
    text = json.dumps({key: step[key] for key in order}, separators=(",", ":") if tight else None, ensure_ascii=tight)
    line = text.encode(errors="replace")
    for place, length, piece in edits:
        place %= len(line) + 1
        line = line[:place] + piece + line[place + length :]
    assert inside(parse_telemetry(line + b"\n")) == inside(protocol._parsed(line + b"\n"))


def thoroughly(line: bytes) -> protocol.Telemetry | Unreadable:
    """A line as it is read by asking first whether it is JSON, next whether it is a record, and which, at last."""
    if len(line) > MAX_LINE:
        return protocol._parsed(line)
    line = line.removeprefix(protocol._BOM)
    try:
        value = protocol._DECODER.decode(line.decode())
    except (ValueError, RecursionError) as error:
        return protocol._unreadable(line, protocol._not_json(line, error))
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        return protocol._unreadable(line, "no object with an `event`")
    if value["event"] not in protocol._EVENTS:
        return protocol._unreadable(line, f"event {value['event'][:40]!r} is not known", "unknown")
    try:
        return protocol._TELEMETRY.validate_json(line)
    except ValidationError as error:
        try:
            return protocol._mended(value, error)
        except ValidationError as left:
            return protocol._unreadable(line, protocol.explain(left))


@examples(1500)
@given(st.sampled_from(EXAMPLES), st.booleans(), EDITS, st.data())
def test_what_is_read_at_once_is_what_is_found_step_by_step(
    example: dict[str, Any], tight: bool, edits: list[tuple[int, int, bytes]], data: st.DataObject
) -> None:
    """Of every event, whatever is done to the line: the record, its flaws, and why it is none."""
    values = {key: example[key] for key in data.draw(st.permutations(sorted(example)))}
    line = json.dumps(values, separators=(",", ":") if tight else None).encode()
    for place, length, piece in edits:
        place %= len(line) + 1
        line = line[:place] + piece + line[place + length :]
    assert inside(parse_telemetry(line)) == inside(thoroughly(line))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["event"])
def test_a_line_of_the_protocol_is_parsed_once(example: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []

    def spy(call: Any) -> Any:
        return lambda *arguments: parsed.append(1) or call(*arguments)

    monkeypatch.setattr(protocol, "from_json", spy(protocol.from_json))
    monkeypatch.setattr(protocol, "_TELEMETRY", SimpleNamespace(validate_json=spy(protocol._TELEMETRY.validate_json)))
    monkeypatch.setattr(protocol, "_DECODER", SimpleNamespace(decode=spy(protocol._DECODER.decode)))
    for line in (encode(example), json.dumps(example, separators=(",", ":")).encode()):
        parsed.clear()
        assert not isinstance(parse_telemetry(line), Unreadable)
        assert len(parsed) == 1


@pytest.mark.parametrize("line", [
    b'{"v":1,"seq":3,"t":1.5,"event":"step","step":7,"metrics":{"loss":0.5,"grad_norm":"NaN","n":3}}\n',
    b'{"metrics": {}, "step": 0, "event": "step", "t": 3, "seq": 0, "v": 1}\r\n',
])  # fmt: skip
def test_plain_steps_are_read_the_quick_way(line: bytes) -> None:
    """Else the test above would compare a thing with itself."""
    quick = protocol._plain_step(line)
    assert quick is not None
    assert inside(quick) == inside(protocol._parsed(line))
    assert pickle.loads(pickle.dumps(quick)) == quick or "nan" in repr(quick)
    assert to_json(quick) == to_json(protocol._parsed(line))
    assert not quick.flaws


@pytest.mark.parametrize("line", [
    b'{"v":1,"seq":3,"t":1.5,"event":"step","step":7,"metrics":{"a":1.0,"a":null}}\n',
    b'{"v":1,"seq":3,"seq":3,"t":1.5,"event":"step","step":7,"metrics":{}}\n',
    b'{"v":1,"seq":3,"t":1.5,"event":"step","step":7,"metrics":{"\\u0061":1.0}}\n',
    b'{"v":1,"seq":3,"t":1.5,"event":"step","step":7,"metrics":{"a":NaN}}\n',
    b'{"v":1,"seq":3,"t":1.5,"event":"step","step":7,"metrics":{"a":1e999}}\n',
    b'{"v":1,"seq":3,"t":1.5,"event":"step","step":7,"metrics":{"a":true}}\n',
    b'{"v":1,"seq":3,"t":1.5,"event":"step","step":7,"metrics":{"a":9007199254740993}}\n',
    b'{"v":1,"seq":3,"t":1.5,"event":"step","step":7.0,"metrics":{}}\n',
    b'{"v":true,"seq":3,"t":1.5,"event":"step","step":7,"metrics":{}}\n',
    b'{"v":1,"seq":-1,"t":1.5,"event":"step","step":7,"metrics":{}}\n',
    b'{"v":1,"seq":3,"t":1.5,"event":"step","step":7,"metrics":{},"new":1}\n',
    b'\xef\xbb\xbf{"v":1,"seq":3,"t":1.5,"event":"step","step":7,"metrics":{}}\n',
    b'{"v":1,"seq":3,"t":1.5,"event":"step","step":7,"metrics":{' + b" " * MAX_LINE + b"}}\n",
])  # fmt: skip
def test_what_is_odd_is_not(line: bytes) -> None:
    assert protocol._plain_step(line) is None
