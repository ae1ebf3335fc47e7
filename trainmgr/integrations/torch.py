"""A training loop of plain torch: `Workload.torch`."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import torch
from torch import nn

from trainmgr.integrations.recipe import Bounds, Recipe
from trainmgr.integrations.saved import Saved, bare
from trainmgr.workload.checkpoints import Checkpoints
from trainmgr.workload.optimizers import Optimizer, innermost
from trainmgr.workload.workload import Stateful, Workload

SCALER = "scaler"


class TorchCheckpoints(Checkpoints):
    """The checkpoints of a training with torch, with all declared that was found in it.

        w = Workload("mine", objective="val_loss", total_steps=EPOCHS * len(batches))
        with w, w.torch(optimizer, model, scheduler=scheduler) as keep:
            for step in w.steps():
                ...
                optimizer.step()
                scheduler.step()
                keep.step(step, {"loss": loss})
                if step % 100 == 0:
                    keep.eval(step, {"val_loss": evaluate()})

    ``optimizer`` is one of torch (or a wrapper that carries one), ``model`` all that it trains, compiled and data
    parallel or not. What may be changed, by which name and how far, is listed in `trainmgr.integrations.recipe`:
    learning rate, weight decay, momentum or betas, and every dropout. Declare further parameters with ``w.float`` and
    its siblings before the ``with``, which begins the training.

    ``scheduler``: that of the learning rate; then managers know what the rate will end on. Never saved.
    ``scaler``: the `GradScaler`. Its scale is saved and brought back with the weights that it fits: after a divergence,
    which has halved it each step, gradients would vanish for thousands of steps.
    ``clip``: the norm to clip gradients to. The script clips to `clip`, which is the value in effect.
    ``weights``: of the terms of the loss, by name, at least 0. The script multiplies by those in `weights`, which is
    this very mapping.
    ``also``: what else is saved and loaded, by name: averaged weights that are evaluated, say.
    ``bounds``: (low, high) by the name of a parameter, in place of the default; None leaves it out, for the script to
    declare it or nobody.
    ``every``: evaluations from one "last" checkpoint to the next.

    What a rollback brings back is described in `trainmgr.integrations.saved`. A resume is the script's own: `load` and
    ``resume_path()`` bring back the same, and the scheduler's state and the step are to be saved by the script.

    Raises TypeError for what is not of torch, and ValueError where the optimizer trains something that no checkpoint
    would have, where bounds name what was not found, or where a value does not lie in its bounds.
    """

    def __init__(
        self,
        workload: Workload,
        optimizer: Optimizer,
        model: object,
        *,
        scheduler: object = None,
        scaler: Stateful | None = None,
        clip: float | None = None,
        weights: MutableMapping[str, float] | None = None,
        also: Mapping[str, Stateful] | None = None,
        bounds: Bounds | None = None,
        every: int = 1,
    ) -> None:
        if not isinstance(innermost(optimizer), torch.optim.Optimizer):
            raise TypeError(
                f"optimizer is a {_kind(optimizer)}; give one of torch.optim, then the model. Several are declared one "
                "by one with w.optimizer(...), and saved by a Checkpoints(w, save, load)"
            )
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model is a {_kind(model)}; give the torch.nn.Module that the optimizer trains, several of them as "
                "one: nn.ModuleList([...])"
            )
        self._clip = None if clip is None else float(clip)
        self.weights: MutableMapping[str, float] = {} if weights is None else weights
        """Of the terms of the loss, as they are in effect."""
        others = dict(also or {}) | ({} if scaler is None else {SCALER: scaler})
        saved = Saved(model, optimizer, others)
        recipe = Recipe(workload, bounds)
        recipe.optimizer(optimizer, scheduler)
        recipe.dropout(bare(model))
        if clip is not None:
            recipe.clip(lambda: self.clip, self._set_clip)
        recipe.weights(self.weights)
        recipe.complete()
        self.load = saved.load
        """Load a checkpoint into what trains: for a resume."""
        super().__init__(workload, saved.save, saved.load, every=every)

    @property
    def clip(self) -> float:
        """The norm that gradients are to be clipped to in the next step. Raises ValueError where none was named."""
        if self._clip is None:
            raise ValueError("no norm was named to clip to: w.torch(optimizer, model, clip=1.0)")
        return self._clip

    def _set_clip(self, norm: float) -> None:
        self._clip = norm


def _kind(thing: object) -> str:
    return type(thing).__name__
