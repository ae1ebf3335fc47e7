"""workloads/line.js and workloads/line.c: what schemas/README.md says is enough for a script in any language."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from recorded import holds

from trainmgr.base.wire import to_json
from trainmgr.checking import check
from trainmgr.contract import events, protocol, schemas
from trainmgr.contract.policy import Actions, Policy, Probation
from trainmgr.contract.protocol import Command, Control, Issued, Override
from trainmgr.log.telemetry import Feed
from trainmgr.managers import catalog
from trainmgr.readers import replay
from trainmgr.testing import ScriptedManager, answer, supervise
from trainmgr.testing.waiting import wait_for

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "schemas" / "README.md"
ID = "20261122-101500-line-0a1b"
LAST = 1500
STOP = Command(id="stop", name="stop")


@pytest.fixture(scope="module", params=["node", "cc"])
def script(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the two, executable; skipped where the machine has not what it needs."""
    tool = shutil.which(request.param)
    if tool is None:
        pytest.skip(f"there is no {request.param} on this machine")
    if request.param == "node":
        return ROOT / "workloads" / "line.js"
    built = tmp_path_factory.mktemp("built") / "line"
    source = ROOT / "workloads" / "line.c"
    subprocess.run([tool, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(built), str(source)], check=True)
    return built


def test_it_passes_the_check(script: Path) -> None:
    checked = check.Probe(script, [], 60.0).run()
    assert [breach.what for breach in checked.breaches if breach.severity == "error"] == []
    for text in ("lr: a change takes effect and is read back", "stop: it ends", "another seed gives other figures"):
        assert text in checked.passed


def test_the_rules_manage_it_and_the_log_proves_it(tmp_path: Path, script: Path) -> None:
    policy = Policy()
    manager = catalog.make("rules", policy, tmp_path / "runs")
    paths, closing, heard = supervise(tmp_path, script, manager, policy=policy)
    assert closing.status in ("completed", "stopped")
    assert heard.of(protocol.Applied)
    assert heard.of(protocol.End)[0].metrics["test_loss"] < 1.0
    holds(paths)


def test_a_run_is_trained_again_bit_for_bit(tmp_path: Path, script: Path) -> None:
    manager = ScriptedManager([
        answer("adjust", {"lr": 0.2}),
        answer("rollback", {"lr": 0.1}, to="initial"),
        answer(),
        answer("rollback", to="best"),
        answer("stop", to="best"),
    ])  # fmt: skip
    policy = Policy(probation=Probation(enabled=False), actions=Actions(stop_settled_evals=0))
    paths, closing, heard = supervise(tmp_path, script, manager, policy=policy)
    assert closing.status == "stopped"
    assert [(item.command.name, item.command.to) for item in heard.of(protocol.Applied) if item.command] == [
        ("rollback", "initial"), ("rollback", "best"), ("stop", "best"),
    ]  # fmt: skip
    assert [item.changes for item in heard.of(protocol.Applied) if item.changes] == [
        {"lr": (0.4, 0.2)}, {"lr": (0.2, 0.1)},
    ]  # fmt: skip
    assert heard.of(events.Failure) == []
    holds(paths)
    (tmp_path / "again").mkdir()
    again, _, _ = supervise(tmp_path / "again", script, schedule=replay.schedule_of(paths))
    compared = replay.compare_training(paths, again)
    assert compared.first is None
    assert compared.compared > LAST / 100


def test_without_a_supervisor_it_trains_and_writes_nothing(tmp_path: Path, script: Path) -> None:
    done = subprocess.run([script], cwd=tmp_path, env=environment(None), capture_output=True, timeout=120, check=True)
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == (b"", b"", [])


