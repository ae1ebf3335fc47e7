"""What the reading commands print: results as rich tables, or as JSON."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from trainmgr.base.paths import RunPaths
from trainmgr.base.process import last_lines, no_room
from trainmgr.base.wire import plain, pretty
from trainmgr.checking.checked import Checked
from trainmgr.contract.proposal import Plan
from trainmgr.contract.run_file import Closing, RunFile
from trainmgr.readers import proof, replay
from trainmgr.readers.opinions import Opinion, Reworded
from trainmgr.state.run_state import RunState, figures
from trainmgr.state.situation import Situation
from trainmgr.terminal import display, listing, words
from trainmgr.terminal.markup import Grid, quoted, say

LISTED = 12  # interventions in the last lines of a run


def counted(number: int, what: str) -> str:
    """1 answer, 2 answers."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def print_closing(console: Console, now: Situation, stderr: Path | None = None, lacking: str = "") -> None:
    """The last lines of a run: what was done and why, how the objective ended, what to type next.

    ``lacking`` says what is wrong with its files, where all of this comes from memory.
    """
    state, ledger, manifest = now.state, now.ledger, now.manifest
    closing = ledger.ended.closing if ledger.ended else None

    def out(text: str) -> None:
        say(console, text)

    out("")
    if state.interventions:
        hidden = state.intervention_count - min(LISTED, len(state.interventions))
        others = max(0, state.intervention_count - ledger.own - ledger.stops)
        makers = ((others, manifest.manager), (ledger.own, "probation"), (ledger.stops, ledger.stopped_by))
        (count, by), *more = [(count, by) for count, by in makers if count]
        out(f"[bold]{counted(count, 'intervention')}[/] by {quoted(by)}"
            + "".join(f" and {count} by {quoted(by)}" for count, by in more) + ":"
            + (f" (the last {LISTED}; `audit` lists all)" if hidden > 0 else ""))  # fmt: skip
        for item in state.interventions[-LISTED:]:
            decision = ledger.decisions.get(ledger.revisions.get(item.revision, ""))
            by = display.origin_in_words(ledger, item.revision)
            mark = "  (taken back)" if item.revision in ledger.taken_back else ""
            mark += f"  [yellow]({quoted(display.lost_in_words(item))})[/]" if item.lost else ""
            why = f"{decision.diagnosis} ({decision.evidence})" if decision else by
            why = f"{decision.by}, {why}" if decision and ledger.answers.hybrid else why
            parts = (
                display.command_in_words(item.command),
                display.done_in_words(item.changes, decision.plans if decision else {}),
            )
            out(f"  step {item.step:>6,}  {quoted(why)}: [bold]{quoted('; '.join(p for p in parts if p))}[/]{mark}")
        if state.overwritten:
            lost = counted(sum(state.overwritten.values()), "change")
            out(f"[yellow]{lost} of {', '.join(map(quoted, state.overwritten))} did not last: something in the script "
                f"overwrites them. What helps: trainmgr check {quoted(shlex.quote(manifest.script))}[/]")  # fmt: skip
    else:
        out(f"No interventions (manager {quoted(manifest.manager)}, mode {manifest.mode}).")
    if manifest.mode == "shadow" and ledger.accepted:
        out(f"Shadow: {counted(ledger.accepted, 'proposal')} passed the guard, and none was applied.")
    if vain := ledger.rejected + ledger.refused + ledger.lapsed:
        out(f"Not applied: {counted(vain, 'answer')}; the last: {quoted(ledger.rejections[-1])}.")
    for ailment in ledger.ailments.values():
        out(f"[yellow]{quoted(display.ailment_in_words(ailment, ledger))}[/]")
    if ledger.reversals:
        out(_probation(ledger.reversals, ledger.lost, ledger.idle, ledger.demoted))
    if spent := display.spent_in_words(ledger):
        out(f"The model was asked: {spent}.")
    if ledger.answers.hybrid and ledger.answered:
        out(f"Decisions: {ledger.answers.by_model} of {ledger.answered} by the model, the others by the rules.")
    if ledger.answers.stood_in:
        out(f"[yellow]The rules stood in for the model {counted(ledger.answers.stood_in, 'time')}; the last: "
            f"{quoted(ledger.answers.stood_in_why).rstrip('.')}.[/]")  # fmt: skip
    if ledger.unanswered:
        why = quoted(ledger.unanswered_why).rstrip(".")
        out(f"[yellow]No answer to {counted(ledger.unanswered, 'decision')}; the last: {why}.[/]")
    for text in _ended_at(state, figures(state)["final"] if closing is None else closing.final, ledger.unread):
        out(text)
    if ledger.unread:
        out(f"[red]{quoted(ledger.unread)}.[/]")
    if state.trained_on > 1:
        out(f"[yellow]The script was told to stop at step {state.stopped_at:,} and trained on for "
            f"{words.steps(state.trained_on)}: its loop must end when w.stopping is true.[/]")  # fmt: skip
    if state.end is not None and state.end.metrics:
        out("At the end: " + ", ".join(f"{quoted(n)} {words.number(v)}" for n, v in state.end.metrics.items()) + ".")
    if state.start is not None and state.start.info.get("genuine") is False:
        out(f"[yellow]Data: {quoted(str(state.start.info.get('data')))}.[/]")
    if closing is not None and (closing.exit_code or closing.status not in ("completed", "stopped")):
        by = f" by {ledger.stopped_by}" if closing.status == "interrupted" and ledger.stopped_by else ""
        if _went_on(state, closing):
            out(f"[yellow]The workload ended with {quoted(_error(state))}, and the script went on: it "
                f"{quoted(closing.exit)}.[/]")  # fmt: skip
        else:
            out(f"[red]The workload {quoted(closing.exit)} ({closing.status}{quoted(by)}).[/]")
        for failure in (ledger.misfit if ledger.misfit is not ledger.failure else None, ledger.failure):
            if failure is not None and failure.message != ledger.unread:
                out(f"[red]{quoted(failure.where)}: {quoted(failure.message)}[/]")
        if stderr and no_room(stderr.parent):
            out(f"[red]No space left on device: the disk with {quoted(str(stderr.parent))} is full. That may be why it "
                "ended, and what it said of that may be missing.[/]")  # fmt: skip
        for line in last_lines(stderr) if stderr else []:
            out(f"  {quoted(line)}")
    elif ledger.failure is not None and ledger.failure.where == "processes":
        out(f"[yellow]{quoted(ledger.failure.message)}[/]")
    for text in state.notices.in_words():
        out(f"[yellow]{quoted(text[0].upper() + text[1:])}[/]")
    torn = ledger.ended is not None and bool(ledger.ended.torn)
    if torn:
        out("[yellow]What follows the last line break of telemetry was not read: every record ends with one.[/]")
    if closing is not None and state.start is None:
        wrote = f"{counted(state.lines, 'line')} of telemetry and no `start` record that can be read"
        out(f"[yellow]The script wrote {wrote if state.lines or torn else 'no telemetry'}, so nothing was supervised. "
            f"Try: trainmgr check {quoted(shlex.quote(manifest.script))}[/]")  # fmt: skip
    if lacking:
        out("[red]The files of the run do not hold together any more, so all of this is from memory: "
            f"{quoted(lacking.rstrip('.'))}.[/]")  # fmt: skip
    elif closing is None or state.start is not None:  # else there is nothing to look at
        run = quoted(shlex.quote(manifest.id))
        out(f"Next: trainmgr show {run} | trainmgr audit {run} | trainmgr replay {run}")


