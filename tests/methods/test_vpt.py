"""Prompts: equal to tokens put in by hand where the paper's code puts them."""

from __future__ import annotations

import copy
import math
import re

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cdra_mm.core import (
    ConfigError,
    PlanError,
    adapters,
    apply_plan,
    build_adapters,
    merge_adapters,
)
from cdra_mm.methods import make_method
from tests.methods.adapted import (
    SIZE,
    adapt,
    assert_same_gradients,
    assert_trains_exactly,
    assert_travels,
    inputs,
    plan_for,
    timm_vit,
    tiny,
)
from tests.models import TinySwin, images

SHALLOW = {'type': 'vpt_shallow', 'num_prompts': 4}
DEEP = {'type': 'vpt_deep', 'num_prompts': 4}
BOTH = pytest.mark.parametrize('config', [SHALLOW, DEEP], ids=['shallow', 'deep'])


class WrittenOut(nn.Module):
    """timm's ViT with prompts behind its class token, replaced before every block (deep)."""

    def __init__(self, vit, prompts):
        super().__init__()
        self.vit = vit.requires_grad_(False)
        self.prompts = nn.ParameterList(prompts)

    def forward(self, x):
        vit = self.vit
        x = vit._pos_embed(vit.patch_embed(x))
        p = len(self.prompts[0])
        for index, block in enumerate(vit.blocks):
            if index < len(self.prompts):
                prompts = self.prompts[index].expand(len(x), -1, -1)
                rest = x[:, 1 + p :] if index else x[:, 1:]
                x = torch.cat([x[:, :1], prompts, rest], 1)
            x = block(x)
        return vit.forward_head(vit.norm(x))


@BOTH
def test_vpt_equals_prompts_behind_the_class_token(config):
    base = timm_vit()
    model, _ = adapt(base, config, moved=True)
    ours = [p for a in adapters(model).values() for p in a.parameters()]
    written = WrittenOut(copy.deepcopy(base), [p.detach().clone() for p in ours])
    x = inputs()
    torch.testing.assert_close(model(x), written(x))
    assert (model(x) - base(x)).abs().max() > 1e-3
    for twin in (model, written):
        twin(x).square().sum().backward()
    assert_same_gradients(ours, list(written.prompts))


@BOTH
@pytest.mark.parametrize('kind', ['fused', 'mha', 'mha_sequence'])
def test_vpt_trains_what_it_declares_and_travels(config, kind, tmp_path):
    base, x = tiny(kind, depth=3), images(3, torch.float64)[0]
    model, plan = adapt(base, config)
    assert plan.num_trainable == 4 * 8 * (1 if config is SHALLOW else 3)
    assert len(plan.parts) == (1 if config is SHALLOW else 3)
    assert_trains_exactly(base, model, plan, x)
    assert_travels(base, model, plan, x, tmp_path)


@BOTH
@pytest.mark.parametrize(
    'options', [{}, dict(reg_tokens=2), dict(class_token=False, global_pool='avg')]
)
def test_vpt_leaves_every_layer_its_own_tokens(config, options):
    """Heads for dense prediction read intermediate layers; they see no prompt."""
    base = timm_vit(**options)
    model, _ = adapt(base, config, moved=True)
    seen = []
    for twin in (base, model):
        sizes = []
        hooks = [b.register_forward_hook(lambda _, __, y, s=sizes: s.append(y.shape))
                 for b in twin.blocks]  # fmt: skip
        twin(inputs())
        for hook in hooks:
            hook.remove()
        seen.append(sizes)
    assert seen[0] == seen[1]


@BOTH
def test_vpt_keeps_nothing_of_a_forward_pass(config):
    model, _ = adapt(timm_vit(), config, moved=True)
    x = inputs(count=5)
    whole = model(x)
    parts = torch.cat([model(x[:2]), model(x[2:])])
    torch.testing.assert_close(parts, whole)
    assert torch.equal(model(x), whole)
    assert all(not block._forward_pre_hooks and not block._forward_hooks for block in model.blocks)


class TwoViews(nn.Module):
    """A backbone that sends two images through its blocks in one forward pass."""

    def __init__(self):
        super().__init__()
        self.vit = timm_vit()

    def forward(self, x):
        return self.vit(x) + 2 * self.vit(x.flip(3))


@BOTH
def test_vpt_starts_every_pass_through_the_blocks_with_its_own_prompts(config):
    base = TwoViews()
    model, _ = adapt(base, config, moved=True)
    ours = [p.detach().clone() for a in adapters(model).values() for p in a.parameters()]
    written = WrittenOut(copy.deepcopy(base.vit), ours)
    x = inputs()
    torch.testing.assert_close(model(x), written(x) + 2 * written(x.flip(3)))


@BOTH
def test_vpt_initial_values_are_uniform_in_the_papers_bound(config):
    base = timm_vit(embed_dim=64, num_heads=2)
    model, _ = adapt(base, config | {'num_prompts': 50})
    bound = math.sqrt(6 / (3 * 8 * 8 + 64))
    for adapter in adapters(model).values():
        assert 0.95 * bound < adapter.tokens.abs().max() <= bound
        assert abs(float(adapter.tokens.detach().std()) - bound / math.sqrt(3)) < 0.05 * bound
    seeds = [
        next(iter(adapters(adapt(base, config, seed=s)[0]).values())).tokens for s in (0, 0, 1)
    ]
    assert torch.equal(seeds[0], seeds[1]) and not torch.equal(seeds[0], seeds[2])


