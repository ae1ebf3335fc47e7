"""A plan over real files: carried out, taken over, revoked and taken back, and each part of it explained by the log."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories.forging import Payloads, edited, rewritten
from factories.forging import of as place
from factories.supervised import failures
from recorded import holds, of
from rich.console import Console

from trainmgr.base.paths import RunPaths, list_runs
from trainmgr.base.process import Child
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Actions, Limits, Policy, Probation, Process
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.log import audit, history, orders
from trainmgr.log.telemetry import Feed
from trainmgr.managers.replay import Recorded
from trainmgr.readers import proof, replay
from trainmgr.running import launch
from trainmgr.state.ledger import Ledger
from trainmgr.terminal import screen, tables
from trainmgr.testing import EXACT, LINE, Recorder, ScriptedManager, answer, supervise, write_child

PLAN = answer("adjust", plans={"lr": {"to": 0.04, "by_step": 18}})
WAY = [0.4 - 0.36 * i / 7 for i in range(1, 8)]
"""What is in effect in turn, from step 5 on, where it was decided at step 4."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def planned(folder: Path) -> RunPaths:
    answers = [answer(), PLAN, answer(), answer("adjust", {"decay": 0.01})]
    paths, closing, _ = supervise(folder, write_child(folder), ScriptedManager(answers))
    assert (closing.status, closing.interventions) == ("completed", 2)
    return paths


def rates(paths: RunPaths) -> list[tuple[int, float]]:
    """(step, value) of each change of the rate that took effect."""
    found = [record for record in Feed(paths.telemetry).records() if isinstance(record, protocol.Applied)]
    return [(record.step, float(record.changes["lr"][1])) for record in found if "lr" in record.changes]


def text(show: Callable[[Console], None]) -> str:
    console = Console(file=io.StringIO(), width=400)
    show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_folding_a_plan_changes_nothing_of_what_is_held(planned: RunPaths) -> None:
    state = Ledger()
    for event in audit.read(planned.audit):
        before, ahead = pickle.dumps(state), copy.copy(state)
        ahead.fold(event.data)
        assert pickle.dumps(state) == before
        state = ahead
    assert state.plans.moves


def test_it_is_carried_out_at_each_evaluation_and_replayed_byte_for_byte(planned: RunPaths) -> None:
    steps, values = zip(*rates(planned), strict=True)
    assert steps == (5, 7, 9, 11, 13, 15, 17)
    assert values == pytest.approx(WAY, rel=1e-5)
    assert values[-1] == 0.04
    origins = [(event.origin, event.plans) for event in of(planned, events.OverrideIssued)]
    assert origins.count(("plan", {"lr": "d2"})) == 6
    assert replay.rebuild(planned).counts["override"] == 8
    holds(planned)


def test_a_person_sees_one_change(planned: RunPaths) -> None:
    words = "lr 0.4 to 0.04 by step 18, linear"
    result, now = proof.prove(planned), history.latest(planned)
    assert [change.changes for change in result.changes] == [{"lr": [0.4, 0.04]}, {"decay": [0.0, 0.01]}]
    assert text(lambda console: tables.print_proof(console, result)).count(words) == 1
    closing = text(lambda console: tables.print_closing(console, now))
    assert "2 interventions by scripted" in closing
    assert closing.count(words) == 1
    assert text(lambda console: console.print(screen.render(now, width=380))).count(words) == 1
    assert json.loads(tables.proof_json(result))["changes"][0]["plans"]["lr"]["by_step"] == 18


def test_training_again_repeats_every_part_bit_for_bit(planned: RunPaths, folder: Path) -> None:
    again, _, _ = supervise(folder, write_child(folder), schedule=replay.schedule_of(planned))
    result = replay.compare_training(planned, again)
    assert (result.first, rates(again)) == (None, rates(planned))
    assert proof.prove(again).holds


def test_the_same_seed_repeats_itself_and_recorded_decisions_are_planned_again(planned: RunPaths, folder: Path) -> None:
    again, closing, _ = supervise(folder, write_child(folder), Recorded(planned))
    assert replay.compare_training(planned, again).first is None
    assert closing.interventions == 2
    holds(again)


@pytest.mark.parametrize("blocking", [True, False])
def test_without_exact_steps_it_ends_where_it_was_to_all_the_same(tmp_path: Path, *, blocking: bool) -> None:
    policy = Policy(probation=Probation(enabled=False))
    manager = ScriptedManager([answer(), PLAN])
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path), manager, policy=policy, blocking=blocking)
    assert rates(paths)[-1][1] == 0.04
    assert closing.interventions == 1
    holds(paths)


