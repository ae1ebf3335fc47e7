"""What `trainmgr audit` sees of a run that somebody changed afterwards: all of it, but for the kinds listed here, which
no hash chain can see without a digest kept elsewhere."""

from __future__ import annotations

import fcntl
import json
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from trainmgr.base import files
from trainmgr.base.errors import UserError
from trainmgr.base.files import sha256
from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import plain, to_json
from trainmgr.contract import events, protocol
from trainmgr.contract.run_file import render_run_file
from trainmgr.log import audit
from trainmgr.readers import proof
from trainmgr.testing import LINE, PYTHON, ScriptedManager, answer, supervise, write_child

FILES = ("audit.jsonl", "telemetry.jsonl", "run.json")
TAMPERINGS = 200
ANSWERS = [
    answer(), answer("adjust", {"lr": 0.3}), answer("adjust", {"decay": 0.02}),
    answer("rollback", {"lr": 0.15}, to="best", expected={"metric": "val_loss", "direction": "down", "by_step": 20}),
    answer("adjust", {"lr": 50.0}), answer("adjust", {"lr": 0.1}), answer("adjust", {"decay": 0.05}),
    answer("adjust", {"lr": 0.05}),
]  # fmt: skip

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    folder = tmp_path_factory.mktemp("audit")
    body = LINE.replace("STEPS, EVERY = 24, 2", "STEPS, EVERY = 19, 2")
    paths, closing, _ = supervise(folder, write_child(folder, body), ScriptedManager(ANSWERS))
    assert (closing.status, closing.interventions) == ("completed", 6)
    return paths


@pytest.fixture(scope="module")
def original(recorded: RunPaths) -> Files:
    return {name: (recorded.root / name).read_bytes() for name in (*FILES, "control.json")}


def prove(folder: Path, run: str, files: Files) -> proof.Proof:
    """The proof of these files, put down under the run's own name."""
    root = folder / run
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    return proof.prove(RunPaths(root))


def test_the_run_itself_holds_and_says_what_was_changed(recorded: RunPaths) -> None:
    found = proof.prove(recorded)
    assert [str(f) for f in found.findings] == []
    assert (found.ended, found.notes) == (True, [])
    assert found.head == files.sha256(recorded.audit.read_bytes().splitlines(keepends=True)[-1])
    assert [(c.decision, c.step, c.command) for c in found.changes] == [
        ("d2", 5, None), ("d3", 7, None), ("d4", 9, "rollback best"), ("d6", 13, None), ("d7", 15, None),
        ("d8", 17, None),
    ]  # fmt: skip
    assert found.changes[2].changes == {"lr": [0.3, 0.15]}
    assert found.changes[2].expected == "val_loss down"
    assert all(c.before is not None and c.after for c in found.changes)


# ---- random tamperings -----------------------------------------------------------------------------------


