"""Money: what is not in the budget is not asked, in whatever order calls come and whatever they take."""

from __future__ import annotations

import math

import pytest
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.contract.policy import Budget, Price
from trainmgr.state.budget import Spent, cost, objection, worst_case

counts = st.integers(0, 5000)
amounts = st.floats(0, 1e4, allow_subnormal=False) | st.sampled_from([0.0, 0.1, 0.25, 10.0])
prices = st.none() | st.builds(
    Price, input=amounts, output=amounts, cached=st.none() | amounts, cache_write=st.none() | amounts
)
budgets = st.builds(
    Budget,
    calls=st.integers(0, 30),
    tokens=st.none() | st.integers(0, 40_000),
    money=st.none() | st.floats(0, 5) | st.just(0.1),
    seconds=st.none() | st.floats(0.1, 100),
)
spents = st.builds(Spent, calls=st.integers(0, 30), tokens=counts, money=st.floats(0, 5), seconds=st.floats(0, 100))


@st.composite
def calls(draw: st.DrawFn) -> tuple[int, int, int, int, int, int, float]:
    """The most that a call may read and write; what it reads and writes, and of that takes from a cache and puts into
    it; and how long it takes."""
    prompt, completion = draw(counts), draw(counts)
    read, written = draw(st.integers(0, prompt)), draw(st.integers(0, completion))
    return prompt, completion, read, written, draw(counts), draw(counts), draw(st.floats(0, 50))


@examples(300)
@given(budgets, prices, st.lists(calls(), max_size=40))
def test_no_sequence_of_calls_exceeds_a_limit(
    budget: Budget, price: Price | None, sequence: list[tuple[int, int, int, int, int, int, float]]
) -> None:
    spent, waited = Spent(), 0.0
    for prompt, completion, read, written, cached, stored, seconds in sequence:
        if objection(spent, budget, price, prompt, completion) is not None:
            continue
        waited = spent.seconds
        money = cost(price, read, written, cached=cached, cache_write=stored)
        spent = spent.asked().answered(read, written, money, seconds)
        assert spent.calls <= budget.calls
        assert budget.tokens is None or spent.tokens <= budget.tokens
        assert budget.money is None or spent.money <= budget.money
        assert budget.seconds is None or waited < budget.seconds  # the last call alone may take longer


@examples(300)
@given(spents, spents, budgets, budgets, prices, counts, counts, counts, counts)
def test_who_has_spent_more_or_wants_more_or_may_less_is_refused_too(
    spent: Spent, more: Spent, budget: Budget, other: Budget, price: Price | None, prompt: int, completion: int,
    extra: int, longer: int,
) -> None:  # fmt: skip
    if objection(spent, budget, price, prompt, completion) is None:
        return
    further = Spent(
        spent.calls + more.calls, spent.tokens + more.tokens, spent.money + more.money, spent.seconds + more.seconds
    )
    assert objection(further, budget, price, prompt, completion) is not None
    assert objection(spent, budget, price, prompt + extra, completion + longer) is not None
    tighter = {name: min(here, there) if there is not None and here is not None else here if there is None else there
               for name, here in budget for there in [getattr(other, name)]}  # fmt: skip
    assert objection(spent, Budget(**tighter), price, prompt, completion) is not None


@examples(300)
@given(budgets, prices, counts, counts, st.data())
def test_the_worst_case_is_an_upper_bound(
    budget: Budget, price: Price | None, prompt: int, completion: int, data: st.DataObject
) -> None:
    tokens, money = worst_case(budget, price, prompt, completion)
    spent = Spent()
    while objection(spent, budget, price, prompt, completion) is None:
        dearest = data.draw(st.booleans())
        read = prompt if dearest else data.draw(st.integers(0, prompt))
        written = completion if dearest else data.draw(st.integers(0, completion))
        spent = spent.asked().answered(read, written, cost(price, read, written), 1.0)
    assert spent.tokens <= tokens
    assert (money is None) == (price is None)
    assert money is None or spent.money <= money + 1e-9 * abs(money)


def test_the_worst_case_is_reached_where_calls_are_the_limit() -> None:
    price = Price(input=1.0, output=10.0)
    assert worst_case(Budget(calls=10, tokens=None), price, 1000, 100) == (11_000, pytest.approx(0.02))
    assert worst_case(Budget(calls=10, tokens=5000), price, 1000, 100) == (5000, pytest.approx(0.02))
    assert worst_case(Budget(calls=10**6, tokens=5000), price, 1000, 100) == (5000, pytest.approx(0.05))
    assert worst_case(Budget(calls=10, money=0.01), price, 1000, 100) == (11_000, 0.01)
    assert worst_case(Budget(calls=10), None, 1000, 100) == (11_000, None)
    assert worst_case(Budget(calls=0), price, 1000, 100) == (0, 0.0)


def test_cost() -> None:
    assert cost(None, 1000, 1000) is None
    assert cost(Price(input=2.0, output=8.0), 500_000, 250_000) == 3.0
    assert cost(Price(input=0.0, output=0.0), 10, 10) == 0.0
    assert cost(Price(input=2.0, output=8.0), 1_000_000, 0, cached=500_000, cache_write=250_000) == 2.0  # all as input
    price = Price(input=2.0, output=8.0, cached=0.2, cache_write=2.5)
    assert cost(price, 1_000_000, 0, cached=500_000, cache_write=200_000) == pytest.approx(0.1 + 0.5 + 0.6)
    assert cost(price, 100_000, 0, cached=500_000, cache_write=200_000) == pytest.approx(0.02)  # no more than was read


@pytest.mark.parametrize(("spent", "budget", "said"), [
    (Spent(calls=3), Budget(calls=3), "3 of 3 calls are made"),
    (Spent(), Budget(calls=0), "0 of 0 calls are made"),
    (Spent(tokens=9000), Budget(tokens=10_000), "9,000 of 10,000 tokens are spent, and the next call may take 1,500"),
    (Spent(money=0.099), Budget(money=0.1), "0.099 of 0.1 are spent, and the next call may cost 0.006"),
    (Spent(seconds=61), Budget(seconds=60), "61 of 60 seconds were waited"),
    (Spent(tokens=8500, money=0.094, seconds=59), Budget(calls=1, tokens=10_000, money=0.1, seconds=60), None),
])  # fmt: skip
def test_an_objection_says_what_is_spent(spent: Spent, budget: Budget, said: str | None) -> None:
    assert objection(spent, budget, Price(input=1.0, output=10.0), 1000, 500) == said


def test_money_of_an_unknown_price_is_not_counted() -> None:
    assert objection(Spent(money=5.0), Budget(money=0.0), None, 1000, 500) is None
    assert Spent(money=1.0).answered(10, 5, None, 0.5) == Spent(0, 15, 1.0, 0.5, priced=False)
    assert not math.isnan(Spent().asked().answered(0, 0, 0.0, 0.0).money)
