"""A change that does not last is said wherever a change is shown; a schedule of the script's own is known."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from factories import FREE, applied, curve, evaluation, fold, lr, start, step, view
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Policy
from trainmgr.contract.run_file import Manifest
from trainmgr.deciding import probation
from trainmgr.log import history
from trainmgr.managers.prompt import render
from trainmgr.managers.rules import RulesManager
from trainmgr.readers import proof
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation
from trainmgr.terminal import display, screen, tables
from trainmgr.testing import Recorder, ScriptedManager, answer, supervise, write_child
from trainmgr.workload.persistence import Change, Persistence, returned

COMPUTED = """
recipe = {"lr": 0.1, "wd": 0.1}
w = Workload("computed", objective="loss", total_steps=12, metrics={"loss": "made up"})
w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=1e-4, high=1.0, scale="log",
        group="optimizer", scheduled=True)
w.float("wd", get=lambda: recipe["wd"], set=lambda v: recipe.update(wd=v), low=0.0, high=1.0)
evals = 0
for step in w.steps():
    recipe["lr"] = 0.1 * 0.95**step
    w.step(step, {"loss": 1.0})
    if step % 2 == 0:
        w.eval(step, {"loss": 1.0})
        evals += 1
        until(lambda: settled(evals))
w.end(step)
"""
SAID = "lr was set to 0.02 at step 3 and is 0.08145 at step 4: something overwrites it"


def printed(*renderables: Any, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    for renderable in renderables:
        console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def overwritten(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Recorder, ScriptedManager, str]:
    """A script computes the learning rate anew at each step; a manager changes it, and something that lasts."""
    folder = tmp_path_factory.mktemp("overwritten")
    manager = ScriptedManager([answer("adjust", {"lr": 0.02, "wd": 0.2})])
    out = io.StringIO()
    lines = display.Lines(out)
    recorder = Recorder(on_record=lines.record)
    paths, _, _ = supervise(folder, write_child(folder, COMPUTED), manager, listener=recorder)
    return paths, recorder, manager, out.getvalue()


def test_it_is_in_telemetry_once_and_said_once(overwritten: Any) -> None:
    _, recorder, _, said = overwritten
    (record,) = recorder.of(protocol.Overwritten)
    assert (record.name, record.value, record.set_at, record.step) == ("lr", 0.02, 3, 4)
    assert record.found == pytest.approx(0.1 * 0.95**4)
    assert said.count("overwrites it") == 1
    assert SAID in said


def test_the_summary_and_the_view_do_not_list_it_as_a_change_that_holds(overwritten: Any) -> None:
    paths = overwritten[0]
    now = history.latest(paths)
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    tables.print_closing(console, now)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "(overwritten: lr was 0.08145 at step 4)" in text
    assert "1 change of lr did not last" in text
    assert "overwritten: lr was 0.08145 at step 4" in printed(screen.render(now, width=160))
    assert '"overwritten": {\n    "lr": 1\n  }' in tables.show_json(paths, now)


def test_the_audit_finds_it(overwritten: Any) -> None:
    result = proof.prove(overwritten[0])
    assert [str(finding) for finding in result.findings] == [
        f"telemetry.jsonl: lr was set to 0.02 at step 3, and is {0.1 * 0.95**4!r} at step 4: something overwrites it"
    ]
    assert result.changes[0].overwritten == f"overwritten: lr was {0.1 * 0.95**4!r} at step 4"


def test_the_manager_is_told(overwritten: Any) -> None:
    snapshot = overwritten[2].snapshots[-1]
    rows = {row.name: row for row in snapshot.recipe}
    assert (rows["lr"].overwritten, rows["wd"].overwritten) == (1, 0)
    assert rows["lr"].value == pytest.approx(0.1 * 0.95**10)
    assert snapshot.interventions[0].overwritten == ["lr"]
    prompt = render(snapshot, 100_000).user
    assert "changes do not last: the program overwrites it" in prompt


def test_a_view_names_each_parameter_once_for_each_time_that_it_was_set() -> None:
    told = display.Drifts()
    state = fold([start(lr(value=0.003)), applied(1, 1, {"lr": (0.003, 0.001)})])
    assert told.new(state) == []
    for at in (2, 3, 4):
        fold([evaluation(at, 1.0, params={"lr": 0.003 + at / 1e6})], state)
    assert told.new(state) == ["lr was set to 0.001 at step 1 and is 0.003002 at step 2: something overwrites it",
                               "lr went from 0.003002 to 0.003003 at step 3, and nobody here asked for it"]  # fmt: skip
    assert told.new(state) == []


@given(
    old=st.floats(1e-6, 1.0), new=st.floats(1e-6, 1.0), growth=st.floats(0.5, 2.0), lost=st.booleans(),
)  # fmt: skip
def test_a_change_is_told_from_the_movement_of_a_schedule(old: float, new: float, growth: float, lost: bool) -> None:
    begun = old if lost else new
    if math.isclose(old, new, rel_tol=0.01):
        return
    assert returned(old, new, begun * growth, begun * growth**2) is lost


def test_the_next_two_reports_decide_and_no_later_ones() -> None:
    watch, values = Persistence(), {"lr": 0.5}
    watch.changed("lr", Change(1, 10, 1.0, 0.5, moves=True))
    assert watch.recent
    assert list(watch.look(10, values.__getitem__)) == []  # the step of the change itself
    values["lr"] = 0.49
    assert list(watch.look(11, values.__getitem__)) == []
    values["lr"] = 0.48
    assert list(watch.look(12, values.__getitem__)) == []
    assert not watch.recent
    values["lr"] = 1.0
    assert list(watch.look(13, values.__getitem__)) == []


def test_what_is_no_number_can_be_overwritten_too() -> None:
    watch = Persistence()
    watch.changed("kind", Change(1, 1, "a", "b", moves=True))
    watch.changed("flag", Change(1, 1, False, True, moves=False))
    values: dict[str, Any] = {"kind": "a", "flag": False}
    assert [(lost.name, lost.found) for lost in watch.look(2, values.__getitem__)] == [("flag", False)]
    assert [(lost.name, lost.step, lost.found) for lost in watch.look(3, values.__getitem__)] == [("kind", 2, "a")]


# -- a schedule of the script's own --------------------------------------------------------------------------------


def moving(at: int, val: float, value: float, end: float | None, share: float = 1.0, **more: float) -> protocol.Eval:
    record = evaluation(at, val, params={"lr": value * share}, **more)
    known = protocol.Moving(value=value, end=None if end is None else end * share)
    return record.model_copy(update={"moving": {"lr": known}})


def cosine(at: int) -> float:
    return 1.5e-3 * (1 + math.cos(math.pi * at / 1000)) + 1e-6


def test_a_snapshot_says_where_the_schedule_goes() -> None:
    state = fold([start(lr(scheduled=True)), step(500, loss=1.0), moving(500, 1.0, cosine(500), 1e-6)])
    (row,) = view(state).recipe
    assert (row.moves, row.own, row.end) == (True, 0.001501, 1e-6)
    assert "the program's schedule brings it to 1e-06 by the end" in render(view(state), 100_000).user
    (row,) = view(curve([1.0], lr())).recipe
    assert (row.moves, row.own, row.end) == (False, None, None)


@pytest.mark.parametrize("known", [True, False])
def test_the_rules_do_not_multiply_a_falling_schedule_to_nothing(known: bool) -> None:
    """A plateau over the whole run: ten times they would have reduced the rate that falls by itself."""
    policy, share, revision = FREE, 1.0, 0
    manager = RulesManager(policy)
    state = fold([start(lr(scheduled=True, value=3e-3))])
    for at in range(10, 1000, 10):
        value = 1.0 + (0.001 if at > 10 else 0.0)
        fold([step(at, loss=1.0), moving(at, value, cosine(at), 1e-6 if known else None, share, train=0.9)], state)
        raw = manager.decide(view(state, policy))
        if "lr" in raw["changes"]:
            revision += 1
            before, after = cosine(at) * share, float(raw["changes"]["lr"])
            share = after / cosine(at)
            fold([applied(at, revision, {"lr": (before, after)})], state)
    assert share == 1.0


def test_against_overfitting_they_reduce_a_falling_rate_no_further_than_its_floor() -> None:
    manager, share, revision, state = RulesManager(FREE), 1.0, 0, fold([start(lr(scheduled=True, value=3e-3))])
    for at in range(10, 1000, 10):
        value = 1.0 if at == 10 else 1.0 + at / 500
        fold([step(at, loss=1.0), moving(at, value, cosine(at), 1e-6, share, train=1.0 - at / 2000)], state)
        raw = manager.decide(view(state))
        if "lr" in raw["changes"]:
            revision += 1
            before, after = cosine(at) * share, float(raw["changes"]["lr"])
            share = after / cosine(at)
            fold([applied(at, revision, {"lr": (before, after)})], state)
    assert FREE.rules.lr_floor <= share * (1 + 1e-5)
    assert share < 1.0


def test_the_rules_leave_alone_what_is_overwritten() -> None:
    state = curve([1.0, *[1.001] * 40], lr())
    assert "lr" in RulesManager(FREE).decide(view(state))["changes"]
    state.overwritten = {"lr": 1}
    assert RulesManager(FREE).decide(view(state))["changes"] == {}


def test_taking_back_a_change_gives_the_schedule_its_share_back_and_not_the_number_of_then(
    manifest: Manifest,
) -> None:
    """The number is of a time when the schedule was higher."""
    ledger = Ledger()
    ledger.fold(events.RunStarted(manifest=manifest.model_copy(update={"manager": "llm:m", "policy": Policy()})))
    state = fold([start(lr(scheduled=True, value=3e-3))])
    for at in range(10, 60, 10):
        fold([step(at, loss=1.0), moving(at, 1.0 - at / 1000, cosine(at), 1e-6)], state)
    changes = {"lr": (cosine(50), cosine(50) / 2)}
    fold([applied(50, 1, changes)], state)
    ledger.fold(
        events.Acknowledged(
            decision="d1", revision=1, telemetry_offset=0, result="applied", step=50, boundary="step", changes=changes,
            reason="", forecast=probation.expect(state),
        )
    )  # fmt: skip
    ledger.origins[1] = "manager"
    for at in range(60, 120, 10):
        fold([step(at, loss=1.0), moving(at, 3.0, cosine(at), 1e-6, 0.5)], state)
        judgment = probation.assess(Situation(state, ledger))
        if judgment is not None:
            break
    assert isinstance(judgment, events.Reverted)
    assert judgment.parameters["lr"] == pytest.approx(cosine(at))
    assert judgment.parameters["lr"] < cosine(50)


def test_a_schedule_under_a_manager_in_a_real_run(tmp_path: Path) -> None:
    """The change lives as long as the run, and what a manager reads is what the update uses."""
    body = """
