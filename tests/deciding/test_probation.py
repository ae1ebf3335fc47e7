"""What harmed is taken back, and what did not help; no manager may lose more than was declared."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import factories
import pytest
from factories import applied, augment, checkpoint, dropout, ema, evaluation, everything, lr, start, step, view
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ledger import asked, ruled

from trainmgr.base.wire import Value
from trainmgr.contract import events, protocol
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Actions, Limits, Policy, Probation
from trainmgr.contract.run_file import Manifest
from trainmgr.deciding import decision, guard
from trainmgr.deciding.decision import Mark
from trainmgr.managers import prompt
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.terminal import display

TOTAL = factories.TOTAL
FLAT = [4.0, 4.02, 3.98, 4.0, 4.01, 4.0]
RATE = lr(value=1e-3)
NO_ROLLBACK = ["stop"]
KEEPS = ["checkpoint", "rollback", "stop"]


class Run:
    """Both folds side by side, as a supervisor and a workload that does at once what it is told would drive them."""

    def __init__(
        self,
        *parameters: Parameter,
        policy: Policy | None = None,
        shadow: bool = False,
        manager: str = "adversary",
        **begun: Any,
    ) -> None:
        self.policy, self.state, self.ledger = policy or Policy(), RunState(), Ledger()
        self.log: list[events.Payload] = []
        self.obeys, self.manager, self.at = True, manager, 0
        self.fold(start(*(parameters or (RATE, dropout(value=0.1))), **begun))
        manifest = Manifest(
            version="0", id="r", created=0.0, command=[], script="x", arguments=[], directory=".", seed=1, git=None,
            python="3", packages={}, machine={}, manager=self.manager, mode="shadow" if shadow else "auto",
            policy=self.policy,
        )  # fmt: skip
        self.tell(events.RunStarted(manifest=manifest))

    def fold(self, record: Any) -> None:
        self.state.fold(record.model_copy(update={"seq": self.state.next_seq}))
        if isinstance(record, protocol.Applied | protocol.Refused):
            self.tell(decision.acknowledgment(record, self.state, self.ledger, 0))
            self.own()
        for outcome in decision.outcomes(self.state, self.ledger, 0):
            self.tell(outcome)
        while isinstance(record, protocol.Eval) and (event := self.due()) is not None:
            self.tell(event)
            self.own()

    def due(self) -> Any:
        return decision.watched(self.state, self.ledger, self.policy, Mark(0, ""))

    def tell(self, payload: events.Payload) -> None:
        self.log.append(payload)
        self.ledger.fold(payload)

    def own(self) -> None:
        event = decision.own(self.ledger, run="r", issued=protocol.Issued(t=0.0, step=self.state.step))
        if event is not None:
            self.tell(event)
            self.obey()

    def obey(self) -> None:
        """The workload applies what is outstanding."""
        control = self.ledger.outstanding
        if control is None or not self.obeys:
            return
        changes = {n: (self.state.recipe[n], v) for n, v in control.params.items() if self.state.recipe[n] != v}
        self.fold(applied(self.state.step, control.revision, changes).model_copy(update={"command": control.command}))
        if control.keep and self.state.start is not None and "checkpoint" in self.state.start.commands:
            saved = checkpoint(self.state.step, best=False)
            self.fold(saved.model_copy(update={"path": f"checkpoints/{control.keep}.pt"}))

    def measure(self, *values: float | None, best: bool = False) -> Run:
        """Evaluations, ten steps apart; with ``best`` each new best is saved."""
        for value in values:
            self.at += 10
            self.fold(step(self.at, loss=1.0))
            before = self.state.best
            self.fold(evaluation(self.at, value) if value is not None else evaluation(self.at, other=1.0))
            if best and self.state.best != before:
                self.fold(checkpoint(self.at))
        return self

    def change(self, action: str = "adjust", to: str | None = None, **changes: Value) -> Run:
        """A change of the manager that the guard accepts, applied at once."""
        raw = {"diagnosis": "unclear", "evidence": "", "action": action, "changes": changes, "to": to}
        _, taken = decision.take_snapshot(self.state, self.ledger, self.policy, Mark(0, ""), "evaluation")
        self.tell(taken)
        ruling = decision.verdict(raw, self.state, self.ledger, self.policy, Mark(0, ""), decision=taken.decision,
                                  based_on_step=self.state.step, age_seconds=0.0)  # fmt: skip
        assert [check.reason for check in ruling.checks if not check.ok] == []
        self.apply(ruling)
        return self

    def apply(self, ruling: events.Verdict) -> None:
        self.tell(ruling)
        issued = decision.override(ruling, self.ledger, self.policy, run="r", based_on_step=self.state.step,
                                   issued=protocol.Issued(t=0.0, step=self.state.step), total_steps=TOTAL,
                                   commands=self.state.space.commands)  # fmt: skip
        if issued is not None:
            self.tell(issued)
            self.obey()

    def of(self, kind: Callable[..., Any]) -> list[Any]:
        return [payload for payload in self.log if isinstance(payload, kind)]  # type: ignore[arg-type]

    @property
    def reversals(self) -> list[events.Reverted]:
        return self.of(events.Reverted)


def learned(*parameters: Parameter, **more: Any) -> Run:
    """A run that has levelled off, with its best checkpoint at the third evaluation."""
    return Run(*parameters, **more).measure(*FLAT, best=True)


# -- harm ----------------------------------------------------------------------------------------------------------


def test_a_change_that_harms_is_taken_back_with_the_checkpoint() -> None:
    run = learned().change(lr=2e-3, dropout=0.3)
    assert run.measure(4.2).reversals == []  # once is not yet harm
    (back,) = run.measure(4.2).reversals
    assert (back.decisions, back.revisions, back.since, back.step) == (["d1"], [1], 60, 80)
    assert (back.forecast, back.measured) == (pytest.approx(4.0, abs=0.02), 4.2)
    assert 0.03 * 4.0 <= back.tolerance < 0.2
    assert back.parameters == {"lr": 1e-3, "dropout": 0.1}
    assert back.command == protocol.Command(id="probation2", name="rollback", to="best")
    assert (back.why, back.lost, back.lost_in_all, back.demoted) == ("harm", 50, 50, False)  # the best is of step 30
    assert back.trust == run.ledger.trust == {"lr": 0.5, "dropout": 0.5}
    assert run.state.recipe == {"lr": 1e-3, "dropout": 0.1}
    (override,) = [o for o in run.of(events.OverrideIssued) if o.origin == "probation"]
    assert (override.decision, override.control.command) == ("probation2", back.command)
    assert override.control.params == {"lr": 1e-3, "dropout": 0.1}
    assert (run.ledger.trials, run.ledger.due, run.ledger.carrying) == ([], None, None)
    assert run.ledger.taken_back == {1: "harm"}
    run.measure(4.0, 4.5, 4.6, 5.0)  # what was taken back is not watched, and what takes back is neither
    assert len(run.reversals) == 1


def test_the_forecast_is_on_record_with_the_acknowledgment() -> None:
    run = learned().change(lr=2e-3)
    (change,) = run.of(events.Acknowledged)
    assert change.forecast is not None
    assert (change.forecast.evals, change.forecast.slope) == (6, 0.0)
    assert change.forecast == run.ledger.trials[0].forecast


@pytest.mark.parametrize(("value", "taken_back"), [
    (4.05, False), (4.2, False), (4.9, True), (math.nan, True), (math.inf, True), (-math.inf, True), (3.0, False),
])  # fmt: skip
def test_a_catastrophe_does_not_wait(value: float, taken_back: bool) -> None:
    assert bool(learned().change(lr=2e-3).measure(value).reversals) is taken_back


def test_a_change_that_does_not_stop_what_went_wrong_before_is_not_its_cause() -> None:
    run = Run().measure(4.0, 4.1, 4.2, 4.3, 4.4, best=True).change(lr=9e-4).measure(4.5, 4.6, 4.7, 4.8)
    assert run.reversals == []
    (back,) = run.measure(4.9).reversals
    assert (back.why, back.forecast, back.lost, back.idle) == ("no proof", pytest.approx(4.9), 0, 50)


def test_what_stops_a_run_from_learning_is_harm_too() -> None:
    run = Run().measure(*(8.0 - 0.4 * i for i in range(8)), best=True).change(lr=2e-4)
    run.measure(5.15, 5.12, 5.1)
    assert len(run.reversals) == 1


def test_more_may_be_better() -> None:
    run = Run(mode="max").measure(*(10 - value for value in FLAT), best=True).change(lr=2e-3)
    assert run.measure(6.5, 6.6, 6.4, 6.5, 6.7).reversals == []
    assert len(run.of(events.Kept)) == 1
    run = Run(mode="max").measure(*(10 - value for value in FLAT), best=True).change(lr=2e-3)
    assert run.measure(5.7, 5.7).reversals[0].measured == 5.7


def test_a_declared_scale_is_what_counts() -> None:
    goal = protocol.Objective(metric="val", mode="max", scale=1.0)
    values = [0.01, 0.02, 0.0, 0.01, 0.02, 0.01]
    run = Run(objective=goal).measure(*values, best=True).change(lr=2e-3).measure(-0.015, -0.015)
    assert run.reversals == []
    assert Run(objective=goal).measure(*values, best=True).change(lr=2e-3).measure(-0.5).reversals


def test_nothing_but_a_lasting_catastrophe_stands_out_before_the_noise_is_known() -> None:
    assert Run().measure(4.0, 4.0, best=True).change(lr=2e-3).measure(4.2, 4.2, 4.2, 4.2).reversals == []
    run = Run().measure(4.0, best=True).change(lr=2e-3)
    assert run.measure(4.6).reversals == []
    assert run.measure(4.6).reversals
    assert Run().measure(4.0, best=True).change(lr=2e-3).measure(math.nan).reversals


@pytest.mark.parametrize("before", [[], [math.nan], [None]])
def test_without_a_forecast_nothing_is_blamed(before: list[float | None]) -> None:
    run = Run().measure(*before)
    run.change(lr=9e-4)
    assert run.measure(9.0, math.nan, 9.0, 9.0, 9.0).reversals == []
    assert [kept.forecast for kept in run.of(events.Kept)] == [None]


def test_after_a_value_that_was_not_finite_only_what_is_near_the_best_is_good() -> None:
    def after(*values: float | None) -> list[events.Reverted]:
        run = learned(commands=KEEPS).measure(math.nan).change("rollback", to="initial", lr=9e-4).measure(*values)
        assert len(run.of(events.Kept)) + len(run.reversals) <= 1
        return run.reversals

    assert after(9.0, 6.0, 5.0, 4.2, 4.05) == []
    for values in ([9.0] * 5, [4.0, 4.0, 4.0, 4.0, math.nan]):
        (back,) = after(*values)
        assert (back.why, back.command and back.command.to) == ("no proof", "best")  # not the broken weights of before
    assert after(None, None, None, None, None) == []  # nothing was measured yet


def test_evaluations_without_the_objective_are_no_measurement() -> None:
    assert learned().change(lr=2e-3).measure(4.2, None, None, 4.2).reversals[0].step == 100


# -- proof ---------------------------------------------------------------------------------------------------------


def test_a_new_best_is_proof() -> None:
    run = learned().change(lr=9e-4).measure(4.0, 3.9, 4.0, 4.0, 4.0)
    assert (run.reversals, len(run.of(events.Kept))) == ([], 1)


def test_a_new_best_proves_the_recipe_that_it_was_measured_with() -> None:
    """And not that of before later changes, which nobody has tried."""
    run = learned().change(lr=2e-3).measure(4.0).change(dropout=0.3).measure(3.5).change(lr=1e-3).measure(3.5, 3.5, 3.5)
    (kept,) = run.of(events.Kept)
    assert (kept.decisions, kept.trials) == (["d1", "d2"], 2)
    assert [trial.decisions for trial in run.ledger.trials] == [("d3",)]
    (back,) = run.measure(9.0).reversals
    assert (back.decisions, run.state.recipe) == (["d3"], {"lr": 2e-3, "dropout": 0.3})


def test_a_new_best_is_no_proof_where_learning_has_become_slow() -> None:
    falling = [8.0, 7.6, 7.24, 6.9, 6.6, 6.3, 6.0, 5.7]
    run = Run().measure(*falling, best=True).change(lr=1e-4)
    assert run.ledger.trials[0].forecast.at(5) == pytest.approx(4.9, abs=0.15)
    watch = run.policy.probation.model_copy(update={"tolerance": 0.2})  # so that it is no harm
    run.policy = run.policy.model_copy(update={"probation": watch})
    assert [back.why for back in run.measure(5.65, 5.6, 5.55, 5.5, 5.45).reversals] == ["no proof"]
    run = Run().measure(*falling, best=True).change(lr=9e-4).measure(5.5, 5.35, 5.2, 5.1, 5.0)
    assert len(run.of(events.Kept)) == 1


def test_a_new_best_within_the_noise_is_none() -> None:
    run = learned().change(lr=9e-4).measure(4.0, 3.975, 4.0, 4.0, 4.0)
    assert [back.why for back in run.reversals] == ["no proof"]


def test_to_stop_a_rise_near_the_best_is_proof() -> None:
    run = Run().measure(4.0, 4.02, 4.04, 4.06, 4.08, best=True).change(lr=9e-4).measure(*[4.08] * 5)
    assert (run.reversals, len(run.of(events.Kept))) == ([], 1)


def test_to_stop_a_rise_far_from_the_best_is_promising_until_it_has_cost_too_much() -> None:
    """Standing still may be what keeps a run from getting through to where it is good."""
    run = Run().measure(4.0, 4.5, 5.0, 5.5, 6.0, best=True).change(lr=1e-4).measure(*[6.0] * 10)
    assert (run.reversals, run.of(events.Kept), len(run.ledger.trials)) == ([], [], 1)
    (back,) = run.measure(6.0).reversals  # 110 of 1,000 steps since
    assert (back.why, back.lost, back.idle, back.demoted, back.command) == ("no proof", 0, 110, False, None)
    assert run.state.recipe["lr"] == 1e-3
    run = Run(total_steps=None).measure(4.0, 4.5, 5.0, 5.5, 6.0, best=True).change(lr=1e-4).measure(*[6.0] * 9)
    assert run.reversals == []
    assert run.measure(6.0).reversals


def test_what_was_promising_may_become_good() -> None:
    run = Run().measure(4.0, 4.5, 5.0, 5.5, 6.0, best=True).change(lr=1e-4).measure(5.5, 5.0, 4.9, 4.8, 4.7, 4.4, 3.9)
    assert (run.reversals, len(run.of(events.Kept))) == ([], 1)


def test_trials_that_bring_nothing_have_a_budget_of_their_own_from_the_third_on() -> None:
    for budget in (0.0, 0.2):
        run = learned(RATE, total_steps=900, policy=Policy(probation=Probation(idle_budget=budget)))
        for idle, wait in ((50, 10), (100, 20), (150, 40)):
            (*_, back) = run.change(lr=9e-4).measure(*[4.0] * 5).reversals
            assert (back.lost_in_all, back.idle_in_all, back.demoted) == (0, idle, not budget and idle > 100)
            run.measure(*[4.0] * wait)


# -- the weights of before -----------------------------------------------------------------------------------------


def test_the_weights_of_before_are_kept_and_come_back() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3).measure(4.1).change(dropout=0.2)
    assert [o.control.keep for o in run.of(events.OverrideIssued)] == ["trial", None]  # the oldest's are what counts
    (back,) = run.measure(9.0).reversals
    assert back.command == protocol.Command(id="probation3", name="rollback", to="checkpoints/trial.pt")
    assert (back.lost, run.ledger.lost) == (20, 20)
    assert (run.state.lineage.undone, run.state.lineage.set_back) == (20, 20)
    assert [value for _, value in run.state.lineage.course] == FLAT


def test_a_later_best_is_better_than_the_weights_of_before() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3).measure(3.5, best=True).measure(9.0)
    (back,) = run.reversals
    assert (back.command and back.command.to, back.lost) == ("best", 10)


def test_a_rollback_that_brought_nothing_is_undone() -> None:
    run = learned(commands=KEEPS).change("rollback", to="initial")
    (change,) = run.of(events.Acknowledged)
    assert change.undone == 50  # the first checkpoint is of step 10
    (back,) = run.measure(4.0, 4.0, 4.0, 4.0, 4.0).reversals
    assert (back.why, back.command and back.command.to) == ("no proof", "checkpoints/trial.pt")
    assert (back.lost, run.state.lineage.set_back, run.ledger.trust) == (50, 50, {"rollback": 0.5})


def test_without_them_what_a_rollback_undid_is_lost() -> None:
    run = learned().change("rollback", to="best")
    (back,) = run.measure(4.0, 4.0, 4.0, 4.0, 4.0).reversals
    assert (back.why, back.command, back.lost) == ("no proof", None, 80)


@pytest.mark.parametrize("how", ["not on probation", "not wanted", "of an earlier trial"])
def test_when_nothing_is_kept(how: str) -> None:
    watch = Probation(enabled=how != "not on probation", checkpoint=how != "not wanted")
    run = learned(commands=KEEPS, policy=Policy(probation=watch))
    if how == "of an earlier trial":
        run.change(lr=9e-4).measure(3.9, 3.9, 3.9, 3.9).change(dropout=0.2).measure(3.9)
        assert len(run.of(events.Kept)) == len(run.ledger.trials) == 1
        (back,) = run.measure(9.0).reversals
        assert back.command is not None
        assert back.command.to == "best"
        return
    assert run.change(lr=2e-3).of(events.OverrideIssued)[0].control.keep is None
    assert b"keep" not in run.of(events.OverrideIssued)[0].model_dump_json().encode()


# -- several changes -----------------------------------------------------------------------------------------------


def test_what_overlaps_is_taken_back_together_to_the_values_before_the_oldest() -> None:
    run = learned().change(lr=2e-3).measure(4.0).change(lr=4e-3, dropout=0.3).measure(4.01).change(dropout=0.2)
    (back,) = run.measure(4.9).reversals
    assert (back.decisions, back.since, back.lost) == (["d1", "d2", "d3"], 60, 60)
    assert back.parameters == {"lr": 1e-3, "dropout": 0.1}
    assert run.state.recipe == {"lr": 1e-3, "dropout": 0.1}
    assert back.trust == {"lr": 0.5, "dropout": 0.5}


def test_a_trial_ends_with_its_window() -> None:
    run = learned().change(lr=2e-3).measure(3.9, 3.9, 3.9, 3.9)
    assert run.of(events.Kept) == []
    run.change(dropout=0.3).measure(3.9)
    (kept,) = run.of(events.Kept)
    assert (kept.decisions, kept.step, kept.measured) == (["d1"], 110, 3.9)
    (back,) = run.measure(9.0).reversals
    assert (back.decisions, back.parameters) == (["d2"], {"dropout": 0.1})
    assert run.state.recipe["lr"] == 2e-3


def test_many_changes_between_two_evaluations_are_one_trial_in_constant_space() -> None:
    run = Run(RATE, policy=Policy(limits=Limits(cooldown_evals=0))).measure(*FLAT, best=True)
    for i in range(200):
        run.change(lr=1e-3 * 1.001 ** (i + 1))
    (trial,) = run.ledger.trials
    assert (trial.before, len(trial.revisions), len(run.state.interventions)) == ({"lr": 1e-3}, 32, 16)
    (back,) = run.measure(9.0).reversals
    assert back.parameters == {"lr": 1e-3}


def test_a_change_on_its_way_is_taken_back_before_it_takes_effect() -> None:
    run = learned().change(lr=2e-3).measure(4.2)
    run.obeys = False
    run.change(dropout=0.3)
    assert run.ledger.outstanding is not None
    run.obeys = True
    (back,) = run.measure(4.2).reversals
    assert back.decisions == ["d1"]
    assert back.parameters == {"dropout": 0.1, "lr": 1e-3}
    assert run.ledger.in_force == {"lr": 1e-3, "dropout": 0.1}


def test_a_change_that_slipped_through_is_taken_back_too() -> None:
    run = learned().change(lr=2e-3).measure(4.2)
    run.obeys = False
    run.change(dropout=0.3).measure(4.2)
    assert run.ledger.outstanding is not None
    assert run.ledger.outstanding.revision == 3
    run.fold(applied(run.at, 2, {"dropout": (0.1, 0.3)}))  # it was faster than the control file
    assert run.ledger.carrying is not None
    run.obeys = True
    run.obey()
    assert run.state.recipe == {"lr": 1e-3, "dropout": 0.1}
    assert run.ledger.trials == []


def test_an_answer_to_what_was_seen_before_is_refused() -> None:
    run = learned().change(lr=2e-3).measure(4.2)
    run.tell(asked(2, 70, 7))
    run.measure(4.2)
    raw = {"diagnosis": "unclear", "evidence": "", "action": "adjust", "changes": {"dropout": 0.2}}
    judged = guard.judge(raw, run.state, run.ledger, run.policy, decision="d2", based_on_step=80, age_seconds=0.0)
    assert [check.name for check in judged.checks if not check.ok] == ["fresh"]
    approved = ruled(2).model_copy(update={"changes": {"dropout": 0.2}})  # by a person, on what was judged before
    assert decision.override(approved, run.ledger, run.policy, run="r", based_on_step=70, total_steps=TOTAL,
                             issued=protocol.Issued(t=0.0, step=80)) is None  # fmt: skip
    run.change(dropout=0.2)
    assert run.state.recipe["dropout"] == 0.2


def test_nobody_is_asked_while_changes_are_taken_back() -> None:
    run = learned().change(lr=2e-3)
    run.obeys = False
    run.measure(4.2, 4.2, 4.2, 9.0)
    assert len(run.reversals) == 1
    assert decision.trigger(run.state, run.ledger, run.policy) is None
    run.obeys = True
    run.obey()
    assert decision.trigger(run.state, run.ledger, run.policy) is not None


# -- what the workload can do --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["no rollback offered", "the policy forbids it", "no best checkpoint"])
def test_without_a_way_back_the_values_go_back_alone(how: str) -> None:
    policy = Policy(actions=Actions(rollback=how != "the policy forbids it"))
    commands = NO_ROLLBACK if how == "no rollback offered" else ["rollback", "stop"]
    run = Run(policy=policy, commands=commands).measure(*FLAT, best=how != "no best checkpoint").change(lr=2e-3)
    (back,) = run.measure(9.0).reversals
    assert (back.command, back.parameters, back.lost) == (None, {"lr": 1e-3}, 10)
    assert run.state.recipe["lr"] == 1e-3


def test_going_back_to_the_beginning_is_taken_back_too() -> None:
    run = learned().change("rollback", to="initial")
    (back,) = run.measure(7.0).reversals
    assert (back.parameters, back.command and back.command.to) == ({}, "best")
    assert run.ledger.trust == {"rollback": 0.5}
    run.measure(4.0, 4.0, 4.0)
    reason = "the last rollback was 3 evaluations ago; 10 are required"
    assert view(run.state, run.policy, run.ledger).unavailable["rollback"] == reason


def test_a_best_that_came_after_the_change_is_where_it_goes_back_to() -> None:
    run = learned().change(lr=2e-3).measure(3.5, 3.4, best=True).measure(9.0)
    assert run.reversals[0].lost == 10


def test_where_the_weights_of_before_are_gone_the_best_are_tried() -> None:
    run = learned(commands=KEEPS).change("rollback", to="initial")
    run.obeys = False
    run.measure(9.0)
    run.fold(factories.refused(run.at, 2))
    assert run.ledger.outstanding is not None
    assert run.ledger.outstanding.command == protocol.Command(id="probation2", name="rollback", to="best")
    run.fold(factories.refused(run.at, 3))
    assert (run.ledger.outstanding, run.ledger.due) == (None, None)


def test_a_rollback_that_fails_leaves_the_values_to_be_put_back() -> None:
    run = learned().change(lr=2e-3)
    run.obeys = False
    run.measure(9.0)
    run.fold(factories.refused(run.at, 2))
    assert run.ledger.outstanding is not None
    assert (run.ledger.outstanding.revision, run.ledger.outstanding.command) == (3, None)
    assert run.ledger.outstanding.params == {"lr": 1e-3}
    run.fold(factories.refused(run.at, 3))
    assert (run.ledger.outstanding, run.ledger.due) == (None, None)
    assert run.ledger.in_force == {"lr": 2e-3}


def test_values_that_a_parameter_cannot_have_are_not_put_back() -> None:
    run = Run(RATE, dropout()).measure(*FLAT)
    run.fold(evaluation(60, 4.0, params={"dropout": 7.0}))
    run.change(lr=2e-3, dropout=0.5)
    assert run.measure(9.0).reversals[0].parameters == {"lr": 1e-3}


def test_what_was_on_trial_when_the_workload_crashed_goes_back_and_counts() -> None:
    run = learned().change(lr=2e-3).measure(4.0)
    back = decision.crashed(run.state, run.ledger, Mark(0, ""))
    assert back is not None
    assert (back.why, back.parameters, back.command, back.lost) == ("crash", {"lr": 1e-3}, None, 10)
    run.tell(back)
    run.tell(events.Restarted(attempt=1, exit="crashed", resume="checkpoints/x"))
    run.fold(start(lr(value=2e-3), dropout(value=0.1), resumed=protocol.Resumed(path="checkpoints/x", step=30)))
    run.own()
    assert (run.state.recipe["lr"], run.ledger.lost, run.ledger.trust) == (1e-3, 10, {"lr": 0.5})
    assert run.measure(9.0, 9.0).of(events.Reverted) == [back]
    assert decision.crashed(run.state, run.ledger, Mark(0, "")) is None


def test_after_a_restart_nothing_is_on_trial_and_what_was_on_its_way_still_comes() -> None:
    run = learned().change(lr=2e-3)
    run.obeys = False
    run.measure(9.0)
    run.tell(events.Restarted(attempt=1, exit="crashed", resume="checkpoints/x"))
    event = decision.own(run.ledger, run="r", issued=protocol.Issued(t=0.0, step=0))
    assert event is not None
    assert (event.control.revision, event.control.params) == (3, {"lr": 1e-3})
    assert event.control.command is not None


@pytest.mark.parametrize("payload", [events.Operator(action="stop"), events.Stalled(seconds=9.0, step=1),
                                     events.Failure(where="policy", message="no such parameter")])  # fmt: skip
def test_nothing_is_taken_back_of_a_run_that_is_being_ended(payload: events.Payload) -> None:
    run = learned().change(lr=2e-3)
    run.tell(payload)
    assert run.measure(9.0, 9.0).reversals == []


def test_at_the_end_it_is_too_late() -> None:
    run = learned(total_steps=90).change(lr=2e-3).measure(4.1, 4.0)
    assert run.measure(9.0).reversals == []


def test_near_the_end_nothing_is_changed_any_more() -> None:
    run = learned(total_steps=89)
    seen = view(run.state, run.policy, run.ledger)
    assert seen.actions == ["keep"]
    assert seen.unavailable["adjust"] == "fewer than 3 evaluations are left to judge it" == seen.unavailable["rollback"]
    assert "adjust" in view(learned(total_steps=90).state, run.policy, run.ledger).actions
    known = learned(total_steps=89, manager="rules")
    assert "adjust" in view(known.state, known.policy, known.ledger).actions


def test_without_probation_nothing_is_watched() -> None:
    run = learned(policy=Policy(probation=Probation(enabled=False))).change(lr=2e-3).measure(9.0, 9.0)
    assert (run.reversals, run.ledger.trials) == ([], [])
    assert b"forecast" not in run.of(events.Acknowledged)[0].model_dump_json().encode()


# -- trust ---------------------------------------------------------------------------------------------------------


def test_trust_shrinks_to_a_floor_and_narrows_what_may_be_asked_for() -> None:
    run = learned(RATE, policy=Policy(probation=Probation(loss_budget=1.0)), commands=KEEPS, total_steps=9999)
    for expected in (0.5, 0.25, 0.125, 0.0625, 0.0625):
        high = view(run.state, run.policy, run.ledger).recipe[0].reach_high
        assert high is not None
        run.change(lr=high).measure(9.0, *[4.0] * 80)
        assert run.ledger.trust == {"lr": expected}
    row = view(run.state, run.policy, run.ledger).recipe[0]
    assert row.reach_high == pytest.approx(1e-3 * 2**0.0625, rel=1e-5)
    raw = {"diagnosis": "unclear", "evidence": "", "action": "adjust", "changes": {"lr": 2e-3}}
    run.tell(asked(9, run.at))
    judged = guard.judge(raw, run.state, run.ledger, run.policy, decision="d9", based_on_step=run.at, age_seconds=0.0)
    assert [check.name for check in judged.checks if not check.ok] == ["step size"]


def test_trust_grows_again_with_what_proved_itself() -> None:
    run = learned(RATE, policy=Policy(probation=Probation(challenge_evals=0))).change(lr=2e-3).measure(9.0, 4.0)
    run.measure(*[4.0] * 10).change(lr=9e-4).measure(3.9, 3.8, 3.7, 3.6, 3.5)
    (kept,) = run.of(events.Kept)
    assert kept.trust == {"lr": 0.75}
    run.measure(*[3.5] * 12).change(lr=8e-4).measure(3.4, 3.3, 3.2, 3.1, 3.0)
    assert run.of(events.Kept)[-1].trust == {"lr": 1.0}
    assert run.ledger.trust == {}


def test_what_did_not_help_is_trusted_less_too() -> None:
    run = learned(RATE).change(lr=9e-4).measure(4.0, 4.0, 4.0, 4.0, 4.0)
    (back,) = run.reversals
    assert (back.why, back.trust, run.ledger.trust) == ("no proof", {"lr": 0.5}, {"lr": 0.5})


def test_what_was_taken_back_rests_the_longer_the_less_it_is_trusted() -> None:
    run = learned(RATE, augment(), ema()).change(augment=True, ema=0.99).measure(9.0)
    assert run.state.recipe == {"lr": 1e-3, "augment": False, "ema": 0.0}
    run.measure(*[4.0] * 9)
    rows = {row.name: row.resting for row in view(run.state, run.policy, run.ledger).recipe}
    assert rows == {"lr": False, "augment": True, "ema": True}
    run.measure(4.0)
    assert not any(row.resting for row in view(run.state, run.policy, run.ledger).recipe)


# -- the loss budget -----------------------------------------------------------------------------------------------


def ruin(run: Run, times: int) -> Run:
    for _ in range(times):
        run.change("rollback", to="initial").measure(9.0).measure(*[4.0] * 20)
    return run


def test_a_manager_that_lost_too_much_is_only_listened_to() -> None:
    policy = Policy(probation=Probation(loss_budget=0.015))
    run = Run(policy=policy, commands=KEEPS).measure(*FLAT, best=True).change(lr=2e-3).measure(9.0)
    assert (run.ledger.lost, run.ledger.demoted) == (10, False)
    run.measure(4.0, 4.0, 4.0).change(dropout=0.2).measure(9.0)
    back = run.reversals[-1]
    assert (back.lost_in_all, back.demoted, run.ledger.demoted) == (20, True, True)
    assert run.state.recipe == {"lr": 1e-3, "dropout": 0.1}
    issued = len(run.of(events.OverrideIssued))
    run.measure(*[4.0] * 8).change(lr=9e-4)
    assert len(run.of(events.OverrideIssued)) == issued
    assert decision.trigger(run.measure(4.0).state, run.ledger, run.policy) == "evaluation"
    assert run.ledger.losses() == {
        "reversals": 2,
        "steps_lost": 20,
        "steps_in_vain": 0,
        "demoted": True,
        "challenges": 0,
    }


@pytest.mark.parametrize(("fallback", "recipe"), [
    ("proven", {"lr": 9e-4, "dropout": 0.1}), ("start", {"lr": 1e-3, "dropout": 0.1}),
])  # fmt: skip
def test_what_a_run_goes_on_with_when_its_manager_is_demoted(fallback: str, recipe: dict[str, float]) -> None:
    watch = Probation.model_validate({"loss_budget": 0.0, "fallback": fallback})
    run = learned(policy=Policy(probation=watch), commands=KEEPS).change(lr=9e-4).measure(3.9, 3.9, 3.9, 3.9, 3.9)
    assert len(run.of(events.Kept)) == 1
    run.change(dropout=0.2).measure(9.0)
    assert run.ledger.demoted
    assert run.state.recipe == recipe == run.ledger.in_force


@pytest.mark.parametrize(("manager", "asked_again"), [("llm:m", False), ("local:m.gguf", False), ("random", True)])
def test_a_language_model_that_lost_too_much_is_paid_nothing_more(manager: str, asked_again: bool) -> None:
    run = learned(policy=Policy(probation=Probation(loss_budget=0.0)), manager=manager).change(lr=2e-3).measure(9.0)
    assert run.ledger.demoted
    state = run.measure(*[4.0] * 20).state
    assert (decision.trigger(state, run.ledger, run.policy) is not None) is asked_again


def test_without_a_plan_the_reversals_are_counted() -> None:
    policy = Policy(probation=Probation(max_reversals=2, window_evals=1))
    run = ruin(Run(policy=policy, total_steps=None).measure(*FLAT, best=True), 2)
    assert not run.ledger.demoted
    assert ruin(run, 1).reversals[-1].demoted


def test_what_a_scheduler_moves_is_left_to_it() -> None:
    policy = Policy(probation=Probation(loss_budget=0.0))
    run = learned(lr(value=1e-3, scheduled=True), dropout(value=0.1), policy=policy)
    run.measure(3.9, best=True)
    run.fold(evaluation(run.at, 3.95, params={"lr": 5e-4}))
    (back,) = run.change(dropout=0.3).measure(9.0).reversals
    assert (back.demoted, back.parameters) == (True, {"dropout": 0.1})


# -- the recipe of the start against that of the manager -----------------------------------------------------------


def lucky(policy: Policy | None = None, **more: Any) -> Run:
    """A run whose manager's recipe has proven itself and then brought nothing for seven evaluations."""
    run = learned(policy=policy, commands=KEEPS, **more).change(lr=9e-4).measure(3.9, 3.85, 3.8, 3.75, 3.7)
    return run.measure(3.7, 3.71, 3.69, 3.7, 3.71, 3.72, 3.7, 3.7, 3.71, 3.7)


