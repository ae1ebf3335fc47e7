"""Whatever comes over the wire, training goes on as it would have, or by a valid decision."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from factories.calls import (
    CUT_IN_THOUGHTS,
    DRAFT,
    FIRST,
    LOWER,
    NOW,
    asked,
    bodies,
    changed,
    failing,
    lower,
    managed,
    notices,
    of,
    policy_of,
    said,
)
from factories.tables import Row

from trainmgr.base.paths import RunPaths
from trainmgr.contract import events
from trainmgr.readers import replay
from trainmgr.testing import (
    Behaviour,
    Cut,
    Drip,
    Empty,
    EmptyReply,
    Huge,
    Propose,
    Raw,
    Redirect,
    Reset,
    Say,
    ScriptedEndpoint,
    Silence,
    Status,
    answer,
)

pytestmark = pytest.mark.usefixtures("prompt_and_alone")


TITLE = "a language model's endpoint at its worst: calls, how the run ended, what its log says"


def spoke(content: Any, finish: str = "stop", **more: Any) -> Raw:
    """A completion with this content, and whatever else is in its message."""
    return Raw(bodies({"choices": [{"message": {"content": content, **more}, "finish_reason": finish}]}))


def calling(arguments: Any, name: str = "decide") -> list[dict[str, Any]]:
    return [{"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}]


GOOD = json.dumps(LOWER)

HARMONY = f"<|channel|>analysis<|message|>Perhaps {DRAFT}? No.<|end|><|start|>assistant"


@dataclass(frozen=True)
class Case:
    """An endpoint's behaviour, and what it must come to. Without an expectation the decision takes effect."""

    name: str
    script: Sequence[Behaviour]
    expect: str | None = None
    """What the log says, as a pattern; None where lr = 0.2 is in effect in the end."""
    lacks: tuple[str, ...] = ()
    calls: int | None = None
    """Requests for the first decision."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    notice: str | None = None
    """What is said of the endpoint, as a pattern; None where nothing is."""

    def __str__(self) -> str:
        return self.name


NO_OBJECT = r"rejected: schema: "

CASES = [
    Case("429, again and again", [Status(429, headers=NOW)], r"status 429 \(too many requests\)", calls=3),
    Case("500, again and again", [Status(500)], r"status 500", calls=5),
    Case("503, again and again", [Status(503)], r"status 503", calls=3),
    Case("529 with a page of HTML", [Status(529, body="<h1>Overloaded</h1>")], r"status 529", calls=3),
    Case("429, Retry-After an hour", [Status(429, headers={"Retry-After": "3600"})], r"in 3600 s would be too late",
         calls=1),
    Case("429, Retry-After a date", [Status(429, headers={"Retry-After": "Wed, 21 Oct 2037 07:28:00 GMT"})],
         r"status 429", calls=3),
    Case("429, Retry-After nonsense", [Status(429, headers={"Retry-After": "-1e999"}), Propose(LOWER)], calls=2),
    Case("429, Retry-After 0, then an answer", [Status(429, headers=NOW), Propose(LOWER)], calls=2),
    Case("503 once, then an answer", [Status(503), Propose(LOWER)], calls=2),
    Case("connection reset", [Reset()], r"the connection broke", calls=3),
    Case("reset once, then an answer", [Reset(), Propose(LOWER)], calls=2),
    Case("reply cut in the middle", [Cut(json.dumps(LOWER))], r"the connection broke", calls=3),
    Case("reply cut before its body", [Cut(json.dumps(LOWER), 0)], r"the connection broke", calls=3),
    Case("empty body", [Empty()], r"the response is not JSON: it is empty", calls=3),
    Case("half a JSON body", [Raw(b'{"choices": [{"mess')], r"not JSON: it begins with '\{\"choices", calls=1),
    Case("no choices", [EmptyReply()], r"no chat completion: it has no choices", calls=1),
    Case("content null", [EmptyReply("content")], r"there is no answer in the response: it is empty", calls=4),
    Case("a body that is a list", [Raw(b"[1, 2]")], r"it has no choices", calls=1),
    Case("choices of the wrong types", [Raw(bodies({"choices": ["x"], "usage": 3}))], r"it has no choices", calls=1),
    Case("parts of the wrong types",
         [Raw(bodies({"choices": [{"message": [1], "finish_reason": {}}], "usage": [], "model": 7}))], r"it is empty"),
    Case("usage of nonsense", [Raw(bodies({"choices": [{"message": {"content": json.dumps(LOWER)}}],
                                           "usage": {"prompt_tokens": -5, "completion_tokens": True}}))]),
    Case("a body of 100,000 levels", [Raw(b"[" * 100_000)], r"the response is not JSON", calls=1),
    Case("refusal", [Say("", refusal="I cannot help with that.")], NO_OBJECT, calls=1),
    Case("no JSON", [Say("Lower the learning rate.")], NO_OBJECT, calls=2),
    Case("JSON in prose", [Say(f"Here it is: {json.dumps(LOWER)} Good luck!")], calls=1),
    Case("JSON in code fences", [Say(f"```json\n{json.dumps(LOWER, indent=2)}\n```")], calls=1),
    Case("content in parts", [Raw(bodies({"choices": [{"message": {"content": [
        {"type": "text", "text": json.dumps(LOWER)}]}}]}))], calls=1),
    Case("wrong schema", [Say('{"learning_rate": 0.2}')], NO_OBJECT, calls=2),
    Case("extra keys", [Say(changed(shell="rm -rf /"))], r"schema: .*shell", calls=2),
    Case("mended when told", [Say(changed(shell="rm -rf /")), Propose(LOWER)], calls=2),
    Case("NaN", [Say(lower("NaN"))], r"rejected: bounds: lr", calls=2),
    Case("Infinity", [Say(lower("-Infinity"))], r"rejected: bounds: lr", calls=2),
    Case("1e999", [Say(lower("1e999"))], r"rejected: bounds: lr", calls=2),
    Case("a number of 5,000 digits", [Say(lower("9" * 5000))], NO_OBJECT, calls=2),
    Case("true where a number belongs", [Say(lower("true"))], r"rejected: bounds: lr", calls=2),
    Case("a number in quotes", [Say(lower('"0.2"'))], r"rejected: bounds: lr", calls=2),
    Case("a list for a number", [Say(lower("[0.2]"))], NO_OBJECT, calls=2),
    Case("unknown parameter", [Propose(answer("adjust", {"momentum": 0.9}))], r"known: momentum: no such parameter",
         calls=2),
    Case("a parameter that looks alike", [Propose(answer("adjust", {"\u217cr": 0.2}))], r"no such parameter", calls=2),
    Case("out of bounds", [Say(lower("3.0"))], r"rejected: bounds: lr", calls=2),
    Case("below the bounds", [Say(lower("-0.2"))], r"rejected: bounds: lr", calls=2),
    Case("a rate rounded to six decimals", [Say(lower("0.000000"))], r"rejected: bounds: lr", calls=2),
    Case("a rate of many digits", [Say(lower("0.20000000000000000000001"))], calls=1),
    Case("too far at once", [Say(lower("0.9"))], r"rejected: step size: lr", calls=2),
    Case("what is in effect already", [Say(lower("0.4"))], r"no-op: every value is in effect already", calls=1),
    Case("wrong action", [Propose(answer("raise", {"lr": 0.2}))], NO_OBJECT, calls=2),
    Case("keep with changes", [Propose(answer("keep", {"lr": 0.2}))], r"rejected: shape", calls=2),
    Case("adjust without changes", [Propose(answer("adjust"))], r"rejected: shape", calls=2),
    Case("rollback to a path", [Propose(answer("rollback", to="/etc/passwd"))], r"rejected: shape", calls=2),
    Case("a key twice", [Say(lower("0.2").replace("{", '{"action": "stop", ', 1))], NO_OBJECT, calls=2),
    Case("confidence 1e999", [Say(changed(confidence=7).replace("7", "1e999"))], NO_OBJECT, calls=2),
    Case("evidence of 100,000 letters", [Say(changed(evidence="x" * 100_000))], calls=1),
    Case("ten megabytes, declared", [Huge(10_000_000)], r"longer than 524,288 bytes", calls=1),
    Case("ten megabytes, chunked", [Huge(10_000_000, declared=False)], r"longer than 524,288 bytes", calls=1),
    Case("ten megabytes of error", [Status(500, body=b"x" * 10_000_000)], r"longer than 524,288 bytes", calls=1),
    Case("compressed without being asked", [Raw(gzip.compress(bytes(1 << 22)), headers={"Content-Encoding": "gzip"})],
         r"the response is compressed", calls=1),
    Case("100,000 levels", [Say('{"action": ' + "[" * 100_000)], NO_OBJECT, calls=2),
    Case("150 levels", [Say(lower("[" * 150 + "]" * 150))], NO_OBJECT, calls=2),
    Case("endless stream", [Drip(0.01)], r"no answer", calls=1, settings={"timeout": 0.6}),
    Case("silence", [Silence()], r"no answer", calls=1, settings={"timeout": 0.6}),
    Case("redirect", [Redirect("http://127.0.0.1:9/v1/chat/completions")], r"status 307", calls=1),
    Case("another content type",
         [Raw(bodies({"choices": [{"message": {"content": json.dumps(LOWER)}}]}), "text/plain")]),
    Case("HTML with status 200", [Raw(b"<html><h1>Sign in</h1></html>", "text/html")], r"begins with '<html>", calls=1),
    Case("bytes that are no text", [Raw(bytes(range(128, 256)))], r"the response is not JSON", calls=1),
    Case("401", [Status(401, "Incorrect API key", echo_key=True)], r"status 401 \(the key is refused\).*\[key\]",
         calls=1),
    Case("403", [Status(403)], r"status 403 \(not allowed\)", calls=1),
    Case("404", [Status(404, "The model does not exist.")], r"status 404 \(not found\)", calls=1),
    Case("400, whatever is asked", [Status(400, "Bad request.")], r"status 400", calls=4),
    Case("context too long", [Status(400, "The context length is exceeded.")], r"status 400: The context", calls=1),
    Case("context too long, of llama.cpp", [Status(400, "the request exceeds the available context size, try "
                                                        "increasing it")], r"status 400: the request", calls=1),
    Case("no credit", [Status(400, "Your credit balance is too low.")], r"status 400: Your credit", calls=1),
    Case("a policy on contents", [Status(400, "The response was filtered by the content management policy.")],
         r"status 400: The response was filtered", calls=1),
    Case("no such model, as 400", [Status(400, "Model Not Exist")], r"status 400: Model Not Exist", calls=1),
    Case("one form only, refused", [Propose(LOWER)], r"status 400: Invalid parameter", lacks=("json_schema",), calls=1,
         settings={"fallback": False}),
    Case("one form only, an empty answer", [EmptyReply("content")], r"it is empty", calls=3,
         settings={"fallback": False}),
    Case("a form that is not enforced", [Say(f"```json\n{GOOD}\n```")], calls=1,
         notice=r"answers outside of the form that .* was given \(json_schema\), which is not enforced there"),
    Case("tools that are not enforced", [Say(GOOD[:-1] + ', "mood": "fine"}'), Propose(LOWER)], calls=2,
         settings={"level": "tool"}, notice=r"was given \(tool\)"),
    Case("bounds that are not enforced", [Say(lower("3.0")), Propose(LOWER)], calls=2),
    Case("a prompt that was cut", [Propose(LOWER, usage=(300, 50))], calls=1,
         notice=r"it read 300 tokens of a prompt of about \d\d?,?\d+, so it cuts the prompt.*OLLAMA_CONTEXT_LENGTH=\d"),
    Case("a prompt that was counted oddly", [Propose(LOWER, usage=(3, 50))], calls=1),
    Case("a prompt that was mostly cached", [Propose(LOWER, usage={
        "prompt_tokens": 300, "completion_tokens": 50, "total_tokens": 1350, "cache_read_input_tokens": 1000})],
         calls=1),
    Case("a status of its own", [Status(299, body="{}")], r"it has no choices", calls=1),
    Case("no json_schema", [Propose(LOWER)], lacks=("json_schema",), calls=2),
    Case("no json_schema, no tools", [Propose(LOWER)], lacks=("json_schema", "tools"), calls=3),
    Case("no form of answer at all", [Propose(LOWER)], lacks=("json_schema", "tools", "json_object"), calls=4),
    Case("no strict", [Propose(LOWER)], lacks=("strict",), calls=3),
    Case("no temperature", [Propose(LOWER)], lacks=("temperature",), calls=1),
    Case("no temperature, which is set", [Propose(LOWER)], lacks=("temperature",), calls=2,
         settings={"temperature": 0.0}, notice="refuses temperature; it is not sent any more"),
    Case("no reasoning effort", [Propose(LOWER)], lacks=("reasoning_effort",), calls=2,
         settings={"reasoning_effort": "minimal"}, notice="refuses reasoning_effort"),
    Case("no tools for who thinks", [Status(400, "Function tools with reasoning_effort are not supported."),
                                     Propose(LOWER)], lacks=("json_schema",), calls=3,
         settings={"reasoning_effort": "low"}),
    Case("no such extra key", [Propose(LOWER)], r"status 400: .*\(llm.extra sends top_k\)", lacks=("top_k",), calls=1,
         settings={"extra": {"top_k": 5}}),
    Case("no max_tokens", [Propose(LOWER)], lacks=("max_tokens",), calls=2),
    Case("no limit of tokens at all", [Propose(LOWER)], lacks=("max_tokens", "max_completion_tokens"), calls=3),
    Case("lone surrogates in the text", [Say('{"evidence": "\ud800", "action": "\udfff"}')], NO_OBJECT, calls=2),
    Case("lone surrogates, escaped, in an answer", [Say(changed(evidence="\ud800"))]),
    Case("control characters", [Say(changed(evidence="\x1b[2J\x07\r\n\x00"))], calls=1),
    Case("control characters outside of JSON", [Say("\x1b[2J\x00" + json.dumps(LOWER) + "\x1b]0;x\x07")], calls=1),
    Case("the answer in reasoning_content", [spoke(None, reasoning_content=GOOD)], calls=1),
    Case("the answer in reasoning", [spoke("\n", reasoning=GOOD)], calls=1),
    Case("the answer in thinking", [spoke("", thinking=f"```json\n{GOOD}\n```")], calls=1),
    Case("an invalid answer in reasoning_content", [spoke(None, reasoning_content=lower("3.0"))],
         r"it holds thoughts only", calls=4),
    Case("a draft in reasoning_content", [spoke(None, reasoning_content=f"Perhaps {DRAFT}? Too much.")],
         r"it holds thoughts only", calls=4),
    Case("a draft in reasoning_content, the answer in content", [spoke(GOOD, reasoning_content=DRAFT)], calls=1),
    Case("nothing, then an answer in the next form", [EmptyReply("content"), Propose(LOWER)], calls=2),
    Case("blank content beside a tool call", [spoke("\n\n", "tool_calls", tool_calls=calling(GOOD))],
         lacks=("json_schema",), calls=2),
    Case("prose beside a tool call", [spoke("I will lower it.", tool_calls=calling(GOOD))], lacks=("json_schema",),
         calls=2),
    Case("a draft beside a tool call", [spoke(f"Not {DRAFT}.", tool_calls=calling(GOOD))], lacks=("json_schema",),
         calls=2),
    Case("a tool call that was not asked for", [spoke("I will lower it.", tool_calls=calling(GOOD))], calls=1),
    Case("a tool call cut off, a draft beside it", [spoke(DRAFT, "length", tool_calls=calling(GOOD[:40]))], NO_OBJECT,
         lacks=("json_schema",), calls=3),
    Case("arguments as an object", [spoke(None, tool_calls=calling(LOWER))], lacks=("json_schema",), calls=2),
    Case("arguments as an object with a key twice",
         [Raw(spoke(None, tool_calls=calling(LOWER)).body.replace(b'"action"', b'"action": "stop", "action"'))],
         NO_OBJECT, lacks=("json_schema",), calls=3),
    Case("arguments encoded twice", [spoke(None, tool_calls=calling(json.dumps(GOOD)))], lacks=("json_schema",),
         calls=2),
    Case("another tool is called, too", [spoke(None, tool_calls=[*calling(DRAFT, "look"), *calling(GOOD)])],
         lacks=("json_schema",), calls=2),
    Case("the call of a function", [spoke(None, function_call={"name": "decide", "arguments": GOOD})],
         lacks=("json_schema",), calls=2),
    Case("no tool calls, an answer", [spoke(GOOD, tool_calls=[])], lacks=("json_schema",), calls=2),
    Case("a tool call as text", [spoke(f'<tool_call>{{"name": "decide", "arguments": {GOOD}}}</tool_call>')], calls=1),
    Case("a tool call as text with its arguments as text",
         [spoke(json.dumps({"name": "decide", "arguments": GOOD}), tool_calls=[])], calls=1),
    Case("content encoded twice", [spoke(json.dumps(GOOD))], calls=1),
    Case("content as an object", [spoke(LOWER)], calls=1),
    Case("thoughts without an end, cut off", [spoke(f"<think>Perhaps {DRAFT} but", "length")], CUT_IN_THOUGHTS,
         calls=2),
    Case("thoughts without a beginning, cut off", [spoke(f"Perhaps {DRAFT} but", "length")],
         r"cut off after what may be a draft at 4096 tokens", calls=2),
    Case("thoughts without an end", [spoke(f"<think>Perhaps {DRAFT} but")], r"it holds thoughts only", calls=4),
    Case("thoughts and an answer", [spoke(f"<think>Perhaps {DRAFT}? No.</think>{GOOD}")], calls=1),
    Case("all tokens went into thoughts", [spoke("", "length", reasoning_content="Let me think. " * 99)],
         CUT_IN_THOUGHTS, calls=2),
    Case("all tokens went into thoughts, then an answer", [Say("", finish="length"), Propose(LOWER)], calls=2),
    Case("all tokens went into thoughts, no more allowed", [Say("", finish="length")], r"at 2048 tokens",
         calls=1, settings={"most_output_tokens": 2048}),
    Case("no room for more", [Say("", finish="length"), Status(400, "max_tokens is too large: 4096.")],
         r"cut off before its first word at 2048 tokens", calls=2),
    Case("cut off, told as an error", [Status(400, "Could not finish the message because max_tokens or model output "
                                                   "limit was reached."), Propose(LOWER)], calls=2),
    Case("cut off before the first word", [spoke(None, "MAX_TOKENS")], r"cut off before its first word at 4096",
         calls=2),
    Case("cut off in the blanks after an answer", [spoke(GOOD + "\n" * 99, "length")], calls=1),
    Case("channels", [spoke(f"{HARMONY}<|channel|>final<|message|>{GOOD}<|return|>")], calls=1),
    Case("channels, a tool call", [spoke(f"{HARMONY}<|channel|>commentary to=functions.decide <|constrain|>json"
                                         f"<|message|>{GOOD}<|call|>")], calls=1),
    Case("channels without their signs", [spoke(f"analysisWe could {DRAFT}. No.assistantfinal{GOOD}")], calls=1),
    Case("channels, cut off", [spoke(HARMONY, "length")], CUT_IN_THOUGHTS, calls=2),
    Case("several answers that differ", [spoke(f"Perhaps {DRAFT}. No: {GOOD}")], NO_OBJECT, calls=2),
    Case("reasoning in parts", [spoke([{"type": "reasoning", "text": DRAFT}, {"type": "text", "text": GOOD}])],
         calls=1),
    Case("parts of a kind of their own", [spoke([{"type": "draft", "text": DRAFT}, {"text": DRAFT, "thought": True},
                                                 {"type": "output_text", "text": GOOD}, 7])], calls=1),
    Case("thinking in parts",
         [spoke([{"type": "thinking", "thinking": [{"type": "text", "text": DRAFT}]}, {"type": "text", "text": GOOD}])],
         calls=1),
    Case("a refusal in parts", [spoke([{"type": "refusal", "refusal": "I cannot."}])], NO_OBJECT, calls=1),
    Case("several choices", [Raw(bodies({"choices": [{"message": {"content": text}} for text in (GOOD, DRAFT)]}))],
         calls=1),
    Case("withheld", [spoke(GOOD[:30], "content_filter")], r"withheld the answer \(content_filter\)", calls=1),
    Case("429 in a 200", [failing({"message": "Rate limit exceeded: free-models-per-day", "code": 429})],
         r"status 429 \(too many requests\): Rate limit exceeded: free-models-per-day", calls=3),
    Case("429 in a 200, then an answer", [failing({"message": "Slow down", "code": "429"}), Propose(LOWER)], calls=2),
    Case("502 in a 200", [failing({"message": "Provider returned error", "code": 502,
                                   "metadata": {"raw": "overloaded"}}, id=None, choices=None)],
         r"status 502: Provider returned error \(overloaded\)", calls=3),
    Case("401 in a 200", [failing({"message": "No auth", "code": 401})], r"status 401 \(the key is refused\): No auth",
         calls=1),
    Case("400 in a 200", [failing({"message": "No such thing", "code": 400})], r"status 400: No such thing", calls=4),
    Case("an error without a status in a 200", [failing({"message": "Busy", "type": "overloaded_error"})],
         r"the endpoint reports an error: Busy", calls=3),
    Case("an error in words in a 200", [failing("no such model")], r"the endpoint reports an error: no such model",
         calls=1),
    Case("an error in a list", [Raw(b'[{"error": {"code": 400, "message": "Bad key", "status": "INVALID"}}]')],
         r"status 400: Bad key", calls=4),
    Case("an error beside an answer", [Raw(bodies({"error": {"code": 502, "message": "Died"},
                                                   "choices": [{"message": {"content": GOOD}}]}))],
         r"status 502: Died", calls=3),
    Case("an error in the choice", [Raw(bodies({"choices": [{"finish_reason": "error", "message": {"content": GOOD},
                                                             "error": {"code": 502, "message": "Died"}}]}))],
         r"status 502: Died", calls=3),
    Case("an error that is not named", [spoke(GOOD[:9], "error")], r"the answer ended with an error", calls=3),
    Case("no error", [Raw(bodies({"error": None, "choices": [{"message": {"content": GOOD}, "error": {}}]}))], calls=1),
    Case("words instead of choices", [Raw(b'{"detail": "Not Found"}')], r"reports an error: Not Found", calls=1),
    Case("an error status with words", [Status(404, body={"error": "model 'x' not found"})],
         r"status 404 \(not found\): model 'x' not found", calls=1),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_whatever_an_endpoint_does(case: Case, tmp_path: Path, unmanaged: RunPaths, row: Row) -> None:
    with ScriptedEndpoint(case.script, lacks=case.lacks) as endpoint:
        paths, closing, _ = managed(tmp_path, endpoint, policy_of(**{"timeout": 30.0, **case.settings}), FIRST)
    first = [request for request in of(paths, events.Request) if request.decision == "d1"]
    told = said(paths)
    assert case.calls in (None, len(first)), told
    assert (closing.status, closing.exit_code) == ("completed", 0)
    applied = [ack.changes for ack in of(paths, events.Acknowledged)]
    if case.expect is None:
        assert applied == [{"lr": (0.4, 0.2)}], told
        ending = "lr 0.2, as decided"
    else:
        assert re.search(case.expect, told), told
        assert applied == []
        assert not paths.control.exists()
        assert replay.compare_training(unmanaged, paths).first is None
        ending = "as if unmanaged"
    assert len(asked(endpoint)) == len(of(paths, events.Request)) == len(of(paths, events.Reply))
    if case.notice is not None:
        assert [text for text in notices(paths) if re.search(case.notice, text)], notices(paths)
    calls = "1 call" if len(first) == 1 else f"{len(first)} calls"
    row(TITLE, case.name, calls, ending, told if len(told) <= 100 else f"{told[:99]}…")
