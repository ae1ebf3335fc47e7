"""No language model costs more than was allowed, or makes a run wait longer."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories.calls import (
    KEEP,
    NOW,
    UNWATCHED,
    Desk,
    asked,
    failures,
    kind,
    managed,
    manager_at,
    of,
    policy_of,
    sent,
)

from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Budget, Cadence, Llm, Policy, Price
from trainmgr.managers.base import Answer
from trainmgr.state.budget import Spent
from trainmgr.testing import (
    TIME_LIMIT,
    Behaviour,
    Propose,
    Received,
    Recorder,
    Reset,
    Say,
    ScriptedEndpoint,
    Silence,
    Status,
    answer,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("prompt_and_alone")


ALONE = Llm(probe=False)


# -- budgets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "settings"),
    [
        ([KEEP], {}),
        ([KEEP], {"otherwise": "rules"}),
        ([Say("no JSON")], {"otherwise": "rules"}),
        ([Status(503, headers=NOW)], {}),
        ([Reset()], {"retries": 1}),
        ([Say("Leave it."), KEEP], {"formatter": "small"}),
        ([Status(400, "No such thing.")], {}),
    ],
    ids=["answers", "answers, then rules", "repairs, then rules", "retries", "resets", "two stages", "levels"],
)
def test_three_calls_are_three_calls(tmp_path: Path, script: list[Behaviour], settings: dict[str, Any]) -> None:
    otherwise = settings.get("otherwise", "keep")
    rules = policy_of(**settings).model_copy(update={"budget": Budget(calls=3)})
    with ScriptedEndpoint(script) as endpoint:
        paths, closing, _ = managed(tmp_path, endpoint, rules)
    assert closing.exit_code == 0
    assert closing.status == ("stopped" if otherwise == "rules" else "completed")  # the rules end it on its best
    assert len(asked(endpoint)) == len(of(paths, events.Request)) == len(of(paths, events.Reply)) == 3
    (spent,) = of(paths, events.BudgetSpent)
    assert spent.reason == "3 of 3 calls are made"
    assert spent.then == ("rules decide" if otherwise == "rules" else "nothing is changed")
    by = [response.manager for response in of(paths, events.Response)]
    last = "rules" if otherwise == "rules" else "llm:scripted"
    assert set(by[3:]) == {last}
    assert sorted(by) == by  # whoever takes over keeps on
    assert len(by) + len(failures(paths)) >= 11


@pytest.mark.parametrize(
    ("limits", "prices", "script", "calls", "reason"),
    [
        ({"tokens": 8400}, {}, KEEP, 3, "3,300 of 8,400 tokens are spent, and the next call may take 6,148"),
        ({"tokens": 5147}, {}, KEEP, 0, "0 of 5,147 tokens are spent"),
        ({"tokens": 6148}, {}, KEEP, 1, "1,100 of 6,148 tokens are spent"),
        ({"tokens": 50_000}, {}, Propose(answer(), usage=(10**8, 0)), 1, "100,000,000 of 50,000 tokens are spent"),
        ({"money": 0.031}, {"scripted": (1.0, 10.0)}, KEEP, 4, "0.008 of 0.031 are spent, and the next call may"),
        ({"money": 0.0}, {"scripted": (1.0, 10.0)}, KEEP, 0, "0 of 0 are spent"),
        ({"money": 0.0}, {}, KEEP, 12, None),
        ({"money": 0.0}, {"another": (1.0, 10.0)}, KEEP, 12, None),
        ({"calls": 0}, {}, KEEP, 0, "0 of 0 calls are made"),
    ],
)  # fmt: skip
def test_a_call_that_could_exceed_a_budget_is_not_made(
    limits: dict[str, Any], prices: dict[str, tuple[float, float]], script: Behaviour, calls: int, reason: str | None
) -> None:
    known = {name: Price(input=read, output=written) for name, (read, written) in prices.items()}
    with ScriptedEndpoint([script]) as endpoint:
        desk = Desk(endpoint, policy_of().model_copy(update={"budget": Budget(**limits), "prices": known}))
        said = [desk.decide() for _ in range(12)]
        desk.manager.close()
    assert len(asked(endpoint)) == calls
    assert [event.reason.startswith(reason or "?") for event in desk.of(events.BudgetSpent)] == [True] * bool(reason)
    assert all(isinstance(found, Answer) for found in said[calls:])
    spent = [reply.money for reply in desk.of(events.Reply)]
    assert spent == [0.002 if "scripted" in prices else 0.0] * calls


def test_the_seconds_that_were_waited_are_counted_and_limited() -> None:
    rules = policy_of().model_copy(update={"budget": Budget(seconds=30.0)})
    with ScriptedEndpoint([Propose(answer(), delay=0.05)]) as endpoint:
        desk = Desk(endpoint, rules)
        assert desk.decide() == answer()
        assert 0.05 <= desk.spent.seconds < 30.0
        desk.spent = Spent(calls=1, seconds=30.0)
        assert isinstance(desk.decide(), Answer)
        desk.manager.close()
    assert len(asked(endpoint)) == 1
    assert [event.reason for event in desk.of(events.BudgetSpent)] == ["30 of 30 seconds were waited"]


def test_a_price_that_is_not_known_is_not_counted_and_said() -> None:
    rules = policy_of().model_copy(update={"budget": Budget(money=0.0, calls=2)})
    with ScriptedEndpoint([KEEP]) as endpoint:
        desk = Desk(endpoint, rules)
        desk.manager._there().local = False
        assert "the price of scripted is not known, so money is not counted" in desk.manager.preflight()
        desk.decide()
        desk.manager.close()
    assert [reply.money for reply in desk.of(events.Reply)] == [None]


@pytest.mark.parametrize(
    ("limits", "prices", "words"),
    [
        ({}, {}, "at most 200 calls and 1,000,000 tokens; free of charge"),
        ({"calls": 10}, {}, "at most 10 calls and 147,920 tokens"),
        ({"calls": 10}, {"scripted": Price(input=1.0, output=10.0)}, "at most 0.8852 by the policy's prices"),
        ({"money": 0.1}, {"scripted": Price(input=1.0, output=10.0)}, "at most 0.1 by the policy's prices"),
    ],
)
def test_what_a_run_may_cost_is_said_before_it(limits: dict[str, Any], prices: dict[str, Price], words: str) -> None:
    rules = Policy(budget=Budget(**limits), prices=prices, llm=ALONE)
    with ScriptedEndpoint([KEEP]) as endpoint:
        manager = manager_at(endpoint, rules)
        manager.open()
        assert words in manager.preflight()
        manager.close()
        assert asked(endpoint) == []


def test_whoever_takes_over_goes_on_counting() -> None:
    rules = policy_of().model_copy(update={"budget": Budget(calls=3)})
    with ScriptedEndpoint([KEEP]) as endpoint:
        desk = Desk(endpoint, rules, Spent(calls=2, tokens=500))
        desk.decide()
        found = desk.decide()
        desk.manager.close()
    assert len(asked(endpoint)) == 1
    assert found.raw["evidence"] == "3 of 3 calls are made"


def test_what_was_never_sent_costs_no_tokens() -> None:
    with ScriptedEndpoint([KEEP]) as endpoint:
        desk = Desk(endpoint)
        endpoint.close()
        assert "no connection to" in desk.decide()
    assert desk.spent.tokens == 0
    assert desk.spent.calls == 3


# -- too late, or never ------------------------------------------------------------------------------------------------


LONG = """
recipe = {"lr": 0.1}
w = Workload("long", objective="loss", total_steps=STEPS, metrics={"loss": "made up"})
w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.01, high=1.0, max_ratio=2.0)
w.command("stop", lambda to: None)
with w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step % 10 == 0:
            w.eval(step, {"loss": 1.0 / step})
        AT
