"""The operator's file: everything in it is known and means what it says, or the message names the key."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from factories import augment, batch, kind, lr
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from trainmgr.base.errors import PolicyError, UserError
from trainmgr.base.wire import explained, plain, to_json
from trainmgr.contract import policy, schemas
from trainmgr.contract.action_space import ActionSpace
from trainmgr.contract.policy import ParameterLimits, Policy
from trainmgr.contract.run_file import Manifest

SECTIONS: dict[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in Policy.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
SPACE = ActionSpace([lr(), batch(), augment(), kind()], ["rollback", "stop", "checkpoint"])


def load(folder: Path, text: str | bytes) -> Policy:
    path = folder / "policy.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return policy.load(path)


def refused(folder: Path, text: str | bytes, key: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load(folder, text)
    assert key in str(caught.value)
    assert str(caught.value).isprintable() or "\n" in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_nothing_is_the_defaults(tmp_path: Path) -> None:
    assert policy.load(None) == load(tmp_path, "") == Policy()


def test_the_document_is_the_defaults_and_names_every_key(tmp_path: Path) -> None:
    text = schemas.policy_file()
    assert load(tmp_path, text) == Policy()
    for name, section in {**SECTIONS, "parameters.lr": ParameterLimits}.items():
        part = text[text.index(f"[{name}]") :].split("\n\n")[0]
        for key in section.model_fields:
            assert f"\n{key} = " in part or f"\n# {key} = " in part
        assert set(explained(section)) == set(section.model_fields)


def test_every_key_of_the_document_can_be_given(tmp_path: Path) -> None:
    """Also those that are commented out, because their default is "none"."""
    lines = [line.removeprefix("# ") for line in schemas.policy_file().splitlines()[1:]]
    words = ("model =", "formatter =", "base_url =", "stop_metric =", "reasoning_effort =")

    def given_for(line: str) -> str:
        return "'x'" if line.startswith(words) else "true" if line.startswith(("enabled =", "end_on_best =")) else "1"

    given = load(tmp_path, "\n".join(
        line.replace(" =  #", f" = {given_for(line)}  #") for line in lines))  # fmt: skip
    assert given.staleness.max_age_steps == 1
    assert given.llm.formatter == "x"
    assert given.prices["MODEL"].output == 1.0
    assert given.parameters["lr"].max_ratio == 1.0


@pytest.mark.parametrize("name", SECTIONS)
def test_unknown_keys_are_refused_by_name(tmp_path: Path, name: str) -> None:
    refused(tmp_path, f"[{name}]\nlearning_rat = 1\n", f"{name}.learning_rat")


@pytest.mark.parametrize(("text", "key"), [
    ("limts = 1", "limts"), ("[limts]", "limts"), ("[parameters.lr]\nhi = 1", "parameters.lr.hi"),
    ("limits = 1", "limits"), ("parameters = 1", "parameters"), ("[parameters]\nlr = 1", "parameters.lr"),
    ("[limits]\ncooldown_evals = 1.5", "limits.cooldown_evals"),
    ("[limits]\ncooldown_evals = -1", "limits.cooldown_evals"),
    ("[limits]\nclip = 1", "limits.clip"), ("[limits]\nclip = 'true'", "limits.clip"),
    ("[rules]\nrise = '0.1'", "rules.rise"), ("[rules]\nrise = true", "rules.rise"),
    ("[rules]\nrise = 0", "rules.rise"),
    ("[rules]\nrise = nan", "rules.rise"), ("[staleness]\nmax_age_seconds = inf", "staleness.max_age_seconds"),
    ("[process]\nstall_timeout = inf", "process.stall_timeout"), ("[parameters.lr]\nlow = nan", "parameters.lr.low"),
    ("[parameters.lr]\nhigh = -inf", "parameters.lr.high"),
    ("[parameters.lr]\nmax_ratio = 0.5", "parameters.lr.max_ratio"),
    ("[parameters.lr]\nmin_ratio = 2", "parameters.lr.min_ratio"), ("[limits]\nlead_steps = " + "9" * 30, "lead_steps"),
    ("[rules]\nrise = " + "9" * 400, "rules.rise"), ("[rules]\nrise = 2026-01-01", "rules.rise"),
])  # fmt: skip
def test_what_is_not_as_documented_is_refused_by_name(tmp_path: Path, text: str, key: str) -> None:
    refused(tmp_path, text, key)


def test_whole_numbers_are_floats_where_floats_are_declared(tmp_path: Path) -> None:
    got = load(tmp_path, "[rules]\nrise = 1\n[process]\nstall_timeout = 60\n[parameters.lr]\nhigh = 1\n")
    assert (got.rules.rise, got.process.stall_timeout, got.parameters["lr"].high) == (1.0, 60.0, 1.0)
    assert {type(v) for v in (got.rules.rise, got.process.stall_timeout, got.parameters["lr"].high)} == {float}
    assert Policy.model_validate_json(to_json(got)) == got


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b"[limits", b"a = " + b"[" * 50_000, b"a = " + b"9" * 5_000, b"a = 1\na = 2"]
)
def test_what_is_no_toml(tmp_path: Path, text: bytes) -> None:
    refused(tmp_path, text, "policy.toml is not TOML")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(PolicyError, match="cannot be read"):
            policy.load(path)
    assert issubclass(PolicyError, UserError)


@examples(100)
@given(st.recursive(st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.none(),
                    lambda inner: st.dictionaries(st.sampled_from([*Policy.model_fields, "clip", "rise", "lr"]), inner,
                                                  max_size=3), max_leaves=6))  # fmt: skip
def test_any_values_are_a_policy_or_a_validation_error(values: Any) -> None:
    try:
        got = Policy.model_validate(values)
    except ValidationError as error:
        said = policy.explain(error)
    else:
        said = ""
        assert Policy.model_validate_json(to_json(got)) == got
    assert said.isprintable()


# -- narrowing -----------------------------------------------------------------------------------------------------


def narrow(text: str) -> ActionSpace:
    return Policy.model_validate(tomllib.loads(text)).narrow(SPACE)


def test_the_default_narrows_nothing() -> None:
    assert Policy().narrow(SPACE) == SPACE


def test_narrow() -> None:
    got = narrow("[parameters.lr]\nhigh = 1e-3\nlow = 1e-9\nmax_ratio = 9\n[parameters.batch]\nfrozen = true\n")
    assert list(got.parameters) == ["lr", "augment", "kind"]
    row = got.parameters["lr"]
    assert (row.low, row.high, row.max_ratio, row.min_ratio) == (1e-5, 1e-3, 2.0, 0.1)


def test_commands() -> None:
    assert narrow("[actions]\nrollback = false").commands == ("stop", "checkpoint")
    assert narrow("[actions]\nstop = false").commands == ("rollback", "checkpoint")


@pytest.mark.parametrize(("text", "said"), [
    ("[parameters.lrr]\nhigh = 1", r"\[parameters.lrr\]: .* It has: lr, batch, augment, kind"),
    ("[parameters.lr]\nlow = 1", r"\[parameters.lr\]: .* is empty; the workload allows \[1e-05, 0.005\]"),
    ("[parameters.lr]\nlow = 2e-3\nhigh = 1e-3", r"\[parameters.lr\]: \[0.002, 0.001\] is empty"),
    ("[parameters.batch]\nlow = 2.2\nhigh = 2.8", r"\[parameters.batch\]: \[3, 2\] is empty"),
    ("[parameters.augment]\nlow = 0", r"\[parameters.augment\] low: a bool has no numbers"),
    ("[parameters.kind]\nmax_ratio = 2", r"\[parameters.kind\] max_ratio: a choice has no numbers"),
])  # fmt: skip
def test_what_cannot_be_narrowed_names_the_key(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        narrow(text)


def test_the_age_limit() -> None:
    assert Policy().max_age(None) is None
    assert (Policy().max_age(1000), Policy().max_age(50)) == (50, 10)
    assert load_age(7) == 7


def load_age(steps: int) -> int | None:
    return Policy.model_validate({"staleness": {"max_age_steps": steps}}).max_age(1000)


def test_a_policy_that_another_version_stored_can_be_read(manifest: Manifest) -> None:
    values = plain(manifest)
    values["policy"]["rules"]["spike"] = 10.0
    values["policy"]["later"] = {"key": 1}
    assert Manifest.model_validate_json(json.dumps(values)) == manifest


def test_the_policy_of_an_older_log_reads_as_it_was_done() -> None:
    """There was no probation, a stop was always offered, and what this version does not know is left out."""
    read = Policy.model_validate(policy.known({"limits": {"clip": True, "gone": 1}, "forgotten": {}}))
    assert read.limits.clip
    assert read.actions.stop_settled_evals == 0
    assert not read.watches("llm")
