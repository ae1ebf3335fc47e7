"""What the tests of language models stand on."""

from __future__ import annotations

import pytest
from factories.calls import FIRST

from trainmgr.base.paths import RunPaths
from trainmgr.contract.policy import Policy
from trainmgr.managers import llm
from trainmgr.managers.rules import RulesManager
from trainmgr.testing import supervise, write_child


@pytest.fixture
def prompt_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts, and nothing of this machine's own endpoints."""
    monkeypatch.setattr(llm, "BACKOFF", 0.01)
    monkeypatch.setattr("trainmgr.running.manifest.packages", dict)  # takes longer than the run
    monkeypatch.setattr("trainmgr.running.manifest.git_of", lambda *_: None)
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)  # so does this; no TLS here
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def unmanaged(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run that nobody manages."""
    folder = tmp_path_factory.mktemp("unmanaged")
    return supervise(folder, write_child(folder, FIRST))[0]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run of the rules."""
    folder = tmp_path_factory.mktemp("recorded")
    return supervise(folder, write_child(folder, FIRST), RulesManager(Policy()))[0]
