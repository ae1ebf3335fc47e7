"""What a training script imports: report metrics, receive bounded changes. Imports nothing of ours.

Standard library only, and nothing else of trainmgr: a script that uses it trains the same with and without a
supervisor. Without one (no ``TRAINMGR_RUN_DIR`` in the environment) nothing is read, and nothing is written unless a
``directory`` is named.

    with Workload("minimal", objective="loss", mode="min", total_steps=1000) as w:
        w.float("lr", get=lambda: lr, set=set_lr, low=1e-4, high=1.0, scale="log", max_ratio=2.0)
        for step in w.steps():
            loss = train_one_step()
            w.step(step, {"loss": loss})

`Workload.torch` declares all that it finds in a training with torch, and keeps its checkpoints.

Parameters and commands may be declared until the first report. Overrides are applied, and setters called, only inside
``step``, ``eval`` and ``checkpoint``: between two training steps, in the thread that trains. A bad control file never
raises there; it is answered with a ``refused`` or a ``log`` record, and training goes on as it was.

Numbers of numpy and torch are numbers. What cannot be one raises where it is declared; in a report it is left out (a
step that is no whole number is rounded down) and a ``log`` record says so once: a report never stops training.

The cost is kept out of the loop: ``step`` appends to a list. Every 50 ms the list is written (a SIGKILL loses at most
that) and the control file looked at with one ``stat``.
"""

from trainmgr.workload.checkpoints import Checkpoints
from trainmgr.workload.records import Metric
from trainmgr.workload.surroundings import RUN_DIR_VARIABLE, default_seed, resume_path
from trainmgr.workload.workload import Workload

__all__ = ["RUN_DIR_VARIABLE", "Checkpoints", "Metric", "Workload", "default_seed", "resume_path"]
