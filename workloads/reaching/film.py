"""A short film of a policy on the scenes of its evaluations: one pane a split, some rounds of three episodes.

    python workloads/reaching/film.py run/checkpoints/best.pt film.gif      # or film.mp4
    python workloads/reacher.py --render film.gif                           # the same of the final weights, at the end

Needs the extra `render` (Pillow, and PyAV for an MP4) and a GL that draws without a window: on Linux EGL, unless
MUJOCO_GL names another. A GL that is broken may take its process along. So it is tried in a process of its own, and a
training has its film made in another, which cannot alter it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
try:
    GL = os.environ.get("MUJOCO_GL") or ("egl" if sys.platform == "linux" else "")
    if __name__ == "__main__":
        os.environ["MUJOCO_GL"] = GL
    import mujoco
except Exception:  # MuJoCo looks for its GL when it is imported, and fails in many ways; to train, none is needed
    os.environ["MUJOCO_GL"] = "disable"
    import mujoco

import numpy as np

from reaching.arm import THICKNESS
from reaching.evaluation import Policy
from reaching.geometry import DT, LOWER, UPPER, Array, elbow_and_hand
from reaching.scenes import SPLITS, SUCCESS_RADIUS, Scene, diagnostic_scenes
from reaching.task import COLLISION, GOING, SUCCESS, TIMEOUT, Reaching

if TYPE_CHECKING:
    from PIL.Image import Image

PACKAGES = {".gif": {"PIL": "pillow"}, ".mp4": {"PIL": "pillow", "av": "av"}}  # to import, to install
PANE, HEADER, MARGIN = 264, 36, 12  # pixels
SHARPNESS = 2  # pixels drawn for one shown, each way
SMOOTHNESS = 2  # frames of one control step
FRAME = round(1000 * DT / SMOOTHNESS)  # milliseconds, so that the film runs in real time
HOLD = 40 * FRAME  # for how long a round's outcomes are shown
VIEW = 1.27  # metres from the shoulder to the edge of a pane; the arm reaches 1.2
DISTANCE = 30.0  # metres of the camera from the plane: so far off, a sphere's outline is its radius
WORDS = {GOING: "", SUCCESS: "safe success, ", COLLISION: "collision, ", TIMEOUT: "time-out, "}
SHADOW = "0.028 -0.04 -0.108"
COLOURS = {GOING: (52, 64, 84), SUCCESS: (30, 142, 90), COLLISION: (208, 52, 44), TIMEOUT: (200, 124, 8)}
CAPTIONS = COLOURS | {GOING: (140, 146, 156)}
FLOORS = {GOING: (252, 251, 248), SUCCESS: (214, 240, 224), COLLISION: (250, 219, 214), TIMEOUT: (252, 235, 200)}

# Lit from where the camera is, what is level has its colour exactly. The arm's shadow is another arm, below: without a
# graphics card, shadows of a light take four times as long, and they differ from driver to driver.
ARM = f"""
    <body pos="{{place}}">
      <joint axis="0 0 1"/>
      <geom type="capsule" fromto="0 0 0 {UPPER} 0 0" size="{THICKNESS}" material="{{material}}"/>
      <geom class="flat" size="0.042 {THICKNESS}" material="{{material}}"/>
      <body pos="{UPPER} 0 0">
        <joint axis="0 0 1"/>
        <geom type="capsule" fromto="0 0 0 {LOWER} 0 0" size="{THICKNESS}" material="{{material}}"/>
        <geom class="flat" size="0.03 {THICKNESS}" material="{{material}}"/>
        <geom class="flat" size="0.012 0.03" material="{{pin}}"/>
        <geom type="sphere" size="0.03" pos="{LOWER} 0 0" material="{{material}}"/>
      </body>
    </body>
