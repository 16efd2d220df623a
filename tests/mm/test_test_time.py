"""Test-time augmentation, of adapted and merged checkpoints, in OpenMMLab's way and in ours."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from cdra_mm.core import ConfigError, adapters
from cdra_mm.mm.export.merging import merge_checkpoint
from cdra_mm.mm.launch import plain_config
from cdra_mm.mm.rebuild import plain_model
from cdra_mm.mm.test_time import set_test_time_augmentation

from . import folders, toy

WRAPPERS = {'seg': 'SegTTAModel', 'cls': 'AverageClsScoreTTA'}


@pytest.fixture(scope='module', params=['seg', 'cls'])
def trained(request, tmp_path_factory):
    """A run, and its merged checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    cfg = folders.config(folder, request.param)
    toy.train(cfg)
    torch.save(merge_checkpoint(cfg, str(folder / 'run/iter_4.pth')).checkpoint, folder / 'm.pth')
    return request.param, folder, cfg


def evaluate(cfg: Config, checkpoint, folder, *, prepare=set_test_time_augmentation):
    """Metrics of a checkpoint, and the model that gave them."""
    cfg = Config(copy.deepcopy(cfg.to_dict()))
    prepare(cfg)
    cfg.load_from, cfg.work_dir = str(checkpoint), str(folder / 'tested')
    cfg.experiment_name = f'tta_{folder.name}_{next(toy.RUNS)}'
    runner = Runner.from_cfg(cfg)
    return runner.test(), runner.model


def test_augmented_metrics_are_the_same_adapted_and_merged(trained):
    task, folder, cfg = trained
    adapted, model = evaluate(cfg, folder / 'run/iter_4.pth', folder)
    assert type(model).__name__ == WRAPPERS[task]
    assert adapters(model.module.backbone)
    merged, model = evaluate(plain_config(cfg), folder / 'm.pth', folder)
    assert not adapters(model.module.backbone)
    assert adapted == pytest.approx(merged, abs=0.2)


def test_stock_way_works_with_the_hook_and_with_the_config_of_the_work_directory(trained):
    """As ``test.py --tta`` of mmseg and mmpretrain wraps a model."""
    task, folder, cfg = trained

    def prepare(config):
        config.model = dict(type=WRAPPERS[task], module=config.model)
        pipeline = config.test_dataloader.dataset.pipeline
        flips = [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)]
        views = dict(type='TestTimeAug', transforms=[flips, [pipeline[-1]]])
        config.test_dataloader.dataset.pipeline = [*pipeline[:-1], views]

    checkpoint = folder / 'run/iter_4.pth'
    ours, _ = evaluate(cfg, checkpoint, folder)
    for config in (cfg, Config.fromfile(folders.dumped(folder))):
        metrics, model = evaluate(config, checkpoint, folder, prepare=prepare)
        assert adapters(model.module.backbone)
        assert metrics == ours


def test_views_are_averaged_turned_back(trained):
    """The prediction of a view and of its mirror image make the augmented one."""
    task, folder, cfg = trained
    cfg = Config(copy.deepcopy(cfg.to_dict()))
    set_test_time_augmentation(cfg)
    cfg.load_from, cfg.work_dir = str(folder / 'run/iter_4.pth'), str(folder / 'views')
    cfg.experiment_name = f'views_{folder.name}_{next(toy.RUNS)}'
    runner = Runner.from_cfg(cfg)
    runner.call_hook('before_run')
    runner.load_or_resume()
    model = plain_model(runner).eval()
    loader = runner.build_dataloader(cfg.test_dataloader)
    batch = next(iter(loader))
    with torch.no_grad():
        plain, mirrored = (
            model.test_step({key: value[view] for key, value in batch.items()}) for view in (0, 1)
        )
        together = runner.model.eval().test_step(batch)
    for one, other, both in zip(plain, mirrored, together, strict=True):
        if task == 'cls':
            mean = (one.pred_score + other.pred_score) / 2
            torch.testing.assert_close(both.pred_score, mean)
        else:
            scores = (x.seg_logits.data.softmax(0) for x in (one, other))
            assert torch.equal(both.pred_sem_seg.data[0], sum(scores).argmax(0))
            assert torch.equal(both.gt_sem_seg.data, one.gt_sem_seg.data)


def test_the_way_of_the_config_is_kept(tmp_path):
    cfg = folders.config(tmp_path)
    cfg.tta_model = dict(type='SegTTAModel', data_preprocessor=None)
    cfg.tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[])]
    set_test_time_augmentation(cfg)
    assert cfg.model.type == 'SegTTAModel' and cfg.model.module.type == 'EncoderDecoder'
    assert cfg.test_dataloader.dataset.pipeline == cfg.tta_pipeline


def test_mirror_image_can_be_turned_back_whatever_a_pipeline_keeps(tmp_path):
    cfg = folders.config(tmp_path)
    cfg.test_dataloader.dataset.pipeline[-1].meta_keys = ('img_path', 'ori_shape')
    set_test_time_augmentation(cfg)
    (pack,) = cfg.test_dataloader.dataset.pipeline[-1]['transforms'][1]
    assert pack['meta_keys'] == ('img_path', 'ori_shape', 'flip', 'flip_direction')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(test_dataloader=None), 'has none: leave it out'),
        (dict(default_scope='mmdet'), 'not of mmdet: give the config a tta_model'),
    ],
)
def test_what_cannot_be_augmented_is_refused(change, message, tmp_path):
    cfg = folders.config(tmp_path)
    for key, value in change.items():
        cfg[key] = value
    with pytest.raises(ConfigError, match=message):
        set_test_time_augmentation(cfg)