def _went_on(state: RunState, closing: Closing) -> bool:
    """Whether the workload ended with an exception that the script caught outside of it."""
    return not closing.exit_code and state.end is not None and state.end.status == closing.status == "failed"


def _error(state: RunState) -> str:
    """The name of the exception that a workload ended with, which is the beginning of its last message."""
    messages = [message for level, message in state.texts if level == "error"]
    return messages[-1].partition(":")[0] if messages else "an error"


def _ended_at(state: RunState, final: float | None, unread: str) -> Iterator[str]:
    """How the objective ended. Nothing is claimed to be the end that evaluations came after, or may have come."""
    if state.start is None:
        return
    name = quoted(state.start.objective.metric)
    if state.best is None:
        if final is not None:
            measured = counted(state.evals, "evaluation")
            yield f"{name} ended at [bold]{words.number(final)}[/]; it was not finite at any of {measured}."
        return
    step, best = state.best
    its_best = f"its best was {words.number(best)} at step {step:,}"
    again = state.end is not None and state.start.objective.metric in state.end.metrics
    if state.kept_best and not state.trained_on and not again:
        yield f"{name} ended at [bold]{words.number(best)}[/], on its best weights, as measured at step {step:,}."
    elif final is not None:
        yield f"{name} ended at [bold]{words.number(final)}[/]; {its_best}{_much_worse(state, final, best)}."
    elif state.measured and unread:
        _, at, value = state.measured[-1]
        yield f"{name} was [bold]{words.number(value)}[/] at step {at:,}, the last that was read; {its_best}."
    elif state.measured and (lost := state.notices.lost):
        _, at, value = state.measured[-1]
        yield (f"{name} was [bold]{words.number(value)}[/] at step {at:,}; {counted(lost, 'later evaluation')} could "
               f"not be read ({quoted(state.notices.lost_why)}); {its_best}.")  # fmt: skip
    elif state.measured and state.unseen and not state.rolled_back:
        _, at, value = state.measured[-1]
        last = "last evaluation" if state.unseen == 1 else f"last {state.unseen} evaluations"
        yield f"{name} is not in the {last}; it was [bold]{words.number(value)}[/] last, at step {at:,}; {its_best}."
    else:
        yield f"{name} was not measured after the last change of the weights; {its_best}."


