"""Further classes of mmpretrain and mmseg, to which no line of this package speaks: scored right.

Those of `docs/backbones.md` that are quick to build. Some hold weights that cannot be scored in
one pass; all must equal the loop over single samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from mmpretrain.models import backbones as mmpretrain
from mmseg.models import backbones as mmseg
from torch import Tensor, nn

from cdra_mm.core import (
    apply_plan,
    estimate_scores,
    find_targets,
    merge_adapters,
    plan_from_masks,
    remove_adapters,
)
from tests.core.problems import move
from tests.models import spread
from tests.reference.scores import mean_squares, one_by_one

from .test_backbones_families import losses

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=24)
VIT = dict(arch=ARCH, img_size=32, patch_size=8)
TWINS: dict[str, Any] = dict(
    embed_dims=[8, 8, 16, 16],
    depths=[1, 1, 1, 1],
    num_heads=[1, 2, 2, 2],
    patch_sizes=[4, 2, 2, 2],
    strides=[4, 2, 2, 2],
    mlp_ratios=[2, 2, 2, 2],
    sr_ratios=[4, 2, 1, 1],
)
MIT: dict[str, Any] = dict(
    embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], sr_ratios=[4, 2, 1, 1]
)
T2T: dict[str, Any] = dict(
    t2t_cfg=dict(token_dims=8, use_performer=False),
    layer_cfgs=dict(num_heads=2, feedforward_channels=24),
)
TNT: dict[str, Any] = dict(
    embed_dims_outer=16, embed_dims_inner=8, num_layers=2, num_heads_outer=2, num_heads_inner=2
)

# By name: what builds it, the side of its images, and how many parameters are scored one by one.
TRIED: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    'MiT': (lambda: mmseg.MixVisionTransformer(**MIT), 32, 0),
    'Twins-PCPVT': (lambda: mmseg.PCPVT(**TWINS, out_indices=(0, 1, 2, 3)), 64, 0),
    'Twins-PCPVT of mmpretrain': (lambda: mmpretrain.PCPVT(TWINS, out_indices=(0, 1, 2, 3)), 64, 0),
    'PVT v2': (
        lambda: timm.create_model(
            'pvt_v2_b0', depths=(1,) * 4, embed_dims=(8,) * 4, num_heads=(2,) * 4, num_classes=0
        ),
        64,
        0,
    ),
    'Twins-SVT': (lambda: mmpretrain.SVT(dict(**TWINS, window_sizes=[2] * 4)), 64, 0),
    'SAM ViT': (
        lambda: mmpretrain.ViTSAM(
            dict(**ARCH, global_attn_indexes=[1]),
            img_size=32,
            patch_size=8,
            window_size=2,
            out_channels=8,
        ),
        32,
        0,
    ),
    'RevViT': (lambda: mmpretrain.RevVisionTransformer(**VIT), 32, 0),
    'DeiT III': (lambda: mmpretrain.DeiT3(**VIT), 32, 4),
    'DeiT distilled': (
        lambda: mmpretrain.DistilledVisionTransformer(**VIT, out_type='cls_token'),
        32,
        0,
    ),
    'T2T-ViT': (lambda: mmpretrain.T2T_ViT(img_size=32, embed_dims=16, num_layers=2, **T2T), 32, 0),
    'MViT': (
        lambda: mmpretrain.MViT(
            dict(embed_dims=8, num_layers=2, num_heads=1, downscale_indices=[1]),
            img_size=32,
            out_scales=(0, 1),
        ),
        32,
        0,
    ),
    'DaViT': (
        lambda: mmpretrain.DaViT(
            dict(embed_dims=8, depths=[1, 1], num_heads=[2, 2]), window_size=2, out_indices=(0, 1)
        ),
        32,
        0,
    ),
    'MixMIM': (
        lambda: mmpretrain.MixMIMTransformer(
            dict(embed_dims=8, depths=[1] * 4, num_heads=[2] * 4), img_size=64, window_size=[2] * 4
        ),
        64,
        0,
    ),
    'TNT': (lambda: mmpretrain.TNT(TNT, img_size=32, patch_size=16), 32, 0),
}


class Probe(nn.Module):
    """A backbone whose outputs, however they are nested, become one vector per sample."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([output.flatten(1) for output in tensors(self.backbone(x))], 1)


def tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in tensors(output)]


@pytest.mark.parametrize('kind', TRIED)
def test_tried_backbones_scores_equal_the_loop_over_single_samples(kind):
    make, size, num_alone = TRIED[kind]
    torch.manual_seed(0)
    model = Probe(make())
    spread(model)
    model = model.double().eval().requires_grad_(False)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    batches = [(x, torch.zeros(2))]
    expected = mean_squares(model, one_by_one(batches), losses, find_targets(model))
    told: list[str] = []
    scores = estimate_scores(model, batches, losses, warn=told.append)
    # Relative to all: some gradients are zero but for rounding (a bias of the keys, in MViT).
    largest = max(float(score.max()) for score in expected.values())
    for name, score in scores.items():
        error = (score.double() - expected[name]).abs()
        assert bool((error <= 1e-4 * expected[name] + 1e-9 * largest).all()), name
    assert [int(line.split()[0]) for line in told] == ([num_alone] if num_alone else [])


@pytest.mark.parametrize('kind', ['Twins-PCPVT of mmpretrain', 'PVT v2'])
def test_tried_keys_and_values_in_one_matrix_are_adapted_apart(kind):
    make, size, _ = TRIED[kind]
    torch.manual_seed(0)
    model = Probe(make()).double().eval()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    parts = [name for name in find_targets(model) if '.kv.weight:' in name]
    assert [name[-1] for name in parts] == ['k', 'v'] * 4
    for part in parts[:2]:
        weight = model.get_parameter(part.partition(':')[0])
        before, half = weight.clone(), len(weight) // 2
        mask = torch.ones(half, weight.shape[1], dtype=torch.bool)
        apply_plan(model, plan_from_masks({part: mask}, rank_rule=1))
        move(model)
        expected = model(x)
        merge_adapters(model)
        remove_adapters(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-8, atol=1e-8)
        changed = (model.get_parameter(part.partition(':')[0]) != before).any(1)
        assert changed.tolist() == [part.endswith('k')] * half + [part.endswith('v')] * half
