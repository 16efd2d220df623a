"""Which weights compete, in what order, under which names (design D3)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdra_mm.core import PlanError, find_layers, find_targets, layer_width, resolve
from tests.models import MODELS, TinyViT
from tests.reference.scores import PARTS


def block_names(prefix, attn, mlp, scale=True):
    """Names of one pre-norm block's targets, in the order of its modules."""
    ls1 = [f'{prefix}.ls1.gamma'] if scale else []
    ls2 = [f'{prefix}.ls2.gamma'] if scale else []
    norm1 = [f'{prefix}.norm1.weight', f'{prefix}.norm1.bias']
    norm2 = [f'{prefix}.norm2.weight', f'{prefix}.norm2.bias']
    attn = [f'{prefix}.attn.{name}' for name in attn]
    mlp = [f'{prefix}.mlp.{name}' for name in mlp]
    return norm1 + attn + ls1 + norm2 + mlp + ls2


FUSED = [
    'qkv.weight:q',
    'qkv.weight:k',
    'qkv.weight:v',
    'qkv.bias',
    'proj.weight',
    'proj.bias',
]
MHA = [
    'attn.in_proj_weight:q',
    'attn.in_proj_weight:k',
    'attn.in_proj_weight:v',
    'attn.in_proj_bias',
    'attn.out_proj.weight',
    'attn.out_proj.bias',
]
MLP = ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
SWIGLU = ['w12.weight:w1', 'w12.weight:w2', 'w12.bias', 'w3.weight', 'w3.bias']
SWIN_BLOCKS = ['stages.0.blocks.0', 'stages.0.blocks.1', 'stages.1.blocks.0']

EXPECTED = {
    'fused': [n for i in (0, 1) for n in block_names(f'blocks.{i}', FUSED, MLP)],
    'swiglu': [n for i in (0, 1) for n in block_names(f'blocks.{i}', FUSED, SWIGLU)],
    'mha': [n for i in (0, 1) for n in block_names(f'blocks.{i}', MHA, MLP)],
    'mha_sequence': [n for i in (0, 1) for n in block_names(f'blocks.{i}', MHA, MLP)],
    'windowed': [n for path in SWIN_BLOCKS for n in block_names(path, FUSED, MLP, scale=False)],
}


@pytest.mark.parametrize('kind', MODELS)
def test_find_targets_names_exactly_the_blocks_weights(kind):
    """So neither embeddings, tokens, tables, the layers between stages, last norm nor head."""
    assert list(find_targets(MODELS[kind]())) == EXPECTED[kind]


@pytest.mark.parametrize('kind', MODELS)
def test_find_targets_cover_every_entry_of_their_parameters_once(kind):
    model = MODELS[kind]()
    parameters = dict(model.named_parameters())
    seen = {}
    for name, target in find_targets(model).items():
        path, _, part = name.partition(':')
        parameter = parameters[path]
        assert target.name == name
        assert f'{target.module}.{target.parameter}' == path
        assert (target.part or '') == part
        assert tuple(target.shape) == (target.stop - target.start, *parameter.shape[1:])
        if part:
            place, count = PARTS[part]
            assert target.start == place * parameter.shape[0] // count
        seen.setdefault(path, []).extend(range(target.start, target.stop))
    for path, rows in seen.items():
        assert rows == list(range(parameters[path].shape[0]))


ROLES = {
    'attn.qkv.weight:q': 'q',
    'attn.qkv.weight:k': 'k',
    'attn.qkv.weight:v': 'v',
    'attn.attn.in_proj_weight:q': 'q',
    'attn.attn.in_proj_weight:k': 'k',
    'attn.attn.in_proj_weight:v': 'v',
    'attn.proj.weight': 'proj',
    'attn.attn.out_proj.weight': 'proj',
    'attn.qkv.bias': 'bias',
    'attn.proj.bias': 'bias',
    'mlp.fc1.bias': 'bias',
    'mlp.fc1.weight': 'fc1',
    'mlp.fc2.weight': 'fc2',
    'mlp.w12.weight:w1': 'w1',
    'mlp.w12.weight:w2': 'w2',
    'mlp.w3.weight': 'w3',
    'norm1.weight': 'norm',
    'norm2.weight': 'norm',
    'ls1.gamma': 'scale',
    'ls2.gamma': 'scale',
}


@pytest.mark.parametrize('kind', MODELS)
def test_find_targets_roles(kind):
    checked = 0
    for name, target in find_targets(MODELS[kind]()).items():
        for ending, role in ROLES.items():
            if name.endswith('.' + ending):
                assert target.role == role, name
                checked += 1
    assert checked >= 20


def test_find_targets_finds_blocks_below_a_wrapper():
    inner = TinyViT()
    wrapped = nn.ModuleDict({'backbone': inner, 'decode_head': nn.Linear(8, 8)})
    expected = [f'backbone.{name}' for name in find_targets(inner)]
    assert list(find_targets(wrapped)) == expected


def test_find_targets_finds_blocks_of_a_sequential():
    model = TinyViT()
    expected = list(find_targets(model))
    model.blocks = nn.Sequential(*model.blocks)
    assert list(find_targets(model)) == expected


