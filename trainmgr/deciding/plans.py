"""A parameter that is brought to a value little by little: what may be planned, and the next part of the way. Pure.

A plan is one decision. Its first part is in the override of that decision; from then on there is one part for each
evaluation, with the value that the way has at the evaluation after it. Each part is what one change may be: within the
bounds, the reach of one change and the joint rules of that moment. Where these do not allow the whole of it, it goes as
far as they do, and the next part makes up for it.
"""

from __future__ import annotations

from trainmgr.base.errors import PolicyError
from trainmgr.base.wire import Value, quoted, same
from trainmgr.contract import events
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.proposal import Plan
from trainmgr.contract.protocol import Issued
from trainmgr.deciding import allowed, control
from trainmgr.state.plans import Underway
from trainmgr.state.signals import rounded
from trainmgr.state.situation import Situation

# -- what may be planned -----------------------------------------------------------------------------------------------


def unplannable(parameter: Parameter) -> str | None:
    """Why nothing can be planned for a parameter, whatever the target; None where something can."""
    name, value = parameter.name, parameter.value
    if parameter.type not in ("float", "int"):
        return f"{name} is a {parameter.type}: there is nothing between its values"
    if not _is_number(value):
        return f"{name} is at {quoted(value)}, which is no number"
    if parameter.scheduled:
        return f"the script itself moves {name}: change it at once, and its schedule goes on from there"
    if value == parameter.off:
        return f"{name} is off: it has to be switched on at once first"
    return None


def too_far_off(plan: Plan, now: Situation) -> str | None:
    """What is wrong with the step at which a plan is to be there."""
    state, total = now.state, now.state.total_steps
    if plan.by_step <= state.step:
        return f"by step {plan.by_step}, and the workload is at step {state.step}"
    if total is not None and not state.overrun and plan.by_step > total:
        return f"by step {plan.by_step}, and {total} steps are planned"
    return None


# -- carried out -------------------------------------------------------------------------------------------------------


def first(now: Situation, decision: str, found: dict[str, Plan], based_on_step: int) -> dict[str, Value]:
    """The first part of each plan of a decision, by parameter: it may be the value of now, where the way is long."""
    due = now.policy.due(based_on_step)
    parts: dict[str, Value] = {}
    for name, plan in found.items():
        parameter = now.space.parameters.get(name)
        if parameter is None:  # somebody wrote the log anew
            continue
        value = parameter.value
        if _is_number(value):
            begun = Underway(plan, decision, float(value), based_on_step, at=based_on_step)
            part = _part(now, parameter, begun, now.state.step if due is None else due)
            parts[name] = value if part is None else part
    return parts


def going_on(now: Situation, issued: Issued) -> events.OverrideIssued | None:
    """The next part of all plans in force, once for each evaluation; None where nothing is to be moved now."""
    changes = next_parts(now)
    if not changes:
        return None
    ledger, step = now.ledger, now.state.evaluations[-1].step
    content = control.next_control(
        ledger,
        now.manifest.id,
        f"plan{ledger.revision + 1}",
        changes=changes,
        command=None,
        issued=issued,
        based_on_step=step,
        valid_until_step=None,  # late or not, it is on the way
        at_step=now.policy.due(step),
    )
    return events.OverrideIssued(
        decision=content.decision,
        origin="plan",
        control=content,
        plans={name: ledger.plans.underway[name].decision for name in changes},
        telemetry_offset=now.mark.offset,
        telemetry_sha256=now.mark.sha256,
    )


def next_parts(now: Situation) -> dict[str, Value]:
    """What the plans in force set their parameters to now; empty where nothing is due, or nothing may be done."""
    state, ledger = now.state, now.ledger
    if not ledger.plans.underway or not state.evaluations or not _may_act(now):
        return {}
    last = state.evaluations[-1].step
    due = now.policy.due(last)
    try:
        space = now.space.parameters
    except PolicyError:  # after an attach to a script that declares something else
        return {}
    parts: dict[str, Value] = {}
    for name, found in ledger.plans.underway.items():
        if last <= found.at or why_over(now, name, found) or name not in space:
            continue
        parameter = space[name]
        part = _part(now, parameter, found, last if due is None else due)
        if part is None:
            continue
        arrives = part == found.plan.to and ledger.in_force.get(name) != part
        if arrives or not same(part, parameter.value):
            parts[name] = part
    return parts


def in_force(now: Situation, name: str) -> Plan | None:
    """Where a parameter is being brought; None where it stays."""
    found = now.ledger.plans.underway.get(name)
    return found.plan if found is not None and why_over(now, name, found) is None else None


def over(now: Situation) -> events.PlanEnded | None:
    """The first plan in force that the workload does not let go on, as the event to put on record."""
    if now.state.start is None:
        return None
    for name, found in now.ledger.plans.underway.items():
        if (why := why_over(now, name, found)) is not None:
            return events.PlanEnded(
                decision=found.decision,
                name=name,
                why=why,
                telemetry_offset=now.mark.offset,
                telemetry_sha256=now.mark.sha256,
                step=now.state.step,
            )
    return None


def why_over(now: Situation, name: str, found: Underway) -> str | None:
    """Why a plan in force cannot go on; None where it can."""
    if found.refused:
        return f"the workload refused a part of it: {found.refused}"
    parameter = now.declared.parameters.get(name)
    if parameter is None:
        return "the script does not declare the parameter any more"
    last = next((item for item in reversed(now.state.interventions) if name in item.changes), None)
    if last is not None and name in last.lost:
        step, value = last.lost[name]
        return f"something in the script overwrote it: it was {value} at step {step}"
    return unplannable(parameter) or parameter.objection(found.plan.to)


def _may_act(now: Situation) -> bool:
    """Whether nothing else has to be done or waited for first."""
    state, ledger = now.state, now.ledger
    over = state.start is None or state.end is not None or state.stopped_at is not None
    ours = ledger.due is not None or ledger.carrying is not None or ledger.challenged
    return not over and not ours and not ledger.ending and not ledger.demoted and ledger.outstanding is None


def _part(now: Situation, parameter: Parameter, found: Underway, at: int) -> Value | None:
    """What takes effect at the step ``at``: never away from the target, and no further than one change may go. None
    where it may not move at all."""
    value = parameter.value
    assert not isinstance(value, str)
    step = _next_evaluation(now, parameter, at)
    target = found.plan.to
    wanted = rounded(value if step is None else found.value_at(step))
    wanted = min(max(wanted, target), value) if value >= target else max(min(wanted, target), value)
    there = wanted == rounded(target) and parameter.too_far(target, value) is None
    part = target if there else parameter.clip(float(wanted), value)
    if parameter.objection(part) is not None:
        return None
    assert not isinstance(part, str)
    return None if part > value and allowed.held(now, parameter) else part


def _next_evaluation(now: Situation, parameter: Parameter, at: int) -> int | None:
    """The step of the first evaluation behind ``at``, as far apart as the last two were; None where nobody knows.

    A coarser boundary than any step is one evaluation later: what is issued now takes effect there.
    """
    spacing = now.state.spacing
    if spacing is None:
        return None
    last = now.state.evaluations[-1].step
    ahead = max(0, (at - last) // spacing) + 1 + (parameter.boundary != "step")
    return last + ahead * spacing


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
