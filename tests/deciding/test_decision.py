"""When a manager is asked, and what its accepted answer puts into the control file."""

from __future__ import annotations

import math
from typing import Any

import pytest
from factories import applied, curve, end, evaluation, fold, lr, refused, situations, start, step
from factories.ledgers import answered, asked, issued, ruled
from factories.situations import manifest, situation, trigger

from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import to_json
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Actions, Cadence, Limits, Policy, Probation, Staleness
from trainmgr.deciding import asking, decision
from trainmgr.log.orders import write
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Mark, Situation

MARK = Mark(10, "aa")
ANSWER = {"diagnosis": "plateau", "evidence": "flat", "action": "adjust", "changes": {"lr": 1e-3}}


LOST = (step(1, loss=1.0), step(2, loss=math.nan), step(3, loss=math.nan))


def folded(*payloads: Any) -> Ledger:
    ledger = Ledger()
    for payload in payloads:
        ledger.fold(payload)
    return ledger


def why(state: RunState, *payloads: Any, **cadence: Any) -> str | None:
    policy = Policy(cadence=Cadence(**cadence), probation=Probation(first_evals=0))
    return trigger(state, policy, folded(*payloads))


def test_a_manager_is_asked_after_evaluations() -> None:
    state = curve([2.0, 1.9])
    assert why(RunState()) is None
    assert why(fold([start()])) is None
    assert why(state) == "evaluation"
    assert why(state, every_evals=3) is None
    assert why(state, asked(1, 20, 2), ruled(1, action="keep")) is None
    assert why(fold([evaluation(30, 1.8)], state), asked(1, 20, 2), ruled(1, action="keep")) == "evaluation"


def test_nobody_is_asked_before_anything_can_be_compared() -> None:
    def first(state: RunState, **watch: Any) -> str | None:
        return trigger(state, Policy(probation=Probation(**watch)))

    assert first(curve([2.0, 1.9, 1.8])) is None
    assert first(curve([2.0, 1.9, 1.8]), enabled=False) == "evaluation"
    assert first(curve([2.0, 1.9, 1.8, 1.7])) == "evaluation"
    assert first(curve([2.0, math.nan])) == "alarm"
    broken = fold([start(), *LOST])
    assert (first(broken), first(broken, enabled=False), first(broken, first_evals=0)) == (None, "alarm", "alarm")
    assert first(curve([math.nan] * 9)) is None  # on probation every change would be a leap in the dark
    assert first(curve([math.nan] * 9), enabled=False) == "evaluation"


def test_never_while_something_is_pending_or_over() -> None:
    state = curve([2.0, math.nan])
    assert why(state, asked(1)) is None
    assert why(state, issued(Ledger(), {"lr": 1e-3})) is None
    assert why(state, issued(Ledger(), {"lr": 1e-3}), answered(1)) is not None
    assert why(fold([end(30)], state)) is None


def test_the_least_distance_in_steps() -> None:
    state, before = curve([2.0, 1.9, 1.8]), (asked(1, 20, 2), ruled(1, action="keep"))
    assert why(state, *before, min_steps=11) is None
    assert why(state, *before, min_steps=10) == "evaluation"
    assert why(state, min_steps=500) == "evaluation"


def test_a_manager_is_not_asked_between_a_step_and_its_evaluation() -> None:
    """Else it would not see that: its distance in steps is over with the step, which is reported first."""
    before = (asked(1, 10, 1), ruled(1, action="keep"))
    state = fold([step(30, loss=1.0)], curve([2.0, 1.9]))
    assert why(state, *before, min_steps=20) is None
    policy = Policy(cadence=Cadence(min_steps=20), probation=Probation(first_evals=0))
    first = manifest(policy, manager="scripted").model_copy(update={"edition": 1})
    log = folded(events.RunStarted(manifest=first), *before)
    assert asking.trigger(Situation(state, log)) == "evaluation"  # as it was
    assert why(fold([evaluation(30, 1.8)], state), *before, min_steps=20) == "evaluation"


def test_a_restart_that_went_back_in_steps_does_not_silence_the_manager() -> None:
    state = fold([start(), step(5), evaluation(5, 2.0)], curve([2.0] * 9))
    assert state.step == 5
    assert why(state, asked(1, 90, 9), ruled(1, action="keep"), min_steps=3) == "evaluation"


