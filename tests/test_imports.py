"""Imports point one way, third-party code stays at the edge, and a module stays small enough to read."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories.modules import MODULES, imported

PACKAGES: dict[str, str] = {  # in the order of the loop, with the packages that each may import, all of them above it
    "base": "",
    "workload": "",
    "sources": "workload",
    "integrations": "workload",
    "contract": "base",
    "state": "base contract",
    "deciding": "base contract state",
    "log": "base contract state",
    "managers": "base contract state deciding log",
    "running": "base sources contract state deciding log managers",
    "checking": "base contract state log running",
    "readers": "base sources contract state deciding log managers running",
    "terminal": "base contract state log managers running checking readers",
    "comparison": "base contract state deciding log managers running terminal",
    "testing": "base contract state deciding log managers running",
}
# What a module may import of trainmgr, in order; names that begin with a dot are of its own package. The guard, for
# one, must not be able to write a control file.
ALLOWED: dict[str, str] = {
    "base.errors": "",
    "base.files": "",
    "base.foreign": "",
    "base.paths": ".errors",
    "base.concealment": ".paths",
    "base.process": ".concealment .errors .files .foreign .paths",
    "base.toml": ".errors .files",
    "base.wire": ".foreign",
    "workload.backlog": "",
    "workload.optimizers": "",
    "workload.persistence": "",
    "workload.rehearsal": "",
    "workload.surroundings": "",
    "workload.ranks": ".surroundings",
    "workload.values": "",
    "workload.lines": ".values",
    "workload.records": ".backlog .lines .ranks .surroundings .values",
    "workload.overrides": ".records",
    "workload.parameters": ".optimizers .overrides .values",
    "workload.reconciler": ".lines .overrides .parameters .persistence .ranks .records .surroundings .values",
    "workload.workload": ".lines .optimizers .overrides .parameters .persistence .ranks .reconciler "
    ".records .surroundings .values",
    "workload.checkpoints": ".rehearsal .surroundings .values .workload",
    "workload.__init__": ".checkpoints .records .surroundings .workload",
    "sources.figures": "",
    "sources.record": "",
    "sources.lines": "",
    "sources.pattern": ".figures",
    "sources.reading": ".figures .pattern",
    "sources.tail": ".lines",
    "sources.rows": ".figures",
    "sources.clock": ".figures .record",
    "sources.reader": ".lines .pattern .reading .record .rows",
    "sources.report": ".clock .lines .reader .reading .record workload.__init__",
    "sources.script": "",
    "sources.watch": ".lines .reader .reading .report .script .tail workload.__init__",
    "sources.__main__": ".pattern .reading .watch",
    "integrations.dropout": "",
    "integrations.recipe": ".dropout workload.optimizers workload.workload",
    "integrations.saved": "workload.optimizers workload.workload",
    "integrations.torch": ".recipe .saved workload.checkpoints workload.optimizers workload.workload",
    "contract.action_space": "base.wire",
    "contract.forecast": "base.wire",
    "contract.proposal": "base.wire",
    "contract.protocol": ".action_space base.wire",
    "contract.policy": ".action_space .protocol base.concealment base.errors base.toml base.wire",
    "contract.summary": "base.files",
    "contract.run_file": ".policy .protocol .summary base.wire",
    "contract.events": ".action_space .forecast .policy .proposal .protocol .run_file base.wire",
    "contract.schemas": ".events .policy .proposal .protocol .run_file base.errors base.wire",
    "state.answers": "contract.events contract.policy contract.proposal",
    "state.budget": "contract.policy",
    "state.changes": "base.wire contract.events contract.proposal",
    "state.course": "base.wire contract.protocol",
    "state.evaluations": "base.wire",
    "state.finiteness": "base.wire",
    "state.interventions": "base.wire contract.protocol",
    "state.lineage": "contract.protocol",
    "state.notices": "base.paths base.wire contract.protocol",
    "state.plans": ".interventions base.wire contract.events contract.proposal contract.protocol",
    "state.run_state": ".course .evaluations .finiteness .interventions .lineage .notices base.wire "
    "contract.action_space contract.protocol",
    "state.signals": ".run_state base.wire contract.forecast",
    "state.trial": "base.wire contract.forecast",
    "state.ledger": ".answers .budget .changes .plans .trial base.wire contract.events "
    "contract.forecast contract.proposal contract.protocol",
    "state.situation": ".ledger .run_state .signals base.errors contract.action_space contract.policy "
    "contract.run_file",
    "state.measured": ".situation contract.run_file",
    "deciding.control": "base.wire contract.protocol state.ledger",
    "deciding.restoring": "base.wire contract.events contract.forecast contract.protocol state.lineage "
    "state.run_state state.situation state.trial",
    "deciding.undoing": "base.wire state.interventions state.lineage state.situation state.trial",
    "deciding.allowed": ".undoing base.wire contract.action_space contract.proposal state.situation",
    "deciding.asking": ".allowed base.wire contract.policy contract.proposal state.evaluations state.situation",
    "deciding.plans": ".allowed .control base.errors base.wire contract.action_space contract.events "
    "contract.proposal contract.protocol state.plans state.signals state.situation",
    "deciding.guard": ".allowed .asking .plans .undoing base.wire contract.events contract.proposal "
    "contract.protocol contract.run_file state.situation",
    "deciding.verdicts": ".allowed state.lineage state.run_state state.situation state.trial",
    "deciding.jointly": ".restoring .verdicts contract.events state.lineage state.run_state "
    "state.situation state.trial",
    "deciding.probation": ".allowed .jointly .restoring .undoing .verdicts base.wire contract.events "
    "contract.forecast contract.proposal contract.protocol state.lineage "
    "state.run_state state.situation state.trial",
    "deciding.account": ".allowed .asking .probation base.wire contract.proposal contract.protocol "
    "state.changes state.evaluations state.run_state state.signals state.situation "
    "state.trial",
    "deciding.snapshot": ".account .allowed .asking .plans .undoing base.wire contract.action_space "
    "contract.policy contract.proposal state.evaluations state.ledger "
    "state.run_state state.signals state.situation",
    "deciding.decision": ".control .guard .plans .probation .snapshot base.paths base.wire "
    "contract.events contract.protocol state.ledger state.lineage state.situation",
    "log.audit": "base.errors base.files base.paths base.wire contract.events contract.protocol",
    "log.journal": ".audit contract.events state.ledger",
    "log.orders": ".journal base.files base.paths base.wire contract.events contract.protocol",
    "log.telemetry": "base.files contract.protocol",
    "log.follower": ".telemetry",
    "log.history": ".audit .telemetry base.errors base.files base.paths contract.events "
    "contract.protocol contract.run_file state.ledger state.run_state "
    "state.situation",
    "managers.base": "contract.events deciding.snapshot state.budget",
    "managers.completion": "base.wire",
    "managers.listing": "base.wire",
    "managers.endpoint": ".completion .listing base.concealment base.errors base.wire contract.policy",
    "managers.key": ".endpoint base.concealment base.errors base.paths contract.policy",
    "managers.local": "base.errors base.process",
    "managers.none": "base.wire contract.proposal deciding.snapshot",
    "managers.prompts.game": "contract.policy",
    "managers.prompts.v3.schema": "base.wire contract.proposal deciding.snapshot",
    "managers.prompts.words": "base.wire",
    "managers.prompts.v3.wording": ".prompts.game .prompts.words contract.proposal deciding.snapshot state.evaluations",
    "managers.prompts.v4.detail": ".prompts.words",
    "managers.prompts.v4.course": ".prompts.v4.detail .prompts.words base.wire contract.proposal deciding.account "
    "deciding.asking deciding.snapshot state.evaluations",
    "managers.prompts.v4.schema": ".prompts.words contract.proposal deciding.snapshot",
    "managers.answer": ".prompts.__init__ .prompts.v3.schema .prompts.v4.schema base.wire "
    "contract.proposal contract.protocol deciding.snapshot",
    "managers.prompts.v4.system": ".prompts.game .prompts.v4.schema deciding.account deciding.snapshot",
    "managers.prompts.v4.wording": ".prompts.v4.course .prompts.v4.detail .prompts.v4.system .prompts.words "
    "deciding.snapshot",
    "managers.prompt": ".prompts.__init__ .prompts.game .prompts.v3.wording .prompts.v4.wording "
    ".prompts.words base.wire contract.policy deciding.snapshot",
    "managers.probe": ".endpoint .listing .prompt base.errors",
    "managers.question": ".answer .prompt deciding.snapshot",
    "managers.reading": "base.wire contract.proposal deciding.snapshot state.signals",
    "managers.adversaries": ".base .reading base.errors base.wire contract.policy contract.proposal "
    "deciding.snapshot state.budget",
    "managers.anew": ".reading contract.policy deciding.snapshot",
    "managers.exploration": ".reading contract.policy contract.proposal deciding.snapshot",
    "managers.imbalance": ".reading contract.policy deciding.snapshot",
    "managers.remedies": ".reading contract.proposal deciding.allowed deciding.snapshot",
    "managers.replay": "base.errors base.paths base.wire contract.events contract.proposal deciding.snapshot log.audit",
    "managers.reply": ".answer .completion .endpoint contract.policy",
    "managers.rules": ".anew .exploration .imbalance .reading .remedies base.wire contract.policy "
    "contract.proposal deciding.allowed deciding.snapshot",
    "managers.schedules": ".reading base.errors base.wire contract.proposal deciding.snapshot",
    "managers.terms": ".endpoint contract.policy",
    "managers.llm": ".answer .base .completion .endpoint .key .listing .probe .prompt .prompts.game "
    ".question .reply .rules .terms base.errors base.paths base.wire "
    "contract.events contract.policy contract.proposal deciding.snapshot "
    "state.budget",
    "managers.hybrid": ".answer .base .exploration .llm .prompts.words .reading .rules base.errors "
    "base.wire contract.policy contract.proposal deciding.snapshot state.budget",
    "managers.catalog": ".__init__ .adversaries .base .hybrid .llm .local .none .replay .rules "
    ".schedules base.errors base.paths contract.policy",
    "running.exit_code": "base.errors contract.run_file state.ledger state.run_state",
    "running.listener": "contract.events log.telemetry state.run_state state.situation",
    "running.manifest": "base.errors base.process base.wire contract.run_file sources.reading",
    "running.messages": "base.process managers.base",
    "running.objective": "base.wire state.run_state",
    "running.supervisor": ".listener .messages .objective base.errors base.files base.paths base.process "
    "base.wire contract.events contract.protocol contract.run_file contract.summary "
    "deciding.asking deciding.decision deciding.plans deciding.probation "
    "deciding.snapshot log.audit log.follower log.history log.journal log.orders "
    "log.telemetry managers.base state.ledger state.measured state.run_state "
    "state.situation",
    "running.launch": ".listener .manifest .supervisor __init__ base.errors base.files base.paths "
    "base.process contract.events contract.policy contract.protocol "
    "contract.run_file log.audit log.history managers.base managers.catalog sources.reading",
    "checking.checked": "",
    "checking.seen": "base.process base.wire contract.protocol log.telemetry state.interventions state.run_state",
    "checking.rollbacks": ".checked .seen contract.protocol",
    "checking.breaches": ".checked .rollbacks .seen base.wire contract.action_space contract.protocol "
    "log.telemetry state.notices",
    "checking.check": ".breaches .checked .seen base.paths base.process base.wire "
    "contract.action_space contract.policy contract.protocol log.telemetry "
    "running.manifest state.interventions state.run_state",
    "readers.opinions": "base.errors base.paths contract.events contract.proposal contract.protocol "
    "contract.run_file deciding.guard deciding.snapshot log.audit log.history "
    "log.telemetry managers.base state.ledger state.run_state state.situation",
    "readers.replay": "base.errors base.paths base.wire contract.events contract.policy "
    "contract.protocol contract.run_file deciding.asking deciding.decision "
    "deciding.plans deciding.probation deciding.snapshot log.audit log.history "
    "log.telemetry managers.answer managers.base managers.hybrid managers.prompt "
    "managers.prompts.game state.lineage state.situation",
    "readers.again": ".opinions .replay base.errors base.paths contract.policy contract.run_file "
    "log.history managers.catalog running.launch sources.pattern sources.reading",
    "readers.sequence": "base.errors contract.events contract.protocol contract.run_file "
    "deciding.decision deciding.plans deciding.probation log.history log.telemetry "
    "state.situation",
    "readers.proof": ".replay .sequence base.errors base.files base.paths base.wire contract.events "
    "contract.protocol contract.run_file deciding.decision log.history "
    "log.telemetry state.interventions state.measured state.notices state.run_state",
    "terminal.markup": "base.foreign",
    "terminal.output": "base.errors",
    "terminal.consoles": ".output base.foreign",
    "terminal.tab": "base.paths managers.__init__",
    "terminal.words": "",
    "terminal.display": ".words base.foreign base.wire contract.events contract.proposal "
    "contract.protocol log.telemetry state.interventions state.ledger state.lineage "
    "state.notices state.run_state state.situation",
    "terminal.listing": ".markup .words base.files base.paths contract.summary",
    "terminal.screen": ".display .markup .words base.foreign contract.action_space contract.events "
    "log.telemetry state.run_state state.situation",
    "terminal.tables": ".display .listing .markup .words base.paths base.process base.wire "
    "checking.checked contract.proposal contract.run_file readers.opinions "
    "readers.proof readers.replay state.run_state state.situation",
    "terminal.playback": ".consoles .screen .tables base.paths log.history",
    "terminal.supervised": ".consoles .display .screen .tables base.errors base.paths contract.run_file "
    "log.history running.exit_code running.launch running.listener "
    "running.supervisor",
    "comparison.experiment": "base.errors base.toml base.wire contract.protocol",
    "comparison.measured": "base.errors base.paths contract.run_file log.history state.ledger "
    "state.measured state.run_state state.situation",
    "comparison.plots": "base.foreign base.wire",
    "comparison.results": ".experiment base.errors base.files base.foreign base.wire contract.protocol",
    "comparison.pooling": ".results base.errors base.wire contract.protocol",
    "comparison.samples": ".results",
    "comparison.statistics": "base.errors",
    "comparison.analysis": ".results .samples .statistics contract.protocol",
    "comparison.report": ".analysis .results .samples .statistics base.foreign base.wire terminal.words",
    "comparison.page": ".analysis .plots .report .results .samples .statistics base.errors base.files base.foreign",
    "comparison.trials": ".experiment .measured base.errors base.files base.paths base.process base.wire "
    "contract.policy contract.protocol contract.run_file deciding.allowed "
    "log.history log.telemetry managers.catalog running.launch running.manifest "
    "running.supervisor state.run_state terminal.display",
    "comparison.gathering": ".experiment .measured .pooling .results .samples .trials base.errors "
    "base.files base.wire contract.policy state.signals",
    "comparison.progress": ".trials base.foreign terminal.consoles terminal.words",
    "comparison.compare": ".analysis .experiment .gathering .page .pooling .progress .report .results "
    ".statistics .trials base.errors base.paths running.launch running.manifest",
    "testing.behaviours": "",
    "testing.children": "",
    "testing.clock": "",
    "testing.recorder": "base.paths contract.events log.telemetry state.run_state state.situation",
    "testing.supervised": ".recorder base.paths contract.policy contract.protocol contract.run_file "
    "managers.base running.launch",
    "testing.waiting": "",
    "testing.endpoint": ".behaviours .waiting",
    "testing.manager": ".waiting base.wire contract.proposal deciding.snapshot",
    "testing.__init__": ".behaviours .children .clock .endpoint .manager .recorder .supervised .waiting",
}
LATE = {"workload.workload": {"integrations.torch"}}  # inside of a method, for who calls it: no script pays for another
ENTRY = {"cli", "__main__"}  # may import everything; nothing but __main__ imports them
THIRD_PARTY = {  # package to the modules that may import it
    "pydantic": {
        *("base.wire", "contract.action_space", "contract.events", "contract.policy", "contract.proposal"),  # on disk
        *("contract.protocol", "contract.run_file", "contract.schemas"),  # the same
        *("state.signals", "deciding.account", "deciding.snapshot"),
        *("deciding.guard", "log.audit", "log.history", "managers.answer"),  # what reads it
        *("comparison.experiment", "comparison.results"),  # what an experiment is, and what came of it
    },
    "openai": {"managers.endpoint"},
    "pydantic_core": {"base.wire", "contract.protocol", "deciding.guard"},
    "watchdog": {"log.telemetry"},
    "typer": {"cli"},
    "xllamacpp": {"managers.local"},
    "rich": {
        *("comparison.progress", "terminal.consoles", "terminal.listing", "terminal.markup"),
        *("terminal.screen", "terminal.tables"),
    },
    "scipy": {"comparison.statistics"},
    "numpy": {"comparison.statistics"},
    "torch": {"integrations.dropout", "integrations.recipe", "integrations.saved", "integrations.torch"},
}
LONGEST = 450
LONG = {
    "state.ledger": "the whole fold over the log, in one place",
    "state.run_state": "the whole fold over telemetry, in one place",
    "contract.protocol": "every record of the contract between the two processes",
    "contract.policy": "every key that an operator can set, with its explanation",
    "contract.events": "every kind of record in the log, with its explanation",
    "running.supervisor": "the one thread that owns all state, in one place",
    "readers.proof": "every check of an audit, in one walk",
    "cli": "one body for each command",
}

EMPTY = {module for module in MODULES if module.endswith("__init__") and module not in {*ALLOWED, *ENTRY}}


def package(module: str) -> str:
    """The package that a module is in, however deep; "" for those right in trainmgr."""
    return module.partition(".")[0] if "." in module else ""


def own(path: Path) -> set[str]:
    """Modules of trainmgr that a module imports."""
    found = set()
    for name in imported(path):
        head, _, rest = name.partition(".")
        if head == "trainmgr":
            parts = rest.split(".")
            prefixes = (".".join(parts[:n]) for n in (4, 3, 2, 1))
            places = (place for prefix in prefixes for place in (prefix, f"{prefix}.__init__"))
            found.add(next((place for place in places if place in MODULES), "__init__"))
    return found


def at_once(tree: ast.AST) -> Iterator[str]:
    """Modules of trainmgr that are imported together with a module; not what a type checker alone reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.removeprefix("trainmgr.")
        elif not isinstance(node, ast.FunctionDef):
            yield from at_once(node)


