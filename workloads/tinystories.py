"""A small GPT on TinyStories whose recipe can be changed while it trains. One file, and it runs alone:

    python workloads/tinystories.py                          # quick: 1,200 steps, under 2 minutes on one core
    python workloads/tinystories.py --profile full           # 6,000 steps, under 10 minutes
    python workloads/tinystories.py --profile tiny --out t   # seconds; leaves telemetry and checkpoints in t/
    python workloads/tinystories.py --profile tiny --out t2 --steps 90 --resume t/checkpoints/last.pt
    trainmgr run workloads/tinystories.py -- --profile quick # the same run, supervised

The profiles overfit on purpose: a fixed recipe has its best validation loss early and loses it again, so that
there is something to manage. They were found by pilots on the fixed recipe only.

All randomness is a function of (seed, step). So an evaluation, a look at the control file or an override that
changes nothing leaves everything else as it was, and a resumed run repeats the uninterrupted one bit for bit
(on one machine, with one number of threads). For the same reason no metric is read from a clock.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F  # noqa: N812  (its name in every other script)
from stories import load, tokenize
from torch import Tensor

from trainmgr.workload import Checkpoints, Workload, default_seed, resume_path

PROFILES: dict[str, dict[str, Any]] = {
    "tiny": {
        "train_chars": 10_000, "tokens": "char", "layers": 2, "width": 32, "heads": 2, "context": 32, "batch": 8,
        "lr": 3e-3, "steps": 60, "eval_every": 10, "eval_slices": 16, "test_slices": 64,
    },
    "quick": {
        "train_chars": 30_000, "tokens": "bpe", "layers": 4, "width": 128, "heads": 4, "context": 128, "batch": 4,
        "lr": 3e-3, "steps": 1_200, "eval_every": 20, "eval_slices": 12, "test_slices": 256,
    },
    "full": {
        "train_chars": 100_000, "tokens": "bpe", "layers": 4, "width": 128, "heads": 4, "context": 128, "batch": 4,
        "lr": 4e-3, "steps": 6_000, "eval_every": 60, "eval_slices": 36, "test_slices": 1_024,
    },
}  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line. What it does not name comes from the profile."""
    p = argparse.ArgumentParser(description="Train a small GPT on TinyStories.", allow_abbrev=False)
    flag = p.add_argument
    flag("--profile", choices=sorted(PROFILES), default="quick", help="where values not given here come from")
    # the run
    flag("--seed", type=int, default=default_seed(0), help="of all randomness (default: TRAINMGR_SEED or 0)")
    flag("--steps", type=int, help="optimizer steps in total, those before a resume included")
    flag("--out", type=Path, help="folder for telemetry.jsonl and checkpoints/ when nobody supervises")
    flag("--resume", type=Path, default=resume_path(), help="checkpoint to go on from, with its live recipe")
    flag("--restore-best", action="store_true", help="end on the weights with the best validation loss")
    flag("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one")
    flag("--threads", type=int, default=1, help="CPU threads; with another number the last bits differ")
    # the data
    flag("--data", type=Path, help="folder with train.txt and valid.txt (default: see stories.py)")
    flag("--train-chars", type=int, help="train on the first so many characters; 0: on all of them")
    flag("--tokens", choices=("bpe", "char"), help="byte-pair encoding of the training text, or characters")
    flag("--vocab", type=int, default=2_048, help="largest number of byte-pair tokens")
    # the model
    flag("--layers", type=int, help="transformer blocks")
    flag("--width", type=int, help="features per token")
    flag("--heads", type=int, help="attention heads; divides the width")
    flag("--context", type=int, help="tokens that the model sees at once")
    # the recipe at the start; all of it but the batch can be changed while the run lasts
    flag("--batch", type=int, help="sequences per step")
    flag("--lr", type=float, help="AdamW's learning rate; constant, unless somebody changes it")
    flag("--weight-decay", type=float, default=0.0, help="decoupled decay, on matrices only")
    flag("--dropout", type=float, default=0.0, help="share of features zeroed on embeddings and residuals")
    flag("--label-smoothing", type=float, default=0.0, help="share of the target spread over all tokens")
    flag("--token-mask", type=float, default=0.0, help="share of input tokens replaced by random ones")
    flag("--ema", type=float, default=0.0, help="decay of the average of weights that is evaluated; 0: off")
    flag("--grad-clip", type=float, default=1.0, help="largest global norm of the gradient")
    flag("--beta1", type=float, default=0.9, help="Adam's decay of the mean gradient")
    flag("--beta2", type=float, default=0.999, help="Adam's decay of the mean squared gradient")
    # the measurement
    flag("--eval-every", type=int, help="steps from one evaluation to the next")
    flag("--eval-slices", type=int, help="validation sequences in each; of the training text a third of that")
    flag("--test-slices", type=int, help="test sequences at the end, as far as the text goes")
    flag("--save-every", type=int, default=5, help="evaluations from one last.pt to the next")
    p.set_defaults(**PROFILES[p.parse_known_args()[0].profile])
    return p.parse_args()


