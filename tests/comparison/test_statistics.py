"""The statistics against enumeration, against scipy, and against what they promise, by simulation."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from factories.profiles import examples
from factories.tables import Row
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainmgr.comparison import statistics

FIGURES = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


def enumerated(differences: list[float]) -> float:
    """The same p, sign by sign."""
    found = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    return sum(other >= found * (1 - 1e-12) for other in sums) / len(sums)


@pytest.mark.parametrize(
    "differences",
    [[0.3], [-1.0, -2.0], [1.0, 2.0, -0.5], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [3.0, -1.0, 0.0, 0.25, 2.5, -0.125, 7.0]],
)
def test_the_exact_test_counts_every_choice_of_signs(differences: list[float]) -> None:
    assert statistics.sign_flip(differences) == pytest.approx(enumerated(differences))


def test_what_n_pairs_can_prove_at_most() -> None:
    for n in range(1, 9):
        assert statistics.sign_flip([1.0 + i for i in range(n)]) == pytest.approx(statistics.least_p(n))
    assert [statistics.needed(arms) for arms in (1, 2, 3, 4, 10)] == [6, 7, 7, 8, 9]
    for arms in range(1, 40):
        assert statistics.least_p(statistics.needed(arms), arms) < statistics.ALPHA
        assert statistics.least_p(statistics.needed(arms) - 1, arms) >= statistics.ALPHA


def test_many_pairs_are_drawn_and_give_the_same_p_each_time() -> None:
    differences = [*np.random.default_rng(1).normal(0.3, 1.0, 30)]
    first = statistics.sign_flip(differences)
    assert first == statistics.sign_flip(differences)
    assert first == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, abs=0.01)


def test_nothing_differs_or_is_there() -> None:
    assert statistics.sign_flip([0.0, 0.0, 0.0]) == 1.0
    assert statistics.signed_rank([0.0, 0.0, 0.0]) == 1.0
    assert statistics.sign_flip([]) is statistics.signed_rank([]) is statistics.summary([]) is None
    assert statistics.summary([2.0]) == statistics.Summary(1, 2.0, None, None)


def test_wilcoxon_is_scipys() -> None:
    differences = [0.5, 1.5, -0.25, 2.0, 3.0, 1.0]
    assert statistics.p_value(differences, "wilcoxon") == stats.wilcoxon(differences).pvalue


def test_the_t_test_is_scipys_and_knows_nothing_without_a_spread() -> None:
    differences = [0.5, 1.5, -0.25, 2.0, 3.0]
    p = statistics.p_value(differences, "t")
    assert p == stats.ttest_rel(differences, [0.0] * 5).pvalue
    assert statistics.student([]) is None
    assert [statistics.student(values) for values in ([0.3], [0.3, 0.3, 0.3], [0.0, 0.0])] == [1.0, 1.0, 1.0]
    assert statistics.student([-0.3, -0.3 + 1e-16, -0.3], scale=1.0) == 1.0
    assert statistics.least_p(3, 9, "t") < statistics.ALPHA <= statistics.least_p(2, 9, "t")
    assert statistics.needed(9, "t") == 3


@pytest.mark.parametrize("pairs", [6, 8])
def test_without_an_effect_p_is_small_as_seldom_as_it_says(pairs: int) -> None:
    rng = np.random.default_rng(1)
    found = [statistics.sign_flip([*rng.standard_t(3, pairs)]) for _ in range(1000)]
    assert sum(p < 0.05 for p in found if p is not None) / len(found) <= 0.06


def test_holm() -> None:
    assert statistics.holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@given(st.lists(st.none() | st.floats(0, 1), max_size=8))
def test_holm_never_helps_and_keeps_the_order(values: list[float | None]) -> None:
    adjusted = statistics.holm(values)
    both = sorted((p, q) for p, q in zip(values, adjusted, strict=True) if p is not None and q is not None)
    assert all(p <= q <= 1.0 for p, q in both)
    assert [q for _, q in both] == sorted(q for _, q in both)


@examples(25)
@given(st.lists(FIGURES, min_size=2, max_size=8))
def test_an_interval_is_within_the_values_and_always_the_same(values: list[float]) -> None:
    found = statistics.interval(values)
    assert found is not None
    low, high = found
    air = 1e-9 * max(map(abs, values))
    assert min(values) - air <= low <= high <= max(values) + air
    assert found == statistics.interval(values)


def test_two_and_three_values_give_their_range() -> None:
    assert statistics.interval([1.0, 2.0]) == (1.0, 2.0)
    assert statistics.interval([5.0, 1.0, 2.0]) == (1.0, 5.0)
    assert statistics.interval([3.0, 3.0, 3.0]) == (3.0, 3.0)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_coverage_is_what_the_tables_say(n: int, row: Row) -> None:
    """Normal values, 1,000 experiments: the standard error of a coverage of 0.95 is 0.007, of 0.75 0.014."""
    rng = np.random.default_rng(n)
    samples = rng.normal(size=(1000, n))
    ours = [statistics.interval([*sample]) for sample in samples]
    coverage = sum(found is not None and found[0] <= 0.0 <= found[1] for found in ours) / len(ours)
    plain = {}
    for method in ("percentile", "BCa"):
        found = stats.bootstrap((samples,), np.mean, axis=-1, method=method, n_resamples=999, batch=100, rng=rng)
        low, high = found.confidence_interval
        plain[method] = float(np.mean((low <= 0.0) & (high >= 0.0)))
    title = "How often a 95% bootstrap interval of the mean holds it (normal values, 1,000 experiments)"
    row(title, f"{n} values", f"ours {coverage:.1%}", *(f"{name} {share:.1%}" for name, share in plain.items()))
    assert coverage == pytest.approx(statistics.COVERAGE.get(n, 0.94), abs=0.03)
    assert coverage >= max(plain.values()) - 0.02
    assert max(plain.values()) < 0.93


def test_scipy_is_imported_late_and_missed_early() -> None:
    late = "import sys, trainmgr.cli; sys.exit('scipy' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", late], check=False).returncode == 0
    missing = (
        "import sys; sys.modules['scipy'] = None; sys.argv = ['trainmgr', 'compare', 'nowhere.py']\n"
        "from trainmgr.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", missing], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "trainmgr: The intervals and tests need scipy. Install it: pip install 'trainmgr[compare]'\n"
    )


def test_infinite_differences_have_the_outermost_ranks() -> None:
    inf = float("inf")
    assert statistics.signed_rank([-inf, -1.0, -2.0, 3.0]) == statistics.signed_rank([-9.0, -1.0, -2.0, 3.0])
    assert statistics.signed_rank([-inf] * 6) == pytest.approx(statistics.least_p(6))
    assert statistics.signed_rank([inf, -inf, 1.0, -1.0]) == 1.0
    assert statistics.rank_sum([-inf, 1.0, 2.0, 0.0]) == -4 + 2 + 3
    assert statistics.rank_sum([inf, inf, -1.0]) == 2.5 + 2.5 - 1
    assert statistics.rank_sum([0.0, 0.0]) == statistics.rank_sum([]) == 0.0


@examples(25)
@given(st.lists(FIGURES, min_size=1, max_size=8))
def test_the_ranks_turn_with_the_signs(differences: list[float]) -> None:
    turned = [-value for value in differences]
    assert statistics.rank_sum(turned) == -statistics.rank_sum(differences)
    assert statistics.signed_rank(turned) == pytest.approx(statistics.signed_rank(differences))


def test_more_pairs_than_a_float_has_powers_are_compared() -> None:
    """1,100 seeds: 2 to the power of them is no float."""
    assert statistics.least_p(1100) == 0.0
    assert statistics.least_p(1000) == pytest.approx(2.0**-999)
    values = [0.05 + math.sin(i) for i in range(1100)]
    p, interval = statistics.sign_flip(values), statistics.interval(values)
    assert p is not None
    assert interval is not None
    assert p == pytest.approx(statistics.student(values), abs=2e-4)
    assert interval[0] < sum(values) / len(values) < interval[1]
