"""Every dropout of a model, as one probability."""

from __future__ import annotations

import torch
from torch import nn

KINDS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Dropout:
    """The dropouts of a model, however deep, as one value: the largest probability; the others keep their ratio to it.

    Found are torch's dropout modules (``p``), and what `nn.MultiheadAttention` and an `nn.LSTM`, `nn.GRU` or `nn.RNN`
    of several layers drop (``dropout``). One that is at 0 beside others that are not stays at 0: it was switched off on
    purpose. Where all are at 0, all get the value. A call of ``functional.dropout`` with a number of its own cannot be
    found.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [(module, name) for module in model.modules() if (name := _attribute(module))]
        self._ratios = self._measured() or [1.0] * len(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def values(self) -> list[float]:
        """Of each module, in the order of ``model.modules()``."""
        return [float(getattr(module, name)) for module, name in self._places]

    def get(self) -> float:
        """The largest of them, in [0, 1]."""
        return max(self.values())

    def set(self, p: float) -> None:
        """Change all of them, from the next forward pass on.

        Compiled code has the old probability in it as a constant, and would be compiled once more for each new one, at
        most ``torch._dynamo.config.recompile_limit`` times (8); then it runs uncompiled, or raises with
        ``fullgraph=True``. So what was compiled is dropped instead, and compiled anew when it is called.
        """
        if p == self.get():
            return
        self._ratios = self._measured() or self._ratios
        for (module, name), ratio in zip(self._places, self._ratios, strict=True):
            setattr(module, name, p * ratio)
        torch.compiler.reset()

    def _measured(self) -> list[float]:
        """To the largest; empty where all are at 0."""
        values = self.values()
        highest = max(values, default=0.0)
        return [value / highest for value in values] if highest else []


def _attribute(module: nn.Module) -> str:
    """Where a module keeps its probability; "" for one that drops nothing."""
    if isinstance(module, KINDS):
        return "p"
    layered = isinstance(module, nn.RNNBase) and module.num_layers > 1  # one layer alone drops nothing
    return "dropout" if layered or isinstance(module, nn.MultiheadAttention) else ""
