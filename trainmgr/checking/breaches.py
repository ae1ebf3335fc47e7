"""What `trainmgr check` has seen of a script, judged: every breach of the protocol with its fix. Pure."""

from __future__ import annotations

from typing import Any

from trainmgr.base.wire import Value, nearest, parts, short
from trainmgr.checking import rollbacks
from trainmgr.checking.checked import Checked
from trainmgr.checking.seen import COMPARED, KEPT, Seen, Sent, alike, kept_path, unlike
from trainmgr.contract import protocol
from trainmgr.contract.action_space import Boundary
from trainmgr.log.telemetry import Item
from trainmgr.state.notices import LACKING

HIGH = {"acc", "accuracy", "auc", "auroc", "bleu", "dice", "f1", "fscore", "iou", "miou", "precision", "psnr", "r2",
        "recall", "return", "returns", "reward", "rewards", "rouge", "ssim", "success", "winrate"}  # fmt: skip
LOW = {"bce", "cer", "err", "error", "errors", "fid", "loss", "losses", "mae", "mse", "nll", "perplexity", "ppl",
       "regret", "rmse", "wer"}  # fmt: skip
TURNED = {"neg", "negative", "minus", "inverse", "inv"}
SEEDS = (12345, 54321)
MESSAGES = 5  # warnings of the script that are repeated
HEARD = 1.0  # seconds after which a workload that passes a boundary must have seen a change
PASSED: dict[Boundary, tuple[type[Item], ...]] = {  # what a workload reports at a boundary, or at a coarser one
    "step": (protocol.Step, protocol.Eval, protocol.Checkpoint),
    "eval": (protocol.Eval, protocol.Checkpoint),
    "checkpoint": (protocol.Checkpoint,),
}


def judge(seen: Seen) -> Checked:
    """All of it."""
    checked = Checked(seen.script, records=len(seen.items))
    if seen.exit is not None and seen.exit.code not in (0, 143):
        checked.output = seen.output
        checked.error(f"The script {seen.exit.words}.", "Run it by itself first: `python SCRIPT`.")
    if not seen.items:
        checked.error(
            "No telemetry was written.",
            "Create a trainmgr.workload.Workload and report steps; see workloads/minimal.py.",
        )
        return checked
    _lines(checked, seen)
    if not isinstance(seen.items[0], protocol.Start):
        checked.error("The first record is no `start`.", "Write `start` before everything else.")
    if seen.state.gaps:
        checked.error(
            f"{seen.state.gaps} records are missing in the count of seq.", "Count seq from 0, one up for each record."
        )
    if seen.state.start is not None:
        _start(checked, seen.state.start)
        _reports(checked, seen, seen.state.start)
        _persistence(checked, seen)
        _answers(checked, seen, seen.state.start)
        _commands(checked, seen)
        _seeds(checked, seen, seen.state.start)
    return checked


def _lines(checked: Checked, seen: Seen) -> None:
    """What cannot be read, or not as it is, each once with its count."""
    found: dict[str, list[str]] = {}
    for number, item in enumerate(seen.items, start=1):
        if isinstance(item, protocol.Unreadable):
            found.setdefault(item.reason, []).append(f"{number} is no record: {item.reason}: {item.quote[:80]}")
    for lines in found.values():
        also = "" if len(lines) == 1 else f" (and {len(lines) - 1} more for the same reason)"
        checked.error(f"Line {lines[0]}{also}", "See schemas/telemetry.json.")
    for kind in seen.state.notices.kinds:
        if kind in LACKING:
            what, fix = seen.state.notices.said(kind)
            say = checked.error if kind in ("left out", "back") else checked.warning
            say(what[0].upper() + what[1:], fix)
    warned = dict.fromkeys(i.message for i in seen.items if isinstance(i, protocol.Log) and i.level == "warning")
    for message in list(warned)[:MESSAGES]:
        fix = rollbacks.EVALUATED if message.startswith(COMPARED) else ""  # else it says itself what to do, if anything
        checked.warning(f"The script warns: {short(message, 300)}", fix)