def test_an_alarm_does_not_wait_and_rings_once_between_two_evaluations() -> None:
    state = fold([start(), *LOST])
    assert why(state) == "alarm"
    assert why(state, on_alarm=False) is None
    rung = (asked(1, 3, 0, "alarm"), ruled(1, action="keep"))
    assert why(fold([step(4, loss=math.nan)], state), *rung) is None
    assert why(fold([evaluation(5, 2.0), step(6, loss=math.inf)], state), *rung, every_evals=9) == "alarm"


def test_values_that_never_were_finite_or_are_again_are_no_alarm() -> None:
    never = fold([start(), *(step(i, loss=math.nan, grad_norm=math.inf) for i in range(20)), evaluation(20, math.nan)])
    assert why(never, every_evals=9) is None
    scaled = [step(i, loss=1.0, grad_norm=math.inf if i in (0, 1, 2, 15) else 1.0) for i in range(20)]
    assert why(fold([start(), *scaled, evaluation(20, 2.0)]), every_evals=9) is None
    assert why(fold([start(), *LOST, step(4, loss=1.0)]), every_evals=9) is None


def test_a_rise_of_the_objective_is_an_alarm_that_does_not_say_why_it_rose() -> None:
    state = curve([2.0, 1.0, 1.01, 1.0, 1.01, 5.0])
    assert why(state, every_evals=9) == "alarm: worsening"


def test_an_objective_that_is_not_finite_is_an_alarm_too() -> None:
    assert why(curve([2.0, math.nan]), every_evals=9) == "alarm"
    assert why(curve([2.0, math.nan, 2.0]), every_evals=9) is None
    rung = (asked(1, 20, 2, "alarm"), ruled(1, action="keep"))
    assert why(curve([2.0, math.nan]), *rung, every_evals=9) is None


def test_a_plan_asks_once_for_each_step_that_is_near() -> None:
    plan = {"every_steps": 20, "ahead_steps": 5}
    for at, expected in (
        (14, None),
        (15, "step 20 is near"),
        (19, "step 20 is near"),
        (20, None),
        (36, "step 40 is near"),
    ):
        assert why(fold([start(), step(1), evaluation(1, 2.0), step(at)]), **plan) == expected
    state = fold([start(), step(1), evaluation(1, 2.0), step(17)])
    assert why(state, asked(1, 16, 1), ruled(1, action="keep"), **plan) is None
    assert why(fold([step(35)], state), asked(1, 16, 1), ruled(1, action="keep"), **plan) == "step 40 is near"
    assert why(fold([start(), step(1), evaluation(1, 2.0), step(15)]), every_steps=20) == "step 20 is near"
    assert why(fold([start(), step(17)]), **plan) is None  # nothing was evaluated
    broken = fold([start(), step(1), evaluation(1, 2.0), *LOST])
    assert why(broken, **plan) == "alarm"


def test_ids_count_what_was_asked() -> None:
    for ledger, name in ((Ledger(), "d1"), (folded(asked(1), asked(2)), "d3")):
        assert decision.take_snapshot(situation(curve([2.0]), ledger=ledger), "evaluation")[1].decision == name
    now = situation(curve([2.0]), ledger=folded(asked(1)), mark=MARK)
    view, event = decision.take_snapshot(now, "evaluation")
    assert (event.decision, event.telemetry_offset, event.telemetry_sha256) == ("d2", 10, "aa")
    assert event.snapshot["progress"] == view.progress.model_dump()


def verdict(raw: Any, policy: Policy | None = None) -> Any:
    return situations.verdict(raw, curve([2.0, 1.9]), policy, mark=MARK, age=1.0)


def override(ruling: Any, policy: Policy, total: int | None = 1000, ledger: Ledger | None = None) -> Any:
    return situations.override(ruling, policy, ledger, at=21, based_on=20, total_steps=total)


