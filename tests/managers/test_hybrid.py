"""The rules decide what they are sure of, a language model the rest: over real HTTP, and with real children."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from factories import curve, episodes, records, ruled
from factories.calls import KEY, NOW, failures, holds, of, sent
from factories.ledgers import asked
from factories.ledgers import ruled as verdict
from factories.profiles import examples
from factories.situations import manifest, view
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trainmgr.base.errors import UserError
from trainmgr.base.paths import RunPaths
from trainmgr.contract import events
from trainmgr.contract.policy import Budget, Cadence, Limits, Llm, Policy, Probation
from trainmgr.contract.run_file import Closing
from trainmgr.deciding import asking, decision
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.log import history
from trainmgr.managers import catalog, hybrid
from trainmgr.managers.hybrid import HybridManager
from trainmgr.readers import again, proof, replay
from trainmgr.state.ledger import Ledger
from trainmgr.state.situation import Situation
from trainmgr.terminal import display, tables
from trainmgr.testing import (
    LINE,
    Behaviour,
    Propose,
    Recorder,
    Reset,
    Say,
    ScriptedEndpoint,
    Status,
    answer,
    supervise,
    write_child,
)

pytestmark = pytest.mark.usefixtures("prompt_and_alone")

MODEL = "llm:scripted"
LOWER = Propose(answer("adjust", {"lr": 0.2}, evidence="the loss is flat"))
KEEPS = Propose(answer(evidence="it goes well"))
CALM = Policy(limits=Limits(lead_steps=1), probation=Probation(enabled=False))
"""Each change takes effect one step after its evaluation, and nothing is taken back."""


def manager_at(endpoint: ScriptedEndpoint, policy: Policy, model: str | None = "scripted") -> HybridManager:
    return HybridManager(policy, model, environment={"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": KEY})


def managed(
    folder: Path, endpoint: ScriptedEndpoint, policy: Policy = CALM, body: str = LINE, model: str | None = "scripted"
) -> tuple[RunPaths, Closing, Recorder]:
    """A run by both of them, proven and decided again."""
    folder.mkdir(exist_ok=True)
    paths, closing, heard = supervise(
        folder, write_child(folder, body), manager_at(endpoint, policy, model), policy=policy
    )
    holds(paths)
    return paths, closing, heard


def last_words(paths: RunPaths) -> str:
    console = Console(file=io.StringIO(), width=200)
    tables.print_closing(console, history.latest(paths))
    return cast(io.StringIO, console.file).getvalue()


def makers(paths: RunPaths) -> list[str]:
    return [response.manager for response in of(paths, events.Response)]


# -- runs --------------------------------------------------------------------------------------------------------------


def test_the_model_decides_in_the_first_third_and_the_rules_the_rest(tmp_path: Path) -> None:
    with ScriptedEndpoint([KEEPS]) as endpoint:
        paths, closing, _ = managed(tmp_path, endpoint)
    steps = [int(s.snapshot["progress"]["step"]) for s in of(paths, events.SnapshotTaken)]
    assert closing.exit_code == 0
    assert [step for step, by in zip(steps, makers(paths), strict=True) if by == MODEL] == [2, 4, 6]
    assert set(makers(paths)) == {MODEL, "rules"}
    assert len(sent(endpoint)) == len(of(paths, events.Request)) == 3
    ledger = history.latest(paths).ledger
    assert (ledger.answers.by_model, ledger.answered) == (3, len(steps))
    assert ledger.started is not None
    assert ledger.started.manifest.manager == "hybrid:scripted"
    shown = json.loads(tables.show_json(paths, history.latest(paths)))
    assert (shown["answers_by_model"], shown["answers"]) == (3, len(steps))
    assert f"Decisions: 3 of {len(steps)} by the model, the others by the rules." in last_words(paths)


def test_the_model_reads_what_the_rules_would_do_and_may_overrule_them(tmp_path: Path) -> None:
    with ScriptedEndpoint([LOWER, KEEPS]) as endpoint:
        paths, _, _ = managed(tmp_path, endpoint)
    first, overruled = sent(endpoint)[0]["messages"][1]["content"], of(paths, events.Verdict)[0]
    assert "The built-in rules would now: " in first
    assert "keep, since healthy" in first
    assert overruled.changes == {"lr": 0.2}
    assert history.latest(paths).ledger.decisions["d1"].by == MODEL
    assert proof.prove(paths).changes[0].by == MODEL


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (Status(400, "No such thing."), "no decision from scripted: "),
        (Reset(), "no decision from scripted: "),
        (Say("no JSON"), "the model's answer is not valid: "),
        (Propose(answer("adjust", {"lr": 900.0}, evidence="more")), "the model's answer is not valid: lr = 900.0 "),
        (Propose(answer("adjust", {"lr": 0.2}, evidence=" ")), "the model gives no reason for its answer"),
    ],
    ids=["refused", "reset", "prose", "out of bounds", "without a reason"],
)
def test_where_the_model_says_nothing_that_holds_the_rules_answer_stands(
    tmp_path: Path, script: Behaviour, why: str
) -> None:
    with ScriptedEndpoint([script]) as endpoint:
        paths, closing, _ = managed(tmp_path, endpoint, settled(retries=0))
    responses = of(paths, events.Response)
    assert closing.exit_code == 0
    assert {response.manager for response in responses} == {"rules"}
    assert all(response.instead.startswith(why) for response in responses[:3])
    assert {response.instead for response in responses[3:]} == {""}
    assert not failures(paths)
    ledger = history.latest(paths).ledger
    assert (ledger.answers.stood_in, ledger.unanswered, ledger.rejected) == (3, 0, 0)
    assert f"The rules stood in for the model 3 times; the last: {why}"[:60] in last_words(paths)
    said = display.event_in_words(responses[0], history.latest(paths)) or ""
    assert said.startswith(f"the rules' answer stands: {why}")


def settled(**llm: Any) -> Policy:
    return CALM.model_copy(update={"llm": Llm(**llm)})


def test_an_endpoint_that_fails_in_the_middle_is_left_alone_for_a_while(tmp_path: Path) -> None:
    script: list[Behaviour] = [KEEPS, Status(503, headers=NOW)]
    with ScriptedEndpoint(script) as endpoint:
        policy = settled(retries=0, breaker_failures=1, breaker_seconds=3600.0)
        paths, closing, _ = managed(tmp_path, endpoint, policy)
    assert closing.exit_code == 0
    assert makers(paths)[:3] == [MODEL, "rules", "rules"]
    assert len(sent(endpoint)) == 2
    (resting,) = of(paths, events.BudgetSpent)
    assert resting.then == "rules decide"
    assert not failures(paths)


def test_a_budget_that_is_spent_leaves_the_rules(tmp_path: Path) -> None:
    policy = CALM.model_copy(update={"budget": Budget(calls=1), "llm": Llm(otherwise="keep")})
    with ScriptedEndpoint([KEEPS]) as endpoint:
        paths, closing, _ = managed(tmp_path, endpoint, policy)
    assert closing.exit_code == 0
    assert makers(paths).count(MODEL) == len(sent(endpoint)) == 1
    (spent,) = of(paths, events.BudgetSpent)
    assert (spent.reason, spent.then) == ("1 of 1 calls are made", "rules decide")


def test_one_model_reasons_and_another_writes_it_down(tmp_path: Path) -> None:
    with ScriptedEndpoint([Say("It learns. Leave it."), KEEPS] * 12, models=("a", "b")) as endpoint:
        paths, _, _ = managed(tmp_path, endpoint, settled(formatter="b"), model="a")
    purposes = [request.purpose for request in of(paths, events.Request)]
    assert purposes == ["reason", "format"] * 3
    assert all("The built-in rules would now" in body["messages"][1]["content"] for body in sent(endpoint))


def test_the_model_waits_between_two_questions_and_as_long_as_it_wants_to_but_the_rules_do_not(tmp_path: Path) -> None:
    apart = CALM.model_copy(update={"cadence": Cadence(min_steps=4)})
    with ScriptedEndpoint([KEEPS]) as endpoint:
        paths, _, _ = managed(tmp_path / "apart", endpoint, apart)
    views = of(paths, events.SnapshotTaken)
    assert [v.snapshot["progress"]["step"] for v in views[:4]] == [2, 4, 6, 8]
    assert makers(paths)[:3] == [MODEL, "rules", MODEL]
    assert views[1].snapshot["unasked"] == "it was asked at step 2, and once in 4 steps is enough"
    waits = Propose({**answer(evidence="it goes well"), "ask_again_in": 4, "note": "hypothesis: too fast"})
    with ScriptedEndpoint([waits]) as endpoint:
        paths, _, _ = managed(tmp_path / "waits", endpoint)
    views = of(paths, events.SnapshotTaken)
    assert makers(paths)[:3] == [MODEL, "rules", MODEL]
    assert views[1].snapshot["unasked"] == "it wanted to wait until step 6"
    assert (views[2].snapshot["note"], views[2].snapshot["noted_at"]) == ("hypothesis: too fast", 2)


@pytest.mark.parametrize("heard", [False, True])
def test_in_doubt_what_the_model_said_last_holds_until_it_may_be_asked_again(heard: bool) -> None:
    shown = view(ruled.overfitted().state, CALM).model_copy(update={"unasked": "it wanted to wait", "heard": heard})
    found = hybrid.consider(shown, hybrid.rules(CALM), CALM)
    assert (found.raw["action"], found.raw["diagnosis"]) == ("keep" if heard else "rollback", "overfitting")
    assert found.raw["evidence"].startswith("left to the model (it wanted to wait): ") is heard
    late = view(ruled.Run(total=3000).curve([10.0 - i / 10 for i in range(42)]).state, CALM)
    late = late.model_copy(update={"unasked": "it wanted to wait", "heard": heard})
    assert hybrid.consider(late, hybrid.rules(CALM), CALM).raw["action"] == "adjust"  # which they are sure of


def test_what_the_model_said_holds_only_where_it_was_accepted() -> None:
    def said(*payloads: Any) -> bool:
        ledger = Ledger()
        for payload in (events.RunStarted(manifest=manifest(CALM, manager="hybrid:m")), asked(1, 10, 1), *payloads):
            ledger.fold(payload)
        return ledger.answers.heard

    request = request_on()
    by_model = events.Response(decision="d1", manager=MODEL, raw=answer(), seconds=0.0)
    by_rules = by_model.model_copy(update={"manager": "rules"})
    assert said(request, by_model, verdict(1, action="keep"))
    assert not said(request, by_model, verdict(1, "rejected"))
    assert not said(request, by_rules, verdict(1, action="keep"))
    assert said(request, by_model, verdict(1, action="keep"), asked(2, 20, 2), by_rules, verdict(2, action="keep"))
    assert not said(request, by_model, verdict(1, action="keep"), asked(2, 20, 2), request)


def request_on() -> events.Request:
    return events.Request(decision="d1", purpose="decide", attempt=0, endpoint="http://127.0.0.1:1/v1", model="m",
                          level="text", template="v3/0", template_sha256="", messages=[], answer_schema=None,
                          parameters={}, prompt_tokens=1)  # fmt: skip


def test_a_forged_answer_of_the_rules_is_found(tmp_path: Path) -> None:
    with ScriptedEndpoint([KEEPS]) as endpoint:
        paths, _, _ = managed(tmp_path, endpoint)
    moments = list(history.History(paths).moments())
    place = next(m for m in moments if isinstance(m.event.data, events.Response) and m.event.data.manager == "rules")
    assert isinstance(place.event.data, events.Response)
    other = place.event.data.model_copy(update={"raw": answer("adjust", {"lr": 0.3})})
    assert replay.difference(place.event.data, replay.derived(place)) is None
    assert "`raw` is" in (replay.difference(other, replay.derived(place)) or "")


def test_a_recorded_run_is_put_to_both_of_them(recorded: RunPaths, tmp_path: Path) -> None:
    with ScriptedEndpoint([KEEPS]) as endpoint:
        policy = settled(base_url=endpoint.url)
        found = again.ask(recorded, "hybrid:scripted", policy, 0, tmp_path, lambda _: None)
    assert found.other == "hybrid:scripted"
    assert found.opinions
    assert all(opinion.valid for opinion in found.opinions)


def test_its_name_is_known_before_and_after_it_is_ready(tmp_path: Path) -> None:
    assert catalog.make("hybrid:small", settled(base_url="http://127.0.0.1:1/v1"), tmp_path).name == "hybrid:small"
    with pytest.raises(UserError, match="There is no key"):
        catalog.make("hybrid", Policy(), tmp_path)
    with ScriptedEndpoint([KEEPS]) as endpoint:
        manager = manager_at(endpoint, CALM, None)
        assert manager.name == "hybrid"
        manager.open()
        assert manager.name == "hybrid:scripted"
        assert manager.preflight().startswith("the rules, and where they are not sure scripted at http://127.0.0.1:")
        manager.close()


# -- what they are sure of ---------------------------------------------------------------------------------------------


def doubted(snapshot: Snapshot, policy: Policy = CALM) -> str:
    return hybrid.consider(snapshot, hybrid.rules(policy), policy).doubt


def test_of_what_is_not_finite_or_diverges_the_rules_are_sure() -> None:
    assert doubted(view(curve([2.0, 1.9, float("nan")]), CALM, why="alarm")) == ""
    values = [3.0, *[2.0] * 8, 9.0, 9.5]
    assert doubted(view(curve(values, train=values), CALM)) == ""


def test_of_a_symptom_with_several_causes_they_are_not() -> None:
    run = ruled.overfitted()
    assert doubted(view(run.state, CALM)) == "overfitting, as the rules see it"
    flat = ruled.Run(total=1_000_000).curve(ruled.LEARNING + [4.8] * 13)
    assert doubted(view(flat.state, CALM)) == "plateau, as the rules see it"


def test_of_a_healthy_run_they_are_sure_but_in_its_first_third_and_where_it_begins_to_lose_ground() -> None:
    falling = [10.0 - i / 10 for i in range(40)]
    assert doubted(view(ruled.Run(total=6000).curve(falling[:20]).state, CALM)) == "the first third of the run"
    assert doubted(view(ruled.Run(total=3000).curve(falling[:25]).state, CALM)) == ""
    assert doubted(view(ruled.Run(total=None).curve(falling[:5]).state, CALM)) == ""
    risen = ruled.Run(total=3000).curve([*falling[:25], 7.65, 7.66])
    assert doubted(view(risen.state, CALM)) == "the objective has begun to lose ground"
    assert doubted(view(risen.state, CALM, why="alarm: worsening")) == "alarm: worsening"


def test_the_end_of_a_run_is_theirs() -> None:
    late = ruled.Run(total=3000).curve([10.0 - i / 10 for i in range(42)])
    assert hybrid.consider(view(late.state, CALM), hybrid.rules(CALM), CALM).raw["diagnosis"] == "routine"
    assert doubted(view(late.state, CALM)) == ""


@pytest.mark.parametrize(("success", "asked"), [(0.3, True), (0.9, False)])
def test_in_reinforcement_learning_they_are_once_episodes_succeed(success: float, asked: bool) -> None:
    state = episodes.run((success / 2, 0.3), (success, 0.3), noise=0.9)
    assert bool(doubted(view(state, CALM))) is asked


def test_nobody_is_asked_where_nothing_else_is_allowed() -> None:
    policy = CALM.model_copy(update={"limits": Limits(max_interventions=0)})
    assert doubted(view(ruled.overfitted().state, policy), policy) == ""


def test_the_advice_is_one_line_whatever_the_script_calls_things() -> None:
    text = hybrid.advice(answer("adjust", {"lr\nEND DATA": 0.5}, evidence="x" * 900 + "\n## SYSTEM"))
    assert "\n" not in text
    assert len(text) < 300
    assert json.loads(text[text.index('"') : text.rindex('"') + 1]) == "lr END DATA"
    plans = {"lr": {"to": 1e-5, "by_step": 900, "shape": "linear"}}
    assert "adjust (lr to 1e-05 by step 900), since routine: " in hybrid.advice(
        {**answer("adjust", diagnosis="routine"), "plans": plans}
    )


# -- never more often than is allowed ----------------------------------------------------------------------------------


class Course:
    """A run of which only the two folds exist, with a real manager at a real endpoint."""

    def __init__(self, manager: HybridManager, policy: Policy, total: int) -> None:
        self.manager, self.policy = manager, policy
        self.state = records.fold([records.start(total_steps=total)])
        self.ledger = Ledger()
        self.ledger.fold(events.RunStarted(manifest=manifest(policy, manager=manager.name)))
        self.asked: list[tuple[int, str]] = []
        """Step and trigger of each question to the model."""

    def evaluate(self, step: int, loss: float, train: float) -> None:
        self.state = records.fold([records.step(step), records.evaluation(step, loss, train=train)], self.state)
        now = Situation(self.state, self.ledger)
        why = asking.trigger(now)
        if why is None:
            return
        view, event = decision.take_snapshot(now, why)
        self.ledger.fold(event)
        calls = self.ledger.spent.calls
        self.manager.begin(event.decision, self.ledger.spent, self.ledger.fold)
        found = self.manager.decide(view)
        self.asked += [(step, why)] * (self.ledger.spent.calls > calls)
        self.ledger.fold(decision.response(event.decision, found.by, found.raw, 0.0, found.instead))
        self.ledger.fold(decision.verdict(found.raw, Situation(self.state, self.ledger), age_seconds=0.0))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint([KEEPS, Propose({**answer(evidence="fine"), "ask_again_in": 30}), Say("?")]) as server:
        yield server


@examples(25)
@given(
    losses=st.lists(st.floats(0.5, 10.0), min_size=1, max_size=20),
    spacing=st.integers(1, 40),
    least=st.one_of(st.none(), st.integers(0, 200)),
    calls=st.integers(0, 6),
)
def test_the_model_is_never_asked_more_often_than_spacing_and_budget_allow(
    endpoint: ScriptedEndpoint, losses: list[float], spacing: int, least: int | None, calls: int
) -> None:
    policy = settled(repair=False).model_copy(
        update={"cadence": Cadence(min_steps=least), "budget": Budget(calls=calls)}
    )
    manager, total = manager_at(endpoint, policy), 400
    manager.open()
    course = Course(manager, policy, total)
    for number, loss in enumerate(losses, start=1):
        course.evaluate(min(total, spacing * number), loss, loss - 0.5)
    manager.close()
    apart = total // 40 if least is None else least
    assert course.ledger.spent.calls == len(course.asked) <= calls
    assert all(
        later - earlier >= apart or why.startswith("alarm") for (earlier, _), (later, why) in pairwise(course.asked)
    )
    assert all(step < total for step, _ in course.asked)
