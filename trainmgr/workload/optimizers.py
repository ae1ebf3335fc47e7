"""A value in an optimizer's parameter groups that stays changed, whatever else writes into them between two updates.

Most schedulers compute the learning rate anew at each step, from a base of their own, and write it into the groups: a
value that somebody else has put there is gone one step later. So nothing is put there. What was asked for is kept here,
beside the value that the script itself had at that moment; each group is multiplied by the quotient of the two right
before the optimizer's step and gets back what it had right after it. No scheduler, and no checkpoint of the optimizer,
ever sees a managed value, and the ratios between groups are those that the script gives them.

To show the managed value in the groups, if only where no scheduler is at work, was tried and given up: a rate that is
reduced by hand is multiplied by one script and computed anew by another, and nobody can tell which it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

SIMULATED = 20_000  # steps of a scheduler that are played through, where its end cannot be computed at once
WRAPPED = ("optimizer", "_optimizer", "base_optimizer", "_base_optimizer")  # accelerate, Lightning, SAM, Lookahead
MARKS = {("lr", None): "initial_lr", ("momentum", None): "max_momentum", ("betas", 0): "max_momentum"}  # a scheduler's
OWNERS = "_trainmgr"  # the attribute of an optimizer that knows who manages it

Kept = list[tuple[Any, Any]]  # for each group what stands there, and a copy of it


class Optimizer(Protocol):
    """Any that keeps its hyperparameters as those of torch do."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...


