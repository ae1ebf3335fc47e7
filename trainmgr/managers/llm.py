"""`llm:MODEL` and `local:FILE`: a language model reads the snapshot and answers within the schema of the moment.

It is trusted with nothing: what it says is read by ``answer`` and judged by the guard, and every call is on record with
its exact prompt before it is made. Without an answer, or with a late or useless one, training goes on untouched.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol, get_args

from trainmgr.base.errors import ManagerError, UserError
from trainmgr.base.paths import BASE_URL_VARIABLE
from trainmgr.base.wire import plain, short
from trainmgr.contract import events
from trainmgr.contract.policy import Level, Policy, Price
from trainmgr.contract.proposal import keep
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.managers import answer, key, prompt
from trainmgr.managers.base import Answer, Exchange, Manager
from trainmgr.managers.completion import Completion
from trainmgr.managers.endpoint import OPENAI, Call, Endpoint, EndpointError
from trainmgr.managers.prompts.game import game_of
from trainmgr.managers.rules import RulesManager
from trainmgr.state import budget
from trainmgr.state.budget import Spent

Purpose = Literal["decide", "reason", "format", "repair"]
DEFAULT_MODEL = "gpt-5-mini"  # where api.openai.com is asked and no model named: small, with strict schemas
SCHEMA_TOKENS = 1200  # of a schema of ten parameters, which endpoints count with the prompt
BACKOFF = 1.0  # seconds before the first repetition, doubled for each further one
LISTING = 15.0  # seconds to list an endpoint's models
FREE = Price(input=0.0, output=0.0)
LEVELS: tuple[Level, ...] = get_args(Level)
OPTIONAL = ("temperature", "max_completion_tokens", "max_tokens")  # what some models refuse
UNSUPPORTED = (400, 415, 422, 501)  # statuses of a request that is refused for what it asks
CUT = ("length", "max_tokens", "max_output_tokens", "model_length")  # ends of an answer that was to go on
WITHHELD = ("content_filter", "safety", "recitation", "prohibited_content", "blocklist", "sensitive")


class SpentError(EndpointError):
    """The next call is not in the budget any more."""


class Server(Protocol):
    """An embedded server that a manager starts and stops."""

    url: str
    key: str
    name: str

    def start(self) -> None: ...
    def stop(self) -> None: ...


class LlmManager:
    """One language model at one endpoint."""

    deterministic = False

    def __init__(
        self,
        policy: Policy,
        model: str | None = None,
        *,
        server: Server | None = None,
        name: str | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """``server`` is started by ``open`` and asked instead of the policy's endpoint.

        Raises UserError for an endpoint or a key that cannot be.
        """
        self._policy = policy
        self._settings = policy.llm
        self._server = server
        self.variant = 0
        """The wording of the prompt; others than 0 show how much it matters."""
        self.advice = ""
        """What the rules would do, where the model is to know it."""
        self._model = model or policy.llm.model
        self._endpoint: Endpoint | None = None
        self._unsent: str | None = None  # the variable whose key this endpoint does not get
        if server is None:
            self._endpoint, self._unsent = _endpoint(policy, environment)
        self.name = name or f"llm:{self._model or ''}".rstrip(":")
        self._rules = RulesManager(policy, watched=policy.watches(self.name))
        self._level: Level = policy.llm.level
        self._proven = False  # whether the endpoint has answered in this form
        self._dropped: set[str] = set()  # parameters that the model refuses
        self._spent = Spent()
        self._decision, self._calls = "", 0
        self._tell: Callable[[Exchange], None] = lambda _: None
        self._said: str | None = None  # the last reason for which nobody was asked
        self._failures, self._rests_until = 0, 0.0
        self._closed = threading.Event()

    # -- around the decisions ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the embedded server, or find out which model there is."""
        if self._server is not None:
            self._server.start()
            self._endpoint = Endpoint(self._server.url, self._server.key)
            self._endpoint.connect()
            self._model = self._server.name
            return
        endpoint = self._there()
        endpoint.connect()
        if self._model is None and endpoint.official:
            self._model = DEFAULT_MODEL
        elif self._model is None:
            try:
                models = endpoint.models(LISTING)
            except EndpointError as error:
                raise UserError(
                    f"{endpoint.url} does not say which models it has: {error}. Name one with --manager llm:MODEL."
                ) from None
            if len(models) != 1:
                there = ", ".join(short(name, 60) for name in models[:8]) or "none"
                raise UserError(f"{endpoint.url} lists {len(models)} models ({there}). Name one: --manager llm:MODEL.")
            self._model = models[0]
        self.name = f"llm:{self._model}"

    def preflight(self) -> str:
        settings, limits = self._settings, self._policy.budget
        prices = [self._price(), self._price(settings.formatter)]
        cases = [budget.worst_case(limits, p, self._reads(), settings.max_output_tokens) for p in prices]
        tokens, money = cases[0][0], None if None in prices else max(most or 0.0 for _, most in cases)
        if money is None:
            unknown = self._model if prices[0] is None else settings.formatter
            cost = f'the price of {unknown} is not known, so money is not counted ([prices."{unknown}"] names it)'
        else:
            cost = f"at most {money:.4g} by the policy's prices" if money else "free of charge"
        two = f", written down by {settings.formatter}" if settings.formatter else ""
        url = self._there().url
        kept = f"; {self._unsent} is not sent, since only the policy names {url} (--send-key {url} sends it)"
        text = f"{self._model} at {url}{two}: at most {limits.calls} calls and {tokens:,} tokens; {cost}"
        return text + (kept if self._unsent else "")

    def begin(self, decision: str, spent: Spent, tell: Callable[[Exchange], None]) -> None:
        self._decision, self._spent, self._tell, self._calls = decision, spent, tell, 0

    def close(self) -> None:
        self._closed.set()
        if self._endpoint is not None:
            self._endpoint.close()
        if self._server is not None:
            self._server.stop()

    # -- a decision ----------------------------------------------------------------------------------------------

    def decide(self, snapshot: Snapshot) -> Any:
        why = self._resting() or self._unaffordable(self._reads())
        if why is not None:
            return self._otherwise(snapshot, why)
        limit = self._policy.budget.seconds
        left = math.inf if limit is None else limit - self._spent.seconds
        deadline = time.monotonic() + min(self._settings.timeout, left)
        try:
            found = self._consult(snapshot, deadline)
        except SpentError as error:
            return self._otherwise(snapshot, str(error))
        except EndpointError as error:
            self._failures += 1
            if self._failures >= self._settings.breaker_failures:
                self._rests_until = time.monotonic() + self._settings.breaker_seconds
            raise ManagerError(f"no decision from {self._model}: {error}") from None
        self._failures = 0
        return found

    def _consult(self, snapshot: Snapshot, deadline: float) -> Any:
        """An answer, mended once where it is not valid."""
        purpose: prompt.Task = "decide"
        reasoning = ""
        if self._settings.formatter is not None:
            reasoning = self._ask("reason", self._prompt(snapshot, "reason"), [], None, deadline).text
            purpose = "format"
        view = self._prompt(snapshot, purpose, reasoning)
        schema = answer.form(self.name)(snapshot, view.parameters)
        completion = self._ask(purpose, view, [], schema, deadline)
        found, wrong = self._read(completion, snapshot, view)
        if wrong is None or not self._settings.repair or completion.refusal:
            return found
        talk = [
            {"role": "assistant", "content": short(completion.text, 2000) or "(nothing)"},
            {"role": "user", "content": prompt.repair(wrong)},
        ]
        if self._unaffordable(self._reads() + sum(prompt.estimate(part["content"]) for part in talk)):
            return found
        try:
            again = self._ask("repair", view, talk, schema, deadline)
        except EndpointError:
            return found  # the guard says what is wrong with it
        return self._read(again, snapshot, view)[0]

    def _read(self, completion: Completion, snapshot: Snapshot, view: prompt.Prompt) -> tuple[Any, str | None]:
        """What was answered, and what is wrong with it."""
        found = answer.read(completion.text or completion.refusal or "")
        wrong = answer.objection(found, snapshot, view.parameters)
        if wrong is not None and _ended(completion, CUT):
            wrong = f"it was cut off at {self._settings.max_output_tokens} tokens; {wrong}"
        return found, wrong

    def _prompt(self, snapshot: Snapshot, task: prompt.Task, reasoning: str = "") -> prompt.Prompt:
        limit, game = prompt.room(self._policy, self.name), game_of(self._policy, self.name)
        return prompt.render(
            snapshot, limit, task=task, variant=self.variant, reasoning=reasoning, advice=self.advice, game=game
        )

    # -- a call --------------------------------------------------------------------------------------------------

    def _ask(
        self,
        purpose: Purpose,
        view: prompt.Prompt,
        talk: list[dict[str, str]],
        schema: dict[str, Any] | None,
        deadline: float,
    ) -> Completion:
        """One answer, with repetitions, and with less than was wanted where the endpoint does not have it."""
        messages = [{"role": "system", "content": view.system}, {"role": "user", "content": view.user}, *talk]
        words = view.tokens + sum(prompt.estimate(part["content"]) for part in talk)
        formatter = self._settings.formatter if purpose in ("format", "repair") else None
        model = formatter or str(self._model)
        level, retries, broken = self._level, 0, 0
        while True:
            estimated = words + self._schema_tokens(schema, level)
            if why := self._unaffordable(estimated, model):
                raise SpentError(why)
            if time.monotonic() >= deadline:
                raise EndpointError(f"nothing is left of {self._settings.timeout:.0f} s")
            call = Call(model, messages, level, schema, self._parameters())
            try:
                completion = self._call(purpose, call, view, estimated, deadline)
            except EndpointError as error:
                broken = broken + 1 if error.status == 500 else 0
                other = self._adapted(error, call, broken)
                if other is not None:
                    level, retries = other, retries + (error.status not in UNSUPPORTED)
                    continue
                wait = error.retry_after if error.retry_after is not None else BACKOFF * 2**retries
                if not error.transient or retries >= self._settings.retries:
                    raise
                if wait > deadline - time.monotonic():
                    raise EndpointError(f"{error}; the next attempt in {wait:.0f} s would be too late") from None
                if self._closed.wait(wait):
                    raise EndpointError("the run has ended") from None
                retries += 1
            else:
                if schema is not None and not self._proven and isinstance(answer.read(completion.text), dict):
                    self._level, self._proven = level, True
                return completion

    def _call(
        self, purpose: Purpose, call: Call, view: prompt.Prompt, estimated: int, deadline: float
    ) -> Completion:  # fmt: skip
        """One request, on record before it is made and whatever comes of it."""
        endpoint = self._there()
        self._tell(events.Request(
            decision=self._decision, purpose=purpose, attempt=self._calls, endpoint=endpoint.url, model=call.model,
            level=call.level, template=view.template, template_sha256=view.sha256,
            messages=[events.Message.model_validate(part) for part in call.messages], answer_schema=call.schema,
            parameters=call.parameters, prompt_tokens=estimated,
        ))  # fmt: skip
        self._calls += 1
        self._said = None
        self._spent = self._spent.asked()
        begin = time.monotonic()
        try:
            completion = endpoint.ask(call, deadline - begin)
        except EndpointError as error:
            billed = error.sent and error.status is None  # whoever answers with an error status has not worked
            read, written = error.usage  # unless it says that it has
            self._received("", begin, call.model, estimated if billed and read is None else read or 0, written or 0,
                           error=str(error))  # fmt: skip
            raise
        if not completion.text and answer.whole(completion.thoughts):  # as some do with an answer in a schema
            completion = replace(completion, text=completion.thoughts)
        lacking = self._lacking(completion, wanted=call.schema is not None)
        counted = completion.prompt_tokens is not None and completion.completion_tokens is not None
        self._received(
            completion.text or completion.refusal or "", begin, call.model,
            completion.prompt_tokens if completion.prompt_tokens is not None else estimated,
            completion.completion_tokens if completion.completion_tokens is not None
            else prompt.estimate(completion.text),
            estimated=not counted, model=completion.model,
            finish="refusal" if completion.refusal else completion.finish,
            error=str(lacking) if lacking else None,
        )  # fmt: skip
        if lacking is not None:
            raise lacking
        return completion

    def _lacking(self, completion: Completion, *, wanted: bool) -> EndpointError | None:
        """Why there is no answer in a completion; None where there may be one. What was cut off holds an answer only
        if it is the whole of it: else it may be a draft."""
        text, parts = completion.text, answer.spoken(completion.text)
        held = wanted and isinstance(answer.read(text), dict)
        cut, withheld = _ended(completion, CUT), _ended(completion, WITHHELD)
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
                f"the answer was cut off {where} at max_output_tokens ({self._settings.max_output_tokens}); raise "
                "llm.max_output_tokens, or let the model think less"
            )
        if held or parts.said.strip():
            return None
        why = "it holds thoughts only" if text or completion.thoughts else "it is empty"
        return EndpointError(f"there is no answer in the response: {why}", transient=True, empty=True)

    def _received(
        self, text: str, begin: float, asked: str, prompt_tokens: int, completion_tokens: int, **more: Any
    ) -> None:  # fmt: skip
        seconds = round(time.monotonic() - begin, 3)
        money = budget.cost(self._price(asked), prompt_tokens, completion_tokens)
        self._spent = self._spent.answered(prompt_tokens, completion_tokens, money, seconds)
        self._tell(events.Reply(
            decision=self._decision, text=text, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens,
            money=money, seconds=seconds, **more,
        ))  # fmt: skip

    def _parameters(self) -> dict[str, Any]:
        """What is sent besides, without what was refused."""
        settings = self._settings
        limit = "max_completion_tokens" if self._there().official else "max_tokens"
        other = "max_tokens" if limit == "max_completion_tokens" else "max_completion_tokens"
        found: dict[str, Any] = {}
        if settings.temperature is not None and "temperature" not in self._dropped:
            found["temperature"] = settings.temperature
        for name in (limit, other):
            if name not in self._dropped:
                found[name] = settings.max_output_tokens
                break
        return found

    def _adapted(self, error: EndpointError, call: Call, broken: int) -> Level | None:
        """The form of the next call, if it is another one because this one failed as it did; None if it is not.

        ``broken`` is how often in a row the status was 500, which is what some servers say that cannot make a grammar
        of a schema. That, and an empty answer, may have other reasons: the form is asked for again in the next decision
        unless another one was answered.
        """
        unsupported = error.status in UNSUPPORTED and not ("context" in error.names and "length" in error.names)
        for name in OPTIONAL if unsupported else ():
            if name in call.parameters and name in error.names and name not in self._dropped:
                self._dropped.add(name)
                return call.level
        refused = unsupported and not (self._proven and call.level == self._level)
        failed = broken > 1 or (error.empty and not self._proven)
        if call.schema is None or call.level == "text" or not (refused or failed):
            return None
        other = LEVELS[LEVELS.index(call.level) + 1]
        if refused and not self._proven:
            self._level = other
        return other

    # -- limits --------------------------------------------------------------------------------------------------

    def _resting(self) -> str | None:
        left = self._rests_until - time.monotonic()
        if left <= 0:
            return None
        return f"{self._failures} decisions in a row got no answer; nobody is asked for {left:.0f} s"

    def _unaffordable(self, prompt_tokens: int, model: str | None = None) -> str | None:
        limits = self._policy.budget
        most = self._settings.max_output_tokens
        return budget.objection(self._spent, limits, self._price(model), prompt_tokens, most)

    def _reads(self) -> int:
        """The tokens that a call reads, before there is one to count."""
        return self._settings.prompt_tokens + (SCHEMA_TOKENS if self._server is None else 0)

    def _schema_tokens(self, schema: dict[str, Any] | None, level: Level) -> int:
        """What a schema adds to the prompt: an embedded server makes a grammar of it, which is not read."""
        if schema is None or self._server is not None or level not in ("json_schema", "tool"):
            return 0
        return prompt.estimate(json.dumps(schema))

    def _price(self, model: str | None = None) -> Price | None:
        known = self._policy.prices.get(model or str(self._model))
        return known if known is not None else FREE if self._there().local else None

    def _otherwise(self, snapshot: Snapshot, why: str) -> Answer:
        """Nobody is asked: the policy says who decides instead."""
        rules = self._settings.otherwise == "rules"
        kind = "resting" if self._resting() else "spent"
        if kind != self._said:  # said once, not at every evaluation
            self._said = kind
            then = "rules decide" if rules else "nothing is changed"
            self._tell(events.BudgetSpent(decision=self._decision, reason=why, then=then))
        other: Manager = self._rules
        return Answer(other.decide(snapshot), other.name) if rules else Answer(plain(keep("unclear", why)), self.name)

    def _there(self) -> Endpoint:
        assert self._endpoint is not None, "open() comes first"
        return self._endpoint


