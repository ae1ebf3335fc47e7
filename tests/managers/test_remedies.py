"""What is said where the rules see what is the matter, and can do nothing about it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from factories import curve, fold, situations, start, view
from factories.command_line import trainmgr
from factories.episodes import run as episodes
from factories.episodes import space
from factories.ledgers import asked
from factories.ruled import DROP, LEARNING, LR, MEAN, Run, overfitted
from factories.situations import situation
from rich.console import Console

from trainmgr.contract import events
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Policy
from trainmgr.contract.proposal import Proposal
from trainmgr.managers import remedies
from trainmgr.managers.rules import RulesManager
from trainmgr.state.ledger import Ailment, Ledger
from trainmgr.terminal import display, screen
from trainmgr.testing import answer, write_child

CLIP = Parameter(name="clip", type="float", low=0.1, high=5.0, value=1.0, group="optimizer")  # of no use to the rules
NOTHING = "nothing was declared that could help: "
RATE = 'a learning rate (group "optimizer", scale "log")'
REGULARIZER = 'a regularizer (group "regularization")'


def test_nothing_was_declared() -> None:
    proposal = overfitted(space=[CLIP], commands=()).obey()
    assert (proposal.diagnosis, proposal.action) == ("overfitting", "keep")
    assert proposal.helpless == f"{NOTHING}{RATE}, {REGULARIZER} or the command rollback"


def test_a_rollback_alone_is_not_asked_for_again() -> None:
    assert overfitted(space=[CLIP]).obey().helpless == f"{NOTHING}{RATE} or {REGULARIZER}"


def test_without_a_counterpart_it_is_called_worsening() -> None:
    assert overfitted(space=[], counterpart=None).obey().diagnosis == "worsening"


def test_what_the_policy_freezes_was_declared() -> None:
    policy = Policy.model_validate({"parameters": {"rate": {"frozen": True}}})
    text = overfitted(space=[LR], policy=policy).obey().helpless
    assert text == f"{NOTHING}{RATE} or {REGULARIZER} (the policy freezes rate)"


def test_what_was_declared_and_is_used_up_is_told_from_what_is_missing() -> None:
    run = Run(space=[LR, DROP], total=None).curve(LEARNING)
    for _ in range(60):
        proposal = run.evaluate(6.0, 3.0).obey()
    assert (proposal.diagnosis, proposal.action) == ("overfitting", "keep")
    assert (
        proposal.helpless == "everything that could help is already as far as the rules take it: rate 0.0002, drop 0.5"
    )
    alone = overfitted(space=[DROP.model_copy(update={"value": 0.5})], commands=()).obey()
    assert alone.helpless == (
        "everything that could help is already as far as the rules take it: drop 0.5; "
        f"{RATE} and the command rollback would help too, but are not declared"
    )


def test_what_rests_is_not_beyond_help() -> None:
    policy = Policy.model_validate({"limits": {"cooldown_evals": 6}})
    run = overfitted(space=[LR], policy=policy)
    run.obey()
    for _ in range(3):
        proposal = run.evaluate(5.9, 3.0).obey()
    assert (proposal.diagnosis, proposal.action, proposal.helpless) == ("overfitting", "keep", "")


def test_where_no_change_is_left_that_is_the_reason() -> None:
    policy = Policy.model_validate({"limits": {"max_interventions": 0}})
    text = overfitted(policy=policy).obey().helpless
    assert text == "nothing may be changed: all 0 interventions of this run are spent"


@pytest.mark.parametrize(
    ("run", "diagnosis", "helpless"),
    [
        (Run(space=[], commands=()).curve([*LEARNING, math.nan]), "divergence", f"{NOTHING}{RATE} or the command"),
        (
            Run(space=[]).curve(LEARNING).evaluate(4.79, 4.29, norms=(1.0,) * 9 + (50.0,)),
            "instability",
            NOTHING + RATE,
        ),
        (Run(space=[DROP]).curve(LEARNING, None).curve([4.81] * 12, None), "plateau", NOTHING + RATE),
        (Run(space=[LR]).curve(LEARNING), "healthy", ""),
    ],
)
def test_other_ailments(run: Run, diagnosis: str, helpless: str) -> None:
    proposal = run.ask()
    assert (proposal.diagnosis, proposal.action) == (diagnosis, "keep")
    assert proposal.helpless.startswith(helpless)
    assert bool(proposal.helpless) == bool(helpless)


@pytest.mark.parametrize(
    ("rows", "more", "diagnosis"),
    [([(0.0, 0.1)], {"shift": 0.01}, "exploration-collapse"), ([(0.2, 0.4)], {"noise": 0.9}, "unsafe-exploration")],
)
def test_in_reinforcement_learning(rows: list[tuple[float, float]], more: dict[str, Any], diagnosis: str) -> None:
    state = episodes(*rows, parameters=[DROP], **more)
    got = Proposal.model_validate(RulesManager(Policy()).decide(view(state, Policy())))
    assert (got.diagnosis, got.action) == (diagnosis, "keep")
    assert got.helpless.startswith(NOTHING + RATE)
    assert 'an entropy coefficient (group "exploration")' in got.helpless


def test_every_diagnosis_that_is_given_up_names_groups_in_words() -> None:
    assert all(remedies.WORDS.keys() >= set(groups) for groups in remedies.REMEDIES.values())
    shown = view(fold([start(*space(), MEAN)]))
    assert all(remedies.rows(shown, group) for group in ("optimizer", *remedies.EXPLORING, "averaging"))


# -- what the ledger keeps, and a person reads -------------------------------------------------------------------------


def gave_up(number: int, why: str, diagnosis: Any = "overfitting") -> events.Verdict:
    return events.Verdict(
        decision=f"d{number}", telemetry_offset=0, telemetry_sha256="", age_seconds=0.0, result="accepted",
        action="keep", diagnosis=diagnosis, changes={}, command=None, expected=None, evidence="", checks=[],
        helpless=why,
    )  # fmt: skip


def told(*steps: tuple[int, str]) -> tuple[Ledger, list[str]]:
    """The ledger after a verdict at each of these steps, and what was said of it."""
    ledger, said = Ledger(), []
    for number, (at, why) in enumerate(steps, start=1):
        ledger.fold(asked(number, at, number))
        ledger.fold(verdict := gave_up(number, why))
        if ailment := display.begun(verdict, ledger):
            said.append(display.ailment_in_words(ailment, ledger))
    return ledger, said


def test_the_ledger_knows_since_when_and_a_person_is_told_once() -> None:
    ledger, said = told((10, ""), (20, "no rate"), (30, "no rate"), (40, "at its limit"))
    assert ledger.ailments == {"overfitting": Ailment("overfitting", 20, 40, "at its limit")}
    assert said == ["overfitting since step 20; no rate"]
    assert display.ailment_in_words(ledger.ailments["overfitting"], ledger) == (
        "overfitting since step 20; at its limit"
    )


def test_what_has_passed_is_not_said_to_last() -> None:
    ledger, said = told((20, "no rate"), (30, "no rate"), (40, ""), (50, "no rate"), (60, ""))
    assert said == ["overfitting since step 20; no rate"]
    assert display.ailment_in_words(ledger.ailments["overfitting"], ledger) == (
        "overfitting from step 20 to step 50; no rate"
    )
    ledger, _ = told((1000, "no rate"), (1010, ""))
    assert display.ailment_in_words(ledger.ailments["overfitting"], ledger) == "overfitting at step 1,000; no rate"


def test_only_what_is_kept_is_given_up() -> None:
    """A manager cannot have it said with a change, or in an answer that was rejected."""
    state = curve([2.0, 1.9])
    for action, changes, said in (("keep", {}, "no rate"), ("adjust", {"lr": 1e-3}, ""), ("keep", {"lr": 1e-3}, "")):
        raw = answer(action, changes, helpless="no rate")
        ruling = situations.verdict(raw, state, based_on=20)
        assert ruling.helpless == said


BARE = """
with Workload("bare", objective="val_loss", counterpart="train_loss", total_steps=120) as w:
    evals = 0
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step % 10 == 0:
            w.eval(step, {"val_loss": 1.0 + abs(step - 60) / 50, "train_loss": 2.0 - step / 100})
            evals += 1
            until(lambda: settled(evals))
