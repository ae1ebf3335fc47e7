"""What the body of a response says: a chat completion, or what went wrong. Pure.

It is read with suspicion: any part may be missing, of another type, or in the place where another server has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from trainmgr.base.wire import short

TOOL = "decide"  # the name of the function that a model may be made to call
SPOKEN = ("text", "output_text", None)  # types of the parts of a content that are said; others are thoughts, or unknown
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
MESSAGES = ("message", "msg", "detail", "error_msg", "status_msg", "errors")
STATUSES = ("code", "status", "status_code", "http_status")
PASSING = ("overload", "rate_limit", "rate limit", "too_many", "exhausted", "unavailable", "timeout", "internal",
           "server_error")  # fmt: skip


@dataclass(frozen=True)
class Usage:
    """The tokens of a call, as the endpoint counts them; None for what it does not tell."""

    read: int | None = None
    """All of the prompt, what came from a cache and what went into one among it."""
    written: int | None = None
    """All of the completion, thoughts among it."""
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0


@dataclass(frozen=True)
class Completion:
    """What was answered."""

    text: str
    thoughts: str
    """What a model wrote before its answer, where the endpoint keeps the two apart."""
    refusal: str | None
    finish: str | None
    model: str | None
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Fault:
    """What an endpoint says went wrong, in its words."""

    message: str
    status: int | None = None
    """The HTTP status that it names, from 400 to 599."""
    passing: bool = False
    """Whether it says, without a status, that this passes."""
    names: str = ""
    """What it speaks of, in lower case."""


def parse(data: bytes) -> Any:
    """The body as JSON values. Raises ValueError or RecursionError."""
    return json.loads(data, object_pairs_hook=_pairs)


class _Doubled(dict[str, Any]):
    """An object with a key twice: written as text again it still has it twice, and is refused where it is read."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._pairs = pairs

    def items(self) -> Any:
        return self._pairs


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Doubled(pairs)


# -- what went wrong ---------------------------------------------------------------------------------------------------


def fault(body: Any) -> Fault | None:
    """The error in a body that came with status 200; None where there is none.

    Gateways put it there once they have begun to answer: beside the choices, instead of them, or in one.
    """
    choice = _choice(body)
    message = choice.get("message") if choice else None
    for holder in (_first(body), choice, message):
        if isinstance(holder, dict) and (found := reported(holder.get("error"), holder)).message:
            return found
    if choice is not None:
        ended = _lower(choice.get("finish_reason")) == "error"
        return Fault("the answer ended with an error that is not named", passing=True) if ended else None
    if isinstance(body, dict) and any(isinstance(body.get(name), str | list) for name in MESSAGES):
        found = reported(body)
        return found if found.message else None
    return None


def reported(error: Any, around: Any = None) -> Fault:
    """An error as a server words it: a text, an object, or a list of them. Without a message where it says nothing."""
    fields: dict[str, Any] = around if isinstance(around, dict) else {}
    inner = error
    for _ in range(3):
        inner = _first(inner)
        if not isinstance(inner, dict):
            break
        fields = {**fields, **inner}
        if not inner.get("error"):
            break
        inner = inner["error"]
    if isinstance(inner, dict):
        said = (_phrase(inner.get(name)) for name in (*MESSAGES, "code", "type"))
        message = next((text for text in said if text), "")
        more = inner.get("metadata")  # what a provider behind a gateway said
        raw = _phrase(more.get("raw")) if isinstance(more, dict) else ""
        message = f"{message} ({raw})" if message and raw else message
    else:
        message = _phrase(inner)
    kinds = " ".join(_phrase(fields.get(name)) for name in ("code", "type", "status")).lower()
    names = " ".join((*(_phrase(fields.get(name)) for name in ("param", "code")), message))
    return Fault(
        message=message,
        status=next((found for name in STATUSES if (found := _status(fields.get(name)))), None),
        passing=any(word in kinds for word in PASSING),
        names=names.lower()[:2000],
    )


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def _phrase(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value) if value and not isinstance(value, bool) else ""


