"""What may be answered, and how any text at all is read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from factories import (
    FREE,
    JSON,
    NUMBERS,
    SURROGATE,
    TEXTS,
    applied,
    augment,
    batch,
    checkpoint,
    curve,
    dropout,
    ema,
    evaluation,
    everything,
    fold,
    kind,
    lr,
    parameters,
    start,
    step,
    view,
)
from factories.profiles import examples
from factories.situations import judge
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.base.wire import short
from trainmgr.contract.policy import Actions, Limits, ParameterLimits, Policy
from trainmgr.contract.protocol import Objective
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.managers import prompt
from trainmgr.managers.answer import (
    CANDIDATES,
    EVIDENCE,
    FALSIFIER,
    extract,
    objection,
    read,
    spoken,
    whole,
)
from trainmgr.managers.prompts.v3.schema import grammar, schema
from trainmgr.state.run_state import RunState

STRICT = {"type", "enum", "const", "anyOf", "properties", "required", "additionalProperties", "minimum", "maximum"}
LENGTHS = {"maxLength"}  # for llama.cpp only
ALL = tuple(p.name for p in everything())


def names(shown: Snapshot) -> tuple[str, ...]:
    return prompt.render(shown, 10**6).parameters


def answered(action: str = "keep", changes: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"evidence": "x", "diagnosis": "unclear", "action": action, "to": None, "changes": changes or {},
            "expected": None, "falsifier": "", "confidence": 0.5, **more}  # fmt: skip


def nodes(of: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A schema and every schema in it."""
    yield of
    for inner in (*of.get("anyOf", ()), *of.get("properties", {}).values()):
        yield from nodes(inner)


@st.composite
def instances(draw: st.DrawFn, of: dict[str, Any]) -> Any:
    """Any value that keeps to one of our schemas, its limits among the likely ones."""
    if "anyOf" in of:
        return draw(instances(draw(st.sampled_from(of["anyOf"]))))
    if "enum" in of:
        return draw(st.sampled_from(of["enum"]))
    if "const" in of:
        return of["const"]
    if "properties" in of:
        return {name: draw(instances(inner)) for name, inner in of["properties"].items()}
    wanted = draw(st.sampled_from([of["type"]] if isinstance(of["type"], str) else of["type"]))
    low, high = of.get("minimum"), of.get("maximum")
    if wanted == "integer":
        return draw(st.integers(low, high)) if low is not None else draw(st.integers(-(2**53) + 1, 2**53 - 1))
    if wanted == "number":
        return draw(st.floats(low, high) | st.sampled_from([low, high]))
    if wanted == "string":
        return draw(st.text(max_size=of.get("maxLength", 2000)))
    return draw(st.booleans()) if wanted == "boolean" else None


@st.composite
def runs(draw: st.DrawFn) -> RunState:
    """Any parameters, healthy or worse, some of them just changed, with or without a best checkpoint."""
    space = draw(st.just(everything()) | parameters().map(lambda p: [p, kind(), augment(value=True)]) | st.just([]))
    odd = Objective(metric=draw(st.sampled_from(["val", "v" * 64, "step", "l\u0433"])), mode="min")
    best = draw(st.booleans())
    state = fold([start(*space, action_space=space, objective=odd), *([checkpoint(1)] if best else [])])
    for i in range(draw(st.integers(0, 4))):
        fold([step(i, loss=1.0), evaluation(i, **{odd.metric: 2.0, "": 1.0, "mean.loss": 3.0, "v" * 63: 1.0})], state)
    if space and draw(st.booleans()):
        fold([applied(state.step, 1, {space[0].name: (space[0].value, space[0].value)})], state)
    return state


POLICIES = st.builds(
    Policy,
    limits=st.builds(Limits, cooldown_evals=st.integers(0, 2), max_interventions=st.none() | st.integers(0, 2)),
    actions=st.builds(Actions, rollback=st.booleans(), stop=st.booleans()),
)


def judged(raw: Any, state: RunState, policy: Policy) -> dict[str, str]:
    """The guard's checks that failed, with their reasons."""
    ruling = judge(raw, state, policy)
    return {check.name: check.reason for check in ruling.checks if not check.ok}