def _much_worse(state: RunState, final: float, best: float) -> str:
    """How much worse than the best the end is, as a fraction of what counts as 100%; empty where nothing does."""
    declared = state.start.objective.scale if state.start else None
    scale = declared or abs(best)
    worse = (state.worse(final) - state.worse(best)) / scale if scale else math.nan
    if not math.isfinite(worse) or f"{worse:.1%}".lstrip("-") == "0.0%":
        return ""
    whole = " of its scale" if declared else ""
    return f" ({abs(worse):.1%}{whole} {'worse' if worse > 0 else 'better'})"


def _probation(reversals: int, lost: int, vain: int, demoted: bool) -> str:
    then = "; then nothing more of the manager was applied." if demoted else "."
    return (
        f"Probation: changes were taken back {counted(reversals, 'time')}, {display.losses_in_words(lost, vain)}{then}"
    )


def print_proof(console: Console, result: proof.Proof) -> None:
    table = Grid("step", "why", "what", "expected", "objective before → since")
    for change in result.changes:
        pairs = {name: (pair[0], pair[1]) for name, pair in change.changes.items()}
        plans = {name: Plan.model_validate(plan) for name, plan in change.plans.items()}
        what = "; ".join(part for part in (change.command or "", display.done_in_words(pairs, plans)) if part)
        since = " ".join(words.number(value) for _, value in change.after) or "–"
        table.row(
            f"{change.step:,}",
            quoted(f"{change.by}, " * bool(change.by) + f"{change.diagnosis or ''}: {change.evidence}"),
            quoted(what),
            quoted(change.expected or "–"),
            f"{words.number(change.before)} → {since}"
            + (f"; taken back by probation: {quoted(change.taken_back)}" if change.taken_back else "")
            + (f"; {quoted(change.overwritten)}" if change.overwritten else "")
            + (f"; {quoted(change.ended)}" if change.ended else ""),
        )
    if result.changes:
        console.print(table)
    else:
        say(console, "No interventions.")
    if result.reversals:
        say(console, _probation(result.reversals, result.steps_lost, result.steps_in_vain, result.demoted))
    for note in result.notes:
        say(console, f"note: {quoted(note)}", "yellow")
    for finding in result.findings:
        say(console, f"[red]✗[/] {quoted(str(finding))}")
    if result.holds:
        say(
            console,
            f"[green]✓[/] {quoted(result.run)}: {result.events} events and {result.records} telemetry records hold "
            f"({result.checks} checks{f', with the key {quoted(result.key)}' if result.proven else ''}).",
        )
        say(console, proof.KEYED_CANNOT_SEE if result.proven else proof.CANNOT_SEE, "dim")
    else:
        say(console, f"[red]{quoted(result.run)} does not hold: {counted(len(result.findings), 'finding')}.[/]")


def proof_json(result: proof.Proof) -> str:
    return pretty({**asdict(result), "holds": result.holds})


def print_rebuilt(console: Console, result: replay.Rebuilt) -> None:
    counts = ", ".join(f"{n} {_plural(kind, n)}" for kind, n in result.counts.items())
    if result.note:
        say(console, f"note: {quoted(result.note)}", "yellow")
    for line, text in result.differences:
        say(console, f"[red]✗[/] audit.jsonl line {line}: {quoted(text)}")
    if result.differences:
        say(console, f"[red]{len(result.differences)} differences[/] ({counts} compared).")
    else:
        say(console, f"[green]✓[/] {quoted(result.run)}: {counts or 'nothing to decide'}: the same, byte for byte.")


def _plural(kind: str, count: int) -> str:
    word = {"reverted": "reversal", "kept": "proof", "challenged": "challenge"}.get(kind, kind)
    return word if count == 1 or word == "acknowledged" else f"{word}s"