def allowed(module: str) -> set[str]:
    """What it may import, with the package in front."""
    home = package(module)
    return {f"{home}{name}" if name.startswith(".") else name for name in ALLOWED[module].split()}


def test_every_module_has_its_place() -> None:
    assert set(MODULES) - set(ALLOWED) - ENTRY == EMPTY
    assert not any(own(MODULES[module]) for module in EMPTY)


def test_packages_stand_in_the_order_of_the_loop() -> None:
    above: set[str] = set()
    for name, may in PACKAGES.items():
        assert set(may.split()) <= above, name
        above.add(name)
    homes = [package(module).split(".")[0] for module in ALLOWED]
    assert list(dict.fromkeys(homes)) == [name for name in PACKAGES if name in homes]


def test_the_documentation_lists_the_packages_in_that_order() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "architecture.md").read_text()
    assert re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE) == list(PACKAGES)


def test_the_order_points_one_way() -> None:
    above = set(EMPTY)
    for module in ALLOWED:
        names, home = allowed(module), package(module)
        assert names <= above, module
        assert {package(name).split(".")[0] for name in names} <= {home, "", *PACKAGES[home].split()}, module
        above.add(module)


@pytest.mark.parametrize("module", [module for module in MODULES if module in ALLOWED])
def test_a_module_imports_only_what_it_may(module: str) -> None:
    assert own(MODULES[module]) - {module} <= allowed(module) | LATE.get(module, set())


