"""A language model as the manager: the real client, asked alone or in a run, at a scripted endpoint on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import factories
from trainmgr.base.errors import ManagerError, UserError
from trainmgr.base.paths import RunPaths
from trainmgr.contract import events
from trainmgr.contract.policy import Limits, Llm, Policy, Probation
from trainmgr.contract.run_file import Closing
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.log import audit
from trainmgr.managers.llm import LlmManager
from trainmgr.readers import proof, replay
from trainmgr.running import launch
from trainmgr.state.budget import Spent
from trainmgr.testing import (
    LINE,
    TIME_LIMIT,
    Propose,
    Raw,
    Received,
    Recorder,
    Say,
    ScriptedEndpoint,
    answer,
    supervise,
    write_child,
)

KEY = "sk-not-for-the-log-81c2"
FIRST = LINE.replace("STEPS, EVERY = 24, 2", "STEPS, EVERY = 9, 4")  # two evaluations
LOWER = answer("adjust", {"lr": 0.2})

UNWATCHED = Probation(enabled=False)


def policy_of(**llm_settings: Any) -> Policy:
    """Each change takes effect one step after its evaluation. Nothing is asked before the first decision."""
    llm_settings = {"probe": False, "prompt_tokens": 2500, **llm_settings}
    return Policy(limits=Limits(lead_steps=1), llm=Llm(**llm_settings), probation=UNWATCHED)


def manager_at(endpoint: ScriptedEndpoint, policy: Policy, model: str | None = "scripted") -> LlmManager:
    return LlmManager(policy, model, environment={"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": KEY})


def managed(
    folder: Path, endpoint: ScriptedEndpoint, rules: Policy | None = None, body: str = LINE, **more: Any
) -> tuple[RunPaths, Closing, Recorder]:
    """A run by the model at this endpoint, proven and decided again."""
    rules = rules or policy_of()
    paths, closing, heard = supervise(folder, write_child(folder, body), manager_at(endpoint, rules), policy=rules,
                                      **more)  # fmt: skip
    holds(paths)
    return paths, closing, heard


def view() -> Snapshot:
    """A moment to decide on."""
    return factories.view(factories.curve([3.0, 2.0, 2.5], train=[3.0, 2.0, 1.0]))


class Desk:
    """A manager without a run: asked directly, its exchanges kept."""

    def __init__(self, endpoint: ScriptedEndpoint, rules: Policy | None = None, spent: Spent | None = None) -> None:
        self.manager = manager_at(endpoint, rules or policy_of())
        self.manager.open()
        self.spent = spent or Spent()
        self.told: list[Any] = []
        self.decisions = 0

    def decide(self) -> Any:
        """The answer; what is wrong as text where there is none."""
        self.decisions += 1
        self.manager.begin(f"d{self.decisions}", self.spent, self._hear)
        try:
            return self.manager.decide(view())
        except ManagerError as error:
            return str(error)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]

    def _hear(self, event: Any) -> None:
        self.told.append(event)
        if isinstance(event, events.Request):
            self.spent = self.spent.asked()
        elif isinstance(event, events.Reply):
            self.spent = self.spent.answered(event.prompt_tokens, event.completion_tokens, event.money, event.seconds)


def holds(paths: RunPaths) -> None:
    """What every run must show: it proves itself, decides the same again, and the key is in none of its files."""
    found = proof.prove(paths)
    assert [str(finding) for finding in found.findings] == []
    assert replay.rebuild(paths).differences == []
    assert [str(path) for path in paths.root.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


def of(paths: RunPaths, kind: type[Any]) -> list[Any]:
    return [event.data for event in audit.read(paths.audit) if isinstance(event.data, kind)]


def failures(paths: RunPaths) -> list[str]:
    return [failure.message for failure in of(paths, events.Failure) if failure.where != "endpoint"]


def notices(paths: RunPaths) -> list[str]:
    """What is to be known of the endpoint."""
    return [failure.message for failure in of(paths, events.Failure) if failure.where == "endpoint"]


def asked(endpoint: ScriptedEndpoint) -> list[Received]:
    return [request for request in endpoint.requests if request.method == "POST"]


def said(paths: RunPaths) -> str:
    """What the log says of the first decision, in a line: why there was none, or why it had no effect."""
    if messages := failures(paths):
        return messages[0].removeprefix("no decision from scripted: ")
    ruling = of(paths, events.Verdict)[0]
    return f"{ruling.result}: " + "; ".join(
        [f"{c.name}: {c.reason}" for c in ruling.checks if not c.ok]
        or [", ".join(f"{n} = {v:g}" for n, v in ruling.changes.items())]
    )


def changed(**keys: Any) -> str:
    return json.dumps({**LOWER, **keys})


def lower(value: str) -> str:
    """The same with this text in the place of the new value."""
    return json.dumps(LOWER).replace("0.2", value)


def bodies(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


def filled(schema: Mapping[str, Any]) -> Any:
    """The first that a schema allows, with null where it may be."""
    if "anyOf" in schema:
        return filled(schema["anyOf"][-1])
    kinds = schema.get("type", "null")
    if "null" in kinds or "enum" in schema or "const" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        return None if "null" in kinds and None in schema.get("enum", [None]) else allowed[0]
    if kinds == "object":
        return {name: filled(each) for name, each in schema["properties"].items()}
    return {"string": "?", "number": 0.5, "integer": 1, "boolean": True, "array": []}[kinds]


def formed(request: Received) -> Say:
    """An answer in the form that is asked for."""
    body = request.body or {}
    if body.get("tools"):
        return Say(json.dumps(filled(body["tools"][0]["function"]["parameters"])))
    return Say(json.dumps(filled(body["response_format"]["json_schema"]["schema"])))


def failing(error: Any, **more: Any) -> Raw:
    """An error with status 200."""
    return Raw(bodies({"error": error, **more}))


DRAFT = json.dumps(answer("adjust", {"lr": 0.3}))  # applied by whoever takes a thought for an answer

CUT_IN_THOUGHTS = r"cut off in its thoughts at 4096 tokens; raise llm.most_output_tokens"  # after 2048

NOW = {"Retry-After": "0"}


KEEP = Propose(answer(), usage=(1000, 100))


def command_line(words: list[str], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "trainmgr", *words], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=TIME_LIMIT, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def sent(endpoint: ScriptedEndpoint) -> list[dict[str, Any]]:
    return [request.body or {} for request in asked(endpoint)]


def kind(name: str, count: int = 1) -> str:
    return f"until(lambda: sum(e['kind'] == '{name}' for e in log()) >= {count})"


def cannot_open(manager: LlmManager, message: str) -> None:
    with pytest.raises(UserError, match=message), launch.ready(manager):
        pass
