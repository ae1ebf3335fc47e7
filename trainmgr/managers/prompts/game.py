"""The rules of the game: what the policy in force makes of an answer, in lines that are the same for a whole run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from trainmgr.contract.policy import Policy

TRIAL = """Every decision that changes something is a trial of its own for the {window} after it takes effect, beside
those under way; longer with judge_after (up to {longest} of the run) or until the end of a plan. The objective is held
against a forecast without it (the trend of the evaluations before it, damped) and against the best before it."""
HARM = """Harm: worse than forecast by more than {tolerance} of the scale (declared, or the best value), by more than
{factor} x noise and by more than half of the progress that was forecast, at {patience} in a row; or at one by
{catastrophe} times as much, or not finite. The last change that this holds for is taken back at once{weights}; if the
harm goes on, the one before is next."""
PROOF = """At the end of its trial a change is kept if it brought a new best, or is better than forecast and near the
best. What did neither good nor harm is kept where that costs nothing (more regularization, a longer average, late in
the run a lower learning rate); else its values are put back for want of proof, which does not show that it was
wrong. That waits while a later change is on trial, which may build on it, for as long again at most."""
UNDONE = """Undo, or a change that sets the values back, ends a trial without a verdict."""
BACK = """After harm the parameters rest, which means that they cannot be changed until the step given, and their
reach is multiplied by {shrink}. A parameter that was changed again while on trial rests, too, until these trials
are over."""
COST = """Harm may cost {harm} of the run's steps in all. Trials that brought nothing since the last one that did may
take {idle}, steps of trials that overlap counted once, and that only from the third reversal on. Beyond that nothing of
yours is applied any more."""
CHALLENGE = """Done without being asked: after {evals} without a new best the recipe of the start is put on trial in
place of yours, and undone if it harms; not in the last third of the run, not while the objective rises, and a
learning rate that was brought down stays."""
BRIEF = """A change is on trial for the {window} after it: harm is taken back at once, and what brought nothing is put
back at the end."""
FREE = """Nobody judges your changes and nobody takes them back: each stays until you change it again. What the
objective did after it, up to the next change, is listed."""
REST = """A parameter that was changed rests, which means that it cannot be changed, until {evals} measured it."""
ROLLBACK = """A rollback restores the weights and the optimizer state of a checkpoint, not the recipe and not the step
count: the training since is lost, its steps are spent."""
BEST = """The run ends on its best weights{changed}: what is learned late counts only as a new best."""
MOST = """At most {most} changes are made in the whole run."""
EFFECT = """A change takes effect {when}; the first evaluation after that is the first to show it."""


@dataclass(frozen=True)
class Game:
    """Under which rules a manager plays."""

    policy: Policy
    watched: bool
    """Whether its changes are on probation."""


def game_of(policy: Policy, manager: str) -> Game:
    """That of a manager of this name."""
    return Game(policy, policy.watches(manager))


def rules(game: Game, commands: Sequence[str], *, brief: bool = False) -> str:
    """The lines, each with its dash; ``commands`` are those that may be given to the workload. ``brief``: for a model
    that has no room for more."""
    window = _evaluations(game.policy.probation.window_evals)
    if brief:
        return bullet(BRIEF.format(window=window) if game.watched else FREE)
    lines = [_effect(game.policy), *(_probation if game.watched else _free)(game.policy, commands)]
    lines += [ROLLBACK] if "rollback" in commands else []
    lines += _ends(game, commands)
    return "\n".join(map(bullet, lines))


def bullet(text: str) -> str:
    """A line of the system prompt, broken where the templates are."""
    return textwrap.fill(" ".join(text.split()), 120, initial_indent="- ", subsequent_indent="  ")


def _effect(policy: Policy) -> str:
    when = "at once, or at the next evaluation or checkpoint where the parameter's row says so"
    if every := policy.cadence.every_steps:
        when = f"at the next multiple of {every} steps"
    elif lead := policy.limits.lead_steps:
        when = f"exactly {lead} steps after the report"
    return EFFECT.format(when=when)


def _probation(policy: Policy, commands: Sequence[str]) -> list[str]:
    watch = policy.probation
    limits = {"tolerance": _share(watch.tolerance), "factor": f"{watch.noise_factor:g}",
              "patience": _evaluations(watch.patience), "catastrophe": f"{watch.catastrophe:g}",
              "weights": ", the weights too" if "rollback" in commands else ""}  # fmt: skip
    lines = [
        TRIAL.format(window=_evaluations(watch.window_evals), longest=_share(watch.longest_trial)),
        HARM.format(**limits),
        PROOF,
        UNDONE,
        BACK.format(shrink=f"{watch.shrink:g}"),
        COST.format(harm=_share(watch.loss_budget), idle=_share(min(watch.idle_limit, 1.0))),
    ]
    if watch.challenge_evals and watch.checkpoint and {"checkpoint", "rollback"} <= {*commands}:
        lines.append(CHALLENGE.format(evals=_evaluations(watch.challenge_evals)))
    return lines


def _free(policy: Policy, _: Sequence[str]) -> list[str]:
    rest = policy.limits.cooldown_evals
    return [FREE, REST.format(evals=_evaluations(rest))] if rest else [FREE]


def _ends(game: Game, commands: Sequence[str]) -> list[str]:
    wanted, most = game.policy.actions.end_on_best, game.policy.limits.max_interventions
    lines = []
    if "stop" in commands and (game.watched if wanted is None else wanted):
        lines.append(BEST.format(changed="" if wanted else ", if you changed anything"))
    return lines if most is None else [*lines, MOST.format(most=most)]


def _evaluations(count: int) -> str:
    return "one evaluation" if count == 1 else f"{count} evaluations"


def _share(of: float) -> str:
    return f"{100 * of:g}%"