def test_a_recipe_that_brings_nothing_new_gives_way_to_that_of_the_start() -> None:
    run = lucky()
    assert run.of(events.Challenged) == []
    (challenged,) = run.measure(3.7).of(events.Challenged)
    assert (challenged.parameters, challenged.best_step, challenged.best) == ({"lr": 1e-3}, 140, 3.69)
    override = run.of(events.OverrideIssued)[-1]
    assert (override.origin, override.control.keep, override.decision) == ("probation", "trial", challenged.decision)
    assert run.state.recipe["lr"] == 1e-3
    assert run.ledger.challenged
    assert "recipe of the start goes on trial: lr = 0.001" in (display.event_in_words(challenged, run.state) or "")
    assert decision.trigger(run.measure(3.7).state, run.ledger, run.policy) is None  # nobody may spoil it
    (kept,) = [event for event in run.measure(3.7, 3.7, 3.7, 3.7).of(events.Kept) if event.challenge]
    assert (kept.decisions, kept.trust) == ([challenged.decision], {})
    assert (run.state.recipe["lr"], run.ledger.challenged, run.ledger.trust) == (1e-3, False, {})
    assert decision.trigger(run.measure(3.7).state, run.ledger, run.policy) == "evaluation"
    assert len(run.measure(*[3.7] * 30).of(events.Challenged)) == 1  # there is nothing to be put on trial any more
    assert run.ledger.losses() == {
        "reversals": 0,
        "steps_lost": 0,
        "steps_in_vain": 0,
        "demoted": False,
        "challenges": 1,
    }


