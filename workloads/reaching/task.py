"""The task: observation, pieces of the reward, and how an episode ends. For any number of arms at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reaching.arm import Arms
from reaching.geometry import SPEED, Array
from reaching.scenes import SUCCESS_RADIUS, Scene

MAX_STEPS = 120  # control steps of an episode
OBSERVATIONS, ACTIONS = 14, 2
ACTION_COST = 0.01  # per squared rad/s
CLEARANCE_COST, SAFE_CLEARANCE = 0.05, 0.08  # the cost at clearance 0; metres from which on there is none
GOING, SUCCESS, COLLISION, TIMEOUT = range(4)  # outcomes


class Pieces(NamedTuple):
    """What a step's reward is made of, before the weights; [K] each."""

    progress: Array
    """By how much the hand came nearer to the target, metres."""
    success: Array
    """1 where it reached the target without ever having touched the obstacle."""
    collision: Array
    """1 where a link touched the obstacle."""
    action_cost: Array
    """0.01 |a|^2 of the velocities driven."""
    clearance_cost: Array
    """0.05 max(0, 0.08 - clearance) / 0.08; more than 0.05 inside of the obstacle."""

    def weighted(self, progress_scale: float, success_bonus: float, collision_penalty: float) -> Array:
        """The reward [K]."""
        return (
            progress_scale * self.progress
            + success_bonus * self.success
            - collision_penalty * self.collision
            - self.action_cost
            - self.clearance_cost
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """All that the rest of an episode depends on."""

    scene: Scene
    physics: Array
    steps: int


class Reaching:
    """``count`` episodes side by side. Nothing begins by itself: `begin` one, `advance` it until its outcome."""

    def __init__(self, count: int) -> None:
        self.arms = Arms(count)
        self.scenes: list[Scene | None] = [None] * count
        self.target: Array = np.zeros((count, 2))
        self.obstacle: Array = np.zeros((count, 2))
        self.radius: Array = np.zeros(count)
        self.distance: Array = np.zeros(count)  # of the hand from the target
        self.steps: NDArray[np.int64] = np.zeros(count, dtype=np.int64)
        self._all = np.arange(count)

    def begin(self, i: int, scene: Scene) -> None:
        """Begin an episode in slot i."""
        self.arms.place(i, scene)
        self._enter(i, scene, 0)

    def advance(self, actions: Array, which: Sequence[int] | None = None) -> tuple[Pieces, NDArray[np.int8]]:
        """One control step of the slots ``which`` (default: all): actions [K, 2] to pieces [K] and outcomes [K].

        Velocities beyond 1 rad/s are cut off; those of a policy that diverged (NaN) are -1. An episode that is over
        must not be advanced.
        """
        slots = self._all if which is None else np.asarray(which)
        actions = np.fmin(np.fmax(actions, -SPEED), SPEED).astype(np.float64, copy=False)
        touched = self.arms.drive(actions, slots.tolist())
        self.steps[slots] += 1
        before = self.distance[slots]
        distance = self.distance[slots] = np.hypot(*(self.arms.hand[slots] - self.target[slots]).T)
        reached = (distance <= SUCCESS_RADIUS) & ~touched
        outcome = np.full(len(slots), GOING, dtype=np.int8)
        outcome[self.steps[slots] >= MAX_STEPS] = TIMEOUT
        outcome[reached] = SUCCESS
        outcome[touched] = COLLISION
        near = np.maximum(0.0, SAFE_CLEARANCE - self.arms.clearance[slots]) / SAFE_CLEARANCE
        pieces = Pieces(
            progress=before - distance,
            success=reached.astype(np.float64),
            collision=touched.astype(np.float64),
            action_cost=ACTION_COST * np.square(actions).sum(axis=1),
            clearance_cost=CLEARANCE_COST * near,
        )
        return pieces, outcome

    def observe(self, which: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Observations [K, 14]: sin and cos of the joint angles (4), target, obstacle, its radius, hand, the way from
        hand to target, clearance."""
        slots = self._all if which is None else np.asarray(which)
        angles, hand, target = self.arms.angles[slots], self.arms.hand[slots], self.target[slots]
        columns = (
            np.sin(angles),
            np.cos(angles),
            target,
            self.obstacle[slots],
            self.radius[slots, None],
            hand,
            target - hand,
            self.arms.clearance[slots, None],
        )
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def moment(self, i: int) -> Moment:
        """What `resume` needs to go on with the episode in slot i, bit for bit."""
        scene = self.scenes[i]
        assert scene is not None, f"no episode has begun in slot {i}"
        return Moment(scene, self.arms.state(i), int(self.steps[i]))

    def resume(self, i: int, moment: Moment) -> None:
        """Go on with an episode in slot i."""
        self.arms.restore(i, moment.scene, moment.physics)
        self._enter(i, moment.scene, moment.steps)

    def _enter(self, i: int, scene: Scene, steps: int) -> None:
        self.scenes[i] = scene
        self.target[i], self.obstacle[i], self.radius[i] = scene.target, scene.obstacle, scene.radius
        self.distance[i] = np.hypot(*(self.arms.hand[i] - self.target[i]))
        self.steps[i] = steps
