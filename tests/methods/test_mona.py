"""Mona: convolutions over the tokens' grid, equal to blocks that are written out."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from cdra_mm.core import (
    ConfigError,
    PlanError,
    adapters,
    apply_plan,
    merge_adapters,
    remove_adapters,
)
from cdra_mm.methods import make_method
from cdra_mm.methods.token_grid import TokenGrid, convolutions_in_front, grid_of
from tests.methods.adapted import (
    adapt,
    assert_trains_exactly,
    assert_travels,
    inputs,
    plan_for,
    timm_vit,
    tiny,
)
from tests.models import MODELS, TinySwin, images, spread

CONFIG = {'type': 'mona', 'bottleneck': 4, 'dropout': 0.0}
NAMES = (
    'norm_weight', 'norm_bias', 'gamma', 'gamma_x', 'down', 'down_bias', 'conv3', 'conv5', 'conv7',
    'project', 'project_bias', 'up', 'up_bias',
)  # fmt: skip


class WrittenOut(nn.Module):
    """One adapter with layers of torch's own, as the paper's Figure 3 and the code have them."""

    def __init__(self, adapter, place):
        super().__init__()
        width, hidden = adapter.gamma.shape[1], adapter.down.shape[1]
        self.norm = nn.LayerNorm(width)
        self.gamma, self.gamma_x = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.convs = nn.ModuleList(
            nn.Conv2d(hidden, hidden, k, padding=k // 2, groups=hidden) for k in (3, 5, 7)
        )
        self.project = nn.Conv2d(hidden, hidden, 1)
        self.double()
        with torch.no_grad():
            for own, name in zip(self.own(), NAMES, strict=True):
                own.copy_(getattr(adapter, name)[place].view(own.shape))
            for conv, bias in zip(self.convs, adapter.conv_bias[place], strict=True):
                conv.bias.copy_(bias)

    def own(self):
        """In the order of `NAMES`."""
        norm, down, up, project = self.norm, self.down, self.up, self.project
        return [
            *(norm.weight, norm.bias, self.gamma, self.gamma_x, down.weight, down.bias),
            *(conv.weight for conv in self.convs),
            *(project.weight, project.bias, up.weight, up.bias),
        ]

    def forward(self, x, prefix, size):
        h = self.down(self.norm(x) * self.gamma + x * self.gamma_x)
        maps = h[:, prefix:].transpose(1, 2).unflatten(2, size)
        maps = sum(conv(maps) for conv in self.convs) / 3 + maps
        h = torch.cat([h[:, :prefix], maps.flatten(2).transpose(1, 2)], 1)
        h = h + F.linear(h, self.project.weight.flatten(1), self.project.bias)
        return x + self.up(F.gelu(h))


class WrittenOutViT(nn.Module):
    """timm's ViT with the adapters between its branches."""

    def __init__(self, vit, pairs, prefix, size):
        super().__init__()
        self.vit, self.prefix, self.size = vit.requires_grad_(False), prefix, size
        self.pairs = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def forward(self, x):
        vit, size = self.vit, (self.prefix, self.size)
        x = vit._pos_embed(vit.patch_embed(x))
        for block, (first, second) in zip(vit.blocks, self.pairs, strict=True):
            x = first(x + block.drop_path1(block.ls1(block.attn(block.norm1(x)))), *size)
            x = second(x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), *size)
        return vit.forward_head(vit.norm(x))


def pairs_of(model):
    return [[WrittenOut(a, 0), WrittenOut(a, 1)] for a in adapters(model).values()]