"""


def long(steps: int, *at: str) -> str:
    return LONG.replace("STEPS", str(steps)).replace("AT", "\n        ".join(at) or "pass")


def test_an_answer_that_comes_too_late_has_no_effect_and_is_kept_in_full(tmp_path: Path) -> None:
    go = threading.Event()
    thought = "a long thought, " * 50

    def script(request: Received) -> Behaviour:
        go.wait(TIME_LIMIT)
        return Propose(answer("adjust", {"lr": 0.2}, evidence=thought))

    def release(record: Any, _: Any) -> None:
        if isinstance(record, protocol.Step) and record.step == 100:
            go.set()

    body = long(200, f"if step == 10: {kind('request')}", "if step == 100: until(lambda: settled(1))",
                "if step == 101: until(lambda: settled(2))")  # fmt: skip
    with ScriptedEndpoint(script) as endpoint:
        paths, closing, _ = managed(
            tmp_path, endpoint, Policy(probation=UNWATCHED, llm=ALONE), body, listener=Recorder(on_record=release)
        )
    late, next_one = of(paths, events.Verdict)[:2]
    assert [(check.name, check.reason) for check in late.checks if not check.ok] == [
        ("fresh", "the snapshot is 90 steps old; 10 are allowed")
    ]
    assert json.loads(of(paths, events.Reply)[0].text)["evidence"] == thought
    assert of(paths, events.Response)[0].raw["evidence"] == thought
    assert next_one.result == "accepted"
    assert "the snapshot is 90 steps old" in sent(endpoint)[1]["messages"][1]["content"]
    assert (closing.status, closing.steps) == ("completed", 200)


def calls_are_over() -> None:
    wait_for(lambda: not any(t.name == "manager" for t in threading.enumerate()), "the end of the manager's thread")


def test_a_run_that_ends_during_a_call_ends_at_once(tmp_path: Path) -> None:
    with ScriptedEndpoint([Silence()]) as endpoint:
        body = long(11, f"if step == 10: {kind('request')}")
        paths, closing, _ = managed(tmp_path, endpoint, policy_of(timeout=3600.0), body)
        calls_are_over()  # closing the manager ended the call, too
    assert closing.status == "completed"
    assert failures(paths) == ["the run ended before the answer came"]
    assert (len(of(paths, events.Request)), of(paths, events.Reply)) == (1, [])


def press(on: type[Any]) -> Callable[[Any], None]:
    """Ctrl-C at the first event of this kind."""
    pressed: list[Any] = []

    def hear(event: Any) -> None:
        if isinstance(event, on) and not pressed:
            pressed.append(event)
            os.kill(os.getpid(), signal.SIGINT)

    return hear


@pytest.mark.parametrize("blocking", [False, True])
def test_ctrl_c_during_a_call_ends_the_run(tmp_path: Path, blocking: bool) -> None:
    body = long(10**6, "if step == 10: until(lambda: (RUN / 'control.json').exists())")
    with ScriptedEndpoint([Silence()]) as endpoint:
        paths, closing, _ = managed(tmp_path, endpoint, policy_of(timeout=3600.0), body, blocking=blocking,
                                    listener=Recorder(on_event=press(events.Request)))  # fmt: skip
        calls_are_over()
    assert (closing.status, closing.exit_code) == ("interrupted", 0)
    assert failures(paths) == ["the run ended before the answer came"]
    assert [override.origin for override in of(paths, events.OverrideIssued)] == ["operator"]


def test_with_blocking_training_stands_still_during_a_call_and_goes_on_after_it(tmp_path: Path) -> None:
    listener = Recorder()
    sizes: list[tuple[int, int]] = []
    stood = 0

    def script(request: Received) -> Behaviour:
        nonlocal stood
        assert listener.paths is not None
        pid = next(record.pid for record in listener.records if isinstance(record, protocol.Start))
        stat = Path(f"/proc/{pid}/stat")
        wait_for(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "T", "the child's standstill")
        stood = listener.paths.telemetry.stat().st_size
        return KEEP

    def hear(event: Any) -> None:
        if isinstance(event, events.Verdict):
            assert listener.paths is not None
            sizes.append((stood, listener.paths.telemetry.stat().st_size))

    listener = Recorder(on_event=hear)
    with ScriptedEndpoint(script) as endpoint:
        last = "[e['snapshot']['progress']['evaluations'] for e in log() if e['kind'] == 'snapshot'][-1:] == [39]"
        body = long(400, f"if step == 399: until(lambda: {last} and log()[-1]['kind'] == 'verdict')")
        rules = Policy(probation=UNWATCHED, cadence=Cadence(min_steps=0), llm=ALONE)
        paths, closing, _ = managed(tmp_path, endpoint, rules, body,
                                    blocking=True, listener=listener)  # fmt: skip
    assert (closing.status, closing.steps) == ("completed", 400)
    assert sizes
    assert all(before == after for before, after in sizes)
    assert [v.telemetry_offset for v in of(paths, events.Verdict)] == [after for _, after in sizes]
    assert json.loads(paths.manifest.read_bytes())["manifest"]["blocking"] is True


def test_with_blocking_training_goes_on_when_no_answer_comes(tmp_path: Path) -> None:
    with ScriptedEndpoint([Silence()]) as endpoint:
        paths, closing, _ = managed(tmp_path, endpoint, policy_of(timeout=0.3, breaker_failures=1),
                                    long(200, f"if step == 199: {kind('error')}"), blocking=True)  # fmt: skip
    assert (closing.status, closing.steps) == ("completed", 200)
    assert "no answer" in failures(paths)[0]  # none within the time, or none in time for another attempt