def test_every_revision_is_answered_once_at_its_moment(tmp_path: Path, script: Path) -> None:
    run = tmp_path / ID
    run.mkdir()
    asked: list[dict[str, Any]] = [
        {"at_step": 1, "params": {"lr": 0.3}},
        {"at_step": 2, "params": {"lr": 0.3, "dropout": 0.1}},
        {"at_step": 2, "params": {"lr": 2.0}},
        {"at_step": 2, "params": {"lr": 0.3}, "command": Command(id="a", name="checkpoint", to="mine")},
        {"at_step": 2, "params": {"lr": 0.3}, "command": Command(id="b", name="rollback", to="best")},
        {"at_step": 2, "params": {"lr": 0.1, "": 0.0}},
        {"at_step": 2, "valid_until_step": LAST, "params": {"lr": 0.1}},
        {"at_step": 3, "params": {"lr": 0.2}, "command": Command(id='"}', name="rollback", to="initial")},
        {"at_step": 30, "params": {"lr": 0.2}, "command": Command(id="d", name="rollback", to="best")},
        {"at_step": 31, "params": {"lr": 0.2}, "command": STOP},
        {"at_step": 32, "params": {"lr": 0.1}},
    ]
    schedule = [Override(revision=n, based_on_step=0, decision=f"d{n}", **more) for n, more in enumerate(asked, 1)]
    last = schedule[-1].model_dump(exclude={"keep"})
    put(run, Control(v=1, run=ID, issued=Issued(t=0.0, step=0), schedule=schedule, **last))
    subprocess.run([script], env=environment(run), capture_output=True, timeout=120, check=True)
    items = list(Feed(run / "telemetry.jsonl").records())
    answers = [item for item in items if isinstance(item, protocol.Applied | protocol.Refused)]
    assert [item.seq for item in items if not isinstance(item, protocol.Unreadable)] == list(range(len(items)))
    assert [(item.revision, item.event, item.step) for item in answers] == [
        (1, "applied", 1), (2, "refused", 2), (3, "refused", 2), (4, "refused", 2), (5, "refused", 2),
        (6, "refused", 2), (7, "applied", 2), (8, "applied", 3), (9, "applied", 30), (10, "applied", 31),
    ]  # fmt: skip
    assert isinstance(items[-1], protocol.End)
    assert (items[-1].status, items[-1].step) == ("stopped", 31)


def test_what_waits_is_superseded_by_a_later_file(tmp_path: Path, script: Path) -> None:
    run = tmp_path / ID
    run.mkdir()
    common: dict[str, Any] = {"run": ID, "issued": Issued(t=0.0, step=0), "based_on_step": 0, "params": {}}
    put(run, Control(revision=1, decision="d1", at_step=LAST, **common))
    child = subprocess.Popen([script], env=environment(run))
    wait_for(lambda: b'"step":2,' in telemetry(run), "the second step")
    put(run, Control(**{**common, "run": "another"}, revision=2, decision="d2", command=STOP))
    put(run, Control(revision=3, decision="d3", command=STOP, **common))
    assert child.wait(timeout=120) == 0
    items = Feed(run / "telemetry.jsonl").records()
    first, second = (item for item in items if isinstance(item, protocol.Applied | protocol.Refused))
    assert isinstance(first, protocol.Refused)
    assert (first.revision, first.reason.split()[0], second.revision, second.event) == (1, "superseded", 3, "applied")


def environment(run: Path | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRAINMGR_")}
    return kept if run is None else {**kept, "TRAINMGR_RUN_DIR": str(run)}


def put(run: Path, control: Control) -> None:
    (run / "control.new").write_bytes(to_json(control))
    (run / "control.new").replace(run / "control.json")


def telemetry(run: Path) -> bytes:
    path = run / "telemetry.jsonl"
    return path.read_bytes() if path.exists() else b""


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_records_of_the_page_are_the_examples() -> None:
    """It may leave keys out, and says nothing else."""
    quoted = [json.loads(line) for line in PAGE.read_text().splitlines() if line.startswith('{"')]
    examples = [*schemas.EXAMPLES["telemetry"], *schemas.EXAMPLES["control"]]
    assert len(quoted) == len(examples)
    for short, example in zip(quoted, examples, strict=True):
        assert {key: example[key] for key in short} == short


def test_the_page_names_every_key_of_a_revision_and_every_variable() -> None:
    text = PAGE.read_text()
    for name in {*Override.model_fields, "schedule", "run", "v"} - {"decision"}:
        assert f"`{name}`" in text
    source = (ROOT / "trainmgr" / "base" / "paths.py").read_text()
    for name in re.findall(r'"(TRAINMGR_\w+)"  # given to the child', source):
        assert f"`{name}`" in text


def test_the_scripts_are_short() -> None:
    for name in ("line.js", "line.c", "protocol.h"):
        assert len((ROOT / "workloads" / name).read_text().splitlines()) < 80
