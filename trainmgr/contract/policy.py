"""The operator's settings: what a manager may do in this run, and when. A policy narrows, it never widens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue, ValidationError, field_validator, model_validator

from trainmgr.base import toml
from trainmgr.base.concealment import SECRET
from trainmgr.base.errors import PolicyError
from trainmgr.base.wire import MAX_INT, Wire
from trainmgr.contract.action_space import ActionSpace
from trainmgr.contract.protocol import explain

Count = Annotated[int, Field(ge=0, le=MAX_INT)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
VARIABLE = r"^[A-Z][A-Z0-9_]{0,63}$"
KNOWN_MANAGERS = ("rules", "schedule", "replay", "none")  # deterministic, and measured
NO_DOUBT: Mapping[str, float] = {}
Level = Literal["json_schema", "tool", "json_object", "text"]
OURS = (  # keys of a request that `llm.extra` has no say about: what is asked, in which form, or what another key sets
    "model", "messages", "response_format", "tools", "tool_choice", "functions", "function_call", "n", "stream",
    "stream_options", "temperature", "reasoning_effort", "max_tokens", "max_completion_tokens",
)  # fmt: skip
LONGEST_EXTRA = 4000  # characters of `llm.extra` as JSON
_CREDENTIAL = re.compile(r"(^|[_-])(api[_-]?key|key|secret|password|auth|authorization|bearer|credentials?|cookie|"
                         r"(access|auth|api|id|refresh)[_-]?token)$", re.IGNORECASE)  # fmt: skip


class Section(Wire):
    """Base of the policy's tables."""


class Cadence(Section):
    """When a manager is asked."""

    every_evals: Annotated[int, Field(ge=1, le=MAX_INT)] = 1
    """Ask after every this many evaluations."""
    min_steps: Count | None = None
    """Ask at most once in this many steps. Default: 0; for a language model one fortieth of the total. Of a `hybrid`
    that is its model: its rules are asked all the same."""
    every_steps: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    """Ask for each multiple of this many steps instead: the answer takes effect at exactly that step. For a workload
    whose boundaries are there; what is ready later is refused."""
    ahead_steps: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    """With every_steps: ask this many steps ahead of it, on what is known by then. Default: a quarter of it."""
    on_alarm: bool = True
    """Ask all the same when what was finite is not any more (the objective; a loss twice in a row, a gradient norm 8
    times; without waiting for an evaluation), when the objective begins to diverge, and when it rises above its best,
    by the thresholds of the rules. With every_steps only the first of these."""
    longest_wait: Share = 0.25
    """A manager may ask to be left alone for a while: no longer than this share of the total steps, or 16 evaluations
    where there is no total. Alarms ask it all the same."""


class Staleness(Section):
    """When an answer comes too late. The workload itself refuses what it reads later than this."""

    max_age_steps: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    """Steps since the snapshot. Default: one twentieth of the total steps, at least 10; without a total, no limit."""
    max_age_seconds: Positive = 600.0
    """Seconds since the snapshot."""


class Limits(Section):
    """How much and how often."""

    clip: bool = False
    """Move a value that is out of reach to the nearest reachable one, instead of rejecting the answer."""
    cooldown_evals: Count = 1
    """A parameter that was changed rests until this many evaluations have measured the change."""
    max_interventions: Count | None = None
    """Changes in the whole run. Default: no limit."""
    lead_steps: Count = 0
    """Apply a change exactly this many steps after the snapshot (0: at the next boundary). What arrives later than that
    is refused. As long as no answer is late, a run with the same seed and a deterministic manager repeats itself bit
    for bit, unless probation takes something back, which it does at once. Not used with cadence.every_steps."""


class Actions(Section):
    """What may be done besides changing parameters."""

    rollback: bool = True
    """Allow going back to the best or the initial checkpoint."""
    rollback_gap_evals: Count = 2
    """Evaluations between two rollbacks."""
    rollback_min_rise: Share = 0.0
    """Offer a rollback only when the objective is worse than its best by this fraction of the best."""
    rollback_min_drop: Annotated[float, Field(ge=0)] = 0.0
    """Offer a rollback only when the objective is worse than its best by this much, in its own unit, ..."""
    rollback_drop_evals: Annotated[int, Field(ge=1, le=16)] = 1
    """... at each of the last this many evaluations."""
    stop: bool = True
    """Allow ending the run early."""
    stop_after: Share = 0.0
    """Offer a stop only after this fraction of the total steps."""
    stop_settled_evals: Count | None = None
    """Offer a stop only when the last new best and the last change are this many evaluations ago, or when at most one
    and a half evaluations are left. Default: 5, and a manager on probation may stop only when what is left of the run
    fits into its loss budget."""
    stop_metric: str | None = None
    """Instead: offer a stop only when this metric of the evaluations is at least ..."""
    stop_least: float = 1.0
    """... this ..."""
    stop_evals: Annotated[int, Field(ge=1, le=16)] = 1
    """... at each of the last this many evaluations."""
    end_on_best: bool | None = None
    """End on the best: every stop of a manager does, and so does a run that is worse than that one evaluation before
    its end. Default: where a manager on probation changed something. Nobody is asked, in mode approve either."""


