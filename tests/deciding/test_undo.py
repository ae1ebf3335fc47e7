"""A manager takes back its own last change, goes back to a checkpoint by its name, and asks for a longer trial."""

from __future__ import annotations

from typing import Any

import pytest
from factories import view
from factories.ledgers import asked
from factories.watched import KEEPS, RATE, Run, learned

from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Actions, Limits, Policy, Probation
from trainmgr.deciding import asking
from trainmgr.state.trial import same

LOSES = Policy(probation=Probation(loss_budget=0.5))


def raw(action: str, **more: Any) -> dict[str, Any]:
    return {"diagnosis": "unclear", "evidence": "", "action": action, **more}


def refusal(run: Run, **answer: Any) -> str:
    """Why an answer is not accepted."""
    run.tell(asked(90, run.at, run.state.evals))
    judged = run.judge(answer, decision="d90")
    return "; ".join(check.reason for check in judged.checks if not check.ok)


# -- undo --------------------------------------------------------------------------------------------------------------


def test_the_values_of_before_are_back_and_nothing_is_held_against_anybody() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3, dropout=0.3).measure(4.05)
    seen = view(run.state, run.policy, run.ledger)
    assert seen.undo is not None
    assert (seen.undo.decision, seen.undo.step, seen.undo.weights) == ("d1", 60, True)
    assert seen.undo.values == {"lr": 1e-3, "dropout": 0.1}
    run.change("undo")
    verdict = run.of(events.Verdict)[-1]
    assert (verdict.action, verdict.undoes, verdict.changes) == ("undo", [1], {"lr": 1e-3, "dropout": 0.1})
    assert run.of(events.Acknowledged)[-1].ends == [1]
    assert run.state.recipe == {"lr": 1e-3, "dropout": 0.1}
    assert (run.ledger.trust, run.ledger.lost, run.ledger.taken_back) == ({}, 0, {1: "undone"})
    assert "undo" not in view(run.state, run.policy, run.ledger).actions
    assert run.measure(*[4.0] * 5).reversals == []
    assert run.ledger.trials == []


def test_neither_step_size_nor_rest_bind_it() -> None:
    run = learned(RATE, policy=Policy(limits=Limits(cooldown_evals=5)), commands=KEEPS).change(lr=2e-3).measure(4.05)
    run.ledger.trust = {"lr": 0.0625}
    run.change("undo")
    assert run.state.recipe["lr"] == 1e-3


def test_the_weights_of_before_come_back_with_it_and_the_steps_count_as_lost() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3).measure(4.05, 4.08).change("undo", to="weights")
    assert run.of(events.OverrideIssued)[-1].control.command == protocol.Command(
        id="d2", name="rollback", to="checkpoints/trial.pt"
    )
    answer = run.of(events.Acknowledged)[-1]
    assert (answer.ends, answer.lost, answer.forecast) == ([1], 20, None)
    assert (run.ledger.lost, run.ledger.trials, run.state.recipe["lr"]) == (20, [], 1e-3)
    assert run.state.lineage.set_back == 20


def test_the_weights_only_as_far_as_the_loss_budget_goes() -> None:
    run = learned(commands=KEEPS, policy=Policy(probation=Probation(loss_budget=0.01))).change(lr=2e-3)
    run.measure(4.0, 4.02)
    assert "20 steps would be in vain; a manager on probation may lose 10 more" in refusal(
        run, **raw("undo", to="weights")
    )
    assert refusal(run, **raw("undo")) == ""


def test_what_stands_beneath_is_undone_next() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3).measure(4.0).change(dropout=0.3).measure(4.0).change("undo")
    assert run.state.recipe == {"lr": 2e-3, "dropout": 0.1}
    run.measure(4.0).change("undo")
    assert run.state.recipe == {"lr": 1e-3, "dropout": 0.1}
    assert "undo: not available now" in refusal(run, **raw("undo"))


def test_what_was_taken_back_or_has_been_changed_since_is_not_undone() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3).measure(9.0)
    assert len(run.reversals) == 1
    assert "undo" not in view(run.measure(4.0).state, run.policy, run.ledger).actions
    run = learned(RATE, commands=KEEPS).change(lr=2e-3).measure(4.0).change(lr=1.5e-3).measure(4.0)
    assert view(run.state, run.policy, run.ledger).undo.values == {"lr": 2e-3}  # type: ignore[union-attr]


def test_a_rollback_is_undone_with_the_weights_only() -> None:
    run = learned(commands=KEEPS, policy=LOSES).change("rollback", to="initial").measure(4.0)
    assert "nothing to undo of a rollback" in refusal(run, **raw("undo"))
    run.change("undo", to="weights")
    assert (run.state.lineage.set_back, run.ledger.trials) == (10, [])


def test_it_takes_no_values_and_no_other_target() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3).measure(4.0)
    assert "undo with changes" in refusal(run, **raw("undo", changes={"lr": 1e-3}))
    assert "allowed: nothing, weights" in refusal(run, **raw("undo", to="best"))


def test_without_a_way_back_the_values_alone_are_undone() -> None:
    run = learned(commands=["stop"]).change(lr=2e-3).measure(4.0)
    assert "are not kept" in refusal(run, **raw("undo", to="weights"))
    assert refusal(run, **raw("undo")) == ""


# -- rollback by name --------------------------------------------------------------------------------------------------