@dataclass(frozen=True)
class Shape:
    """The sizes of the model: V, T, L, D and H in the comments below."""

    vocab: int
    context: int
    layers: int
    width: int
    heads: int


@dataclass
class Recipe:
    """The live values that the optimizer does not hold; read anew at every step. Units: see `arguments`."""

    dropout: float
    label_smoothing: float
    token_mask: float
    ema: float
    grad_clip: float


class Block(nn.Module):
    """Attention, then an MLP, each behind a LayerNorm (pre-norm: https://arxiv.org/abs/2002.04745)."""

    def __init__(self, shape: Shape, recipe: Recipe) -> None:
        super().__init__()
        self.heads, self.recipe, d = shape.heads, recipe, shape.width
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.merge = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, D] -> [B, T, D]
        b, t, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, H, T, D/H] each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, H, T, D/H]
        x = x + self.drop(self.merge(y.transpose(1, 2).reshape(b, t, d)))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))

    def drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.recipe.dropout, self.training)


class GPT(nn.Module):
    """Tokens to logits of the next token; the embedding is the output layer (https://arxiv.org/abs/1608.05859)."""

    def __init__(self, shape: Shape, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.token = nn.Embedding(shape.vocab, shape.width)
        self.position = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape, recipe) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        for name, p in self.named_parameters():
            if p.dim() == 2:  # as in GPT-2: the ends of residual branches start smaller
                ends = name.endswith(("merge.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * shape.layers) if ends else 0.02)
        nn.init.normal_(self.token.weight, std=shape.width**-0.5)  # logits of order 1; 0.02 is for a wider one

    def forward(self, tokens: Tensor) -> Tensor:  # [B, T] -> [B, T, V]
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]  # [B, T, D]
        x = dropout(x, self.recipe.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.token.weight)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout that costs nothing, random numbers included, where it is off."""
    return F.dropout(x, p) if training and p > 0 else x


def seed_everything(seed: int, step: int) -> None:
    """Make what follows a function of (seed, step); hashed, so that neighbours have nothing in common."""
    torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:4], "big"))


def slices(text: Tensor, context: int, count: int) -> Tensor:
    """The middles [N, T+1] of `count` equal parts of the text; of fewer where it is short, so that none overlap.

    Not from its very ends: training on random windows sees those less often.
    """
    count = max(1, min(count, len(text) // (context + 1)))
    starts = [(2 * i + 1) * len(text) // (2 * count) - (context + 1) // 2 for i in range(count)]
    return torch.stack([text[s : s + context + 1] for s in (max(0, start) for start in starts)])


class Trainer:
    """The state of a run (model, optimizer, average of weights, recipe) and what is done with it."""

    def __init__(self, args: argparse.Namespace, shape: Shape, text: Tensor) -> None:
        self.seed, self.batch, self.shape, self.text = args.seed, args.batch, shape, text
        self.recipe = Recipe(args.dropout, args.label_smoothing, args.token_mask, 0.0, args.grad_clip)
        seed_everything(args.seed, 0)
        self.model = GPT(shape, self.recipe).to(text.device)
        self.names, self.params = zip(*self.model.named_parameters(), strict=True)
        matrices = {"params": [p for p in self.params if p.dim() >= 2], "weight_decay": args.weight_decay}
        vectors = {"params": [p for p in self.params if p.dim() < 2], "weight_decay": 0.0}
        self.optimizer = torch.optim.AdamW(
            [matrices, vectors],
            lr=args.lr,
            betas=(args.beta1, args.beta2),
            fused=True,  # on a CPU a third of the default's time
        )
        self.average: list[Tensor] | None = None  # of the weights, exponential; None while recipe.ema is 0
        self.set_ema(args.ema)
        # What a checkpoint must have in common with the run that loads it.
        digest = hashlib.sha256(text.cpu().numpy().tobytes()).hexdigest()[:16]
        self.identity = {**asdict(shape), "batch": args.batch, "seed": args.seed, "training text": digest}

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step on a random batch; its losses and gradient, all from before the update."""
        context, recipe, device = self.shape.context, self.recipe, self.text.device
        seed_everything(self.seed, step)
        starts = torch.randint(len(self.text) - context, (self.batch, 1)).to(device)
        batch = self.text[starts + torch.arange(context + 1, device=device)]  # [B, T+1]
        x, y = batch[:, :-1], batch[:, 1:]  # [B, T] each
        if recipe.token_mask > 0:
            noise = torch.randint_like(x, self.shape.vocab)
            x = torch.where(torch.rand(x.shape, device=device) < recipe.token_mask, noise, x)

        self.model.train()
        logits = self.model(x).flatten(0, 1)  # [B*T, V]
        with torch.no_grad():  # by hand: the gradient is softmax minus target, at a quarter of autograd's time
            y, smoothing = y.reshape(-1, 1), recipe.label_smoothing  # https://arxiv.org/abs/1512.00567, section 7
            logp = F.log_softmax(logits, dim=-1)
            clean = -logp.gather(1, y).mean()
            loss = (1 - smoothing) * clean - smoothing * logp.mean()
            gradient = logp.exp_().sub_(smoothing / logits.shape[1])
            gradient.scatter_add_(1, y, torch.full_like(y, smoothing - 1, dtype=gradient.dtype)).div_(len(y))
        self.optimizer.zero_grad()
        logits.backward(gradient)
        norm = nn.utils.clip_grad_norm_(self.params, recipe.grad_clip)
        self.optimizer.step()
        if self.average is not None:
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.params, 1 - recipe.ema)
        values = torch.stack((loss, clean, norm)).tolist()  # the one wait for the device
        return dict(zip(("loss", "clean_loss", "grad_norm"), values, strict=True))

    @torch.no_grad()
    def evaluate(self, sequences: Tensor, *, raw: bool = False) -> float:
        """Mean cross-entropy in nats per token of [N, T+1]: the average's if there is one, unless the raw weights' is
        wanted; nothing random."""
        self.model.eval()
        weights = dict(zip(self.names, (not raw and self.average) or self.params, strict=True))
        total = torch.zeros((), dtype=torch.float64, device=sequences.device)
        for chunk in torch.split(sequences, 4):  # larger batches fall out of the cache
            logits = torch.func.functional_call(self.model, weights, (chunk[:, :-1],))  # [4, T, V]
            total += F.cross_entropy(logits.flatten(0, 1), chunk[:, 1:].flatten(), reduction="sum")
        return float(total) / sequences[:, 1:].numel()

    def set_ema(self, decay: float) -> None:
        """Switch the average on (it starts from the weights of now), off (0), or to another decay."""
        self.recipe.ema = decay
        if decay == 0:
            self.average = None
        elif self.average is None:
            self.average = [p.detach().clone() for p in self.params]

    def save(self, path: Path, step: int) -> None:
        """Write all that a resume needs."""
        state = {
            "identity": self.identity,
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "recipe": asdict(self.recipe),
        }
        torch.save(state, path)

    def load(self, path: Path, *, recipe: bool) -> int:
        """Put weights, optimizer state and average back; returns the step they are of. ValueError if unfit.

        With `recipe` (a resume) the run goes on as it would have gone on then. Without (a rollback) the values
        in force now stay, and so does the best so far. Either way an evaluation gives what it gave at that step:
        where only the file has an average, it becomes the weights; where only we have one, it starts anew.
        """
        try:
            saved: dict[str, Any] = torch.load(path, map_location=self.text.device, weights_only=True)
            identity = saved["identity"]
        except Exception as error:  # a missing, torn or foreign file fails in many ways
            raise ValueError(f"{path} is not a checkpoint of this workload: {error}") from error
        for name, value in self.identity.items():
            if identity.get(name) != value:
                raise ValueError(f"{path}: its {name} is {identity.get(name)}, that of this run is {value}")
        self.model.load_state_dict(saved["model"])
        if recipe:
            vars(self.recipe).update(saved["recipe"])
        else:  # the groups hold lr, betas and decay: those of now
            saved["optimizer"]["param_groups"] = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average = saved["average"]
        if self.average is not None and self.recipe.ema == 0:
            with torch.no_grad():
                torch._foreach_copy_(self.params, self.average)
        self.set_ema(self.recipe.ema)
        return int(saved["step"])


