"""Merging and exporting models of other channels and heads: what is compared, and what it shows."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.models import FCNHead
from mmseg.registry import MODELS
from torch.nn import functional as F

from cdra_mm.core import CheckpointError, ConfigError, apply_plan, plan_from_masks, remove_adapters
from cdra_mm.mm.export import merging
from cdra_mm.mm.export.formats import FORMATS, Export
from cdra_mm.mm.export.outputs import Outputs, difference, outputs_of, random_image
from tests.core.problems import move, random_masks

from .toy import SIZE, config


@MODELS.register_module(force=True)
class NeedsSamples(FCNHead):
    """Cannot be called on features alone, as the heads of MaskFormer and Mask2Former cannot."""

    def forward(self, x, batch_data_samples):
        return super().forward(x)


@MODELS.register_module(force=True)
class Drawing(FCNHead):
    """Draws random numbers in evaluation too."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, training=True)


def of(folder, task='seg', channels=3, head='FCNHead', backbone=None):
    """The config of a toy model."""
    cfg = config(folder, task)
    cfg.model.backbone.in_channels = channels
    cfg.model.backbone.init_cfg = None
    # mmengine normalises images of one and three channels only.
    known = {'mean': [30.0] * channels, 'std': [60.0] * channels} if channels < 6 else {}
    cfg.model.data_preprocessor.update({'mean': None, 'std': None, **known})
    if task == 'seg':
        cfg.model.decode_head.type = head
    cfg.model.backbone.update(backbone or {})
    return cfg


def trained(cfg, folder, change=lambda model: None):
    """A checkpoint of the config's model with adapters away from zero."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    apply_plan(model.backbone, plan_from_masks(random_masks(model.backbone), rank_rule=2))
    move(model.backbone)
    change(model)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, folder / 'a.pth')
    return str(folder / 'a.pth')


@pytest.mark.parametrize('task', ['seg', 'cls'])
@pytest.mark.parametrize('channels', [1, 6])
def test_merging_asks_the_model_for_its_channels(task, channels, tmp_path):
    cfg = of(tmp_path, task, channels)
    merged = merging.merge_checkpoint(cfg, trained(cfg, tmp_path))
    assert merged.image.shape == (1, channels, SIZE, SIZE)
    assert merged.compared == 'output' and 0 < merged.difference < 1e-5 * merged.scale


def test_merging_compares_features_where_the_head_asks_for_samples(tmp_path):
    cfg = of(tmp_path, head='NeedsSamples')
    merged = merging.merge_checkpoint(cfg, trained(cfg, tmp_path))
    assert merged.compared == 'feature' and 0 < merged.difference < 1e-5 * merged.scale
    line, _ = FORMATS['merged'](Export(cfg, str(tmp_path / 'a.pth'), tmp_path / 'out.pth'))
    assert 'a feature of backbone and neck' in line and 'batch_data_samples' in line


def test_merging_compares_features_where_all_outputs_are_zero(tmp_path):
    def silence(model):
        torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
        torch.nn.init.zeros_(model.decode_head.conv_seg.bias)

    cfg = of(tmp_path)
    merged = merging.merge_checkpoint(cfg, trained(cfg, tmp_path, silence))
    assert merged.compared == 'feature' and merged.scale > 0.1


def test_merging_draws_the_same_numbers_for_both_models(tmp_path):
    cfg = of(tmp_path, head='Drawing')
    path = trained(cfg, tmp_path)
    merged = merging.merge_checkpoint(cfg, path)
    assert merged.compared == 'output' and 0 < merged.difference < 1e-5 * merged.scale


def test_merging_that_changes_the_outputs_is_refused(tmp_path, monkeypatch):
    cfg = of(tmp_path)
    path = trained(cfg, tmp_path)
    monkeypatch.setattr(merging, 'merge_adapters', lambda backbone: None)
    monkeypatch.setattr(merging, 'remove_adapters', partial(remove_adapters, discard=True))
    with pytest.raises(CheckpointError, match='merging changes the outputs by'):
        merging.merge_checkpoint(cfg, path)


def test_merging_a_diverged_model_is_refused(tmp_path):
    def diverge(model):
        torch.nn.init.constant_(model.backbone.ln1.weight, float('nan'))

    cfg = of(tmp_path)
    with pytest.raises(CheckpointError, match='is not finite, so its run has diverged'):
        merging.merge_checkpoint(cfg, trained(cfg, tmp_path, diverge))


def test_merging_takes_a_model_that_throws_its_buffers_away(tmp_path):
    """Swin v2 makes tables of its own when it loads a state dict."""
    cfg = of(tmp_path, 'cls')
    arch = dict(embed_dims=8, depths=[1, 1], num_heads=[2, 2], extra_norm_every_n_blocks=0)
    cfg.model.backbone = dict(
        type='mmpretrain.SwinTransformerV2',
        arch=arch,
        img_size=SIZE,
        window_size=[4, 4],
        out_indices=(1,),
    )
    cfg.model.neck = dict(type='GlobalAveragePooling')
    cfg.model.head.in_channels = 16
    path = trained(cfg, tmp_path)
    merged = merging.merge_checkpoint(cfg, path)
    assert 0 < merged.difference < 1e-5 * merged.scale

    state = torch.load(path)
    del state['state_dict']['backbone.stages.0.blocks.0.norm1.weight']
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r'does not fit.*it has no .*norm1\.weight'):
        merging.merge_checkpoint(cfg, path)


def test_outputs_are_each_measured_by_their_own_size():
    large, small = torch.tensor([1000.0]), torch.tensor([1e-3])
    before = Outputs([large, small], 'output')
    assert difference(before, Outputs([large + 0.1, small], 'output'))[1] == 1000.0
    worst, scale = difference(before, Outputs([large + 0.1, small + 1e-5], 'output'))
    assert worst == pytest.approx(1e-5, rel=0.1) and scale == pytest.approx(1e-3)


def test_outputs_that_are_infinite_at_the_same_places_agree():
    masked = torch.tensor([float('-inf'), 1.0])
    other = torch.tensor([2.0, float('-inf')])
    same, changed = Outputs([masked], 'output'), Outputs([other], 'output')
    assert difference(same, same) == (0.0, 1.0)
    assert not difference(same, changed)[0] <= 1.0


class Fixed(torch.nn.Module):
    """Takes images of 8 pixels a side."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2))

    def forward(self, x, mode):
        return self.backbone(x)


