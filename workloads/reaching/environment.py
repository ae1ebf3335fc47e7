"""The task as a Gymnasium environment. Training does not use it: see `task.Reaching`, which is many times faster.

env = gymnasium.make("reaching.environment:Reaching-v0", split="hard")
"""

from __future__ import annotations

from typing import Any, Literal, SupportsFloat

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from reaching.geometry import LOWER, UPPER
from reaching.scenes import SPLITS, Scene, draw, draw_training
from reaching.task import ACTIONS, COLLISION, OBSERVATIONS, SUCCESS, TIMEOUT, Reaching

LENGTH = UPPER + LOWER
# The order is that of `Reaching.observe`; clearance is negative for an arm inside of its obstacle.
HIGH = np.array([1, 1, 1, 1, LENGTH, LENGTH, 2, 2, 0.5, LENGTH, LENGTH, 2 * LENGTH, 2 * LENGTH, 4], dtype=np.float32)
LOW = -HIGH
LOW[8], LOW[13] = 0.0, -0.5


class ReachingEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One arm. Ends at a safe success or a collision, is truncated after 120 steps.

    ``split``: "training" draws from the training mixture, "easy", "medium" and "hard" as in an evaluation; or give
    `reset` a scene: ``options={"scene": Scene(...)}``. ``info`` has the unweighted pieces of the reward, and
    ``is_success`` and ``is_collision``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}

    def __init__(
        self,
        split: Literal["training", "easy", "medium", "hard"] = "training",
        progress_scale: float = 3.0,
        success_bonus: float = 5.0,
        collision_penalty: float = 5.0,
        render_mode: str | None = None,
        size: tuple[int, int] = (320, 320),
    ) -> None:
        if split != "training" and split not in SPLITS:
            raise ValueError(f"split is {split!r}; allowed are training, {', '.join(SPLITS)}")
        self.split = split
        self.weights = (progress_scale, success_bonus, collision_penalty)
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(LOW, HIGH, dtype=np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTIONS,), dtype=np.float32)
        self.task = Reaching(1)
        self._size = size
        self._renderer: mujoco.Renderer | None = None
        assert self.observation_space.shape == (OBSERVATIONS,)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        scene = (options or {}).get("scene")
        if scene is None:
            rng = self.np_random
            scene = draw_training(rng) if self.split == "training" else draw(rng, SPLITS[self.split])
        assert isinstance(scene, Scene)
        self.task.begin(0, scene)
        return self.task.observe()[0], {"scene": scene}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], SupportsFloat, bool, bool, dict[str, Any]]:
        pieces, outcomes = self.task.advance(np.asarray(action, dtype=np.float64).reshape(1, ACTIONS))
        outcome = int(outcomes[0])
        info = {name: float(value[0]) for name, value in pieces._asdict().items()}
        info |= {"is_success": outcome == SUCCESS, "is_collision": outcome == COLLISION}
        reward = float(pieces.weighted(*self.weights)[0])
        return self.task.observe()[0], reward, outcome in (SUCCESS, COLLISION), outcome == TIMEOUT, info

    def render(self) -> NDArray[np.uint8] | None:
        """The scene from above, [H, W, 3]. Needs a GL: MUJOCO_GL=egl or osmesa where there is no display."""
        if self.render_mode != "rgb_array":
            return None
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.task.arms.models[0], *self._size)
        mujoco.mj_forward(self.task.arms.models[0], self.task.arms.datas[0])
        self._renderer.update_scene(self.task.arms.datas[0], camera="above")
        picture: NDArray[np.uint8] = self._renderer.render()
        return picture

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


gymnasium.register("Reaching-v0", entry_point="reaching.environment:ReachingEnv")
