"""What a checkpoint of torch holds, and how it comes back into a training that goes on."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainmgr.workload.optimizers import innermost
from trainmgr.workload.workload import Stateful

MODEL, OPTIMIZER = "model", "optimizer"
SHARDED = ("FullyShardedDataParallel", "FSDPModule")
ZERO_AT_FIRST = {  # state that an optimizer begins with at 0
    *("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "grad_avg"),
    "momentum_buffer",
}


class Saved:
    """A model, its optimizer and what else belongs to them, in one file.

    A file has the state of the model without its wrappers (`torch.compile`, `DistributedDataParallel`), that of the
    optimizer, and that of each of ``others`` under its name. It holds tensors and plain values only, so that it is read
    with ``weights_only=True`` on any device.

    `load` brings back weights, buffers and the optimizer's moments and step counts, into the tensors that are there:
    who has captured or compiled something with them goes on. Whatever stands in the parameter groups (learning rates,
    weight decay, betas, what a scheduler notes there) stays as it is, and no random state is touched: a rollback takes
    back what was learned, neither the recipe nor the time.
    """

    def __init__(self, model: nn.Module, optimizer: Any, others: Mapping[str, Stateful]) -> None:
        self._model, self._optimizer, self._others = bare(model), optimizer, dict(others)
        if taken := self._others.keys() & {MODEL, OPTIMIZER}:
            raise ValueError(f"{min(taken)!r} is saved already: give the other another name")
        for name, other in self._others.items():
            if not (hasattr(other, "state_dict") and hasattr(other, "load_state_dict")):
                raise TypeError(f"{name!r} is a {type(other).__name__}, without state_dict and load_state_dict")
        self._readable = False  # whether it was seen that what is saved can be read
        self._all_is_saved()

    def save(self, path: Path) -> None:
        """Write all of it to a file. Raises ValueError where that could not be read again, for objects in a state."""
        optimizer = dict(self._optimizer.state_dict())
        if "param_groups" in optimizer:
            optimizer["param_groups"] = [_plain_group(group) for group in optimizer["param_groups"]]
        others = {name: other.state_dict() for name, other in self._others.items()}
        torch.save({MODEL: self._model.state_dict(), OPTIMIZER: optimizer, **others}, path)
        if not self._readable:  # known by the first one, before anything is lost; no tensor is read for it
            try:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except pickle.UnpicklingError as error:
                why = str(error).split("GLOBAL ")[-1].partition(" was not")[0]
                raise ValueError(
                    f"a state holds what is neither tensor nor plain value ({why}): nobody could go back to it"
                ) from error
            self._readable = True

    def load(self, path: Path) -> None:
        """Bring it back. Raises ValueError for a file that lacks something, RuntimeError where names or shapes of the
        model differ (strict): what is in the tensors then is no state to train on."""
        saved = torch.load(path, map_location="cpu", weights_only=True)
        wanted = [MODEL, OPTIMIZER, *self._others]
        if not isinstance(saved, dict) or (missing := [name for name in wanted if name not in saved]):
            found = ", ".join(map(str, saved)) if isinstance(saved, dict) else f"a {type(saved).__name__}"
            lacking = ", ".join(missing) if isinstance(saved, dict) else ", ".join(wanted)
            raise ValueError(f"{path.name} holds {found}, and not {lacking}: it was saved by another script")
        self._model.load_state_dict(saved[MODEL])
        self._load_optimizer(saved[OPTIMIZER])
        for name, other in self._others.items():
            other.load_state_dict(saved[name])

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        """Its state, and not its groups. What has a tensor already is copied into it, without a second one beside."""
        inner = innermost(self._optimizer)
        recipe = [{key: value for key, value in group.items() if key != "params"} for group in inner.param_groups]
        before, numbers = dict(inner.state), {p: number for number, p in enumerate(_parameters(inner))}
        state = dict(saved.get("state", {}))
        there = {p: state.pop(n) for p, n in numbers.items() if n in state and _fits(before.get(p), state[n])}
        self._optimizer.load_state_dict(self._fitted({**saved, "state": state} if "state" in saved else saved))
        for group, own in zip(inner.param_groups, recipe, strict=True):
            for key in group.keys() - own.keys() - {"params"}:
                del group[key]
            group.update(own)  # the very objects: a step that was captured in a graph reads its rate from that tensor
        for parameter, new in there.items():
            inner.state[parameter] = _filled(before[parameter], new)
        for group in inner.param_groups:
            if group.get("capturable"):
                for parameter in group["params"]:
                    if not inner.state.get(parameter) and (old := before.get(parameter)):
                        inner.state[parameter] = _begun(old)

    def _fitted(self, saved: dict[str, Any]) -> dict[str, Any]:
        """With the groups that were added since: they are trained on from where a fresh optimizer begins."""
        if "param_groups" not in saved:
            return saved
        groups, now = saved["param_groups"], self._optimizer.state_dict()["param_groups"]
        then, here = ([len(group["params"]) for group in found] for found in (groups, now))
        if then != here[: len(then)]:
            raise ValueError(
                f"the checkpoint's optimizer has groups of {then} tensors, the one that trains has {here}: only new "
                "groups may have come since"
            )
        return {**saved, "param_groups": [*groups, *now[len(groups) :]]}

    def _all_is_saved(self) -> None:
        """Raises ValueError where the optimizer trains what no checkpoint would hold."""
        modules = [self._model, *(other for other in self._others.values() if isinstance(other, nn.Module))]
        known = {id(parameter) for module in modules for parameter in module.parameters()}
        strange = [tuple(p.shape) for p in _parameters(innermost(self._optimizer)) if id(p) not in known]
        if strange:
            shapes = ", ".join(map(str, strange[:3])) + (", ..." if len(strange) > 3 else "")
            raise ValueError(
                f"the optimizer trains {len(strange)} tensors that are not the model's (shapes {shapes}), so that no "
                "checkpoint would have them: pass all that is trained as one, model=nn.ModuleList([model, ...])"
            )


def bare(model: nn.Module) -> nn.Module:
    """A model without what `torch.compile` and data parallelism have wrapped around it, in whatever order."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        else:
            break
    for module in model.modules():
        if any(kind.__name__ in SHARDED for kind in type(module).__mro__):
            raise TypeError(
                "the model is sharded (FSDP), and what is saved here is saved by rank 0 alone: declare with "
                "w.optimizer(...), and give Checkpoints(w, save, load, suffix='') a save and a load that all ranks "
                "take part in, of torch.distributed.checkpoint"
            )
    return model


