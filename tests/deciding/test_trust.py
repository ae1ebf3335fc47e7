"""No manager may lose more than was declared: trust, budgets, and the challenge by the recipe of the start."""

from __future__ import annotations

import math
from typing import Any

import factories
import pytest
from factories import augment, checkpoint, dropout, ema, evaluation, lr, view
from factories.ledgers import asked
from factories.watched import FLAT, KEEPS, RATE, TOTAL, Run, learned

from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Actions, Policy, Probation
from trainmgr.terminal import display

# -- trust -------------------------------------------------------------------------------------------------------------


def test_trust_shrinks_to_a_floor_and_narrows_what_may_be_asked_for() -> None:
    run = learned(RATE, policy=Policy(probation=Probation(loss_budget=1.0)), commands=KEEPS, total_steps=9999)
    for expected in (0.5, 0.25, 0.125, 0.0625, 0.0625):
        high = view(run.state, run.policy, run.ledger).recipe[0].reach_high
        assert high is not None
        run.change(lr=high).measure(9.0, 9.0, *[4.0] * 80)
        assert run.ledger.trust == {"lr": expected}
    row = view(run.state, run.policy, run.ledger).recipe[0]
    assert row.reach_high == pytest.approx(1e-3 * 2**0.0625, rel=1e-5)
    raw = {"diagnosis": "unclear", "evidence": "", "action": "adjust", "changes": {"lr": 2e-3}}
    run.tell(asked(9, run.at))
    judged = run.judge(raw, decision="d9")
    assert [check.name for check in judged.checks if not check.ok] == ["step size"]


def test_trust_grows_again_with_what_proved_itself() -> None:
    run = learned(RATE, policy=Policy(probation=Probation(challenge_evals=0))).change(lr=2e-3).measure(9.0, 4.0)
    run.measure(*[4.0] * 10).change(lr=9e-4).measure(3.9, 3.8, 3.7, 3.6, 3.5)
    (kept,) = run.of(events.Kept)
    assert kept.trust == {"lr": 0.75}
    run.measure(*[3.5] * 12).change(lr=8e-4).measure(3.4, 3.3, 3.2, 3.1, 3.0)
    assert run.of(events.Kept)[-1].trust == {"lr": 1.0}
    assert run.ledger.trust == {}


def test_what_brought_nothing_is_put_back_without_a_grudge() -> None:
    run = learned(RATE, commands=KEEPS).change(lr=9e-4).measure(4.0, 4.0, 4.0, 4.0, 4.0)
    (back,) = run.reversals
    assert (back.why, back.trust, run.ledger.trust, back.command) == ("no proof", {}, {}, None)
    assert (back.lost, back.idle, run.state.recipe["lr"]) == (0, 50, 1e-3)
    assert not view(run.measure(4.0).state, run.policy, run.ledger).recipe[0].resting


@pytest.mark.parametrize(("name", "value", "late", "stays"), [
    ("dropout", 0.2, False, True), ("dropout", 0.05, False, False), ("lr", 9e-4, False, False),
    ("lr", 9e-4, True, True), ("lr", 1.1e-3, True, False),
])  # fmt: skip
def test_what_is_neutral_and_costs_nothing_stays(name: str, value: float, late: bool, stays: bool) -> None:
    run = learned(total_steps=160 if late else TOTAL).change(**{name: value}).measure(4.0, 4.0, 4.0, 4.0, 4.0)
    assert [(kept.neutral, kept.trust) for kept in run.of(events.Kept)] == ([(True, {})] if stays else [])
    assert [back.why for back in run.reversals] == ([] if stays else ["no proof"])
    assert (run.state.recipe[name] == value) is stays


def test_what_was_taken_back_rests_the_longer_the_less_it_is_trusted() -> None:
    run = learned(RATE, augment(), ema()).change(augment=True, ema=0.99).measure(9.0)
    assert run.state.recipe == {"lr": 1e-3, "augment": False, "ema": 0.0}
    run.measure(*[4.0] * 9)
    rows = {row.name: row.resting for row in view(run.state, run.policy, run.ledger).recipe}
    assert rows == {"lr": False, "augment": True, "ema": True}
    run.measure(4.0)
    assert not any(row.resting for row in view(run.state, run.policy, run.ledger).recipe)


# -- the loss budget ---------------------------------------------------------------------------------------------------


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
    assert run.measure(4.0).why() == "evaluation"
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
    assert (run.measure(*[4.0] * 20).why() is not None) is asked_again


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


# -- the recipe of the start against that of the manager ---------------------------------------------------------------


def lucky(policy: Policy | None = None, **more: Any) -> Run:
    """A run whose manager's recipe has proven itself and then brought nothing for seven evaluations."""
    run = learned(policy=policy, commands=KEEPS, **more).change(lr=1.1e-3).measure(3.9, 3.85, 3.8, 3.75, 3.7)
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
    assert "recipe of the start goes on trial: lr = 0.001" in (display.event_in_words(challenged, run.now) or "")
    assert run.measure(3.7).why() is None  # nobody may spoil it
    (kept,) = [event for event in run.measure(3.7, 3.7, 3.7, 3.7).of(events.Kept) if event.challenge]
    assert (kept.decisions, kept.trust) == ([challenged.decision], {})
    assert (run.state.recipe["lr"], run.ledger.challenged, run.ledger.trust) == (1e-3, False, {})
    assert run.measure(3.7).why() == "evaluation"
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
    assert (back.challenge, run.state.recipe["lr"]) == (True, 1.1e-3)


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
    run.tell(events.Restarted(attempt=1, exit="crashed", resume=None, telemetry_offset=0))
    assert not run.ledger.challenged
    assert run.ledger.due is None


def test_where_it_harms_the_manager_has_its_recipe_and_weights_back_and_nothing_is_held_against_it() -> None:
    run = lucky().measure(3.7, 4.0, 4.0)
    (back,) = run.reversals
    assert (back.challenge, back.why, back.lost, back.idle, back.trust, back.demoted) == (True, "harm", 0, 0, {}, False)
    assert back.command == protocol.Command(id=back.decision, name="rollback", to="checkpoints/trial.pt")
    assert (back.parameters, run.state.recipe["lr"]) == ({"lr": 1.1e-3}, 1.1e-3)
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
    back = run.crashed()
    assert back is not None
    assert (back.challenge, back.why, back.parameters, back.lost) == (True, "crash", {"lr": 1.1e-3}, 0)
    run.tell(back)
    run.tell(events.Restarted(attempt=1, exit="crashed", resume="checkpoints/trial.pt", telemetry_offset=0))
    run.own()
    assert not run.ledger.challenged
