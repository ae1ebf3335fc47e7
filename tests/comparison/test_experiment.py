"""Experiment files: what they mean, and that each mistake is answered with what was found and what is allowed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from trainmgr.base.errors import UserError
from trainmgr.comparison import experiment, results
from trainmgr.contract import policy

FULL = """
title = "Reaching"
script = "../reacher.py"
arguments = ["--profile", "full"]
policy = "head.toml"
seeds = "40-42"
managers = ["none", "rules"]
reference = "none"
metrics = ["rate"]
goals = { rate = "max" }
disclosure = "Chosen on seed 11."

[[cases]]
name = "cautious"
arguments = ["--regime", "cautious"]

[[cases]]
name = "reckless"
managers = ["schedule:cosine", "none"]
policy = "case.toml"
seeds = [7, 9]
"""


def loaded(tmp_path: Path, text: str) -> experiment.Experiment:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return experiment.load(path)


def test_a_case_takes_from_the_head_what_it_does_not_say(tmp_path: Path) -> None:
    cautious, reckless = experiment.plans(loaded(tmp_path, FULL))
    assert cautious == experiment.Plan(
        "cautious",
        ["--profile", "full", "--regime", "cautious"],
        ["none", "rules"],
        "none",
        "head.toml",
        [40, 41, 42],
        {},
    )
    assert reckless == experiment.Plan(
        "reckless", ["--profile", "full"], ["schedule:cosine", "none"], "none", "case.toml", [7, 9], {}
    )


def test_without_cases_there_is_one_and_the_reference_is_the_first(tmp_path: Path) -> None:
    (plan,) = experiment.plans(loaded(tmp_path, 'script = "a.py"\nmanagers = ["rules", "none"]'))
    assert (plan.name, plan.reference, plan.seeds) == ("", "rules", [1, 2, 3])


def test_a_variant_belongs_to_the_cases_that_train_it(tmp_path: Path) -> None:
    text = """
script = "a.py"
managers = ["none", "searched"]
variants.searched.arguments = ["--lr", "1"]
[[cases]]
name = "a"
[[cases]]
name = "b"
managers = ["none"]
"""
    a, b = experiment.plans(loaded(tmp_path, text))
    assert (a.variants, b.variants) == ({"searched": experiment.Variant(manager="none", arguments=["--lr", "1"])}, {})


def test_what_is_said_instead_holds_in_every_case(tmp_path: Path) -> None:
    plans = experiment.plans(loaded(tmp_path, FULL).narrowed(seeds=[1], managers=["none"]))
    assert [(plan.seeds, plan.managers) for plan in plans] == [([1], ["none"])] * 2
    assert plans[1].policy == "case.toml"


def test_single_cases_can_be_named(tmp_path: Path) -> None:
    plan = loaded(tmp_path, FULL)
    assert [case.name for case in plan.only(["reckless"]).cases] == ["reckless"]
    assert plan.only([]) == plan
    with pytest.raises(UserError, match="no case 'calm'; there are: 'cautious', 'reckless'"):
        plan.only(["cautious", "calm"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "script: missing"),
        ("script = 3", "script: must be text (found 3)"),
        ('script = "a.py"\nseed = 3', "seed: unknown key; known are title, script, arguments"),
        ('script = "a.py"\nseeds = 1.5', 'seeds: must be a text like "1-3" or a list of whole numbers (found 1.5)'),
        ('script = "a.py"\nseeds = ["1"]', "(found ['1'])"),
        ('script = "a.py"\nmanagers = []', "managers: too few"),
        ('script = "a.py"\ngoals = { loss = "less" }', "goals.loss: must be 'min' or 'max' (found 'less')"),
        ('script = "a.py"\n[[cases]]\narguments = []', "cases.0.name: missing"),
        ('script = "a.py"\n[[cases]]\nname = "a"\nregime = "x"', "cases.0.regime: unknown key; known are name"),
        ('script = "a.py"\nscript = "b.py"', "is not TOML"),
    ],
)
def test_a_mistake_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        loaded(tmp_path, text)
    assert message in str(raised.value)
    assert "experiment.toml" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('seeds = "one"', "seeds 'one' is neither a range like 1-3"),
        ('seeds = "3-1"', "names no seed"),
        ("seeds = []", "names no seed"),
        ("seeds = [1, 2, 1]", "names seed 1 twice"),
        ('seeds = "1-99999999999"', "more than 10,000 seeds"),
        ("seeds = [-1]", "is neither"),
        ('managers = ["none", "none"]', "the manager 'none' is named twice"),
        ('reference = "llm"', "the reference 'llm' is not among the managers (none, rules)"),
        ('variants.found.manager = "rules"', "the variant 'found' is not among the managers"),
        ('variants."a, b".manager = "rules"', "a, b"),
        ('arguments = ["\\u0000"]', "arguments"),
        ('[[cases]]\nname = "a"\n[[cases]]\nname = "a"', "Two cases are called 'a'"),
        ('reference = "rules"\n[[cases]]\nname = "a"\nmanagers = ["none"]', "case 'a': the reference 'rules'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        experiment.plans(loaded(tmp_path, f'script = "a.py"\n{text}'))
    assert message in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        experiment.load(tmp_path / "nowhere.toml")


EXPERIMENTS = Path(__file__).resolve().parents[2] / "workloads" / "experiments"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_file_beside_the_workloads_is_a_policy_or_an_experiment_that_can_be_run(path: Path) -> None:
    if "script" not in tomllib.loads(path.read_text()):
        policy.load(path)
        return
    plan = experiment.load(path)
    assert (path.parent / plan.script).exists()
    for case in experiment.plans(plan):
        policy.load(path.parent / case.policy if case.policy else None)
    assert plan.disclosure


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_beside_them_can_be_read_and_is_of_the_experiment_of_its_name(path: Path) -> None:
    plans = {plan.name: plan for plan in experiment.plans(experiment.load(path.with_suffix(".toml")))}
    found = results.load(path).cases
    assert found
    for case in found:
        plan = plans[case.name]
        assert (case.arguments, case.variants) == (plan.arguments, plan.variants)
        assert {run.manager for run in case.runs} <= set(plan.managers)
        assert {run.seed for run in case.runs} <= set(plan.seeds)
        assert [run.failure for run in case.runs if run.failure is not None] == []
