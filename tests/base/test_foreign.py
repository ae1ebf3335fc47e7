"""Text from elsewhere: nothing of it reaches a terminal, a page or a table but as letters."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import hostile
import pytest
from factories.modules import MODULES, imported
from factories.situations import situation
from markdown_it import MarkdownIt
from rich.console import Console

from trainmgr import cli
from trainmgr.base import foreign
from trainmgr.base.paths import RunPaths
from trainmgr.comparison import analysis, page, pooling, report, results
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Policy, Probation, Process, Staleness
from trainmgr.log import history
from trainmgr.state import run_state
from trainmgr.terminal import consoles, markup, output, screen, tables
from trainmgr.testing import PYTHON, TIME_LIMIT, ScriptedManager, answer, supervise, write_child

Say = Callable[..., tuple[int, str]]
ALL = pytest.mark.parametrize("text", hostile.TEXTS.values(), ids=hostile.TEXTS.keys())
FOLDER = "20260101-000000-planted-0001"


def clean(text: str) -> str:
    """What was printed, which has nothing but printable characters and line breaks."""
    assert [c for c in text if not (c.isprintable() or c == "\n") or c in foreign.UNSEEN] == []
    return text


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Say]:
    """Runs a command in this process: its exit code, and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(consoles, "data", Console(width=400))
    monkeypatch.setattr(output, "prepare", lambda: None)  # the streams are those of the test

    def said(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["trainmgr", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        heard = capsys.readouterr()
        code = left.value.code
        assert isinstance(code, int)
        return code, clean(heard.out + heard.err)

    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield said
    for number, handler in before.items():  # a command leaves its own, in this process and in what it starts
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


# -- the functions -----------------------------------------------------------------------------------------------------


@ALL
def test_each_medium_shows_letters(text: str) -> None:
    once = foreign.on_terminal(text)
    assert clean(once) == once
    assert "\n" not in once
    assert len(once) == min(len(text), foreign.LONGEST)
    assert foreign.on_terminal(once) == once
    assert json.loads(clean(foreign.in_json(json.dumps(text, ensure_ascii=False)))) == text
    assert "<" not in clean(foreign.in_html(text))
    assert '"' not in foreign.in_html(text)
    assert clean(foreign.in_markdown(text)) == foreign.in_markdown(text)
    assert not str(foreign.in_csv(text)).lstrip().startswith(foreign.FORMULA)


@pytest.mark.parametrize(("text", "shown"), [
    ("val_loss", "val_loss"), ("a é ⚠️ привет שלום", "a é ⚠️ привет שלום"), ("a\tb", "a\ufffdb"), ("\ud800", "\ufffd"),
    ("e" + "\u0301" * 6, "e" + "\u0301" * 4 + "\ufffd" * 2),
])  # fmt: skip
def test_a_terminal_shows_what_can_be_seen(text: str, shown: str) -> None:
    assert foreign.on_terminal(text) == shown


@pytest.mark.parametrize(("text", "shown"), [
    ("val_loss [0.1, 0.2] (5 of 6)", "val_loss [0.1, 0.2] (5 of 6)"), ("R&D", "R&D"),
    ("a|b", "a\\|b"), ("_a_", "\\_a\\_"), ("[a](b)", "[a\\](b)"), ("&lt;", "&amp;lt;"), ("-1.5", "-1.5"),
])  # fmt: skip
def test_markdown_stays_readable(text: str, shown: str) -> None:
    assert foreign.in_markdown(text) == shown


@pytest.mark.parametrize(("value", "cell"), [
    ("=1", "'=1"), (" +1", "' +1"), ("\t@x", "'\ufffd@x"), ("-x", "'-x"), ("\uff1d1", "'\uff1d1"),
    (-1.5, -1.5), ("a-b", "a-b"),
])  # fmt: skip
def test_a_cell_is_no_formula(value: object, cell: object) -> None:
    assert foreign.in_csv(value) == cell


@pytest.mark.parametrize("one", hostile.TEXTS)
@pytest.mark.parametrize("other", ["half a tag", "other half", "closing tag", "backslashes"])
def test_no_two_texts_make_a_tag_together(one: str, other: str) -> None:
    first, second = hostile.TEXTS[one], hostile.TEXTS[other]
    text = markup.marked(f"[red]{markup.quoted(first)}{markup.quoted(second)}[/] [bold]ours[/]")
    assert text.plain == f"{foreign.on_terminal(first)}{foreign.on_terminal(second)} ours"
    assert [span.style for span in text.spans] == ["red", "bold"]


# -- who may write -----------------------------------------------------------------------------------------------------


def test_each_medium_has_one_door() -> None:
    doors = {"html.escape": set(), "rich.markup.escape": set(), "csv": {"comparison.report", "sources.rows"}}
    doors |= {"html": {"base.foreign"}, "rich.markup": set()}
    for module, path in MODULES.items():
        for name in imported(path):
            for door, users in doors.items():
                assert not (name == door or name.startswith(f"{door}.")) or module in users, f"{module}: {name}"


def _calls(path: Path) -> list[tuple[str, ast.Call]]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), node) for node in nodes]


