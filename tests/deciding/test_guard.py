"""The central promise: whatever a manager answers, what passes is inside the action space and one step away."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from factories import (
    FREE,
    JSON,
    NUMBERS,
    SCALARS,
    SURROGATE,
    TEXTS,
    applied,
    checkpoint,
    curve,
    dropout,
    ema,
    end,
    evaluation,
    everything,
    fold,
    lr,
    parameters,
    start,
    step,
)  # fmt: skip
from factories.profiles import examples
from factories.situations import judge
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.contract.policy import Actions, Joint, Limits, ParameterLimits, Policy, Staleness
from trainmgr.contract.proposal import Proposal
from trainmgr.deciding import guard
from trainmgr.state.run_state import RunState

CLIP = Policy(limits=Limits(clip=True))


def answer(action: str = "adjust", changes: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"diagnosis": "unclear", "evidence": "", "action": action, "changes": changes or {}, **more}


def failed(judgment: guard.Judgment) -> dict[str, str]:
    """Name to reason of the checks that did not pass."""
    assert judgment.result == "rejected" or all(check.ok for check in judgment.checks)
    return {check.name: check.reason for check in judgment.checks if not check.ok}


def promise(judgment: guard.Judgment, state: RunState, policy: Policy) -> None:
    if judgment.result == "rejected":
        assert any(check.reason for check in judgment.checks if not check.ok)
        return
    space = policy.narrow(state.space)
    for name, value in judgment.changes.items():
        parameter = space.parameters[name]
        assert type(value) is {"float": float, "int": int, "bool": bool, "choice": str}[parameter.type]
        assert parameter.objection(value) is None
        assert parameter.too_far(value, parameter.value) is None
        assert value != parameter.value
        reach = parameter.reach(parameter.value)
        if reach is not None and value != parameter.off:
            assert reach[0] - 1e-8 * abs(reach[0]) <= value <= reach[1] + 1e-8 * abs(reach[1])


@st.composite
def states(draw: st.DrawFn) -> RunState:
    """A run with any parameters, a good or terrible curve, and values that drifted anywhere."""
    space = draw(st.just(everything()) | parameters().map(lambda p: [p]))
    state = curve(draw(st.lists(st.floats(), max_size=4)), *space, train=draw(st.lists(st.floats(), max_size=4)))
    drifted = st.dictionaries(st.sampled_from([p.name for p in space]), st.sampled_from(
        ["NaN", True, 0, 0.0, -1.0, 1e300, 10**15, 1e-300, "x"]), max_size=2)  # fmt: skip
    found = draw(st.just({}) | drifted)
    fold([evaluation(state.step + 1, 1.0, params=found)] if found else [], state)
    if draw(st.booleans()):
        fold([applied(state.step, 1, {space[0].name: (space[0].value, space[0].value)}, "rollback")], state)
    return state


POLICIES = st.builds(
    Policy,
    limits=st.builds(Limits, clip=st.booleans(), cooldown_evals=st.integers(0, 2), lead_steps=st.integers(0, 5),
                     max_interventions=st.none() | st.integers(0, 2)),
    joint=st.builds(Joint, no_raise_when_diverging=st.booleans()),
)  # fmt: skip
NARROW = {"lr": ParameterLimits(high=1e-3, max_ratio=1.1), "batch": ParameterLimits(low=2.5), "ema":
          ParameterLimits(frozen=True)}  # fmt: skip


@st.composite
def answers(draw: st.DrawFn, names: list[str]) -> Any:
    """From nearly right to nonsense."""
    if draw(st.integers(0, 9)) == 0:
        return draw(JSON)
    wishes = (
        st.floats(-1, 100) | st.floats(0, 0.01) | st.integers(-1, 100) | SCALARS | JSON | st.sampled_from(["a", "b"])
    )
    raw = answer(draw(st.sampled_from(["adjust", "adjust", "rollback", "stop", "keep"])),
                 draw(st.dictionaries(st.sampled_from(names) | TEXTS, wishes, max_size=3)))  # fmt: skip
    if draw(st.integers(0, 3)) == 0:
        raw[draw(st.sampled_from([*raw, "to", "expected", "confidence", "falsifier"]) | TEXTS)] = draw(JSON | NUMBERS)
    if draw(st.integers(0, 9)) == 0:
        raw.pop(draw(st.sampled_from(sorted(raw))))
    return raw


@examples(600)
@given(st.data(), states(), POLICIES, st.booleans())
def test_whatever_is_proposed_what_passes_is_within_bounds_and_reach(
    data: st.DataObject, state: RunState, policy: Policy, narrow: bool
) -> None:
    if narrow and "lr" in state.space.parameters:
        policy = policy.model_copy(update={"parameters": NARROW})
    raw = data.draw(answers(list(state.space.parameters)))
    judgment = judge(raw, state, policy)
    promise(judgment, state, policy)
    assert judge(raw, state, policy) == judgment


@examples(300)
@given(parameters(), st.floats() | st.integers(), st.booleans())
def test_one_number_for_one_parameter(parameter: Any, wish: Any, clip: bool) -> None:
    state, policy = fold([start(parameter)]), CLIP if clip else Policy()
    judgment = judge(answer(changes={"p": wish}), state, policy)
    promise(judgment, state, policy)
    kinds = (int,) if parameter.type == "int" else (int, float)
    if clip and type(wish) in kinds and abs(wish) < 2**53:
        assert set(failed(judgment)) <= {"no-op"}


@examples(150)
@given(JSON)
def test_a_replay_of_the_recorded_answer_gets_the_same_verdict(raw: Any) -> None:
    """The log keeps NaN as a string; the guard judges what the log keeps."""
    state = curve([2.0])
    raw = answer(changes={"lr": raw})
    try:
        recorded = json.loads(guard.to_json(raw, inf_nan_mode="strings"))
    except ValueError:
        assert "schema" in failed(judge(raw, state))
        return
    assert judge(raw, state) == judge(recorded, state)


# -- each check, with its reason -----------------------------------------------------------------------------------


def deep(levels: int) -> Any:
    value: Any = 1.0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("raw", [
    None, 3, "adjust", [], {}, answer("explode"), answer(evidence=None), answer(confidence="high"), answer(to=3),
    answer(confidence=math.nan), answer(confidence=2), answer(confidence=10**400), answer(extra=1),
    answer(evidence="x" * 1001), answer(changes={"lr": None}), answer(changes={"lr": [1e-3]}),
    answer(changes=[["lr", 1]]),
    answer(changes={"lr": deep(100)}), answer(changes={"lr": deep(100_000)}), answer(evidence=SURROGATE),
    answer(changes={SURROGATE: 1.0}), answer(changes={f"p{i}": 1.0 for i in range(65)}),
    answer(changes={"lr": 10**5000}),
    answer(changes={"lr": object()}), answer(expected={"metric": "x" * 99, "direction": "down"}), {1: 2},
    answer(expected={"metric": "val", "direction": "down", "by_step": 10**400}),
], ids=lambda raw: type(raw).__name__)  # fmt: skip
def test_schema(raw: Any) -> None:
    judgment = judge(raw, curve([2.0]))
    assert list(failed(judgment)) == ["schema"]
    assert judgment.proposal is None
    reason = failed(judgment)["schema"]
    assert reason.isprintable()
    assert len(reason) < 1500


def test_a_proposal_made_past_its_validation_is_validated_all_the_same() -> None:
    sham = Proposal.model_construct(diagnosis="unclear", evidence="", action="adjust", changes={"lr": math.nan})
    assert failed(judge(sham, curve([2.0]))) == {"bounds": "lr = 'NaN' is not of type float"}


STATE = curve([2.0, 2.1], train=[2.0, 1.9])
BARE = curve([2.0], best=False)
REASONS: list[tuple[dict[str, Any], Policy, str, str]] = [
    (answer("adjust"), Policy(), "shape", "adjust without changes"),
    (answer("keep", {"lr": 1e-3}), Policy(), "shape", "keep with changes"),
    (answer("stop", {"lr": 1e-3}), Policy(), "shape", "stop with changes"),
    (answer("rollback", to="/etc/passwd"), Policy(), "shape",
     "rollback to '/etc/passwd'; allowed: nothing, best, initial"),
    (answer("stop", to="initial"), Policy(), "shape", "stop to 'initial'; allowed: nothing, best"),
    (answer("stop"), Policy(actions=Actions(stop=False)), "available", "stop: the policy forbids it"),
    (answer("stop"), Policy(actions=Actions(stop_after=0.9)), "available",
     "stop: the policy allows it from step 900 on"),
    (answer(changes={"lr": 1e-3}), Policy(limits=Limits(max_interventions=0)), "available",
     "adjust: all 0 interventions of this run are spent"),
    (answer(changes={"l\u0433": 1e-3}), Policy(), "known", "l\u0433: no such parameter"),
    (answer(changes={"a\x1b[2J": 1e-3}), Policy(), "known", "a?[2J: no such parameter"),
    (answer(changes={"lr": 1e-3}), Policy(parameters={"lr": ParameterLimits(frozen=True)}), "known",
     "lr: frozen by the policy"),
    (answer(changes={"lr": 10.0}), Policy(), "bounds", "lr = 10 is outside [1e-05, 0.005]"),
    (answer(changes={"lr": "0.001"}), Policy(), "bounds", "lr = '0.001' is not of type float"),
    (answer(changes={"lr": True}), CLIP, "bounds", "lr = True is not of type float"),
    (answer(changes={"batch": 17.5}), CLIP, "bounds", "batch = 17.5 is not of type int"),
    (answer(changes={"lr": 1e-3}), Policy(parameters={"lr": ParameterLimits(low=2e-3)}), "bounds",
     "lr = 0.001 is outside [0.002, 0.005]"),
    (answer(changes={"lr": 2e-5}), Policy(), "step size",
     "lr = 2e-05 is further than one change from 0.003 may go: [0.0003, 0.005]"),
    (answer(changes={"lr": 3e-3}), Policy(), "no-op", "every value is in effect already"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "policy", "check", "reason"), REASONS)
def test_each_check_says_why(raw: dict[str, Any], policy: Policy, check: str, reason: str) -> None:
    assert failed(judge(raw, STATE, policy))[check] == reason


def test_what_is_good_is_accepted_with_every_check_listed() -> None:
    judgment = judge(answer(changes={"lr": 1e-3, "dropout": 0, "batch": 20, "augment": True, "kind": "b"}), STATE)
    assert judgment.result == "accepted"
    assert judgment.changes == {"lr": 1e-3, "batch": 20, "augment": True, "kind": "b"}
    assert [check.name for check in judgment.checks] == [
        "schema", "shape", "fresh", "available", "running", "known", "bounds", "step size", "cooldown", "no-op",
        "joint", "lead",
    ]  # fmt: skip
    assert judge(answer("keep"), STATE).result == "accepted"


def test_a_whole_number_is_a_float_where_one_is_declared() -> None:
    state = fold([start(dropout(high=3.0, max_delta=None))])
    value = judge(answer(changes={"dropout": 2}), state).changes["dropout"]
    assert (type(value), value) == (float, 2.0)


def test_clipping_moves_to_the_nearest_value_in_reach() -> None:
    judgment = judge(answer(changes={"lr": 1.0, "batch": 64, "ema": 0.5, "kind": "b"}), STATE, CLIP)
    assert judgment.result == "clipped"
    assert judgment.changes == {"lr": 5e-3, "batch": 24, "ema": 0.9, "kind": "b"}
    assert judge(answer(changes={"lr": 1e-3}), STATE, CLIP).result == "accepted"
    assert judge(answer(changes={"ema": 0.0}), fold([start(ema(value=0.95))]), CLIP).changes == {"ema": 0.0}
    assert judge(answer(changes={"free": 1.0}), STATE, CLIP).result == "rejected"


def test_commands() -> None:
    rollback = judge(answer("rollback", {"lr": 1e-3}), STATE).command
    assert rollback is not None
    assert (rollback.id, rollback.name, rollback.to) == ("d1", "rollback", "best")
    stop = judge(answer("stop", to="best"), STATE, FREE).command
    assert stop is not None
    assert (stop.name, stop.to) == ("stop", "best")
    assert failed(judge(answer("rollback"), BARE))["available"] == "rollback: there is no best checkpoint yet"
    assert (
        failed(judge(answer("stop", to="best"), BARE, FREE))["available"]
        == "stop to best: there is no best checkpoint yet"
    )
    assert judge(answer("stop"), BARE, FREE).result == "accepted"


def test_a_parameter_rests_until_its_change_is_measured() -> None:
    state = fold([start(), evaluation(10, 2.0), applied(12, 1, {"lr": (3e-3, 2e-3)}), step(13)])
    rest = {"cooldown": "lr rests: its last change is still being measured"}
    assert failed(judge(answer(changes={"lr": 1e-3}), state)) == rest
    assert judge(answer(changes={"lr": 2e-3, "batch": 20}), state).changes == {"batch": 20}
    assert judge(answer(changes={"lr": 1e-3}), state, Policy(limits=Limits(cooldown_evals=0))).result == "accepted"
    fold([evaluation(20, 1.9)], state)
    assert judge(answer(changes={"lr": 1e-3}), state).result == "accepted"


def test_freshness_in_steps_and_seconds() -> None:
    state, good = fold([start(lr()), step(100)]), answer(changes={"lr": 1e-3})
    assert judge(good, state, based_on=50, age=600.0).result == "accepted"
    assert failed(judge(good, state, based_on=49)) == {"fresh": "the snapshot is 51 steps old; 50 are allowed"}
    assert failed(judge(good, state, age=601.0)) == {"fresh": "the snapshot is 601 s old; 600 are allowed"}
    assert "fresh" in failed(judge(good, state, age=math.nan))
    assert "fresh" in failed(judge(answer("keep"), state, age=601.0))
    short = Policy(staleness=Staleness(max_age_steps=3))
    assert failed(judge(good, state, short, based_on=96)) == {"fresh": "the snapshot is 4 steps old; 3 are allowed"}
    back = failed(judge(good, state, based_on=180))["fresh"]
    assert back == "the snapshot is of step 180; the run went back to step 100 since"


def test_lead() -> None:
    state, policy = fold([start(lr()), step(100)]), Policy(limits=Limits(lead_steps=10))
    assert judge(answer(changes={"lr": 1e-3}), state, policy, based_on=90).result == "accepted"
    late = failed(judge(answer(changes={"lr": 1e-3}), state, policy, based_on=89))
    assert late == {"lead": "it was to apply at step 99, and the workload is at step 100"}


def test_the_learning_rate_may_not_rise_while_the_objective_diverges() -> None:
    diverging = fold([checkpoint(20)], curve([2.0, math.nan]))
    raised = failed(judge(answer(changes={"lr": 4e-3}), diverging))
    assert raised == {"joint": "lr may not rise from 0.003 to 0.004 while the objective diverges"}
    assert "joint" in failed(judge(answer("rollback", {"lr": 4e-3}), diverging))
    assert judge(answer(changes={"lr": 1e-3, "dropout": 0.1}), diverging).result == "accepted"
    free = Policy(joint=Joint(no_raise_when_diverging=False))
    assert judge(answer(changes={"lr": 4e-3}), diverging, free).result == "accepted"


def test_before_the_start_and_after_the_end() -> None:
    ended = fold([start(lr()), end(10)])
    assert failed(judge(answer(changes={"lr": 1e-3}), ended))["running"] == "the workload has ended"
    policy = Policy(parameters={"lr": ParameterLimits(high=1.0)})
    assert "available" in failed(judge(answer(changes={"lr": 1e-3}), RunState(), policy))
