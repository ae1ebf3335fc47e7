"""From the flags of `trainmgr compare` to an experiment, and from results to what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainmgr.base.errors import UserError
from trainmgr.comparison import results
from trainmgr.comparison.compare import Request, compare, metrics_of, planned

EXPERIMENT = """
script = "train.py"
managers = ["none", "rules"]
seeds = "1-2"

[[cases]]
name = "easy"

[[cases]]
name = "hard"
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [("", ([], {})), (" a ,, b=min", (["a", "b"], {"b": "min"})), ("x=max,y=", (["x", "y"], {"x": "max"}))],
)
def test_metrics_are_names_and_which_way_is_better(text: str, found: Any) -> None:
    assert metrics_of(text) == found


def test_a_metric_is_better_one_way_or_the_other() -> None:
    with pytest.raises(UserError, match="=min, =max or nothing"):
        metrics_of("a=most")


def test_an_experiment_of_flags_alone() -> None:
    request = Request(Path("train.py"), ["--fast"], "none, rules", "3-4", "rules", policy=Path("policy.toml"))
    plan = planned(request)
    assert (plan.script, plan.arguments, plan.policy) == ("train.py", ["--fast"], "policy.toml")
    assert (plan.managers, plan.seeds, plan.reference) == (["none", "rules"], [3, 4], "rules")


def test_flags_narrow_an_experiment_file(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(EXPERIMENT)
    plan = planned(Request(file, seeds="2", cases=["hard"]))
    assert (plan.managers, plan.seeds) == (["none", "rules"], [2])
    assert [case.name for case in plan.cases] == ["hard"]


@pytest.mark.parametrize("more", [{"arguments": ["--fast"]}, {"policy": Path("policy.toml")}])
def test_an_experiment_file_says_itself_what_it_runs(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Write them into the file"):
        planned(Request(tmp_path / "e.toml", **more))


def measured(folder: Path) -> Path:
    """results.json of two managers and two seeds, of which one run failed."""
    runs = [
        results.Run(manager=manager, seed=seed, run=f"{manager}-{seed}", status="completed", metrics={"loss": 1 / seed})
        for manager in ("none", "rules") for seed in (1, 2)
    ]  # fmt: skip
    runs[-1] = runs[-1].model_copy(update={"status": "failed", "failure": "failed: it ended with exit code 3"})
    case = results.Case(
        name="", arguments=[], policy=None, managers=["none", "rules"], reference="none", seeds=[1, 2],
        objective="loss", goal="min", held_out=[], runs=runs,
    )  # fmt: skip
    found = results.Results(
        title="", script="train.py", metrics=[], goals={}, disclosure="", versions={}, machines=[], revisions={},
        wall_seconds=1.0, cases=[case],
    )  # fmt: skip
    (folder / "r.json").write_text(results.render(found))
    return folder / "r.json"


def test_results_are_analysed_written_and_what_failed_is_named(tmp_path: Path) -> None:
    found = compare(Request(measured(tmp_path), metrics="loss=max", reference="rules", out=tmp_path / "out"), print)
    assert found.failed == ["rules seed 2 (rules-2): failed: it ended with exit code 3"]
    assert found.written == [tmp_path / "out" / f"results.{kind}" for kind in ("md", "json", "csv", "html")]
    assert found.results.goals == {"loss": "max"}
    assert found.results.cases[0].reference == "rules"
    assert "| manager |" in found.text
    assert results.load(tmp_path / "out" / "results.json") == found.results
    (tmp_path / "again.json").write_text(found.json())
    assert compare(Request(tmp_path / "again.json"), print).text == found.text


@pytest.mark.parametrize(
    "more", [{"managers": "none"}, {"seeds": "1"}, {"cases": ["hard"]}, {"reuse": Path("r.json")},
             {"arguments": ["train.py"]}]
)  # fmt: skip
def test_nothing_is_trained_for_results(more: dict[str, Any]) -> None:
    said: list[str] = []
    with pytest.raises(UserError, match="printed again as it was measured"):
        compare(Request(Path("r.json"), **more), said.append)
    assert said == []