def test_no_console_reads_markup_by_itself() -> None:
    """A text goes to a console of rich as Text or renderable, never as str: that would be read as markup."""
    printing = ("consoles", "listing", "markup", "screen", "supervised", "tables")
    for module in ("cli", "comparison.progress", *(f"terminal.{name}" for name in printing)):
        for name, call in _calls(MODULES[module]):
            strings = [ast.unparse(a) for a in call.args if isinstance(a, ast.JoinedStr | ast.Constant)]
            if name.endswith((".print", "Text.from_markup", "add_column")) and module != "schemas":
                assert not [text for text in strings if "{" in text], f"{module}: {ast.unparse(call)}"
    assert [m for m in MODULES for name, _ in _calls(MODULES[m]) if name.endswith("from_markup")] == ["terminal.markup"]


# -- every field, every command ----------------------------------------------------------------------------------------


@ALL
def test_a_planted_run_is_shown_as_letters(tmp_path: Path, say: Say, text: str) -> None:
    """Whatever a folder holds: every command answers, and prints letters."""
    hostile.run(tmp_path / "runs" / FOLDER, text)
    shown = squeezed(foreign.on_terminal(text))[:50]
    code, out = say("runs")
    assert (code, FOLDER in out) == (0, True)
    assert "completed" in out
    code, out = say("runs", "--json")
    assert json.loads(out)[0]["status"] == "completed"
    for command, code, tells in (
        (["show"], 0, True), (["show", "--json"], 0, False), (["audit"], 1, True), (["audit", "--json"], 1, False),
        (["audit", "--head"], 1, True), (["replay"], 1, False), (["replay", "--json"], 1, False),
        (["replay", "--watch", "--speed", "1000000"], 0, True), (["replay", "-m", "rules"], 0, False),
        (["replay", "-m", "rules", "--json"], 0, False), (["replay", "-m", text.replace("\0", "")], 2, False),
        (["replay", "--train"], None, False), (["attach"], None, False),
    ):  # fmt: skip
        left, out = say(command[0], FOLDER, *command[1:])
        assert left == code or code is None, (command, out[-2000:])
        if tells and text != hostile.TEXTS["lines"]:
            assert shown in squeezed(out), (command, out)


@ALL
def test_results_of_others_are_printed_as_letters(tmp_path: Path, say: Say, text: str) -> None:
    (tmp_path / "r.json").write_text(results.render(hostile.comparison(text)))
    code, out = say("compare", "r.json", "--out", "out", "--show-seeds")
    assert code == 1  # a run failed
    code, out = say("compare", "r.json", "--json")
    assert results.Results.model_validate_json(out[: out.rindex("\n}") + 2]) == pooling.pool([hostile.comparison(text)])
    for kind in ("md", "json", "csv", "html"):
        clean((tmp_path / "out" / f"results.{kind}").read_text())