"""
MODEL = f"""
<mujoco model="film">
  <statistic extent="3"/>
  <visual>
    <global offwidth="{PANE * SHARPNESS}" offheight="{PANE * SHARPNESS}"/>
    <quality offsamples="0" numslices="64" numstacks="16"/>
    <map znear="9" zfar="11"/>
    <headlight ambient="0.7 0.7 0.7" diffuse="0.3 0.3 0.3" specular="0 0 0"/>
  </visual>
  <default>
    <geom mass="1"/>
    <default class="flat"><geom type="cylinder"/></default>
  </default>
  <asset>
    <material name="floor"/>
    <material name="shadow"/>
    <material name="arm"/>
    <material name="pin"/>
  </asset>
  <worldbody>
    <camera name="above" pos="0 0 {DISTANCE}" fovy="{np.degrees(2 * np.arctan(VIEW / DISTANCE))}"/>
    <geom type="plane" pos="0 0 -0.13" size="4 4 1" rgba="0.94 0.93 0.90 1"/>
    <geom class="flat" size="{UPPER + LOWER} 0.002" pos="0 0 -0.128" material="floor"/>
    <geom class="flat" size="0.075 0.002" pos="0 0 -0.12" rgba="0.82 0.83 0.84 1"/>
    <body name="target" mocap="true">
      <geom class="flat" size="{SUCCESS_RADIUS} 0.002" pos="0 0 -0.12" rgba="0.13 0.55 0.56 1"/>
      <geom class="flat" size="{SUCCESS_RADIUS - 0.012} 0.002" pos="0 0 -0.117" rgba="0.74 0.90 0.89 1"/>
      <geom class="flat" size="0.014 0.002" pos="0 0 -0.114" rgba="0.13 0.55 0.56 1"/>
    </body>
    <body name="obstacle" mocap="true">
      <geom name="obstacle" type="sphere" size="0.05" rgba="0.95 0.47 0.36 1"/>
      <geom name="shadow" class="flat" size="0.05 0.002" pos="{SHADOW}" material="shadow"/>
    </body>
    {ARM.format(place="0 0 0", material="arm", pin="pin")}
    {ARM.format(place=SHADOW, material="shadow", pin="shadow")}
  </worldbody>
</mujoco>
"""

PROBE = """
import os
try:
    import mujoco
    with mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16) as renderer:
        renderer.render()
except BaseException as problem:
    print(f"{type(problem).__name__}: {problem}".splitlines()[0], flush=True)
    os._exit(1)
"""


# -- what can be said before ------------------------------------------------------------------------------------------


def output(text: str) -> Path:
    """The path of a film on a command line."""
    path = Path(text)
    if path.suffix.lower() not in PACKAGES:
        raise argparse.ArgumentTypeError(f"{text!r} ends in none of {', '.join(PACKAGES)}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK) or path.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: no folder {path.parent} that could hold it")
    return path


def trouble(path: Path) -> str | None:
    """Why no film can be made here, and what to do about it, in one line; None if one can."""
    packages = PACKAGES[path.suffix.lower()]
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        return f"a {path.suffix} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
    try:
        done = child("-c", PROBE, timeout=60)
    except subprocess.TimeoutExpired:
        reason = "no answer in 60 s"
    else:
        if done.returncode == 0:
            return None
        reason = done.stdout.strip() or ended(done.returncode)
    return (
        f"MuJoCo cannot draw with MUJOCO_GL={GL} ({reason}); install a GL that needs no window "
        "(on Debian: libegl1 libgl1-mesa-dri) and set MUJOCO_GL=egl"
    )


def child(*arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """A Python that finds the GL it is to use when it begins."""
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, "MUJOCO_GL": GL}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip


def ended(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


# -- episodes ---------------------------------------------------------------------------------------------------------


@dataclass
class Episode:
    """What is to be seen of one."""

    split: str
    scene: Scene
    angles: list[Array] = field(default_factory=list)
    """[2] at the start and after each control step."""
    outcome: int = GOING

    @property
    def steps(self) -> int:
        return len(self.angles) - 1


def play(policy: Policy, seed: int, count: int) -> list[Episode]:
    """``count`` episodes of each split with the mean action: the first scenes of the run's evaluations."""
    episodes = [Episode(split, scene) for split in SPLITS for scene in diagnostic_scenes(seed, split, count)]
    reaching = Reaching(len(episodes))
    for i, episode in enumerate(episodes):
        reaching.begin(i, episode.scene)
        episode.angles.append(reaching.arms.angles[i].copy())
    going = list(range(len(episodes)))
    while going:
        _, outcomes = reaching.advance(policy(reaching.observe(going)).astype(np.float64), going)
        for i, outcome in zip(going, outcomes.tolist(), strict=True):
            episodes[i].angles.append(reaching.arms.angles[i].copy())
            episodes[i].outcome = outcome
        going = [i for i in going if episodes[i].outcome == GOING]
    return episodes


