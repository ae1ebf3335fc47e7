"""The library in a process of its own: what it imports, its environment, several ranks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from factories.reporting import Script, control, folded, records

from trainmgr import workload
from trainmgr.workload import Workload, ranks

pytestmark = pytest.mark.usefixtures("alone")


# -- several ranks -----------------------------------------------------------------------------------------------------


RANKS = """
import json, os, sys
from pathlib import Path
import torch.distributed as dist
from trainmgr.workload import Workload

Workload.PERIOD = 0.0
rank, store = int(os.environ["RANK"]), sys.argv[1]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
run, recipe, seen = Path(os.environ["TRAINMGR_RUN_DIR"]), {"lr": 0.1}, []
w = Workload("ranks", objective="loss", total_steps=40, sync_every=4)
w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.0, high=1.0)
w.command("stop", lambda to: None)
for step in w.steps():
    if rank == 0 and step in (6, 17):
        entry = {"v": 1, "run": run.name, "revision": 1 if step == 6 else 2, "issued": {"t": 0.0, "step": 0},
                 "params": {"lr": 0.5}, "based_on_step": 0, "decision": "d",
                 "command": None if step == 6 else {"id": "c", "name": "stop", "to": None}}
        (run / "control.new").write_text(json.dumps(entry))
        (run / "control.new").replace(run / "control.json")
    w.step(step, {"loss": 1.0})
    if step % 10 == 0:
        w.eval(step, {"loss": 1.0})
    seen.append((step, recipe["lr"]))
w.end(seen[-1][0])
Path(sys.argv[2]).write_text(json.dumps(seen))
dist.destroy_process_group()
"""


def test_two_ranks_apply_the_same_change_at_the_same_step_and_one_writes(run: Path, tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    children = []
    for rank in range(2):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
                       "TRAINMGR_RUN_DIR": str(run), "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
        command = [sys.executable, str(script), str(tmp_path / "store"), str(tmp_path / f"seen{rank}")]
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    try:
        for child in children:
            _, err = child.communicate(timeout=120)
            assert child.returncode == 0, err.decode()
    finally:
        for child in children:
            child.kill()
            child.wait()
    seen = [json.loads((tmp_path / f"seen{rank}").read_text()) for rank in range(2)]
    assert seen[0] == seen[1]
    assert [lr for _, lr in seen[0]] == [0.1] * 7 + [0.5] * 13  # read at step 8, stopped at step 20 (sync or eval)
    assert [(r["revision"], r["step"]) for r in records(run, "applied")] == [(1, 8), (2, 20)]
    assert len(records(run, "start")) == 1
    folded(run)


def test_several_ranks_without_a_way_to_broadcast_refuse(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "torch_broadcast", lambda: None)
    with Script(sync_every=1) as script:
        control(run, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
        script.w.step(2, {"loss": 1.0})
    assert script.recipe["lr"] == 0.1
    assert [r["reason"] for r in records(run, "refused")] == ["several ranks, and no way to broadcast between them"]


# -- as a child --------------------------------------------------------------------------------------------------------


STANDARD = (  # what importing it may import; what these import in turn is theirs
    *("__future__", "atexit", "builtins", "collections.abc", "contextlib", "errno", "functools", "itertools", "json"),
    *("math", "operator", "os", "pathlib", "stat", "sys", "time", "types", "typing"),
)


def test_importing_it_imports_few_modules_all_of_them_standard() -> None:
    code = f"""
import sys, {", ".join(STANDARD)}
before = set(sys.modules)
import trainmgr.workload
print(*sorted(set(sys.modules) - before))
"""
    root = Path(workload.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    parts = (
        *("backlog", "checkpoints", "lines", "optimizers", "overrides", "parameters", "persistence", "ranks"),
        *("reconciler", "records", "surroundings", "values", "workload"),
    )
    assert done.stdout.split() == ["trainmgr", "trainmgr.workload", *(f"trainmgr.workload.{n}" for n in parts)]


def test_a_child_without_end_writes_what_it_had_gathered_at_exit(run: Path) -> None:
    code = """
from trainmgr.workload import Workload
w = Workload("child", objective="loss", total_steps=200)
for step in w.steps():
    w.step(step, {"loss": 1.0})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert [r["step"] for r in records(run, "step")] == list(range(1, 201))