def change_byte(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([(data[at] + rng.randrange(1, 256)) % 256]) + data[at + 1 :]


def drop_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def swap_lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    a, b = rng.sample(range(len(lines)), 2)
    lines[a], lines[b] = lines[b], lines[a]
    return b"".join(lines)


def repeat_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    return b"".join(lines)


def append(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return data + rng.choice([b"\n", b" ", b"{}\n", rng.choice(lines), rng.choice(lines)[:-1], b"\0"])


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def forge(rng: random.Random, data: bytes) -> bytes:
    """Another number in the place of one of those that decisions are about."""
    text = data.decode()
    for _ in range(100):
        key = rng.choice(['"lr":', '"decay":', '"step":', '"high":', '"low":', '"val_loss":', '"seed":', '"best":',
                          '"max_ratio":', '"revision":', '"created":', '"steps":'])  # fmt: skip
        places = [i for i in range(len(text)) if text.startswith(key, i)]
        for at in rng.sample(places, len(places)):
            begin = at + len(key)
            while text[begin] in " [":
                begin += 1
            end = begin
            while text[end] in "0123456789.e-":
                end += 1
            if end > begin:
                return (text[:begin] + str(rng.choice([0.5, 1e9, 0, 77, 1e-9])) + text[end:]).encode()
    raise AssertionError("nothing to forge")


KINDS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "a byte changed": change_byte, "a line dropped": drop_line, "two lines swapped": swap_lines,
    "a line repeated": repeat_line, "appended": append, "truncated": truncate, "a value forged": forge,
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.slow
def test_two_hundred_random_tamperings_are_all_detected_and_their_place_is_named(
    name: str, recorded: RunPaths, original: Files, tmp_path: Path
) -> None:
    rng = random.Random(f"tamper with {name}")
    counts: Counter[str] = Counter()
    missed = []
    while counts.total() < TAMPERINGS:
        kind = rng.choice(list(KINDS))
        data = KINDS[kind](rng, original[name])
        if data == original[name]:
            continue
        counts[kind] += 1
        found = prove(tmp_path, recorded.id, {**original, name: data})
        # A log that is cut looks like that of a run which goes on, or whose supervisor died: run.json contradicts it.
        cut = name == "audit.jsonl" and original[name].startswith(data)
        torn, lines = (len(data) - data.rfind(b"\n") - 1 if cut else 0), data.count(b"\n")
        if torn:
            assert any(f"audit.jsonl line {lines + 1}: {torn} bytes" in n for n in found.notes)
        if found.holds or not (cut or any(finding.place.startswith(name) for finding in found.findings)):
            missed.append((kind, counts.total(), [str(f) for f in found.findings][:2]))
    print(f"\n{name}: " + ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())) + f"; missed {missed}")
    assert missed == []
    assert set(counts) == set(KINDS)


# ---- forgers who recompute the chain ---------------------------------------------------------------------


def reseal(bodies: list[dict[str, Any]]) -> bytes:
    """The log with these bodies, and every hash in order again."""
    head, lines = audit.GENESIS, []
    for seq, body in enumerate(bodies):
        values = {"seq": seq, "t": body["t"], "data": body["data"], "prev": head}
        data = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
        lines.append(data[:-1] + b',"hash":"' + sha256(data).encode() + b'"}\n')
        head = sha256(lines[-1])
    return b"".join(lines)


def bodies_of(files: Files) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files["audit.jsonl"].splitlines()]


def nth(bodies: list[dict[str, Any]], kind: str, number: int = 0) -> dict[str, Any]:
    return [body["data"] for body in bodies if body["data"]["kind"] == kind][number]


def put(target: dict[str, Any], *path: Any) -> None:
    *rest, value = path
    for key in rest[:-1]:
        target = target[key]
    assert target[rest[-1]] != value
    target[rest[-1]] = value


