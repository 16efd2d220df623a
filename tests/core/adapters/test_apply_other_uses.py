"""Adapters act wherever their weight is used: twice, or past its module's forward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from cdra_mm.core import apply_plan, find_targets, merge_adapters, plan_from_masks
from tests.core.problems import move
from tests.core.scoring.test_scores_other_uses import (
    own_forward,
    partly_scripted_forward,
    rewrite,
    scripted_forward,
)
from tests.models import TinyViT, images
from tests.reference.layers import dense_model


def adapt(model):
    masks = {}
    for name, target in find_targets(model).items():
        masks[name] = torch.zeros(target.shape, dtype=torch.bool)
        masks[name][..., ::2] = True
    apply_plan(model, plan_from_masks(masks, rank_rule=2, beta=1))
    move(model)


def used_twice(model):
    """As in DeiT III of mmpretrain: one norm for two purposes; and one FFN in both blocks."""
    for block in model.blocks:
        del block.norm2
        block.norm2 = block.norm1
    model.blocks[1].mlp = model.blocks[0].mlp


def called_twice(model):
    """Siamese: the blocks see an image and its mirror image."""
    inner = type(model).forward
    model.forward = lambda x: inner(model, x) - inner(model, x.flip(-1)).square()


def past_its_module(forward):
    return lambda model: rewrite(model.blocks[0].mlp.fc1, forward)


def linear_forward(self, x):
    return F.linear(x, self.weight, self.bias)


USES = {
    'a module used twice': used_twice,
    'a model called twice': called_twice,
    'a function': past_its_module(linear_forward),
    'a scripted function': past_its_module(scripted_forward),
    'a custom autograd function': past_its_module(own_forward),
    'both': past_its_module(partly_scripted_forward),
}


@pytest.mark.parametrize('use', USES.values(), ids=USES)
def test_adapters_equal_dense_weights_however_they_are_used(use):
    torch.manual_seed(0)
    model = TinyViT().double().eval()
    base = copy.deepcopy(model)
    plain = copy.deepcopy(model)
    if use is used_twice:  # before it is adapted
        for one in (model, base, plain):
            use(one)
    adapt(model)
    state = model.state_dict()
    if use is not used_twice:  # what is bound to one module is not copied
        for one in (model, base):
            use(one)
    dense = base
    dense.load_state_dict(dense_model(plain, state).state_dict())
    x, _ = images(3, torch.float64)
    expected = dense(x)
    output = model(x)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    output.square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and bool(parameter.grad.any()), name
    merge_adapters(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
