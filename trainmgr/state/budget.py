"""What asking a language model costs, and whether the next question may be asked. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainmgr.contract.policy import Budget, Price

MILLION = 1_000_000


@dataclass(frozen=True)
class Spent:
    """What was spent so far."""

    calls: int = 0
    tokens: int = 0
    money: float = 0.0
    """In the unit of the policy's prices; calls of unknown price cost nothing here."""
    seconds: float = 0.0
    priced: bool = True
    """Whether the price of every call was known."""

    def asked(self) -> Spent:
        return replace(self, calls=self.calls + 1)

    def answered(self, prompt: int, completion: int, money: float | None, seconds: float) -> Spent:
        return replace(
            self,
            tokens=self.tokens + prompt + completion,
            money=self.money + (money or 0.0),
            priced=self.priced and money is not None,
            seconds=self.seconds + seconds,
        )


def cost(
    price: Price | None, prompt: int, completion: int, *, cached: int = 0, cache_write: int = 0
) -> float | None:  # fmt: skip
    """The price of so many tokens read and written; None where no price is known. ``cached`` of those that were read
    came from a cache, ``cache_write`` went into one."""
    if price is None:
        return None
    cached = min(cached, prompt)
    stored = min(cache_write, prompt - cached)
    read = (prompt - cached - stored) * price.input
    read += cached * (price.input if price.cached is None else price.cached)
    read += stored * (price.input if price.cache_write is None else price.cache_write)
    return (read + completion * price.output) / MILLION


def dearest(price: Price | None) -> Price | None:
    """The same with every token that is read at its highest price: which ones a cache has, nobody knows before."""
    if price is None:
        return None
    return Price(input=max(price.input, price.cached or 0.0, price.cache_write or 0.0), output=price.output)


def objection(spent: Spent, budget: Budget, price: Price | None, prompt: int, completion: int) -> str | None:
    """Why a call that reads ``prompt`` and writes at most ``completion`` tokens is not in the budget any more."""
    if spent.calls + 1 > budget.calls:
        return f"{spent.calls} of {budget.calls} calls are made"
    if budget.tokens is not None and spent.tokens + prompt + completion > budget.tokens:
        longest = prompt + completion
        return f"{spent.tokens:,} of {budget.tokens:,} tokens are spent, and the next call may take {longest:,}"
    most = cost(dearest(price), prompt, completion)
    if budget.money is not None and most is not None and spent.money + most > budget.money:
        return f"{spent.money:.4g} of {budget.money:g} are spent, and the next call may cost {most:.2g}"
    if budget.seconds is not None and spent.seconds >= budget.seconds:
        return f"{spent.seconds:.0f} of {budget.seconds:.0f} seconds were waited"
    return None


def worst_case(budget: Budget, price: Price | None, prompt: int, completion: int) -> tuple[int, float | None]:
    """The most tokens and the most money that a whole run can take."""
    tokens = budget.calls * (prompt + completion)
    if budget.tokens is not None:
        tokens = min(tokens, budget.tokens)
    price = dearest(price)
    money = cost(price, budget.calls * prompt, budget.calls * completion)
    if money is not None and price is not None:
        if budget.tokens is not None:  # at worst all of them are of the dearer kind
            money = min(money, budget.tokens * max(price.input, price.output) / MILLION)
        if budget.money is not None:
            money = min(money, budget.money)
    return tokens, money
