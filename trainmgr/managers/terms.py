"""On what terms an endpoint is asked, as they turn out in a run: the form of an answer, parameters, room to think."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from trainmgr.contract.policy import Level, Llm
from trainmgr.managers.endpoint import Call, EndpointError

LEVELS: tuple[Level, ...] = get_args(Level)
OPTIONAL = ("temperature", "reasoning_effort", "max_completion_tokens", "max_tokens")  # what some models refuse
UNSUPPORTED = (400, 415, 422, 501)  # statuses of a request that is refused for what it asks

_ELSE = re.compile(  # what a refused request is about if it is not the form of its answer
    r"context.{0,60}(length|window|size)|prompt is too long|reduce the length"
    r"|content[ _-](policy|filter|management)|moderation|safety (system|setting|polic)"
    r"|billing|quota|insufficient|credits?\b|balance|payment|account|invalid_api_key"
    r"|model.{0,80}(does not exist|not exist|not found)|(no such|unknown|invalid) model\b|not a valid model",
    re.DOTALL,
)
_NUMBERED = re.compile(r"\S*\d\S*")  # ids of requests, which differ each time


class Terms:
    """What one endpoint takes, as far as it is known."""

    def __init__(self, settings: Llm, *, own: bool = False) -> None:
        """``own``: the embedded server, which is known."""
        self._settings, self._own = settings, own
        self.level: Level = settings.level
        """The form to ask for first."""
        self.cap = settings.max_output_tokens
        """Tokens that an answer may have."""
        self.most = self.cap if own else settings.most
        """The most that this may grow to; the embedded server has no more room."""
        self._proven = False  # whether the endpoint has answered in this form, readably
        self._dropped: set[str] = set()  # parameters that the model refuses
        self._seen: set[Level] = set()
        self._loose: set[Level] = set()
        self._complaint = self._vain = ""  # why the first form was refused; and for what no other form was any better

    # -- what is sent --------------------------------------------------------------------------------------------

    def parameters(self, cap: int, *, official: bool) -> dict[str, Any]:
        """What is sent besides, without what was refused. ``official``: the provider's own endpoint, where the limit
        has another name."""
        settings = self._settings
        temperature = 0.0 if settings.temperature is None and self._own else settings.temperature
        limit, other = "max_tokens", "max_completion_tokens"
        if official:
            limit, other = other, limit
        wanted = {"temperature": temperature, "reasoning_effort": settings.reasoning_effort}
        found = {name: value for name, value in wanted.items() if value is not None and name not in self._dropped}
        for name in (limit, other):
            if name not in self._dropped:
                found[name] = cap
                break
        return {**found, **settings.extra}

    def form(self, level: Level, *, schema: bool) -> Literal["", "asked", "seen", "enforced"]:
        """What is known of a form, as it stands in the log."""
        if not schema:
            return ""
        if self._own:
            return "enforced"
        if level == "text" or level in self._loose:
            return "asked"
        return "seen" if level in self._seen else ""

    # -- what is learned -----------------------------------------------------------------------------------------

    def answered(self, level: Level, *, proves: bool) -> None:
        """An answer came in this form, which is asked for first from now on. One that ``proves`` it could be read: then
        it is not given up any more."""
        if not self._proven:
            self.level, self._proven = level, proves

    def judged(self, level: Level, *, kept: bool) -> bool:
        """An answer was in the form that the endpoint was given, which no prompt told, or not in it: whether this is
        the first time that it was not."""
        if kept:
            self._seen |= {level} - {"json_object", "text"}  # which tell nothing of the schema
            return False
        new = level not in self._loose
        self._loose.add(level)
        return new

    def dropped(self, error: EndpointError, call: Call) -> str:
        """The parameter that a call was refused for, which is not sent again; "" where there is none."""
        if not self._unsupported(error):
            return ""
        names = [name for name in OPTIONAL if name in call.parameters and name in error.names]
        if call.level == "tool" and "tool" in error.names:  # "function tools with reasoning_effort are not supported"
            names = [name for name in names if name != "reasoning_effort"]
        name = next((name for name in names if name not in self._dropped and name not in self._settings.extra), "")
        self._dropped |= {name} - {""}
        return name

    def next(self, error: EndpointError, call: Call, broken: int) -> Level | None:
        """The form of the next call, where another one may help; None where it does not.

        ``broken`` is how often in a row the status was 500, which is what some servers say that cannot make a grammar
        of a schema. That, and an empty answer, may have other reasons. So the first form is asked for again in the next
        decision, unless another one was answered; or where none was, and all were refused for the same.
        """
        refused = self._unsupported(error) and not (self._proven and call.level == self.level)
        complaint = _NUMBERED.sub("", str(error))
        if call.level == self.level:
            self._complaint = complaint
        elif call.level == "text" and refused and complaint == self._complaint:
            self._vain = complaint
        if call.schema is None or call.level == "text" or not self._settings.fallback or complaint == self._vain:
            return None
        if refused or broken > 1 or (error.empty and not self._proven):
            return LEVELS[LEVELS.index(call.level) + 1]
        return None

    def blamed(self, error: EndpointError) -> str:
        """The key of ``llm.extra`` that a call was refused for; "" where it was not."""
        if error.status not in UNSUPPORTED:
            return ""
        return next(
            (name for name in self._settings.extra if re.search(rf"\b{re.escape(name.lower())}\b", error.names)), ""
        )

    def _unsupported(self, error: EndpointError) -> bool:
        """Whether a call was refused for how it asks."""
        return (
            error.status in UNSUPPORTED and not error.cut and not _ELSE.search(error.names) and not self.blamed(error)
        )