def _ended(completion: Completion, ends: tuple[str, ...]) -> bool:
    return (completion.finish or "").lower() in ends


def configured(policy: Policy, environment: Mapping[str, str] = os.environ) -> str | None:
    """Why a language model may be asked: what names one; None where nothing does."""
    if policy.llm.base_url or policy.llm.model:
        return "the policy names one"
    for variable in (BASE_URL_VARIABLE, key.variable(policy.llm, environment)):
        if environment.get(variable):
            return f"{variable} is set"
    return None


def _endpoint(policy: Policy, environment: Mapping[str, str]) -> tuple[Endpoint, str | None]:
    """The endpoint that the policy or the environment names, with the key that it may have; and the variable whose key
    it does not get."""
    url = policy.llm.base_url or environment.get(BASE_URL_VARIABLE) or OPENAI
    endpoint = Endpoint(url, held := key.value(policy.llm, environment))
    if endpoint.official and held is None:
        raise UserError(
            f"There is no key for {OPENAI}: the environment variable {key.variable(policy.llm, environment)} is not "
            f"set. Set it, or name another endpoint with {BASE_URL_VARIABLE}; --manager rules needs neither."
        )
    if not key.permit(endpoint, policy.llm, environment):
        return Endpoint(url, None), key.variable(policy.llm, environment)
    return endpoint, None
