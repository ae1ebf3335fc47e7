"""A recorded run, again: decided again byte for byte, put to others, and trained again bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from factories.profiles import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from trainmgr.base import files
from trainmgr.base.errors import ManagerError
from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import plain
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Actions, Limits, Policy, Probation
from trainmgr.contract.run_file import EDITION, Closing, Manifest, render_run_file
from trainmgr.deciding import asking, decision, probation
from trainmgr.log import audit, orders
from trainmgr.log.telemetry import Feed
from trainmgr.managers.none import NoManager
from trainmgr.managers.rules import RulesManager
from trainmgr.managers.schedules import Schedule
from trainmgr.readers import opinions, proof, replay
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState, figures
from trainmgr.state.situation import Mark, Situation
from trainmgr.testing import LINE, FakeClock, ScriptedManager, answer, supervise, write_child
from trainmgr.workload import Workload

ANSWERS: list[Any] = [
    answer(), answer("adjust", {"lr": 0.3}), answer("adjust", {"decay": 0.02}), {"not": "a proposal"},
    answer("rollback", {"lr": 0.15}, to="best"), answer("adjust", {"lr": 50.0}), ManagerError("the endpoint is down"),
    answer("adjust", {"lr": 0.1}), answer("rollback", to="initial"), answer("adjust", {"decay": 0.05}),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


@pytest.fixture(scope="module")
def recorded(folder: Path) -> RunPaths:
    paths, closing, _ = supervise(folder, write_child(folder), ScriptedManager(ANSWERS))
    assert (closing.status, closing.interventions) == ("completed", 6)
    return paths


def test_a_run_is_decided_again_byte_for_byte(recorded: RunPaths) -> None:
    again = replay.rebuild(recorded)
    assert again.differences == []
    assert again.counts == {"snapshot": 11, "verdict": 10, "override": 6, "acknowledged": 6, "outcome": 6}


def test_its_own_manager_gives_the_same_answers_again(recorded: RunPaths) -> None:
    class Remembers(ScriptedManager):
        """The same script, asked only where there was an answer."""

    answers = [a for a in ANSWERS if not isinstance(a, Exception)]
    again = replay.rebuild(recorded, Remembers(answers))
    assert (again.differences, again.counts["proposal"]) == ([], 10)


def test_another_answer_of_its_own_manager_is_a_difference_with_its_line(recorded: RunPaths) -> None:
    other = [answer(), answer("adjust", {"lr": 0.31})]
    (first, *_) = replay.rebuild(recorded, ScriptedManager(other)).differences
    line, what = first
    assert "the manager answers" in what
    assert '"lr": 0.31' in what
    assert json.loads(recorded.audit.read_bytes().splitlines()[line - 1])["data"]["kind"] == "response"
    assert replay.rebuild(recorded, ScriptedManager(other, deterministic=False)).differences == []


def test_the_snapshots_are_put_to_another_manager(recorded: RunPaths) -> None:
    found = list(opinions.opinions(recorded, Schedule("cosine")))
    assert [o.decision for o in found] == [f"d{i}" for i in range(1, 12)]
    assert [o.step for o in found] == list(range(2, 24, 2))
    assert found[1].recorded == "unclear: adjust (lr = 0.3)"
    assert found[3].recorded.startswith("unreadable: ")
    assert found[6].recorded == "–"
    assert all(o.other.startswith("routine: ") for o in found)
    assert any(o.same_action for o in found)
    assert not any(o.same_diagnosis for o in found)

    class Down(NoManager):
        def decide(self, snapshot: Any) -> Any:
            raise ManagerError("the endpoint is down")

    assert {o.other for o in opinions.opinions(recorded, Down())} == {"no answer: the endpoint is down"}


def test_a_run_that_nobody_managed_is_asked_about_at_each_evaluation(folder: Path) -> None:
    paths, _, _ = supervise(folder, write_child(folder))
    found = list(opinions.opinions(paths, RulesManager(Policy())))
    assert [(o.decision, o.step) for o in found] == [(f"eval {i}", 2 * i) for i in range(1, 13)]
    assert {o.recorded for o in found} == {"–"}
    assert all(o.valid for o in found)
    assert replay.rebuild(paths).counts == {}


# ---- trained again ---------------------------------------------------------------------------------------


def test_training_again_with_the_recorded_overrides_is_bit_identical(recorded: RunPaths, folder: Path) -> None:
    schedule = replay.schedule_of(recorded)
    assert [(o.at_step, o.at_boundary, o.command.name if o.command else None) for o in schedule] == [
        (5, "step", None), (7, "step", None), (11, "step", "rollback"), (17, "step", None), (19, "step", "rollback"),
        (21, "step", None),
    ]  # fmt: skip
    again, closing, _ = supervise(folder, write_child(folder), schedule=schedule)
    assert closing.interventions == 6
    result = replay.compare_training(recorded, again)
    assert result.first is None
    assert result.compared == 24 + 12 + 6 + 1 + len([r for r in Feed(recorded.telemetry).records()
                                                     if isinstance(r, protocol.Checkpoint)])  # fmt: skip
    assert result.values >= 24 + 12
    assert proof.prove(again).holds
    assert [o.origin for o in _of(again, events.OverrideIssued)] == ["replay"]
    third, _, _ = supervise(folder, write_child(folder), schedule=replay.schedule_of(again))  # a replay of the replay
    assert replay.compare_training(recorded, third).first is None
    alone, _, _ = supervise(folder, write_child(folder))
    assert replay.compare_training(recorded, alone).first == "applied at step 5 where the other has step at step 6"


def _of(paths: RunPaths, kind: type[Any]) -> list[Any]:
    return [event.data for event in audit.read(paths.audit) if isinstance(event.data, kind)]


def test_a_stop_is_trained_again_too(tmp_path: Path) -> None:
    script = write_child(tmp_path)
    paths, closing, _ = supervise(tmp_path, script, ScriptedManager([answer(), answer(), answer("stop", to="best")]))
    assert (closing.status, closing.steps) == ("stopped", 7)
    again, closing, _ = supervise(tmp_path, script, schedule=replay.schedule_of(paths))
    assert (closing.status, closing.steps) == ("stopped", 7)
    assert replay.compare_training(paths, again).first is None


def test_the_first_divergence_of_a_child_that_is_not_deterministic_is_named(tmp_path: Path) -> None:
    body = LINE.replace(
        'w.step(step, {"loss": error**2})',
        """
        if step == 9:
            weights[0] += int.from_bytes(os.urandom(4), "big") * 1e-9 + 1e-9
            error = weights[0]
        w.step(step, {"loss": error**2})""",
    )
    script = write_child(tmp_path, body)
    paths, _, _ = supervise(tmp_path, script, ScriptedManager([answer("adjust", {"lr": 0.3})]))
    again, _, _ = supervise(tmp_path, script, schedule=replay.schedule_of(paths))
    result = replay.compare_training(paths, again)
    assert result.first is not None
    assert result.first.startswith("loss of step at step 9: ")


def test_a_run_that_is_shorter_or_longer_is_a_difference(tmp_path: Path, recorded: RunPaths) -> None:
    short = RunPaths(tmp_path)
    lines = recorded.telemetry.read_bytes().splitlines(keepends=True)
    short.telemetry.write_bytes(b"".join(lines[:-1]))
    assert replay.compare_training(recorded, short).first == "the second run ends before end at step 24"
    assert replay.compare_training(short, recorded).first == "the second run goes on with end at step 24"


# ---- any run ---------------------------------------------------------------------------------------------

values = st.one_of(
    st.floats(1e-5, 2.0), st.sampled_from([float("nan"), float("inf"), True, "0.1", None, 0, 1, -1, 10**30])
)
proposals = st.one_of(
    st.builds(
        answer,
        st.sampled_from(["keep", "adjust", "adjust", "rollback", "stop", "explode"]),
        st.dictionaries(st.sampled_from(["lr", "decay", "lr", "decay", "other"]), values, max_size=2),
        to=st.sampled_from([None, "best", "initial", "elsewhere"]),
    ),
    st.none(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
)  # fmt: skip


class Simulation:
    """A run without processes: the same workload library, the same decisions, the same files, one step at a time."""

    def __init__(self, root: Path, policy: Policy) -> None:
        self.paths, self.policy, self.clock = RunPaths(root), policy, FakeClock()
        self.state, self.ledger, self.feed = RunState(), Ledger(), Feed(root / "telemetry.jsonl")
        self.log = audit.Log(self.paths.audit)
        self.manifest = Manifest(
            version="0", id=root.name, created=0.0, command=["x"], script="x", arguments=[], directory=".", seed=1,
            git=None, python="3", packages={}, machine={}, manager="scripted", mode="auto", policy=policy,
            edition=EDITION,
        )  # fmt: skip
        self.append(events.RunStarted(manifest=self.manifest))

    def append(self, payload: events.Payload) -> None:
        self.clock.advance(0.25)
        self.log.append(payload, self.clock())
        self.ledger.fold(payload)

    @property
    def now(self) -> Situation:
        return Situation(self.state, self.ledger, Mark(self.feed.offset, self.feed.digest()))

    def consume(self) -> None:
        for record in self.feed.records():
            self.state.fold(record)
            if isinstance(record, protocol.Applied | protocol.Refused):
                self.append(decision.acknowledgment(record, self.now))
                self.own()
            for outcome in decision.outcomes(self.now):
                self.append(outcome)
            while isinstance(record, protocol.Eval) and (event := probation.assess(self.now)) is not None:
                self.append(event)
                self.own()

    def own(self) -> None:
        issued = protocol.Issued(t=0.0, step=self.state.step)
        event = decision.own(self.now, issued)
        if event is not None:
            self.append(event)
            orders.write(self.paths, event.control)

    def decide(self, raw: Any) -> None:
        why = asking.trigger(self.now)
        if why is None:
            return
        step = self.state.step
        _, taken = decision.take_snapshot(self.now, why)
        self.append(taken)
        response = events.Response(decision=taken.decision, manager="scripted", raw=raw, seconds=0.0)
        self.append(response)
        ruling = decision.verdict(json.loads(response.model_dump_json())["raw"], self.now, age_seconds=0.0)
        self.append(ruling)
        issued = decision.override(ruling, self.now, protocol.Issued(t=0.0, step=step))
        if issued is not None:
            self.append(issued)
            orders.write(self.paths, issued.control)

    def close(self) -> None:
        self.consume()
        self.state.finish()
        for outcome in decision.outcomes(self.now):
            self.append(outcome)
        status = self.state.end.status if self.state.end else "completed"
        closing = Closing(ended=0.0, status=status, exit_code=0, exit="ended well", **figures(self.state),
                                 **self.ledger.losses())  # fmt: skip
        content = render_run_file(plain(self.manifest), plain(closing))
        files.replace(self.paths.manifest, content)
        self.append(
            events.RunEnded(
                closing=closing, telemetry_length=self.feed.offset, telemetry_sha256=self.feed.digest(), torn="",
                run_json_sha256=files.sha256(content),
            )
        )  # fmt: skip
        self.log.close()


def simulate(root: Path, answers: list[Any], losses: list[float], policy: Policy) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINMGR_RUN_DIR", str(root))
        patch.setattr(Workload, "PERIOD", 0.0)
        run, recipe = Simulation(root, policy), {"lr": 0.1, "decay": 0.0}
        with Workload("simulated", objective="loss", total_steps=4 * len(losses), info={"x": float("nan")}) as w:
            w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=1e-4, high=1.0,
                    scale="log", max_ratio=2.0, group="optimizer")  # fmt: skip
            w.float("decay", get=lambda: recipe["decay"], set=lambda v: recipe.update(decay=v), low=0.01, high=0.5,
                    off=0.0, boundary="eval", group="regularization")  # fmt: skip
            w.command("rollback", lambda to: recipe.update(lr=0.1))
            w.command("stop", lambda to: None)
            for step in w.steps():
                w.step(step, {"loss": losses[(step - 1) // 4] + step / 1000, "grad_norm": 1.0})
                if step % 4 == 0:
                    w.eval(step, {"loss": losses[step // 4 - 1]})
                    w.checkpoint(step, f"checkpoints/{step}", best=step % 8 == 0)
                run.consume()
                if step % 2 == 0:
                    run.decide(answers[(step // 2) % len(answers)])
        run.close()


@examples(60, HealthCheck.function_scoped_fixture)
@given(
    st.lists(proposals, min_size=1, max_size=8),
    st.lists(st.floats(-10, 10) | st.just(float("nan")) | st.just(float("inf")), min_size=1, max_size=9),
    st.booleans(),
    st.integers(0, 3),
    st.builds(Probation, first_evals=st.integers(0, 2), patience=st.integers(1, 2), loss_budget=st.floats(0, 1),
              tolerance=st.floats(0.001, 0.1), window_evals=st.integers(1, 5)),
)  # fmt: skip
def test_replay_and_audit_of_any_run_are_exact(
    tmp_path_factory: pytest.TempPathFactory, answers: list[Any], losses: list[float], clip: bool, lead: int,
    watch: Probation,
) -> None:  # fmt: skip
    root = tmp_path_factory.mktemp("simulated")
    actions = Actions(stop_settled_evals=lead, end_on_best=clip)
    simulate(root, answers, losses, Policy(limits=Limits(clip=clip, lead_steps=lead), probation=watch, actions=actions))
    paths = RunPaths(root)
    assert replay.rebuild(paths).differences == []
    assert [str(finding) for finding in proof.prove(paths).findings] == []


# ---- probation -------------------------------------------------------------------------------------------

HARM = [answer(), answer("adjust", {"lr": 0.2}), answer("adjust", {"decay": 0.05})]
CURVE = [1.0, 1.01, 1.0, 1.01, 1.0, 3.0, 1.0, 1.01, 1.0]


@pytest.fixture(scope="module")
def harmed(folder: Path) -> RunPaths:
    """A run in which a change did harm and was taken back."""
    root = folder / "harmed"
    root.mkdir()
    simulate(root, HARM, CURVE, Policy(probation=Probation(loss_budget=1.0)))
    return RunPaths(root)


def test_what_was_taken_back_is_decided_again(harmed: RunPaths) -> None:
    again = replay.rebuild(harmed)
    assert again.differences == []
    assert again.counts["reverted"] == 1
    found = proof.prove(harmed)
    assert [str(finding) for finding in found.findings] == []
    (back,) = _of(harmed, events.Reverted)
    assert [change.decision for change in found.changes if change.taken_back] == back.decisions
    assert {change.diagnosis for change in found.changes if change.decision == back.decision} == {"probation"}
    assert back.command is not None


def rewritten(harmed: RunPaths, root: Path, change: Any) -> list[str]:
    """What an audit says of the run with other events in its log, and every hash made anew."""
    again = RunPaths(root / harmed.id)
    shutil.copytree(harmed.root, again.root)
    payloads = [event.data for event in audit.read(harmed.audit)]
    again.audit.unlink()
    log = audit.Log(again.audit)
    for payload in change(payloads):
        log.append(payload, 0.0)
    log.close()
    return [finding.what for finding in proof.prove(again).findings]


def test_a_log_that_is_written_anew_as_it_was_holds(harmed: RunPaths, tmp_path: Path) -> None:
    assert rewritten(harmed, tmp_path, lambda payloads: payloads) == []


@pytest.mark.parametrize(("name", "value"), [
    ("parameters", {"lr": 0.3}), ("lost", 1), ("demoted", True), ("trust", {}), ("measured", 9.0), ("decisions", []),
    ("command", None), ("tolerance", 5.0),
])  # fmt: skip
def test_a_forged_reversal_is_found(harmed: RunPaths, tmp_path: Path, name: str, value: Any) -> None:
    def forge(payloads: list[Any]) -> list[Any]:
        return [p.model_copy(update={name: value}) if isinstance(p, events.Reverted) else p for p in payloads]

    assert any(f"reverted: `{name}`" in what for what in rewritten(harmed, tmp_path, forge))


def test_a_reversal_that_was_left_out_is_found(harmed: RunPaths, tmp_path: Path) -> None:
    def drop(payloads: list[Any]) -> list[Any]:
        own = [p for p in payloads if isinstance(p, events.OverrideIssued) and p.origin == "probation"]
        return [p for p in payloads if not isinstance(p, events.Reverted) and p not in own]

    assert any('there is no "reverted" for step' in what for what in rewritten(harmed, tmp_path, drop))


def test_a_reversal_that_was_not_carried_out_is_found(harmed: RunPaths, tmp_path: Path) -> None:
    def drop(payloads: list[Any]) -> list[Any]:
        return [p for p in payloads if not (isinstance(p, events.OverrideIssued) and p.origin == "probation")]

    assert any("is on record, and was not issued" in what for what in rewritten(harmed, tmp_path, drop))


def test_a_reversal_without_harm_is_found(harmed: RunPaths, tmp_path: Path) -> None:
    def add(payloads: list[Any]) -> list[Any]:
        at = next(i for i, p in enumerate(payloads) if isinstance(p, events.Reverted))
        return [*payloads[: at + 2], payloads[at], *payloads[at + 1 :]]

    assert any("nothing of the kind was due" in what for what in rewritten(harmed, tmp_path, add))


def test_an_override_of_a_manager_that_lost_too_much_is_found(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    answers = [answer("adjust", {"lr": 0.2}), *[answer("adjust", {"decay": 0.2})] * 2]
    simulate(tmp_path / "run", answers, [*CURVE[:3], *[3.0] * 3, *CURVE], Policy(probation=Probation(loss_budget=0.0)))
    run = RunPaths(tmp_path / "run")
    assert [back.demoted for back in _of(run, events.Reverted)] == [True]
    assert proof.prove(run).holds

    def apply(payloads: list[Any]) -> list[Any]:
        issued = next(p for p in payloads if isinstance(p, events.OverrideIssued))
        at = max(i for i, p in enumerate(payloads) if isinstance(p, events.Verdict))
        forged = issued.model_copy(update={"decision": payloads[at].decision})
        return [*payloads[: at + 1], forged, *payloads[at + 1 :]]

    (tmp_path / "again").mkdir()
    found = rewritten(run, tmp_path / "again", apply)
    assert "an override of a manager that had lost too much" in found
