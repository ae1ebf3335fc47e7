"""Before a run it is known whether the model is there: one word is asked for, and what passes is a warning only."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from factories.calls import (
    FIRST,
    KEEP,
    KEY,
    LOWER,
    Desk,
    asked,
    cannot_open,
    formed,
    managed,
    manager_at,
    of,
    policy_of,
    sent,
    view,
)
from factories.tables import Row

from trainmgr.base.errors import UserError
from trainmgr.contract import events
from trainmgr.contract.policy import Budget, Policy
from trainmgr.log.history import History
from trainmgr.managers import listing, probe
from trainmgr.managers.endpoint import Endpoint
from trainmgr.managers.llm import LlmManager
from trainmgr.state.budget import Spent
from trainmgr.testing import (
    TIME_LIMIT,
    Behaviour,
    EmptyReply,
    Propose,
    Raw,
    Received,
    Redirect,
    Reset,
    Say,
    ScriptedEndpoint,
    Silence,
    Status,
    answer,
    write_child,
)

pytestmark = pytest.mark.usefixtures("prompt_and_alone")

TITLE = "a language model's endpoint before a run: what it does, what is said, whether the run starts"
TODAY = datetime.now(UTC).date()
NOON = datetime(TODAY.year, TODAY.month, TODAY.day, 12, tzinfo=UTC).timestamp()
PRESENT = '{"present": true}'


def probing(**settings: Any) -> Policy:
    return policy_of(probe=True, **settings)


def opened(manager: LlmManager) -> str:
    """What is said before the run."""
    try:
        manager.open()
        return manager.preflight()
    finally:
        manager.close()


def off(days: int, name: str = "scripted", key: str = "shutdown_date") -> dict[str, Any]:
    return {"id": name, key: str(TODAY + timedelta(days=days))}


@dataclass(frozen=True)
class Case:
    name: str
    script: Sequence[Behaviour]
    says: str
    """As a pattern."""
    starts: bool = True
    models: Sequence[Any] = ("scripted",)
    key: str | None = None
    model: str | None = "scripted"

    def __str__(self) -> str:
        return self.name


NOTHING = r"\Ascripted at http"  # but for who is asked
CASES = [
    Case("answers", [Say(PRESENT)], NOTHING),
    Case("says nothing", [EmptyReply("content")], NOTHING),
    Case("ends in its thoughts", [Say("", finish="length")], NOTHING),
    Case("ends in its thoughts, as an error", [Status(400, "Could not finish the message because max_tokens or model "
                                                           "output limit was reached.")], NOTHING),
    Case("refuses to talk", [Say("", refusal="No.")], NOTHING),
    Case("no such model", [Status(404, "The model `scripted` does not exist")],
         r"does not have the model scripted: .*Name one that it has \(it has script-ed or scripts\)", starts=False,
         models=("script-ed", "other", "scripts")),
    Case("no such model, as 400", [Status(400, "scripted is not a valid model ID")],
         r"does not have the model scripted.*\(it has other\)", starts=False, models=("other",)),
    Case("a wrong key", [Say(PRESENT)], r"does not let us ask scripted: status 401 \(the key is refused\)",
         starts=False, key="another"),
    Case("not for this key", [Status(403, "No access")], r"does not let us ask scripted: status 403", starts=False),
    Case("not paid", [Status(402, "Insufficient Balance")], r"wants to be paid first: status 402", starts=False),
    Case("a quota that is used up", [Status(429, "You exceeded your quota", code="insufficient_quota")],
         r"wants to be paid first: status 429", starts=False),
    Case("every form refused", [Status(400, "Bad request.")], r"cannot be asked: status 400: Bad request",
         starts=False),
    Case("a page", [Raw(b"<html>Sign in</html>", "text/html")], r"cannot be asked: the response is not JSON",
         starts=False),
    Case("a redirect", [Redirect("http://127.0.0.1:9/v1")], r"cannot be asked: status 307", starts=False),
    Case("too many requests", [Status(429)], r"scripted does not answer now \(status 429.*starts all the same"),
    Case("broken for the moment", [Status(503)], r"does not answer now \(status 503"),
    Case("breaks the connection", [Reset()], r"does not answer now \(the connection broke"),
    Case("no answer in time", [Silence()], r"does not answer now \(no answer"),
    Case("broken, and not in the list", [Status(503)], r"does not list scripted; it lists scripter\n",
         models=("scripter", "a")),
    Case("not in the list, and answers", [Say(PRESENT)], NOTHING, models=("a", "b")),
    Case("listed with a tag", [Status(503)], r"\Ascripted does not answer now .*\nscripted at",
         models=("scripted:latest",)),
    Case("switched off in two weeks", [Say(PRESENT)],
         rf"\Ascripted is switched off on {TODAY + timedelta(14)}, in 14 days\n",
         models=(off(14), "b")),
    Case("switched off tomorrow, told in seconds", [Say(PRESENT)], "is switched off on .*, tomorrow\n",
         models=({"id": "scripted", "shutdown_date": NOON + 86_400},)),
    Case("switched off in two years", [Say(PRESENT)], NOTHING, models=(off(730),)),
    Case("switched off yesterday", [Say(PRESENT)], r"scripted was switched off on .*there is scripted-2",
         starts=False, models=(off(-1), "scripted-2", off(-1, "scripted-1"))),
    Case("deprecated", [Say(PRESENT)], r"\Ascripted is deprecated since", models=(off(-3, key="deprecation"),)),
    Case("dates of nonsense", [Say(PRESENT)], NOTHING,
         models=({"id": "scripted", "shutdown_date": "soon", "deprecation": True, "sunset_date": 1e300},)),
    Case("no model named, one there", [Say(PRESENT)], NOTHING, model=None),
    Case("no model named, one of them a chat model", [Say(PRESENT)], NOTHING, model=None,
         models=("text-embedding-3-small", "scripted", "whisper-1", off(-1, "older"), "bge-m3")),
    Case("no model named, several there", [Say(PRESENT)],
         r"lists 3 models \(c, b, a\), and 1 that are no chat models\. Name one: --manager llm:MODEL", starts=False,
         model=None, models=("b", {"id": "c", "created": 1_800_000_000}, "a", "tts-1")),
    Case("no model named, none there", [Say(PRESENT)], r"lists 0 models \(none\)", starts=False, model=None, models=()),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_known_before_a_run(case: Case, row: Row) -> None:
    with ScriptedEndpoint(case.script, models=case.models, key=case.key) as endpoint:
        manager = manager_at(endpoint, probing(timeout=0.5 if case.script == [Silence()] else 30.0), case.model)
        if case.starts:
            said = opened(manager)
        else:
            with pytest.raises(UserError) as raised:
                opened(manager)
            said = str(raised.value)
            assert "\n" not in said
        assert KEY not in said
    assert re.search(case.says, said, re.DOTALL), said
    row(TITLE, case.name, "starts" if case.starts else "does not", said.splitlines()[0][:100])


def test_nobody_there_is_one_line_before_anything_is_started(tmp_path: Path) -> None:
    with ScriptedEndpoint([KEEP]) as endpoint:
        pass  # closed again
    child = str(write_child(tmp_path, FIRST))
    words = [sys.executable, "-m", "trainmgr", "run", child, "-m", "llm:m", "--runs-dir", "runs", "-q"]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=TIME_LIMIT, check=False, stdin=subprocess.DEVNULL,
        env={"OPENAI_BASE_URL": endpoint.url, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"no connection to {endpoint.url}" in done.stderr
    assert "Start the server, or name another with OPENAI_BASE_URL or llm.base_url" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("model", ["scripted", None])
def test_an_address_without_its_v1_is_told_the_right_one(model: str | None) -> None:
    with ScriptedEndpoint([KEEP], key=KEY) as endpoint:
        address = endpoint.url.removesuffix("/v1")
        environment = {"OPENAI_BASE_URL": address, "OPENAI_API_KEY": KEY}
        message = rf"{re.escape(address)} is no endpoint \(status 404.*Did you mean {re.escape(endpoint.url)}\?"
        cannot_open(LlmManager(probing(), model, environment=environment), message)
        tried = [request for request in endpoint.requests if request.path == "/v1/models"]
        assert [request.headers["authorization"] for request in tried] == ["Bearer none"]  # nobody named that place


def test_an_address_without_its_v1_is_hinted_at_later_too() -> None:
    class Elsewhere(ScriptedEndpoint):
        def choose(self, received: Received) -> Behaviour:
            return Status(404, "404 page not found")

    with Elsewhere([KEEP]) as endpoint:
        endpoint.url = endpoint.url.removesuffix("/v1")
        desk = Desk(endpoint)
        assert "404 page not found (the address of most endpoints ends in /v1)" in desk.decide()
        desk.manager.close()


def test_it_is_on_record_with_the_first_decision_and_counts(tmp_path: Path) -> None:
    script: list[Behaviour] = [Say(PRESENT, usage=(60, 7)), *[Propose(LOWER, usage=(1000, 100))] * 2]
    with ScriptedEndpoint(script) as endpoint:
        paths, closing, _ = managed(tmp_path, endpoint, probing(), FIRST)
        assert len(asked(endpoint)) == 3
    assert closing.status == "completed"
    requests, replies = of(paths, events.Request), of(paths, events.Reply)
    assert [(r.purpose, r.decision, r.attempt) for r in requests] == [
        ("probe", "d1", 0), ("decide", "d1", 1), ("decide", "d2", 0),
    ]  # fmt: skip
    assert (replies[0].text, replies[0].prompt_tokens, replies[0].completion_tokens) == (PRESENT, 60, 7)
    assert [message.model_dump() for message in requests[0].messages] == sent(endpoint)[0]["messages"]
    *_, last = History(paths).moments()
    assert (last.now.ledger.spent.calls, last.now.ledger.spent.tokens) == (3, 2267)


@pytest.mark.parametrize(("calls", "made"), [(0, 0), (1, 1), (2, 2)])
def test_it_is_in_the_budget(calls: int, made: int) -> None:
    rules = probing().model_copy(update={"budget": Budget(calls=calls)})
    with ScriptedEndpoint([KEEP]) as endpoint:
        desk = Desk(endpoint, rules)
        for _ in range(3):
            desk.decide()
        desk.manager.close()
        assert len(asked(endpoint)) == made
    assert desk.spent.calls == made
    (said,) = desk.of(events.BudgetSpent)
    assert said.reason == f"{calls} of {calls} calls are made"


def test_without_it_nothing_is_sent_before_the_first_decision() -> None:
    with ScriptedEndpoint([KEEP]) as endpoint:
        desk = Desk(endpoint, policy_of(probe=False))
        assert endpoint.requests == []
        desk.decide()
        desk.manager.close()
        assert len(endpoint.requests) == 1


def test_both_models_are_asked_each_in_its_form() -> None:
    with ScriptedEndpoint([Say("hello"), Say(PRESENT), Say("Leave it."), KEEP]) as endpoint:
        manager = manager_at(endpoint, probing(formatter="small"))
        manager.open()
        first, second = sent(endpoint)
        told: list[Any] = []
        manager.begin("d1", Spent(), told.append)
        manager.decide(view())
        manager.close()
    assert [event.attempt for event in told if isinstance(event, events.Request)] == [0, 1, 2, 3]
    assert (first["model"], "response_format" in first) == ("scripted", False)
    assert (second["model"], "response_format" in second) == ("small", True)
    with ScriptedEndpoint([Say("hello"), Status(404, "model small not found")], models=("scripted",)) as endpoint:
        cannot_open(manager_at(endpoint, probing(formatter="small")), "does not have the model small")


def test_a_weaker_form_is_found_before_the_run() -> None:
    with ScriptedEndpoint([Say(PRESENT), KEEP], lacks=("json_schema", "reasoning_effort")) as endpoint:
        desk = Desk(endpoint, probing(reasoning_effort="low"))
        assert desk.manager.preflight().startswith("scripted refuses reasoning_effort; it is not sent any more\n")
        assert desk.decide() == answer()
        desk.manager.close()
    probes = [request for request in desk.of(events.Request) if request.purpose == "probe"]
    assert [request.level for request in probes] == ["json_schema", "tool", "tool"]
    last = desk.of(events.Request)[-1]
    assert (last.purpose, last.level, last.form, last.attempt) == ("decide", "tool", "seen", 3)


@pytest.mark.parametrize(
    ("level", "word", "form"),
    [("json_schema", PRESENT, "seen"), ("json_schema", "hello", "asked"), ("tool", PRESENT, "seen"),
     ("tool", '{"hello": 1}', "asked"), ("json_object", "{}", ""), ("json_object", "hello", "asked"),
     ("text", "hello", "asked"), ("json_schema", "", "")],
)  # fmt: skip
def test_whether_the_form_reaches_the_model_is_on_record(level: str, word: str, form: str) -> None:
    """The probe's form stands in no prompt: who answers in it was given it; who says hello was not held to it."""

    def script(request: Received) -> Behaviour:
        first = len(asked(endpoint)) == 1
        return Say(word) if first else formed(request) if level in ("json_schema", "tool") else KEEP

    with ScriptedEndpoint(script) as endpoint:
        desk = Desk(endpoint, probing(level=level))
        loose = form == "asked" and level != "text"
        assert ("which is not enforced there" in desk.manager.preflight()) == loose
        desk.decide()
        desk.manager.close()
    first, second = desk.of(events.Request)
    assert (first.form, second.form) == ("asked" if level == "text" else "", form)
    assert [reply.outside for reply in desk.of(events.Reply)] == [loose, False]
    assert desk.of(events.Failure) == []