SEEN: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "the value of an override": lambda b: put(nth(b, "override"), "control", "params", "lr", 0.31),
    "an override beyond its bound": lambda b: put(nth(b, "override"), "control", "params", "lr", 9.0),
    "the revision of an override": lambda b: put(nth(b, "override", 1), "control", "revision", 7),
    "the term of an override": lambda b: put(nth(b, "override"), "control", "valid_until_step", 999),
    "a command of an override": lambda b: put(nth(b, "override", 2), "control", "command", "to", "initial"),
    "an override dropped": lambda b: b.remove(next(x for x in b if x["data"]["kind"] == "override")),
    "an override repeated": lambda b: b.insert(9, next(x for x in b if x["data"]["kind"] == "override")),
    "the value read back": lambda b: put(nth(b, "acknowledged"), "changes", "lr", 1, 0.31),
    "the step of an acknowledgment": lambda b: put(nth(b, "acknowledged"), "step", 6),
    "a refusal for an application": lambda b: put(nth(b, "acknowledged"), "result", "refused"),
    "an acknowledgment twice": lambda b: b.insert(12, next(x for x in b if x["data"]["kind"] == "acknowledged")),
    "the changes of a verdict": lambda b: put(nth(b, "verdict", 1), "changes", "lr", 0.31),
    "a rejection for an acceptance": lambda b: put(nth(b, "verdict", 1), "result", "rejected"),
    "an acceptance for a rejection": lambda b: put(nth(b, "verdict", 4), "result", "accepted"),
    "the reason of a check": lambda b: put(nth(b, "verdict"), "checks", 0, "reason", "because"),
    "the value in an answer": lambda b: put(nth(b, "response", 1), "raw", "changes", "lr", 0.31),
    "the evidence in an answer": lambda b: put(nth(b, "response", 1), "raw", "evidence", "better evidence"),
    "a figure of a snapshot": lambda b: put(nth(b, "snapshot", 1), "snapshot", "signals", "latest", 0.1),
    "the length of a snapshot's telemetry": lambda b: put(nth(b, "snapshot", 1), "telemetry_offset", 1),
    "the digest of a snapshot's telemetry": lambda b: put(nth(b, "snapshot", 1), "telemetry_sha256", "0" * 64),
    "what was measured": lambda b: put(nth(b, "outcome"), "after", 0, 1, 0.001),
    "the bounds in the policy": lambda b: put(nth(b, "run started"), "manifest", "policy", "limits", "clip", True),
    "the seed": lambda b: put(nth(b, "run started"), "manifest", "seed", 2),
    "the best objective": lambda b: put(nth(b, "run ended"), "closing", "best", 0.001),
    "the number of interventions": lambda b: put(nth(b, "run ended"), "closing", "interventions", 0),
    "the end dropped": lambda b: b.pop(),
    "an event after the end": lambda b: b.append({**b[-1], "data": {**nth(b, "response"), "decision": "d99"}}),
    "an event before the start": lambda b: b.insert(0, b[1]),
    "a second start": lambda b: b.insert(5, b[0]),
}


@pytest.mark.parametrize("name", SEEN)
def test_a_forger_who_recomputes_every_hash_is_seen_where_one_thing_follows_from_another(
    name: str, recorded: RunPaths, original: Files, tmp_path: Path
) -> None:
    bodies = bodies_of(original)
    assert prove(tmp_path, recorded.id, {**original, "audit.jsonl": reseal(bodies)}).holds
    SEEN[name](bodies)
    found = prove(tmp_path, recorded.id, {**original, "audit.jsonl": reseal(bodies)})
    assert not found.holds


@pytest.mark.parametrize("field", ["best", "final", "steps", "interventions"])
def test_a_closing_forged_in_both_files_with_every_hash_is_seen(
    field: str, recorded: RunPaths, original: Files, tmp_path: Path
) -> None:
    bodies = bodies_of(original)
    put(nth(bodies, "run ended"), "closing", field, 3)
    found = prove(tmp_path, recorded.id, consistent(bodies, original))
    assert any(f.place.startswith("audit.jsonl") and f"`{field}`" in f.what for f in found.findings)


def consistent(bodies: list[dict[str, Any]], files: Files) -> Files:
    """What somebody with the whole directory can do: run.json and every digest rewritten to fit the bodies."""
    manifest = nth(bodies, "run started")["manifest"]
    ended = [body["data"] for body in bodies if body["data"]["kind"] == "run ended"]
    content = render_run_file(manifest, ended[0]["closing"] if ended else None)
    if ended:
        ended[0]["run_json_sha256"] = sha256(content)
    return {**files, "audit.jsonl": reseal(bodies), "run.json": content}


def change_telemetry(bodies: list[dict[str, Any]], files: Files) -> Files:
    """Something after the last decision, which nothing depends on: when the workload ended."""
    *lines, last = files["telemetry.jsonl"].splitlines(keepends=True)
    record = json.loads(last)
    assert record["event"] == "end"
    record["t"] += 1000
    data = b"".join(lines) + json.dumps(record, separators=(",", ":")).encode() + b"\n"
    ended = nth(bodies, "run ended")
    ended["telemetry_length"], ended["telemetry_sha256"] = len(data), sha256(data)
    return {**files, "telemetry.jsonl": data}