METRICS = {
    "loss": "cross-entropy trained on, with the smoothing, masking and dropout in force; nats per token",
    "clean_loss": "cross-entropy of the same forward pass against the true tokens alone; nats per token",
    "grad_norm": "global L2 norm of the gradient, before clipping",
    "val_loss": "cross-entropy on fixed slices of the first half of the validation text; nats per token",
    "train_loss": "the same on fixed slices of the training text, nothing random; nats per token",
    "raw_val_loss": "val_loss of the raw weights, as long as their average is what is evaluated; nats per token",
    "epochs": "training tokens drawn so far, in lengths of the training text",
    "best_val_loss": "lowest val_loss of the run; nats per token",
    "best_step": "the step that had it",
    "test_loss_last": "cross-entropy of the final weights on the other half, unseen till then; nats per token",
    "test_loss_best": "the same of the weights with the lowest val_loss",
}


def declare(w: Workload, trainer: Trainer) -> None:
    """What may be changed while the run lasts, how far, and how far at once."""
    recipe, optimizer = trainer.recipe, trainer.optimizer

    def live(name: str, low: float, high: float, description: str, **more: Any) -> None:
        more.setdefault("set", lambda value: setattr(recipe, name, value))
        more.setdefault("group", "regularization")
        w.float(name, get=lambda: getattr(recipe, name), low=low, high=high, description=description, **more)

    def beta(name: str, index: int, low: float, high: float, description: str) -> None:
        def put(value: float) -> None:
            for group in optimizer.param_groups:  # looked up each time: a rollback replaces the list
                group["betas"] = tuple(value if i == index else b for i, b in enumerate(group["betas"]))

        def get() -> float:
            return float(optimizer.param_groups[0]["betas"][index])

        w.float(name, get=get, set=put, low=low, high=high, group="optimizer", description=description)

    w.optimizer(
        "lr", optimizer, key="lr", low=1e-5, high=5e-3, scale="log", max_ratio=2.0, min_ratio=0.1,
        group="optimizer", description="AdamW's learning rate, constant between changes",
    )  # fmt: skip
    w.optimizer(
        "weight_decay", optimizer, key="weight_decay", low=0.0, high=3.0, scale="linear", groups=[0],
        group="regularization", description="decoupled decay of matrices and embeddings; lr times this is lost a step",
    )  # fmt: skip
    live("dropout", 0.0, 0.5, "share of features zeroed on embeddings and residuals", max_delta=0.2)
    live("label_smoothing", 0.0, 0.1, "share of the target spread over all tokens")
    live("token_mask", 0.0, 0.3, "share of input tokens replaced by random ones, in training only")
    live(
        "ema",
        0.9,
        0.999,
        "decay of the evaluated average of weights; starts from those of then, another value goes on; 0: off",
        off=0.0,
        set=trainer.set_ema,
        group="averaging",
    )
    live("grad_clip", 0.1, 5.0, "largest global norm of the gradient", group="optimizer")
    beta("beta1", 0, 0.5, 0.99, "Adam's decay of the mean gradient")
    beta("beta2", 1, 0.9, 0.999, "Adam's decay of the mean squared gradient")


