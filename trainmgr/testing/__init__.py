"""What ships for tests of workloads and managers: real children, a scripted manager, an endpoint. Imports base,
contract, state, deciding, log, managers, running.

For tests of trainmgr itself and of managers and workloads that others write. Children are real processes, the
endpoint is a real server.
"""

from trainmgr.testing.behaviours import (
    Behaviour,
    Cut,
    Drip,
    Empty,
    EmptyReply,
    Exchange,
    Huge,
    Propose,
    Raw,
    Received,
    Redirect,
    Reset,
    Say,
    Silence,
    Status,
)
from trainmgr.testing.children import LINE, PREAMBLE, PYTHON, write_child, write_shell
from trainmgr.testing.clock import FakeClock
from trainmgr.testing.endpoint import ScriptedEndpoint
from trainmgr.testing.manager import ScriptedManager, answer
from trainmgr.testing.recorder import Recorder
from trainmgr.testing.supervised import EXACT, supervise
from trainmgr.testing.waiting import TIME_LIMIT, wait_for

__all__ = [
    "EXACT",
    "LINE",
    "PREAMBLE",
    "PYTHON",
    "TIME_LIMIT",
    "Behaviour",
    "Cut",
    "Drip",
    "Empty",
    "EmptyReply",
    "Exchange",
    "FakeClock",
    "Huge",
    "Propose",
    "Raw",
    "Received",
    "Recorder",
    "Redirect",
    "Reset",
    "Say",
    "ScriptedEndpoint",
    "ScriptedManager",
    "Silence",
    "Status",
    "answer",
    "supervise",
    "wait_for",
    "write_child",
    "write_shell",
]
