"""The reaching task: scenes, formulas against hand-computed values, MuJoCo against kinematics, Gymnasium's checks."""

from __future__ import annotations

import ast
import math
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from reaching import environment, geometry, scenes, task
from reaching.scenes import SPLITS, Scene, diagnostic_scenes, held_out_scenes, training_scene
from reaching.task import COLLISION, GOING, SUCCESS, TIMEOUT, Pieces, Reaching

FAR = Scene(angles=(0.0, 0.0), target=(-0.5, 0.6), obstacle=(0.3, 0.4), radius=0.05)  # nothing is near


def begun(scene: Scene) -> Reaching:
    reaching = Reaching(1)
    reaching.begin(0, scene)
    return reaching


def test_the_package_knows_none_of_the_scripts_that_train_on_it() -> None:
    scripts = {path.stem for path in Path(task.__file__).parents[1].glob("*.py")}
    for path in Path(task.__file__).parent.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        assert scripts.isdisjoint(name.split(".")[0] for name in names), path


# -- geometry --------------------------------------------------------------------------------------------------------


def test_elbow_and_hand() -> None:
    assert geometry.elbow_and_hand(0.0, 0.0) == ((0.65, 0.0), (pytest.approx(1.2), 0.0))
    elbow, hand = geometry.elbow_and_hand(math.pi / 2, -math.pi / 2)
    assert elbow == pytest.approx((0.0, 0.65))
    assert hand == pytest.approx((0.55, 0.65))


@pytest.mark.parametrize(
    ("point", "distance"),
    [((0.3, 0.2), 0.2), ((-0.3, 0.4), 0.5), ((1.3, -0.4), 0.5), ((0.5, 0.0), 0.0)],
)
def test_distance_from_a_segment(point: tuple[float, float], distance: float) -> None:
    assert geometry.to_segment(point, (0.0, 0.0), (1.0, 0.0)) == pytest.approx(distance)


def test_clearance_is_that_of_the_nearer_link() -> None:
    bent = (0.0, math.pi / 2)  # elbow (0.65, 0), hand (0.65, 0.55)
    assert geometry.clearance(*bent, (0.3, 0.2), 0.05) == pytest.approx(0.15)  # the upper arm lies 0.2 below
    assert geometry.clearance(*bent, (0.5, 0.3), 0.05) == pytest.approx(0.10)  # the forearm 0.15 beside
    assert geometry.clearance(*bent, (0.65, 0.3), 0.05) == pytest.approx(-0.05)


# -- scenes ----------------------------------------------------------------------------------------------------------

FINE = Scene(angles=(0.0, 0.0), target=(0.7, 0.6), obstacle=(0.9, 0.35), radius=0.06)


def test_a_scene_is_rejected_for_each_reason() -> None:
    def changed(**fields: object) -> str | None:
        return scenes.rejection(Scene(**{"angles": FINE.angles, "target": FINE.target, "obstacle": FINE.obstacle,
                                         "radius": FINE.radius} | fields))  # type: ignore[arg-type]  # fmt: skip

    assert changed() is None
    assert changed(target=(0.9, 0.05)) == "target too low"
    assert changed(target=(1.1, 0.2)) == "target too near or too far"  # 0.22 from the hand at (1.2, 0)
    assert changed(target=(0.2, 0.5)) == "target too near or too far"  # 1.12
    assert changed(obstacle=(0.9, -0.11)) == "obstacle out of the way"
    assert changed(obstacle=(1.0, 0.58)) == "obstacle out of the way"  # 1.156 from the base
    assert changed(obstacle=(0.9, 0.135)) == "arm too near the obstacle"  # 0.135 - 0.06 = 0.075
    assert changed(obstacle=(0.9, 0.145)) is None
    assert changed(obstacle=(0.7, 0.375)) == "target too near the obstacle"  # 0.225 - 0.06 = 0.165
    assert changed(obstacle=(0.7, 0.365)) is None  # 0.175