@pytest.mark.parametrize("module", LATE)
def test_an_adapter_is_imported_only_where_it_is_called(module: str) -> None:
    assert set(at_once(ast.parse(MODULES[module].read_text()))) & LATE[module] == set()


def test_a_package_says_what_it_is_for_and_what_it_may_import() -> None:
    for name, others in PACKAGES.items():
        text = ast.get_docstring(ast.parse(MODULES[f"{name}.__init__"].read_text())) or ""
        first = " ".join(text.partition("\n\n")[0].split())
        assert first.endswith(f". Imports {', '.join(others.split()) or 'nothing of ours'}."), name


def test_third_party_code_is_at_the_edge() -> None:
    for module, path in MODULES.items():
        foreign = {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names - {"trainmgr"}
        assert foreign <= {package for package, users in THIRD_PARTY.items() if module in users}, module


def test_the_workload_library_is_alone_and_standard() -> None:
    for module, path in MODULES.items():
        if module.startswith("workload."):
            late = tuple(f"trainmgr.{name}." for name in LATE.get(module, ()))
            others = {name for name in imported(path) if not name.startswith(("trainmgr.workload.", *late))}
            assert {name.split(".")[0] for name in others} <= sys.stdlib_module_names


def test_what_reads_a_script_is_standard_but_for_the_workload_library() -> None:
    parts = [path for module, path in MODULES.items() if module.startswith("sources.")]
    names = {name for path in parts for name in imported(path)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"trainmgr"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_read_at_one_sitting(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST or LONG.get(module)
