"""The real classes of mmpretrain, mmseg and timm, tiny: found, scored, adapted, merged exactly."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from mmpretrain.models import (
    BEiTViT,
    SwinTransformer,
    SwinTransformerV2,
    VisionTransformer,
    ViTEVA02,
)
from mmseg.models import backbones as mmseg
from torch import Tensor, nn

from cdra_mm.core import (
    adapters,
    apply_plan,
    estimate_scores,
    find_targets,
    merge_adapters,
    plan_from_masks,
    remove_adapters,
)
from cdra_mm.core.model.families import FAMILIES as TABLE
from tests.core.problems import move
from tests.core.scoring.test_scores import assert_scores
from tests.models import spread
from tests.reference.layers import dense_state
from tests.reference.scores import mean_squares, one_by_one

SIZE = 32
ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=24)
MMPRETRAIN = dict(arch=ARCH, img_size=SIZE, patch_size=8, out_type='featmap', drop_path_rate=0.2)
MMSEG = dict(
    img_size=(SIZE, SIZE),
    patch_size=8,
    embed_dims=16,
    num_layers=2,
    num_heads=2,
    drop_path_rate=0.2,
)
STAGES = dict(embed_dims=8, depths=[2, 2], num_heads=[2, 2])
WINDOWS = dict(img_size=SIZE, drop_path_rate=0.2, out_indices=(0, 1))


def swin_of_mmseg(**options: Any) -> nn.Module:
    config = dict(pretrain_img_size=SIZE, mlp_ratio=2, strides=(4, 2), drop_path_rate=0.2)
    return mmseg.SwinTransformer(**STAGES, out_indices=(0, 1), **{**config, **options})


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    config = dict(embed_dim=16, depth=2, num_heads=2, img_size=SIZE, patch_size=8)
    config |= dict(num_classes=0, drop_path_rate=0.2)
    return lambda: timm.create_model(name, **{**config, **options})


def swin_of_timm(name: str) -> Callable[[], nn.Module]:
    config: dict[str, Any] = dict(embed_dim=8, depths=(2, 2), num_heads=(2, 2), img_size=SIZE)
    return lambda: timm.create_model(name, window_size=4, num_classes=0, **config)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    'mmpretrain ViT': lambda: VisionTransformer(**MMPRETRAIN),
    'mmpretrain DINOv2': lambda: VisionTransformer(**MMPRETRAIN, layer_scale_init_value=0.5),
    'mmpretrain DINOv2 giant': lambda: VisionTransformer(
        **MMPRETRAIN, layer_scale_init_value=0.5, layer_cfgs=dict(ffn_type='swiglu_fused')
    ),
    'mmpretrain BEiT': lambda: BEiTViT(**MMPRETRAIN),
    'mmpretrain BEiT without scales': lambda: BEiTViT(**MMPRETRAIN, layer_scale_init_value=0),
    'mmpretrain EVA-02': lambda: ViTEVA02(**MMPRETRAIN),
    'mmpretrain Swin': lambda: SwinTransformer(STAGES, **WINDOWS, window_size=4),
    'mmpretrain Swin with padding': lambda: SwinTransformer(
        STAGES, **WINDOWS, window_size=3, pad_small_map=True
    ),
    'mmpretrain Swin v2': lambda: SwinTransformerV2(
        dict(**STAGES, extra_norm_every_n_blocks=0), **WINDOWS, window_size=[4, 4]
    ),
    'mmseg ViT': lambda: mmseg.VisionTransformer(**MMSEG, mlp_ratio=2),
    'mmseg BEiT': lambda: mmseg.BEiT(**MMSEG, mlp_ratio=2),
    'mmseg MAE': lambda: mmseg.MAE(**MMSEG, mlp_ratio=2, init_values=0.5),
    'mmseg Swin': lambda: swin_of_mmseg(window_size=4),
    'mmseg Swin with padding': lambda: swin_of_mmseg(window_size=3),
    'timm ViT': of_timm('vit_tiny_patch16_224'),
    'timm DeiT distilled': of_timm('deit_tiny_distilled_patch16_224'),
    'timm DINOv2 with registers': of_timm('vit_small_patch14_reg4_dinov2'),
    'timm DINOv2 giant': of_timm('vit_giant_patch14_dinov2', mlp_ratio=3),
    'timm DINOv3': of_timm('vit_small_patch16_dinov3'),
    'timm DINOv3 with biases': of_timm('vit_small_patch16_dinov3_qkvb'),
    'timm DINOv3 plus': of_timm('vit_small_plus_patch16_dinov3'),
    'timm EVA-02': of_timm('eva02_tiny_patch14_224'),
    'timm EVA-02 base': of_timm('eva02_base_patch14_224'),
    'timm EVA': of_timm('eva_giant_patch14_224'),
    'timm BEiT': of_timm('beit_base_patch16_224'),
    'timm Swin': swin_of_timm('swin_tiny_patch4_window7_224'),
    'timm Swin v2': swin_of_timm('swinv2_tiny_window8_256'),
}
GATED = ('mmpretrain DINOv2 giant', 'mmpretrain EVA-02', 'timm DINOv2 giant', 'timm EVA-02')
KINDS = pytest.mark.parametrize('kind', FAMILIES)

# Parameters of the blocks that do not compete, by the name they bear or that of their owner.
TABLES = {'relative_position_bias_table', 'logit_scale', 'cpb_mlp'}


class Probe(nn.Module):
    """A backbone whose outputs become one vector per sample; it also copies what `train` breaks.

    mmseg's backbones override ``train`` without returning themselves.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self.backbone, 'forward_features'):
            outputs = self.backbone.forward_features(x)
        else:
            outputs = self.backbone(x)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        return torch.cat([output.flatten(1) for output in outputs], 1)


