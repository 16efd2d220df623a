"""Makes one checkpoint and one adapter file of the formats that the code at hand writes.

    python -m tests.golden.make FOLDER

Files of formats before are made by the code of their time: check that commit out, copy this file
into it and run it there. It uses nothing of the package but its hook and its plan file. What it
writes goes into a folder of its own beside this file, named after the versions in it, and stays as
it is from then on: `tests/mm/test_golden.py` loads every one.

``checkpoint.pth``          a whole checkpoint of a run with averaged weights
``adapter.safetensors``     the run's adapter file
``expected.json``           features of both, as the code that wrote them computed them
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from mmpretrain.utils import register_all_modules

register_all_modules(init_default_scope=False)

SIZE = 16
PLAN = Path(__file__).with_name('plan.json')
BACKBONE = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16),
    img_size=SIZE,
    patch_size=8,
    out_type='cls_token',
)


def waves(*shape: int, start: float = 0.0) -> torch.Tensor:
    """Numbers that look random and are the same on every machine and release."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + start).reshape(shape)


@DATASETS.register_module(force=True)
class GoldenData(BaseDataset):
    """Four images of waves, two classes."""

    METAINFO = dict(classes=('a', 'b'))

    def __init__(self) -> None:
        super().__init__(pipeline=[], serialize_data=False)

    def load_data_list(self) -> list[dict[str, Any]]:
        return [dict(img_path=f'{i}.png') for i in range(4)]

    def prepare_data(self, idx: int) -> dict[str, Any]:
        meta = dict(img_path=f'{idx}.png', ori_shape=(SIZE, SIZE), img_shape=(SIZE, SIZE))
        sample = DataSample(metainfo=meta).set_gt_label(idx % 2)
        return dict(inputs=waves(3, SIZE, SIZE, start=idx).float(), data_samples=sample)


def base_file(folder: Path) -> str:
    """The base weights, which no golden file holds."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(BACKBONE)
    state = {
        name: (waves(*value.shape, start=start) * 0.3 + (name.endswith('ln1.weight'))).to(value)
        for start, (name, value) in enumerate(sorted(backbone.state_dict().items()))
    }
    torch.save({'state_dict': state}, folder / 'base.pth')
    return str(folder / 'base.pth')


def config(folder: Path, **options: Any) -> Config:
    """The run; its base file is made first."""
    fields: dict[str, Any] = dict(
        default_scope='mmpretrain',
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(type='ClsDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3),
            backbone=BACKBONE
            | dict(init_cfg=dict(type='Pretrained', checkpoint=base_file(folder))),
            head=dict(type='LinearClsHead', in_channels=8, num_classes=2),
        ),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='GoldenData'),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=3.0)),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False),
            logger=dict(type='LoggerHook', interval=100),
            cdra=dict(
                type='cdra_mm.CDRAHook', method=dict(type='lora', dropout=0.1), plan=str(PLAN)
            ),
        ),
        custom_hooks=[dict(type='EMAHook', momentum=0.5)],
        randomness=dict(seed=3),
        work_dir=str(folder / 'run'),
        log_level='WARNING',
        experiment_name=f'golden_{folder.name}',
    )
    fields.update(options)
    return Config(fields)


def features(backbone: torch.nn.Module) -> torch.Tensor:
    """What a backbone says to two images of waves, ``[2, 8]``."""
    backbone.eval()
    with torch.no_grad():
        return backbone(waves(2, 3, SIZE, SIZE, start=0.5).float())[0].double()


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runner = Runner.from_cfg(config(folder))
        runner.train()
        (dumped,) = (folder / 'run').glob('*.py')
        checkpoint = torch.load(folder / 'run/iter_2.pth', weights_only=False)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(Config.fromfile(dumped).model)
        model.load_state_dict(dict(checkpoint['state_dict']))
        expected = {
            'checkpoint': features(model.backbone).tolist(),
            'adapter': features(runner.model.backbone).tolist(),
        }
        # Of the text of the config nothing is read; without it the file is half as large.
        checkpoint['meta'] = {
            k: v for k, v in checkpoint['meta'].items() if k not in ('cfg', 'config')
        }
        torch.save(checkpoint, out / 'checkpoint.pth')
        adapter = (folder / 'run/cdra_adapter.safetensors').read_bytes()
        (out / 'adapter.safetensors').write_bytes(adapter)
    (out / 'expected.json').write_text(json.dumps(expected) + '\n')


if __name__ == '__main__':
    main()
