"""A physics-informed network whose losses are out of balance, with weights that can be changed while it trains.

    python workloads/pinn.py                              # quick: under 40 seconds on one core
    python workloads/pinn.py --profile full               # 20,000 steps, under 3 minutes
    python workloads/pinn.py --weighting gradnorm         # the weights balance themselves; also: uncertainty
    python workloads/pinn.py --profile tiny --out t       # seconds; leaves telemetry and checkpoints in t/
    trainmgr run workloads/pinn.py -- --profile quick     # the same run, supervised

The nonlinear Klein-Gordon equation of https://arxiv.org/abs/2001.04536, with a higher frequency w than its 5 pi,

    u_tt - u_xx + u^3 = f,   u = x cos(w t) + (x t)^3,   x and t in [0, 1].

A tanh network learns u from three losses: the equation's residual, the boundary values and the initial values. The
residual holds second derivatives, so its gradients are larger by orders of magnitude, and under equal weights the
network solves the equation with wrong boundary and initial values. That is on purpose: there is something to manage.
Problem, sizes and constants were found by pilots on seeds 11 and 12. Relative errors there after half of a full run:
equal weights 0.72 and 0.23, uncertainty weighting 0.09 and 0.11, GradNorm 0.04 and 0.01, and by hand, with weights of
1, 3000 and 70 for residual, boundary and initial values, 0.03 and 0.02.

All randomness is a function of (seed, step). So an evaluation, a look at the control file or an override that changes
nothing leaves everything else as it was, and a resumed run repeats the uninterrupted one bit for bit (on one machine,
with one number of threads). For the same reason no metric is read from a clock.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainmgr.workload import Checkpoints, Metric, Workload, default_seed, resume_path

PROFILES: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 2, "width": 16, "inside": 32, "rim": 16, "steps": 60, "eval_every": 10},
    "quick": {"layers": 4, "width": 50, "inside": 256, "rim": 64, "steps": 5_000, "eval_every": 100},
    "full": {"layers": 4, "width": 50, "inside": 256, "rim": 64, "steps": 20_000, "eval_every": 200},
}

LOSSES = ("residual", "boundary", "initial")  # in this order wherever a tensor has a place for each
LOW, HIGH = 1e-3, 1e4  # bounds of a weight
VALID, TEST = 40, 101  # points along each side of the grids: one even, one odd, so that they share no point
WEIGHTINGS = ("fixed", "uncertainty", "gradnorm")


def arguments() -> argparse.Namespace:
    """The command line. What it does not name comes from the profile."""
    p = argparse.ArgumentParser(description="Train a physics-informed network.", allow_abbrev=False)
    flag = p.add_argument
    flag("--profile", choices=sorted(PROFILES), default="quick", help="where values not given here come from")
    # the run
    flag("--seed", type=int, default=default_seed(0), help="of all randomness (default: TRAINMGR_SEED or 0)")
    flag("--steps", type=int, help="optimizer steps in total, those before a resume included")
    flag("--out", type=Path, help="folder for telemetry.jsonl and checkpoints/ when nobody supervises")
    flag("--resume", type=Path, default=resume_path(), help="checkpoint to go on from, with its live recipe")
    flag("--restore-best", action="store_true", help="end on the weights with the best validation error")
    flag("--threads", type=int, default=1, help="CPU threads; with another number the last bits differ")
    # the problem and the network
    flag("--frequency", type=float, default=6.0, help="w of the solution, in multiples of pi")
    flag("--layers", type=int, help="hidden tanh layers")
    flag("--width", type=int, help="units in each")
    flag("--inside", type=int, help="points of one step where the residual is taken")
    flag("--rim", type=int, help="points of one step on the boundary, and as many at t = 0; even")
    # the recipe at the start; all of it can be changed while the run lasts
    flag("--lr", type=float, default=1e-3, help="Adam's learning rate; constant, unless somebody changes it")
    for name in LOSSES:
        flag(f"--weight-{name}", type=float, default=1.0, help=f"weight of the {name} loss")
    flag("--weighting", choices=WEIGHTINGS, default="fixed", help="whether and how the weights move by themselves")
    flag("--weighting-lr", type=float, default=3e-3, help="Adam's learning rate for that")
    flag("--alpha", type=float, default=0.5, help="GradNorm's pull towards losses that fall slowly")
    # the measurement
    flag("--eval-every", type=int, help="steps from one evaluation to the next")
    flag("--save-every", type=int, default=5, help="evaluations from one last.pt to the next")
    p.set_defaults(**PROFILES[p.parse_known_args()[0].profile])
    return p.parse_args()


# -- the problem ------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """The Klein-Gordon equation u_tt - u_xx + u^3 = f on the unit square, made so that its solution is known.

    Points are [N, 2], the columns x and t; values are [N].
    """

    frequency: float
    """w, in radians per unit of time."""

    def solution(self, points: Tensor) -> Tensor:
        x, t = points.unbind(1)
        return x * torch.cos(self.frequency * t) + (x * t) ** 3

    def source(self, points: Tensor) -> Tensor:
        """f"""
        x, t = points.unbind(1)
        u_tt = -(self.frequency**2) * x * torch.cos(self.frequency * t) + 6 * x**3 * t
        u_xx = 6 * x * t**3
        return u_tt - u_xx + self.solution(points) ** 3


class Batch(NamedTuple):
    """Where the three losses are taken."""

    inside: Tensor  # [N, 2]
    boundary: Tensor  # [M, 2], half of them at x = 0, half at x = 1
    initial: Tensor  # [M, 2], t = 0: there u is x, and u_t is 0


def draw(inside: int, rim: int, *key: int | str) -> Batch:
    """Points distributed evenly; a function of the key, hashed, so that neighbours have nothing in common."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    points = torch.rand(inside + 2 * rim, 2, generator=torch.Generator().manual_seed(int.from_bytes(digest[:4], "big")))
    batch = Batch(*torch.split(points, [inside, rim, rim]))
    batch.boundary[: rim // 2, 0], batch.boundary[rim // 2 :, 0], batch.initial[:, 1] = 0.0, 1.0, 0.0
    return batch


def grid(count: int) -> Tensor:
    """The middles [count^2, 2] of equal squares. Those of an even and of an odd count have none in common."""
    middles = (torch.arange(count) + 0.5) / count
    return torch.cartesian_prod(middles, middles)


# -- the network ------------------------------------------------------------------------------------------------------


class Jet(torch.autograd.Function):
    """A tanh layer that carries derivatives along: of each unit h the four numbers h, h_x, h_t and h_tt - h_xx.

    With z = h W + b, a = tanh z, s = 1 - a^2: a_i = s z_i and a_tt - a_xx = s (z_tt - z_xx) - 2 a s (z_t^2 - z_x^2), so
    that one pass gives the operator whole (as in https://arxiv.org/abs/2307.08214 the Laplacian). With the backward
    pass by hand this takes 0.6 of the time that differentiating twice takes (256 points, 4 layers of 50, one core).
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # [4, N, I], [I, O], [O] -> [4, N, O]
        z = torch.mm(h.flatten(0, 1), weight).view(4, h.shape[1], -1)
        a = torch.tanh(z[0].add_(bias))
        s = 1 - a * a
        q = z[2].square().addcmul_(z[1], z[1], value=-1)  # z_t^2 - z_x^2
        bend = a * s
        out = torch.empty_like(z)
        out[0] = a
        torch.mul(z[1:], s, out=out[1:])
        out[3].addcmul_(bend, q, value=-2)
        ctx.save_for_backward(h, weight, z, s, q, bend)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        h, weight, z, s, q, bend = ctx.saved_tensors
        (g,) = gradients  # [4, N, O]
        down = g * s  # [4, N, O], with respect to z
        turn = bend * g[3]
        down[1].addcmul_(turn, z[1], value=4)
        down[2].addcmul_(turn, z[2], value=-4)
        down[0].addcmul_(bend, (g[1] * z[1]).addcmul_(g[2], z[2]).addcmul_(g[3], z[3]), value=-2)  # ds/dz = -2 a s
        down[0].addcmul_((3 * s - 2).mul_(s).mul_(q), g[3], value=-2)  # d(a s)/dz = s (3 s - 2)
        flat = down.flatten(0, 1)
        return (
            torch.mm(flat, weight.T).view_as(h) if ctx.needs_input_grad[0] else None,
            torch.mm(h.flatten(0, 1).T, flat),
            down[0].sum(0),
        )


class Network:
    """u(x, t): tanh layers between two linear maps, float32 (float64 takes 1.8 times as long)."""

    def __init__(self, layers: int, width: int, seed: int) -> None:
        sizes = [2, *[width] * layers, 1]
        random = torch.Generator().manual_seed(seed)
        self.params: list[Tensor] = []  # weight [I, O] and bias [O] of each layer in turn
        for i, o in pairwise(sizes):
            spread = math.sqrt(2 / (i + o))  # http://proceedings.mlr.press/v9/glorot10a.html
            self.params += [torch.randn(i, o, generator=random).mul_(spread), torch.zeros(o)]
        for p in self.params:
            p.requires_grad_()

    def value(self, points: Tensor) -> Tensor:
        """u [N] at points [N, 2]."""
        h = 2 * points - 1
        for weight, bias in zip(self.params[:-2:2], self.params[1:-2:2], strict=True):
            h = torch.tanh(torch.addmm(bias, h, weight))
        return torch.addmm(self.params[-1], h, self.params[-2]).squeeze(1)

    def jet(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u, u_t and u_tt - u_xx at points [N, 2]; [N] each."""
        h = points.new_zeros(4, len(points), 2)
        h[0] = 2 * points - 1
        h[1, :, 0] = h[2, :, 1] = 2
        for weight, bias in zip(self.params[:-2:2], self.params[1:-2:2], strict=True):
            h = Jet.apply(h, weight, bias)  # type: ignore[no-untyped-call]
        u = torch.matmul(h, self.params[-2]).squeeze(2)  # [4, N]
        return u[0] + self.params[-1], u[2], u[3]

    def losses(self, problem: Problem, batch: Batch) -> list[Tensor]:
        """Mean squares of what is wrong with the equation, at the boundary, and at t = 0 (value and velocity)."""
        u, _, wave = self.jet(batch.inside)
        first, velocity, _ = self.jet(batch.initial)
        return [
            (wave + u**3 - problem.source(batch.inside)).square().mean(),
            (self.value(batch.boundary) - problem.solution(batch.boundary)).square().mean(),
            (first - problem.solution(batch.initial)).square().mean() + velocity.square().mean(),
        ]

    def gradients(self, losses: list[Tensor]) -> Tensor:
        """Of each loss, unweighted: [3, P], P being the number of parameters. All parameters are shared."""
        each = [torch.autograd.grad(loss, self.params) for loss in losses]
        return torch.stack([torch.cat([piece.flatten() for piece in pieces]) for pieces in each])


# -- the weights of the losses ----------------------------------------------------------------------------------------


def uncertainty_gradient(weights: Tensor, losses: Tensor) -> Tensor:
    """Of sum_i exp(-s_i) L_i / 2 + s_i / 2 with respect to the s_i; all [3].

    Each loss is that of a Gaussian whose variance exp(s_i) is learned; its weight is exp(-s_i) / 2
    (https://arxiv.org/abs/1705.07115, section 3.2; learning the logarithm of the variance is theirs, too).
    """
    return 0.5 - weights * losses


def gradnorm_gradient(weights: Tensor, losses: Tensor, first: Tensor, norms: Tensor, alpha: float) -> Tensor:
    """Of GradNorm's loss with respect to the weights; all [3]. ``norms`` are those of the unweighted gradients.

    That loss is sum_i |G_i - mean(G) r_i^alpha|, with G_i = w_i norms_i and r_i the ratio L_i / L_i(0) over the mean of
    all such ratios; the targets mean(G) r_i^alpha count as constants (https://arxiv.org/abs/1711.02257, section 3;
    gradients there are those of the last shared layer; here all layers are shared, and all count).
    """
    norm = weights * norms
    ratio = losses / first
    target = norm.mean() * (ratio / ratio.mean()) ** alpha
    return torch.sign(norm - target) * norms


class Weights:
    """The weights of the losses, by hand or learned beside the network, in float64."""

    def __init__(self, values: list[float], scheme: str, lr: float, alpha: float) -> None:
        self.scheme, self.alpha = scheme, alpha
        self.values = torch.tensor(values, dtype=torch.float64)  # [3]
        self.free = torch.zeros_like(self.values)  # what Adam moves: the logarithms of variances, or the weights
        self.optimizer = torch.optim.Adam([self.free], lr=lr)
        self.first = torch.full_like(self.values, math.nan)  # losses of the first step

    def get(self, name: str) -> float:
        return float(self.values[LOSSES.index(name)])

    def set(self, name: str, value: float) -> None:
        self.values[LOSSES.index(name)] = value

    def update(self, losses: Tensor, norms: Tensor) -> None:
        """Learn from one step's losses and gradient norms, both unweighted, [3]."""
        if self.scheme == "fixed":
            return
        losses, norms = losses.double(), norms.double()
        if not (losses.isfinite().all() and norms.isfinite().all()):
            return  # a weight that is not finite would never be finite again
        if self.first.isnan().any():
            self.first.copy_(losses)
        if self.scheme == "uncertainty":
            self.free.copy_(-torch.log(2 * self.values))
            self.free.grad = uncertainty_gradient(self.values, losses)
            self.optimizer.step()
            self.values.copy_(torch.exp(-self.free) / 2)
        else:
            self.free.copy_(self.values)
            self.free.grad = gradnorm_gradient(self.values, losses, self.first, norms, self.alpha)
            self.optimizer.step()
            self.values.copy_(self.free.clamp_(min=LOW))
            self.values.mul_(len(LOSSES) / self.values.sum())  # the learning rate alone decides how fast all goes
        self.values.clamp_(LOW, HIGH)

    def state(self) -> dict[str, Any]:
        return {"values": self.values, "first": self.first, "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.values.copy_(state["values"])
        self.first.copy_(state["first"])
        self.optimizer.load_state_dict(state["optimizer"])


# -- training ---------------------------------------------------------------------------------------------------------


class Trainer:
    """The state of a run (network, optimizer, weights of the losses) and what is done with it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.seed, self.inside, self.rim = args.seed, args.inside, args.rim
        self.problem = Problem(args.frequency * math.pi)
        self.network = Network(args.layers, args.width, args.seed)
        self.optimizer = torch.optim.Adam(self.network.params, lr=args.lr, fused=True)
        values = [getattr(args, f"weight_{name}") for name in LOSSES]
        self.weights = Weights(values, args.weighting, args.weighting_lr, args.alpha)
        self.measured = draw(4 * args.inside, 4 * args.rim, args.seed, "gradients")
        # What a checkpoint must have in common with the run that loads it.
        self.identity = {
            name: getattr(args, name) for name in ("seed", "frequency", "layers", "width", "inside", "rim", "weighting")
        }

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step on new points; its losses and gradient, all from before the update."""
        network, weights = self.network, self.weights.values.float()
        losses = network.losses(self.problem, draw(self.inside, self.rim, self.seed, step))
        gradients = network.gradients(losses)  # [3, P]
        gradient = weights @ gradients  # [P]
        pieces = torch.split(gradient, [p.numel() for p in network.params])
        for p, piece in zip(network.params, pieces, strict=True):
            p.grad = piece.view_as(p)
        self.optimizer.step()
        values = torch.stack(losses).detach()
        self.weights.update(values, gradients.norm(dim=1))
        row = torch.cat((torch.stack((weights @ values, gradient.norm())), values)).tolist()
        return dict(zip(("loss", "grad_norm", *(f"loss_{name}" for name in LOSSES)), row, strict=True))

    @torch.no_grad()
    def error(self, points: Tensor) -> float:
        """Relative L2 error at points [N, 2]: |u - solution| / |solution|; 1 is that of u = 0."""
        exact = self.problem.solution(points).double()
        return float((self.network.value(points) - exact).norm() / exact.norm())

    def balance(self) -> dict[str, float]:
        """Gradient norms of each loss on points that stay the same; a function of network and weights alone."""
        norms = self.network.gradients(self.network.losses(self.problem, self.measured)).norm(dim=1).double()
        weighted = norms * self.weights.values
        found = {f"grad_norm_{name}": value for name, value in zip(LOSSES, norms.tolist(), strict=True)}
        found |= {f"weighted_grad_norm_{name}": value for name, value in zip(LOSSES, weighted.tolist(), strict=True)}
        return found | {"grad_imbalance": float(weighted.max() / weighted.min())}

    def save(self, path: Path, step: int) -> None:
        """Write all that a resume needs."""
        state = {
            "identity": self.identity,
            "step": step,
            "network": [p.detach() for p in self.network.params],
            "optimizer": self.optimizer.state_dict(),
            "weights": self.weights.state(),
        }
        torch.save(state, path)

    def load(self, path: Path, *, resume: bool) -> int:
        """Put network and optimizer state back; returns the step they are of. ValueError if unfit.

        In a resume the run goes on as it would have gone on then. Else (a rollback) the recipe in force now stays, with
        the weights of the losses, and so does the best so far.
        """
        try:
            saved: dict[str, Any] = torch.load(path, weights_only=True)
            identity = saved["identity"]
        except Exception as error:  # a missing, torn or foreign file fails in many ways
            raise ValueError(f"{path} is not a checkpoint of this workload: {error}") from error
        for name, value in self.identity.items():
            if identity.get(name) != value:
                raise ValueError(f"{path}: its {name} is {identity.get(name)}, that of this run is {value}")
        with torch.no_grad():
            for p, value in zip(self.network.params, saved["network"], strict=True):
                p.copy_(value)
        if resume:
            self.weights.load(saved["weights"])
        else:  # the groups hold the learning rate: that of now
            saved["optimizer"]["param_groups"] = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(saved["optimizer"])
        return int(saved["step"])


WEIGHTS = tuple(f"weight_{name}" for name in LOSSES)
METRICS: dict[str, str | Metric] = {
    "loss": Metric("weighted sum of the three losses on this step's points", depends=WEIGHTS),
    "grad_norm": Metric("L2 norm of its gradient", depends=WEIGHTS),
    "loss_residual": "unweighted: mean square of u_tt - u_xx + u^3 - f at points inside",
    "loss_boundary": "unweighted: mean squared error of u at x = 0 and x = 1",
    "loss_initial": "unweighted: mean squared error of u plus that of u_t, at t = 0",
    "val_error": "relative L2 error against the exact solution on a grid; 1 is that of u = 0",
    **{f"grad_norm_{name}": f"L2 norm of the gradient of loss_{name}, unweighted, on fixed points" for name in LOSSES},
    **{
        f"weighted_grad_norm_{name}": Metric(f"the same times weight_{name}", "loss gradient", (f"weight_{name}",))
        for name in LOSSES
    },
    "grad_imbalance": Metric("largest of the weighted gradient norms over the smallest; 1 is balance", depends=WEIGHTS),
    "best_val_error": "lowest val_error of the run",
    "best_step": "the step that had it",
    "test_error_last": "relative L2 error of the final network on other points, unseen till then",
    "test_error_best": "the same of the network with the lowest val_error",
}


def declare(w: Workload, trainer: Trainer) -> None:
    """What may be changed while the run lasts, how far, and how far at once."""
    weights = trainer.weights
    w.optimizer(
        "lr", trainer.optimizer, key="lr", low=1e-5, high=1e-2, scale="log", max_ratio=2.0, min_ratio=0.1,
        group="optimizer", description="Adam's learning rate, constant between changes",
    )  # fmt: skip
    for name in LOSSES:
        w.float(
            f"weight_{name}", get=partial(weights.get, name), set=partial(weights.set, name), low=LOW, high=HIGH,
            scale="log", max_ratio=10.0, min_ratio=0.1, group="loss weight", scheduled=weights.scheme != "fixed",
            description=f"weight of loss_{name} in the sum that is trained on",
        )  # fmt: skip


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    valid, test = grid(VALID), grid(TEST)
    try:
        step = trainer.load(Path(args.resume), resume=True) if args.resume else 0  # steps done
    except ValueError as error:
        raise SystemExit(f"cannot resume: {error}") from error
    info = {
        "profile": args.profile,
        "weighting": args.weighting,
        "frequency": trainer.problem.frequency,
        "parameters": sum(p.numel() for p in trainer.network.params),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    facts = {
        "data": "random points, drawn anew at every step: none comes twice",
        "points_per_step": args.inside + 2 * args.rim,
        "parameters": info["parameters"],
        "scored_at_the_end": "relative L2 error of the final network on a finer grid",
    }
    w = Workload(
        "pinn", objective="val_error", mode="min", total_steps=args.steps, seed=args.seed, metrics=METRICS, info=info,
        facts=facts, directory=args.out, resumed_from=args.resume, resumed_step=step,
    )  # fmt: skip
    declare(w, trainer)

    def rollback(path: Path) -> None:
        origin = trainer.load(path, resume=False)
        print(f"step {step:5d}  network and optimizer are again those of step {origin}", flush=True)

    keep = Checkpoints(w, lambda path: trainer.save(path, step), rollback, every=args.save_every)

    def assess() -> dict[str, float]:
        return {"val_error": trainer.error(valid), **trainer.balance()}

    print("pinn: " + ", ".join(f"{name} {value}" for name, value in info.items()), flush=True)
    begun, first = time.perf_counter(), step
    with w:
        if not args.resume:
            keep.begin()
            keep.eval(0, assess())
        for step in w.steps(first + 1):
            row = trainer.step(step)
            w.step(step, row)  # here, and in eval and checkpoint, changes that wait are put into effect
            if step % args.eval_every == 0 or step == args.steps:
                metrics = assess()
                now, better = metrics["val_error"], keep.better(metrics["val_error"])
                pace = (time.perf_counter() - begun) / (step - first) * 1e3
                print(
                    f"step {step:5d}/{args.steps}  error {now:.4f}{'*' if better else ' '} "
                    f"best {now if better else keep.best_value:.4f}  "
                    + "  ".join(
                        f"{name} {row[f'loss_{name}']:.1e} x {weight:.3g}"
                        for name, weight in zip(LOSSES, trainer.weights.values.tolist(), strict=True)
                    )
                    + f"  imbalance {metrics['grad_imbalance']:.0f}  {pace:.1f} ms/step",
                    flush=True,
                )
                keep.eval(step, metrics)
            keep.report(step)

        # The end, and the only look at the test points.
        if args.restore_best and keep.best.exists():
            keep.rollback("best")
        metrics = assess()
        keep.end(step)
        test_last = trainer.error(test)
        trainer.load(keep.best if keep.best.exists() else keep.last, resume=False)
        final = {
            "val_error": metrics["val_error"],
            "best_val_error": keep.best_value,
            "best_step": keep.best_step,
            "test_error_last": test_last,
            "test_error_best": trainer.error(test),
        }
        w.end(step, final)
    print(f"pinn: {step} steps, {time.perf_counter() - begun:.1f} s, checkpoints in {w.checkpoints}")
    print(f"  validation error {final['val_error']:.4f}, at best {final['best_val_error']:.4f} (step {keep.best_step})")
    print(f"  test error {test_last:.4f}, that of the best network {final['test_error_best']:.4f}", flush=True)


if __name__ == "__main__":
    main()
