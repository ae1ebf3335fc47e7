"""Which model is asked, where and with which key is known before a run; the key itself is nowhere on record."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import factories
import pytest
from factories.calls import (
    FIRST,
    KEEP,
    KEY,
    LOWER,
    Desk,
    asked,
    cannot_open,
    command_line,
    manager_at,
    policy_of,
    sent,
    view,
)

from trainmgr.base.errors import PolicyError, UserError
from trainmgr.base.paths import RunPaths
from trainmgr.contract import policy
from trainmgr.contract.policy import Policy
from trainmgr.managers import catalog
from trainmgr.managers.endpoint import distrusted
from trainmgr.managers.llm import LlmManager
from trainmgr.state.budget import Spent
from trainmgr.testing import (
    LINE,
    TIME_LIMIT,
    Behaviour,
    Propose,
    Raw,
    Redirect,
    Say,
    ScriptedEndpoint,
    Status,
    answer,
    supervise,
    write_child,
)

pytestmark = pytest.mark.usefixtures("prompt_and_alone")


# -- the key -----------------------------------------------------------------------------------------------------------


CANARY = "canary-5d1f0c2e9b7a4386"
SPY = "print(dict(os.environ), flush=True)\n" + LINE


def everywhere(folder: Path) -> list[str]:
    """The files that hold the key, or its beginning."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and CANARY[:12].encode() in path.read_bytes()]


def test_the_key_is_nowhere_whatever_the_endpoint_does_with_it(tmp_path: Path) -> None:
    spelled = CANARY.replace("c", "\\u0063")
    echo = {"x-key": CANARY, "Retry-After": CANARY}
    completion = {"choices": [{"message": {"content": f"{CANARY} {json.dumps(answer())}"}, "finish_reason": CANARY}],
                  "model": CANARY, "usage": {"prompt_tokens": CANARY}}  # fmt: skip
    function = {"name": CANARY, "arguments": f'{{"{CANARY}": 1}}'}
    call = {"choices": [{"message": {"tool_calls": [{"function": function}]}}]}
    script: list[Behaviour] = [
        Status(401, "Incorrect API key", echo_key=True, headers=echo),
        Status(403, body=f"<h1>{CANARY}</h1>"),
        Status(409, body={"error": {"message": "x" * 290 + CANARY, "code": CANARY, "param": CANARY}}, headers=echo),
        Status(404, body={"error": CANARY}),
        Raw(9 * CANARY.encode()),  # a part of the last one, if it is cut first
        Raw(f"{CANARY}".encode()),
        Raw(b"{}", headers={"Content-Encoding": CANARY}),
        Redirect(f"http://127.0.0.1:9/{CANARY}"),
        Raw(json.dumps(completion).encode(), headers=echo),
        Raw(json.dumps(call).encode()),
        Propose(answer(evidence="x" * 990 + CANARY)),
        Say(json.dumps(answer(evidence="!")).replace("!", spelled)),
        Say("", refusal=f"I will not use {CANARY}."),
        Propose(answer("adjust", {CANARY: 1.0})),
        Propose(answer("adjust", {"lr": CANARY})),
        Propose(answer(CANARY)),
    ]  # fmt: skip
    (tmp_path / "policy.toml").write_text(
        "[llm]\nprobe = false\nretries = 0\nbreaker_failures = 100\n[probation]\nenabled = false\n"
    )
    child = write_child(tmp_path, SPY.replace("STEPS, EVERY = 24", "STEPS, EVERY = 40"))
    with ScriptedEndpoint(script) as endpoint:
        given = {**os.environ, "OPENAI_API_KEY": CANARY, "OTHER_NAME": f"key={CANARY}", "HARMLESS": "harmless",
                 "OPENAI_BASE_URL": endpoint.url, "OPENAI_LOG": "debug", "NO_COLOR": "1"}  # fmt: skip
        start = ["run", str(child), "-m", "llm:scripted", "--policy", "policy.toml", "--seed", "1"]
        for words in (start, ["replay", "latest", "-m", "llm:scripted"]):
            done = command_line(words, given, tmp_path)
            assert CANARY[:12] not in done.stdout + done.stderr
    assert "19 snapshots; llm:scripted: 0 valid, " in done.stdout
    assert len(asked(endpoint)) > len(script)
    assert asked(endpoint)[0].headers["authorization"] == f"Bearer {CANARY}"
    assert everywhere(tmp_path) == []
    (folder,) = (tmp_path / "runs").iterdir()
    output = RunPaths(folder).stdout.read_text()
    assert "harmless" in output
    assert "OPENAI_API_KEY" not in output
    assert "OTHER_NAME" not in output
    assert b"[key]" in RunPaths(folder).audit.read_bytes()


