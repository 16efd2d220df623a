"""Tiny runs: a generated data set, a base file, configs of a segmentor and a classifier."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmpretrain.utils import register_all_modules as register_mmpretrain
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules as register_mmseg
from PIL import Image

register_mmseg(init_default_scope=False)
register_mmpretrain(init_default_scope=False)

SIZE, CLASSES = 32, 4
# mmengine keeps logs and figures of a process by experiment and second: two runs may share one.
RUNS = count()
ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)


@DATASETS.register_module(force=True)
class ToyData(BaseDataset):
    """Images of coloured rectangles; the class of a pixel (or image) is a colour."""

    METAINFO = dict(
        classes=tuple('abcd'), palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    )

    def __init__(self, task: str, size: int = 24, jitter: bool = False, **kwargs: Any) -> None:
        self.task, self.size, self.jitter = task, size, jitter
        # To serialize collects garbage: most of the time of a tiny run.
        super().__init__(pipeline=[], serialize_data=False, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        return [dict(img_path=f'toy_{i}.png') for i in range(self.size)]

    def prepare_data(self, idx: int) -> dict[str, Any]:
        image, mask = picture(idx)
        if self.jitter and not self.test_mode and np.random.rand() < 0.5:
            image, mask = image[:, ::-1].copy(), mask[:, ::-1].copy()
        inputs = torch.from_numpy(image).permute(2, 0, 1).contiguous()
        shapes = dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape'), mask.shape)
        meta = dict(img_path=f'toy_{idx}.png', **shapes)
        if self.task == 'seg':
            sample = SegDataSample(metainfo=meta)
            sample.gt_sem_seg = PixelData(data=torch.from_numpy(mask)[None].long())
        else:
            sample = DataSample(metainfo=meta).set_gt_label(idx % CLASSES)
        return dict(inputs=inputs, data_samples=sample)


def picture(idx: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(idx)
    image = rng.integers(0, 60, (SIZE, SIZE, 3))
    mask = np.zeros((SIZE, SIZE), np.uint8)
    label = idx % CLASSES
    if label:
        y, x = rng.integers(0, SIZE // 2, 2)
        mask[y : y + 16, x : x + 16] = label
        image[mask == label] += np.eye(3, dtype=int)[label - 1] * 150
    return image.astype(np.uint8), mask


def base_file(folder: Path) -> str:
    """Weights of a randomly initialised backbone, as a pretrained file."""
    path = folder / 'base.pth'
    if not path.exists():
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            from mmpretrain.models import VisionTransformer

            torch.manual_seed(7)
            backbone = VisionTransformer(ARCH, img_size=SIZE, patch_size=8, out_type='featmap')
            backbone.init_weights()
            for parameter in backbone.parameters():  # so that no bias is zero
                parameter.data += 0.02 * torch.randn_like(parameter)
        torch.save({'state_dict': backbone.state_dict()}, path)
    return str(path)


def config(folder: Path, task: str = 'seg', **options: Any) -> Config:
    """A config of a run; `options` go into it, ``cdra`` into the hook."""
    base = dict(type='Pretrained', checkpoint=base_file(folder))
    backbone = dict(
        type='mmpretrain.VisionTransformer',
        arch=ARCH,
        img_size=SIZE,
        patch_size=8,
        out_type='featmap' if task == 'seg' else 'cls_token',
        init_cfg=base,
    )
    mean = dict(mean=[30.0] * 3, std=[60.0] * 3)
    if task == 'seg':
        model: dict[str, Any] = dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', size=(SIZE, SIZE), **mean),
            backbone=backbone,
            decode_head=dict(
                type='FCNHead',
                in_channels=32,
                channels=32,
                num_convs=1,
                concat_input=False,
                kernel_size=1,
                num_classes=CLASSES,
                in_index=-1,
                dropout_ratio=0.0,
                norm_cfg=dict(type='BN'),
                align_corners=False,
            ),
            test_cfg=dict(mode='whole'),
        )
        evaluator: dict[str, Any] = dict(type='IoUMetric', iou_metrics=['mIoU', 'mDice'])
    else:
        model = dict(
            type='ImageClassifier',
            data_preprocessor=dict(type='ClsDataPreprocessor', **mean),
            backbone=backbone,
            head=dict(type='LinearClsHead', in_channels=32, num_classes=CLASSES),
        )
        evaluator = dict(type='Accuracy')
    # A head that is fitted first would be in every other test's way: test_head_fit has the default.
    cdra = dict(type='cdra_mm.CDRAHook', budget_percent=5.0, num_samples=8, head_iters=0)
    cdra.update(options.pop('cdra', {}))
    if cdra['head_iters'] is None:
        del cdra['head_iters']

    def loader(**kwargs: Any) -> dict[str, Any]:
        return dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='ToyData', task=task, **kwargs),
        )

    fields: dict[str, Any] = dict(
        default_scope='mmseg' if task == 'seg' else 'mmpretrain',
        model=model,
        train_dataloader=loader(),
        val_dataloader=loader(size=8, test_mode=True),
        test_dataloader=loader(size=8, test_mode=True),
        val_evaluator=evaluator,
        test_evaluator=evaluator,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=8, val_interval=100),
        val_cfg=dict(),
        test_cfg=dict(),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2)),
        param_scheduler=[dict(type='CosineAnnealingLR', T_max=8, by_epoch=False, end=8)],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=4, by_epoch=False),
            logger=dict(type='LoggerHook', interval=100),
            cdra=cdra,
        ),
        randomness=dict(seed=3),
        work_dir=str(folder / 'run'),
        log_level='WARNING',
        visualizer=dict(type='SegLocalVisualizer' if task == 'seg' else 'UniversalVisualizer'),
        experiment_name=f'toy_{folder.name}_{next(RUNS)}',
    )
    fields.update(options)
    return Config(fields)


def train(cfg: Config) -> Runner:
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def write_pictures(folder: Path, count: int = 2) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f'{i}.png') for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(picture(i + 1)[0]).save(path)
    return paths
