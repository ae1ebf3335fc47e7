"""Five situations of made-up runs that a prompt is to hand over to somebody who knows nothing of them.

python -m factories.handover          (in tests/) writes them to managers/golden/ and docs/prompts.md anew
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factories.records import checkpoint, evaluation, step
from factories.watched import Run
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Policy
from trainmgr.contract.protocol import MetricInfo, Objective
from trainmgr.deciding import snapshot
from trainmgr.managers.prompt import render, room
from trainmgr.managers.prompts.game import game_of

GOLDEN = Path(__file__).parents[1] / "managers" / "golden"
PAGE = Path(__file__).parents[2] / "docs" / "prompts.md"
LLM = "llm:a-model"
Metrics = Callable[["Case"], tuple[dict[str, float], dict[str, float]]]


class Case(Run):
    """A run whose metrics follow from its step and its recipe, and whose model answers what it is given to answer."""

    def __init__(
        self, measured: Metrics, *parameters: Parameter, every: int, policy: Policy | None = None, **begun: Any
    ):
        self.measured, self.every = measured, every
        super().__init__(*parameters, policy=policy, manager=LLM, commands=["checkpoint", "rollback", "stop"], **begun)

    def until(self, last: int) -> Case:
        """Train on to this step."""
        while self.at < last:
            self.at += self.every
            trained, evaluated = self.measured(self)
            self.fold(step(self.at, **trained))
            before = self.state.best
            self.fold(evaluation(self.at, **evaluated))
            if self.state.best != before:
                self.fold(checkpoint(self.at))
        return self

    def says(self, diagnosis: str, action: str = "adjust", **more: Any) -> Case:
        """An answer of the model, accepted and applied at once."""
        self.answer({"diagnosis": diagnosis, "evidence": "", "action": action, **more})
        return self

    def handed_over(self, why: str = "evaluation", **changed: Any) -> str:
        """The two messages of the prompt of this moment."""
        view = snapshot.take(self.now, why).model_copy(update=changed)
        made = render(view, room(self.policy, LLM), game=game_of(self.policy, LLM))
        return f"{made.system}\n---\n\n{made.user}"


def wave(at: float) -> float:
    """Scatter without a generator: the same everywhere, from -1 to 1."""
    return math.sin(at * 12.9898) * math.cos(at * 4.1414)


# -- a language model on little text -----------------------------------------------------------------------------------


def number(name: str, value: float, low: float, high: float, **more: Any) -> Parameter:
    return Parameter(**{"name": name, "type": "float", "low": low, "high": high, "value": value,
                        "group": "regularization", **more})  # fmt: skip


TEXT = (
    number("lr", 4e-3, 1e-5, 5e-3, scale="log", max_ratio=2.0, min_ratio=0.1, group="optimizer",
           description="AdamW's learning rate, constant between changes"),
    number("weight_decay", 0.0, 0.0, 3.0, description="decoupled decay of the matrices; lr times this is lost a step"),
    number("dropout", 0.0, 0.0, 0.5, max_delta=0.2, description="share of features zeroed on embeddings and residuals"),
    number("token_mask", 0.0, 0.0, 0.3, description="share of input tokens replaced by random ones, in training only"),
    number("ema", 0.0, 0.9, 0.999, off=0.0, group="averaging",
           description="decay of the evaluated average of weights; 0: off"),
    number("grad_clip", 1.0, 0.1, 5.0, group="optimizer", description="largest global norm of the gradient"),
)  # fmt: skip
TEXT_METRICS = {
    "loss": "cross-entropy trained on, with masking and dropout in force; nats per token",
    "clean_loss": "cross-entropy of the same forward pass against the true tokens alone; nats per token",
    "grad_norm": "global L2 norm of the gradient, before clipping",
    "val_loss": "cross-entropy on fixed slices of the validation text; nats per token",
    "train_loss": "the same on fixed slices of the training text, nothing random; nats per token",
    "raw_val_loss": "val_loss of the raw weights, as long as their average is what is evaluated; nats per token",
    "epochs": "training tokens drawn so far, in lengths of the training text",
}


def language(case: Case) -> tuple[dict[str, float], dict[str, float]]:
    """Overfitting grows with the passes and the rate, and regularization holds it back."""
    recipe, at = {name: float(value) for name, value in case.state.recipe.items()}, case.at
    passes = at * 512 / 26_000
    held = min(1.0, recipe["weight_decay"] / 1.5) * 0.5 + recipe["dropout"] + recipe["token_mask"]
    train = 3.1 + 4.4 * math.exp(-at / 260) - 0.012 * passes * (1 - min(0.9, held))
    gap = max(0.0, 0.035 * passes * (1 - min(0.96, held))) * (recipe["lr"] / 4e-3) ** 0.25
    scatter = 0.012 * (0.3 if recipe["ema"] else 1.0) * (recipe["lr"] / 4e-3) ** 0.5
    val = train + 0.55 + gap + scatter * wave(at) + 0.1 * (recipe["lr"] / 4e-3)
    loss = train + 0.3 * held + 0.02 * wave(at / 3)
    raw = {"raw_val_loss": val + 0.05 * (recipe["lr"] / 4e-3) + 0.02 * wave(at / 2)} if recipe["ema"] else {}
    return (
        {"loss": loss, "clean_loss": loss, "grad_norm": 0.9 + 0.1 * wave(at / 7)},
        {"val_loss": val, "train_loss": train, "epochs": passes, **raw},
    )


def text_run(policy: Policy | None = None) -> Case:
    return Case(
        language, *TEXT, every=60, policy=policy, workload="tinystories", total_steps=6000,
        objective=Objective(metric="val_loss", mode="min", counterpart="train_loss"),
        metrics={name: MetricInfo(description=text) for name, text in TEXT_METRICS.items()},
        facts={"train_tokens": 26_000, "tokens_per_step": 512, "passes_over_them_planned": 118.2,
               "parameters": 1_053_440,
               "scored_at_the_end": "test_loss of the final weights (of their average if ema is on)"},
    )  # fmt: skip


def expects(metric: str, direction: str, by_step: int) -> dict[str, Any]:
    return {"metric": metric, "direction": direction, "by_step": by_step}


def early() -> str:
    """Three evaluations in: nothing was changed yet, and the facts say what will come."""
    return text_run().until(300).handed_over()


def middled() -> Case:
    case = text_run().until(300)
    case.says("overfitting", changes={"weight_decay": 1.5, "dropout": 0.1, "token_mask": 0.1},
                expected=expects("val_loss", "down", 900),
                falsifier="val_loss still above 4.3 at step 900 while train_loss falls")  # fmt: skip
    case.until(780).says("routine", changes={"ema": 0.995}, expected=expects("val_loss", "down", 1200),
                           falsifier="no new best by step 1200")  # fmt: skip
    case.until(1260).says("plateau", changes={"lr": 2e-3}, expected=expects("val_loss", "down", 1560))
    return case


def middle() -> str:
    """A fifth of the run is over: one change was kept, one taken back, one is on trial."""
    note = "Hypothesis: the gap, not the rate, limits val_loss. If lr 0.002 brings nothing, more token_mask."
    return middled().until(1440).handed_over(note=note, noted_at=1260)


def late() -> str:
    """Near the end: many changes, and the recipe of the start was on trial without being asked for."""
    case = middled().until(1800)
    for at, lr in ((2100, 1.5e-3), (2640, 1e-3), (3180, 6e-4)):
        if not case.state.nearly_over:
            case.until(at).says("plateau", changes={"lr": lr}, expected=expects("val_loss", "down", at + 300))
    return case.until(5280).handed_over()


# -- reinforcement learning --------------------------------------------------------------------------------------------


ARM = (
    number("actor_lr", 3e-5, 1e-5, 1e-3, scale="log", max_ratio=5.0, min_ratio=0.2, group="optimizer",
           description="Adam's learning rate of the actor; from the next optimizer step"),
    number("entropy", 0.08, 1e-4, 0.1, scale="log", max_ratio=4.0, min_ratio=0.25, group="exploration",
           description="weight of the policy's entropy, which widens the noise of actions; from the next update"),
    Parameter(name="epochs", type="int", low=1, high=8, value=3, group="trust region",
              description="passes over a rollout, at most; from the next update"),
    number("target_kl", 0.01, 0.003, 0.10, scale="log", group="trust region",
           description="KL of an epoch, in nats, over which an update ends; from the next update"),
    number("collision_penalty", 5.0, 1.0, 50.0, group="penalty",
           description="reward lost by a collision; from the next rollout"),
)  # fmt: skip
ARM_METRICS = {
    "score": MetricInfo(description="worst_safe_success - worst_collision on fixed scenes, from -1 to 1"),
    "worst_safe_success": MetricInfo(description="lowest rate of safe success in six cells"),
    "worst_collision": MetricInfo(description="highest rate of collisions in the six cells"),
    "safe_success": MetricInfo(description="mean of the cells' rates of safe success", role="success"),
    "collision": MetricInfo(description="mean of the cells' rates of collision", role="unsafe"),
    "robust": MetricInfo(description="1 where every cell has success of 0.85 or more and collisions of 0.15 or less"),
    "kl_share": MetricInfo(description="KL of an update as a multiple of target_kl", role="policy step"),
    "action_std": MetricInfo(description="standard deviation of the policy, rad/s; learned, not to be set",
                             role="action noise"),
}  # fmt: skip


def reaching(case: Case) -> tuple[dict[str, float], dict[str, float]]:
    """A reckless start: wide noise, little penalty; success comes, harm stays."""
    recipe, at = case.state.recipe, case.at
    calm = 1 - math.exp(-max(0, at - 40) / 60) if float(recipe["entropy"]) < 0.05 else 0.0
    success = 0.8 * (1 - math.exp(-at / 35)) + 0.02 * wave(at)
    harm = 0.24 - 0.1 * calm + 0.02 * wave(at / 3)
    worst = (success - 0.12 - 0.04 * wave(at / 7), harm + 0.10 + 0.03 * wave(at / 11))
    return (
        {"kl_share": 1.1 + 0.2 * wave(at / 5), "action_std": 1.0 - 0.25 * calm, "grad_norm": 0.4},
        {"score": worst[0] - worst[1], "worst_safe_success": worst[0], "worst_collision": worst[1],
         "safe_success": success, "collision": harm, "robust": 0.0},
    )  # fmt: skip


def reinforcement() -> str:
    """A third of the run: success is there, and so is harm."""
    case = Case(
        reaching, *ARM, every=10, workload="reacher", total_steps=200,
        objective=Objective(metric="score", mode="max", scale=1.0), metrics=ARM_METRICS,
        facts={"a_step_is": "one PPO update: a rollout, then up to the set epochs over it", "samples_per_rollout": 2048,
               "episodes_per_evaluation": 120,
               "scored_at_the_end": "safe success and collisions: last rollouts, held-out scenes"},
    )  # fmt: skip
    case.until(40).says("unsafe-exploration", changes={"entropy": 0.02, "collision_penalty": 20.0},
                          expected=expects("collision", "down", 80),
                          falsifier="collision not under 0.2 by update 80")  # fmt: skip
    return case.until(70).handed_over()


# -- a loss of three terms ---------------------------------------------------------------------------------------------


TERMS = ("residual", "boundary", "initial")
PDE = (
    number("lr", 1e-3, 1e-5, 1e-2, scale="log", max_ratio=2.0, min_ratio=0.1, group="optimizer",
           description="Adam's learning rate, constant between changes"),
    *(number(f"weight_{term}", 1.0, 1e-3, 1e3, scale="log", max_ratio=10.0, min_ratio=0.1, group="loss weight",
             description=f"weight of loss_{term} in the sum that is trained on") for term in TERMS),
)  # fmt: skip
PDE_METRICS = {
    "val_error": MetricInfo(description="relative L2 error against the exact solution on a grid; 1 is that of u = 0"),
    **{f"weighted_grad_norm_{term}": MetricInfo(description=f"L2 norm of the gradient of loss_{term} times its weight",
                                                role="loss gradient", depends=[f"weight_{term}"]) for term in TERMS},
}  # fmt: skip


def equation(case: Case) -> tuple[dict[str, float], dict[str, float]]:
    """The residual's gradient drowns the others until the weights are moved."""
    recipe, at = case.state.recipe, case.at
    norms = {"residual": 220.0, "boundary": 0.9, "initial": 2.1}
    found = {f"weighted_grad_norm_{term}": norms[term] * math.exp(-at / 4000) * float(recipe[f"weight_{term}"])
             * (1 + 0.2 * wave(at + i)) for i, term in enumerate(TERMS)}  # fmt: skip
    balance = min(1.0, float(recipe["weight_boundary"]) / 50)
    error = 0.97 - 0.1 * (1 - math.exp(-at / 900)) - 0.5 * balance * (1 - math.exp(-max(0, at - 800) / 800))
    return {"loss": 3.0 * math.exp(-at / 1500)}, {"val_error": error + 0.002 * wave(at), **found}


