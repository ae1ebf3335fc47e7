"""What probation says, how it ends a run on its best, and that no manager escapes it."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
from factories import everything, view
from factories.profiles import examples
from factories.watched import KEEPS, TOTAL, Run, learned
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.base.wire import Value
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Actions, Policy, Probation
from trainmgr.managers import prompt
from trainmgr.state.ledger import Ledger
from trainmgr.terminal import display

# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("commands", "manager", "words"), [
    (["stop"], "llm:m", "no rollback"), (["rollback", "stop"], "llm:m", "no checkpoint"), (KEEPS, "llm:m", ""),
    ([], "rules", ""),
])  # fmt: skip
def test_what_cannot_be_taken_back_is_said(commands: list[str], manager: str, words: str) -> None:
    run, out = Run(commands=commands, manager=manager), io.StringIO()
    said = display.watched_in_words(run.now)
    assert (words in said) if words else not said
    lines = display.Lines(out)
    lines.event(run.log[0], run.now)
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
    judged = run.judge(raw)
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


# -- what is said of it ------------------------------------------------------------------------------------------------


def test_in_words() -> None:
    run = learned().change(lr=2e-3)
    assert display.watched_in_words(run.now).startswith("on trial since step 60: d1, forecast 4")
    run.measure(9.0)
    (text,) = [display.event_in_words(back, run.now) for back in run.reversals]
    assert text is not None
    assert text.startswith("d1 taken back: 9 where 4")
    assert text.endswith("40 steps lost: roll back to best; lr = 0.001")
    assert display.watched_in_words(run.now) == (
        "taken back 1 time, 40 steps lost; trust lr 0.5; the script offers no checkpoint: weights go back to the best "
        "ones, not to those from before a change"
    )
    assert [display.origin_in_words(run.ledger, revision) for revision in (1, 2)] == ["manager", "probation"]
    assert (
        "taken back at 70 for harm, weights too: 9, forecast 4"
        in prompt.render(view(run.state, ledger=run.ledger), 5000).user
    )
    assert [past.taken_back for past in view(run.state, ledger=run.ledger).interventions] == ["harm", ""]
    run.measure(*[4.0] * 10).change(dropout=0.05).measure(*[4.0] * 5)
    text = display.event_in_words(run.reversals[-1], run.now)
    assert text is not None
    assert "d2 taken back: no proof that it helped, 4 where 4 was forecast" in text
    assert text.endswith("50 steps in vain: dropout = 0.1")
    assert "for want of proof: 4, forecast 4" in prompt.render(view(run.state, ledger=run.ledger), 5000).user


# -- whatever happens --------------------------------------------------------------------------------------------------


VALUES = st.floats(3.0, 9.0) | st.sampled_from([4.0, 4.0, 4.01, 3.99, math.nan, math.inf, -math.inf, 0.0])
MOVES = st.tuples(
    st.sampled_from(["keep", "keep", "adjust", "adjust", "rollback", "undo", "undo weights"]),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
    st.none() | st.integers(-5, 400),
)


def wish(run: Run, action: str, draws: list[float]) -> dict[str, Any] | None:
    """An answer that the guard accepts, if there is one."""
    seen = view(run.state, run.policy, run.ledger)
    if action.startswith("undo"):
        weights = action != "undo" and seen.undo is not None and seen.undo.weights
        there = seen.undo is not None and (weights or seen.undo.values)
        return {"action": "undo", "changes": {}, "to": "weights" if weights else None} if there else None
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
    target = (
        seen.checkpoints[int(draws[0] * len(seen.checkpoints)) % len(seen.checkpoints)]
        if action == "rollback"
        else None
    )
    return {"action": action, "changes": changes, "to": target}


WATCHES = st.builds(
    Probation, window_evals=st.integers(1, 6), patience=st.integers(1, 3), loss_budget=st.floats(0, 0.5),
    max_reversals=st.integers(0, 3), challenge_evals=st.integers(0, 9), least_trust=st.floats(0.01, 0.5),
    catastrophe=st.floats(1, 5),
    tolerance=st.floats(0.001, 0.2), grow=st.floats(1, 3),
)  # fmt: skip


@examples(150)
@given(st.lists(st.tuples(VALUES, MOVES), min_size=1, max_size=40), WATCHES, st.booleans(), st.booleans(),
       st.sampled_from(["min", "max"]), st.integers(0, 40), st.booleans())  # fmt: skip
def test_no_manager_escapes(
    moments: list[tuple[float, tuple[str, list[float], int | None]]],
    watch: Probation,
    planned: bool,
    saves: bool,
    mode: str,
    cut: int,
    keeps: bool,
) -> None:
    """Whatever it answers: what is lost stays within the loss budget and one trial, and what is taken back is back."""
    run = Run(*everything(), policy=Policy(probation=watch), mode=mode, total_steps=TOTAL if planned else None,
              **({"commands": KEEPS} if keeps else {}))  # fmt: skip
    for number, (value, (action, draws, wait)) in enumerate(moments):
        trials, demoted = copy.deepcopy(run.ledger.trials), run.ledger.demoted
        reversals, issued, proofs = len(run.reversals), of_the_manager(run), len(run.of(events.Kept))
        run.measure(value, best=saves)
        over = planned and run.at >= TOTAL
        settled = {revision for kept in run.of(events.Kept)[proofs:] for revision in kept.revisions}
        if len(run.reversals) > reversals:
            (back,) = run.reversals[reversals:]
            first = next(trial for trial in trials if trial.revisions[0] in back.revisions)
            culprit = first if back.demoted else trials[[t.revisions for t in trials].index(tuple(back.revisions))]
            harmful = [trial for trial in trials if is_harm(run, trial, watch)]
            assert bool(harmful) == (back.why == "harm") or culprit.challenge
            assert not harmful or {*harmful[-1].revisions} <= {*back.revisions}
            assert (back.lost > 0, back.idle > 0) in (
                ((False, False),) if back.challenge else ((True, False), (False, True))
            )
            stays = {name for t in trials[trials.index(culprit) + 1 :] for name in t.before} if not back.demoted else ()
            assert all(run.state.recipe[n] == old for n, old in culprit.before.items() if n not in stays)
            assert not back.demoted or not run.ledger.trials
        elif not over:
            assert not any(is_harm(run, trial, watch) for trial in trials if not {*trial.revisions} & settled)
        assert all(watch.least_trust <= trust < 1 for trust in run.ledger.trust.values())
        assert len(run.ledger.trials) <= 8
        raw = wish(run, action, draws)
        if raw is not None:
            run.change(raw.pop("action"), raw.get("to"), wait, **raw["changes"])
        if demoted:
            assert of_the_manager(run) == issued
            assert all(trial.challenge for trial in run.ledger.trials)
        if number == cut:
            again = Ledger()
            for payload in run.log:
                again.fold(payload)
            assert again == run.ledger
            run.ledger = copy.deepcopy(run.ledger)
    faults = [back for back in run.reversals if not back.challenge]
    assert [back.demoted for back in faults[:-1]] == [False] * (len(faults) - 1)
    if planned:
        assert all(back.lost_in_all <= watch.loss_budget * TOTAL for back in faults[:-1])
    else:
        assert len(faults) <= watch.max_reversals + 1


def of_the_manager(run: Run) -> int:
    """Overrides that are the manager's."""
    return sum(event.origin == "manager" for event in run.of(events.OverrideIssued))


