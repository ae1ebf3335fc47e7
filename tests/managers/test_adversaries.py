"""Managers that mean no good: what they ask for is as bad as is documented, and never more than is allowed."""

from __future__ import annotations

import math
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import factories
import pytest
from factories import augment, batch, curve, dropout, ema, evaluation, everything, fold, kind, lr, step, view
from factories.profiles import examples
from factories.situations import judge
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.base.errors import ManagerError, UserError
from trainmgr.contract import events, protocol
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Actions, Joint, Limits, ParameterLimits, Policy, Staleness
from trainmgr.contract.proposal import Proposal
from trainmgr.managers import catalog
from trainmgr.managers.adversaries import PROTECTIVE, TOO_LONG, UPWARDS, Adversary, FlipFlop, Late, Random
from trainmgr.managers.base import Consultant, Manager
from trainmgr.readers import proof, replay
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.testing import supervise, write_child

MINIMAL = Path(__file__).parents[2] / "workloads" / "minimal.py"
NO_STOP = Policy(actions=Actions(stop=False))
ONLY_CHANGES = Policy(actions=Actions(stop=False, rollback=False), limits=Limits(cooldown_evals=0))
RATE = lr(value=1e-3)
LEARNING = [3.0, 2.5, 2.0]


def ask(manager: Manager, state: RunState, policy: Policy = ONLY_CHANGES, ledger: Ledger | None = None) -> Proposal:
    """The answer, which must be one that the guard accepts."""
    ledger = ledger or Ledger()
    raw = manager.decide(view(state, policy, ledger))
    found = judge(raw, state, policy, ledger)
    assert [(check.name, check.reason) for check in found.checks if not check.ok] == []
    assert found.result == "accepted"
    assert found.proposal is not None
    return found.proposal


def change(state: RunState, revision: int, **values: Any) -> RunState:
    """A change that the workload applied after its last evaluation."""
    changes = {name: (state.recipe[name], value) for name, value in values.items()}
    return fold([factories.applied(state.step, revision, changes)], state)


def number(**changed: Any) -> Parameter:
    return Parameter(**{"name": "p", "type": "float", "low": 0.0, "high": 1.0, "max_delta": 0.25, "value": 0.5,
                        **changed})  # fmt: skip


# -- adversary ---------------------------------------------------------------------------------------------------------


def test_the_worst_of_each_group() -> None:
    assert {group: ask(Adversary(), curve(LEARNING, number(group=group))).changes["p"] for group in UPWARDS} == {
        group: 0.75 if up else 0.25 for group, up in UPWARDS.items()
    }


@pytest.mark.parametrize("group", PROTECTIVE)
def test_what_protects_is_switched_off(group: str) -> None:
    off = number(group=group, off=-1.0)
    assert ask(Adversary(), curve(LEARNING, off)).changes == {"p": -1.0}
    already = number(group=group, off=-1.0, value=-1.0)
    assert ask(Adversary(), curve(LEARNING, already)).action == "keep"


def test_rates_rise_and_regularization_falls_while_it_overfits() -> None:
    state = curve([3.0, 2.0, 2.2, 2.5], RATE, dropout(value=0.3), train=[3.0, 1.5, 1.0, 0.5])
    proposal = ask(Adversary(), state)
    assert proposal.action == "adjust"
    assert proposal.changes == {"lr": 2e-3, "dropout": pytest.approx(0.1)}


@pytest.mark.parametrize("values", [[3.0, 2.0, math.nan], [3.0, 2.0, math.inf]])
def test_a_rate_that_may_not_rise_collapses(values: list[float]) -> None:
    assert ask(Adversary(), curve(values, RATE)).changes == {"lr": 1e-4}


def test_a_rate_that_may_rise_rises_while_training_diverges() -> None:
    state = curve([3.0, 2.0, 2.1], RATE, train=[3.0, 2.0, 3.5])
    assert ask(Adversary(), state).changes == {"lr": 1e-4}
    unbound = ONLY_CHANGES.model_copy(update={"joint": Joint(no_raise_when_diverging=False)})
    assert ask(Adversary(), state, unbound).changes == {"lr": 2e-3}


