"""One call to an OpenAI-compatible endpoint, bounded in size and time. The only user of openai.

Whatever an endpoint does ends in a completion or in an EndpointError whose text holds no secret. Nothing is tried again
here: what a call costs is counted by whoever makes it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from trainmgr.base.concealment import LEAST_KEY, SECRET
from trainmgr.base.errors import UserError
from trainmgr.base.wire import short
from trainmgr.contract.policy import Level
from trainmgr.managers import completion, listing
from trainmgr.managers.completion import TOOL, Completion, Fault, Usage
from trainmgr.managers.listing import Listed

MAX_BODY = 1 << 19  # bytes; an answer needs a few thousand
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROVIDER = "api.openai.com"
OPENAI = f"https://{PROVIDER}/v1"
MESSAGE = 300  # characters of an endpoint's error message that are kept
TRANSIENT = (408, 409, 425, 429)  # and everything from 500 on
PROXIES = ("http", "https", "socks5", "socks5h")  # kinds that the client knows
FILES, FOLDERS = "SSL_CERT_FILE", "SSL_CERT_DIR"  # where OpenSSL looks for certificates
CUSTOM_HEADERS = "OPENAI_CUSTOM_HEADERS"  # sent with every request; they may be secrets
HEADERS = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", CUSTOM_HEADERS)
ACCOUNT = ("OpenAI-Organization", "OpenAI-Project")  # headers with the ids of an account
KEYS = "SSLKEYLOGFILE"  # where Python writes the keys of connections, for who wants to look into them
UNREAD = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # where others do

UNTOLD = Usage()
LIMITED = re.compile(r"could not finish the message|output limit was reached")  # what some say instead of "length"

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_CREDENTIAL = re.compile(r"auth|key|token|secret|credential|cookie", re.IGNORECASE)


class EndpointError(Exception):
    """A call without an answer."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        sent: bool = True,
        transient: bool = False,
        retry_after: float | None = None,
        names: str = "",
        empty: bool = False,
        cut: bool = False,
        usage: Usage = UNTOLD,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.sent = sent
        """Whether anything may have reached the endpoint, which then may have worked."""
        self.transient = transient
        """Whether the same call may succeed later."""
        self.retry_after = retry_after
        """Seconds that the endpoint asks to wait."""
        self.names = names
        """What the endpoint's error speaks of, in lower case, to tell which part of a request it does not support."""
        self.empty = empty
        """Whether there was an answer, with nothing in it: another form of answer may change that."""
        self.cut = cut
        """Whether there was no room for the answer: more room may change that."""
        self.usage = usage
        """Tokens that were read and written all the same, where the endpoint tells."""


