"""No override without its line in the log before it; whatever files and disk do, the run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories.supervised import SIMPLE, failures, unwatched
from recorded import holds, payloads

from trainmgr.base.errors import UserError
from trainmgr.base.paths import RunPaths
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Process
from trainmgr.log import audit, orders
from trainmgr.readers import proof
from trainmgr.testing import (
    LINE,
    Recorder,
    ScriptedManager,
    answer,
    supervise,
    write_child,
)


def test_every_override_is_in_the_log_before_it_is_in_the_control_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = orders.write, []

    def watched(paths: RunPaths, content: protocol.Control) -> None:
        last = payloads(paths)[-1]
        assert isinstance(last, events.OverrideIssued)
        assert last.control == content
        written.append(content.revision)
        write(paths, content)

    monkeypatch.setattr(orders, "write", watched)
    answers = [answer("adjust", {"lr": 0.2}), answer("rollback", to="best"), answer("adjust", {"lr": 0.1})]
    _, closing, _ = supervise(tmp_path, write_child(tmp_path), ScriptedManager(answers))
    assert closing.status == "completed"
    assert written == [1, 2, 3]


def test_without_a_log_line_no_override_reaches_the_control_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, write, decisions = audit.Log.append, orders.write, []

    def scarce(log: audit.Log, payload: events.Payload, t: float) -> audit.Event:
        if isinstance(payload, events.OverrideIssued) and payload.decision == "d2":
            raise OSError(28, "No space left on device")
        return append(log, payload, t)

    def watched(paths: RunPaths, content: protocol.Control) -> None:
        decisions.append(content.decision)
        write(paths, content)

    monkeypatch.setattr(audit.Log, "append", scarce)
    monkeypatch.setattr(orders, "write", watched)
    listener = Recorder()

    def go(event: events.Payload) -> None:
        if isinstance(event, events.Failure) and event.where == "audit" and listener.paths:
            (listener.paths.root / "go").touch()

    listener._on_event = go
    body = LINE.replace("settled(evals)", "settled(evals) or (evals == 2 and (RUN / 'go').exists())")
    answers = [answer("adjust", {"lr": 0.3}), answer("adjust", {"decay": 0.1}), answer("adjust", {"lr": 0.2})]
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), ScriptedManager(answers), listener=listener)
    assert closing.status == "completed"
    assert decisions == ["d1", "d3"]
    assert protocol.Control.model_validate_json(paths.control.read_bytes()).params == {"lr": 0.2}
    holds(paths)


def test_a_disk_that_stays_full_stops_the_managing_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = audit.Log.append

    def full(log: audit.Log, payload: events.Payload, t: float) -> audit.Event:
        if log._seq >= 5:
            raise OSError(28, "No space left on device")
        return append(log, payload, t)

    monkeypatch.setattr(audit.Log, "append", full)
    body = LINE.replace("until(lambda: settled(evals))", "evals == 1 and until(lambda: settled(evals))")
    manager = ScriptedManager([answer("adjust", {"lr": 0.3}), *[answer("adjust", {"lr": 0.2})] * 20])
    paths, closing, heard = supervise(tmp_path, write_child(tmp_path, body), manager)
    assert (closing.status, closing.steps) == ("completed", 24)
    assert [p.kind for p in payloads(paths)] == ["run started", "snapshot", "response", "verdict", "override"]
    assert protocol.Control.model_validate_json(paths.control.read_bytes()).revision == 1
    assert len(heard.of(protocol.Applied)) == 1


def test_a_log_that_cannot_be_begun_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit.Log, "append", full)
    with pytest.raises(UserError, match="nothing was started"):
        supervise(tmp_path, write_child(tmp_path))


def test_a_control_file_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(orders, "write", full)
    body = LINE.replace("settled(evals)", "any(e['kind'] == 'error' for e in log())")
    paths, closing, _ = supervise(
        tmp_path, write_child(tmp_path, body), ScriptedManager([answer("adjust", {"lr": 0.3})])
    )
    assert closing.status == "completed"
    assert failures(paths) == [("control", "control.json cannot be written: No space left on device")]
    holds(paths)


def test_garbage_partial_and_endless_lines_are_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    lines = [b"garbage\n", b"\xff\xfe\x00\n", b"[]\n", b"\n", b"x" * 70 * 1024 + b"\n", b"{}\n",
             b"[" * 5000 + b"\n",
             b'{"event":"step","v":1,"seq":1,"t":1.0,"step":1,"metrics":{"loss":nan}}\n']  # fmt: skip
    body = LINE.replace(
        "    for step in w.steps():",
        f"""    for step in w.steps():
        if step <= {len(lines)}:
            w.flush()
            line = {lines!r}[step - 1]
            os.write(w._writer.fd, line[:5])
            os.write(w._writer.fd, line[5:])""",
    )
    paths, closing, heard = supervise(
        tmp_path, write_child(tmp_path, body), ScriptedManager([answer("adjust", {"lr": 0.2})])
    )
    assert (closing.status, closing.steps, closing.interventions) == ("completed", 24, 1)
    unreadable = heard.of(protocol.Unreadable)
    assert len(unreadable) == len(lines)
    assert all(len(item.quote) <= 200 for item in unreadable)
    found = proof.prove(paths)
    assert {finding.what for finding in found.findings} == {"not a record"}
    assert len(found.findings) > 0


@pytest.mark.parametrize(
    "how", ["os.truncate(T, 0)", "T.rename(RUN / 'old.jsonl'); T.touch()", "T.unlink(); T.touch()"]
)
def test_telemetry_that_is_cut_or_replaced_is_told_and_the_run_goes_on(tmp_path: Path, how: str) -> None:
    body = (
        SIMPLE
        + f"""
T = RUN / "telemetry.jsonl"
with w:
    w.step(1, {{"loss": 1.0}})
    w.eval(1, {{"loss": 1.0}})
    until(lambda: settled(1))
    w.step(2, {{"loss": 1.0}})
    until(lambda: any(e["kind"] == "acknowledged" for e in log()))
    {how}
    until(lambda: any(e["kind"] == "error" and e["where"] == "telemetry" for e in log()))
    for step in range(3, 100):
        w.step(step, {{"loss": 1.0}})
        w.eval(step, {{"loss": 1.0}})
"""
    )
    manager = ScriptedManager([answer("adjust", {"lr": 0.2})])
    policy = unwatched(process=Process(stall_timeout=60.0))
    paths, closing, heard = supervise(tmp_path, write_child(tmp_path, body), manager, policy=policy)
    assert (closing.status, closing.exit_code) == ("completed", 0)
    assert heard.of(protocol.Unreadable) == []
    assert [where for where, _ in failures(paths)] == ["telemetry"]
    assert not proof.prove(paths).holds
