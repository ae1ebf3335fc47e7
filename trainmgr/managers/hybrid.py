"""`hybrid:MODEL`: the rules decide what they are sure of, and a language model the rest, who reads what they would do.

It is both of them, as they are: the model with its budget, its repair and its rests, the rules with their thresholds.
Where the model is out, or says nothing that holds, the rules' answer stands. Who decided is on record with each answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainmgr.base.errors import ManagerError
from trainmgr.base.wire import plain, short
from trainmgr.contract.policy import Policy
from trainmgr.contract.proposal import keep
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.managers import answer, exploration, reading
from trainmgr.managers.base import Answer, Exchange
from trainmgr.managers.llm import LlmManager
from trainmgr.managers.prompts.words import value, word
from trainmgr.managers.rules import RulesManager
from trainmgr.state.budget import Spent

KIND = "hybrid"
FIRST = 1 / 3  # of the run: what is set there decides most, and the rules wait for symptoms
EVIDENCE = 160  # characters of the rules' evidence that the model reads
REASON = 300  # characters of why the model gave no answer
UNSURE = (  # diagnoses whose symptoms have other causes too, or other remedies
    "overfitting", "worsening", "plateau", "over-regularization", "underfitting", "instability", "exploration-collapse",
    "unsafe-exploration",
)  # fmt: skip


class HybridManager:
    """Rules, and a language model where they are not sure."""

    deterministic = False

    def __init__(
        self, policy: Policy, model: str | None = None, *, environment: Mapping[str, str] = os.environ
    ) -> None:
        """Raises UserError for an endpoint or a key that cannot be."""
        stands_in = policy.llm.model_copy(update={"otherwise": "rules"})
        self._policy = policy
        self._rules = rules(policy)
        self._llm = LlmManager(policy.model_copy(update={"llm": stands_in}), model, environment=environment)
        self.name = _named(self._llm)

    @property
    def variant(self) -> int:
        """The wording of the model's prompt."""
        return self._llm.variant

    @variant.setter
    def variant(self, number: int) -> None:
        self._llm.variant = number

    def open(self) -> None:
        self._llm.open()
        self.name = _named(self._llm)

    def preflight(self) -> str:
        return f"the rules, and where they are not sure {self._llm.preflight()}"

    def begin(self, decision: str, spent: Spent, tell: Callable[[Exchange], None]) -> None:
        self._llm.begin(decision, spent, tell)

    def close(self) -> None:
        self._llm.close()

    def decide(self, snapshot: Snapshot) -> Answer:
        opinion = consider(snapshot, self._rules, self._policy)
        ours = Answer(opinion.raw, self._rules.name)
        if not opinion.doubt:
            return ours
        self._llm.advice = opinion.advice
        try:
            found = self._llm.decide(snapshot)
        except ManagerError as error:
            return Answer(opinion.raw, self._rules.name, short(str(error), REASON))
        if isinstance(found, Answer):  # of somebody else: nobody was asked, and the log says why
            return ours
        wrong = unusable(found, snapshot)
        return Answer(opinion.raw, self._rules.name, wrong) if wrong else Answer(found, self._llm.name)


def _named(model: LlmManager) -> str:
    return model.name.replace("llm", KIND, 1)


@dataclass(frozen=True)
class Opinion:
    """What the rules would do, and whether that is enough."""

    raw: dict[str, Any]
    """Their proposal."""
    doubt: str
    """Why the model is asked; "" where it is not."""
    advice: str
    """The proposal in a line, for the model."""


def rules(policy: Policy) -> RulesManager:
    """The rules of a hybrid: what they change is on probation as what its model changes."""
    return RulesManager(policy, watched=policy.watches(KIND))