import torch
weight = torch.nn.Parameter(torch.zeros(1))
optimizer = torch.optim.SGD([weight], lr=0.1)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / 40)
w = Workload("real", objective="loss", total_steps=40, metrics={"loss": "made up"})
w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1.0, scheduler=scheduler)
evals = 0
for step in w.steps():
    before = weight.item()
    weight.grad = torch.ones(1)
    optimizer.step()
    scheduler.step()
    w.step(step, {"loss": 1.0, "moved": before - weight.item()})
    if step % 5 == 0:
        w.eval(step, {"loss": 1.0})
        evals += 1
        until(lambda: settled(evals))
w.end(step)
"""
    manager = ScriptedManager([answer(), answer("adjust", {"lr": 0.0375})])  # at step 11, half of what is there
    paths, _, recorder = supervise(tmp_path, write_child(tmp_path, body), manager)
    moved = {record.step: record.metrics["moved"] for record in recorder.of(protocol.Step)}
    assert moved[11] == pytest.approx(0.1 * (1 - 10 / 40), rel=1e-4)
    share = 0.0375 / (0.1 * (1 - 11 / 40))
    assert moved[12] == pytest.approx(0.0375, rel=1e-4)
    assert moved[40] == pytest.approx(share * 0.1 * (1 - 39 / 40), rel=1e-3)
    (row,) = manager.snapshots[-2].recipe
    assert row.value == pytest.approx(share * row.own)
    assert row.end == pytest.approx(0.0, abs=1e-9)
    assert proof.prove(paths).holds


def test_old_snapshots_have_none_of_this() -> None:
    """What is not there is not written: a recorded run of before is rebuilt byte for byte."""
    state: RunState = curve([1.0, 1.0], lr())
    assert not {"moves", "own", "end", "overwritten"} & set(view(state).model_dump(mode="json")["recipe"][0])
