"""What is read from the files of a run."""

from __future__ import annotations

import math
from pathlib import Path

import factories
import pytest

from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import to_json
from trainmgr.comparison import measured
from trainmgr.contract import events, protocol
from trainmgr.contract.run_file import Closing, Git, Manifest, RunFile
from trainmgr.log import audit


def written(root: Path, *records: protocol.Telemetry) -> RunPaths:
    paths = RunPaths(root)
    paths.telemetry.write_bytes(b"".join(to_json(record) + b"\n" for record in records))
    return paths


def request() -> events.Request:
    return events.Request(
        decision="d1", purpose="decide", attempt=0, endpoint="", model="m", level="text", template="t",
        template_sha256="", messages=[], answer_schema=None, parameters={}, prompt_tokens=900,
    )  # fmt: skip


def reply(money: float | None) -> events.Reply:
    return events.Reply(decision="d1", text="{}", prompt_tokens=900, completion_tokens=100, money=money, seconds=1.0)


def test_the_curve_is_that_of_the_weights_that_were_kept(tmp_path: Path) -> None:
    paths = written(
        tmp_path,
        factories.start(mode="max"),
        factories.step(5, train=1.0, test_of_step=1.0),
        factories.evaluation(10, 1.0),
        factories.evaluation(20, 2.0, test_of_eval=3.0),
        factories.evaluation(30, 3.0),
        factories.start(mode="max", resumed=protocol.Resumed(path="checkpoints/x", step=20)),
        factories.evaluation(30, 4.0),
        protocol.End(v=1, seq=0, t=0.0, event="end", status="completed", step=30, metrics={"test_of_end": 1.0}),
    )
    found = measured.read(paths)
    assert (found.objective, found.goal) == ("val", "max")
    assert found.curve == [(10, 1.0), (20, 2.0), (30, 4.0)]
    assert found.shown == {"test_of_step", "test_of_eval"}
    assert (found.calls, found.tokens, found.money) == (0, 0, 0.0)


@pytest.mark.parametrize(("command", "to", "on_best"), [
    ("stop", "best", True), ("stop", None, False), ("rollback", "best", False), (None, None, False),
])  # fmt: skip
def test_whether_a_run_ended_on_its_best(tmp_path: Path, command: str | None, to: str | None, on_best: bool) -> None:
    change = factories.applied(10, 1, {"lr": (1e-3, 5e-4)})
    paths = written(tmp_path, factories.start(), change, factories.applied(20, 2, command=command, to=to))
    assert measured.read(paths).on_best is on_best


@pytest.mark.parametrize(("prices", "money"), [([0.25, 0.5], 0.75), ([0.25, None], None), ([None, 0.25], None)])
def test_calls_are_counted_and_what_is_not_known_is_not_nothing(
    tmp_path: Path, prices: list[float | None], money: float | None
) -> None:
    log = audit.Log(tmp_path / "audit.jsonl")
    for price in prices:
        log.append(request(), 0.0)
        log.append(reply(price), 0.0)
    log.close()
    found = measured.read(written(tmp_path, factories.start()))
    assert (found.calls, found.tokens, found.money) == (2, 2000, money)


def test_a_run_that_is_not_there_measured_nothing(tmp_path: Path) -> None:
    assert measured.read(None) == measured.read(RunPaths(tmp_path / "nowhere")) == measured.Measured()


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


def test_two_runs_have_the_same_digest_where_all_figures_are_the_same(tmp_path: Path) -> None:
    def read(*records: protocol.Telemetry) -> measured.Measured:
        return measured.read(written(tmp_path, factories.start(), *records))

    first, second = factories.step(10, loss=1.5), factories.evaluation(10, 1.0)
    more = factories.evaluation(20, 0.5)
    one = read(first, second, more)
    later = read(*(record.model_copy(update={"t": 9e9, "seq": 7}) for record in (first, second, more)))
    assert (later.course, later.figures) == (one.course, one.figures)
    assert measured.same_training(one, later)
    for course, other in (
        (False, (first, factories.evaluation(10, math.nextafter(1.0, 2)), more)),
        (False, (first, second)),
        (True, (first, factories.evaluation(10, 1.0, extra=0.0), more)),
        (True, (factories.step(10, loss=math.nextafter(1.5, 2)), second, more)),
        (True, (first, factories.applied(10, 1, {"lr": (1e-3, 5e-4)}), second, more)),
    ):
        assert (read(*other).course == one.course) is course
        assert read(*other).figures != one.figures
        assert not measured.same_training(one, read(*other))
    assert read(first).figures is read(first).course is None
    assert not measured.same_training(read(second), read(second))  # a single value
    assert not measured.same_training(read(first), read(first))


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
