"""Telemetry records, parameters, and states that are folded from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trainmgr.contract import protocol
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Actions, Policy
from trainmgr.state.run_state import RunState

TOTAL = 1000
FREE = Policy(actions=Actions(stop_settled_evals=0))
"""Under which a stop is offered at any time."""


def lr(**changed: Any) -> Parameter:
    return Parameter(**{"name": "lr", "type": "float", "low": 1e-5, "high": 5e-3, "scale": "log", "max_ratio": 2.0,
                        "min_ratio": 0.1, "value": 3e-3, "group": "optimizer", **changed})  # fmt: skip


def dropout(**changed: Any) -> Parameter:
    return Parameter(**{"name": "dropout", "type": "float", "low": 0.0, "high": 0.5, "max_delta": 0.2, "value": 0.0,
                        "group": "regularization", **changed})  # fmt: skip


def ema(**changed: Any) -> Parameter:
    return Parameter(**{"name": "ema", "type": "float", "low": 0.9, "high": 0.999, "off": 0.0, "value": 0.0,
                        **changed})  # fmt: skip


def batch(**changed: Any) -> Parameter:
    return Parameter(**{"name": "batch", "type": "int", "low": 1, "high": 64, "max_delta": 8.0, "value": 16, **changed})


def augment(**changed: Any) -> Parameter:
    return Parameter(**{"name": "augment", "type": "bool", "value": False, **changed})


def kind(**changed: Any) -> Parameter:
    return Parameter(**{"name": "kind", "type": "choice", "choices": ["a", "b", "c"], "value": "a", **changed})


def everything() -> list[Parameter]:
    return [lr(), dropout(), ema(), batch(), augment(), kind()]


# -- records; ``fold`` numbers them --------------------------------------------------------------------------------


def start(*parameters: Parameter, mode: str = "min", **changed: Any) -> protocol.Start:
    space = list(parameters) or everything()
    return protocol.Start(**{
        "v": 1, "seq": 0, "t": 0.0, "event": "start", "workload": "test", "pid": 1, "total_steps": TOTAL,
        "objective": protocol.Objective(metric="val", mode=mode, counterpart="train"), "action_space": space,
        "commands": ["rollback", "stop"], **changed,
    })  # fmt: skip


def step(at: int, **metrics: float) -> protocol.Step:
    return protocol.Step(v=1, seq=0, t=float(at), event="step", step=at, metrics=metrics)


def evaluation(
    at: int, val: float | None = None, params: dict[str, Any] | None = None, **metrics: float
) -> protocol.Eval:
    values = metrics if val is None else {"val": val, **metrics}
    return protocol.Eval(v=1, seq=0, t=float(at), event="eval", step=at, metrics=values, params=params or {})


def checkpoint(at: int, *, best: bool = True) -> protocol.Checkpoint:
    return protocol.Checkpoint(v=1, seq=0, t=float(at), event="checkpoint", step=at, path="checkpoints/x", best=best)


def applied(
    at: int, revision: int, changes: dict[str, Any] | None = None, command: str | None = None, to: str | None = None
) -> protocol.Applied:
    order = protocol.Command(id=f"d{revision}", name=command, to=to) if command else None  # type: ignore[arg-type]
    return protocol.Applied(v=1, seq=0, t=float(at), event="applied", revision=revision, step=at, boundary="step",
                            changes=changes or {}, command=order)  # fmt: skip


def refused(at: int, revision: int) -> protocol.Refused:
    return protocol.Refused(v=1, seq=0, t=float(at), event="refused", revision=revision, step=at, reason="too late")


def log(message: str, level: str = "info") -> protocol.Log:
    return protocol.Log(v=1, seq=0, t=0.0, event="log", level=level, message=message)


def end(at: int) -> protocol.End:
    return protocol.End(v=1, seq=0, t=float(at), event="end", status="completed", step=at)


def fold(records: Iterable[Any], state: RunState | None = None) -> RunState:
    """The state after ``records``, numbered without gaps."""
    state = RunState() if state is None else state
    for record in records:
        state.fold(record.model_copy(update={"seq": state.next_seq}))
    return state


def curve(values: Iterable[float], *parameters: Parameter, train: Iterable[float] = (), mode: str = "min",
          best: bool = True, every: int = 10) -> RunState:  # fmt: skip
    """A run with these objectives, one evaluation every ``every`` steps, and a best checkpoint after the first."""
    trains = list(train)
    records: list[Any] = [start(*parameters, mode=mode)]
    for i, value in enumerate(values, start=1):
        extra = {"train": trains[i - 1]} if i <= len(trains) else {}
        records += [step(i * every, loss=1.0), evaluation(i * every, value, **extra)]
        records += [checkpoint(i * every)] if best and i == 1 else []
    return fold(records)