def test_where_it_is_better_the_manager_is_trusted_less() -> None:
    (kept,) = [event for event in lucky().measure(3.7, 3.6, 3.6, 3.6, 3.5, 3.5).of(events.Kept) if event.challenge]
    assert kept.trust == {"lr": 0.5}


def test_a_challenge_that_ends_in_no_number_has_lost() -> None:
    run = lucky().measure(3.7)
    assert run.ledger.challenged
    (back,) = run.measure(math.nan).reversals
    assert (back.challenge, run.state.recipe["lr"]) == (True, 9e-4)


def test_one_that_is_never_answered_keeps_the_run_from_nothing() -> None:
    run = lucky(total_steps=400)
    run.obeys = False
    run.fold(checkpoint(run.at))
    (challenged,) = run.measure(3.7).of(events.Challenged)
    assert challenged.valid_until_step == run.at + 20  # a twentieth of the run
    assert run.of(events.OverrideIssued)[-1].control.valid_until_step == run.at + 20
    run.measure(*[3.8] * 18)
    assert len(run.of(events.Ending)) == 1


def test_a_crash_on_its_way_forgets_it() -> None:
    run = lucky()
    run.obeys = False
    run.measure(3.7)
    assert isinstance(run.ledger.carrying, events.Challenged)
    run.tell(events.Restarted(attempt=1, exit="crashed", resume=None))
    assert not run.ledger.challenged
    assert run.ledger.due is None