def is_harm(run: Run, trial: Any, watch: Probation) -> bool:
    """The documented definition, written down once more."""
    forecast, found = trial.forecast, []
    if forecast.level is None:
        return False
    sign = 1 if run.state.start.objective.mode == "min" else -1  # type: ignore[union-attr]
    for number, step, value in run.state.measured:
        n = number - forecast.evals
        if n < 1 or step < trial.step:
            continue
        progress = sign * (forecast.level - forecast.at(n))
        expected = sign * forecast.level - (progress / 2 if progress > 0 else progress)
        found.append(sign * value - expected if math.isfinite(value) else math.inf)
    if not found or not math.isfinite(found[-1]):
        return bool(found)
    least, noise = watch.tolerance * forecast.scale, forecast.noise
    patience = min(watch.patience, watch.window_evals)
    late = found[-patience:]
    if noise is None or (noise <= 1e-9 * forecast.scale and not forecast.slope):
        return least > 0 and len(late) == patience and all(x > watch.catastrophe * 10 * least for x in late)
    few = 1 + 2 / max(1, min(forecast.evals, 12) - 2)
    limit = max(least, watch.noise_factor * noise * few)
    return limit > 0 and (found[-1] > watch.catastrophe * limit or (len(late) == patience and min(late) > limit))
