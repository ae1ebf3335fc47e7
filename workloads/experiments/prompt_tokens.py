"""How long a prompt is after 10, 1,000 and 100,000 evaluations: as long as the policy allows, however long the run.

    python workloads/experiments/prompt_tokens.py

A made-up run with the parameters and metrics of the TinyStories workload, evaluated every 25 steps, changed every 7
evaluations. "estimated" is what trainmgr counts and keeps to; "o200k_base" is what OpenAI's models count, where the
package tiktoken is installed and has its table.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tinystories import METRICS, declare

from trainmgr.base.wire import to_json
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Llm, Policy
from trainmgr.contract.proposal import Expectation
from trainmgr.contract.run_file import EDITION, Manifest
from trainmgr.deciding import snapshot
from trainmgr.managers import prompt
from trainmgr.state.ledger import Decision, Ledger
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation
from trainmgr.workload import Workload

MARKS, EVERY = (10, 1_000, 100_000), 25
LIMIT = Llm().prompt_tokens


def beginning() -> protocol.Start:
    """The start record that the TinyStories workload writes, without its tensors."""
    recipe = SimpleNamespace(dropout=0.0, label_smoothing=0.0, token_mask=0.0, ema=0.0, grad_clip=1.0)
    groups = [{"lr": 3e-3, "weight_decay": decay, "betas": (0.9, 0.95)} for decay in (0.1, 0.0)]
    trainer: Any = SimpleNamespace(recipe=recipe, optimizer=SimpleNamespace(param_groups=groups), set_ema=None)
    with tempfile.TemporaryDirectory() as folder:
        w = Workload("tinystories", objective="val_loss", counterpart="train_loss", total_steps=EVERY * MARKS[-1],
                     seed=1, metrics=METRICS, directory=folder)  # fmt: skip
        declare(w, trainer)
        for name in ("rollback", "checkpoint", "stop"):
            w.command(name, lambda _: None)
        w.checkpoint(0, "checkpoints/best.pt", best=True)
        w.end(0)
        record = protocol.parse_telemetry((Path(folder) / "telemetry.jsonl").read_bytes().splitlines()[0])
    assert isinstance(record, protocol.Start)
    return record


def grow(state: RunState, ledger: Ledger, at: int) -> None:
    """One more evaluation, with what happens around it."""
    step, noise = at * EVERY, math.sin(at * 12.9898) / 50
    common: dict[str, Any] = {"v": 1, "seq": state.next_seq, "t": step / 8.0, "step": step}
    row = {"loss": 4.4 + noise, "clean_loss": 3.9 + noise, "grad_norm": 1.2 + noise}
    state.fold(protocol.Step(**common, event="step", metrics=row))
    row = {"val_loss": 4.5 + noise + at / 1e6, "train_loss": 3.7 - noise, "epochs": step * 2048 / 102_400}
    state.fold(protocol.Eval(**common, event="eval", metrics=row))
    if at % 7 == 0:
        revision = at // 7
        changes: Any = {"lr": (3e-3, 9e-4), "weight_decay": (0.0, 1.2), "dropout": (0.0, 0.2), "ema": (0.0, 0.95)}
        state.fold(protocol.Applied(**common, event="applied", revision=revision, boundary="step", changes=changes,
                                    command=protocol.Command(id=f"d{at}", name="rollback", to="best")))  # fmt: skip
        expected = Expectation(metric="val_loss", direction="down", by_step=step + 100)
        ledger.revisions[revision] = f"d{at}"
        done = events.Acknowledged(decision=f"d{at}", revision=revision, telemetry_offset=0, result="applied",
                                   step=step, boundary="step", changes=changes, reason="")  # fmt: skip
        seen = events.Outcome(decision=f"d{at}", revision=revision, telemetry_offset=0, step=step, before=4.5,
                              after=[(step + 5 * EVERY, 4.4)], closed="measured")  # fmt: skip
        ledger.changes = ledger.changes.applied(done, "manager").measured(seen)
        ledger.decisions[f"d{at}"] = Decision(f"d{at}", "overfitting", expected, "val_loss rises, train_loss falls")
        ledger.rejections = ["lr = 0.02 is outside [1e-05, 0.005]", "dropout rests: its last change is still measured"]
    if at == 5:
        text = "the data is not TinyStories: built-in stories"
        state.fold(protocol.Log(v=1, seq=state.next_seq, t=0.0, event="log", level="warning", message=text))


def counter() -> tuple[Callable[[str], int] | None, str]:
    """OpenAI's own count, or why it cannot be had."""
    try:
        import tiktoken  # type: ignore[import-not-found,unused-ignore]

        encoding = tiktoken.get_encoding("o200k_base")
    except ImportError:
        return None, "tiktoken is not installed"
    except Exception as error:  # its table comes from the network
        return None, f"tiktoken has no table here ({type(error).__name__})"
    return lambda text: len(encoding.encode(text)), ""


def main() -> None:
    count, why = counter()
    state, done = RunState(), 0
    manifest = Manifest.model_construct(manager="rules", policy=Policy(), edition=EDITION)
    ledger = Ledger(started=events.RunStarted.model_construct(manifest=manifest))
    state.fold(beginning())
    state.fold(protocol.Checkpoint(v=1, seq=1, t=0.0, event="checkpoint", step=0, path="best.pt", best=True))
    columns = ("evaluations", "snapshot bytes", "estimated", "of these system", "o200k_base", "parameters")
    print("  ".join(columns))
    for mark in MARKS:
        for at in range(done + 1, mark + 1):
            grow(state, ledger, at)
        done = mark
        view = snapshot.take(Situation(state, ledger), "evaluation")
        made = prompt.render(view, LIMIT)
        counted = f"{count(made.system + made.user):,}" if count else "-"
        row = (f"{mark:,}", f"{len(to_json(view)):,}", f"{made.tokens:,}", f"{prompt.estimate(made.system):,}", counted,
               f"{len(made.parameters)} of {len(view.recipe)}")  # fmt: skip
        print("  ".join(cell.rjust(len(column)) for cell, column in zip(row, columns, strict=True)))
        assert made.tokens <= LIMIT
    print(f"The limit is {LIMIT:,} estimated tokens" + (f"; o200k_base: {why}" if why else ""))


if __name__ == "__main__":
    main()
