"""Bias, Partial and MLP: what they train, counted by hand, and equal to models written out."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import nn

from cdra_mm.core import ConfigError, PlanError, adapters, apply_plan, merge_adapters, save_adapter
from cdra_mm.methods import make_method
from tests.methods.adapted import (
    EXACT,
    SIZE,
    adapt,
    assert_trains_exactly,
    assert_travels,
    inputs,
    plan_for,
    timm_vit,
    tiny,
    trained,
)
from tests.models import MODELS, TinySwin, images

PARTIAL = {'type': 'partial', 'num_blocks': 2}
MLP = {'type': 'mlp', 'num_layers': 3}
IN_PLACE = pytest.mark.parametrize('config', [{'type': 'bias'}, PARTIAL], ids=['bias', 'partial'])


@IN_PLACE
@pytest.mark.parametrize('kind', MODELS)
def test_weights_that_are_trained_in_place(config, kind, tmp_path):
    """Nothing is added: the same outputs bit by bit, no adapter, nothing to merge."""
    base, x = MODELS[kind]().double().eval(), images(3, torch.float64)[0]
    model, plan = adapt(base, config)
    assert adapters(model) == {} and list(model.state_dict()) == list(base.state_dict())
    torch.testing.assert_close(model(x), base(x), **EXACT)
    assert set(trained(model)) == set(plan.also_train)
    assert_trains_exactly(base, model, plan, x)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    merge_adapters(model)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    if config is not PARTIAL:
        assert_travels(base, model, plan, x, tmp_path)
    save_adapter(model, tmp_path / 'b.safetensors')


def test_bias_is_every_bias_and_no_table_of_relative_positions():
    # Patch convolution 8; of each block qkv 24, proj 8, fc1 16, fc2 8 and two norms; final norm.
    model, plan = adapt(tiny(depth=3), {'type': 'bias'})
    assert plan.num_trainable == 8 + 3 * (24 + 8 + 16 + 8 + 2 * 8) + 8 + 3
    assert all(name.endswith('bias') for name in plan.also_train)
    swin = plan_for(TinySwin(), {'type': 'bias'})
    assert swin.also_train and not any('table' in name for name in swin.also_train)


@pytest.mark.parametrize('name', ['eva_giant_patch14_224', 'beit_base_patch16_224'])
def test_bias_takes_the_separate_biases_of_a_fused_matrix(name):
    sizes = dict(embed_dim=16, depth=2, num_heads=2, img_size=SIZE, patch_size=8, num_classes=0)
    model = timm.create_model(name, **sizes)
    own = ('bias', 'q_bias', 'v_bias')
    expected = {n for n, _ in model.named_parameters() if n.rpartition('.')[2] in own}
    assert set(plan_for(model, {'type': 'bias'}).also_train) == expected
    assert {'blocks.0.attn.q_bias', 'blocks.1.attn.v_bias'} < expected


def test_bias_takes_the_bias_of_multihead_attention():
    plan = plan_for(tiny('mha'), {'type': 'bias'})
    assert plan.also_train['blocks.0.attn.attn.in_proj_bias'] == 24
    assert plan.also_train['blocks.0.attn.attn.out_proj.bias'] == 8


def test_bias_refuses_a_backbone_without_any():
    model = tiny()
    for module in model.modules():
        if module._parameters.get('bias') is not None:
            module.bias = None
    with pytest.raises(PlanError, match='TinyViT has no bias'):
        plan_for(model, {'type': 'bias'})


def test_partial_is_the_last_blocks_and_the_norm_behind_them():
    base = timm_vit(num_classes=0, pre_norm=True)
    _, plan = adapt(base, PARTIAL)
    last = ('blocks.1.', 'blocks.2.', 'norm.')
    expected = {n for n, _ in base.named_parameters() if n.startswith(last)}
    assert set(plan.also_train) == expected and 'norm_pre.weight' not in expected
    assert dict(base.named_parameters()).keys() >= {'norm_pre.weight'}


def test_partial_of_swin_is_the_last_blocks_over_its_stages():
    plan = plan_for(TinySwin(), PARTIAL)
    blocks = {name.rpartition('.blocks.')[0] + name.partition('.blocks')[2][:3] for name in
              plan.also_train if '.blocks.' in name}  # fmt: skip
    assert blocks == {'stages.0.1.', 'stages.1.0.'}
    assert {'norm.weight', 'norm.bias'} < set(plan.also_train)
    assert not any('downsample' in name for name in plan.also_train)


def test_partial_below_the_trained_blocks_no_gradient_is_computed():
    model, _ = adapt(timm_vit(), {'type': 'partial'})
    seen = []
    model.blocks[2].register_forward_pre_hook(lambda _, args: seen.append(args[0].requires_grad))
    model(inputs()).sum().backward()
    assert seen == [False]


def test_partial_refuses_more_blocks_than_there_are():
    with pytest.raises(PlanError, match='num_blocks=4: TinyViT has 3 transformer blocks'):
        plan_for(tiny(depth=3), {'type': 'partial', 'num_blocks': 4})


class Maps(nn.Module):
    """A backbone that gives what dense heads and classifiers read: maps and a class token."""

    def __init__(self, nested=False):
        super().__init__()
        self.vit, self.nested = timm_vit(num_classes=0), nested

    def forward(self, x):
        tokens = self.vit.forward_features(x)
        side = int((tokens.shape[1] - 1) ** 0.5)
        maps = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        return ([maps, tokens[:, 0]], maps) if self.nested else tokens[:, 0]


def written_out(adapter):
    """The same layers of torch's own classes."""
    layers = []
    for weight, bias in zip(adapter.hidden_weight, adapter.hidden_bias, strict=True):
        linear = nn.Linear(8, 8).double()
        linear.load_state_dict({'weight': weight.detach(), 'bias': bias.detach()})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers)


