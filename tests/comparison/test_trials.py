"""Comparisons of real runs: what is trained, what is found again, and what happens when one is cut short."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainmgr.base import errors
from trainmgr.base.errors import TrainmgrError
from trainmgr.base.paths import RunPaths, list_runs
from trainmgr.base.process import alive
from trainmgr.base.wire import to_json
from trainmgr.comparison import experiment, gathering, results, trials
from trainmgr.log import history
from trainmgr.managers import catalog
from trainmgr.running.supervisor import Supervisor

SCRIPT = """
import os, pathlib, random, sys
from trainmgr.workload import Workload, default_seed

seed, hard, here = default_seed(1), "--hard" in sys.argv, pathlib.Path(__file__).parent
recipe = {"lr": 0.4}
with Workload("tiny", objective="val_loss", mode="min", total_steps=40, seed=seed, metrics={"val_loss": "none"}) as w:
    w.float("lr", get=lambda: recipe["lr"], set=lambda value: recipe.update(lr=value), low=1e-4, high=1.0)
    if seed == 2 and not (here / "open").exists():
        (here / "gate").write_text(str(os.getpid()))  # a pipe: until somebody reads
        (here / "never").read_text()  # a pipe that nobody writes
    for step in w.steps():
        w.step(step, {"loss": 1.0 / step})
        if step % 10 == 0:
            w.eval(step, {"val_loss": seed + hard + random.Random(f"{seed} {step}").random(), "test_shown": 1.0})
    if seed == 3 and (here / "fail").exists():
        sys.exit("it was told to")
    reached = {"reached": 7} if seed == 1 else {}
    w.end(step, {"val_loss": seed + hard, "test_loss": seed / 2, "test_shown": 1.0, **reached})
"""
SEEDLESS = """
import random
from trainmgr.workload import Workload

generator, recipe = random.Random(0), {"lr": 0.4}
with Workload("seedless", objective="val_loss", mode="min", total_steps=60, metrics={"val_loss": "none"}) as w:
    w.float("lr", get=lambda: recipe["lr"], set=lambda value: recipe.update(lr=value), low=1e-4, high=1.0)
    for step in w.steps():
        w.step(step, {"loss": generator.random()})
        if step % 10 == 0:
            w.eval(step, {"val_loss": 1.0 / step + generator.random()})
"""
DIVERGING = """
import math
from trainmgr.workload import Workload, default_seed

seed = default_seed(1)
with Workload("diverging", objective="val_loss", mode="min", total_steps=40, seed=seed) as w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step % 10 == 0:
            w.eval(step, {"val_loss": {2: math.nan, 3: math.inf if step > 20 else 1.0}.get(seed, seed / step)})
"""
EXPERIMENT = """
title = "Tiny"
script = "code/tiny.py"
seeds = [1, 2]
managers = ["none", "schedule:plateau"]
goals = { test_loss = "min" }
disclosure = "Nothing was selected."

[[cases]]
name = "easy"

[[cases]]
name = "hard"
arguments = ["--hard"]
managers = ["none"]
policy = "slow.toml"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the script, which does not wait, and the experiment."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "tiny.py").write_text(SCRIPT)
    (tmp_path / "code" / "open").touch()
    (tmp_path / "slow.toml").write_text("[cadence]\nevery_evals = 2\n")
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    return tmp_path


class Silent:
    """A trials.Watcher that keeps what it was told."""

    def __init__(self) -> None:
        self.outcomes: list[trials.Outcome] = []
        self.shares: list[float] = []
        self.notes: list[str] = []

    def begin(self, total: int, reused: int) -> None:
        self.total, self.reused = total, reused

    def ended(self, outcome: trials.Outcome) -> None:
        self.outcomes.append(outcome)

    def share(self, cell: trials.Cell, share: float) -> None:
        self.shares.append(share)

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(plan: experiment.Experiment, folder: Path) -> tuple[results.Results, Silent]:
    watcher, runs = Silent(), folder / "runs"
    outcomes = trials.run(trials.balanced(trials.cells(plan, folder, runs)), runs, 2, watcher)
    return gathering.gather(plan, outcomes), watcher


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "trainmgr", "compare", *map(str, arguments)]


