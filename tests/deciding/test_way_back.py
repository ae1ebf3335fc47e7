"""Where a change that is taken back goes back to: the values and the weights from before the oldest of them."""

from __future__ import annotations

import factories
import pytest
from factories import applied, dropout, evaluation, lr, start, view
from factories.ledgers import asked, ruled
from factories.watched import FLAT, KEEPS, RATE, Run, learned

from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Actions, Policy, Probation
from trainmgr.deciding import decision

NO_ROLLBACK = ["stop"]


# -- the weights of before ---------------------------------------------------------------------------------------------


def test_the_weights_of_before_are_kept_and_come_back() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3).measure(4.1).change(dropout=0.2)
    assert [o.control.keep for o in run.of(events.OverrideIssued)] == ["trial", "retrial"]
    (back,) = run.measure(9.0).reversals
    assert (back.decisions, back.parameters) == (["d2"], {"dropout": 0.1})
    assert back.command == protocol.Command(id="probation3", name="rollback", to="checkpoints/retrial.pt")
    assert (back.lost, run.ledger.lost) == (10, 10)
    assert (run.state.lineage.undone, run.state.lineage.set_back) == (10, 10)
    assert [value for _, value in run.state.lineage.course] == [*FLAT, 4.1]
    (back,) = run.measure(9.0).reversals[1:]
    assert (back.decisions, back.command and back.command.to) == (["d1"], "checkpoints/trial.pt")
    assert [value for _, value in run.state.lineage.course] == FLAT


def test_a_later_best_is_better_than_the_weights_of_before() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3).measure(3.5, best=True).measure(9.0)
    (back,) = run.reversals
    assert (back.command and back.command.to, back.lost) == ("best", 10)


def test_a_rollback_that_brought_nothing_is_undone() -> None:
    run = learned(commands=KEEPS).change("rollback", to="initial")
    (change,) = run.of(events.Acknowledged)
    assert change.undone == 50  # the first checkpoint is of step 10
    (back,) = run.measure(*[4.0] * 9).reversals
    assert (back.why, back.command and back.command.to) == ("no proof", "checkpoints/trial.pt")
    assert (back.lost, run.state.lineage.set_back, run.ledger.trust) == (90, 90, {"rollback": 0.5})


def test_without_them_what_a_rollback_undid_is_lost() -> None:
    run = learned().change("rollback", to="best")
    (back,) = run.measure(*[4.0] * 7).reversals
    assert (back.why, back.command, back.lost) == ("no proof", None, 100)


@pytest.mark.parametrize("how", ["not on probation", "not wanted", "of an earlier trial"])
def test_when_nothing_is_kept(how: str) -> None:
    watch = Probation(enabled=how != "not on probation", checkpoint=how != "not wanted")
    run = learned(commands=KEEPS, policy=Policy(probation=watch))
    if how == "of an earlier trial":
        run.change(lr=9e-4).measure(3.9, 3.9, 3.9, 3.9).change(dropout=0.2).measure(3.9).change(lr=8e-4).measure(3.9)
        assert len(run.of(events.Kept)) == 1
        assert [trial.step for trial in run.ledger.trials] == [100, 110]
        (back,) = run.measure(9.0).reversals
        assert (back.decisions, back.command and back.command.to) == (["d3"], "checkpoints/trial.pt")
        return
    assert run.change(lr=2e-3).of(events.OverrideIssued)[0].control.keep is None
    assert b"keep" not in run.of(events.OverrideIssued)[0].model_dump_json().encode()


# -- several changes ---------------------------------------------------------------------------------------------------


def test_what_overlaps_is_taken_back_one_after_the_other_the_last_one_first() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3).measure(4.0).change(lr=4e-3, dropout=0.3).measure(4.01)
    run.change(dropout=0.2)
    (back,) = run.measure(4.9).reversals
    assert (back.decisions, back.since, back.parameters, back.trust) == (["d3"], 80, {"dropout": 0.3}, {"dropout": 0.5})
    assert [trial.decisions for trial in run.ledger.trials] == [("d1",), ("d2",)]
    assert run.measure(4.0, 4.0).reversals == [back]  # the others are judged anew, from the weights that are back
    (_, back) = run.measure(4.9).reversals
    assert (back.decisions, run.state.recipe) == (["d2"], {"lr": 2e-3, "dropout": 0.1})


def test_a_correction_is_not_thrown_out_with_what_it_corrects() -> None:
    """The rate was too high, and is brought down before the harm of that is found: it stays where it is now."""
    run = learned(commands=KEEPS).change(lr=2e-3).measure(4.3).change(lr=5e-4)
    (back,) = run.measure(4.28).reversals
    assert (back.decisions, back.why, back.parameters) == (["d1"], "harm", {})
    assert back.command is not None
    assert back.command.to == "checkpoints/trial.pt"
    assert run.state.recipe["lr"] == 5e-4
    (trial,) = run.ledger.trials
    assert (trial.decisions, trial.before) == (("d2",), {"lr": 1e-3})  # what it goes back to is not what did harm
    assert trial.forecast.level == pytest.approx(4.0, abs=0.02)


def test_a_change_that_puts_back_what_another_had_changed_ends_its_trial_without_a_verdict() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3).measure(4.05).change(lr=1e-3)
    assert run.of(events.Acknowledged)[-1].ends == [1]
    (trial,) = run.ledger.trials
    assert (trial.decisions, trial.before) == (("d2",), {})
    assert run.measure(4.0, 4.0, 4.0, 4.0, 4.0).reversals == []
    assert [kept.neutral for kept in run.of(events.Kept)] == [True]
    assert (run.ledger.trials, run.ledger.trust, run.ledger.lost, run.ledger.idle) == ([], {}, 0, 0)


