"""A run of which only the telemetry exists, and that does what the rules say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from factories.situations import judge, view
from trainmgr.contract import protocol
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Policy
from trainmgr.contract.proposal import Proposal
from trainmgr.managers.rules import RulesManager
from trainmgr.state.interventions import Moves
from trainmgr.state.ledger import Decision, Ledger
from trainmgr.state.plans import Underway
from trainmgr.state.run_state import RunState

LR = Parameter(name="rate", type="float", low=1e-5, high=5e-3, scale="log", value=4e-3, max_ratio=2.0, min_ratio=0.1,
               group="optimizer")  # fmt: skip
CLIP = Parameter(name="clip", type="float", low=0.1, high=5.0, value=1.0, group="optimizer")
DROP = Parameter(name="drop", type="float", low=0.0, high=0.5, value=0.0, max_delta=0.2, group="regularization")
DECAY = Parameter(name="decay", type="float", low=0.0, high=3.0, value=0.0, group="regularization")
MEAN = Parameter(name="mean", type="float", low=0.9, high=0.999, value=0.0, off=0.0, group="averaging")
SPACE = [LR, CLIP, DROP, DECAY, MEAN]
LEARNING = [10.0, 7.0, 6.0, 5.5, 5.2, 5.0, 4.9, 4.85, 4.82, 4.8]  # objective; the gap to training grows beside it


class Run:
    """A run of which only the telemetry exists."""

    def __init__(
        self,
        *,
        space: list[Parameter] = SPACE,
        mode: protocol.Mode = "min",
        counterpart: str | None = "train",
        total: int | None = 6000,
        spacing: int = 60,
        commands: tuple[str, ...] = ("rollback", "stop"),
        policy: Policy | None = None,
    ) -> None:
        self.state, self.policy, self.spacing, self.seq, self.step = (
            RunState(),
            policy or Policy(),
            spacing,
            0,
            -spacing,
        )
        self.manager, self.revision, self.ledger = RulesManager(self.policy), 0, Ledger()
        self.log: list[tuple[int, Proposal]] = []
        self.turn = -1.0 if mode == "max" else 1.0
        objective = protocol.Objective(metric="goal", mode=mode, counterpart=counterpart)
        self.write(protocol.Start, event="start", workload="w", pid=1, total_steps=total, objective=objective,
                   action_space=space, commands=list(commands))  # fmt: skip

    def write(self, record: Any, **fields: Any) -> None:
        self.state.fold(record(v=1, seq=self.seq, t=float(self.seq), **fields))
        self.seq += 1

    def evaluate(self, loss: float, train: float | None = None, *, norms: tuple[float, ...] = (1.0,) * 10) -> Run:
        """Train until the next evaluation. Losses are turned where the objective is to be high."""
        self.step += self.spacing
        for i, norm in enumerate(norms):
            self.write(protocol.Step, event="step", step=max(0, self.step - len(norms) + i + 1),
                       metrics={"grad_norm": norm})  # fmt: skip
        metrics = {"goal": self.turn * loss} | ({} if train is None else {"train": self.turn * train})
        before = self.state.best
        self.write(protocol.Eval, event="eval", step=self.step, metrics=metrics)
        if self.state.best != before:
            self.write(protocol.Checkpoint, event="checkpoint", step=self.step, path="best", metrics=metrics, best=True)
        for name, plan in self.ledger.plans.underway.items():
            self.revision += 1
            pair = self.state.recipe[name], plan.value_at(self.step + self.spacing)
            self.apply({name: pair}, Moves(go_on=frozenset([name])))
        return self

    def apply(
        self, changes: dict[str, tuple[Any, Any]], moves: Moves, command: protocol.Command | None = None
    ) -> None:  # fmt: skip
        """What is asked for is done; a plan ends with any other change of its parameter."""
        record = protocol.Applied(
            v=1, seq=self.seq, t=float(self.seq), event="applied", revision=self.revision, step=self.state.step,
            boundary="step", changes=changes, command=command,
        )  # fmt: skip
        self.state.fold(record, moves)
        self.seq += 1
        ended = {name for name, (_, new) in changes.items() if name not in moves.begin | moves.go_on}
        ended |= {name for name, plan in self.ledger.plans.underway.items() if self.state.recipe[name] == plan.plan.to}
        kept = {name: plan for name, plan in self.ledger.plans.underway.items() if name not in ended}
        self.ledger.plans = replace(self.ledger.plans, underway=kept)

    def curve(self, losses: list[float], gap: float | None = 0.5) -> Run:
        for loss in losses:
            self.evaluate(loss, None if gap is None else loss - gap)
        return self

    def ask(self) -> Proposal:
        raw = self.manager.decide(view(self.state, self.policy, self.ledger))
        return Proposal.model_validate(raw)

    def obey(self) -> Proposal:
        """Ask; what is asked for must be allowed, and is done."""
        raw = self.manager.decide(view(self.state, self.policy, self.ledger))
        judgment = judge(raw, self.state, self.policy, self.ledger, decision="d")
        assert judgment.result == "accepted", [check for check in judgment.checks if not check.ok]
        proposal = Proposal.model_validate(raw)
        if proposal.action != "keep":
            self.log.append((self.state.step, proposal))
            self.revision += 1
            self.ledger.revisions[self.revision] = name = f"d{self.revision}"
            self.ledger.decisions[name] = Decision(name, proposal.diagnosis, proposal.expected, proposal.evidence)
            changes = {name: (self.state.recipe[name], value) for name, value in judgment.changes.items()}
            for name, plan in judgment.plans.items():
                before = self.state.recipe[name]
                found = Underway(plan, f"d{self.revision}", float(before), self.state.step, at=self.state.step)
                plans = self.ledger.plans
                self.ledger.plans = replace(plans, underway=plans.underway | {name: found})
                changes[name] = (before, found.value_at(self.state.step + self.spacing))
            self.apply(changes, Moves(begin=frozenset(judgment.plans)), judgment.command)
        return proposal


def overfitted(**options: Any) -> Run:
    """A best at 4.8, and three evaluations that are worse and worse while training goes on to improve."""
    run = Run(**options).curve(LEARNING, None if options.get("counterpart", "train") is None else 0.5)
    for i, loss in enumerate((5.1, 5.4, 5.7)):
        run.evaluate(loss, 4.0 - i / 5 if run.state.start and run.state.start.objective.counterpart else None)
    return run