def test_find_targets_works_for_torchs_own_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    names = list(find_targets(model))
    assert len(names) == 2 * (3 + 1 + 2 + 4 + 4)
    assert 'layers.0.self_attn.in_proj_weight:k' in names
    assert 'layers.1.linear2.weight' in names


def test_find_targets_does_not_depend_on_what_is_frozen():
    model = TinyViT()
    names = list(find_targets(model))
    assert list(find_targets(model.requires_grad_(False).eval())) == names


def test_find_targets_refuses_a_model_without_blocks():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(PlanError, match='(?i)sequential|transformer|attention|block'):
        find_targets(model)


@pytest.mark.parametrize('kind', MODELS)
def test_resolve_gives_what_find_targets_gave(kind):
    model = MODELS[kind]()
    for name, target in find_targets(model).items():
        other = resolve(model, name)
        fields = ('name', 'module', 'parameter', 'part', 'start', 'stop', 'shape')
        assert all(getattr(other, f) == getattr(target, f) for f in fields)


@pytest.mark.parametrize('name', ['head.weight', 'head.bias', 'norm.weight'])
def test_resolve_reaches_outside_the_blocks(name):
    model = TinyViT()
    target = resolve(model, name)
    assert tuple(target.shape) == tuple(model.get_parameter(name).shape)


@pytest.mark.parametrize(
    'name',
    [
        'blocks.7.attn.proj.weight',
        'blocks.0.attn.prj.weight',
        'blocks.0.attn.qkv.weight:w1',
        'blocks.0.attn.proj.weight:q',
        'blocks.0.attn',
        '',
    ],
)
def test_resolve_refuses_a_name_that_does_not_fit(name):
    with pytest.raises(PlanError, match=name.split(':')[0] or "''"):
        resolve(TinyViT(), name)


def test_targets_hold_no_tensor():
    """A target is a description: keeping it must not keep a model alive."""
    for target in find_targets(TinyViT()).values():
        assert not any(isinstance(value, torch.Tensor) for value in vars(target).values())


def test_find_blocks_are_the_innermost_list_members_in_order():
    assert find_layers(TinyViT(depth=3)) == ['blocks.0', 'blocks.1', 'blocks.2']
    swin = MODELS['windowed']()
    expected = ['stages.0.blocks.0', 'stages.0.blocks.1', 'stages.1.blocks.0']
    assert find_layers(swin) == expected
    assert [layer_width(swin, path) for path in expected] == [8, 8, 16]
    assert find_layers(nn.Linear(2, 2)) == []


def part_lists(*stages, owner=None):
    """Layers that are lists of their parts, each a string of letters.

    a: an attention; n: the same below a norm; f: a feed-forward; c: one of convolutions.
    """
    parts = dict(
        a=lambda: nn.MultiheadAttention(8, 2),
        n=lambda: nn.ModuleDict(dict(norm=nn.LayerNorm(8), attn=nn.MultiheadAttention(8, 2))),
        f=lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
        c=lambda: nn.Conv2d(8, 8, 1),
        b=lambda: nn.TransformerEncoderLayer(8, 2, 16),
    )
    lists = [nn.ModuleList(parts[letter]() for letter in stage) for stage in stages]
    return nn.ModuleList([nn.ModuleDict({owner: each}) for each in lists] if owner else lists)


@pytest.mark.parametrize(
    ('stages', 'owner', 'expected'),
    [
        (('af', 'af'), None, ['0', '1']),  # vit-pytorch, CROMA
        (('nf', 'nf'), None, ['0', '1']),  # with a norm in front of each
        (('aaf',), None, ['0']),  # attention to itself, then to another sequence
        (('af', 'af'), 'layer', ['0', '1']),  # T5
        (('fa', 'af'), 'parts', ['0', '1']),
        (('bbf', 'bbf'), None, ['0.0', '0.1', '1.0', '1.1']),  # stages of whole layers
        (('abf',), None, ['0.0', '0.1']),
        (('aa', 'aa'), None, ['0.0', '0.1', '1.0', '1.1']),  # layers without a feed-forward
        (('ac',), None, ['0.0']),  # what would be added does not compete
        (('af', 'f'), None, ['0.0']),  # no stack of layers
    ],
)
def test_find_layers_of_parts_in_lists(stages, owner, expected):
    """A layer written as a list of its parts is one layer, its feed-forward with it."""
    assert find_layers(part_lists(*stages, owner=owner)) == expected


def test_find_targets_of_parts_in_lists_have_the_feed_forward():
    roles = [target.role for target in find_targets(part_lists('nf', 'nf')).values()]
    assert [roles.count(role) for role in ('q', 'proj', 'fc1', 'fc2')] == [2, 2, 2, 2]


def test_find_targets_names_a_module_of_several_blocks_once():
    model = TinyViT()
    model.blocks[1].mlp = model.blocks[0].mlp
    names = [name for name in find_targets(model) if '.mlp.' in name]
    assert names and all(name.startswith('blocks.0.') for name in names)