@dataclass(frozen=True)
class Call:
    """What is asked."""

    model: str
    messages: list[dict[str, str]]
    level: Level
    schema: dict[str, Any] | None
    """None asks for plain text."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """More for the body."""


class Endpoint:
    """An endpoint by its address. Nothing is sent before the first call."""

    def __init__(self, url: str, key: str | None) -> None:
        """Raises UserError for what is no address of an endpoint."""
        self._key = key
        self._secrets = [text for text in (key or "", *_credentials()) if len(text) >= LEAST_KEY]
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            known = False
        if not known:  # not repeated: whatever it is, it may hold a key
            raise UserError("The endpoint is no http or https address, like http://127.0.0.1:8000/v1.")
        self.url = _safe(parts)
        secret = parts.username or parts.password or parts.query or parts.fragment
        if secret or self.hide(self.url) != self.url:
            raise UserError(
                f"The endpoint's address holds more than a place ({self.redact(self.url)}). A key belongs in an "
                "environment variable, which llm.api_key_env names."
            )
        self.local = parts.hostname in LOOPBACK
        self._client: Any = None
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()  # of the call under way

    @property
    def official(self) -> bool:
        """Whether it is the provider's own, whose key OPENAI_API_KEY is."""
        host = urlsplit(self.url).hostname or ""
        return host == PROVIDER or host.endswith(f".{PROVIDER}")

    def connect(self) -> None:
        """Get the client ready, so that the first answer is not late for its sake. Sends nothing.

        Raises UserError where a variable of the environment (for a proxy, certificates, a header) prevents it.
        """
        _ = self._connected().chat.completions  # most of the package is imported here

    def ask(self, call: Call, seconds: float) -> Completion:
        """One completion within ``seconds``. Raises EndpointError."""
        body = self._within(seconds, lambda client: client.chat.completions.with_raw_response.create(**_request(call)))
        found = completion.read(body, call.level if call.schema is not None else None, self.hide)
        if found is None:
            raise EndpointError("the response is no chat completion: it has no choices")
        return found

    def models(self, seconds: float) -> list[Listed]:
        """The models that the endpoint lists. Raises EndpointError."""
        return listing.read(self._within(seconds, lambda client: client.models.with_raw_response.list()), self.hide)

    def close(self) -> None:
        """Give the connection up. A call under way ends without an answer; its thread may stay until it is due."""
        self._results.put(EndpointError("the call was given up"))
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close()
            self._client = None

    def hide(self, text: str) -> str:
        """Text from outside without the key and what custom headers hold like it, and as UTF-8 can write it."""
        text = text.encode(errors="replace").decode()
        if not self._secrets:
            return text
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        read = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[2], text)
        spelled = any(secret in read for secret in self._secrets)
        return text if not spelled else "[a text that spells out the key]"

    def redact(self, text: str) -> str:
        """An error's text without the key or anything that looks like one: endpoints repeat parts of what they got."""
        return SECRET.sub("[key]", self.hide(text))

    def _within(self, seconds: float, call: Callable[[Any], Any]) -> Any:
        """The parsed body of a response, whatever the other side does: a thread that hangs is left to itself."""
        if seconds <= 0:
            raise EndpointError("no time is left for a call", sent=False)
        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._results = results

        def work() -> None:
            try:
                results.put(self._made(seconds, call))
            except BaseException as error:
                results.put(error)

        threading.Thread(target=work, name="call", daemon=True).start()
        try:
            result = results.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise EndpointError(f"no answer within {seconds:.0f} s", transient=True) from None
        if isinstance(result, BaseException):
            raise self._told(result) from None
        return result

    def _made(self, seconds: float, call: Callable[[Any], Any]) -> Any:
        client = self._connected().with_options(timeout=seconds)
        response = call(client)
        try:
            body = completion.parse(response.content)
        except (ValueError, RecursionError):
            beginning = short(self.redact(response.content.decode(errors="replace")), 120)  # not first cut: half a key
            what = f"begins with {beginning!r}" if response.content else "is empty"
            raise EndpointError(f"the response is not JSON: it {what}", transient=not response.content) from None
        fault = completion.fault(body)
        if fault is not None:
            raise self._failed(fault, fault.status, response.headers, completion.usage(body))
        return body

    def _connected(self) -> Any:
        if self._client is None:
            import openai  # a second to import, which only this manager pays

            if wrong := _unsendable() or (None if self.local else _obstacle(self.url)):
                raise UserError(self.redact(wrong))
            try:
                http = _bounded(openai.DefaultHttpxClient)(
                    follow_redirects=False, trust_env=not self.local, headers={"Accept-Encoding": "identity"}
                )
            except Exception as error:
                raise UserError(self.redact(_unmade(error))) from None
            # Everything that it would take from the environment: what is the provider's is for nobody else.
            others: Any = {} if self.official else {name: openai.Omit() for name in ACCOUNT}
            self._client = openai.OpenAI(
                base_url=self.url, api_key=self._key or "none", admin_api_key="", webhook_secret="",
                default_headers=others, max_retries=0, http_client=http,
            )  # fmt: skip
        return self._client

    def _told(self, error: BaseException) -> EndpointError:
        """Any failure of a call as one that can be logged."""
        import openai

        if isinstance(error, EndpointError):
            return error
        if isinstance(error, UserError):
            return EndpointError(str(error), sent=False)
        cause = error.__cause__ or error.__context__
        for inner in (error, cause):
            if isinstance(inner, _UnreadError):
                return EndpointError(str(inner))
        if isinstance(error, openai.APIStatusError):
            return self._status(error)
        if isinstance(error, openai.APITimeoutError):
            return EndpointError("no answer in time", transient=True)
        if isinstance(error, openai.APIConnectionError):
            why = f"{type(cause).__name__}: {cause}" if cause else ""
            text = short(self.redact(why), MESSAGE)
            sent = type(cause).__name__ not in ("ConnectError", "ConnectTimeout", "ProxyError")
            what = "the connection broke" if sent else f"no connection to {self.url}"
            return EndpointError(f"{what} ({text}){distrusted(why)}", transient=True, sent=sent)
        return EndpointError(f"{type(error).__name__}: {short(self.redact(str(error)), MESSAGE)}")

    def _status(self, error: Any) -> EndpointError:
        fault = completion.reported(error.body)
        fault = fault if fault.message else completion.reported(error.message)
        return self._failed(fault, int(error.status_code), error.response.headers)

    def _failed(
        self, fault: Fault, status: int | None, headers: Any, usage: Usage = UNTOLD
    ) -> EndpointError:  # fmt: skip
        """What an endpoint says went wrong, with the status that counts, wherever it said it."""
        words = {401: "the key is refused", 403: "not allowed", 404: "not found", 429: "too many requests"}
        text = f"status {status}" if status is not None else "the endpoint reports an error"
        text += f" ({words[status]})" if status in words else ""
        hint = " (the address of most endpoints ends in /v1)" if status == 404 and "/v1" not in self.url else ""
        return EndpointError(
            f"{text}: {short(self.redact(fault.message), MESSAGE)}{hint}",
            status=status,
            transient=fault.passing if status is None else status in TRANSIENT or status >= 500,
            retry_after=_retry_after(headers),
            names=fault.names,
            cut=bool(LIMITED.search(fault.names)),
            usage=usage,
        )