def _status(value: Any) -> int | None:
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    return value if type(value) is int and 400 <= value <= 599 else None


# -- a completion ------------------------------------------------------------------------------------------------------


def read(body: Any, form: str | None, hide: Callable[[str], str]) -> Completion | None:
    """The first choice of a body; None where there is none.

    ``form`` is the form of answer that was asked for, None for plain text. Who was told to call a tool answers with
    that call, whatever is said beside it; else a call counts where nothing was said that could be an answer.
    """
    choice = _choice(body)
    if choice is None:
        return None
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    text, called = _text(message.get("content")), _arguments(message) if form is not None else ""
    if called and (form == "tool" or "{" not in text):
        text = called
    return Completion(
        text=hide(text) if text.strip() else "",
        thoughts=hide(next((text for name in THOUGHTS if (text := _text(message.get(name))).strip()), "")),
        refusal=hide(_refusal(message)) or None,
        finish=_word(hide(str(choice.get("finish_reason") or ""))),
        model=_word(hide(str(body.get("model") or ""))),
        usage=usage(body),
    )


def usage(body: Any) -> Usage:
    """The tokens of a call, where a body tells them.

    What was cached is a part of the prompt's tokens, but for servers that count it beside them.
    """
    told = _fields(body, "usage")
    details, thought = _fields(told, "prompt_tokens_details"), _fields(told, "completion_tokens_details")
    cached = _first_count(told.get("cache_read_input_tokens"), details.get("cached_tokens"),
                          told.get("prompt_cache_hit_tokens"), told.get("cached_tokens"))  # fmt: skip
    stored = _first_count(told.get("cache_creation_input_tokens"), details.get("cache_write_tokens"),
                          details.get("cache_creation_tokens"))  # fmt: skip
    read, written, total = (_count(told.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
    if read is not None:
        beside = read + cached + stored
        if cached + stored > read or (beside > read and total == beside + (written or 0)):
            read = beside
    reasoning = _first_count(thought.get("reasoning_tokens"), told.get("reasoning_tokens"))
    return Usage(read, written, cached, stored, reasoning)


def _fields(holder: Any, name: str) -> dict[str, Any]:
    found = holder.get(name) if isinstance(holder, dict) else None
    return found if isinstance(found, dict) else {}


def _first_count(*values: Any) -> int:
    return next((count for value in values if (count := _count(value))), 0)


def _choice(body: Any) -> dict[str, Any] | None:
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else None


def _text(content: Any) -> str:
    """What is said in a message's content: a text, a list of parts, or the answer as an object."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict) and "action" in content:
        return json.dumps(content)
    return "".join(part["text"] for part in _parts(content) if part.get("type") in SPOKEN and not part.get("thought"))


def _parts(content: Any) -> Iterator[dict[str, Any]]:
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            yield {"text": part}
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part


def _refusal(message: dict[str, Any]) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    said = (part.get("refusal") for part in (message, *parts) if isinstance(part, dict))
    return next((text for text in said if isinstance(text, str) and text.strip()), "")


def _arguments(message: dict[str, Any]) -> str:
    """The arguments of the tool call in a message, of our tool if there are several; "" without any."""
    calls = message.get("tool_calls")
    calls = calls if isinstance(calls, list) else [calls]
    functions = [call.get("function", call) for call in calls if isinstance(call, dict)]
    functions.append(message.get("function_call"))  # what it was called before
    called = [function for function in functions if isinstance(function, dict)]
    for function in sorted(called, key=lambda function: function.get("name") != TOOL):
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments.strip():
            return arguments
        if isinstance(arguments, dict) and arguments:
            return json.dumps(arguments)
    return ""


def _lower(value: Any) -> str:
    return value.lower() if isinstance(value, str) else ""


def _word(text: str) -> str | None:
    return short(text, 100) or None


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 10**9 else None