@pytest.mark.parametrize(
    ('options', 'prefix', 'size'),
    [
        ({}, 1, (2, 2)),
        (dict(init_values=0.3, global_pool='avg'), 1, (2, 2)),
        (dict(img_size=(16, 24), reg_tokens=3, global_pool='avg'), 4, (2, 3)),
        (dict(class_token=False, global_pool='avg', img_size=(32, 16)), 0, (4, 2)),
    ],
    ids=['class token', 'layer scale', 'registers, not square', 'no class token'],
)
def test_mona_equals_blocks_that_are_written_out(options, prefix, size):
    base = timm_vit(**options)
    model, _ = adapt(base, CONFIG, moved=True)
    written = WrittenOutViT(copy.deepcopy(base), pairs_of(model), prefix, size)
    x = torch.randn(2, 3, 8 * size[0], 8 * size[1], dtype=torch.float64)
    torch.testing.assert_close(model(x), written(x))
    assert not torch.allclose(model(x), base(x))
    for twin in (model, written):
        twin(x).square().sum().backward()
    last = len(written.pairs) - 1
    for i, adapter in enumerate(adapters(model).values()):
        pairs = [list(own) for own in zip(*(one.own() for one in written.pairs[i]), strict=True)]
        ours = [getattr(adapter, name) for name in NAMES]
        for name, a, b in zip(NAMES, ours, pairs, strict=True):
            expected = torch.stack([other.grad.view(a.shape[1:]) for other in b])
            torch.testing.assert_close(a.grad, expected)
            # Of the last block the class token alone is read, which no convolution reaches.
            read = i < last or options.get('global_pool') == 'avg' or not name.startswith('conv')
            assert bool(a.grad.any()) is read, name
        biases = [[conv.bias.grad for conv in one.convs] for one in written.pairs[i]]
        expected = torch.stack([torch.stack(own) for own in biases])
        torch.testing.assert_close(adapter.conv_bias.grad, expected)


def test_mona_of_a_map_and_of_windows_equals_blocks_that_are_written_out():
    base = TinySwin(drop=0.0).double().eval()
    model, _ = adapt(base, CONFIG, moved=True)
    pairs = pairs_of(model)
    written = copy.deepcopy(base)
    blocks = [*written.stages[0]['blocks'], *written.stages[1]['blocks']]

    def around(adapter, x):
        return adapter(x.flatten(1, 2), 0, x.shape[1:3]).view(x.shape)

    for block, (first, second) in zip(blocks, pairs, strict=True):
        mlp, norm = block.mlp, block.norm2
        block.norm2, block.mlp = nn.Identity(), Zero()

        def forward(x, plain=block.forward, mlp=mlp, norm=norm, first=first, second=second):
            z = around(first, plain(x))
            return around(second, z + mlp(norm(z)))

        block.forward = forward
    x = images(2, torch.float64)[0]
    torch.testing.assert_close(model(x), written(x))