@pytest.mark.parametrize("said", [True, False])
def test_in_mode_approve_it_begins_with_the_persons_word(tmp_path: Path, *, said: bool) -> None:
    manager, listener = ScriptedManager([answer(), PLAN]), Recorder(approve=said)
    paths, _, _ = supervise(tmp_path, write_child(tmp_path), manager, mode="approve", listener=listener)
    assert [value for _, value in rates(paths)] == (pytest.approx(WAY, rel=1e-5) if said else [])
    holds(paths)


def test_in_shadow_nothing_of_it_is_done(tmp_path: Path) -> None:
    paths, _, _ = supervise(tmp_path, write_child(tmp_path), ScriptedManager([PLAN]), mode="shadow")
    assert of(paths, events.OverrideIssued) == []
    assert of(paths, events.Verdict)[0].plans
    holds(paths)


def test_it_is_revoked_by_staying_where_it_is(tmp_path: Path) -> None:
    def stay(view: Snapshot) -> Any:
        (row,) = (row for row in view.recipe if row.name == "lr")
        assert row.plan is not None
        return answer("adjust", {"lr": row.value})

    manager = ScriptedManager([answer(), PLAN, answer(), stay])
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path), manager)
    assert closing.interventions == 1
    assert [value for _, value in rates(paths)] == pytest.approx(WAY[:2], rel=1e-5)
    assert all(row.plan is None for view in manager.snapshots[4:] for row in view.recipe)
    holds(paths)


def test_what_the_script_overwrites_ends_it_in_words(tmp_path: Path) -> None:
    body = LINE.replace(
        "        w.step(step,", "        recipe['lr'] = 0.1 if step == 10 else recipe['lr']\n        w.step(step,"
    )
    paths, _, _ = supervise(tmp_path, write_child(tmp_path, body), ScriptedManager([answer(), PLAN]))
    (ended,) = of(paths, events.PlanEnded)
    assert (ended.decision, ended.name) == ("d2", "lr")
    assert "something in the script overwrote it" in ended.why
    assert (ended.step, len(rates(paths))) == (10, 3)
    assert replay.rebuild(paths).differences == []
    assert all("overwrites it" in str(finding) for finding in proof.prove(paths).findings)


def test_probation_takes_the_whole_of_it_back(tmp_path: Path) -> None:
    """Once the rate is low, the script reports a loss that is far off."""
    body = LINE.replace("w.eval(step, {", "loss += 900 * (recipe['lr'] < 0.2)\n            w.eval(step, {")
    seen = ("any(e['kind'] == 'override' and e['origin'] == 'probation' and e['control']['revision'] == "
            "json.loads((RUN / 'control.json').read_bytes())['revision'] for e in log())")  # fmt: skip
    body = body.replace("until(lambda: settled(evals))", f"until(lambda: settled(evals) or {seen})")
    policy = Policy(limits=Limits(lead_steps=1), actions=Actions(end_on_best=False))
    manager = ScriptedManager([answer("adjust", plans={"lr": {"to": 0.04, "by_step": 20}})])
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), manager, policy=policy)
    (back,) = of(paths, events.Reverted)
    assert (back.why, back.decisions, back.parameters) == ("harm", ["d1"], {"lr": 0.4})
    assert (closing.reversals, rates(paths)[-1][1]) == (1, 0.4)
    issued = [event.origin for event in of(paths, events.OverrideIssued)]
    assert issued == ["manager", *["plan"] * (len(issued) - 2), "probation"]
    holds(paths)


def test_after_a_restart_it_goes_on(tmp_path: Path) -> None:
    crash = """
        if step == 11 and not (RUN / "once").exists():
            (RUN / "once").touch()
            os._exit(3)
        w.step(step,"""
    body = LINE.replace("\n        w.step(step,", crash)
    body = body.replace("(lambda: settled(evals))", "(lambda: settled(evals) or (RUN / 'once').exists())")
    policy = EXACT.model_copy(update={"process": Process(restarts=1)})
    paths, closing, _ = supervise(
        tmp_path, write_child(tmp_path, body), ScriptedManager([answer(), PLAN]), policy=policy
    )
    assert closing.status == "completed"
    values = [value for _, value in rates(paths)]
    assert values == sorted(values, reverse=True)
    assert of(paths, events.Restarted)
    holds(paths)


class Died(BaseException):
    """As a kill -9 of the supervisor: nothing is tidied up."""


