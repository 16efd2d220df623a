"""Every distinct segmentation recipe trains two steps through the hook, on generated data.

Backbones and images are small; recipe, layout of the data, heads and hook are the config's own.
"""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmseg.utils import register_all_modules
from PIL import Image

from cdra_mm.core import Plan
from cdra_mm.mm.data_check import check_config_data
from cdra_mm.mm.launch import load_config, prepare_config

CONFIGS = Path(__file__).parents[1] / 'configs/cdra'
WIDTH, DEPTH = 32, 12
SMALL = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=2, feedforward_channels=64)
SMALL_TIMM = dict(embed_dim=WIDTH, depth=2, num_heads=2)
CROPS = ('cwfid', 'dubai_aerial', 'vnc_em')
# Config, and the variable of its weights.
RECIPES = [
    ('dinov2_ade20k', 'CDRA_DINOV2_BASE'),
    ('dinov2_voc', 'CDRA_DINOV2_BASE'),
    ('dinov2_base_linear4_ade20k', 'CDRA_DINOV2_BASE'),
    ('dinov2_base_linear4_voc', 'CDRA_DINOV2_BASE'),
    ('dinov2_base_upernet_ade20k', 'CDRA_DINOV2_BASE'),
    ('dinov2_base_upernet_voc', 'CDRA_DINOV2_BASE'),
    ('paper/dinov2_base_ade20k', 'CDRA_DINOV2_REG_BASE'),
    ('paper/dinov2_base_voc', 'CDRA_DINOV2_REG_BASE'),
    ('dinov2_reg_base_linear_ade20k', 'CDRA_DINOV2_REG_BASE'),
    ('dinov3_base_linear_voc', 'CDRA_DINOV3_BASE'),
    ('deit_tiny_upernet_camvid', 'CDRA_DEIT_TINY'),
    ('deit_tiny_cwfid', 'CDRA_DEIT_TINY'),
]


