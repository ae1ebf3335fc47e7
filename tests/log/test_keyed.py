"""A log whose hashes are made with a key: nobody without the key can write it, or write it on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trainmgr.base import files
from trainmgr.base.errors import RecordError, UserError
from trainmgr.base.paths import RunPaths, list_runs
from trainmgr.base.process import clean_environment
from trainmgr.base.wire import plain
from trainmgr.contract.run_file import render_run_file
from trainmgr.log import audit, history
from trainmgr.readers import proof, replay
from trainmgr.testing import LINE, PYTHON, ScriptedManager, answer, supervise, wait_for, write_child

KEY, OTHER = b"0123456789abcdef" * 2, b"f" * 32
ANSWERS = [answer(), answer("adjust", {"lr": 0.3}), answer("adjust", {"decay": 0.02})]
TELLS = """
(RUN / "seen").write_text(repr(sorted(os.environ.items())))
""" + LINE  # fmt: skip


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRAINMGR_AUDIT_KEY", "TRAINMGR_AUDIT_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    folder = tmp_path_factory.mktemp("keyed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINMGR_AUDIT_KEY", KEY.decode())
        patch.setenv("ANOTHER", KEY.decode())
        paths, closing, _ = supervise(folder, write_child(folder, TELLS), ScriptedManager(ANSWERS))
    assert closing.interventions == 2
    return paths


def words(found: proof.Proof) -> list[str]:
    return [str(finding) for finding in found.findings]


def copied(paths: RunPaths, folder: Path) -> RunPaths:
    again = RunPaths(folder / paths.id)
    shutil.copytree(paths.root, again.root)
    return again


def resealed(paths: RunPaths, key: bytes | None, mark: str, **closing: Any) -> None:
    """All of the log again with another key and another mark, run.json with it."""
    payloads: list[Any] = [event.data for event in audit.read(paths.audit)]
    payloads[0] = payloads[0].model_copy(update={"key": mark})
    ended = payloads[-1].model_copy(update={"closing": payloads[-1].closing.model_copy(update=closing)})
    content = render_run_file(plain(payloads[0].manifest), plain(ended.closing))
    paths.manifest.write_bytes(content)
    payloads[-1] = ended.model_copy(update={"run_json_sha256": files.sha256(content)})
    paths.audit.unlink()
    log = audit.Log(paths.audit, key=key)
    for payload in payloads:
        log.append(payload, 0.0)
    log.close()


def test_the_right_key_proves_and_none_says_what_is_left_open(keyed: RunPaths) -> None:
    found = proof.prove(keyed, KEY)
    assert (words(found), found.notes, found.proven, found.key) == ([], [], True, audit.key_id(KEY))
    found = proof.prove(keyed)
    assert (words(found), found.proven) == ([], False)
    assert [note for note in found.notes if "give --key-file" in note] == found.notes != []
    assert words(proof.prove(keyed, OTHER)) == [
        f"audit.jsonl line 1: the log names the key {audit.key_id(KEY)}; the one that is given is {audit.key_id(OTHER)}"
    ]
    assert replay.rebuild(keyed).differences == []
    assert history.latest(keyed).ledger.ended is not None


def test_the_key_is_in_no_file_and_does_not_reach_the_script(keyed: RunPaths) -> None:
    for path in keyed.root.rglob("*"):
        assert path.is_dir() or KEY not in path.read_bytes(), path
    seen = (keyed.root / "seen").read_text()
    assert "AUDIT_KEY" not in seen
    assert "ANOTHER" not in seen
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINMGR_AUDIT_KEY_FILE", "/somewhere/audit.key")
        assert "TRAINMGR_AUDIT_KEY_FILE" not in clean_environment({})


def test_what_is_written_anew_without_the_key_is_seen_with_it(keyed: RunPaths, tmp_path: Path) -> None:
    stripped = copied(keyed, tmp_path)
    resealed(stripped, None, "", best=0.0)
    (finding,) = words(proof.prove(stripped, KEY))[:1]
    assert finding.startswith("audit.jsonl line 1: the log is not keyed, and a key is given")
    resealed(stripped, OTHER, audit.key_id(KEY), best=0.0)
    finding = "audit.jsonl line 1: its hash is not made with the key: it was changed, or written without the key"
    assert words(proof.prove(stripped, KEY))[0] == finding
    resealed(stripped, None, audit.key_id(KEY))
    assert words(proof.prove(stripped))[0] == finding  # a plain hash is no keyed one, whatever the key


def test_a_changed_line_is_named_with_the_key_and_by_the_next_line_without(keyed: RunPaths, tmp_path: Path) -> None:
    changed = copied(keyed, tmp_path)
    lines = keyed.audit.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"kind":"verdict"' in line)
    lines[at] = lines[at].replace(b'"evidence":"scripted"', b'"evidence":"tampered"')
    changed.audit.write_bytes(b"".join(lines))
    assert any(f.startswith(f"audit.jsonl line {at + 1}: its hash is not") for f in words(proof.prove(changed, KEY)))
    assert any(f.startswith(f"audit.jsonl line {at + 2}: it does not follow") for f in words(proof.prove(changed)))


def test_a_log_without_a_key_is_as_it_was(tmp_path: Path) -> None:
    paths, _, _ = supervise(tmp_path, write_child(tmp_path))
    first = paths.audit.read_bytes().splitlines()[0]
    assert list(json.loads(first)["data"]) == ["kind", "manifest"]
    body = audit.Body.model_validate_json(json.dumps({k: v for k, v in json.loads(first).items() if k != "hash"}))
    assert audit.seal(body) == first + b"\n"
    found = proof.prove(paths)
    assert (words(found), found.key, found.notes) == ([], "", [])


# ---- where the key comes from ----------------------------------------------------------------------------


def test_keys_that_cannot_be_used_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINMGR_AUDIT_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        supervise(tmp_path, write_child(tmp_path))
    assert list_runs(tmp_path / "runs") == []
    for content, said in ((b"", "only 0 bytes"), (b" short\n", "only 5 bytes"), (b"x" * 5000, "more than 4096 bytes")):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(UserError, match=said):
            audit.read_key(tmp_path / "key")
    with pytest.raises(UserError, match="Is a directory"):
        audit.read_key(tmp_path)
    (tmp_path / "key").write_bytes(KEY + b"\n")
    assert audit.read_key(tmp_path / "key") == KEY
    monkeypatch.setenv("TRAINMGR_AUDIT_KEY", KEY.decode())
    with pytest.raises(UserError, match="both set"):
        audit.given_key()


def test_the_command_takes_the_key_from_a_file_or_the_environment(keyed: RunPaths, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY + b"\n")
    (tmp_path / "other").write_bytes(OTHER)

    def run(*more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([PYTHON, "-m", "trainmgr", "audit", str(keyed.root), *more], capture_output=True,
                              text=True, env={**os.environ, **environment}, check=False)  # fmt: skip

    right = run("--key-file", str(tmp_path / "key"))
    assert (right.returncode, f"with the key {audit.key_id(KEY)}" in right.stdout) == (0, True)
    assert run("--json", TRAINMGR_AUDIT_KEY_FILE=str(tmp_path / "key")).returncode == 0
    wrong = run("--json", "--key-file", str(tmp_path / "other"))
    assert (wrong.returncode, json.loads(wrong.stdout)["holds"]) == (1, False)
    assert "give --key-file" in run().stdout
    none = run("--key-file", str(tmp_path / "none"))
    assert (none.returncode, none.stdout, "cannot be read" in none.stderr) == (2, "", True)


# ---- written on ------------------------------------------------------------------------------------------

WAITS = """
with Workload("waits", objective="loss", total_steps=4) as w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0 / step})
        if step == 2:
            until(lambda: any(event["kind"] == "attached" for event in log()))
