"""`trainmgr compare`: a script under several managers, with several seeds, in several cases, as supervised runs.

A finished run is used again where script, arguments, manager, seed and settings are the same, so an interrupted
comparison continues where it stopped.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from trainmgr.base.errors import TrainmgrError, UserError
from trainmgr.base.files import is_held
from trainmgr.base.paths import RUN_DIR_VARIABLE, RunPaths, list_runs, stranger
from trainmgr.base.process import end_all
from trainmgr.base.wire import to_json
from trainmgr.comparison import measured
from trainmgr.comparison.experiment import Experiment, Plan, Variant, plans
from trainmgr.contract import policy, protocol
from trainmgr.contract.policy import Actions, Budget, Exploration, Imbalance, Llm, Policy, Probation, Rules, Section
from trainmgr.contract.run_file import Manifest, Measured, RunFile
from trainmgr.deciding.allowed import SETTLED
from trainmgr.log import history
from trainmgr.log.telemetry import Item
from trainmgr.managers import catalog
from trainmgr.running import manifest
from trainmgr.running.launch import Request, launch, undisturbed
from trainmgr.running.supervisor import Supervisor
from trainmgr.state.run_state import RunState
from trainmgr.terminal import display

GOOD = ("completed", "stopped")
PAIR = 2  # runs, of two seeds: enough to see whether the seed is used
BLIND = ("schedule", "random", "adversary", "flipflop", "late")  # managers that read no thresholds of the rules

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Cell:
    """One manager with one seed in one case."""

    case: str
    manager: str
    """As the experiment calls it."""
    seed: int
    rank: int
    """Of the seed among those of the case."""
    request: Request
    key: Key
    """What a run must have been started with to be this cell's: cells that are alike share one."""
    variant: Variant | None = None
    """Where the manager is one."""

    @property
    def words(self) -> str:
        return f"{self.case} " * bool(self.case) + f"{self.manager} seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What came of a cell."""

    cell: Cell
    paths: RunPaths | None
    file: RunFile | None
    failure: str | None = None
    reused: bool = False

    @property
    def seconds(self) -> float:
        closing = self.file.closing if self.file else None
        return closing.ended - self.file.manifest.created if self.file and closing else 0.0

    @cached_property
    def measured(self) -> Measured:
        """What it measured and took."""
        return measured.read(self.paths, self.file)

    @property
    def objective(self) -> str | None:
        """What it was managed for; None where it did not get that far."""
        return self.file.closing.objective if self.file and self.file.closing else None

    @property
    def status(self) -> str:
        return self.file.closing.status if self.file and self.file.closing else "failed"


class Watcher(Protocol):
    """Shows how far a comparison is. Called in several threads."""

    def begin(self, total: int, reused: int) -> None:
        """So many cells there are, and so many of them are done already."""
        ...

    def ended(self, outcome: Outcome) -> None: ...

    def share(self, cell: Cell, share: float) -> None:
        """How much of a cell's steps is done, 0 to 1."""
        ...

    def note(self, text: str) -> None: ...


def cells(experiment: Experiment, folder: Path, runs_dir: Path) -> list[list[Cell]]:
    """The cells of each case; relative paths are relative to ``folder``.

    Raises TrainmgrError, before anything is started, for what cannot be.
    """
    script = folder / experiment.script
    manifest.command_of(script, experiment.arguments)
    if taken := next((name for name in experiment.variants if catalog.known(name)), None):
        raise UserError(f"The variant {taken!r} has the name of a manager. Give it a name of its own.")
    return [_cells(plan, script, folder, runs_dir, [*experiment.variants]) for plan in plans(experiment)]


def _cells(plan: Plan, script: Path, folder: Path, runs_dir: Path, variants: list[str]) -> list[Cell]:
    rules = policy.load(folder / plan.policy if plan.policy else None)
    found = []
    for manager in plan.managers:
        variant = plan.variants.get(manager)
        arguments = [*plan.arguments, *(variant.arguments if variant else [])]
        kind, _, file = asked = (variant.manager if variant else manager).partition(":")
        name = f"local:{folder / Path(file).expanduser()}" if kind == "local" and file else "".join(asked)
        try:
            name = catalog.make(name, rules, runs_dir).name
        except UserError as error:
            where = f"The variant {manager!r}: " * bool(variant)
            more = f" Variants of this experiment: {', '.join(variants)}." * bool(variants and not variant)
            raise UserError(f"{where}{error}{more}") from None
        for rank, seed in enumerate(plan.seeds):
            parts = (script.stem, plan.name, manager, f"s{seed}")
            slug = re.sub(r"[^A-Za-z0-9_.]+", "-", "-".join(part for part in parts if part))
            request = Request(
                script=_short(script), arguments=arguments, manager=name, policy=rules, seed=seed,
                runs_dir=runs_dir, name=slug,
            )  # fmt: skip
            key = _key(request.directory / request.script, arguments, name, seed, rules)
            found.append(Cell(plan.name, manager, seed, rank, request, key, variant))
    return found