class Managed:
    """``param_groups[i][key]`` of an optimizer as one value: the one in effect in the update.

    Where that is a tuple, as betas are, ``index`` is the place of the value in it. ``groups`` are indices; None means
    all that there are at the moment, later ones too. The value is that of the first of them that is not 0. ``low`` and
    ``high`` bound what comes of a change when the script's own schedule moves on: a value leaves them only as far as
    the script's own does. ``scheduler`` is the script's, where it has one: then it is known what it will end on.
    ``moves`` says that the script moves the value by itself.

    An optimizer without step hooks (not one of torch) is written into instead, and keeps the change only as long as
    nobody else writes there.
    """

    def __init__(
        self,
        optimizer: Any,
        key: str,
        low: float,
        high: float,
        groups: Sequence[int] | None,
        scheduler: Any = None,
        *,
        index: int | None = None,
        moves: bool = False,
    ) -> None:
        self._optimizer = innermost(optimizer)
        self._scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate's wrapper
        self._key, self._index, self._low, self._high = key, index, low, high
        self._indices = list(groups) if groups is not None else None
        self._moves = moves
        self._asked: tuple[float, float] | None = None  # a value, and what the script itself had at that moment
        self._saved: Kept = []  # of the groups, during a step
        self._put: list[Any] = []  # what they hold meanwhile
        self._factor: Any = None  # a tensor, where the rates are
        self._ratios: list[float] = []  # of groups that are written into
        self._reference: int | None = None
        self._last: float | None = None  # what the script itself had at the last look
        self._begun: tuple[int, int] | None = None  # a step, and the scheduler's count then
        self._plan: tuple[int, float | None] | None = None  # the scheduler's count at the end, and the value there
        self._hooks = hasattr(self._optimizer, "register_step_pre_hook")
        self._handles: list[Any] = []
        self._idle = -1  # the number of steps at which it was found that there are no more
        self.steps = 0
        """Steps of the optimizer since `watch` that used what is in force."""
        for i in self._indices or ():
            self._read(self._optimizer.param_groups[i])  # raises for a wrong index or key
        if any(_is_tensor(self._read(group)) for group in self._groups()):
            self._hook()  # now: a step that is captured in a graph calls nobody afterwards
            self._scale()

    # -- what is in effect -------------------------------------------------------------------------------------------

    def get(self) -> float:
        """The value in effect in the next update."""
        return self._effective([self.own()])[0]

    def values(self) -> list[float]:
        """The same of every group."""
        return self._effective(self._bases())

    def own(self) -> float:
        """What the script itself has there: the value without us. Raises ValueError where the groups are gone."""
        bases = self._bases()
        if not bases:
            raise ValueError("the optimizer has none of these groups any more")
        return bases[self._refer(bases)]

    @property
    def pair(self) -> tuple[float, float] | None:
        """What was asked for, and what the script itself had then; None while nothing is in force."""
        return self._asked

    def _effective(self, bases: list[float]) -> list[float]:
        """What the update uses where the script has these."""
        if self._asked is None:
            return bases
        (wanted, at), now = self._asked, self.own()
        if now == 0:
            return [base * (wanted / at) for base in bases]
        value = self._bounded(wanted * (now / at), now)
        return [value * (base / now) for base in bases]

    def _bounded(self, value: float, own: float) -> float:
        return min(max(value, min(self._low, own)), max(self._high, own))

    @property
    def moves(self) -> bool:
        """Whether a scheduler is known to move the value, as far as the groups or the script tell."""
        if self._moves or self._scheduler is not None:
            return True
        mark = MARKS.get((self._key, self._index))
        return any(mark in group for group in self._groups() if mark)

    def watch(self) -> None:
        """Count the optimizer's steps from now on, and remember what the script begins with.

        Whoever managed the same value of the same groups before, for a training that is over, does so no more.
        """
        attributes = getattr(self._optimizer, "__dict__", {})  # a class with slots has none, and nobody to find there
        for other in list(attributes.get(OWNERS, ())):
            if other.shares(self):
                other.release()
        attributes.setdefault(OWNERS, []).append(self)
        self._hook()
        with contextlib.suppress(ValueError):  # its groups are gone since it was declared
            self._last = self.own()

    def look(self) -> bool:
        """Whether the script is seen to move a learning rate by itself, which nothing had told of: once."""
        own, before, known = self.own(), self._last, self.moves
        self._last = own
        if self._key == "lr" and not known and before not in (None, own):
            self._moves = True
        return self._moves and not known

    # -- changes -----------------------------------------------------------------------------------------------------

    def set(self, value: float) -> None:
        """Put a value into effect, from the next update on.

        Raises ValueError while a schedule has the value at 0: there is nothing that can be multiplied then.
        """
        base, self._last = self.own(), None
        if self._idle == self.steps:
            raise ValueError("no step of its optimizer has used the change before: the script trains with another one")
        if base == 0 and self.moves:
            raise ValueError(f"{self._key} is 0 at this step by the script's own schedule, and is changed by a factor")
        if base == 0 or not self._hooks:
            self._write(value, base)
        else:
            self.resume((value, base))

    def resume(self, pair: tuple[float, float]) -> None:
        """Put back into effect what an earlier life of this run had asked for, as `pair` has it."""
        if not self._hooks:
            self._write(pair[0], self.own())
            return
        self._asked = pair
        self._hook()
        self._tune()

    def memo(self) -> Callable[[], None]:
        """What puts everything back as it is now, in the groups too: for whoever restores an optimizer in between.

        The learning rate of every group goes with it: where a scheduler multiplies what is there, one from an older
        checkpoint would set it on another course.
        """
        asked = self._asked
        kept: Kept = [(there, _copied(there)) for there in map(self._read, self._groups())]
        rates: Kept = [(g.get("lr"), _copied(g.get("lr"))) for g in self._optimizer.param_groups if self._key != "lr"]

        def restore() -> None:
            self._asked = asked
            self._tune()
            for group, (there, value) in zip(self._groups(), kept, strict=False):
                self._store(group, _filled(there, value))  # the same tensor, if it is one
            for group, (there, value) in zip(self._optimizer.param_groups, rates, strict=False):
                if value is not None:
                    group["lr"] = _filled(there, value)

        return restore

    def drop(self) -> None:
        """No step uses what was asked for: nothing is in force, and nothing can be, until there is one again."""
        self._asked, self._idle = None, self.steps
        self._tune()

    def release(self) -> None:
        """Manage it no more: the groups are the script's."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self in (owners := getattr(self._optimizer, "__dict__", {}).get(OWNERS, [])):
            owners.remove(self)

    def leave(self) -> None:
        """The training is over: the groups get what was in effect, as everybody expects who looks at them then."""
        if self._asked is not None:
            for group, value in zip(self._groups(), self.values(), strict=True):
                self._store(group, _filled(self._read(group), value))
            self._asked = self._last = None
            self._tune()

    def _write(self, value: float, base: float) -> None:
        """Into the groups, in the ratio that they have, or had before all were set to 0."""
        self._asked, groups = None, self._groups()
        if base:
            self._ratios = [float(self._read(group)) / base for group in groups]
        ratios = self._ratios if len(self._ratios) == len(groups) else [1.0] * len(groups)
        for group, ratio in zip(groups, ratios, strict=True):
            self._store(group, _filled(self._read(group), value * ratio))

    # -- the optimizer's step ----------------------------------------------------------------------------------------

    def _hook(self) -> None:
        if self._hooks and not self._handles:
            self._handles = [
                self._optimizer.register_step_pre_hook(self._before),
                self._optimizer.register_step_post_hook(self._after),
            ]

    def _before(self, *_: Any) -> None:
        try:
            if self._saved:  # an update that raised did not get there
                self._give_back()
            if self._asked is not None or self._factor is not None:
                self._scaled()
        except Exception:  # whatever the script has made of its groups: training comes first
            self._give_back()

    def _scaled(self) -> None:
        groups, scale = self._groups(), self._scale()
        plain = scale is None or not all(_is_tensor(self._read(group)) for group in groups)
        wanted = self._effective(self._bases()) if plain else []
        self._saved = [(there, _copied(there)) for there in map(self._read, groups)]
        for i, group in enumerate(groups):
            there = self._read(group)
            if scale is not None and _is_tensor(there):
                there.detach().mul_(scale)
            else:
                self._store(group, _filled(there, wanted[i]))
            self._put.append(self._read(group))

    def _after(self, *_: Any) -> None:
        intact = not self._saved or all(
            self._read(group) is put for group, put in zip(self._groups(), self._put, strict=False)
        )
        self.steps += intact  # else a hook of the script's own came after ours
        self._give_back()

    def _give_back(self) -> None:
        for group, (there, value), put in zip(self._groups(), self._saved, self._put, strict=False):
            if self._read(group) is put:
                self._store(group, _filled(there, value))
        self._saved, self._put = [], []

    def _scale(self) -> Any:
        """What rates that are tensors are multiplied by: a tensor, for a step that was captured in a graph looks it up
        at each replay, and calls none of this. None where the rates are plain numbers."""
        groups = self._groups()
        own: Any = self._read(groups[min(self._reference or 0, len(groups) - 1)]) if groups else None
        if not _is_tensor(own):
            return None
        own = own.detach()
        if self._factor is None:
            self._factor = own.clone()
            self._tune()
        value = (own * self._factor).minimum(own.clamp(min=self._high)).maximum(own.clamp(max=self._low))
        return (value / own).where(own != 0, self._factor)

    def _tune(self) -> None:
        if self._factor is not None:
            self._factor.fill_(self._asked[0] / self._asked[1] if self._asked else 1.0)

    # -- where the schedule goes -------------------------------------------------------------------------------------

    def planned(self, step: int, total: int | None) -> float | None:
        """The value in effect at the end of the run if nothing more is changed; None where nobody can know.

        ``step`` and ``total`` count training steps: how many steps the scheduler takes in one of them is seen since the
        first call.
        """
        count = counted(self._scheduler)
        if count is None or total is None:
            return None
        if self._begun is None:
            self._begun = (step, count)
        begun, before = self._begun
        if step <= begun or count <= before:
            return None
        end = count + round((total - step) * (count - before) / (step - begun))
        if self._plan is None or abs(self._plan[0] - end) > 0.01 * end:
            try:
                groups = ended(self._scheduler, end)
                at = self._reference or 0
                last = groups[self._indices[at] if self._indices is not None else at] if groups else None
                self._plan = (end, float(self._read(last)) if last else None)
            except Exception:  # somebody's own scheduler
                self._plan = (end, None)
        value = self._plan[1]
        if value is None or self._asked is None:
            return value
        return self._bounded(self._asked[0] * (value / self._asked[1]), value)

    # -- the groups --------------------------------------------------------------------------------------------------

    def shares(self, other: Managed) -> bool:
        """Whether both have the same value of the same group: two factors on one value are none of the two."""
        if self._optimizer is not other._optimizer or (self._key, self._index) != (other._key, other._index):
            return False
        return None in (self._indices, other._indices) or not set(self._indices or ()).isdisjoint(other._indices or ())

    @property
    def lasts(self) -> bool:
        """Whether a change survives whatever the script writes into the groups."""
        return self._hooks

    def _groups(self) -> list[dict[str, Any]]:
        """Those of this moment: a restored optimizer has new ones, and a group may be gone."""
        every: list[dict[str, Any]] = self._optimizer.param_groups
        return every if self._indices is None else [every[i] for i in self._indices if i < len(every)]

    def _bases(self) -> list[float]:
        if self._saved:  # somebody looks in the middle of a step, or an update has raised
            return [float(value) for _, value in self._saved]
        return [float(self._read(group)) for group in self._groups()]

    def _read(self, group: dict[str, Any]) -> Any:
        """What a group has there, a number or a tensor."""
        return group[self._key] if self._index is None else group[self._key][self._index]

    def _store(self, group: dict[str, Any], value: Any) -> None:
        """Others may have the other places of a tuple, so only one is exchanged."""
        if self._index is None:
            group[self._key] = value
        else:
            there = group[self._key]
            group[self._key] = (*there[: self._index], value, *there[self._index + 1 :])

    def _refer(self, bases: list[float]) -> int:
        """The group that stands for all: the same as before, unless that is gone or was set to 0 for good."""
        now = self._reference
        if now is None or now >= len(bases) or not self._alive(now, bases):
            self._reference = next((i for i in range(len(bases)) if self._alive(i, bases)), None)
        return self._reference or 0

    def _alive(self, i: int, bases: list[float]) -> bool:
        """Whether a group is not at 0, but for a warm-up that begins there."""
        begins = self._groups()[i].get("initial_lr", 0.0) if self._key == "lr" and i < len(self._groups()) else 0.0
        return bool(bases[i] or float(begins))


def innermost(optimizer: Any) -> Any:
    """The optimizer whose step updates the weights, in a wrapper that carries it: its hooks are called."""
    while True:
        inner = [getattr(optimizer, "__dict__", {}).get(name) for name in WRAPPED]
        found = next((one for one in inner if hasattr(one, "param_groups") and hasattr(one, "step")), None)
        if found is None:
            return optimizer
        optimizer = found


def counted(scheduler: Any) -> int | None:
    """How many steps a scheduler of torch has taken; None for anything else."""
    first, *_ = getattr(scheduler, "_schedulers", ()) or (scheduler,)  # a ChainedScheduler keeps no count
    count = getattr(scheduler, "last_epoch", getattr(first, "last_epoch", None))
    return count if isinstance(count, int) else None


def ended(scheduler: Any, count: int) -> list[dict[str, Any]] | None:
    """The groups when a scheduler of torch has counted to ``count``, from a copy of it: rates, and momentum if cycled.

    None where that depends on what is still to be measured, or would take too long to play through.
    """
    import warnings  # seldom needed

    there = SimpleNamespace(param_groups=[{**group, "params": []} for group in scheduler.optimizer.param_groups])
    for group in there.param_groups:
        group["lr"] = float(group["lr"])
    there.step = SimpleNamespace(_wrapped_by_lr_sched=True)
    twin = _twin(scheduler, there)
    kind = type(scheduler).__name__
    count = min(count, getattr(scheduler, "total_steps", count))  # OneCycleLR goes no further
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(twin, "_get_closed_form_lr") or kind in CLOSED:
            twin.step(count)
        elif kind in MEASURED or count - (counted(twin) or 0) > SIMULATED:
            return None
        else:
            for _ in range(count - (counted(twin) or 0)):
                twin.step()
    groups: list[dict[str, Any]] = there.param_groups
    return groups


CLOSED = ("LambdaLR", "CosineAnnealingWarmRestarts", "OneCycleLR", "CyclicLR")  # computed from the count alone
MEASURED = ("ReduceLROnPlateau", "GreedyLR")  # ... and from what is measured


def _twin(scheduler: Any, optimizer: Any) -> Any:
    """A copy that works on another optimizer. What it calls (functions of the script) is not copied."""
    import copy  # seldom needed, and slow to import

    twin = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list | dict):
            setattr(twin, name, copy.copy(value))
    twin.optimizer = optimizer
    if inner := getattr(scheduler, "_schedulers", None):
        twin._schedulers = [_twin(part, optimizer) for part in inner]
    return twin


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "fill_")


def _copied(value: Any) -> Any:
    return value.detach().clone() if _is_tensor(value) else value


def _filled(there: Any, value: Any) -> Any:
    """What a group is to hold: ``value``, in the tensor that is there, if it is one."""
    if not _is_tensor(there):
        return value
    there.detach().copy_(value) if _is_tensor(value) else there.detach().fill_(value)
    return there
