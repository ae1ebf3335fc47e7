"""What `trainmgr audit` proves of a run, from its files alone.

The chain is whole; telemetry is what the supervisor read and has no gaps; every change in effect was decided, passed
the guard (which judges again) and was inside the bounds; each answer of the workload is acknowledged once, in order;
what did harm was taken back and no more; no parameter moved by itself; run.json says what the log says; nothing was
written after the end. What an event says itself is believed only where it comes from outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trainmgr.base import files
from trainmgr.base.errors import RecordError
from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import Value, plain, to_json
from trainmgr.contract import events, protocol
from trainmgr.contract.run_file import Closing, render_run_file
from trainmgr.deciding import decision
from trainmgr.log.history import History, Moment
from trainmgr.log.telemetry import Item
from trainmgr.readers import replay
from trainmgr.readers.sequence import Sequence
from trainmgr.state.interventions import Drift
from trainmgr.state.measured import measured
from trainmgr.state.notices import LACKING
from trainmgr.state.run_state import figures

CANNOT_SEE = (
    "A log that was rewritten as a whole, or cut at its end together with run.json, proves nothing by itself: "
    "keep the digest of `trainmgr audit --head` elsewhere and compare."
)
KEYED_CANNOT_SEE = (
    "Each line was written by somebody who has the key. A log that was cut at its end together with run.json looks "
    "like that of a run which goes on: keep the digest of `trainmgr audit --head` elsewhere and compare."
)


FINDINGS = 1000  # that are listed: millions of lines of garbage are one finding each


@dataclass(frozen=True)
class Finding:
    """Something that does not hold, and where."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


@dataclass
class Change:
    """One intervention, for people."""

    decision: str
    step: int
    diagnosis: str | None
    evidence: str
    changes: dict[str, Any]
    """Name to [old, new]; of a plan, to where it has come."""
    command: str | None
    expected: str | None
    before: float | None = None
    after: list[tuple[int, float]] = field(default_factory=list)
    taken_back: str | None = None
    """Why probation took it back, where it did."""
    overwritten: str | None = None
    """Which of its values something in the script overwrote."""
    by: str = ""
    """Of a hybrid: whether its rules or its model wanted it."""
    plans: dict[str, Any] = field(default_factory=dict)
    """Of what is brought somewhere little by little: `to`, `by_step`, `shape`."""
    ended: str | None = None
    """Which of its plans ended before their target although nobody asked for that, and why."""