def print_opinions(console: Console, found: list[Opinion], recorded: str, other: str) -> None:
    recorded, other = quoted(recorded), quoted(other)
    table = Grid("decision", "step", recorded, other, "valid", "same action", "seconds", "tokens", "cost")
    for opinion in found:
        table.row(
            quoted(opinion.decision), f"{opinion.step:,}", quoted(opinion.recorded), quoted(opinion.other),
            "yes" if opinion.valid else "[red]no[/]", "yes" if opinion.same_action else "no",
            f"{opinion.seconds:.2f}", f"{opinion.tokens:,}" if opinion.tokens else "–", words.number(opinion.money),
        )  # fmt: skip
    console.print(table)
    n, tokens = len(found), sum(o.tokens for o in found)
    prices = [o.money for o in found if o.money is not None]
    cost = f", cost {sum(prices):.4g}" if prices else ""
    took = f" It took {sum(o.seconds for o in found):.1f} s, {tokens:,} tokens{cost}." if tokens else ""
    say(
        console,
        f"{n} snapshots; {other}: {sum(o.valid for o in found)} valid, {sum(o.same_action for o in found)} with the "
        f"same action, {sum(o.same_diagnosis for o in found)} with the same diagnosis as {recorded}.{took}",
    )


def print_reworded(console: Console, found: list[Reworded], manager: str) -> None:
    """How much the wording of the prompt matters."""
    count = len(found[0].answers) if found else 0
    table = Grid("decision", "step", *(f"wording {i}" for i in range(count)), "same action", "same diagnosis")
    for item in found:
        table.row(
            quoted(item.decision), f"{item.step:,}", *map(quoted, item.answers),
            f"{item.same_action} of {item.asked}", f"{item.same_diagnosis} of {item.asked}",
        )  # fmt: skip
    console.print(table)
    asked = sum(item.asked for item in found)
    action, diagnosis = sum(item.same_action for item in found), sum(item.same_diagnosis for item in found)
    share = max(1, asked)
    say(
        console,
        f"{len(found)} snapshots in {count} wordings, {quoted(manager)}: of {asked} reworded questions {action} "
        f"({action / share:.0%}) got the same action and {diagnosis} ({diagnosis / share:.0%}) the same diagnosis.",
    )


def print_comparison(console: Console, a: RunPaths, b: RunPaths, result: replay.Comparison) -> None:
    one, two = quoted(a.id), quoted(b.id)
    if result.first:
        say(console, f"[red]✗[/] {one} and {two} differ after {result.compared} records: {quoted(result.first)}")
    else:
        say(
            console,
            f"[green]✓[/] {two} repeats {one}: {result.compared} records with {result.values} values, bit for bit.",
        )


def runs_json(found: list[tuple[RunPaths, RunFile | None]]) -> str:
    """Each run with all of its run.json; None where that cannot be read."""
    values = []
    for paths, file in found:
        if file is None:
            values.append({"run": paths.id, "status": listing.UNREADABLE, "manifest": None, "closing": None})
        else:
            ended = file.closing.status if file.closing else None
            values.append({"run": paths.id, "status": listing.status(paths, ended), **plain(file)})
    return pretty(values)


def print_checked(console: Console, checked: Checked) -> None:
    for text in checked.passed:
        say(console, f"[green]✓[/] {quoted(text)}")
    for breach in checked.breaches:
        mark = "[red]✗[/]" if breach.severity == "error" else "[yellow]![/]"
        say(console, f"{mark} {quoted(breach.what)}" + (f"\n    fix: {quoted(breach.fix)}" if breach.fix else ""))
    for line in checked.output:
        say(console, f"    {quoted(line)}", "dim")
    verdict = "[green]keeps to the protocol[/]" if checked.ok else "[red]does not keep to the protocol[/]"
    say(console, f"{quoted(checked.script)} {verdict} ({checked.records} records).")


def _date(seconds: float) -> str | None:
    """In ISO 8601; None for a time that no calendar has."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def show_json(paths: RunPaths, now: Situation) -> str:
    state, ledger, manifest = now.state, now.ledger, now.manifest
    values: dict[str, Any] = {
        "run": paths.id,
        "created": _date(manifest.created),
        "manager": manifest.manager,
        "mode": manifest.mode,
        "seed": manifest.seed,
        "total_steps": state.total_steps,
        **figures(state),
        "recipe": state.recipe,
        "overwritten": state.overwritten,
        "notices": {kind: asdict(notice) for kind, notice in state.notices.kinds.items()},
        "evaluations_lost": state.notices.lost,
        "reversals": ledger.reversals,
        "demoted": ledger.demoted,
        "steps_lost": ledger.lost,
        "steps_in_vain": ledger.idle,
        "trust": ledger.trust,
        "answers": ledger.answered,
        "answers_by_model": ledger.answers.by_model,
        "ailments": [asdict(ailment) for ailment in ledger.ailments.values()],
        "closing": plain(ledger.ended.closing) if ledger.ended else None,
    }
    return pretty(values)
