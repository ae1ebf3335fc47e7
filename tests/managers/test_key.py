"""Whose key goes where: what the operator says counts, and what only a file says does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainmgr.base.errors import UserError
from trainmgr.base.paths import RunPaths
from trainmgr.contract.policy import Llm, Policy
from trainmgr.managers import catalog, key
from trainmgr.managers.endpoint import Call, Endpoint, EndpointError
from trainmgr.managers.llm import LlmManager
from trainmgr.testing import TIME_LIMIT, Propose, ScriptedEndpoint, Status, answer, write_child

CANARY = "canary-61b07f9e2d4c"
PLACE = "https://llm.example.org/v1"
PLAIN = "http://vllm:8000/v1"


def manager(settings: dict[str, Any], environment: dict[str, str]) -> LlmManager:
    return LlmManager(Policy(llm=Llm(probe=False, **settings)), "m", environment=environment)


# ---- which variable -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("OPENAI_API_KEY", True), ("API_KEY", True), ("OPENROUTER_API_KEY", True), ("OPENAI_API_KEY_2", True),
        ("AWS_SECRET_ACCESS_KEY", False), ("AWS_SESSION_TOKEN", False), ("GITHUB_TOKEN", False), ("HF_TOKEN", False),
        ("DATABASE_PASSWORD", False), ("HOME", False), ("MYAPI_KEY", False), ("TRAINMGR_AUDIT_KEY", False),
    ],
)  # fmt: skip
def test_a_policy_names_only_what_is_an_api_key_by_its_name(name: str, allowed: bool) -> None:
    settings = Llm(api_key_env=name)
    if allowed:
        assert key.value(settings, {name: f" {CANARY}\n"}) == CANARY
    else:
        with pytest.raises(UserError, match=f"names {name} as the variable .* say so: --api-key-env {name}") as raised:
            key.value(settings, {name: CANARY})
        assert CANARY not in str(raised.value)
    assert key.value(settings, {}) is None  # nothing to send, nothing to refuse
    assert key.value(settings, {name: CANARY, "TRAINMGR_API_KEY_ENV": name}) == CANARY


def test_the_variable_that_the_operator_names_counts_before_the_policys() -> None:
    given = {"OPENAI_API_KEY": "sk-another", "HF_TOKEN": CANARY, "TRAINMGR_API_KEY_ENV": "HF_TOKEN"}
    assert key.value(Llm(), given) == CANARY
    with pytest.raises(UserError, match="variable HF_TOKEN, which --api-key-env names, is not set"):
        key.value(Llm(), {"TRAINMGR_API_KEY_ENV": "HF_TOKEN"})
    with pytest.raises(UserError, match="take the NAME of an environment variable") as raised:
        key.value(Llm(), {"TRAINMGR_API_KEY_ENV": CANARY})
    assert CANARY not in str(raised.value)


# ---- to whom ------------------------------------------------------------------------------------------------

KEY = {"OPENAI_API_KEY": CANARY}
TOKEN = {"OPENAI_CUSTOM_HEADERS": "X-Token: " + CANARY}


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        ({}, KEY),  # the provider's own
        ({"base_url": "https://eu.api.openai.com/v1"}, KEY),
        ({"api_key_env": "HOUSE_API_KEY"}, {"HOUSE_API_KEY": CANARY}),
        ({}, {**KEY, "OPENAI_BASE_URL": PLACE}),  # the operator's word
        ({"base_url": PLACE}, {**KEY, "OPENAI_BASE_URL": PLACE + "/"}),
        ({"base_url": PLACE}, {**KEY, "TRAINMGR_SEND_KEY": PLACE}),
        ({"base_url": PLACE}, {**KEY, "TRAINMGR_SEND_KEY": "https://LLM.example.org"}),
        ({}, {**KEY, "OPENAI_BASE_URL": "http://127.0.0.1:8000/v1"}),  # never leaves the machine
        ({}, {**KEY, "OPENAI_BASE_URL": "http://[::1]:8000/v1"}),
        ({}, {**KEY, "OPENAI_BASE_URL": PLAIN, "TRAINMGR_SEND_KEY": "http://vllm:8000"}),
        ({"base_url": PLAIN}, {**KEY, "TRAINMGR_SEND_KEY": f"{PLACE} {PLAIN}"}),
        ({"base_url": PLAIN}, {}),  # no key, no question
        ({}, {"OPENAI_BASE_URL": PLAIN}),
        ({}, {"OPENAI_BASE_URL": PLAIN, "OPENAI_API_KEY": "EMPTY"}),  # as vLLM's documentation has it
        ({"base_url": PLACE}, {"OPENAI_API_KEY": "none"}),
    ],
)
def test_a_key_goes_where_the_operator_sends_it(settings: dict[str, Any], environment: dict[str, str]) -> None:
    manager(settings, environment)


@pytest.mark.parametrize("secret", [KEY, TOKEN], ids=["key", "headers"])
@pytest.mark.parametrize(
    ("settings", "environment", "words"),
    [
        (
            {"base_url": PLACE},
            {},
            f"to {PLACE}, which nothing but the policy names.*--send-key {PLACE} .*; else go with",
        ),
        ({"base_url": PLACE}, {"OPENAI_BASE_URL": "https://llm.example.org/v2"}, "nothing but the policy"),
        ({"base_url": PLACE}, {"TRAINMGR_SEND_KEY": "http://llm.example.org"}, "nothing but the policy"),
        ({"base_url": PLACE}, {"TRAINMGR_SEND_KEY": "https://llm.example.org.evil"}, "nothing but the policy"),
        ({"base_url": f"{PLACE}/../evil"}, {"TRAINMGR_SEND_KEY": PLACE}, "nothing but the policy"),
        ({"base_url": "https://api.openai.com.evil.example/v1"}, {}, "nothing but the policy"),
        ({"base_url": "https://evilapi.openai.com/v1"}, {}, "nothing but the policy"),
        ({"base_url": PLAIN}, {}, f"to {PLAIN} in clear text.*--send-key {PLAIN}"),
        ({"base_url": PLAIN}, {"OPENAI_BASE_URL": PLAIN}, "in clear text"),
        ({}, {"OPENAI_BASE_URL": PLAIN}, "in clear text"),
        ({}, {"OPENAI_BASE_URL": "http://10.0.0.7:8000/v1"}, "in clear text"),
        ({}, {"OPENAI_BASE_URL": "http://192.168.1.7/v1"}, "in clear text"),
        ({}, {"OPENAI_BASE_URL": "http://localhost.evil.example/v1"}, "in clear text"),
        ({}, {"OPENAI_BASE_URL": "http://host.docker.internal:8000/v1"}, "in clear text"),
        ({}, {"OPENAI_BASE_URL": PLAIN, "TRAINMGR_SEND_KEY": "http://vllm:8001"}, "in clear text"),
        ({}, {"OPENAI_BASE_URL": PLAIN, "TRAINMGR_SEND_KEY": "https://vllm:8000"}, "in clear text"),
        ({"base_url": "http://api.openai.com/v1"}, KEY, "in clear text"),
    ],
)
def test_a_key_goes_nowhere_else(
    settings: dict[str, Any], environment: dict[str, str], words: str, secret: dict[str, str]
) -> None:
    with pytest.raises(UserError, match=words) as raised:
        manager(settings, {**environment, **secret})
    assert re.search(rf"env( -u \w+)* -u {next(iter(secret))}( -u \w+)* trainmgr", str(raised.value))
    assert CANARY not in str(raised.value)


def test_a_server_on_this_machine_is_asked_without_the_providers_key() -> None:
    """vLLM or Ollama in a policy file, and a key of OpenAI in the shell: neither sent nor refused."""
    with ScriptedEndpoint([Propose(answer())]) as endpoint:
        for sent in (False, True):
            environment = {**KEY, "TRAINMGR_SEND_KEY": endpoint.url if sent else PLACE}
            asked = manager({"base_url": endpoint.url}, environment)
            asked.open()
            asked._there().models(TIME_LIMIT)
            said = f"OPENAI_API_KEY is not sent, since only the policy names {endpoint.url} (--send-key {endpoint.url} "
            assert (said in asked.preflight()) is not sent
            asked.close()
        keys = [request.headers["authorization"] for request in endpoint.requests]
        assert keys == ["Bearer none", f"Bearer {CANARY}"]
        for environment in (TOKEN, {**KEY, **TOKEN}, {**KEY, "TRAINMGR_API_KEY_ENV": "OPENAI_API_KEY"}):
            with pytest.raises(UserError, match="nothing but the policy"):
                manager({"base_url": endpoint.url}, environment)
        with pytest.raises(UserError, match="HOUSE_API_KEY would go to"):
            manager({"base_url": endpoint.url, "api_key_env": "HOUSE_API_KEY"}, {"HOUSE_API_KEY": CANARY})


def test_the_policy_of_a_record_sends_no_key_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who puts a run into the folder does not get the key of who attaches to it or asks its questions again."""
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="nothing but the policy"):
        catalog.make("llm:m", Policy(llm=Llm(base_url=PLACE)), tmp_path)


