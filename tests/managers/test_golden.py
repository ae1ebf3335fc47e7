"""Prompts of version 4 in full: each is a hand-over to somebody who knows the trade, and nothing of the run."""

from __future__ import annotations

import difflib

import pytest
from factories.handover import CASES, GOLDEN, PAGE, page


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_reads_as_it_was_read(name: str) -> None:
    """Whoever changes a word of it reads the five again, then writes them anew: `python -m factories.handover`."""
    said, made = (GOLDEN / f"v4-{name}.md").read_text(encoding="utf-8"), CASES[name]()
    assert said == made, "\n".join(difflib.unified_diff(said.split("\n"), made.split("\n"), lineterm="", n=0))


def test_the_documentation_shows_the_same_five() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()