def _goal(checked: Checked, objective: protocol.Objective) -> None:
    """Whether the name of the objective says that it should go the other way."""
    words = parts(objective.metric)
    high, low = bool(words & HIGH), bool(words & LOW)
    if high == low or words & TURNED or (high if objective.mode == "max" else low):
        return
    other, usual = ("max", "more") if high else ("min", "less")
    checked.warning(
        f"The objective {objective.metric!r} has mode {objective.mode!r}, and its name says that {usual} is better.",
        f"Is that meant? If not, pass mode={other!r}: managers would work against it, and keep the worst weights.",
    )


def _start(checked: Checked, start: protocol.Start) -> None:
    _goal(checked, start.objective)
    if not start.action_space:
        checked.warning("There is no parameter to change.", "Declare some: w.float(...), w.optimizer(...).")
    if start.total_steps is None:
        checked.warning("The number of steps is not known.", "Pass total_steps: progress and schedules need it.")
    if start.seed != SEEDS[0]:
        checked.warning(
            f"The seed asked for was {SEEDS[0]}, the workload used {start.seed}.",
            "Take it from trainmgr.workload.default_seed().",
        )
    if "rollback" not in start.commands:
        checked.warning(
            "It cannot roll back.", "Offer w.command('rollback', ...): what a change did to the weights stays else."
        )
    if "stop" not in start.commands:
        checked.warning("It cannot be told to stop.", "Offer w.command('stop', ...), and leave the loop.")
    for parameter in start.action_space:
        objection = None if parameter.scheduled else parameter.objection(parameter.value)  # a warm-up begins at 0
        if objection:
            checked.error(f"The value at the start: {objection}.", "Widen the bounds or start inside them.")
        limited = parameter.max_ratio or parameter.max_delta or parameter.type in ("bool", "choice")
        if not limited and parameter.scale == "log":
            checked.warning(f"{parameter.name} may jump from one bound to the other in one change.", "Give max_ratio.")


def _reports(checked: Checked, seen: Seen, start: protocol.Start) -> None:
    metric = start.objective.metric
    evals = [item for item in seen.items if isinstance(item, protocol.Eval)]
    if not evals:
        checked.warning(
            "No evaluation was reported in the time of this check.",
            f"Report the objective with w.eval(step, {{{metric!r}: ...}}), or give --seconds more.",
        )
    elif not any(metric in item.metrics for item in evals):
        checked.error(
            f"The objective {metric!r} is in none of the evaluations.",
            f"They have: {short(', '.join(evals[0].metrics), 200) or 'nothing'}. Name one of them as the objective."
            f"{nearest(metric, evals[0].metrics)}",
        )
    else:
        checked.passed.append(f"{len(evals)} evaluations carry the objective {metric!r}")
    counterpart = start.objective.counterpart
    if evals and counterpart and not any(counterpart in item.metrics for item in evals):
        checked.warning(
            f"The counterpart {counterpart!r} is in none of the evaluations: overfitting cannot be told.",
            f"They have: {short(', '.join(evals[0].metrics), 200) or 'nothing'}. Report it there, or name another one."
            f"{nearest(counterpart, [name for name in evals[0].metrics if name != metric])}",
        )
    names = {n for item in seen.items if isinstance(item, protocol.Step | protocol.Eval) for n in item.metrics}
    silent = sorted(names - set(start.metrics))
    if silent:
        checked.warning(f"Metrics without a description: {', '.join(silent[:5])}.", "Describe them in `metrics`.")