def _short(script: Path) -> Path:
    """Relative to the working directory where it lies in it."""
    path, here = script.resolve(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _key(script: Path, arguments: list[str], manager: str, seed: int | None, rules: Policy) -> Key:
    return str(script.resolve()), tuple(arguments), manager, seed, to_json(_relevant(rules, manager))


def _relevant(rules: Policy, manager: str) -> Policy:
    """The policy without what this manager does not read."""
    kind = manager.partition(":")[0]
    if kind == "none":  # the end on the best is the supervisor's own doing
        return Policy(process=rules.process, actions=Actions(end_on_best=bool(rules.actions.end_on_best)))
    unread: dict[str, Any] = {}
    if kind in ("rules", *BLIND):
        unread |= {"llm": Llm(), "budget": Budget(), "prices": {}}
    if kind in BLIND:  # but they are asked at alarms, too, which have some
        thresholds = Rules(rise=rules.rules.rise, noise_factor=rules.rules.noise_factor)
        unread |= {"rules": thresholds, "exploration": Exploration(), "imbalance": Imbalance()}
    if not rules.watches(manager):
        settled = rules.actions.stop_settled_evals
        resolved = {
            "stop_settled_evals": SETTLED if settled is None else settled,
            "end_on_best": bool(rules.actions.end_on_best),
        }
        actions = rules.actions.model_copy(update=resolved)
        unread |= {"probation": Probation(enabled=False), "actions": actions}
    return rules.model_copy(update=unread)


def sections(rules: Policy, manager: str) -> dict[str, Section]:
    """What of a policy this manager, and the supervisor for it, reads whole."""
    read, kind = _relevant(rules, manager), manager.partition(":")[0]
    if kind == "none":  # whose other sections are those of the defaults, maybe the same objects
        return {"process": rules.process}
    return {
        name: values
        for name in type(rules).model_fields
        if isinstance(values := getattr(rules, name), Section) and (getattr(read, name) is values or name == "actions")
    }


# -- what is there already ---------------------------------------------------------------------------------------------


def _stored(runs_dir: Path) -> Iterator[tuple[Key, RunPaths, RunFile]]:
    """Every run that a cell could have been, the oldest first, each file read once."""
    for paths in list_runs(runs_dir):
        file = None if stranger(paths) else history.run_file(paths)
        if file is None:
            continue
        m = file.manifest
        if m.mode != "auto" or m.replay_of is not None or m.blocking or m.reading:
            continue
        if _unknown(paths, m):
            continue
        script = Path(m.directory) / m.script
        yield _key(script, m.arguments, m.manager, m.seed, m.policy), paths, file
        kind, _, model = m.manager.partition(":")
        if kind in ("llm", "hybrid") and model:  # asked for by the kind alone, before the endpoint said which it has
            yield _key(script, m.arguments, kind, m.seed, m.policy), paths, file


def _unknown(paths: RunPaths, manifest: Manifest) -> bool:
    """Whether a manager read settings that the version of then did not write down: other defaults, maybe."""
    written = json.loads(paths.manifest.read_bytes())["manifest"]["policy"]
    return any(
        not set(type(values).model_fields) <= set(written.get(name, {}))
        for name, values in sections(manifest.policy, manifest.manager).items()
    )


def find(todo: list[Cell], runs_dir: Path) -> tuple[dict[Key, Outcome], list[RunPaths]]:
    """The latest finished run of each cell; and those that a comparison began, but whose supervisor died."""
    wanted = {cell.key: cell for cell in todo}
    names = {cell.request.name for cell in todo}
    done: dict[Key, Outcome] = {}
    orphans = []
    for key, paths, file in _stored(runs_dir):
        if key not in wanted:
            continue
        if file.closing is None:
            if paths.id[len("YYYYMMDD-HHMMSS-") : -len("-0000")] in names and is_held(paths.audit) is False:
                orphans.append(paths)
        elif file.closing.status in GOOD and not file.closing.exit_code:
            done[key] = Outcome(wanted[key], paths, file, reused=True)
    return done, orphans


def _bury(paths: RunPaths) -> bool:
    """End the workload of a run whose supervisor died; whether there was one.

    It went on without decisions, so that it is no run of its manager any more, and it would take time from the others.
    It is found by its environment (on Linux), since it may not have told its process id yet.
    """
    return bool(end_all(RUN_DIR_VARIABLE, str(paths.root)))


# -- what is missing ---------------------------------------------------------------------------------------------------


def run(
    todo: list[Cell], runs_dir: Path, jobs: int, watcher: Watcher, metrics: Collection[str] = ()
) -> list[Outcome]:  # fmt: skip
    """The outcome of each cell: run what is missing, ``jobs`` at a time. Failed runs are outcomes too.

    The first run that ends without one of ``metrics`` is told at once, since the others may take days; so is the second
    one of a manager that is a copy of the first.
    """
    done, orphans = find(todo, runs_dir)
    for paths in orphans:
        if _bury(paths):
            watcher.note(
                f"{paths.id}: its supervisor died and decisions were missed, so it was ended and will run again"
            )
    distinct: dict[Key, Cell] = {}
    for cell in todo:
        distinct.setdefault(cell.key, cell)
    missing = [cell for key, cell in distinct.items() if key not in done]
    watcher.begin(len(distinct), len(done))
    for outcome in done.values():
        watcher.ended(outcome)
    _look_for(metrics, [*done.values()], watcher)
    arms: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in done.values():
        arms.setdefault((outcome.cell.case, outcome.cell.manager), []).append(outcome)
    running: list[Supervisor] = []
    stopped = threading.Event()

    def begun(supervisor: Supervisor) -> None:
        running.append(supervisor)
        if stopped.is_set():  # it was on its way while the others were ended
            _kill(supervisor)

    pool = ThreadPoolExecutor(max_workers=max(1, jobs), thread_name_prefix="run")
    try:
        for future in as_completed([pool.submit(_run, cell, begun, running.remove, watcher) for cell in missing]):
            outcome = future.result()
            done[outcome.cell.key] = outcome
            watcher.ended(outcome)
            if not any(other.failure is None for other in done.values() if other is not outcome):
                _look_for(metrics, [outcome], watcher)
            if outcome.failure is None:
                arm = arms.setdefault((outcome.cell.case, outcome.cell.manager), [])
                arm.append(outcome)
                if len(arm) == PAIR:
                    _compare_seeds(arm[0], arm[1], watcher)
    except KeyboardInterrupt:
        # Their workloads do not hear the keyboard; the next comparison trains these cells again.
        with undisturbed():
            stopped.set()
            for supervisor in [*running]:
                _kill(supervisor)
            watcher.note("interrupted; finished runs are kept, and the same command continues from here")
            pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown()
    return [replace(done[cell.key], cell=cell) for cell in todo]


def _look_for(metrics: Collection[str], outcomes: list[Outcome], watcher: Watcher) -> None:
    """Say which of the metrics the first good run lacks."""
    for outcome in outcomes:
        if outcome.failure is None and outcome.file and outcome.file.closing:
            there = measured.final_metrics(outcome.file.closing)
            if missing := [name for name in metrics if name not in there]:
                watcher.note(
                    f"{outcome.cell.words} ended without {', '.join(missing)}, which others may have. It has: "
                    f"{', '.join(there) or 'nothing'}"
                )
            return


def _compare_seeds(one: Outcome, two: Outcome, watcher: Watcher) -> None:
    if measured.same_training(one.measured, two.measured):
        watcher.note(
            f"{one.cell.words} and seed {two.cell.seed} gave the same figures to the last digit: the script does not "
            "use TRAINMGR_SEED, or nothing in it is random; take the seed from trainmgr.workload.default_seed()"
        )


def balanced(cases: list[list[Cell]]) -> list[Cell]:
    """Seed by seed, so that a comparison which is cut short has something of everything."""
    return sorted((cell for case in cases for cell in case), key=lambda cell: cell.rank)


class _Share(display.Lines):
    """Tells how far one run is, and nothing else."""

    def __init__(self, cell: Cell, watcher: Watcher) -> None:
        super().__init__(quiet=True)
        self._cell = cell
        self._watcher = watcher

    def event(self, event: Any, now: Any) -> None:
        pass

    def record(self, record: Item, state: RunState) -> None:
        if isinstance(record, protocol.Eval) and state.total_steps:
            self._watcher.share(self._cell, min(1.0, state.step / state.total_steps))


def _run(
    cell: Cell, begun: Callable[[Supervisor], None], over: Callable[[Supervisor], None], watcher: Watcher
) -> Outcome:  # fmt: skip
    """``over`` gets what ``begun`` got: a supervisor is as large as its run is long."""
    own: list[Supervisor] = []

    def started(supervisor: Supervisor) -> None:
        own.append(supervisor)
        begun(supervisor)

    try:
        paths, closing = launch(replace(cell.request, say=watcher.note), lambda *_: _Share(cell, watcher), started)
    except Exception as error:  # whatever it is, the other runs go on
        for supervisor in own:  # what it left running is no run of its manager any more
            _bury(supervisor.paths)
        known = isinstance(error, TrainmgrError | OSError)
        return Outcome(cell, None, None, str(error) if known else f"{type(error).__name__}: {error}")
    finally:
        for supervisor in own:
            over(supervisor)
    failure = None if closing.status in GOOD and not closing.exit_code else f"{closing.status}: it {closing.exit}"
    file = history.run_file(paths)
    return Outcome(cell, paths, file, failure if failure or file else "its run directory was removed meanwhile")


def _kill(supervisor: Supervisor) -> None:
    supervisor.interrupt("compare was interrupted")
    supervisor.interrupt("compare was interrupted")
