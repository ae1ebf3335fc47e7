"""A log that somebody rewrote, every hash made anew: what is missing, comes twice, too late or without its cause."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories.forging import ALONE, Payloads, closing, edited, measured, of, rewritten

from trainmgr.base import files
from trainmgr.base.errors import TrainmgrError
from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import plain
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Policy, Process
from trainmgr.contract.run_file import render_run_file
from trainmgr.log import audit
from trainmgr.log.history import History, latest
from trainmgr.managers.replay import Recorded
from trainmgr.managers.rules import RulesManager
from trainmgr.readers import opinions, proof, replay
from trainmgr.terminal import tables
from trainmgr.testing import (
    EXACT,
    LINE,
    Recorder,
    ScriptedManager,
    answer,
    supervise,
    write_child,
)

ANSWERS = [answer(), answer("adjust", {"lr": 0.3}), answer("adjust", {"decay": 0.02}), answer(),
           answer("adjust", {"lr": 50.0}), answer("adjust", {"lr": 0.2}), answer("adjust", {"lr": 0.1})]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sequence")


@pytest.fixture(scope="module")
def managed(folder: Path) -> RunPaths:
    """Its script is killed after the last step, so that no record says that measuring ended."""
    body = LINE.replace("STEPS, EVERY = 24, 2", "STEPS, EVERY = 19, 2")
    body = body.replace("    evals = 0\n", "    evals, told = 0, None\n", 1)
    body = body.replace(
        "    for step in w.steps():\n", "    for step in w.steps():\n        if step == 17:\n            os._exit(0)\n"
    )
    paths, closing, _ = supervise(folder, write_child(folder, body), ScriptedManager(ANSWERS))
    assert (closing.status, closing.interventions) == ("completed", 4)
    return paths


@pytest.fixture(scope="module")
def interrupted(folder: Path) -> RunPaths:
    def press(record: Any, _: Any) -> None:
        if isinstance(record, protocol.Step) and record.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    body = ALONE + "        if step == 4:\n            until(lambda: (RUN / 'control.json').exists())\n"
    paths, closing, _ = supervise(folder, write_child(folder, body), listener=Recorder(on_record=press))
    assert closing.status == "interrupted"
    return paths


@pytest.fixture(scope="module")
def restarted(folder: Path) -> RunPaths:
    body = ALONE + """        if step == 6 and not (RUN / "once").exists():
            (RUN / "once").touch()
            os._exit(9)
        until(lambda: settled(step // 2))
"""  # fmt: skip
    policy = EXACT.model_copy(update={"process": Process(restarts=1)})
    answers = [answer("adjust", {"lr": 0.2}), answer(), answer(), answer("adjust", {"lr": 0.3})]
    paths, closing, _ = supervise(folder, write_child(folder, body), ScriptedManager(answers), policy=policy)
    assert closing.status == "completed"
    return paths


@pytest.fixture(scope="module")
def approved(folder: Path) -> RunPaths:
    answers = [answer("adjust", {"lr": 0.3}), answer("adjust", {"lr": 0.2})]
    paths, closing, _ = supervise(
        folder, write_child(folder), ScriptedManager(answers), listener=Recorder(approve=True), mode="approve"
    )
    assert closing.interventions == 2
    return paths


@pytest.mark.parametrize("name", ["managed", "interrupted", "restarted", "approved"])
def test_what_was_rewritten_as_it_was_holds_and_replays(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    paths = request.getfixturevalue(name)
    assert rewritten(paths, tmp_path, lambda payloads: None) == []
    assert replay.rebuild(paths).differences == []


# -- the auditor changes nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["managed", "restarted"])
def test_deciding_again_leaves_the_state_as_it_is(name: str, request: pytest.FixtureRequest) -> None:
    for moment in History(request.getfixturevalue(name)).moments():
        before = copy.deepcopy((moment.now.state, moment.now.ledger))
        replay.derived(moment)
        assert (moment.now.state, moment.now.ledger) == before


def forged_end(payloads: Payloads, at: int, number: int) -> events.Outcome:
    """The outcome of a revision as it would be if the run had been over at the event before ``at``."""
    real = payloads[of(payloads, events.Outcome, number)]
    answered = next(p for p in payloads if isinstance(p, events.Acknowledged) and p.revision == real.revision)
    return real.model_copy(update={"telemetry_offset": answered.telemetry_offset, "after": [], "closed": "end"})


def test_an_outcome_of_the_end_in_mid_run_is_named(managed: RunPaths, tmp_path: Path) -> None:
    def forge(payloads: Payloads) -> None:
        forged = forged_end(payloads, 0, 0)
        del payloads[of(payloads, events.Outcome)]
        payloads.insert(of(payloads, events.Acknowledged) + 1, forged)

    found = rewritten(managed, tmp_path, forge)
    place = f"audit.jsonl line {of([e.data for e in audit.read(managed.audit)], events.Acknowledged) + 2}"
    assert any(f.startswith(f"{place}: it says that the run was over; telemetry.jsonl line") for f in found)


def test_an_end_that_no_record_tells_is_the_last_thing_measured(managed: RunPaths, tmp_path: Path) -> None:
    payloads = [event.data for event in audit.read(managed.audit)]
    assert payloads[of(payloads, events.Outcome, -1)].closed == "end"
    assert isinstance(payloads[-2], events.Outcome)

    def forge(payloads: Payloads) -> None:
        payloads[of(payloads, events.Outcome, -1)] = payloads[-2].model_copy(update={"after": []})

    assert any("outcome: `after`" in f for f in rewritten(managed, tmp_path, forge))


def twice(kind: type[Any], number: int = 0) -> Callable[[Payloads], None]:
    def forge(payloads: Payloads) -> None:
        at = of(payloads, kind, number)
        payloads.insert(at + 1, payloads[at])

    return forge


def dropped(kind: type[Any], number: int = 0) -> Callable[[Payloads], None]:
    return lambda payloads: payloads.pop(of(payloads, kind, number))


def later(kind: type[Any], number: int, beyond: type[Any]) -> Callable[[Payloads], None]:
    """Moved behind the next event of another kind."""

    def forge(payloads: Payloads) -> None:
        at = of(payloads, kind, number)
        moved = payloads.pop(at)
        behind = next(i for i in range(at, len(payloads)) if isinstance(payloads[i], beyond))
        payloads.insert(behind + 1, moved)

    return forge


def added(payload: events.Payload, before: type[Any], number: int = 0) -> Callable[[Payloads], None]:
    return lambda payloads: payloads.insert(of(payloads, before, number), payload)


def no_restart(payloads: Payloads, before: type[Any], number: int = 0) -> None:
    """A restart that was none, at the byte of the event before which it stands."""
    at = of(payloads, before, number)
    offset = payloads[at].telemetry_offset
    payloads.insert(at, events.Restarted(attempt=1, exit="ended", resume=None, telemetry_offset=offset))


def renumbered(payloads: Payloads) -> None:
    """The last decision is issued a second time, under the next revision."""
    at = of(payloads, events.OverrideIssued, -1)
    override = payloads[at]
    control = override.control.model_copy(update={"revision": override.control.revision + 1})
    payloads.insert(at + 1, override.model_copy(update={"control": control}))


def disguised(payloads: Payloads) -> None:
    """A change of a value that nobody decided, in the name of the operator."""
    payloads.insert(of(payloads, events.OverrideIssued, -1), events.Operator(action="stop", by="Ctrl-C"))
    at = of(payloads, events.OverrideIssued, -1)
    payloads[at] = payloads[at].model_copy(update={"origin": "operator"})


def denied(kind: type[Any], number: int, where: str) -> Callable[[Payloads], None]:
    """With the word that it was not applied, before or behind it."""

    def forge(payloads: Payloads) -> None:
        at = of(payloads, kind, number)
        said = events.Failure(where="audit", message="not applied", decision=payloads[at].decision)
        payloads.insert(at + (where == "behind"), said)

    return forge


UNHEARD = events.Acknowledged(decision="operator1", revision=9, telemetry_offset=0, result="refused", step=1,
                              boundary=None, changes={}, reason="")  # fmt: skip
FORGED: dict[str, tuple[str, Callable[[Payloads], None], str]] = {
    "an acknowledgment left out": (
        "managed", dropped(events.Acknowledged, 1), "before it revision 2 (applied in telemetry.jsonl line"),
    "the last acknowledgment left out": (
        "managed", dropped(events.Acknowledged, -1), "before it revision 4 (applied in telemetry.jsonl line"),
    "an acknowledgment twice": ("managed", twice(events.Acknowledged), "revision 1 is acknowledged twice"),
    "an acknowledgment at a later record": (
        "managed", later(events.Acknowledged, 0, events.SnapshotTaken), "after byte"),
    "an acknowledgment of a record that there is not": (
        "interrupted", added(UNHEARD, events.Operator), "no answer to it ends at"),
    "an outcome twice": ("managed", twice(events.Outcome), "outcome: decided again, nothing of the kind was due"),
    "an outcome left out": ("managed", dropped(events.Outcome, -1), "before it there is no outcome of revision 4"),
    "why somebody was asked": (
        "managed", edited(events.SnapshotTaken, 1, trigger="alarm"), "snapshot: `trigger` is"),
    "a question that was not due": ("managed", twice(events.SnapshotTaken), "nothing of the kind was due"),
    "an answer left out": ("managed", dropped(events.Response), "a verdict on d1, which nobody answered"),
    "an answer twice": ("managed", twice(events.Response), "d1 is answered twice"),
    "an answer to another decision": (
        "managed", edited(events.Response, 1, decision="d7"), "response: it is on d7; d2 was waited for"),
    "a verdict on another decision": (
        "managed", edited(events.Verdict, 0, decision="d7"), "verdict: `decision` is"),
    "a decision issued twice": ("managed", renumbered, "override: decided again, nothing of the kind was due"),
    "a change in the name of the operator": ("managed", disguised, "override: `decision` is"),
    "a change in the name of a replay": (
        "managed", edited(events.OverrideIssued, 0, origin="replay"), "override: decided again, nothing of the kind"),
    "a change in the name of a restart": (
        "managed", edited(events.OverrideIssued, 0, origin="restart"), "an override for a restart, which is not on"),
    "a stop that nobody asked for": (
        "interrupted", dropped(events.Operator), "an override of the operator, who asked for nothing right before it"),
    "a stop that was asked for and not issued": (
        "managed", added(events.Operator(action="stop", by="Ctrl-C"), events.SnapshotTaken, 3),
        "before it the operator asked for a stop, which was not issued"),
    "an interruption that was none": ("managed", closing(status="interrupted"), "nobody asked for the end"),
    "a better curve": ("managed", measured(curve=[(1, 0.0)]), "closing: `measured.curve` is [[1, 0.0]]; the run says"),
    "calls that were not made": ("managed", measured(calls=3), "closing: `measured.calls` is 3; the run says 0"),
    "a stall that was none": ("managed", closing(status="hung"), "it never stalled"),
    "a crash that is called an end": (
        "restarted", closing(exit_code=9), '`status` is "completed"; the workload said "completed", and its exit code'),
    "a stop that is called an end": (
        "interrupted", closing(status="completed"), 'the workload said "stopped", and its exit code is 0'),
    "a restart that was none": (
        "managed", lambda payloads: no_restart(payloads, events.SnapshotTaken, 3),
        "restart 1; 1 was to come, and 0 are allowed"),
    "the number of a restart": ("restarted", edited(events.Restarted, 0, attempt=2), "restart 2; 1 was to come"),
    "a policy that does not fit": (
        "managed", added(events.Failure(where="policy", message="x"), events.SnapshotTaken, 2),
        "the policy fits what the script declares"),
    "a decision that was issued, and is said not to be": (
        "managed", denied(events.OverrideIssued, 0, "before"), "is issued; audit.jsonl line"),
    "the same, said later": (
        "managed", denied(events.OverrideIssued, 0, "behind"), "was not applied, which was issued"),
    "the checkpoint of a restart": (
        "restarted", edited(events.Restarted, 0, resume="checkpoints/x"), "restarted: `resume` is"),
    "an approval twice": ("approved", twice(events.Approval), "nobody was asked about d1, or it was answered before"),
    "an approval of nobody's": (
        "managed", added(events.Approval(decision="d1", answer="yes"), events.OverrideIssued), "nobody was asked"),
    "a file that could not be written": (
        "interrupted", added(events.Failure(where="control", message="x", decision="d9"), events.RunEnded), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_what_a_forger_with_every_hash_claims_is_named(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run, forge, words = FORGED[name]
    found = rewritten(request.getfixturevalue(run), tmp_path, forge)
    if words:
        assert any(words in finding for finding in found), found
    else:
        assert found == []


def test_a_restart_needs_a_start_in_telemetry(managed: RunPaths, tmp_path: Path) -> None:
    """Even where the policy allows one: it would end every trial."""

    def forge(payloads: Payloads) -> None:
        manifest = payloads[0].manifest
        policy = manifest.policy.model_copy(update={"process": Process(restarts=3)})
        payloads[0] = events.RunStarted(manifest=manifest.model_copy(update={"policy": policy}))
        no_restart(payloads, events.Acknowledged)

    assert any("a restart; telemetry has no start between it" in f for f in rewritten(managed, tmp_path, forge))


def test_an_acknowledgment_that_the_disk_kept_back_may_come_late_at_its_own_byte(
    interrupted: RunPaths, tmp_path: Path
) -> None:
    """Behind events that speak of no byte of telemetry, and in order."""

    def forge(payloads: Payloads) -> None:
        at = of(payloads, events.Acknowledged)
        payloads.insert(at, events.Failure(where="audit", message="No space left on device"))
        payloads.insert(at, events.Signalled(name="SIGUSR1", passed=True))

    assert rewritten(interrupted, tmp_path, forge) == []


def test_what_is_not_acknowledged_yet_is_a_note_while_the_run_goes_on(interrupted: RunPaths, tmp_path: Path) -> None:
    again = RunPaths(tmp_path / interrupted.id)
    shutil.copytree(interrupted.root, again.root)
    lines = interrupted.audit.read_bytes().splitlines(keepends=True)
    at = of([event.data for event in audit.read(interrupted.audit)], events.Acknowledged)
    again.audit.write_bytes(b"".join(lines[:at]))
    manifest = plain(next(audit.read(interrupted.audit)).data)["manifest"]
    again.manifest.write_bytes(render_run_file(manifest, None))
    found = proof.prove(again)
    assert [str(finding) for finding in found.findings] == []
    assert any(note.startswith("Revision 1 (applied in telemetry.jsonl line") for note in found.notes)


HOSTILE: list[Any] = [None, True, -1, 0, 1e308, 10**30, "x", "NaN", [], {}, [[]], {"a": {}}, "\u202e" * 5, 2**53, ""]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in [(*path, key), *places(inner, (*path, key))]]


def spoiled(rng: random.Random, bodies: list[dict[str, Any]]) -> None:
    """Something else somewhere, or an event that is gone, twice or elsewhere."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        kind, at = rng.random(), rng.randrange(len(bodies))
        if kind < 0.7:
            *path, last = rng.choice(places(bodies[at]["data"]))
            target = bodies[at]["data"]
            for key in path:
                target = target[key]
            target[last] = rng.choice(HOSTILE)
        elif kind < 0.8 and len(bodies) > 2:
            del bodies[at]
        elif kind < 0.9:
            bodies.insert(rng.randrange(len(bodies)), copy.deepcopy(bodies[at]))
        else:
            bodies.append(bodies.pop(at))


def test_no_reader_trips_over_what_a_forger_seals(managed: RunPaths, tmp_path: Path) -> None:
    """Errors in words, or findings: never an exception of ours."""
    rng = random.Random("spoiled")
    again = RunPaths(tmp_path / managed.id)
    shutil.copytree(managed.root, again.root)
    readers: list[Callable[[], Any]] = [
        lambda: replay.rebuild(again, RulesManager(Policy())), lambda: Recorded(again), lambda: latest(again),
        lambda: replay.schedule_of(again), lambda: list(opinions.opinions(again, RulesManager(Policy()))),
    ]  # fmt: skip
    for _ in range(25):
        bodies = [json.loads(line) for line in managed.audit.read_bytes().splitlines()]
        spoiled(rng, bodies)
        head, lines = audit.GENESIS, []
        for seq, body in enumerate(bodies):
            data = json.dumps(
                {"seq": seq, "t": 0.0, "data": body["data"], "prev": head}, separators=(",", ":")
            ).encode()
            lines.append(data[:-1] + b',"hash":"' + files.sha256(data).encode() + b'"}\n')
            head = files.sha256(lines[-1])
        again.audit.write_bytes(b"".join(lines))
        found = proof.prove(again)
        assert not any("cannot be followed" in str(finding) for finding in found.findings)
        assert tables.proof_json(found)
        for reader in readers:
            with contextlib.suppress(TrainmgrError):
                reader()


def test_an_audit_keeps_nothing_of_what_was_answered_but_the_change(managed: RunPaths) -> None:
    prover = proof.Prover(managed)
    assert len(prover.prove().changes) == 4
    assert (prover._verdicts, prover._overrides) == ({}, {})