def parts(scene: Scene) -> tuple[float, float]:
    """How far along the straight way the obstacle lies (share), and its surface's distance from it (metres)."""
    hand = np.array(geometry.elbow_and_hand(*scene.angles)[1])
    way = np.array(scene.target) - hand
    there = np.array(scene.obstacle) - hand
    offset = abs(way[0] * there[1] - way[1] * there[0]) / np.linalg.norm(way)
    return float(way @ there / (way @ way)), float(offset - scene.radius)


@pytest.mark.parametrize("split", list(SPLITS))
def test_scenes_of_a_split_are_what_they_should_be(split: scenes.Split) -> None:
    band = SPLITS[split]
    for scene in diagnostic_scenes(40, split, 150):
        assert scenes.rejection(scene) is None
        assert abs(scene.angles[0]) <= 0.9
        assert abs(scene.angles[1]) <= 1.1
        assert 0.40 <= math.hypot(*scene.target) <= 0.95
        assert 0.25 <= math.atan2(scene.target[1], scene.target[0]) <= 2.65
        assert band.radius[0] <= scene.radius <= band.radius[1]
        along, path_clearance = parts(scene)
        assert 0.35 <= along <= 0.70
        assert band.path_clearance[0] - 1e-9 <= path_clearance <= band.path_clearance[1] + 1e-9


def test_the_obstacle_is_offset_by_15_mm_at_least_and_to_either_side() -> None:
    rng, band = np.random.default_rng(0), scenes.Band((-0.2, -0.1), (0.05, 0.06))
    found = [(*parts(scene), scene.radius) for scene in (scenes.propose(rng, band) for _ in range(50))]
    assert [path + radius for _, path, radius in found] == pytest.approx([0.015] * 50)
    sides = set()
    for i in range(20):
        scene = training_scene(0, i)
        hand = geometry.elbow_and_hand(*scene.angles)[1]
        (dx, dy), (ox, oy) = np.subtract(scene.target, hand), np.subtract(scene.obstacle, hand)
        sides.add(dx * oy > dy * ox)
    assert sides == {True, False}


def test_the_training_mixture_has_its_shares() -> None:
    drawn = [training_scene(41, i) for i in range(600)]
    assert all(scenes.rejection(scene) is None for scene in drawn)
    easy = sum(parts(scene)[1] > 0.14 + 1e-9 for scene in drawn) / len(drawn)  # only the third band goes beyond 0.14
    hard = sum(scene.radius > 0.10 for scene in drawn) / len(drawn)  # 3/8 of the first band's radii, only there
    assert easy == pytest.approx(0.20, abs=0.05)
    assert hard == pytest.approx(0.45 * 3 / 8, abs=0.06)


def test_scenes_are_a_function_of_stream_seed_and_index() -> None:
    assert training_scene(40, 7) == training_scene(40, 7)
    streams = [
        *(training_scene(seed, i) for seed in (40, 41) for i in range(30)),
        *(s for seed in (40, 41) for split in SPLITS for s in diagnostic_scenes(seed, split, 30)),
        *(s for seed in (40, 41) for split in SPLITS for s in held_out_scenes(seed, split, 30)),
    ]
    assert len(set(streams)) == len(streams)
    assert diagnostic_scenes(40, "hard", 5) == diagnostic_scenes(40, "hard", 30)[:5]


# -- observation, reward, end ----------------------------------------------------------------------------------------


def test_observation() -> None:
    scene = Scene(angles=(math.pi / 2, -math.pi / 2), target=(0.6, 0.8), obstacle=(-0.3, 0.3), radius=0.05)
    wanted = [1, -1, 0, 0, 0.6, 0.8, -0.3, 0.3, 0.05, 0.55, 0.65, 0.05, 0.15, 0.25]
    assert begun(scene).observe()[0] == pytest.approx(wanted, abs=1e-7)


def test_progress_and_action_cost() -> None:
    reaching = begun(FAR)  # the hand is at (1.2, 0), sqrt(1.7^2 + 0.6^2) = 1.802776 from the target
    pieces, outcome = reaching.advance(np.array([[1.0, 0.0]]))  # ... then at 1.2 (cos 0.08, sin 0.08), 1.769027 from it
    assert pieces.progress[0] == pytest.approx(1.802776 - 1.769027, abs=1e-3)
    assert pieces.action_cost[0] == pytest.approx(0.01)
    assert (pieces.success[0], pieces.collision[0], pieces.clearance_cost[0], outcome[0]) == (0, 0, 0, GOING)
    pieces, _ = reaching.advance(np.array([[-7.0, 0.5]]))  # cut off at -1
    assert pieces.action_cost[0] == pytest.approx(0.0125)
    assert reaching.arms.angles[0] == pytest.approx([0.0, 0.04], abs=2e-3)