# -- the schema ------------------------------------------------------------------------------------------------------


@examples(80)
@given(runs(), POLICIES)
def test_the_schemas_are_strict(state: RunState, policy: Policy) -> None:
    shown = view(state, policy)
    for made, keywords in ((schema(shown, names(shown)), STRICT), (grammar(shown, names(shown)), STRICT | LENGTHS)):
        json.dumps(made, allow_nan=False)
        for node in nodes(made):
            assert set(node) <= keywords
            assert ("properties" in node) == (node.get("type") == "object")
            if "properties" in node:
                assert node["additionalProperties"] is False
                assert node["required"] == list(node["properties"])
            for key in ("enum", "anyOf"):
                assert key not in node or node[key]
            values = [(type(value), value) for value in node.get("enum", ())]
            assert len(set(values)) == len(values)
            assert node.get("minimum", 0) <= node.get("maximum", math.inf)


def test_a_schema_in_full() -> None:
    shown = view(curve([2.0, 1.9], *everything(), train=[2.0, 1.8]))
    made = schema(shown, ALL)
    assert list(made["properties"]) == [
        "evidence", "diagnosis", "action", "to", "changes", "expected", "falsifier", "confidence"
    ]  # fmt: skip
    assert made["properties"]["action"] == {"type": "string", "enum": ["keep", "adjust", "rollback", "stop"]}
    assert made["properties"]["to"] == {"type": ["string", "null"], "enum": [None, "best", "initial"]}
    null = {"type": "null"}
    assert made["properties"]["changes"]["properties"] == {
        "lr": {"anyOf": [{"type": "number", "minimum": 3e-4, "maximum": 5e-3}, null]},
        "dropout": {"anyOf": [{"type": "number", "minimum": 0.0, "maximum": 0.2}, null]},
        "ema": {
            "anyOf": [{"type": "number", "minimum": 0.9, "maximum": 0.999}, {"type": "number", "enum": [0.0]}, null]
        },
        "batch": {"anyOf": [{"type": "integer", "minimum": 8, "maximum": 24}, null]},
        "augment": {"type": ["boolean", "null"]},
        "kind": {"anyOf": [{"type": "string", "enum": ["a", "b", "c"]}, null]},
    }
    expected = made["properties"]["expected"]["properties"]
    assert expected["metric"]["enum"] == ["val", "train", "mean.loss"]


@examples(80)
@given(parameters())
def test_limits_are_what_one_change_reaches(parameter: Any) -> None:
    shown = view(fold([start(parameter)]))
    row, found = shown.recipe[0], schema(shown, ("p",))["properties"]["changes"]["properties"]["p"]["anyOf"]
    ranges = [part for part in found if "minimum" in part]
    for part in ranges:
        assert row.reach_low <= part["minimum"] <= part["maximum"] <= row.reach_high
        for limit in (part["minimum"], part["maximum"]):
            assert parameter.objection(limit) is None
            assert parameter.too_far(limit, parameter.value) is None
            assert parameter.type == "float" or type(limit) is int
    assert [part["enum"] for part in found if "enum" in part] == ([] if row.off is None else [[row.off]])


def test_nothing_is_offered_that_is_not_allowed_now() -> None:
    state = curve([2.0], best=False)
    frozen = Policy(actions=FREE.actions, parameters={p.name: ParameterLimits(frozen=True) for p in everything()})
    bare = schema(view(state, frozen), ALL)
    assert bare["properties"]["action"]["enum"] == ["keep", "stop"]
    assert bare["properties"]["changes"]["properties"] == {}
    assert bare["properties"]["to"]["enum"] == [None]  # there is no best to stop on
    spent = schema(view(state, Policy(limits=Limits(max_interventions=0), actions=FREE.actions)), ALL)
    assert spent["properties"]["changes"]["properties"] == {}
    assert set(schema(view(state), ("lr",))["properties"]["changes"]["properties"]) == {"lr"}


