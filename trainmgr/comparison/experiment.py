"""An experiment file: which script is trained under which managers, with which seeds and in which cases."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from trainmgr.base import toml
from trainmgr.base.errors import UserError
from trainmgr.base.wire import Wire, quoted
from trainmgr.contract.protocol import Mode, explain

MOST = 10_000  # seeds of one range: more is a typing mistake

Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


def _seeds(value: object) -> object:
    if isinstance(value, str) or (isinstance(value, list) and all(type(seed) is int for seed in value)):
        return value
    raise ValueError(f'must be a text like "1-3" or a list of whole numbers (found {quoted(value)})')


Seeds = Annotated[str | list[int], BeforeValidator(_seeds)]
Arguments = list[Annotated[str, Field(pattern=r"^[^\x00]*$")]]  # no process can be given a NUL
VariantName = Annotated[str, Field(max_length=64, pattern=r"^\w[\w.+/=-]*( [\w.+/=-]+)*$")]


class Case(Wire):
    """One regime of the experiment; what it does not say is as in the file's head."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    arguments: Arguments = []
    """For the script, after those of the head."""
    managers: Names | None = None
    policy: str | None = None
    """Policy file, relative to the experiment's folder."""
    seeds: Seeds | None = None


class Variant(Wire):
    """What stands among the managers under a name of its own: one of them, and more arguments for the script. A recipe
    that was searched for, say, or the script's own way to balance its losses."""

    manager: Annotated[str, Field(min_length=1)] = "none"
    arguments: Arguments = []
    """For the script, after those of the case."""

    @property
    def words(self) -> str:
        return f"{self.manager} with {shlex.join(self.arguments)}" if self.arguments else self.manager


class Experiment(Wire):
    """The content of an experiment file."""

    title: str = ""
    script: str
    """Relative to the experiment's folder."""
    arguments: Arguments = []
    """For every run, before the case's."""
    policy: str | None = None
    """Policy file, relative to the experiment's folder."""
    seeds: Seeds = "1-3"
    """A range like "1-5", a list like "1,2,8", or numbers."""
    managers: Names = ["none", "rules"]
    reference: str | None = None
    """The manager that the others are compared with. Default: the first of each case."""
    metrics: list[str] = []
    """What the tables show. Default: everything that is measured at the end."""
    goals: dict[str, Mode] = {}
    """Which way each metric is better. Default: the objective's is known, no other."""
    disclosure: str = ""
    """What a reader must know, above all what was selected on which data: printed under the tables."""
    variants: dict[VariantName, Variant] = {}
    """Names to be used among the managers."""
    cases: list[Case] = []

    def narrowed(self, **changed: Any) -> Experiment:
        """With other values of the head, which then hold in every case."""
        cases = [case.model_copy(update=dict.fromkeys(changed, None)) for case in self.cases]
        return self.model_copy(update={**changed, "cases": cases})

    def only(self, names: list[str]) -> Experiment:
        """With the named cases alone; all of them where none is named. Raises UserError for what is no case."""
        there = {case.name: case for case in self.cases}
        if unknown := [name for name in names if name not in there]:
            known = ", ".join(map(repr, there)) or "none"
            raise UserError(f"The experiment has no case {unknown[0]!r}; there are: {known}.")
        return self.model_copy(update={"cases": [case for case in self.cases if not names or case.name in names]})


@dataclass(frozen=True)
class Plan:
    """A case with everything that it takes from the head."""

    name: str
    """Empty where the experiment has no cases."""
    arguments: list[str]
    managers: list[str]
    reference: str
    policy: str | None
    seeds: list[int]
    variants: dict[str, Variant]
    """Of its managers, those that are variants."""


def load(path: Path) -> Experiment:
    """The experiment in a TOML file.

    Raises UserError, with the key, for everything that is not exactly as documented.
    """
    values = toml.load(path, "experiment file")
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        raise UserError(f"The experiment file {path}: {explain(error, Experiment)}.") from None
    used = {
        name for managers in (experiment.managers, *(c.managers or [] for c in experiment.cases)) for name in managers
    }
    if unused := next((name for name in experiment.variants if name not in used), None):
        raise UserError(
            f"The experiment file {path}: the variant {unused!r} is not among the managers. Add it to them."
        )
    return experiment


def plans(experiment: Experiment) -> list[Plan]:
    """The cases in full; one without a name where the experiment lists none.

    Raises UserError where they cannot be: no seed, a name twice, a reference that a case does not train.
    """
    cases: list[Case | None] = [*experiment.cases] or [None]
    if twice := _twice([case.name for case in experiment.cases]):
        raise UserError(f"Two cases are called {twice!r}. Give each a name of its own.")
    return [_plan(experiment, case) for case in cases]


def _plan(experiment: Experiment, case: Case | None) -> Plan:
    where = f"case {case.name!r}: " if case else ""
    managers = (case.managers if case else None) or experiment.managers
    seeds = case.seeds if case and case.seeds is not None else experiment.seeds
    reference = experiment.reference or managers[0]
    if reference not in managers:
        raise UserError(
            f"{where}the reference {reference!r} is not among the managers ({', '.join(managers)}). "
            "Add it to them, or name one of them as the reference."
        )
    if twice := _twice(managers):
        raise UserError(f"{where}the manager {twice!r} is named twice. Name each once.")
    return Plan(
        name=case.name if case else "",
        arguments=[*experiment.arguments, *(case.arguments if case else [])],
        managers=managers,
        reference=reference,
        policy=(case.policy if case else None) or experiment.policy,
        seeds=seeds_of(seeds, f"{where}seeds"),
        variants={name: variant for name, variant in experiment.variants.items() if name in managers},
    )


def seeds_of(seeds: Seeds, where: str) -> list[int]:
    """The seeds that a text like 1-3 or 1,2,5 names, each once, in its order.

    Raises UserError, which begins with ``where``.
    """
    found: list[int] = []
    try:
        for part in seeds.split(",") if isinstance(seeds, str) else seeds:
            first, _, last = str(part).partition("-")
            if int(last or first) - int(first) >= MOST:
                raise UserError(f"{where} {part!r} names more than {MOST:,} seeds. Name fewer.")
            found += range(int(first), int(last or first) + 1)
    except ValueError:
        raise UserError(f"{where} {seeds!r} is neither a range like 1-3 nor a list like 1,2,5.") from None
    if not found:
        raise UserError(f"{where} {seeds!r} names no seed; a range goes upwards, like 1-3.")
    if twice := _twice([str(seed) for seed in found]):
        raise UserError(f"{where} {seeds!r} names seed {twice} twice. Name each once.")
    return found


def _twice(names: list[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)
