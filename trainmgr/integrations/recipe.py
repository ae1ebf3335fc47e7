"""What of a training with torch may be changed while it goes on, and within which bounds.

The bounds are what is safe to try on a recipe that somebody has chosen, so they lie around its values:

=============  ==========================  ====================================================================
name           default bounds, one change  why
=============  ==========================  ====================================================================
lr             start/100 to 10 x start,    A rate that is ten times too high diverges within an evaluation; one
               at most x2, at least /10    that is a hundredth learns nothing any more. Up slowly, down at once.
weight_decay   0 to 10 x start, or 0.1     Ten times the usual 0.01 of AdamW, where it starts lower.
momentum,      0.5 to 0.99, by 0.1         Averages over the last 2 to 100 gradients.
beta1
beta2          0.9 to 0.9999, by 0.05      The same of their squares: 10 to 10,000.
dropout        0 to 0.5, by 0.2            More than half is noise.
clip           start/10 to 10 x start,     The norm of gradients is known to an order of magnitude.
               at most x2, at least /2
weight_NAME    start/100 to 100 x start,   Terms out of balance differ by orders of magnitude.
               at most x10, at least /10
=============  ==========================  ====================================================================

The start of a learning rate under a scheduler is the peak that it is known to reach. Bounds are widened to hold the
value that a script starts with. A momentum or beta1 of 0 was left out on purpose, and is not declared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from trainmgr.integrations.dropout import Dropout
from trainmgr.workload.optimizers import innermost
from trainmgr.workload.workload import Workload

Bounds = Mapping[str, "tuple[float, float] | None"]
UNDER_ONE = 0.9999  # no average goes beyond: at 1 it never changes


class Range(NamedTuple):
    """Bounds of a value, and how far one change goes."""

    low: float
    high: float
    log: bool = False
    up: float | None = None
    """The largest factor of one change."""
    down: float | None = None
    """The smallest; None: 1 / ``up``."""
    share: float | None = None
    """Of the range, that one change moves the value by at most."""

    def options(self) -> dict[str, Any]:
        """As `Workload.float` and `Workload.optimizer` take it."""
        return {
            "low": self.low,
            "high": self.high,
            "scale": "log" if self.log else "linear",
            "max_ratio": self.up,
            "min_ratio": self.down,
            "max_delta": None if self.share is None else _tidy(self.share * (self.high - self.low), 2),
        }

    def around(self, *values: float) -> Range:
        """Widened to hold these."""
        return self._replace(low=min(self.low, *values), high=max(self.high, *values))


class Recipe:
    """Declares what it finds, each once. ``bounds`` has (low, high) by name, or None for what is to be left out."""

    def __init__(self, workload: Workload, bounds: Bounds | None) -> None:
        self._w = workload
        self._bounds = dict(bounds or {})
        self._found: list[str] = []

    def optimizer(self, optimizer: Any, scheduler: object) -> None:
        """Learning rate, weight decay, momentum and betas, as far as the groups have them."""
        inner = innermost(optimizer)
        start = next((rate for rate in _peaks(inner, scheduler) if rate > 0), 0.0)
        if not start and "lr" not in self._bounds:
            raise ValueError("the learning rate is 0 in every group: where may it go? Pass bounds={'lr': (low, high)}")
        kind, cycled = type(inner).__name__, scheduler if getattr(scheduler, "cycle_momentum", False) else None
        lr = Range(_tidy(start / 100), _tidy(start * 10), log=True, up=2.0, down=0.1)
        self._declare(inner, "lr", lr, f"learning rate of {kind}", scheduler=scheduler)
        decay = max([0.0, *_values(inner, "weight_decay").values()])
        decays = Range(0.0, max(0.1, _tidy(10 * decay)), share=0.5)
        self._declare(inner, "weight_decay", decays, f"weight decay of {kind}", group="regularization")
        kept = f"share of {kind}'s average of{{}} gradients that is kept in a step"
        self._average(inner, "momentum", None, Range(0.5, 0.99, share=0.2), kept.format(""), cycled)
        self._average(inner, "betas", 0, Range(0.5, 0.99, share=0.2), kept.format(""), cycled)
        self._average(inner, "betas", 1, Range(0.9, 0.9999, share=0.5), kept.format(" squared"))

    def _average(
        self, optimizer: Any, key: str, index: int | None, within: Range, description: str, scheduler: object = None
    ) -> None:
        """A share that is kept, in [0, 1): no group may come to 1 when all move by one factor."""
        values = [value for value in _values(optimizer, key, index).values() if value > 0]
        if not values:
            return
        most = UNDER_ONE * values[0] / max(values)
        name = key if index is None else f"beta{index + 1}"
        inside = within._replace(high=min(within.high, most)).around(values[0])
        self._declare(optimizer, key, inside, description, name=name, index=index, scheduler=scheduler)

    def _declare(
        self,
        optimizer: Any,
        key: str,
        within: Range,
        description: str,
        *,
        name: str = "",
        index: int | None = None,
        **more: Any,
    ) -> None:
        name = name or key
        values = _values(optimizer, key, index)
        if not values or (options := self._options(name, within)) is None:
            return
        every = len(values) == len(optimizer.param_groups)
        several = len(set(values.values())) > 1
        ratios = f"; the first of {len(values)} groups above 0, the others in ratio" if several else ""
        self._w.optimizer(
            name, optimizer, key=key, index=index, groups=None if every else list(values), **options,
            description=description + ratios, **more,
        )  # fmt: skip

    def dropout(self, model: nn.Module) -> None:
        """All dropouts of the model as one, where it has any."""
        found = Dropout(model)
        if not len(found):
            return
        within = Range(0.0, 0.5, share=0.4).around(found.get())
        places = f", in {len(found)} places" if len(found) > 1 else ""
        ratios = "; the largest of them, the others in ratio" if len(set(found.values())) > 1 else ""
        description = f"share of features zeroed in training{places}{ratios}"
        self.value("dropout", within, found.get, found.set, "regularization", description)

    def clip(self, get: Callable[[], float], set: Callable[[float], None]) -> None:
        """The norm that gradients are clipped to."""
        start = get()
        if not 0 < start < math.inf:
            raise ValueError(f"clip is {start!r}: give the largest norm of the gradients, above 0, or leave it out")
        within = Range(_tidy(start / 10), _tidy(start * 10), log=True, up=2.0)
        self.value("clip", within, get, set, "clipping", "largest L2 norm of the gradients; longer ones are shortened")

    def weights(self, weights: MutableMapping[str, float]) -> None:
        """The weights of the terms of the loss, each as ``weight_NAME``."""
        for name, start in weights.items():
            if not 0 <= start < math.inf:
                raise ValueError(f"the weight of {name} is {start!r}; a weight is a finite number from 0 on")
            within = Range(0.0, 1.0, share=0.2)
            if start > 0:
                within = Range(_tidy(start / 100), _tidy(start * 100), log=True, up=10.0)
            get, put = partial(weights.__getitem__, name), partial(weights.__setitem__, name)
            self.value(f"weight_{name}", within, get, put, "loss weight", f"weight of {name} in the loss")

    def value(
        self,
        name: str,
        within: Range,
        get: Callable[[], Any],
        set: Callable[[Any], None],
        group: str,
        description: str,
    ) -> None:
        """Any value of the script's."""
        if (options := self._options(name, within)) is not None:
            self._w.float(name, get=get, set=set, **options, group=group, description=description)

    def _options(self, name: str, within: Range) -> dict[str, Any] | None:
        """How to declare it; None where the script does not want that."""
        self._found.append(name)
        if name not in self._bounds:
            return within.options()
        wanted = self._bounds[name]
        if wanted is None:
            return None
        try:
            low, high = wanted
        except (TypeError, ValueError):
            raise ValueError(f"bounds of {name} are {wanted!r}; give (low, high), or None to leave it out") from None
        return within._replace(low=low, high=high).options()

    def complete(self) -> None:
        """All is declared. Raises ValueError where bounds name something that was not found."""
        if strange := self._bounds.keys() - set(self._found):
            raise ValueError(f"bounds are given for {min(strange)!r}; found were {', '.join(self._found)}")


def _peaks(optimizer: Any, scheduler: Any) -> list[float]:
    """The highest learning rate that each group is known to come to."""
    cycled = getattr(scheduler, "max_lrs", ())  # of CyclicLR; OneCycleLR notes it in the groups
    return [
        max(
            float(rate or 0.0)
            for rate in (*(group.get(key) for key in ("lr", "initial_lr", "max_lr")), *cycled[i : i + 1])
        )
        for i, group in enumerate(optimizer.param_groups)
    ]


def _tidy(bound: float, digits: int = 3) -> float:
    """Few digits are enough for a bound, and easier to read."""
    return float(f"{bound:.{digits}g}")


def _values(optimizer: Any, key: str, index: int | None = None) -> dict[int, float]:
    """By the number of each group that has a number there."""
    found = {}
    for i, group in enumerate(optimizer.param_groups):
        value = group.get(key)
        if index is not None:
            value = value[index] if isinstance(value, tuple | list) and len(value) > index else None
        if value is not None and not isinstance(value, bool):
            found[i] = float(value)
    return found