def test_a_grammar_has_one_alternative_for_each_action() -> None:
    shown = view(curve([2.0], lr(), augment(value=True)))
    made = {part["properties"]["action"]["const"]: part["properties"] for part in grammar(shown, ALL)["anyOf"]}
    assert list(made) == ["keep", "adjust", "rollback", "stop"]
    assert [part["to"]["enum"] for part in made.values()] == [[None], [None], ["best", "initial"], ["best", None]]
    rates = [3e-4, 0.000606, 0.00122, 0.00247, 5e-3]
    assert made["keep"]["changes"]["properties"] == made["stop"]["changes"]["properties"] == {}
    assert made["rollback"]["changes"]["properties"] == {"lr": {"enum": [*rates, None]},
                                                         "augment": {"enum": [False, None]}}  # fmt: skip
    assert [part["properties"] for part in made["adjust"]["changes"]["anyOf"]] == [
        {"lr": {"enum": rates}, "augment": {"enum": [False, None]}}, {"augment": {"enum": [False]}}
    ]  # fmt: skip


def test_a_grammar_has_no_adjust_where_nothing_is_left_to_change() -> None:
    shown = view(curve([2.0], lr(low=3e-3, high=3e-3), kind(choices=["a"])))
    assert "adjust" in shown.actions
    assert [part["properties"]["action"]["const"] for part in grammar(shown, ("lr", "kind"))["anyOf"]] == [
        "keep", "rollback", "stop"
    ]  # fmt: skip


def test_a_grammar_does_not_explode() -> None:
    space = [lr(name=f"{i:02}" + "x" * 62) for i in range(64)]
    shown = view(curve([2.0], *space))
    assert len(json.dumps(grammar(shown, tuple(p.name for p in space)))) < 120_000


# -- whoever keeps to it ---------------------------------------------------------------------------------------------


@examples(150)
@given(st.data(), runs(), POLICIES)
def test_whoever_keeps_to_the_schema_errs_in_what_belongs_to_an_action_only(
    data: st.DataObject, state: RunState, policy: Policy
) -> None:
    shown = view(state, policy)
    found = read(json.dumps(data.draw(instances(schema(shown, names(shown))))))
    wrong = objection(found, shown, names(shown))
    assert wrong is None or re.fullmatch(
        r'"(keep|stop)" takes no changes|"adjust" needs at least one change or plan|'
        r'"to" = .* is nothing that ".*" takes; .*',
        wrong,
    )
    if wrong is None:
        assert set(judged(found, state, policy)) <= {"no-op", "joint"}


@examples(150)
@given(st.data(), runs(), POLICIES)
def test_whoever_keeps_to_the_grammar_is_accepted(data: st.DataObject, state: RunState, policy: Policy) -> None:
    shown = view(state, policy)
    found = read(json.dumps(data.draw(instances(grammar(shown, names(shown))))))
    assert objection(found, shown, names(shown)) is None
    assert judged(found, state, policy) == {}


def close(value: Any, limit: float) -> bool:
    """Between a limit and the six digits of it that are shown."""
    return isinstance(value, int | float) and abs(value - limit) <= 1e-5 * abs(limit)


@st.composite
def answers(draw: st.DrawFn, state: RunState) -> Any:
    """From nearly right to nonsense."""
    if draw(st.integers(0, 9)) == 0:
        return draw(JSON)
    rows = list(state.space.parameters.values())
    limits = [x for p in rows for x in (p.low, p.high, p.off, p.value, *(p.reach(p.value) or ())) if x is not None]
    wishes = st.sampled_from([*limits, "a", "b", True, 0, 17, 17.5]) | st.floats(-1, 30) | NUMBERS | TEXTS
    called = st.sampled_from([*state.space.parameters, "l\u0433"])
    raw = answered(draw(st.sampled_from(["adjust", "adjust", "rollback", "stop", "keep"])),
                   draw(st.dictionaries(called | TEXTS, wishes, max_size=3)),
                   to=draw(st.sampled_from([None, "best", "initial", "x"])))  # fmt: skip
    if draw(st.integers(0, 4)) == 0:
        raw[draw(st.sampled_from([*raw, "extra"]))] = draw(JSON)
    return raw


