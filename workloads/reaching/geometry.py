"""The arm's kinematics in closed form: scenes are made with it, MuJoCo is compared with it. Metres, radians."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

UPPER, LOWER = 0.65, 0.55  # lengths of the links
DT = 0.08  # seconds of one control step
SUBSTEPS = 4  # of the simulation in one control step; a touch at any of them is a collision
SPEED = 1.0  # largest commanded joint velocity, rad/s


def elbow_and_hand(q1: float, q2: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where elbow and hand are at the joint angles q1 (from the x axis) and q2 (from the upper link)."""
    x, y = UPPER * math.cos(q1), UPPER * math.sin(q1)
    return (x, y), (x + LOWER * math.cos(q1 + q2), y + LOWER * math.sin(q1 + q2))


def to_segment(p: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> float:
    """The distance of the point p from the segment between a and b."""
    ax, ay, dx, dy = p[0] - a[0], p[1] - a[1], b[0] - a[0], b[1] - a[1]
    t = min(1.0, max(0.0, (ax * dx + ay * dy) / (dx * dx + dy * dy)))
    return math.hypot(ax - t * dx, ay - t * dy)


def clearance(q1: float, q2: float, obstacle: tuple[float, float], radius: float) -> float:
    """Smallest distance of either link's axis from the obstacle's centre, minus the obstacle's radius."""
    elbow, hand = elbow_and_hand(q1, q2)
    return min(to_segment(obstacle, (0.0, 0.0), elbow), to_segment(obstacle, elbow, hand)) - radius


def move(
    angles: tuple[float, float], action: tuple[float, float], obstacle: tuple[float, float], radius: float
) -> tuple[tuple[float, float], bool]:
    """One control step of an ideal arm: the joints turn at the commanded velocities until a link touches the obstacle.

    Returns the new angles and whether there was a touch, looked for after each substep as the simulation does.
    """
    q1, q2 = angles
    v1, v2 = (min(SPEED, max(-SPEED, a)) for a in action)
    for _ in range(SUBSTEPS):
        q1, q2 = q1 + v1 * DT / SUBSTEPS, q2 + v2 * DT / SUBSTEPS
        if clearance(q1, q2, obstacle, radius) <= 0:
            return (q1, q2), True
    return (q1, q2), False
