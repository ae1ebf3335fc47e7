"""The film: what is in it, that making it alters nothing, and what is said where none can be made."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reacher
from numpy.typing import NDArray
from reaching import film
from reaching.evaluation import MODES, Examination
from reaching.film import COLOURS, FLOORS, FRAME, HEADER, PANE, SMOOTHNESS
from reaching.task import COLLISION, SUCCESS, TIMEOUT

from trainmgr.base.paths import RunPaths
from trainmgr.contract import protocol
from trainmgr.log.telemetry import Feed

BROKEN = {"MUJOCO_GL": "no such GL"}


def python(script: Any, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRAINMGR_")}
    kept |= {"OMP_NUM_THREADS": "1", "MUJOCO_GL": film.GL} | environment
    command = [sys.executable, script.__file__, *map(str, arguments)]
    return subprocess.run(command, env=kept, capture_output=True, text=True, timeout=240, check=False)


def train(out: Path, *more: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return python(reacher, "--profile", "tiny", "--seed", "3", "--out", out, *more, **environment)


def metrics(out: Path) -> list[Any]:
    kinds = (protocol.Step, protocol.Eval, protocol.End)
    return [(r.step, r.metrics) for r in Feed(RunPaths(out).telemetry).records() if isinstance(r, kinds)]


@pytest.fixture(scope="session")
def gl() -> None:
    if (problem := film.trouble(Path("film.mp4"))) is not None:
        pytest.skip(problem)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a film."""
    out = tmp_path_factory.mktemp("plain")
    assert train(out).returncode == 0
    return out


