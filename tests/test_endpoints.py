"""docs/endpoints.md is true: it names every setting, and none that there is not; and quotes what is really said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from factories.modules import MODULES

from trainmgr.contract import policy
from trainmgr.contract.policy import Budget, Llm, Price

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "endpoints.md").read_text()
KEYS = {*Llm.model_fields, *Budget.model_fields, *Price.model_fields}


def test_every_setting_is_named_and_no_other() -> None:
    quoted = set(re.findall(r"`([a-z_]+)`", TEXT))
    assert quoted >= KEYS
    assert set(re.findall(r"llm\.([a-z_]+)", TEXT)) <= set(Llm.model_fields)


def test_the_example_is_a_policy(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "policy.toml").write_text(example)
    assert policy.load(tmp_path / "policy.toml").prices["MODEL"].cached == 0.025


@pytest.mark.parametrize(
    "message", re.findall(r"^\| `([^`]+)` \| [^|]+ \|$", TEXT.partition("## Troubleshooting")[2], re.MULTILINE)
)
def test_a_message_is_one_that_is_said(message: str) -> None:
    source = "".join(path.read_text() for name, path in MODULES.items() if name.startswith(("managers.", "terminal.")))
    said = re.sub(r'"\s*\n\s*f?"|\{[^{}]*\}', "", source)
    parts = [
        part
        for part in re.split(r"\.\.\.|\bN\b|\bM\b|[():]|\d+|temperature|in its thoughts", message)
        if len(part.strip()) > 3
    ]
    assert parts
    assert all(part.strip() in said for part in parts), parts