def test_what_was_lost_is_not_learned_again() -> None:
    state = change(curve([3.0, 2.0, 2.9], RATE), 1, lr=9e-4)
    fold([evaluation(40, 2.8)], state)  # it learns again, which is not undone by a higher rate
    assert ask(Adversary(), state).changes == {"lr": pytest.approx(9e-5)}


def test_a_rate_at_its_highest_stays_there() -> None:
    assert ask(Adversary(), curve(LEARNING, lr(value=5e-3))).action == "keep"


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        (batch(), 24),
        (augment(), True),
        (augment(value=True, group="regularization"), False),
        (augment(group="regularization"), None),
        (augment(group="reward"), True),
        (kind(), "b"),
        (kind(value="c"), "a"),
        (kind(group="regularization"), "b"),
        (number(group="loss weight", scale="log", low=0.1, max_delta=None, max_ratio=3.0, min_ratio=0.2), 0.1),
        (number(), 0.75),
    ],
)
def test_what_has_no_direction_goes_away_from_its_start(parameter: Parameter, expected: Any) -> None:
    assert ask(Adversary(), curve(LEARNING, parameter)).changes.get(parameter.name) == expected


def test_away_from_its_start_it_goes_on() -> None:
    state, values = curve(LEARNING, number()), []
    for revision in range(1, 5):
        changes = ask(Adversary(), state).changes
        values.append(changes.get("p"))
        if changes:
            change(state, revision, p=changes["p"])
        fold([evaluation(state.step + 10, 4.0)], state)
    assert values == [0.75, 1.0, None, None]


def test_what_helped_is_undone() -> None:
    helped = change(curve(LEARNING, RATE, dropout(), kind()), 1, lr=5e-4, dropout=0.2, kind="c")
    fold([evaluation(40, 1.5)], helped)
    assert ask(Adversary(), helped).changes == {"lr": 1e-3, "dropout": 0.0, "kind": "a"}
    harmed = change(curve(LEARNING, RATE, dropout(value=0.3)), 1, lr=1.5e-3)
    fold([evaluation(40, 2.5)], harmed)
    assert ask(Adversary(), harmed).changes == {"lr": 3e-3, "dropout": pytest.approx(0.1)}


def test_what_helped_is_undone_as_far_as_one_change_reaches() -> None:
    state = change(curve(LEARNING, lr(value=4e-3)), 1, lr=1e-3)
    fold([evaluation(40, 1.5)], state)
    assert ask(Adversary(), state).changes == {"lr": 2e-3}


def test_an_average_that_helped_is_switched_off() -> None:
    state = change(curve(LEARNING, ema(group="other")), 1, ema=0.98)
    fold([evaluation(40, 1.5)], state)
    assert ask(Adversary(), state).changes == {"ema": 0.0}


def test_with_an_objective_to_be_maximized_too() -> None:
    state = change(curve([1.0, 2.0, 3.0], RATE, mode="max"), 1, lr=5e-4)
    fold([evaluation(40, 4.0)], state)
    assert ask(Adversary(), state).changes == {"lr": 1e-3}


def test_what_rests_is_left_alone() -> None:
    state = change(curve(LEARNING, RATE), 1, lr=5e-4)
    assert ask(Adversary(), state, NO_STOP.model_copy(update={"actions": ONLY_CHANGES.actions})).action == "keep"


def test_it_goes_back_to_the_beginning_and_never_to_the_best() -> None:
    proposal = ask(Adversary(), curve(LEARNING, RATE), Policy())
    assert (proposal.action, proposal.to, proposal.changes) == ("rollback", "initial", {"lr": 1e-4})


@pytest.mark.parametrize("values", [[3.0, 2.0, 4.5], [3.0, 2.0, math.nan]])
def test_it_does_not_go_back_where_that_would_heal(values: list[float]) -> None:
    assert ask(Adversary(), curve(values, RATE), NO_STOP).action != "rollback"


def test_it_ends_the_run_early_and_not_on_the_best() -> None:
    forbidden = Policy(actions=Actions(rollback=False, stop_settled_evals=0))
    proposal = ask(Adversary(), curve(LEARNING, RATE), forbidden)
    assert (proposal.action, proposal.to) == ("stop", None)
    for state in (curve(LEARNING, RATE, every=300), curve([3.0], RATE)):
        assert ask(Adversary(), state, forbidden).action == "adjust"


