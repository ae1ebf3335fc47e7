"""The errors that reach a person, grouped by who must act, and the exit codes.

    TrainmgrError
    ├── UserError        the person at the keyboard: a wrong name, flag or policy file
    │   └── PolicyError  the policy file, with the key that is wrong
    ├── WorkloadError    the author of the training script: the protocol was breached
    ├── SupervisorError  ourselves: the supervision has ended before the run; the training goes on
    ├── RecordError      the files of a run: they do not hold what they should
    └── ManagerError     the manager or its endpoint: no answer, or none that can be used

A message says what was found, what is allowed, and what to do next. It never holds a traceback or a secret.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1  # the check that was asked for failed (audit, replay, check), or a run did (compare), or it hung (run)
EXIT_USAGE = 2
EXIT_WORKLOAD = 3
EXIT_INTERRUPTED = 130
EXIT_CODES = {
    EXIT_OK: "all is well; `run`: the workload ended with 0",
    EXIT_FAILED: "what was checked does not hold (`audit`, `replay`, `check`), a run of `compare` failed, one could "
    "not be supervised or hung and ended with 0, or what was asked for could not be printed",
    EXIT_USAGE: "the command line, a run's name or a policy file is wrong",
    EXIT_WORKLOAD: "the script could not be started, or wrote no telemetry",
    EXIT_INTERRUPTED: "interrupted: Ctrl-C or SIGTERM",
}


class TrainmgrError(Exception):
    """Base of all errors that end a command with a message and an exit code."""

    exit_code = EXIT_FAILED


class UserError(TrainmgrError):
    """Something that was typed or configured cannot be."""

    exit_code = EXIT_USAGE


class PolicyError(UserError):
    """The policy file is wrong; the message names the key."""


class WorkloadError(TrainmgrError):
    """The training script could not be started or breached the protocol. ``passes``: what prevents it may pass."""

    exit_code = EXIT_WORKLOAD

    def __init__(self, message: str, *, passes: bool = False) -> None:
        super().__init__(message)
        self.passes = passes


class SupervisorError(TrainmgrError):
    """The supervision of a run has ended before the run; the message says how it is taken up again."""


class RecordError(TrainmgrError):
    """A file of a run directory does not hold what it should; the message names the place."""


class ManagerError(TrainmgrError):
    """A manager gave no answer, or none that can be used. Training goes on untouched."""
