"""What must stand in a log before, right behind and not more than once: the order of its events, and of telemetry.

``proof`` walks through a run with it. An event that derives from the state of its moment is compared with that in
``replay``; here is what no single moment shows: what is missing, comes twice, too late or without its cause.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from trainmgr.base.errors import PolicyError
from trainmgr.contract import events, protocol
from trainmgr.contract.run_file import Closing
from trainmgr.deciding import decision, plans, probation
from trainmgr.log.history import Moment, offset_of
from trainmgr.log.telemetry import Item
from trainmgr.state.situation import Situation

NAMED = 3  # of many things of one kind
AFTER_THE_END = events.Outcome | events.Failure | events.Attached | events.Operator | events.Signalled | events.RunEnded
"""What may still come once measuring ended because the run was over."""
REACTIONS = events.Acknowledged | events.Judgment
"""What comes of a record at the moment when it is read. (A manager may be asked about those from before a restart.)"""
IN_BETWEEN = events.Acknowledged | events.Outcome | events.Judgment | events.Unanswered | events.PlanEnded
"""What comes of the same record before plans go on."""
TAKING_UP = events.Acknowledged | events.Judgment | events.Unanswered | events.PlanEnded
"""What a supervisor that takes over puts on record before it says so."""


class Sequence:
    """Hears every record and every event of a run in turn; ``find`` gets the place and what is wrong there."""

    def __init__(self, find: Callable[[str, str], None]) -> None:
        self._find = find
        self.approvals: dict[str, str] = {}
        """What the person said, by decision."""
        self.over: str | None = None
        """The place of an outcome that says that the run was over, though no record does."""
        self._owed: str | None = None  # what probation found in telemetry that is not on record yet
        self._part = ""  # what plans were to do, and did not yet
        self._answers: deque[tuple[int, int, protocol.Applied | protocol.Refused]] = deque()
        """(line, end in bytes, record) of what the workload answered and nobody acknowledged yet."""
        self._acknowledged: set[int] = set()
        self._judged: set[str] = set()
        self._said: str | None = None  # the decision that was answered last, until its verdict
        self._before: events.Payload | None = None  # the last event but for failures, which may come in between
        self._again: tuple[str, int] | None = None  # the last restart, and how many starts there were until then
        self._unread = False  # whether the log says that the end of telemetry could not be read
        self._offered = False  # whether the operator could ask the script itself to stop
        self._unfinished: tuple[str, str] | None = None  # the place where something was left undone, and what
        self._dropped: dict[str, str] = {}  # decisions that the log says were not applied, with the place
        self._misfits: list[str] = []  # where the log says that the policy does not fit, ...
        self._misfit = False  # ... and whether it ever did not
        self._stopped = self._stalled = False

    # -- telemetry -----------------------------------------------------------------------------------------------

    def record(self, item: Item, line: int, now: Situation, *, heard: bool) -> None:
        """After each record, which ends at the mark. ``heard``: whether any event says that it was read."""
        if isinstance(item, protocol.Applied | protocol.Refused):
            self._answers.append((line, now.mark.offset, item))
        elif isinstance(item, protocol.Start):
            self._misfit |= not _fits(now)
        if not heard:
            return
        if self.over is not None:
            self._find(self.over, f"it says that the run was over; telemetry.jsonl line {line} came after it")
            self.over = None
        if isinstance(item, protocol.Eval):
            if self._owed is not None:
                self._find("audit.jsonl", f"there is no {self._owed}")
            self._owed = _judgment(now)
        if not isinstance(item, protocol.Step):
            self._part = _part(now)

    # -- the log -------------------------------------------------------------------------------------------------

    def event(self, moment: Moment, place: str) -> None:
        """Each event, before the state takes it in."""
        data = moment.event.data
        self._probation(moment, place)
        self._plans(moment, place)
        self._acknowledgments(data, place)
        match data:
            case events.Request() | events.Reply() | events.BudgetSpent() | events.Response():
                self._waited_for(data, moment.now.ledger.waiting, place)
            case events.Verdict():
                if self._said != data.decision:
                    self._find(place, f"a verdict on {data.decision}, which nobody answered")
                self._said = None
                self._judged.add(data.decision)
            case events.Approval():
                self._approval(data, moment.now, place)
            case events.Restarted():
                self._restarted(data, moment, place)
            case events.Operator():
                self._stopped = True
                self._offered = "stop" in moment.now.declared.commands  # as far as was surely read by then
            case events.Stalled():
                self._stalled = True
            case events.Failure(where="policy"):
                self._misfits.append(place)
            case events.Failure(where="telemetry"):
                self._unread = True
            case events.Failure(where="audit" | "probation", decision=str(name)):
                self._not_applied(name, moment.now, place)
            case events.OverrideIssued() if data.decision in self._dropped:
                self._find(place, f"{data.decision} is issued; {self._dropped[data.decision]} says that it was not "
                                  "applied")  # fmt: skip
            case events.RunEnded():
                self._ended(data.closing, moment, place)
            case _:
                pass
        if not isinstance(data, events.Failure):
            self._neighbours(moment, place)
            self._before = data

    def _probation(self, moment: Moment, place: str) -> None:
        """What probation found is on record at once, and what is on record is done at once."""
        data, ledger = moment.event.data, moment.now.ledger
        if isinstance(data, events.Outcome | events.Failure):  # these may come in between
            return
        if isinstance(data, events.Judgment):
            self._owed = _judgment(_behind(moment.now, data))
        elif self._owed is not None:
            self._find(place, f"before it there is no {self._owed}")
            self._owed = None
        if isinstance(data, events.Acknowledged) and moment.now.manifest.edition > 1:
            self._owed = _judgment(_behind(moment.now, data))  # a verdict may have waited for it
        if isinstance(data, events.Restarted):
            if ledger.trials:
                self._find(place, "changes that were on trial were not taken back before it")
            return
        own = isinstance(data, events.OverrideIssued) and data.origin == "probation"
        if ledger.due is not None and not own:
            self._find(place, f"{ledger.due.decision} is on record, and was not issued")

    def _plans(self, moment: Moment, place: str) -> None:
        """What plans in force have to do at an evaluation is done before anything else."""
        data = moment.event.data
        if isinstance(data, events.Failure):  # of one on the log, nothing may be issued, and the next part makes up
            self._part = "" if data.where == "audit" else self._part
        elif isinstance(data, IN_BETWEEN):
            if moment.now.ledger.plans.underway or isinstance(data, events.Acknowledged):
                self._part = _part(_behind(moment.now, data))
        elif isinstance(data, events.OverrideIssued) and data.origin == "plan":
            self._part = ""
        elif self._part:
            self._find(place, f"before it there is no {self._part}")
            self._part = ""

    def _acknowledgments(self, event: events.Payload, place: str) -> None:
        """Each answer of the workload is acknowledged once, at its own byte and in the order of telemetry.

        Events that speak of no byte of telemetry may come in between: such an acknowledgment was late.
        """
        if not isinstance(event, events.Acknowledged):
            if offset_of(event) is not None:
                self._unacknowledged(len(self._answers), place)
            return
        wanted = (event.telemetry_offset, event.revision)
        at = next((i for i, (_, end, record) in enumerate(self._answers) if (end, record.revision) == wanted), None)
        if event.revision in self._acknowledged:
            self._find(place, f"revision {event.revision} is acknowledged twice")
        elif at is None:
            self._find(place, f"revision {event.revision} is acknowledged; no answer to it ends at telemetry byte "
                              f"{event.telemetry_offset}")  # fmt: skip
        self._acknowledged.add(event.revision)
        if at is not None:
            self._unacknowledged(at, place)
            self._answers.popleft()

    def _unacknowledged(self, count: int, place: str) -> None:
        """The first ``count`` answers were left out."""
        for _ in range(count):
            line, _, record = self._answers.popleft()
            self._find(place, f"before it revision {record.revision} ({record.event} in telemetry.jsonl line {line}) "
                              "is not acknowledged")  # fmt: skip

    def _waited_for(
        self, event: events.Request | events.Reply | events.BudgetSpent | events.Response, waiting: str | None,
        place: str,
    ) -> None:  # fmt: skip
        if event.decision != waiting:
            self._find(place, f"{event.kind}: it is on {event.decision}; {waiting or 'nothing'} was waited for")
        if isinstance(event, events.Response):
            if self._said == event.decision:
                self._find(place, f"{event.decision} is answered twice")
            self._said = event.decision

    def _approval(self, event: events.Approval, now: Situation, place: str) -> None:
        asked = now.ledger.started is not None and now.manifest.mode == "approve"
        if not asked or event.decision not in self._judged or event.decision in self.approvals:
            self._find(place, f"approval: nobody was asked about {event.decision}, or it was answered before")
        self.approvals.setdefault(event.decision, event.answer)

    def _restarted(self, event: events.Restarted, moment: Moment, place: str) -> None:
        starts, ledger = moment.now.state.starts, moment.now.ledger
        allowed = ledger.started.manifest.policy.process.restarts if ledger.started else 0
        if event.attempt != ledger.restarts + 1 or event.attempt > allowed:
            self._find(place, f"restart {event.attempt}; {ledger.restarts + 1} was to come, and {allowed} are allowed")
        self._again = None if self._unread else (place, starts)  # else answers of before come behind it

    def _not_applied(self, name: str, now: Situation, place: str) -> None:
        if name in now.ledger.revisions.values():
            self._find(place, f"it says that {name} was not applied, which was issued")
        self._dropped[name] = place

    def _neighbours(self, moment: Moment, place: str) -> None:
        """What comes right behind something else only, or never behind it."""
        data, before, state = moment.event.data, self._before, moment.now.state
        if self.over is not None and not isinstance(data, AFTER_THE_END):
            self._find(self.over, f"it says that the run was over; {place} ({data.kind}) came after it")
            self.over = None
        if isinstance(data, events.Outcome) and not any(decision.outcomes(moment.now)):
            self.over = self.over or place
        origin = data.origin if isinstance(data, events.OverrideIssued) else None
        if origin == "restart" and not isinstance(before, events.Restarted):
            self._find(place, "an override for a restart, which is not on record right before it")
        if isinstance(before, events.Reverted) and before.why == "crash" and not isinstance(data, events.Restarted):
            self._unfinished = (place, "before it changes were taken back for a restart, which is not on record")
        stop = isinstance(before, events.Operator) and before.action == "stop"
        if origin == "operator" and not stop:
            self._find(place, "an override of the operator, who asked for nothing right before it")
        elif stop and self._offered and origin != "operator":
            self._unfinished = (place, "before it the operator asked for a stop, which was not issued")
        if self._unfinished is not None and origin != "probation" and not isinstance(data, TAKING_UP):
            if not isinstance(data, events.Attached):  # then the supervisor died in between
                self._find(*self._unfinished)
            self._unfinished = None
        if self._again is not None and isinstance(data, REACTIONS):
            restart, starts = self._again
            if state.starts <= starts:
                self._find(restart, f"a restart; telemetry has no start between it and {place}")
            self._again = None

    def _ended(self, closing: Closing, moment: Moment, place: str) -> None:
        """What the end is called has its cause on record, and nothing that was measured is left out."""
        status, end = closing.status, moment.now.state.end
        said = end.status if end is not None else "unknown"  # a script that got the signal itself may say it
        if status == "interrupted" and not self._stopped and said != status:
            self._find(place, 'closing: `status` is "interrupted"; nobody asked for the end')
        elif status == "hung" and not self._stalled:
            self._find(place, 'closing: `status` is "hung"; it never stalled')
        elif status == "completed" and (closing.exit_code or said not in (status, "unknown")):
            self._find(place, f'closing: `status` is "completed"; the workload said "{said}", and its exit code is '
                              f"{closing.exit_code}")  # fmt: skip
        for outcome in decision.outcomes(moment.now, over=True):
            self._find(place, f"before it there is no outcome of revision {outcome.revision}")

    # -- at the end ----------------------------------------------------------------------------------------------

    def close(self) -> list[str]:
        """After the last record of a run that could be read to its end: what is not on record yet, in words."""
        if self._misfits and not self._misfit:
            self._find(self._misfits[0], "the policy fits what the script declares: nothing was wrong with it")
        notes = [
            f"Revision {record.revision} ({record.event} in telemetry.jsonl line {line}) is not acknowledged yet."
            for line, _, record in [*self._answers][:NAMED]
        ]
        more = len(self._answers) - NAMED
        return [*notes, f"{more} more answers are not acknowledged yet."] if more > 0 else notes


def _judgment(now: Situation) -> str | None:
    """What probation has to say of the last evaluation."""
    found = probation.assess(now)
    return None if found is None else f'"{found.kind}" for step {found.step}'


def _behind(now: Situation, event: events.Payload) -> Situation:
    """The situation once the log has this event."""
    ledger = copy.copy(now.ledger)
    ledger.fold(event)
    return replace(now, ledger=ledger)


def _part(now: Situation) -> str:
    """What plans in force have to do now, in words; "" for nothing."""
    if (ended := plans.over(now)) is not None:
        return f"end of the plan for {ended.name}"
    names = ", ".join(plans.next_parts(now))
    return f"part of the plan for {names}" if names else ""


def _fits(now: Situation) -> bool:
    try:
        if now.ledger.started is not None:
            now.policy.narrow(now.declared)
    except PolicyError:
        return False
    return True