class Zero(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


@pytest.mark.parametrize('kind', MODELS)
def test_mona_starts_near_the_base_trains_what_it_declares_and_travels(kind, tmp_path):
    base, x = MODELS[kind]().double().eval(), images(3, torch.float64)[0]
    model, plan = adapt(base, CONFIG)
    change = (model(x) - base(x)).abs().max()
    assert 0 < change < 0.2 * base(x).abs().max()
    model, plan = adapt(base, CONFIG, moved=True)
    last = list(adapters(model).values())[-1]
    if kind != 'windowed':  # the class token alone is read: see above
        for name in ('conv3', 'conv5', 'conv7', 'conv_bias'):
            getattr(last, name).register_hook(lambda grad: grad + 1)
    assert_trains_exactly(base, model, plan, x)
    assert_travels(base, model, plan, x, tmp_path)


def test_mona_knows_the_grid_of_each_image():
    base = timm_vit(dynamic_img_size=True, global_pool='avg')
    model, _ = adapt(base, CONFIG, moved=True)
    pairs = pairs_of(model)
    for size in ((2, 2), (2, 5), (5, 2), (1, 3)):
        written = WrittenOutViT(copy.deepcopy(base), pairs, 1, size)
        x = torch.randn(1, 3, 8 * size[0], 8 * size[1], dtype=torch.float64)
        torch.testing.assert_close(model(x), written(x))


def test_mona_initial_values_are_those_of_the_code_and_follow_the_seed():
    base = timm_vit(embed_dim=64, num_heads=2)
    config = {'type': 'mona', 'bottleneck': 64}
    twins = [adapt(base, config, seed=seed)[0] for seed in (0, 0, 1)]
    first, same, other = (next(iter(adapters(twin).values())) for twin in twins)
    assert torch.equal(first.down, same.down) and not torch.equal(first.down, other.down)
    assert first.norm_weight.eq(1).all() and first.gamma_x.eq(1).all()
    assert first.gamma.eq(1e-6).all()
    assert not any(b.any() for b in (first.norm_bias, first.down_bias, first.up_bias))
    for matrix in (first.down, first.up):
        assert abs(float(matrix.detach().std()) - 0.02) < 0.001
    for values, fan_in in (
        (first.conv3, 9),
        (first.conv5, 25),
        (first.conv7, 49),
        (first.project, 64),
        (first.project_bias, 64),
        (first.conv_bias[:, 1], 25),
    ):
        bound = fan_in**-0.5
        assert 0.9 * bound < float(values.detach().abs().max()) <= bound


def test_mona_trains_as_many_parameters_as_its_formula_says():
    """Twice a block: 4 E of norm and scales, two matrices, 83 h of kernels, h^2 and biases."""

    def formula(width, hidden=64):
        matrices = 2 * hidden * width + hidden**2
        return 24 * (4 * width + matrices + 83 * hidden + 5 * hidden + width)

    for width, heads in ((768, 12), (192, 3)):  # ViT-B, DeiT-Ti
        with torch.device('meta'):
            model = VisionTransformer(embed_dim=width, num_heads=heads, num_classes=0)
        assert plan_for(model, {'type': 'mona'}).num_trainable == formula(width)
    assert formula(768) == 2_684_928 and formula(192) == 846_336


def test_mona_drops_hidden_units_in_training_only():
    base = timm_vit()
    model, _ = adapt(base, {**CONFIG, 'dropout': 0.5}, moved=True)
    x = inputs()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_mona_under_checkpointing_of_whole_blocks_has_the_same_gradients():
    gradients = []
    for again in (False, True):
        model, _ = adapt(timm_vit_of_seed(), CONFIG, moved=True)
        model.set_grad_checkpointing(again)
        model.train()
        model(inputs()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert_same_gradients_of(*gradients)


def timm_vit_of_seed():
    torch.manual_seed(4)
    return timm_vit(global_pool='avg')


def assert_same_gradients_of(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.any()
        torch.testing.assert_close(a, b)


def test_mona_in_half_precision_and_under_autocast_keeps_types():
    base = timm_vit().to(torch.bfloat16)
    model, _ = adapt(base, CONFIG, moved=True)
    x = inputs().to(torch.bfloat16)
    assert model(x).dtype == torch.bfloat16
    assert {p.dtype for a in adapters(model).values() for p in a.parameters()} == {torch.float32}
    model, _ = adapt(timm_vit().float(), CONFIG, moved=True)
    x = inputs().float()
    with torch.autocast('cpu', torch.bfloat16):
        y = model(x)
    torch.testing.assert_close(y.float(), model(x), atol=0.1, rtol=0.1)


def test_mona_taken_off_leaves_no_trace():
    base = timm_vit()
    model, _ = adapt(base, CONFIG)
    convolution = model.patch_embed.proj
    model(inputs())
    assert convolution._forward_hooks
    remove_adapters(model, discard=True)
    assert (
        not convolution._forward_hooks
        and vars(convolution).keys() == vars(base.patch_embed.proj).keys()
    )
    assert torch.equal(model(inputs()), base(inputs()))


def test_mona_does_not_merge_and_says_so():
    model, _ = adapt(tiny(), CONFIG)
    with pytest.raises(PlanError, match='do not merge.*needs them'):
        merge_adapters(model)


class PostNorm(nn.Module):
    """A ViT whose blocks norm behind their branches."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 4, 4)
        layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)]
        self.layers = nn.ModuleList(layers)
        spread(self)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x


class Parallel(nn.Module):
    """A block whose two branches read the same tokens."""

    def __init__(self, block):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = (
            block.norm1, block.attn, block.norm2, block.mlp
        )  # fmt: skip

    def forward(self, x):
        return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))


def test_mona_refuses_blocks_without_a_middle_by_name():
    model, _ = adapt(PostNorm(), CONFIG)
    with pytest.raises(PlanError, match='a TransformerEncoderLayer does not norm its tokens betw'):
        model.train()(images(2)[0])
    base = tiny()
    base.blocks = nn.ModuleList(Parallel(block) for block in base.blocks).double()
    model, _ = adapt(base, CONFIG)
    with pytest.raises(PlanError, match='a Parallel does not norm its tokens between'):
        model(images(2, torch.float64)[0])


def test_mona_refuses_blocks_that_compute_themselves_again():
    base = tiny()
    plan = plan_for(base, CONFIG)
    base.blocks[1].with_cp = True
    with pytest.raises(PlanError, match='switch with_cp off in the config of the backbone'):
        apply_plan(base, plan)
    assert adapters(base) == {}


def test_mona_refuses_tokens_without_a_grid():
    base = tiny()
    base.patch_embed = nn.Flatten()
    with pytest.raises(PlanError, match='TinyViT has no convolution before its transformer bl'):
        plan_for(base, CONFIG)
    with pytest.raises(PlanError, match='Conv2d has no transformer block: mona'):
        plan_for(nn.Conv2d(3, 8, 4), CONFIG)
    model, _ = adapt(timm_vit(patch_drop_rate=0.5), CONFIG)
    with pytest.raises(PlanError, match='called with 3 tokens, which do not fill a grid of 2 x 2'):
        model.train()(inputs())
    model, _ = adapt(timm_vit(), CONFIG)
    with pytest.raises(PlanError, match='the 5 tokens of a block lie in no grid that is known'):
        model.blocks[0](torch.randn(1, 5, 8, dtype=torch.float64))


def test_grid_is_the_one_that_is_nearest_to_the_block():
    convolution = nn.Conv2d(3, 8, 4, 4)
    tokens = torch.zeros(1, 7, 8)
    vars(convolution)['_cdra_map'] = (2, 2)
    assert grid_of(tokens, (), 8, convolution) == TokenGrid(3, 2, 2)
    assert grid_of(tokens, (None, True, (2, 3)), 8, convolution) == TokenGrid(1, 2, 3)
    assert grid_of(tokens, ([7, 1], (1, True)), 8, None) == TokenGrid(0, 7, 1)
    assert grid_of(torch.zeros(1, 3, 4, 8), (), 8, convolution) == TokenGrid(0, 3, 4)
    for other in (torch.zeros(1, 7, 9), torch.zeros(7, 8), None, [tokens]):
        with pytest.raises(PlanError, match=r'expected tokens \[B, N, 8\] or a map'):
            grid_of(other, (), 8, convolution)


def test_convolutions_in_front_are_those_before_the_first_block():
    assert convolutions_in_front(timm_vit()) == ['patch_embed.proj']
    assert convolutions_in_front(TinySwin()) == ['patch_embed']
    assert convolutions_in_front(nn.Conv2d(3, 8, 4)) == []


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(bottleneck=0), 'bottleneck=0: expected a count'),
        (dict(dropout=1.0), 'dropout=1.0: expected a probability'),
        (dict(kernel=3), "method 'mona' has no setting 'kernel'"),
    ],
)
def test_mona_refuses_settings_by_name(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_method({**CONFIG, **settings})
