"""What may be answered at a moment, and how far: the one code that a snapshot shows it by and the guard judges it by.
Pure.
"""

from __future__ import annotations

import math

from trainmgr.base.wire import short
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.proposal import Action
from trainmgr.deciding import undoing
from trainmgr.state.situation import Situation

NOT_OFFERED = "the workload offers none"  # why a command may not be given
BLIND = 4  # evaluations before there is a noise
SETTLED = 5  # evaluations without a best or a change after which a stop is offered, where the policy does not say
NAME = 48  # characters of a metric's name
TINY = 1e-9  # 0.94 - 0.84 is a little less than 0.1


# -- actions -----------------------------------------------------------------------------------------------------------


def actions(now: Situation) -> tuple[list[Action], dict[str, str]]:
    """Those that are allowed, and why the others are not."""
    found: list[Action] = ["keep"]
    left = now.policy.limits.max_interventions
    if left is not None and now.ledger.accepted >= left:
        spent = f"all {left} interventions of this run are spent"
        return found, dict.fromkeys(("adjust", "rollback", "stop", *_undo(now)), spent)
    no: dict[str, str] = {}
    late = _too_late(now) or _blind(now)
    objections: tuple[tuple[Action, str], ...] = (
        ("adjust", late or _no_adjust(now)),
        ("rollback", late or _no_rollback(now)),
        ("stop", _no_stop(now)),
        *((action, _no_undo(now)) for action in _undo(now)),
    )
    for action, objection in objections:
        if objection:
            no[action] = objection
        else:
            found.append(action)
    return found, no


def _undo(now: Situation) -> tuple[Action, ...]:
    """Only where there is something to undo: else nobody need hear of it."""
    return ("undo",) if now.manifest.edition > 1 and undoing.last(now) is not None else ()


def _no_undo(now: Situation) -> str:
    found, parameters = undoing.last(now), now.declared.parameters
    if found is None:
        return ""
    for name, value in found.values.items():
        rises = not isinstance(value, str) and value > parameters[name].value  # type: ignore[operator]
        if rises and held(now, parameters[name]):
            return f"{name} may not rise while the objective diverges"
    return "" if found.values else no_weights(now, found)


def no_weights(now: Situation, undo: undoing.Undo) -> str:
    """Why the weights from before a change cannot come back with its values; "" where they can."""
    if not now.policy.actions.rollback or "rollback" not in now.declared.commands or undo.saved is None:
        return "the weights from before that change are not kept"
    costs, spare = undoing.costs(now, undo), undoing.spare(now)
    if spare is not None and costs > spare:
        return f"{costs} steps would be in vain; a manager on probation may lose {spare} more"
    return ""


def _too_late(now: Situation) -> str:
    """Why nothing may be changed any more on probation: harm could not be seen and taken back before the end."""
    left, least = now.state.evals_left, now.policy.probation.patience + 1
    if left is None or left >= least or not now.ledger.on_probation:
        return ""
    return f"fewer than {_times(least)} are left to judge it"


def _blind(now: Situation) -> str:
    """Why nothing more may be changed on probation while a change is on trial: too little was measured of these
    weights to tell what came of which."""
    trials, known = now.ledger.trials, len(now.state.lineage.course)
    if now.manifest.edition == 1 or not trials or known >= BLIND:
        return ""
    return f"what was changed at step {trials[-1].step} is on trial, and {_times(BLIND)} are needed to judge more"


def _no_adjust(now: Situation) -> str:
    known = now.state.start is not None and now.space.parameters
    return "" if known else "there is no parameter that may be changed"


def _no_rollback(now: Situation) -> str:
    state, wanted = now.state, now.policy.actions
    if not wanted.rollback:
        return "the policy forbids it"
    if "rollback" not in now.declared.commands:
        return NOT_OFFERED
    if state.lineage.best is None:
        return "there is no best checkpoint yet"
    gap = max(wanted.rollback_gap_evals, _rest(now, "rollback"))
    if state.rollback_at is not None and state.evals - state.rollback_at < gap:
        return f"the last rollback was {state.evals - state.rollback_at} evaluations ago; {gap} are required"
    rise, least = now.signals.rise, wanted.rollback_min_rise
    if least > 0 and rise is not None and math.isfinite(rise) and rise < least:
        return f"the objective is {rise:.1%} worse than its best; {least:.1%} are required"
    drop, evals = wanted.rollback_min_drop, wanted.rollback_drop_evals
    if drop > 0 and state.best is not None:
        best = state.worse(state.best[1])
        values = [state.objective_of(evaluation) for evaluation in state.evaluations[-evals:]]
        drops = [state.worse(value) - best for value in values if value is not None]
        if len(drops) < evals or any(d < drop - TINY for d in drops):  # NaN is no small drop
            return f"the objective must be worse than its best by {drop:g} for {_times(evals)}; it was {_listed(drops)}"
    return ""


