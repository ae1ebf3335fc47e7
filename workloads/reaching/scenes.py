"""Random scenes: where the arm starts, the target and the obstacle. A scene is a function of (stream, seed, index)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reaching.geometry import clearance, elbow_and_hand

SUCCESS_RADIUS = 0.09  # metres between hand and target
START_CLEARANCE = 0.08  # smallest of an accepted scene, exclusive
TARGET_MARGIN = 0.08  # metres from a successful hand to the obstacle's surface, at least, exclusive

Point = tuple[float, float]
Range = tuple[float, float]
Split = Literal["easy", "medium", "hard"]


@dataclass(frozen=True, slots=True)
class Scene:
    """One episode's layout: joint angles at the start in rad; positions and radius in metres."""

    angles: Point
    target: Point
    obstacle: Point
    radius: float


@dataclass(frozen=True, slots=True)
class Band:
    """A degree of difficulty."""

    path_clearance: Range
    """From the straight way of the hand to the obstacle's surface, metres; negative: the obstacle lies in it."""
    radius: Range
    """Of the obstacle, metres."""


MIXTURE: tuple[tuple[float, Band], ...] = (  # what is trained on: share of the episodes, band
    (0.45, Band((-0.025, 0.06), (0.075, 0.115))),
    (0.35, Band((0.04, 0.14), (0.06, 0.10))),
    (0.20, Band((0.14, 0.28), (0.045, 0.075))),
)
SPLITS: dict[Split, Band] = {  # what is evaluated on
    "easy": Band((0.12, 0.28), (0.04, 0.07)),
    "medium": Band((0.02, 0.13), (0.06, 0.10)),
    "hard": Band((-0.03, 0.06), (0.075, 0.12)),
}
TRAINING, DIAGNOSTIC, HELD_OUT, NOISE, UPDATE = range(5)  # streams: no two of them share a random number


def propose(rng: np.random.Generator, band: Band) -> Scene:
    """A scene before any rejection; every quantity is uniform in its range.

    The obstacle's centre lies 35 to 70% of the way from hand to target, moved to a random side of that way by radius
    plus path clearance, and by 0.015 at least.
    """
    u = rng.random(8).tolist()

    def uniform(i: int, low: float, high: float) -> float:
        return low + (high - low) * float(u[i])

    q1, q2 = uniform(0, -0.9, 0.9), uniform(1, -1.1, 1.1)
    reach, polar = uniform(2, 0.40, 0.95), uniform(3, 0.25, 2.65)
    radius = uniform(4, *band.radius)
    offset = max(0.015, radius + uniform(5, *band.path_clearance))
    along, side = uniform(6, 0.35, 0.70), 1.0 if u[7] < 0.5 else -1.0

    target = (reach * math.cos(polar), reach * math.sin(polar))
    hand = elbow_and_hand(q1, q2)[1]
    dx, dy = target[0] - hand[0], target[1] - hand[1]
    length = math.hypot(dx, dy) or 1.0
    obstacle = (hand[0] + along * dx - side * offset * dy / length, hand[1] + along * dy + side * offset * dx / length)
    return Scene((q1, q2), target, obstacle, radius)


def rejection(scene: Scene) -> str | None:
    """Why a proposed scene is none, or None."""
    (x, y), (tx, ty) = scene.obstacle, scene.target
    hand = elbow_and_hand(*scene.angles)[1]
    if ty <= 0.05:
        return "target too low"
    if not 0.25 <= math.dist(hand, scene.target) <= 0.95:
        return "target too near or too far"
    if y < -0.10 or math.hypot(x, y) > 1.15:
        return "obstacle out of the way"
    if clearance(*scene.angles, scene.obstacle, scene.radius) <= START_CLEARANCE:
        return "arm too near the obstacle"
    if math.hypot(tx - x, ty - y) - scene.radius <= SUCCESS_RADIUS + TARGET_MARGIN:
        return "target too near the obstacle"
    return None


def draw(rng: np.random.Generator, band: Band) -> Scene:
    """The first proposal that is not rejected (about one in six is accepted)."""
    while True:
        scene = propose(rng, band)
        if rejection(scene) is None:
            return scene


def draw_training(rng: np.random.Generator) -> Scene:
    """A scene of the training mixture; its band is drawn once, so that rejections do not move the shares."""
    pick = rng.random()
    for share, band in MIXTURE:
        pick -= share
        if pick < 0:
            return draw(rng, band)
    return draw(rng, MIXTURE[-1][1])


def training_scene(seed: int, index: int) -> Scene:
    """The scene of the index-th training episode of a run."""
    return draw_training(np.random.default_rng((TRAINING, seed, index)))


def diagnostic_scenes(seed: int, split: Split, count: int) -> list[Scene]:
    """The scenes on which a run is evaluated while it lasts."""
    return _fixed(DIAGNOSTIC, seed * 1_000_000 + 100_000, split, count)


def held_out_scenes(seed: int, split: Split, count: int) -> list[Scene]:
    """The scenes of the test after a run, which no manager sees anything of."""
    return _fixed(HELD_OUT, seed * 10_000_000 + 9_000_000, split, count)


def _fixed(stream: int, base: int, split: Split, count: int) -> list[Scene]:
    number = list(SPLITS).index(split)
    return [draw(np.random.default_rng((stream, base, number, i)), SPLITS[split]) for i in range(count)]
