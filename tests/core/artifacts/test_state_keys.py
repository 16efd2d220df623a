"""A state dict describes itself: its plan alone rebuilds the adapters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cdra_mm.core import (
    CDRAError,
    adapters,
    apply_plan,
    build_adapters,
    merge_adapters,
    plan_from_masks,
    remove_adapters,
    unmerge_adapters,
)
from cdra_mm.core.model.own_state import PLAN_KEY
from tests.core.problems import adapted, outputs, random_plan
from tests.models import MODELS, TinyViT

KINDS = pytest.mark.parametrize('kind', MODELS)


@KINDS
def test_build_adapters_then_strict_load_equals_the_original(kind):
    base, model, _ = adapted(kind)
    state = model.state_dict()
    build_adapters(base, state)
    base.load_state_dict(state, strict=True)
    assert torch.equal(outputs(base), outputs(model))
    assert list(base.state_dict()) == list(state)


def test_build_adapters_takes_the_keys_below_a_prefix():
    base, model, _ = adapted('fused')
    state = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    state['decode_head.cdra.weight.up'] = torch.zeros(3)
    build_adapters(base, state, prefix='backbone.')
    base.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith('backbone.')})
    assert torch.equal(outputs(base), outputs(model))


def test_build_adapters_of_a_plain_state_dict_does_nothing():
    model = TinyViT()
    build_adapters(model, model.state_dict())
    assert adapters(model) == {} and type(model.blocks[0].attn.proj) is nn.Linear
    assert all(p.requires_grad for p in model.parameters())


def changed(state, ending, change):
    """The state dict with the first key of an ending changed, or left out."""
    key = next(key for key in state if '.cdra.' in key and key.endswith(ending))
    value = change(state[key])
    return {k: v for k, v in state.items() if k != key} | ({} if value is None else {key: value})


def earlier(state):
    """Earlier releases had the rows of each adapter, and the plan in the record of a run."""
    rows = {
        key[:-2] + 'rows': torch.arange(len(v)) for key, v in state.items() if key.endswith('.up')
    }
    return {key: value for key, value in state.items() if key != PLAN_KEY} | rows


BAD_STATES = {
    'the plan is missing': lambda s: {k: v for k, v in s.items() if k != PLAN_KEY},
    'the plan is cut off': lambda s: s | {PLAN_KEY: s[PLAN_KEY][:-1]},
    'the plan is of other numbers': lambda s: s | {PLAN_KEY: s[PLAN_KEY].float()},
    'down is missing': lambda s: changed(s, '.down', lambda v: None),
    'up is missing': lambda s: changed(s, '.up', lambda v: None),
    'entries are missing': lambda s: changed(s, '.value', lambda v: None),
    'ranks differ': lambda s: changed(s, '.up', lambda v: v[:, :1]),
    'columns and down differ': lambda s: changed(s, '.down', lambda v: v[:, :-1]),
    'entries differ': lambda s: changed(s, '.value', lambda v: v[:-1]),
    'a file of an earlier release': lambda s: earlier(s),
    'no such module': lambda s: s | {'blocks.9.mlp.fc1.cdra.weight.up': torch.zeros(2, 2)},
    'no such part': lambda s: (
        s | {f'blocks.0.mlp.fc1.cdra.weight:q.{k}': torch.zeros(1, 1) for k in ('up', 'down')}
    ),
    'no such field': lambda s: s | {'blocks.0.mlp.fc1.cdra.weight.gate': torch.zeros(2, 2)},
}


@pytest.mark.parametrize('change', BAD_STATES.values(), ids=BAD_STATES)
def test_build_adapters_refuses_a_state_that_contradicts_itself(change):
    base, model, _ = adapted('fused')
    before = list(base.state_dict())
    with pytest.raises(CDRAError, match='blocks|cdra|plan'):
        build_adapters(base, change(model.state_dict()))
    assert list(base.state_dict()) == before and adapters(base) == {}


def test_values_of_one_plan_are_not_taken_for_those_of_another():
    base, model, plan = adapted('fused')
    state = model.state_dict()
    apply_plan(base, random_plan(base, seed=3))
    for load in (lambda: build_adapters(base, state), lambda: base.load_state_dict(state)):
        with pytest.raises(CDRAError, match='other adapters than the checkpoint'):
            load()
    again = adapted('fused')[1]
    again.load_state_dict(state, strict=True)  # of the same plan: it is no key too many
    assert PLAN_KEY in state and torch.equal(outputs(again), outputs(model))


def test_plan_is_in_the_state_dict_as_long_as_adapters_are():
    _, model, _ = adapted('fused')
    merge_adapters(model)
    assert PLAN_KEY not in model.state_dict()
    unmerge_adapters(model)
    assert PLAN_KEY in copy.deepcopy(model).state_dict()
    remove_adapters(model, discard=True)
    assert PLAN_KEY not in model.state_dict()


def test_indices_stand_in_the_plan_and_nowhere_else():
    _, model, _ = adapted('fused')
    state = model.state_dict()
    assert {v.dtype for k, v in state.items() if k != PLAN_KEY} == {torch.float64}
    assert state[PLAN_KEY].dtype == torch.uint8


def test_a_module_in_two_places_is_read_back():
    def shared():
        layer = nn.Linear(4, 6)
        return nn.ModuleDict({'a': nn.Sequential(layer), 'b': nn.Sequential(layer)})

    model, again = shared(), shared()
    apply_plan(model, plan_from_masks({'a.0.weight': torch.ones(6, 4) > 0}, rank_rule=1))
    state = model.state_dict()
    assert build_adapters(again, state) == ['a.0.weight']
    again.load_state_dict(state)
    assert build_adapters(again, model.state_dict()) == ['a.0.weight']


def test_a_state_dict_is_not_the_models_own():
    model = nn.Sequential(nn.Linear(4, 6))
    apply_plan(model, plan_from_masks({'0.weight': torch.ones(6, 4) > 0}, rank_rule=1))
    model.state_dict()['cdra_plan'].zero_()
    assert build_adapters(nn.Sequential(nn.Linear(4, 6)), model.state_dict()) == ['0.weight']


@pytest.mark.parametrize('value', ['text', None, [1.0], {}], ids=str)
@pytest.mark.parametrize('ending', ['.up', '.value', PLAN_KEY])
def test_state_dict_with_a_value_that_is_no_tensor_is_refused(ending, value):
    base, model, _ = adapted('fused')
    state = model.state_dict()
    state[next(key for key in state if key.endswith(ending))] = value
    with pytest.raises(CDRAError, match='damaged'):
        build_adapters(base, state)
    assert adapters(base) == {}


def test_model_with_a_module_of_the_adapters_name_is_refused():
    base, model, plan = adapted('fused')
    base.blocks[0].attn.cdra = nn.Linear(2, 2)
    state = model.state_dict()
    for put_on in (lambda: apply_plan(base, plan), lambda: build_adapters(base, state)):
        with pytest.raises(CDRAError, match=r'blocks\.0\.attn\.cdra of .* rename it'):
            put_on()
        assert type(base.blocks[0].attn.cdra) is nn.Linear and adapters(base) == {}
