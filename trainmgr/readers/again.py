"""A recorded run once more: decided again, put to another manager, or trained again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainmgr.base.errors import RecordError, UserError
from trainmgr.base.paths import RunPaths
from trainmgr.contract.policy import Policy
from trainmgr.contract.run_file import EDITION
from trainmgr.log.history import manifest_of
from trainmgr.managers import catalog
from trainmgr.readers import replay
from trainmgr.readers.opinions import Opinion, Reworded, Wordy, opinions, reworded
from trainmgr.running.launch import Request, ready
from trainmgr.sources.pattern import SourceError
from trainmgr.sources.reading import Reading


def decide(paths: RunPaths, runs_dir: Path) -> replay.Rebuilt:
    """Decide it again, and ask its own manager again where that can still be made and always answers the same: not
    that of a log of an earlier edition, since managers have learned since.

    Raises RecordError where its files do not hold together.
    """
    record = manifest_of(paths)
    try:
        manager = catalog.make(record.manager, record.policy, runs_dir)
    except UserError:
        manager = None
    if record.edition == EDITION or manager is None or not manager.deterministic:
        return replay.rebuild(paths, manager)
    rebuilt = replay.rebuild(paths)
    rebuilt.note = (
        f"{record.manager} is not asked again, since the log is of edition {record.edition} and managers have changed: "
        "everything else is compared."
    )
    return rebuilt


@dataclass(frozen=True)
class Answers:
    """What came of asking again. One of the two lists is empty."""

    recorded: str
    """The run's own manager."""
    other: str
    """The one that was asked."""
    opinions: list[Opinion]
    reworded: list[Reworded]


def ask(
    paths: RunPaths, manager: str, policy: Policy | None, paraphrase: int, runs_dir: Path, say: Callable[[str], None]
) -> Answers:
    """Put its snapshots to a manager, under ``policy`` or the run's own; with ``paraphrase`` to a language model in so
    many other wordings, too. ``say`` gets each decision as it is answered.

    Raises UserError where there is no such manager, RecordError where its files do not hold together.
    """
    record = manifest_of(paths)
    other = catalog.make(manager, policy or record.policy, runs_dir)
    answers = Answers(record.manager, other.name, [], [])

    def told(item: Opinion | Reworded) -> None:
        say(f"{item.decision} (step {item.step}) is answered")

    with ready(other, say=say):
        if paraphrase and isinstance(other, Wordy):
            for several in reworded(paths, other, paraphrase):
                told(several)
                answers.reworded.append(several)
        else:
            for opinion in opinions(paths, other):
                told(opinion)
                answers.opinions.append(opinion)
    return answers


@dataclass(frozen=True)
class Trained:
    """Two trainings of the same."""

    again: RunPaths
    """The new run."""
    result: replay.Comparison


def train(paths: RunPaths, runs_dir: Path, start: Callable[[Request], RunPaths], say: Callable[[str], None]) -> Trained:
    """Train it again with the recorded changes at their steps, and compare. ``start`` runs what it is given to its end.

    Raises UserError for a run that cannot be trained again exactly, RecordError where its files do not hold together.
    """
    record, schedule = manifest_of(paths), replay.schedule_of(paths)
    say(f"training {paths.id} again, with {len(schedule)} changes at their recorded steps")
    again = start(
        Request(
            script=Path(record.script), arguments=record.arguments, manager="none", policy=record.policy,
            seed=record.seed, runs_dir=runs_dir, name=f"{Path(record.script).stem}-replay",
            directory=Path(record.directory), replay_of=paths.id, schedule=schedule or None,
            reading=_reading(paths, record.reading),
        )
    )  # fmt: skip
    return Trained(again, replay.compare_training(paths, again))


def _reading(paths: RunPaths, options: list[str]) -> Reading | None:
    """How the script was read; None where it reported itself."""
    try:
        return Reading.parsed(options) if options else None
    except SourceError as error:
        raise RecordError(f"{paths.manifest} does not say how its script was read: {error}") from None