def test_mlp_equals_layers_that_are_written_out(tmp_path):
    base = Maps()
    model, plan = adapt(base, MLP, moved=True)
    (adapter,) = adapters(model).values()
    head = written_out(adapter)
    x = inputs()
    torch.testing.assert_close(model(x), head(base(x)))
    model(x).square().sum().backward()
    head(base(x).detach()).square().sum().backward()
    theirs = [layer for layer in head if isinstance(layer, nn.Linear)]
    for index, layer in enumerate(theirs):
        torch.testing.assert_close(adapter.hidden_weight.grad[index], layer.weight.grad)
        torch.testing.assert_close(adapter.hidden_bias.grad[index], layer.bias.grad)
    assert plan.num_trainable == 2 * (8 * 8 + 8)
    assert_trains_exactly(base, model, plan, x)
    assert_travels(base, model, plan, x, tmp_path)


def test_mlp_takes_every_place_of_a_map_as_a_vector():
    base = Maps(nested=True)
    model, _ = adapt(base, MLP, moved=True)
    head = written_out(*adapters(model).values())
    x = inputs()
    (maps, token), again = model(x)
    (base_maps, base_token), _ = base(x)
    assert maps.shape == base_maps.shape and torch.equal(maps, again)
    torch.testing.assert_close(token, head(base_token))
    torch.testing.assert_close(maps, head(base_maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_mlp_takes_every_token_as_a_vector():
    base = timm_vit(num_classes=0, global_pool='', class_token=True)
    model, _ = adapt(base, MLP, moved=True)
    x = inputs()
    assert base(x).dim() == 3
    torch.testing.assert_close(model(x), written_out(*adapters(model).values())(base(x)))


def test_mlp_initial_values_keep_the_scale_and_follow_the_seed():
    base = timm_vit(embed_dim=64, num_heads=2, num_classes=0)
    twins = [adapt(base, MLP, seed=seed)[0] for seed in (0, 0, 1)]
    weights = [next(iter(adapters(twin).values())).hidden_weight.detach() for twin in twins]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert abs(float(weights[0].std()) - (2 / 64) ** 0.5) < 0.01
    assert not next(iter(adapters(twins[0]).values())).hidden_bias.any()


def test_mlp_refuses_features_that_are_no_vectors_of_its_width():
    model, _ = adapt(timm_vit(), MLP)  # with a classifier: logits
    with pytest.raises(PlanError, match=r'gives its head \(3, 3\): an MLP needs features \[B, 8\]'):
        model(inputs())


def test_mlp_does_not_merge_and_is_refused_on_a_replaced_forward():
    model, plan = adapt(Maps(), MLP)
    with pytest.raises(PlanError, match='do not merge'):
        merge_adapters(model)
    plain = Maps()
    plain.forward = plain.forward
    with pytest.raises(PlanError, match='activation_checkpointing'):
        apply_plan(plain, plan)


def test_mlp_refuses_a_backbone_without_transformer_blocks():
    with pytest.raises(PlanError, match='Conv2d has no transformer blocks'):
        plan_for(nn.Conv2d(3, 8, 4), MLP)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'type': 'partial', 'num_blocks': 0}, 'num_blocks=0: expected a count of at least 1'),
        ({'type': 'partial', 'num_blocks': True}, 'num_blocks=True: expected an integer'),
        ({'type': 'mlp', 'num_layers': 1}, 'num_layers=1: expected a count of at least 2'),
        ({'type': 'mlp', 'num_layers': 2.0}, 'num_layers=2.0: expected an integer'),
        ({'type': 'bias', 'num_blocks': 1}, "method 'bias' has no setting 'num_blocks'"),
        ({'type': 'partial', 'num_block': 1}, "(did you mean 'num_blocks'?)"),
    ],
)
def test_wrong_settings_are_refused(config, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_method(config)