def test_outputs_name_what_no_image_fits():
    assert random_image(Fixed(), (8, 8)).shape == (1, 3, 8, 8)  # no convolution to ask
    assert outputs_of(Fixed(), torch.ones(1, 3, 8, 8)).kind == 'output'
    with pytest.raises(ConfigError, match='takes no image of 9 x 9 pixels .*set its img_size'):
        random_image(Fixed(), (9, 9))


def test_onnx_file_of_six_channels(tmp_path):
    pytest.importorskip('onnxscript', reason='onnxscript (extra export) is not installed')
    runtime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    cfg = of(tmp_path, channels=6)
    asked = Export(cfg, trained(cfg, tmp_path), tmp_path / 'a.onnx')
    (line,) = FORMATS['onnx'](asked)
    assert f'images [B, 6, {SIZE}, {SIZE}]' in line
    session = runtime.InferenceSession(tmp_path / 'a.onnx')
    assert session.get_inputs()[0].shape[1] == 6
    metadata = session.get_modelmeta().custom_metadata_map
    assert 'channels' not in metadata


@pytest.mark.parametrize('stage', ['calling', 'tracing'])
def test_onnx_refuses_a_model_that_cannot_be_traced(stage, tmp_path, monkeypatch):
    pytest.importorskip('onnxscript', reason='onnxscript (extra export) is not installed')
    from cdra_mm.mm.export import onnx_export

    cfg = of(tmp_path, head='NeedsSamples' if stage == 'calling' else 'FCNHead')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    message = 'cannot be called on 3 x 32 x 32 images alone .*batch_data_samples'
    if stage == 'tracing':
        message = 'torch cannot export EncoderDecoder to ONNX .*no rule for this'
        monkeypatch.setattr(torch.onnx, 'export', fail)
    with pytest.raises(ConfigError, match=message):
        onnx_export.export_onnx(model, tmp_path / 'a.onnx', (3, SIZE, SIZE), {})
    assert not (tmp_path / 'a.onnx').exists()


def fail(*_, **__):
    raise ValueError('no rule for this\nand a long trace')
