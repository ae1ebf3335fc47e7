"""What is asked for can be read, or is refused in words before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.sources.pattern import SourceError
from trainmgr.sources.reading import Reading

VAL = ["step {step} val {val_loss}"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"patterns": VAL}, "--read PATTERN needs the number that decides what is better: --objective val_loss:min"),
        ({"patterns": VAL, "objective": "val_loss"}, "NAME:min or NAME:max"),
        ({"patterns": VAL, "objective": "val_loss:low"}, "NAME:min or NAME:max"),
        ({"patterns": VAL, "objective": "valloss:min"}, "they have: step, val_loss. Name one of these"),
        ({"patterns": VAL, "objective": "valloss:min"}, "Perhaps you mean val_loss?"),
        ({"patterns": VAL, "objective": "step:min"}, "is the step"),
        ({"patterns": VAL, "objective": "val_loss:min", "counterpart": "val_loss"}, "is the objective"),
        (
            {"patterns": VAL, "objective": "val_loss:min", "counterpart": "loss"},
            "--counterpart 'loss' is in no pattern",
        ),
        ({"patterns": VAL, "objective": "val_loss:min", "step": "it"}, "in a pattern the step is {step}"),
        ({"patterns": ["{a"], "objective": "a:min"}, "names no number"),
        ({"patterns": VAL, "csv": "x", "objective": "a:min"}, "--read PATTERN and --csv FILE are two places"),
        ({"csv": "x", "jsonl": "y", "objective": "a:min"}, "Choose one"),
        ({"csv": "x", "objective": f"{'a' * 65}:min"}, "1 to 64 characters"),
        ({"csv": "x", "objective": "a:min", "total_steps": 0}, "--total-steps is 0; allowed"),
        ({"objective": "a:min"}, "--objective is for a script that is only read"),
        ({"total_steps": 3}, "--total-steps is for a script that is only read"),
    ],
)
def test_what_cannot_be_is_said_with_the_way_out(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError, match=r".*") as found:
        Reading.asked(**{"objective": None, **asked})
    assert said in str(found.value)


def test_nothing_asked_is_nothing_read() -> None:
    assert Reading.asked(objective=None) is None


@pytest.mark.parametrize(
    "options", [[], ["--csv=x"], ["--magic=1"], ["csv"], ["--csv=x", "--objective=a:min", "--total-steps=many"],
                ["--csv=x", "--objective=a:min", f"--total-steps={'9' * 5000}"], ["--read={a", "--objective=a:min"]]
)  # fmt: skip
def test_options_that_nobody_wrote_so_are_refused(options: list[str]) -> None:
    with pytest.raises(SourceError):
        Reading.parsed(options)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(TEXT, st.sampled_from(["min", "max"]), TEXT, st.none() | TEXT, st.none() | st.integers(1, 10**6))
def test_options_are_parsed_to_what_they_were_made_of(
    objective: str, mode: str, file: str, step: str | None, total: int | None
) -> None:
    if objective in ("step", step):
        return
    found = Reading.asked(objective=f"{objective}:{mode}", csv=file, step=step, total_steps=total)
    assert found is not None
    assert Reading.parsed(found.options()) == found
