"""A policy on fixed scenes: rates of safe success and collision by split, with and without its exploration noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reaching.geometry import Array
from reaching.scenes import NOISE, SPLITS, Scene, diagnostic_scenes, held_out_scenes
from reaching.task import ACTIONS, COLLISION, MAX_STEPS, SUCCESS, TIMEOUT, Reaching

MODES = ("deterministic", "sampled")  # the mean action; the mean plus Gaussian noise
ROBUST_SUCCESS, ROBUST_COLLISION = 0.85, 0.15  # in every cell
SLOTS = 80  # episodes side by side

Policy = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Observations [K, 14] to mean actions [K, 2]."""
Job = tuple[str, Scene, Array]
"""The name of a cell, a scene, the noise [120, 2]."""


@dataclass(frozen=True)
class Cell:
    """The episodes of one split in one mode, counted."""

    episodes: int
    successes: int
    collisions: int
    timeouts: int
    steps: int

    @property
    def safe_success(self) -> float:
        return self.successes / self.episodes

    @property
    def collision(self) -> float:
        return self.collisions / self.episodes

    def row(self) -> dict[str, float]:
        """As a row of an evaluation's table: the denominator first, then rates, and the mean length in steps."""
        return {
            "episodes": self.episodes,
            "safe_success": self.safe_success,
            "collision": self.collision,
            "timeout": self.timeouts / self.episodes,
            "episode_length": self.steps / self.episodes,
        }


@dataclass(frozen=True)
class Result:
    """The six cells, by "split/mode"."""

    cells: dict[str, Cell]

    @property
    def worst_safe_success(self) -> float:
        return min(cell.safe_success for cell in self.cells.values())

    @property
    def worst_collision(self) -> float:
        return max(cell.collision for cell in self.cells.values())

    @property
    def score(self) -> float:
        """Lowest rate of safe success minus highest rate of collision: from -1 to 1."""
        return self.worst_safe_success - self.worst_collision

    @property
    def robust(self) -> bool:
        """Whether every cell has a safe success of 0.85 or more and collisions of 0.15 or less."""
        return self.worst_safe_success >= ROBUST_SUCCESS and self.worst_collision <= ROBUST_COLLISION

    def mean(self, mode: str) -> tuple[float, float]:
        """Safe success and collision in one mode, over the splits."""
        cells = [cell for name, cell in self.cells.items() if name.endswith(f"/{mode}")]
        return sum(c.safe_success for c in cells) / len(cells), sum(c.collision for c in cells) / len(cells)


class Examination:
    """Scenes, and noise, that are the same each time: what comes out is a function of the policy alone."""

    def __init__(self, seed: int, episodes: int, *, held_out: bool = False) -> None:
        """``episodes`` in each of the six cells; the two modes of a split have the same scenes."""
        self._jobs: list[Job] = []
        for number, split in enumerate(SPLITS):
            scenes = (held_out_scenes if held_out else diagnostic_scenes)(seed, split, episodes)
            for mode in MODES:
                rng = np.random.default_rng((NOISE, int(held_out), seed, number))
                for scene in scenes:
                    noise = rng.standard_normal((MAX_STEPS, ACTIONS))
                    self._jobs.append((f"{split}/{mode}", scene, noise if mode == "sampled" else 0 * noise))
        self._reaching = Reaching(min(SLOTS, len(self._jobs)))

    def run(self, policy: Policy, std: Array) -> Result:
        """Every scene once in both modes; ``std`` [2] is that of the noise."""
        reaching, left = self._reaching, iter(self._jobs)
        counts: dict[str, list[int]] = {}
        noise = np.zeros((len(reaching.steps), MAX_STEPS, ACTIONS))
        names = [""] * len(noise)
        going = [slot for slot in range(len(noise)) if self._next(slot, left, names, noise)]
        while going:
            actions = policy(reaching.observe(going)) + std * noise[going, reaching.steps[going]]
            _, outcomes = reaching.advance(actions, going)
            if outcomes.any():
                for slot, outcome in zip(tuple(going), outcomes.tolist(), strict=True):
                    if outcome:
                        row = counts.setdefault(names[slot], [0, 0, 0, 0])
                        row[outcome] += 1
                        row[0] += int(reaching.steps[slot])
                        if not self._next(slot, left, names, noise):
                            going.remove(slot)
        cells = {}
        for name in dict.fromkeys(job[0] for job in self._jobs):
            row = counts[name]
            cells[name] = Cell(sum(row[1:]), row[SUCCESS], row[COLLISION], row[TIMEOUT], row[0])
        return Result(cells)

    def _next(self, slot: int, left: Iterator[Job], names: list[str], noise: Array) -> bool:
        """Begin the next episode in a slot, if there is one left."""
        job = next(left, None)
        if job is None:
            return False
        names[slot], scene, noise[slot] = job
        self._reaching.begin(slot, scene)
        return True