def test_a_verdict_carries_what_may_be_applied_and_nothing_else() -> None:
    good = verdict(ANSWER)
    assert (good.result, good.changes, good.diagnosis, good.evidence) == ("accepted", {"lr": 1e-3}, "plateau", "flat")
    mixed = verdict({**ANSWER, "action": "rollback", "changes": {"lr": 1e-3, "free": 1}})
    assert (mixed.result, mixed.changes, mixed.command) == ("rejected", {}, None)
    nonsense = verdict("nonsense")
    assert (nonsense.result, nonsense.action, nonsense.diagnosis) == ("rejected", "keep", None)
    assert type(good).model_validate_json(to_json(good)) == good


@pytest.mark.parametrize(("policy", "total", "valid", "at"), [
    (Policy(), 1000, 70, None), (Policy(), 40, 30, None), (Policy(), None, None, None),
    (Policy(limits=Limits(lead_steps=5)), 1000, 70, 25), (Policy(limits=Limits(lead_steps=80)), 1000, 100, 100),
    (Policy(limits=Limits(lead_steps=5), staleness=Staleness(max_age_steps=3)), 1000, 25, 25),
    (Policy(limits=Limits(lead_steps=5)), None, None, 25),
    (Policy(cadence=Cadence(every_steps=20)), 1000, 70, 40),
    (Policy(cadence=Cadence(every_steps=100), limits=Limits(lead_steps=5)), 1000, 100, 100),
])  # fmt: skip
def test_lead_and_validity(policy: Policy, total: int | None, valid: int | None, at: int | None) -> None:
    control = override(verdict(ANSWER), policy, total).control
    assert (control.valid_until_step, control.at_step, control.based_on_step) == (valid, at, 20)
    assert (control.run, control.decision, control.revision) == ("r", "d1", 1)


def test_an_override_repeats_what_is_in_force() -> None:
    ledger = folded(issued(Ledger(), {"dropout": 0.1}), answered(1))
    control = override(verdict(ANSWER), Policy(), ledger=ledger).control
    assert (control.revision, control.params) == (2, {"dropout": 0.1, "lr": 1e-3})


def test_without_anything_to_apply_there_is_no_override() -> None:
    keep = {"diagnosis": "healthy", "evidence": "", "action": "keep"}
    for raw in (keep, "nonsense", {**ANSWER, "changes": {"lr": 1.0}}):
        assert override(verdict(raw), Policy()) is None
    free = Policy(actions=Actions(stop_settled_evals=0))
    stop = override(verdict({**ANSWER, "action": "stop", "changes": {}}, free), free)
    assert (stop.control.command.name, stop.control.params) == ("stop", {})


def test_acknowledgments() -> None:
    ledger = folded(issued(Ledger(), {"lr": 1e-3}))
    now = situation(curve([2.0]), ledger=ledger, mark=Mark(99, ""))
    done = decision.acknowledgment(applied(30, 1, {"lr": (3e-3, 1e-3)}), now)
    assert (done.decision, done.result, done.boundary, done.changes) == ("d1", "applied", "step", {"lr": (3e-3, 1e-3)})
    no = decision.acknowledgment(refused(30, 7), now)
    assert (no.decision, no.result, no.reason, no.telemetry_offset) == ("unknown", "refused", "too late", 99)


def test_an_outcome_is_recorded_once_and_only_when_measuring_ended() -> None:
    state = fold([start(lr()), evaluation(10, 2.0), applied(10, 1, {"lr": (3e-3, 1e-3)}), evaluation(20, 1.5)])
    ledger = folded(issued(Ledger(), {"lr": 1e-3}), answered(1))
    assert list(decision.outcomes(Situation(state, ledger))) == []
    fold([applied(20, 2, {"lr": (1e-3, 2e-3)})], state)
    (outcome,) = decision.outcomes(Situation(state, ledger))
    assert (outcome.decision, outcome.before, outcome.after, outcome.closed) == ("d1", 2.0, [(20, 1.5)], "next change")
    ledger.fold(outcome)
    assert list(decision.outcomes(Situation(state, ledger))) == []


def test_the_control_file_is_private_and_reads_back(tmp_path: Any) -> None:
    control = override(verdict(ANSWER), Policy()).control
    paths = RunPaths(tmp_path)
    write(paths, control)
    assert protocol.Control.model_validate_json(paths.control.read_bytes()) == control
    assert paths.control.stat().st_mode & 0o777 == 0o600
