"""Imports point one way, third-party code stays at the edge, and a module stays small enough to read."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "trainmgr"

# What a module may import of trainmgr, in the architectural order: only modules from lines above it, and of those only
# what its work needs. The guard, for one, must not be able to write a control file.
ALLOWED: dict[str, str] = {
    "__init__": "",
    "errors": "",
    "files": "",
    "foreign": "",
    "testing.behaviours": "",
    "testing.endpoint": "testing.behaviours",
    "workload.values": "",
    "workload.surroundings": "",
    "workload.ranks": "workload.surroundings",
    "workload.lines": "workload.values",
    "workload.backlog": "",
    "workload.records": "workload.backlog workload.lines workload.ranks workload.surroundings workload.values",
    "workload.overrides": "workload.records",
    "workload.optimizers": "",
    "workload.persistence": "",
    "workload.parameters": "workload.optimizers workload.overrides workload.values",
    "workload.rehearsal": "",
    "workload.checkpoints": "workload.rehearsal workload.surroundings workload.values",
    "workload.__init__": "workload.checkpoints workload.lines workload.optimizers workload.overrides "
    "workload.parameters workload.persistence workload.ranks workload.records workload.surroundings workload.values",
    "paths": "errors",
    "toml": "errors files",
    "wire": "foreign",
    "action_space": "wire",
    "protocol": "action_space wire",
    "proposal": "wire",
    "policy": "action_space errors protocol toml wire",
    "forecast": "wire",
    "budget": "policy",
    "process": "errors files foreign paths",
    "telemetry": "files protocol",
    "lineage": "protocol",
    "evaluations": "",
    "finiteness": "wire",
    "interventions": "protocol wire",
    "notices": "paths protocol wire",
    "run_state": "action_space evaluations finiteness interventions lineage notices protocol wire",
    "events": "action_space forecast policy proposal protocol wire",
    "schemas": "errors events policy proposal protocol",
    "ledger": "budget events forecast proposal protocol wire",
    "signals": "forecast run_state wire",
    "snapshot": "action_space ledger policy proposal run_state signals wire",
    "prompts.__init__": "",
    "prompt": "prompts.__init__ proposal snapshot wire",
    "answer": "proposal protocol snapshot wire",
    "completion": "wire",
    "endpoint": "completion errors policy process wire",
    "key": "endpoint errors paths policy process",
    "guard": "action_space events ledger policy proposal protocol run_state signals snapshot wire",
    "control": "files ledger paths protocol wire",
    "probation": "events forecast ledger lineage policy protocol run_state wire",
    "decision": "control events guard ledger lineage paths policy probation protocol run_state signals snapshot wire",
    "audit": "errors events files paths protocol wire",
    "manifest": "errors events process",
    "journal": "audit events ledger",
    "history": "audit errors events files ledger paths protocol run_state telemetry",
    "managers.__init__": "",
    "managers.base": "budget events snapshot",
    "managers.none": "proposal snapshot wire",
    "managers.reading": "proposal signals snapshot wire",
    "managers.exploration": "managers.reading policy proposal snapshot",
    "managers.imbalance": "managers.reading policy snapshot",
    "managers.remedies": "managers.reading proposal snapshot",
    "managers.anew": "managers.reading policy snapshot",
    "managers.rules": "managers.anew managers.exploration managers.imbalance managers.reading managers.remedies policy "
    "proposal snapshot wire",
    "managers.schedules": "errors managers.reading proposal snapshot wire",
    "managers.adversaries": "budget errors managers.base managers.reading policy proposal snapshot wire",
    "managers.local": "errors process",
    "managers.replay": "audit errors events paths proposal snapshot wire",
    "managers.llm": "answer budget completion endpoint errors events key managers.base managers.rules paths policy "
    "prompt proposal snapshot wire",
    "managers.catalog": "errors managers.__init__ managers.adversaries managers.base managers.llm managers.local "
    "managers.none managers.replay managers.rules managers.schedules paths policy",
    "replay": "answer audit decision errors events history ledger lineage managers.base paths prompt prompts.__init__ "
    "protocol snapshot telemetry wire",
    "opinions": "audit errors events guard history ledger managers.base paths policy proposal protocol "
    "run_state snapshot telemetry",
    "sequence": "decision errors events history ledger protocol run_state telemetry",
    "proof": "audit errors events files history interventions notices paths protocol replay run_state sequence "
    "telemetry wire",
    "supervisor": "audit control decision errors events files history journal ledger managers.base paths process "
    "protocol run_state snapshot telemetry wire",
    "launch": "__init__ audit errors events files history managers.base managers.catalog manifest paths policy process "
    "protocol supervisor",
    "seen": "interventions process protocol run_state telemetry wire",
    "checked": "",
    "rollbacks": "checked protocol seen",
    "breaches": "action_space checked notices protocol rollbacks seen telemetry wire",
    "check": "action_space breaches checked interventions manifest paths policy process protocol run_state seen "
    "telemetry wire",
    "output": "errors",
    "display": "events foreign interventions ledger lineage notices protocol run_state telemetry wire",
    "comparison.__init__": "",
    "comparison.statistics": "errors",
    "comparison.experiment": "errors protocol toml wire",
    "comparison.measured": "events files paths protocol",
    "comparison.results": "comparison.experiment errors files foreign protocol wire",
    "comparison.samples": "comparison.results",
    "comparison.analysis": "protocol comparison.results comparison.samples comparison.statistics",
    "comparison.report": "comparison.analysis comparison.results comparison.samples comparison.statistics display "
    "foreign wire",
    "comparison.plots": "foreign wire",
    "comparison.page": "comparison.analysis errors files foreign comparison.plots comparison.report comparison.results "
    "comparison.samples comparison.statistics",
    "comparison.trials": "audit display errors events comparison.experiment history launch managers.catalog manifest "
    "comparison.measured paths policy process protocol run_state snapshot supervisor telemetry wire",
    "comparison.pooling": "comparison.results errors protocol wire",
    "comparison.gathering": "comparison.experiment comparison.measured comparison.pooling comparison.results "
    "comparison.samples comparison.trials errors files policy signals wire",
    "screen": "action_space display events foreign ledger run_state telemetry",
    "comparison.progress": "comparison.trials display foreign",
    "tables": "audit checked display events ledger opinions paths process proof replay run_state screen wire",
}
ENTRY = {"cli", "__main__", "testing.__init__"}  # may import everything; nothing but __main__ imports them
THIRD_PARTY = {  # package to the modules that may import it
    "pydantic": {
        *("wire", "action_space", "protocol", "proposal", "policy", "events", "schemas"),  # what is on disk
        *("signals", "snapshot"),  # the same
        *("guard", "audit", "history", "answer"),  # what reads it
        *("comparison.experiment", "comparison.results"),  # what an experiment is, and what came of it
    },
    "openai": {"endpoint"},
    "pydantic_core": {"guard", "protocol", "wire"},
    "watchdog": {"telemetry"},
    "typer": {"cli"},
    "xllamacpp": {"managers.local"},
    "rich": {"cli", "comparison.progress", "screen", "tables"},
    "scipy": {"comparison.statistics"},
    "numpy": {"comparison.statistics"},
}  # torch: nowhere
LONGEST = 450
LONG = {
    "run_state": "the whole fold over telemetry, in one place",
    "protocol": "every record of the contract between the two processes",
    "workload.__init__": "everything that a training script calls, in one place",
    "policy": "every key that an operator can set, with its explanation",
    "events": "every kind of record in the log, with its explanation",
    "supervisor": "the one thread that owns all state, in one place",
    "proof": "every check of an audit, in one walk",
    "cli": "one body for each command",
}

MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """The dotted names of everything that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def own(path: Path) -> set[str]:
    """Modules of trainmgr that a module imports."""
    found = set()
    for name in imported(path):
        head, _, rest = name.partition(".")
        if head == "trainmgr":
            parts = rest.split(".")
            places = (".".join(parts[:2]), parts[0], f"{parts[0]}.__init__")
            found.add(next((place for place in places if place in MODULES), "__init__"))
    return found


def test_every_module_has_its_place() -> None:
    assert set(MODULES) == set(ALLOWED) | (ENTRY & set(MODULES))


def test_the_order_points_one_way() -> None:
    above: set[str] = set()
    for module, allowed in ALLOWED.items():
        assert set(allowed.split()) <= above, module
        above.add(module)


@pytest.mark.parametrize("module", [module for module in MODULES if module not in ENTRY])
def test_a_module_imports_only_what_it_may(module: str) -> None:
    assert own(MODULES[module]) <= set(ALLOWED[module].split())


def test_third_party_code_is_at_the_edge() -> None:
    for module, path in MODULES.items():
        if module != "testing.__init__":
            foreign = {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names - {"trainmgr"}
            assert foreign <= {package for package, users in THIRD_PARTY.items() if module in users}, module


def test_the_workload_library_is_alone_and_standard() -> None:
    parts = [path for module, path in MODULES.items() if module.startswith("workload.")]
    names = {name for path in parts for name in imported(path) if not name.startswith("trainmgr.workload.")}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_read_at_one_sitting(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST or LONG.get(module)
