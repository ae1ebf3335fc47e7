"""The loop: one thread that owns all state; the only place that wires the parts.

The file watcher, the child's waiter, the manager's call and the keyboard only post messages to its queue. What is to
change is written to the audit log first and to the control file second. Training is never waited for, and never waits.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from trainmgr import audit, control, decision, events, files, history, protocol, telemetry
from trainmgr.errors import ManagerError, PolicyError, UserError, WorkloadError
from trainmgr.ledger import OVER, Ledger
from trainmgr.managers.base import Answer, Consultant, Exchange, Manager
from trainmgr.paths import RESUME_VARIABLE, RUN_DIR_VARIABLE, SEED_VARIABLE, RunPaths
from trainmgr.process import STAYING, Adopted, Child, Exit, belongs, clean_environment, living, signal_name
from trainmgr.run_state import RunState, figures
from trainmgr.snapshot import Snapshot
from trainmgr.wire import nearest, plain, short

POLL = 0.5  # seconds between two looks at files and clocks where no event comes


class Listener(Protocol):
    """Whoever shows the run. Called in the supervisor's thread; must return quickly."""

    def record(self, record: telemetry.Item, state: RunState) -> None: ...
    def event(self, event: events.Payload, state: RunState, ledger: Ledger) -> None: ...
    def tick(self, state: RunState, ledger: Ledger) -> None: ...
    def ask(self, ruling: events.Verdict, answer: Callable[[bool | None], None]) -> None:
        """Ask the person whether to apply; call ``answer`` from any thread, once."""
        ...


@dataclass(frozen=True)
class Told:
    exchange: Exchange


@dataclass(frozen=True)
class Answered:
    decision: str
    raw: Any
    by: str
    seconds: float
    error: str | None


@dataclass(frozen=True)
class Approved:
    decision: str
    answer: bool | None


@dataclass(frozen=True)
class Ended:
    exit: Exit


@dataclass(frozen=True)
class Interrupt:
    by: str


@dataclass(frozen=True)
class Signalled:
    number: int


@dataclass(frozen=True)
class Look:
    pass


Message = Told | Answered | Approved | Ended | Interrupt | Signalled | Look