def test_an_answer_outside_of_the_form_is_told_once_and_on_record() -> None:
    outside = Say(f"Here: {json.dumps(answer())}")

    def script(request: Received) -> Behaviour:
        first_two = {1: Say(PRESENT), 2: formed(request)}
        return first_two.get(len(asked(endpoint)), outside)

    with ScriptedEndpoint(script) as endpoint:
        desk = Desk(endpoint, probing())
        assert [desk.decide()["action"] for _ in range(3)] == ["keep"] * 3
        desk.manager.close()
    assert [request.form for request in desk.of(events.Request)] == ["", "seen", "seen", "asked"]
    assert [reply.outside for reply in desk.of(events.Reply)] == [False, False, True, True]
    (notice,) = desk.of(events.Failure)
    assert notice.where == "endpoint"


def test_a_list_of_the_provider_itself_is_believed() -> None:
    official = Endpoint("https://api.openai.com/v1", KEY)
    there = listing.read({"data": [{"id": "model-5-mini"}, {"id": "model-4"}, 3, {"id": None}, {}]}, str)
    with pytest.raises(UserError, match=r"does not list model-5-mni; it lists model-5-mini or model-4. Name one"):
        probe.missing(official, "model-5-mni", there)
    assert probe.missing(official, "model-5-mini", there) == ""
    assert probe.missing(official, "anything", []) == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [("2026-12-11", date(2026, 12, 11)), ("2026-12-11T23:00:00Z", date(2026, 12, 11)),
     (1_796_947_200, date(2026, 12, 11)), (0, None), (True, None), ("next year", None), (None, None),
     (1e300, None), (float("nan"), None), ([], None)],
)  # fmt: skip
def test_a_day_is_read_however_it_is_told(value: Any, expected: date | None) -> None:
    assert listing.day(value) == expected


def test_whatever_is_listed_no_list_is_an_error() -> None:
    bodies: list[Any] = [None, 3, [], {}, {"data": None}, {"data": {"id": "x"}}, {"data": ["x"]}, {"models": ["x"]}]
    assert [listing.read(body, str) for body in bodies] == [[]] * len(bodies)
    assert [model.name for model in listing.read([{"id": "x"}], str)] == ["x"]
