"""A scripted endpoint: a real HTTP server on loopback that speaks OpenAI's chat completions, well or badly as told.

It shows what a manager that asks a language model does with a wire, a real client and every way in which both fail. It
needs only the standard library, and nothing of trainmgr beyond this package.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from trainmgr.testing.behaviours import CREATED, Behaviour, Exchange, Raw, Received, Status
from trainmgr.testing.waiting import TIME_LIMIT

Script = Sequence[Behaviour] | Callable[[Received], Behaviour]


def refusal(body: Mapping[str, Any], lacks: Collection[str]) -> Status | None:
    """The error for the first thing in a request that is lacking, in the words of real servers, which differ."""
    form = body.get("response_format") or {}
    kind = form.get("type")
    if kind in {"json_schema", "json_object"} and kind in lacks:
        message = f"Invalid parameter: 'response_format' of type '{kind}' is not supported with this model."
        return Status(400, message, param="response_format")
    if "strict" in lacks:
        strict = {f"tools[{i}].function.strict": t["function"] for i, t in enumerate(body.get("tools") or ())}
        strict["response_format.json_schema.strict"] = form.get("json_schema") or {}
        for param, holder in strict.items():
            if "strict" in holder:
                return Status(400, f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    for name in body:
        if name not in lacks or (name == "temperature" and body[name] == 1):
            continue
        if name == "temperature":
            message = (
                f"Unsupported value: 'temperature' does not support {body[name]} with this model. "
                "Only the default (1) value is supported."
            )
            return Status(400, message, param=name, code="unsupported_value")
        if name == "max_completion_tokens":  # a server from before it: names it in words only
            return Status(400, f"Unrecognized request argument supplied: {name}")
        message = f"Unsupported parameter: '{name}' is not supported with this model."
        if name == "max_tokens":
            message += " Use 'max_completion_tokens' instead."
        return Status(400, message, param=name, code="unsupported_parameter")
    return None


class _Handler(Exchange):
    server: _Server

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length)
        if len(data) < length:
            raise ConnectionAbortedError("the client left within its request")
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        headers = {name.lower(): value for name, value in self.headers.items()}
        endpoint = self.server.endpoint
        self.received = endpoint.receive(
            self.command, self.path.partition("?")[0], headers, body if isinstance(body, dict) else None
        )
        endpoint.choose(self.received).perform(self)

    do_GET = do_POST = _serve  # noqa: N815


class _Server(socketserver.ThreadingTCPServer):
    """A thread for each connection, all of which end when it is closed."""

    request_queue_size = 128

    def __init__(self, endpoint: ScriptedEndpoint) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = endpoint
        self.port = self.socket.getsockname()[1]
        self._closing = threading.Event()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._thread = threading.Thread(target=self._accept, name="endpoint", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            self.handle_request()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        return not self._closing.is_set()

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name="endpoint connection", daemon=True
        )
        self._connections = {t: s for t, s in self._connections.items() if t.is_alive()} | {thread: request}
        thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError):
            self.endpoint.errors.append(error)

    def close(self) -> None:
        self._closing.set()
        socket.create_connection(("127.0.0.1", self.port)).close()  # wakes it: nothing polls
        self._thread.join()
        self.server_close()
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # ends whatever its thread waits for
        for thread in self._connections:
            thread.join(TIME_LIMIT)
            if thread.is_alive():
                raise TimeoutError("a function of the script did not return")


class ScriptedEndpoint:
    """``with ScriptedEndpoint([Say("hello"), Status(429), Reset()]) as endpoint``: a server at ``endpoint.url``.

    A script is a list of behaviours, of which the last is repeated, or a function, called in the connection's thread;
    what a function raises is raised when the endpoint closes. Requests without the ``key`` and requests for what it
    ``lacks`` (a name of a parameter, "json_schema", "json_object" or "strict") are refused and use up nothing. Of
    ``models`` each is a name, or what is to be listed of it.
    """

    def __init__(
        self, script: Script, *, models: Sequence[str | Mapping[str, Any]] = ("scripted",), key: str | None = None,
        lacks: Collection[str] = (),
    ) -> None:  # fmt: skip
        if not callable(script) and not script:
            raise ValueError("a script has at least one behaviour")
        self.url = ""
        self.requests: list[Received] = []
        self.errors: list[BaseException] = []
        self._script, self._models, self._key, self._lacks = script, models, key, frozenset(lacks)
        self._given = 0
        self._came = threading.Condition()
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.port}/v1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        for other in self.errors:
            if error is None:
                raise other
            error.add_note(f"The endpoint's script failed: {other!r}")

    def close(self) -> None:
        """End every connection, whatever it is at, and refuse new ones. Leaving the block does it too."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def wait_for_requests(self, count: int) -> None:
        """Wait until so many requests were received; raises TimeoutError after TIME_LIMIT."""
        with self._came:
            if not self._came.wait_for(lambda: len(self.requests) >= count, TIME_LIMIT):
                raise TimeoutError(f"{len(self.requests)} of {count} requests came in {TIME_LIMIT:.0f} s")

    def receive(self, method: str, path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Received:
        """For the server: take a request down."""
        with self._came:
            received = Received(len(self.requests) + 1, method, path, headers, body, time.monotonic())
            self.requests.append(received)
            self._came.notify_all()
        return received

    def choose(self, received: Received) -> Behaviour:
        """For the server: what becomes of a request."""
        asked, body = f"{received.method} {received.path}", received.body
        if self._key is not None and received.headers.get("authorization") != f"Bearer {self._key}":
            return Status(401, "Incorrect API key provided.", code="invalid_api_key")
        if asked == "GET /v1/models":
            listed = {"object": "model", "created": CREATED, "owned_by": "trainmgr"}
            models = [listed | ({"id": m} if isinstance(m, str) else dict(m)) for m in self._models]
            return Raw(json.dumps({"object": "list", "data": models}).encode())
        if asked != "POST /v1/chat/completions":
            return Status(404, f"Unknown request URL: {asked}.", code="unknown_url")
        if body is None:
            return Status(400, "We could not parse the JSON body of your request.")
        if body.get("stream"):
            return Status(400, "Streaming is not supported.", param="stream", code="unsupported_value")
        return refusal(body, self._lacks) or self._next(received)

    def _next(self, received: Received) -> Behaviour:
        if callable(self._script):
            return self._script(received)
        with self._came:
            number = min(self._given, len(self._script) - 1)
            self._given += 1
        return self._script[number]