@pytest.mark.parametrize("lost", [2.9, math.nan])
def test_it_ends_the_run_at_any_time_on_what_it_destroyed(lost: float) -> None:
    state = curve([3.0, 2.0, lost], RATE, every=300)
    forbidden = Policy(actions=Actions(rollback=False, stop_settled_evals=0))
    assert ask(Adversary(), state, forbidden).action == "stop"


def test_it_forecasts_the_harm_truly() -> None:
    for mode, direction in (("min", "up"), ("max", "down")):
        expected = ask(Adversary(), curve(LEARNING, RATE, mode=mode), ONLY_CHANGES).expected
        assert expected is not None
        assert (expected.metric, expected.direction) == ("val", direction)


# -- flipflop ----------------------------------------------------------------------------------------------------------


def test_from_one_end_to_the_other() -> None:
    state, seen = curve(LEARNING, *everything()), []
    for revision in range(1, 7):
        changes = dict(ask(FlipFlop(), state).changes)
        assert set(changes) == set(state.recipe)
        seen.append(dict(state.recipe))
        change(state, revision, **changes)
        fold([evaluation(state.step + 10, 2.0)], state)
    for before, now in pairwise(seen[1:]):
        assert (now["augment"], now["kind"]) == (not before["augment"], "a" if before["kind"] == "c" else "c")
    for name in ("lr", "dropout", "ema", "batch"):
        ups = [now[name] > before[name] for before, now in pairwise(seen)]
        assert ups == [True, False] * 2 + [True], name


def test_as_often_as_it_may() -> None:
    state = change(curve(LEARNING, RATE, dropout(value=0.2)), 1, lr=2e-3)
    policy = Policy(limits=Limits(cooldown_evals=2))
    assert set(ask(FlipFlop(), state, policy).changes) == {"dropout"}
    fold([evaluation(40, 2.0), evaluation(50, 2.0)], state)
    assert ask(FlipFlop(), state, policy).changes["lr"] == 2e-4


def test_at_an_end_it_goes_to_the_other_one() -> None:
    assert ask(FlipFlop(), curve(LEARNING, number(value=1.0))).changes == {"p": 0.75}
    assert ask(FlipFlop(), curve(LEARNING, number(low=0.5, high=0.5))).action == "keep"


# -- random ------------------------------------------------------------------------------------------------------------


def draws(state: RunState, policy: Policy = ONLY_CHANGES, count: int = 300) -> list[Proposal]:
    return [ask(Random(str(stream)), state, policy) for stream in range(count)]


def test_every_action_and_every_target_is_drawn() -> None:
    found = draws(curve(LEARNING, RATE), Policy(actions=Actions(stop_settled_evals=0)))
    assert {(p.action, p.to) for p in found} == {
        ("keep", None), ("adjust", None), ("rollback", "best"), ("rollback", "initial"), ("stop", None),
        ("stop", "best"),
    }  # fmt: skip
    assert {bool(p.changes) for p in found if p.action == "rollback"} == {True, False}
    counts = [sum(p.action == action for p in found) for action in ("keep", "adjust", "rollback", "stop")]
    assert min(counts) > 300 / 4 / 2


def test_every_subset_and_the_whole_reach_on_its_scale() -> None:
    found = [p.changes for p in draws(curve(LEARNING, *everything()), count=800) if p.action == "adjust"]
    assert len({frozenset(changes.keys() & {"lr", "batch", "kind"}) for changes in found}) == 2**3
    assert {frozenset(p.changes) for p in draws(curve(LEARNING, RATE), count=60)} == {frozenset(), frozenset({"lr"})}
    assert all(found)

    def values(name: str) -> list[Any]:
        return [changes[name] for changes in found if name in changes]

    rates = [math.log(value) for value in values("lr")]
    middle = (math.log(3e-4) + math.log(5e-3)) / 2
    assert min(rates) >= math.log(3e-4) * 1.0001
    assert max(rates) <= math.log(5e-3)
    assert 0.35 < sum(rate < middle for rate in rates) / len(rates) < 0.65
    assert set(values("batch")) == set(range(8, 25)) - {16}
    assert set(values("augment")) == {True}
    assert set(values("kind")) == {"b", "c"}
    assert all(0 < value <= 0.2 for value in values("dropout"))


