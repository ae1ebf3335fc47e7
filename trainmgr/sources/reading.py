"""What is read of a script, as it was asked for, and which numbers are what."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

from trainmgr.sources.figures import LARGEST
from trainmgr.sources.pattern import EPOCH, MAX_NAME, STEP, Pattern, SourceError

Mode = Literal["min", "max"]
OUTPUT = "-"  # in place of a file: what the script prints
PLACES = (STEP, "global_step", "iteration", EPOCH)  # columns that may be the step, the first that is there
EXAMPLE = "--objective val_loss:min"
DIGITS = 18  # of a whole number: more are beyond what is allowed anyway
_SOURCES = ("--read PATTERN", "--csv FILE", "--jsonl FILE")


@dataclass(frozen=True)
class Reading:
    """Where the numbers are, and which of them decides what is better."""

    objective: str
    mode: Mode
    patterns: tuple[str, ...] = ()
    csv: str | None = None
    """A file, or OUTPUT."""
    jsonl: str | None = None
    counterpart: str | None = None
    """The number that measures the same on training data."""
    step: str | None = None
    """The column that is the step, where it is none of PLACES."""
    total_steps: int | None = None

    @classmethod
    def asked(
        cls,
        *,
        objective: str | None,
        patterns: Sequence[str] = (),
        csv: str | None = None,
        jsonl: str | None = None,
        counterpart: str | None = None,
        step: str | None = None,
        total_steps: int | None = None,
    ) -> Self | None:
        """What somebody asked for; None where nothing is to be read. Raises SourceError for what cannot be."""
        given = [name for name, value in zip(_SOURCES, (patterns, csv, jsonl), strict=True) if value]
        needing = {
            "--objective": objective, "--counterpart": counterpart, "--step": step, "--total-steps": total_steps,
        }  # fmt: skip
        if not given:
            lonely = [name for name, value in needing.items() if value is not None]
            if lonely:
                raise SourceError(
                    f"{lonely[0]} is for a script that is only read: give {' or '.join(_SOURCES)} too. A script that "
                    "has a Workload says that itself."
                )
            return None
        if len(given) > 1:
            raise SourceError(
                f"{' and '.join(given)} are two places to read from, and what comes from them is in no order. Choose "
                "one (--read may be repeated)."
            )
        if objective is None:
            raise SourceError(f"{given[0]} needs the number that decides what is better: {EXAMPLE}.")
        name, _, way = objective.rpartition(":")
        mode: Mode = "max" if way == "max" else "min"
        if not name or way not in get_args(Mode):
            raise SourceError(
                f"--objective {objective!r} says not which way is better: NAME:min or NAME:max ({EXAMPLE})."
            )
        if step is not None and patterns:
            raise SourceError(f"--step {step!r} names a column of --csv or --jsonl; in a pattern the step is {{step}}.")
        if total_steps is not None and not 0 < total_steps < LARGEST:
            raise SourceError(f"--total-steps is {total_steps}; allowed is a whole number from 1 to {LARGEST - 1:,}.")
        found = cls(name, mode, tuple(patterns), csv, jsonl, counterpart, step, total_steps)
        found._check()
        return found

    @classmethod
    def parsed(cls, options: Iterable[str]) -> Self:
        """The same from ``options()``. Raises SourceError."""
        values: dict[str, str] = {}
        patterns = []
        for option in options:
            name, _, value = option.partition("=")
            if name == "--read":
                patterns.append(value)
            else:
                values[name.removeprefix("--").replace("-", "_")] = value
        if strange := set(values) - {"csv", "jsonl", "objective", "counterpart", "step", "total_steps"}:
            raise SourceError(f"There is no option --{min(strange).replace('_', '-')} of what is read.")
        total, objective = values.pop("total_steps", None), values.pop("objective", None)
        if total is not None and not total.isdecimal():
            raise SourceError(f"--total-steps {total!r} is no whole number.")
        steps = int(total[:DIGITS]) if total is not None else None
        found = cls.asked(objective=objective, patterns=patterns, total_steps=steps, **values)
        if found is None:
            raise SourceError(f"Nothing says what is to be read: give {' or '.join(_SOURCES)}.")
        return found

    def options(self) -> list[str]:
        """As a command line has it."""
        rows = [
            *(("--read", pattern) for pattern in self.patterns), ("--csv", self.csv), ("--jsonl", self.jsonl),
            ("--objective", f"{self.objective}:{self.mode}"), ("--counterpart", self.counterpart),
            ("--step", self.step), ("--total-steps", self.total_steps),
        ]  # fmt: skip
        return [f"{name}={value}" for name, value in rows if value is not None]

    @property
    def file(self) -> str | None:
        """The file that is followed; None for what the script prints."""
        named = self.csv or self.jsonl
        return None if named == OUTPUT else named

    def _check(self) -> None:
        names = [name for pattern in self.patterns for name in Pattern(pattern).names]
        for role, name in (("--objective", self.objective), ("--counterpart", self.counterpart)):
            if name is None:
                continue
            if not name or len(name) > MAX_NAME:
                raise SourceError(f"{role} {name!r} must be a name of 1 to {MAX_NAME} characters.")
            if name in (STEP, self.step):
                raise SourceError(f"{role} {name!r} is the step, which is no measure of anything.")
            if names and name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                hint = f" Perhaps you mean {near[0]}?" if near else ""
                raise SourceError(
                    f"{role} {name!r} is in no pattern; they have: {', '.join(dict.fromkeys(names))}. Name one of "
                    f"these, or add --read with {{{name}}}.{hint}"
                )
        if self.counterpart == self.objective:
            raise SourceError(f"--counterpart {self.counterpart!r} is the objective; it is its like on training data.")