def test_a_checkpoint_from_before_a_change_has_a_name() -> None:
    run = learned(commands=KEEPS).change(lr=2e-3).measure(4.0, 4.0).change(dropout=0.3).measure(4.0)
    assert view(run.state, run.policy, run.ledger).checkpoints == ["best", "initial", "step 60", "step 80"]
    assert "allowed: nothing, best, initial, step 60, step 80" in refusal(run, **raw("rollback", to="step 70"))
    run.change("rollback", to="step 60")
    command = run.state.interventions[-1].command
    assert command is not None
    assert (command.name, command.to) == ("rollback", "checkpoints/trial.pt")
    assert run.of(events.OverrideIssued)[-1].control.keep == "retrial"  # not what it goes back to
    assert run.state.lineage.set_back == 30


def test_but_for_the_best_only_what_the_loss_budget_bears_is_offered() -> None:
    run = learned(commands=KEEPS, policy=Policy(probation=Probation(loss_budget=0.03))).change(lr=2e-3).measure(4.0)
    assert view(run.state, run.policy, run.ledger).checkpoints == ["best", "step 60"]
    policy = Policy(actions=Actions(rollback=False))
    assert view(run.state, policy, run.ledger).checkpoints == []


# -- a longer trial ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "got"), [(70, 70), (500, 100), (0, None), (-3, None)])
def test_a_change_may_ask_for_a_longer_trial_within_the_loss_budget(wanted: int, got: int | None) -> None:
    run = learned(commands=KEEPS).change(lr=9e-4, judge_after=wanted)
    assert run.of(events.Verdict)[-1].judge_after == got
    (trial,) = run.ledger.trials
    assert trial.until == (None if got is None else 60 + got)
    run.measure(*[4.0] * 4)
    assert run.reversals == []
    run.measure(*[4.0] * 3)
    assert [back.why for back in run.reversals] == (["no proof"] if got != 100 else [])


def test_harm_is_judged_all_the_same() -> None:
    run = learned(commands=KEEPS).change(lr=9e-4, judge_after=100).measure(4.0, 4.5)
    assert [back.why for back in run.reversals] == ["harm"]


# -- before anything is known ------------------------------------------------------------------------------------------


def test_nobody_is_asked_before_four_evaluations_unless_the_policy_says_so() -> None:
    run = Run(commands=KEEPS, manager="scripted")
    values = (4.0, 3.9, 3.8, 3.7)
    assert [run.measure(value, best=True).why() for value in values] == [None, None, None, "evaluation"]
    run = Run(commands=KEEPS, manager="scripted", policy=Policy(probation=Probation(first_evals=1)))
    assert run.measure(4.0, best=True).why() == "evaluation"


def test_a_run_that_stands_still_from_the_start_has_nothing_to_lose_and_is_not_waited_with() -> None:
    run = Run(commands=KEEPS, manager="scripted").measure(4.0, best=True)
    assert run.why() is None
    assert asking.next_question(run.now) == 40
    assert run.measure(4.0).why() == "evaluation"
    run = Run(commands=KEEPS, manager="scripted").measure(4.0, 3.9, best=True)
    assert run.why() is None
    assert run.measure(3.95).why() == "evaluation"


def test_before_there_is_a_noise_one_change_is_on_trial_at_a_time() -> None:
    run = Run(commands=KEEPS).measure(4.0, best=True).change(lr=2e-3).measure(3.9)
    reason = "what was changed at step 10 is on trial, and 4 evaluations are needed to judge more"
    assert view(run.state, run.policy, run.ledger).unavailable["adjust"] == reason
    assert "undo" in view(run.state, run.policy, run.ledger).actions
    run.measure(3.8, 3.7)
    assert "adjust" in view(run.state, run.policy, run.ledger).actions


def test_what_went_back_has_the_steps_that_it_undid_to_come_up_again() -> None:
    run = Run(commands=KEEPS).measure(6.0, 5.0, 4.5, best=True).change("rollback", to="initial", lr=5e-4)
    assert run.ledger.trials[0].undone == 20  # the first checkpoint is of step 10
    assert run.measure(6.0, 6.0).reversals == []
    assert [back.why for back in run.measure(6.0).reversals] == ["harm"]


def test_values_are_the_same_but_for_rounding() -> None:
    assert same(0.1 + 0.2, 0.3)
    assert same("adam", "adam")
    assert not same(True, 1.0)
    assert not same(1e-3, 1.001e-3)


def test_a_parameter_may_be_corrected_once_while_it_is_on_trial() -> None:
    """Else a chain of changes, each of which replaces the one before, would never have to prove itself."""
    run = learned(RATE, commands=KEEPS).change(lr=1.1e-3).measure(4.0, 4.0).change(lr=1.2e-3).measure(4.0)
    shown = view(run.state, run.policy, run.ledger)
    assert shown.recipe[0].resting
    assert shown.account is not None
    assert shown.account.rests == {"lr": run.at + 40}  # where the second trial ends, which may have to answer for both
    run.measure(4.0, 4.0)  # the first has brought nothing, and the second answers for both
    assert [back.parameters for back in run.reversals] == [{}]
    assert view(run.state, run.policy, run.ledger).recipe[0].resting
    run.measure(4.0, 4.0)
    assert (run.ledger.trials, run.state.recipe["lr"]) == ([], 1e-3)
    assert not view(run.measure(4.0).state, run.policy, run.ledger).recipe[0].resting