def test_off_is_drawn_too() -> None:
    found = {p.changes["ema"] for p in draws(curve(LEARNING, ema(value=0.95)), count=60) if p.changes}
    assert 0.0 in found
    assert len(found) > 10


def test_the_same_run_draws_the_same_whatever_the_clock_said() -> None:
    slow, fast = (curve(LEARNING, *everything()) for _ in range(2))
    slow.last_time = 1e6
    slow.texts = [("info", "took 17 s")]
    assert view(slow) != view(fast)
    manager = Random()
    assert manager.decide(view(slow)) == manager.decide(view(fast)) == Random().decide(view(fast))
    other = [Random(stream).decide(view(fast)) for stream in ("1", "2", "3", "4")]
    assert any(found != other[0] for found in other)
    assert (Random().name, Random("2").name) == ("random", "random:2")


# -- late --------------------------------------------------------------------------------------------------------------


def test_how_long_it_waits() -> None:
    state = curve(LEARNING, RATE)  # a step a second; an answer may be 50 steps old
    assert Late(Policy()).wait(view(state)) == pytest.approx(TOO_LONG * 51)
    assert Late(Policy(staleness=Staleness(max_age_seconds=5))).wait(view(state)) == TOO_LONG * 5
    assert Late(Policy(staleness=Staleness(max_age_steps=9))).wait(view(state)) == pytest.approx(TOO_LONG * 10)
    assert Late(Policy(), "0.5").wait(view(state)) == 0.5
    unplanned = fold([factories.start(RATE, total_steps=None), step(1)])
    assert Late(Policy()).wait(view(unplanned)) == TOO_LONG * 600


def test_before_a_speed_is_known_it_keeps() -> None:
    state = fold([factories.start(RATE), evaluation(0, 3.0)])
    late = Late(Policy())
    late.begin("d1", Ledger().spent, lambda _: None)
    assert late.decide(view(state))["action"] == "keep"


def test_outside_a_run_it_answers_at_once() -> None:
    seen = view(curve(LEARNING, RATE))
    assert Late(Policy(), "1e9").decide(seen) == Adversary().decide(seen)


def test_the_end_of_the_run_ends_the_wait() -> None:
    late, failed = Late(Policy(), "1e300"), []
    assert isinstance(late, Consultant)
    assert "late:1e300" in late.preflight()
    late.begin("d1", Ledger().spent, lambda _: None)

    def decide() -> None:
        with pytest.raises(ManagerError, match="has ended"):
            late.decide(view(curve(LEARNING, RATE)))
        failed.append(True)

    thread = threading.Thread(target=decide)
    thread.start()
    late.close()
    thread.join()
    assert failed


# -- by name -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "random:7", "adversary", "flipflop", "late", "late:0.5"])
def test_they_are_made_by_name(name: str, tmp_path: Path) -> None:
    manager = catalog.make(name, Policy(), tmp_path)
    assert (manager.name, manager.deterministic) == (name, True)


@pytest.mark.parametrize("name", ["late:soon", "late:-1", "late:nan", "late:inf", "adversary:9", "flipflop:9"])
def test_names_that_there_are_not(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        catalog.make(name, Policy(), tmp_path)


# -- whatever happens --------------------------------------------------------------------------------------------------

GROUPS = st.sampled_from([*UPWARDS, "loss weight", "data", "other"])
VALUES = st.floats(0.1, 9.0) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0])


