"""A language model asked about a recorded run, in the same words and in others."""

from __future__ import annotations

import os

import pytest
from factories.calls import KEEP, KEY, LOWER, asked, command_line, lower, manager_at, policy_of, sent

from trainmgr.base.paths import RunPaths
from trainmgr.contract.policy import Price
from trainmgr.readers import opinions
from trainmgr.testing import (
    Behaviour,
    Propose,
    Say,
    ScriptedEndpoint,
    Status,
    answer,
)

pytestmark = pytest.mark.usefixtures("prompt_and_alone")


def test_a_language_model_on_the_snapshots_of_another_run(recorded: RunPaths, unmanaged: RunPaths) -> None:
    before = {path: path.read_bytes() for path in recorded.root.rglob("*") if path.is_file()}
    healthy = Propose({**answer(), "diagnosis": "healthy"}, usage=(1000, 100))
    rules = policy_of(retries=0).model_copy(update={"prices": {"scripted": Price(input=1.0, output=10.0)}})
    for paths, script in ((recorded, [healthy, Status(500)]), (unmanaged, [Say(lower("3.0")), Say("no"), healthy])):
        with ScriptedEndpoint(script) as endpoint:
            manager = manager_at(endpoint, rules)
            manager.open()
            first, second = opinions.opinions(paths, manager)
            manager.close()
        if paths is recorded:
            assert (first.valid, first.same_action, first.tokens, first.money) == (True, True, 1100, 0.002)
            assert (first.step, first.other) == (4, "healthy: keep")
            assert (second.valid, second.same_action, second.tokens, second.money) == (False, False, 0, 0.0)
            assert second.other.startswith("no answer: no decision from scripted: status 500")
        else:
            assert (first.valid, first.recorded) == (False, "–")
            assert first.other == "unreadable: value: must be a table of keys and values (found 'no')"
            assert (second.valid, second.other) == (True, "healthy: keep")
    assert {path: path.read_bytes() for path in recorded.root.rglob("*") if path.is_file()} == before


def test_a_question_in_other_words(recorded: RunPaths) -> None:
    plateau = Propose({**answer(), "diagnosis": "plateau"})
    script: list[Behaviour] = [KEEP, KEEP, Propose(LOWER), KEEP, plateau, Status(404)]
    with ScriptedEndpoint(script) as endpoint:
        manager = manager_at(endpoint, policy_of(prompt_tokens=5000))  # of a short prompt there is one wording
        manager.open()
        first, second = opinions.reworded(recorded, manager, 2)
        manager.close()
    assert (first.same_action, first.same_diagnosis, first.asked) == (1, 2, 2)
    assert first.answers == ("unclear: keep", "unclear: keep", "unclear: adjust (lr = 0.2)")
    assert (second.same_action, second.same_diagnosis, second.asked) == (1, 0, 2)
    assert second.answers[2].startswith("no answer: ")
    systems = [body["messages"][0]["content"] for body in sent(endpoint)]
    assert len(set(systems[:3])) == 3
    assert systems[:3] == systems[3:]
    assert len({body["messages"][1]["content"] for body in sent(endpoint)[:3]}) == 1


def test_the_command_line_asks_in_other_words(recorded: RunPaths) -> None:
    with ScriptedEndpoint([KEEP]) as endpoint:
        given = {**os.environ, "OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": KEY, "NO_COLOR": "1"}
        done = command_line(
            ["replay", str(recorded.root), "-m", "llm:scripted", "--paraphrase", "2"], given, recorded.root
        )
    assert (
        "2 snapshots in 3 wordings, llm:scripted: of 4 reworded questions 4 (100%) got the same action" in done.stdout
    )
    assert "free of charge" in done.stderr
    assert len(asked(endpoint)) == 7  # the first before anything: whether somebody answers