def test_where_it_harms_the_manager_has_its_recipe_and_weights_back_and_nothing_is_held_against_it() -> None:
    run = lucky().measure(3.7, 4.0, 4.0)
    (back,) = run.reversals
    assert (back.challenge, back.why, back.lost, back.idle, back.trust, back.demoted) == (True, "harm", 0, 0, {}, False)
    assert back.command == protocol.Command(id=back.decision, name="rollback", to="checkpoints/trial.pt")
    assert (back.parameters, run.state.recipe["lr"]) == ({"lr": 9e-4}, 9e-4)
    assert run.ledger.losses()["reversals"] == 0
    assert "did harm with the recipe of the start" in display.reversal_in_words(back)
    assert len(run.measure(*[3.7] * 13).of(events.Challenged)) == 1
    assert len(run.measure(3.7).of(events.Challenged)) == 2  # after twice as many


@pytest.mark.parametrize("how", [
    "not watched", "switched off", "nothing was changed", "near the end", "refused", "no way back", "no checkpoint",
    "forbidden", "no number", "diverging",
])  # fmt: skip
def test_no_challenge_where_there_is_none_to_make(how: str) -> None:
    if how == "nothing was changed":
        run = learned(commands=KEEPS).measure(*[4.0] * 10)
    elif how == "refused":
        run = lucky()
        run.obeys = False
        run.measure(3.7)
        run.fold(factories.refused(run.at, run.ledger.revision))
        assert not run.ledger.challenged
        assert len(run.measure(3.7).of(events.Challenged)) == 1
        return
    elif how in ("no number", "diverging"):
        run = lucky()
        run.ledger.alarms = frozenset({"divergence"} if how == "diverging" else ())
        run.measure(math.nan if how == "no number" else 3.7)
    elif how in ("no way back", "no checkpoint", "forbidden"):
        run = lucky(Policy(actions=Actions(rollback=how != "forbidden")))
        assert run.state.start is not None
        left = {"no way back": ["checkpoint", "stop"], "no checkpoint": ["rollback", "stop"]}.get(how, KEEPS)
        run.state.start = run.state.start.model_copy(update={"commands": left})
        run.measure(3.7, 3.7)
    else:
        policy = Policy(probation=Probation(challenge_evals=0)) if how == "switched off" else None
        total = 250 if how == "near the end" else TOTAL
        run = lucky(policy, total_steps=total, manager="rules" if how == "not watched" else "random")
        run.measure(3.7, 3.7)
    assert run.of(events.Challenged) == []