class _UnreadError(Exception):
    """A response that is not read to its end, and why."""


def _bounded(client: type[Any]) -> type[Any]:
    """An HTTP client that reads no response beyond MAX_BODY bytes, error pages among them."""

    class Bounded(client):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            response = super().send(request, **{**options, "stream": True})
            body = bytearray()
            try:
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    raise _UnreadError("the response is compressed, which was not asked for")  # may unfold without end
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > MAX_BODY:
                        raise _UnreadError(f"the response is longer than {MAX_BODY:,} bytes; the rest was not read")
            finally:
                response.close()
            skipped = ("content-encoding", "content-length", "transfer-encoding")
            headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in skipped]
            return type(response)(response.status_code, headers=headers, content=bytes(body), request=request)

    return Bounded


# -- the client and its environment ------------------------------------------------------------------------------------


def _proxies() -> Iterator[tuple[str, str]]:
    """The proxies that the client takes from the environment: the name of the variable, and its value."""
    found = getproxies()
    if "*" in (host.strip() for host in found.get("no", "").split(",")):
        return
    for kind in ("http", "https", "all"):
        if value := found.get(kind):
            names = [n for n in os.environ if n.lower() == f"{kind}_proxy" and os.environ[n] == value]
            yield min(names, default="the system's proxy settings"), value


def _credentials() -> list[str]:
    """What the custom headers hold by their names: the last word, without a scheme."""
    rows = [line.partition(":") for line in os.environ.get(CUSTOM_HEADERS, "").splitlines()]
    return [value.split()[-1] for name, _, value in rows if value.strip() and _CREDENTIAL.search(name)]


def sendable(value: str) -> bool:
    """Whether a header of a request can hold this."""
    return value.isascii() and value.isprintable()


def _unsendable() -> str | None:
    """Which variable would make a request impossible."""
    for name in HEADERS:
        if not all(map(sendable, os.environ.get(name, "").splitlines())):
            return f"{name} holds characters that no HTTP header can have. Correct it, or unset it: env -u {name} ..."
    return None


