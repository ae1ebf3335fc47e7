"""Every change of a run with what came of it, and what it makes of the figures afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
from factories import FREE, applied, checkpoint, curve, evaluation, fold, lr, start, view
from factories.profiles import examples
from factories.situations import manifest, situation
from factories.watched import KEEPS, RATE, Run
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.base.wire import to_json
from trainmgr.contract import events
from trainmgr.contract.policy import Policy, Probation
from trainmgr.contract.protocol import MetricInfo
from trainmgr.deciding import snapshot
from trainmgr.deciding.account import Account, kinds
from trainmgr.state.changes import KEPT
from trainmgr.state.signals import measure

WATCHED = Policy(probation=Probation(enabled=True, challenge_evals=0))


def account(run: Run) -> Account:
    found = snapshot.take(run.now, "evaluation").account
    assert found is not None
    return found


def test_a_change_is_told_with_what_probation_found() -> None:
    run = Run(RATE, policy=WATCHED, commands=KEEPS).measure(4.0, 3.9, 3.8, 3.7, best=True)
    run.change(lr=5e-4)
    (told,) = account(run).changes
    assert (told.step, told.author, told.fate, told.changes) == (40, "manager", "on trial", {"lr": (1e-3, 5e-4)})
    assert told.at == 90
    run.measure(3.5, 3.4, 3.3, 3.2, 3.1, best=True)
    (told,) = account(run).changes
    assert (told.fate, told.at, told.measured) == ("kept", 90, 3.1)
    run.change(lr=1e-3).measure(9.0, 9.0)
    told = account(run).changes[-1]
    assert (told.fate, told.measured, told.undone) == ("harm", 9.0, True)
    assert told.forecast is not None
    assert told.forecast < 3.2
    assert len(account(run).changes) == 2  # that it was taken back is no change of its own


def test_without_probation_it_is_told_with_what_was_measured() -> None:
    run = Run(RATE, manager="rules", commands=KEEPS).measure(4.0, 3.9)
    run.change(lr=5e-4).measure(3.5, 3.4, 3.3, 3.2, 3.1)
    (told,) = account(run).changes
    assert (told.fate, told.at, told.measured, told.forecast) == ("measured", 70, 3.1, 3.9)


def test_what_was_measured_of_weights_that_were_taken_back_is_no_figure() -> None:
    run = Run(RATE, policy=WATCHED, commands=KEEPS).measure(4.0, 3.9, 3.8, 3.7, best=True)
    before = run.now.signals
    run.change(lr=1e-3 * 1.9).measure(9.0)
    assert account(run).changes[-1].undone
    after = run.now.signals
    assert (after.latest, after.rise, after.noise, after.slope) == (before.latest, before.rise, before.noise,
                                                                    before.slope)  # fmt: skip
    assert measure(run.state).latest == 9.0
    assert run.policy.alarms(after.diverging, after.rise, after.noise) == frozenset()
    marks = dict(zip((row[0] for row in snapshot.take(run.now, "").evaluations.rows), account(run).marks, strict=True))
    assert marks == {10: "", 20: "", 30: "", 40: "", 50: "undone"}
    run.measure(3.7)
    assert run.now.signals.latest == 3.7
    assert account(run).marks[-1] == "after a rollback"


def test_edition_1_keeps_its_figures_and_its_snapshot() -> None:
    run = Run(RATE, policy=WATCHED, commands=KEEPS).measure(4.0, 3.9, 3.8, 3.7, best=True)
    run.change(lr=1e-3 * 1.9).measure(9.0)
    first = manifest(WATCHED, manager="adversary").model_copy(update={"edition": 1})
    now = situation(run.state, ledger=replace(run.ledger, started=events.RunStarted(manifest=first)))
    assert now.signals.latest == 9.0
    assert b'"account"' not in to_json(snapshot.take(now, "evaluation"))


@examples(10)
@given(st.integers(1, 150))
def test_any_number_of_changes_is_remembered_in_bounded_space(count: int) -> None:
    run = Run(RATE, manager="rules", commands=KEEPS).measure(4.0)
    for i in range(count):
        run.change(lr=1e-3 if i % 2 else 9e-4).measure(4.0)
    found = account(run)
    assert len(found.changes) == min(count, KEPT)
    assert sum(found.before.values()) == max(0, count - KEPT)
    assert found.changes[-1].changes == {"lr": (9e-4, 1e-3) if count % 2 == 0 else (1e-3, 9e-4)}


def test_what_was_expected_is_told_with_what_came() -> None:
    run = Run(RATE, manager="rules", commands=KEEPS).measure(4.0, 3.9)
    raw = {"diagnosis": "plateau", "evidence": "", "action": "adjust", "changes": {"lr": 5e-4},
           "expected": {"metric": "val", "direction": "down", "by_step": 40}, "falsifier": "val over 3.9"}  # fmt: skip
    run.answer(raw)
    run.measure(3.95)
    (said,) = account(run).said
    assert (said.was, said.now, said.at, said.came, said.falsifier) == (3.9, 3.95, 30, None, "val over 3.9")
    run.measure(3.2, 4.5)
    (said,) = account(run).said
    assert (said.was, said.now, said.at, said.came) == (3.9, 3.2, 40, True)


def test_the_step_until_which_a_parameter_rests_is_that_at_which_it_may_be_changed() -> None:
    run = Run(RATE, policy=WATCHED, commands=KEEPS).measure(4.0, 3.9, 3.8, 3.7, best=True)
    run.change(lr=1e-3 * 1.9).measure(9.0)
    until = account(run).rests["lr"]
    while run.at < until - 10:
        run.measure(3.7)
        assert snapshot.take(run.now, "").recipe[0].resting
    run.measure(3.7)
    assert run.at == until
    assert not snapshot.take(run.now, "").recipe[0].resting
    assert account(run).rests == {}


def test_the_questions_that_are_left() -> None:
    asked = view(curve([2.0, 1.9, 1.8]), FREE).account
    assert asked is not None
    assert (asked.every, asked.evals_left, asked.next_question, asked.questions_left) == (
        10,
        97,
        40,
        96,
    )  # none at the last step
    over = view(fold([start(total_steps=30), *(evaluation(10 * i, 2.0) for i in (1, 2, 3))]), FREE).account
    assert over is not None
    assert (over.evals_left, over.next_question, over.questions_left) == (0, None, 0)


def test_the_recipe_in_effect_stands_beside_each_evaluation() -> None:
    state = curve([2.0, 1.9], lr(), best=False)
    fold([applied(20, 1, {"lr": (3e-3, 1e-3)}), evaluation(30, 1.8), checkpoint(30)], state)
    found = view(state, FREE).account
    assert found is not None
    assert found.recipe == {"lr": [3e-3, 3e-3, 1e-3]}


@pytest.mark.parametrize(("roles", "found"), [
    ([], ["supervised"]), (["success"], ["reinforcement learning"]), (["loss gradient"], ["supervised"]),
    (["loss gradient", "loss gradient", None], ["supervised", "several losses"]),
])  # fmt: skip
def test_the_kind_of_training_follows_from_the_roles_of_its_metrics(roles: list[str], found: list[str]) -> None:
    assert kinds({f"m{i}": MetricInfo(role=role) for i, role in enumerate(roles)}) == found