class Elements(HTMLParser):
    """The elements of a page, each with the names of its attributes."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[object] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(tag)

    def handle_comment(self, data: str) -> None:
        self.found.append(data)


def blocks(markdown: str) -> list[object]:
    """What a reader of Markdown makes of it, without the text."""
    parser = MarkdownIt().enable("table").enable("strikethrough")
    return [
        (token.type, token.tag, [inner.type for inner in token.children or [] if inner.type != "text" or inner.content])
        for token in parser.parse(markdown)
    ]


@ALL
def test_a_report_of_foreign_names_has_its_own_form_alone(text: str) -> None:
    """Page, tables and CSV have the elements that they have with harmless names, and no other."""
    forms = []
    for name in (text, hostile.PLAIN):
        found = hostile.comparison(name)
        sections = analysis.analyse(found, "permutation")
        markdown = report.markdown(found, sections, "permutation", show_seeds=True)
        rows = list(csv.reader(io.StringIO(report.as_csv(found))))
        assert not [c for row in rows for c in row if c.lstrip().startswith(foreign.FORMULA)]
        forms.append((Elements(page.render(found, sections, "permutation")).found, blocks(markdown), [*map(len, rows)]))
    assert forms[0] == forms[1]


@ALL
def test_errors_quote_as_letters(tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    spoken = text.replace("\0", "").replace("\u3164", "")[:200]  # typer quotes what is typed by its repr
    monkeypatch.setenv("TRAINMGR_RUNS_DIR", spoken)
    assert say("runs")[0] in (0, 2)
    assert say("show", spoken)[0] == 2
    monkeypatch.setenv("TRAINMGR_POLICY", spoken)
    (tmp_path / "x.py").write_text("")
    assert say("run", "x.py")[0] == 2
    monkeypatch.delenv("TRAINMGR_POLICY")
    for arguments in (
        ["run", spoken], ["run", "x.py", "-m", spoken], ["run", "x.py", "--mode", spoken], [spoken],
        ["show", "--", spoken], ["compare", spoken], ["check", spoken],
        ["compare", "x.py", "--managers", spoken], ["compare", "x.py", "--seeds", spoken],
        ["compare", "x.py", "--metrics", f"{spoken}=x"],
    ):  # fmt: skip
        assert say(*arguments)[0] in (1, 2, 3), arguments
    quoted = json.dumps(text)
    for content in (f"{quoted} = 1", f"[parameters.{quoted}]\nlow = {quoted}", f"script = {quoted}", f"x = {text}"):
        (tmp_path / "p.toml").write_text(content, errors="replace")
        assert say("run", "x.py", "--policy", "p.toml")[0] == 2
        assert say("compare", "p.toml")[0] in (2, 3)
    (tmp_path / "r.json").write_text(json.dumps({text: text, "title": [text]}))
    assert say("compare", "r.json")[0] == 2


# -- real processes ----------------------------------------------------------------------------------------------------

CHILD = """
text = Path(sys.argv[1]).read_text()
name = text[:60] if text.isprintable() else "a name"
recipe = {"lr": 0.4, name: "a"}
with Workload(text, objective=text[:64], total_steps=4, info={text[:64]: text}) as w:
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=1e-4, high=1.0, group=text)
    w.command("stop", lambda to: None)
    for step in w.steps():
        w.step(step, {text[:64]: 1.0})
        w.log(text, text)
        w.checkpoint(step, text, {text[:64]: 1.0}, best=True)
        w.eval(step, {text[:64]: 1.0 / step}, split={text: {text[:64]: 1.0}})
    w.end(4, {text[:64]: 1.0}, status=text)
