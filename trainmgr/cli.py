"""The command line. The only user of typer: a command parses, makes one call, prints.

Data goes to stdout, narration to stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from trainmgr import __version__, managers
from trainmgr.base import errors, foreign, process
from trainmgr.base.errors import RecordError, TrainmgrError, UserError
from trainmgr.base.paths import (
    AUDIT_KEY_FILE_VARIABLE,
    AUDIT_KEY_VARIABLE,
    KEY_NAME_VARIABLE,
    POLICY_VARIABLE,
    RUNS_DIR_VARIABLE,
    SEND_KEY_VARIABLE,
    RunPaths,
    find_run,
    list_runs,
    run_ids,
    stranger,
)
from trainmgr.managers.prompts import VARIANTS
from trainmgr.terminal import output

if TYPE_CHECKING:
    from trainmgr.base import wire
    from trainmgr.checking import breaches
    from trainmgr.checking import check as checking
    from trainmgr.comparison import (
        analysis,
        experiment,
        gathering,
        page,
        pooling,
        progress,
        report,
        results,
        statistics,
        trials,
    )
    from trainmgr.contract import policy as policies
    from trainmgr.contract import schemas
    from trainmgr.contract.run_file import Closing
    from trainmgr.log import audit as audit_log
    from trainmgr.log import history
    from trainmgr.managers import catalog, key
    from trainmgr.readers import opinions, proof, replay
    from trainmgr.running import launch
    from trainmgr.running import manifest as manifests
    from trainmgr.running.supervisor import Supervisor
    from trainmgr.terminal import display, screen, tables
else:

    class Later:
        """A module that is imported when something of it is asked for first: all of them take longer than `runs`."""

        def __init__(self, name: str) -> None:
            self._name = f"trainmgr.{name}"

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self._name), name)

    breaches, display, history, key, launch, opinions, proof, replay, schemas, screen, tables, wire = map(
        Later,
        ("checking.breaches", "terminal.display", "log.history", "managers.key", "running.launch", "readers.opinions",
         "readers.proof", "readers.replay", "contract.schemas", "terminal.screen", "terminal.tables", "base.wire"),
    )  # fmt: skip
    audit_log, checking, manifests, policies, catalog = map(
        Later, ("log.audit", "checking.check", "running.manifest", "contract.policy", "managers.catalog")
    )
    analysis, experiment, gathering, page, pooling, progress, report, results, statistics, trials = map(
        Later,
        [f"comparison.{name}" for name in ("analysis", "experiment", "gathering", "page", "pooling", "progress",
                                           "report", "results", "statistics", "trials")],
    )  # fmt: skip

EXIT_TEXT = "Exit codes: " + "; ".join(f"{code} {text}" for code, text in errors.EXIT_CODES.items()) + "."

app = typer.Typer(
    name="trainmgr",
    help="Put a bounded supervisor on a training run.",
    epilog=EXIT_TEXT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
narration = Console(stderr=True)
data = Console(width=None if os.isatty(1) else 160)  # a pipe has no width: tables get room
JSON_LIMIT = 1 << 24  # characters of events that wait for their reader
UNREAD = "({} lines were not shown: they were not taken in time)\n"


class Mode(StrEnum):
    auto = "auto"
    shadow = "shadow"
    approve = "approve"


class SignificanceTest(StrEnum):
    permutation = "permutation"
    wilcoxon = "wilcoxon"
    t = "t"


# -- what a Tab offers: nothing is imported for it ---------------------------------------------------------------------


def _runs(context: typer.Context, incomplete: str) -> list[str]:
    """The ids of the folder that the command line, or the environment, names."""
    folder = context.params.get("runs_dir") or os.environ.get(RUNS_DIR_VARIABLE) or "runs"
    return [name for name in ("latest", *run_ids(Path(folder))) if name.startswith(incomplete)]


def _managers(context: typer.Context, incomplete: str) -> list[str]:
    """Names of managers; behind `replay:` the runs."""
    kind, colon, begun = incomplete.partition(":")
    if kind == "replay" and colon:
        found = [f"replay:{run}" for run in _runs(context, begun)]
    else:
        names = [name if "[" not in name else name[: name.index("[")] for name in managers.NAMES]
        names = [name if name.islower() else name[: name.index(":") + 1] for name in names]  # replay:RUN
        found = [name for name in names if name.startswith(incomplete)]
    return found


def _complete_bash() -> None:
    """What bash is offered. It breaks words at colons, so that `replay:2026` arrives in three, and it replaces only
    what stands behind the last of them."""
    words, place = os.environ.get("COMP_WORDS", "").split("\n"), os.environ.get("COMP_CWORD", "")
    joined: list[str] = []
    for number, word in enumerate(words[: int(place) + 1] if place.isdigit() else []):
        if number > 1 and ":" in (word, words[number - 1]):
            joined[-1] += word
        else:
            joined.append(word)
    if joined:
        os.environ.update(COMP_WORDS="\n".join(joined), COMP_CWORD=str(len(joined) - 1))
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            app()
    finally:
        cut = joined[-1].rfind(":") + 1 if joined else 0
        print("".join(line[cut:] for line in said.getvalue().splitlines(keepends=True)), end="")


RunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's id, the beginning of one, a path, or `latest`.", autocompletion=_runs),
]
ScriptArgument = Annotated[
    Path, typer.Argument(metavar="SCRIPT", help="A .py file, or anything executable.", show_default=False)
]
RestArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- ARGUMENTS...]", help="What the script gets; put `--` before it.", show_default=False),
]
RunsDirOption = Annotated[Path, typer.Option("--runs-dir", envvar=RUNS_DIR_VARIABLE, help="Folder of all runs.")]
TrustOption = Annotated[bool, typer.Option("--trust", help="Go on even though others may have written to the run.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only the last lines.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
PolicyOption = Annotated[
    Path | None,
    typer.Option("--policy", envvar=POLICY_VARIABLE, help="Policy file (TOML); `trainmgr policy` prints the defaults."),
]
KeyNameOption = Annotated[
    str | None,
    typer.Option(
        "--api-key-env", envvar=KEY_NAME_VARIABLE, metavar="NAME",
        help="The environment variable that holds the language model's key, instead of the policy's.",
    ),
]  # fmt: skip
SendKeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--send-key", envvar=SEND_KEY_VARIABLE, metavar="URL",
        help="Send the key to this endpoint, even if only the policy names it, or if it is plain http (anyone on the "
        "network can then read the key). May be repeated.",
    ),
]  # fmt: skip
ManagerOption = Annotated[
    str, typer.Option("--manager", "-m", help=f"Who decides: {', '.join(managers.NAMES)}.", metavar="NAME",
                      autocompletion=_managers)
]  # fmt: skip


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"trainmgr {__version__}")
        raise typer.Exit


@app.command()
def run(
    script: ScriptArgument,
    arguments: RestArgument = None,
    manager: ManagerOption = "auto",
    mode: Annotated[
        Mode, typer.Option(help="auto: apply; shadow: decide and log only; approve: ask you first.")
    ] = Mode.auto,
    policy: PolicyOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Given to the script as TRAINMGR_SEED.", min=-(2**63), max=2**64 - 1)
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name in the run's id; default: the script's.")] = None,
    restarts: Annotated[int | None, typer.Option(help="How often a crashed script is started again.", min=0)] = None,
    stall_timeout: Annotated[
        float | None, typer.Option(help="Seconds without telemetry after which it counts as hung.")
    ] = None,
    blocking: Annotated[
        bool, typer.Option("--blocking", help="Stop training during decisions, to measure what that would cost.")
    ] = False,
    api_key_env: KeyNameOption = None,
    send_key: SendKeyOption = None,
    quiet: QuietOption = False,
    json: Annotated[bool, typer.Option("--json", help="Every event as a JSON line on stdout.")] = False,
) -> None:
    """Start a training script and supervise it to its end. The script's exit code is kept.

    Example: `trainmgr run workloads/tinystories.py --manager rules --seed 1 -- --profile quick`

    Ctrl-C or SIGTERM once asks the script to end, twice kills it. SIGUSR1, SIGUSR2 and the like are passed on to it.
    """
    _key(api_key_env, send_key)
    request = launch.Request(
        script=script,
        arguments=arguments or [],
        manager=manager,
        mode=mode.value,
        policy=_policy(policy, restarts, stall_timeout),
        seed=seed,
        runs_dir=runs_dir,
        name=name,
        blocking=blocking,
        say=lambda text: None if quiet else _aside(text),
    )
    if manager == "auto":
        request.say("manager: {} ({})".format(*catalog.choose(manager, request.policy)))
    raise typer.Exit(_supervised(lambda *how: launch.launch(request, *how)[1], quiet, json))


@app.command()
def attach(
    run: RunArgument = "latest",
    runs_dir: RunsDirOption = Path("runs"),
    api_key_env: KeyNameOption = None,
    send_key: SendKeyOption = None,
    trust: TrustOption = False,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Take over a run whose supervisor died; its training goes on meanwhile. Close it if its training is over.

    Example: `trainmgr attach latest`
    """
    _key(api_key_env, send_key)
    paths = _own(find_run(runs_dir, run), trust, "attach acts on what it says.")
    say = (lambda _: None) if quiet else _aside
    call = partial(launch.attach, paths, runs_dir, say=say)
    raise typer.Exit(_supervised(call, quiet, json))


