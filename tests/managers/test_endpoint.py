"""The scripted endpoint, as the real client and bare sockets see it."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from trainmgr.testing import (
    TIME_LIMIT,
    Behaviour,
    Cut,
    Drip,
    Empty,
    EmptyReply,
    Exchange,
    Huge,
    Propose,
    Raw,
    Received,
    Redirect,
    Reset,
    Say,
    ScriptedEndpoint,
    Silence,
    Status,
    answer,
    wait_for,
)

KEY = "sk-not-for-the-log"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": n, "parameters": {}}} for n in ("propose", "other")]
SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "proposal", "strict": True, "schema": {}}}


def connections() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("endpoint")]


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    assert connections() == []


@contextmanager
def client_of(endpoint: ScriptedEndpoint, *, key: str = KEY, patience: float = TIME_LIMIT) -> Iterator[openai.OpenAI]:
    timeout = openai.Timeout(TIME_LIMIT, read=patience)
    with openai.OpenAI(base_url=endpoint.url, api_key=key, max_retries=0, timeout=timeout) as client:
        yield client


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(model="scripted", messages=HELLO, **more)


def ask(behaviour: Behaviour, *, patience: float = TIME_LIMIT, lacks: tuple[str, ...] = (), **more: Any) -> Any:
    """What the client makes of one behaviour."""
    with ScriptedEndpoint([behaviour], lacks=lacks) as endpoint, client_of(endpoint, patience=patience) as client:
        return chat(client, **more)


def port_of(endpoint: ScriptedEndpoint) -> int:
    return int(endpoint.url.removeprefix("http://127.0.0.1:").removesuffix("/v1"))


@contextmanager
def posted(endpoint: ScriptedEndpoint) -> Iterator[socket.socket]:
    """A bare connection on which a chat was asked for."""
    with socket.create_connection(("127.0.0.1", port_of(endpoint)), TIME_LIMIT) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        yield connection


def everything(connection: socket.socket) -> bytes:
    data = b""
    while block := connection.recv(65_536):
        data += block
    return data


def test_a_completion() -> None:
    reply = ask(Say("hello", usage=(12, 3)))
    assert (reply.model, reply.choices[0].message.content, reply.choices[0].finish_reason) == (
        "scripted", "hello", "stop",
    )  # fmt: skip
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (12, 3, 15)
    assert reply._request_id == "req-1"


def test_a_completion_can_be_of_another_model_cut_off_late_and_without_usage() -> None:
    reply = ask(Say("hel", finish="length", model="scripted-2026", delay=0.001))
    assert (reply.model, reply.choices[0].finish_reason, reply.usage) == ("scripted-2026", "length", None)


def test_a_refusal() -> None:
    message = ask(Say("", refusal="No.")).choices[0].message
    assert (message.content, message.refusal) == (None, "No.")


def test_a_proposal() -> None:
    proposal = answer("adjust", {"lr": 0.1})
    assert json.loads(ask(Propose(proposal)).choices[0].message.content) == proposal


@pytest.mark.parametrize(
    ("choice", "name", "finish"),
    [
        ("auto", "propose", "tool_calls"),
        ({"type": "function", "function": {"name": "other"}}, "other", "stop"),
        ("none", None, "stop"),
    ],
)
def test_a_request_with_tools_gets_a_call(choice: Any, name: str | None, finish: str) -> None:
    reply = ask(Say("{}"), tools=TOOLS, tool_choice=choice).choices[0]
    calls = [(call.function.name, call.function.arguments) for call in reply.message.tool_calls or ()]
    assert calls == ([(name, "{}")] if name else [])
    assert (reply.message.content, reply.finish_reason) == (None if name else "{}", finish)


def test_a_model_may_ignore_its_tools() -> None:
    message = ask(Say("hello", as_tool=False), tools=TOOLS).choices[0].message
    assert (message.content, message.tool_calls) == ("hello", None)


def test_the_script_is_followed_in_order_and_its_last_word_repeated() -> None:
    with ScriptedEndpoint([Say("one"), Status(500), Say("two")]) as endpoint, client_of(endpoint) as client:
        assert chat(client).choices[0].message.content == "one"
        with pytest.raises(openai.InternalServerError):
            chat(client)
        assert [chat(client).choices[0].message.content for _ in range(2)] == ["two", "two"]
        assert len(connections()) == 2  # the server's and one connection, which stays open between requests


def test_a_function_sees_the_request_and_chooses() -> None:
    def script(request: Received) -> Behaviour:
        assert request.body is not None
        return Say(f"{request.number}: {request.body['messages'][0]['content']}")

    with ScriptedEndpoint(script) as endpoint, client_of(endpoint) as client:
        assert chat(client).choices[0].message.content == "1: hello"
        assert chat(client).choices[0].message.content == "2: hello"


def test_what_a_function_raises_is_raised_at_the_end() -> None:
    def script(request: Received) -> Behaviour:
        raise LookupError("no answer")

    with (
        pytest.raises(LookupError, match="no answer"),
        ScriptedEndpoint(script) as endpoint,
        client_of(endpoint) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        chat(client)
    with (
        pytest.raises(openai.APIConnectionError) as raised,
        ScriptedEndpoint(script) as endpoint,
        client_of(endpoint) as client,
    ):
        chat(client)
    assert raised.value.__notes__ == ["The endpoint's script failed: LookupError('no answer')"]


def test_a_script_says_something() -> None:
    with pytest.raises(ValueError, match="at least one behaviour"):
        ScriptedEndpoint([])


def test_requests_are_kept_as_they_came() -> None:
    with ScriptedEndpoint([Say("hello")]) as endpoint, client_of(endpoint) as client:
        chat(client, temperature=0.5)
        client.models.list()
        first, second = endpoint.requests
    assert (first.number, first.method, first.path) == (1, "POST", "/v1/chat/completions")
    assert first.body == {"model": "scripted", "messages": HELLO, "temperature": 0.5}
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert (second.number, second.method, second.path, second.body) == (2, "GET", "/v1/models", None)
    assert first.t <= second.t


def test_models_are_listed() -> None:
    with ScriptedEndpoint([Say("hello")], models=("small", "large")) as endpoint, client_of(endpoint) as client:
        assert [model.id for model in client.models.list()] == ["small", "large"]


def test_the_key_is_asked_for() -> None:
    with ScriptedEndpoint([Say("one"), Say("two")], key=KEY) as endpoint:
        with client_of(endpoint, key="wrong") as client, pytest.raises(openai.AuthenticationError) as raised:
            chat(client)
        assert (raised.value.code, KEY in str(raised.value)) == ("invalid_api_key", False)
        with client_of(endpoint) as client:
            assert chat(client).choices[0].message.content == "one"  # a refused request uses up nothing


def test_errors_are_in_the_envelope() -> None:
    limited = Status(429, "Slow down.", code="rate_limit_exceeded", headers={"Retry-After": "7"})
    with pytest.raises(openai.RateLimitError, match=r"Slow down\.") as raised:
        ask(limited)
    assert (raised.value.code, raised.value.response.headers["retry-after"]) == ("rate_limit_exceeded", "7")
    with pytest.raises(openai.BadRequestError) as refused:
        ask(Status(400, "Unsupported parameter.", param="seed", code="unsupported_parameter"))
    assert refused.value.body == {
        "message": "Unsupported parameter.", "type": "invalid_request_error", "param": "seed",
        "code": "unsupported_parameter",
    }  # fmt: skip
    with pytest.raises(openai.InternalServerError) as broken:
        ask(Status(502, body="<h1>Bad gateway</h1>"))
    assert broken.value.body == "<h1>Bad gateway</h1>"


def test_an_error_may_echo_the_key() -> None:
    with pytest.raises(openai.AuthenticationError, match=f"Incorrect API key: Bearer {KEY}"):
        ask(Status(401, "Incorrect API key", echo_key=True))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/v1/engines", None, 404, "Unknown request URL: GET /v1/engines."),
        ("POST", "/chat/completions", "{}", 404, "Unknown request URL: POST /chat/completions."),
        ("POST", "/v1/chat/completions", "{", 400, "could not parse the JSON body"),
        ("POST", "/v1/chat/completions", "[]", 400, "could not parse the JSON body"),
        ("POST", "/v1/chat/completions", None, 400, "could not parse the JSON body"),
        ("POST", "/v1/chat/completions", '{"stream": true}', 400, "Streaming is not supported"),
    ],
)
def test_what_it_cannot_do_it_refuses(method: str, path: str, body: str | None, status: int, words: str) -> None:
    with ScriptedEndpoint([Say("hello")]) as endpoint:
        connection = http.client.HTTPConnection("127.0.0.1", port_of(endpoint), timeout=TIME_LIMIT)
        connection.request(method, path, body)
        response = connection.getresponse()
        assert (response.status, words in json.loads(response.read())["error"]["message"]) == (status, True)
        connection.close()


@pytest.mark.parametrize(
    ("feature", "asked", "param", "code", "words"),
    [
        (
            "json_schema",
            {"response_format": SCHEMA},
            "response_format",
            None,
            "'response_format' of type 'json_schema'",
        ),
        ("json_object", {"response_format": {"type": "json_object"}}, "response_format", None, "of type 'json_object'"),
        ("tools", {"tools": TOOLS}, "tools", "unsupported_parameter", "'tools' is not supported"),
        ("temperature", {"temperature": 0.2}, "temperature", "unsupported_value", "does not support 0.2"),
        ("max_tokens", {"max_tokens": 9}, "max_tokens", "unsupported_parameter", "Use 'max_completion_tokens' instead"),
        ("max_completion_tokens", {"max_completion_tokens": 9}, None, None, "Unrecognized request argument supplied"),
        ("seed", {"seed": 1}, "seed", "unsupported_parameter", "'seed' is not supported"),
        ("strict", {"response_format": SCHEMA}, "response_format.json_schema.strict", "unknown_parameter", "Unknown"),
        (
            "strict",
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
            "tools[0].function.strict",
            "unknown_parameter",
            "Unknown parameter",
        ),
    ],
)
def test_what_it_lacks_it_refuses(
    feature: str, asked: dict[str, Any], param: str | None, code: str | None, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(words)) as raised:
        ask(Say("hello"), lacks=(feature,), **asked)
    assert (raised.value.param, raised.value.code) == (param, code)
    assert ask(Say("hello"), **asked).choices
    assert ask(Say("hello"), lacks=(feature,)).choices


def test_the_default_temperature_can_always_be_asked_for() -> None:
    assert ask(Say("hello"), lacks=("temperature",), temperature=1).choices


def test_a_reset() -> None:
    with pytest.raises(openai.APIConnectionError):
        ask(Reset())
    with (
        ScriptedEndpoint([Reset()]) as endpoint,
        posted(endpoint) as connection,
        pytest.raises(ConnectionResetError),
    ):
        connection.recv(1)


@pytest.mark.parametrize(("at", "length"), [(None, None), (0, 0), (5, 5), (10**9, None)])
def test_a_reply_cut_off(at: int | None, length: int | None) -> None:
    with pytest.raises(openai.APIConnectionError):
        ask(Cut("hello", at))
    with ScriptedEndpoint([Cut("hello", at)]) as endpoint, posted(endpoint) as connection:
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    promised = re.search(rb"Content-Length: (\d+)", head)
    assert promised is not None
    assert len(body) < int(promised[1])
    assert length is None or len(body) == length


def test_no_body() -> None:
    with pytest.raises(json.JSONDecodeError):
        ask(Empty())


def test_a_completion_that_says_nothing() -> None:
    assert ask(EmptyReply()).choices == []
    assert ask(EmptyReply("content")).choices[0].message.content is None


@pytest.mark.parametrize("declared", [True, False])
def test_a_huge_reply(declared: bool) -> None:
    with ScriptedEndpoint([Huge(300_000, declared)]) as endpoint, client_of(endpoint) as client:
        raw = client.chat.completions.with_raw_response.create(model="scripted", messages=HELLO)
        assert ("content-length" in raw.headers, len(raw.content)) == (declared, 300_000)
        content = raw.parse().choices[0].message.content
        assert content is not None
        assert set(content) == {"x"}
        assert chat(client).choices  # the connection is still good


def test_a_huge_reply_ends_with_its_reader_or_its_endpoint() -> None:
    with ScriptedEndpoint([Huge(10**12)]) as endpoint:
        with posted(endpoint) as connection:
            assert connection.recv(9) == b"HTTP/1.1 "
        wait_for(lambda: len(connections()) == 1)
        with posted(endpoint):
            endpoint.wait_for_requests(2)
            endpoint.close()
            assert connections() == []


def test_a_huge_reply_is_at_least_a_reply() -> None:
    with (
        pytest.raises(ValueError, match="a completion has at least"),
        ScriptedEndpoint([Huge(10)]) as endpoint,
        posted(endpoint) as connection,
    ):
        assert everything(connection) == b""


@pytest.mark.parametrize("behaviour", [Silence(), Drip(0.001), Drip(0), Drip(1e6), Say("late", delay=1e6)])
def test_what_never_ends_ends_when_the_client_goes(behaviour: Behaviour) -> None:
    with ScriptedEndpoint([behaviour]) as endpoint:
        with posted(endpoint):
            endpoint.wait_for_requests(1)
            assert len(connections()) == 2
        wait_for(lambda: len(connections()) == 1)


@pytest.mark.parametrize("behaviour", [Silence(), Drip(0.001), Drip(0), Drip(1e6), Say("late", delay=1e6)])
def test_what_never_ends_ends_with_the_endpoint(behaviour: Behaviour) -> None:
    with ThreadPoolExecutor() as pool, ScriptedEndpoint([behaviour]) as endpoint, client_of(endpoint) as client:
        asked = pool.submit(chat, client)
        endpoint.wait_for_requests(1)
        endpoint.close()
        with pytest.raises(openai.APIConnectionError):
            asked.result(TIME_LIMIT)


def test_silence_lasts_longer_than_the_client_waits() -> None:
    with pytest.raises(openai.APITimeoutError):
        ask(Silence(), patience=0.05)


def test_a_drip_comes_a_byte_at_a_time() -> None:
    with ScriptedEndpoint([Drip(0.001)]) as endpoint, posted(endpoint) as connection:
        stream = connection.makefile("rb")
        while stream.readline() != b"\r\n":
            pass
        assert [stream.readline() for _ in range(6)] == [b"1\r\n", b" \r\n"] * 3
        stream.close()


def test_any_bytes() -> None:
    assert ask(Raw(b"<html>", "text/html")) == "<html>"  # the client does not look
    with pytest.raises(json.JSONDecodeError):
        ask(Raw(b'{"choices": '))


def test_a_redirect() -> None:
    with ScriptedEndpoint([Say("here")]) as there:
        assert ask(Redirect(f"{there.url}/chat/completions")).choices[0].message.content == "here"
        (request,) = there.requests
    assert request.method == "POST"
    assert "authorization" not in request.headers  # the client follows, but another origin does not get the key


def test_tests_may_have_behaviours_of_their_own() -> None:
    class Teapot:
        def perform(self, exchange: Exchange) -> None:
            exchange.reply(418, "short and stout", "text/plain")

    with pytest.raises(openai.APIStatusError) as raised:
        ask(Teapot())
    assert (raised.value.status_code, raised.value.response.text) == (418, "short and stout")


def test_requests_come_on_many_connections_at_once() -> None:
    together = threading.Barrier(8)

    def script(request: Received) -> Behaviour:
        together.wait(TIME_LIMIT)
        return Say("hello")

    with ThreadPoolExecutor(8) as pool, ScriptedEndpoint(script) as endpoint, client_of(endpoint) as client:
        replies = list(pool.map(lambda _: chat(client), range(8)))
        assert len({reply.id for reply in replies}) == len(endpoint.requests) == 8


def test_a_client_that_leaves_within_its_request_was_not_there() -> None:
    with ScriptedEndpoint([Say("hello")]) as endpoint:
        with socket.create_connection(("127.0.0.1", port_of(endpoint)), TIME_LIMIT) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
        wait_for(lambda: len(connections()) == 1)
    assert endpoint.requests == []


def test_a_closed_endpoint_refuses() -> None:
    with ScriptedEndpoint([Say("hello")]) as endpoint, client_of(endpoint) as client:
        endpoint.close()
        with pytest.raises(openai.APIConnectionError):
            chat(client)


def test_requests_that_do_not_come_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmgr.testing.endpoint.TIME_LIMIT", 0.001)
    with ScriptedEndpoint([Say("hello")]) as endpoint, pytest.raises(TimeoutError, match="0 of 1 requests"):
        endpoint.wait_for_requests(1)


def test_it_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    ask(Say("hello"))
    with pytest.raises(openai.InternalServerError):
        ask(Status(500))
    with pytest.raises(openai.APIConnectionError):
        ask(Reset())
    assert capfd.readouterr() == ("", "")
