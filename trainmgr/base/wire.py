"""The base of everything that is written to disk, and the one way it becomes bytes.

Numbers that JSON does not have are the strings "NaN", "Infinity" and "-Infinity", and only where a ``Number`` is
declared; nothing else is ever converted: a number in quotes, true where a number belongs, or 1e999 is an error.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from itertools import islice, pairwise
from typing import Annotated, Any

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, ValidationInfo

from trainmgr.base.foreign import in_json

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
MAX_INT = 2**53 - 1  # the whole numbers that every JSON reader knows exactly; larger ones overflow a float besides
MAX_NAME = 64  # characters of a parameter, a choice or a metric
_PART = re.compile(r"(?:[A-Z]+(?![a-z])|[A-Z]?[a-z]+)[0-9]*")


def _number(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        if value not in NON_FINITE:
            raise ValueError(f"{quoted(value)} is not a number; only the strings {', '.join(NON_FINITE)} stand for one")
        return NON_FINITE[value]
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers")
    if info.mode == "json" and isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"not a number of JSON; write one of the strings {', '.join(NON_FINITE)}")
    return value


Number = Annotated[
    float, Field(allow_inf_nan=True), BeforeValidator(_number, json_schema_input_type=float | str)
]  # fmt: skip
"""A float that may be NaN or infinite."""

Whole = Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)]
"""A whole number that every reader of JSON has exactly, and that never overflows in arithmetic with floats."""

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]

Value = bool | Whole | float | Annotated[str, Field(max_length=MAX_NAME)]
"""What a parameter can be set to. Never NaN or infinite; one that is found in effect is the string "NaN"."""


class Wire(BaseModel):
    """A record on disk. Immutable; unknown keys are errors, since in a file of ours they are typing mistakes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="strings", strict=True
    )  # fmt: skip

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """With the explanation of each field. Only who writes schemas reads them: pydantic's own
        ``use_attribute_docstrings`` takes more time at every start than all else about the types of a run."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, text in explained(cls).items():
            properties[name]["description"] = text
        return schema


def explained(model: type[BaseModel]) -> dict[str, str]:
    """The docstrings of a model's fields, which stand below them in the source."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, Wire):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
            assert isinstance(body, ast.ClassDef)
            for field, text in pairwise(body.body):
                match field, text:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(explanation))),
                    ):
                        found[name] = inspect.cleandoc(explanation)
    return found


class Lenient(Wire):
    """A record that another program wrote, perhaps a newer one: unknown keys are skipped."""

    model_config = ConfigDict(extra="ignore")


def to_json(record: BaseModel) -> bytes:
    """Compact JSON with the keys in their declared order: the same record gives the same bytes, always."""
    return record.model_dump_json().encode()


def plain(record: BaseModel) -> dict[str, Any]:
    """The record as JSON values: what ``to_json`` writes, parsed."""
    result: dict[str, Any] = json.loads(to_json(record))
    return result


def quoted(value: object, limit: int = 60) -> str:
    """``value`` for a message: short, printable, and never an error, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more than 4,300 digits; nesting without end
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def short(text: str, limit: int) -> str:
    """Foreign text as one line of at most ``limit`` printable characters: no line breaks, escapes or hidden signs."""
    cut = text[: limit + 1]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in cut)
    return cut if len(cut) <= limit else cut[: limit - 1] + "…"


def parts(name: str) -> set[str]:
    """The words that a name is made of, in lower case, each with the figures behind it and without: {"val", "f1", "f"}
    of valF1."""
    found = {part.lower() for part in _PART.findall(name)}
    return found | {part.rstrip("0123456789") for part in found}


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of ``names`` that ``name`` may have been meant to be, as a question; empty where none is like it."""
    known = {other.casefold(): other for other in islice(names, MAX_NAME) if len(other) <= MAX_NAME}
    found = difflib.get_close_matches(name.casefold(), known, n=1)
    return f" Was {short(known[found[0]], MAX_NAME)} meant?" if found else ""


def same(one: Value, other: Value) -> bool:
    """Whether two values are the same as they are shown: numbers in six digits."""
    if any(isinstance(value, bool | str) for value in (one, other)):
        return one == other
    return f"{one:.6g}" == f"{other:.6g}"


def moved(changes: Mapping[str, tuple[Value, Value]]) -> dict[str, tuple[Value, Value]]:
    """Those of the changes, name to (old, new), that changed something."""
    return {name: pair for name, pair in changes.items() if not same(*pair)}


def pretty(value: Any) -> str:
    """Any value as JSON for programs that read our output: indented, NaN and the infinities as in our records, and what
    is not printable as escapes."""
    try:
        text = pydantic_core.to_json(value, indent=2, inf_nan_mode="strings").decode()
    except pydantic_core.PydanticSerializationError:  # the lone surrogates of a path that is not UTF-8
        text = json.dumps(pydantic_core.to_jsonable_python(value, inf_nan_mode="strings"), indent=2)
    return in_json(text)