class Joint(Section):
    """Rules over several things at once."""

    no_raise_when_diverging: bool = True
    """The learning rate (group "optimizer", log scale) may not rise while the objective diverges or is not finite."""


class Probation(Section):
    """The watch over what a manager changed: what harms is taken back, and what does not help."""

    enabled: bool | None = None
    """Whether there is one. Default: for every manager but `rules`, schedules, `replay` and `none`, which are known."""
    first_evals: Count = 4
    """Nobody is asked before this many evaluations: nothing could be compared yet. But after the first of them, when a
    value is not finite, and after the second, when the objective stands still: such a run has nothing to lose. 1 asks
    a good manager sooner; harm that a bad one does then is not always seen in time."""
    window_evals: Annotated[int, Field(ge=1, le=12)] = 5
    """A change is on trial for this many evaluations, measured against a forecast from before it. Then it has brought
    a new best, or something better than forecast that is near the best; or it did neither good nor harm, and stays
    where that costs nothing (more regularization, a longer average; in the second half of the run a lower rate, less
    exploration): else it is put back. That waits while a later change is on trial, which may build on it, for as many
    evaluations again at most."""
    longest_trial: Share = 0.2
    """By how much of the run's steps a change may put that off (`judge_after`), and never for longer than the loss
    budget would bear. Harm is judged all the time."""
    checkpoint: bool = True
    """Have the workload save a checkpoint before a change, to go back to; else that is the best."""
    tolerance: Positive = 0.003
    """Harm: the objective is worse than its forecast by more than this fraction of its scale (ten times as much where
    it stood still, or was measured fewer than four times, so that its noise is not known), ..."""
    noise_factor: Positive = 3.0
    """... by more than this many times its noise, and by more than half of the progress that was forecast ..."""
    patience: Annotated[int, Field(ge=1, le=12)] = 2
    """... at this many evaluations in a row (or at all of a shorter window), ..."""
    catastrophe: Annotated[float, Field(ge=1)] = 4.0
    """... or at one by this many times as much, or is not finite. Then the last change that this holds for is taken
    back, the weights too."""
    shrink: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The largest step of a parameter whose change did harm is multiplied by this; ..."""
    grow: Annotated[float, Field(ge=1)] = 1.5
    """... that of one whose change proved itself by this, up to what was declared; ..."""
    least_trust: Annotated[float, Field(gt=0, le=1)] = 0.0625
    """... and it never gets smaller than this share of what was declared."""
    loss_budget: Share = 0.1
    """Share of the run's steps that may be lost to harm and to rollbacks that brought nothing; then nothing of the
    manager is applied any more. A change that is better than forecast, but far from the best, may take what is left."""
    idle_budget: Share = 0.2
    """The same of steps in trials of other changes that brought nothing since the last one that did, from the third
    reversal on; half of them count."""
    challenge_evals: Count = 8
    """After this many evaluations without a new best, the recipe of the start is put on trial in place of what a
    manager has made of it, where the workload can keep and restore its weights: it stays unless it harms. Not while
    the objective diverges or rises, not in the last third of the run, and no learning rate that was brought down rises
    for it. Nobody is asked, and the reach of one change does not bind it. Twice as many before each further time; 0:
    never."""
    max_reversals: Count = 5
    """Instead, where no number of steps is planned: how often changes may be taken back."""
    fallback: Literal["proven", "start"] = "proven"
    """The recipe that a run goes on with when its manager is demoted: the last one that proved itself; or that of the
    start, for whoever wants nothing at all of such a manager."""

    @property
    def idle_limit(self) -> float:
        """Share of the run's steps that may pass in trials that brought nothing since the last one that did: of these
        steps half count."""
        return 2 * self.idle_budget


class Rules(Section):
    """Thresholds of the `rules` manager."""

    rise: Positive = 0.02
    """Overfitting: the objective is worse than its best by more than this fraction of the best ..."""
    noise_factor: Positive = 3.0
    """... and by more than this many times its noise."""
    patience: Annotated[int, Field(ge=1)] = 2
    """Overfitting: evaluations since the best and since the last change."""
    plateau_evals: Annotated[int, Field(ge=2)] = 12
    """Plateau: evaluations since the best and since the last change, without a rise."""
    wide_gap: Positive = 0.1
    """Plateau: the objective worse than on training data by more than this fraction of the best: regularize more."""
    narrow_gap: Positive = 0.02
    """Plateau: worse by less than this fraction: what the rules have tightened was too tight."""
    first_notch: Share = 0.6
    """A regularizer that is off goes up by this fraction of its range (pilots), ..."""
    notch: Share = 0.2
    """... and one that is on by this fraction."""
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """The learning rate is multiplied by this (pilots)."""
    early: Share = 0.1
    """Overfitting in this first part of the run, with the recipe of the start and a gap that is measured: back to the
    initial weights, where changes are not on probation ..."""
    anew: Share = 0.15
    """... and one change brings the learning rate down to this fraction of that at the start (pilots)."""
    average: Share = 0.2
    """Averages of weights that are on reach back over this share of the steps so far, when that doubles them; 0: as far
    as at first."""
    lr_floor: Share = 0.05
    """Never below this fraction of the learning rate at the start: rules without a floor freeze a run."""
    anneal: Share = 0.25
    """In this last part of the run (Hägele et al. 2024 use 0.2) the learning rate falls in a straight line ..."""
    anneal_to: Share = 0.01
    """... to this fraction of the learning rate at the start."""
    spike_share: Share = 0.05
    """Instability: outlying gradient norms in more than this share of the steps since the last evaluation."""


class Exploration(Section):
    """Thresholds of `rules` in reinforcement learning. Places are fractions of a declared range, on its scale."""

    short: Positive = 0.25
    """Frozen or slow: an update moves the policy by less than this multiple of what it may ..."""
    learned: Share = 0.5
    """... frozen: while less than this share of the episodes succeeds ..."""
    mastered: Share = 0.85
    """... slow: while more does, but less than this."""
    unsafe: Share = 0.15
    """Unsafe: more than this share of the episodes does harm ..."""
    wide: Positive = 0.7
    """... and the actions scatter by more than this fraction of the largest."""
    early: Share = 0.25
    """Unsafe in this first part of the run: back to the initial checkpoint, ..."""
    redo: Share = 0.8
    """... unless more than this share of the episodes ever succeeded."""
    fall: Positive = 0.25
    """Lost: the objective worse than its best by more than this fraction of its scale, and 3 times its noise, ..."""
    retreat: Share = 0.5
    """... twice in a row: back to the best checkpoint, with the learning rates times this."""
    rate: Share = 0.88
    """Where the learning rates are raised to ..."""
    calm: Share = 0.6
    """... and lowered to, when it is unsafe."""
    trust: Share = 0.72
    """Where clip range, epochs and target KL (group "trust region") are."""
    reward: Share = 1.0
    """Where the weights of what is wanted (group "reward") are."""
    penalty: Share = 0.14
    """Where the weights of what is not (group "penalty") are."""
    entropy: Share = 0.005
    """Where the entropy coefficient (group "exploration") is, and where it falls to once episodes succeed."""
    anneal: Share = 0.6
    """In this last part of the run the learning rates fall in a straight line."""


class Imbalance(Section):
    """Thresholds of `rules` for a loss of several terms, whose weighted gradients are compared by their norms."""

    trigger: Annotated[float, Field(ge=1)] = 100.0
    """Loss imbalance: the largest norm is more than this many times the smallest (on a plateau: `balanced`), ..."""
    patience: Annotated[int, Field(ge=2)] = 3
    """... by the geometric means of the last this many evaluations: the weights of the small ones rise, ..."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """... each to where its norm is this fraction of the largest, at every evaluation, ..."""
    balanced: Annotated[float, Field(ge=1)] = 20.0
    """... until the largest is no more than this many times the smallest."""
    grace: Annotated[int, Field(ge=0)] = 6
    """Evaluations after such a change in which a rise of the objective does not count as overfitting."""


class Process(Section):
    """The child process."""

    stall_timeout: Positive | None = None
    """Seconds without telemetry after which the child counts as hung and is stopped. Default: never."""
    restarts: Count = 0
    """How often a crashed or hung child is started again from its last checkpoint."""
    grace: Positive = 30.0
    """Seconds that a child has to end by itself after a stop, and after SIGTERM, before it is killed."""


class Approval(Section):
    """The person at the terminal, with `--mode approve`."""

    timeout: Positive = 120.0
    """Seconds to wait for an answer; none means no."""


class Llm(Section):
    """The language model, for the managers `llm`, `hybrid` and `local:FILE`."""

    model: str | None = None
    """Its name at the endpoint; `--manager llm:MODEL` says it too. Default: the only chat model that the endpoint
    lists."""
    formatter: str | None = None
    """A second, cheaper model at the same endpoint: `model` reasons in plain English, this one writes it down."""
    base_url: str | None = None
    """The endpoint, up to /v1. Default: the variable OPENAI_BASE_URL, else https://api.openai.com/v1. A key goes to
    another one than these only where --send-key names it; a server on this machine is asked without OPENAI_API_KEY."""
    api_key_env: Annotated[str, Field(pattern=VARIABLE)] = "OPENAI_API_KEY"
    """The NAME of the environment variable that holds the key, like HOUSE_API_KEY; one that is called otherwise, like
    HF_TOKEN, --api-key-env has to name. The key itself never goes into a file."""
    probe: bool = True
    """Before anything is started, list the endpoint's models and ask for one word, so that a wrong address, a key that
    is refused or a model that is not there is told at once. It counts in the budget. false: nothing is sent before the
    first question, but for the list where no model is named."""
    level: Level = "json_schema"
    """The strictest form of answer to ask for: json_schema, tool, json_object or text. ..."""
    fallback: bool = True
    """... An endpoint that does not have it is asked for the next one of these. false: in that form only."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Sent only where it is set, and not again to a model that refuses it. The embedded server gets 0 by default."""
    reasoning_effort: Annotated[str, Field(pattern=r"^[a-z]{1,16}$")] | None = None
    """How much a thinking model is to think, in the endpoint's words (none, minimal, low, medium, high). Sent only
    where it is set, and not again to a model that refuses it."""
    extra: dict[str, JsonValue] = {}
    """More for the body of every request, as the endpoint documents it: top_p = 0.9 in [llm.extra], enable_thinking =
    false in [llm.extra.chat_template_kwargs]. Not what is asked, nor what another setting is for, nor a key."""
    max_output_tokens: Annotated[int, Field(ge=64, le=MAX_INT)] = 2048
    """Of one answer, with what a thinking model thinks."""
    most_output_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    """An answer that was cut off before it began is asked for once more, with twice as many tokens, up to this many.
    What it took stays for the rest of the run. Default: four times max_output_tokens."""
    prompt_tokens: Annotated[int, Field(ge=500, le=100_000)] = 5000
    """Of one prompt, by our own estimate, which is on the high side; evaluations are left out first. An embedded server
    gets no more than its context has room for."""
    timeout: Positive = 120.0
    """Seconds for one decision, with all retries."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """After a refused connection, status 408, 409, 425, 429 or 5xx; Retry-After is kept to."""
    repair: bool = True
    """Ask once more, with the exact objection, when an answer is not valid."""
    breaker_failures: Annotated[int, Field(ge=1)] = 4
    """After this many decisions in a row without any answer, nobody is asked ..."""
    breaker_seconds: Positive = 300.0
    """... for this long."""
    otherwise: Literal["keep", "rules"] = "keep"
    """Who decides when a budget is spent, or nobody is asked: nobody, or `rules`."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Of the embedded server (`local:FILE`), beside the training."""
    context: Annotated[int, Field(ge=512, le=MAX_INT)] = 4096
    """Tokens of prompt and answer together that the embedded server has room for."""

    @field_validator("extra")
    @classmethod
    def _only_extra(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := sorted(set(extra) & {*OURS}):
            raise ValueError(f"{taken[0]} is not for this table: it has a key of its own, or is not to be set")
        for name, value in _leaves(extra):
            if _CREDENTIAL.search(name) or (isinstance(value, str) and SECRET.search(value)):
                raise ValueError("a key never goes into a file: llm.api_key_env names the variable that holds it")
        if len(json.dumps(extra)) > LONGEST_EXTRA:
            raise ValueError(f"it is longer than {LONGEST_EXTRA:,} characters")
        return extra

    @property
    def most(self) -> int:
        """The most tokens of one answer."""
        most = 4 * self.max_output_tokens if self.most_output_tokens is None else self.most_output_tokens
        return max(most, self.max_output_tokens)


class Budget(Section):
    """What the language model may cost in this run. Checked before each call, with the most that it can cost."""

    calls: Count = 200
    """Requests, every retry and repair among them."""
    tokens: Count | None = 1_000_000
    """Read and written."""
    money: Annotated[float, Field(ge=0)] | None = None
    """In the unit of [prices]. Not counted where the price is not known."""
    seconds: Positive | None = None
    """Waited for answers."""


class Price(Section):
    """Of one model, for a million tokens, in any one currency: [prices."MODEL"]."""

    input: Annotated[float, Field(ge=0)]
    """Read."""
    output: Annotated[float, Field(ge=0)]
    """Written."""
    cached: Annotated[float, Field(ge=0)] | None = None
    """Read from the provider's cache of prompts, where it tells. Default: as input."""
    cache_write: Annotated[float, Field(ge=0)] | None = None
    """Read and put into that cache. Default: as input."""


class ParameterLimits(Section):
    """Tighter limits for one parameter of the workload: [parameters.NAME]."""

    frozen: bool = False
    """No manager may change it."""
    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    max_ratio: Annotated[float, Field(ge=1)] | None = None
    """Largest factor upwards in one change."""
    min_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Smallest factor in one change."""
    max_delta: Positive | None = None
    """Largest difference in one change."""


class Policy(Section):
    """A policy file."""

    cadence: Cadence = Cadence()
    staleness: Staleness = Staleness()
    limits: Limits = Limits()
    actions: Actions = Actions()
    joint: Joint = Joint()
    probation: Probation = Probation()
    rules: Rules = Rules()
    exploration: Exploration = Exploration()
    imbalance: Imbalance = Imbalance()
    process: Process = Process()
    approval: Approval = Approval()
    llm: Llm = Llm()
    budget: Budget = Budget()
    prices: dict[str, Price] = {}
    parameters: dict[str, ParameterLimits] = {}

    @model_validator(mode="after")
    def _one_plan(self) -> Policy:
        every, ahead = self.cadence.every_steps, self.cadence.ahead_steps
        if every is not None and ahead is not None and ahead > every:
            raise ValueError(f"cadence.ahead_steps is {ahead}; it must be at most cadence.every_steps, {every}")
        return self

    def narrow(self, space: ActionSpace, trust: Mapping[str, float] = NO_DOUBT) -> ActionSpace:
        """The part of the workload's action space that this policy leaves, and the trust in changes of each parameter.

        Raises PolicyError when it speaks of a parameter that the workload does not have, or leaves an empty range.
        """
        unknown = sorted(set(self.parameters) - set(space.parameters))
        if unknown:
            raise PolicyError(
                f"[parameters.{unknown[0]}]: the workload has no such parameter. "
                f"It has: {', '.join(space.parameters) or 'none'}."
            )
        kept = []
        for name, parameter in space.parameters.items():
            limits = self.parameters.get(name, ParameterLimits())
            if limits.frozen:
                continue
            useless = limits.model_fields_set - {"frozen"}
            if useless and parameter.type in ("bool", "choice"):
                raise PolicyError(f"[parameters.{name}] {min(useless)}: a {parameter.type} has no numbers to limit.")
            narrow = parameter.narrowed(limits.low, limits.high, limits.max_ratio, limits.min_ratio, limits.max_delta)
            if narrow.low is not None and narrow.high is not None and narrow.low > narrow.high:
                raise PolicyError(
                    f"[parameters.{name}]: [{narrow.low:g}, {narrow.high:g}] is empty; "
                    f"the workload allows [{parameter.low:g}, {parameter.high:g}]."
                )
            kept.append(narrow.trusted(trust.get(name, 1.0)))
        allowed = [c for c in space.commands if (c != "rollback" or self.actions.rollback)]
        return ActionSpace(kept, [c for c in allowed if c != "stop" or self.actions.stop])

    def max_age(self, total_steps: int | None) -> int | None:
        """Steps after which an answer is stale; None: never."""
        if self.staleness.max_age_steps is not None:
            return self.staleness.max_age_steps
        return None if total_steps is None else max(10, total_steps // 20)

    def due(self, based_on_step: int) -> int | None:
        """The step at which the answer to a snapshot takes effect; None: at the next boundary."""
        if every := self.cadence.every_steps:
            return (based_on_step // every + 1) * every
        return based_on_step + self.limits.lead_steps if self.limits.lead_steps else None

    def asks_from(self, due: int) -> int:
        """With cadence.every_steps: the step from which a manager is asked for what takes effect at ``due``."""
        every = self.cadence.every_steps or 1
        return due - (self.cadence.ahead_steps or max(1, every // 4))

    def watches(self, manager: str) -> bool:
        """Whether the changes of a manager of this name are on probation."""
        enabled = self.probation.enabled
        return manager.partition(":")[0] not in KNOWN_MANAGERS if enabled is None else enabled

    def min_steps(self, manager: str, total_steps: int | None) -> int:
        """Steps between two questions; 0 for a hybrid, whose rules cost nothing."""
        if is_hybrid(manager):
            return 0
        return self.model_steps(total_steps) if asks_model(manager) else self.cadence.min_steps or 0

    def model_steps(self, total_steps: int | None) -> int:
        """Steps between two questions to a language model."""
        if self.cadence.min_steps is not None:
            return self.cadence.min_steps
        return 0 if self.cadence.every_steps is not None or total_steps is None else total_steps // 40

    def alarms(self, diverging: bool, rise: float | None, noise: float | None) -> frozenset[str]:
        """What cannot wait for the cadence: names of alarms. Figures as in a snapshot's signals."""
        found = {"divergence"} if diverging else set()
        if rise is not None and not rise <= max(self.rules.rise, self.rules.noise_factor * (noise or 0.0)):
            found.add("worsening")
        return frozenset(found)


def asks_model(manager: str) -> bool:
    """Whether a manager of this name asks a language model."""
    return manager.partition(":")[0] in ("llm", "local", "hybrid")


def is_hybrid(manager: str) -> bool:
    """Whether the rules decide first, and a language model where they are not sure."""
    return manager.partition(":")[0] == "hybrid"


def load(path: Path | None) -> Policy:
    """The policy in a TOML file; the defaults without one.

    Raises PolicyError, with the key, for everything that is not exactly as documented.
    """
    if path is None:
        return Policy()
    values = toml.load(path, "policy file", PolicyError)
    _no_secrets(path, values)
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        raise PolicyError(
            f"The policy file {path}: {explain(error, Policy)}. `trainmgr policy` prints every key."
        ) from None


def with_flags(policy: Policy, **flags: Any) -> Policy:
    """The policy with what the command line says of the process; None says nothing.

    Raises PolicyError for what a file may not say either: it would stand in the log, which then could not be read.
    """
    said = {name: value for name, value in flags.items() if value is not None}
    try:
        process = Process.model_validate({**policy.process.model_dump(), **said})
    except ValidationError as error:
        found = explain(error, Process)
        for name in said:
            found = found.replace(f"{name}:", f"--{name.replace('_', '-')}")
        raise PolicyError(f"{found}.") from None
    return policy.model_copy(update={"process": process})


def _no_secrets(path: Path, values: dict[str, Any]) -> None:
    """Refuse a key in the file, without repeating it: the policy becomes a part of run.json."""
    llm = values.get("llm")
    if not isinstance(llm, dict):
        return
    name, url = llm.get("api_key_env"), llm.get("base_url")
    if (
        any(word in llm for word in ("api_key", "key", "token"))
        or (isinstance(name, str) and not re.fullmatch(VARIABLE, name))
        or (isinstance(url, str) and any(sign in url for sign in "@?#"))
    ):
        raise PolicyError(
            f"The policy file {path}: llm.api_key_env is the NAME of an environment variable, in capital letters. "
            "The key itself never goes into a file: every run keeps a copy of its policy."
        )


def known(values: Any) -> Any:
    """A policy of another version: without keys that this one does not have; as it was done before probation was."""
    if not isinstance(values, dict):
        return values
    if "probation" not in values and isinstance(actions := values.get("actions", {}), dict):
        values = {**values, "actions": {**actions, "stop_settled_evals": 0}, "probation": {"enabled": False}}
    return _known(values, Policy)


def _leaves(value: JsonValue, name: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Every key and every value within, by the name of its key."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else ((name, each) for each in value)
        if isinstance(value, list)
        else ()
    )
    yield name, value
    for key, each in inner:
        yield from _leaves(each, key)


def _known(values: Any, section: type[BaseModel]) -> Any:
    if not isinstance(values, dict):
        return values
    kept = {}
    for name, value in values.items():
        field = section.model_fields.get(name)
        if field is None:
            continue
        inner = field.annotation
        nested = isinstance(inner, type) and issubclass(inner, BaseModel)
        kept[name] = _known(value, inner) if nested and isinstance(inner, type) else value
    return kept
