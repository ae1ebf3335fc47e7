"""The committed run of workloads/minimal.py: what a release has written, every later one must prove and replay."""

from __future__ import annotations

from pathlib import Path

from trainmgr.base.paths import RunPaths
from trainmgr.log.history import latest
from trainmgr.managers.rules import RulesManager
from trainmgr.readers import again, opinions, proof, replay

(RUN,) = (RunPaths(path) for path in (Path(__file__).parents[1] / "example").iterdir())


def test_it_holds() -> None:
    result = proof.prove(RUN)
    assert not result.findings
    assert result.ended
    assert result.changes


def test_it_replays_byte_for_byte() -> None:
    result = replay.rebuild(RUN)
    assert not result.differences
    assert result.counts["override"] == len(proof.prove(RUN).changes)


def test_the_manager_of_an_earlier_edition_is_not_asked_again_and_that_is_said() -> None:
    result = again.decide(RUN, RUN.root.parent)
    assert not result.differences
    assert "proposal" not in result.counts
    assert result.note.startswith("rules is not asked again, since the log is of edition 1")


def test_its_rules_can_be_asked_again() -> None:
    """Later rules may answer otherwise; they must answer."""
    found = list(opinions.opinions(RUN, RulesManager(latest(RUN).policy)))
    assert found
    assert all(opinion.valid for opinion in found)
