"""Our own side of the story, folded from the audit log."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from factories.ledgers import answered, asked, control, issued, ruled

from trainmgr.contract import events
from trainmgr.log import audit
from trainmgr.state import ledger
from trainmgr.state.ledger import Ledger


def test_the_control_file_holds_everything_in_force() -> None:
    state = Ledger()
    for changes in ({"lr": 1e-3}, {"dropout": 0.1}, {"lr": 5e-4}):
        content = control(state, changes)
        assert content.revision == state.revision + 1
        state.fold(issued(state, changes))
        state.fold(answered(state.revision))
    assert state.in_force == content.params == {"lr": 5e-4, "dropout": 0.1}
    assert (state.revision, state.applied, state.acknowledged) == (3, 3, 3)


def test_a_refused_override_leaves_what_was_in_force() -> None:
    state = Ledger()
    state.fold(issued(state, {"lr": 1e-3}))
    assert state.outstanding is not None
    state.fold(answered(1))
    assert state.outstanding is None
    state.fold(issued(state, {"lr": 9.0, "dropout": 0.1}))
    state.fold(answered(2, "refused", "too late"))
    assert state.in_force == {"lr": 1e-3}
    assert state.outstanding is None
    assert state.rejections == ["refused by the workload: too late"]
    assert control(state, {}).params == {"lr": 1e-3}
    assert control(state, {}).revision == 3


def test_an_answer_to_an_older_revision_does_not_settle_a_newer_one() -> None:
    state = Ledger()
    state.fold(issued(state, {"lr": 1e-3}))
    state.fold(issued(state, {"lr": 2e-3}))
    state.fold(answered(1, "refused"))
    assert state.outstanding is not None
    assert state.in_force == {"lr": 2e-3}


def test_waiting_ends_with_a_verdict_or_a_failure() -> None:
    state = Ledger()
    state.fold(asked(1, step=10, evals=2))
    assert (state.waiting, state.asked, state.last_step, state.last_evals, state.last_alarm) == ("d1", 1, 10, 2, None)
    state.fold(events.Failure(where="manager", message="no answer", decision="d0"))
    assert state.waiting == "d1"
    state.fold(events.Failure(where="manager", message="no answer", decision="d1"))
    assert state.waiting is None
    state.fold(asked(2, evals=3, why="alarm"))
    state.fold(ruled(2, "rejected", reason="lr = 10 is outside"))
    assert (state.waiting, state.last_alarm, state.rejected) == (None, 3, 1)
    assert state.rejections == ["lr = 10 is outside"]


@pytest.mark.parametrize(("result", "action", "counts"), [
    ("accepted", "adjust", (1, 0)), ("clipped", "adjust", (1, 0)), ("accepted", "stop", (1, 0)),
    ("accepted", "keep", (0, 0)), ("rejected", "adjust", (0, 1)), ("rejected", "keep", (0, 1)),
])  # fmt: skip
def test_what_counts_as_an_intervention(result: str, action: str, counts: tuple[int, int]) -> None:
    state = Ledger()
    state.fold(ruled(1, result, action))
    assert (state.accepted, state.rejected) == counts


def test_memory_is_bounded_and_the_fold_can_be_cut() -> None:
    state, size = Ledger(), 0
    for number in range(1, 501):
        parts = [asked(number), ruled(number), issued(state, {"lr": 1e-3}), answered(number, "refused", "no")]
        if number == 250:
            state, size = pickle.loads(pickle.dumps(state)), len(pickle.dumps(copy.deepcopy(state)))
        for part in parts:
            state.fold(part)
    assert len(state.decisions) == len(state.revisions) == ledger.KEPT
    assert len(state.rejections) == 4
    assert len(pickle.dumps(state)) < size * 1.1 + 500
    assert list(state.decisions)[-1] == "d500"


def test_a_copy_goes_its_own_way() -> None:
    """The auditor asks a shallow copy what follows from an event: folding changes nothing of what is held."""
    (run,) = (Path(__file__).parents[1] / "example").iterdir()
    state = Ledger()
    for event in audit.read(run / "audit.jsonl"):
        before = pickle.dumps(state)
        ahead = copy.copy(state)
        ahead.fold(event.data)
        assert pickle.dumps(state) == before
        state = ahead
    assert state.ended is not None
    assert state.applied
