"""All validation of what a manager wants: a list of small named checks, each with a reason in plain words. Pure.

Syntax and semantics: an answer passes only if every check does. Nothing that fails is repaired, except that a value out
of reach is moved to the nearest reachable one where the policy says ``clip``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import to_json

from trainmgr.base.wire import Value, quoted, short
from trainmgr.contract.events import Check
from trainmgr.contract.proposal import Condition, Plan, Proposal
from trainmgr.contract.protocol import Command, explain
from trainmgr.contract.run_file import EDITION
from trainmgr.deciding import allowed, asking, plans, undoing
from trainmgr.state.situation import Situation

SINCE_2 = {"plans", "judge_after", "ask_again_in", "ask_again_when", "note"}  # keys of a proposal since edition 2
Result = Literal["accepted", "clipped", "rejected"]


@dataclass
class Judgment:
    """The guard's answer."""

    proposal: Proposal | None = None
    """None where the answer could not be read."""
    checks: list[Check] = field(default_factory=list)
    changes: dict[str, Value] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    command: Command | None = None
    undoes: tuple[int, ...] = ()
    """Of an undo: the revisions that it takes back."""
    clipped: bool = False
    ask_again_in: int | None = None
    """Steps until the next question, as the manager wants it and the policy allows it."""
    ask_again_when: Condition | None = None

    @property
    def result(self) -> Result:
        if any(not check.ok for check in self.checks):
            return "rejected"
        return "clipped" if self.clipped else "accepted"

    def note(self, name: str, objection: str | None) -> bool:
        """Record a check; True when it passed."""
        self.checks.append(Check(name=name, ok=not objection, reason=objection or ""))
        return not objection


def read(raw: Any, edition: int = EDITION) -> tuple[Proposal | None, str | None]:
    """A manager's raw answer as a proposal, or why it is none. Numbers in quotes, NaN and unknown keys do not pass, nor
    what a run of an earlier edition did not know.

    It is read from the JSON that the audit log keeps of it, so that a replay of the log reads the same.
    """
    try:
        values = json.loads(to_json(raw, inf_nan_mode="strings"))
    except (ValueError, RecursionError):
        return None, "not JSON: half a surrogate pair, a foreign object, or nesting or numbers without end"
    if edition == 1 and isinstance(values, dict) and (values.get("action") == "undo" or SINCE_2 & values.keys()):
        return None, "not known in this edition"
    try:
        return Proposal.model_validate(values), None
    except ValidationError as error:
        return None, explain(error, Proposal)


def judge(raw: Any, now: Situation, *, decision: str, based_on_step: int, age_seconds: float) -> Judgment:
    """Check an answer against the situation of this moment, which may be later than the snapshot it rests on.

    ``raw`` is whatever the manager gave: JSON values. The judgment of a "keep" is accepted with nothing to apply.
    """
    judgment = Judgment()
    proposal, objection = read(raw, now.manifest.edition)
    if not judgment.note("schema", objection) or proposal is None:
        return judgment
    judgment.proposal = proposal
    judgment.note("shape", _shape(proposal, now))
    judgment.note("fresh", _stale(now, based_on_step, age_seconds))
    actions, unavailable = allowed.actions(now)
    saved = now.state.lineage.best is not None
    if proposal.action not in actions:
        judgment.note("available", f"{proposal.action}: {unavailable.get(proposal.action, 'not available now')}")
    elif proposal.action == "stop" and proposal.to == "best" and not saved:
        judgment.note("available", "stop to best: there is no best checkpoint yet")
    elif proposal.action == "undo" and proposal.to and (why := _no_weights(now)):
        judgment.note("available", f"undo to weights: {why}")
    else:
        judgment.note("available", None)
    judgment.ask_again_in, judgment.ask_again_when, unmet = asking.granted(proposal, now, based_on_step)
    if unmet:  # a wish that cannot be met is no reason against the decision
        judgment.checks.append(Check(name="ask again", ok=True, reason=unmet))
    if proposal.action == "keep":
        return judgment
    judgment.note("running", "the workload has ended" if now.state.end else None)
    if proposal.action == "undo":
        _undo(judgment, proposal, now, decision)
    else:
        _changes(judgment, proposal, now)
        _plans(judgment, proposal, now)
    planned = {name: plan.to for name, plan in judgment.plans.items()}
    judgment.note("joint", _joint({**judgment.changes, **planned}, now))
    judgment.note("lead", _lead(now, based_on_step))
    if proposal.action == "rollback":
        to = undoing.checkpoints(now).get(proposal.to or "best")
        judgment.command = Command(id=decision, name="rollback", to=to)
    elif proposal.action == "stop":
        best = "best" if now.ledger.ends_on_best and saved else None
        judgment.command = Command(id=decision, name="stop", to=proposal.to or best)
    return judgment


def _no_weights(now: Situation) -> str:
    undo = undoing.last(now)
    return "" if undo is None else allowed.no_weights(now, undo)


def _undo(judgment: Judgment, proposal: Proposal, now: Situation, decision: str) -> None:
    """What takes the last change back. Its values were in force: neither step size nor cooldown bind them."""
    undo = undoing.last(now)
    if undo is None:  # not available
        return
    parameters = now.policy.narrow(now.declared).parameters  # whatever is left of the trust in its changes
    gone = [f"{name}: frozen by the policy" for name in undo.values if name not in parameters]
    bounds = [parameters[name].objection(value) or "" for name, value in undo.values.items() if name in parameters]
    judgment.note("known", "; ".join(gone))
    judgment.note("bounds", "; ".join(filter(None, bounds)))
    judgment.changes, judgment.undoes = undo.values, undo.revisions
    if proposal.to and undo.saved is not None:
        judgment.command = Command(id=decision, name="rollback", to=undo.saved.path)
    nothing = not undo.values and judgment.command is None
    judgment.note("no-op", "without the weights there is nothing to undo of a rollback" if nothing else None)


