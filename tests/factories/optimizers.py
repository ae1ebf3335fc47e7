"""A small training with an optimizer of torch, its managed values and what each update saw of them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedulers

S = torch_schedulers


class Probe(torch.optim.Optimizer):
    """An optimizer that notes the learning rates that its update uses."""

    def __init__(self, groups: Any, **defaults: Any) -> None:
        super().__init__(groups, {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0, **defaults})
        self.seen: list[list[float]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.seen.append([float(group["lr"]) for group in self.param_groups])


def probe(*rates: float, tensors: bool = False) -> Probe:
    groups = []
    for rate in rates:
        there = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": torch.tensor(rate) if tensors else rate}
        groups.append(there)
    return Probe(groups)


rates = st.floats(1e-6, 1.0)