def test_seed_and_resume_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (workload.default_seed(7), workload.resume_path()) == (7, None)
    for given in ("-3", " -3 "):
        monkeypatch.setenv("TRAINMGR_SEED", given)
        assert workload.default_seed(7) == -3
    monkeypatch.setenv("TRAINMGR_RESUME", __file__)
    assert workload.resume_path() == __file__


ENVIRONMENT = {  # name: (variables, what is printed, what is said)
    "no seed": ({"TRAINMGR_SEED": ""}, "7 None 0", None),
    "a seed of spaces": ({"TRAINMGR_SEED": " "}, "7 None 0", None),
    "a long seed": ({"TRAINMGR_SEED": str((1 << 64) - 1)}, f"{(1 << 64) - 1} None 0", None),
    "two signs": ({"TRAINMGR_SEED": "--5"}, "7 None 0", "TRAINMGR_SEED is '--5', no whole number from "),
    "a digit that is none": ({"TRAINMGR_SEED": "\u00b2"}, "7 None 0", "TRAINMGR_SEED is '\u00b2', no whole number"),
    "a seed too long": ({"TRAINMGR_SEED": str(1 << 64)}, "7 None 0", "TRAINMGR_SEED is '18446744073709551616', no "),
    "a seed far too long": ({"TRAINMGR_SEED": "9" * 9_999}, "7 None 0", f"TRAINMGR_SEED is '{'9' * 64}', no whole "),
    "a rank in words": ({"RANK": "first", "WORLD_SIZE": "1"}, "7 None 0", "RANK is 'first', no whole number from 0"),
    "a size in words": ({"RANK": "0", "WORLD_SIZE": "two"}, "7 None 0", "WORLD_SIZE is 'two', no whole number from 1"),
    "a rank of no group": ({"RANK": "-1", "WORLD_SIZE": ""}, "7 None 0", "RANK is '-1', no whole number from 0"),
    "a checkpoint that is gone": (
        {"TRAINMGR_RESUME": "/tmp/none/last.pt"}, "7 None 0",
        "TRAINMGR_RESUME names /tmp/none/last.pt, which is not there: training begins anew",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ENVIRONMENT)
def test_an_environment_that_is_not_as_it_should_be_is_said_and_stops_nothing(run: Path, what: str) -> None:
    code = """
from trainmgr import workload
print(workload.default_seed(7), workload.resume_path(), end=" ")
with workload.Workload("test", objective="loss", total_steps=9) as w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
    print(w.seed if w.seed < 9 else 0)
"""
    variables, printed, said = ENVIRONMENT[what]
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONUTF8": "1", **variables}, capture_output=True,
        text=True, timeout=60, check=True, encoding="utf-8",
    )  # fmt: skip
    assert done.stdout == f"{printed}\n"
    found = [r["message"] for r in records(run, "log")]
    assert [text[: len(said or "")] for text in found] == ([said] if said else [])
    assert done.stderr.splitlines() == found
    assert len(records(run, "step")) == 9
    folded(run)


@pytest.mark.parametrize(
    ("declaration", "problem"),
    [
        ({"name": "x" * 65}, "printable characters"),
        ({"name": "a\nb"}, "printable characters"),
        ({"max_ratio": 0.5}, "max_ratio = 0.5 must be 1 or more"),
        ({"min_ratio": 2.0}, "min_ratio = 2.0 must lie in"),
        ({"max_delta": 0.0}, "max_delta = 0.0 must be positive"),
        ({"off": 0.5}, "off = 0.5 must lie outside"),
        ({"low": 1.0, "high": 0.0}, "not finite and increasing"),
        ({"low": 0.0, "scale": "log"}, "a log scale needs low > 0"),
        ({"scale": "cubic"}, "scale is 'cubic'"),
        ({"boundary": "epoch"}, "boundary is 'epoch'"),
        ({"get": lambda: float("nan")}, "its value at the start is nan"),
    ],
)
def test_a_declaration_that_the_supervisor_would_not_read_is_refused_at_once(
    declaration: dict[str, object], problem: str
) -> None:
    w = Workload("w", objective="loss")
    good = {"name": "lr", "get": lambda: 0.1, "set": lambda _: None, "low": 0.01, "high": 1.0}
    with pytest.raises(ValueError, match=re.escape(problem)):
        w.float(**{**good, **declaration})  # type: ignore[arg-type]
