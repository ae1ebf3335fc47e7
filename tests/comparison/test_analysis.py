"""What may be said of results, and how it is printed: tables, JSON, CSV and the page."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.base.errors import UserError
from trainmgr.comparison import analysis, experiment, page, plots, pooling, report, results, statistics

NOISE = [0.01, -0.02, 0.015, 0.0, -0.01, 0.02, 0.005, -0.015, 0.01, -0.005]
HOSTILE = 'x" onload="alert(1)|<script>alert(1)</script>&'


def run(manager: str, seed: int, metrics: dict[str, float], **changed: Any) -> results.Run:
    values: dict[str, Any] = {
        "manager": manager, "seed": seed, "run": f"{manager}-{seed}", "status": "completed", "seconds": 10.0 + seed,
        "steps": 100, "metrics": metrics, "curve": [(0, 2.0), (50, 1.0 + seed / 10), (100, 1.0)],
    }  # fmt: skip
    return results.Run(**values | changed)


def case(arms: dict[str, list[float | None]], **changed: Any) -> results.Case:
    """Arms with one value of val_loss for each seed; None: the run lacks it."""
    seeds = list(range(1, 1 + max(map(len, arms.values()))))
    runs = [
        run(manager, seed, {} if value is None else {"val_loss": value})
        for manager, values in arms.items()
        for seed, value in zip(seeds, values, strict=True)
    ]
    values: dict[str, Any] = {
        "name": "", "arguments": [], "policy": None, "managers": list(arms), "reference": next(iter(arms)),
        "seeds": seeds, "objective": "val_loss", "goal": "min", "held_out": [], "runs": runs,
    }  # fmt: skip
    return results.Case(**values | changed)


def everything(*cases: results.Case, **changed: Any) -> results.Results:
    values: dict[str, Any] = {
        "title": "", "script": "train.py", "metrics": [], "goals": {}, "disclosure": "", "versions": {},
        "machines": [], "revisions": {}, "wall_seconds": 1.0, "cases": list(cases),
    }  # fmt: skip
    return results.Results(**values | changed)


def verdict(
    reference: list[float | None], other: list[float | None], test: statistics.Test = "permutation", **changed: Any
) -> str:  # fmt: skip
    (section,) = analysis.analyse(everything(case({"none": reference, "rules": other}, **changed)), test)
    difference = section.arms[1].entries["val_loss"].difference
    assert difference is not None
    return difference.verdict


def shifted(by: float, count: int) -> list[float | None]:
    return [1.0 + by + noise for noise in NOISE[:count]]


def test_the_verdicts() -> None:
    reference = [1.0 - noise / 3 for noise in NOISE]
    assert verdict([*reference], shifted(-0.5, 10)) == "better"
    assert verdict([*reference], shifted(-0.5, 10), goal="max") == "worse"
    assert verdict([*reference], shifted(0.5, 10)) == "worse"
    assert verdict([*reference], shifted(0.5, 10), goal=None) == "different"
    assert verdict([*reference], shifted(0.0, 10)) == "no proven win"
    assert verdict([*reference[:6]], shifted(-0.5, 6)) == "better"
    assert verdict([*reference[:5]], shifted(-0.5, 5)) == "too few seeds to prove"
    assert verdict([*reference], [*shifted(-0.5, 9), None]) == "incomplete"
    assert verdict([*reference], [*shifted(-0.5, 9), math.nan]) == "incomplete"
    assert verdict([*reference], [*shifted(-0.5, 9), -math.inf]) == "incomplete"
    assert verdict([None] * 10, shifted(0.0, 10)) == "incomplete"


def test_more_arms_need_more_seeds_and_say_how_many() -> None:
    arms: dict[str, list[float | None]] = {"none": [1.0] * 6, "a": shifted(-0.5, 6), "b": shifted(-0.4, 6)}
    found = everything(case(arms))
    sections = analysis.analyse(found, "permutation")
    difference = sections[0].arms[1].entries["val_loss"].difference
    assert difference is not None
    assert (difference.p, difference.adjusted) == (pytest.approx(2 / 64), pytest.approx(4 / 64))
    text = report.markdown(found, sections, "permutation")
    assert "too few seeds to prove: p ≥ 0.0625, at least 7 are needed" in text
    assert "nothing is proven with fewer than 6 seeds" in text


def test_a_failed_run_counts_nowhere_and_is_named() -> None:
    broken = case({"none": shifted(0.0, 3), "rules": shifted(-0.5, 3)}, name="hard")
    runs = [r.model_copy(update={"failure": "failed: it ended with exit code 1"} if r.seed == 2 else {})
            for r in broken.runs]  # fmt: skip
    found = everything(broken.model_copy(update={"runs": runs}))
    sections = analysis.analyse(found, "permutation")
    assert sections[0].arms[0].entries["val_loss"].values.keys() == {1, 3}
    text = report.markdown(found, sections, "permutation", show_seeds=True)
    assert "2 of 6 runs failed, and no figure includes them: hard none seed 2, hard rules seed 2." in text
    assert "| failed: it ended with exit code 1 |" in text
    assert "| none | 2 of 3; seed 2 failed: it ended with exit code 1 |" in text
    assert "| 2 of 3 |" in text
    assert "| no verdict: seed 2 of rules failed, seed 2 of none failed; the other seeds alone prove nothing |" in text


def test_what_some_runs_lack_is_counted() -> None:
    found = everything(case({"none": [10.0, None, 14.0], "rules": [None, None, None]}), metrics=["val_loss", "loss"])
    sections = analysis.analyse(found, "permutation")
    text = report.markdown(found, sections, "permutation")
    assert re.search(r"\| none \| 3 \| 12\.0 ± 2\.8 \[10\.0, 14\.0\] \(2 of 3\) \| 0 of 3 \|", text)
    assert "No run reported loss at its end. Reported: val_loss." in text


def test_test_metrics_stand_apart() -> None:
    one = case({"none": shifted(0.0, 3)}, held_out=["test_loss"])
    runs = [r.model_copy(update={"metrics": {"test_loss": 3.0, **r.metrics}}) for r in one.runs]
    found = everything(one.model_copy(update={"runs": runs}))
    text = report.markdown(found, analysis.analyse(found, "permutation"), "permutation")
    assert text.index("| val_loss |") < text.index("Test metrics, which no manager saw:") < text.index("| test_loss |")


def test_what_a_reader_must_know_stands_under_the_table() -> None:
    found = everything(
        case({"none": shifted(0.0, 3), "rules": shifted(0.1, 3)}),
        disclosure="The thresholds were chosen on seed 11.", revisions={"abc": 4, "def+": 2},
        versions={"torch": ["2.1", "2.2"], "python": ["3.11"]}, machines=[{"cores": 2}, {"cores": 4, "threads": "1"}],
    )  # fmt: skip
    text = report.markdown(found, analysis.analyse(found, "wilcoxon"), "wilcoxon")
    assert "2 revisions of the script's repository: abc (4), def+ (2)." in text
    assert "several versions of torch: 2.1, 2.2." in text
    assert "in 2 settings of machine and threads" in text
    assert "With 3 seeds such an interval holds the true mean in about 75%" in text
    assert "Wilcoxon" in text
    assert "6 runs took 1:12 in total, 0:01 of wall-clock time" in text
    assert text.endswith("The thresholds were chosen on seed 11.")


def test_money_of_unknown_price_is_not_nothing() -> None:
    one = case({"none": shifted(0.0, 2), "llm": shifted(0.0, 2)})
    runs = [r.model_copy(update={"calls": 3, "tokens": 4000, "money": None} if r.manager == "llm" else {})
            for r in one.runs]  # fmt: skip
    found = everything(one.model_copy(update={"runs": runs}))
    text = report.markdown(found, analysis.analyse(found, "permutation"), "permutation")
    assert "| llm | 11.5 (+0.0%) | 100 (+0.0%) | 0.0 | 3.0 | 4,000 | unknown |" in text


def test_results_read_again_are_the_same(tmp_path: Path) -> None:
    arms: dict[str, list[float | None]] = {"none": [1.5, math.nan, -math.inf], HOSTILE: [1.0, 2.0, None]}
    found = everything(case(arms, name=HOSTILE), title=HOSTILE)
    paths = page.write(tmp_path / "out", found, analysis.analyse(found, "permutation"), "permutation")
    assert [path.name for path in paths] == ["results.md", "results.json", "results.csv", "results.html"]
    again = results.load(tmp_path / "out" / "results.json")
    assert results.render(again) == results.render(found)
    assert again.cases[0].runs[0] == found.cases[0].runs[0]
    assert len(results.render(found).splitlines()) < 30
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "results.csv").read_text())))
    assert {row["manager"] for row in rows} == {"none", HOSTILE}
    assert [row["value"] for row in rows if row["figure"] == "val_loss"] == ["1.5", "nan", "-inf", "1.0", "2.0"]


def part(managers: list[str], seeds: list[int], **changed: Any) -> results.Results:
    arms: dict[str, list[float | None]] = {
        manager: [1.0 + rank for _ in seeds] for rank, manager in enumerate(managers)
    }
    one = case(arms)
    runs = [r.model_copy(update={"seed": seeds[r.seed - 1]}) for r in one.runs]
    one = one.model_copy(update={"seeds": seeds, "runs": runs, "reference": "none", **changed})
    return everything(
        one, disclosure=f"Seeds {seeds}.", revisions={"abc": len(runs)}, machines=[{"cores": seeds[0]}],
        versions={"torch": [f"2.{seeds[0]}"]}, wall_seconds=10.0,
    )  # fmt: skip


def test_parts_of_one_experiment_are_printed_together() -> None:
    whole = pooling.pool([part(["none", "rules"], [2, 3]), part(["none", "rules", "random"], [1])])
    (pooled,) = whole.cases
    assert [(r.manager, r.seed) for r in pooled.runs] == [
        ("none", 1), ("none", 2), ("none", 3), ("rules", 1), ("rules", 2), ("rules", 3), ("random", 1),
    ]  # fmt: skip
    assert (pooled.managers, pooled.seeds) == (["none", "rules", "random"], [1, 2, 3])
    assert (whole.wall_seconds, whole.revisions) == (20.0, {"abc": 7})
    assert whole.versions == {"torch": ["2.1", "2.2"]}
    assert len(whole.machines) == 2
    assert whole.disclosure == "Seeds [2, 3]. Seeds [1]."
    again = part(["searched"], [1]).model_copy(update={"disclosure": "Seeds [1]. Searched."})
    assert pooling.pool([whole, part(["none"], [4]), again]).disclosure.endswith("Seeds [4]. Seeds [1]. Searched.")
    assert pooling.pool([part(["rules"], [1]), again]).disclosure == "Seeds [1]. Searched."  # said once
    (section,) = analysis.analyse(whole, "permutation")
    verdicts = [
        arm.entries["val_loss"].difference.verdict for arm in section.arms if arm.entries["val_loss"].difference
    ]
    assert verdicts == ["too few seeds to prove", "incomplete"]


def test_parts_may_split_the_managers_and_a_good_run_replaces_a_failed_one() -> None:
    rules = part(["none", "rules"], [1]).cases[0]
    alone = everything(rules.model_copy(update={"managers": ["rules"], "reference": "rules", "runs": rules.runs[1:]}))
    first = part(["none"], [1])
    assert [run.manager for run in pooling.pool([first, alone]).cases[0].runs] == ["none", "rules"]
    assert pooling.pool([first, alone]).cases[0].reference == "none"
    failed = first.cases[0].runs[0].model_copy(update={"failure": "failed", "run": "f"})
    broken = first.model_copy(update={"cases": [first.cases[0].model_copy(update={"runs": [failed]})]})
    for parts in ([first, broken], [broken, first]):
        assert [run.run for run in pooling.pool(parts).cases[0].runs] == ["none-1"]


def test_a_test_metric_stays_held_out_where_a_part_knows_nothing_of_it() -> None:
    known = part(["none"], [1], held_out=["val_loss"])
    unknown = part(["none"], [2])
    blank = [run.model_copy(update={"metrics": {}}) for run in unknown.cases[0].runs]
    empty = unknown.model_copy(update={"cases": [unknown.cases[0].model_copy(update={"runs": blank})]})
    assert pooling.pool([known, empty]).cases[0].held_out == ["val_loss"]
    assert pooling.pool([known, unknown]).cases[0].held_out == []


def test_who_ended_on_its_best_weights_is_said_where_others_did_not() -> None:
    one = case({"none": shifted(0.0, 2), "random": shifted(0.1, 2)})
    ways = ((False, True, True), (True, True, False), (False, False, False), (None, None, False))
    for fixed, managed, said in ways:
        runs = [r.model_copy(update={"on_best": managed if r.manager == "random" else fixed}) for r in one.runs]
        notes = analysis.notes(everything(one.model_copy(update={"runs": runs})))
        assert any("random (2 of 2 runs) ended on their best weights, all other runs" in note for note in notes) is said


def test_other_cases_stand_beside_each_other() -> None:
    whole = pooling.pool([part(["none"], [1], name="a"), part(["none"], [1], name="b")])
    assert [one.name for one in whole.cases] == ["a", "b"]


def test_one_part_is_itself() -> None:
    one = part(["none", "rules"], [1, 2])
    assert pooling.pool([one]) == one


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (part(["none"], [2, 3]), "none with seed 2 was measured twice, by none-2 and none-1"),
        (part(["none"], [3], arguments=["--lr", "1"]), r"the arguments of the parts differ (\[\] and \['--lr', '1'\])"),
        (part(["none"], [3], settings={"limits": {"lead_steps": 10}}), "the settings of the parts differ"),
        (part(["none"], [3], goal="max"), "the goal of the parts differ"),
        (part(["none"], [3]).model_copy(update={"goals": {"loss": "max"}}), "disagree on which way loss is better"),
        (part(["none"], [3]).model_copy(update={"script": "other.py"}), "of two scripts, train.py and other.py"),
    ],
)
def test_what_does_not_belong_together_is_not_pooled(other: results.Results, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")):
        pooling.pool([part(["none"], [1, 2]).model_copy(update={"goals": {"loss": "min"}}), other])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("policy_digest", "the settings of none differ"),
        ("asked", "models of none differ: a, b"),
    ],
)
def test_one_manager_is_one_manager(name: str, words: str) -> None:
    parts = [part(["none"], [seed]) for seed in (1, 2)]
    for value, one in zip("ab", parts, strict=True):
        one.cases[0].runs[0] = one.cases[0].runs[0].model_copy(update={name: value})
    with pytest.raises(UserError, match=words):
        pooling.pool(parts)


def test_what_was_taken_back_is_shown_where_anything_was() -> None:
    one = case({"none": shifted(0.0, 2), "random": shifted(0.1, 2)})
    (section,) = analysis.analyse(everything(one), "permutation")
    assert report.cost(section)[0] == ["manager", "seconds", "steps", "changes"]
    runs = [r.model_copy(update={"reversals": (r.seed + 1) * (r.manager == "random"), "demoted": r.run == "random-2"})
            for r in one.runs]  # fmt: skip
    found = everything(one.model_copy(update={"runs": runs}))
    (section,) = analysis.analyse(found, "permutation")
    header, rows = report.cost(section)
    assert header == ["manager", "seconds", "steps", "changes", "reversals", "demoted"]
    assert [row[4:] for row in rows] == [["0.0", "0.00"], ["2.5", "0.50"]]
    assert "random,2,random-2,demoted,1" in report.as_csv(found)


def test_a_t_test_can_prove_with_few_seeds_and_says_what_it_assumes() -> None:
    found = everything(case({"none": shifted(0.0, 5), "rules": [v - 0.5 - i / 99 for i, v in enumerate(NOISE[:5])]}))
    sections = analysis.analyse(found, "t")
    difference = sections[0].arms[1].entries["val_loss"].difference
    assert difference is not None
    assert (difference.verdict, difference.assumed) == ("better", True)
    text = report.markdown(found, sections, "t")
    assert "the paired t test, which takes the differences to be normal" in text
    assert "| better, if the differences are normal |" in text
    assert "proven better" not in text
    many = everything(case({"none": shifted(0.0, 6), "rules": [v - 0.5 - i / 99 for i, v in enumerate(NOISE[:6])]}))
    assert "| proven better |" in report.markdown(many, analysis.analyse(many, "t"), "t")


def test_a_t_test_of_two_pairs_or_of_rounding_proves_nothing() -> None:
    assert verdict([1.0, 1.1], [0.5, 0.61], test="t") == "too few seeds to prove"
    base = [1.1, 2.2, 3.3000000000000003]
    assert verdict([*base], [value - 0.3 for value in base], test="t") == "no proven win"


def test_a_file_that_holds_no_results(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("[]")
    with pytest.raises(UserError, match="does not hold the results"):
        results.load(tmp_path / "old.json")
    with pytest.raises(UserError, match="cannot be read"):
        results.load(tmp_path / "nowhere.json")


def test_the_page_is_alone_well_formed_and_escaped() -> None:
    arms: dict[str, list[float | None]] = {"none": shifted(0.0, 6), HOSTILE: shifted(-0.5, 6)}
    found = everything(case(arms, name=HOSTILE), title=HOSTILE, disclosure=HOSTILE)
    text = page.render(found, analysis.analyse(found, "permutation"), "permutation")
    root = ElementTree.fromstring(text.removeprefix("<!doctype html>"))
    names = [element.tag for element in root.iter()]
    assert "script" not in names
    assert "http" not in text.replace("http-equiv", "")
    assert not any(key.startswith(("on", "href", "src")) for element in root.iter() for key in element.attrib)
    assert names.count("circle") == 12
    assert names.count("polygon") == names.count("polyline") == 2
    assert "prefers-color-scheme: dark" in text
    assert any("proven better" in (element.text or "") for element in root.iter("td"))


@examples(40)
@given(st.lists(st.floats(-1e99, 1e99), min_size=1, max_size=4))
def test_any_figures_can_be_printed_and_drawn(values: list[float]) -> None:
    found = everything(case({"none": [*values], "rules": [*reversed(values)]}))
    sections = analysis.analyse(found, "permutation")
    assert report.markdown(found, sections, "permutation", show_seeds=True)
    ElementTree.fromstring(page.render(found, sections, "permutation").removeprefix("<!doctype html>"))


@given(st.lists(st.floats(-1e99, 1e99), min_size=1), st.integers(1, 8))
def test_a_scale_holds_its_values_with_few_round_ticks(values: list[float], count: int) -> None:
    scale = plots.scale(values, 0.0, 100.0)
    assert all(-1e-6 <= scale(value) <= 100.0 + 1e-6 for value in values)
    assert len(scale.ticks(count)) <= count + 1


def test_nothing_to_draw_is_no_plot() -> None:
    assert plots.strips([plots.Strip("none", 0, [], None, None)], "x") == ""
    assert plots.curves([plots.Curve("none", 0, [], [], [])], "x") == ""


def variant(arguments: list[str], **case: Any) -> results.Results:
    one = part(["none", "found"], [1])
    variants = {"found": experiment.Variant(arguments=arguments)}
    return one.model_copy(update={"cases": [one.cases[0].model_copy(update={"variants": variants, **case})]})


def test_a_variant_is_one_variant() -> None:
    with pytest.raises(
        UserError, match="'found' is none with --a '--b c' in one part and none with --a --b c in another"
    ):
        pooling.pool([variant(["--a", "--b c"]), variant(["--a", "--b", "c"])])


def test_what_the_names_of_variants_stand_for_is_said() -> None:
    (note,) = analysis.notes(variant([]))[:1]
    assert note == "found: none."
    two = pooling.pool([variant(["--a"], name="x"), variant(["--b"], name="y")])
    assert analysis.notes(two)[:2] == ["found (x): none with --a.", "found (y): none with --b."]


# -- copies: seeds that gave the same run ------------------------------------------------------------------------------


def copied(one: results.Case, manager: str, *groups: tuple[int, ...]) -> results.Case:
    """The case in which all runs of a group of seeds are the first of them."""
    first = {seed: group[0] for group in groups for seed in group}
    by_seed = {r.seed: r for r in one.runs if r.manager == manager}
    runs = [
        by_seed[first[r.seed]].model_copy(update={"seed": r.seed, "run": r.run})
        if r.manager == manager and r.seed in first
        else r
        for r in one.runs
    ]
    return one.model_copy(update={"runs": runs})


def compared(one: results.Case, test: statistics.Test = "permutation", **changed: Any) -> analysis.Difference:
    (section,) = analysis.analyse(everything(one, **changed), test)
    difference = section.arms[1].entries["val_loss"].difference
    assert difference is not None
    return difference


@pytest.mark.parametrize("test", ["permutation", "wilcoxon", "t"])
@pytest.mark.parametrize("manager", ["none", "rules"])
def test_one_run_under_six_seeds_proves_nothing(manager: str, test: statistics.Test) -> None:
    """A script that never reads its seed, whatever its manager draws; or an arm whose arguments fix the seed."""
    honest = case({"none": shifted(0.0, 6), "rules": shifted(-0.5, 6)})
    assert compared(honest).verdict == "better"
    one = copied(honest, manager, (1, 2, 3, 4, 5, 6))
    difference = compared(one, test)
    assert (difference.verdict, difference.p, difference.adjusted, difference.samples) == ("one sample", None, None, 1)
    assert difference.summary is not None
    assert (difference.summary.deviation, difference.summary.interval) == (None, None)
    found = everything(one)
    sections = analysis.analyse(found, test)
    text = report.markdown(found, sections, test, show_seeds=True)
    warning = (
        f"Warning: seeds 1 to 6 of {manager} gave the same figures to the last digit: the script does not use "
        "TRAINMGR_SEED, or nothing in it is random. Take the seed from trainmgr.workload.default_seed(). All these "
        "runs are one sample, so no verdict rests on them."
    )
    assert text.index(warning) < text.index("| manager | runs |")
    assert "| 6 of 6, 1 sample |" in text
    assert "| – | – | no verdict: all seeds are one sample, see the warning |" in text
    assert "proven better" not in text
    assert re.search(rf"\| {manager} \| 6 \| \d\.\d+ \(1 sample\) \|", text)
    assert "| completed, a copy of seed 1 |" in text
    assert f"{manager},6,{manager}-6,copy of seed,1" in report.as_csv(found)
    html = page.render(found, sections, test)
    assert warning in html
    assert "proven better" not in html


def test_of_pairs_that_are_copies_one_counts() -> None:
    """Seeds 1 and 2 of one arm and seeds 2 and 3 of the other: these three pairs are one sample."""
    eight = case({"none": [1.0 - noise / 3 for noise in NOISE[:8]], "rules": shifted(-0.5, 8)})
    assert compared(eight).p == pytest.approx(2 / 2**8)
    one = copied(copied(eight, "none", (1, 2)), "rules", (2, 3))
    difference = compared(one)
    assert (difference.verdict, difference.samples) == ("better", 6)
    assert difference.p == pytest.approx(2 / 2**6)
    values = difference.values
    mean = sum([(values[1] + values[2] + values[3]) / 3, *(values[seed] for seed in range(4, 9))]) / 6
    assert difference.summary is not None
    assert difference.summary.mean == pytest.approx(mean)
    found = everything(copied(one, "rules", (7, 8)))
    text = report.markdown(found, analysis.analyse(found, "permutation"), "permutation")
    assert "too few seeds to prove, as copies count once: p ≥ 0.0625, at least 6 are needed" in text
    assert "Warning: seeds 1 and 2 of none gave the same figures to the last digit, and count as one sample." in text
    assert "| 8 of 8, 5 samples |" in text
    assert "(7 samples)" in text


def test_a_run_that_stands_under_two_seeds_is_one_and_the_script_is_not_blamed() -> None:
    one = case({"none": shifted(0.0, 6), "rules": shifted(-0.5, 6)})
    runs = [r.model_copy(update={"run": "the-same"}) if r.run in ("none-2", "none-5") else r for r in one.runs]
    one = one.model_copy(update={"runs": runs})
    assert (compared(one).verdict, compared(one).samples) == ("too few seeds to prove", 5)
    (section,) = analysis.analyse(everything(one), "permutation")
    assert section.warnings == [
        "Warning: seeds 2 and 5 of none are one and the same run, and count as one sample. Train each seed."
    ]


def test_an_arm_of_copies_leaves_the_verdicts_of_the_others_and_stays_in_the_family() -> None:
    arms: dict[str, list[float | None]] = {"none": shifted(0.0, 7), "a": shifted(-0.5, 7), "b": shifted(-0.4, 7)}
    (section,) = analysis.analyse(everything(copied(case(arms), "a", (1, 2, 3, 4, 5, 6, 7))), "permutation")
    a, b = (arm.entries["val_loss"].difference for arm in section.arms[1:])
    assert a is not None
    assert b is not None
    assert (a.verdict, b.verdict) == ("one sample", "better")
    assert b.adjusted == pytest.approx(2 * 2 / 2**7)  # of two comparisons, though one could not be made


# -- runs that diverged or failed --------------------------------------------------------------------------------------


def test_a_diverged_run_is_said_in_the_table_before_the_mean_of_the_others() -> None:
    good = shifted(-0.5, 10)
    one = case({"none": shifted(0.0, 10), "rules": [*good[:2], math.nan, *good[3:9], math.inf]})
    found = everything(one)
    sections = analysis.analyse(found, "permutation")
    difference = sections[0].arms[1].entries["val_loss"].difference
    assert difference is not None
    assert (difference.verdict, difference.p, difference.adjusted) == ("incomplete", None, None)
    assert difference.relative is None
    text = report.markdown(found, sections, "permutation", show_seeds=True)
    words = r"\| rules \| 10 \| seeds 3 and 10 diverged; the others: 0\.50\d+ ± [^|]* \(8 of 10\) \|"
    assert re.search(words, text)
    assert re.search(
        r"\| 8 of 10 \| the others: -0\.50\d* \[[^|]*\] \| – \| – \| – \| no verdict: seeds 3 and 10", text
    )
    assert "seeds 3 and 10 of rules diverged; the other seeds alone prove nothing |" in text
    assert "| nan | 0 | 13 | completed, diverged |" in text
    assert "Diverged: rules seeds 3 and 10. A run has diverged when its objective is not finite at its end." in text
    assert "--test wilcoxon counts a diverged run as worse than every finite one." in text
    assert "rules,3,rules-3,diverged,1" in report.as_csv(found)
    html = page.render(found, sections, "permutation")
    assert "seeds 3 and 10 diverged; the others: " in html
    assert "rules (2 diverged)" in html  # beside its points


def test_what_diverged_everywhere_or_was_never_finite_is_said_too() -> None:
    one = case({"none": shifted(0.0, 2), "rules": [math.nan, math.nan]})
    runs = [r.model_copy(update={"metrics": r.metrics | {"best val_loss": 0.5}} if r.run != "rules-2" else {})
            for r in one.runs]  # fmt: skip
    found = everything(one.model_copy(update={"runs": runs}))
    text = report.markdown(found, analysis.analyse(found, "permutation"), "permutation")
    assert "| rules | 2 | 0 of 2: seeds 1 and 2 diverged | seed 2 diverged; the others: 0.5000 (1 of 2) |" in text


def test_a_run_that_diverged_is_said_where_the_table_shows_other_metrics() -> None:
    one = case({"none": shifted(0.0, 2), "rules": [1.0, math.nan]})
    runs = [r.model_copy(update={"metrics": r.metrics | {"accuracy": 0.5}}) for r in one.runs]
    found = everything(one.model_copy(update={"runs": runs}), metrics=["accuracy"])
    text = report.markdown(found, analysis.analyse(found, "permutation"), "permutation")
    assert "| none | 2 | 0.5000 ± 0.0000 [0.5000, 0.5000] |" in text
    assert "| rules | 2; seed 2 diverged | 0.5000 ± 0.0000 [0.5000, 0.5000] |" in text


def test_a_figure_that_is_not_finite_in_a_run_that_is_well_is_not_called_diverged() -> None:
    one = case({"none": shifted(0.0, 3), "rules": shifted(0.1, 3)})
    runs = [r.model_copy(update={"metrics": r.metrics | {"ratio": math.inf if r.run == "rules-2" else 1.0}})
            for r in one.runs]  # fmt: skip
    found = everything(one.model_copy(update={"runs": runs}))
    text = report.markdown(found, analysis.analyse(found, "permutation"), "permutation")
    assert "| seed 2 not finite; the others: 1.000 ± 0.000 [1.000, 1.000] (2 of 3) |" in text
    assert "iverged" not in text


def test_seed_0_is_a_seed() -> None:
    one = case({"none": shifted(0.0, 6), "rules": [math.nan, *shifted(-0.5, 6)[1:]]})
    runs = [r.model_copy(update={"seed": r.seed - 1}) for r in one.runs]
    one = one.model_copy(update={"runs": runs, "seeds": [0, 1, 2, 3, 4, 5]})
    assert (compared(one).lost, compared(one).p) == (True, None)
    twins = copied(one.model_copy(update={"runs": runs[:6], "managers": ["none"]}), "none", (0, 5))
    assert "none,5,none-6,copy of seed,0" in report.as_csv(everything(twins))


def test_an_arm_that_diverged_stays_in_the_family() -> None:
    arms: dict[str, list[float | None]] = {
        "none": shifted(0.0, 7), "a": [math.nan, *shifted(-0.5, 7)[1:]], "b": shifted(-0.4, 7)
    }  # fmt: skip
    (section,) = analysis.analyse(everything(case(arms)), "permutation")
    b = section.arms[2].entries["val_loss"].difference
    assert b is not None
    assert b.adjusted == pytest.approx(2 * 2 / 2**7)


def test_in_ranks_a_diverged_run_is_worse_than_every_finite_one() -> None:
    base, better = shifted(0.0, 8), shifted(-0.5, 8)
    saved = compared(case({"none": [math.nan] * 7 + [1.0], "rules": better}), "wilcoxon")
    assert (saved.verdict, saved.ranked, saved.compared, len(saved.values)) == ("better", True, 8, 1)
    assert saved.p == pytest.approx(2 / 2**8)
    assert compared(case({"none": better, "rules": [math.inf] * 8}), "wilcoxon").verdict == "worse"
    assert compared(case({"none": [-math.inf] * 8, "rules": better}, goal="max"), "wilcoxon").verdict == "better"
    assert compared(case({"none": [math.nan] * 8, "rules": [math.nan] * 8}), "wilcoxon").p == 1.0
    assert compared(case({"none": base, "rules": [math.nan, *better[1:]]}), "wilcoxon").verdict == "no proven win"
    # Which way is worse must be known, and a run that failed for whatever reason has no rank.
    unknown = compared(case({"none": base, "rules": [math.nan, *better[1:]]}, goal=None), "wilcoxon")
    assert (unknown.verdict, unknown.p) == ("incomplete", None)
    failed = case({"none": base, "rules": better})
    failed.runs[-1] = failed.runs[-1].model_copy(update={"failure": "killed: it was ended by SIGKILL", "metrics": {}})
    assert (compared(failed, "wilcoxon").verdict, compared(failed, "wilcoxon").p) == ("incomplete", None)


def test_a_verdict_in_ranks_says_so_and_who_diverged() -> None:
    many = [0.5 + i / 100 for i in range(12)]
    found = everything(case({"none": [1.0 + i / 50 for i in range(12)], "rules": [math.nan, *many[1:]]}))
    text = report.markdown(found, analysis.analyse(found, "wilcoxon"), "wilcoxon")
    assert "| 12 of 12, 1 in rank only | the others: " in text
    assert "| proven better in ranks, where seed 1 of rules diverged |" in text
    assert "Wilcoxon's test counts it as worse than every finite run" in text


def test_a_failed_run_says_how_in_the_row_of_its_arm() -> None:
    one = case({"none": shifted(0.0, 4)})
    how = {1: "killed: it was ended by SIGKILL", 2: "failed: it ended with exit code 1",
           3: "failed: it ended with exit code 1"}  # fmt: skip
    runs = [r.model_copy(update={"failure": how.get(r.seed), "metrics": {} if r.seed in how else r.metrics})
            for r in one.runs]  # fmt: skip
    runs[2] = runs[2].model_copy(update={"curve": [(50, math.nan)]})
    found = everything(one.model_copy(update={"runs": runs}))
    text = report.markdown(found, analysis.analyse(found, "permutation"), "permutation", show_seeds=True)
    assert (
        "| none | 1 of 4; seed 1 killed: it was ended by SIGKILL; seed 2 failed: it ended with exit code 1; "
        "seed 3 failed: it ended with exit code 1, its objective not finite |"
    ) in text
    assert "| failed: it ended with exit code 1, diverged |" in text


ANY = st.none() | st.sampled_from([math.nan, math.inf, -math.inf, 1e101]) | st.floats(-10, 10)


@examples(40)
@given(
    st.lists(st.tuples(ANY, ANY, st.booleans()), min_size=6, max_size=8),
    st.sampled_from(["permutation", "wilcoxon", "t"]),
)
def test_no_win_is_proven_on_the_survivors_alone(
    rows: list[tuple[float | None, float | None, bool]], test: statistics.Test
) -> None:
    one = case({"none": [row[0] for row in rows], "rules": [row[1] for row in rows]})
    lost = {r.run: "failed" for r in one.runs if r.manager == "rules" and rows[r.seed - 1][2]}
    runs = [r.model_copy(update={"failure": lost.get(r.run or "")}) for r in one.runs]
    found = everything(one.model_copy(update={"runs": runs}))
    sections = analysis.analyse(found, test)
    pair = sections[0].arms[1].entries.get("val_loss")
    difference = pair.difference if pair else None
    if difference is not None and difference.verdict not in ("incomplete", "one sample"):
        assert not lost
        assert difference.compared == len(rows)
        assert test == "wilcoxon" or len(difference.values) == len(rows)
    assert report.markdown(found, sections, test, show_seeds=True)
    assert report.as_csv(found)
    ElementTree.fromstring(page.render(found, sections, test).removeprefix("<!doctype html>"))
