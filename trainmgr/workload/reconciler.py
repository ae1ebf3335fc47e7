"""From the overrides that are asked for to the values in effect: each at its moment, each revision answered once.

The control file is a desired state: it holds all that is to be in force. So one that was missed loses nothing, and a
training that is started again gets back what was acknowledged before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainmgr.workload.lines import MAX_TEXT
from trainmgr.workload.overrides import BOUNDARIES, Inbox
from trainmgr.workload.parameters import Parameter
from trainmgr.workload.persistence import Change, Persistence
from trainmgr.workload.ranks import Group
from trainmgr.workload.records import SEVERAL, Writer
from trainmgr.workload.surroundings import PAUSES, patiently
from trainmgr.workload.values import same

_NEVER = sys.maxsize


class Reconciler:
    """Puts what is asked for into effect, at the boundaries that the script passes.

    ``parameters`` and ``commands`` are what the script declares, by name; ``step`` is the one that training begins
    after; ``resumed`` says that it goes on from a checkpoint.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        commands: Mapping[str, Callable[[str], object]],
        writer: Writer,
        group: Group,
        *,
        step: int,
        resumed: bool,
    ) -> None:
        self._parameters, self._commands = parameters, commands
        self._writer, self._group = writer, group
        self._resumed = resumed
        self._inbox = Inbox()
        self.step = step
        """The last one that was reported."""
        self.stopping = False
        """Whether a stop was done."""
        self.applying = False
        """Whether something is put into effect right now: a setter or a command may report meanwhile."""
        self.due = _NEVER
        """Nothing that waits can be applied before this step."""
        self.persistence = Persistence()
        self._handled = -1  # the last revision that was acknowledged
        self._desired: dict[str, Any] = {}  # the overrides in force
        self._inherited: set[str] = set()  # of them, those that a training before this one was asked for
        self._pending: list[dict[str, Any]] = []
        self._coarsest = 0  # of the boundaries passed so far
        self._passed: tuple[int, set[str]] = (-1, set())  # a step, and the other boundaries passed at it

    @property
    def another(self) -> bool:
        """Whether the training before this one in the run came to its end; False for one that goes on from it."""
        return bool(self._writer.ended) and not self._resumed

    def open(self, control: Path | None) -> None:
        """Telemetry is open: go on after what it holds. ``control`` is where overrides come from, if anywhere."""
        self._handled = self._writer.handled
        if control is not None:
            self._inbox.open(control)

    # -- what was there before ---------------------------------------------------------------------------------------

    def converge(self) -> None:
        """After a restart: put the overrides that were already acknowledged back into effect, without a new answer.

        After another training of this run: those that it was asked for come again with whatever is asked next, and are
        not asked of this one.
        """
        control = self._read(PAUSES) if self._writer.resuming else None
        self._inbox.again()  # what is newer is fetched again, as a pending override
        answered = control is not None and control["revision"] <= self._handled
        params, shares = control["params"] if control and answered else {}, self._writer.shares
        inherited: dict[str, Any] = {}
        if self.another and control:
            params, inherited = {}, {**control["params"], **({} if answered else self._writer.effects)}
        if self._group.world > 1 and (share := self._group.share()[0]):
            params, shares, inherited = share((params, shares, inherited))
        self._desired, self._inherited = dict(inherited), set(inherited)
        for name, value in params.items():
            parameter = self._parameters.get(name)
            if parameter is None or parameter.objection(value) is not None:
                continue
            try:
                before = shares.get(name)
                if parameter.managed is not None and before is not None:
                    parameter.managed.resume(before)  # its schedule has moved on since
                else:
                    parameter.set(value)
                self._desired[name] = value
            except Exception as error:  # training comes first here too; the next override sets it again
                self._writer.log("error", f"{name} could not be set to {value} again: {type(error).__name__}: {error}")

    def leave_behind(self) -> None:
        """Refuse what still waits, for it was asked of the training before this one."""
        control, ended = self._read(PAUSES), self._writer.ended
        for entry in (control["schedule"] or [control]) if control else []:
            if entry["revision"] > self._handled:
                self._refuse(entry["revision"], self.step, f"it was for the training before this one, {ended}")
        if not self._writer.several:
            self._writer.log(
                "warning",
                f"{SEVERAL}: one is {ended}, and another begins with values of its own, which no change made before "
                "reaches. Start a run for each, or pass resumed_from where it goes on from a checkpoint",
            )

    # -- boundaries --------------------------------------------------------------------------------------------------

    def boundary(self, step: int, kind: str) -> None:
        """Pass one: what waits for it and has come to its moment is applied."""
        self.step = max(self.step, step)
        if self.applying:  # a command of ours reports: what waits comes after it
            return
        if self._passed[0] != step:
            self._passed = (step, set())
        if kind in self._passed[1]:  # a second one at this step is none: a replay could not tell the two apart
            return
        self._passed[1].add(kind)
        if gap := self._group.news(self._writer.fd):
            self._writer.log("warning", f"changes are refused: {gap}")
        self._coarsest = max(self._coarsest, BOUNDARIES.index(kind))
        self.poll()
        if step >= self.due:
            self.apply(step, kind)

    def poll(self) -> None:
        """Look for a new control file; under several ranks, hand its entries to all of them."""
        entries = self._fetch()
        if self._group.world > 1:
            share, why = self._group.share()
            if share is None:
                for entry in entries:
                    self._refuse(entry["revision"], self.step, why)
                return
            entries = share(entries)
        if entries:
            fresh = {entry["revision"] for entry in entries}
            for entry in self._pending:
                if entry["revision"] > self._handled and entry["revision"] not in fresh:
                    self._refuse(entry["revision"], self.step, f"superseded by revision {min(fresh)}")
            self._pending = entries
            self.due = min(entry["at_step"] or 0 for entry in entries)

    def _fetch(self) -> list[dict[str, Any]]:
        control = self._read() if self._writer.fd is not None else None  # what cannot be answered is not done
        if control is None:
            return []
        entries = control["schedule"] or [control]
        fresh = [entry for entry in entries if entry["revision"] > self._handled]
        return [entry for entry in fresh if not (self.another and self._foreign(entry))]

    def _foreign(self, entry: dict[str, Any]) -> bool:
        """Whether it rests on a step that this training has not reached: then it is of the one before, and refused."""
        based = entry.get("based_on_step")
        if not isinstance(based, int) or based <= self.step:
            return False
        self._refuse(entry["revision"], self.step, f"it rests on step {based} of the training before this one")
        return True

    def _read(self, pauses: Sequence[float] = ()) -> dict[str, Any] | None:
        """The control file, if it is new and holds what it should; complaints go to the log. ``pauses``: see
        ``patiently``."""
        try:
            return patiently(self._inbox.read, pauses)
        except ValueError as error:
            self._writer.log("warning", f"control file ignored: {error}")
        except OSError as error:
            what = f"control.json cannot be read ({error}); it is looked at again"
            self._writer.say(f"control {error.errno}", what)
        return None

    def apply(self, step: int, kind: str) -> None:
        """Apply every pending entry whose moment this is; answer each revision exactly once."""
        waiting = []
        for entry in self._pending:
            if entry["revision"] <= self._handled:
                continue
            at_step, until = entry["at_step"], entry["valid_until_step"]
            if at_step is not None and step > at_step:
                late = f"too late: it was for step {at_step}, this is step {step}{self._unmet(entry)}"
                self._refuse(entry["revision"], step, late)
            elif until is not None and step > until:
                late = f"too late: it was valid until step {until}, this is step {step}{self._unmet(entry)}"
                self._refuse(entry["revision"], step, late)
            elif (at_step is None or step == at_step) and self._ripe(entry, kind):
                self._carry_out(entry, step, kind)
            else:
                waiting.append(entry)
        self._pending = waiting
        self.due = min((entry["at_step"] or 0 for entry in waiting), default=_NEVER)

    def _ripe(self, entry: dict[str, Any], kind: str) -> bool:
        """Whether a boundary of this kind is coarse enough for everything that the entry changes."""
        if entry["at_boundary"] is not None:
            return bool(entry["at_boundary"] == kind)
        return BOUNDARIES.index(kind) >= self._needed(entry)

    def _needed(self, entry: dict[str, Any]) -> int:
        """The boundary that the entry waits for, by its place from fine to coarse."""
        changed = [self._parameters[name].spec for name in self._changes(entry) if name in self._parameters]
        return max((BOUNDARIES.index(spec["boundary"]) for spec in changed), default=0)

    def _unmet(self, entry: dict[str, Any]) -> str:
        """That it waited for something that the script has never reported, if so."""
        needed = self._needed(entry)
        if needed <= self._coarsest:
            return ""
        return f"; it waited for {('a step', 'an evaluation', 'a checkpoint')[needed]}, and none has been reported"

    def _changes(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What the entry asks for that was not asked for before (a scheduler may have moved the rest since)."""
        missing, params = object(), entry["params"]
        asked = {n: v for n, v in params.items() if self._desired.get(n, missing) != v}
        if not asked and len(params) == 1 and self._inherited.issuperset(params) and not entry["command"]:
            return dict(params)  # what else would it ask for
        return asked

    def _objection(self, entry: dict[str, Any]) -> str | None:
        for name, value in entry["params"].items():
            parameter = self._parameters.get(name)
            objection = parameter.objection(value) if parameter else f"{name}: no such parameter"
            if objection:
                return objection
        command = entry["command"]
        if command and command["name"] not in self._commands:
            return f"this workload offers no {command['name']}"
        return None

    def _carry_out(self, entry: dict[str, Any], step: int, kind: str) -> None:
        revision = entry["revision"]
        if objection := self._group.gap(self._writer.fd) or self._objection(entry):
            self._refuse(revision, step, objection)
            return
        before = {name: parameter.get() for name, parameter in self._parameters.items()}
        memos: dict[str, Callable[[], None]] = {}
        command = entry["command"]
        changes = self._changes(entry)
        self.applying, done = True, False
        try:
            memos |= {name: parameter.memo() for name, parameter in self._parameters.items()}
            if problem := self._unkept(entry["keep"]):
                self._writer.log("warning", problem)
            if command:
                self._commands[command["name"]](command["to"] or "")
                done = True
                for restore in memos.values():
                    restore()
            self._set(changes)
            objection = self._unheard(changes, before)
        except Exception as error:  # the training loop must survive whatever a setter raises
            objection = f"{type(error).__name__}: {error}"
        finally:
            self.applying = False
        if objection:
            self._restore(memos)
            if not done:
                self._refuse(revision, step, objection)
                return
            changes = {}
            self._writer.log("warning", f"{command['name']} was done, and the values stay as they were: {objection}")
        self._desired.update(entry["params"])
        self._inherited.difference_update(changes)
        self._handled = revision
        after = self.values()
        managed = {name: p.managed for name, p in self._parameters.items() if p.managed and name in changes}
        shares = {name: pair for name, found in managed.items() if (pair := found.pair)}
        self._writer.report(
            "applied",
            revision=revision,
            step=step,
            boundary=kind,
            changes={n: [before[n], after[n]] for n in after if n in changes or before[n] != after[n]},
            command=command,
            groups={name: found.values() for name, found in managed.items()},
            **({"shares": shares} if shares else {}),
        )
        for name in changes:
            moves = bool(self._parameters[name].spec.get("scheduled"))
            change = Change(revision, step, before[name], after[name], moves)
            if name in managed and managed[name].lasts:
                self.persistence.used(name, change, managed[name].steps)
            else:
                self.persistence.changed(name, change)
        if command and command["name"] == "stop":
            self.stopping = True

    def _unkept(self, name: str | None) -> str:
        """Save a checkpoint, where that is wanted and offered. Returns what went wrong: a change is made all
        the same, since there are older checkpoints."""
        try:
            if name and "checkpoint" in self._commands:
                self._commands["checkpoint"](name)
        except Exception as error:
            return f"no checkpoint was kept as {name!r}: {type(error).__name__}: {error}"
        return ""

    def _set(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._parameters[name].set(value)

    def _unheard(self, changes: Mapping[str, Any], before: Mapping[str, Any]) -> str:
        """What is in effect now although it was not asked for, or may not be; "" where all is as it should."""
        for name, parameter in self._parameters.items():
            found, problem = parameter.read()
            if name in changes and problem:
                return f"set({changes[name]!r}) left {name} unreadable: {problem}"
            if name in changes and not same(found, changes[name]):
                return f"set({changes[name]!r}) left {name} at {found!r}"
            moved = found != before[name] and not parameter.spec.get("scheduled")
            if moved and name not in changes and (objection := parameter.objection(found)):
                return f"set() of {', '.join(changes) or 'nothing'} moved {objection}"
        return ""

    def _restore(self, memos: Mapping[str, Callable[[], None]]) -> None:
        for name, restore in memos.items():
            try:
                restore()
            except Exception as error:
                self._writer.log("error", f"{name} could not be set back: {type(error).__name__}: {error}")

    def _refuse(self, revision: int, step: int, reason: str) -> None:
        self._handled = max(self._handled, revision)
        self._writer.report("refused", revision=revision, step=step, reason=reason[:MAX_TEXT])

    def values(self) -> dict[str, Any]:
        """Of all parameters that can be read at the moment."""
        found = {}
        for name, parameter in self._parameters.items():
            value, problem = parameter.read()
            if problem:
                self._writer.say(f"parameter {name}", f"{name} cannot be read at step {self.step}: {problem}")
            else:
                found[name] = value
        return found
