"""The key of a language model: which variable holds it, and to whom it may be sent.

Both are for the operator to say, on the command line or in the environment. A policy file, or the copy of one in the
record of a run, may come from anywhere: it may name a variable that is an API key by its name, and an endpoint, but no
key goes to a place that nothing but a policy names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from trainmgr.base.concealment import LEAST_KEY, conceal
from trainmgr.base.errors import UserError
from trainmgr.base.paths import API_KEY_NAME, API_KEY_VARIABLE, BASE_URL_VARIABLE, KEY_NAME_VARIABLE, SEND_KEY_VARIABLE
from trainmgr.contract.policy import VARIABLE, Llm
from trainmgr.managers.endpoint import CUSTOM_HEADERS, Endpoint, sendable


def heed(name: str | None, places: Iterable[str]) -> None:
    """Keep what the operator says on the command line (--api-key-env, --send-key) where whoever needs it looks for it.

    Raises UserError for what is no name of a variable, or no address.
    """
    if name:
        os.environ[KEY_NAME_VARIABLE] = name
        variable(Llm(), os.environ)  # it is one
    if text := " ".join(map(checked_place, places)):
        os.environ[SEND_KEY_VARIABLE] = text
    conceal()  # the variable that is named now may be the first that holds one


def variable(settings: Llm, environment: Mapping[str, str]) -> str:
    """The name of the variable that holds the key: the operator's word counts before the policy's.

    Raises UserError for what is no name; it is not repeated, since it may be a key.
    """
    name = environment.get(KEY_NAME_VARIABLE, "").strip() or settings.api_key_env
    if not re.fullmatch(VARIABLE, name):
        raise UserError(
            f"--api-key-env and {KEY_NAME_VARIABLE} take the NAME of an environment variable, in capital letters; "
            "the key itself goes into that variable."
        )
    return name


def value(settings: Llm, environment: Mapping[str, str]) -> str | None:
    """The key; None where there is none.

    Raises UserError for one that cannot be sent, and for a variable that a policy has no say about.
    """
    name = variable(settings, environment)
    chosen = bool(environment.get(KEY_NAME_VARIABLE, "").strip())
    key = environment.get(name, "").strip() or None
    if key is None and chosen:
        raise UserError(f"The environment variable {name}, which --api-key-env names, is not set. Set it to the key.")
    if key is None:
        return None
    if not (chosen or API_KEY_NAME.fullmatch(name)):
        raise UserError(
            f"The policy names {name} as the variable that holds the key (llm.api_key_env). A policy may come from "
            "anywhere, so by itself it can only name what is a key by its name, as OPENAI_API_KEY and HOUSE_API_KEY_2 "
            f"are. If the key is in this one, say so: --api-key-env {name}."
        )
    if not sendable(key):
        raise UserError(
            f"The key in {name} holds characters that no HTTP header can have (quotation marks from "
            "a text, a line break, a letter beyond ASCII). Set it again, as it was given to you."
        )
    return key


def permit(endpoint: Endpoint, settings: Llm, environment: Mapping[str, str]) -> bool:
    """Whether this endpoint gets the key. False: it is asked without one. A server on this machine that nothing but a
    policy names (vLLM, Ollama) has no use for the provider's own key, which is often in the environment anyway.

    Raises UserError where it must not get what it would be sent: nobody but a policy has named it, or everyone on the
    way could read it.
    """
    names = _secrets(settings, environment)
    if not names or _listed(endpoint.url, environment):
        return True
    what, url = " and ".join(names), endpoint.url
    without = f"go without (env {' '.join(f'-u {name}' for name in names)} trainmgr ...)"
    if urlsplit(url).scheme == "http" and not endpoint.local:
        raise UserError(
            f"{what} would go to {url} in clear text, where anyone on the network can read it. Use https, {without}, "
            f"or allow it: --send-key {url}."
        )
    named = not settings.base_url or _place(environment.get(BASE_URL_VARIABLE, "")) == url
    if endpoint.official or named:
        return True
    if endpoint.local and names == [API_KEY_VARIABLE] and not environment.get(KEY_NAME_VARIABLE, "").strip():
        return False
    raise UserError(
        f"{what} would go to {url}, which nothing but the policy names, and a policy may come from anywhere. If you "
        f"trust this endpoint, say so: --send-key {url} (or {SEND_KEY_VARIABLE}={url}); else {without}."
    )


def checked_place(address: str) -> str:
    """An address of ``--send-key`` in one spelling. Raises UserError for what is none, without repeating it."""
    place = _place(address)
    if place is None:
        raise UserError(
            f"--send-key and {SEND_KEY_VARIABLE} take the address of an endpoint, like https://llm.example.org/v1 or "
            "http://gpu:8000."
        )
    return place


def _secrets(settings: Llm, environment: Mapping[str, str]) -> list[str]:
    """The variables with something to keep that a request would hold. A shorter word stands for "no key" (EMPTY)."""
    names = (variable(settings, environment), CUSTOM_HEADERS)
    return [name for name in names if len(environment.get(name, "").strip()) >= LEAST_KEY]


def _listed(url: str, environment: Mapping[str, str]) -> bool:
    """Whether the operator lets the key go there, by the whole address or by the host in it."""
    places = {_place(text) for text in environment.get(SEND_KEY_VARIABLE, "").split()}
    return url in places or _place(url, path=False) in places


def _place(address: str, *, path: bool = True) -> str | None:
    """An address in one spelling, without its path if it need not be; None for what is none."""
    try:
        url = Endpoint(address, None).url
    except UserError:
        return None
    parts = urlsplit(url)
    return url if path else f"{parts.scheme}://{parts.netloc}"
