"""The JSON schemas of everything on disk, with one example record beside each: the contract for other languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter

from trainmgr.base.errors import UserError
from trainmgr.base.wire import explained
from trainmgr.contract import events, policy, proposal, protocol
from trainmgr.contract.run_file import RunFile

ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "telemetry": TypeAdapter(Annotated[protocol.Telemetry, Field(discriminator="event")]),
    "control": TypeAdapter(protocol.Control),
    "proposal": TypeAdapter(proposal.Proposal),
    "audit": events.PAYLOAD,
    "run": TypeAdapter(RunFile),
    "policy": TypeAdapter(policy.Policy),
}
TITLES = {
    "telemetry": "A line of telemetry.jsonl (protocol version 1)",
    "control": "control.json (protocol version 1)",
    "proposal": "What a manager answers",
    "audit": "The `data` of a line of audit.jsonl",
    "run": "run.json",
    "policy": "A policy file (TOML)",
}

_HERE = f"{__name__.rpartition('.')[0].replace('.', '__')}__"  # in the names of two types of the same name
_HEAD = {"v": 1, "t": 1782000000.25}
_COMMAND = {"id": "d7", "name": "rollback", "to": "best"}
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "telemetry": [
        {
            **_HEAD, "seq": 0, "event": "start", "workload": "minimal", "pid": 4711, "seed": 1, "total_steps": 1000,
            "objective": {"metric": "val_loss", "mode": "min", "counterpart": "train_loss"},
            "action_space": [
                {"name": "lr", "type": "float", "low": 1e-05, "high": 0.005, "scale": "log", "max_ratio": 2.0,
                 "min_ratio": 0.1, "value": 0.003, "boundary": "step", "group": "optimizer",
                 "description": "AdamW learning rate"}
            ],
            "metrics": {"loss": {"description": "trained cross-entropy, nats per token"}},
            "commands": ["rollback", "stop"], "info": {"threads": 1}, "resumed": None,
        },
        {**_HEAD, "seq": 1, "event": "step", "step": 1, "metrics": {"loss": 7.62, "grad_norm": "NaN"}},
        {**_HEAD, "seq": 2, "event": "eval", "step": 20, "metrics": {"val_loss": 5.54}, "params": {"lr": 0.003},
         "moving": {"lr": {"value": 0.003, "end": 0.0001}}, "split": {"easy": {"success": 0.9, "episodes": 80}}},
        {**_HEAD, "seq": 3, "event": "checkpoint", "step": 20, "path": "checkpoints/best.pt",
         "metrics": {"val_loss": 5.54}, "best": True},
        {**_HEAD, "seq": 4, "event": "applied", "revision": 1, "step": 41, "boundary": "step",
         "changes": {"lr": [0.003, 0.0009]}, "command": _COMMAND, "groups": {"lr": [0.0009, 0.0009]},
         "shares": {"lr": [0.0009, 0.003]}},
        {**_HEAD, "seq": 5, "event": "overwritten", "name": "lr", "revision": 1, "set_at": 41, "value": 0.0009,
         "step": 42, "found": 0.003},
        {**_HEAD, "seq": 6, "event": "refused", "revision": 2, "step": 60,
         "reason": "too late: it was valid until step 50, this is step 60"},
        {**_HEAD, "seq": 7, "event": "log", "level": "warning", "message": "the data loader was restarted"},
        {**_HEAD, "seq": 8, "event": "end", "status": "completed", "step": 1000, "metrics": {"test_loss": 4.6}},
    ],
    "control": [
        {"revision": 1, "params": {"lr": 0.0009, "dropout": 0.2}, "based_on_step": 40, "valid_until_step": 100,
         "at_step": None, "at_boundary": None, "command": _COMMAND, "decision": "d7", "v": 1,
         "run": "20261122-101500-minimal-0a1b", "issued": {"t": 1782000000.25, "step": 40}, "schedule": None}
    ],
    "proposal": [
        {"diagnosis": "overfitting", "evidence": "val_loss 5.9, best 5.54 at step 60 (+6.5%)", "action": "rollback",
         "changes": {"lr": 0.0009}, "to": "best",
         "expected": {"metric": "val_loss", "direction": "down", "by_step": 200},
         "falsifier": "no new best", "confidence": 0.8}
    ],
}  # fmt: skip


def _example_events() -> list[dict[str, Any]]:
    control = EXAMPLES["control"][0]
    return [
        {"kind": "response", "decision": "d7", "manager": "rules", "raw": EXAMPLES["proposal"][0], "seconds": 0.001},
        {"kind": "override", "decision": "d7", "origin": "manager", "control": control},
    ]


EXAMPLES["audit"] = _example_events()


def documents() -> dict[str, str]:
    """File name to content of everything in ``schemas/``."""
    result: dict[str, str] = {}
    for name, adapter in ADAPTERS.items():
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": TITLES[name]}
        text = json.dumps({**adapter.json_schema(), **schema}, indent=2)
        result[f"{name}.json"] = text.replace(_HERE, "trainmgr__") + "\n"  # where our modules stand is no part of it
        if name in EXAMPLES:
            lines = [json.dumps(example) for example in EXAMPLES[name]]
            result[f"{name}.example.jsonl"] = "\n".join(lines) + "\n"
    return result


def policy_file() -> str:
    """A policy file with every key at its default and its explanation: what `trainmgr policy` prints."""
    lines = ["# trainmgr policy. Every key is optional; these are the defaults. Unknown keys are errors.", ""]
    for name, field in policy.Policy.model_fields.items():
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, policy.Section)):
            continue
        lines += [f"[{name}]  # {section.__doc__}"]
        lines += _document_keys(section)
        lines.append("")
    for title, example in (("prices.MODEL", policy.Price), ("parameters.lr", policy.ParameterLimits)):
        lines += [f"# [{title}]  # {example.__doc__}"]
        lines += ["# " + line.removeprefix("# ") for line in _document_keys(example)]
        lines.append("")
    del lines[-1]
    return "\n".join(lines) + "\n"


def _document_keys(section: type[BaseModel]) -> list[str]:
    lines, explanations = [], explained(section)
    for key, field in section.model_fields.items():
        text = " ".join(explanations.get(key, "").split())
        value = field.default
        if value is None or field.is_required():
            lines.append(f"# {key} =  # {text}")
            continue
        shown = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else value
        lines.append(f"{key} = {shown}  # {text}")
    return lines


def write(folder: Path) -> list[Path]:
    """Write all of them; returns the files.

    Raises UserError where the folder cannot be written.
    """
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in documents().items():
            path = folder / name
            path.write_text(content)
            files.append(path)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}. Name another folder.") from None
    return files