def cut_end(bodies: list[dict[str, Any]], files: Files) -> Files:
    bodies.pop()
    return files


def drop_last_decision(bodies: list[dict[str, Any]], files: Files) -> Files:
    last = max(i for i, body in enumerate(bodies) if body["data"]["kind"] == "snapshot")
    assert [body["data"]["kind"] for body in bodies[last : last + 3]] == ["snapshot", "response", "verdict"]
    del bodies[last : last + 3]
    return files


def edit(*path: Any) -> Callable[[list[dict[str, Any]], Files], Files]:
    def apply(bodies: list[dict[str, Any]], files: Files) -> Files:
        kind, number, *rest = path
        put(nth(bodies, kind, number), *rest)
        return files

    return apply


UNSEEN: dict[str, Callable[[list[dict[str, Any]], Files], Files]] = {
    "the log cut at its end, run.json with it": cut_end,
    "the last decision, which changed nothing, left out": drop_last_decision,
    "what comes from outside: how long an answer took": edit("response", 0, "seconds", 99.0),
    "what comes from outside: a part of an answer that no check reads": edit("response", 1, "raw", "confidence", 0.5),
    "what comes from outside: the seed, the command, the versions": edit("run started", 0, "manifest", "seed", 99),
    "telemetry that no decision rests on, its digest in the log with it": change_telemetry,
}
"""With every hash of every file recomputed. Somebody who can do that can also write a whole other run: only the digest
of `trainmgr audit --head`, kept elsewhere, tells."""


@pytest.mark.parametrize("kind", UNSEEN)
def test_what_a_chain_cannot_see_by_itself_the_digest_kept_elsewhere_shows(
    kind: str, recorded: RunPaths, original: Files, tmp_path: Path
) -> None:
    kept = proof.prove(recorded).head
    bodies = bodies_of(original)
    if kind.startswith("what comes from outside: a part"):
        nth(bodies, "response", 1)["raw"]["confidence"] = 0.125
    files = UNSEEN[kind](bodies, original)
    files = consistent(bodies, files)
    found = prove(tmp_path, recorded.id, files)
    assert [str(f) for f in found.findings] == [], "it is seen now: take it off the list"
    assert found.head != kept
    assert "--head" in proof.CANNOT_SEE


# ---- the chain itself ------------------------------------------------------------------------------------


def test_no_run_at_all_is_a_finding(tmp_path: Path) -> None:
    found = proof.prove(RunPaths(tmp_path))
    assert [str(f) for f in found.findings] == ["audit.jsonl: there is none"]


@pytest.mark.parametrize("name", ["telemetry.jsonl", "run.json"])
def test_a_file_that_is_gone_is_a_finding(name: str, recorded: RunPaths, original: Files, tmp_path: Path) -> None:
    found = prove(tmp_path, recorded.id, {n: c for n, c in original.items() if n != name})
    assert any(f.place.startswith(name) for f in found.findings)


def test_one_log_has_one_writer(tmp_path: Path) -> None:
    log = audit.Log(tmp_path / "audit.jsonl")
    with pytest.raises(UserError, match="has a supervisor already"):
        audit.Log(tmp_path / "audit.jsonl")
    log.append(events.Operator(action="stop", by="Ctrl-C"), 1.0)
    log.close()
    audit.Log(tmp_path / "audit.jsonl").close()