@st.composite
def runs(draw: st.DrawFn) -> tuple[RunState, Policy, Ledger]:
    """Any action space, curve, policy; values that drifted; changes that were applied."""
    some = [augment(), kind(), *draw(st.lists(factories.parameters(), max_size=4))]
    space = [p.model_copy(update={"name": f"p{i}", "group": draw(GROUPS)}) for i, p in enumerate(some)]
    space.append(lr(value=draw(st.floats(1e-5, 5e-3))))
    values, mode = draw(st.lists(VALUES, max_size=9)), draw(st.sampled_from(["min", "max"]))
    train = draw(st.lists(VALUES, max_size=9))
    state = curve(values, *space, train=train, mode=mode, best=draw(st.booleans()), every=draw(st.integers(1, 120)))
    for revision in range(1, 1 + draw(st.integers(0, 3))):
        changes = ask(draw(MANAGERS), state, ONLY_CHANGES).changes
        fold([factories.applied(state.step, revision, {n: (state.recipe[n], v) for n, v in changes.items()})], state)
        drifted = draw(st.sampled_from([{}, {}, {"lr": "NaN"}, {"lr": 0.0}, {"p0": "x", "p1": 7}, {"p2": "NaN"}]))
        fold([evaluation(state.step, value, params=drifted) for value in draw(st.lists(VALUES, max_size=2))], state)
    policy = Policy(
        limits=Limits(
            cooldown_evals=draw(st.integers(0, 2)),
            max_interventions=draw(st.none() | st.integers(0, 2)),
        ),
        actions=Actions(rollback=draw(st.booleans()), stop=draw(st.booleans())),
        joint=Joint(no_raise_when_diverging=draw(st.booleans())),
        parameters={"lr": ParameterLimits(frozen=True)} if draw(st.booleans()) else {"lr": ParameterLimits(high=1e-3)},
    )
    return state, policy, Ledger(accepted=draw(st.integers(0, 2)))


MANAGERS = st.sampled_from([Random(), Random("2"), Random("3"), Adversary(), FlipFlop()])


@examples(300)
@given(MANAGERS, runs())
def test_the_guard_never_objects_and_the_same_question_gets_the_same_answer(
    manager: Manager, run: tuple[RunState, Policy, Ledger]
) -> None:
    state, policy, ledger = run
    proposal = ask(manager, state, policy, ledger)
    assert proposal == ask(manager, state, policy, ledger)


# -- real runs ---------------------------------------------------------------------------------------------------------


def failed_checks(heard: list[events.Verdict]) -> set[str]:
    return {check.name for verdict in heard for check in verdict.checks if not check.ok}


@pytest.mark.parametrize("name", ["random:1", "adversary", "flipflop", "late:0.02"])
def test_whatever_they_do_the_log_holds(name: str, tmp_path: Path) -> None:
    late = name.startswith("late")
    policy = NO_STOP.model_copy(update={"staleness": Staleness(max_age_seconds=0.01 if late else 600)})
    paths, closing, heard = supervise(tmp_path, MINIMAL, catalog.make(name, policy, tmp_path), policy=policy)
    on_best = bool(heard.of(events.Ending))  # one evaluation before the end, where that was not the best
    stopped = any(record.command and record.command.name == "stop" for record in heard.of(protocol.Applied))
    assert closing.status == ("stopped" if stopped else "completed")  # so short a run may end before it hears of it
    assert on_best if stopped else closing.steps == 1000
    verdicts = heard.of(events.Verdict)
    assert len(verdicts) > 1
    if late:
        assert all("fresh" in failed_checks([verdict]) for verdict in verdicts)
        assert closing.interventions == 0
        assert not on_best  # the recipe was the operator's throughout
        assert not paths.control.exists()
    else:  # what training did in the meantime: more steps than an answer may be old, divergence, near the end, the end
        judged = [v for v in verdicts if not any("probation has changed" in check.reason for check in v.checks)]
        meanwhile = {"fresh", "joint", "available", "running", "shape", "no-op"}  # a checkpoint too far back, undone
        assert failed_checks(judged) <= meanwhile
    assert [str(finding) for finding in proof.prove(paths).findings] == []
    rebuilt = replay.rebuild(paths, catalog.make(name, policy, tmp_path))
    assert rebuilt.differences == []
    assert rebuilt.counts["proposal"] == len(verdicts)


@pytest.mark.parametrize("manager", [Random("3"), Adversary(), FlipFlop()], ids=lambda manager: manager.name)
def test_a_repeated_run_is_the_same(manager: Manager, tmp_path: Path) -> None:
    script = write_child(tmp_path)
    first, _, heard = supervise(tmp_path, script, manager)
    again, _, _ = supervise(tmp_path, script, manager)
    assert replay.compare_training(first, again).first is None
    assert failed_checks(heard.of(events.Verdict)) == set()
    assert heard.of(protocol.Applied)
