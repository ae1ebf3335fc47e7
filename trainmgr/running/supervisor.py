"""The loop: one thread that owns all state; the only place that wires the parts.

The file watcher, the child's waiter, the manager's call and the keyboard only post messages to its queue. What is to
change is written to the audit log first and to the control file second. Training is never waited for, and never waits.
"""

from __future__ import annotations

import contextlib
import math
import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from trainmgr.base import files
from trainmgr.base.errors import ManagerError, PolicyError, SupervisorError, UserError, WorkloadError
from trainmgr.base.paths import AUDIT_KEY_FILE_VARIABLE, RESUME_VARIABLE, RUN_DIR_VARIABLE, SEED_VARIABLE, RunPaths
from trainmgr.base.process import (
    STAYING,
    Adopted,
    Child,
    Exit,
    belongs,
    clean_environment,
    described,
    end_all,
    living,
    no_room,
    signal_name,
    staying,
)
from trainmgr.base.wire import plain, short
from trainmgr.contract import events, protocol
from trainmgr.contract.run_file import Closing, Manifest, render_run_file
from trainmgr.contract.summary import Status
from trainmgr.deciding import asking, decision, plans, probation
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.log import audit, history, telemetry
from trainmgr.log.follower import Follower
from trainmgr.log.journal import Journal
from trainmgr.log.orders import Orders
from trainmgr.managers.base import Answer, Consultant, Manager
from trainmgr.running import objective
from trainmgr.running.listener import Listener
from trainmgr.running.messages import Answered, Approved, Ended, Interrupt, Look, Message, Signalled, Told
from trainmgr.state.ledger import OVER, Ledger
from trainmgr.state.measured import measured
from trainmgr.state.run_state import RunState, figures
from trainmgr.state.situation import Mark, Situation

POLL = 0.5  # seconds between two looks at files and clocks where no event comes
LEFT = 4  # processes that a script has left behind, each named
JUDGED = protocol.Eval | protocol.Applied | protocol.Refused  # a verdict may wait for an answer of the workload
SLICE = 2000  # records that are read between two looks at the queue
TRIES, PAUSE = 20, 0.1  # how often the end of a run is read and written where a disk refuses it, and seconds between


@dataclass
class Pending:
    """A decision between its snapshot and its verdict or approval."""

    id: str
    asked: float
    ruling: events.Verdict | None = None
    deadline: float = 0.0


@dataclass
class Ending:
    """A child that was told to end: what is done next if it does not."""

    deadline: float
    signals: list[int] = field(default_factory=list)