def test_whether_a_log_has_a_writer_is_seen_without_disturbing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    assert files.is_held(path) is None
    log = audit.Log(path)
    assert [files.is_held(path), files.is_held(path)] == [True, True]
    log.append(events.Operator(action="stop", by="Ctrl-C"), 1.0)
    log.close()
    assert files.is_held(path) is False
    with path.open("rb") as looking:  # somebody looks at the very moment when a supervisor begins
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(audit.time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        audit.Log(path).close()


def unwritable(bodies: list[dict[str, Any]], revision: int) -> None:
    """The record that the control file of this revision could not be written."""
    at, override = next(
        (i, b) for i, b in enumerate(bodies)
        if b["data"]["kind"] == "override" and b["data"]["control"]["revision"] == revision
    )  # fmt: skip
    failure = events.Failure(where="control", message="No space left on device", decision=override["data"]["decision"])
    bodies.insert(at + 1, {"t": override["t"], "data": plain(failure)})


@pytest.mark.parametrize(
    ("failed", "found", "holds"),
    [
        ((), 6, True), ((), 5, False), ((), None, False),
        ((6,), 6, True), ((6,), 5, True), ((6,), 4, False), ((6,), None, False),  # 6: an attach writes it again
        ((5,), 6, True), ((5,), 5, False), ((5,), 4, False),
        ((5, 6), 4, True), ((5, 6), 3, False), (range(1, 7), None, True),
    ],
)  # fmt: skip
def test_a_control_file_is_excused_by_the_failure_to_write_that_revision_only(
    failed: Sequence[int], found: int | None, holds: bool, recorded: RunPaths, original: Files, tmp_path: Path
) -> None:
    bodies = bodies_of(original)
    controls = {
        b["data"]["control"]["revision"]: b["data"]["control"] for b in bodies if b["data"]["kind"] == "override"
    }
    assert max(controls) == 6
    for revision in failed:
        unwritable(bodies, revision)
    files = {**original, "audit.jsonl": reseal(bodies)}
    del files["control.json"]
    if found is not None:
        files["control.json"] = to_json(protocol.Control.model_validate(controls[found])) + b"\n"
    findings = [str(f) for f in prove(tmp_path, recorded.id, files).findings]
    assert findings == ([] if holds else ["control.json: not revision 6, as the log has it"])


def test_what_is_appended_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = audit.Log(path)
    written = [log.append(events.Failure(where="x", message=f"ü\n\u2028 {i}"), float(i)) for i in range(5)]
    assert list(audit.read(path)) == written
    assert log.head == written[-1].line_hash
    log.close()
    with path.open("ab") as file:
        file.write(b'{"seq":5')
    reading = audit.read(path)
    assert list(reading) == written
    assert (reading.offset, reading.torn) == (path.stat().st_size - 8, 8)


# ---- on the command line ---------------------------------------------------------------------------------


def damaged(kind: str, paths: RunPaths) -> None:
    log = paths.audit.read_bytes()
    match kind:
        case "no log":
            paths.audit.unlink()
        case "a folder":
            paths.audit.unlink()
            paths.audit.mkdir()
        case "nothing in it":
            paths.audit.write_bytes(b"")
        case "no text":
            paths.audit.write_bytes(bytes(range(256)) * 20)
        case "a line changed":
            paths.audit.write_bytes(log.replace(b'"lr":0.3', b'"lr":0.4', 1))
        case "telemetry cut":
            paths.telemetry.write_bytes(paths.telemetry.read_bytes()[:1000])


@pytest.mark.parametrize("kind", ["no log", "a folder", "nothing in it", "no text", "a line changed", "telemetry cut"])
@pytest.mark.slow
def test_of_what_is_damaged_json_is_json_and_no_digest_is_printed(
    kind: str, original: Files, recorded: RunPaths, tmp_path: Path
) -> None:
    paths = RunPaths(tmp_path / recorded.id)
    assert prove(tmp_path, recorded.id, original).holds
    good = proof.prove(paths).head

    def command(*options: str) -> tuple[int, str]:
        done = subprocess.run([PYTHON, "-m", "trainmgr", "audit", str(paths.root), *options], capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    if kind == "no log":  # once is enough
        assert command("--head") == (0, good + "\n")
        code, text = command("--head", "--json", "--expect", good)
        assert (code, json.loads(text)["head"]) == (0, good)
    damaged(kind, paths)
    code, text = command("--head", "--json", "--expect", good)
    assert (code, json.loads(text)["holds"]) == (1, False)
    assert command("--head", "--expect", good) == (1, "")
