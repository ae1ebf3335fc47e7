"""The results of a comparison as one HTML page: no script, nothing from elsewhere, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from trainmgr.base.errors import UserError
from trainmgr.base.files import replace
from trainmgr.base.foreign import in_html
from trainmgr.comparison import plots, report
from trainmgr.comparison.analysis import Arm, Section
from trainmgr.comparison.results import Results
from trainmgr.comparison.results import render as as_json
from trainmgr.comparison.samples import finite
from trainmgr.comparison.statistics import Test

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --faint: #d9d9d9;
  --c0: #4d4d4d; --c1: #0072b2; --c2: #c25a00; --c3: #007a5a; --c4: #b0488a; --c5: #8a6d00; --c6: #2f86c1; --c7: #a33; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181b; --faint: #3a3d42;
  --c0: #b5b5b5; --c1: #56a8e8; --c2: #f0923c; --c3: #2bc39a; --c4: #e08cc0; --c5: #e3c64a; --c6: #9ecdf2;
  --c7: #f07f7f; } }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--faint); padding: .25rem .75rem .25rem 0; text-align: left; }
.plot { display: block; width: 100%; max-width: 44rem; height: auto; }
.plot text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.plot .grid { stroke: var(--faint); }
.legend span { margin-right: 1.5rem; white-space: nowrap; }
.warning { border-left: 4px solid var(--c7); padding-left: 1rem; }
.notes { border-left: 4px solid var(--faint); padding-left: 1rem; }
""" + "".join(f".c{i} {{ color: var(--c{i}); }}\n" for i in range(plots.COLOURS))


def render(results: Results, sections: list[Section], test: Test) -> str:
    """The whole page."""
    title = in_html(results.title or results.script)
    body = "\n".join(part for section in sections for part in _section(section, test))
    notes = "".join(f"<p>{in_html(text)}</p>" for text in report.footnotes(results, sections, test))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/>\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{title}</title>\n<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f'{body}\n<div class="notes">{notes}</div></body></html>\n'
    )


def write(folder: Path, results: Results, sections: list[Section], test: Test) -> list[Path]:
    """results.md, .json, .csv and .html in ``folder``, which is made if need be.

    Raises UserError where they cannot be written.
    """
    contents = {
        "md": report.markdown(results, sections, test, show_seeds=True) + "\n",
        "json": as_json(results),
        "csv": report.as_csv(results),
        "html": render(results, sections, test),
    }
    paths = [folder / f"results.{kind}" for kind in contents]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, contents.values(), strict=True):
            replace(path, content.encode(), mode=0o644)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}. Choose another --out.") from None
    return paths


def _section(section: Section, test: Test) -> Iterable[str]:
    if section.case.name:
        yield f"<h2>{in_html(section.case.name)}</h2>"
    yield from (f'<p class="warning">{in_html(text)}</p>' for text in section.warnings)
    for held_out in (False, True):
        metrics = section.shown(held_out=held_out)
        if not metrics and (held_out or section.metrics):
            continue
        if held_out:
            yield f"<h3>{in_html(report.HELD_OUT)}</h3>"
        yield _table(report.overview(section, metrics))
        for metric in metrics:
            yield f"<h4>{in_html(metric)}</h4>"
            yield plots.strips([_strip(i, arm, metric) for i, arm in enumerate(section.arms)], metric)
        differences = report.differences(section, metrics, test)
        if differences[1]:
            yield f"<h4>Against {in_html(section.case.reference)}, on the same seeds</h4>"
            yield _table(differences)
    arms = [_curve(i, arm) for i, arm in enumerate(section.arms)]
    if plot := plots.curves(arms, f"{section.case.objective} over steps"):
        yield f"<h3>{in_html(section.case.objective or 'objective')} over steps</h3>"
        yield (
            "<p>The mean of the seeds, up to the last step that all of them reached with a finite value; "
            "the band holds all of them.</p>"
        )
        yield plots.legend(arms) + plot
    yield "<h3>What it took, on average</h3>"
    yield _table(report.cost(section))
    yield "<details><summary>Every run</summary>"
    yield _table(report.by_seed(section, section.metrics))
    yield "</details>"


def _table(table: report.Table) -> str:
    header = "".join(f"<th>{in_html(cell)}</th>" for cell in table[0])
    rows = "".join("<tr>" + "".join(f"<td>{in_html(cell)}</td>" for cell in row) + "</tr>\n" for row in table[1])
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>\n{rows}</tbody></table></div>'


def _strip(colour: int, arm: Arm, metric: str) -> plots.Strip:
    entry = arm.entries[metric]
    mean, interval = (entry.summary.mean, entry.summary.interval) if entry.summary else (None, None)
    note = f" ({len(entry.diverged)} diverged)" * bool(entry.diverged)
    return plots.Strip(arm.manager, colour, [*entry.values.items()], mean, interval, note)


def _curve(colour: int, arm: Arm) -> plots.Curve:
    """Over the steps at which every run of the arm has a finite value."""
    runs = [{step: value for step, value in run.curve if finite(value)} for run in arm.good if run.curve]
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    columns = [(float(step), [run[step] for run in runs]) for step in steps]
    return plots.Curve(
        arm.manager, colour,
        [(step, fmean(values)) for step, values in columns],
        [(step, min(values)) for step, values in columns],
        [(step, max(values)) for step, values in columns],
    )  # fmt: skip
