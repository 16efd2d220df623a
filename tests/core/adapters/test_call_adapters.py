"""A kind of adapter beside those of the package: how it is known, planned, put on and refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdra_mm.core import (
    Part,
    Plan,
    PlanError,
    adapters,
    apply_plan,
    find_targets,
    merge_adapters,
    remove_adapters,
)
from cdra_mm.core.adapters import adapter as kinds
from cdra_mm.core.adapters.adapter import CallAdapter, find_kind, kind_of_tensors, register_kind
from cdra_mm.core.adapters.low_rank import LowRank
from tests.models import TinyViT


class Gain(CallAdapter):
    """Multiplies what a module computes."""

    kind = 'gain'
    tensors = frozenset({'gain'})
    can_merge = False

    def __init__(self, module, number, failure=None):
        super().__init__()
        if failure is not None:
            raise ValueError(failure)
        self.gain = nn.Parameter(torch.zeros(number))

    @classmethod
    def sizes_of(cls, tensors):
        return {'number': len(tensors['gain'])}

    def reset(self, generator):
        with torch.no_grad():
            self.gain.fill_(3)

    def call(self, forward, *args, **kwargs):
        return forward(*args, **kwargs) * self.gain


@pytest.fixture
def _gain(monkeypatch):
    monkeypatch.setattr(kinds, '_KINDS', dict(kinds._KINDS))
    assert register_kind(Gain) is Gain


MLPS = ('blocks.0.mlp', 'blocks.1.mlp')


def plan_of_gains(paths=MLPS, ending='gain', num_params=1, **sizes):
    parts = [Part(f'{path}.{ending}', 'gain', {'number': 1, **sizes}, num_params) for path in paths]
    return Plan(method='gain', parts=tuple(parts))


@pytest.mark.usefixtures('_gain')
def test_call_adapter_changes_what_its_module_computes():
    model = TinyViT().eval()
    x = torch.randn(2, 5, 8)
    expected = 3 * model.blocks[0].mlp(x)
    apply_plan(model, plan_of_gains())
    assert torch.equal(model.blocks[0].mlp(x), expected)
    assert list(adapters(model)) == [f'{path}.gain' for path in MLPS]


@pytest.mark.usefixtures('_gain')
def test_call_adapter_does_not_compete():
    """Although its only vector looks like a layer scale."""
    model = TinyViT()
    expected = list(find_targets(model))
    apply_plan(model, plan_of_gains())
    assert list(find_targets(model)) == expected


@pytest.mark.usefixtures('_gain')
def test_call_adapter_that_does_not_merge_is_named_the_first_of_them():
    model = TinyViT()
    apply_plan(model, plan_of_gains())
    with pytest.raises(PlanError, match=r'2 adapters .* \(the first is blocks\.0\.mlp\.gain\)'):
        merge_adapters(model)
    with pytest.raises(PlanError, match=r'2 adapters .* \(the first is blocks\.0\.mlp\.gain\)'):
        remove_adapters(model)
    with pytest.raises(PlanError, match='^gain has no plain weight'):
        adapters(model)['blocks.0.mlp.gain'].merge_(model.blocks[0].mlp)


@pytest.mark.usefixtures('_gain')
@pytest.mark.parametrize(
    ('plan', 'message'),
    [
        (plan_of_gains(ending='loss'), r'mlp\.loss .*expected a name that ends with gain$'),
        (plan_of_gains(num_params=2), r'mlp\.gain has 1 parameters, the plan says 2$'),
        (plan_of_gains(['blocks.9.mlp']), r'blocks\.9\.mlp\.gain \(gain\) cannot be put'),
        (plan_of_gains(failure='no room\nfor it'), r'gain \(gain\) cannot .* model: no room$'),
        (plan_of_gains(failure=''), r'gain \(gain\) cannot .* model: ValueError$'),
    ],
    ids=['another name', 'another size', 'no module', 'two lines', 'no message'],
)
def test_call_adapter_that_does_not_fit_is_refused(plan, message):
    model = TinyViT()
    with pytest.raises(PlanError, match=message):
        apply_plan(model, plan)
    assert adapters(model) == {}


@pytest.mark.usefixtures('_gain')
def test_kind_is_found_by_its_name_and_by_its_tensors():
    assert find_kind('gain') is Gain and find_kind('low_rank') is LowRank
    assert kind_of_tensors({'gain'}) is Gain
    assert kind_of_tensors({'gain', 'loss'}) is None
    with pytest.raises(PlanError, match=r"'loss' is unknown: expected one of .*gain, .*low_rank"):
        find_kind('loss')


@pytest.mark.usefixtures('_gain')
@pytest.mark.parametrize(
    'changes', [{'kind': 'gain', 'tensors': frozenset({'loss'})}, {'kind': 'loss'}]
)
def test_kind_with_the_name_or_the_tensors_of_another_is_refused(changes):
    with pytest.raises(ValueError, match='^Twin: Gain has its name or its tensors$'):
        register_kind(type('Twin', (Gain,), changes))
    assert 'loss' not in kinds._KINDS and find_kind('gain') is Gain