def consider(snapshot: Snapshot, rules: RulesManager, policy: Policy) -> Opinion:
    """What the rules make of a snapshot. A replay asks this again.

    In doubt, what the model said last holds until it may be asked again: else a change that it has just refused would
    be made at the next evaluation.
    """
    raw = rules.decide(snapshot)
    unsure = doubt(snapshot, raw, policy)
    if unsure and snapshot.unasked and snapshot.heard and raw["action"] != "keep":
        left = f"left to the model ({snapshot.unasked}): {raw['evidence']}"
        raw = plain(keep(raw["diagnosis"], short(left, answer.EVIDENCE)))
    return Opinion(raw, "" if snapshot.unasked else unsure, advice(raw))


def doubt(snapshot: Snapshot, opinion: dict[str, Any], policy: Policy) -> str:
    """Why the rules' opinion is not enough; "" where they are sure.

    Sure: of what is not finite or diverges, of a fall in reinforcement learning, of losses out of balance, of the way
    a run is brought to its end, and once episodes succeed. In doubt: where a symptom has several causes, or none shows
    yet and much is still to be decided. Where nothing but keep is allowed, there is nothing to doubt.
    """
    diagnosis, idle = opinion["diagnosis"], opinion["action"] == "keep"
    learning, signals = exploration.declared(snapshot), snapshot.signals
    if snapshot.actions == ["keep"] or signals.lost or diagnosis in ("divergence", "loss-imbalance"):
        return ""
    if learning and (diagnosis == "instability" or _mastered(snapshot, policy)):
        return ""
    if diagnosis in UNSURE:
        return f"{diagnosis}, as the rules see it"
    if snapshot.trigger.startswith("alarm"):
        return snapshot.trigger
    if reading.immeasurable(snapshot):
        return "the rules cannot measure a rise from a best of 0"
    if diagnosis == "routine" or _late(snapshot, policy, learning=learning) or not idle:
        return ""
    if _early(snapshot):
        return "the first third of the run"
    settled, noise = reading.settled(snapshot), signals.noise or 0.0
    if settled >= policy.rules.patience and signals.rise is not None and signals.rise > noise:
        return "the objective has begun to lose ground"
    return "no new best for long" if 2 * settled >= policy.rules.plateau_evals else ""


def _early(snapshot: Snapshot) -> bool:
    total = snapshot.progress.total_steps
    return total is not None and snapshot.progress.step < FIRST * total


def _late(snapshot: Snapshot, policy: Policy, *, learning: bool) -> bool:
    """Whether the rules have begun to bring the run to its end."""
    left, total = reading.left(snapshot), snapshot.progress.total_steps
    share = policy.exploration.anneal if learning else policy.rules.anneal
    return left is not None and total is not None and left <= share * total


def _mastered(snapshot: Snapshot, policy: Policy) -> bool:
    now = exploration.episodes(snapshot)
    return now is not None and now.success >= policy.exploration.mastered


def advice(opinion: dict[str, Any]) -> str:
    """What the rules would do, in a line; names of parameters as the prompt shows them."""
    parts = [str(opinion["action"])]
    if opinion.get("to"):
        parts.append(f"to {opinion['to']}")
    changes = [f"{word(name)} = {value(new)}" for name, new in opinion.get("changes", {}).items()]
    changes += [
        f"{word(name)} to {value(plan['to'])} by step {plan['by_step']}"
        for name, plan in opinion.get("plans", {}).items()
    ]
    done = " ".join(parts) + (f" ({', '.join(changes)})" if changes else "")
    return f"{done}, since {opinion['diagnosis']}: {short(opinion['evidence'], EVIDENCE)}"


def unusable(found: Any, snapshot: Snapshot) -> str:
    """Why an answer of the model does not take the place of the rules'; "" where it does: it is one that the guard
    could accept, and says what it rests on."""
    named = tuple(row.name for row in snapshot.recipe if not row.resting)
    wrong = answer.objection(found, snapshot, named)
    if wrong is not None:
        return short(f"the model's answer is not valid: {wrong}", REASON)
    return "" if found["evidence"].strip() else "the model gives no reason for its answer"
