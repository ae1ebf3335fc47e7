"""The command line. The only user of typer: a command parses, makes one call, prints.

Data goes to stdout, narration to stderr. What a command needs is imported when it is called: `--help`, `runs` and a Tab
wait for nothing else. (Annotations are evaluated here, unlike elsewhere: typer would have to compile them from text.)
"""

import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trainmgr import __version__, managers
from trainmgr.base import errors
from trainmgr.base.concealment import conceal
from trainmgr.base.errors import TrainmgrError, UserError
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
    stranger,
)
from trainmgr.managers.prompts import VARIANTS
from trainmgr.terminal import output, tab

if TYPE_CHECKING:
    from trainmgr.sources.reading import Reading

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

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's id, the beginning of one, a path, or `latest`.", autocompletion=tab.runs
    ),
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
                      autocompletion=tab.names)
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
        Literal["auto", "shadow", "approve"],
        typer.Option(help="auto: apply; shadow: decide and log only; approve: ask you first."),
    ] = "auto",
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
    read: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Read a script that only prints: 'step {step} .* val {val_loss}'. May be repeated."
        ),
    ] = None,
    csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="Read the CSV file that it writes; - for what it prints.")
    ] = None,
    jsonl: Annotated[
        str | None, typer.Option(metavar="FILE", help="Read the JSON lines that it writes; - for what it prints.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="NAME:min|max", help="With these: the number that decides what is better.")
    ] = None,
    counterpart: Annotated[
        str | None, typer.Option(metavar="NAME", help="With these: the number that measures the same on training data.")
    ] = None,
    step: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="With --csv or --jsonl: the column that is the step.")
    ] = None,
    total_steps: Annotated[
        int | None, typer.Option(metavar="N", help="With these: the step that it ends with.")
    ] = None,
    api_key_env: KeyNameOption = None,
    send_key: SendKeyOption = None,
    quiet: QuietOption = False,
    json: Annotated[bool, typer.Option("--json", help="Every event as a JSON line on stdout.")] = False,
) -> None:
    """Start a training script and supervise it to its end. The script's exit code is kept.

    Example: `trainmgr run workloads/tinystories.py --manager rules --seed 1 -- --profile quick`

    A script that reports nothing is watched, and stopped by signals, if it prints or writes its figures:
    `trainmgr run --read 'step {step} loss {loss}' --read 'val {val_loss}' --objective val_loss:min train.py`

    Ctrl-C or SIGTERM once asks the script to end, twice kills it. SIGUSR1, SIGUSR2 and the like are passed on to it.
    """
    from trainmgr.contract import policy as policies
    from trainmgr.managers import catalog, key
    from trainmgr.running import launch
    from trainmgr.terminal import consoles, supervised

    key.heed(api_key_env, send_key or [])
    request = launch.Request(
        script=script, arguments=arguments or [], manager=manager, mode=mode, seed=seed, runs_dir=runs_dir,
        policy=policies.with_flags(policies.load(policy), restarts=restarts, stall_timeout=stall_timeout),
        name=name, blocking=blocking, say=lambda text: None if quiet else consoles.aside(text),
        reading=_reading(
            patterns=read or [], csv=csv, jsonl=jsonl, objective=objective, counterpart=counterpart, step=step,
            total_steps=total_steps,
        ),
    )  # fmt: skip
    if manager == "auto":
        request.say("manager: {} ({})".format(*catalog.choose(manager, request.policy)))
    raise typer.Exit(supervised.run(request, quiet=quiet, json=json))


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
    from trainmgr.managers import key
    from trainmgr.terminal import supervised

    key.heed(api_key_env, send_key or [])
    paths = _own(find_run(runs_dir, run), trust, "attach acts on what it says.")
    raise typer.Exit(supervised.attach(paths, runs_dir, quiet=quiet, json=json))


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
    from trainmgr.log import audit as log
    from trainmgr.readers import proof
    from trainmgr.terminal import consoles, tables

    paths = _named(find_run(runs_dir, run))
    result = proof.prove(paths, log.read_key(key_file) if key_file is not None else log.given_key(), expect)
    if json:
        print(tables.proof_json(result))
    elif head and result.holds:
        print(result.head)
    else:  # a digest is wanted by programs: that there is none is no data
        tables.print_proof(consoles.narration if head else consoles.data, result)
    raise typer.Exit(errors.EXIT_OK if result.holds else errors.EXIT_FAILED)


