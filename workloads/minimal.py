"""The whole protocol in fifty lines and without torch: a line fitted by stochastic gradient descent.

python workloads/minimal.py
trainmgr run workloads/minimal.py
"""

import json
import random
import time
from pathlib import Path

from trainmgr.workload import Checkpoints, Workload, default_seed, resume_path

SEED, STEPS, EVERY = default_seed(1), 1000, 25
weights = [0.0, 0.0]
recipe = {"lr": 0.4}  # too fast on purpose: there is something to manage


def sample(rng: random.Random) -> tuple[float, float]:
    x = rng.uniform(-1.5, 1.5)
    return x, 3.0 * x - 1.0 + rng.gauss(0.0, 0.3)


def save(path: Path) -> None:
    path.write_text(json.dumps([step, weights]))


def load(path: Path) -> int:
    done, weights[:] = json.loads(path.read_text())
    return int(done)


saved = resume_path()  # the last checkpoint, after a crash
step = load(Path(saved)) if saved else 0
valid = [sample(random.Random(i)) for i in range(200)]
with Workload("minimal", objective="val_loss", mode="min", total_steps=STEPS, seed=SEED,
              resumed_from=saved, resumed_step=step,
              metrics={"loss": "squared error of one sample", "val_loss": "mean squared error"},
              facts={"data": "a new sample at every step", "samples_per_step": 1, "parameters": 2}) as w:  # fmt: skip
    w.float("lr", get=lambda: recipe["lr"], set=lambda value: recipe.update(lr=value), low=1e-4, high=1.0,
            scale="log", max_ratio=2.0, min_ratio=0.1, group="optimizer", description="step size")  # fmt: skip
    keep = Checkpoints(w, save, load, suffix=".json")
    keep.begin()
    for step in w.steps():
        x, y = sample(random.Random(f"{SEED} {step}"))  # randomness is a function of seed and step
        error = weights[0] * x + weights[1] - y
        weights[:] = [weights[0] - recipe["lr"] * error * x, weights[1] - recipe["lr"] * error]
        time.sleep(0.002)  # stands for the work of a real step
        w.step(step, {"loss": error**2})
        if step % EVERY == 0:
            keep.eval(step, {"val_loss": sum((weights[0] * x + weights[1] - y) ** 2 for x, y in valid) / len(valid)})
        keep.report(step)
    keep.end(step)