# -- pictures ---------------------------------------------------------------------------------------------------------


class Camera:
    """Looks straight down on one arm."""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(MODEL)
        self.data = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, PANE * SHARPNESS, PANE * SHARPNESS)

    def pane(self, scene: Scene, angles: list[Array], outcome: int) -> Image:
        """The scene with the arm at the last of the angles, and the way its hand came."""
        import PIL.Image

        model, data = self.model, self.data
        for name in ("obstacle", "shadow"):
            model.geom(name).size[0] = model.geom(name).rbound[0] = scene.radius - THICKNESS
        arm, floor = np.divide(COLOURS[outcome], 255), np.divide(FLOORS[outcome], 255)
        for name, rgb in (("arm", arm), ("floor", floor), ("shadow", 0.74 * floor)):
            model.material(name).rgba[:3] = rgb
        data.mocap_pos[:, :2] = scene.target, scene.obstacle
        data.qpos[:] = [*angles[-1], *angles[-1]]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        self.renderer.update_scene(data, camera="above")
        for pair in angles[:-1]:
            self._dot(elbow_and_hand(*pair)[1], (arm + floor) / 2)
        picture = PIL.Image.fromarray(self.renderer.render())
        return picture.resize((PANE, PANE), PIL.Image.Resampling.BOX)

    def _dot(self, where: tuple[float, float], rgb: Array) -> None:
        scene = self.renderer.scene
        mujoco.mjv_initGeom(
            scene.geoms[scene.ngeom], mujoco.mjtGeom.mjGEOM_BOX, np.full(3, 0.008), np.array([*where, -0.105]),
            np.eye(3).flatten(), np.array([*rgb, 1], np.float32),
        )  # fmt: skip
        scene.ngeom += 1


@dataclass(frozen=True)
class Frame:
    """A picture, and for how long it is shown, in milliseconds."""

    picture: Image
    duration: int


