"""What `trainmgr check` has to say of a script: breaches of the protocol with their fixes, and what is well."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Breach:
    """Something that the workload does wrong, or could do better."""

    severity: str
    """error: it cannot be managed like this; warning: it can, but less well."""
    what: str
    fix: str
    """Empty where ``what`` says it."""


@dataclass
class Checked:
    """What a brief run showed."""

    script: str
    breaches: list[Breach] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    records: int = 0
    output: list[str] = field(default_factory=list)
    """The last lines of stderr, where the workload failed."""

    @property
    def ok(self) -> bool:
        return not any(breach.severity == "error" for breach in self.breaches)

    def error(self, what: str, fix: str) -> None:
        self.breaches.append(Breach("error", what, fix))

    def warning(self, what: str, fix: str) -> None:
        self.breaches.append(Breach("warning", what, fix))