def _persistence(checked: Checked, seen: Seen) -> None:
    """Whether values stay where they were put."""
    for drift in seen.drifts:
        expected, found = _shown(drift.expected), _shown(drift.found)
        if drift.set_at is None:
            checked.error(
                f"{drift.name} went from {expected} to {found} at step {drift.step} by itself.",
                "If a scheduler moves it, pass scheduler=... to w.optimizer, or scheduled=True; else find who sets it.",
            )
        else:
            checked.error(
                f"{drift.name} was set to {expected} at step {drift.set_at} and is {found} at step {drift.step}: "
                "something overwrites it.",
                "Declare a value of an optimizer with w.optimizer, whose changes survive every scheduler; or let `set` "
                "write where the script takes the value from.",
            )
    if not seen.drifts and seen.evals:
        checked.passed.append("no parameter moves by itself, and every change stays in effect")
    first, last = (seen.evals[0], seen.evals[-1]) if seen.evals else (None, None)
    for name, moving in last.moving.items() if first and last else ():
        then = first.moving.get(name) if first else None
        known = any(e.moving[name].end is not None for e in seen.evals if name in e.moving)
        if not known and then is not None and then.value != moving.value:
            checked.warning(
                f"{name} follows a schedule, and nobody knows what that ends on.",
                "Pass scheduler=... to w.optimizer: then managers know, and do not lower what falls by itself. Where "
                "that was done, the end depends on what is measured (ReduceLROnPlateau), and all is well.",
            )


def _answers(checked: Checked, seen: Seen, start: protocol.Start) -> None:
    asked = {name for sent in seen.sent.values() for name in sent.params}
    untried = [p.name for p in start.action_space if p.name not in asked]
    untried += [
        name for name in start.commands if not any(s.command and s.command.name == name for s in seen.sent.values())
    ]
    for revision, sent in seen.sent.items():
        answer = seen.answers.get(revision)
        if answer is None:
            if seen.over and sent.params and not _passed_by(seen, sent, start):
                untried += sent.params
            elif sent.at_step is not None and seen.state.step < sent.at_step:
                untried.append(sent.words)
            elif seen.state.step and (sent.params or not seen.over):
                checked.error(
                    f"The change of {sent.words} was never answered."
                    if sent.params
                    else f"{sent.words} was never answered.",
                    "Read control.json at the boundary you declared, and write `applied` or `refused`.",
                )
            else:
                untried.append(sent.words)
        elif isinstance(answer, protocol.Refused) and sent.params:
            unheard = answer.reason.startswith("set(")
            fix = "Let `set` write where training, and `get`, take the value from." if unheard else "Accept it."
            checked.error(f"A change of {sent.words} within its bounds was refused: {answer.reason}", fix)
        elif isinstance(answer, protocol.Applied):
            _applied(checked, answer, sent.params)
    if untried and (seen.over or len(seen.answers) == len(seen.sent)):
        checked.warning(
            f"The {'run' if seen.over else 'time'} was over before {', '.join(dict.fromkeys(untried))} could be tried.",
            "Let it train longer (some evaluations), or give --seconds more.",
        )


def _passed_by(seen: Seen, sent: Sent, start: protocol.Start) -> bool:
    """Whether the workload came to a boundary at which it should have answered, well after the change was sent."""
    boundaries = [p.boundary for p in start.action_space if p.name in sent.params]
    late = sent.t + HEARD
    return any(isinstance(i, PASSED[boundary]) and i.t > late for i in seen.items for boundary in boundaries)  # type: ignore[union-attr]


def _applied(checked: Checked, answer: protocol.Applied, params: dict[str, Value]) -> None:
    for name, value in params.items():
        new = answer.changes.get(name, (None, None))[1]
        close = isinstance(new, float | int) and isinstance(value, float | int)
        if new == value or (close and abs(float(new) - float(value)) <= 1e-6 * abs(float(value))):  # type: ignore[arg-type]
            text = f"{name}: a change takes effect and is read back"
            if text not in checked.passed:
                checked.passed.append(text)
        else:
            checked.error(
                f"{name} was set to {_shown(value)}, and {_shown(new)} is in effect.",
                "`get` must read where training reads, and nothing may overwrite what `set` wrote.",
            )


# -- commands ----------------------------------------------------------------------------------------------------------


