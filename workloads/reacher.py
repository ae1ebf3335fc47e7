"""Safe reaching in MuJoCo, learned by PPO, with a recipe that can be changed while it trains.

    python workloads/reacher.py --regime cautious               # quick: under a minute on one core
    python workloads/reacher.py --profile full --seed 40        # 500 updates, 1,024,000 steps
    python workloads/reacher.py --profile tiny --out t          # seconds; leaves telemetry and checkpoints in t/
    trainmgr run workloads/reacher.py -- --regime cautious      # the same run, supervised

One step of the run is one update of PPO (https://arxiv.org/abs/1707.06347): a rollout, then epochs over it. The task,
the regimes and the bounds are those of https://arxiv.org/abs/2606.29871; the cautious and the reckless regime fail on
purpose, so that there is something to manage. `--protocol paper` trains as that paper's release does; the default
(`standard`) differs in four points, each a field of `Protocol`.

All randomness is a function of (seed, update) and of the number of episodes begun. So an evaluation, a look at the
control file or an override that changes nothing leaves everything else as it was, and a resumed run repeats the
uninterrupted one bit for bit (on one machine, with one number of threads). No metric is read from a clock.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn as nn
from numpy.typing import NDArray
from reaching import film  # first: it brings MuJoCo in without a GL where that of MUJOCO_GL is broken
from reaching.agent import LOG_STD_BOUNDS, Agent
from reaching.evaluation import MODES, Examination, Result
from reaching.scenes import UPDATE, Scene, training_scene
from reaching.task import ACTIONS, COLLISION, OBSERVATIONS, SUCCESS, TIMEOUT, Moment, Reaching
from torch import Tensor

from trainmgr.workload import Checkpoints, Metric, Workload, default_seed, resume_path

PROFILES: dict[str, dict[str, Any]] = {
    "tiny": {"updates": 8, "envs": 2, "horizon": 128, "minibatch": 128, "eval_every": 2, "eval_episodes": 2,
             "test_episodes": 3},
    "quick": {"updates": 200, "envs": 16, "horizon": 128, "minibatch": 256, "eval_every": 10, "eval_episodes": 20,
              "test_episodes": 80},
    "full": {"updates": 500, "envs": 16, "horizon": 128, "minibatch": 256, "eval_every": 10, "eval_episodes": 80,
             "test_episodes": 240},
}  # fmt: skip

REGIMES: dict[str, dict[str, Any]] = {
    "baseline": {"actor_lr": 3e-4, "critic_lr": 1e-3, "entropy": 0.01, "clip": 0.20, "epochs": 6, "target_kl": 0.03,
                 "collision_penalty": 5.0, "success_bonus": 5.0, "progress_scale": 3.0},
    "cautious": {"actor_lr": 3e-5, "critic_lr": 1e-3, "entropy": 0.001, "clip": 0.10, "epochs": 3, "target_kl": 0.01,
                 "collision_penalty": 25.0, "success_bonus": 2.5, "progress_scale": 1.5},
    "reckless": {"actor_lr": 3e-3, "critic_lr": 3e-3, "entropy": 0.08, "clip": 0.30, "epochs": 8, "target_kl": 0.10,
                 "collision_penalty": 1.0, "success_bonus": 10.0, "progress_scale": 5.0},
}  # fmt: skip

GAMMA, LAMBDA = 0.99, 0.95  # discount; decay of generalized advantage estimation (https://arxiv.org/abs/1506.02438)
VALUE_COEFFICIENT = 0.5
LARGEST_GRADIENT = 0.5  # global L2 norm, actor and critic together
WINDOW = 10  # updates over which the rollout rates at the end are taken


def arguments() -> argparse.Namespace:
    """The command line. What it does not name comes from the profile and the regime."""
    p = argparse.ArgumentParser(description="Train a planar arm to reach safely, by PPO.", allow_abbrev=False)
    flag = p.add_argument
    flag("--profile", choices=sorted(PROFILES), default="quick", help="sizes: where those not given here come from")
    flag("--regime", choices=sorted(REGIMES), default="baseline", help="the recipe at the start, likewise")
    flag("--protocol", choices=sorted(PROTOCOLS), default="standard", help="the kind of PPO; see `Protocol`")
    # the run
    flag("--seed", type=int, default=default_seed(0), help="of all randomness (default: TRAINMGR_SEED or 0)")
    flag("--updates", type=int, help="in total, those before a resume included")
    flag("--out", type=Path, help="folder for telemetry.jsonl and checkpoints/ when nobody supervises")
    flag("--resume", type=Path, default=resume_path(), help="checkpoint to go on from, with its live recipe")
    flag("--restore-best", action="store_true", help="end on the weights with the best score")
    flag("--render", type=film.output, metavar="PATH", help="film the final weights: a .gif or .mp4; see `film`")
    flag("--threads", type=int, default=1, help="CPU threads; with another number the last bits differ")
    flag("--boundary", choices=("step", "eval", "checkpoint"), default="eval", help="where changes take effect")
    # the rollout and the measurement
    flag("--envs", type=int, help="arms side by side")
    flag("--horizon", type=int, help="steps of each in one update; from 120 on each update sees episodes end")
    flag("--minibatch", type=int, help="samples of one optimizer step")
    flag("--eval-every", type=int, help="updates from one evaluation to the next")
    flag("--eval-episodes", type=int, help="fixed scenes in each of the six cells")
    flag("--test-episodes", type=int, help="the same, held out until the end")
    # the recipe at the start; all of it can be changed while the run lasts
    flag("--actor-lr", type=float, help="Adam's learning rate of the actor; constant, unless somebody changes it")
    flag("--critic-lr", type=float, help="the same of the critic")
    flag("--entropy", type=float, help="weight of the policy's entropy in the loss")
    flag("--clip", type=float, help="how far from 1 the ratio of probabilities may gain")
    flag("--epochs", type=int, help="passes over a rollout, at most")
    flag("--target-kl", type=float, help="mean KL of an epoch, in nats, after which an update ends")
    flag("--collision-penalty", type=float, help="reward lost by a collision")
    flag("--success-bonus", type=float, help="reward of a safe success")
    flag("--progress-scale", type=float, help="reward per metre towards the target")
    given = p.parse_known_args()[0]
    if given.seed < 0:
        p.error("a seed is 0 or more")
    p.set_defaults(**PROFILES[given.profile], **REGIMES[given.regime])
    return p.parse_args()


@dataclass(frozen=True)
class Protocol:
    """What is not in a recipe."""

    orthogonal: bool
    """Orthogonal initial weights, those of the actor's last layer small, so that the first actions are centred
    (https://arxiv.org/abs/2006.05990); else PyTorch's."""
    bootstrap: bool
    """A time-out is no end: the value of the state in which it came is counted on (https://arxiv.org/abs/1712.00378)."""
    bounded: bool
    """Keep the log standard deviation within LOG_STD_BOUNDS; else a large entropy coefficient raises it for ever."""
    by_minibatch: bool
    """Normalize advantages in each minibatch; else once over the rollout."""


PROTOCOLS = {
    "standard": Protocol(orthogonal=True, bootstrap=True, bounded=True, by_minibatch=True),
    "paper": Protocol(orthogonal=False, bootstrap=False, bounded=False, by_minibatch=False),
}


@dataclass
class Recipe:
    """The live values that the optimizer does not hold. Units: see `arguments`."""

    entropy: float
    clip: float
    epochs: int
    target_kl: float
    collision_penalty: float
    success_bonus: float
    progress_scale: float


def advantages(
    rewards: NDArray[Any], values: NDArray[Any], following: NDArray[Any], terminal: NDArray[Any], ended: NDArray[Any]
) -> NDArray[np.float64]:
    """Generalized advantage estimates; all [T, N].

    ``following`` are the values of the states that came next, before any reset; they count unless ``terminal``.
    ``ended``: the episode ended there, in whatever way.
    """
    deltas = rewards + GAMMA * following * ~terminal - values
    result: NDArray[np.float64] = np.zeros(deltas.shape)
    running = np.zeros(deltas.shape[1])
    for t in reversed(range(len(deltas))):
        running = deltas[t] + GAMMA * LAMBDA * ~ended[t] * running
        result[t] = running
    return result


@dataclass
class Rollout:
    """T steps of N arms, flattened to [T*N]."""

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor


class Trainer:
    """The state of a run (agent, optimizer, episodes under way, recipe, best) and what is done with it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.seed, self.envs, self.horizon, self.minibatch = args.seed, args.envs, args.horizon, args.minibatch
        self.protocol = PROTOCOLS[args.protocol]
        self.recipe = Recipe(
            args.entropy, args.clip, args.epochs, args.target_kl,
            args.collision_penalty, args.success_bonus, args.progress_scale,
        )  # fmt: skip
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{args.seed}".encode()).digest()[:4], "big"))
        self.agent = Agent(self.protocol.orthogonal)
        self.params = list(self.agent.parameters())
        self.optimizer = torch.optim.Adam(
            [
                {"params": [*self.agent.actor.parameters(), self.agent.log_std], "lr": args.actor_lr},
                {"params": list(self.agent.critic.parameters()), "lr": args.critic_lr},
            ],
            eps=1e-5,
            fused=True,
        )
        self.reaching = Reaching(args.envs)
        self.begun = 0  # training episodes so far; the next one's scene
        self.robust_update: int | None = None  # the first whose evaluation was robust
        self.recent: deque[list[int]] = deque(maxlen=WINDOW)  # safe successes, collisions, time-outs of each update
        # What a checkpoint must have in common with the run that loads it.
        self.identity = {
            "seed": args.seed, "protocol": args.protocol, "envs": args.envs, "horizon": args.horizon,
            "minibatch": args.minibatch,
        }  # fmt: skip

    # -- training ----------------------------------------------------------------------------------------------------

    def begin(self, slots: list[int]) -> None:
        """Begin new episodes."""
        for i in slots:
            self.reaching.begin(i, training_scene(self.seed, self.begun))
            self.begun += 1

    def update(self, number: int) -> dict[str, float]:
        """A rollout with the policy of now, then the optimizer's epochs over it."""
        rng = np.random.default_rng((UPDATE, self.seed, number))
        rollout, metrics = self.collect(rng)
        return metrics | self.optimize(rollout, rng)

    def collect(self, rng: np.random.Generator) -> tuple[Rollout, dict[str, float]]:
        """Drive all arms for T steps; the rewards are those of the weights in force."""
        shape = (self.horizon, self.envs)
        seen = np.empty((*shape, OBSERVATIONS), np.float32)
        reached = np.empty_like(seen)  # what came of each step, before any reset
        noise = rng.standard_normal((*shape, ACTIONS), np.float32) * self.agent.std()
        actions = np.empty_like(noise)
        rewards, outcomes = np.empty(shape), np.empty(shape, np.int8)
        weights = (self.recipe.progress_scale, self.recipe.success_bonus, self.recipe.collision_penalty)
        lengths: list[int] = []
        now = self.reaching.observe()
        for t in range(self.horizon):
            seen[t], actions[t] = now, self.agent.act(now) + noise[t]
            pieces, outcomes[t] = self.reaching.advance(actions[t])
            rewards[t] = pieces.weighted(*weights)
            reached[t] = now = self.reaching.observe()
            over = np.flatnonzero(outcomes[t]).tolist()
            if over:
                lengths += self.reaching.steps[over].tolist()
                self.begin(over)
                now = self.reaching.observe()

        with torch.no_grad():
            values = self.agent.value(torch.from_numpy(seen.reshape(-1, OBSERVATIONS))).numpy().reshape(shape)
            following = self.agent.value(torch.from_numpy(reached.reshape(-1, OBSERVATIONS))).numpy().reshape(shape)
        ended = outcomes > 0
        terminal = ended & (outcomes != TIMEOUT) if self.protocol.bootstrap else ended
        gains = advantages(rewards, values, following, terminal, ended)
        returns = gains + values

        counts = [int((outcomes == outcome).sum()) for outcome in (SUCCESS, COLLISION, TIMEOUT)]
        self.recent.append(counts)
        episodes = max(1, sum(counts))
        metrics = {
            "rollout_safe_success": counts[0] / episodes,
            "rollout_collision": counts[1] / episodes,
            "rollout_timeout": counts[2] / episodes,
            "episodes": sum(counts),
            "episode_length": sum(lengths) / episodes,
            "weighted_reward": float(rewards.mean()),
            "explained_variance": 1 - float(np.var(gains)) / max(float(np.var(returns)), 1e-12),
        }

        def flat(x: NDArray[Any]) -> Tensor:
            return torch.from_numpy(x.astype(np.float32, copy=False).reshape(-1, *x.shape[2:]))

        return Rollout(flat(seen), flat(actions), flat(gains), flat(returns), flat(values)), metrics

    def optimize(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, float]:
        """Epochs of minibatches, until one's mean KL is over the target."""
        agent, recipe, protocol = self.agent, self.recipe, self.protocol
        with torch.no_grad():
            old = agent.log_prob(rollout.observations, rollout.actions)  # [B]
        gains = rollout.advantages if protocol.by_minibatch else normalized(rollout.advantages)
        rows: list[list[float]] = []
        first = epochs = 0
        while epochs < recipe.epochs:
            first, epochs = len(rows), epochs + 1
            order = torch.from_numpy(rng.permutation(len(gains)))
            for part in torch.split(order, self.minibatch):
                observations, gain = rollout.observations[part], gains[part]
                gain = normalized(gain) if protocol.by_minibatch else gain
                log_ratio = agent.log_prob(observations, rollout.actions[part]) - old[part]
                ratio = log_ratio.exp()
                clipped = ratio.clamp(1 - recipe.clip, 1 + recipe.clip)
                policy_loss = -torch.min(gain * ratio, gain * clipped).mean()
                value_loss = (agent.value(observations) - rollout.returns[part]).square().mean()
                loss = policy_loss - recipe.entropy * agent.entropy() + VALUE_COEFFICIENT * value_loss
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                norm = nn.utils.clip_grad_norm_(self.params, LARGEST_GRADIENT)
                self.optimizer.step()
                with torch.no_grad():
                    if protocol.bounded:
                        agent.log_std.clamp_(*LOG_STD_BOUNDS)
                    kl = (ratio - 1 - log_ratio).mean()  # k3 of http://joschu.net/blog/kl-approx.html
                    beyond = ((ratio - 1).abs() > recipe.clip).float().mean()
                    rows.append(torch.stack((policy_loss, value_loss, norm, kl, beyond)).tolist())
            if not sum(row[3] for row in rows[first:]) / (len(rows) - first) <= recipe.target_kl:  # NaN ends it too
                break
        whole, last = np.array(rows).mean(axis=0).tolist(), np.array(rows[first:]).mean(axis=0).tolist()
        return {
            "policy_loss": whole[0],
            "value_loss": whole[1],
            "grad_norm": whole[2],
            "kl": last[3],
            "kl_share": last[3] / recipe.target_kl,
            "clip_fraction": last[4],
            "epochs_run": epochs,
            "entropy": float(agent.entropy().detach()),
            "action_std": float(agent.std().mean()),
        }

    # -- measurement and checkpoints ---------------------------------------------------------------------------------

    def examine(self, examination: Examination) -> Result:
        """The agent of now on fixed scenes; nothing of the training is touched."""
        return examination.run(self.agent.act, self.agent.std().astype(np.float64))

    def save(self, path: Path, update: int) -> None:
        """Write all that a resume needs."""
        moments = [self.reaching.moment(i) for i in range(self.envs)]
        state = {
            "identity": self.identity,
            "update": update,
            "agent": self.agent.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "recipe": asdict(self.recipe),
            "robust_update": self.robust_update,
            "begun": self.begun,
            "recent": list(self.recent),
            "episodes": [(asdict(m.scene), torch.from_numpy(m.physics), m.steps) for m in moments],
        }
        torch.save(state, path)

    def load(self, path: Path, *, resume: bool) -> int:
        """Put weights and optimizer state back; returns the update they are of. ValueError if unfit.

        With ``resume`` the run goes on as it would have gone on then. Without (a rollback) the recipe in force, the
        best so far and the number of episodes begun stay, and new episodes begin everywhere.
        """
        try:
            saved: dict[str, Any] = torch.load(path, weights_only=True)
            identity = saved["identity"]
        except Exception as error:  # a missing, torn or foreign file fails in many ways
            raise ValueError(f"{path} is not a checkpoint of this workload: {error}") from error
        for name, value in self.identity.items():
            if identity.get(name) != value:
                raise ValueError(f"{path}: its {name} is {identity.get(name)}, that of this run is {value}")
        self.agent.load_state_dict(saved["agent"])
        if not resume:  # the groups hold the learning rates: those of now
            saved["optimizer"]["param_groups"] = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(saved["optimizer"])
        if resume:
            vars(self.recipe).update(saved["recipe"])
            self.robust_update = saved["robust_update"]
            self.begun = saved["begun"]
            self.recent.extend(saved["recent"])
            for i, (scene, physics, steps) in enumerate(saved["episodes"]):
                self.reaching.resume(i, Moment(Scene(**scene), physics.numpy(), steps))
        else:
            self.begin(list(range(self.envs)))
        return int(saved["update"])


def normalized(x: Tensor) -> Tensor:
    """Mean 0, standard deviation 1."""
    return (x - x.mean()) / (x.std() + 1e-8)


REWARD_WEIGHTS = ("collision_penalty", "success_bonus", "progress_scale")
METRICS: dict[str, str | Metric] = {
    "rollout_safe_success": "share of the episodes that ended in this update's rollout at the target, never touching",
    "rollout_collision": "share of them that ended in a collision",
    "rollout_timeout": "share of them that ended after 120 steps",
    "episodes": "how many they were",
    "episode_length": "their mean length, in control steps of 0.08 s",
    "weighted_reward": Metric("mean reward of a step under the reward weights in force", depends=REWARD_WEIGHTS),
    "explained_variance": "share of the returns' variance that the critic foresaw; falls when reward weights change",
    "policy_loss": "PPO's clipped surrogate, mean over the update",
    "value_loss": Metric("squared error of the critic, in squared weighted reward", depends=REWARD_WEIGHTS),
    "grad_norm": "global L2 norm of the gradient before clipping, mean over the update",
    "kl": "KL of the old from the new policy in the last epoch, nats; an update ends when it is over target_kl",
    "kl_share": Metric("that KL as a multiple of target_kl", role="policy step", depends=("target_kl",)),
    "clip_fraction": "share of the last epoch's samples whose ratio was beyond the clip range",
    "epochs_run": "passes over the rollout until then",
    "entropy": "of the Gaussian policy, nats",
    "action_std": Metric("its standard deviation, rad/s, mean of joints, 0.05 to 1; it is learned", "action noise"),
    "score": "worst_safe_success - worst_collision on fixed scenes, from -1 to 1",
    "worst_safe_success": "lowest rate of safe success in six cells: easy, medium, hard; deterministic and sampled",
    "worst_collision": "highest rate of collisions in the six cells",
    "safe_success": Metric("mean of the cells' rates of safe success", "success"),
    "collision": Metric("mean of the cells' rates of collision", "unsafe"),
    "robust": "1 where every cell has safe success of 0.85 or more and collisions of 0.15 or less",
    "best_score": "highest score of the run",
    "best_update": "the update that had it",
    "robust_update": "the first update that was robust; absent if none was",
    "test_success_deterministic_last": "held-out scenes, final weights, mean action: safe success, mean of the splits",
    "test_success_sampled_last": "the same with exploration noise",
    "test_collision_deterministic_last": "collisions with the mean action",
    "test_collision_sampled_last": "collisions with exploration noise",
    "test_worst_success_last": "lowest of the six cells' safe success",
    "test_worst_collision_last": "highest of the six cells' collisions",
    **{
        f"test_{name}_best": "the same of the weights with the best score"
        for name in (
            "success_deterministic", "success_sampled", "collision_deterministic", "collision_sampled",
            "worst_success", "worst_collision",
        )
    },
}  # fmt: skip


def summary(result: Result, which: str) -> dict[str, float]:
    """A held-out test as metrics of the end."""
    rates = {mode: result.mean(mode) for mode in MODES}
    found = {f"test_success_{mode}_{which}": success for mode, (success, _) in rates.items()}
    found |= {f"test_collision_{mode}_{which}": collision for mode, (_, collision) in rates.items()}
    worst = {"success": result.worst_safe_success, "collision": result.worst_collision}
    return found | {f"test_worst_{name}_{which}": value for name, value in worst.items()}


def declare(w: Workload, trainer: Trainer, boundary: Literal["step", "eval", "checkpoint"]) -> None:
    """What may be changed while the run lasts, how far, and how far at once."""
    recipe, optimizer = trainer.recipe, trainer.optimizer

    def live(name: str, low: float, high: float, group: str, description: str, **more: Any) -> None:
        w.float(
            name, get=lambda: getattr(recipe, name), set=lambda value: setattr(recipe, name, value), low=low,
            high=high, boundary=boundary, group=group, description=description, **more,
        )  # fmt: skip

    for index, name in enumerate(("actor", "critic")):
        w.optimizer(
            f"{name}_lr", optimizer, key="lr", groups=[index], low=1e-5, high=3e-3, scale="log", max_ratio=5.0,
            min_ratio=0.25, boundary=boundary, group="optimizer",
            description=f"Adam's learning rate of the {name}; from the next optimizer step, its moments are kept",
        )  # fmt: skip
    live(
        "entropy", 0.0, 0.1, "exploration", max_ratio=5.0, min_ratio=0.25,
        description="weight of the policy's entropy, which widens the noise of actions; from the next update",
    )  # fmt: skip
    live("clip", 0.03, 0.30, "trust region", "how far from 1 the ratio of probabilities may gain; from the next update")
    w.int(
        "epochs", get=lambda: recipe.epochs, set=lambda value: setattr(recipe, "epochs", value), low=1, high=8,
        boundary=boundary, group="trust region", description="passes over a rollout, at most; from the next update",
    )  # fmt: skip
    live(
        "target_kl", 0.003, 0.10, "trust region",
        "KL of an epoch, in nats, over which an update ends; from the next update",
    )  # fmt: skip
    live("collision_penalty", 1.0, 50.0, "penalty", "reward lost by a collision; from the next rollout")
    live("success_bonus", 2.5, 10.0, "reward", "reward of a safe success; from the next rollout")
    live("progress_scale", 1.0, 5.0, "reward", "reward per metre towards the target; from the next rollout")


def main() -> None:
    args = arguments()
    if args.render and (problem := film.trouble(args.render)):  # said now: afterwards, hours may have gone by
        print(f"--render: there will be no film: {problem}", file=sys.stderr, flush=True)
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    diagnostic = Examination(args.seed, args.eval_episodes)
    try:
        update = trainer.load(Path(args.resume), resume=True) if args.resume else 0  # updates done
    except ValueError as error:
        raise SystemExit(f"cannot resume: {error}") from error
    info = {
        "profile": args.profile,
        "protocol": args.protocol,
        "samples_per_update": args.envs * args.horizon,
        "evaluation_episodes_per_cell": args.eval_episodes,
        "parameters": sum(p.numel() for p in trainer.params),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    facts = {
        "a_step_is": "one PPO update: a rollout, then up to the set epochs over it",
        "samples_per_rollout": args.envs * args.horizon,
        "minibatch": args.minibatch,
        "parameters": info["parameters"],
        "episodes_per_evaluation": 6 * args.eval_episodes,
        "discount": GAMMA,
        "other_rewards": "small costs of effort and nearness; none of time or time-outs",
        "scored_at_the_end": "safe success and collisions: last rollouts, held-out scenes",
    }
    w = Workload(
        "reacher", objective="score", mode="max", scale=1.0, total_steps=args.updates, seed=args.seed,
        metrics=METRICS, info=info, facts=facts, directory=args.out, resumed_from=args.resume, resumed_step=update,
    )  # fmt: skip
    declare(w, trainer, args.boundary)

    def rollback(path: Path) -> None:
        origin = trainer.load(path, resume=False)
        print(f"update {update:4d}  weights and optimizer are again those of update {origin}", flush=True)

    keep = Checkpoints(w, lambda path: trainer.save(path, update), rollback)

    def report(result: Result) -> None:
        if result.robust and trainer.robust_update is None:
            trainer.robust_update = update
        cells = list(result.cells.values())
        metrics = {
            "score": result.score,
            "worst_safe_success": result.worst_safe_success,
            "worst_collision": result.worst_collision,
            "safe_success": sum(cell.safe_success for cell in cells) / len(cells),
            "collision": sum(cell.collision for cell in cells) / len(cells),
            "robust": int(result.robust),
        }
        keep.eval(update, metrics, split={name: cell.row() for name, cell in result.cells.items()})

    print("reacher: " + ", ".join(f"{name} {value}" for name, value in info.items()), flush=True)
    started, first = time.perf_counter(), update
    with w:
        if not args.resume:
            trainer.begin(list(range(args.envs)))
            keep.begin()
            report(trainer.examine(diagnostic))
        for update in w.steps(first + 1):
            row = trainer.update(update)
            w.step(update, row)  # here, and in eval and checkpoint, changes that wait are put into effect
            if update % args.eval_every == 0 or update == args.updates:
                result = trainer.examine(diagnostic)
                pace = (time.perf_counter() - started) / (update - first) * 1e3
                print(
                    f"update {update:4d}/{args.updates}  "
                    f"score {result.score:+.3f}{'*' if keep.better(result.score) else ' '} "
                    f"worst success {result.worst_safe_success:.2f}  worst collision {result.worst_collision:.2f}  "
                    f"rollout {row['rollout_safe_success']:.2f} {row['rollout_collision']:.2f} "
                    f"{row['rollout_timeout']:.2f}  length {row['episode_length']:.0f}  std {row['action_std']:.2f}  "
                    f"kl {row['kl']:.4f}  {pace:.0f} ms/update",
                    flush=True,
                )
                report(result)
            keep.report(update)

        # The end, and the only look at the held-out scenes.
        if args.restore_best and keep.best.exists():
            keep.rollback("best")
        ending = trainer.examine(diagnostic)
        keep.end(update)
        held_out = Examination(args.seed, args.test_episodes, held_out=True)
        tests = {"last": trainer.examine(held_out)}
        trainer.load(keep.best if keep.best.exists() else keep.last, resume=False)
        tests["best"] = trainer.examine(held_out)
        totals = [sum(column) for column in zip(*trainer.recent, strict=True)] or [0, 0, 0]
        final = {
            "score": ending.score,
            "best_score": keep.best_value,
            "best_update": keep.best_step,
            **({} if trainer.robust_update is None else {"robust_update": trainer.robust_update}),
            "rollout_safe_success": totals[0] / max(1, sum(totals)),
            "rollout_collision": totals[1] / max(1, sum(totals)),
            "rollout_timeout": totals[2] / max(1, sum(totals)),
            **summary(tests["last"], "last"),
            **summary(tests["best"], "best"),
        }
        w.end(update, final)
    print(f"reacher: {update} updates, {time.perf_counter() - started:.1f} s, checkpoints in {w.checkpoints}")
    print(f"  rollouts of the last {WINDOW} updates: " + ", ".join(f"{k[8:]} {v:.3f}" for k, v in final.items()
                                                                    if k.startswith("rollout_")))  # fmt: skip
    for which, result in tests.items():
        print(f"  held out, {which} weights (safe success/collision of {args.test_episodes} episodes): " + ", ".join(
            f"{name} {cell.safe_success:.3f}/{cell.collision:.3f}" for name, cell in result.cells.items()
        ), flush=True)  # fmt: skip
    if args.render:
        film.make(keep.last, args.render)


if __name__ == "__main__":
    main()
