"""All dropouts of a model as one value, which keeps the ratios between them."""

from __future__ import annotations

import pytest
import torch
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainmgr.integrations.dropout import KINDS, Dropout


class Nested(nn.Module):
    """Dropouts at three depths, of which one is off."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Dropout(0.1)
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.Dropout(p)) for p in (0.2, 0.4)]
        self.blocks = nn.ModuleDict({"a": blocks[0], "b": nn.Sequential(blocks[1], nn.Dropout1d(0.0))})


def test_nested_modules_are_found_and_changed_in_ratio() -> None:
    dropout = Dropout(Nested())
    assert dropout.values() == [0.1, 0.2, 0.4, 0.0]
    assert dropout.get() == 0.4
    dropout.set(0.2)
    assert dropout.values() == pytest.approx([0.05, 0.1, 0.2, 0.0])


def test_ratios_come_back_after_zero() -> None:
    dropout = Dropout(Nested())
    dropout.set(0.0)
    assert dropout.values() == [0.0] * 4
    dropout.set(0.4)
    assert dropout.values() == pytest.approx([0.1, 0.2, 0.4, 0.0])


def test_ratios_are_those_of_the_script_at_the_moment() -> None:
    model = Nested()
    dropout = Dropout(model)
    model.first.p = 0.4
    dropout.set(0.2)
    assert dropout.values() == pytest.approx([0.2, 0.1, 0.2, 0.0])


def test_where_all_are_off_all_get_the_value() -> None:
    dropout = Dropout(nn.Sequential(nn.Dropout(0), nn.Linear(2, 2), nn.Dropout(0.0)))
    assert dropout.get() == 0.0
    dropout.set(0.3)
    assert dropout.values() == [0.3, 0.3]


def test_every_kind_of_torch_is_found() -> None:
    known = {kind for name, kind in vars(nn).items() if "Dropout" in name}
    assert known == set(KINDS)
    assert len(Dropout(nn.ModuleList(kind(0.1) for kind in KINDS))) == len(KINDS)


def test_what_attention_and_recurrent_layers_drop_is_found() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.1)
    assert Dropout(layer).values() == [0.1] * 4
    layers = nn.LSTM(4, 4, 2, dropout=0.3)
    dropout = Dropout(layers)
    dropout.set(0.1)
    assert layers.dropout == 0.1
    assert len(Dropout(nn.GRU(4, 4, 1))) == 0
    assert len(Dropout(nn.Linear(2, 2))) == 0


def test_attention_drops_what_it_is_told() -> None:
    attention = nn.MultiheadAttention(8, 1, dropout=0.0, batch_first=True)
    x = torch.ones(1, 64, 8)
    Dropout(attention).set(0.5)
    assert 0.2 < (attention(x, x, x)[1] == 0).float().mean().item() < 0.8


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5), st.lists(st.floats(0.0, 1.0), max_size=5))
@examples(100)
def test_whatever_is_set_is_read_back_and_no_module_is_above_it(start: list[float], wanted: list[float]) -> None:
    dropout = Dropout(nn.ModuleList(nn.Dropout(p) for p in start))
    for p in wanted:
        dropout.set(p)
        assert dropout.get() == p
        assert all(0 <= value <= p for value in dropout.values())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_drops_what_it_is_told_however_often_that_changes(backend: str) -> None:
    """More often than torch compiles one function; with ``fullgraph`` it would raise."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    dropout, x = Dropout(model), torch.ones(32, 4)
    for change in range(torch._dynamo.config.recompile_limit + 2):
        dropout.set(0.05 * change)
        torch.manual_seed(change)
        found = compiled(x)
        torch.manual_seed(change)
        wanted = model(x)
        assert torch.equal(found == 0, wanted == 0)
        assert torch.allclose(found, wanted)
        assert not change or bool((found == 0).any())
