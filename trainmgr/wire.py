"""The base of everything that is written to disk, and the one way it becomes bytes.

Numbers that JSON does not have are the strings "NaN", "Infinity" and "-Infinity"; nothing else is ever converted: a
number in quotes, or true where a number belongs, is an error.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _number(value: object) -> object:
    if isinstance(value, str):
        if value not in NON_FINITE:
            raise ValueError(f"{value!r} is not a number; only the strings {', '.join(NON_FINITE)} stand for one")
        return NON_FINITE[value]
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers")
    return value


Number = Annotated[float, BeforeValidator(_number, json_schema_input_type=float | str)]
"""A float that may be NaN or infinite."""

Value = bool | int | float | str
"""What a parameter can be set to. Never NaN or infinite: ``action_space`` refuses them."""


class Wire(BaseModel):
    """A record on disk. Immutable; unknown keys are errors, since in a file of ours they are typing mistakes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_inf_nan="strings", strict=True, use_attribute_docstrings=True
    )


class Lenient(Wire):
    """A record that another program wrote, perhaps a newer one: unknown keys are skipped."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, ser_json_inf_nan="strings", strict=True, use_attribute_docstrings=True
    )


def to_json(record: BaseModel) -> bytes:
    """Compact JSON with the keys in their declared order: the same record gives the same bytes, always."""
    return record.model_dump_json().encode()


def compact(value: Any) -> bytes:
    """The same for plain values without NaN."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def plain(record: BaseModel) -> dict[str, Any]:
    """The record as JSON values: what ``to_json`` writes, parsed."""
    result: dict[str, Any] = json.loads(to_json(record))
    return result
