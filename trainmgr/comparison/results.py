"""What a comparison measured: results.json, complete enough to print every table again without training."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import FailFast, Field, ValidationError

from trainmgr.base.errors import UserError
from trainmgr.base.files import read_regular
from trainmgr.base.foreign import in_json
from trainmgr.base.wire import Number, Whole, Wire, plain
from trainmgr.comparison.experiment import Variant
from trainmgr.contract.protocol import Mode, explain

LARGEST = 8 << 20  # bytes of results.json: thousands of runs

T = TypeVar("T")
Many = Annotated[list[T], FailFast()]
"""Read up to what is wrong first: a word on each of a million items would take all memory."""


class Run(Wire):
    """One manager with one seed."""

    manager: str
    """As the experiment calls it."""
    asked: str | None = None
    """The manager's own name, with the model that an endpoint chose for it; a model's file without its folder."""
    policy_digest: str | None = None
    """Digest of what this manager could read of the policy, defaults of then included."""
    seed: Whole
    run: str | None
    """Its id; null where it could not be started."""
    status: str
    failure: str | None = None
    """Why it does not count; null where it does."""
    revision: str | None = None
    """The script's git revision, with "+" where the tree was dirty; null outside a repository."""
    seconds: float = 0.0
    """From its start to its end, by the clock on the wall."""
    steps: Whole = 0
    changes: Whole = 0
    """That were applied."""
    reversals: Whole | None = None
    """How often probation took changes back; null, and so below, where the version of then did not tell."""
    demoted: bool | None = None
    """Whether the manager lost its right to change anything."""
    on_best: bool | None = None
    """Whether it ended on its best checkpoint instead of its last weights."""
    calls: Whole = 0
    """Of a language model, retries among them."""
    tokens: Whole = 0
    """Read and written."""
    money: float | None = 0.0
    """In the unit of the policy's prices; null where the price of a call was not known."""
    metrics: dict[str, Number] = {}
    """At the end."""
    curve: Many[tuple[Whole, Number]] = []
    """(step, objective) of the evaluations, thinned."""
    course: Annotated[str | None, Field(exclude_if=operator.not_)] = None
    """Digest of the same, whole and exact; null without any, or, as below, where the version of then did not tell."""
    figures: Annotated[str | None, Field(exclude_if=operator.not_)] = None
    """Digest of every figure of the evaluations and of the steps before them."""


class Case(Wire):
    """One regime: all its runs, and what they are compared with."""

    name: str
    """Empty where the experiment has no cases."""
    arguments: Many[str]
    policy: str | None
    """The policy file, by the name that the experiment has for it."""
    settings: dict[str, Any] = {}
    """What it says that is not the default, without the endpoint."""
    managers: Many[str]
    """Or names of variants."""
    variants: Annotated[dict[str, Variant], Field(exclude_if=operator.not_)] = {}
    reference: str
    seeds: Many[Whole]
    objective: str | None
    """The metric that was managed for."""
    goal: Mode | None
    """Which way the objective is better."""
    held_out: Many[str]
    """Test metrics: known at the end only, so that no manager can have seen them."""
    runs: Many[Run]


class Results(Wire):
    """results.json."""

    format: Literal[1] = 1
    title: str
    script: str
    metrics: Many[str]
    """What the tables show; empty: everything."""
    goals: dict[str, Mode]
    disclosure: str
    versions: dict[str, Many[str]]
    """Of trainmgr, Python and packages: every one that a run was made with."""
    machines: Many[dict[str, str | int]]
    """Every machine that a run was made on."""
    revisions: dict[str, Whole]
    """The script's git revision to the number of runs that were made with it."""
    wall_seconds: float
    """During which at least one of the runs was going on."""
    cases: Many[Case]


def load(path: Path) -> Results:
    """Results that were written before.

    Raises UserError where the file is none.
    """
    try:
        return Results.model_validate_json(read_regular(path, LARGEST))
    except OSError as error:
        raise UserError(f"The results {path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        raise UserError(
            f"{path} does not hold the results of `trainmgr compare --out`: {explain(error, Results)}."
        ) from None


def against(results: Results, reference: str) -> Results:
    """The same with another manager that the others are compared with.

    Raises UserError where a case has no such manager.
    """
    cases = [case.model_copy(update={"reference": reference}) for case in results.cases]
    found = results.model_copy(update={"cases": cases})
    check(found)
    return found


def check(results: Results) -> None:
    """Raises UserError where a case, maybe one part of an experiment, is without the manager to compare with."""
    for case in results.cases:
        if case.reference not in case.managers:
            where = f"Case {case.name!r} of these results has" if case.name else "These results have"
            there = ", ".join(case.managers)
            raise UserError(f"{where} no manager {case.reference!r}; there are: {there}. Compare with one of them: "
                            "--reference NAME. Of parts of an experiment, name all files.")  # fmt: skip


def render(results: Results) -> str:
    """results.json: a line for each run, so that two versions of it can be compared line by line."""
    values = plain(results)
    cases = values.pop("cases")
    head = json.dumps(values, indent=1, ensure_ascii=False)[:-2]
    return in_json(head + ',\n "cases": [\n' + ",\n".join(_case(case) for case in cases) + "\n ]\n}\n")


def _case(case: dict[str, Any]) -> str:
    runs = case.pop("runs")
    head = json.dumps(case, ensure_ascii=False)[:-1]
    return f'  {head}, "runs": [\n' + ",\n".join(f"   {json.dumps(run, ensure_ascii=False)}" for run in runs) + "\n  ]}"


def metric_names(case: Case) -> Iterator[str]:
    """The metrics of a case in the order in which its runs report them, each once."""
    seen = set()
    for run in case.runs:
        for name in run.metrics:
            if name not in seen:
                seen.add(name)
                yield name


def of_objective(case: Case) -> tuple[str, ...]:
    """The names under which the objective stands among the metrics at the end: the last value, and the best."""
    return () if case.objective is None else (case.objective, f"best {case.objective}", f"best_{case.objective}")


def goal_of(results: Results, case: Case, metric: str) -> Mode | None:
    """Which way a metric is better: as the experiment says, else the objective's; None where nobody says."""
    return results.goals.get(metric) or (case.goal if metric in of_objective(case) else None)
