"""Every change of a run, with what came of it: a fold over the log, in bounded memory. No code that decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from trainmgr.base.wire import Value
from trainmgr.contract import events
from trainmgr.contract.proposal import Diagnosis, Expectation, Plan

KEPT = 64  # changes that are remembered one by one; those before are counted
REPEATED = 128  # decisions whose words are remembered until their changes take effect

Fate = Literal["open", "kept", "neutral", "harm", "no proof", "crash", "measured"]
"""open: nothing is known yet; measured: nobody judges it, and this is what came; else what probation found (neutral: it
stays, having done neither good nor harm)."""


@dataclass(frozen=True)
class Change:
    """One change that took effect."""

    revision: int
    decision: str
    step: int
    """At which it took effect."""
    author: Literal["manager", "challenge", "operator"]
    """challenge: the recipe of the start, which we put on trial ourselves."""
    changes: dict[str, tuple[Value, Value]]
    plans: dict[str, Plan]
    command: str
    """Such as "rollback best"; empty where there was none."""
    diagnosis: Diagnosis | None = None
    expected: Expectation | None = None
    falsifier: str = ""
    fate: Fate = "open"
    at: int | None = None
    """The step of the evaluation that said so."""
    forecast: float | None = None
    """The objective that was expected there without the change; of one that nobody judges, the one before it."""
    measured: float | None = None
    noise: float | None = None
    """Standard deviation of one evaluation around its neighbours, before the change."""
    undone: int | None = None
    """With the change the weights went back: the training from ``step`` to this one is of weights that are no more."""


@dataclass(frozen=True)
class Changes:
    """All of them: the last ones one by one, those before as counts."""

    listed: tuple[Change, ...] = ()
    before: dict[str, int] = field(default_factory=dict)
    """Fate to how many there were that are not listed any more."""
    first: int | None = None
    """The step of the first of these."""
    words: dict[str, events.Verdict] = field(default_factory=dict)
    """Decision to what was said with it."""

    def said(self, verdict: events.Verdict) -> Changes:
        """With an accepted answer, whose change has not taken effect yet."""
        words = [*self.words.items(), (verdict.decision, verdict)]
        return replace(self, words=dict(words[-REPEATED:]))

    def applied(self, event: events.Acknowledged, author: Literal["manager", "challenge", "operator"]) -> Changes:
        """With a change that took effect."""
        said = self.words.get(event.decision) if author == "manager" else None
        order = said.command if said else None
        change = Change(
            revision=event.revision,
            decision=event.decision,
            step=event.step,
            author=author,
            changes=dict(event.changes),
            plans=dict(said.plans) if said else {},
            command=f"{order.name} {order.to or ''}".strip() if order else "",
            diagnosis=said.diagnosis if said else None,
            expected=said.expected if said else None,
            falsifier=said.falsifier if said else "",
            noise=event.forecast.noise if event.forecast else None,
        )
        listed = (*self.listed, change)
        if len(listed) <= KEPT:
            return replace(self, listed=listed)
        gone, listed = listed[0], listed[1:]
        before = {**self.before, gone.fate: self.before.get(gone.fate, 0) + 1}
        return replace(self, listed=listed, before=before, first=gone.step if self.first is None else self.first)

    def judged(self, event: events.Reverted | events.Kept) -> Changes:
        """With what probation found."""
        revisions = set(event.revisions)
        fate: Fate = event.why if isinstance(event, events.Reverted) else "neutral" if event.neutral else "kept"
        back = isinstance(event, events.Reverted) and event.command is not None
        return self._each(
            lambda change: (
                replace(
                    change,
                    fate=fate,
                    at=event.step,
                    forecast=event.forecast,
                    measured=event.measured,
                    undone=event.step if back else None,
                )
                if change.revision in revisions
                else change
            )
        )

    def measured(self, event: events.Outcome) -> Changes:
        """With what was measured of a change until the next one."""
        if not event.after:
            return self
        at, value = event.after[-1]
        return self._each(
            lambda change: (
                replace(change, fate="measured", at=at, measured=value, forecast=event.before)
                if change.revision == event.revision and change.fate == "open"
                else change
            )
        )

    def restarted(self) -> Changes:
        """After a restart, whose evaluations begin again at an earlier step."""
        return self._each(lambda change: replace(change, undone=None))

    def _each(self, of: Callable[[Change], Change]) -> Changes:
        return replace(self, listed=tuple(map(of, self.listed)))

    def undone(self, step: int) -> bool:
        """Whether an evaluation of this step is of weights that were taken back with a change of them."""
        return any(change.undone is not None and change.step < step <= change.undone for change in self.listed)

    def challenged(self, step: int) -> bool:
        """Whether the recipe of the start was on trial at an evaluation of this step."""
        return any(
            change.author == "challenge" and change.step < step and (change.at is None or step <= change.at)
            for change in self.listed
        )
