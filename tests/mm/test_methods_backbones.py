"""Every method through the hook on mmseg's ViT and on Swin: one whole life a test.

`test_methods_runs` holds the same laws one by one on mmpretrain's ViT.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import Runner

from cdra_mm.core import CDRAError, Plan, PlanError, adapters
from cdra_mm.methods import METHODS
from cdra_mm.mm.checkpoints.record import base_state
from cdra_mm.mm.export.merging import merge_checkpoint

from . import test_methods_runs as plain_vit
from . import toy
from .test_life_cycle import assert_same, weights
from .test_methods_runs import MERGING

STAGES = dict(embed_dims=8, depths=[1, 2], num_heads=[2, 2])
SWIN: dict[str, Any] = dict(window_size=4, out_indices=(1,), drop_path_rate=0.0)
# By name: task, backbone, width of what its head gets.
BACKBONES: dict[str, tuple[str, dict[str, Any], int]] = {
    'mmseg ViT': (
        'seg',
        dict(
            type='mmseg.VisionTransformer',
            img_size=(toy.SIZE, toy.SIZE),
            patch_size=8,
            embed_dims=16,
            num_layers=2,
            num_heads=2,
            mlp_ratio=2,
        ),
        16,
    ),
    'mmseg Swin': (
        'seg',
        dict(
            type='mmseg.SwinTransformer',
            pretrain_img_size=toy.SIZE,
            strides=(4, 2),
            mlp_ratio=2,
            **STAGES,
            **SWIN,
        ),
        16,
    ),
    'mmpretrain Swin': (
        'cls',
        dict(type='mmpretrain.SwinTransformer', arch=STAGES, img_size=toy.SIZE, **SWIN),
        16,
    ),
}
STARTS_AS_THE_BASE = set(METHODS) - {'mlp', 'vpt_shallow', 'vpt_deep', 'rlrr', 'noah', 'mona'}
# What cannot apply, and why.
REFUSED = {
    **{
        (backbone, method): 'know the positions of their tokens.*use another method'
        for backbone in ('mmseg Swin', 'mmpretrain Swin')
        for method in ('vpt_shallow', 'vpt_deep', 'noah')
    },
    ('mmseg ViT', 'spt_adapter'): 'MultiheadAttention reads this weight.*use lora or spt_lora',
}


@HOOKS.register_module(force=True)
class KeepFirstOutput(Hook):
    """Keeps what the backbone says when training begins; runs after the plan was applied."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        runner.first_output = output(runner.model.backbone)


def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 3, toy.SIZE, toy.SIZE, generator=generator)


@torch.no_grad()
def output(backbone: torch.nn.Module) -> torch.Tensor:
    training = backbone.training
    backbone.eval()
    (y,) = backbone(image())
    backbone.train(training)
    return y


def fresh_backbone(config: dict[str, Any], path: str) -> torch.nn.Module:
    """A backbone with the weights of a file that was made here at first."""
    with DefaultScope.overwrite_default_scope(config['type'].partition('.')[0]):
        backbone = MODELS.build(config)
    torch.manual_seed(7)
    for parameter in backbone.parameters():  # no bias is zero, no norm is 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    torch.save({'state_dict': backbone.state_dict()}, path)
    return backbone


def config(folder, method, name, base, **options):
    task, backbone, width = BACKBONES[name]
    cfg = plain_vit.config(folder, method, task, **options)
    cfg.model.backbone = dict(backbone, init_cfg=dict(type='Pretrained', checkpoint=base))
    (cfg.model.decode_head if task == 'seg' else cfg.model.head).in_channels = width
    if task == 'cls':
        cfg.model.neck = dict(type='GlobalAveragePooling')
    cfg.test_dataloader.dataset.size = 1
    cfg.custom_hooks = [dict(type='KeepFirstOutput')]
    return cfg


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('method', METHODS)
def test_life_of_a_method_on_a_backbone(name, method, tmp_path):
    """Start, what is trained, resumption, loading, merging; or a refusal that says why."""
    path = str(tmp_path / 'base.pth')
    plain = fresh_backbone(BACKBONES[name][1], path)
    cfg = config(tmp_path, method, name, path)
    if (name, method) in REFUSED:
        with pytest.raises(PlanError, match=REFUSED[name, method]):
            toy.train(cfg)
        return
    runner = toy.train(cfg)
    backbone = runner.model.backbone
    if method in STARTS_AS_THE_BASE:
        torch.testing.assert_close(runner.first_output, output(plain), rtol=1e-5, atol=1e-6)

    own = dict(backbone.named_parameters())
    trained = {n for n, p in own.items() if p.requires_grad}
    if method != 'full':
        plan = Plan.from_json((tmp_path / 'run/cdra_plan.json').read_text())
        assert plan.num_trainable == sum(own[n].numel() for n in trained)
    base, after = plain.state_dict(), base_state(backbone)
    moved = {key for key in after if not torch.equal(after[key], base[key])}
    assert moved == trained & set(after)
    optimized = {id(p) for g in runner.optim_wrapper.optimizer.param_groups for p in g['params']}
    assert optimized == {id(p) for p in runner.model.parameters() if p.requires_grad}

    middle = str(tmp_path / 'run/iter_2.pth')
    again = config(tmp_path, method, name, path, work_dir=str(tmp_path / 'again'), resume=True)
    again.load_from = middle
    resumed = toy.train(again)
    assert resumed.iter == 4
    assert_same(weights(resumed), weights(runner))

    end = str(tmp_path / 'run/iter_4.pth')
    cfg = config(tmp_path, method, name, path, work_dir=str(tmp_path / 'test'), load_from=end)
    tested = Runner.from_cfg(cfg)
    tested.test()
    assert_same(weights(tested), weights(runner))

    if method not in MERGING:
        with pytest.raises(CDRAError, match='does not merge|do not merge|plain|no adapters'):
            merge_checkpoint(cfg, end)
        return
    merged = merge_checkpoint(cfg, end)
    assert merged.num_adapters == len(adapters(backbone))
    keys = {k.removeprefix('backbone.') for k in merged.checkpoint['state_dict']}
    assert {key for key in keys if not re.match(r'(decode_)?head\.', key)} == set(base)
    y = output(merged.model.backbone)
    torch.testing.assert_close(y, output(backbone), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(y, output(plain), atol=1e-3)