def test_a_key_of_another_name_is_hidden_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSE_API_KEY", f"{CANARY}\n")  # as files end
    monkeypatch.setenv("COPY", CANARY)
    rules = policy_of(api_key_env="HOUSE_API_KEY")
    with ScriptedEndpoint([Status(401, echo_key=True), KEEP], key=CANARY) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        paths, _, _ = supervise(tmp_path, write_child(tmp_path, SPY), LlmManager(rules, "scripted"), policy=rules)
        assert len(asked(endpoint)) == 11
    output = paths.stdout.read_text()
    assert "TRAINMGR_RUN_DIR" in output
    assert "HOUSE_API_KEY" not in output
    assert "COPY" not in output
    assert everywhere(tmp_path) == []


@pytest.mark.parametrize("word", ["lr", "x", "none", "EMPTY", "0.2"])
def test_a_word_in_place_of_a_key_is_not_struck_from_the_answers(word: str) -> None:
    with ScriptedEndpoint([Propose(LOWER)]) as endpoint:
        manager = LlmManager(policy_of(), "scripted", environment={"OPENAI_BASE_URL": endpoint.url,
                                                                   "OPENAI_API_KEY": word})  # fmt: skip
        manager.open()
        manager.begin("d1", Spent(), lambda _: None)
        state = factories.curve([3.0, 2.0], factories.lr(low=0.01, high=1.0, value=0.4))
        assert manager.decide(factories.view(state)) == LOWER
        manager.close()