@examples(250)
@given(st.data(), runs(), POLICIES)
def test_objection_and_guard_agree(data: st.DataObject, state: RunState, policy: Policy) -> None:
    shown = view(state, policy)
    raw = data.draw(answers(state))
    wrong, checks = objection(raw, shown, names(shown)), judged(raw, state, policy)
    if wrong is None:
        assert not set(checks) & {"schema", "shape", "known", "bounds", "step size", "cooldown", "available"}
    elif not set(checks) & {"schema", "shape", "known", "bounds", "step size", "available"}:
        changes = raw["changes"]
        resting = {row.name for row in shown.recipe if row.resting}
        named = set(changes) & resting
        rounded = [
            name for name, value in changes.items() for row in shown.recipe
            if row.name == name and row.reach_low is not None and row.reach_high is not None
            and (close(value, row.reach_low) or close(value, row.reach_high))
        ]  # fmt: skip
        assert named or rounded, (raw, wrong)
    if wrong is not None:
        assert wrong.isprintable()
        assert 0 < len(wrong) < 2000


# -- objections ------------------------------------------------------------------------------------------------------

STATE = curve([2.0, 2.1], train=[2.0, 1.9])


@pytest.mark.parametrize(("raw", "said"), [
    ("no", "there is no JSON object in it"),
    ({"action": "keep"}, "diagnosis: .*; evidence: "),
    (answered("explode"), "action: .*keep.*adjust.*rollback.*stop"),
    (answered(extra=1), "extra: .*known are diagnosis, evidence"),
    (answered("keep", {"lr": 1e-3}), '"keep" takes no changes'),
    (answered("adjust"), '"adjust" needs at least one change'),
    (answered("keep", to="best"), "\"to\" = 'best' is nothing that \"keep\" takes"),
    (answered("stop", to="initial"), "\"to\" = 'initial' is nothing that \"stop\" takes"),
    (answered("adjust", {"LR": 1e-3}), "'LR' is not a parameter that may be changed now; those are lr, dropout, ema, "),
    (answered("adjust", {"lr": 1.0}), r"lr = 1.0 is not between 0.0003 and 0.005$"),
    (answered("adjust", {"lr": "0.001"}), "lr = '0.001' is not of type float"),
    (answered("adjust", {"batch": 16.5}), "batch = 16.5 is not of type int"),
    (answered("adjust", {"batch": 64}), "batch = 64 is not between 8 and 24$"),
    (answered("adjust", {"ema": 0.5}), "ema = 0.5 is not between 0.9 and 0.999 or 0.0$"),
    (answered("adjust", {"augment": 1}), "augment = 1 is not true or false"),
    (answered("adjust", {"kind": "d"}), "kind = 'd' is not one of a, b, c"),
    (answered("adjust", {"lr": math.nan}), "changes.lr"),
])  # fmt: skip
def test_an_objection_says_how_to_mend_it(raw: Any, said: str) -> None:
    assert re.search(said, objection(raw, view(STATE), ALL) or "")


def test_objections_of_the_moment() -> None:
    spent = view(STATE, Policy(limits=Limits(max_interventions=0), actions=FREE.actions))
    assert objection(answered("adjust", {"lr": 1e-3}), spent, ALL) == (
        'the action "adjust" is not allowed now: all 0 interventions of this run are spent; allowed are keep'
    )
    assert objection(answered("stop", to="best"), view(curve([2.0], best=False)), ALL) is not None
    wrong = objection(answered("adjust", {"lr": 1e-3}), view(STATE), ("dropout",))
    assert wrong == "'lr' is not a parameter that may be changed now; those are dropout"
    assert objection(answered("adjust", {"lr": 1e-3}), view(STATE), ()) is not None


def test_what_is_in_effect_already_is_within_reach() -> None:
    """Limits are rounded inwards, past a value that may not move at all."""
    state = fold([start(lr(high=1.0, value=0.123456789, min_ratio=1.0, max_ratio=1.5))])
    shown = view(state)
    assert shown.recipe[0].reach_low > 0.123456789
    assert objection(answered("adjust", {"lr": 0.123456789}), shown, ("lr",)) is None


