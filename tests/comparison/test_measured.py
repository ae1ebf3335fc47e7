"""What a run measured, as its closing says it or as its files do."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import factories
import pytest

from trainmgr.base.paths import RunPaths
from trainmgr.comparison import measured
from trainmgr.contract.run_file import Closing, Git, Manifest, Measured, RunFile
from trainmgr.log import history
from trainmgr.state.ledger import Ledger
from trainmgr.state.measured import measured as figures_of
from trainmgr.state.situation import Situation

(EXAMPLE,) = (Path(__file__).parents[1] / "example").iterdir()


def test_a_run_of_a_version_that_kept_no_figures_is_read_from_its_files(tmp_path: Path) -> None:
    paths = RunPaths(shutil.copytree(EXAMPLE, tmp_path / EXAMPLE.name))
    file = history.run_file(paths)
    assert file is not None
    assert file.closing is not None
    assert file.closing.measured is None
    found = measured.read(paths, file)
    lines = [json.loads(line) for line in paths.telemetry.read_text().splitlines()]
    objective = file.closing.objective
    assert found.curve == [(e["step"], e["metrics"][objective]) for e in lines if e["event"] == "eval"]
    assert found.goal == "min"


def test_what_the_closing_says_is_not_read_again(tmp_path: Path) -> None:
    paths = RunPaths(shutil.copytree(EXAMPLE, tmp_path / EXAMPLE.name))
    file = history.run_file(paths)
    assert file is not None
    assert file.closing is not None
    kept = figures_of(Situation(factories.curve([1.0, 0.5]), Ledger()))
    with_it = file.model_copy(update={"closing": file.closing.model_copy(update={"measured": kept})})
    paths.telemetry.unlink()
    paths.audit.unlink()
    assert measured.read(paths, with_it) == kept
    assert measured.read(paths, file) == figures_of(measured.NOTHING)


def test_a_run_that_is_not_there_measured_nothing(tmp_path: Path) -> None:
    nothing = figures_of(measured.NOTHING)
    assert measured.read(None, None) == measured.read(RunPaths(tmp_path / "nowhere"), None) == nothing
    assert (nothing.curve, nothing.course, nothing.figures, nothing.money) == ([], None, None, 0.0)


def test_the_same_training_measured_the_same_and_more_than_one_value() -> None:
    def of(*values: float) -> Measured:
        return figures_of(Situation(factories.curve(values), Ledger()))

    assert measured.same_training(of(1.0, 0.5), of(1.0, 0.5))
    assert not measured.same_training(of(1.0, 0.5), of(1.0, math.nextafter(0.5, 1)))
    assert not measured.same_training(of(1.0), of(1.0))
    assert not measured.same_training(of(), of())


def test_time_that_several_runs_share_counts_once(manifest: Manifest) -> None:
    def file(created: float, ended: float) -> RunFile:
        closing = Closing(
            ended=ended, status="completed", exit_code=0, exit="ended well", steps=1, interventions=0, objective=None,
            final=None, best=None, best_step=None, metrics={}, info={},
        )  # fmt: skip
        return RunFile(manifest=manifest.model_copy(update={"created": created}), closing=closing)

    files = [file(0, 10), file(20, 30), file(5, 12), file(22, 25), RunFile(manifest=manifest)]
    assert measured.wall_seconds(files) == 22.0
    assert measured.revisions(files) == {"unknown": 5}
    git = Git(revision="0123456789abcdef", dirty=True)
    assert measured.revision(RunFile(manifest=manifest.model_copy(update={"git": git}))) == "0123456789ab+"


@pytest.mark.parametrize(
    ("final", "best", "reported", "metrics"),
    [
        (1.0, 0.5, {}, {"val": 1.0, "best val": 0.5}),
        (math.inf, None, {}, {"val": math.inf}),  # diverged from the first evaluation on
        (None, None, {}, {}),
        (1.0, 0.5, {"acc": 0.9}, {"acc": 0.9}),
    ],
)
def test_the_figures_of_the_end(
    final: float | None, best: float | None, reported: dict[str, float], metrics: dict[str, float]
) -> None:
    closing = Closing(
        ended=1.0, status="completed", exit_code=0, exit="ended well", steps=1, interventions=0, objective="val",
        final=final, best=best, best_step=None, metrics=reported, info={},
    )  # fmt: skip
    assert measured.final_metrics(closing) == metrics