def trainmgr(folder: Path, *arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), cwd=folder, capture_output=True, text=True, check=False, timeout=120,
        env={name: value for name, value in os.environ.items() if not name.startswith(("TRAINMGR", "OMP"))},
    )  # fmt: skip
    assert done.returncode == expect, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def figures(found: results.Results) -> list[Any]:
    """Everything but ids and times."""
    return [(case.name, run.manager, run.seed, run.status, run.metrics, run.curve)
            for case in found.cases for run in case.runs]  # fmt: skip


def test_an_experiment_from_its_file_to_its_page(folder: Path) -> None:
    first = trainmgr(folder, "tiny.toml", "--jobs", "2", "--show-seeds", "--out", "out")
    assert "## easy" in first.stdout
    assert "| none | 2 | 1.50 ± 0.71 [1.00, 2.00] | 1.000 ± 0.000 [1.000, 1.000] | 7.000 (1 of 2) |" in first.stdout
    assert "| test_loss (less is better) | schedule:plateau | 2 of 2 |" in first.stdout
    assert "too few seeds to prove: p ≥ 0.5, at least 6 are needed" in first.stdout
    assert first.stdout.endswith("Nothing was selected.\n")
    assert "[6/6]" in first.stderr
    found = results.load(folder / "out" / "results.json")
    assert [case.held_out for case in found.cases] == [["test_loss"]] * 2  # test_shown is in the evaluations
    assert found.cases[1].arguments == ["--hard"]
    assert [case.settings for case in found.cases] == [{}, {"cadence": {"every_evals": 2}}]
    assert found.cases[1].runs[1].metrics["val_loss"] == 3.0
    assert [step for step, _ in found.cases[0].runs[0].curve] == [10, 20, 30, 40]
    assert found.machines[0]["threads"] == "1"
    assert str(folder) not in (folder / "out" / "results.json").read_text()
    assert "<svg" in (folder / "out" / "results.html").read_text()

    again = trainmgr(folder, "tiny.toml", "--show-seeds", "--json")
    assert again.stderr.count("reused") == 6
    assert results.Results.model_validate_json(again.stdout) == found
    assert trainmgr(folder, "out/results.json", "--show-seeds").stdout == first.stdout
    trainmgr(folder, "tiny.toml", "--case", "easy", "--out", "easy")
    turned = trainmgr(folder, "easy/results.json", "--reference", "schedule:plateau").stdout
    assert "| test_loss (less is better) | none | 2 of 2 |" in turned
    nobody = trainmgr(folder, "out/results.json", "--reference", "schedule:plateau", expect=2)
    assert "Case 'hard' of these results has no manager 'schedule:plateau'; there are: none." in nobody.stderr
    twice = trainmgr(folder, "out/results.json", "out/results.json", expect=2)
    assert "was measured twice" in twice.stderr
    assert (folder / "out" / "results.md").read_text() == first.stdout
    narrow = trainmgr(folder, "tiny.toml", "--seeds", "1", "--managers", "none", "--metrics", "test_loss=max")
    assert "| val_loss |" not in narrow.stdout
    assert narrow.stderr.count("reused") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny.toml", "--", "--hard"], "Write them into the file"),
        (["tiny.toml", "--policy", "slow.toml"], "Write them into the file"),
        (["tiny.toml", "--managers", "magic"], "There is no manager 'magic'"),
        (["tiny.toml", "--reference", "rules"], "the reference 'rules' is not among the managers"),
        (["tiny.toml", "--metrics", "loss=less"], "comes =min, =max or nothing"),
        (["nowhere.toml"], "cannot be read"),
        (["nowhere.json"], "cannot be read"),
        (["results.json", "--seeds", "1"], "printed again as it was measured"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(folder: Path, arguments: list[str], message: str) -> None:
    assert message in trainmgr(folder, *arguments, expect=errors.EXIT_USAGE).stderr
    assert not (folder / "runs").exists()


def test_a_metric_that_no_run_has_is_said_after_the_first_run(folder: Path) -> None:
    told = trainmgr(folder, "tiny.toml", "--metrics", "accuracy,val_loss=min").stderr.splitlines()
    assert told[0].startswith("runs to train: ")
    (place,) = [i for i, line in enumerate(told) if "ended without accuracy, which others may have. It has: " in line]
    assert "[1/" in told[place - 1]
    again = trainmgr(folder, "tiny.toml", "--metrics", "accuracy,val_loss=min").stderr
    assert again.count("ended without accuracy") == 1


def test_a_script_or_policy_that_is_not_there(folder: Path) -> None:
    plan = experiment.load(folder / "tiny.toml")
    for changed in ({"script": "nowhere"}, {"policy": "nowhere"}):
        with pytest.raises(TrainmgrError, match="nowhere"):
            trials.cells(plan.model_copy(update=changed), folder, folder / "runs")


def test_only_what_is_missing_is_trained(folder: Path) -> None:
    plan = experiment.Experiment(script="code/tiny.py", seeds=[1, 4], managers=["none", "schedule:plateau"])
    first, watcher = run(plan, folder)
    assert (watcher.total, watcher.reused, len(watcher.outcomes)) == (4, 0, 4)
    assert max(watcher.shares) == 1.0

    more = plan.model_copy(update={"seeds": [1, 4, 5], "managers": ["none", "schedule:plateau", "rules"]})
    second, watcher = run(more, folder)
    assert (watcher.total, watcher.reused) == (9, 4)
    assert {run.run for run in first.cases[0].runs} < {run.run for run in second.cases[0].runs}
    assert run(plan.model_copy(update={"arguments": ["--hard"]}), folder)[1].reused == 0
    assert run(plan.model_copy(update={"policy": "slow.toml"}), folder)[1].reused == 2  # `none` reads no cadence


VARIANT = """
script = "code/tiny.py"
seeds = [1]
managers = ["none", "found"]
[variants.found]
manager = "schedule:cosine"
arguments = ["--hard"]
"""


def test_a_variant_is_one_of_the_arms_with_a_manager_and_arguments_of_its_own(folder: Path) -> None:
    (folder / "variant.toml").write_text(VARIANT)
    printed = trainmgr(folder, "variant.toml", "--out", "out").stdout
    assert "found: schedule:cosine with --hard." in printed
    (case,) = results.load(folder / "out" / "results.json").cases
    assert [(r.manager, r.asked, r.metrics["val_loss"]) for r in case.runs] == [
        ("none", "none", 1.0),
        ("found", "schedule:cosine", 2.0),
    ]
    again = ("variant.toml", "--reuse", "out/results.json", "--runs-dir", "others")
    assert trainmgr(folder, *again).stdout == printed
    for one, other in (('"--hard"', '"--soft"'), ("cosine", "plateau")):
        (folder / "variant.toml").write_text(VARIANT.replace(one, other))
        assert "[1/1] found seed 1" in trainmgr(folder, *again).stderr


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("found", "rules", "The variant 'rules' has the name of a manager."),
        ('"schedule:cosine"', '"rulez"', "The variant 'found': There is no manager 'rulez'"),
        ('"none", "found"', '"none", "fund", "found"', "Variants of this experiment: found."),
    ],
)
def test_a_variant_that_cannot_be(folder: Path, one: str, other: str, message: str) -> None:
    (folder / "variant.toml").write_text(VARIANT.replace(one, other))
    assert message in trainmgr(folder, "variant.toml", expect=errors.EXIT_USAGE).stderr