def test_a_crash_during_it_gives_the_manager_its_recipe_back() -> None:
    run = lucky().measure(3.7, 3.7)
    back = decision.crashed(run.state, run.ledger, Mark(0, ""))
    assert back is not None
    assert (back.challenge, back.why, back.parameters, back.lost) == (True, "crash", {"lr": 9e-4}, 0)
    run.tell(back)
    run.tell(events.Restarted(attempt=1, exit="crashed", resume="checkpoints/trial.pt"))
    run.own()
    assert not run.ledger.challenged


# -- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("commands", "manager", "words"), [
    (["stop"], "llm:m", "no rollback"), (["rollback", "stop"], "llm:m", "no checkpoint"), (KEEPS, "llm:m", ""),
    ([], "rules", ""),
])  # fmt: skip
def test_what_cannot_be_taken_back_is_said(commands: list[str], manager: str, words: str) -> None:
    run, out = Run(commands=commands, manager=manager), io.StringIO()
    said = display.watched_in_words(run.state, run.ledger)
    assert (words in said) if words else not said
    lines = display.Lines(out)
    lines.event(run.log[0], run.state, run.ledger)
    lines.record(run.state.start, run.state)
    assert said in out.getvalue()


ON_BEST = Policy(actions=Actions(end_on_best=True))


