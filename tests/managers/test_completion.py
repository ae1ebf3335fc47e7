"""What is read from the body of a response, whatever is in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from factories import JSON
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.managers.completion import Completion, Fault, Usage, fault, parse, read, reported, usage

FORMS = ("json_schema", "tool", "json_object", "text", None)


def body(message: Any, finish: Any = "stop", **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": finish}], **more}


def made(message: Any, form: str | None = "json_schema") -> Completion:
    found = read(body(message), form, lambda text: text)
    assert found is not None
    return found


def call(arguments: Any, name: str = "decide") -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("message", "form", "text"),
    [
        ({"content": "a", "tool_calls": [call("b")]}, "tool", "b"),
        ({"content": "a", "tool_calls": [call("b")]}, "json_schema", "b"),  # no object in what is said
        ({"content": "{a", "tool_calls": [call("b")]}, "json_schema", "{a"),
        ({"content": "a", "tool_calls": [call("b")]}, None, "a"),
        ({"content": " \n", "tool_calls": [call(" ")]}, "tool", ""),
        ({"content": "a", "tool_calls": []}, "tool", "a"),
        ({"content": "a", "tool_calls": None, "function_call": None}, "tool", "a"),
        ({"tool_calls": call("b")}, "tool", "b"),
        ({"tool_calls": [{"name": "decide", "arguments": {"x": 1}}]}, "tool", '{"x": 1}'),
        ({"tool_calls": [call("a", "look"), call("b")]}, "tool", "b"),
        ({"tool_calls": [call("a", "look")], "function_call": {"name": "decide", "arguments": "b"}}, "tool", "b"),
        ({"tool_calls": [7, {"function": 7}, call(7), call({}), call("b")]}, "tool", "b"),
        ({"content": [{"type": "reasoning", "text": "a"}, {"type": "text", "text": "b"}, "c"]}, "text", "bc"),
        ({"content": [{"type": ["text"], "text": "a"}, {"type": "text", "text": 7}]}, "text", ""),
        ({"content": {"type": "text", "text": "a"}}, "text", "a"),
        ({"content": {"type": "thinking", "thinking": {"action": "stop"}}}, "text", ""),
    ],
)
def test_what_is_said(message: Any, form: str | None, text: str) -> None:
    assert made(message, form).text == text


def test_thoughts_are_kept_apart() -> None:
    assert made({"content": "a", "reasoning_content": "b"}).thoughts == "b"
    assert made({"content": "a", "reasoning_content": " ", "reasoning": "b"}).thoughts == "b"
    assert made({"content": "a", "reasoning": {"effort": "low"}}).thoughts == ""


@pytest.mark.parametrize(
    ("error", "status", "message", "passing"),
    [
        ({"message": "m", "code": 429}, 429, "m", False),
        ({"message": "m", "code": "503"}, 503, "m", False),
        ({"message": "m", "status": 401, "code": "bad_key"}, 401, "m", False),
        ({"message": "m", "code": 200}, None, "m", False),
        ({"message": "m", "code": 42, "type": "rate_limit_error"}, None, "m", True),
        ({"message": "m", "code": True}, None, "m", False),
        ({"code": 502}, 502, "502", False),
        ({"error": {"message": "m"}, "status": 500}, 500, "m", False),
        ({"error": "m", "code": 404}, 404, "m", False),
        ([{"error": {"message": "m", "code": 400}}], 400, "m", False),
        ({"errors": [{"code": 7003, "message": "m"}]}, None, '[{"code": 7003, "message": "m"}]', False),
        ({"message": "m", "metadata": {"raw": {"a": 1}}}, None, 'm ({"a": 1})', False),
        ("m", None, "m", False),
        ({}, None, "", False),
        (None, None, "", False),
        ([], None, "", False),
        ({"code": 0, "message": ""}, None, "", False),
    ],
)
def test_an_error_in_any_form(error: Any, status: int | None, message: str, passing: bool) -> None:
    found = reported(error)
    assert (found.status, found.message, found.passing) == (status, message, passing)


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        ({"error": "m", "code": 429}, ("m", 429)),
        ({"error": {"message": "m"}, "choices": [{"message": {"content": "{}"}}]}, ("m", None)),
        ({"object": "error", "message": "m", "code": 400}, ("m", 400)),
        ({"detail": [{"msg": "m"}]}, ('[{"msg": "m"}]', None)),
        (body({"content": "a", "error": {"message": "m", "code": 500}}), ("m", 500)),
        (body({"content": "a"}, "ERROR"), ("the answer ended with an error that is not named", None)),
        (body({"content": "a"}, "length"), None),
        (body({"content": "a"}, error=None), None),
        ({"choices": []}, None),
        ({"data": [{"id": "a"}]}, None),
        ({"message": {"role": "assistant", "content": "a"}}, None),  # another protocol: no chat completion
        ([], None),
        ("text", None),
    ],
)
def test_where_an_error_may_be(whole: Any, expected: tuple[str, int | None] | None) -> None:
    found = fault(whole)
    assert (found and (found.message, found.status)) == expected


def test_a_key_twice_is_not_lost() -> None:
    parsed = parse(
        b'{"choices": [{"message": {"tool_calls": [{"function": {"arguments": {"a": 1, "b": {"c": 1, "c": 2}}}}]}}]}'
    )
    found = read(parsed, "tool", lambda text: text)
    assert found is not None
    assert found.text == '{"a": 1, "b": {"c": 1, "c": 2}}'


NAMES = st.sampled_from(["choices", "message", "content", "error", "code", "tool_calls", "function", "arguments",
                         "reasoning_content", "finish_reason", "usage", "metadata", "raw", "type", "text"])  # fmt: skip
BODIES = st.recursive(JSON, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5))


@examples(300)
@given(BODIES, st.sampled_from(FORMS))
def test_any_body_is_read(value: Any, form: str | None) -> None:
    for found in (value, {"choices": [value]}, body(value), body({"content": value}), body({"tool_calls": value})):
        assert isinstance(fault(found), Fault | None)
        assert isinstance(read(found, form, str.upper), Completion | None)


@examples(150)
@given(JSON, st.text(min_size=1).filter(lambda kind: kind not in ("text", "output_text")))
def test_no_part_of_an_unknown_kind_is_said(content: Any, kind: str) -> None:
    parts = [{"type": kind, "text": "draft", "content": content, "thinking": "draft"}, {"type": "text", "text": "said"}]
    assert made({"content": parts}).text == "said"


@examples(150)
@given(JSON)
def test_arguments_are_the_same_as_text_and_as_an_object(value: Any) -> None:
    arguments = {"action": value}
    assert made({"tool_calls": [call(arguments)]}).text == made({"tool_calls": [call(json.dumps(arguments))]}).text


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, Usage()),
        ({"prompt_tokens": 900, "completion_tokens": 60}, Usage(900, 60)),
        (  # OpenAI, and most gateways: a part of the prompt's tokens
            {"prompt_tokens": 900, "completion_tokens": 60, "total_tokens": 960,
             "prompt_tokens_details": {"cached_tokens": 800},
             "completion_tokens_details": {"reasoning_tokens": 40}},
            Usage(900, 60, 800, 0, 40),
        ),
        (  # DeepSeek
            {"prompt_tokens": 900, "completion_tokens": 60, "prompt_cache_hit_tokens": 640,
             "prompt_cache_miss_tokens": 260},
            Usage(900, 60, 640),
        ),
        (  # Anthropic's own counts: beside them
            {"prompt_tokens": 50, "completion_tokens": 60, "cache_read_input_tokens": 600,
             "cache_creation_input_tokens": 250},
            Usage(900, 60, 600, 250),
        ),
        (
            {"prompt_tokens": 500, "completion_tokens": 60, "total_tokens": 960, "cache_creation_input_tokens": 400},
            Usage(900, 60, 0, 400),
        ),
        ({"prompt_tokens": 900, "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 700}},
         Usage(900, None, 100, 700)),
        ({"prompt_tokens": "900", "completion_tokens": -1, "prompt_tokens_details": [1],
          "completion_tokens_details": {"reasoning_tokens": 1e9}}, Usage()),
    ],
)  # fmt: skip
def test_tokens_are_counted_as_the_endpoint_tells_them(told: Any, expected: Usage) -> None:
    assert usage({"usage": told}) == expected
