"""What a scripted endpoint does with one request: an answer of a language model, or a way in which none comes."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal, Protocol

CREATED = 1_700_000_000  # no clock: the same script gives the same bytes
BLOCK = 65_536
JSON = "application/json"


@dataclass(frozen=True)
class Received:
    """One request as it came in, numbered from 1. Header names are in lower case, ``t`` is monotonic."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any] | None  # None without a JSON object
    t: float


class Behaviour(Protocol):
    """What becomes of one request. Tests may write their own."""

    def perform(self, exchange: Exchange) -> None: ...


class Exchange(BaseHTTPRequestHandler):
    """One request and the means to answer it. A client that leaves ends it silently."""

    protocol_version = "HTTP/1.1"
    server_version = "scripted"
    disable_nagle_algorithm = True  # head and body are two packets: neither waits for the other's acknowledgement
    received: Received
    _chunked = False

    def reply(
        self,
        status: int,
        body: bytes | str | Mapping[str, Any],
        content_type: str = JSON,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A whole response."""
        text = json.dumps(body) if isinstance(body, Mapping) else body
        data = text.encode() if isinstance(text, str) else text
        self.begin(status, len(data), content_type, headers)
        self.write(data)

    def begin(
        self, status: int, length: int | None, content_type: str = JSON, headers: Mapping[str, str] | None = None
    ) -> None:
        """The head. Without a length the body is chunked: written in pieces, an empty one ends it."""
        self._chunked = length is None
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("x-request-id", f"req-{self.received.number}")
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def stays(self, seconds: float | None) -> bool:
        """Wait (None: as long as it takes); whether the client is there at the end.

        It waits on the socket, which ends when the client goes and when the endpoint closes. What the client sends
        meanwhile is dropped: requests are not pipelined.
        """
        if seconds == 0:
            return True
        self.connection.settimeout(seconds)
        try:
            while self.connection.recv(BLOCK):
                pass
        except TimeoutError:
            return True
        finally:
            self.connection.settimeout(None)
        self.close_connection = True
        return False

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()  # it holds the socket open
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def completion(
    received: Received,
    message: Mapping[str, Any] | None,
    *,
    finish: str = "stop",
    model: str | None = None,
    usage: tuple[int, int] | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A chat completion; without a message one without choices, without usage one that does not tell."""
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    reply: dict[str, Any] = {
        "id": f"chatcmpl-{received.number}",
        "object": "chat.completion",
        "created": CREATED,
        "model": model or (received.body or {}).get("model"),
        "choices": [] if message is None else [choice],
    }
    if isinstance(usage, Mapping):
        reply["usage"] = dict(usage)
    elif usage is not None:
        prompt, completed = usage
        reply["usage"] = {"prompt_tokens": prompt, "completion_tokens": completed, "total_tokens": prompt + completed}
    return reply


@dataclass(frozen=True)
class Say:
    """A chat completion. ``usage`` is prompt and completion tokens, or all that the endpoint counts, as it says it; the
    model is the one asked for if none is named.

    A request that offers tools gets a tool call with the text as its arguments, unless ``as_tool`` is false.
    """

    text: str
    usage: tuple[int, int] | Mapping[str, Any] | None = None
    finish: str = "stop"
    delay: float = 0.0
    refusal: str | None = None
    model: str | None = None
    as_tool: bool = True

    def perform(self, exchange: Exchange) -> None:
        if exchange.stays(self.delay):
            exchange.reply(200, self.completion(exchange.received))

    def completion(self, received: Received) -> dict[str, Any]:
        body = received.body or {}
        text = None if self.refusal is not None else self.text
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": self.refusal}
        finish, choice = self.finish, body.get("tool_choice", "auto")
        if text is not None and self.as_tool and body.get("tools") and choice != "none":
            named = isinstance(choice, dict)
            name = (choice if named else body["tools"][0])["function"]["name"]
            call = {"id": "call-1", "type": "function", "function": {"name": name, "arguments": text}}
            message |= {"content": None, "tool_calls": [call]}
            if finish == "stop" and not named:  # OpenAI says "stop" when it was told which tool to call
                finish = "tool_calls"
        return completion(received, message, finish=finish, model=self.model, usage=self.usage)


def Propose(proposal: Mapping[str, Any], **more: Any) -> Say:  # noqa: N802 - it stands among classes in a script
    """Say a proposal, as JSON."""
    return Say(json.dumps(proposal), **more)


@dataclass(frozen=True)
class Status:
    """An error in OpenAI's envelope, or with a body of its own. ``echo_key`` tells the client its own credentials."""

    status: int
    message: str = "scripted"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | str | Mapping[str, Any] | None = None
    echo_key: bool = False

    def perform(self, exchange: Exchange) -> None:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        message = self.message
        if self.echo_key:
            message = f"{message}: {exchange.received.headers.get('authorization')}"
        error = {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}
        exchange.reply(self.status, error if self.body is None else self.body, headers=self.headers)


@dataclass(frozen=True)
class Raw:
    """Any body."""

    body: bytes
    content_type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    def perform(self, exchange: Exchange) -> None:
        exchange.reply(self.status, self.body, self.content_type, self.headers)


def Empty() -> Raw:  # noqa: N802
    """A success without a body."""
    return Raw(b"")


@dataclass(frozen=True)
class EmptyReply:
    """A completion that says nothing: no choices, or one whose content is null."""

    without: Literal["choices", "content"] = "choices"

    def perform(self, exchange: Exchange) -> None:
        message = None if self.without == "choices" else {"role": "assistant", "content": None}
        exchange.reply(200, completion(exchange.received, message))


@dataclass(frozen=True)
class Redirect:
    """Somewhere else, with the same method and body."""

    url: str
    status: int = 307

    def perform(self, exchange: Exchange) -> None:
        exchange.reply(self.status, b"", headers={"Location": self.url})


@dataclass(frozen=True)
class Reset:
    """Closes the connection with RST before any byte."""

    def perform(self, exchange: Exchange) -> None:
        exchange.reset()


@dataclass(frozen=True)
class Cut:
    """A completion that ends after ``at`` bytes of its body (half of it, if none is given), the head promising all."""

    text: str
    at: int | None = None

    def perform(self, exchange: Exchange) -> None:
        data = json.dumps(Say(self.text).completion(exchange.received)).encode()
        exchange.begin(200, len(data))
        exchange.write(data[: len(data) // 2 if self.at is None else min(self.at, len(data) - 1)])
        exchange.close_connection = True


@dataclass(frozen=True)
class Huge:
    """A well-formed completion of ``size`` bytes, never whole in memory. Its head tells its size if ``declared``."""

    size: int
    declared: bool = True

    def perform(self, exchange: Exchange) -> None:
        text = json.dumps(Say("", as_tool=False).completion(exchange.received)).encode()
        head, mark, tail = text.partition(b'"content": "')
        rest = self.size - len(text)
        if rest < 0:
            raise ValueError(f"a completion has at least {len(text)} bytes, not {self.size}")
        exchange.begin(200, self.size if self.declared else None)
        exchange.write(head + mark)
        block = b"x" * BLOCK
        while rest:
            exchange.write(block[:rest])
            rest -= min(rest, BLOCK)
        exchange.write(tail)
        if not self.declared:
            exchange.write(b"")


@dataclass(frozen=True)
class Drip:
    """A body without end, one space at a time: it never is silent for long enough to be given up for that."""

    seconds_between: float

    def perform(self, exchange: Exchange) -> None:
        exchange.begin(200, None)
        exchange.write(b" ")
        while exchange.stays(self.seconds_between):
            exchange.write(b" ")


@dataclass(frozen=True)
class Silence:
    """Takes the request and never answers."""

    def perform(self, exchange: Exchange) -> None:
        exchange.stays(None)
