"""A run on probation: both folds side by side, driven as a supervisor and an obedient workload would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import factories
from factories import applied, checkpoint, dropout, evaluation, lr, situations, start, step
from trainmgr.base.wire import Value
from trainmgr.contract import events, protocol
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Policy
from trainmgr.deciding import decision, guard, plans, probation
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation

TOTAL = factories.TOTAL
FLAT = [4.0, 4.02, 3.98, 4.0, 4.01, 4.0]
RATE = lr(value=1e-3)

KEEPS = ["checkpoint", "rollback", "stop"]


class Run:
    """Both folds side by side, as a supervisor and a workload that does at once what it is told would drive them."""

    def __init__(
        self,
        *parameters: Parameter,
        policy: Policy | None = None,
        shadow: bool = False,
        manager: str = "adversary",
        **begun: Any,
    ) -> None:
        self.policy, self.state, self.ledger = policy or Policy(), RunState(), Ledger()
        self.log: list[events.Payload] = []
        self.obeys, self.manager, self.at = True, manager, 0
        self.fold(start(*(parameters or (RATE, dropout(value=0.1))), **begun))
        manifest = situations.manifest(self.policy, manager=self.manager, mode="shadow" if shadow else "auto")
        self.tell(events.RunStarted(manifest=manifest))

    @property
    def now(self) -> Situation:
        return situations.situation(self.state, self.policy, self.ledger)

    def fold(self, record: Any) -> None:
        moves = [self.ledger.plans.of(record.revision)] if isinstance(record, protocol.Applied) else []
        self.state.fold(record.model_copy(update={"seq": self.state.next_seq}), *moves)
        if isinstance(record, protocol.Applied | protocol.Refused):
            self.tell(decision.acknowledgment(record, self.now))
            self.own()
        for outcome in decision.outcomes(self.now):
            self.tell(outcome)
        judged = isinstance(record, protocol.Eval | protocol.Applied | protocol.Refused)
        while judged and (event := self.due()) is not None:
            self.tell(event)
            self.own()
        if not isinstance(record, protocol.Step):
            self.go_on()

    def go_on(self) -> None:
        """Plans in force go on, or end."""
        while (ended := plans.over(self.now)) is not None:
            self.tell(ended)
        if (part := plans.going_on(self.now, protocol.Issued(t=0.0, step=self.state.step))) is not None:
            self.tell(part)
            self.obey()

    def due(self) -> Any:
        return probation.assess(self.now)

    def tell(self, payload: events.Payload) -> None:
        self.log.append(payload)
        self.ledger.fold(payload)

    def own(self) -> None:
        event = decision.own(self.now, protocol.Issued(t=0.0, step=self.state.step))
        if event is not None:
            self.tell(event)
            self.obey()

    def obey(self) -> None:
        """The workload applies what is outstanding."""
        control = self.ledger.outstanding
        if control is None or not self.obeys:
            return
        changes = {n: (self.state.recipe[n], v) for n, v in control.params.items() if self.state.recipe[n] != v}
        self.fold(applied(self.state.step, control.revision, changes).model_copy(update={"command": control.command}))
        if control.keep and self.state.start is not None and "checkpoint" in self.state.start.commands:
            saved = checkpoint(self.state.step, best=False)
            self.fold(saved.model_copy(update={"path": f"checkpoints/{control.keep}.pt"}))

    def measure(self, *values: float | None, best: bool = False) -> Run:
        """Evaluations, ten steps apart; with ``best`` each new best is saved."""
        for value in values:
            self.at += 10
            self.fold(step(self.at, loss=1.0))
            before = self.state.best
            self.fold(evaluation(self.at, value) if value is not None else evaluation(self.at, other=1.0))
            if best and self.state.best != before:
                self.fold(checkpoint(self.at))
        return self

    def change(
        self, action: str = "adjust", to: str | None = None, judge_after: int | None = None, **changes: Value
    ) -> Run:
        """A change of the manager that the guard accepts, applied at once."""
        more = {} if judge_after is None else {"judge_after": judge_after}
        raw = {"diagnosis": "unclear", "evidence": "", "action": action, "changes": changes, "to": to}
        return self.answer({**raw, **more})

    def plan(self, name: str, to: float, by_step: int, shape: str = "linear", **more: Any) -> Run:
        """A plan of the manager for one parameter, whose first part is applied at once."""
        raw = {"diagnosis": "unclear", "evidence": "", "action": "adjust", **more}
        return self.answer({**raw, "plans": {name: {"to": to, "by_step": by_step, "shape": shape}}})

    def answer(self, raw: dict[str, Any]) -> Run:
        """An answer that the guard accepts, applied at once."""
        _, taken = decision.take_snapshot(self.now, "evaluation")
        self.tell(taken)
        ruling = situations.verdict(raw, self.state, self.policy, self.ledger, decision=taken.decision)
        assert [check.reason for check in ruling.checks if not check.ok] == []
        self.apply(ruling)
        return self

    def apply(self, ruling: events.Verdict) -> None:
        self.tell(ruling)
        issued = self.override(ruling, based_on=self.state.step)
        if issued is not None:
            self.tell(issued)
            self.obey()

    def override(self, ruling: events.Verdict, based_on: int) -> events.OverrideIssued | None:
        """What follows from a verdict now."""
        now = replace(self.now, ledger=replace(self.ledger, last_step=based_on))
        return decision.override(ruling, now, protocol.Issued(t=0.0, step=self.state.step))

    def judge(self, raw: Any, **more: Any) -> guard.Judgment:
        """What the guard says to an answer now."""
        return situations.judge(raw, self.state, self.policy, self.ledger, **more)

    def why(self) -> str | None:
        """Why the manager is asked now; None where it is not."""
        return situations.trigger(self.state, self.policy, self.ledger)

    def crashed(self) -> events.Reverted | None:
        """What is taken back if the workload crashes now."""
        return probation.crashed(self.now)

    def of(self, kind: Callable[..., Any]) -> list[Any]:
        return [payload for payload in self.log if isinstance(payload, kind)]  # type: ignore[arg-type]

    @property
    def reversals(self) -> list[events.Reverted]:
        return self.of(events.Reverted)


def learned(*parameters: Parameter, **more: Any) -> Run:
    """A run that has levelled off, with its best checkpoint at the third evaluation."""
    return Run(*parameters, **more).measure(*FLAT, best=True)
