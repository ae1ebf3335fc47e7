"""The arm in MuJoCo, and many of them: a plain loop over (model, data) pairs.

For a few environments on one core that loop is faster than `mujoco.rollout`, which pays from hundreds on, and far
faster than Gymnasium's vector wrappers. Each pair has its own model, since a model holds the size of its obstacle.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from reaching.geometry import DT, LOWER, SPEED, SUBSTEPS, UPPER, Array
from reaching.scenes import SUCCESS_RADIUS, Scene

THICKNESS = 0.02  # half of a link's, metres; a scene's radius is measured to the links' axes, so it is taken off there
FAR = 10.0  # metres; beyond it no distance is measured
FARTHEST = 1.1 * DT * SPEED * (UPPER + 2 * LOWER)  # metres, and some more, that the hand moves in one control step

# Links light against the gain, and implicit integration: a joint follows a change of 2 rad/s within 0.001 rad.
# Contacts are looked for in the two pairs that matter. The target is there to be seen
# (not at the origin: what is compiled there stays there).
MODEL = f"""
<mujoco model="reaching">
  <compiler angle="radian"/>
  <option timestep="{DT / SUBSTEPS}" integrator="implicitfast" gravity="0 0 0"/>
  <size memory="64K"/>
  <visual>
    <headlight ambient="0.5 0.5 0.5" diffuse="0.5 0.5 0.5"/>
  </visual>
  <default>
    <geom contype="0" conaffinity="0" rgba="0.75 0.78 0.85 1"/>
  </default>
  <worldbody>
    <camera name="above" pos="0.2 0.3 2.6"/>
    <site name="target" pos="1 1 0" size="{SUCCESS_RADIUS}" rgba="0.2 0.7 0.3 0.5"/>
    <body name="obstacle" mocap="true">
      <geom name="obstacle" type="sphere" size="0.05" rgba="0.8 0.2 0.2 1"/>
    </body>
    <body>
      <joint name="shoulder" axis="0 0 1" armature="0.02"/>
      <geom name="upper" type="capsule" fromto="0 0 0 {UPPER} 0 0" size="{THICKNESS}" mass="0.05"/>
      <body pos="{UPPER} 0 0">
        <joint name="elbow" axis="0 0 1" armature="0.02"/>
        <geom name="lower" type="capsule" fromto="0 0 0 {LOWER} 0 0" size="{THICKNESS}" mass="0.05"/>
        <site name="hand" pos="{LOWER} 0 0" size="0.03"/>
      </body>
    </body>
  </worldbody>
  <contact>
    <pair geom1="obstacle" geom2="upper"/>
    <pair geom1="obstacle" geom2="lower"/>
  </contact>
  <actuator>
    <velocity joint="shoulder" kv="100"/>
    <velocity joint="elbow" kv="100"/>
  </actuator>
</mujoco>
"""

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION  # all that the next step depends on


class Arms:
    """``count`` arms, each with its obstacle. `angles`, `hand` [N, 2] and `clearance` [N] are kept up to date."""

    def __init__(self, count: int) -> None:
        first = mujoco.MjModel.from_xml_string(MODEL)
        self.models = [first, *(copy.copy(first) for _ in range(count - 1))]
        self.datas = [mujoco.MjData(model) for model in self.models]
        self.angles: Array = np.zeros((count, 2))
        self.hand: Array = np.zeros((count, 2))
        self.clearance: Array = np.zeros(count)
        self._obstacle, self._upper, self._lower = (first.geom(n).id for n in ("obstacle", "upper", "lower"))
        self._hand = first.site("hand").id
        # Views into the simulations, made once: looking one up costs more than reading it.
        self._views = [(d.ctrl, d.qpos, d.site_xpos[self._hand, :2]) for d in self.datas]

    def place(self, i: int, scene: Scene) -> None:
        """Put arm i at rest into a scene."""
        model, data = self.models[i], self.datas[i]
        mujoco.mj_resetData(model, data)
        self.furnish(i, scene)
        data.qpos[:] = scene.angles
        data.mocap_pos[0, :2] = scene.obstacle
        self._measure(i)

    def furnish(self, i: int, scene: Scene) -> None:
        """Give model i the scene's obstacle and target. A geom's size is kept in three places."""
        model, radius = self.models[i], scene.radius - THICKNESS
        model.geom_size[self._obstacle, 0] = model.geom_rbound[self._obstacle] = radius
        model.geom_aabb[self._obstacle, 3:] = radius
        model.site_pos[model.site("target").id, :2] = scene.target

    def drive(self, velocities: Array, which: Sequence[int]) -> NDArray[np.bool_]:
        """One control step of the arms ``which``, at joint velocities [K, 2] in rad/s; which of them touched [K].

        An arm that touches its obstacle stops at that substep. MuJoCo's contacts are those of the state before a
        substep: the last state is looked at here.
        """
        touched = np.zeros(len(which), dtype=np.bool_)
        for k, i in enumerate(which):
            model, data = self.models[i], self.datas[i]
            self._views[i][0][:] = velocities[k]
            if self.clearance[i] > FARTHEST:  # the same, in one call
                mujoco.mj_step(model, data, SUBSTEPS)
            else:
                for _ in range(SUBSTEPS):
                    mujoco.mj_step(model, data)
                    if data.ncon:
                        touched[k] = True
                        break
            self._measure(i)
            if self.clearance[i] <= 0:
                touched[k] = True
        return touched

    def _measure(self, i: int) -> None:
        model, data = self.models[i], self.datas[i]
        mujoco.mj_kinematics(model, data)
        _, self.angles[i], self.hand[i] = self._views[i]
        self.clearance[i] = min(
            mujoco.mj_geomDistance(model, data, self._obstacle, self._upper, FAR, None),
            mujoco.mj_geomDistance(model, data, self._obstacle, self._lower, FAR, None),
        )

    def state(self, i: int) -> Array:
        """All that the next step of arm i depends on, but for its scene."""
        state = np.empty(mujoco.mj_stateSize(self.models[i], _STATE))
        mujoco.mj_getState(self.models[i], self.datas[i], state, _STATE)
        return state

    def restore(self, i: int, scene: Scene, state: Array) -> None:
        """Put arm i back into a `state` that it, or another arm, had in that scene."""
        self.furnish(i, scene)
        mujoco.mj_setState(self.models[i], self.datas[i], state, _STATE)
        self._measure(i)
