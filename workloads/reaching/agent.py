"""Who acts: the actor and the critic that PPO trains. A checkpoint holds their state dict, and no class by name."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn as nn
from numpy.typing import NDArray
from torch import Tensor

from reaching.task import ACTIONS, OBSERVATIONS

FIRST_LOG_STD = -0.7  # a standard deviation of 0.5
LOG_STD_BOUNDS = (-3.0, 0.0)  # standard deviations of 0.05 and 1: actions are cut off at 1, wider noise is lost


class Agent(nn.Module):
    """Actor and critic, 128-128 tanh each; Gaussian actions, their standard deviation the same in every state."""

    def __init__(self, orthogonal: bool) -> None:
        super().__init__()
        self.actor, self.critic = perceptron(ACTIONS), perceptron(1)
        self.log_std = nn.Parameter(torch.full((ACTIONS,), FIRST_LOG_STD))
        if orthogonal:
            for net, last in ((self.actor, 0.01), (self.critic, 1.0)):
                layers = [layer for layer in net if isinstance(layer, nn.Linear)]
                for layer in layers:
                    nn.init.orthogonal_(layer.weight, last if layer is layers[-1] else math.sqrt(2))
                    nn.init.zeros_(layer.bias)

    def mean(self, observations: Tensor) -> Tensor:  # [B, 14] -> [B, 2]
        return torch.tanh(self.actor(observations))

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:  # [B, 14], [B, 2] -> [B]
        z = (actions - self.mean(observations)) * torch.exp(-self.log_std)
        return -(0.5 * z.square() + self.log_std).sum(-1) - ACTIONS * 0.5 * math.log(2 * math.pi)

    def value(self, observations: Tensor) -> Tensor:  # [B, 14] -> [B]
        values: Tensor = self.critic(observations)
        return values.squeeze(-1)

    def entropy(self) -> Tensor:
        """Of the Gaussian, before actions are cut off; nats, both joints together."""
        return self.log_std.sum() + ACTIONS * 0.5 * math.log(2 * math.pi * math.e)

    @torch.no_grad()
    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean actions [K, 2]."""
        actions: NDArray[np.float32] = self.mean(torch.from_numpy(observations)).numpy()
        return actions

    def std(self) -> NDArray[np.float32]:
        """[2]"""
        found: NDArray[np.float32] = self.log_std.detach().exp().numpy()
        return found


def perceptron(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(OBSERVATIONS, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, outputs)
    )