def test_only_what_other_results_lack_is_trained(folder: Path) -> None:
    trainmgr(folder, "tiny.toml", "--seeds", "1", "--out", "one")
    before = results.load(folder / "one" / "results.json")
    whole = trainmgr(folder, "tiny.toml", "--reuse", "one/results.json", "--runs-dir", "others", "--out", "both")
    assert "[3/3]" in whole.stderr
    assert "3 of 6 runs are taken from one/results.json\n" in whole.stderr
    both = results.load(folder / "both" / "results.json")
    assert [[(r.manager, r.seed) for r in case.runs] for case in both.cases] == [
        [(manager, seed) for manager in case.managers for seed in case.seeds] for case in both.cases
    ]
    assert {r.run for case in before.cases for r in case.runs} < {r.run for case in both.cases for r in case.runs}
    again = trainmgr(folder, "tiny.toml", "--reuse", "both/results.json", "--runs-dir", "none")
    assert again.stdout == whole.stdout
    assert not list((folder / "none").glob("*"))
    text = (folder / "tiny.toml").read_text().replace('"--hard"', '"--soft"')
    (folder / "other.toml").write_text(text)
    other = trainmgr(folder, "other.toml", "--reuse", "both/results.json", "--runs-dir", "others")
    assert "[2/2]" in other.stderr  # of the case with the other arguments
    taken = "4 of 6 runs are taken from both/results.json; 2 of its runs differ from these in case, arguments"
    assert taken in other.stderr
    (folder / "code" / "another.py").write_text(SCRIPT)
    (folder / "another.toml").write_text(text.replace("tiny.py", "another.py"))
    refused = trainmgr(folder, "another.toml", "--reuse", "both/results.json", expect=errors.EXIT_USAGE)
    assert "The results to reuse are of code/tiny.py; the experiment trains code/another.py." in refused.stderr