def _no_stop(now: Situation) -> str:
    state, wanted = now.state, now.policy.actions
    after = wanted.stop_after * (state.total_steps or 0)
    if not wanted.stop:
        return "the policy forbids it"
    if "stop" not in now.declared.commands:
        return NOT_OFFERED
    if state.step < after:
        return f"the policy allows it from step {math.ceil(after)} on"
    name, least, evals = wanted.stop_metric, wanted.stop_least, wanted.stop_evals
    if name is None:
        return _unsettled(now) or _too_early(now)
    found = [e.metrics.get(name, math.nan) for e in state.evaluations[-evals:]]
    if len(found) == evals and all(value >= least for value in found):
        return ""
    return f"{short(name, NAME)} must be at least {least:g} for {_times(evals)}; it was {_listed(found)}"


def _unsettled(now: Situation) -> str:
    state, least, changed = now.state, now.policy.actions.stop_settled_evals, now.signals.evals_since_change
    least = SETTLED if least is None else least
    settled = state.evals_since_best if changed is None else min(state.evals_since_best, changed)
    if settled >= least or state.nearly_over:
        return ""
    return f"the last new best or change was {_times(settled)} ago; {least} are required"


def _too_early(now: Situation) -> str:
    """Why a manager on probation may not stop yet: the steps that it would forgo are lost, too."""
    ledger, policy, left, total = now.ledger, now.policy, now.state.steps_left, now.state.total_steps
    if policy.actions.stop_settled_evals is not None or left is None or total is None or not ledger.on_probation:
        return ""
    allowed = math.floor(policy.probation.loss_budget * total) - ledger.lost - ledger.idle
    if left <= allowed:
        return ""
    return f"{left} steps are left; a manager on probation may forgo {max(0, allowed)}"


def _times(evals: int) -> str:
    return "an evaluation" if evals == 1 else f"{evals} evaluations"


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values) or "not measured"


# -- parameters --------------------------------------------------------------------------------------------------------


def resting(now: Situation, name: str) -> bool:
    """Whether a parameter was changed too recently to be changed again."""
    return corrected(now, name) or rest(now, name) > 0


def corrected(now: Situation, name: str) -> bool:
    """Whether it was changed again before its trial was over, and that is on trial: a chain of changes, each of which
    replaces the one before, would never have to prove itself."""
    on_trial = [trial for trial in now.ledger.trials if name in trial.before]
    again = len(on_trial) > 1 or any(name in trial.inherited for trial in on_trial)
    return again and now.manifest.edition > 1


def rest(now: Situation, name: str) -> int:
    """Evaluations until a parameter may be changed again; 0 or less: it may be now, unless its trial is waited for."""
    at = now.state.changed_at.get(name)
    if at is None:
        return 0
    return max(now.policy.limits.cooldown_evals, _rest(now, name)) - (now.state.evals - at)


def _rest(now: Situation, name: str) -> int:
    """Evaluations between two changes of something that was taken back: twice as many each time."""
    trust = now.ledger.trust.get(name, 1.0)
    return math.ceil(now.policy.probation.window_evals / trust) if trust < 1 else 0


def held(now: Situation, parameter: Parameter) -> bool:
    """Whether a parameter may not rise now: a learning rate while the objective diverges."""
    rate = is_rate(parameter) and not isinstance(parameter.value, str)
    return rate and now.policy.joint.no_raise_when_diverging and now.signals.diverging


def is_rate(parameter: Parameter) -> bool:
    """Whether it is a learning rate, by what was declared of it."""
    return parameter.group == "optimizer" and parameter.scale == "log" and parameter.type in ("float", "int")