def main() -> None:
    args = arguments()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for reproducible products on CUDA
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(found if args.device == "auto" else args.device)

    corpus = load(args.data, train_chars=args.train_chars, seed=args.seed)
    tokens = tokenize(corpus, args.tokens, args.vocab)
    parts = (tokens.train, tokens.valid, tokens.test)
    if min(map(len, parts)) < args.context + 2:
        raise SystemExit(f"{[*map(len, parts)]} tokens in the parts of the data: too few for --context {args.context}")
    train, valid, test = (torch.from_numpy(part).to(device) for part in parts)  # int64
    train_part = slices(train, args.context, max(1, args.eval_slices // 3))  # [N, T+1]
    valid_part = slices(valid, args.context, args.eval_slices)
    test_part = slices(test, args.context, args.test_slices)

    shape = Shape(tokens.vocab, args.context, args.layers, args.width, args.heads)
    trainer = Trainer(args, shape, train)
    try:
        step = trainer.load(Path(args.resume), recipe=True) if args.resume else 0  # steps done
    except ValueError as error:
        raise SystemExit(f"cannot resume: {error}") from error
    info = {
        "data": corpus.source,
        "genuine": corpus.genuine,
        "profile": args.profile,
        "train_tokens": len(train),
        "vocabulary": tokens.vocab,
        "parameters": sum(p.numel() for p in trainer.params),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    facts = {
        "train_tokens": len(train),
        "tokens_per_step": args.batch * args.context,
        "passes_over_them_planned": round(args.steps * args.batch * args.context / len(train), 1),
        "vocabulary": tokens.vocab,
        "parameters": info["parameters"],
        "validation_tokens": len(valid_part) * args.context,
        "scored_at_the_end": "test_loss of the final weights (of their average if ema is on)",
    }
    w = Workload(
        "tinystories", objective="val_loss", mode="min", counterpart="train_loss", total_steps=args.steps,
        seed=args.seed, metrics=METRICS, info=info, facts=facts, directory=args.out, resumed_from=args.resume,
        resumed_step=step,
    )  # fmt: skip
    declare(w, trainer)

    def rollback(path: Path) -> None:
        origin = trainer.load(path, recipe=False)
        print(f"step {step:5d}  weights, optimizer and average are again those of step {origin}", flush=True)

    keep = Checkpoints(w, lambda path: trainer.save(path, step), rollback, every=args.save_every)

    def assess() -> dict[str, float]:
        epochs = step * args.batch * args.context / len(train)
        found = {"val_loss": trainer.evaluate(valid_part), "train_loss": trainer.evaluate(train_part), "epochs": epochs}
        if trainer.average is not None:  # which hides for as long as it reaches back what a change has done
            found["raw_val_loss"] = trainer.evaluate(valid_part, raw=True)
        return found

    print("tinystories: " + ", ".join(f"{name} {value}" for name, value in info.items()), flush=True)
    begun, first = time.perf_counter(), step
    with w:
        if not corpus.genuine:
            print(f"WARNING: the data is not TinyStories: {corpus.source}", flush=True)
            w.log("warning", f"the data is not TinyStories: {corpus.source}")
        if not args.resume:
            keep.begin()
            keep.eval(0, assess())
        for step in w.steps(first + 1):
            row = trainer.step(step)
            w.step(step, row)  # here, and in eval and checkpoint, changes that wait are put into effect
            if step % args.eval_every == 0 or step == args.steps:
                metrics = assess()
                loss, better = metrics["val_loss"], keep.better(metrics["val_loss"])
                pace = (time.perf_counter() - begun) / (step - first) * 1e3
                print(
                    f"step {step:5d}/{args.steps}  val {loss:.4f}{'*' if better else ' '} "
                    f"best {loss if better else keep.best_value:.4f}  train {metrics['train_loss']:.4f}  "
                    f"loss {row['loss']:.4f}  grad {row['grad_norm']:.2f}  {pace:.0f} ms/step",
                    flush=True,
                )
                keep.eval(step, metrics)
            keep.report(step)

        # The end, and the only look at the test half.
        if args.restore_best and keep.best.exists():
            keep.rollback("best")
        metrics = assess()
        keep.end(step)
        test_last = trainer.evaluate(test_part)
        trainer.load(keep.best if keep.best.exists() else keep.last, recipe=False)
        final = {
            "val_loss": metrics["val_loss"],
            "best_val_loss": keep.best_value,
            "best_step": keep.best_step,
            "test_loss_last": test_last,
            "test_loss_best": trainer.evaluate(test_part),
        }
        w.end(step, final)
    print(f"tinystories: {step} steps, {time.perf_counter() - begun:.1f} s, checkpoints in {w.checkpoints}")
    print(f"  validation loss {final['val_loss']:.4f}, at best {final['best_val_loss']:.4f} (step {keep.best_step})")
    print(f"  test loss {test_last:.4f}, that of the best weights {final['test_loss_best']:.4f}", flush=True)


if __name__ == "__main__":
    main()
