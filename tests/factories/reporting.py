"""A training script in miniature, the control file that it reads, and what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainmgr.contract import protocol
from trainmgr.log.telemetry import Feed
from trainmgr.state.run_state import RunState
from trainmgr.workload import Workload

pytestmark = pytest.mark.usefixtures("alone")


class Script:
    """A training script in miniature: three parameters at three boundaries, and every command."""

    def __init__(self, **more: Any) -> None:
        self.recipe: dict[str, Any] = {"lr": 0.1, "depth": 3, "mix": 0.5, "flip": False, "kind": "a"}
        self.done: list[str] = []
        self.set_calls: list[tuple[str, Any]] = []
        self.w = Workload("test", objective="loss", total_steps=100, **more)
        declare = {"float": {"low": 0.01, "high": 1.0}, "int": {"low": 1, "high": 9}}
        self.w.float("lr", get=self.get("lr"), set=self.put("lr"), scale="log", max_ratio=2.0, **declare["float"])
        self.w.int("depth", get=self.get("depth"), set=self.put("depth"), boundary="checkpoint", **declare["int"])
        self.w.float("mix", get=self.get("mix"), set=self.put("mix"), low=0.2, high=1.0, off=0.0, boundary="eval")
        self.w.bool("flip", get=self.get("flip"), set=self.put("flip"))
        self.w.choice("kind", get=self.get("kind"), set=self.put("kind"), choices=["a", "b"])
        self.w.command("rollback", self.rollback)
        self.w.command("checkpoint", lambda to: self.done.append(f"checkpoint {to} lr {self.recipe['lr']}"))
        self.w.command("stop", lambda to: self.done.append(f"stop {to}"))

    def get(self, name: str) -> Callable[[], Any]:
        return lambda: self.recipe[name]

    def put(self, name: str) -> Callable[[Any], None]:
        def put(value: Any) -> None:
            self.set_calls.append((name, value))
            self.recipe[name] = value

        return put

    def rollback(self, to: str) -> None:
        self.done.append(f"rollback {to}")
        self.recipe["lr"] = 0.1  # as restoring an optimizer does

    def __enter__(self) -> Script:
        self.w.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.w.flush()


def control(run: Path, revision: int, params: dict[str, Any] | None = None, **more: Any) -> None:
    """Put a control file in place as the supervisor does: in one step."""
    content = {"v": 1, "run": run.name, "revision": revision, "issued": {"t": 0.0, "step": 0}, "params": params or {},
               "based_on_step": 0, "decision": f"d{revision}", **more}  # fmt: skip
    put(run, json.dumps(content))


def put(run: Path, text: str) -> None:
    new = run / "control.new"
    new.write_text(text)
    new.replace(run / "control.json")


def command(name: str, to: str | None = None) -> dict[str, Any]:
    return {"id": "c1", "name": name, "to": to}


def records(run: Path, event: str = "") -> list[dict[str, Any]]:
    lines = (run / "telemetry.jsonl").read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") for line in lines)
    found = [json.loads(line) for line in lines]
    return [record for record in found if not event or record["event"] == event]


def folded(run: Path) -> RunState:
    """Read by the other side: every line is a record of the protocol."""
    state = RunState()
    for item in Feed(run / "telemetry.jsonl").records():
        assert not isinstance(item, protocol.Unreadable), item
        state.fold(item)
    assert state.gaps == 0
    return state