@pytest.fixture(scope="session")
def rendered(gl: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same with one, as film.gif beside it."""
    out = tmp_path_factory.mktemp("rendered")
    return out, train(out, "--render", out / "film.gif")


def pictures(path: Path) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """The frames of a GIF [H, W, 3] and their durations in milliseconds."""
    import PIL.Image
    import PIL.ImageSequence

    with PIL.Image.open(path) as gif:
        frames = [(frame.convert("RGB"), int(frame.info["duration"])) for frame in PIL.ImageSequence.Iterator(gif)]
    return [np.array(picture) for picture, _ in frames], [duration for _, duration in frames]


def share(pane: NDArray[np.uint8], colour: tuple[int, int, int]) -> float:
    """Of the pixels that have a colour, or nearly."""
    return float((np.abs(pane.astype(int) - colour).max(axis=-1) < 12).mean())


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_the_episodes_are_those_of_the_evaluation(plain: Path) -> None:
    policy, seed = film.load(plain / "checkpoints" / "last.pt")
    assert seed == 3
    episodes = film.play(policy, seed, 4)
    result = Examination(seed, 4).run(policy, np.zeros(2))
    for split in ("easy", "medium", "hard"):
        cell, mine = result.cells[f"{split}/{MODES[0]}"], [e for e in episodes if e.split == split]
        outcomes = [e.outcome for e in mine]
        counts = [outcomes.count(outcome) for outcome in (SUCCESS, COLLISION, TIMEOUT)]
        assert counts == [cell.successes, cell.collisions, cell.timeouts]
        assert sum(e.steps for e in mine) == cell.steps


def test_a_gif_shows_each_round_to_its_end_in_the_colours_of_its_outcomes(
    rendered: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = rendered
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("film: ")
    found, durations = pictures(out / "film.gif")
    episodes = film.play(*film.load(out / "checkpoints" / "last.pt"), 2)
    rounds = [episodes[i::2] for i in range(2)]
    assert [[e.split for e in around] for around in rounds] == [["easy", "medium", "hard"]] * 2
    lengths = [max(e.steps for e in around) for around in rounds]
    assert {picture.shape for picture in found} == {(HEADER + PANE, 3 * PANE, 3)}
    moments = np.cumsum(durations) - durations  # when each is first shown: equal ones in a row are kept as one
    assert sum(durations) == sum(10 * FRAME + length * SMOOTHNESS * FRAME + film.HOLD for length in lengths)
    start = 0
    for around, length in zip(rounds, lengths, strict=True):
        end = start + 10 * FRAME + length * SMOOTHNESS * FRAME
        for at, over in ((start, False), (end, True)):
            picture = found[int(np.searchsorted(moments, at, side="right")) - 1]
            for k, episode in enumerate(around):
                pane = picture[HEADER:, k * PANE : (k + 1) * PANE]
                shown = episode.outcome if over else film.GOING
                assert share(pane, FLOORS[shown]) > 0.5
                assert all(share(pane, FLOORS[other]) < 0.01 for other in FLOORS if other != shown)
                name = picture[:HEADER, k * PANE : k * PANE + PANE // 3]
                assert share(name, COLOURS[film.GOING]) > 0.005
        start = end + film.HOLD
    assert len(found) > sum(lengths)


def test_a_pane_shows_arm_target_and_obstacle_where_they_are(gl: None, tmp_path: Path) -> None:
    """Colours at the places that the scene names, in a picture of a GIF with one episode of each outcome."""
    code = (
        "import numpy as np; from pathlib import Path; from reaching import film; from reaching.scenes import Scene\n"
        "scene = Scene((0.0, 1.5707963), (-0.5, 0.6), (0.2, -0.4), 0.12)\n"
        "at = np.array(scene.angles)\n"
        f"film.shoot(Path({str(tmp_path / 'places.gif')!r}),"
        " [film.Episode('easy', scene, [at, at], outcome) for outcome in (1, 2, 3)])"
    )
    done = film.child("-c", f"import sys; sys.path.insert(0, {str(Path(reacher.__file__).parent)!r})\n{code}")
    assert done.returncode == 0, done.stderr
    last = pictures(tmp_path / "places.gif")[0][-1]
    for k, outcome in enumerate((SUCCESS, COLLISION, TIMEOUT)):

        def colour(x: float, y: float, k: int = k) -> NDArray[np.float64]:
            scale = PANE / 2 / film.VIEW
            return 1.0 * last[HEADER + round(PANE / 2 - scale * y), round(k * PANE + PANE / 2 + scale * x)]

        for along in ((0.3, 0.0), (0.65, 0.3)):  # both links are lit, so brighter or darker, but of that hue
            arm = colour(*along)
            assert np.abs(arm / arm.max() - np.array(COLOURS[outcome]) / max(COLOURS[outcome])).max() < 0.15
        red, green, blue = colour(0.2, -0.4)
        assert red > green + 40 > blue + 40
        red, green, blue = colour(-0.54, 0.64)
        assert green > red + 25
        assert blue > red + 25


def test_an_mp4_has_a_frame_for_every_moment(gl: None, plain: Path, tmp_path: Path) -> None:
    import av

    path = tmp_path / "film.mp4"
    done = python(film, plain / "checkpoints" / "best.pt", path, "--episodes", "1", "--seed", "8")
    assert done.returncode == 0, done.stderr
    length = max(e.steps for e in film.play(film.load(plain / "checkpoints" / "best.pt")[0], 8, 1))
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 1000 // FRAME)
        decoded = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(stream)]
    assert decoded == [(HEADER + PANE, 3 * PANE, 3)] * (10 + length * SMOOTHNESS + film.HOLD // FRAME)


# -- it alters nothing ------------------------------------------------------------------------------------------------


def test_a_run_with_a_film_is_the_run_without_one(
    plain: Path, rendered: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    assert (rendered[0] / "film.gif").exists()
    assert metrics(rendered[0]) == metrics(plain)
    assert not (rendered[0] / "film.new").exists()


def test_without_a_gl_a_run_says_so_before_and_after_and_is_the_same(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")  # else that is what is said
    out = tmp_path / "out"
    done = train(out, "--render", tmp_path / "film.gif", **BROKEN)
    assert done.returncode == 0
    before, after = done.stderr.splitlines()
    assert before.startswith(
        "--render: there will be no film: MuJoCo cannot draw with MUJOCO_GL=no such GL (RuntimeError"
    )
    assert before.endswith("and set MUJOCO_GL=egl")
    assert after == before.replace("--render: there will be no film", "no film")
    assert metrics(out) == metrics(plain)
    assert not (tmp_path / "film.gif").exists()


# -- what can be said before ------------------------------------------------------------------------------------------


def test_a_path_that_cannot_be_is_a_usage_error_before_anything_begins(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "film.avi", "ends in none of .gif, .mp4"),
        (tmp_path / "nowhere" / "film.gif", f"no folder {tmp_path / 'nowhere'} that could hold it"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=said):
            film.output(str(path))
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(argparse.ArgumentTypeError, match="cannot write"):
        film.output(str(tmp_path / "folder.gif"))
    done = train(tmp_path / "out", "--render", tmp_path / "film.avi")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("reacher.py: error: argument --render: ")
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film.importlib.util, "find_spec", lambda name: None)
    assert film.trouble(Path("a.gif")) == "a .gif needs pillow: pip install pillow"
    assert film.trouble(Path("a.MP4")) == "a .MP4 needs pillow and av: pip install pillow av"


def test_a_gl_that_takes_its_process_along_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(film, "PROBE", "import os; os.abort()")
    assert "(killed by SIGABRT)" in str(film.trouble(Path("a.gif")))


def test_what_is_no_checkpoint_is_refused_in_one_line(gl: None, tmp_path: Path) -> None:
    (tmp_path / "torn.pt").write_bytes(b"PK")
    done = python(film, tmp_path / "torn.pt", tmp_path / "film.gif")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "torn.pt is not a checkpoint of the reacher (" in done.stderr