@app.command("replay")
def replay_run(
    run: RunArgument = "latest",
    runs_dir: RunsDirOption = Path("runs"),
    manager: Annotated[
        str | None,
        typer.Option(
            "--manager", "-m", metavar="NAME", help="Put the snapshots to this manager.", autocompletion=tab.names
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
            help="With --manager llm, hybrid or local: ask each snapshot in so many other wordings of the prompt too.",
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
    from trainmgr.base import wire
    from trainmgr.contract import policy as policies
    from trainmgr.managers import key
    from trainmgr.readers import again
    from trainmgr.terminal import consoles, playback, supervised, tables

    key.heed(api_key_env, send_key or [])
    paths = _named(find_run(runs_dir, run))
    if sum((manager is not None, train, watch)) > 1:
        raise UserError("--manager, --train and --watch are three different replays. Choose one.")
    if paraphrase and (manager is None or not policies.asks_model(manager)):
        raise UserError(
            "--paraphrase rewords a language model's prompt: give --manager llm[:MODEL], hybrid[:MODEL] or local:FILE "
            "too."
        )
    if watch:
        playback.play(paths, speed)
        return
    differs = False
    if train:
        _own(paths, trust, "--train runs the script that it names.")
        trained = again.train(paths, runs_dir, supervised.watched, consoles.aside)
        differs = trained.result.first is not None
        if json:
            print(wire.pretty({"run": paths.id, "again": trained.again.id, **vars(trained.result)}))
        else:
            tables.print_comparison(consoles.data, paths, trained.again, trained.result)
    elif manager is not None:
        if policies.asks_model(manager) and policy is None:
            _own(paths, trust, "Without --policy, your key goes to the endpoint that it names.")
        rules = policies.load(policy) if policy else None
        answers = again.ask(paths, manager, rules, paraphrase, runs_dir, consoles.aside)
        if json:
            print(wire.pretty([vars(item) for item in (*answers.opinions, *answers.reworded)]))
        elif paraphrase:
            tables.print_reworded(consoles.data, answers.reworded, answers.other)
        else:
            tables.print_opinions(consoles.data, answers.opinions, answers.recorded, answers.other)
    else:
        rebuilt = again.decide(paths, runs_dir)
        differs = bool(rebuilt.differences)
        if json:
            print(wire.pretty(vars(rebuilt)))
        else:
            tables.print_rebuilt(consoles.data, rebuilt)
    raise typer.Exit(errors.EXIT_FAILED if differs else errors.EXIT_OK)


@app.command()
def runs(runs_dir: RunsDirOption = Path("runs"), json: JsonOption = False) -> None:
    """List the runs, the latest last.

    Example: `trainmgr runs`
    """
    found = list_runs(runs_dir)
    if json:
        from trainmgr.log import history
        from trainmgr.terminal import tables

        print(tables.runs_json([(paths, history.run_file(paths)) for paths in found]))
        return
    from trainmgr.contract import summary
    from trainmgr.terminal import consoles, listing

    if found:
        listing.print_runs(consoles.data, [(paths, summary.read(paths.manifest)) for paths in found])
    else:
        consoles.aside(f"There are no runs in {runs_dir}/ yet. Start one: trainmgr run SCRIPT")


@app.command()
def show(run: RunArgument = "latest", runs_dir: RunsDirOption = Path("runs"), json: JsonOption = False) -> None:
    """Show one run: curves, recipe, interventions.

    Example: `trainmgr show latest`
    """
    from trainmgr.log import history
    from trainmgr.terminal import consoles, screen, tables

    paths = _named(find_run(runs_dir, run))
    now = history.latest(paths)
    if json:
        print(tables.show_json(paths, now))
        return
    consoles.data.print(screen.render(now, width=min(consoles.data.width, 120)))
    tables.print_closing(consoles.data, now)


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
    from trainmgr.base import wire
    from trainmgr.checking import breaches
    from trainmgr.checking.check import Probe
    from trainmgr.running import launch
    from trainmgr.terminal import consoles, tables

    launch.end_as_at_the_keyboard()
    checked = Probe(script, arguments or [], seconds, deterministic=deterministic).run()
    if json:
        print(wire.pretty(breaches.as_json(checked)))
    else:
        tables.print_checked(consoles.data, checked)
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
        Literal["permutation", "wilcoxon", "t"], typer.Option(help="Test of the paired differences.")
    ] = "permutation",
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
    from trainmgr.comparison import compare as comparing
    from trainmgr.managers import key
    from trainmgr.terminal import consoles

    key.heed(api_key_env, send_key or [])
    request = comparing.Request(
        what=what, arguments=arguments or [], managers=managers, seeds=seeds, reference=reference, cases=case or [],
        metrics=metrics, test=test, show_seeds=show_seeds, out=out, reuse=reuse, jobs=jobs, policy=policy,
        runs_dir=runs_dir,
    )  # fmt: skip
    found = comparing.compare(request, consoles.aside)
    for path in found.written:
        consoles.aside(f"written: {path}")
    print(found.json() if json else found.text)
    for text in found.failed:
        consoles.aside(text, "red")
    raise typer.Exit(errors.EXIT_FAILED if found.failed else errors.EXIT_OK)


@app.command()
def schema(
    folder: Annotated[Path, typer.Argument(help="Where to write.")] = Path("schemas"),
) -> None:
    """Write the JSON schemas of every file of a run, with example records: the contract for other languages.

    Example: `trainmgr schema schemas/`
    """
    from trainmgr.contract import schemas

    for path in schemas.write(folder):
        print(path)


@app.command()
def policy() -> None:
    """Print a policy file with every key at its default and explained.

    Example: `trainmgr policy > policy.toml`
    """
    from trainmgr.contract import schemas

    print(schemas.policy_file(), end="")


# -- helpers of the commands -------------------------------------------------------------------------------------------


def _named(paths: RunPaths) -> RunPaths:
    """A run that is read; says so where it is not the user's own."""
    if why := stranger(paths):
        from trainmgr.terminal import consoles

        consoles.aside(f"{paths.id}: {why}")
    return paths


def _own(paths: RunPaths, trust: bool, what: str) -> RunPaths:
    """A run that is obeyed: ``what`` says how, in a sentence. Raises UserError where others may have written it."""
    if not trust and (why := stranger(paths)):
        raise UserError(f"{paths.id}: {why}. {what} Look at it with `trainmgr show`, and add --trust if you trust it.")
    return paths


def _reading(**asked: Any) -> "Reading | None":
    """How a script is read. Raises UserError for what cannot be."""
    from trainmgr.sources.pattern import SourceError
    from trainmgr.sources.reading import Reading

    try:
        return Reading.asked(**asked)
    except SourceError as error:
        raise UserError(str(error)) from None


# -- the entry point ---------------------------------------------------------------------------------------------------


def main() -> None:
    """The entry point: a mistake ends with a message and an exit code, never with a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as __main__ has left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    output.prepare()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, no exit code of a child is known
    conceal()  # before anything is started that could look
    try:
        tab.in_bash(app) if tab.asked_by_bash() else app()
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
    from trainmgr.base import foreign

    with contextlib.suppress(TrainmgrError):
        print(foreign.on_terminal_in_lines(f"trainmgr: {error}"), file=sys.stderr)
    return error.exit_code