def write_pair(image: Path, labels: Path, classes: int, seed: int) -> None:
    """A photograph-like image and a map of blocks with every class and the void label."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, classes + 1, (12, 16))
    blocks[blocks == classes] = 255
    for path, array in (
        (image, random.integers(0, 255, (96, 128, 3))),
        (labels, np.kron(blocks, np.ones((8, 8)))),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(path)


def write_ade20k(root: Path) -> None:
    for split, count in (('training', 4), ('validation', 2)):
        for i in range(count):
            image = root / f'images/{split}/ADE_{split}_{i:08d}.jpg'
            write_pair(image, root / f'annotations/{split}/ADE_{split}_{i:08d}.png', 151, i)


def write_voc(root: Path) -> None:
    """One part with VOC's labels, one with SBD's, one to validate; images in one folder."""
    for names, folder, count in (
        ('train', 'SegmentationClass', 2),
        ('aug', 'SegmentationClassAug', 2),
        ('val', 'SegmentationClass', 2),
    ):
        images = [f'2012_{names}_{i:06d}' for i in range(count)]
        for i, name in enumerate(images):
            write_pair(root / f'JPEGImages/{name}.jpg', root / f'{folder}/{name}.png', 21, i)
        listed = root / f'ImageSets/Segmentation/{names}.txt'
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text('\n'.join(images) + '\n')


def write_crops(root: Path, classes: int = 3) -> None:
    for split in ('train', 'val', 'test'):
        for i in range(2):
            image, labels = root / f'img_dir/{split}/{i}.jpg', root / f'ann_dir/{split}/{i}.png'
            write_pair(image, labels, classes, i)


def write_camvid(root: Path) -> None:
    """Void is label 11."""
    write_crops(root, 11)
    for path in root.glob('ann_dir/*/*.png'):
        Image.fromarray(np.minimum(np.array(Image.open(path)), 11)).save(path)


WRITERS = {
    'ade20k': write_ade20k, 'voc': write_voc, 'camvid': write_camvid, 'cwfid': write_crops,
}  # fmt: skip


def shrink(cfg: Config) -> None:
    """Widths, images and length that a CPU finishes in seconds."""
    model, size = cfg.model, 4 * (cfg.model.backbone.get('patch_size') or 16)
    if 'model_name' in model.backbone:
        size = 56 if 'patch14' in model.backbone.model_name else 64
        model.backbone.update(img_size=size, options=SMALL_TIMM)
    else:
        model.backbone.update(img_size=size, arch=SMALL)
    for key in ('decode_head', 'auxiliary_head'):
        if key in model:
            many = isinstance(model[key].in_channels, list)
            model[key].in_channels = [WIDTH] * 4 if many else WIDTH
            if 'channels' in model[key]:
                model[key].channels = WIDTH
    if 'neck' in model:
        model.neck.embed_dim = WIDTH
    model.data_preprocessor.size = (size, size)
    if model.test_cfg.mode == 'slide':
        model.test_cfg.update(crop_size=(size, size), stride=(size, size))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=min(loader.batch_size, 2), num_workers=0, persistent_workers=False)
        for part in loader.dataset.get('datasets', [loader.dataset]):
            for step in part.pipeline:
                if 'crop_size' in step:
                    step['crop_size'] = (size, size)
                if 'scale' in step:
                    step['scale'] = tuple(size * s // min(step['scale']) for s in step['scale'])
    if cfg.train_cfg.type == 'EpochBasedTrainLoop':
        steps = 4 // 2 if 'ade20k' in cfg.filename else 1
        cfg.train_cfg.update(max_epochs=2 // steps, val_interval=2 // steps)
    else:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    # The published warm-ups are longer than this run.
    cfg.param_scheduler = []
    cfg.default_hooks.cdra.update(num_samples=4, budget_percent=5.0)
    cfg.log_level = 'ERROR'


def write_weights(cfg: Config, path: Path) -> None:
    """The pretrained file that the config asks for, under the names that its source uses."""
    config = cfg.model.backbone.copy()
    source = config.pop('init_cfg')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    backbone = MODELS.build(config)
    backbone.init_weights()
    with torch.no_grad():
        for parameter in backbone.parameters():  # so that none is zero
            parameter += 0.05 * torch.randn_like(parameter)
    prefix = source.get('prefix', '')
    torch.save({prefix + name: tensor for name, tensor in backbone.state_dict().items()}, path)


@pytest.mark.parametrize(('name', 'weights'), RECIPES)
def test_recipe_trains_and_validates_through_the_hook(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, weights: str
) -> None:
    data = name.rpartition('_')[2]
    WRITERS[data](tmp_path / 'data')
    monkeypatch.setenv(f'CDRA_{data.upper()}_ROOT', str(tmp_path / 'data'))
    monkeypatch.setenv(weights, str(tmp_path / 'base.pth'))
    register_all_modules(init_default_scope=False)
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    shrink(cfg)
    write_weights(cfg, tmp_path / 'base.pth')
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'run'), f'{name}_{tmp_path.name}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    base = torch.load(tmp_path / 'base.pth', weights_only=True)
    plan = Plan.from_json((tmp_path / 'run/cdra_plan.json').read_text())
    assert plan.blocks
    # The frozen base is the file's, what was adapted has moved.
    own = {k: v for k, v in runner.model.backbone.state_dict().items() if k.endswith('qkv.weight')}
    prefix = cfg.model.backbone.init_cfg.get('prefix', '')
    assert own and all(torch.equal(own[key], base[prefix + key]) for key in own)
    summary = json.loads((tmp_path / 'run/summary.json').read_text())
    assert summary['method'] == 'cdra'
    assert 0 < summary['percent_of_backbone'] <= 5
    assert 0 <= summary['metrics']['mIoU'] <= summary['metrics']['mDice'] <= 100
    (last,) = (tmp_path / 'run').glob('*_*.pth')
    stored = torch.load(last, weights_only=False)['state_dict']
    assert any(v.any() for k, v in stored.items() if k.endswith('.up'))


@pytest.mark.shared
@pytest.mark.parametrize(
    ('name', 'data'),
    [
        ('deit_tiny_camvid', 'camvid'),
        ('deit_tiny_upernet_camvid', 'camvid'),
        *((f'deit_tiny_{data}', data) for data in CROPS),
    ],
)
def test_dense_config_trains_on_real_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: Path, name: str, data: str
) -> None:
    monkeypatch.setenv(f'CDRA_{data.upper()}_ROOT', str(shared / 'data' / data))
    monkeypatch.setenv('CDRA_DEIT_TINY', str(shared / 'models/deit_tiny_in1k_timm.safetensors'))
    register_all_modules(init_default_scope=False)
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.work_dir, cfg.experiment_name = str(tmp_path), f'{name}_{tmp_path.name}'
    cfg.default_hooks.cdra.num_samples = 4
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.indices = 4
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    cfg.param_scheduler = []
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100
    assert json.loads((tmp_path / 'summary.json').read_text())['trainable_backbone'] > 0


@pytest.mark.shared
@pytest.mark.parametrize('data', CROPS)
def test_crops_of_a_copy_are_whole_and_of_the_classes_that_the_config_names(
    monkeypatch: pytest.MonkeyPatch, shared: Path, data: str
) -> None:
    root = shared / 'data' / data
    monkeypatch.setenv(f'CDRA_{data.upper()}_ROOT', str(root))
    stated = json.loads((root / 'meta.json').read_text())
    cfg = prepare_config(load_config(CONFIGS / f'deit_tiny_{data}.py'))
    assert list(cfg.train_dataloader.dataset.metainfo.classes) == stated['classes']
    report = check_config_data(cfg, workers=0, progress=lambda *_: None)
    assert {part.split: part.samples for part in report.datasets} == stated['counts']
    assert not any(part.faults or part.mistakes for part in report.datasets)
    pixels = {
        part.split: [part.tally.pixels[i] for i in range(len(part.classes))]
        for part in report.datasets
    }
    assert pixels == stated['pixels']
