"""Telemetry of reinforcement learning."""

from __future__ import annotations

from typing import Any

from factories import checkpoint, evaluation, fold, start, step
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.protocol import MetricInfo, Objective
from trainmgr.state.run_state import RunState

TOTAL = 500


def number(name: str, value: float, low: float, high: float, group: str, **more: Any) -> Parameter:
    kind = "int" if isinstance(value, int) else "float"
    return Parameter(name=name, type=kind, low=low, high=high, value=value, group=group, **more)


def space(rate: float = 3e-5, clip: float = 0.1, epochs: int = 3, harm: float = 25.0, bonus: float = 2.5,
          entropy: float = 0.001) -> list[Parameter]:  # fmt: skip
    """Names say nothing on purpose."""
    return [
        number("a", rate, 1e-5, 3e-3, "optimizer", scale="log", max_ratio=5.0, min_ratio=0.25),
        number("b", 1e-3, 1e-5, 3e-3, "optimizer", scale="log", max_ratio=5.0, min_ratio=0.25),
        number("c", clip, 0.03, 0.3, "trust region"),
        number("d", epochs, 1, 8, "trust region"),
        number("e", harm, 1.0, 50.0, "penalty"),
        number("f", bonus, 2.5, 10.0, "reward"),
        number("g", entropy, 0.0, 0.1, "exploration", max_ratio=5.0, min_ratio=0.25),
    ]


METRICS = {
    "w": MetricInfo(role="success"),
    "x": MetricInfo(role="unsafe"),
    "y": MetricInfo(role="policy step"),
    "z": MetricInfo(role="action noise"),
}


def run(
    *rows: tuple[float, float],
    shift: float = 0.01,
    noise: float = 0.5,
    parameters: list[Parameter] | None = None,
    metrics: dict[str, MetricInfo] | None = None,
    scores: list[float] | None = None,
    every: int = 10,
) -> RunState:
    """Evaluations of (success, unsafe), the objective their difference unless ``scores`` has it."""
    goal = Objective(metric="val", mode="max", scale=1.0)
    told = METRICS if metrics is None else metrics
    records: list[Any] = [start(*(parameters or space()), objective=goal, metrics=told, total_steps=TOTAL)]
    for i, (success, unsafe) in enumerate(rows, start=1):
        value = scores[i - 1] if scores else success - unsafe
        records += [step(i * every, y=shift, z=noise), evaluation(i * every, value, w=success, x=unsafe)]
        records += [checkpoint(i * every)] if i == 1 else []
    return fold(records)