@pytest.mark.parametrize(
    "text",
    [
        f'[llm]\napi_key = "{CANARY}"',
        f'[llm]\nkey = "{CANARY}"',
        f'[llm]\ntoken = "{CANARY}"',
        f'[llm]\napi_key_env = "{CANARY}"',
        f'[llm]\napikey = "{CANARY}"',
        f'[llm]\nbase_url = "https://me:{CANARY}@example.org/v1"',
        f'[llm]\nbase_url = "https://example.org/v1?key={CANARY}"',
        f'OPENAI_API_KEY = "{CANARY}"',
    ],
)
def test_a_policy_with_a_key_in_it_is_refused_and_the_key_not_repeated(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(PolicyError) as raised:
        policy.load(tmp_path / "policy.toml")
    assert CANARY not in str(raised.value)


# -- an environment that no call can be made in ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:1080"}, "ALL_PROXY names a SOCKS proxy.*pip install socksio.*env -u ALL_PR"),
        ({"all_proxy": "socks://127.0.0.1:1080/"}, "all_proxy names a proxy of a kind.*with socks5 instead of socks"),
        ({"HTTPS_PROXY": f"{CANARY}://x"}, "HTTPS_PROXY names a proxy of a kind that is not known; known are http, "),
        ({"HTTPS_PROXY": f"http://me:{CANARY}@proxy:port"}, "HTTPS_PROXY is no address of a proxy.*http://HOST:PORT"),
        ({"HTTP_PROXY": "http://"}, "HTTP_PROXY is no address of a proxy"),
        ({"SSL_CERT_FILE": f"/nonexistent/{CANARY}.pem"}, r"SSL_CERT_FILE .*/nonexistent/\[key\].pem \(No such file"),
        (
            {"SSL_CERT_FILE": "/"},
            r"SSL_CERT_FILE names a file of certificates .*: / \(Is a directory\).*env -u SSL_CERT_F",
        ),
        ({"SSL_CERT_FILE": __file__}, r"SSL_CERT_FILE names a file .*test_configured.py \(there is none in it\)"),
        ({"SSL_CERT_DIR": "/nonexistent"}, r"SSL_CERT_DIR names a folder .*: /nonexistent \(there is none\)"),
        (
            {"SSL_CERT_DIR": "/", "SSLKEYLOGFILE": "/nonexistent/keys"},
            "SSLKEYLOGFILE names a file that cannot be written",
        ),
        ({"OPENAI_ORG_ID": "“org”"}, "OPENAI_ORG_ID holds characters that no HTTP header can have"),
        ({"OPENAI_API_KEY": f"“{CANARY}”"}, "The key in OPENAI_API_KEY holds characters that no HTTP header can have"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_the_environment_prevents_is_said_in_a_line_before_anything_is_started(
    given: dict[str, str], words: str, tmp_path: Path
) -> None:
    base = {name: value for name, value in os.environ.items() if not name.startswith("SSL_CERT")}
    child = str(write_child(tmp_path, FIRST))
    done = subprocess.run(
        [sys.executable, "-m", "trainmgr", "run", child, "-m", "llm:m", "--runs-dir", "runs"],
        cwd=tmp_path, capture_output=True, text=True, timeout=TIME_LIMIT, check=False, stdin=subprocess.DEVNULL,
        env={**base, "OPENAI_BASE_URL": "https://llm.example.invalid/v1", "OPENAI_API_KEY": CANARY, **given},
    )  # fmt: skip
    assert done.returncode == 2
    assert re.search(words, done.stderr)
    assert done.stderr.count("\n") == 1
    assert CANARY[:12] not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_proxy_is_of_no_matter_where_none_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with ScriptedEndpoint([KEEP]) as endpoint:  # on this machine
        desk = Desk(endpoint)
        assert desk.decide() == answer()
        desk.manager.close()
    monkeypatch.setenv("NO_PROXY", "*")
    manager = LlmManager(policy_of(base_url="https://llm.example.invalid/v1"), "m", environment={})
    manager.open()
    manager.close()


def test_a_certificate_that_is_not_trusted_is_told_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/house.pem")
    found = distrusted("ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    assert found.startswith("; SSL_CERT_FILE can name a file")
    assert found.endswith("REQUESTS_CA_BUNDLE is set, which is not read")
    assert distrusted("ConnectError: refused") == ""


# -- which model, and where --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "environment", "expected"),
    [
        ({}, {}, ("rules", "no language model is configured")),
        ({}, {"OPENAI_API_KEY": "x"}, ("rules", "no language model is configured")),  # which of its many models?
        ({"model": "m"}, {"OPENAI_API_KEY": "x"}, ("llm", "the policy names one")),
        ({}, {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}, ("llm", "OPENAI_BASE_URL is set")),
        ({"api_key_env": "HOUSE_API_KEY"}, {"HOUSE_API_KEY": "x"}, ("rules", "no language model is configured")),
        ({"model": "m"}, {}, ("llm", "the policy names one")),
        ({"base_url": "http://127.0.0.1:1/v1"}, {}, ("llm", "the policy names one")),
    ],
)
def test_auto_is_a_language_model_where_one_is_configured(
    settings: dict[str, Any], environment: dict[str, str], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert catalog.choose("auto", policy_of(**settings)) == expected
    assert catalog.choose("none", policy_of(**settings)) == ("none", "")


@pytest.mark.parametrize(
    ("models", "message"),
    [(("one", "two"), r"lists 2 models \(one, two\)\. Name one"), ((), r"lists 0 models \(none\)")],
)
def test_which_of_several_models_is_meant_must_be_said(models: tuple[str, ...], message: str) -> None:
    with ScriptedEndpoint([KEEP], models=models) as endpoint:
        cannot_open(manager_at(endpoint, Policy(), None), message)


def test_a_list_of_models_does_not_tell_the_key() -> None:
    with ScriptedEndpoint([KEEP], models=(KEY, "other")) as endpoint:
        cannot_open(manager_at(endpoint, Policy(), None), r"lists 2 models \(\[key\], other\)")


def test_the_only_model_is_meant() -> None:
    with ScriptedEndpoint([KEEP], models=("one",)) as endpoint:
        manager = manager_at(endpoint, Policy(), None)
        manager.open()
        manager.begin("d1", Spent(), lambda _: None)
        assert manager.decide(view()) == answer()
        manager.close()
    assert manager.name == "llm:one"
    assert sent(endpoint)[0]["model"] == "one"


def test_an_endpoint_that_does_not_list_its_models_is_told() -> None:
    message = r"does not say which models it has: status 401 \(the key is refused\).*--manager llm:MODEL"
    with ScriptedEndpoint([KEEP], key="another") as endpoint:
        cannot_open(manager_at(endpoint, Policy(), None), message)
    cannot_open(manager_at(endpoint, Policy(), None), "no connection to")  # it is closed now


def test_openai_needs_a_key() -> None:
    with pytest.raises(UserError, match=r"OPENAI_API_KEY is not set.*--manager rules needs neither"):
        LlmManager(Policy(), environment={})
    with pytest.raises(UserError, match="HOUSE_API_KEY is not set"):
        LlmManager(policy_of(api_key_env="HOUSE_API_KEY"), environment={"OPENAI_API_KEY": KEY})


@pytest.mark.parametrize(
    "url",
    [
        f"https://me:{CANARY}@example.org/v1", f"https://{CANARY}@example.org/v1",
        f"https://example.org/v1?key={CANARY}",
        f"https://example.org/v1#{CANARY}", f"http://[{CANARY}/v1", f"http://example.org:{CANARY}/v1", "example.org/v1",
        "ftp://example.org/v1", "http://", "http:///v1", "http://example.org:99999/v1", "file:///etc/passwd",
        "nonsense", f"{CANARY}:443@x",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_a_key_in_it_not_repeated(url: str) -> None:
    with pytest.raises(UserError) as raised:
        LlmManager(policy_of(base_url=url), "m", environment={"OPENAI_API_KEY": KEY})
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize("key", ["sk-“curly”-quotes", "two\nlines-of-a-key", "nul\0-in-a-key"])
def test_a_key_that_no_header_can_hold_is_an_error_without_the_key(key: str) -> None:
    with pytest.raises(UserError, match="The key in HOUSE_API_KEY holds characters") as raised:
        LlmManager(policy_of(api_key_env="HOUSE_API_KEY"), "m", environment={"HOUSE_API_KEY": key})
    assert not any(part in str(raised.value) for part in ("curly", "lines-of", "in-a-key"))


def test_managers_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert catalog.make("llm", Policy(), tmp_path).name == "llm"
    assert catalog.make("llm:small", Policy(), tmp_path).name == "llm:small"
    assert catalog.make("llm:org/small:1b", Policy(), tmp_path).name == "llm:org/small:1b"
    assert catalog.make("auto", Policy(), tmp_path).name == "llm"
    assert catalog.make("llm", policy_of(model="small"), tmp_path).name == "llm:small"
    for name in ("local", "local:", "llms", "rules:x"):
        with pytest.raises(UserError, match="There is no manager"):
            catalog.make(name, Policy(), tmp_path)
    local = catalog.make(f"local:{tmp_path}/none.gguf", Policy(), tmp_path)
    assert local.name == f"local:{tmp_path}/none.gguf"
    assert isinstance(local, LlmManager)
    cannot_open(local, "cannot be read")