# -- reading ---------------------------------------------------------------------------------------------------------

GOOD = '{"action": "keep", "diagnosis": "unclear", "evidence": "{not} \\" \\u0433"}'
KEEP = json.loads(GOOD)


@pytest.mark.parametrize("text", [
    GOOD, f"  {GOOD}\n", f"```json\n{GOOD}\n```", f"```\n{GOOD}```", f"Sure! Here it is: {GOOD} I hope it helps {{}}",
    f'I set {{lr}} and "quote{GOOD}', f"{{}} {GOOD}", f'{{"thought": 1}}\n{GOOD}', f'{{"decision": {GOOD}}}',
    f"[{GOOD}]", f"{{'action': 'adjust'}} {GOOD}", f'{{"action": 1, "action": 2}} {GOOD}', "{" * 20 + GOOD,
    f'{{"action": "adj\n{GOOD}', f"{GOOD}{GOOD}",
])  # fmt: skip
def test_an_answer_is_found_in(text: str) -> None:
    assert extract(text) == KEEP


@pytest.mark.parametrize("text", [
    "", "keep", "[]", "3", "null", "{", "}", "{{}", '{"action": "keep"', '{"action": "keep", "action": "stop"}',
    '{"a": {"b": 1, "b": 2}}', "{'action': 'keep'}", '{"action": ' + "1" * 5000 + "}",
    '{"action": "keep", "x": ' + "[" * 13 + "]" * 13 + "}", '{"expected": {"metric": "val"}, "action": "ke',
])  # fmt: skip
def test_no_answer_is_found_in(text: str) -> None:
    assert extract(text) is None
    assert read(text) == text[:499] + "…" if len(text) > 500 else read(text) == text