def test_the_run_ends_on_its_best_where_the_policy_says_so() -> None:
    run = Run(policy=ON_BEST, total_steps=100).measure(4.0, 3.5, 3.6, 3.7, 3.6, 3.6, 3.6, 3.6, best=True)
    assert run.of(events.Ending) == []
    (ending,) = run.measure(3.6).of(events.Ending)
    assert (ending.step, ending.best, ending.best_step, ending.measured) == (90, 3.5, 20, 3.6)
    (override,) = run.of(events.OverrideIssued)
    assert (override.origin, override.control.command) == ("probation", ending.command)
    assert ending.command == protocol.Command(id="probation1", name="stop", to="best")
    assert len(run.measure(3.7).of(events.Ending)) == 1


def test_a_run_whose_manager_changed_nothing_is_left_alone() -> None:
    for policy, ended in ((Policy(), 0), (ON_BEST, 1)):
        run = Run(policy=policy, total_steps=50).measure(4.0, 3.5, 3.6, 3.6, best=True)
        assert len(run.of(events.Ending)) == ended
    for manager, ended in (("adversary", 1), ("rules", 0)):
        run = learned(total_steps=130, manager=manager).change(lr=9e-4).measure(3.9, 3.9, 3.9, 3.9, 3.9, 3.95)
        assert len(run.of(events.Ending)) == ended


