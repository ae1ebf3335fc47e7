"""A language model on this machine: an embedded llama.cpp server in a process of its own, for as long as it is wanted.

    supervisor ──stdin: the token, then nothing until it closes──> child: `python -m trainmgr.managers.local`
               <──stdout: one line, the address──────────────────   (xllamacpp: native code that may crash)

It computes on the CPU at low priority: cores and graphics memory belong to the training.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from trainmgr.base.errors import UserError
from trainmgr.base.process import Exit, clean_environment

MAGIC = b"GGUF"
READY_WITHIN = 120.0  # seconds
STOPPED_WITHIN = 10.0  # seconds that a killed process is waited for: the kernel may be reading a model from a slow disk
NICENESS = 10
LINES = 12  # of the child's output, in an error
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}  # a context alone takes hundreds of megabytes


class LocalServer:
    """An embedded llama.cpp server in a process of its own, on loopback, with a token; lives as long as this object.

    It ends with this process, too, however that ends.
    """

    def __init__(self, model: Path, *, context: int, threads: int, secrets: Sequence[str] = ()) -> None:
        """``secrets``: variables that its process does not get, beside those of ``clean_environment``."""
        self.url = ""
        """Where its OpenAI-compatible interface is, known once it is started: ``http://127.0.0.1:PORT/v1``."""
        self.key = ""
        """The token that every request needs; another one with each start."""
        self.name = model.stem
        self._model, self._context, self._threads, self._secrets = model, context, threads, secrets
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start it (again) and wait until it answers.

        Raises UserError where the file is no model that can be loaded, or xllamacpp is not installed.
        """
        self.stop()
        check_model(self._model)
        if importlib.util.find_spec("xllamacpp") is None:
            raise UserError(
                "local:FILE.gguf needs the package xllamacpp, which is not installed; "
                "install it with pip install 'trainmgr[local]'."
            )
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self.key = secrets.token_urlsafe(32)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # without a name: gone with the last who has it open
        command = [sys.executable, "-m", __name__, str(self._model.resolve()), str(self._context), str(self._threads)]
        self._process = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._output, bufsize=0,
            env=clean_environment(NO_GPU, self._secrets), cwd=Path(__file__).parents[2], start_new_session=True,
        )  # fmt: skip  # in the folder of this very package, so that -m finds it and nothing of the user's
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; that is told below
            process.stdin.write(f"{self.key}\n".encode())
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(READY_WITHIN):
                raise UserError(
                    f"The model {self._model} was not ready within {READY_WITHIN:.0f} s. "
                    "Take a smaller model, a smaller context, or a faster disk." + self._said()
                )
        address = process.stdout.readline().decode().strip()
        if not address:
            code = process.wait()
            end = Exit(code if code >= 0 else 128 - code)
            raise UserError(
                f"The model {self._model} cannot be loaded: its server {end.words}. "
                "Get the file again if it is incomplete, or take another model or a smaller context." + self._said()
            )
        self.url = f"{address}/v1"

    def _said(self) -> str:
        """The end of the child's output. It shares our position in the file: read without moving that."""
        assert self._output is not None
        number = self._output.fileno()
        text = os.pread(number, 16_384, max(0, os.fstat(number).st_size - 16_384)).decode(errors="replace")
        return "".join(f"\n  {line}" for line in ["It said:", *text.splitlines()[-LINES:]] if text)

    def stop(self) -> None:
        """End the process. Once is enough, and before the start it is no error."""
        process, self._process = self._process, None
        output, self._output = self._output, None
        self.url = self.key = ""
        if process is not None:
            with contextlib.suppress(OSError):
                process.kill()  # it holds nothing that is worth saving
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOPPED_WITHIN)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if output is not None:
            with contextlib.suppress(OSError):
                output.close()


def check_model(path: Path) -> None:
    """Raises UserError for what is plainly no model, before a process is started for it."""
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise UserError(
            f"The model file {path} cannot be read: {error.strerror}. Name a GGUF file: local:FILE.gguf."
        ) from None
    if start != MAGIC:
        raise UserError(
            f"{path} is not a GGUF file: it begins with {start!r}, not {MAGIC!r}. "
            "Models for llama.cpp are published in this format, with names that end in .gguf."
        )


def serve(model: Path, context: int, threads: int) -> None:
    """The child: reads the token, loads the model, writes the address, and serves until its input ends."""
    os.nice(NICENESS)
    token = sys.stdin.readline().strip()
    watcher = threading.Thread(target=die_with_parent, daemon=True)
    watcher.start()
    if sys.platform == "linux":
        # Loading holds the interpreter's lock, for minutes with a large model. So let the kernel tell of the end of
        # our input, too: SIGIO ends a process that does not handle it.
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    answer = os.dup(1)
    os.dup2(2, 1)  # what native code prints is no answer
    try:
        address = listen(token, model, context, threads)
    except (RuntimeError, ImportError, AttributeError) as error:  # the last: another version of it
        sys.exit(f"xllamacpp: {error}")
    os.write(answer, f"{address}\n".encode())
    os.close(answer)
    watcher.join()


def die_with_parent() -> None:
    """End with the pipe that our parent holds: closed when it dies of whatever."""
    while os.read(0, 1):
        pass
    os._exit(0)


SERVERS: list[Any] = []  # a server ends when nothing refers to it


def listen(token: str, model: Path, context: int, threads: int) -> str:
    """Start the server in this process; its address. Raises RuntimeError, having printed why."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {model.stem}
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # the system chooses a free one: no race
    params.api_keys = [token]
    params.cors_origins = ""  # no page in a browser may talk to it
    params.cors_credentials = False
    params.ui = params.endpoint_slots = params.endpoint_metrics = params.endpoint_props = False
    params.offline = True
    params.n_ctx = context
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # idle threads sleep
    params.n_threads_http = 4
    params.n_gpu_layers = 0
    params.no_kv_offload = params.no_op_offload = True
    params.fit_params = False  # to the free graphics memory
    params.cache_ram_mib = 0  # old prompts, up to gigabytes; the last one is kept anyway
    params.cache_idle_slots = False
    params.verbosity = 2  # warnings and errors
    SERVERS.append(xllamacpp.Server(params))
    return str(SERVERS[0].listening_address)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