def build(kind: str, seed: int = 0) -> Probe:
    torch.manual_seed(seed)
    model = Probe(FAMILIES[kind]())
    spread(model)
    return model.double().eval()


def images(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    y = model(batch[0])
    weights = torch.sin(torch.arange(y.shape[1], dtype=y.dtype))
    return (y * weights).sum(1) + 0.1 * y.square().sum(1)


def adapt(model: nn.Module) -> None:
    """A low-rank adapter on every matrix, the first entry of every vector trained."""
    generator = torch.Generator().manual_seed(3)
    masks = {}
    for name, target in find_targets(model).items():
        mask = torch.zeros(target.shape, dtype=torch.bool)
        if mask.dim() == 2:
            rows = torch.randperm(mask.shape[0], generator=generator)[: mask.shape[0] // 2]
            cols = torch.randperm(mask.shape[1], generator=generator)[: mask.shape[1] // 2]
            mask[rows[:, None], cols] = True
        else:
            mask[0] = True
        masks[name] = mask
    apply_plan(model, plan_from_masks(masks, rank_rule=2, beta=2))
    move(model)


def load(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads a state; mmpretrain's Swin v2 throws its index buffers away while it does."""
    result = model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert not set(result.missing_keys) & {name for name, _ in model.named_parameters()}


@KINDS
def test_families_cover_their_blocks(kind):
    """Every parameter of a block competes, but for the tables of relative positions."""
    model = build(kind)
    targets = find_targets(model)
    covered: dict[str, int] = {}
    for target in targets.values():
        covered[target.path] = covered.get(target.path, 0) + target.numel
    owner = 'blocks' if any('.blocks.' in name for name in covered) else 'layers'
    block = re.compile(rf'backbone\.(\w+\.\d+\.)?{owner}\.\d+\.')
    inside = {n: p for n, p in model.named_parameters() if block.match(n)}
    rest = {name for name, p in inside.items() if covered.pop(name, 0) != p.numel()}
    assert all(TABLES & set(name.split('.')) for name in rest), sorted(rest)
    assert not covered  # nothing outside the blocks
    roles = {target.role for target in targets.values()}
    assert roles >= {'q', 'k', 'v', 'proj', 'norm', 'bias'}
    assert roles >= ({'w1', 'w2', 'w3'} if kind in GATED else {'fc1', 'fc2'})


def test_families_has_no_entry_that_nothing_uses():
    """But for those that tests/core, test_backbones_tried and test_backbones_modes cover."""
    modules = [module for kind in FAMILIES for module in build(kind).modules()]
    unused = [family.models for family in TABLE if not any(map(family.owns, modules))]
    assert unused == [
        'attention with q, k and v apart',
        'PVT and Twins of mmpretrain and timm',
        'vit-pytorch and what follows it, CROMA of torchgeo',
        'cross attention of CROMA and MONAI; attention of diffusers',
        'cross attention of vit-pytorch',
        'TinyViT, LeViT of mmpretrain and timm',
    ]


@KINDS
def test_families_scores_equal_the_loop_over_single_samples(kind):
    model = build(kind)
    model.requires_grad_(False)
    batches = [(images(3), torch.zeros(3)), (images(2) + 1, torch.zeros(2))]
    expected = mean_squares(model, one_by_one(batches), losses, find_targets(model))
    assert all(float(score.abs().max()) > 0 for score in expected.values())
    assert_scores(estimate_scores(model, batches, losses), expected)


@KINDS
def test_families_adapters_act_and_merge(kind):
    base, model = build(kind), build(kind)
    adapt(model)
    x = images()
    plain, with_grad = base(x).detach(), model(x)
    with torch.no_grad():
        without_grad = model(x)
        load(base, dense_state(model.state_dict()))
        expected = base(x)
    assert float((expected - plain).abs().max()) > 1e-3
    torch.testing.assert_close(with_grad, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(without_grad, expected, rtol=1e-8, atol=1e-8)

    with_grad.pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and bool(parameter.grad.any()), name

    twin = copy.deepcopy(model)
    merge_adapters(twin)
    torch.testing.assert_close(twin(x), expected, rtol=1e-8, atol=1e-8)
    remove_adapters(twin)
    assert not adapters(twin)
    load(base, twin.state_dict())
    torch.testing.assert_close(base(x), expected, rtol=1e-8, atol=1e-8)