def test_a_run_is_only_reused_where_its_manager_could_read_the_same(folder: Path) -> None:
    plan = experiment.Experiment(script="code/tiny.py", seeds=[1], managers=["none", "rules", "random"])
    cells = trials.cells(plan, folder, folder / "runs")
    found = gathering.gather(plan, trials.run(trials.balanced(cells), folder / "runs", 2, Silent()))
    (case,) = found.cases

    def reused(**changed: Any) -> list[str]:
        runs = [run.model_copy(update=changed) for run in case.runs]
        before = found.model_copy(update={"cases": [case.model_copy(update={"runs": runs})]})
        return [run.manager for each in gathering.kept(plan, cells, before).cases for run in each.runs]

    assert reused() == ["none", "rules", "random"]
    assert reused(policy_digest="of other defaults") == []
    assert reused(policy_digest=None) == ["none"]  # by a version that did not tell
    assert reused(failure="failed") == []
    nothing = gathering.kept(plan, cells, found.model_copy(update={"cases": [], "disclosure": "x"}))
    assert (nothing.machines, nothing.versions, nothing.disclosure, nothing.wall_seconds) == ([], {}, "", 0.0)


@pytest.mark.parametrize(
    ("settings", "readers"),
    [
        ("[process]\nrestarts = 1", {"none", "rules", "schedule:plateau"}),
        ("[limits]\nclip = true", {"rules", "schedule:plateau"}),
        ("[rules]\nrise = 0.5", {"rules", "schedule:plateau"}),  # the threshold of an alarm
        ("[rules]\nlr_factor = 0.5", {"rules"}),
        ("[exploration]\nrate = 0.5", {"rules"}),
        ("[actions]\nend_on_best = true", {"none", "rules", "schedule:plateau"}),
        ("[llm]\ntimeout = 5", set()),
    ],
)
def test_a_setting_counts_for_the_managers_that_it_changes(folder: Path, settings: str, readers: set[str]) -> None:
    (folder / "other.toml").write_text(settings)
    plan = experiment.Experiment(script="code/tiny.py", seeds=[1], managers=["none", "rules", "schedule:plateau"])
    (plain,) = trials.cells(plan, folder, folder / "runs")
    (other,) = trials.cells(plan.model_copy(update={"policy": "other.toml"}), folder, folder / "runs")
    assert {a.manager for a, b in zip(plain, other, strict=True) if a.key != b.key} == readers