@pytest.mark.parametrize("how", ["on its best", "shadow", "no stop", "no checkpoint", "no plan", "not asked for"])
def test_it_goes_on_where_there_is_nothing_to_be_won(how: str) -> None:
    run = Run(
        policy=Policy(actions=Actions(end_on_best=False)) if how == "not asked for" else ON_BEST,
        shadow=how == "shadow",
        commands=["rollback"] if how == "no stop" else ["rollback", "stop"],
        total_steps=None if how == "no plan" else 50,
    )
    values = [4.0, 3.9, 3.8, 3.7] if how == "on its best" else [4.0, 3.5, 3.6, 3.6]
    assert run.measure(*values, best=how != "no checkpoint").of(events.Ending) == []


def test_a_stop_of_the_manager_is_on_the_best_then() -> None:
    raw = {"diagnosis": "plateau", "evidence": "", "action": "stop"}
    run = learned(policy=ON_BEST).measure(*[4.0] * 5)
    judged = guard.judge(raw, run.state, run.ledger, run.policy, decision="d1", based_on_step=run.at, age_seconds=0.0)
    assert judged.command == protocol.Command(id="d1", name="stop", to="best")


def test_a_promising_run_cannot_be_stopped() -> None:
    run = Run().measure(4.0, 3.9, 3.8, best=True)
    assert "stop" not in view(run.state, Policy()).actions
    assert (
        view(run.state, Policy()).unavailable["stop"]
        == "the last new best or change was 0 evaluations ago; 5 are required"
    )
    assert "stop" in view(run.measure(*[4.0] * 5).state, Policy()).actions
    reason = "920 steps are left; a manager on probation may forgo 100"
    assert view(run.state, Policy(), run.ledger).unavailable["stop"] == reason
    assert "stop" in view(run.state, Policy(actions=Actions(stop_settled_evals=5)), run.ledger).actions
    late = Run(total_steps=220).measure(4.0, *[4.0] * 19)
    assert "stop" in view(late.state, late.policy, late.ledger).actions
    late.ledger.idle = 3
    assert "may forgo 19" in view(late.state, late.policy, late.ledger).unavailable["stop"]
    run.change(lr=2e-3).measure(4.0)
    assert "stop" not in view(run.state, Policy()).actions  # it has only just been changed
    short = Run(total_steps=50).measure(4.0, 3.9, 3.8, 3.7, best=True)
    assert "stop" in view(short.state, Policy()).actions  # it is over anyway


# -- what is said of it --------------------------------------------------------------------------------------------


def test_in_words() -> None:
    run = learned().change(lr=2e-3)
    assert display.watched_in_words(run.state, run.ledger).startswith("on trial since step 60: d1, forecast 4")
    run.measure(9.0)
    (text,) = [display.event_in_words(back, run.state) for back in run.reversals]
    assert text is not None
    assert text.startswith("d1 taken back: 9 where 4")
    assert text.endswith("40 steps lost: roll back to best; lr = 0.001")
    assert display.watched_in_words(run.state, run.ledger) == (
        "taken back 1 time, 40 steps lost; trust lr 0.5; the script offers no checkpoint: weights go back to the best "
        "ones, not to those from before a change"
    )
    assert [display.origin_in_words(run.ledger, revision) for revision in (1, 2)] == ["manager", "probation"]
    assert "(it did harm and was taken back)" in prompt.render(view(run.state, ledger=run.ledger), 5000).user
    assert [past.taken_back for past in view(run.state, ledger=run.ledger).interventions] == ["harm", ""]
    run.measure(*[4.0] * 10).change(dropout=0.2).measure(*[4.0] * 5)
    text = display.event_in_words(run.reversals[-1], run.state)
    assert text is not None
    assert "d2 taken back: no proof that it helped, 4 where 4 was forecast" in text
    assert text.endswith("50 steps in vain: dropout = 0.1")
    assert "(no help; it was taken back)" in prompt.render(view(run.state, ledger=run.ledger), 5000).user


