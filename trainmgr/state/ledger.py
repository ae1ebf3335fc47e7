"""What was decided so far, as a pure fold over the audit log. The counterpart of ``run_state`` for our own side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from trainmgr.base.wire import Value, moved
from trainmgr.contract import events
from trainmgr.contract.forecast import Forecast
from trainmgr.contract.proposal import Diagnosis, Expectation, Plan
from trainmgr.contract.protocol import Control
from trainmgr.state.answers import Answers
from trainmgr.state.budget import Spent
from trainmgr.state.changes import Changes
from trainmgr.state.plans import Plans
from trainmgr.state.trial import Trial, multiplied, same, share_of

KEPT = 32  # decisions remembered
OPEN = 8  # trials at a time: of more, the oldest two become one
OVER = "the run ended before the answer came"
REFUSED = "refused by the workload:"  # how a rejection of its begins


@dataclass(frozen=True)
class Decision:
    """An accepted decision, for the memory that a snapshot shows."""

    id: str
    diagnosis: Diagnosis | None
    expected: Expectation | None
    evidence: str
    by: str = ""
    """Who made it."""
    judge_after: int | None = None
    """Steps that it asked for before it is judged to have brought nothing."""
    undoes: tuple[int, ...] = ()
    """Of an undo: the revisions that it takes back."""
    changes: tuple[str, ...] = ()
    """The parameters that it changes at once."""
    plans: dict[str, Plan] = field(default_factory=dict)
    """Those that it brings somewhere little by little."""


@dataclass(frozen=True)
class Ailment:
    """What a manager saw, and could do nothing about."""

    diagnosis: Diagnosis
    since: int
    """The step at which it was seen first."""
    last: int
    """The same of the last time."""
    why: str
    """Why nothing could be done the last time, and what would help."""


@dataclass
class Ledger:
    """Everything that the audit log says, in constant space."""

    started: events.RunStarted | None = None
    ended: events.RunEnded | None = None
    asked: int = 0
    """Decisions asked for."""
    last_step: int | None = None
    """Step of the last snapshot."""
    last_evals: int = 0
    """Evaluations at the last snapshot."""
    last_alarm: int | None = None
    """Evaluations at the last snapshot that a value that is not finite asked for."""
    alarms: frozenset[str] = frozenset()
    """The alarms that held at the last snapshot: only a new one asks again."""
    waiting: str | None = None
    """The decision that has no verdict yet."""
    answered: int = 0
    answers: Answers = field(default_factory=Answers)
    """Who gave them, and what was asked for with them."""
    spent: Spent = field(default_factory=Spent)
    """On a language model."""
    accepted: int = 0
    rejected: int = 0
    revision: int = 0
    """The highest revision issued."""
    in_force: dict[str, Value] = field(default_factory=dict)
    """The overrides that the workload was told and did not refuse."""
    outstanding: Control | None = None
    """The revision that waits for its acknowledgment."""
    unheard: int = 0
    """The last revision that got none in time."""
    held: dict[str, Value] = field(default_factory=dict)
    """What was in force before the outstanding revision."""
    applied: int = 0
    own: int = 0
    """Of them, those of probation."""
    stops: int = 0
    """Of them, those that were asked for from outside: Ctrl-C, SIGTERM."""
    refused: int = 0
    lapsed: int = 0
    """Revisions that the workload did not answer while they were valid."""
    acknowledged: int = 0
    """The highest revision that the workload answered."""
    decisions: dict[str, Decision] = field(default_factory=dict)
    revisions: dict[int, str] = field(default_factory=dict)
    """Revision to decision."""
    outcomes: int = 0
    """The highest revision whose outcome is on record."""
    changes: Changes = field(default_factory=Changes)
    """Every change that took effect, and what came of it."""
    ailments: dict[Diagnosis, Ailment] = field(default_factory=dict)
    """What the manager could do nothing about, by diagnosis."""
    rejections: list[str] = field(default_factory=list)
    """The last reasons for which answers were rejected or refused."""
    origins: dict[int, str] = field(default_factory=dict)
    """Revision to who issued it."""
    plans: Plans = field(default_factory=Plans)
    """Where parameters are being brought."""
    trials: list[Trial] = field(default_factory=list)
    """What is being watched, oldest first."""
    trust: dict[str, float] = field(default_factory=dict)
    """Of the parameters, and of "rollback", whose changes were taken back: what is left of the declared reach."""
    taken_back: dict[int, str] = field(default_factory=dict)
    """Revision to why it was taken back."""
    tried: bool = False
    """Whether anything ever was."""
    reversals: int = 0
    lost: int = 0
    """Steps lost to changes that were taken back."""
    idle: int = 0
    """Steps in trials that brought nothing."""
    idle_since: int = 0
    """The same since the last trial that brought something, ..."""
    idle_until: int = 0
    """... and the step until which they are counted."""
    demoted: bool = False
    """Whether nothing of the manager is applied any more."""
    overtaken: bool = False
    """Whether we acted ourselves since the last snapshot: an answer to it has no ground any more."""
    challenges: int = 0
    """How often the recipe of the start was put on trial."""
    challenged_at: int = 0
    """Evaluations until the last time."""
    due: events.Reverted | events.Challenged | events.Ending | None = None
    """What is on record and must be issued next."""
    carrying: events.Reverted | events.Challenged | events.Ending | None = None
    """What was issued and waits for its acknowledgment."""
    stopped_by: str = ""
    """How the end was asked for first: Ctrl-C, SIGTERM; "" where nobody did."""
    ending: bool = False
    """Whether the run is being ended, so that nothing else is wanted of it."""
    restarts: int = 0
    failures: int = 0
    failure: events.Failure | None = None
    """The last one."""
    misfit: events.Failure | None = None
    """The one that says why the policy does not fit the workload, whatever went wrong after it."""
    unread: str = ""
    """Why the end of telemetry could not be read; "" where it could."""
    unanswered: int = 0
    """Decisions that were asked for and got no answer."""
    unanswered_why: str = ""
    """Why the last of them got none."""

    @property
    def on_probation(self) -> bool:
        """Whether the changes of this run's manager are watched."""
        return self.started is not None and self.started.manifest.policy.watches(self.started.manifest.manager)

    @property
    def challenged(self) -> bool:
        """Whether the recipe of the start is on trial, or on its way there."""
        return any(isinstance(own, events.Challenged) for own in (self.due, self.carrying)) or any(
            trial.challenge for trial in self.trials
        )

    @property
    def ends_on_best(self) -> bool:
        """Whether the run is to be left on its best checkpoint: by default where what was on probation had a part in
        it."""
        wanted = self.started.manifest.policy.actions.end_on_best if self.started else False
        return self.tried if wanted is None else wanted

    def losses(self) -> dict[str, Any]:
        """What a run's closing says of probation."""
        return {
            "reversals": self.reversals,
            "steps_lost": self.lost,
            "steps_in_vain": self.idle,
            "demoted": self.demoted,
            "challenges": self.challenges,
        }

    def fold(self, payload: events.Payload) -> None:
        """Take one event in. What it holds is replaced, never changed: a shallow copy goes its own way."""
        self.answers = self.answers.after(payload)
        match payload:
            case events.RunStarted():
                self.started = payload
            case events.SnapshotTaken():
                self.asked += 1
                self.last_step = int(payload.snapshot["progress"]["step"])
                self.last_evals = int(payload.snapshot["progress"]["evaluations"])
                self.overtaken = False
                self.waiting = payload.decision
                if payload.trigger == "alarm":
                    self.last_alarm = self.last_evals
                self.alarms = self._alarms(payload.snapshot.get("signals", {}))
            case events.Request():
                self.spent = self.spent.asked()
            case events.Reply():
                self.spent = self.spent.answered(
                    payload.prompt_tokens, payload.completion_tokens, payload.money, payload.seconds
                )
            case events.Response():
                self.answered += 1
            case events.Verdict():
                self.waiting = None
                self._ails(payload)
                if payload.result == "rejected":
                    self.rejected += 1
                    self._rejection(next((check.reason for check in payload.checks if not check.ok), "rejected"))
                elif payload.action != "keep":
                    self.accepted += 1
                    if self.demoted:  # what is never applied need not be remembered
                        return
                    decision = Decision(
                        payload.decision, payload.diagnosis, payload.expected, payload.evidence, self.answers.by,
                        payload.judge_after, tuple(payload.undoes), changes=tuple(payload.changes), plans=payload.plans,
                    )  # fmt: skip
                    self.decisions = dict([*self.decisions.items(), (payload.decision, decision)][-KEPT:])
                    self.changes = self.changes.said(payload)
            case events.OverrideIssued():
                self._issued(payload)
            case events.Acknowledged():
                self._acknowledged(payload)
            case events.Unanswered():
                self._unanswered(payload)
            case events.PlanEnded():
                self.plans = self.plans.ended(payload)
                self._rejection(f"the plan for {payload.name} has ended: {payload.why}")
            case events.Outcome():
                self.outcomes = max(self.outcomes, payload.revision)
                self.changes = self.changes.measured(payload)
            case events.Reverted():
                self._reverted(payload)
                self.changes = self.changes.judged(payload)
            case events.Kept():
                self.changes = self.changes.judged(payload)
                self._kept(payload)
            case events.Challenged():
                self.due, self.overtaken = payload, True
                self.challenges, self.challenged_at = self.challenges + 1, payload.evals
            case events.Ending():
                self.due, self.overtaken, self.ending = payload, True, True
            case events.Restarted():
                self.restarts += 1
                self.plans = self.plans.restarted()
                self.changes = self.changes.restarted()
                self.trials, self.ending = [], False  # what would come of them starts from other weights
                left, self.carrying = self.due or self.carrying, None
                self.due = None if isinstance(left, events.Challenged) else left  # its grounds are gone
            case events.Stalled():
                self.ending = True
            case events.Operator():
                self.ending = True
                self.stopped_by = self.stopped_by or payload.by
            case events.Failure():
                self.failures += 1
                self.failure = payload
                self.misfit = payload if payload.where == "policy" else self.misfit
                self.ending |= self.misfit is not None
                self.unread = payload.message if payload.where == "telemetry" else self.unread
                if payload.decision is not None and payload.decision == self.waiting:
                    self.waiting = None
                    if payload.message != OVER:
                        self.unanswered, self.unanswered_why = self.unanswered + 1, payload.message
            case events.RunEnded():
                self.ended = payload
            case _:
                pass

    def _ails(self, payload: events.Verdict) -> None:
        if payload.helpless and payload.diagnosis is not None:
            at = self.last_step or 0
            before = self.ailments.get(payload.diagnosis)
            since = before.since if before else at
            self.ailments = {
                **self.ailments,
                payload.diagnosis: Ailment(payload.diagnosis, since, at, payload.helpless),
            }

    def _alarms(self, signals: dict[str, Any]) -> frozenset[str]:
        if self.started is None:
            return frozenset()
        rise, noise = (None if signals.get(name) is None else float(signals[name]) for name in ("rise", "noise"))
        return self.started.manifest.policy.alarms(bool(signals.get("diverging")), rise, noise)

    def _issued(self, payload: events.OverrideIssued) -> None:
        control = payload.control
        self.revision = max(self.revision, control.revision)
        if self.outstanding is None:  # else what was held before the superseded revision still is
            self.held = dict(self.in_force)
        named, plans = self._planned(payload.decision if payload.origin == "manager" else "")
        self.plans = self.plans.issued(payload, named, plans, self.outstanding)
        self._make_room()
        for override in control.schedule or [control]:
            self.revisions = dict([*self.revisions.items(), (override.revision, override.decision)][-KEPT:])
            self.origins = dict([*self.origins.items(), (override.revision, payload.origin)][-KEPT:])
        self.carrying, self.due = (self.due if payload.origin == "probation" else None), None
        if control.schedule is None:
            self.outstanding = control
            self.in_force = dict(control.params)

    def _planned(self, decision: str) -> tuple[set[str], dict[str, Plan]]:
        """The parameters that a decision names, and its plans; nothing of one that is not a manager's."""
        found = self.decisions.get(decision)
        return ({*found.changes, *found.plans}, found.plans) if found is not None else (set(), {})

    def _make_room(self) -> None:
        """Forget parts of plans that were answered before the decisions that a person or a manager wants to see."""
        if len(self.revisions) < KEPT:
            return
        parts = (r for r, origin in self.origins.items() if origin == "plan" and r <= self.acknowledged)
        if (oldest := next(parts, None)) is not None:
            self.revisions = {r: decision for r, decision in self.revisions.items() if r != oldest}
            self.origins = {r: origin for r, origin in self.origins.items() if r != oldest}

    def _acknowledged(self, payload: events.Acknowledged) -> None:
        self.acknowledged = max(self.acknowledged, payload.revision)
        self.lapsed -= payload.revision == self.unheard
        if payload.result == "applied":
            self.applied += 1
            self.own += self.origins.get(payload.revision) == "probation"
            self.stops += self.origins.get(payload.revision) == "operator"
            self._changed(payload)
        elif self.origins.get(payload.revision) != "plan":  # of a part, the end of its plan says what is to be said
            self.refused += 1
            self._rejection(f"{REFUSED} {payload.reason}")
        settled = self.outstanding if self.outstanding and payload.revision >= self.outstanding.revision else None
        if self._jointly and payload.forecast is not None:
            self._on_trial(payload, payload.forecast, settled)
        elif not self._jointly:
            self._watched(payload, settled)
        origin = self.origins.get(payload.revision)
        if payload.result == "applied":
            self.plans = self.plans.applied(payload, *self._planned(payload.decision), settled, origin)
        elif settled is not None and origin == "plan":
            self.plans = self.plans.refused(payload, settled)
        if settled is None and payload.result == "applied" and payload.revision == self.unheard:  # later than it may
            late = {name: new for name, (_, new) in payload.changes.items()}
            self.held, self.in_force = {**self.held, **late}, {**late, **self.in_force}
        if settled is not None:
            if payload.result == "refused":
                self.in_force = dict(self.held)
            self.outstanding = None
            self._carried(payload)

    def _changed(self, payload: events.Acknowledged) -> None:
        """Remember a change, unless it only takes others back, or goes on with a plan."""
        origin = self.origins.get(payload.revision)
        challenge = origin == "probation" and isinstance(self.carrying, events.Challenged)
        if not moved(payload.changes) and payload.decision not in self.changes.words:
            return
        if origin == "manager" or challenge:
            self.changes = self.changes.applied(payload, "challenge" if challenge else "manager")

    def _unanswered(self, payload: events.Unanswered) -> None:
        self.in_force, self.outstanding, self.unheard = dict(self.held), None, payload.revision
        self.carrying = None  # the recipe of the start, which nobody tried
        self.lapsed += 1
        self._rejection(f"not answered by the workload until step {payload.step}")

    def _on_trial(self, payload: events.Acknowledged, forecast: Forecast, control: Control | None) -> None:
        command = control.command if control else None
        changes, (_, plans) = self.plans.own(payload), self._planned(payload.decision)
        decision = self.decisions.get(payload.decision)
        later = [plan.by_step for plan in plans.values()]
        later += [payload.step + decision.judge_after] if decision and decision.judge_after is not None else []
        trial = Trial(
            step=payload.step,
            forecast=forecast,
            revisions=(payload.revision,),
            decisions=(payload.decision,),
            before={name: old for name, (old, _) in changes.items()},
            shares={name: share for name, pair in changes.items() if (share := share_of(*pair)) is not None},
            rollback=command is not None and command.name == "rollback",
            undone=payload.undone,
            challenge=isinstance(self.carrying, events.Challenged),
            until=max(later, default=None),
        )
        self.tried = True
        if self._jointly and self.trials and self.trials[-1].forecast.evals == forecast.evals:
            self.trials = [*self.trials[:-1], self.trials[-1].joined(trial)]
        else:
            self.trials = [*self.trials, trial]

    @property
    def _jointly(self) -> bool:
        """Whether changes are judged together, as they were up to edition 1."""
        return self.started is not None and self.started.manifest.edition == 1

    def _watched(self, payload: events.Acknowledged, control: Control | None) -> None:
        """What a revision that was applied does to what is on trial: its own trial begins, and others end with it.

        Where we took something back, what is on trial still is measured anew from there. Whatever else a manager does
        keeps no trial from its end.
        """
        back = {name: old for trial in self.trials if {*trial.revisions} & {*payload.ends}
                for name, old in trial.before.items()}  # fmt: skip
        self._settle(payload.ends)
        self.lost += payload.lost
        decision = self.decisions.get(payload.decision)
        undoes = decision.undoes if decision else ()
        if payload.result == "applied":
            self.taken_back = dict([*self.taken_back.items(), *((gone, "undone") for gone in undoes)][-KEPT:])
        if payload.forecast is None:
            return
        if isinstance(self.carrying, events.Reverted):
            self.trials = [replace(trial, forecast=payload.forecast.model_copy(update={"best": trial.forecast.best}))
                           for trial in self.trials]  # fmt: skip
            return
        self._on_trial(payload, payload.forecast, control)
        restored = [name for name, (_, new) in payload.changes.items() if name in back and same(new, back[name])]
        self.trials = [*self.trials[:-1], self.trials[-1].without(restored)]
        if len(self.trials) > OPEN:
            self.trials = [self.trials[0].joined(self.trials[1]), *self.trials[2:]]

    def _settle(self, revisions: list[int]) -> None:
        """The trials of these revisions are over."""
        self.trials = [trial for trial in self.trials if not {*trial.revisions} & {*revisions}]

    def _kept(self, payload: events.Kept) -> None:
        """What stays answers for its parameters from now on, whatever was on trial before it."""
        if self._jointly:
            self.trials = self.trials[payload.trials :]
        else:
            good = [trial for trial in self.trials if {*trial.revisions} & {*payload.revisions}]
            names = {name for trial in good for name in trial.before}
            older = self.trials.index(good[0]) if good else 0
            before = [trial.without(names) for trial in self.trials[:older]]
            self.trials = [*(trial for trial in before if trial.before or trial.rollback), *self.trials[older:]]
            self._settle(payload.revisions)
            self.idle_since *= payload.neutral or payload.challenge
        self._trust(payload.trust)

    def _reverted(self, payload: events.Reverted) -> None:
        self.reversals += not payload.challenge
        self.lost, self.idle = payload.lost_in_all, payload.idle_in_all
        self.idle_since += payload.idle
        self.idle_until = payload.step if payload.idle else self.idle_until
        self.demoted |= payload.demoted
        self.due, self.overtaken = payload, True
        self.trials = [] if self._jointly else self._passed_on(payload.revisions)
        self.plans = self.plans.taken_back(payload.decisions)
        if payload.demoted:
            self.plans = self.plans.demoted()
        pairs = [(revision, payload.why) for revision in payload.revisions]
        self.taken_back = dict([*self.taken_back.items(), *pairs][-KEPT:])
        self._trust(payload.trust)

    def _passed_on(self, revisions: list[int]) -> list[Trial]:
        """What is left on trial without these revisions. What a later change is on now, it goes back to what they had
        replaced."""
        left: list[Trial] = []
        after = False
        values: dict[str, Value] = {}
        shares: dict[str, float] = {}
        for trial in self.trials:
            if {*trial.revisions} & {*revisions}:
                values, shares = {**trial.before, **values}, multiplied(shares, trial.shares)
                after = True
                continue
            names = values.keys() & trial.before.keys()
            passed = {name: values.pop(name) for name in names}
            more = {name: shares.pop(name) for name in names if name in shares}
            before, inherited = {**trial.before, **passed}, trial.inherited | passed.keys()
            tainted, shared = after or trial.tainted, multiplied(trial.shares, more)
            left.append(replace(trial, before=before, inherited=inherited, tainted=tainted, shares=shared))
        return left

    def _trust(self, changed: dict[str, float]) -> None:
        self.trust = {name: trust for name, trust in {**self.trust, **changed}.items() if trust < 1}

    def _carried(self, payload: events.Acknowledged) -> None:
        """The workload answered what we issued ourselves. Where a rollback fails, that to the best is tried; where that
        fails too, the values go back without it."""
        carried, self.carrying = self.carrying, None
        if carried is None or isinstance(carried, events.Challenged):  # which is on trial now
            return
        if payload.result == "applied":
            if self._jointly or isinstance(carried, events.Ending):
                slipped = [decision for trial in self.trials for decision in trial.decisions]
                self.plans = self.plans.taken_back(slipped)  # in between: it was taken back too
                self.trials = []
        elif isinstance(carried, events.Reverted) and carried.command is not None:
            best = carried.command.model_copy(update={"to": "best"}) if carried.command.to != "best" else None
            self.due = carried.model_copy(update={"command": best}) if best or carried.parameters else None

    def _rejection(self, reason: str) -> None:
        self.rejections = [*self.rejections, reason][-4:]