def _commands(checked: Checked, seen: Seen) -> None:
    _kept(checked, seen)
    rollbacks.judge(checked, seen)
    stop = next((r for r, sent in seen.sent.items() if sent.command and sent.command.name == "stop"), None)
    answer = seen.answers.get(stop) if stop is not None else None
    if isinstance(answer, protocol.Refused):
        checked.error(f"The stop was refused: {answer.reason}", "Accept it, and leave the loop.")
    elif isinstance(answer, protocol.Applied):
        _stopped(checked, seen)


def _kept(checked: Checked, seen: Seen) -> None:
    answer = seen.answers.get(seen.kept) if seen.kept is not None else None
    if isinstance(answer, protocol.Refused):
        checked.error(f"To keep a checkpoint as {KEPT!r} was refused: {answer.reason}", "Save it under that name.")
    elif isinstance(answer, protocol.Applied):
        path = kept_path(seen.items)
        later = any(item.step > answer.step for item in seen.evals)
        if path is None and later:
            checked.error(
                f"It was told to keep a checkpoint as {KEPT!r}, and reported none.",
                "Save it, and report it with w.checkpoint; with `Checkpoints`, call report(step) after each step.",
            )
        elif path is not None and path not in seen.checkpoints:
            checked.error(f"It reported the checkpoint {path}, and there is none.", "Write it before it is reported.")
        elif path is not None:
            checked.passed.append(f"checkpoint: {path} is there")


def _shown(value: Value | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _stopped(checked: Checked, seen: Seen) -> None:
    state = seen.state
    fix = "Leave the loop when w.stopping is true: look at it after each step, or loop over w.steps()."
    if state.trained_on > 1:
        steps = f"It was told to stop at step {state.stopped_at}, and trained on for {state.trained_on} steps"
        if seen.over and (state.total_steps is None or state.step < state.total_steps):
            checked.warning(f"{steps} before it ended.", fix)
        else:
            checked.error(f"{steps}{', to its usual end' if seen.over else ', until it was ended'}.", fix)
    elif not seen.over:
        checked.warning(f"It stopped at step {state.stopped_at}, and did not end in time.", "End the script then.")
    else:
        checked.passed.append("stop: it ends")


# -- seeds -------------------------------------------------------------------------------------------------------------


def _seeds(checked: Checked, seen: Seen, start: protocol.Start) -> None:
    if seen.other is None:
        return
    found = alike(seen.alone, seen.other, start.objective.metric, [p.name for p in start.action_space])
    if found == "" and seen.deterministic:
        checked.error(
            f"The seeds {SEEDS[0]} and {SEEDS[1]} gave other figures: something in the script is random.",
            "Leave --deterministic out, and seed what is random from trainmgr.workload.default_seed().",
        )
    elif seen.deterministic:
        checked.passed.append("nothing is random: another seed gives the same figures")
    elif found is None:
        checked.warning(
            "Whether the seed matters cannot be told: what was measured before the first change hardly varies.",
            "Give --seconds more, or report a training loss at each step. If nothing is random: --deterministic.",
        )
    elif found:
        checked.error(
            f"The seeds {SEEDS[0]} and {SEEDS[1]} gave the same figures ({found}): the script does not use the seed.",
            "Take it from trainmgr.workload.default_seed() and seed everything with it (random, numpy, torch). Else "
            "`compare` measures one run several times. If nothing in the script is random, say so: `trainmgr check "
            "--deterministic`, and do not compare its seeds.",
        )
    elif seen.again is not None and (differs := unlike(seen.alone, seen.again)):
        checked.warning(
            f"The same seed, {SEEDS[0]}, gave other figures the second time: {differs}.",
            "Seed everything that is random from trainmgr.workload.default_seed(), before models and data are made "
            "(random, numpy, torch). Else no run can be repeated, and what `compare` pairs has nothing in common.",
        )
    else:
        checked.passed.append("another seed gives other figures")


def as_json(checked: Checked) -> dict[str, Any]:
    return {
        "script": checked.script,
        "ok": checked.ok,
        "records": checked.records,
        "breaches": [vars(breach) for breach in checked.breaches],
        "passed": checked.passed,
        "output": checked.output,
    }
