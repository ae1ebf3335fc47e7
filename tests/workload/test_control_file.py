"""The control file: what is ignored, what is refused, and when what is left applies."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from factories.reporting import Script, command, control, folded, records

pytestmark = pytest.mark.usefixtures("alone")


# -- the control file: what is ignored ---------------------------------------------------------------------------------


GOOD = {"v": 1, "run": "run", "revision": 1, "issued": {"t": 0.0, "step": 0}, "params": {"lr": 0.2},
        "based_on_step": 0, "decision": "d1"}  # fmt: skip

IGNORED = {
    "half-written": json.dumps(GOOD)[:40],
    "empty": "",
    "no object": "[1, 2]",
    "null": "null",
    "deep": "[" * 100_000,
    "not text": "\udcff\udcfe",
    "wrong version": json.dumps({**GOOD, "v": 2}),
    "no version": json.dumps({k: v for k, v in GOOD.items() if k != "v"}),
    "another run": json.dumps({**GOOD, "run": "other"}),
    "unknown key": json.dumps({**GOOD, "paramz": {}}),
    "revision as text": json.dumps({**GOOD, "revision": "1"}),
    "revision true": json.dumps({**GOOD, "revision": True}),
    "params a list": json.dumps({**GOOD, "params": ["lr"]}),
    "at_step a float": json.dumps({**GOOD, "at_step": 1.5}),
    "unknown boundary": json.dumps({**GOOD, "at_boundary": "epoch"}),
    "boundary a list": json.dumps({**GOOD, "at_boundary": ["step"]}),
    "unknown command": json.dumps({**GOOD, "command": command("format")}),
    "command a list": json.dumps({**GOOD, "command": ["stop"]}),
    "command name a list": json.dumps({**GOOD, "command": {"id": "c", "name": ["stop"], "to": None}}),
    "command to a number": json.dumps({**GOOD, "command": {"id": "c", "name": "stop", "to": 3}}),
    "schedule a number": json.dumps({**GOOD, "schedule": 3}),
    "keep a path": json.dumps({**GOOD, "keep": "../x"}),
    "keep true": json.dumps({**GOOD, "keep": True}),
    "schedule of numbers": json.dumps({**GOOD, "schedule": [3]}),
    "schedule with unknown key": json.dumps({**GOOD, "schedule": [{"revision": 1, "params": {}, "v": 1}]}),
}


@pytest.mark.parametrize("name", IGNORED)
def test_a_bad_control_file_is_ignored_with_a_log_record_and_the_next_good_one_applies(run: Path, name: str) -> None:
    with Script() as script:
        (run / "control.json").write_bytes(IGNORED[name].encode(errors="surrogateescape"))
        script.w.step(1, {"loss": 1.0})
        script.w.step(2, {"loss": 1.0})
        assert script.recipe["lr"] == 0.1
        assert [r["message"][:20] for r in records(run, "log")] == ["control file ignored"]
        control(run, 1, {"lr": 0.3})
        script.w.step(3, {"loss": 1.0})
        assert script.recipe["lr"] == 0.3
    assert [r["revision"] for r in records(run, "applied")] == [1]
    folded(run)


REFUSED: dict[str, dict[str, Any]] = {
    "NaN": {"lr": math.nan},
    "infinite": {"lr": math.inf},
    "1e999": {"lr": 1e999},
    "huge int": {"lr": 10**400},
    "too high": {"lr": 1.00001},
    "a whole number too high": {"depth": 10},
    "too low": {"lr": 0.0},
    "text": {"lr": "0.2"},
    "true": {"lr": True},
    "null": {"lr": None},
    "list": {"lr": [0.2]},
    "object": {"lr": {"value": 0.2}},
    "float for int": {"depth": 4.0},
    "number for bool": {"flip": 1},
    "unknown choice": {"kind": "c"},
    "list for choice": {"kind": ["a"]},
    "unknown name": {"momentum": 0.9},
    "one good, one bad": {"lr": 0.2, "depth": 99},
    "between off and low": {"mix": 0.1},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_cannot_be_is_refused_and_changes_nothing(run: Path, name: str) -> None:
    with Script() as script:
        before = dict(script.recipe)
        control(run, 1, REFUSED[name])
        script.w.step(1, {"loss": 1.0})
        script.w.eval(1, {"loss": 1.0})
        script.w.checkpoint(1, "checkpoints/a")
        assert script.recipe == before
        assert script.set_calls == []
        control(run, 2, {"lr": 0.2})
        script.w.step(2, {"loss": 1.0})
        assert script.recipe["lr"] == 0.2
    assert [r["revision"] for r in records(run, "refused")] == [1]
    assert next(iter(REFUSED[name])) in records(run, "refused")[0]["reason"] or "depth" in REFUSED[name]
    folded(run)


# -- the control file: when it applies ---------------------------------------------------------------------------------


def test_each_revision_is_answered_exactly_once(run: Path) -> None:
    with Script() as script:
        for revision, lr in enumerate((0.2, 0.3, 5.0, 0.1), start=1):
            control(run, revision, {"lr": lr})
            for step in range(revision * 10, revision * 10 + 3):
                script.w.step(step, {"loss": 1.0})
        control(run, 4, {"lr": 0.1})  # written again: a new file, an old revision
        script.w.step(50, {"loss": 1.0})
        control(run, 2, {"lr": 0.3})
        script.w.step(51, {"loss": 1.0})
    answers = [(r["event"], r["revision"], r["step"]) for r in records(run) if r["event"] in ("applied", "refused")]
    assert answers == [("applied", 1, 10), ("applied", 2, 20), ("refused", 3, 30), ("applied", 4, 40)]
    assert records(run, "applied")[1]["changes"] == {"lr": [0.2, 0.3]}


def test_changes_wait_for_their_boundary_the_coarsest_of_them_for_all(run: Path) -> None:
    with Script() as script:
        w = script.w
        control(run, 1, {"lr": 0.2, "depth": 4})
        w.step(1, {"loss": 1.0})
        w.eval(1, {"loss": 1.0})
        assert script.recipe["lr"] == 0.1
        w.step(2, {"loss": 1.0})
        w.checkpoint(2, "checkpoints/a")
        assert (script.recipe["lr"], script.recipe["depth"]) == (0.2, 4)
        control(run, 2, {"lr": 0.2, "depth": 4, "mix": 0.0})  # "off"; of the others nothing is asked anew
        w.step(3, {"loss": 1.0})
        assert script.recipe["mix"] == 0.5
        w.eval(3, {"loss": 1.0})
        assert script.recipe["mix"] == 0.0
    first, second = records(run, "applied")
    assert (first["boundary"], first["step"], list(first["changes"])) == ("checkpoint", 2, ["lr", "depth"])
    assert (second["boundary"], second["step"], list(second["changes"])) == ("eval", 3, ["mix"])


def test_a_revision_that_is_superseded_while_it_waits_is_refused_once(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"depth": 4})
        script.w.step(1, {"loss": 1.0})
        control(run, 2, {"lr": 0.2})
        script.w.step(2, {"loss": 1.0})
        script.w.checkpoint(3, "checkpoints/a")
    assert script.recipe["depth"] == 3
    assert [(r["revision"], r["reason"]) for r in records(run, "refused")] == [(1, "superseded by revision 2")]
    assert [r["revision"] for r in records(run, "applied")] == [2]


def test_what_comes_too_late_is_refused(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2}, valid_until_step=4)
        script.w.step(5, {"loss": 1.0})
        control(run, 2, {"lr": 0.2}, valid_until_step=6)
        script.w.step(6, {"loss": 1.0})
        control(run, 3, {"lr": 0.3}, at_step=6)
        script.w.step(7, {"loss": 1.0})
        control(run, 4, {"lr": 0.2, "depth": 5}, valid_until_step=9)  # waits for a checkpoint, too long
        script.w.step(8, {"loss": 1.0})
        script.w.checkpoint(10, "checkpoints/a")
    assert [(r["revision"], r["reason"]) for r in records(run, "refused")] == [
        (1, "too late: it was valid until step 4, this is step 5"),
        (3, "too late: it was for step 6, this is step 7"),
        (4, "too late: it was valid until step 9, this is step 10"),
    ]
    assert script.recipe["lr"] == 0.2


def test_what_waits_for_something_that_never_comes_is_refused_with_that_reason(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"depth": 5}, valid_until_step=3)  # at a checkpoint
        for step in range(1, 5):
            script.w.step(step, {"loss": 1.0})
            script.w.eval(step, {"loss": 1.0})
        control(run, 2, {"depth": 6}, at_step=5)
        script.w.step(5, {"loss": 1.0})
        script.w.step(6, {"loss": 1.0})
        script.w.checkpoint(6, "c")
        control(run, 3, {"depth": 7}, valid_until_step=7)
        script.w.step(7, {"loss": 1.0})
        script.w.step(8, {"loss": 1.0})
        control(run, 4, {"lr": 0.2}, valid_until_step=7)
        script.w.step(9, {"loss": 1.0})
    waited = "; it waited for a checkpoint, and none has been reported"
    assert [r["reason"] for r in records(run, "refused")] == [
        f"too late: it was valid until step 3, this is step 4{waited}",
        f"too late: it was for step 5, this is step 6{waited}",
        "too late: it was valid until step 7, this is step 8",
        "too late: it was valid until step 7, this is step 9",
    ]


def test_a_change_at_evaluations_waits_for_the_first_of_them(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"mix": 0.7}, valid_until_step=1)
        script.w.step(1, {"loss": 1.0})
        script.w.step(2, {"loss": 1.0})
    (refused,) = records(run, "refused")
    assert refused["reason"].endswith("; it waited for an evaluation, and none has been reported")


def test_at_step_and_at_boundary_are_exact(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2}, at_step=3, at_boundary="eval")
        seen = []
        for step in range(1, 5):
            script.w.step(step, {"loss": 1.0})
            seen.append(script.recipe["lr"])
            script.w.eval(step, {"loss": 1.0})
            seen.append(script.recipe["lr"])
    assert seen == [0.1] * 5 + [0.2] * 3


def test_a_step_has_each_boundary_once_so_that_a_replay_finds_the_same_one(run: Path) -> None:
    with Script() as script:
        w = script.w
        w.step(1, {"loss": 1.0})
        w.eval(1, {"loss": 1.0})
        w.checkpoint(1, "checkpoints/best")
        control(run, 1, {"lr": 0.2})
        w.checkpoint(1, "checkpoints/last")
        w.eval(1, {"loss": 1.0})
        w.step(1, {"loss": 1.0})
        assert script.recipe["lr"] == 0.1
        w.step(2, {"loss": 1.0})
        assert script.recipe["lr"] == 0.2


def test_a_schedule_applies_each_entry_at_its_step(run: Path) -> None:
    back = command("rollback", "best")
    entries = [
        {"revision": 1, "params": {"lr": 0.2}, "at_step": 2, "at_boundary": "step"},
        {"revision": 2, "params": {"lr": 0.2}, "at_step": 4, "at_boundary": "eval", "command": back},
        {"revision": 3, "params": {"lr": 0.3}, "at_step": 4, "at_boundary": "eval"},
        {"revision": 4, "params": {"lr": 0.3, "depth": 5}, "at_step": 5, "at_boundary": "checkpoint"},
    ]  # fmt: skip
    with Script() as script:
        control(run, 4, {"lr": 0.3, "depth": 5}, schedule=[e | {"decision": "d", "based_on_step": 0} for e in entries])
        for step in range(1, 7):
            script.w.step(step, {"loss": 1.0})
            script.w.eval(step, {"loss": 1.0})
            script.w.checkpoint(step, "checkpoints/a")
    assert [(r["revision"], r["step"], r["boundary"]) for r in records(run, "applied")] == [
        (1, 2, "step"), (2, 4, "eval"), (3, 4, "eval"), (4, 5, "checkpoint"),
    ]  # fmt: skip
    assert script.done == ["rollback best"]
    assert (script.recipe["lr"], script.recipe["depth"]) == (0.3, 5)