def _shape(proposal: Proposal, now: Situation) -> str | None:
    """Whether action, changes and target fit together."""
    if proposal.action == "adjust" and not proposal.changes and not proposal.plans:
        return "adjust without changes"
    if proposal.action in ("keep", "stop", "undo") and proposal.changes:
        return f"{proposal.action} with changes"
    if proposal.action not in ("adjust", "rollback") and proposal.plans:
        return f"{proposal.action} with plans"
    targets: tuple[str | None, ...] = (None,)
    if proposal.action == "rollback":
        targets = (None, *undoing.checkpoints(now))
    elif proposal.action == "stop":
        targets = (None, "best")
    elif proposal.action == "undo":
        targets = (None, "weights")
    if proposal.to not in targets:
        return f"{proposal.action} to {quoted(proposal.to)}; allowed: {', '.join(str(a or 'nothing') for a in targets)}"
    return None


def _stale(now: Situation, based_on_step: int, age_seconds: float) -> str | None:
    state, policy = now.state, now.policy
    if now.ledger.overtaken:
        return "probation has changed the recipe since the snapshot, or the run is being ended"
    age, limit = state.step - based_on_step, policy.max_age(state.total_steps)
    if age < 0:
        return f"the snapshot is of step {based_on_step}; the run went back to step {state.step} since"
    if limit is not None and age > limit:
        return f"the snapshot is {age} steps old; {limit} are allowed"
    if not age_seconds <= policy.staleness.max_age_seconds:  # NaN is no age
        return f"the snapshot is {age_seconds:.0f} s old; {policy.staleness.max_age_seconds:.0f} are allowed"
    return None


def _lead(now: Situation, based_on_step: int) -> str | None:
    due = now.policy.due(based_on_step)
    if due is not None and now.state.step > due:
        return f"it was to apply at step {due}, and the workload is at step {now.state.step}"
    return None


def _changes(judgment: Judgment, proposal: Proposal, now: Situation) -> None:
    """The checks of each changed parameter; what passes all of them is what may be applied."""
    clip = now.policy.limits.clip
    unknown, bounds, far, rest = [], [], [], []
    changes: dict[str, Value] = {}
    for name, wanted in proposal.changes.items():
        parameter = now.space.parameters.get(name)
        if parameter is None:
            unknown.append(_unknown(name, now))
            continue
        value: Value = float(wanted) if parameter.type == "float" and type(wanted) is int else wanted
        number = type(value) is (int if parameter.type == "int" else float) and math.isfinite(value)
        if clip and number and parameter.type in ("int", "float"):
            moved = parameter.clip(float(value), parameter.value)
            judgment.clipped |= moved != value
            value = moved
        objection = parameter.objection(value)
        if objection:
            bounds.append(objection)
            continue
        if value == parameter.value:
            if name in now.ledger.plans.underway:  # then it is to stay there
                changes[name] = value
            continue
        objection = parameter.too_far(value, parameter.value)
        if objection:
            far.append(objection)
        if allowed.resting(now, name):
            rest.append(f"{name} rests: its last change is still being measured")
        changes[name] = value
    judgment.changes = changes
    judgment.note("known", "; ".join(unknown))
    judgment.note("bounds", "; ".join(bounds))
    judgment.note("step size", "; ".join(far))
    judgment.note("cooldown", "; ".join(rest))
    nothing = proposal.action == "adjust" and not changes and not proposal.plans and not unknown and not bounds
    judgment.note("no-op", "every value is in effect already" if nothing else None)


def _plans(judgment: Judgment, proposal: Proposal, now: Situation) -> None:
    """The checks of each planned parameter. The target may be as far as the bounds: only its parts have a reach."""
    if not proposal.plans:
        return
    bad = []
    for name, plan in proposal.plans.items():
        parameter = now.space.parameters.get(name)
        if parameter is None:
            bad.append(_unknown(name, now))
            continue
        if name in proposal.changes:
            bad.append(f"{name} is in changes and in plans")
            continue
        to = float(plan.to) if parameter.type == "float" else plan.to
        objection = plans.unplannable(parameter) or plans.too_far_off(plan, now)
        if not objection and to == parameter.off:
            objection = f"{name} is switched off at once, not little by little"
        low, high = parameter.low, parameter.high
        if not objection and now.policy.limits.clip and math.isfinite(to) and low is not None and high is not None:
            nearest = min(max(to, low), high)
            judgment.clipped |= nearest != to
            to = nearest
        objection = objection or parameter.objection(to)
        if not objection and to == parameter.value:
            objection = f"{name} is at {to:g} already"
        under_way = now.ledger.plans.underway.get(name)
        if not objection and under_way is not None and under_way.plan == plan:
            objection = f"that plan for {name} is under way already"
        if not objection and allowed.resting(now, name):
            objection = f"{name} rests: its last change is still being measured"
        if objection:
            bad.append(objection)
        else:
            judgment.plans[name] = plan.model_copy(update={"to": to})
    judgment.note("plans", "; ".join(bad))


def _unknown(name: str, now: Situation) -> str:
    frozen = name in now.declared.parameters
    return f"{short(name, 60)}: {'frozen by the policy' if frozen else 'no such parameter'}"


def _joint(changes: dict[str, Value], now: Situation) -> str | None:
    for name, value in changes.items():
        parameter = now.declared.parameters[name]
        before = parameter.value
        rises = not isinstance(value, str) and not isinstance(before, str) and value > before
        if rises and allowed.held(now, parameter):
            return f"{name} may not rise from {before:g} to {value:g} while the objective diverges"
    return None