@pytest.mark.parametrize(("height", "cost"), [(0.20, 0.0), (0.13, 0.0), (0.09, 0.025), (0.06, 0.04375)])
def test_clearance_cost(height: float, cost: float) -> None:
    scene = Scene(FAR.angles, FAR.target, obstacle=(0.4, height), radius=0.05)
    pieces, outcome = begun(scene).advance(np.zeros((1, 2)))
    assert (pieces.clearance_cost[0], outcome[0]) == (pytest.approx(cost), GOING)


def test_the_reward_is_the_weighted_sum() -> None:
    pieces = Pieces(*(np.array([x]) for x in (0.05, 1.0, 0.0, 0.02, 0.01)))
    assert pieces.weighted(3.0, 5.0, 25.0)[0] == pytest.approx(3 * 0.05 + 5 - 0.02 - 0.01)
    pieces = Pieces(*(np.array([x]) for x in (-0.05, 0.0, 1.0, 0.02, 0.06)))
    assert pieces.weighted(1.5, 2.5, 25.0)[0] == pytest.approx(-0.075 - 25 - 0.02 - 0.06)


def test_success_collision_and_time_out() -> None:
    near = Scene((0.0, 0.0), target=(1.19, 0.12), obstacle=(0.3, 0.4), radius=0.05)
    pieces, outcome = begun(near).advance(np.array([[1.0, 0.0]]))  # the hand ends about 0.026 away
    assert (pieces.success[0], pieces.collision[0], outcome[0]) == (1, 0, SUCCESS)

    both = Scene((0.0, 0.0), target=(1.19, 0.12), obstacle=(0.9, 0.10), radius=0.05)  # 0.9 sin 0.08 = 0.072 > 0.05
    pieces, outcome = begun(both).advance(np.array([[1.0, 0.0]]))
    assert (pieces.success[0], pieces.collision[0], outcome[0]) == (0, 1, COLLISION)

    reaching = begun(FAR)
    outcomes = [int(reaching.advance(np.zeros((1, 2)))[1][0]) for _ in range(120)]
    assert outcomes == [GOING] * 119 + [TIMEOUT]


def test_a_touch_between_two_observations_is_a_collision() -> None:
    """An obstacle in the way of a link that is clear of it before and after the step."""
    scene = Scene((0.0, 0.0), FAR.target, obstacle=(1.16, 0.0656), radius=0.021)
    assert geometry.clearance(0.0, 0.0, scene.obstacle, scene.radius) > 0.04
    assert geometry.clearance(0.08, 0.08, scene.obstacle, scene.radius) > 0.01
    assert begun(scene).advance(np.array([[1.0, 1.0]]))[1][0] == COLLISION


# -- MuJoCo ----------------------------------------------------------------------------------------------------------


def test_mujoco_agrees_with_kinematics_over_300_episodes() -> None:
    """Outcome by outcome, but for near misses: joints follow commands within 0.001 rad, so links within 2 mm."""
    reaching, outcomes, differing, lag = Reaching(1), [0, 0, 0, 0], 0, 0.0
    for episode in range(300):
        scene = training_scene(7, episode)
        rng = np.random.default_rng(episode)
        timid = episode % 3 == 0  # some stay where they are
        reaching.begin(0, scene)
        angles, closest, steps = scene.angles, math.inf, 0
        while True:
            steps += 1
            elbow, hand = geometry.elbow_and_hand(*angles)
            away = np.subtract(scene.target, hand)
            jacobian = np.array([[-hand[1], elbow[1] - hand[1]], [hand[0], hand[0] - elbow[0]]])
            action = rng.normal(0, 0.4, 2) + (0 if timid else 4) * jacobian.T @ away
            _, outcome = reaching.advance(action[None])
            angles, touched = geometry.move(angles, tuple(action), scene.obstacle, scene.radius)
            apart = math.dist(geometry.elbow_and_hand(*angles)[1], scene.target)
            closest = min(closest, abs(geometry.clearance(*angles, scene.obstacle, scene.radius)))
            wanted = COLLISION if touched else SUCCESS if apart <= 0.09 else TIMEOUT if steps == 120 else GOING
            if outcome[0] != wanted:
                assert closest < 0.002 or abs(apart - 0.09) < 0.002
                differing += 1
                break
            if wanted != COLLISION:
                lag = max(lag, float(np.abs(reaching.arms.angles[0] - angles).max()))
                ours = geometry.clearance(*reaching.arms.angles[0], scene.obstacle, scene.radius)
                assert reaching.arms.clearance[0] == pytest.approx(ours, abs=1e-12)
            if wanted:
                outcomes[wanted] += 1
                break
    assert lag < 1e-3
    assert differing <= 6
    assert min(outcomes[1:]) >= 20  # each of the three was tried


