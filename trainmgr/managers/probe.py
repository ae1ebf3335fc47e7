"""Before a run: which model is meant, whether it is there, and what would be in vain to start with.

The list of models costs nothing and may be wrong; one short call shows the rest, and in which form answers come. What
passes by itself (too many requests, a server that starts) is a warning only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import date
from typing import Any

from trainmgr.base.errors import UserError
from trainmgr.managers import listing, prompt
from trainmgr.managers.endpoint import Endpoint, EndpointError
from trainmgr.managers.listing import Listed

LISTING = 10.0  # seconds to list an endpoint's models
WITHIN = 30.0  # seconds for the one call; a server may have to load its model first
WRONG_PLACE = (301, 302, 303, 307, 308, 404, 405, None)  # what may be said of an address without its /v1
TOKENS = 256  # of its answer: enough for a word, and a thinking model may end in its thoughts
SYSTEM = (
    'You are asked for one word, to see that you are there. Say "hello". Where a form of answer is demanded of you, '
)
SYSTEM += "such as JSON of a schema or the call of a function, keep to that form instead."
USER = "Are you there?"
SCHEMA: dict[str, Any] = {  # it stands in no prompt: who keeps to it was given it by the endpoint
    "type": "object",
    "properties": {"present": {"type": "boolean"}},
    "required": ["present"],
    "additionalProperties": False,
}


def words() -> prompt.Prompt:
    """What is asked."""
    digest = hashlib.sha256(f"{SYSTEM}\0{USER}".encode()).hexdigest()
    return prompt.Prompt("probe/0", digest, SYSTEM, USER, (), prompt.estimate(SYSTEM + USER))


def models(endpoint: Endpoint, model: str | None) -> list[Listed]:
    """The models that an endpoint lists; none where it does not say, and one is named.

    Raises UserError where nobody is there, and where none is named.
    """
    try:
        return endpoint.models(LISTING)
    except EndpointError as error:
        if not error.sent:
            raise UserError(_nobody(error)) from None
        if model is not None:
            return []
        there = _below(endpoint) if error.status in WRONG_PLACE else None
        raise UserError(
            _elsewhere(error, endpoint, there)
            if there
            else f"{endpoint.url} does not say which models it has: {error}. Name one with --manager llm:MODEL."
        ) from None


def only(endpoint: Endpoint, models: Sequence[Listed], today: date) -> str:
    """The one model that can be meant. Raises UserError where there is none, or more than one."""
    usable = [model for model in models if model.usable(today)]
    if len(usable) == 1:
        return usable[0].name
    others = len(models) - len(usable)
    besides = f", and {others} that are no chat models" if others else ""
    raise UserError(
        f"{endpoint.url} lists {len(usable)} models ({listing.named(usable)}){besides}. Name one: --manager llm:MODEL."
    )


def ending(model: Listed | None, models: Sequence[Listed], today: date) -> list[str]:
    """What to say of the end of a model. Raises UserError where it is over."""
    if model is None:
        return []
    if model.ends is not None and model.ends < today:
        usable = [other for other in models if other.usable(today)]
        like = listing.near(usable, model.name)
        raise UserError(
            f"{model.name} was switched off on {model.ends}, says its endpoint. Name another: --manager llm:MODEL"
            + (f" (there is {like})." if like else ".")
        )
    text = listing.ending(model, today)
    return [text] if text else []


def missing(endpoint: Endpoint, model: str, models: Sequence[Listed]) -> str:
    """What to say of a model that is not in the list, where it could not be asked; "" where it is in it, or there is
    none. Raises UserError where the list is the provider's own."""
    if not models or listing.find(models, model) is not None:
        return ""
    like = listing.near(models, model)
    text = f"{endpoint.url} does not list {model}" + (f"; it lists {like}" if like else "")
    if endpoint.official:
        raise UserError(f"{text}. Name one that it has: --manager llm:MODEL.")
    return text


def obstacle(error: EndpointError, endpoint: Endpoint, model: str, models: Sequence[Listed]) -> str | None:
    """Why no run is worth starting after this; None for what may pass."""
    url, status = endpoint.url, error.status
    if not error.sent:
        return _nobody(error)
    if status in (401, 403):
        return f"{url} does not let us ask {model}: {error}. Check the key, and whether it may use this model."
    if status == 402 or "insufficient_quota" in error.names:
        return f"{url} wants to be paid first: {error}."
    if error.transient:
        return None
    if status in WRONG_PLACE and not models and (there := _below(endpoint)):
        return _elsewhere(error, endpoint, there)
    if status in (400, 404) and "model" in error.names:
        like = listing.near(models, model)
        named = f" (it has {like})" if like else f" (it has {listing.named(models)})" if models else ""
        return f"{url} does not have the model {model}: {error}. Name one that it has{named}: --manager llm:MODEL."
    return f"{model} at {url} cannot be asked: {error}."


def _nobody(error: EndpointError) -> str:
    return f"{error}. Start the server, or name another with OPENAI_BASE_URL or llm.base_url."


def _elsewhere(error: EndpointError, endpoint: Endpoint, there: str) -> str:
    return f"{endpoint.url} is no endpoint ({error}). Did you mean {there}?"


def _below(endpoint: Endpoint) -> str | None:
    """The address with /v1 at its end, if somebody answers there. Asked once, and without a key."""
    if endpoint.url.endswith("/v1"):
        return None
    other = Endpoint(f"{endpoint.url}/v1", None)
    try:
        other.models(LISTING)
    except EndpointError as error:
        if error.status not in (401, 403):
            return None
    except UserError:
        return None
    finally:
        other.close()
    return other.url