@app.command()
def audit(
    run: RunArgument = "latest",
    runs_dir: RunsDirOption = Path("runs"),
    head: Annotated[
        bool, typer.Option("--head", help="Print the digest of the log's last line, to keep elsewhere.")
    ] = False,
    expect: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="Fail unless the log ends with this digest.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file",
            metavar="FILE",
            help=f"Prove each line with this key.  [default: {AUDIT_KEY_FILE_VARIABLE} or {AUDIT_KEY_VARIABLE}]",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Prove from the files alone that a run is what its log says, and list its interventions. Exits 1 if it is not.

    The chain itself shows everything but a log that was rewritten as a whole, or cut at its end together with run.json.
    Of a run that began with a key (TRAINMGR_AUDIT_KEY_FILE), it shows a rewritten log, too. A digest kept elsewhere
    (`--head`, later `--expect`) shows both.

    Examples: `trainmgr audit latest`, `trainmgr audit latest --key-file ~/audit.key`
    """
    paths = _named(find_run(runs_dir, run))
    result = proof.prove(paths, audit_log.read_key(key_file) if key_file is not None else audit_log.given_key())
    if expect is not None and result.head != expect:
        ends = f"it ends with {result.head}" if result.head else "it has no line that can be read"
        result.findings.append(proof.Finding("audit.jsonl", f"{ends}, not with the digest expected"))
    if json:
        print(tables.proof_json(result))
    elif head and result.holds:
        print(result.head)
    else:  # a digest is wanted by programs: that there is none is no data
        tables.print_proof(narration if head else data, result)
    raise typer.Exit(errors.EXIT_OK if result.holds else errors.EXIT_FAILED)


@app.command("replay")
def replay_run(
    run: RunArgument = "latest",
    runs_dir: RunsDirOption = Path("runs"),
    manager: Annotated[
        str | None,
        typer.Option(
            "--manager", "-m", metavar="NAME", help="Put the snapshots to this manager.", autocompletion=_managers
        ),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Train again with the recorded changes at their steps; compare bit for bit.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Play it back in the terminal.")] = False,
    speed: Annotated[float, typer.Option(help="With --watch: so many times as fast.", min=0.01)] = 20.0,
    paraphrase: Annotated[
        int,
        typer.Option(
            help="With --manager llm or local: ask each snapshot in so many other wordings of the prompt too.",
            min=0,
            max=VARIANTS - 1,
        ),
    ] = 0,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="With --manager: this policy file instead of the run's.")
    ] = None,
    api_key_env: KeyNameOption = None,
    send_key: SendKeyOption = None,
    trust: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Decide a recorded run again and compare byte for byte. Exits 1 where anything differs.

    Examples: `trainmgr replay latest`, `trainmgr replay latest --train`, `trainmgr replay latest -m schedule:cosine`,
    `trainmgr replay latest -m llm:MODEL --paraphrase 3`
    """
    _key(api_key_env, send_key)
    paths = _named(find_run(runs_dir, run))
    if sum((manager is not None, train, watch)) > 1:
        raise UserError("--manager, --train and --watch are three different replays. Choose one.")
    if paraphrase and (manager is None or not policies.asks_model(manager)):
        raise UserError("--paraphrase rewords a language model's prompt: give --manager llm[:MODEL] or local:FILE too.")
    if watch:
        _watch(paths, speed)
        return
    if train:
        _own(paths, trust, "--train runs the script that it names.")
        _train(paths, runs_dir, json)
    record = history.manifest_of(paths)
    if manager is not None:
        if policies.asks_model(manager) and policy is None:
            _own(paths, trust, "Without --policy, your key goes to the endpoint that it names.")
        _ask_again(
            paths, record, manager, paraphrase, policies.load(policy) if policy else record.policy, runs_dir, json
        )
        return
    result = replay.rebuild(paths, _own_manager(record.manager, record.policy, runs_dir))
    if json:
        print(wire.pretty(vars(result)))
    else:
        tables.print_rebuilt(data, result)
    raise typer.Exit(errors.EXIT_FAILED if result.differences else errors.EXIT_OK)


@app.command()
def runs(runs_dir: RunsDirOption = Path("runs"), json: JsonOption = False) -> None:
    """List the runs, the latest last.

    Example: `trainmgr runs`
    """
    found = [(paths, history.run_file(paths)) for paths in list_runs(runs_dir)]
    if json:
        print(tables.runs_json(found))
    elif not found:
        _aside(f"There are no runs in {runs_dir}/ yet. Start one: trainmgr run SCRIPT")
    else:
        tables.print_runs(data, found)


@app.command()
def show(run: RunArgument = "latest", runs_dir: RunsDirOption = Path("runs"), json: JsonOption = False) -> None:
    """Show one run: curves, recipe, interventions.

    Example: `trainmgr show latest`
    """
    paths = _named(find_run(runs_dir, run))
    manifest, state, ledger = history.latest(paths)
    if json:
        print(tables.show_json(paths, manifest, state, ledger))
        return
    data.print(screen.render(state, ledger, manifest, width=min(data.width, 120)))
    tables.print_closing(data, manifest, state, ledger)


@app.command("check")
def check_script(
    script: ScriptArgument,
    arguments: RestArgument = None,
    seconds: Annotated[float, typer.Option(help="How long it may take.", min=1)] = 60.0,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Nothing in the script is random: another seed must change nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Run a workload briefly and do to it once whatever a manager may do; name every breach with its fix. Exits 1 then.

    Each parameter is changed, a checkpoint is kept, weights are rolled back, the run is stopped, and another seed is
    tried. Nothing is written but to a temporary folder.

    Example: `trainmgr check workloads/minimal.py`
    """
    launch.end_as_at_the_keyboard()
    checked = checking.Probe(script, arguments or [], seconds, deterministic=deterministic).run()
    if json:
        print(wire.pretty(breaches.as_json(checked)))
    else:
        tables.print_checked(data, checked)
    raise typer.Exit(errors.EXIT_OK if checked.ok else errors.EXIT_FAILED)


@app.command()
def compare(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="SCRIPT|EXPERIMENT.toml|RESULTS.json",
            help="A script, an experiment file, or earlier results to print again (several files are put together).",
            show_default=False,
        ),
    ],
    arguments: RestArgument = None,
    managers: Annotated[
        str | None, typer.Option(help="Managers, separated by commas.  [default: none,rules]", show_default=False)
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds: 1-3 or 1,2,5.  [default: 1-3]", show_default=False)] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The manager that the others are compared with; by default the first."),
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this case of the experiment; may be repeated.")
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="Metrics at the end, separated by commas; =min or =max says which way is better.")
    ] = "",
    test: Annotated[
        SignificanceTest, typer.Option(help="Test of the paired differences.")
    ] = SignificanceTest.permutation,
    show_seeds: Annotated[bool, typer.Option("--show-seeds", help="Also print a row for each run.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write results.md, .json, .csv and .html there.")
    ] = None,
    reuse: Annotated[
        Path | None,
        typer.Option(
            metavar="RESULTS.json", help="Earlier results, from another machine for example: their runs count as well."
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Runs at a time, each with OMP_NUM_THREADS threads, one if that is not set.", min=1)
    ] = 1,
    policy: PolicyOption = None,
    api_key_env: KeyNameOption = None,
    send_key: SendKeyOption = None,
    runs_dir: RunsDirOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Run a script under several managers, seeds and cases, and print what they prove. Finished runs are reused.

    Examples: `trainmgr compare workloads/minimal.py --managers none,schedule:cosine,rules --seeds 1-6 --jobs 2`,
    `trainmgr compare experiment.toml --out results`, `trainmgr compare results/results.json --reference rules`,
    `trainmgr compare here/results.json there/results.json --out both` (parts of one experiment, from two machines),
    `trainmgr compare experiment.toml --reuse there/results.json` (trains only what is missing there)
    """
    statistics.require()
    _key(api_key_env, send_key)
    chosen, goals = _metrics(metrics)
    if what.suffix == ".json":
        files = [what, *map(Path, arguments or [])]
        if managers or seeds or reuse or case or any(file.suffix != ".json" for file in files):
            raise UserError(
                f"{what} is printed again as it was measured. Only other results (.json), --reference, --metrics, "
                "--test, --show-seeds and --out may follow it. To train, name a script or an experiment."
            )
        found = pooling.pool([results.load(file) for file in files])
        if reference:
            found = results.against(found, reference)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        launch.end_as_at_the_keyboard()
        plan = _experiment(what, arguments or [], managers, seeds, reference, policy).only(case or [])
        folder = what.parent if what.suffix == ".toml" else Path()
        cells = trials.cells(plan, folder, runs_dir)
        there = _reused(plan, cells, reuse) if reuse else None
        todo = trials.balanced(gathering.missing(cells, there) if there else cells)
        with _unhindered(), progress.Bar(narration) as bar:
            outcomes = trials.run(todo, runs_dir, jobs, bar, chosen or plan.metrics)
        found = gathering.gather(plan, outcomes, there)
    found = found.model_copy(update={"goals": found.goals | goals, "metrics": chosen or found.metrics})
    sections = analysis.analyse(found, test.value)
    text = report.markdown(found, sections, test.value, show_seeds=show_seeds)
    if out is not None:
        for path in page.write(out, found, sections, test.value):
            _aside(f"written: {path}")
    print(results.render(found).rstrip() if json else text)
    failed = [(case.name, run) for case in found.cases for run in case.runs if run.failure]
    for name, run in failed:
        _aside(f"{name} {run.manager} seed {run.seed} ({run.run}): {run.failure}".lstrip(), "red")
    raise typer.Exit(errors.EXIT_FAILED if failed else errors.EXIT_OK)


@app.command()
def schema(
    folder: Annotated[Path, typer.Argument(help="Where to write.")] = Path("schemas"),
) -> None:
    """Write the JSON schemas of every file of a run, with example records: the contract for other languages.

    Example: `trainmgr schema schemas/`
    """
    for path in schemas.write(folder):
        print(path)


@app.command()
def policy() -> None:
    """Print a policy file with every key at its default and explained.

    Example: `trainmgr policy > policy.toml`
    """
    print(schemas.policy_file(), end="")


# -- helpers of the commands -------------------------------------------------------------------------------------------


def _named(paths: RunPaths) -> RunPaths:
    """A run that is read; says so where it is not the user's own."""
    if why := stranger(paths):
        _aside(f"{paths.id}: {why}")
    return paths


def _own(paths: RunPaths, trust: bool, what: str) -> RunPaths:
    """A run that is obeyed: ``what`` says how, in a sentence. Raises UserError where others may have written
    it."""
    if not trust and (why := stranger(paths)):
        raise UserError(f"{paths.id}: {why}. {what} Look at it with `trainmgr show`, and add --trust if you trust it.")
    return paths


def _policy(path: Path | None, restarts: int | None, stall_timeout: float | None) -> policies.Policy:
    """The policy file, with what the flags say instead."""
    return policies.with_flags(policies.load(path), restarts=restarts, stall_timeout=stall_timeout)


@contextlib.contextmanager
def _unhindered(json: bool = False) -> Iterator[list[output.Printer]]:
    """While a run is supervised, nobody waits for the reader of stdout or stderr. Yields what prints there."""
    limit, notice = (JSON_LIMIT, "") if json else (output.LIMIT, UNREAD)
    with output.printing(sys.stderr, notice=UNREAD) as err, output.printing(sys.stdout, limit, notice) as out:
        narration.file, data.file = err, out
        try:
            yield [stream for stream in (err, out) if isinstance(stream, output.Printer)]
            if json and isinstance(out, output.Printer):
                out.close()
                if out.missing:
                    _aside(f"{out.missing} events were not read from stdout in time; audit.jsonl has all of them")
        finally:
            narration.file = data.file = None  # type: ignore[assignment]  # whatever these are then


def _supervised(call: Callable[..., Closing], quiet: bool, json: bool) -> int:
    """Supervise to the end, say what there is to say, and the exit code: whatever becomes of the saying."""
    known: list[Supervisor] = []

    def begun(supervisor: Supervisor) -> None:
        known.append(supervisor)
        launch.hear(supervisor)

    with _unhindered(json) as printers:
        closing = _watched(lambda listener: call(listener, begun), quiet, json)
        launch.settled([printer.give_up for printer in printers])
        code = _exit_code(closing, known[0])
        if not json:
            for printer in printers:  # else the last lines could come before those that were said
                printer.drain()
            try:
                _closing_words(known[0])
            except Exception as error:
                _aside(
                    f"the last lines cannot be shown: {type(error).__name__}; try: trainmgr show {known[0].paths.id}"
                )
    launch.settled()
    return code


def _key(name: str | None, places: list[str] | None) -> None:
    """Keep what the operator says about the key where it is looked for, whoever needs it."""
    if name:
        os.environ[KEY_NAME_VARIABLE] = name
        key.variable(policies.Llm(), os.environ)  # it is one
    if places:
        os.environ[SEND_KEY_VARIABLE] = " ".join(map(key.checked_place, places))
    process.conceal()


def _watched(call: Any, quiet: bool, json: bool) -> Any:
    """Make the call with the view that fits: JSON lines, the live view in a terminal, plain lines elsewhere."""
    if json:
        return call(lambda *_: display.JsonLines(data.file, narration.file))
    if quiet or not narration.is_terminal:
        return call(lambda *_: display.Lines(narration.file, quiet=quiet))
    views: list[screen.LiveView] = []

    def live(_: RunPaths, record: Any) -> screen.LiveView:
        views.append(screen.LiveView(record, narration))
        return views[0].__enter__()

    try:
        return call(live)
    finally:
        for view in views:
            view.__exit__(None, None, None)


def _closing_words(supervisor: Supervisor) -> None:
    """What its supervisor knows: to read a long run again would take a while. It did not read one that was over."""
    lacking, known = supervisor.lacking(), (supervisor.manifest, supervisor.state, supervisor.ledger)
    if not supervisor.state.records:
        with contextlib.suppress(RecordError, OSError):
            known = history.latest(supervisor.paths)
    tables.print_closing(data, *known, stderr=supervisor.paths.stderr, lacking=lacking)


def _exit_code(closing: Closing, supervisor: Supervisor) -> int:
    """The script's own, except where there is more to say than it knows; by what was read, whatever is left of it."""
    failure, end = supervisor.ledger.failure, supervisor.state.end
    if closing.status == "interrupted":
        return errors.EXIT_INTERRUPTED
    if closing.status == "failed" and failure is not None and failure.where == "policy":
        return errors.EXIT_USAGE
    if closing.exit_code == 0 and closing.objective is None:  # there was no start that could be read
        return errors.EXIT_WORKLOAD
    own = end is not None and end.status == closing.status  # the script's word for how it ended
    if closing.exit_code == 0 and closing.status in ("hung", "failed") and not own:
        return errors.EXIT_FAILED
    return closing.exit_code


def _reused(plan: experiment.Experiment, cells: list[list[trials.Cell]], file: Path) -> results.Results:
    """What of the results in a file need not be trained, and a line that says how much that is."""
    before = results.load(file)
    there = gathering.kept(plan, cells, before)
    had, took = (sum(len(case.runs) for case in each.cases) for each in (before, there))
    text = f"{took} of {sum(map(len, cells))} runs are taken from {file}"
    if took < had:
        text += f"; {had - took} of its runs differ from these in case, arguments, settings, manager, model or seed"
    _aside(text)
    return there


def _own_manager(name: str, policy: policies.Policy, runs_dir: Path) -> Any:
    """The run's own manager, to be asked again; None where it cannot be made any more."""
    try:
        return catalog.make(name, policy, runs_dir)
    except UserError:
        return None


def _aside(text: str, style: str = "dim") -> None:
    """A line that a person may want to know, and no program."""
    narration.print(Text(foreign.on_terminal(text)), style=style, soft_wrap=True)


def _ask_again(
    paths: RunPaths, record: Any, manager: str, paraphrase: int, policy: policies.Policy, runs_dir: Path, json: bool
) -> None:  # fmt: skip
    """Put the snapshots of a run to a manager, or to one in several wordings."""
    other = catalog.make(manager, policy, runs_dir)
    with launch.ready(other, say=_aside):
        found: list[Any] = []
        items: Iterator[Any] = opinions.opinions(paths, other)
        if paraphrase and isinstance(other, opinions.Wordy):
            items = opinions.reworded(paths, other, paraphrase)
        for item in items:
            _aside(f"{item.decision} (step {item.step}) is answered")
            found.append(item)
    if json:
        print(wire.pretty([vars(item) for item in found]))
    elif paraphrase:
        tables.print_reworded(data, found, other.name)
    else:
        tables.print_opinions(data, found, record.manager, other.name)


def _train(paths: RunPaths, runs_dir: Path, json: bool) -> NoReturn:
    manifest = history.manifest_of(paths)
    schedule = replay.schedule_of(paths)
    request = launch.Request(
        script=Path(manifest.script), arguments=manifest.arguments, manager="none", policy=manifest.policy,
        seed=manifest.seed, runs_dir=runs_dir, name=f"{Path(manifest.script).stem}-replay",
        directory=Path(manifest.directory), replay_of=paths.id, schedule=schedule or None,
    )  # fmt: skip
    _aside(f"training {paths.id} again, with {len(schedule)} changes at their recorded steps")
    with _unhindered():
        again, _ = _watched(lambda listener: launch.launch(request, listener), False, False)
    result = replay.compare_training(paths, again)
    if json:
        print(wire.pretty({"run": paths.id, "again": again.id, **vars(result)}))
    else:
        tables.print_comparison(data, paths, again, result)
    raise typer.Exit(errors.EXIT_FAILED if result.first else errors.EXIT_OK)


def _watch(paths: RunPaths, speed: float) -> None:
    """Play the run back: its telemetry and its log in the order of their times."""
    manifest = history.manifest_of(paths)
    with screen.LiveView(manifest, narration) as view:
        before: float | None = None
        for moment, t in replay.frames(paths):
            if before is not None:
                time.sleep(min(1.0, max(0.0, (t - before) / speed)))
            before = t
            view.tick(moment.state, moment.ledger)
    tables.print_closing(data, *history.latest(paths))


def _experiment(
    what: Path,
    arguments: list[str],
    managers: str | None,
    seeds: str | None,
    reference: str | None,
    policy: Path | None,
) -> experiment.Experiment:
    """An experiment file with what the flags say instead, or an experiment of flags alone."""
    manifests.recordable(str(what), *arguments, managers or "", reference or "", str(policy or ""))
    flags: dict[str, Any] = {
        **({"managers": [name.strip() for name in managers.split(",")]} if managers is not None else {}),
        **({"seeds": experiment.seeds_of(seeds, "--seeds")} if seeds is not None else {}),
        **({"reference": reference} if reference is not None else {}),
    }
    if what.suffix != ".toml":
        rules = str(policy) if policy else None
        return experiment.Experiment(script=str(what), arguments=arguments, policy=rules, **flags)
    if arguments or policy:
        raise UserError(
            f"{what} says which arguments and which policy there are; `--` and --policy (or {POLICY_VARIABLE}) are "
            "for a script. Write them into the file, or leave them out."
        )
    return experiment.load(what).narrowed(**flags)


def _metrics(text: str) -> tuple[list[str], dict[str, Any]]:
    """Names, and which way those are better of which it is said: a=min,b."""
    names, goals = [], {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        name, _, goal = part.partition("=")
        if goal not in ("", "min", "max"):
            raise UserError(f"--metrics {part!r}: after the name comes =min, =max or nothing.")
        names.append(name)
        if goal:
            goals[name] = goal
    return names, goals


def main() -> None:
    """The entry point: a mistake ends with a message and an exit code, never with a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as __main__ has left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    output.prepare()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, no exit code of a child is known
    process.conceal()  # before anything is started that could look
    try:
        _complete_bash() if os.environ.get("_TRAINMGR_COMPLETE") == "complete_bash" else app()
    except TrainmgrError as error:
        code = _refused(error)
    except KeyboardInterrupt:
        code = errors.EXIT_INTERRUPTED
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else errors.EXIT_FAILED
    except OSError as error:  # a name that is too long, a folder that nobody may look into
        code = _refused(UserError(f"{error.filename}: {error.strerror}." if error.filename else str(error)))
    else:
        code = errors.EXIT_OK
    try:
        sys.stdout.flush()
    except TrainmgrError as error:
        code = code or _refused(error)
    sys.exit(code)


def _refused(error: TrainmgrError) -> int:
    with contextlib.suppress(TrainmgrError):
        print(foreign.on_terminal_in_lines(f"trainmgr: {error}"), file=sys.stderr)
    return error.exit_code
