"""What an endpoint says of the models that it has. Pure.

The list of an endpoint is not the whole truth: gateways take names that they do not list, and list what is no chat
model. So it helps to choose a model and to word an error; whether one is there, only a call shows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from trainmgr.base.wire import short

LONGEST = 4096  # of a list; more is not looked at
NAMED, LENGTH = 8, 60  # models that a message names, and characters of each
ENDS = ("shutdown_date", "shutdown", "sunset_date", "retirement_date", "expiration_date", "end_of_life")
DEPRECATED = ("deprecation_date", "deprecation", "deprecated_at")
SOON = 365  # days within which the end of a model is worth a line

_OTHER = re.compile(  # what is no chat model by its name
    r"embed|whisper|(^|[-_/])(tts|bge|clip|ocr|stt|asr)([-_.:/]|$)|transcri|speech|dall-e|image|audio|realtime|sora"
    r"|moderation|rerank|guard|babbage-002|davinci-002|diffusion",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Listed:
    """One model of the list."""

    name: str
    created: int = 0
    """Seconds since 1970; 0 where it is not told."""
    ends: date | None = None
    """The day on which it is switched off."""
    deprecated: date | None = None
    """The day from which its provider advises against it."""

    def usable(self, today: date) -> bool:
        """Whether it is a chat model, by its name, that is still there."""
        return not _OTHER.search(self.name) and not (self.ends and self.ends < today)


def read(body: Any, hide: Callable[[str], str]) -> list[Listed]:
    """The models in the body of a response to ``GET /models``, whatever it is."""
    entries = body.get("data") if isinstance(body, dict) else body
    found = []
    for entry in entries[:LONGEST] if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(name := entry.get("id"), str) and name:
            created = entry.get("created")
            found.append(
                Listed(
                    hide(name),
                    created if type(created) is int else 0,
                    _first(entry, ENDS),
                    _first(entry, DEPRECATED),
                )
            )
    return found


def find(models: Iterable[Listed], name: str) -> Listed | None:
    """The entry of a model by its name, as servers spell it: with a folder before it, or a tag behind."""
    spelled = {name, f"models/{name}", f"{name}:latest"}
    return next((model for model in models if model.name in spelled), None)


def named(models: Sequence[Listed]) -> str:
    """Some of the names in words, the newest models first."""
    newest = sorted(models, key=lambda model: -model.created)
    more = ", ..." if len(models) > NAMED else ""
    return ", ".join(short(model.name, LENGTH) for model in newest[:NAMED]) + more or "none"


def near(models: Iterable[Listed], name: str) -> str:
    """Names that look like this one in words; "" where none does."""
    names = {model.name.lower(): model.name for model in models}
    found = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    return " or ".join(short(names[each], LENGTH) for each in found)


def ending(model: Listed, today: date) -> str:
    """What is to be known of the end of a model that is still there; "" where there is nothing."""
    if model.ends is not None:
        days = (model.ends - today).days
        when = {0: "today", 1: "tomorrow"}.get(days, f"in {days} days")
        return f"{short(model.name, LENGTH)} is switched off on {model.ends}, {when}" if days <= SOON else ""
    if model.deprecated is not None and (model.deprecated - today).days <= SOON:
        return f"{short(model.name, LENGTH)} is deprecated {'since' if model.deprecated <= today else 'from'} " + str(
            model.deprecated
        )
    return ""


def _first(entry: dict[str, Any], names: Iterable[str]) -> date | None:
    return next((found for name in names if (found := day(entry.get(name)))), None)


def day(value: Any) -> date | None:
    """A day as a text like 2026-12-11T00:00:00Z, or in seconds since 1970; None for anything else."""
    try:
        if isinstance(value, str):
            return date.fromisoformat(value.strip()[:10])
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return datetime.fromtimestamp(value, UTC).date()
    except (ValueError, OverflowError, OSError):
        pass
    return None