@pytest.mark.parametrize("moment", ["before the log", "before the control file"])
def test_a_supervisor_that_dies_over_a_part_leaves_it_to_the_next_one(tmp_path: Path, moment: str) -> None:
    """Once: the part that was due is issued by whoever takes over, and no other."""
    append, write, gone = audit.Log.append, orders.write, tmp_path / "gone"

    def appending(log: audit.Log, payload: events.Payload, now: float) -> Any:
        if moment == "before the log" and isinstance(payload, events.OverrideIssued) and payload.decision == "plan3":
            raise Died
        return append(log, payload, now)

    def writing(paths: RunPaths, content: protocol.Control) -> None:
        if content.decision == "plan3":
            raise Died
        write(paths, content)

    waits = "            if step == 8:\n                until(lambda: any(e['kind'] == 'attached' for e in log()))\n"
    body = LINE.replace(
        "            until(lambda: settled(evals))\n",
        f"{waits}            elif step < 8:\n                until(lambda: settled(evals))\n",
    )
    script = write_child(tmp_path, body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit.Log, "append", appending)
        patch.setattr(orders, "write", writing)
        patch.setattr(Child, "signal", lambda *_: None)
        patch.setattr(Child, "join", lambda *_: True)
        with pytest.raises(Died):
            supervise(tmp_path, script, ScriptedManager([answer(), PLAN]))
    assert not gone.exists()
    (paths,) = list_runs(tmp_path / "runs")
    closing = launch.attach(paths, tmp_path / "runs", lambda *_: Recorder(), manager=ScriptedManager())
    assert closing.status == "completed"
    issued = [event.decision for event in of(paths, events.OverrideIssued)]
    assert issued == sorted(set(issued), key=issued.index)
    assert issued.count("plan3") == 1
    values = [value for _, value in rates(paths)]
    assert values == sorted(values, reverse=True)
    assert closing.interventions == 1
    assert failures(paths) == []
    holds(paths)


# -- forged ------------------------------------------------------------------------------------------------------------


def part(payloads: Payloads, number: int = 0) -> int:
    return [i for i, p in enumerate(payloads) if isinstance(p, events.OverrideIssued) and p.origin == "plan"][number]


def further(payloads: Payloads) -> None:
    at = part(payloads)
    control = payloads[at].control.model_copy(update={"params": {"lr": 0.2}})
    payloads[at] = payloads[at].model_copy(update={"control": control})


def twice(payloads: Payloads) -> None:
    at = part(payloads)
    payloads.insert(at + 1, payloads[at])


def unplanned(payloads: Payloads) -> None:
    """The verdict did not hold it."""
    edited(events.Verdict, 1, plans={})(payloads)


def another(payloads: Payloads) -> None:
    edited(events.Verdict, 1, plans={"lr": protocol_plan(0.01)})(payloads)


def protocol_plan(to: float) -> Any:
    from trainmgr.contract.proposal import Plan

    return Plan(to=to, by_step=18)


def somebody(payloads: Payloads) -> None:
    """A part that belongs to another decision."""
    at = part(payloads)
    payloads[at] = payloads[at].model_copy(update={"plans": {"lr": "d1"}})


def ended(payloads: Payloads) -> None:
    at = part(payloads, 2)
    last = payloads[at]
    payloads.insert(at, events.PlanEnded(decision="d2", name="lr", why="it pleased somebody", step=8,
                                         telemetry_offset=last.telemetry_offset,
                                         telemetry_sha256=last.telemetry_sha256))  # fmt: skip


def left_out(payloads: Payloads) -> None:
    """The last part, as if nothing more had been due."""
    del payloads[part(payloads, -1)]


@pytest.mark.parametrize("forge", [further, twice, unplanned, another, somebody, ended, left_out])
def test_what_somebody_made_of_it_is_found(
    planned: RunPaths, tmp_path: Path, forge: Callable[[Payloads], None]
) -> None:
    assert rewritten(planned, tmp_path / "as it was", lambda payloads: None) == []
    assert place([event.data for event in audit.read(planned.audit)], events.RunEnded)
    assert rewritten(planned, tmp_path, forge) != []


def test_a_part_that_was_due_and_never_issued_is_found(tmp_path: Path) -> None:
    """Even where nothing else was changed: the last one, of which no answer is known."""
    body = LINE.replace("STEPS, EVERY = 24, 2", "STEPS, EVERY = 10, 2")
    body = body.replace(
        "            until(lambda: settled(evals))",
        "            until(lambda: settled(evals))\n            if step == 10:\n                os._exit(0)",
    )
    plan = answer("adjust", plans={"lr": {"to": 0.04, "by_step": 10}})
    paths, _, _ = supervise(tmp_path, write_child(tmp_path, body), ScriptedManager([plan]), policy=EXACT)
    holds(paths)
    found = rewritten(paths, tmp_path / "forged", lambda payloads: payloads.pop(part(payloads, -1)))
    assert any("there is no part of the plan for lr" in finding for finding in found)