# -- whatever happens ----------------------------------------------------------------------------------------------

VALUES = st.floats(3.0, 9.0) | st.sampled_from([4.0, 4.0, 4.01, 3.99, math.nan, math.inf, -math.inf, 0.0])
MOVES = st.tuples(
    st.sampled_from(["keep", "keep", "adjust", "adjust", "rollback"]), st.lists(st.floats(0, 1), min_size=6, max_size=6)
)


def wish(run: Run, action: str, draws: list[float]) -> dict[str, Any] | None:
    """An answer that the guard accepts, if there is one."""
    seen = view(run.state, run.policy, run.ledger)
    changes: dict[str, Value] = {}
    for row, draw in zip(seen.recipe, draws, strict=True):
        if row.resting or draw < 0.3:
            continue
        if row.type == "bool":
            changes[row.name] = not row.value
        elif row.choices:
            changes[row.name] = row.choices[int(draw * len(row.choices)) % len(row.choices)]
        elif row.reach_low is not None and row.reach_high is not None:
            value = min(row.reach_low + draw * (row.reach_high - row.reach_low), row.reach_high)
            changes[row.name] = round(value) if row.type == "int" else value
    changes = {name: value for name, value in changes.items() if value != run.state.recipe[name]}
    if action not in seen.actions or action == "keep" or (action == "adjust" and not changes):
        return None
    return {"action": action, "changes": changes, **({"to": "initial"} if action == "rollback" else {})}


WATCHES = st.builds(
    Probation, window_evals=st.integers(1, 6), patience=st.integers(1, 3), loss_budget=st.floats(0, 0.5),
    max_reversals=st.integers(0, 3), challenge_evals=st.integers(0, 9), least_trust=st.floats(0.01, 0.5),
    catastrophe=st.floats(1, 5),
    tolerance=st.floats(0.001, 0.2), grow=st.floats(1, 3),
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(VALUES, MOVES), min_size=1, max_size=40), WATCHES, st.booleans(), st.booleans(),
       st.sampled_from(["min", "max"]), st.integers(0, 40))  # fmt: skip
def test_no_manager_escapes(
    moments: list[tuple[float, tuple[str, list[float]]]],
    watch: Probation,
    planned: bool,
    saves: bool,
    mode: str,
    cut: int,
) -> None:
    run = Run(*everything(), policy=Policy(probation=watch), mode=mode, total_steps=TOTAL if planned else None)
    recipes: dict[int, dict[str, Value]] = {}
    for number, (value, (action, draws)) in enumerate(moments):
        trials, demoted = copy.deepcopy(run.ledger.trials), run.ledger.demoted
        reversals, issued = len(run.reversals), of_the_manager(run)
        before, challenges = dict(run.state.recipe), len(run.of(events.Challenged))
        run.measure(value, best=saves)
        if len(run.reversals) > reversals:
            back, kept = run.reversals[-1], run.of(events.Kept)
            for proof in [proof for proof in kept if proof.step == back.step]:  # at this very evaluation
                good, trials = trials[: proof.trials], trials[proof.trials :]
                assert proof.revisions == [revision for trial in good for revision in trial.revisions]
            assert is_harm(run, trials[0], watch) == (back.why == "harm")
            assert (back.lost > 0, back.idle > 0) in (
                ((False, False),) if back.challenge else ((True, False), (False, True))
            )
            assert back.revisions == [revision for trial in trials for revision in trial.revisions]
            if not run.ledger.demoted:
                assert {n: run.state.recipe[n] for n in run.state.recipe} == recipes[trials[0].forecast.evals]
        elif trials and trials[0].forecast.evals + watch.window_evals > run.state.evals:
            assert not is_harm(run, trials[0], watch) or (planned and run.at >= TOTAL)
        assert all(watch.least_trust <= trust < 1 for trust in run.ledger.trust.values())
        challenged = len(run.of(events.Challenged)) > challenges
        recipes[run.state.evals] = before if challenged else dict(run.state.recipe)  # before what goes on trial here
        raw = wish(run, action, draws)
        if raw is not None:
            run.change(raw.pop("action"), raw.get("to"), **raw["changes"])
        if demoted:
            assert of_the_manager(run) == issued
            assert all(trial.challenge for trial in run.ledger.trials)
        if number == cut:
            again = Ledger()
            for payload in run.log:
                again.fold(payload)
            assert again == run.ledger
            run.ledger = copy.deepcopy(run.ledger)
    spare = (watch.loss_budget + watch.idle_budget) * TOTAL
    faults = [back for back in run.reversals if not back.challenge]
    assert len(faults) <= (spare + 2 if planned else watch.max_reversals + 1)
    assert [back.demoted for back in faults[:-1]] == [False] * (len(faults) - 1)


def of_the_manager(run: Run) -> int:
    """Overrides that are the manager's."""
    return sum(event.origin == "manager" for event in run.of(events.OverrideIssued))


def is_harm(run: Run, trial: Any, watch: Probation) -> bool:
    """The documented definition, written down once more."""
    forecast, count = trial.forecast, run.state.evals - trial.forecast.evals
    if forecast.level is None or count < 1:
        return False
    margin = max(watch.tolerance * forecast.scale, watch.noise_factor * (forecast.noise or 0.0))
    worse = []
    for n, row in enumerate(run.state.evaluations[-count:], start=1):
        value, expected = run.state.objective_of(row), forecast.at(n)
        assert value is not None
        turned = value - expected if run.state.start.objective.mode == "min" else expected - value  # type: ignore[union-attr]
        worse.append(turned if math.isfinite(value) else math.inf)
    if not math.isfinite(worse[-1]):
        return True
    if margin <= 0:
        return False
    patience, far = min(watch.patience, watch.window_evals), watch.catastrophe * margin
    late = worse[-patience:]
    if forecast.noise is None:
        return len(late) == patience and all(x > far for x in late)
    return worse[-1] > far or (len(late) == patience and all(x > margin for x in late))