print(text)
sys.stderr.write(text)
sys.exit(4 if sys.argv[2:] else 0)
"""
ESCAPE = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*A|\x1b\[[0-9]*K|\r")
"""What rich writes to a terminal: colours, the cursor off and on, up by lines, a line cleared."""


@pytest.fixture
def script(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    (tmp_path / "text").write_text(hostile.TEXTS[request.param])
    return [str(write_child(tmp_path, CHILD)), "-m", "none", "--runs-dir", "runs", "--", "text"]


@pytest.mark.parametrize("script", ["escapes", "closing tag", "hidden", "lines"], indirect=True)
@pytest.mark.parametrize("more", [[], ["fail"]])
def test_a_script_that_ends_as_it_likes_is_told_by_its_exit_code(
    tmp_path: Path, script: list[str], more: list[str]
) -> None:
    code, how = (4, "failed") if more else (0, "completed")
    for command, expected in ((["run", *script, *more], code), (["runs"], 0), (["show"], 0), (["audit"], 0)):
        done = subprocess.run([PYTHON, "-m", "trainmgr", *command], cwd=tmp_path, capture_output=True,
                              timeout=TIME_LIMIT, check=False)  # fmt: skip
        out = clean(done.stdout.decode() + done.stderr.decode())
        assert done.returncode == expected, out
        if command != ["audit"]:
            assert command == ["show"] or how in out or "exit code 4" in out
    assert "the status at the end is unknown" in out


@pytest.mark.parametrize("script", ["escapes"], indirect=True)
def test_a_script_is_checked_and_compared_in_letters(tmp_path: Path, script: list[str]) -> None:
    child = script[0]
    for command, code in (
        (["check", child, "--", "text"], None), (["check", child, "--json", "--", "text"], None),  # it may be over
        (["run", "--json", *script], 0),
        (["compare", child, "--managers", "none,rules", "--seeds", "1", "--out", "out", "--", "text"], 0),
    ):  # fmt: skip
        done = subprocess.run([PYTHON, "-m", "trainmgr", *command], cwd=tmp_path, capture_output=True,
                              timeout=TIME_LIMIT, check=False)  # fmt: skip
        out = clean(done.stdout.decode() + done.stderr.decode())
        assert done.returncode == code or (code is None and done.returncode in (0, 1)), out


@pytest.mark.parametrize("script", ["escapes", "closing tag", "hidden"], indirect=True)
def test_the_live_view_in_a_terminal_shows_letters(tmp_path: Path, script: list[str]) -> None:
    text = hostile.TEXTS["escapes"]
    main, side = pty.openpty()
    with subprocess.Popen(
        [PYTHON, "-m", "trainmgr", "run", *script], cwd=tmp_path, stdin=side, stdout=side, stderr=side,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
    ) as child:  # fmt: skip
        os.close(side)
        data = b""
        try:
            while chunk := os.read(main, 65536):
                data += chunk
        except OSError:  # the end of a terminal
            pass
        os.close(main)
    assert child.returncode == 0, data
    shown = data.decode()
    assert "\x1b[" in shown
    assert text[:4] not in shown
    clean(ESCAPE.sub("", shown).replace("\x1b[35;5m", "?"))


def test_one_planted_folder_hides_no_other(tmp_path: Path, say: Say) -> None:
    good = [hostile.run(tmp_path / "runs" / f"20260101-00000{i}-good-000{i}", hostile.PLAIN).id for i in (1, 2)]
    for i, text in enumerate(hostile.TEXTS.values()):
        hostile.run(tmp_path / "runs" / f"20250101-0000{i:02}-bad-000{i:x}", text)
    bad = RunPaths(tmp_path / "runs" / "20250101-000099-bad-0099")
    shutil.copytree(tmp_path / "runs" / good[0], bad.root)
    for content in (b"", b"[" * 100_000, b'{"manifest": 7}', b"\xff\xfe", b"null"):
        bad.manifest.write_bytes(content)
        code, out = say("runs")
        assert code == 0
        assert set(good) <= set(re.findall(r"[\w-]+", out))
        assert "run.json cannot be read" in out


# -- numbers -----------------------------------------------------------------------------------------------------------

NUMBERS = pytest.mark.parametrize("number", hostile.NUMBERS.values(), ids=hostile.NUMBERS.keys())


@NUMBERS
def test_a_run_of_any_numbers_is_shown(tmp_path: Path, say: Say, number: float) -> None:
    hostile.run(tmp_path / "runs" / FOLDER, number=number)
    for command, code in (
        (["show"], 0), (["show", "--json"], 0), (["audit"], 1), (["audit", "--json"], 1), (["replay"], 1),
        (["replay", "--watch", "--speed", "1000000"], 0), (["replay", "-m", "rules"], 0),
    ):  # fmt: skip
        left, out = say(command[0], FOLDER, *command[1:])
        assert left == code, (command, out)
    assert say("runs") == (0, say("runs")[1])
    assert say("runs", "--json")[0] == 0


@NUMBERS
def test_results_of_any_numbers_are_printed(tmp_path: Path, say: Say, number: float) -> None:
    found = hostile.comparison(number=number)
    (tmp_path / "r.json").write_text(results.render(found))
    for test in ("permutation", "wilcoxon", "t"):
        assert say("compare", "r.json", "--out", "out", "--show-seeds", "--test", test)[0] == 1
    form = Elements(page.render(found, analysis.analyse(found, "permutation"), "permutation")).found
    assert ("html", ["lang"]) in form


@NUMBERS
def test_the_live_view_draws_any_numbers(number: float) -> None:
    state, out = run_state.RunState(), io.StringIO()
    view = screen.LiveView(Console(file=out, width=120, force_terminal=False))
    for line in hostile.telemetry(hostile.Maker(hostile.PLAIN, number)).splitlines(keepends=True):
        item = protocol.parse_telemetry(line)
        state.fold(item)
        view.record(item, state)
        assert screen.render(situation(state))
        Console(file=out, width=100).print(screen.render(situation(state)))
    clean(out.getvalue())


def test_a_start_that_cannot_be_read_and_one_that_contradicts_the_first_are_shown(tmp_path: Path, say: Say) -> None:
    paths = hostile.run(tmp_path / "runs" / FOLDER)
    first, *rest = paths.telemetry.read_bytes().splitlines(keepends=True)
    other = json.loads(first) | {"objective": {"metric": "another", "mode": "max"}, "action_space": [hostile.GAUGE]}
    many = {"v": 1, "seq": 3, "t": 1.0, "event": "eval", "step": 3, "metrics": {f"[b{i}]": 1.0 for i in range(2500)}}
    deep = b'{"event":"eval","metrics":' + b"[" * 20_000 + b"\n"
    added = [first, json.dumps(other).encode() + b"\n", json.dumps(many).encode() + b"\n", deep, *rest]
    for lines in ([b'{"event":"start","v":9}\n', *rest], added, [b"\0" * 500 + b"\n"] * 3):
        paths.telemetry.write_bytes(b"".join(lines))
        assert say("show", FOLDER)[0] == 1  # the log says that it was another file
        assert say("audit", FOLDER)[0] == 1
        assert say("replay", FOLDER)[0] == 1


# -- what a script reports, in a real run ------------------------------------------------------------------------------

EXTREME = """
started = RUN / "started"
again = started.exists()
started.touch()
lines = []