# ---- on the wire --------------------------------------------------------------------------------------------


def test_the_ids_of_an_account_are_for_the_provider_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORG_ID", "PROJECT_ID", "ADMIN_KEY", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", f"{name.lower()}-{CANARY}")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: mine\nopenai-project: another")
    with ScriptedEndpoint([Propose(answer())]) as endpoint:
        asked = Endpoint(endpoint.url, None)
        asked.ask(Call("m", [{"role": "user", "content": "?"}], "text", None), TIME_LIMIT)
        asked.models(TIME_LIMIT)
        asked.close()
    for request in endpoint.requests:
        assert CANARY not in str(request)
        assert not {"openai-organization", "openai-project"} & set(request.headers)
        assert request.headers["authorization"] == "Bearer none"
        assert request.headers["x-gateway"] == "mine"
    assert len(endpoint.requests) == 2
    official = Endpoint("https://api.openai.com/v1", "sk-1")
    official.connect()
    assert official._connected().default_headers["OpenAI-Organization"] == f"org_id-{CANARY}"
    official.close()


def test_what_a_custom_header_holds_is_hidden_like_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Model: a-model\ncf-aig-authorization: Bearer {CANARY}")
    said = f"a-model: Bearer {CANARY}"
    with ScriptedEndpoint([Propose(answer(evidence=said)), Status(401, said)]) as endpoint:
        asked = Endpoint(endpoint.url, None)
        call = Call("m", [{"role": "user", "content": "?"}], "text", None)
        assert json.loads(asked.ask(call, TIME_LIMIT).text)["evidence"] == "a-model: Bearer [key]"
        with pytest.raises(EndpointError, match="a-model") as raised:
            asked.ask(call, TIME_LIMIT)
        assert CANARY not in str(raised.value)
        assert endpoint.requests[0].headers["cf-aig-authorization"] == f"Bearer {CANARY}"
        asked.close()