def three_losses() -> str:
    """One term's gradient is many times the others', and nothing was done yet."""
    case = Case(
        equation, *PDE, every=100, workload="pinn", total_steps=5000,
        objective=Objective(metric="val_error", mode="min"), metrics=PDE_METRICS,
        facts={"data": "random points, drawn anew at every step: none comes twice", "points_per_step": 384,
               "parameters": 7_851, "scored_at_the_end": "relative L2 error of the final network on a finer grid"},
    )  # fmt: skip
    return case.until(800).handed_over()


CASES: dict[str, Callable[[], str]] = {
    "early": early, "middle": middle, "late": late, "reinforcement": reinforcement, "three-losses": three_losses,
}  # fmt: skip


PAGE_HEAD = """# What a language model is told

A language model is asked afresh each time and remembers nothing, so that each prompt is a whole hand-over. These five
are of made-up runs; the system prompt, which is the same for all decisions of a run, stands before the line. What the
policy in force makes of an answer is said in it, so that other policies give other lines; there is no text but for
the declared kind of training. `llm.prompt_tokens` limits the length: the table of evaluations gives way first, and
the changes of the run last. `tests/managers/test_golden.py` holds that this page is what the program says.

The schema of the answer names every parameter that was declared and none of the limits of the moment, so that it is
the same for all decisions of a run; the limits stand in the prompt's table, and the guard holds them. A log names the
version of the prompt that it was asked with (`v4/0`), and is replayed by it.
"""


def page() -> str:
    """The page of the documentation."""
    titles = {"early": "Early", "middle": "A quarter in", "late": "Late", "reinforcement": "Reinforcement learning",
              "three-losses": "A loss of three terms"}  # fmt: skip
    parts = [f"\n## {titles[name]}\n\n```text\n{make().rstrip()}\n```\n" for name, make in CASES.items()]
    return PAGE_HEAD + "".join(parts)


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name, make in CASES.items():
        (GOLDEN / f"v4-{name}.md").write_text(make(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
