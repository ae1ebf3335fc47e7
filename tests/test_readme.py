"""The scripts of the README keep to the protocol, under their own scheduler and loop, and cost a script few lines."""

from __future__ import annotations

import difflib
import re
import subprocess
from pathlib import Path

import pytest

from trainmgr.checking import check
from trainmgr.testing import PYTHON, TIME_LIMIT

ROOT = Path(__file__).resolve().parents[1]
ADDED = 12  # lines, at most
REST = """
import torch

EPOCHS = 2000
generator = torch.Generator().manual_seed(0)
batches = [torch.randn(16, 8, generator=generator) for _ in range(10)]


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.dropout = torch.nn.Linear(8, 1), torch.nn.Dropout(0.1)

    def loss(self, x):
        return ((self.layer(self.dropout(x)) - x.sum(1, keepdim=True)) ** 2).mean()


class Mixup:
    alpha = 0.0

    def set(self, alpha):
        self.alpha = alpha


mixup = Mixup()


def train(model, batch, optimizer):
    optimizer.zero_grad()
    loss = model.loss(batch + mixup.alpha * batch.flip(0))
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
PLAIN = """
import torch

torch.manual_seed(0)
model = ...
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(batches))

for epoch in range(EPOCHS):
    for batch in batches:
        loss = train(model, batch, optimizer)
        scheduler.step()
    print(epoch, evaluate(model))
"""
"""The script before anybody supervised it."""
SHOWN = """
import hashlib

state = [*model.state_dict().values(), *(v for s in optimizer.state.values() for v in s.values())]
state.append(torch.get_rng_state())
print(scheduler.get_last_lr(), *(hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in state))
"""


def blocks() -> tuple[str, str]:
    """The script with `w.torch`, and the one by hand."""
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## Your own script") :]
    adapted, by_hand, *_ = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    line = re.search(r"^with w, w\.torch.*\n", adapted, re.MULTILINE)
    assert line is not None
    return adapted, adapted.replace(line[0], by_hand)


def whole(script: str) -> str:
    return REST + script.replace("model = ...", "model = Model()")


@pytest.mark.parametrize("which", [0, 1], ids=["adapted", "by hand"])
def test_the_scripts_of_the_readme_pass_the_check(which: int, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(whole(blocks()[which]))
    checked = check.Probe(script, [], 60.0).run()
    assert [breach.what for breach in checked.breaches if breach.severity == "error"] == []
    assert [breach.what for breach in checked.breaches] == ["Metrics without a description: loss, val_loss."]
    tried = {text.partition(":")[0] for text in checked.passed if text.endswith("takes effect and is read back")}
    assert tried == [{"lr", "weight_decay", "beta1", "beta2", "dropout"}, {"lr", "mix"}][which]
    for text in ("checkpoint: checkpoints/check.pt is there", "stop: it ends", "another seed gives other figures"):
        assert text in checked.passed


def test_it_takes_few_lines() -> None:
    plain, adapted = (
        [line.partition("  #")[0].strip() for line in script.splitlines() if line.strip()]
        for script in (PLAIN, blocks()[0])
    )
    diff = [line for line in difflib.ndiff(plain, adapted) if line[0] in "+-"]
    assert [line for line in diff if line[0] == "-"] == ["- torch.manual_seed(0)", "- print(epoch, evaluate(model))"]
    assert len(diff) - 2 == ADDED


def test_without_a_supervisor_it_trains_as_before_to_the_last_bit(tmp_path: Path) -> None:
    shown = []
    for name, script in (("plain.py", PLAIN), ("adapted.py", blocks()[0])):
        path = tmp_path / name
        path.write_text(whole(script).replace("EPOCHS = 2000", "EPOCHS = 20") + SHOWN)
        environment = {"TMPDIR": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([PYTHON, str(path)], capture_output=True, text=True, timeout=TIME_LIMIT, check=False,
                              env=environment)  # fmt: skip
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout.splitlines()[-1])
    assert len(shown[0].split()) == 1 + 2 + 2 * 3 + 1
    assert shown[0] == shown[1]


def test_every_test_that_it_names_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    names = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    found = re.findall(r"`([\w/]*\btest_\w+\.py)`", readme)
    assert found
    assert [path for path in found if not (path in names or (ROOT / path).is_file())] == []