def frames(camera: Camera, episodes: list[Episode]) -> Iterator[Frame]:
    """Rounds, each with an episode of every split side by side until the last of them is over."""
    for i in range(len(episodes) // len(SPLITS)):
        around = episodes[i :: len(episodes) // len(SPLITS)]
        panes = [captioned(camera, episode, 0) for episode in around]
        yield Frame(side_by_side(panes), 10 * FRAME)
        for time in range(1, SMOOTHNESS * max(episode.steps for episode in around) + 1):
            for k, episode in enumerate(around):
                if time <= SMOOTHNESS * episode.steps:
                    panes[k] = captioned(camera, episode, time)
            yield Frame(side_by_side(panes), FRAME)
        yield Frame(side_by_side(panes), HOLD)


def captioned(camera: Camera, episode: Episode, time: int) -> Image:
    """An episode at a time, counted in frames, below its split, its step and at last its outcome."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    step, between = divmod(time, SMOOTHNESS)
    angles, outcome = episode.angles[: step + 1], episode.outcome if step == episode.steps else GOING
    if between:
        angles.append(angles[-1] + (episode.angles[step + 1] - angles[-1]) * between / SMOOTHNESS)
    pane = camera.pane(episode.scene, angles, outcome)
    picture = PIL.Image.new("RGB", (PANE, HEADER + PANE), pane.getpixel((0, 0)))
    picture.paste(pane, (0, HEADER))
    draw = PIL.ImageDraw.Draw(picture)
    font = PIL.ImageFont.load_default(15)
    draw.text((MARGIN, HEADER), episode.split, COLOURS[GOING], font, "ls")
    draw.text((PANE - MARGIN, HEADER), f"{WORDS[outcome]}step {step}", CAPTIONS[outcome], font, "rs")
    return picture


def side_by_side(panes: list[Image]) -> Image:
    import PIL.Image

    picture = PIL.Image.new("RGB", (sum(pane.width for pane in panes), panes[0].height))
    for k, pane in enumerate(panes):
        picture.paste(pane, (k * pane.width, 0))
    return picture


# -- files ------------------------------------------------------------------------------------------------------------


def write_gif(path: Path, film: Iterator[Frame], swatch: Image) -> None:
    """All frames have the colours of the swatch, without dithering: what does not move stays as it is."""
    import PIL.Image

    colours = swatch.quantize(256, dither=PIL.Image.Dither.NONE)

    def reduced(frame: Frame) -> Image:
        picture = frame.picture.quantize(palette=colours, dither=PIL.Image.Dither.NONE)
        picture.info["duration"] = frame.duration
        return picture

    first = reduced(next(film))
    first.save(path, "GIF", save_all=True, append_images=map(reduced, film), loop=0)


def write_mp4(path: Path, film: Iterator[Frame]) -> None:
    """H.264; a frame that stays is repeated."""
    import av

    first = next(film)
    with av.open(path, "w", "mp4", {"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", 1000 // FRAME, {"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = *first.picture.size, "yuv420p"
        for frame in chain([first], film):
            for _ in range(frame.duration // FRAME):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame.picture), "rgb24")))
        container.mux(stream.encode())


def shoot(path: Path, episodes: list[Episode]) -> None:
    """Film the episodes; an older film is replaced when the new one is whole."""
    camera, new = Camera(), path.with_suffix(".new")
    film = frames(camera, episodes)
    if path.suffix.lower() == ".gif":
        ends = [replace(episodes[0], angles=episodes[0].angles[:1], outcome=outcome) for outcome in COLOURS]
        write_gif(new, film, side_by_side([captioned(camera, end, 0) for end in ends]))
    else:
        write_mp4(new, film)
    new.replace(path)


def make(checkpoint: Path, path: Path) -> None:
    """Film a checkpoint in a process of its own, and say what came of it."""
    done = child(__file__, str(checkpoint), str(path))
    if done.returncode:
        reason = (done.stderr.strip() or ended(done.returncode)).splitlines()[-1]
        print(f"no film: {reason.removeprefix('no film: ')}", file=sys.stderr, flush=True)
    else:
        print(done.stdout.strip(), flush=True)


def load(checkpoint: Path) -> tuple[Policy, int]:
    """The policy of a checkpoint and the seed of its run. ValueError if it is none."""
    import torch

    from reaching.agent import Agent

    torch.set_num_threads(1)
    agent = Agent(orthogonal=False)
    try:
        saved = torch.load(checkpoint, weights_only=True)
        agent.load_state_dict(saved["agent"])
        return agent.act, int(saved["identity"]["seed"])
    except Exception as error:  # a missing, torn or foreign file fails in many ways
        raise ValueError(f"{checkpoint} is not a checkpoint of the reacher ({type(error).__name__})") from error


def main() -> None:
    p = argparse.ArgumentParser(description="Film a checkpoint of workloads/reacher.py.", allow_abbrev=False)
    p.add_argument("checkpoint", type=Path, help="a .pt file that a run left")
    p.add_argument("output", type=output, help="a .gif or an .mp4")
    p.add_argument("--seed", type=int, help="of the scenes (default: that of the checkpoint's run)")
    p.add_argument("--episodes", type=int, default=2, help="of each split (default: 2)")
    args = p.parse_args()
    if args.episodes < 1 or (args.seed or 0) < 0:
        p.error("--episodes is 1 or more, --seed 0 or more")
    if problem := trouble(args.output):
        raise SystemExit(f"no film: {problem}")
    try:
        policy, seed = load(args.checkpoint)
        episodes = play(policy, seed if args.seed is None else args.seed, args.episodes)
        shoot(args.output, episodes)
    except (OSError, ValueError) as error:
        raise SystemExit(f"no film: {error}") from error
    outcomes = [episode.outcome for episode in episodes]
    counts = [outcomes.count(outcome) for outcome in (SUCCESS, COLLISION, TIMEOUT)]
    print("film: {} safe success, {} collision, {} time-out; {}".format(*counts, args.output))


if __name__ == "__main__":
    main()