def test_results_name_the_file_of_a_model_but_not_its_folder(folder: Path) -> None:
    plan = experiment.Experiment(script="code/tiny.py", seeds=[1], managers=["none"])
    (outcome,) = trials.run(trials.cells(plan, folder, folder / "runs")[0], folder / "runs", 1, Silent())
    assert outcome.file is not None
    manifest = outcome.file.manifest.model_copy(update={"manager": f"local:{folder / 'small.gguf'}"})
    outcome = replace(outcome, file=outcome.file.model_copy(update={"manifest": manifest}))
    found = gathering.gather(plan, [outcome])
    assert found.cases[0].runs[0].asked == "local:small.gguf"
    assert str(folder) not in results.render(found)


def test_of_every_manager_it_is_known_whether_it_reads_the_thresholds_of_the_rules() -> None:
    named = {name.partition("[")[0].partition(":")[0] for name in catalog.NAMES}
    assert named == {*trials.BLIND, "rules", "none", "auto", "llm", "hybrid", "local", "replay"}


@pytest.mark.parametrize(("section", "key", "lost"), [
    ("probation", "challenge_evals", {"random"}), ("rules", "lr_factor", {"rules"}),
    ("llm", "timeout", set()), ("actions", "stop_after", {"rules", "random", "schedule:plateau"}),
    ("process", "restarts", {"none", "rules", "random", "schedule:plateau"}),
])  # fmt: skip
def test_a_run_of_other_defaults_is_none_of_todays(folder: Path, section: str, key: str, lost: set[str]) -> None:
    """Its policy does not have a key yet, which its manager would read today."""
    plan = experiment.Experiment(
        script="code/tiny.py", seeds=[1], managers=["none", "rules", "random", "schedule:plateau"]
    )
    run(plan, folder)
    for paths in list_runs(folder / "runs"):
        values = json.loads(paths.manifest.read_text())
        del values["manifest"]["policy"][section][key]
        paths.manifest.write_text(json.dumps(values))
    (cells,) = trials.cells(plan, folder, folder / "runs")
    done, _ = trials.find(cells, folder / "runs")
    assert {cell.manager for cell in cells if cell.key not in done} == lost


def test_cases_that_train_the_same_share_the_run(folder: Path) -> None:
    cases = [experiment.Case(name="a"), experiment.Case(name="b", policy="slow.toml")]
    plan = experiment.Experiment(script="code/tiny.py", seeds=[1], managers=["none", "rules"], cases=cases)
    found, watcher = run(plan, folder)
    assert watcher.total == 3
    (a, _), (b, _) = (case.runs for case in found.cases)
    assert a.run == b.run
    assert run(plan, folder)[1].reused == 3


def test_a_comparison_goes_seed_by_seed(folder: Path) -> None:
    plan = experiment.load(folder / "tiny.toml")
    order = [(c.seed, c.case, c.manager) for c in trials.balanced(trials.cells(plan, folder, folder / "runs"))]
    assert [seed for seed, _, _ in order] == [1, 1, 1, 2, 2, 2]
    assert order[:3] == [(1, "easy", "none"), (1, "easy", "schedule:plateau"), (1, "hard", "none")]


def test_a_failed_run_is_named_and_run_again(folder: Path) -> None:
    arguments = ("code/tiny.py", "--managers", "none", "--seeds", "1,3")
    (folder / "code" / "fail").touch()
    done = trainmgr(folder, *arguments, expect=errors.EXIT_FAILED)
    assert "1 of 2 runs failed, and no figure includes them: none seed 3." in done.stdout
    assert "failed: it ended with exit code 1" in done.stderr
    (folder / "code" / "fail").unlink()
    done = trainmgr(folder, *arguments)
    assert "| none | 2 |" in done.stdout
    assert done.stderr.count("reused") == 1


