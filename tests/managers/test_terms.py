"""On what terms a model is asked: parameters, forms and room, as they are set and as they turn out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories.calls import KEEP, Desk, asked, filled, policy_of, sent, view

from trainmgr.base.errors import PolicyError
from trainmgr.contract import events, policy
from trainmgr.contract.policy import Budget, Llm, Price
from trainmgr.managers import answer as answers
from trainmgr.managers import prompt, reply
from trainmgr.managers.terms import Terms
from trainmgr.testing import Behaviour, Propose, Received, Say, ScriptedEndpoint, Status, answer

pytestmark = pytest.mark.usefixtures("prompt_and_alone")

CUT = Say("", finish="length", usage=(1000, 2048))


def levels(desk: Desk) -> list[str]:
    return [request.level for request in desk.of(events.Request)]


def caps(endpoint: ScriptedEndpoint) -> list[int]:
    return [body["max_tokens"] for body in sent(endpoint)]


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_what_is_not_set_is_not_sent_and_what_is_set_is_on_record() -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "top_p": 0.9}
    with ScriptedEndpoint([KEEP]) as endpoint:
        for settings in ({}, {"temperature": 0.3, "reasoning_effort": "low", "extra": extra}):
            desk = Desk(endpoint, policy_of(**settings))
            desk.decide()
            desk.manager.close()
    bare, full = sent(endpoint)
    assert set(bare) == {"model", "messages", "response_format", "max_tokens"}
    more = {"temperature": 0.3, "reasoning_effort": "low", "max_tokens": 2048, **extra}
    assert {name: full[name] for name in full if name not in ("model", "messages", "response_format")} == more
    assert desk.of(events.Request)[0].parameters == more


def test_the_embedded_server_is_asked_for_the_likeliest_answer() -> None:
    assert Terms(Llm(), own=True).parameters(64, official=False) == {"temperature": 0.0, "max_tokens": 64}
    assert Terms(Llm(temperature=0.7), own=True).parameters(64, official=False)["temperature"] == 0.7
    assert Terms(Llm(), own=True).form("json_schema", schema=True) == "enforced"
    assert Terms(Llm(), own=True).most == 2048  # its context is no longer


@pytest.mark.parametrize(
    "text",
    [
        "model = 'another'", "messages = []", "response_format = {}", "tools = []", "stream = true", "n = 2",
        "max_tokens = 10", "temperature = 1.0", "tool_choice = 'none'", "api_key = 'x'", "user = 'sk-abcdefgh123'",
        "x = {y = [{Authorization = 'x'}]}", "x = {access_token = 'x'}", "x = nan", "x = 2026-01-01",
        f"x = '{'y' * 5000}'",
    ],
)  # fmt: skip
def test_extra_has_no_say_about_what_is_asked_and_holds_no_key(text: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f"[llm.extra]\n{text}\n")
    with pytest.raises(PolicyError, match=r"llm\.extra") as raised:
        policy.load(path)
    assert "abcdefgh" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_extra_may_hold_what_only_looks_like_a_key(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        "[llm.extra]\nstop_token_ids = [1]\nthinking_token_budget = 500\n[llm.extra.provider]\nsort = 'price'\n"
    )
    assert policy.load(path).llm.extra["thinking_token_budget"] == 500


# -- room to think -----------------------------------------------------------------------------------------------------


def test_more_room_is_given_once_a_question_and_kept() -> None:
    with ScriptedEndpoint([CUT, KEEP, KEEP, CUT, KEEP, CUT]) as endpoint:
        desk = Desk(endpoint)
        assert [desk.decide() for _ in range(3)] == [answer()] * 3
        assert "cut off before its first word at 8192 tokens; raise llm.most_output_tokens" in desk.decide()
        desk.manager.close()
    assert caps(endpoint) == [2048, 4096, 4096, 4096, 8192, 8192]
    assert desk.spent.calls == 6


def test_no_more_room_than_the_policy_and_the_budget_bear() -> None:
    with ScriptedEndpoint([CUT]) as endpoint:
        desk = Desk(endpoint, policy_of(most_output_tokens=3000))
        desk.decide()
        desk.decide()
        desk.manager.close()
        assert caps(endpoint) == [2048, 3000, 3000]
    with ScriptedEndpoint([CUT]) as endpoint:
        desk = Desk(endpoint, policy_of().model_copy(update={"budget": Budget(tokens=8000)}))
        desk.decide()  # 3,048 are spent, and twice the room may take 6,148
        desk.manager.close()
        assert caps(endpoint) == [2048]


def test_room_that_an_endpoint_does_not_have_is_not_asked_for_again() -> None:
    with ScriptedEndpoint([CUT, Status(400, "'max_tokens' is too large: 4096"), CUT, KEEP]) as endpoint:
        desk = Desk(endpoint)
        assert "at 2048 tokens" in desk.decide()
        assert "at 2048 tokens" in desk.decide()
        assert desk.decide() == answer()
        desk.manager.close()
    assert caps(endpoint) == [2048, 4096, 2048, 2048]


# -- forms -------------------------------------------------------------------------------------------------------------


def test_what_no_form_changes_is_asked_for_in_every_form_once_only() -> None:
    """Each refusal with an id of its own: it is the same complaint all the same."""

    def script(request: Received) -> Behaviour:
        return Status(400, f"Upstream trouble (request {request.number:08x})")

    with ScriptedEndpoint(script) as endpoint:
        desk = Desk(endpoint)
        assert all("status 400: Upstream trouble" in desk.decide() for _ in range(3))
        desk.manager.close()
    assert levels(desk) == ["json_schema", "tool", "json_object", "text", "json_schema", "json_schema"]


def test_after_such_trouble_another_complaint_is_heard() -> None:
    trouble: list[Behaviour] = [Status(400, "Trouble.")] * 5
    script = [*trouble, Status(400, "response_format is not known."), KEEP, KEEP]
    with ScriptedEndpoint(script) as endpoint:
        desk = Desk(endpoint)
        assert "Trouble" in desk.decide()
        assert "Trouble" in desk.decide()
        assert [desk.decide(), desk.decide()] == [answer()] * 2
        desk.manager.close()
    assert levels(desk)[5:] == ["json_schema", "tool", "tool"]


def test_a_weaker_form_that_nobody_answered_is_not_kept() -> None:
    with ScriptedEndpoint([Status(400, "No such form."), Status(503), Status(503), KEEP, KEEP]) as endpoint:
        desk = Desk(endpoint, policy_of(retries=1))
        assert "status 503" in desk.decide()
        assert [desk.decide(), desk.decide()] == [answer()] * 2
        desk.manager.close()
    assert levels(desk) == ["json_schema", "tool", "tool", "json_schema", "json_schema"]


@pytest.mark.parametrize("level", ["json_schema", "tool", "json_object"])
def test_a_form_that_is_pinned_stays(level: str) -> None:
    with ScriptedEndpoint([Status(400, "No."), KEEP]) as endpoint:
        desk = Desk(endpoint, policy_of(level=level, fallback=False))
        assert "status 400: No." in desk.decide()
        assert desk.decide() == answer()
        desk.manager.close()
    assert levels(desk) == [level, level]


def test_whether_an_answer_is_in_its_form_is_seen_by_its_shape() -> None:
    schema = answers.schema(view(), prompt.render(view(), 2500).parameters)
    good = filled(schema)
    assert reply.fits(good, schema)
    assert reply.fits({**good, "changes": {**good["changes"], "lr": 1e9}, "evidence": ""}, schema)  # but for its limits
    for wrong in ({**good, "mood": 1}, {k: v for k, v in good.items() if k != "falsifier"}, {**good, "action": "pray"},
                  {**good, "judge_after": "5"}, {**good, "judge_after": True}, {**good, "changes": {"momentum": 1.0}},
                  [good], None, "x"):  # fmt: skip
        assert not reply.fits(wrong, schema), wrong
    assert reply.fits(3.0, {"type": "integer"})
    assert not reply.fits(3.5, {"type": "integer"})
    assert not reply.fits(True, {"enum": [1]})
    assert not reply.fits([1, "x"], {"type": "array", "items": {"type": "integer"}})
    assert reply.fits({"x": 1}, {"type": "unheard of", "$ref": "#/elsewhere"})


@pytest.mark.parametrize(
    ("read", "estimated", "cut"),
    [(None, 2000, False), (0, 2000, False), (255, 2000, False), (256, 2000, True), (999, 2000, True),
     (1000, 2000, False), (1400, 2000, False), (2050, 5000, True), (300, 400, False)],
)  # fmt: skip
def test_a_prompt_counts_as_cut_below_half_of_what_it_should_be(read: int | None, estimated: int, cut: bool) -> None:
    assert bool(reply.shortened(read, estimated)) == cut


def test_a_prompt_that_was_cut_is_told_once_and_one_that_was_cached_is_not() -> None:
    few = Propose(answer(), usage=(400, 50))
    with ScriptedEndpoint([few, few, KEEP]) as endpoint:
        desk = Desk(endpoint)
        for _ in range(3):
            desk.decide()
        desk.manager.close()
    told = [failure.message for failure in desk.of(events.Failure) if "cuts the prompt" in failure.message]
    assert len(told) == 1
    assert told[0].startswith(f"{endpoint.url}: it read 400 tokens of a prompt of about ")
    with ScriptedEndpoint([KEEP, few]) as endpoint:  # some count only what they had not read before
        desk = Desk(endpoint)
        desk.decide()
        desk.decide()
        desk.manager.close()
    assert not any("cuts the prompt" in failure.message for failure in desk.of(events.Failure))


# -- what it costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "money"),
    [({}, 1.06), ({"cached": 0.1}, 1.06 - 0.54), ({"cached": 0.1, "cache_write": 1.25}, 1.06 - 0.54 + 0.05)],
)
def test_what_a_cache_takes_and_gives_is_paid_by_its_price(price: dict[str, float], money: float) -> None:
    usage: dict[str, Any] = {
        "prompt_tokens": 1000,
        "completion_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 200},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    known = {"scripted": Price(input=1000.0, output=10_000.0, **{name: 1000 * each for name, each in price.items()})}
    with ScriptedEndpoint([Propose(answer(), usage=usage)]) as endpoint:
        desk = Desk(endpoint, policy_of().model_copy(update={"prices": known}))
        desk.decide()
        desk.manager.close()
        assert len(asked(endpoint)) == 1
    (told,) = desk.of(events.Reply)
    assert (told.cached_tokens, told.cache_write_tokens, told.reasoning_tokens) == (600, 200, 4)
    assert told.money == pytest.approx(money)
    assert desk.spent.money == pytest.approx(money)
    assert desk.spent.tokens == 1006


def test_what_is_not_told_is_not_in_the_log() -> None:
    with ScriptedEndpoint([KEEP]) as endpoint:
        desk = Desk(endpoint)
        desk.decide()
        desk.manager.close()
    line = json.loads(desk.of(events.Reply)[0].model_dump_json())
    assert not {"cached_tokens", "cache_write_tokens", "reasoning_tokens"} & set(line)
    old = events.Reply(decision="d1", text="", seconds=0.1).model_dump()
    assert "outside" not in old