def report(event, **fields):
    lines.append({"v": 1, "seq": 0, "t": 1e308, "event": event, **fields})
    with open(RUN / "telemetry.jsonl", "a") as file:
        file.write(json.dumps(lines[-1]) + chr(10))


last = 2**53 - 1
report("start", workload="extreme", pid=last, total_steps=last, objective={"metric": "val", "mode": "min"},
       action_space=[{"name": "lr", "type": "float", "low": -1.7e308, "high": 1.7e308, "value": 0.0},
                     {"name": "fixed", "type": "float", "low": 1.0, "high": 1.0, "value": 1.0}])
report("checkpoint", step=1, path=sys.argv[1].encode().decode("unicode_escape"))
for step, value in ((1, 1.7e308), (2, -1.7e308), (last - 1, 5e-324)):  # at the last step nobody is asked
    report("step", step=step, metrics={f"m{i}": 1.7e308 for i in range(1000)})
    report("eval", step=step, metrics={"val": value})
until(lambda: any(e["kind"] == "override" for e in log()))
print(repr(os.environ.get("TRAINMGR_RESUME")))
sys.exit(0 if again else 9)
"""


@pytest.mark.parametrize(("path", "resumed"), [
    ("a\\x00b", None), ("../../etc/passwd", None), ("checkpoints/../../x", None), ("checkpoints/a", "checkpoints/a"),
    ("", None), ("/elsewhere/a", "/elsewhere/a"),
])  # fmt: skip
def test_a_checkpoint_that_leads_nowhere_is_not_gone_on_from(tmp_path: Path, path: str, resumed: str | None) -> None:
    """The supervisor survives every number and path; the script begins anew where its path cannot be used."""
    child = write_child(tmp_path, EXTREME)
    policy = Policy(
        process=Process(restarts=1), staleness=Staleness(max_age_steps=5), probation=Probation(enabled=False)
    )
    manager = ScriptedManager([answer("adjust", {"lr": 1.0})] * 9)
    paths, closing, recorder = supervise(tmp_path, child, manager, policy=policy, arguments=[path])
    assert closing.exit_code == 0, paths.stderr.read_text()
    (restarted,) = recorder.of(events.Restarted)
    assert restarted.resume == resumed
    expected = None if resumed is None else str(paths.root / resumed)
    assert paths.stdout.read_text().splitlines() == ["None", repr(expected)]
    now = history.latest(paths)
    assert ("path" in now.state.notices.kinds) is (resumed is None)
    out = io.StringIO()
    console = Console(file=out, width=120)
    console.print(screen.render(now))
    tables.print_closing(console, now)
    clean(out.getvalue())
