"""From the runs of a comparison, and from results of before, to what its tables are made of."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from trainmgr.base.errors import UserError
from trainmgr.base.files import sha256
from trainmgr.base.wire import plain
from trainmgr.comparison import measured, results
from trainmgr.comparison.experiment import Experiment, Plan, plans
from trainmgr.comparison.pooling import pool
from trainmgr.comparison.samples import BEGINNING
from trainmgr.comparison.trials import Cell, Outcome, sections
from trainmgr.contract.policy import Policy
from trainmgr.state.signals import rounded

POINTS = 60  # of a curve in the results


def kept(experiment: Experiment, cases: list[list[Cell]], before: results.Results) -> results.Results:
    """The good runs in results of before that are cells of the experiment: with its case's arguments and settings, a
    manager of its name that could read the same of the policy, and its seed.

    A model that only the endpoint names is asked again. Raises UserError where the results are of another script.
    """
    if Path(before.script).name != Path(experiment.script).name:
        raise UserError(f"The results to reuse are of {before.script}; the experiment trains {experiment.script}.")
    found = []
    for plan, cells in zip(plans(experiment), cases, strict=True):
        settings, by_name = _settings(cells[0].request.policy), {(cell.manager, cell.seed): cell for cell in cells}
        for case in before.cases:
            if (case.name, case.arguments, case.settings) == (plan.name, plan.arguments, settings):
                same = [run for run in case.runs if plan.variants.get(run.manager) == case.variants.get(run.manager)]
                found.append(
                    case.model_copy(
                        update={
                            "managers": plan.managers,
                            "variants": plan.variants,
                            "reference": plan.reference,
                            "seeds": plan.seeds,
                            "runs": [run for run in same if _is(run, by_name.get((run.manager, run.seed)))],
                        }
                    )
                )
    runs = [run for case in found for run in case.runs]
    whole: dict[str, Any] = {
        "script": experiment.script,
        "revisions": dict(Counter(run.revision or "unknown" for run in runs)),
        "wall_seconds": min(before.wall_seconds, sum(run.seconds for run in runs)),
        "cases": found,
    }
    if not runs:
        whole |= {"versions": {}, "machines": [], "disclosure": ""}
    return before.model_copy(update=whole)


def _is(run: results.Run, cell: Cell | None) -> bool:
    """Whether a run of before is the cell's."""
    if cell is None or run.failure is not None:
        return False
    name = cell.variant.manager if cell.variant else cell.manager
    if name in ("llm", "hybrid"):
        return False
    if run.policy_digest is None:  # of a version that did not tell: these hardly read anything
        return name.partition(":")[0] in ("none", "schedule") and not cell.request.policy.watches(name)
    return run.policy_digest == _policy_digest(cell)


def missing(cases: list[list[Cell]], there: results.Results) -> list[list[Cell]]:
    """The cells that are not among the results."""
    known = {(case.name, run.manager, run.seed) for case in there.cases for run in case.runs}
    return [[cell for cell in cells if (cell.case, cell.manager, cell.seed) not in known] for cells in cases]


def gather(experiment: Experiment, outcomes: list[Outcome], before: results.Results | None = None) -> results.Results:
    """Everything that the tables are made of, together with runs that were `kept` from before.

    Raises UserError where the two do not fit.
    """
    files = [outcome.file for outcome in outcomes if outcome.file]
    every = plans(experiment)
    by_case = {plan.name: [o for o in outcomes if o.cell.case == plan.name] for plan in every}
    found = results.Results(
        title=experiment.title,
        script=experiment.script,
        metrics=experiment.metrics,
        goals=experiment.goals,
        disclosure=experiment.disclosure,
        versions=measured.versions(files),
        machines=measured.machines(files),
        revisions=measured.revisions(files),
        wall_seconds=measured.wall_seconds(files),
        cases=[_case(plan, by_case[plan.name]) for plan in every if by_case[plan.name]],
    )
    if before is None:
        return found
    pooled = pool([found, before.model_copy(update={"goals": {}})])  # the goals of today are the experiment's
    cases = {case.name: case for case in pooled.cases}
    return pooled.model_copy(update={"cases": [cases[plan.name] for plan in every if plan.name in cases]})