def test_but_for_what_it_did_to_the_weights_somebody_answers() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3).measure(4.3).change(lr=1e-3).measure(4.3)
    assert run.reversals == []
    (back,) = run.measure(4.3).reversals
    assert (back.why, back.parameters, back.trust, back.lost) == ("harm", {}, {}, 20)
    assert back.command is not None
    assert back.command.to == "checkpoints/retrial.pt"


def test_a_trial_ends_with_its_window() -> None:
    run = learned().change(lr=2e-3).measure(3.9, 3.9, 3.9, 3.9)
    assert run.of(events.Kept) == []
    run.change(dropout=0.3).measure(3.9)
    (kept,) = run.of(events.Kept)
    assert (kept.decisions, kept.step, kept.measured) == (["d1"], 110, 3.9)
    (back,) = run.measure(9.0).reversals
    assert (back.decisions, back.parameters) == (["d2"], {"dropout": 0.1})
    assert run.state.recipe["lr"] == 2e-3


def test_many_changes_on_trial_take_constant_space() -> None:
    rates = [RATE.model_copy(update={"name": f"lr{i}"}) for i in range(12)]
    run = Run(*rates).measure(*FLAT, best=True)
    for rate in rates:
        run.change(**{rate.name: 2e-3})
    assert (len(run.ledger.trials), len(run.ledger.trials[0].before)) == (8, 5)  # the oldest became one
    (back,) = run.measure(9.0).reversals
    assert back.parameters == {"lr11": 1e-3}


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


def test_a_change_on_its_way_is_waited_for_where_nothing_was_proven() -> None:
    """It may be a correction of what is put back, and is not thrown out with that."""
    run = Run().measure(4.0, 4.1, 4.2, 4.3, 4.4, best=True).change(lr=9e-4).measure(4.5, 4.6, 4.7, 4.8)
    run.obeys = False
    run.change(lr=8e-4, dropout=0.3).measure(4.9)
    assert run.reversals == []
    run.obeys = True
    run.obey()
    (back,) = run.reversals
    assert (back.why, back.decisions, back.parameters) == ("no proof", ["d1"], {})
    assert run.state.recipe == {"lr": 8e-4, "dropout": 0.3}


def test_a_run_ends_on_its_best_whatever_is_on_its_way() -> None:
    """The workload may be over before it has answered."""
    run = Run(total_steps=300).measure(*(4.0 + i / 10 for i in range(24)), best=True).change(lr=1.1e-3)
    run.measure(6.4, 6.5)
    run.obeys = False
    run.change(dropout=0.3).measure(6.6, 6.7, 6.8)
    assert run.reversals == []
    (ending,) = run.of(events.Ending)
    assert (ending.best, ending.command.name, ending.command.to) == (4.0, "stop", "best")


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
    judged = run.judge(raw, decision="d2", based_on=80)
    assert [check.name for check in judged.checks if not check.ok] == ["fresh"]
    approved = ruled(2).model_copy(update={"changes": {"dropout": 0.2}})  # by a person, on what was judged before
    assert run.override(approved, based_on=70) is None
    run.change(dropout=0.2)
    assert run.state.recipe["dropout"] == 0.2


def test_nobody_is_asked_while_changes_are_taken_back() -> None:
    run = learned().change(lr=2e-3)
    run.obeys = False
    run.measure(4.2, 4.2, 4.2, 9.0)
    assert len(run.reversals) == 1
    assert run.why() is None
    run.obeys = True
    run.obey()
    assert run.why() is not None


# -- what the workload can do ------------------------------------------------------------------------------------------


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
    assert run.measure(*[7.0] * 5).reversals == []  # it has the steps that it undid
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
    run = learned(commands=KEEPS).change(lr=2e-3)
    run.obeys = False
    run.measure(9.0)
    run.fold(factories.refused(run.at, 2))
    assert run.ledger.outstanding is not None
    assert run.ledger.outstanding.command == protocol.Command(id="probation2", name="rollback", to="best")
    run.fold(factories.refused(run.at, 3))
    assert run.ledger.outstanding is not None
    assert (run.ledger.outstanding.command, run.ledger.outstanding.params) == (None, {"lr": 1e-3})
    run.fold(factories.refused(run.at, 4))
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
    back = run.crashed()
    assert back is not None
    assert (back.why, back.parameters, back.command, back.lost) == ("crash", {"lr": 1e-3}, None, 10)
    run.tell(back)
    run.tell(events.Restarted(attempt=1, exit="crashed", resume="checkpoints/x", telemetry_offset=0))
    run.fold(start(lr(value=2e-3), dropout(value=0.1), resumed=protocol.Resumed(path="checkpoints/x", step=30)))
    run.own()
    assert (run.state.recipe["lr"], run.ledger.lost, run.ledger.trust) == (1e-3, 10, {"lr": 0.5})
    assert run.measure(9.0, 9.0).of(events.Reverted) == [back]
    assert run.crashed() is None


def test_after_a_restart_nothing_is_on_trial_and_what_was_on_its_way_still_comes() -> None:
    run = learned().change(lr=2e-3)
    run.obeys = False
    run.measure(9.0)
    run.tell(events.Restarted(attempt=1, exit="crashed", resume="checkpoints/x", telemetry_offset=0))
    event = decision.own(run.now, protocol.Issued(t=0.0, step=0))
    assert event is not None
    assert (event.control.revision, event.control.params) == (3, {"lr": 1e-3})
    assert event.control.command is not None


@pytest.mark.parametrize("payload", [events.Operator(action="stop", by="Ctrl-C"), events.Stalled(seconds=9.0, step=1),
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
