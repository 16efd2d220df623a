"""A state dict describes itself: its keys alone rebuild the adapters (design section 4)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdra_mm.core import CDRAError, adapters, build_adapters
from tests.core.problems import adapted, outputs
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


BAD_STATES = {
    'rows are missing': lambda s: changed(s, '.rows', lambda v: None),
    'up is missing': lambda s: changed(s, '.up', lambda v: None),
    'index is missing': lambda s: changed(s, '.index', lambda v: None),
    'row outside': lambda s: changed(s, '.rows', lambda v: v + 1000),
    'ranks differ': lambda s: changed(s, '.up', lambda v: v[:, :1]),
    'columns and down differ': lambda s: changed(s, '.cols', lambda v: v[:-1]),
    'index outside': lambda s: changed(s, '.index', lambda v: v + 1000),
    'no such module': lambda s: s | {'blocks.9.mlp.fc1.cdra.weight.up': torch.zeros(2, 2)},
    'no such part': lambda s: (
        s
        | {f'blocks.0.mlp.fc1.cdra.weight:q.{k}': torch.zeros(1, 1) for k in ('up', 'down')}
        | {f'blocks.0.mlp.fc1.cdra.weight:q.{k}': torch.zeros(1).long() for k in ('rows', 'cols')}
    ),
    'no such field': lambda s: s | {'blocks.0.mlp.fc1.cdra.weight.gate': torch.zeros(2, 2)},
}


@pytest.mark.parametrize('change', BAD_STATES.values(), ids=BAD_STATES)
def test_build_adapters_refuses_a_state_that_contradicts_itself(change):
    base, model, _ = adapted('fused')
    before = list(base.state_dict())
    with pytest.raises(CDRAError, match='blocks|cdra'):
        build_adapters(base, change(model.state_dict()))
    assert list(base.state_dict()) == before and adapters(base) == {}