"""


@pytest.mark.slow
def test_attach_goes_on_with_the_key_and_not_without(tmp_path: Path) -> None:
    script, key = write_child(tmp_path, WAITS), tmp_path / "key"
    key.write_bytes(KEY)
    plainly = {name: value for name, value in os.environ.items() if "AUDIT_KEY" not in name}
    base = [PYTHON, "-m", "trainmgr"]
    runs = ["--runs-dir", str(tmp_path / "runs")]
    first = subprocess.Popen([*base, "run", str(script), "-m", "none", "-q", *runs], stdout=subprocess.DEVNULL,
                             env={**plainly, "TRAINMGR_AUDIT_KEY_FILE": str(key)})  # fmt: skip
    wait_for(lambda: bool(list_runs(tmp_path / "runs")), "the run")
    (paths,) = list_runs(tmp_path / "runs")
    wait_for(lambda: paths.telemetry.exists() and b'"eval","step":2' in paths.telemetry.read_bytes().replace(b" ", b""),
             "the second evaluation")  # fmt: skip
    first.send_signal(signal.SIGKILL)
    first.wait()

    def attach(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*base, "attach", paths.id, "-q", *runs], capture_output=True, text=True,
                              env={**plainly, **environment}, check=False)  # fmt: skip

    before = paths.audit.read_bytes()
    without = attach()
    assert (without.returncode, "is keyed, and only its key" in without.stderr) == (2, True)
    wrong = attach(TRAINMGR_AUDIT_KEY=OTHER.decode())
    assert (wrong.returncode, "the one that is given is" in wrong.stderr) == (1, True)
    assert paths.audit.read_bytes() == before
    assert attach(TRAINMGR_AUDIT_KEY=KEY.decode()).returncode == 0
    found = proof.prove(paths, KEY)
    assert (words(found), found.proven, found.ended) == ([], True, True)
    with pytest.raises(RecordError, match="the one that is given"):
        list(audit.read(paths.audit, OTHER))