"""


@pytest.mark.slow
def test_a_script_that_declared_nothing_is_told_what_would_help(tmp_path: Path) -> None:
    done = trainmgr("run", write_child(tmp_path, BARE), "--manager", "rules", cwd=tmp_path)
    line = f"{NOTHING}{RATE}, {REGULARIZER} or the command rollback"
    began = [line for line in done.stderr.splitlines() if NOTHING in line]
    assert [text.split("  ")[-1] for text in began] == [f"overfitting since step 80; {line}"]
    assert f"overfitting since step 80; {line}" in done.stdout
    shown = json.loads(trainmgr("show", "latest", "--json", cwd=tmp_path).stdout)
    assert shown["ailments"] == [{"diagnosis": "overfitting", "since": 80, "last": 110, "why": line}]
    assert "hold" in trainmgr("audit", "latest", cwd=tmp_path).stdout
    assert "byte for byte" in trainmgr("replay", "latest", cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_run_that_was_never_finite_is_not_silent(tmp_path: Path) -> None:
    body = BARE.replace("1.0 + abs(step - 60) / 50", "float('nan')").replace('"loss": 1.0', '"loss": float("nan")')
    done = trainmgr("run", write_child(tmp_path, body), "--manager", "rules", cwd=tmp_path)
    said = "unclear since step 10; loss never finite so far; no rollback and no other recipe can help"
    assert done.stderr.count(said) == 1
    assert done.stdout.count(said) == 1
    assert "val_loss ended at nan; it was not finite at any of 12 evaluations." in done.stdout


def test_the_live_view_says_it_too() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    with screen.LiveView(console) as live:
        ledger = Ledger()
        for number in (1, 2):
            ledger.fold(asked(number, 10 * number))
            ledger.fold(verdict := gave_up(number, "no [rate]"))
            live.event(verdict, situation(fold([start()]), ledger=ledger))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("overfitting since step 10; no [rate]") == 1