def _parameters(optimizer: Any) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _plain_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """What can be read back without running code; numbers of numpy and tensors as numbers. For people and other tools:
    a load takes nothing from it but the number of tensors."""
    return {key: found for key, value in group.items() if (found := _plain(value)) is not None or value is None}


def _plain(value: Any) -> Any:
    """None for what is neither a number, a switch, a text, nor a sequence of those."""
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return None if None in parts else type(value)(parts) if type(value) in (list, tuple) else parts
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "ndim", None) == 0:
        value = item()
    return value if isinstance(value, bool | int | float | str) else None


def _fits(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> bool:
    """Whether the state of a parameter can be copied into what is there, one tensor into another."""
    if not old or old.keys() != new.keys():
        return False
    for one, other in ((old[key], new[key]) for key in old):
        if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
            if not all(isinstance(value, bool | int | float | str | None) for value in (one, other)):
                return False
        elif one.shape != other.shape or one.dtype != other.dtype:
            return False
    return True


def _filled(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in new.items():
        if isinstance(value, torch.Tensor):
            with torch.no_grad():
                old[key].copy_(value)
        else:
            old[key] = value
    return old


def _begun(state: dict[str, Any]) -> dict[str, Any]:
    """The state of before the first step, in the same tensors: a captured step goes on with them."""
    if strange := state.keys() - ZERO_AT_FIRST:
        raise ValueError(
            f"the checkpoint is from before the optimizer's first step, and what {', '.join(sorted(strange))} began "
            "with, in a step that was captured, is not known: begin the checkpoints after a first step"
        )
    for value in state.values():
        if isinstance(value, torch.Tensor):
            value.zero_()
    return state
