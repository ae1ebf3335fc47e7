"""`llm:MODEL` and `local:FILE`: a language model reads the snapshot and answers within the schema of the run.

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
from datetime import UTC, datetime
from typing import Any, Protocol

from trainmgr.base.errors import ManagerError, UserError
from trainmgr.base.paths import BASE_URL_VARIABLE
from trainmgr.base.wire import plain, short
from trainmgr.contract import events
from trainmgr.contract.policy import Level, Policy, Price
from trainmgr.contract.proposal import keep
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.managers import answer, key, listing, probe, prompt, reply
from trainmgr.managers.base import Answer, Exchange, Manager
from trainmgr.managers.completion import Completion, Usage
from trainmgr.managers.endpoint import OPENAI, Call, Endpoint, EndpointError
from trainmgr.managers.prompts.game import game_of
from trainmgr.managers.question import Question
from trainmgr.managers.rules import RulesManager
from trainmgr.managers.terms import UNSUPPORTED, Terms
from trainmgr.state import budget
from trainmgr.state.budget import Spent

SCHEMA_TOKENS = 1600  # of a schema of ten parameters, which endpoints count with the prompt
BACKOFF = 1.0  # seconds before the first repetition, doubled for each further one
FREE = Price(input=0.0, output=0.0)


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
        self._terms = Terms(policy.llm, own=server is not None)
        self._held: list[Exchange] = []  # exchanges of before the run, until there is a log
        self._warnings: list[str] = []  # what to say of them
        self._read = 0  # the most tokens of a prompt that were ever counted; less may be what was in no cache
        self._shortened = False
        self._spent = Spent()
        self._decision, self._calls = "", 0
        self._tell: Callable[[Exchange], None] = lambda _: None
        self._said: str | None = None  # the last reason for which nobody was asked
        self._failures, self._rests_until = 0, 0.0
        self._closed = threading.Event()

    # -- around the decisions ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the embedded server; or find out which model there is, and whether it answers."""
        if self._server is not None:
            self._server.start()
            self._endpoint = Endpoint(self._server.url, self._server.key)
            self._endpoint.connect()
            self._model = self._server.name
            return
        endpoint = self._there()
        endpoint.connect()
        looks, today = self._settings.probe, datetime.now(UTC).date()
        models = probe.models(endpoint, self._model) if looks or self._model is None else []
        self._model = self._model or probe.only(endpoint, models, today)
        self.name = f"llm:{self._model}"
        self._held, self._warnings = [], []
        asked = list(filter(None, (self._model, self._settings.formatter)))
        for model in asked if looks else ():
            self._warnings += probe.ending(listing.find(models, model), models, today)
            self._probe(model, models, plain=len(asked) > 1 and model == self._model)

    def _probe(self, model: str, models: list[listing.Listed], *, plain: bool) -> None:
        """Ask a model for a word, in the form that it is to decide in. Raises UserError where that is in vain."""
        question = Question("probe", model, probe.words(), None if plain else probe.SCHEMA)
        self.begin("", self._spent, self._held.append)
        try:
            self._ask(question, time.monotonic() + min(self._settings.timeout, probe.WITHIN))
        except SpentError:
            return  # whoever may ask nothing learns nothing
        except EndpointError as error:
            if error.cut or error.empty:  # it is there
                return
            if why := probe.obstacle(error, self._there(), model, models):
                raise UserError(why) from None
            unlisted = probe.missing(self._there(), model, models)
            self._warnings += [
                f"{model} does not answer now ({error}); the run starts all the same",
                *[unlisted] * bool(unlisted),
            ]

    def preflight(self) -> str:
        settings, limits = self._settings, self._policy.budget
        prices = [self._price(), self._price(settings.formatter)]
        cases = [budget.worst_case(limits, p, self._reads(), self._terms.most) for p in prices]
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
        return "\n".join([*self._warnings, text + (kept if self._unsent else "")])

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
        self._put_on_record()
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

    def _put_on_record(self) -> None:
        """What was asked before the run, with its first decision."""
        held, self._held = self._held, []
        for exchange in held:
            now: dict[str, Any] = {"decision": self._decision}
            if isinstance(exchange, events.Request):
                now["attempt"] = self._calls
                self._calls, self._spent = self._calls + 1, self._spent.asked()
            elif isinstance(exchange, events.Reply):
                self._spent = self._spent.answered(
                    exchange.prompt_tokens, exchange.completion_tokens, exchange.money, exchange.seconds
                )
            self._tell(exchange.model_copy(update=now))

    def _consult(self, snapshot: Snapshot, deadline: float) -> Any:
        """An answer, mended once where it is not valid."""
        purpose: prompt.Task = "decide"
        reasoning, model = "", str(self._model)
        if self._settings.formatter is not None:
            reasoning = self._ask(Question("reason", model, self._prompt(snapshot, "reason")), deadline).text
            purpose, model = "format", self._settings.formatter
        view = self._prompt(snapshot, purpose, reasoning)
        schema = answer.form(self.name)(snapshot, view.parameters)
        question = Question(purpose, model, view, schema, snapshot=snapshot)
        completion = self._ask(question, deadline)
        found, wrong = self._understood(completion, question)
        if wrong is None or not self._settings.repair or completion.refusal:
            return found
        talk = (
            {"role": "assistant", "content": short(completion.text, 2000) or "(nothing)"},
            {"role": "user", "content": prompt.repair(wrong)},
        )
        if self._unaffordable(self._reads() + sum(prompt.estimate(part["content"]) for part in talk)):
            return found
        try:
            again = self._ask(replace(question, purpose="repair", talk=talk), deadline)
        except EndpointError:
            return found  # the guard says what is wrong with it
        return self._understood(again, question)[0]

    def _understood(self, completion: Completion, question: Question) -> tuple[Any, str | None]:
        """What was answered, and what is wrong with it."""
        assert question.snapshot is not None
        found = answer.read(completion.text or completion.refusal or "")
        wrong = answer.objection(found, question.snapshot, question.view.parameters)
        if wrong is not None and reply.ended(completion, reply.CUT):
            wrong = f"it was cut off at {self._terms.cap} tokens; {wrong}"
        return found, wrong

    def _prompt(self, snapshot: Snapshot, task: prompt.Task, reasoning: str = "") -> prompt.Prompt:
        limit, game = prompt.room(self._policy, self.name), game_of(self._policy, self.name)
        return prompt.render(
            snapshot, limit, task=task, variant=self.variant, reasoning=reasoning, advice=self.advice, game=game
        )

    # -- a call --------------------------------------------------------------------------------------------------

    def _ask(self, question: Question, deadline: float) -> Completion:
        """One answer, with repetitions, and with less than was wanted where the endpoint does not have it."""
        terms, probing = self._terms, question.purpose == "probe"
        level, retries, broken, narrow = terms.level, 0, 0, terms.cap
        cut: EndpointError | None = None  # the answer that had no room, before it got more
        while True:
            cap = min(terms.cap, probe.TOKENS) if probing else terms.cap
            estimated = question.words + self._schema_tokens(question.schema, level)
            if why := self._unaffordable(estimated, question.model, cap):
                raise SpentError(why)
            if time.monotonic() >= deadline:
                raise EndpointError(f"nothing is left of {self._settings.timeout:.0f} s", transient=True)
            parameters = terms.parameters(cap, official=self._there().official)
            call = Call(question.model, question.messages, level, question.schema, parameters)
            try:
                completion = self._call(question, call, cap, estimated, deadline)
            except EndpointError as error:
                if error.cut and cut is None and not probing and self._roomier(estimated, question.model):
                    cut, narrow = error, cap
                    continue
                if cut is not None and error.status in UNSUPPORTED:  # it has no room for that
                    terms.cap = terms.most = narrow
                    raise cut from None
                broken = broken + 1 if error.status == 500 else 0
                if name := terms.dropped(error, call):
                    if name in ("temperature", "reasoning_effort"):
                        self._notice(f"{question.model} refuses {name}; it is not sent any more")
                    continue
                other = terms.next(error, call, broken)
                if other is not None:
                    level, retries = other, retries + (error.status not in UNSUPPORTED)
                    continue
                wait = error.retry_after if error.retry_after is not None else BACKOFF * 2**retries
                if not error.transient or retries >= self._settings.retries or probing:
                    raise
                if wait > deadline - time.monotonic():
                    raise EndpointError(f"{error}; the next attempt in {wait:.0f} s would be too late") from None
                if self._closed.wait(wait):
                    raise EndpointError("the run has ended") from None
                retries += 1
            else:
                if question.schema is not None:
                    readable = isinstance(answer.read(completion.text), dict)
                    terms.answered(level, proves=readable and not probing)
                return completion

    def _roomier(self, estimated: int, model: str) -> bool:
        """Give answers twice the room from now on, if the policy and the budget bear that."""
        more = min(2 * self._terms.cap, self._terms.most)
        if more <= self._terms.cap or self._unaffordable(estimated, model, more):
            return False
        self._terms.cap = more
        return True

    def _call(self, question: Question, call: Call, cap: int, estimated: int, deadline: float) -> Completion:
        """One request, on record before it is made and whatever comes of it."""
        endpoint, view, probing = self._there(), question.view, question.purpose == "probe"
        self._tell(events.Request(
            decision=self._decision, purpose=question.purpose, attempt=self._calls, endpoint=endpoint.url,
            model=call.model, level=call.level, form=self._terms.form(call.level, schema=call.schema is not None),
            template=view.template, template_sha256=view.sha256,
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
            read, written = error.usage.read, error.usage.written  # unless it says that it has
            used = replace(error.usage, read=estimated if billed and read is None else read or 0, written=written or 0)
            if name := self._terms.blamed(error):
                error.args = (f"{error} (llm.extra sends {short(name, 40)})",)
            self._received("", begin, call.model, used, error=str(error))
            raise
        in_form = reply.in_form(completion, call.level, call.schema)
        if not completion.text and question.valid(completion.thoughts):  # where some put an answer in a schema
            completion = replace(completion, text=completion.thoughts)
        lacking = None if probing else reply.lacking(completion, wanted=call.schema is not None, cap=cap)
        told = completion.usage
        read = estimated if told.read is None else told.read
        written = prompt.estimate(completion.text) if told.written is None else told.written
        self._received(
            completion.text or completion.refusal or "", begin, call.model, replace(told, read=read, written=written),
            estimated=told.read is None or told.written is None, model=completion.model,
            finish="refusal" if completion.refusal else completion.finish,
            error=str(lacking) if lacking else None, outside=in_form is False,
        )  # fmt: skip
        if in_form is not None and (probing or not in_form) and self._terms.judged(call.level, kept=in_form):
            self._notice(
                f"{call.model} answers outside of the form that {endpoint.url} was given ({call.level}), which is not "
                "enforced there. Every answer is checked here all the same; more of them may be rejected"
            )
        self._read = max(self._read, told.read or 0)
        if not probing and told.read and not self._shortened and (text := reply.shortened(self._read, question.words)):
            self._shortened = True
            self._notice(f"{endpoint.url}: {text}")
        if lacking is not None:
            raise lacking
        return completion

    def _notice(self, text: str) -> None:
        """Something that whoever set up the endpoint should know: in a line before the run, or on record in it."""
        if self._decision:
            self._tell(events.Failure(where="endpoint", message=text))
        else:
            self._warnings.append(text)

    def _received(self, text: str, begin: float, asked: str, used: Usage, **more: Any) -> None:
        """Count a call and put what came of it on record. All that was read and written is known, or estimated."""
        seconds, read, written = round(time.monotonic() - begin, 3), used.read or 0, used.written or 0
        price = self._price(asked)
        money = budget.cost(price, read, written, cached=used.cached, cache_write=used.cache_write)
        self._spent = self._spent.answered(read, written, money, seconds)
        self._tell(events.Reply(
            decision=self._decision, text=text, prompt_tokens=read, completion_tokens=written,
            cached_tokens=used.cached, cache_write_tokens=used.cache_write, reasoning_tokens=used.reasoning,
            money=money, seconds=seconds, **more,
        ))  # fmt: skip

    # -- limits --------------------------------------------------------------------------------------------------

    def _resting(self) -> str | None:
        left = self._rests_until - time.monotonic()
        if left <= 0:
            return None
        return f"{self._failures} decisions in a row got no answer; nobody is asked for {left:.0f} s"

    def _unaffordable(self, prompt_tokens: int, model: str | None = None, cap: int | None = None) -> str | None:
        limits, most = self._policy.budget, self._terms.cap if cap is None else cap
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


def configured(policy: Policy, environment: Mapping[str, str] = os.environ) -> str | None:
    """Why a language model may be asked: what names one, or an endpoint that may have a single one; None where nothing
    does. A key alone names none: it is in many an environment, and its provider has many models."""
    if policy.llm.base_url or policy.llm.model:
        return "the policy names one"
    return f"{BASE_URL_VARIABLE} is set" if environment.get(BASE_URL_VARIABLE) else None


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