@dataclass
class Proof:
    """What was found out. The run holds when there are no findings."""

    run: str
    head: str = ""
    """SHA-256 of the last line of the log: the digest to keep elsewhere."""
    events: int = 0
    records: int = 0
    ended: bool = False
    key: str = ""
    """The id of the key that the log names; "" for a plain chain."""
    proven: bool = False
    """Whether each line was checked with that key."""
    checks: int = 0
    """Single comparisons that were made."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    reversals: int = 0
    """How often probation took changes back."""
    steps_lost: int = 0
    steps_in_vain: int = 0
    demoted: bool = False
    """Whether the manager had lost so much that nothing of it was applied any more."""

    @property
    def holds(self) -> bool:
        return not self.findings


class Prover:
    """Walks through a run once."""

    def __init__(self, paths: RunPaths, key: bytes | None = None) -> None:
        self.paths = paths
        self.proof = Proof(paths.id)
        self._key = key
        self._history = History(paths, self._folded, key=key)
        self._sequence = Sequence(self._find)
        self._issued = 0  # the highest revision
        self._overrides: dict[int, tuple[protocol.Override, str]] = {}  # those without an answer, with their origin
        self._controls: list[protocol.Control] = []
        self._unwritten: set[int] = set()  # revisions whose control file could not be written
        self._answered: set[int] = set()  # revisions that the workload has read
        self._verdicts: dict[str, events.Verdict] = {}  # of what may be applied, until it is
        self._changes: dict[int, Change] = {}
        self._torn: int | None = None
        self._beyond = False  # whether these are records that no supervisor has spoken of yet
        self._anchor = (0, 0)  # bytes and lines of telemetry that are known to be good
        self._drifts = 0
        self._overwritten: set[tuple[str, int]] = set()  # parameters with the step at which they had been set
        self._manifest: dict[str, Any] | None = None  # as the log has them
        self._closing: dict[str, Any] | None = None

    def prove(self) -> Proof:
        """Never raises for what is wrong with the run: that is a finding."""
        last: events.Payload | None = None
        try:
            for moment in self._history.moments():
                self.proof.events += 1
                self.proof.head = moment.event.line_hash
                if isinstance(last, events.RunEnded):
                    self._find(f"audit.jsonl line {self.proof.events}", "an event after the end of the run")
                last = moment.event.data
                self._telemetry()
                self._moment(moment)
        except FileNotFoundError:
            self._find("audit.jsonl", "there is none")
            return self.proof
        except Exception as error:
            if isinstance(error, RecordError):
                place, _, what = str(error).partition(": ")
            elif isinstance(error, OSError):
                place, what = "the run", f"it cannot be read to its end: {error.strerror or error}"
            else:  # whatever a forger thought of that we did not
                place = f"audit.jsonl line {self.proof.events}"
                what = f"it cannot be followed: {type(error).__name__}"
            self._find(place, what)
            if self._closing is None:  # reading stopped before the end: run.json cannot be compared
                self._manifest = None
        broken = bool(self.proof.findings)
        self.proof.proven = bool(self.proof.key) and self._key is not None
        if self.proof.key and not self.proof.proven:
            self.proof.notes.append(
                f"The log is keyed (key {self.proof.key}): give --key-file to prove that somebody who has the key "
                "wrote it. Without it, a log that was rewritten as a whole is not seen."
            )
        self.proof.ended = isinstance(last, events.RunEnded)
        self._torn_event()
        if not broken or self.proof.ended:
            try:
                self._rest(last)
                self.proof.notes += self._sequence.close()
            except RecordError as error:
                self._unreadable(error)
        self._run_file(last)
        if self.proof.ended and not broken:
            self._control_file()
        if (steps := self._history.state.trained_on) > 1:
            at = self._history.state.stopped_at
            self.proof.notes.append(f"The script was told to stop at step {at} and trained on for {steps} steps.")
        self.proof.records = self._history.state.records
        self.proof.notes += (f"telemetry.jsonl: {note}" for note in self._history.state.notices.in_words(LACKING))
        self.proof.changes = [self._changes[revision] for revision in sorted(self._changes)]
        ledger = self._history.ledger
        self.proof.reversals, self.proof.demoted = ledger.reversals, ledger.demoted
        self.proof.steps_lost, self.proof.steps_in_vain = ledger.lost, ledger.idle
        return self.proof

    # -- events ------------------------------------------------------------------------------------------------------

    def _moment(self, moment: Moment) -> None:
        event, number = moment.event, moment.event.seq + 1
        place = f"audit.jsonl line {number}"
        self._sequence.event(moment, place)
        digest = getattr(event.data, "telemetry_sha256", None)
        if digest is not None:
            self._telemetry_digest(moment, digest, number)
        if number == 1 and not isinstance(event.data, events.RunStarted):
            self._find(place, "the log does not begin with the start of a run")
        match event.data:
            case events.RunStarted() if number > 1:
                self._find(place, "the run starts a second time")
            case events.RunStarted():
                self._manifest = event.values()["manifest"]
                self.proof.key = event.data.key
                if (name := event.data.manifest.id) != self.paths.id:
                    self.proof.notes.append(f"The folder is called {self.paths.id}; the run in it is {name}.")
            case events.RunEnded():
                self._closing = event.values()["closing"]
                self._figures(event.data.closing, place)
            case events.Verdict() if decision.acts(event.data):
                self._verdicts[event.data.decision] = event.data.model_copy(update={"checks": []})  # the bulk of it
            case events.OverrideIssued():
                self._override(event.data, moment, place)
            case events.Failure(where="control") if self._controls:
                if event.data.decision == self._controls[-1].decision:
                    self._unwritten.add(self._controls[-1].revision)
            case events.PlanEnded():
                self._plan_ended(event.data)
            case events.Acknowledged():
                self._acknowledged(event.data, place)
            case events.Reverted():
                self._taken_back(event.data)
            case events.Outcome():
                change = self._changes.get(event.data.revision)
                if change:
                    change.before, change.after = event.data.before, event.data.after
            case _:
                pass
        if (difference := replay.difference(event.data, replay.derived(moment))) is not None:
            self._find(place, difference)
        self.proof.checks += 1

    def _figures(self, closing: Closing, place: str) -> None:
        ledger = self._history.ledger
        known = {**figures(self._history.state), **ledger.losses()}
        if ledger.unread and closing.final is None:  # telemetry was cut short, and what came then is not known
            known["final"] = None
        if closing.measured is not None:
            known["measured"] = measured(self._history.now)
        found, wanted = _by_name(closing), _by_name(closing.model_copy(update=known))
        for name in {**found, **wanted}:
            if found.get(name) != wanted.get(name):
                self._find(place, f"closing: `{name}` is {found.get(name)!r}; the run says {wanted.get(name)!r}")

    def _torn_event(self) -> None:
        """A line of the log without its end: written to this day, or cut short by a crash; none behind the last one."""
        log = self._history.log
        if not log.torn:
            return
        place, what = f"audit.jsonl line {self.proof.events + 1}", f"{log.torn} bytes without a line break"
        if self.proof.ended:
            self._find(place, f"{what}, behind the end of the run")
            return
        self.proof.notes.append(f"{place}: {what} (bytes {log.offset} to {log.offset + log.torn}), which count for "
                                "nothing: a crash cut the line short, or it is being written right now.")  # fmt: skip

    def _folded(self, item: Item) -> None:
        """After each record: is it one, and was it asked for; and what must be on record right behind it."""
        self.proof.checks += 1
        if type(item) is protocol.Step and self._torn is None and self._sequence.over is None:
            return  # of these there may be millions
        history = self._history
        self._record(item, history.lines)
        self._sequence.record(item, history.lines, history.now, heard=not self._beyond)

    def _taken_back(self, event: events.Reverted) -> None:
        expected = "nothing" if event.forecast is None else f"{event.forecast:.4g}"
        text = f"{event.why}: {event.measured:.4g} at step {event.step}, forecast {expected} (± {event.tolerance:.4g})"
        for revision in event.revisions:
            if revision in self._changes:
                self._changes[revision].taken_back = text

    def _telemetry_digest(self, moment: Moment, digest: str, number: int) -> None:
        self.proof.checks += 1
        mark = moment.now.mark
        if mark.sha256 != digest:
            begin, line = self._anchor
            self._find(
                f"telemetry.jsonl bytes {begin} to {mark.offset} (lines {line + 1} to {self._history.lines})",
                f"not what the supervisor had read when it wrote audit.jsonl line {number}",
            )
            raise RecordError("telemetry.jsonl: nothing after that place can be trusted")
        self._anchor = (mark.offset, self._history.lines)

    def _override(self, event: events.OverrideIssued, moment: Moment, place: str) -> None:
        control = event.control
        before = self._controls[-1].revision if self._controls else 0
        if before in self._answered and before not in self._unwritten:
            del self._controls[:-1]  # what is before one that was read is not there any more
        self._controls.append(control)
        ledger = moment.now.ledger
        expected = ledger.revision + 1
        first = control.schedule[0].revision if control.schedule else control.revision
        if first != expected:
            self._find(place, f"revision {first}; {expected} was to come")
        if control.run != self.paths.id and ledger.started and control.run != ledger.started.manifest.id:
            self._find(place, f"an override for the run {control.run}")
        for override in control.schedule or [control]:
            self._overrides[override.revision] = override, event.origin
            self._issued = max(self._issued, override.revision)
        if event.origin != "manager":
            return
        if ledger.demoted:
            self._find(place, "an override of a manager that had lost too much")
        elif ledger.overtaken:
            self._find(place, "an override on what was seen before probation changed the recipe")
        elif ledger.challenged:
            self._find(place, "an override of the manager while the recipe of the start was on trial")
        ruling = self._verdicts.get(event.decision)
        mode = ledger.started.manifest.mode if ledger.started else "auto"
        if ruling is None or ruling.result == "rejected":
            self._find(place, f"an override whose decision {event.decision} the guard did not accept")
        elif mode == "shadow":
            self._find(place, "an override in shadow mode")
        elif mode == "approve" and self._sequence.approvals.get(event.decision) != "yes":
            self._find(place, f"an override that nobody approved ({event.decision})")

    def _acknowledged(self, event: events.Acknowledged, place: str) -> None:
        override, origin = self._overrides.pop(event.revision, (None, ""))
        ruling = self._verdicts.pop(event.decision, None)
        self._answered.add(event.revision)
        if override is None:
            if not 0 < event.revision <= self._issued:  # else it is answered twice, which is found elsewhere
                self._find(place, f"the workload answered revision {event.revision}, which was never issued")
            return
        if event.result != "applied":
            return
        for name, (_, new) in event.changes.items():
            parameter = self._history.state.space.parameters.get(name)
            if parameter is None:
                self._find(place, f"{name} changed, which is no parameter of this run")
            elif objection := parameter.objection(new):
                self._find(place, f"in effect: {objection}")
            elif name not in override.params:
                self._find(place, f"{name} changed, which revision {event.revision} does not name")
            elif not _same(new, override.params[name]):
                self._find(place, f"{name} is in effect at {new!r}; revision {event.revision} asked for "
                                  f"{override.params[name]!r}")  # fmt: skip
        command, ledger = override.command, self._history.ledger
        decision = ledger.decisions.get(event.decision) if ledger.answers.hybrid else None
        own = ledger.plans.own(event)
        for name in event.changes.keys() - own.keys():
            self._went_on(name, event.changes[name][1])
        if origin == "plan":
            return
        self._changes[event.revision] = Change(
            decision=event.decision,
            step=event.step,
            diagnosis=ruling.diagnosis if ruling else origin,
            evidence=ruling.evidence if ruling else self._asker(origin),
            changes={name: list(pair) for name, pair in own.items()},
            command=f"{command.name} {command.to or ''}".strip() if command else None,
            expected=f"{ruling.expected.metric} {ruling.expected.direction}" if ruling and ruling.expected else None,
            by=decision.by if decision else "",
            plans={name: plain(plan) for name, plan in ruling.plans.items()} if ruling else {},
        )

    def _went_on(self, name: str, value: Value) -> None:
        """A part of a plan belongs to the change that the plan began with."""
        change = next((change for change in reversed(self._changes.values()) if name in change.changes), None)
        if change is not None:
            change.changes[name] = [change.changes[name][0], value]

    def _plan_ended(self, event: events.PlanEnded) -> None:
        for change in self._changes.values():
            if change.decision == event.decision:
                text = f"the plan for {event.name} ended at step {event.step}: {event.why}"
                change.ended = "; ".join(part for part in (change.ended, text) if part)

    def _asker(self, origin: str) -> str:
        """Of a stop that was asked for from outside: Ctrl-C, SIGTERM."""
        return self._history.ledger.stopped_by if origin == "operator" else ""

    # -- telemetry ---------------------------------------------------------------------------------------------------

    def _record(self, item: Item, line: int) -> None:
        if isinstance(item, protocol.Unreadable):
            if item.kind == "garbage":
                self._torn = line
            return
        if isinstance(item, protocol.Start):
            self._torn = None  # a line that a crash cut short comes right before the restart
        elif self._torn is not None:
            self._find(f"telemetry.jsonl line {self._torn}", "not a record")
            self._torn = None
        if isinstance(item, protocol.Applied) and not 0 < item.revision <= self._issued:
            self._find(f"telemetry.jsonl line {line}", f"revision {item.revision} applied, which was never issued")

    def _telemetry(self) -> None:
        """The records that were folded up to this event: none missing, no change without an override."""
        state = self._history.state
        if state.gaps and not any("seq" in finding.what for finding in self.proof.findings):
            self._find(f"telemetry.jsonl line {self._history.first} and after",
                       f"{state.gaps} records are missing in the count of seq")  # fmt: skip
        fresh = state.drifts[-(state.drift_count - self._drifts) :] if state.drift_count > self._drifts else []
        self._drifts = state.drift_count
        for drift in fresh:
            self._drift(drift)

    def _drift(self, drift: Drift) -> None:
        text = f"{drift.name} was {drift.found!r} at step {drift.step} where {drift.expected!r} was in force"
        if drift.restart:
            self.proof.notes.append(f"After the restart {text}.")
        elif drift.set_at is None:
            self._find("telemetry.jsonl", f"{text}: a change without an override")
        elif (drift.name, drift.set_at) not in self._overwritten:
            self._overwritten.add((drift.name, drift.set_at))
            self._find("telemetry.jsonl", f"{drift.name} was set to {drift.expected!r} at step {drift.set_at}, and is "
                                          f"{drift.found!r} at step {drift.step}: something overwrites it")  # fmt: skip
            for change in self._changes.values():
                if change.step == drift.set_at and drift.name in change.changes:
                    change.overwritten = f"overwritten: {drift.name} was {drift.found!r} at step {drift.step}"

    def _rest(self, last: events.Payload | None) -> None:
        if isinstance(last, events.RunEnded):
            size, digest = self._history.behind()
            begin, end = last.telemetry_length, last.telemetry_length + size
            if digest != last.torn and not last.torn and self._history.ledger.unread:
                what = "are not anchored: the log says that the supervisor could not read them."
                self.proof.notes.append(f"telemetry.jsonl bytes {begin} to {end} {what}")
            elif digest != last.torn:
                self._find(
                    f"telemetry.jsonl bytes {begin} to {end} (lines {self._anchor[1] + 1} and after)",
                    "not what stood at the end of the run: written or cut after it",
                )
            return
        self._beyond = True
        self._history.rest()
        self._telemetry()
        self.proof.notes.append("The run has not ended, or its supervisor died: what came since is not anchored.")

    def _run_file(self, last: events.Payload | None) -> None:
        if self._manifest is None:
            return
        expected = render_run_file(self._manifest, self._closing)
        try:
            found = files.read_regular(self.paths.manifest)
        except OSError as error:
            self._find("run.json", f"cannot be read: {error.strerror}")
            return
        self.proof.checks += 1
        if isinstance(last, events.RunEnded) and files.sha256(expected) != last.run_json_sha256:
            self._find(f"audit.jsonl line {self.proof.events}", "the digest of run.json is not that of its content")
        if found == expected:
            return
        for number, (there, logged) in enumerate(_pairs(found, expected), start=1):
            if there != logged:
                self._find(f"run.json line {number}", f"{_quote(there)}; the log says {_quote(logged)}")
                return

    def _control_file(self) -> None:
        """control.json is what was issued last; if that could not be written, which is on record, what was before.

        What nobody answered may have been superseded before the disk took it.
        """
        possible: list[bytes | None] = []
        for control in reversed(self._controls):
            possible.append(to_json(control) + b"\n")  # a failed one too: an attach writes it again
            newest = control is self._controls[-1]
            if control.revision not in self._unwritten and (newest or control.revision in self._answered):
                break
        else:
            possible.append(None)
        self.proof.checks += 1
        try:
            found: bytes | None = files.read_regular(self.paths.control)
        except FileNotFoundError:
            found = None
        except OSError as error:
            self._find("control.json", f"cannot be read: {error.strerror}")
            return
        if found not in possible:
            last = self._controls[-1].revision if self._controls else None
            self._find(
                "control.json", f"not {f'revision {last}, as the log has it' if last else 'nothing: none was issued'}"
            )

    def _unreadable(self, error: RecordError) -> None:
        place, _, what = str(error).partition(": ")
        self._find(place, what)

    def _find(self, place: str, what: str) -> None:
        findings = self.proof.findings
        if len(findings) < FINDINGS:
            findings.append(Finding(place, what))
        elif len(findings) == FINDINGS:
            findings.append(Finding("and more", f"only the first {FINDINGS} findings are listed"))


def prove(paths: RunPaths, key: bytes | None = None, expect: str | None = None) -> Proof:
    """All of it, for one run; with a ``key``, also that somebody who has it wrote the log; with ``expect``, a digest
    that was kept elsewhere, also that the log ends with it."""
    result = Prover(paths, key).prove()
    if expect is not None and result.head != expect:
        ends = f"it ends with {result.head}" if result.head else "it has no line that can be read"
        result.findings.append(Finding("audit.jsonl", f"{ends}, not with the digest expected"))
    return result


def _same(a: object, b: object) -> bool:
    """Whether a value read back is the one asked for: floats may differ by what a float32 or a ratio costs."""
    if isinstance(a, float | int) and isinstance(b, float | int) and not isinstance(a, bool):
        return abs(a - b) <= 1e-6 * max(abs(a), abs(b))
    return a == b


def _pairs(a: bytes, b: bytes) -> Iterator[tuple[bytes | None, bytes | None]]:
    left: list[bytes | None] = [*a.splitlines(keepends=True)]
    right: list[bytes | None] = [*b.splitlines(keepends=True)]
    length = max(len(left), len(right))
    yield from zip(left + [None] * (length - len(left)), right + [None] * (length - len(right)), strict=True)


def _by_name(closing: Closing) -> dict[str, Any]:
    """The figures of a closing, those for comparisons among them."""
    figures = plain(closing)
    return {**figures, **{f"measured.{name}": value for name, value in figures.pop("measured", {}).items()}}


def _quote(line: bytes | None) -> str:
    return "nothing" if line is None else repr(line.decode(errors="replace").strip()[:80])