@dataclass
class Pending:
    """A decision between its snapshot and its verdict or approval."""

    id: str
    step: int
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
        manifest: events.Manifest,
        manager: Manager | None,
        listener: Listener,
        *,
        schedule: list[protocol.Override] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``manager`` None observes only. ``schedule`` is for replay: overrides to repeat at their recorded steps."""
        self.paths = paths
        self.manifest = manifest
        self.policy = manifest.policy
        self.state = RunState()
        self.ledger = Ledger()
        self._manager = manager
        self._listener = listener
        self._schedule = schedule
        self._clock = clock
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._feed = telemetry.Feed(paths.telemetry)
        self._log: audit.Log | None = None
        self._child: Child | Adopted | None = None
        self._pending: Pending | None = None
        self._ending: Ending | None = None
        self._status: str | None = None
        self._resume: str | None = None  # the checkpoint that the child was last started from
        self._heard = 0.0
        self._leave: float | None = None  # until when a workload that said that it stops may take further steps
        self._truncated = False
        self._blind = False
        self._looked = False  # whether the first evaluation has the objective
        self._exact = self.policy.due(0) is not None  # answers take effect so many steps after what they are based on

    # -- a run, from outside -------------------------------------------------------------------------------------

    def run(self) -> events.Closing:
        """Start the workload and supervise it to its end.

        Raises WorkloadError when it cannot be started, UserError when the run directory cannot be written.
        """
        try:
            files.replace(self.paths.manifest, events.render_run_file(plain(self.manifest), None))
            self._log = audit.Log(self.paths.audit)
            self.paths.telemetry.touch(mode=0o600)
            self.paths.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"The run directory {self.paths.root} cannot be written: {error.strerror}.") from None
        if not self._append(events.RunStarted(manifest=self.manifest)):
            raise UserError(f"{self.paths.audit} cannot be written; nothing was started.")
        if self._schedule:
            self._issue_schedule(self._schedule)
        try:
            self._start(None)
        except WorkloadError:
            self._close(Exit(127))  # as shells have it for what cannot be executed
            raise
        return self._supervise()

    def attach(self, pid: int) -> events.Closing:
        """Take over a run whose supervisor died: fold everything again, then go on."""
        head, seq, seen = audit.GENESIS, 0, 0
        for event in audit.read(self.paths.audit):
            self.ledger.fold(event.data)
            head, seq, seen = event.line_hash, event.seq + 1, history.offset_of(event.data) or seen
        self._log = audit.Log(self.paths.audit, seq, head)
        known = self.ledger.acknowledged
        self._own()  # what the supervisor that died had on record only
        for record in self._feed.records():
            self.state.fold(record)
            if isinstance(record, protocol.Applied | protocol.Refused) and record.revision > known:
                self._acknowledge(record)
            elif isinstance(record, protocol.Eval) and self._feed.offset >= seen:
                self._watch()
        self._looked = self.state.evals > 0
        self._append(events.Attached(telemetry_offset=self._feed.offset, telemetry_sha256=self._feed.digest()))
        if self.state.start is not None:
            self._check_policy()
        if self.ledger.outstanding is not None:  # it may have died between the log and the file
            self._put(self.ledger.outstanding)
        if self.ledger.waiting is not None:
            self._fail("supervisor", "the decision died with the supervisor that asked for it", self.ledger.waiting)
        self._child = Adopted(pid, lambda end: self._queue.put(Ended(end)))
        self._pause(False)  # the supervisor that died may have stopped it
        return self._supervise()

    def interrupt(self, by: str) -> None:
        """The first asks the workload to end, the second kills it. ``by``: "Ctrl-C", say. Safe in a signal handler."""
        self._queue.put(Interrupt(by))

    def signalled(self, number: int) -> None:
        """A signal came that asks nothing of us: it is passed on if it is for the script. Safe in a signal handler."""
        self._queue.put(Signalled(number))

    # -- the loop ------------------------------------------------------------------------------------------------

    def _supervise(self) -> events.Closing:
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
                    self._show(lambda: self._listener.tick(self.state, self.ledger))
            except BaseException:
                if isinstance(self._child, Child):
                    self._child.signal(signal.SIGKILL)
                    self._child.join(5)
                raise
            finally:
                if self._log is not None:
                    self._log.close()

    def _next(self) -> Message:
        """The next message that matters: many looks at the file are one."""
        try:
            message = self._queue.get(timeout=POLL)
            while isinstance(message, Look) and not self._queue.empty():
                message = self._queue.get_nowait()
        except queue.Empty:
            return Look()
        return message

    def _handle(self, message: Message) -> None:
        self._consume()
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

    def _consume(self, *, asking: bool = True) -> None:
        """Fold what is new; put acknowledgments and outcomes on record; with exact steps, ask at the very record."""
        for record in self._feed.records():
            self._heard = time.monotonic()
            self.state.fold(record)
            self._show(partial(self._listener.record, record, self.state))
            if isinstance(record, protocol.Applied | protocol.Refused):
                self._acknowledge(record)
            elif isinstance(record, protocol.Step | protocol.Eval) and self.state.trained_on > 1:
                self._trains_on()  # one step may have been under way
            elif isinstance(record, protocol.Start):
                self._check_policy()
                if record.resumed is None and self._resume is not None:
                    self._fail("restart", f"the script did not go on from {self._resume}; it began at step 0")
            self._look(record)
            for outcome in decision.outcomes(self.state, self.ledger, self._feed.offset):
                self._append(outcome)
            if isinstance(record, protocol.Eval):
                self._watch()
            if asking and self._exact:  # later, the step would depend on how many records were read at once
                self._ask()
        if self._feed.tail.truncated and not self._truncated:
            self._truncated = True
            how = "became shorter or was replaced" if self.paths.telemetry.exists() else "was removed"
            self._fail(
                "telemetry", f"telemetry.jsonl {how}; nothing more is read from it, after step {self.state.step}"
            )

    def _acknowledge(self, record: protocol.Applied | protocol.Refused) -> None:
        self._append(decision.acknowledgment(record, self.state, self.ledger, self._feed.offset))
        self._own()

    def _trains_on(self) -> None:
        """The workload said that it stops, and trains on: say so, and end it when the time that it has is over."""
        now, grace = time.monotonic(), self.policy.process.grace
        if self._leave is None:
            self._leave = now + grace
            told = f"the script was told to stop at step {self.state.stopped_at} and trains on; it has {grace:g} s more"
            self._fail("stop", f"{told}. Its loop must end when w.stopping is true.")
        elif now >= self._leave and self._ending is None:
            self._fail("stop", f"the script trains on {grace:g} s after its stop: it is ended with SIGTERM")
            self._status = "stopped"
            self._finish_child(signal.SIGTERM)

    def _watch(self) -> None:
        """Probation: put on record what follows from an evaluation, and do it at once."""
        while (event := decision.watched(self.state, self.ledger, self.policy, self._mark())) is not None:
            if not self._append(event):
                return
            self._own()

    def _own(self) -> None:
        """Issue what is on record as due."""
        event = decision.own(self.ledger, run=self.paths.id, issued=self._issued())
        if event is not None:
            self._write(event)

    def _look(self, record: telemetry.Item) -> None:
        """Say that the first evaluation lacks the objective, once another record shows that nothing more is coming."""
        if self._looked or not self.state.evals or (isinstance(record, protocol.Eval) and self.state.evals == 1):
            return
        self._looked = True
        if not self.state.measured and self.state.evaluations:
            names = self.state.evaluations[0].metrics
            found = short(", ".join(names), 200) or "nothing"
            self._fail(
                "objective",
                f"the first evaluation has no {self._objective()}; it has: {found}. "
                f"Nothing can be managed without it.{nearest(self._objective(), names)}",
            )
            return
        other = self.state.start.objective.counterpart if self.state.start else None
        if other and self.state.evaluations and other not in (names := self.state.evaluations[0].metrics):
            near = nearest(other, [name for name in names if name != self._objective()])
            self._fail("counterpart", f"the first evaluation has no {other}, without which overfitting cannot be told; "
                       f"it has: {short(', '.join(names), 200)}.{near}")  # fmt: skip

    def _objective(self) -> str:
        return self.state.start.objective.metric if self.state.start else "objective"

    def _check_policy(self) -> None:
        """The policy can only be compared with the action space once the workload has declared it."""
        try:
            self.policy.narrow(self.state.space)
        except PolicyError as error:
            self._fail("policy", str(error))
            self._finish_child(signal.SIGTERM)
            self._status = "failed"

    def _mark(self) -> decision.Mark:
        return decision.Mark(self._feed.offset, self._feed.digest())

    # -- decisions -----------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask the manager if it is time, in a thread of its own."""
        if self._manager is None or self._pending is not None or self._ending is not None or self._schedule:
            return
        why = decision.trigger(self.state, self.ledger, self.policy)
        if why is None or self._status is not None:
            return
        view, event = decision.take_snapshot(self.state, self.ledger, self.policy, self._mark(), why)
        if not self._append(event):
            return
        self._pending = Pending(event.decision, self.state.step, self._clock())
        self._pause(True)
        if isinstance(self._manager, Consultant):
            self._manager.begin(event.decision, self.ledger.spent, lambda exchange: self._queue.put(Told(exchange)))
        worker = threading.Thread(
            target=self._call, args=(self._manager, event.decision, view), name="manager", daemon=True
        )
        worker.start()

    def _call(self, manager: Manager, name: str, view: Snapshot) -> None:
        begin = time.monotonic()
        raw, by, error = None, manager.name, None
        try:
            raw = manager.decide(view)
            if isinstance(raw, Answer):
                raw, by = raw.raw, raw.by
        except ManagerError as problem:
            error = str(problem)
        except BaseException as problem:  # SystemExit too: without an answer nobody would ask again
            error = f"{type(problem).__name__} in manager {manager.name}"
        self._queue.put(Answered(name, raw, by, round(time.monotonic() - begin, 3), error))

    def _answered(self, message: Answered) -> None:
        pending = self._pending
        if pending is None or pending.id != message.decision:
            return
        if message.error is not None:
            self._decided()
            self._fail("manager", message.error, message.decision)
            return
        response = decision.response(message.decision, message.by, message.raw, message.seconds)
        self._append(response)
        ruling = decision.verdict(
            response.raw, self.state, self.ledger, self.policy, self._mark(),
            decision=pending.id, based_on_step=pending.step, age_seconds=round(self._clock() - pending.asked, 3),
        )  # fmt: skip
        logged = self._append(ruling)
        applies = ruling.result != "rejected" and (bool(ruling.changes) or ruling.command is not None)
        if not logged or not applies or self.manifest.mode == "shadow":
            self._decided()
        elif self.manifest.mode == "approve":
            pending.ruling = ruling
            pending.deadline = time.monotonic() + self.policy.approval.timeout
            self._show(lambda: self._listener.ask(ruling, lambda answer: self._queue.put(Approved(pending.id, answer))))
        else:
            self._issue(ruling, pending.step)
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
        if self._append(events.Approval.model_validate({"decision": pending.id, "answer": answer})) and message.answer:
            if self.ledger.overtaken:
                self._fail("probation", "probation changed the recipe since this was asked: not applied", pending.id)
            self._issue(pending.ruling, pending.step)
        self._decided()

    def _issue(self, ruling: events.Verdict, based_on_step: int) -> None:
        if self._ending is not None:  # nothing but the stop is wanted of it any more
            return
        event = decision.override(
            ruling, self.ledger, self.policy, run=self.paths.id, issued=self._issued(), based_on_step=based_on_step,
            total_steps=self.state.total_steps, commands=self.state.space.commands,
        )  # fmt: skip
        if event is not None:
            self._write(event)

    def _issued(self) -> protocol.Issued:
        return protocol.Issued(t=round(self._clock(), 3), step=self.state.step)

    def _write(self, event: events.OverrideIssued) -> None:
        """Log first, control file second: no change may exist that the log cannot explain."""
        if self._append(event):
            self._put(event.control)

    def _put(self, content: protocol.Control) -> None:
        try:
            control.write(self.paths, content)
        except OSError as error:
            self._fail("control", f"control.json cannot be written: {error.strerror}", content.decision)

    def _issue_schedule(self, schedule: list[protocol.Override]) -> None:
        last = schedule[-1]
        content = protocol.Control(
            **{**dict(last), "command": None, "keep": None, "at_step": None, "at_boundary": None},
            run=self.paths.id,
            issued=self._issued(),
            schedule=schedule,
        )
        self._write(events.OverrideIssued(decision=last.decision, origin="replay", control=content))

    # -- the child -----------------------------------------------------------------------------------------------

    def _start(self, resume: str | None) -> None:
        extra = {RUN_DIR_VARIABLE: str(self.paths.root)}
        if self.manifest.seed is not None:
            extra[SEED_VARIABLE] = str(self.manifest.seed)
        if resume is not None:
            extra[RESUME_VARIABLE] = str(self.paths.root / resume)
        self._child = Child(
            self.manifest.command,
            environment=clean_environment(extra, (self.policy.llm.api_key_env,)),
            directory=Path(self.manifest.directory),
            stdout=self.paths.stdout,
            stderr=self.paths.stderr,
            ended=lambda end: self._queue.put(Ended(end)),
        )
        self._heard = time.monotonic()

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
        self._ending = Ending(time.monotonic() + self.policy.process.grace, [signal.SIGTERM, signal.SIGKILL])
        if self.state.start is not None and "stop" in self.state.start.commands:
            number = self.ledger.revision + 1
            command = protocol.Command(id=f"operator{number}", name="stop", to=None)
            self._instead("operator", command)
        elif self._child is not None:
            self._child.signal(signal.SIGINT)

    def _instead(self, origin: Literal["operator", "restart"], command: protocol.Command | None) -> None:
        """Issue a revision of our own: what is in force and ``command``, without the change that nobody answered."""
        ledger = self.ledger
        if ledger.outstanding is not None:
            ledger = replace(ledger, in_force=ledger.held)
        name = f"{origin}{ledger.revision + 1}"
        content = control.next_control(
            ledger, self.paths.id, name, changes={}, command=command, issued=self._issued(),
            based_on_step=self.state.step, valid_until_step=None, at_step=None,
        )  # fmt: skip
        self._write(events.OverrideIssued(decision=name, origin=origin, control=content))

    def _finish_child(self, number: int) -> None:
        """Signal the child, and kill it when it does not end within the grace period."""
        self._ending = Ending(time.monotonic() + self.policy.process.grace, [signal.SIGKILL])
        self._pause(False)
        if self._child is not None:
            self._child.signal(number)

    def _clocks(self) -> None:
        """What happens because time passed."""
        now = time.monotonic()
        if self._ending is not None:
            if now >= self._ending.deadline and self._ending.signals and self._child is not None:
                self._child.signal(self._ending.signals.pop(0))
                self._ending.deadline = now + self.policy.process.grace
            return
        pending = self._pending
        if pending is not None and pending.ruling is not None and now >= pending.deadline:
            self._approved(Approved(pending.id, None))
        limit = self.policy.process.stall_timeout
        paused = self.manifest.blocking and pending is not None
        if limit is not None and not paused and not self._truncated and now - self._heard > limit:
            self._append(events.Stalled(seconds=round(now - self._heard, 1), step=self.state.step))
            self._status = "hung"
            self._finish_child(signal.SIGTERM)

    def _ended(self, end: Exit) -> events.Closing | None:
        """The child is gone: read the rest, then start it again or close the run."""
        self._consume(asking=False)
        interrupted = self._status in ("interrupted", "failed", "stopped")
        if not end.known and self.state.end is None:
            end = replace(end, code=1)
        well = end.code == 0 and self._status != "hung"
        if self._child is not None and (not well or self._ending is not None):
            self._child.signal(signal.SIGKILL)  # what it started and left behind
        elif self.state.end is None and self._trains_alone():
            self._status = "failed"
            interrupted = True
        if not well and not interrupted and self.ledger.restarts < self.policy.process.restarts:
            resume = decision.resume(self.state, self.ledger)
            if (doubt := decision.crashed(self.state, self.ledger, self._mark())) is not None:
                self._append(doubt)
            self._append(events.Restarted(attempt=self.ledger.restarts + 1, exit=end.words, resume=resume))
            self._status = self._ending = self._leave = None
            if self.ledger.due is not None:
                self._own()
            elif self.ledger.outstanding is not None:
                self._instead("restart", None)
            self._resume = resume
            self._start(resume)
            return None
        return self._close(end)

    def _trains_alone(self) -> bool:
        """Whether what was started was a wrapper that has left the script running in the background; says so."""
        root = str(self.paths.root)
        left = [pid] if (pid := self._reporter()) else [] if self.state.start else living(RUN_DIR_VARIABLE, root)
        if left:
            who = f"process {left[0]} that it has left in the background"
            self._fail("workload", f"what was started has ended, and {who} goes on unsupervised: let it wait for the "
                                   "script, without nohup or &")  # fmt: skip
        return bool(left)

    def _close(self, end: Exit) -> events.Closing:
        while not self._queue.empty():
            message = self._queue.get_nowait()
            if isinstance(message, Told):
                self._append(message.exchange)
        if self._pending is not None:
            self._fail("manager", OVER, self._pending.id)
        state = self.state
        status = self._status or (state.end.status if state.end else None)
        if status is None or (end.code != 0 and status in ("completed", "stopped") and self._status is None):
            status = "completed" if end.code == 0 else "killed" if end.code > 128 else "failed"
        state.finish()
        for outcome in decision.outcomes(state, self.ledger, self._feed.offset):
            self._append(outcome)
        closing = events.Closing(
            ended=round(self._clock(), 3),
            status=status,
            exit_code=end.code,
            exit=end.words,
            **figures(state) | ({"final": None} if self._truncated else {}),
            **self.ledger.losses(),
        )
        content = events.render_run_file(plain(self.manifest), plain(closing))
        with contextlib.suppress(OSError):
            files.replace(self.paths.manifest, content)
        self._append(
            events.RunEnded(
                closing=closing,
                telemetry_length=self._feed.offset,
                telemetry_sha256=self._feed.digest(),
                torn=self._feed.tail.rest()[1],
                run_json_sha256=files.sha256(content),
            )
        )
        return closing

    # -- the log -------------------------------------------------------------------------------------------------

    def _append(self, payload: events.Payload) -> bool:
        """Put an event on record and take it in; False when the disk refuses it: then nothing may follow from it."""
        assert self._log is not None
        try:
            self._log.append(payload, round(self._clock(), 3))
        except OSError as error:
            failure = events.Failure(where="audit", message=f"audit.jsonl cannot be written: {error.strerror}")
            self._show(lambda: self._listener.event(failure, self.state, self.ledger))
            return False
        self.ledger.fold(payload)
        self._show(lambda: self._listener.event(payload, self.state, self.ledger))
        return True

    def _show(self, tell: Callable[[], None]) -> None:
        """Whoever shows the run may fail (a closed terminal, a broken pipe): training and the log go on without."""
        if self._blind:
            return
        try:
            tell()
        except Exception as error:
            self._blind = True
            self._fail("display", f"{type(error).__name__}: nothing more is shown")

    def _fail(self, where: str, message: str, name: str | None = None) -> None:
        message = message.encode(errors="replace").decode()  # lone surrogates cannot be written
        self._append(events.Failure(where=where, message=message, decision=name))