@pytest.mark.parametrize("url", [f"https://example.org/{CANARY}/v1", f"https://{CANARY}.example.org/v1"])
def test_an_address_that_holds_the_key_is_refused_without_it(url: str) -> None:
    with pytest.raises(UserError, match=r"holds more than a place \(https://.*\[key\]") as raised:
        Endpoint(url, CANARY)
    assert CANARY not in str(raised.value)


# ---- on the command line ------------------------------------------------------------------------------------


def trainmgr(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith(("TRAINMGR", "OPENAI"))}
    return subprocess.run(
        [sys.executable, "-m", "trainmgr", *words], cwd=folder, env={**base, "NO_COLOR": "1", **environment},
        capture_output=True, text=True, timeout=TIME_LIMIT, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


LINE = """
with Workload("line", objective="loss") as w:
    w.float("lr", get=lambda: 0.1, set=lambda _: None, low=0.01, high=1.0)  # else there is nothing to ask
    w.eval(1, {"loss": 1.0})
    until(lambda: settled(1))
print(dict(os.environ))
"""


def test_a_policy_has_a_key_sent_only_with_the_operators_word(tmp_path: Path) -> None:
    """One that a stranger wrote: his endpoint, and the key of something else."""
    script = write_child(tmp_path, LINE)
    with ScriptedEndpoint([Propose(answer())], key=CANARY) as endpoint:
        (tmp_path / "policy.toml").write_text(
            f'[llm]\nbase_url = "{endpoint.url}"\napi_key_env = "AWS_SECRET_ACCESS_KEY"\nmodel = "scripted"\n'
            "probe = false\n[probation]\nenabled = false\n"
        )
        run = ["run", str(script), "--policy", "policy.toml", "-q"]
        secret = {"AWS_SECRET_ACCESS_KEY": CANARY}
        done = trainmgr(tmp_path, *run, **secret)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "say so: --api-key-env AWS_SECRET_ACCESS_KEY." in done.stderr
        done = trainmgr(tmp_path, *run, "--api-key-env", "AWS_SECRET_ACCESS_KEY", **secret)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"--send-key {endpoint.url}" in done.stderr
        assert not endpoint.requests
        assert not (tmp_path / "runs").exists()
        words = ["--api-key-env", "AWS_SECRET_ACCESS_KEY", "--send-key", endpoint.url.removesuffix("/v1")]
        assert trainmgr(tmp_path, *run, *words, **secret).returncode == 0
        assert len(endpoint.requests) == 1
        again = ["replay", "latest", "-m", "llm:scripted"]
        assert "--api-key-env" in trainmgr(tmp_path, *again, **secret).stderr
        assert trainmgr(tmp_path, *again, *words, **secret).returncode == 0
        assert trainmgr(
            tmp_path, *again, TRAINMGR_SEND_KEY=endpoint.url, TRAINMGR_API_KEY_ENV="AWS_SECRET_ACCESS_KEY", **secret
        ).returncode == 0  # fmt: skip
        assert len(endpoint.requests) == 3
    (folder,) = (tmp_path / "runs").iterdir()
    assert "TRAINMGR_RUN_DIR" in RunPaths(folder).stdout.read_text()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--send-key", CANARY], "take the address of an endpoint"),
        (["--send-key", f"https://me:{CANARY}@example.org"], "take the address of an endpoint"),
        (["--api-key-env", CANARY], "take the NAME of an environment variable"),
    ],
)
def test_a_key_in_the_place_of_a_name_is_not_repeated(words: list[str], said: str, tmp_path: Path) -> None:
    script = write_child(tmp_path, LINE)
    done = trainmgr(tmp_path, "run", str(script), "-m", "rules", "-q", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
    assert CANARY not in done.stderr
    assert not (tmp_path / "runs").exists()