def test_a_script_that_does_not_use_its_seed_is_named_and_proves_nothing(folder: Path) -> None:
    """Fresh, reused, reused from the results of others, and printed again: the same six copies."""
    (folder / "code" / "seedless.py").write_text(SEEDLESS)
    arguments = ("code/seedless.py", "--managers", "none,schedule:cosine", "--show-seeds")
    warning = "Warning: seeds 1 to 6 of none and seeds 1 to 6 of schedule:cosine gave the same figures"
    first = trainmgr(folder, *arguments, "--seeds", "1-6", "--jobs", "2", "--out", "out")
    assert first.stdout.startswith(warning)
    assert "the script does not use TRAINMGR_SEED" in first.stdout
    assert "trainmgr.workload.default_seed()" in first.stdout
    assert first.stdout.count("| – | – | no verdict: all seeds are one sample, see the warning |") == 2
    assert "proven better" not in first.stdout
    told = [line for line in first.stderr.splitlines() if "gave the same figures to the last digit" in line]
    assert any(line.startswith("none seed ") for line in told)  # after the second of them
    again = trainmgr(folder, *arguments, "--seeds", "1-6")
    assert (again.stdout, again.stderr.count("reused")) == (first.stdout, 12)
    assert trainmgr(folder, "out/results.json", "--show-seeds").stdout == first.stdout
    text = re.sub(r', "(course|figures)": "\w+"', "", (folder / "out" / "results.json").read_text())
    (folder / "old.json").write_text(text)  # as by the version that kept no digests
    old = trainmgr(folder, "old.json", "--show-seeds").stdout
    assert old == first.stdout
    more = trainmgr(folder, *arguments, "--seeds", "1-7", "--reuse", "old.json", "--runs-dir", "others").stdout
    assert more.startswith(warning.replace("1 to 6", "1 to 7"))


def test_a_run_that_diverged_is_said_to_have_diverged(folder: Path) -> None:
    (folder / "code" / "diverging.py").write_text(DIVERGING)
    done = trainmgr(folder, "code/diverging.py", "--managers", "none", "--seeds", "1-4", "--out", "out")
    assert "| none | 4 | seeds 2 and 3 diverged; the others: 0.062 ± 0.053 [0.025, 0.100] (2 of 4) |" in done.stdout
    assert "| seed 2 diverged; the others: 0.38 ± 0.54 [0.03, 1.00] (3 of 4) |" in done.stdout  # the best
    (case,) = results.load(folder / "out" / "results.json").cases
    assert [sorted(run.metrics) for run in case.runs] == [["best val_loss", "val_loss"], ["val_loss"]] + [
        ["best val_loss", "val_loss"]
    ] * 2
    assert trainmgr(folder, "out/results.json").stdout == done.stdout


def test_many_runs_are_found_by_reading_each_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = experiment.Experiment(script="code/tiny.py", seeds=[1], managers=["none"])
    run(plan, folder)
    (paths,) = list_runs(folder / "runs")
    values = json.loads(paths.manifest.read_text())
    for seed in range(10, 110):
        copy = paths.root.with_name(f"{paths.id[:-4]}{seed:04}")
        copy.mkdir()
        values["manifest"]["seed"] = seed
        (copy / "run.json").write_text(json.dumps(values))
    read: list[RunPaths] = []
    real = history.run_file
    monkeypatch.setattr(history, "run_file", lambda paths: read.append(paths) or real(paths))
    todo = trials.balanced(trials.cells(plan.narrowed(seeds="10-109"), folder, folder / "runs"))
    done, orphans = trials.find(todo, folder / "runs")
    assert (len(done), orphans, len(read)) == (100, [], 101)


def test_a_model_that_only_the_endpoint_named_is_found_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)  # which would not go to what only a policy names
    plan = experiment.Experiment(script="code/tiny.py", seeds=[1], managers=["none"])
    run(plan, folder)
    (paths,) = list_runs(folder / "runs")
    (folder / "llm.toml").write_text('[llm]\nbase_url = "http://127.0.0.1:9/v1"\n')
    asking = plan.model_copy(update={"managers": ["llm"], "policy": "llm.toml"})
    (cells,) = trials.cells(asking, folder, folder / "runs")
    values = json.loads(paths.manifest.read_text())
    values["manifest"] |= {"manager": "llm:found", "policy": json.loads(to_json(cells[0].request.policy))}
    paths.manifest.write_text(json.dumps(values))
    done, _ = trials.find(cells, folder / "runs")
    assert [outcome.paths for outcome in done.values()] == [paths]


