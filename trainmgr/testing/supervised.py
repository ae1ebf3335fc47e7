"""One real run of a training script, in the process of the test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainmgr.base.paths import RunPaths
from trainmgr.contract import protocol
from trainmgr.contract.policy import Actions, Limits, Policy, Probation
from trainmgr.contract.run_file import Closing, Manifest, RunMode
from trainmgr.managers.base import Manager
from trainmgr.running import launch
from trainmgr.testing.recorder import Recorder

EXACT = Policy(
    limits=Limits(lead_steps=1), probation=Probation(enabled=False), actions=Actions(stop_settled_evals=0)
)  # fmt: skip
"""Each change takes effect exactly one step after the evaluation that it was decided on. Nothing is taken back, and a
stop is always offered: a script is followed to the letter."""


def supervise(
    folder: Path,
    script: Path,
    manager: Manager | None = None,
    *,
    listener: Recorder | None = None,
    policy: Policy | None = None,
    mode: RunMode = "auto",
    blocking: bool = False,
    seed: int | None = 1,
    schedule: list[protocol.Override] | None = None,
    arguments: Sequence[str] = (),
) -> tuple[RunPaths, Closing, Recorder]:
    """One real run in ``folder``/runs, to its end. Without a manager nobody decides; without a policy it is EXACT."""
    recorder = listener if listener is not None else Recorder()
    request = launch.Request(
        script=script, arguments=list(arguments), manager="none", mode=mode, policy=policy or EXACT, seed=seed,
        runs_dir=folder / "runs", directory=folder, schedule=schedule, blocking=blocking,
    )  # fmt: skip

    def listen(paths: RunPaths, _: Manifest) -> Recorder:
        recorder.paths = paths
        return recorder

    paths, closing = launch.launch(request, listen, manager=manager)
    return paths, closing, recorder
