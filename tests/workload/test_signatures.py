"""The signatures of what a training script calls, as type checkers and `typing.get_type_hints` read them."""

from __future__ import annotations

import builtins
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, SupportsFloat, get_args, get_type_hints

import pytest

from trainmgr import workload
from trainmgr.integrations.torch import TorchCheckpoints
from trainmgr.workload import Checkpoints, Metric, Workload
from trainmgr.workload.records import ROLES


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function, method and property that a script may call, by its name."""
    for name in workload.__all__:
        found = getattr(workload, name)
        if inspect.isfunction(found):
            yield name, found
        elif inspect.isclass(found):
            for attribute, member in inspect.getmembers(found):
                function = member.fget if isinstance(member, property) else member
                own = str(getattr(function, "__module__", "")).startswith("trainmgr.")
                if inspect.isroutine(function) and own and (attribute == "__init__" or attribute[0] != "_"):
                    yield f"{name}.{attribute}", function


PUBLIC = dict(public())
LATE = {"TorchCheckpoints": TorchCheckpoints}  # of adapters, which are imported by who calls them
FREE = {"Workload.__init__": {"broadcast"}}  # of any type: an object goes in, and rank 0's comes out


def test_what_is_public_is_found() -> None:
    names = {"default_seed", "resume_path", "Workload.float", "Workload.optimizer", "Workload.step", "Checkpoints.eval"}
    assert names < set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_parameter_has_a_type_that_can_be_resolved(name: str) -> None:
    hints = get_type_hints(PUBLIC[name], localns=LATE)
    parameters = set(inspect.signature(PUBLIC[name]).parameters) - {"self", "cls"}
    assert parameters <= set(hints)
    loose = {name for name in parameters if hints[name] is Any or Any in get_args(hints[name])}
    assert loose <= FREE.get(name, set())


def test_numbers_switches_and_words_are_what_they_are_called() -> None:
    """Although the class has methods of these names."""
    hints = get_type_hints(Workload.float)
    assert (hints["low"], hints["max_ratio"], hints["scheduled"]) == (builtins.float, builtins.float | None, bool)
    assert hints["get"] == Callable[[], builtins.float]
    assert hints["boundary"] == Literal["step", "eval", "checkpoint"]
    assert hints["scale"] == Literal["linear", "log"]
    assert get_type_hints(Workload.int)["max_delta"] == builtins.int | None
    assert get_type_hints(Workload.bool)["set"] == Callable[[builtins.bool], object]
    assert get_type_hints(Workload.step)["step"] is builtins.int
    assert get_type_hints(Workload.step)["metrics"] == Mapping[str, SupportsFloat]
    assert get_type_hints(Workload.__init__)["mode"] == Literal["min", "max"]
    assert get_type_hints(Checkpoints.__init__)["save"] == Callable[[Path], object]
    assert set(get_args(get_args(get_type_hints(Metric)["role"])[0])) == set(ROLES)


RIGHT = """
from pathlib import Path

from trainmgr.workload import Checkpoints, Metric, Workload, default_seed, resume_path

state = {"lr": 0.1, "depth": 2.0}
names: list[str] = ["a"]


class Adam:
    param_groups: list[dict[str, float]] = [{"lr": 0.1}]


class Tensor:
    def __float__(self) -> float:
        return 1.0


def load(path: Path) -> int:
    return len(path.read_text())


path = resume_path()
with Workload("mine", objective="loss", mode="max", total_steps=9, seed=default_seed(), resumed_from=path,
              metrics={"loss": Metric("nats", role="success"), "other": "nats"}, info={"threads": 1}) as w:
    w.float("lr", get=lambda: state["lr"], set=lambda value: state.update(lr=value), low=1e-4, high=1, scale="log")
    w.int("depth", get=lambda: int(state["depth"]), set=lambda value: state.update(depth=value), low=1, high=4)
    w.bool("on", get=lambda: True, set=print, boundary="eval")
    w.choice("name", get=lambda: names[0], set=lambda value: names.insert(0, value), choices=["a", "b"])
    w.optimizer("rate", Adam(), key="lr", low=1e-4, high=1.0)
    w.command("stop", print)
    keep = Checkpoints(w, lambda path: path.write_text("x"), load, every=2)
    keep.begin()
    for step in w.steps():
        w.step(step, {"loss": 1.0, "count": 3, "tensor": Tensor()})
        keep.eval(step, {"loss": Tensor()}, split={"easy": {"loss": 0.5}})
        keep.report(step)
        w.log("info", f"{w.stopping} {w.checkpoints / 'a'} {keep.best_value:.2f}")
    keep.end(step)
    w.end(step, status="stopped")