def test_episodes_side_by_side_are_those_alone_and_go_on_from_a_moment_bit_for_bit() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 5, 2))
    together, alone = Reaching(5), begun(training_scene(3, 4))
    for i in range(5):
        together.begin(i, training_scene(3, i))
    going = [0, 1, 2, 3, 4]
    for action in actions[:20]:
        _, outcomes = together.advance(action[going], going)
        going = [i for i, outcome in zip(going, outcomes, strict=True) if outcome == GOING]
        alone.advance(action[4:])
        assert (alone.observe()[0] == together.observe([4])[0]).all()
    assert 4 in going
    again = Reaching(2)
    again.begin(1, training_scene(9, 9))  # whatever was there before
    again.resume(1, alone.moment(0))
    for t in range(20, 40):
        one, two = alone.advance(actions[t, 4:5]), again.advance(actions[t, 4:5], [1])
        assert (alone.observe()[0] == again.observe([1])[0]).all()
        assert (one[1], *one[0]) == (two[1], *two[0])
        if one[1][0]:
            break


# -- Gymnasium -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["training", "easy", "medium", "hard"])
def test_the_environment_passes_gymnasiums_checks(split: str) -> None:
    check_env(gymnasium.make("reaching.environment:Reaching-v0", split=split).unwrapped, skip_render_check=True)


def test_the_environment_is_the_task() -> None:
    env = environment.ReachingEnv(collision_penalty=25.0)
    scene = training_scene(1, 2)
    reaching = begun(scene)
    observation, _ = env.reset(options={"scene": scene})
    assert (observation == reaching.observe()[0]).all()
    for action in np.random.default_rng(1).uniform(-1, 1, (task.MAX_STEPS, 2)).astype(np.float32):
        observation, reward, terminated, truncated, info = env.step(action)
        pieces, outcome = reaching.advance(action[None])
        assert (observation == reaching.observe()[0]).all()
        assert env.observation_space.contains(observation)
        assert reward == pieces.weighted(3.0, 5.0, 25.0)[0]
        assert (terminated, truncated) == (outcome[0] in (SUCCESS, COLLISION), outcome[0] == TIMEOUT)
        assert info["progress"] == pieces.progress[0]
        if terminated or truncated:
            break
    with pytest.raises(ValueError, match="allowed are training, easy, medium, hard"):
        environment.ReachingEnv(split="harder")  # type: ignore[arg-type]


def test_a_picture_where_there_is_a_gl() -> None:
    """In a process of its own: MuJoCo chooses its GL when it is imported."""
    code = (
        "from reaching.environment import ReachingEnv; from reaching.scenes import *\n"
        "env = ReachingEnv(render_mode='rgb_array'); env.reset(options={'scene': training_scene(0, 0)})\n"
        "p = env.render().astype(int); env.close()\n"
        "red, green = ((p[..., i] > 2 * p[..., 1 - i] + 40).sum() for i in (0, 1))\n"
        "print(p.shape, red > 50, green > 50)"
    )
    folder = Path(environment.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MUJOCO_GL": "egl"}, cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no GL here: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no word'}")
    assert done.stdout.split("\n")[0] == "(320, 320, 3) True True"
