"""What ``Workload.step`` costs a training loop, as ratios against other ways in the same run.

    python workloads/experiments/reporting_cost.py

Medians over rounds of N steps with three metrics each. "floor" is one ``json.dumps``, one append and one ``stat`` a
step, the plain way; "list" is one list append, the least that any reporting can do.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from trainmgr.workload import RUN_DIR_VARIABLE, Workload

N, ROUNDS = 5_000, 15
METRICS = {"loss": 5.4321, "clean_loss": 5.4321, "grad_norm": 1.2345}


def floor(folder: Path) -> Callable[[int], None]:
    file = (folder / "floor.jsonl").open("ab", buffering=0)

    def report(step: int) -> None:
        file.write((json.dumps({"step": step, "metrics": METRICS}) + "\n").encode())
        with contextlib.suppress(FileNotFoundError):
            os.stat("control.json")  # noqa: PTH116  (what a plain loop would write)

    return report


def plain_list() -> Callable[[int], None]:
    rows: list[tuple[int, dict[str, float]]] = []
    return lambda step: rows.append((step, dict(METRICS)))


def library(folder: Path) -> Callable[[int], None]:
    os.environ[RUN_DIR_VARIABLE] = str(folder)
    workload = Workload("cost", objective="loss", total_steps=N)
    workload.start()
    return lambda step: workload.step(step, METRICS)


def unmanaged() -> Callable[[int], None]:
    os.environ.pop(RUN_DIR_VARIABLE, None)
    workload = Workload("cost", objective="loss", total_steps=N)
    return lambda step: workload.step(step, METRICS)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arms = {"list": plain_list(), "unmanaged": unmanaged(), "supervised": library(folder), "floor": floor(folder)}
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for _ in range(ROUNDS):
            for arm, report in arms.items():
                begin = time.perf_counter()
                for step in range(N):
                    report(step)
                times[arm].append((time.perf_counter() - begin) / N * 1e9)
        base = statistics.median(times["floor"])
        print(f"{'arm':<12}{'ns per step':>12}{'of floor':>10}")
        for arm, values in times.items():
            middle = statistics.median(values)
            print(f"{arm:<12}{middle:>12,.0f}{middle / base:>10.2f}")


if __name__ == "__main__":
    main()