def _obstacle(url: str) -> str | None:
    """What in the environment would keep every call from its endpoint, and what helps. No value of a proxy variable is
    repeated: there may be a password in it."""
    for name, value in _proxies():
        kind = value.partition("://")[0].lower() if "://" in value else "http"
        helps = f"or unset it: env -u {name} trainmgr ..."
        if kind not in PROXIES:
            also = f", with socks5 instead of {kind}" if kind in ("socks", "socks4", "socks4a") else ""
            return (
                f"{name} names a proxy of a kind that is not known; known are {', '.join(PROXIES)}. "
                f"Write it as KIND://HOST:PORT{also}, {helps}"
            )
        if not _address(value if "://" in value else f"http://{value}"):
            return f"{name} is no address of a proxy. Write it as http://HOST:PORT, {helps}"
        if kind.startswith("socks") and importlib.util.find_spec("socksio") is None:
            return (
                f"{name} names a SOCKS proxy, for which the package socksio is needed; it is not installed. "
                f"Install it with pip install socksio, name an http proxy, {helps}"
            )
    folders = [folder for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]
    if folders and url.startswith("https:") and not os.environ.get(FILES) and not any(map(os.path.isdir, folders)):
        return _certificates(FOLDERS, "folder", "there is none")
    return None


def _address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        host = parts.hostname or ""
        return host.isprintable() and len(host.split()) == 1 and parts.port != 0
    except ValueError:
        return False


def _unmade(error: Exception) -> str:
    """Why the client could not be made."""
    if path := os.environ.get(FILES):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except OSError as wrong:
            why = "there is none in it" if isinstance(wrong, ssl.SSLError) else wrong.strerror or type(wrong).__name__
            return _certificates(FILES, "file", why)
    if os.environ.get(KEYS) and isinstance(error, OSError):
        why = error.strerror or type(error).__name__
        return f"{KEYS} names a file that cannot be written ({why}). Name another, or unset it: env -u {KEYS} ..."
    there = [name for name, _ in _proxies()] + [name for name in (FILES, FOLDERS, KEYS) if os.environ.get(name)]
    return (
        f"The HTTP client cannot be made ({type(error).__name__}). Variables that it reads are set: "
        f"{', '.join(there) or 'none'}. Correct or unset what is wrong in them."
    )


def _certificates(name: str, what: str, why: str) -> str:
    return (
        f"{name} names a {what} of certificates that cannot be used: {short(os.environ[name], 4096)} ({why}). "
        f"Name one that can, or unset it, and the system's certificates count: env -u {name} trainmgr ..."
    )


def distrusted(why: str) -> str:
    """What helps where a certificate is not trusted."""
    if "CERTIFICATE_VERIFY_FAILED" not in why:
        return ""
    others = [name for name in UNREAD if os.environ.get(name) and not os.environ.get(FILES)]
    also = f"; {others[0]} is set, which is not read" if others else ""
    return f"; {FILES} can name a file with the certificates of your network{also}"


# -- the request -------------------------------------------------------------------------------------------------------


def _request(call: Call) -> dict[str, Any]:
    """The arguments of ``chat.completions.create``."""
    request: dict[str, Any] = {"model": call.model, "messages": call.messages, "extra_body": call.parameters}
    if call.schema is None:
        return request
    if call.level == "json_schema":
        form = {"name": TOOL, "strict": True, "schema": call.schema}
        request["response_format"] = {"type": "json_schema", "json_schema": form}
    elif call.level == "tool":
        request["tools"] = [{"type": "function", "function": {
            "name": TOOL, "description": "The decision.", "strict": True, "parameters": call.schema}}]  # fmt: skip
        request["tool_choice"] = {"type": "function", "function": {"name": TOOL}}
    elif call.level == "json_object":
        request["response_format"] = {"type": "json_object"}
    return request


def _retry_after(headers: Any) -> float | None:
    """Seconds, where the header gives them; a date is not worth its parsing and counts as none."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e6 else None


def _safe(parts: Any) -> str:
    """An address without user, password, query and fragment."""
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}".rstrip("/")
