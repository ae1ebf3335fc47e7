"""The system prompt: the same for all decisions of a run."""

from __future__ import annotations

from string import Template

from trainmgr.deciding.account import Kind
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.managers.prompts.game import Game, bullet, rules
from trainmgr.managers.prompts.v4.schema import diagnoses

OVERFITTING = """Overfitting: the objective stalls or worsens while its counterpart on training data goes on
improving. Many passes over little data make it certain to come: regularize before it shows (weight decay, dropout,
masking, an average of weights). Once it shows: {back}lower the learning rate, regularize more."""
UNDERFITTING = """The objective close to its counterpart, and both slow: underfitting, or too much regularization.
Relax it, or learn faster."""
WORSENING = """There is no figure on training data. An objective that loses ground is worsening; whether that is
overfitting cannot be seen. If it lasts: {back}lower the learning rate."""
DIVERGENCE = """Divergence: training itself gets worse, or what was finite is not. Remedy: {back}lower the learning
rate. What has never been finite has not been measured yet."""
FROZEN = """Frozen: episodes end in nothing and the policy hardly moves. Higher learning rates, larger policy steps,
more reward; a lower penalty where the agent neither succeeds nor does harm because it does not dare."""
UNSAFE = """Unsafe: harm, with wide action noise. Less entropy, lower learning rates, a higher penalty. In the first
quarter of a run a new start from the initial weights with a better recipe costs less than repairing a bad policy."""
JUMPS = """A score that is the worst of several small samples jumps. Read it with the rates of success and harm, the
policy step and the action noise beside it."""
IMBALANCE = """Loss imbalance: the weighted gradient of one term is many times that of another. Move the weights until
they are within a factor of about ten; whether that helps, the objective says."""
AVERAGE = """Where an average of weights is evaluated, it lags: what a change did to the raw weights shows only after
the average's reach in steps, and its small scatter makes the noise look smaller than it is."""
PLATEAU = """Plateau: no new best beyond the noise for long. Lower the learning rate."""
END = """Towards the end the learning rate has to come down: one plan to a small value by the last step, begun with a
quarter of the run or more still to go, does more than several cuts."""


def system(frame: str, view: Snapshot, game: Game, *, brief: bool) -> str:
    """``frame`` filled in with the rules of the game and what fits this kind of training: nothing of the moment."""
    kinds = kinds_of(view)
    commands = view.account.commands if view.account else ["rollback", "stop"]
    offered = [name for name in commands if name != "rollback" or game.policy.actions.rollback]
    back = "go back to the best checkpoint, " if "rollback" in offered else ""
    return Template(frame).substitute(
        game=rules(game, offered, brief=brief),
        guidance="\n".join(bullet(text.format(back=back)) for text in _guidance(view, kinds, brief=brief)),
        diagnoses=", ".join(diagnoses(kinds)),
    )


def kinds_of(view: Snapshot) -> list[Kind]:
    """What sort of training it is; of a snapshot of edition 1 nobody knows."""
    return view.account.kinds if view.account else ["supervised"]


def _guidance(view: Snapshot, kinds: list[Kind], *, brief: bool) -> list[str]:
    learns = "reinforcement learning" in kinds
    lines = [OVERFITTING, UNDERFITTING] if view.counterpart else [] if learns else [WORSENING]
    lines += [DIVERGENCE, *((FROZEN, UNSAFE, JUMPS) if learns else ()), PLATEAU]
    lines += [IMBALANCE] if "several losses" in kinds else []
    if brief:
        return [line for line in lines if line not in (UNDERFITTING, JUMPS)]
    lines += [AVERAGE] if any(row.group == "averaging" for row in view.recipe) else []
    return [*lines, END]