@pytest.fixture
def gated(folder: Path) -> Path:
    """The folder, in which seed 2 waits at a pipe for ever."""
    (folder / "code" / "open").unlink()
    os.mkfifo(folder / "code" / "gate")
    os.mkfifo(folder / "code" / "never")
    return folder


def interrupted(folder: Path, number: int) -> tuple[int, int]:
    """A comparison that is signalled while seed 2 trains; its exit code, and the process id of seed 2."""
    process = subprocess.Popen(
        command("code/tiny.py", "--managers", "none", "--seeds", "1-3"), cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pid = int((folder / "code" / "gate").read_text())
    process.send_signal(number)
    return process.wait(60), pid


def test_after_a_kill_it_ends_with_the_same_table(gated: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    code, pid = interrupted(gated, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert alive(pid)
    (gated / "code" / "open").touch()
    plan = experiment.Experiment(script="code/tiny.py", seeds="1-3", managers=["none"])
    found, watcher = run(plan, gated)
    assert not alive(pid)
    assert watcher.reused == 1
    assert ["its supervisor died" in note for note in watcher.notes] == [True]

    whole = tmp_path_factory.mktemp("whole")
    (whole / "code").symlink_to(gated / "code")
    assert figures(run(plan, whole)[0]) == figures(found)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_an_interrupted_comparison_ends_its_runs(gated: Path, number: signal.Signals) -> None:
    code, pid = interrupted(gated, number)
    assert code == errors.EXIT_INTERRUPTED
    assert not alive(pid)
    (gated / "code" / "open").touch()
    assert trainmgr(gated, "code/tiny.py", "--managers", "none", "--seeds", "1-3").stderr.count("reused") == 1


def test_a_comparison_outlives_its_terminal_where_that_was_asked_for(gated: Path) -> None:
    """With nohup, as a run does."""
    words = ["nohup", *command("code/tiny.py", "--managers", "none", "--seeds", "2")]
    process = subprocess.Popen(words, cwd=gated, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = int((gated / "code" / "gate").read_text())
    process.send_signal(signal.SIGHUP)
    os.kill(pid, signal.SIGHUP)
    (gated / "code" / "never").write_text("")
    assert process.wait(60) == 0


def test_ctrl_c_twice_ends_every_run_of_a_comparison(gated: Path) -> None:
    """The second one comes while the runs are being ended."""
    process = subprocess.Popen(
        command("code/tiny.py", "--managers", "none", "--seeds", "2"), cwd=gated, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    pid = int((gated / "code" / "gate").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    with process.stderr as said:
        while "interrupted; finished runs are kept" not in said.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == errors.EXIT_INTERRUPTED
    assert not alive(pid)
    (paths,) = list_runs(gated / "runs")
    file = history.run_file(paths)
    assert file is not None
    assert file.closing is not None
    assert file.closing.status == "interrupted"


def test_a_comparison_keeps_no_supervisor_of_a_run_that_is_over(folder: Path) -> None:
    kept: list[int] = []

    class Counting(Silent):
        def ended(self, outcome: trials.Outcome) -> None:
            gc.collect()
            kept.append(sum(type(thing) is Supervisor for thing in gc.get_objects()))

    gc.collect()
    before = sum(type(thing) is Supervisor for thing in gc.get_objects())
    plan = experiment.Experiment(script="code/tiny.py", seeds="1-4", managers=["none"])
    trials.run(trials.balanced(trials.cells(plan, folder, folder / "runs")), folder / "runs", 1, Counting())
    assert len(kept) == 4
    assert max(kept) - before <= 2  # the one that trains, and the one that has just ended