with w, w.torch(Adam(), object(), scheduler=object(), clip=1, weights={"kl": 0.1}, bounds={"lr": None}) as kept:
    kept.step(1, {"norm": kept.clip, "weight": kept.weights["kl"]})
    kept.load(Path("last.pt"))
"""
WRONG = {  # a call: what a type checker must have against it
    "Workload('mine', objective='loss', mode='maximum')": '"mode" to "Workload"',
    "Workload('mine', objective='loss', total_steps='9')": '"total_steps" to "Workload"',
    "w.float('lr', get=lambda: 0.1, set=print, low='0', high=1.0)": '"low" to "float"',
    "w.float('lr', get=lambda: '0.1', set=print, low=0.0, high=1.0)": '"get" to "float"',
    "w.float('lr', get=lambda: 0.1, set=print, low=0.0, high=1.0, scale='cubic')": '"scale" to "float"',
    "w.int('n', get=lambda: 1, set=print, low=0.5, high=2)": '"low" to "int"',
    "w.bool('on', get=lambda: 'yes', set=print)": '"get" to "bool"',
    "w.choice('name', get=lambda: 'a', set=print, choices=['a'], boundary='epoch')": '"boundary" to "choice"',
    "w.optimizer('lr', 'adam', key='lr', low=1e-4, high=1.0)": 'Argument 2 to "optimizer"',
    "w.torch('adam', print)": 'Argument 1 to "torch"',
    "w.torch(Adam(), print, bounds={'lr': 0.1})": "Dict entry 0 has incompatible type",
    "w.torch(Adam(), print, scaler=1.0)": '"scaler" to "torch"',
    "w.torch(Adam(), print).clip.upper()": '"float" has no attribute "upper"',
    "w.command('pause', print)": 'Argument 1 to "command"',
    "w.step('1', {'loss': 1.0})": 'Argument 1 to "step"',
    "w.step(1, {'loss': '1.0'})": "Dict entry 0 has incompatible type",
    "w.eval(1, {'loss': None})": "Dict entry 0 has incompatible type",
    "w.log('debug', 'a message')": 'Argument 1 to "log"',
    "w.end(1, status='done')": '"status" to "end"',
    "Metric('nats', role='loss')": '"role" to "Metric"',
    "Checkpoints(w, print, print, every='2')": '"every" to "Checkpoints"',
}


def test_a_type_checker_passes_a_correct_script_and_finds_what_is_wrong(tmp_path: Path) -> None:
    head = (
        "from trainmgr.workload import Checkpoints, Metric, Workload\n"
        "class Adam: param_groups: list[dict[str, float]] = []\n"
        "w = Workload('mine', objective='loss')\n"
    )
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")  # it takes long
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(head + "\n".join(WRONG) + "\n")
    root = Path(workload.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=mypy.ini", f"--cache-dir={tmp_path / 'cache'}",
         "right.py", "wrong.py"],
        cwd=tmp_path, env={"MYPYPATH": str(root), "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found: dict[str, str] = {}  # the first error of each line
    for place, error in (line.split(": error: ") for line in done.stdout.splitlines() if ": error: " in line):
        found.setdefault(place, error)
    assert set(found) == {f"wrong.py:{i + 4}" for i in range(len(WRONG))}
    assert [error for error, said in zip(found.values(), WRONG.values(), strict=True) if said not in error] == []


def test_the_package_says_that_it_has_types() -> None:
    """Else a type checker reads none of them where it is installed."""
    root = Path(workload.__file__).parents[2]
    assert (root / "trainmgr" / "py.typed").exists()
    with (root / "pyproject.toml").open("rb") as file:
        assert "py.typed" in tomllib.load(file)["tool"]["setuptools"]["package-data"]["trainmgr"]
