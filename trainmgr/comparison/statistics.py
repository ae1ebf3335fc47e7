"""Means, intervals and tests for a handful of runs. Pure; scipy is imported when the first figure is asked for.

With few seeds these figures say little, and some of them say so wrongly; see ``interval`` and ``sign_flip``.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainmgr.base.errors import UserError

LEVEL = 0.95
ALPHA = 0.05
ROUNDING = 1e-9  # of the figures: what differs by less does not differ
FEWEST = 3  # pairs for the t test: the spread of two says nothing
RESAMPLES = 9_999
AT_ONCE = 4_096_000  # resampled values in memory
EXACT = 16  # pairs up to which all 2^n sign flips are counted
COVERAGE = {2: 0.50, 3: 0.75, 4: 0.88, 5: 0.92, 6: 0.93}  # of ``interval``, normal values; with 8 and more 0.94 or 0.95
SEED = 20_260_101  # of the resampling: the same figures give the same interval

Test = Literal["permutation", "wilcoxon", "t"]


def require() -> None:
    """Raises UserError where scipy is missing, before anything is trained."""
    if importlib.util.find_spec("scipy") is None:
        raise UserError("The intervals and tests need scipy. Install it: pip install 'trainmgr[compare]'")


@dataclass(frozen=True)
class Summary:
    """Some values of one arm."""

    count: int
    mean: float
    deviation: float | None
    """The sample's; None for a single value."""
    interval: tuple[float, float] | None
    """Of the mean; None for a single value."""


def summary(values: Sequence[float]) -> Summary | None:
    """None without values. They must be finite."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Summary(len(values), statistics.fmean(values), deviation, interval(values))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """A bootstrap interval of the mean at LEVEL; None for fewer than two values.

    The expanded percentile interval (Hesterberg 2015, section 3.3): percentiles further out than LEVEL says, by as much
    as Student's interval is wider than the normal one. COVERAGE says how often it holds the true mean; the plain
    percentile interval and BCa do so less often (5 values: 84%; 10 values: 90%), and BCa has no value where most
    values are equal. No resampling reaches beyond the values: of 2 and 3 it is their range.
    """
    n = len(values)
    if n < 2:
        return None
    if min(values) == max(values):
        return values[0], values[0]
    import numpy as np
    from scipy import stats

    quantile = stats.t.ppf((1 + LEVEL) / 2, n - 1) * math.sqrt(n / (n - 1))
    means = stats.bootstrap(
        (np.asarray(values),), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(SEED),
        batch=max(1, min(RESAMPLES, AT_ONCE // n)),
    ).bootstrap_distribution  # fmt: skip
    low, high = np.quantile(means, [stats.norm.cdf(-quantile), stats.norm.cdf(quantile)])
    return float(low), float(high)


def sign_flip(differences: Sequence[float]) -> float | None:
    """The two-sided p of the mean paired difference under random signs (Fisher 1935); None without differences.

    Under the null hypothesis a difference is as likely as its negative, so that each of the 2^n choices of signs is as
    likely as every other: up to EXACT pairs all of them are counted, beyond that 99,999 drawn ones.
    """
    if not differences:
        return None
    if len(differences) == 1 or not any(differences):
        return 1.0
    import numpy as np
    from scipy import stats

    def mean(sample: Any, axis: int) -> Any:
        return np.mean(sample, axis=axis)

    exact = len(differences) <= EXACT
    return float(
        stats.permutation_test(
            (np.asarray(differences),), mean, permutation_type="samples", vectorized=True,
            batch=max(1, min(4096, AT_ONCE // len(differences))),
            n_resamples=np.inf if exact else 99_999, rng=np.random.default_rng(SEED),
        ).pvalue
    )  # fmt: skip


def signed_rank(differences: Sequence[float]) -> float | None:
    """The two-sided p of Wilcoxon's signed-rank test (1945), zeros as Pratt has them; None without differences.

    Only the ranks matter, so infinite differences may be among them: they are larger than every finite one, and alike.
    """
    if not differences:
        return None
    if len(differences) == 1 or not any(differences):
        return 1.0
    import numpy as np
    from scipy import stats

    return float(stats.wilcoxon(np.asarray(_ranked(differences)), zero_method="pratt", method="auto").pvalue)


def rank_sum(differences: Sequence[float]) -> float:
    """The sum of the signed ranks: above 0 where most and the largest of the differences are. They may be infinite."""
    from scipy import stats

    ranks = stats.rankdata([abs(value) for value in differences])
    return float(sum(math.copysign(rank, value) for rank, value in zip(ranks, differences, strict=True) if value))


def _ranked(differences: Sequence[float]) -> list[float]:
    """The same with a figure beyond all others for what is infinite."""
    beyond = 1.0 + 2.0 * max((abs(value) for value in differences if math.isfinite(value)), default=0.0)
    return [value if math.isfinite(value) else math.copysign(beyond, value) for value in differences]


def student(differences: Sequence[float], scale: float = 0.0) -> float | None:
    """The two-sided p of the paired t test (Student 1908), which takes differences to be normal; None without them.

    1 where all are alike but for rounding, too: then the seeds changed nothing, and nothing is known of the spread.
    ``scale``: the largest figure that they are differences of.
    """
    if not differences:
        return None
    if max(differences) - min(differences) <= ROUNDING * max(scale, *map(abs, differences)):
        return 1.0
    import numpy as np
    from scipy import stats

    return float(stats.ttest_1samp(np.asarray(differences), 0.0).pvalue)


def p_value(differences: Sequence[float], test: Test, scale: float = 0.0) -> float | None:
    """Of the test; see there."""
    match test:
        case "permutation":
            return sign_flip(differences)
        case "wilcoxon":
            return signed_rank(differences)
        case "t":
            return student(differences, scale)


def least_p(pairs: int, arms: int = 1, test: Test = "permutation") -> float:
    """The smallest p that ``pairs`` can give, after Holm's correction over ``arms``.

    All of 2^n signs are alike, so that two of them are the least share; the t test has no such bound.
    """
    if test == "t":
        return 0.0 if pairs >= FEWEST else 1.0
    return min(1.0, math.ldexp(2.0 * arms, -pairs))  # 0.0 beyond what a float can be


def needed(arms: int = 1, test: Test = "permutation") -> int:
    """The smallest number of pairs with which a p below ALPHA is possible."""
    return FEWEST if test == "t" else math.floor(math.log2(2 * arms / ALPHA)) + 1


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (1979): each p times the number of those that are not smaller, never falling.

    What is None stays None and does not count.
    """
    order = sorted((p, i) for i, p in enumerate(values) if p is not None)
    result: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        result[i] = highest
    return result