def _case(plan: Plan, outcomes: list[Outcome]) -> results.Case:
    every = sorted(outcomes, key=lambda outcome: outcome.cell.manager != plan.reference)
    told = next(((o.objective, o.measured.goal) for o in every if o.objective), (None, None))
    # A variant may have an objective of its own.
    drawn = [o.measured.curve if (o.objective, o.measured.goal) == told else [] for o in outcomes]
    curves = _even(drawn, [outcome.measured.every for outcome in outcomes])
    kept = _thinned(curves)
    runs = [_row(outcome, curve, kept) for outcome, curve in zip(outcomes, curves, strict=True)]
    order = {manager: rank for rank, manager in enumerate(plan.managers)}
    case = results.Case(
        name=plan.name,
        arguments=plan.arguments,
        policy=plan.policy,
        settings=_settings(outcomes[0].cell.request.policy),
        managers=plan.managers,
        variants=plan.variants,
        reference=plan.reference,
        seeds=plan.seeds,
        objective=told[0],
        goal=told[1],
        held_out=[],
        runs=sorted(runs, key=lambda run: order[run.manager]),
    )
    held = {name for outcome in outcomes for name in outcome.measured.held_out} - _shown(outcomes)
    held_out = [name for name in results.metric_names(case) if "test" in name and name in held]
    return case.model_copy(update={"held_out": held_out})


def _settings(rules: Policy) -> dict[str, Any]:
    text = rules.model_dump_json(exclude_defaults=True, exclude={"llm": {"base_url", "api_key_env"}})
    found: dict[str, Any] = json.loads(text)
    return {section: values for section, values in found.items() if values}


def _policy_digest(cell: Cell) -> str:
    """Digest of what the manager can read of the policy, defaults included."""
    read = {name: plain(values) for name, values in sections(cell.request.policy, cell.request.manager).items()}
    return sha256(json.dumps(read, sort_keys=True).encode())[:16]


def _shown(outcomes: list[Outcome]) -> set[str]:
    """What a manager could see of the metrics that were reported at the end."""
    closings = [(o.file.closing.metrics, o.measured.held_out) for o in outcomes if o.file and o.file.closing]
    return {name for metrics, held_out in closings for name in metrics if name not in held_out}


def _row(outcome: Outcome, curve: list[tuple[int, float]], steps: set[int]) -> results.Run:
    closing, found = (outcome.file.closing if outcome.file else None), outcome.measured
    return results.Run(
        manager=outcome.cell.manager,
        asked=_asked(outcome.file.manifest.manager) if outcome.file else None,
        policy_digest=_policy_digest(outcome.cell),
        seed=outcome.cell.seed,
        run=outcome.paths.id if outcome.paths else None,
        status=outcome.status,
        failure=outcome.failure,
        revision=measured.revision(outcome.file) if outcome.file else None,
        seconds=round(outcome.seconds, 1),
        steps=closing.steps if closing else 0,
        changes=closing.interventions if closing else 0,
        reversals=closing.reversals if closing else 0,
        demoted=closing.demoted if closing else False,
        on_best=found.on_best,
        calls=found.calls,
        tokens=found.tokens,
        money=found.money,
        metrics=measured.final_metrics(closing) if closing and not outcome.failure else {},
        curve=[(step, rounded(value)) for step, value in curve if step in steps],
        course=found.course,
        figures=found.figures,
    )


def _asked(manager: str) -> str:
    """A manager's own name, a model's file without its folder: that is of one machine, and results go to others."""
    kind, _, file = manager.partition(":")
    return f"local:{Path(file).name}" if kind == "local" else manager


def _even(curves: list[list[tuple[int, float]]], every: list[int]) -> list[list[tuple[int, float]]]:
    """All at as large a distance as the widest: of long runs, not every evaluation is kept."""
    most = max(every, default=1)
    ends = [curve[-1:] if (len(curve) - 1) % (most // own) else [] for curve, own in zip(curves, every, strict=True)]
    spaced = [curve[:: most // own] for curve, own in zip(curves, every, strict=True)]
    return [[*points, *end] for points, end in zip(spaced, ends, strict=True)]


def _thinned(curves: list[list[tuple[int, float]]]) -> set[int]:
    """At most about POINTS of all steps, the same of every curve, since their mean is drawn; with the first ones, which
    tell copies, and each end."""
    steps = sorted({step for curve in curves for step, _ in curve})
    every = max(1, math.ceil(len(steps) / POINTS))
    return {*steps[:BEGINNING], *steps[::every], *steps[-1:], *(curve[-1][0] for curve in curves if curve)}
