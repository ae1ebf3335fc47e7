"""What a completion is worth: whether there is an answer in it, whether that is in the form that was asked for, and
whether the whole prompt was read. Pure."""

from __future__ import annotations

import json
from typing import Any

from trainmgr.contract.policy import Level
from trainmgr.managers import answer
from trainmgr.managers.completion import Completion
from trainmgr.managers.endpoint import EndpointError

CUT = ("length", "max_tokens", "max_output_tokens", "model_length")  # ends of an answer that was to go on
WITHHELD = ("content_filter", "safety", "recitation", "prohibited_content", "blocklist", "sensitive")
READ_LEAST = 0.5
"""Of our estimate of a prompt: an endpoint that counts less than this has not read all of it. The tokenizers of GPT,
Claude and DeepSeek count 0.71 to 0.84 of the estimate on 230 prompts of six workloads, chat templates, which add to
that, not included; text that is nothing but figures comes to 0.45, but a third of a prompt is our own English."""
COUNT_LEAST = 256  # tokens; a count below this is a mistake of the counting: no context is so short


def ended(completion: Completion, ends: tuple[str, ...]) -> bool:
    return (completion.finish or "").lower() in ends


def lacking(completion: Completion, *, wanted: bool, cap: int) -> EndpointError | None:
    """Why there is no answer in a completion; None where there may be one. What was cut off holds an answer only if it
    is the whole of it: else it may be a draft. ``wanted``: whether the answer is an object."""
    text, parts = completion.text, answer.spoken(completion.text)
    held = wanted and isinstance(answer.read(text), dict)
    cut, withheld = ended(completion, CUT), ended(completion, WITHHELD)
    if completion.refusal and not text:
        return None
    if answer.whole(text) or answer.whole(parts.said) or (held and not cut and not withheld):
        return None
    if withheld:
        return EndpointError(f"the endpoint withheld the answer ({completion.finish})")
    if cut and (held or not parts.said.strip()):
        within = "in its thoughts" if parts.inside or completion.thoughts else "before its first word"
        where = "after what may be a draft" if held else within
        return EndpointError(
            f"the answer was cut off {where} at {cap} tokens; raise llm.most_output_tokens, or let the model think "
            "less (llm.reasoning_effort)",
            cut=True,
        )
    if held or parts.said.strip():
        return None
    why = "it holds thoughts only" if text or completion.thoughts else "it is empty"
    return EndpointError(f"there is no answer in the response: {why}", transient=True, empty=True)


def in_form(completion: Completion, level: Level, schema: dict[str, Any] | None) -> bool | None:
    """Whether an answer is in the form that the endpoint was given: False shows that it does not enforce that. None
    where nothing was given, or nothing can be told: it may go on where it was cut off."""
    refused = completion.refusal or ended(completion, (*CUT, *WITHHELD))
    said = answer.spoken(completion.text)
    if schema is None or level == "text" or refused or said.inside or not said.said.strip():
        return None
    try:
        value = json.loads(said.said)
        return isinstance(value, dict) if level == "json_object" else fits(value, schema)
    except (ValueError, RecursionError):
        return False


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether JSON values are of the shape of a schema: types, names and alternatives. Not how large a number or how
    long a text is, which engines that enforce a schema leave out or round; what is not known here counts as kept."""
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return any(fits(value, each) for each in alternatives)
    if "const" in schema and not _same(value, schema["const"]):
        return False
    if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
        return False
    kinds = schema.get("type")
    if kinds is not None and not any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        if any(name not in value for name in schema.get("required", ())):
            return False
        if schema.get("additionalProperties") is False and any(name not in known for name in value):
            return False
        return all(fits(inner, known[name]) for name, inner in value.items() if name in known)
    if isinstance(value, list) and isinstance(items := schema.get("items"), dict):
        return all(fits(inner, items) for inner in value)
    return True


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _is(value: Any, kind: str) -> bool:
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return not isinstance(value, bool) and (
                isinstance(value, int) or (isinstance(value, float) and value == value // 1)
            )
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case _:
            return True


def shortened(read: int | None, estimated: int) -> str:
    """What to say of an endpoint that counts ``read`` tokens of a prompt whose text has about ``estimated``; "" where
    it may have read it all."""
    if read is None or not COUNT_LEAST <= read < READ_LEAST * estimated:
        return ""
    room = 1 << (2 * estimated + 2048).bit_length()
    return (
        f"it read {read:,} tokens of a prompt of about {estimated:,}, so it cuts the prompt, and the model decides on "
        f"a part of it. Give it a longer context: Ollama OLLAMA_CONTEXT_LENGTH={room} (its default is 4096), llama.cpp "
        f"-c {room}, vLLM --max-model-len; or shorten the prompt with llm.prompt_tokens"
    )
