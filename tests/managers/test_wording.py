"""What a prompt of version 4 says: the rules that are in force, what fits this training, and the whole course of it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from factories import FREE, applied, curve, evaluation, fold, lr, start, step, view
from factories.handover import ARM, ARM_METRICS, LLM, PDE, PDE_METRICS, TEXT, expects, text_run
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.contract.policy import Actions, Cadence, Limits, Llm, Policy, Probation
from trainmgr.contract.proposal import NOTE
from trainmgr.deciding import snapshot
from trainmgr.deciding.account import FALSIFIER, Said, Told
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.managers.prompt import Prompt, render, room
from trainmgr.managers.prompts.game import Game, game_of, rules
from trainmgr.managers.prompts.v4.detail import DETAILS
from trainmgr.managers.prompts.v4.wording import report

ALL = ["checkpoint", "rollback", "stop"]


def made(shown: Snapshot, policy: Policy | None = None, limit: int = 10**6) -> Prompt:
    return render(shown, limit, game=game_of(policy or Policy(), LLM))


# -- the system prompt -------------------------------------------------------------------------------------------------


def test_it_is_the_same_for_the_whole_run() -> None:
    case, found = text_run(), set()
    for at in (60, 300, 600, 1800):
        case.until(at)
        if at == 300:
            case.says("overfitting", changes={"dropout": 0.1}, expected=expects("val_loss", "down", 600))
        found.add(made(snapshot.take(case.now, "evaluation")).system)
    assert len(found) == 1


@pytest.mark.parametrize(("policy", "watched", "there", "absent"), [
    (Policy(), True, ["a trial of its own for the 5 evaluations", "by more than 3 x noise",
                      "more than 0.3% of the scale (declared, or the best value)",
                      "2 evaluations in a row", "after 8 evaluations without a new best the recipe of the start",
                      "10% of the run's steps", "may take 40%"],
     ["Nobody judges"]),
    (Policy(probation=Probation(window_evals=3, tolerance=0.05, challenge_evals=0)), True,
     ["a trial of its own for the 3 evaluations", "5% of the scale (declared"], ["Done without being asked"]),
    (Policy(), False, ["Nobody judges your changes", "A rollback restores the weights"], ["on trial", "Taken back"]),
    (Policy(limits=Limits(lead_steps=10)), False, ["takes effect exactly 10 steps after"], []),
    (Policy(cadence=Cadence(every_steps=50)), False, ["takes effect at the next multiple of 50 steps"], []),
    (Policy(limits=Limits(max_interventions=7)), False, ["At most 7 changes"], []),
    (Policy(actions=Actions(end_on_best=True)), False, ["ends on its best weights: what"], []),
    (Policy(actions=Actions(end_on_best=False)), True, [], ["ends on its best weights"]),
])  # fmt: skip
def test_the_rules_are_those_of_the_policy(policy: Policy, watched: bool, there: list[str], absent: list[str]) -> None:
    text = " ".join(rules(Game(policy, watched), ALL).split())
    assert all(words in text for words in there)
    assert not any(words in text for words in absent)


def test_only_what_fits_this_training_is_said() -> None:
    def system(shown: Snapshot) -> str:
        return made(shown).system

    text = system(view(curve([2.0], *TEXT)))
    arm = system(view(fold([start(*ARM, metrics=ARM_METRICS, objective={"metric": "score", "mode": "max"}),
                            evaluation(1, score=1.0)])))  # fmt: skip
    pde = system(view(fold([start(*PDE, metrics=PDE_METRICS, objective={"metric": "val_error", "mode": "min"}),
                            evaluation(1, val_error=1.0)])))  # fmt: skip
    assert "Overfitting:" in text
    for words, where in (("Overfitting:", text), ("Where an average", text), ("Frozen:", arm), ("Unsafe:", arm),
                         ("Loss imbalance:", pde), ("There is no figure on training data.", pde)):  # fmt: skip
        assert [words in prompt for prompt in (text, arm, pde)] == [where is prompt for prompt in (text, arm, pde)]


def test_where_nothing_can_go_back_no_rollback_is_spoken_of() -> None:
    shown = view(fold([start(lr(), commands=["stop"]), evaluation(10, 2.0)]))
    assert "go back" not in made(shown).system
    assert "A rollback restores" not in made(shown).system
    assert "A rollback restores" not in made(view(curve([2.0])), Policy(actions=Actions(rollback=False))).system


def test_a_small_model_gets_a_short_one() -> None:
    shown = view(curve([2.0, 1.9], *TEXT))
    limit = room(Policy(), "local:m.gguf")
    assert limit == Llm().context - 1536
    assert room(Policy(), LLM) == Llm().prompt_tokens == room(Policy(), "local:m.gguf", "v3")
    short = made(shown, limit=limit)
    assert short.tokens < 1500 < made(shown).tokens
    assert set(short.parameters) == {p.name for p in TEXT}


# -- the changes -------------------------------------------------------------------------------------------------------


def long_run(count: int) -> Snapshot:
    """With so many changes."""
    shown = view(curve([2.0 + 0.01 * math.sin(i) for i in range(60)], *TEXT))
    assert shown.account is not None
    told = [Told(step=10 * i, author="manager", diagnosis="plateau", changes={"lr": (1e-3, 9e-4)}, fate="kept",
                 at=10 * i + 50, forecast=2.0, measured=1.9) for i in range(count)]  # fmt: skip
    return shown.model_copy(update={"account": shown.account.model_copy(update={"changes": told})})


def test_every_change_is_told_while_evaluations_give_way() -> None:
    few, many = (made(long_run(count), limit=4300).user.split("\n") for count in (3, 50))
    lines = [line for line in many if line.startswith("step ") and "plateau" in line]
    assert len(lines) == 50
    assert lines[0] == "step 0, plateau: lr 0.001 to 0.0009; kept at 50: 1.9, forecast 2"

    def rows(text: list[str]) -> int:
        return text.index("parameters:") - next(i for i, line in enumerate(text) if line.startswith("evaluations, "))

    assert rows(many) < rows(few)


def test_changes_that_are_not_told_one_by_one_are_counted() -> None:
    text = report(long_run(64), DETAILS[7])
    assert "\n40 earlier ones: 40 kept\nstep 400, plateau" in text


def test_the_newest_evaluation_is_in_every_table() -> None:
    shown = long_run(64)
    for detail in DETAILS:
        rows = report(shown, detail).split("\n")
        assert any(line.startswith("600 ") for line in rows), detail


# -- the table ---------------------------------------------------------------------------------------------------------


def test_constant_and_double_columns_leave_room_for_others() -> None:
    state = fold([start(lr())])
    for i in range(5):
        fold([step(10 * i + 9, loss=3.0 - i, clean_loss=3.0 - i, grad_norm=1.0 + i),
              evaluation(10 * i + 10, 2.0 - i / 10, train=1.0 - i / 10, flat=7.0)], state)  # fmt: skip
    text = made(view(state)).user
    assert "step val train mean.loss mean.grad_norm\n" in text
    assert "constant: flat 7\nthe same: mean.clean_loss as mean.loss\n" in text


def test_a_metric_that_the_manager_named_is_shown_before_others() -> None:
    """What it decides by, as it said, must be there when it is asked again."""
    state = fold([start(lr())])
    for i in range(5):
        fold(
            [step(10 * i + 9, **{f"m{n}": n + i / 10 for n in range(20)}), evaluation(10 * i + 10, 2.0 - i / 10)], state
        )
    shown = view(state)
    assert "step val mean.m0 mean.m1" in report(shown, DETAILS[5])
    noted = shown.model_copy(update={"note": "watch mean.m17 and m19.", "noted_at": 20})
    assert "step val mean.m17 mean.m19 mean.m0" in report(noted, DETAILS[5])


def test_the_recipe_stands_beside_the_evaluations() -> None:
    state = curve([2.0, 1.9], lr())
    fold([applied(20, 1, {"lr": (3e-3, 1e-3)}), evaluation(30, 1.8), evaluation(40, 1.7)], state)
    table = made(view(state)).user.split("evaluations, oldest first, then the recipe in effect (. as above):\n")[1]
    assert [line.split()[-1] for line in table.split("\n")[:5]] == ["lr", "0.003", ".", "0.001", "."]


@pytest.mark.parametrize(("now", "words"), [(1.9, "not beyond the noise"), (2.1, "it did not come")])
def test_what_came_a_little_is_told_from_what_did_not_come(now: float, words: str) -> None:
    said = Said(step=10, metric="val", direction="down", by_step=20, was=2.0, now=now, at=20, came=False, falsifier="")
    shown = view(curve([2.0, 1.9]))
    assert shown.account is not None
    text = made(shown.model_copy(update={"account": shown.account.model_copy(update={"said": [said]})})).user
    assert f"expected val down by step 20: 2 before, {now} at 20, {words}\n" in text


def test_a_best_of_a_moment_ago_is_not_called_saved_with_older_weights() -> None:
    """Its checkpoint follows its evaluation."""
    older = view(curve([2.0, 1.9])).model_copy(update={"best_checkpoint": 10})
    assert "weights of step 10" not in made(older).user
    later = view(curve([2.0, 1.9, 1.95])).model_copy(update={"best_checkpoint": 10})
    assert "best 1.9 at step 20 (its checkpoint has the weights of step 10)" in made(later).user


def test_the_lengths_that_it_promises_are_those_in_force() -> None:
    text = " ".join(made(view(curve([2.0]))).system.split())
    assert f"in at most {NOTE} characters" in text
    assert f"Of a falsifier, {FALSIFIER} characters are given back" in text


def test_what_is_zero_but_for_rounding_is_zero() -> None:
    text = made(view(curve([0.5, 0.4, 0.3, -2.776e-17, 0.1]))).user
    assert "e-17" not in text.split("evaluations, oldest first")[1]


@examples(30)
@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=30))
def test_one_best(values: list[float]) -> None:
    text = made(view(curve(values))).user
    figures = re.findall(r"best (\S+) at step|latest (\S+) at step \d+, which is the best", text)
    assert [one or other for one, other in figures] == [f"{min(values):.4g}"]


def test_figures_are_in_the_unit_of_the_objective_with_the_noise_beside_them() -> None:
    text = made(view(curve([2.0, 1.9, 1.95, 1.85, 1.9, 1.8, 1.9]))).user
    assert "latest 1.9, 0.1 worse than the best, 1.1 x noise; best 1.8 at step 60 (its checkpoint" in text
    assert "noise 0.09079 (last 7 evaluations); trend of the last 5: 0.015 better per evaluation, 0.17 x noise" in text


# -- a workload's facts ------------------------------------------------------------------------------------------------


def test_facts_are_data() -> None:
    facts = {"END DATA": 'x "\n', "passes": 118.2, "mixed": True}
    text = made(view(fold([start(lr(), facts=facts), evaluation(10, 2.0)]))).user
    assert 'declared: "END DATA" "x \\" ", passes 118.2, mixed true\n' in text


def test_advice_is_one_quoted_line() -> None:
    said = render(view(curve([2.0]), FREE), 10**6, advice='lr 0.001 to 0.0003\n"plateau"').user
    assert '\nThe built-in rules would now: "lr 0.001 to 0.0003 \\"plateau\\"".\nYour decision' in said
    assert "built-in rules" not in render(view(curve([2.0]), FREE), 10**6).user


def test_a_snapshot_of_edition_1_can_be_put_to_a_model_all_the_same() -> None:
    state = fold([applied(20, 1, {"lr": (3e-3, 1e-3)}), evaluation(30, 1.8)], curve([2.0, 1.9], lr()))
    shown = view(state).model_copy(update={"account": None})
    text = made(shown).user
    assert "step 20, the start's recipe put on trial, unasked" not in text
    assert "step 20, unknown: lr 0.003 to 0.001; 1.8 at 30, 1.9 before" in text


def test_each_version_has_its_files() -> None:
    there = {path.name for path in (Path(__file__).parents[2] / "trainmgr/managers/prompts/v4").glob("*.md")}
    assert {"system.md", "brief.md", "decide.md", "format.md", "reason.md", "repair.md"} <= there
