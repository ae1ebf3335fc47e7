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


def cost(price: Price | None, prompt: int, completion: int) -> float | None:
    """The price of so many tokens read and written; None where no price is known."""
    return None if price is None else (prompt * price.input + completion * price.output) / MILLION


def objection(spent: Spent, budget: Budget, price: Price | None, prompt: int, completion: int) -> str | None:
    """Why a call that reads ``prompt`` and writes at most ``completion`` tokens is not in the budget any more."""
    if spent.calls + 1 > budget.calls:
        return f"{spent.calls} of {budget.calls} calls are made"
    if budget.tokens is not None and spent.tokens + prompt + completion > budget.tokens:
        most = prompt + completion
        return f"{spent.tokens:,} of {budget.tokens:,} tokens are spent, and the next call may take {most:,}"
    dearest = cost(price, prompt, completion)
    if budget.money is not None and dearest is not None and spent.money + dearest > budget.money:
        return f"{spent.money:.4g} of {budget.money:g} are spent, and the next call may cost {dearest:.2g}"
    if budget.seconds is not None and spent.seconds >= budget.seconds:
        return f"{spent.seconds:.0f} of {budget.seconds:.0f} seconds were waited"
    return None


def worst_case(budget: Budget, price: Price | None, prompt: int, completion: int) -> tuple[int, float | None]:
    """The most tokens and the most money that a whole run can take."""
    tokens = budget.calls * (prompt + completion)
    if budget.tokens is not None:
        tokens = min(tokens, budget.tokens)
    money = cost(price, budget.calls * prompt, budget.calls * completion)
    if money is not None and price is not None:
        if budget.tokens is not None:  # at worst all of them are of the dearer kind
            money = min(money, budget.tokens * max(price.input, price.output) / MILLION)
        if budget.money is not None:
            money = min(money, budget.money)
    return tokens, money