@BOTH
def test_vpt_dropout_is_of_the_prompts_and_travels(config, tmp_path):
    base = timm_vit()
    model, plan = adapt(base, config | {'dropout': 0.5}, moved=True)
    assert_travels(base, model, plan, inputs(), tmp_path)
    adapter = next(iter(adapters(model).values())).train()
    x = torch.ones(100, 2, 8, dtype=torch.float64)
    longer = adapter.appended(x)
    assert torch.equal(longer[:, :2], x)  # the image's own tokens stay
    kept = longer[:, 2:] != 0
    assert 0.45 < kept.double().mean() < 0.55
    torch.testing.assert_close(longer[:, 2:][kept], (2 * adapter.tokens).expand(100, -1, -1)[kept])
    rebuilt = copy.deepcopy(base)
    build_adapters(rebuilt, model.state_dict())
    assert {a.dropout for a in adapters(rebuilt).values()} == {0.5}


@BOTH
def test_vpt_under_recomputation_inside_the_blocks_has_the_same_gradients(config):
    base = timm_vit()
    gradients = []
    for again in (False, True):
        model, _ = adapt(base, config)
        if again:
            for block in model.blocks:
                plain = block.attn.forward
                block.attn.forward = lambda x, f=plain, **_: checkpoint(f, x, use_reentrant=False)
        model(inputs()).square().sum().backward()
        gradients.append([p.grad for a in adapters(model).values() for p in a.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_vpt_deep_under_recomputation_of_the_blocks_has_the_same_gradients():
    base = timm_vit()
    gradients = []
    for again in (False, True):
        model, _ = adapt(base, DEEP)
        model.set_grad_checkpointing(again)
        model.train()(inputs()).square().sum().backward()
        gradients.append([p.grad for a in adapters(model).values() for p in a.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_vpt_shallow_refuses_recomputation_of_the_blocks():
    model, _ = adapt(timm_vit(), SHALLOW)
    expected = model(inputs())
    model.set_grad_checkpointing(True)
    with pytest.raises(PlanError, match='switch grad_checkpointing off, or use vpt_deep'):
        model(inputs())
    with torch.no_grad():  # nothing is computed again there
        torch.testing.assert_close(model(inputs()), expected)


@BOTH
def test_vpt_refuses_blocks_whose_forward_was_replaced(config):
    """mmengine's activation_checkpointing binds the plain forward: prompts would be left out."""
    model = tiny()
    plan = plan_for(model, config)
    owner = model if config is SHALLOW else model.blocks[1]
    owner.forward = owner.forward
    with pytest.raises(PlanError, match='activation_checkpointing'):
        apply_plan(model, plan)
    assert adapters(model) == {}


def of_timm(name, **options):
    sizes = dict(embed_dim=16, depth=2, num_heads=2, img_size=SIZE, patch_size=8, num_classes=0)
    return timm.create_model(name, **{**sizes, **options}).double().eval()


@BOTH
@pytest.mark.parametrize(
    'build',
    [TinySwin, lambda: of_timm('beit_base_patch16_224')],
    ids=['windows', 'BEiT'],
)
def test_vpt_refuses_blocks_that_know_positions(config, build):
    with pytest.raises(PlanError, match='relative_position_bias_table: the blocks .* know the pos'):
        plan_for(build(), config)


@BOTH
@pytest.mark.parametrize('name', ['vit_small_patch16_dinov3', 'eva02_base_patch14_224'])
def test_vpt_refuses_rotary_embeddings_in_the_first_forward(config, name):
    """timm hands them to the blocks from outside: they are seen when a block is called."""
    model, _ = adapt(of_timm(name), config)
    with pytest.raises(PlanError, match='called with rope beside the tokens'):
        model(inputs())


@BOTH
def test_vpt_refuses_what_is_no_sequence_of_tokens(config):
    model, _ = adapt(tiny(), config)
    model.blocks[0].register_forward_pre_hook(lambda _, args: (args[0][..., :7],), prepend=True)
    with pytest.raises(
        PlanError, match=r'called with \(3, 5, 7\): prompts need tokens \[B, N, 8\]'
    ):
        model(images(3, torch.float64)[0])


@BOTH
def test_vpt_refuses_encoder_layers_that_take_tokens_first(config):
    layers = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False
    )
    model = nn.Sequential(nn.Conv2d(3, 8, 4), layers)
    with pytest.raises(PlanError, match='tokens first'):
        plan_for(model, config)


@BOTH
def test_vpt_refuses_a_backbone_without_a_patch_convolution(config):
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    with pytest.raises(PlanError, match='by no convolution'):
        plan_for(layers, config)


@BOTH
def test_vpt_does_not_merge_and_says_so(config):
    model, _ = adapt(tiny(), config)
    with pytest.raises(PlanError, match='do not merge'):
        merge_adapters(model)


@BOTH
@pytest.mark.parametrize(
    ('setting', 'value', 'message'),
    [
        ('num_prompts', 0, 'num_prompts=0: expected a count'),
        ('num_prompts', 1.5, 'num_prompts=1.5: expected an integer'),
        ('num_prompts', True, 'num_prompts=True: expected an integer'),
        ('dropout', 1.0, 'dropout=1.0: expected a probability'),
        ('dropout', -0.1, 'dropout=-0.1: expected a probability'),
        ('dropout', 'a', "dropout='a': expected a finite number"),
    ],
)
def test_vpt_refuses_settings_out_of_range(config, setting, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_method(config | {setting: value})


@BOTH
def test_vpt_refuses_blocks_that_are_lists(config):
    """Nothing calls a list, so prompts in front of one would never be seen."""
    model = tiny()
    model.blocks = nn.ModuleList(nn.ModuleList([b.attn, b.mlp]) for b in model.blocks)
    with pytest.raises(PlanError, match=r'blocks\.0: .* lists of parts'):
        plan_for(model, config)
