"""Logs of real runs, and what a forger makes of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainmgr.base import files
from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import plain
from trainmgr.contract import events
from trainmgr.contract.run_file import render_run_file
from trainmgr.log import audit
from trainmgr.readers import proof

Payloads = list[Any]
ALONE = """
w = Workload("alone", objective="loss", total_steps=12)
w.float("lr", get=lambda: 0.1, set=lambda v: None, low=0.0, high=1.0)
w.command("stop", lambda to: None)
with w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step % 2 == 0:
            w.eval(step, {"loss": 1.0 / step})
"""


def of(payloads: Payloads, kind: type[Any], number: int = 0) -> int:
    """Where the event of a kind stands."""
    return [i for i, payload in enumerate(payloads) if isinstance(payload, kind)][number]


def rewritten(paths: RunPaths, folder: Path, change: Callable[[Payloads], None]) -> list[str]:
    """What an audit finds once the events were changed, and every hash of every file made anew."""
    again = RunPaths(folder / paths.id)
    shutil.copytree(paths.root, again.root)
    payloads: Payloads = [event.data for event in audit.read(paths.audit)]
    change(payloads)
    ended = payloads[-1]
    if isinstance(ended, events.RunEnded):
        content = render_run_file(plain(payloads[0].manifest), plain(ended.closing))
        again.manifest.write_bytes(content)
        payloads[-1] = ended.model_copy(update={"run_json_sha256": files.sha256(content)})
    again.audit.unlink()
    log = audit.Log(again.audit)
    for payload in payloads:
        log.append(payload, 0.0)
    log.close()
    return [str(finding) for finding in proof.prove(again).findings]


def edited(kind: type[Any], number: int = 0, **values: Any) -> Callable[[Payloads], None]:
    def forge(payloads: Payloads) -> None:
        at = of(payloads, kind, number)
        payloads[at] = payloads[at].model_copy(update=values)

    return forge


def closing(**values: Any) -> Callable[[Payloads], None]:
    def forge(payloads: Payloads) -> None:
        payloads[-1] = payloads[-1].model_copy(update={"closing": payloads[-1].closing.model_copy(update=values)})

    return forge


def measured(**values: Any) -> Callable[[Payloads], None]:
    """Other figures for comparisons in the closing."""

    def forge(payloads: Payloads) -> None:
        closing(measured=payloads[-1].closing.measured.model_copy(update=values))(payloads)

    return forge
