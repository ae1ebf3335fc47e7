"""The script of the README keeps to the protocol, under its own scheduler and loop."""

from __future__ import annotations

import re
from pathlib import Path

from trainmgr.checking import check

ROOT = Path(__file__).resolve().parents[1]
REST = """
import torch

EPOCHS = 2000
generator = torch.Generator().manual_seed(0)
batches = [torch.randn(16, 8, generator=generator) for _ in range(10)]


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.p = torch.nn.Linear(8, 1), 0.0

    def set_p(self, p):
        self.p = p

    def loss(self, x):
        guess = self.layer(torch.nn.functional.dropout(x, self.p, self.training))
        return ((guess - x.sum(1, keepdim=True)) ** 2).mean()


def train(model, batch, optimizer):
    optimizer.zero_grad()
    loss = model.loss(batch)
    loss.backward()
    optimizer.step()
    return loss.item()


def evaluate(model):
    model.eval()
    with torch.no_grad():
        loss = model.loss(batches[0]).item()
    model.train()
    return loss
"""


def test_the_script_of_the_readme_passes_the_check(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## Your own script") :]
    found = re.search(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert found is not None
    script = tmp_path / "mine.py"
    script.write_text(REST + found[1].replace("model = ...", "model = Model()"))
    checked = check.Probe(script, [], 60.0).run()
    assert [breach.what for breach in checked.breaches if breach.severity == "error"] == []
    assert [breach.what for breach in checked.breaches] == ["Metrics without a description: loss, val_loss."]
    for text in ("checkpoint: checkpoints/check.pt is there", "stop: it ends", "another seed gives other figures"):
        assert text in checked.passed


def test_every_test_that_it_names_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    names = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    found = re.findall(r"`([\w/]*\btest_\w+\.py)`", readme)
    assert found
    assert [path for path in found if not (path in names or (ROOT / path).is_file())] == []
