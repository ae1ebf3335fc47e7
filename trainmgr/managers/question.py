"""One question to a language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trainmgr.deciding.snapshot import Snapshot
from trainmgr.managers import answer, prompt

Purpose = Literal["decide", "reason", "format", "repair", "probe"]


@dataclass(frozen=True)
class Question:
    """What is to be answered, by which model, in which form; and at which moment, for a decision."""

    purpose: Purpose
    model: str
    view: prompt.Prompt
    schema: dict[str, Any] | None = None
    talk: tuple[dict[str, str], ...] = ()
    snapshot: Snapshot | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        return [
            {"role": "system", "content": self.view.system},
            {"role": "user", "content": self.view.user},
            *self.talk,
        ]

    @property
    def words(self) -> int:
        """Tokens of that, estimated."""
        return self.view.tokens + sum(prompt.estimate(part["content"]) for part in self.talk)

    def valid(self, text: str) -> bool:
        """Whether a text is a decision that may be taken at this moment."""
        if self.snapshot is None or answer.whole(text) is None:
            return False
        return answer.objection(answer.read(text), self.snapshot, self.view.parameters) is None