NASTY = [
    "{" * 500_000, "[" * 500_000, '{"a":' * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, '{"a":[' * 100_000,
    "{}" * 250_000, '{"' * 250_000, '{"a' * 100_000, "}" * 500_000, "```\n" * 125_000, "```" + "\n" * 500_000,
    "```" * 170_000, "```json\n{" * 50_000, '"' * 500_000, '{"a": "' + "\\" * 500_000, '{"a": "' + "x" * 500_000,
    '{"a":1,' * 70_000, '{"a":[' + "1," * 250_000, '{"a": ' + "9" * 500_000 + "}", '{"a": 1e999, "b": NaN}',
    "{" + ",".join(f'"{i}":{i}' for i in range(40_000)) + "}", SURROGATE * 1000, "\x00" * 1000,
    '{"\\ud800": "\\udfff"}',
    '{"action": "\\ud800", "changes": {"\\ud800": 1, "lr": NaN, "x": -Infinity}, "evidence": "\\ud800"}',
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY, ids=[str(i) for i in range(len(NASTY))])
def test_a_nasty_text_is_read_in_bounded_work(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No character is looked at more often than there are candidates; not a matter of time, but of places tried."""
    tried: list[int] = []
    from trainmgr.managers import answer

    class Counted(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
            tried.append(idx)
            return super().raw_decode(s, idx)

    monkeypatch.setattr(answer, "_DECODER", Counted(object_pairs_hook=answer._once))
    found = read(text)
    assert len(tried) <= CANDIDATES
    assert len(set(tried)) == len(tried)
    if isinstance(found, str):
        assert len(found) <= 500
        assert found.isprintable()
    wrong = objection(found, view(STATE), ALL)
    assert wrong is not None
    assert wrong.isprintable()
    assert len(wrong) < 2000


PIECES = st.sampled_from(["{", "}", "[", "]", '"', ":", ",", "\\", "```", "```json\n", "\n", " ", "1e999", "NaN",
                          "null", '"action"', '"changes"', '"lr"', "true", "-", GOOD, "{lr}", SURROGATE, "\x00",
                          "\u2028"])  # fmt: skip


@examples(300)
@given(st.text() | st.lists(PIECES, max_size=30).map("".join) | JSON.map(repr))
def test_any_text_is_read(text: str) -> None:
    found = read(text)
    assert isinstance(found, str | dict)
    objection(found, view(STATE), ALL)
    judged(found, STATE, FREE)
    assert read(text) == found or "NaN" in text  # nan != nan


@examples(150)
@given(JSON, st.sampled_from(["{}", "```json\n{}\n```", "Well:\n{}\n.", '["x", {}]']))
def test_any_object_is_read_as_it_is(value: Any, around: str) -> None:
    try:
        text = json.dumps({"action": value})
        whole = json.loads(text)
    except ValueError:
        return
    deep = json.dumps(value).count("[") + json.dumps(value).count("{")
    if deep < 10:
        assert json.dumps(extract(around.replace("{}", text))) == json.dumps(whole)


def test_an_object_without_an_action_is_objected_to_by_its_keys() -> None:
    assert extract('Well: {"diagnosis": "plateau", "x": {"y": 1}} {"z": 1}') == {"diagnosis": "plateau", "x": {"y": 1}}


def test_null_leaves_a_parameter_and_explanations_are_cut() -> None:
    text = json.dumps(answered("adjust", {"lr": 1e-3, "ema": None}, evidence="e" * 5000, falsifier="a\nb" * 5000))
    found = read(text)
    assert found["changes"] == {"lr": 1e-3}
    assert (len(found["evidence"]), len(found["falsifier"])) == (EVIDENCE, FALSIFIER)
    assert found["falsifier"].startswith("a ba b")
    assert objection(found, view(STATE), ALL) is None
    assert read('{"changes": 3, "evidence": [], "falsifier": null}') == {
        "changes": 3,
        "evidence": [],
        "falsifier": None,
    }


def test_what_is_read_is_judged_the_same_as_what_the_log_keeps() -> None:
    state = fold([start(dropout(), batch(), ema(), lr()), checkpoint(1)])
    found = read(json.dumps(answered("adjust", {"dropout": 0, "batch": 20, "ema": 0.95, "lr": 1e-3})))
    assert judged(found, state, FREE) == {}


DRAFT = '{"action": "stop"}'
TAGS = [("<think>", "</think>"), ("<THINKING>", "</THINKING>"), ("<thought>", "</thought>"), ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"), ("◁think▷", "◁/think▷"), ("<|channel>thought\n", "<channel|>"),
        ("<reasoning effort='low'>", "</reasoning>")]  # fmt: skip


@pytest.mark.parametrize(("begin", "end"), TAGS)
def test_a_draft_in_the_thoughts_of_a_model_is_no_answer(begin: str, end: str) -> None:
    assert read(f"{begin}{DRAFT} no, wait{end}{GOOD}") == KEEP
    assert read(f"{DRAFT} no, wait{end}\n{GOOD}") == KEEP  # begun in the prompt
    assert read(f"{begin}a{end}{begin}{DRAFT}{end} Well: {GOOD}{begin}or {DRAFT}") == KEEP
    for text in (f"{begin}{DRAFT} no, wait", f"{begin}{DRAFT}", f"{DRAFT}{begin}no{end}{end}So be it.",
                 f"{begin}{DRAFT}{end} So be it.", f"{begin}Perhaps {DRAFT}{end}"):  # fmt: skip
        assert read(text) == short(text, 500)
    assert read(f"{begin}\n{GOOD}\n{end}\n") == KEEP  # all that there is
    marked = {**KEEP, "evidence": f"it said {begin.strip()}"}
    assert read(json.dumps(marked)) == marked


HEAD = f"<|channel|>analysis<|message|>We could {DRAFT}.<|end|><|start|>assistant"


@pytest.mark.parametrize("text", [
    f"{HEAD}<|channel|>final<|message|>{GOOD}", f"{HEAD}<|channel|>final <|constrain|>json<|message|>{GOOD}<|return|>",
    f"{HEAD}<|channel|>commentary to=functions.decide <|constrain|>json<|message|>{GOOD}<|call|>",
    f"{HEAD} to=functions.decide<|channel|>commentary json<|message|>{GOOD}<|call|>",
    f"{HEAD}<|channel|>commentary<|message|>So {DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{GOOD}",
    f"analysisWe could {DRAFT} but no.assistantfinal{GOOD}",
    f"We could {DRAFT} but no.assistantfinal{GOOD}",
    f"analysisWe could {DRAFT} but no.assistantcommentary to=functions.decide json{GOOD}",
])  # fmt: skip
def test_the_answer_is_in_the_final_channel(text: str) -> None:
    assert read(text) == KEEP


@pytest.mark.parametrize("text", [
    HEAD, f"<|channel|>analysis<|message|>{DRAFT}", f"{HEAD}<|channel|>fin", f"analysisWe could {DRAFT}",
    f"{HEAD}<|channel|>commentary to=functions.look<|message|>{DRAFT}<|call|>",
])  # fmt: skip
def test_no_other_channel_has_one(text: str) -> None:
    assert read(text) == text
    assert spoken(text).inside


def test_prose_about_an_analysis_is_no_channel() -> None:
    assert read(f"analysis: it is flat. {GOOD}") == read(f"Analysis\n{GOOD}") == KEEP


def test_of_several_answers_that_differ_none_is_taken() -> None:
    text = f"Perhaps {DRAFT}. No: {GOOD}"
    assert extract(text) is None
    assert read(text) == text
    assert objection(text, view(STATE), ALL) == "there is no JSON object in it, or several that differ"
    assert extract(f"{GOOD} Again: {GOOD}") == KEEP
    assert extract(f'{{"action": "keep", "or": {DRAFT}}}') == {"action": "keep", "or": json.loads(DRAFT)}


@pytest.mark.parametrize("text", [
    json.dumps(GOOD), json.dumps(json.dumps(GOOD)), json.dumps(f"```json\n{GOOD}\n```").join("  "),
    json.dumps({"name": "decide", "arguments": GOOD}),
    f"<tool_call>{json.dumps({'name': 'decide', 'arguments': GOOD})}</tool_call>",
])  # fmt: skip
def test_json_within_json_is_read(text: str) -> None:
    assert read(text) == KEEP


@pytest.mark.parametrize("text", [
    GOOD, f" {GOOD}\n\n", f"```json\n{GOOD}\n```", f"```{GOOD}```", json.dumps(GOOD),
])  # fmt: skip
def test_an_answer_is_all_that_there_is(text: str) -> None:
    assert whole(text) == KEEP


@pytest.mark.parametrize("text", [
    "", f"{GOOD}.", f"So: {GOOD}", f"[{GOOD}]", GOOD[:-1], '{"lr": 0.1}', "7", "null", '"keep"', "```", "``````",
    json.dumps(json.dumps(json.dumps(GOOD))),
    '{"action": "keep", "action": "keep"}', f'{{"action": {"[" * 20 + "]" * 20}}}', '"' * 9,
])  # fmt: skip
def test_that_is_not_all_of_an_answer(text: str) -> None:
    assert whole(text) is None


MARKS = st.sampled_from([tag for pair in TAGS for tag in pair] + [
    "<|channel|>", "<|message|>", "<|end|>", "final", "analysis", "assistantfinal", "words ", DRAFT, "\n"])  # fmt: skip


@examples(300)
@given(st.lists(MARKS, max_size=20).map("".join), st.sampled_from(TAGS))
def test_nothing_that_is_thought_is_said(text: str, tag: tuple[str, str]) -> None:
    """Whatever stands before: what begins with thoughts and does not end them holds no answer."""
    secret = '{"action": "adjust"}'
    begin, end = tag
    parts = spoken(text)
    assert len(parts.said) <= len(text)
    if not any(mark in text for mark in ("<|channel|>", "assistantfinal")) and not text.lstrip().startswith("analysis"):
        assert secret not in spoken(f"{text}{begin}{secret} or not").said
        assert spoken(f"{text}{begin}{secret}{end}{secret}").said.count(secret) == 1
        assert spoken(f"{text}{secret}{end}{end}{GOOD}").said.strip() == GOOD
