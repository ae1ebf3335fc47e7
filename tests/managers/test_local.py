"""The embedded server of `local:FILE.gguf`, with a real model: what it answers, whom it refuses, when it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from models import smollm2

from trainmgr.base.errors import UserError
from trainmgr.base.process import alive
from trainmgr.managers.local import LocalServer
from trainmgr.testing import PYTHON, TIME_LIMIT, wait_for

SECRET = "sk-of-the-parent"  # what no child may see

PARENT = """
import sys, threading
from pathlib import Path
from trainmgr.managers.local import LocalServer

server = LocalServer(Path(sys.argv[1]), context=256, threads=1)
server.start()
print(server.pid, flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    if importlib.util.find_spec("xllamacpp") is None:  # never imported here: its native code stays in the child
        pytest.skip("xllamacpp is not installed")
    server = LocalServer(smollm2(), context=1024, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", SECRET)
        server.start()
    yield server
    server.stop()


@pytest.fixture
def client(server: LocalServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


def client_of(server: LocalServer, key: str | None = None) -> openai.OpenAI:
    # No proxy of the environment: it would be shown the token.
    return openai.OpenAI(
        base_url=server.url, api_key=key or server.key, max_retries=0, timeout=TIME_LIMIT,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )  # fmt: skip


def ask(client: openai.OpenAI, server: LocalServer, **more: Any) -> Any:
    return client.chat.completions.create(
        model=server.name, messages=[{"role": "user", "content": "How is the training?"}], seed=1, **more
    )


def proc(pid: int | None, name: str) -> bytes:
    path = Path(f"/proc/{pid}/{name}")
    if not path.exists():
        pytest.skip("this system does not show processes in /proc")
    return path.read_bytes()


def test_it_answers_and_counts_tokens(server: LocalServer, client: openai.OpenAI) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    assert [model.id for model in client.models.list()] == [server.name]
    answer = ask(client, server, max_tokens=8)
    assert answer.model == server.name
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > 10  # the chat template around the five words
    assert 0 < answer.usage.completion_tokens <= 8


def test_a_schema_is_kept(server: LocalServer, client: openai.OpenAI) -> None:
    properties = {
        "action": {"enum": ["keep", "stop"]},
        "why": {"type": "string", "maxLength": 12},
        "steps": {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 7}, {"type": "null"}]},
        "lr": {"type": ["number", "null"]},
    }
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    answer = ask(
        client, server, max_tokens=200, temperature=1.0,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}},
    )  # fmt: skip
    given = json.loads(answer.choices[0].message.content)
    assert list(given) == list(properties)
    assert given["action"] in ("keep", "stop")
    assert len(given["why"]) <= 12
    assert given["steps"] in (3, 4, 5, 6, 7, None)
    assert given["lr"] is None or isinstance(given["lr"], int | float)


def test_a_prompt_that_is_too_long_is_refused_in_words(server: LocalServer, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
        client.chat.completions.create(model=server.name, messages=[{"role": "user", "content": "word " * 2000}])


def test_a_request_without_the_key_is_refused(server: LocalServer) -> None:
    with client_of(server, "wrong") as stranger, pytest.raises(openai.AuthenticationError):
        ask(stranger, server, max_tokens=1)
    with client_of(server, "wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_nobody_who_looks_at_the_process_sees_a_secret(server: LocalServer) -> None:
    assert server.key.encode() not in proc(server.pid, "cmdline") + proc(server.pid, "environ")
    assert SECRET.encode() not in proc(server.pid, "environ")


def test_it_leaves_cores_and_terminal_to_others(server: LocalServer) -> None:
    assert server.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, server.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    assert os.getsid(server.pid) == server.pid  # Ctrl-C does not reach it


def test_it_stops_and_starts_again(server: LocalServer) -> None:
    other = LocalServer(server._model, context=256, threads=1)
    other.stop()
    other.start()
    try:
        first, key = other.pid, other.key
        assert first is not None
        other.start()
        assert not alive(first)
        assert other.key != key
        second = other.pid
        assert second is not None
    finally:
        other.stop()
    assert not alive(second)
    assert other.pid is None
    other.stop()


def test_it_can_be_stopped_when_it_has_crashed(server: LocalServer) -> None:
    other = LocalServer(server._model, context=256, threads=1)
    other.start()
    assert other.pid is not None
    os.kill(other.pid, signal.SIGSEGV)
    other.stop()
    assert other.pid is None


def test_it_dies_with_its_parent(server: LocalServer) -> None:
    with subprocess.Popen([PYTHON, "-c", PARENT, server._model], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            assert alive(child)
        finally:
            parent.kill()
    wait_for(lambda: not alive(child), "the end of the server")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it dies after it has loaded")
def test_it_dies_with_its_parent_while_it_loads(server: LocalServer, tmp_path: Path) -> None:
    # A pipe as the model: it can be opened for writing once native code reads, which then waits for what never comes.
    model = tmp_path / "model.gguf"
    os.mkfifo(model)
    command = [PYTHON, "-m", "trainmgr.managers.local", str(model), "256", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as child:
        assert child.stdin is not None
        child.stdin.write("token\n")
        child.stdin.flush()
        writer: list[int] = []
        opener = threading.Thread(target=lambda: writer.append(os.open(model, os.O_WRONLY)), daemon=True)
        opener.start()
        try:
            opener.join(TIME_LIMIT)
            assert writer
            child.stdin.close()
            assert child.wait(TIME_LIMIT) in (-signal.SIGIO, 0)
        finally:
            child.kill()
    os.close(writer[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"model\.gguf cannot be read: No such file or directory\. Name a GGUF file"),
        (b"", r"is not a GGUF file: it begins with b''"),
        (b"just some text", r"is not a GGUF file: it begins with b'just', not b'GGUF'"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        LocalServer(path, context=256, threads=1).start()


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        LocalServer(tmp_path, context=256, threads=1).start()


def test_a_truncated_model_is_told_with_the_reason(server: LocalServer, tmp_path: Path) -> None:
    path = tmp_path / "truncated.gguf"
    with server._model.open("rb") as file:
        path.write_bytes(file.read(5_000_000))
    other = LocalServer(path, context=256, threads=1)
    with pytest.raises(UserError, match=r"(?s)truncated\.gguf cannot be loaded.*not within the file bounds"):
        other.start()
    assert other.pid is None


def test_a_model_that_does_not_get_ready_is_given_up(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmgr.managers.local.READY_WITHIN", 0.0)
    other = LocalServer(server._model, context=256, threads=1)
    with pytest.raises(UserError, match="was not ready within 0 s"):
        other.start()
    assert other.pid is None


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(UserError, match=r"pip install 'trainmgr\[local\]'"):
        LocalServer(path, context=256, threads=1).start()
