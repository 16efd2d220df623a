"""Weights of a supernet: a smaller plan computes with the first rows and columns."""

from __future__ import annotations

import copy

import pytest
import torch

from cdra_mm.core import PlanError, adapters, apply_plan
from cdra_mm.methods import SharedAdapters
from tests.methods.adapted import EXACT, inputs, timm_vit
from tests.methods.test_noah import LARGEST, planned

SMALLEST = dict(LARGEST, prompt_dims=[1], lora_dims=[1], adapter_dims=[2], depths=[1])


def shared_on(model, seed=3):
    plan = planned(model, LARGEST)
    shared = SharedAdapters(model, plan, seed=seed)
    with torch.no_grad():  # as trained: nothing is zero
        for values in shared.shared.values():
            for parameter in values.values():
                parameter.add_(torch.rand_like(parameter))
    return shared


def small_twin(base, shared, plan):
    """A model of its own with copies of the first rows and columns."""
    model = apply_plan(copy.deepcopy(base), plan)
    with torch.no_grad():
        for name, adapter in adapters(model).items():
            for key, parameter in adapter.named_parameters():
                whole = shared.shared[name][key]
                index = [torch.arange(size) for size in parameter.shape]
                for axis, rows in enumerate(index):
                    whole = whole.index_select(axis, rows)
                parameter.copy_(whole)
    return model


@pytest.mark.parametrize('config', [SMALLEST, LARGEST, dict(SMALLEST, depths=[2])])
def test_shared_adapters_compute_with_the_first_rows_and_columns(config):
    base, x = timm_vit(num_classes=0), inputs()
    model = copy.deepcopy(base)
    shared = shared_on(model)
    plan = planned(base, dict(config, dropout=0.0))
    twin = small_twin(base, shared, plan)
    with shared.applied(plan):
        y = model(x)
        torch.testing.assert_close(y, twin(x), **EXACT)
        y.square().sum().backward()
    twin(x).square().sum().backward()
    assert (y - base(x)).abs().max() > 1e-3
    own = {name: dict(a.named_parameters()) for name, a in adapters(twin).items()}
    for name, values in shared.shared.items():
        for key, whole in values.items():
            if name not in own:
                assert whole.grad is None, name
                continue
            small = own[name][key]
            first = tuple(slice(size) for size in small.shape)
            torch.testing.assert_close(whole.grad[first], small.grad)
            assert whole.grad.count_nonzero() == small.grad.count_nonzero()


def test_shared_adapters_leave_the_backbone_plain():
    base = timm_vit(num_classes=0)
    model = copy.deepcopy(base)
    shared = shared_on(model)
    with pytest.raises(RuntimeError, match='stop'), shared.applied(planned(base, SMALLEST)):
        assert adapters(model)
        raise RuntimeError('stop')
    assert not adapters(model) and list(model.state_dict()) == list(base.state_dict())
    torch.testing.assert_close(model(inputs()), base(inputs()), rtol=0, atol=0)


def test_shared_adapters_drop_out_as_the_plan_says():
    model = timm_vit(num_classes=0).train()
    shared = shared_on(model)
    with shared.applied(planned(timm_vit(num_classes=0), dict(SMALLEST, dropout=0.3))):
        lora = [a for name, a in adapters(model).items() if 'weight' in name]
        assert lora and all(a.dropout == 0.3 and a.training for a in lora)


def test_shared_adapters_refuse_a_plan_that_they_do_not_hold():
    base = timm_vit(num_classes=0)
    shared = SharedAdapters(copy.deepcopy(base), planned(base, SMALLEST), seed=0)
    for config in (LARGEST, dict(SMALLEST, depths=[3])):
        with (
            pytest.raises(PlanError, match='larger than the one of the supernet, or new'),
            shared.applied(planned(base, config)),
        ):
            pass
        assert not adapters(shared.backbone)