class Supervisor:
    """Supervises one run from its start to its end."""

    def __init__(
        self,
        paths: RunPaths,
        manifest: Manifest,
        manager: Manager | None,
        listener: Listener,
        *,
        schedule: list[protocol.Override] | None = None,
        key: bytes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``manager`` None observes only. ``schedule`` is for replay: overrides to repeat at their recorded steps.
        ``key`` is that of the log; None for a plain chain."""
        self.paths = paths
        self.manifest = manifest
        self.state = RunState()
        self.ledger = Ledger()
        self._manager = manager
        self._listener = listener
        self._schedule = schedule
        self._key = key
        self._clock = clock
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._later: deque[Message] = deque()  # what came while the end was read, before what is in the queue
        self._follower = Follower(paths.telemetry, self._fail)
        self._feed = self._follower.feed
        self._journal: Journal | None = None
        self._orders: Orders | None = None
        self._child: Child | Adopted | None = None
        self._pending: Pending | None = None
        self._ending: Ending | None = None
        self._status: Status | None = None
        self._resume: str | None = None  # the checkpoint that the child was last started from
        self._heard = 0.0
        self._leave: float | None = None  # until when a workload that said that it stops may take further steps
        self._more = False  # whether telemetry was left unread, to look at the queue
        self._hurry = False  # whether the operator was told what is still to be read of a script that has ended
        self._blind = False
        self._looked = False  # whether the first evaluation has the objective
        self._exact = manifest.policy.due(0) is not None  # answers take effect so many steps after their snapshots

    # -- a run, from outside -------------------------------------------------------------------------------------

    def run(self) -> Closing:
        """Start the workload and supervise it to its end.

        Raises WorkloadError when it cannot be started, UserError when the run directory cannot be written,
        SupervisorError where the run is left to itself.
        """
        try:
            files.replace(self.paths.manifest, render_run_file(plain(self.manifest), None))
            self.paths.telemetry.touch(mode=0o600)
            self.paths.checkpoints.mkdir(exist_ok=True)
            log = audit.Log(self.paths.audit, self._key)
        except OSError as error:
            raise UserError(f"The run directory {self.paths.root} cannot be written: {error.strerror}.") from None
        with log:
            self._on(log)
            if not self._offer(events.RunStarted(manifest=self.manifest, key=audit.key_id(self._key))):
                raise UserError(f"{self.paths.audit} cannot be written; nothing was started.")
            if self._schedule:
                self._issue_schedule(self._schedule)
            try:
                self._start(None)
            except WorkloadError as error:
                self._fail("start", str(error))
                self._close(Exit(127))  # as shells have it for what cannot be executed
                raise
            return self._supervise()

    def take_up(self, log: audit.Log) -> int | None:
        """Fold everything that a supervisor that died has left, and go on in its log, whose lock we have.

        Returns the process that trains; None where there is none any more: ``close`` is all that is left to do.

        Raises UserError for a run that is closed, RecordError where its log does not hold together.
        """
        head, seq, end, seen = audit.GENESIS, 0, 0, 0
        record: telemetry.Item | None = None  # the last one that the log speaks of
        schedule: protocol.Control | None = None  # of a replay; nobody waits for its acknowledgment
        for event in audit.read(self.paths.audit, self._key):
            offset = history.offset_of(event.data)
            for record in self._feed.records(offset) if offset is not None else ():
                self._fold(record)
            self.ledger.fold(event.data)
            if isinstance(event.data, events.OverrideIssued):
                schedule = event.data.control if event.data.control.schedule else None
            head, seq, end = event.line_hash, event.seq + 1, end + len(event.line)
            seen = offset or seen
        if self.ledger.ended is not None:
            status = self.ledger.ended.closing.status
            raise UserError(f"{self.paths.id} has ended ({status}); there is nothing to attach to.")
        if self._key is None and self.ledger.started is not None and self.ledger.started.key:
            raise UserError(
                f"The log of {self.paths.id} is keyed, and only its key ({self.ledger.started.key}) can write it on: "
                f"set {AUDIT_KEY_FILE_VARIABLE} to the file that holds it."
            )
        cut = log.go_on(seq, head, end)
        orders = self._on(log)
        known = self.ledger.acknowledged
        if (content := self.ledger.outstanding or schedule) is not None:  # it may have died between log and file
            orders.put(content)
        self._own()  # what it had on record as due only
        if isinstance(record, JUDGED):  # it may have died before it had judged that
            self._judge()
        self._take_further()
        for record in self._feed.records():
            self._fold(record)
            if isinstance(record, protocol.Applied | protocol.Refused) and record.revision > known:
                self._acknowledge(record)
            if isinstance(record, JUDGED):
                self._judge()
            if not isinstance(record, protocol.Step):
                self._take_further()
        self._looked = self.state.evals > 0
        self._append(events.Attached(telemetry_offset=self._feed.offset, telemetry_sha256=self._feed.digest()))
        if cut:
            self._fail("audit", f"{cut} bytes of a line that was never finished were cut off the end of audit.jsonl")
        if self._feed.offset < seen:
            self._follower.cut(f"has {self._feed.offset} bytes, where the log speaks of {seen}", self.state.step)
        if self.ledger.waiting is not None:
            self._fail("supervisor", "the decision died with the supervisor that asked for it", self.ledger.waiting)
        started = living(RUN_DIR_VARIABLE, str(self.paths.root)) if self.state.start is None else []
        return self._reporter() or next(iter(started), None)

    def attach(self, pid: int, manager: Manager | None) -> Closing:
        """Supervise the process that ``take_up`` has found to its end."""
        self._manager = manager
        self._child = Adopted(pid, lambda end: self._queue.put(Ended(end)))
        self._pause(False)  # the supervisor that died may have stopped it
        if self.state.start is not None and (misfit := self._misfit()) is not None:
            self._manager = None  # a training of days is not ended for that
            self._fail("supervisor", f"nothing is changed any more: {misfit}")
        return self._supervise()

    def close(self) -> Closing:
        """Close a run that ``take_up`` has found over: what its script reported is all that is known of its end."""
        self._read_to_the_end()  # it may have ended since that was read
        ended = min(self._clock(), max(self.manifest.created, self.state.last_time or 0.0))
        return self._close(Exit(0 if self.state.end is not None else 1, known=False), ended)

    def interrupt(self, by: str) -> None:
        """The first asks the workload to end, the second kills it. ``by``: "Ctrl-C", say. Safe in a signal handler."""
        self._queue.put(Interrupt(by))

    def signalled(self, number: int) -> None:
        """A signal came that asks nothing of us: it is passed on if it is for the script. Safe in a signal handler."""
        self._queue.put(Signalled(number))

    def lacking(self) -> str:
        """What is wrong with the files of the run, as far as a look at them tells; "" for nothing."""
        for path, length in ((self.paths.telemetry, self._feed.offset), (self.paths.audit, 1)):
            try:
                if (size := path.stat().st_size) < length:
                    return f"{path.name} has {size} bytes, of {length} that were read"
            except OSError as error:
                return f"{path.name}: {error.strerror}"
        return f"{self.paths.telemetry.name} was changed" if self._follower.cut_short else ""

    @property
    def now(self) -> Situation:
        """Everything that is known at this moment."""
        return Situation(self.state, self.ledger, Mark(self._feed.offset, self._feed.digest()))

    # -- the loop ------------------------------------------------------------------------------------------------

    def _supervise(self) -> Closing:
        self._heard = time.monotonic()
        with telemetry.Watcher(self.paths.telemetry, lambda: self._queue.put(Look())):
            try:
                while True:
                    message = self._next()
                    if isinstance(message, Ended):
                        closing = self._ended(message.exit)
                        if closing is not None:
                            return closing
                    else:
                        self._handle(message)
                    self._clocks()
                    self._show(lambda: self._listener.tick(self.now))
            except (WorkloadError, SupervisorError):
                raise
            except Exception as error:
                raise self.left_alone(error) from error

    def left_alone(self, error: Exception) -> SupervisorError:
        """A fault of our own is no reason to end a training: it goes on, and another supervisor may take over."""
        inner = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} in {Path(inner.filename).stem}.{inner.name}, line {inner.lineno}"
        with contextlib.suppress(Exception):
            self._fail("supervisor", f"a fault of trainmgr itself: {what}; the script is left running")
        return SupervisorError(
            f"A fault of trainmgr itself has ended the supervision: {what} ({short(str(error), 200)}). "
            f"The script goes on without it. To take over again: trainmgr attach {self.paths.id}"
        )

    def _next(self) -> Message:
        """The next message that matters: many looks at the file are one."""
        if self._later:
            return self._later.popleft()
        try:
            message = self._queue.get(timeout=0 if self._more else POLL)
            while isinstance(message, Look) and not self._queue.empty():
                message = self._queue.get_nowait()
        except queue.Empty:
            return Look()
        return message

    def _handle(self, message: Message) -> None:
        self._more = self._consume()
        match message:
            case Told():
                self._append(message.exchange)
            case Answered():
                self._answered(message)
            case Approved():
                self._approved(message)
            case Interrupt():
                self._interrupted(message.by)
            case Signalled():
                self._signalled(message.number)
            case _:
                pass
        self._ask()

    # -- telemetry -----------------------------------------------------------------------------------------------

    def _consume(self, *, asking: bool = True) -> bool:
        """Fold what is new, a slice of it where there is much; whether there may be more.

        Acknowledgments and outcomes are put on record at once; with exact steps, so is the question.
        """
        count = 0
        for count, record in enumerate(self._follower.records(), start=1):
            self._fold(record)
            self._show(partial(self._listener.record, record, self.state))
            if isinstance(record, protocol.Step):
                if self.state.trained_on > 1:  # one step may have been under way
                    self._trains_on()
            else:
                self._take_note(record)
            self._look(record)
            if asking and self._exact:  # later, the step would depend on how many records were read at once
                self._ask()
            if count == SLICE:
                break
        if count:
            self._heard = time.monotonic()
        self._follower.compare(self.state.step)
        if count == SLICE:
            self._follower.fall_behind(self.state.step)
        return count == SLICE

    def _fold(self, record: telemetry.Item) -> None:
        """Take a record in."""
        if isinstance(record, protocol.Applied):
            self.state.fold(record, self.ledger.plans.of(record.revision))
        else:
            self.state.fold(record)

    def _take_note(self, record: telemetry.Item) -> None:
        """What follows from a record that is no step."""
        if isinstance(record, protocol.Applied | protocol.Refused):
            self._acknowledge(record)
        elif isinstance(record, protocol.Eval) and self.state.trained_on > 1:
            self._trains_on()
        elif isinstance(record, protocol.Start):
            self._check_policy()
            if record.resumed is None and self._resume is not None:
                self._fail("restart", f"the script did not go on from {self._resume}; it began at step 0")
        for outcome in decision.outcomes(self.now):
            self._append(outcome)
        if isinstance(record, JUDGED):
            self._judge()
        self._take_further()

    def _take_further(self) -> None:
        """Issue the next part of the plans in force, and say which of them cannot go on."""
        if not self.ledger.plans.underway:
            return
        while (ended := plans.over(self.now)) is not None:
            self._append(ended)
        event = plans.going_on(self.now, self._issued())
        if event is not None and self._offer(event):  # else the next evaluation makes up for it
            assert self._orders is not None
            self._orders.put(event.control)

    def _acknowledge(self, record: protocol.Applied | protocol.Refused) -> None:
        self._append(decision.acknowledgment(record, self.now))
        self._own()

    def _trains_on(self) -> None:
        """The workload said that it stops, and trains on: say so, and end it when the time that it has is over."""
        now, grace = time.monotonic(), self.manifest.policy.process.grace
        if self._leave is None:
            self._leave = now + grace
            told = f"the script was told to stop at step {self.state.stopped_at} and trains on; it has {grace:g} s more"
            self._fail("stop", f"{told}. Its loop must end when w.stopping is true.")
        elif now >= self._leave and self._ending is None:
            self._fail("stop", f"the script trains on {grace:g} s after its stop: it is ended with SIGTERM")
            self._status = "stopped"
            self._finish_child(signal.SIGTERM)

    def _judge(self) -> None:
        """Put on record what follows from an evaluation, and do it: of changes on trial, and of what nobody answers."""
        while (event := probation.assess(self.now)) is not None:
            self._append(event)
            self._own()
        lapsed = decision.unanswered(self.now)
        if lapsed is not None:
            self._append(lapsed)

    def _own(self) -> None:
        """Issue what is on record as due."""
        event = decision.own(self.now, self._issued())
        if event is not None:
            self._order(event)

    def _look(self, record: telemetry.Item) -> None:
        """Say what the first evaluation lacks, once another record shows that nothing more is coming."""
        if self._looked or not self.state.evals or (isinstance(record, protocol.Eval) and self.state.evals == 1):
            return
        self._looked = True
        if (found := objective.lacking(self.state)) is not None:
            self._fail(*found)

    def _misfit(self) -> str | None:
        """Why the policy does not fit the action space, which is known once the workload has declared it."""
        try:
            self.manifest.policy.narrow(self.state.space)
        except PolicyError as error:
            return str(error)
        return None

    def _check_policy(self) -> None:
        if (misfit := self._misfit()) is not None:
            self._fail("policy", misfit)
            self._finish_child(signal.SIGTERM)
            self._status = "failed"

    # -- decisions -----------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask the manager if it is time, in a thread of its own."""
        if self._manager is None or self._pending is not None or self._ending is not None or self._schedule:
            return
        now = self.now
        why = asking.trigger(now)
        if why is None or self._status is not None:
            return
        view, event = decision.take_snapshot(now, why)
        if not self._offer(event):
            return
        self._pending = Pending(event.decision, time.monotonic())
        self._pause(True)
        if isinstance(self._manager, Consultant):
            self._manager.begin(event.decision, self.ledger.spent, lambda exchange: self._queue.put(Told(exchange)))
        worker = threading.Thread(
            target=self._call, args=(self._manager, event.decision, view), name="manager", daemon=True
        )
        try:
            worker.start()
        except RuntimeError as error:  # no thread can be had now: somebody may be asked next time
            self._queue.put(Answered(event.decision, None, self._manager.name, 0.0, f"nobody could be asked: {error}"))

    def _call(self, manager: Manager, name: str, view: Snapshot) -> None:
        begin = time.monotonic()
        raw, by, instead, error = None, manager.name, "", None
        try:
            raw = manager.decide(view)
            if isinstance(raw, Answer):
                raw, by, instead = raw.raw, raw.by, raw.instead
        except ManagerError as problem:
            error = str(problem)
        except BaseException as problem:  # SystemExit too: without an answer nobody would ask again
            error = f"{type(problem).__name__} in manager {manager.name}"
        self._queue.put(Answered(name, raw, by, round(time.monotonic() - begin, 3), error, instead))

    def _answered(self, message: Answered) -> None:
        pending = self._pending
        if pending is None or pending.id != message.decision:
            return
        if message.error is not None:
            self._decided()
            self._fail("manager", message.error, message.decision)
            return
        response = decision.response(message.decision, message.by, message.raw, message.seconds, message.instead)
        self._append(response)
        age = round(time.monotonic() - pending.asked, 3)
        ruling = decision.verdict(response.raw, self.now, age_seconds=age)
        self._append(ruling)
        if not decision.acts(ruling) or self.manifest.mode == "shadow":
            self._decided()
        elif self.manifest.mode == "approve":
            pending.ruling = ruling
            pending.deadline = time.monotonic() + self.manifest.policy.approval.timeout
            self._show(lambda: self._listener.ask(ruling, lambda answer: self._queue.put(Approved(pending.id, answer))))
        else:
            self._issue(ruling)
            self._decided()

    def _decided(self) -> None:
        """Nothing is pending any more."""
        self._pending = None
        self._pause(False)

    def _pause(self, pause: bool) -> None:
        """With --blocking only: the child stands still while a decision is pending."""
        if self.manifest.blocking and self._child is not None:
            self._child.signal(signal.SIGSTOP if pause else signal.SIGCONT)
            self._heard = time.monotonic()

    def _approved(self, message: Approved) -> None:
        pending = self._pending
        if pending is None or pending.id != message.decision or pending.ruling is None:
            return
        answer = {True: "yes", False: "no", None: "none"}[message.answer]
        self._append(events.Approval.model_validate({"decision": pending.id, "answer": answer}))
        if message.answer:
            if self.ledger.overtaken:
                self._fail("probation", "probation changed the recipe since this was asked: not applied", pending.id)
            self._issue(pending.ruling)
        self._decided()

    def _issue(self, ruling: events.Verdict) -> None:
        if self._ending is not None:  # nothing but the stop is wanted of it any more
            return
        event = decision.override(ruling, self.now, self._issued())
        if event is None:
            return
        assert self._orders is not None
        if self._offer(event):
            self._orders.put(event.control)
        else:  # what could be put on record only later would be a change on what is past by then
            self._fail("audit", "not applied, since audit.jsonl could not be written", ruling.decision)

    def _issued(self) -> protocol.Issued:
        return protocol.Issued(t=round(self._clock(), 3), step=self.state.step)

    def _order(self, event: events.OverrideIssued) -> None:
        assert self._orders is not None
        self._orders.write(event)

    def _again(self) -> None:
        assert self._orders is not None
        self._orders.again()

    def _issue_schedule(self, schedule: list[protocol.Override]) -> None:
        last = schedule[-1]
        content = protocol.Control(
            **{**dict(last), "command": None, "keep": None, "at_step": None, "at_boundary": None},
            run=self.paths.id,
            issued=self._issued(),
            schedule=schedule,
        )
        self._order(events.OverrideIssued(decision=last.decision, origin="replay", control=content))

    # -- the child -----------------------------------------------------------------------------------------------

    def _start(self, resume: str | None) -> None:
        extra = {RUN_DIR_VARIABLE: str(self.paths.root)}
        if self.manifest.seed is not None:
            extra[SEED_VARIABLE] = str(self.manifest.seed)
        if resume is not None:
            extra[RESUME_VARIABLE] = str(self.paths.root / resume)
        self._child = Child(
            self.manifest.command,
            environment=clean_environment(extra, (self.manifest.policy.llm.api_key_env,)),
            directory=Path(self.manifest.directory),
            stdout=self.paths.stdout,
            stderr=self.paths.stderr,
            ended=lambda end: self._queue.put(Ended(end)),
        )
        self._heard = time.monotonic()

    def _start_again(self, resume: str | None) -> None:
        """A disk that fails for a moment, or a lack of descriptors, is no end of a training."""
        for _ in range(TRIES):
            try:
                self._start(resume)
            except WorkloadError as error:
                if not error.passes:
                    raise
                time.sleep(PAUSE)
            else:
                return
        self._start(resume)

    def _signalled(self, number: int) -> None:
        passed = number not in STAYING
        self._append(events.Signalled(name=signal_name(number), passed=passed))
        if passed and self._child is not None:
            self._child.pass_on(number, self._reporter())

    def _reporter(self) -> int | None:
        """The process that writes telemetry, if it lives: not always the one that was started."""
        pid = self.state.start.pid if self.state.start is not None else None
        return pid if pid is not None and belongs(pid, RUN_DIR_VARIABLE, str(self.paths.root)) else None

    def _interrupted(self, by: str) -> None:
        if self._ending is not None:
            self._append(events.Operator(action="kill", by=by))
            self._status = "interrupted"
            if self._child is not None:
                self._child.signal(signal.SIGKILL)
            return
        self._append(events.Operator(action="stop", by=by))
        self._status = "interrupted"
        self._pause(False)
        self._ending = Ending(time.monotonic() + self.manifest.policy.process.grace, [signal.SIGTERM, signal.SIGKILL])
        if self.state.start is not None and "stop" in self.state.start.commands:
            self._instead("operator", stop=True)
        elif self._child is not None:
            self._child.signal(signal.SIGINT)

    def _instead(self, origin: Literal["operator", "restart"], *, stop: bool = False) -> None:
        """Issue a revision of our own: what is in force, without the change that nobody answered."""
        self._order(decision.instead(self.now, origin, self._issued(), stop=stop))

    def _finish_child(self, number: int) -> None:
        """Signal the child, and kill it when it does not end within the grace period."""
        self._ending = Ending(time.monotonic() + self.manifest.policy.process.grace, [signal.SIGKILL])
        self._pause(False)
        if self._child is not None:
            self._child.signal(number)

    def _clocks(self) -> None:
        """What happens because time passed."""
        self._again()
        now = time.monotonic()
        if self._ending is not None:
            if now >= self._ending.deadline and self._ending.signals and self._child is not None:
                self._child.signal(self._ending.signals.pop(0))
                self._ending.deadline = now + self.manifest.policy.process.grace
            return
        pending = self._pending
        if pending is not None and pending.ruling is not None and now >= pending.deadline:
            self._approved(Approved(pending.id, None))
        limit = self.manifest.policy.process.stall_timeout
        paused = self.manifest.blocking and pending is not None
        if limit is None or paused or self._follower.cut_short or now - self._heard <= limit:
            return
        if self._follower.unread or no_room(self.paths.root):  # its silence is none of its own: it gets the time again
            self._heard = now
        else:
            self._append(events.Stalled(seconds=round(now - self._heard, 1), step=self.state.step))
            self._status = "hung"
            self._finish_child(signal.SIGTERM)

    def _ended(self, end: Exit) -> Closing | None:
        """The child is gone: read the rest, then start it again or close the run."""
        self._read_to_the_end()
        interrupted = self._status in ("interrupted", "failed", "stopped")
        if not end.known and self.state.end is None:
            end = replace(end, code=1)
        well = end.code == 0 and self._status != "hung"
        if self._child is not None and (not well or self._ending is not None):
            self._child.signal(signal.SIGKILL)  # what it started and left behind
            if others := end_all(RUN_DIR_VARIABLE, str(self.paths.root)):  # and what has left its group
                self._fail("processes", f"what the script had left running was ended: {_listed(others)}")
                self._read_to_the_end()  # it may have reported meanwhile
        elif self._trains_alone():
            self._status = "failed"
            interrupted = True
        if not well and not interrupted and self.ledger.restarts < self.manifest.policy.process.restarts:
            if (doubt := probation.crashed(self.now)) is not None:
                self._append(doubt)
            again = decision.restarted(end.words, self.now)
            self._append(again)
            self._status = self._ending = self._leave = None
            if self.ledger.due is not None:
                self._own()
            elif self.ledger.outstanding is not None:
                self._instead("restart")
            self._resume = again.resume
            try:
                self._start_again(again.resume)
            except WorkloadError as error:
                self._fail("restart", str(error))
                self._status = "failed"
            else:
                return None
        return self._close(end)

    def _read_to_the_end(self) -> None:
        """All that the child has left, and not what goes on reporting without it.

        Raises SupervisorError where the operator does not want to wait for it.
        """
        tries, end = 0, math.inf
        with contextlib.suppress(OSError):
            end = self.paths.telemetry.stat().st_size
        while (self._consume(asking=False) and self._feed.offset < end) or (self._follower.unread and tries < TRIES):
            if self._follower.unread:
                tries += 1
                time.sleep(PAUSE)
            while not self._queue.empty():
                message = self._queue.get_nowait()
                if isinstance(message, Interrupt):
                    self._hurried()
                elif not isinstance(message, Look):
                    self._later.append(message)
            self._again()
            self._show(lambda: self._listener.tick(self.now))
        if self._follower.unread:
            self._fail("telemetry", "the end of telemetry.jsonl could not be read")

    def _hurried(self) -> None:
        left = f"{self._follower.left() >> 20} MiB of what it reported are left to read"
        if self._ending is None and not self._hurry:
            self._hurry = True
            self._fail("reading", f"the script has ended; {left}. Once more leaves them unread")
            return
        raise SupervisorError(
            f"The script of {self.paths.id} has ended; {left}. `trainmgr attach {self.paths.id}` reads them and closes "
            "the run."
        )

    def _trains_alone(self) -> bool:
        """Whether what was started was a wrapper that has left the script running in the background; says so.

        Of a script that has ended, it says what that has left behind.
        """
        left = staying(RUN_DIR_VARIABLE, str(self.paths.root))
        self._read_to_the_end()  # it may have ended meanwhile
        reporter = self._reporter()
        if self.state.end is None and (reporter is not None or (left and self.state.start is None)):
            who = f"process {reporter or left[0]} that it has left in the background"
            self._fail("workload", f"what was started has ended, and {who} goes on unsupervised: let it wait for the "
                                   "script, without nohup or &")  # fmt: skip
            return True
        if left:
            names = _listed([described(pid) for pid in left])
            self._fail("processes", f"the script has ended and left running: {names}; end what is of no use with kill")
        return False

    def _close(self, end: Exit, ended: float | None = None) -> Closing:
        """``ended``: when, in seconds since 1970; now if that is not said."""
        while self._later or not self._queue.empty():
            message = self._later.popleft() if self._later else self._queue.get_nowait()
            if isinstance(message, Told):
                self._append(message.exchange)
        if self._pending is not None:
            self._fail("manager", OVER, self._pending.id)
        if self._orders is not None:
            self._orders.close()
        state = self.state
        status: Status = self._status or (state.end.status if state.end else "unknown")
        if status == "unknown" or (end.code != 0 and status in ("completed", "stopped") and self._status is None):
            status = "completed" if end.code == 0 else "killed" if end.code > 128 else "failed"
        state.finish()
        for outcome in decision.outcomes(self.now):
            self._append(outcome)
        closing = Closing(
            ended=round(self._clock() if ended is None else ended, 3),
            status=status,
            exit_code=end.code,
            exit=end.words,
            **figures(state) | ({"final": None} if self._follower.cut_short else {}),
            **self.ledger.losses(),
            measured=None if self._follower.cut_short else measured(self.now),
        )
        content = render_run_file(plain(self.manifest), plain(closing))
        self._append(
            events.RunEnded(
                closing=closing,
                telemetry_length=self._feed.offset,
                telemetry_sha256=self._feed.digest(),
                torn=self._follower.torn(),
                run_json_sha256=files.sha256(content),
            )
        )
        self._last_words(content)
        return closing

    def _last_words(self, content: bytes) -> None:
        """What was kept of the log, and run.json. Where the disk does not take them, `attach` writes them later."""
        assert self._journal is not None
        for _ in range(TRIES):
            try:
                if self._journal.flush():
                    files.replace(self.paths.manifest, content)
                    return
                why = "audit.jsonl"
            except OSError:
                why = "run.json"
            time.sleep(PAUSE)
        text = f"{why} could not be written to its end; later, `trainmgr attach {self.paths.id}` does it"
        failure = events.Failure(where=why, message=text)
        self._show(lambda: self._listener.event(failure, self.now))

    # -- the log -------------------------------------------------------------------------------------------------

    def _on(self, log: audit.Log) -> Orders:
        def tell(event: events.Payload) -> None:
            self._show(lambda: self._listener.event(event, self.now))

        self._journal = Journal(log, self.ledger, tell, self._clock)
        self._orders = Orders(self.paths, self._journal, partial(self._fail, "control"))
        return self._orders

    def _append(self, payload: events.Payload) -> bool:
        """Put on record what happened. False while the disk refuses it: then nothing may be done on it."""
        assert self._journal is not None
        return self._journal.append(payload)

    def _offer(self, payload: events.Payload) -> bool:
        """Put on record what is to happen. False where the disk refuses it: then it does not happen."""
        assert self._journal is not None
        return self._journal.offer(payload)

    def _show(self, tell: Callable[[], None]) -> None:
        """Whoever shows the run may fail (a closed terminal, a broken pipe): training and the log go on without."""
        if self._blind:
            return
        try:
            tell()
        except (Exception, SystemExit) as error:  # which rich raises where the reader is gone
            self._blind = True
            self._fail("display", f"{type(error).__name__}: nothing more is shown")

    def _fail(self, where: str, message: str, name: str | None = None) -> None:
        message = message.encode(errors="replace").decode()  # lone surrogates cannot be written
        self._append(events.Failure(where=where, message=message, decision=name))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LEFT]) + f" and {len(names) - LEFT} more" * (len(names) > LEFT)
