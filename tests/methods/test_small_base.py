"""What every method trains stands on a base in int8, and merges into the one in full precision."""

from __future__ import annotations

import copy

import pytest
import torch

from cdra_mm.core import adapters, apply_plan, merge_adapters, quantize_base, restore_base
from cdra_mm.core.adapters.small_base import quantized_names
from cdra_mm.methods import METHODS
from tests.core.problems import move
from tests.reference import int8 as reference

from .adapted import inputs, timm_vit
from .test_withheld import plan_of


def results(model):
    """Output, and the gradients of what is trained."""
    out = model(inputs().float())
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        return [out]
    grads = torch.autograd.grad(out.square().sum(), trained, allow_unused=True)
    return [out, *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize('name', [name for name in METHODS if name != 'full'])
def test_every_method_computes_on_int8_what_it_does_on_its_values_and_merges_back(name):
    torch.manual_seed(0)
    base = timm_vit(num_classes=0).float()  # features, as an MLP needs them
    plan = plan_of(name, base, {})
    model, dense = (apply_plan(copy.deepcopy(base), plan) for _ in range(2))
    whole = copy.deepcopy(dense)
    for one in (model, dense, whole):
        move(one)
    quantize_base(model)
    names = quantized_names(model)
    assert names and not any(model.get_submodule(n.rpartition('.')[0])
                             ._parameters['weight'].requires_grad for n in names)  # fmt: skip
    reference.quantize_dense(dense, names)
    found, right = results(model), results(dense)
    assert len(found) == len(right)
    for ours, theirs in zip(found, right, strict=True):
        assert torch.equal(ours, theirs)
    restore_base(model, base.state_dict())
    if all(adapter.can_merge for adapter in adapters(model).values()):
        for one in (model, whole):
            merge_adapters(one)
        wanted = whole.state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())
    else:
        assert torch.equal(model(inputs().float()), whole(inputs().float()))
