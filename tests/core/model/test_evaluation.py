"""Evaluation mode for a while: for classes that only have a flag, and for those that do more."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdra_mm.core.model.evaluation import evaluation_mode


class Cached(nn.Module):
    """Reads a table in evaluation that only ``train(False)`` makes, as LeViT's attention does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def train(self, mode=True):
        super().train(mode)
        if mode:
            vars(self).pop('table', None)
        else:
            self.table = self.weight.detach() * 2
        return self

    def forward(self, x):
        return x * (self.weight * 2 if self.training else self.table)


class Freezing(nn.Module):
    """Freezes its first layer in ``train``, and gives nothing back, as mmseg's backbones do."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.cached = nn.Linear(2, 2), nn.Dropout(), Cached()

    def train(self, mode=True):
        super().train(mode)
        self.first.eval()
        self.first.requires_grad_(False)

    def forward(self, x):
        return self.cached(self.second(self.first(x)))


def state(model):
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: sorted(vars(module)) for name, module in model.named_modules()},
    )


def found(kind):
    model = Freezing()
    nn.Module.train(model, kind != 'evaluating')
    model.first.train(kind != 'evaluating').requires_grad_(True)
    if kind == 'mixed':
        model.cached.train(False)
        model.second.eval()
        model.first.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize('fails', [False, True])
@pytest.mark.parametrize('kind', ['training', 'evaluating', 'mixed'])
def test_evaluation_mode_puts_back_what_it_found(kind, fails):
    model = found(kind)
    before, x = state(model), torch.ones(1, 2)
    try:
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            flags = {name: p.requires_grad for name, p in model.named_parameters()}
            assert flags == before[1]
            model.cached.weight.data.fill_(3.0)
            with evaluation_mode(model.cached):  # makes the table anew
                torch.testing.assert_close(model(x), model.first(x) * 6)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert state(model) == before


def test_evaluation_mode_makes_a_table_of_the_present_weights():
    model = Cached().train(False)
    model.weight.data.fill_(3.0)  # loaded since
    with evaluation_mode(model):
        torch.testing.assert_close(model(torch.ones(2)), torch.full((2,), 6.0))
