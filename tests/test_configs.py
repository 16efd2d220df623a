"""Every shipped segmentation config loads, builds its model, and reads its paths from outside."""

import copy
import json
import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

import timm
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmseg.registry import DATASETS, MODELS

FOLDER = Path(__file__).parents[1] / 'configs/cdra'
NAMES = sorted(str(path.relative_to(FOLDER).with_suffix('')) for path in FOLDER.rglob('*.py'))
# Tested beside the data sets of classification, in test_configs_classification.py.
CLASSIFICATION = ['deit_tiny_caltech101', 'deit_tiny_cifar10', 'vit_tiny32_cifar10']
SEGMENTATION = [name for name in NAMES if name not in CLASSIFICATION]
SIZES = ('small', 'base', 'large', 'giant')
DATA = ('ade20k', 'voc')
DINOV2 = {
    f'dinov2_{size}_{head}_{data}': (size, head, data)
    for size, head, data in product(SIZES, ('linear', 'linear4', 'upernet'), DATA)
}
# The two that come first are named for short.
DINOV2 |= {f'dinov2_{data}': DINOV2.pop(f'dinov2_base_linear_{data}') for data in DATA}
THROUGH_TIMM = [
    f'{model}_{size}_linear_{data}'
    for model in ('dinov2_reg', 'dinov3')
    for size, data in (('base', 'ade20k'), ('base', 'voc'), ('large', 'ade20k'))
]
PAPER = [f'paper/dinov2_base_{data}' for data in DATA]
CAMVID = ['deit_tiny_camvid', 'deit_tiny_upernet_camvid']
# Data sets of crops, each with its classes.
CROPS = {'cwfid': 3, 'dubai_aerial': 5, 'vnc_em': 5}
# Percent of the backbone's parameters that the plan may train, by the end of the name.
BUDGETS = {'ade20k': 0.82, 'voc': 0.7, 'camvid': 0.5, 'demo': 1.0, **dict.fromkeys(CROPS, 0.5)}
# mmpretrain's checkpoints, and the millions of parameters that DINOv2's model card names.
DINOV2_FACTS = {
    'small': ('5641ca5a', 22, [2, 5, 8, 11], [8, 9, 10, 11]),
    'base': ('ba246503', 87, [2, 5, 8, 11], [8, 9, 10, 11]),
    'large': ('f3302d9e', 304, [5, 11, 17, 23], [20, 21, 22, 23]),
    'giant': ('2934a630', 1136, [9, 19, 29, 39], [36, 37, 38, 39]),
}
# Where data and weights come from: variable, and the value it moves. Recipes that are trained here
# (test_configs_runs.py, test_configs_classification_runs.py) find nothing but through theirs.
PATHS = [
    ('CDRA_DEMO_ROOT', 'train_dataloader.dataset.data_root'),
    ('CDRA_VIT_TINY32', 'model.backbone.init_cfg.checkpoint'),
]


@cache
def _read(name: str) -> Config:
    return Config.fromfile(FOLDER / f'{name}.py')


def load(name: str) -> Config:
    """A copy of a config that is read once: reading takes longer than most of what is asked."""
    return copy.deepcopy(_read(name))


@cache
def build_without_memory(name: str) -> torch.nn.Module:
    """The model with tensors that have shapes only: the largest holds 1.1 billion parameters."""
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    backbone = cfg.model.backbone
    backbone.pop('init_cfg')
    cfg.model.backbone = dict(type=torch.nn.Identity)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    model.backbone = build_backbone(json.dumps(backbone.to_dict(), sort_keys=True))
    return model


@cache
def build_backbone(text: str) -> torch.nn.Module:
    """A backbone by its config: those of the same model are built once for all data sets."""
    with torch.device('meta'):
        return MODELS.build(json.loads(text))


@cache
def maps_of(backbone: torch.nn.Module, height: int, width: int) -> tuple:
    """What a backbone makes of two images."""
    with torch.no_grad():
        return backbone(torch.empty(2, 3, height, width, device='meta'))


def heads(cfg: Config) -> list:
    return [cfg.model[key] for key in ('decode_head', 'auxiliary_head') if key in cfg.model]


def test_configs_found_are_the_ones_known_here() -> None:
    crops = [f'deit_tiny_{data}' for data in CROPS]
    assert len(SEGMENTATION) == 38
    assert SEGMENTATION == sorted([*DINOV2, *THROUGH_TIMM, *PAPER, *CAMVID, *crops, 'demo'])
    assert NAMES == sorted([*SEGMENTATION, *CLASSIFICATION])


@pytest.mark.parametrize('name', SEGMENTATION)
def test_config_states_its_command_memory_and_result(name: str) -> None:
    docstring = (FOLDER / f'{name}.py').read_text(encoding='utf-8').split('"""')[1]
    assert f'python tools/train.py configs/cdra/{name}.py' in docstring
    assert 'Memory:' in docstring and re.search(r'[Rr]esult:', docstring)
    assert name == 'demo' or re.search(r'Data: CDRA_\w+_ROOT, see configs/\S+\.py', docstring)
    for mentioned in re.findall(r'configs/\S+\.py', docstring):
        assert (FOLDER.parents[1] / mentioned).is_file()


@pytest.mark.parametrize('name', SEGMENTATION)
def test_config_carries_the_hook_with_its_budget(name: str) -> None:
    hook = load(name).default_hooks.cdra
    assert hook.type == 'cdra_mm.CDRAHook'
    (budget,) = (percent for data, percent in BUDGETS.items() if name.endswith(data))
    assert hook.budget_percent == budget


@pytest.mark.parametrize('name', ['demo', PAPER[0]])
def test_config_method_is_one_option_on_the_command_line(name: str) -> None:
    cfg = load(name)
    cfg.merge_from_dict({'default_hooks.cdra.method.type': 'linear'})
    assert cfg.default_hooks.cdra.method == dict(type='linear')
    assert cfg.default_hooks.checkpoint.type == 'CheckpointHook'


@pytest.mark.parametrize('name', SEGMENTATION)
def test_config_builds_a_model_whose_parts_fit(name: str) -> None:
    cfg = load(name)
    model = build_without_memory(name)
    height, width = cfg.model.data_preprocessor.size
    with torch.no_grad():
        maps = maps_of(model.backbone, height, width)
        maps = model.neck(maps) if model.with_neck else maps
        for key in ('decode_head', 'auxiliary_head'):
            if key in cfg.model:
                scores = getattr(model, key)(maps)
                assert scores.shape[:2] == (2, cfg.model[key].num_classes)
    # Heads work at the size of the patches, UPerNet's pyramid starts at four times it.
    patch = cfg.model.backbone.get('patch_size') or model.backbone.patch_size
    factor = 4 if 'upernet' in name else 1
    assert scores.shape[2:] == (height // patch, width // patch)
    assert model.decode_head(maps).shape[2:] == (height // patch * factor, width // patch * factor)


@pytest.mark.parametrize('name', DINOV2)
def test_dinov2_config_has_the_size_layers_and_weights_of_its_name(name: str) -> None:
    size, head, _ = DINOV2[name]
    digest, millions, quarters, last_four = DINOV2_FACTS[size]
    cfg = load(name)
    checkpoint = cfg.model.backbone.init_cfg
    address = f'vit-{size}-p14_dinov2-pre_3rdparty_20230426-{digest}.pth'
    assert checkpoint.checkpoint.endswith(f'/mmpretrain/v1.0/dinov2/{address}')
    assert checkpoint.prefix == 'backbone.'
    backbone = build_without_memory(name).backbone
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e6) == millions
    layers = {'linear': [len(backbone.layers) - 1], 'linear4': last_four, 'upernet': quarters}
    assert list(backbone.out_indices) == layers[head]
    # Every returned layer is normalised: mmpretrain's own class does so with the last alone.
    assert (type(backbone).__name__ == 'MultiLayerViT') == (head != 'linear')


@pytest.mark.parametrize('name', THROUGH_TIMM)
def test_timm_config_names_weights_that_timm_knows(name: str) -> None:
    cfg = load(name)
    family, size = name.partition('_linear')[0].rsplit('_', 1)
    tail = {'dinov2_reg': 'patch14_reg4_dinov2.lvd142m', 'dinov3': 'patch16_dinov3.lvd1689m'}
    assert cfg.model.backbone.model_name == f'vit_{size}_{tail[family]}'
    known = timm.get_pretrained_cfg(cfg.model.backbone.model_name)
    assert known is not None and known.has_weights
    mean, std = cfg.model.data_preprocessor.mean, cfg.model.data_preprocessor.std
    assert [value / 255 for value in mean] == pytest.approx(known.mean)
    assert [value / 255 for value in std] == pytest.approx(known.std)


@pytest.mark.parametrize('name', SEGMENTATION)
def test_config_agrees_on_classes_sizes_and_void(name: str) -> None:
    cfg = load(name)
    dataset = cfg.val_dataloader.dataset
    metainfo = dataset.get('metainfo') or DATASETS.get(dataset.type).METAINFO
    classes = len(metainfo['classes'])
    assert len(metainfo['palette']) == classes
    padding = cfg.model.data_preprocessor.seg_pad_val
    for head in heads(cfg):
        assert head.num_classes == classes
        assert head.get('ignore_index', 255) == padding
    assert cfg.val_evaluator.get('ignore_index', 255) == padding
    assert cfg.test_evaluator.get('ignore_index', 255) == padding
    size = cfg.model.data_preprocessor.size
    assert size == cfg.get('crop_size', size) == cfg.model.test_cfg.get('crop_size', size)
    train = cfg.train_dataloader.dataset
    for part in train.get('datasets', [train]):
        for step in part.pipeline:
            assert step.get('crop_size', size) == size
    for step in dataset.pipeline:
        if step['type'] == 'Resize':
            assert min(step['scale']) == size[0]


@pytest.mark.parametrize(('variable', 'path'), PATHS)
def test_environment_variable_moves_data_or_weights(
    monkeypatch: pytest.MonkeyPatch, variable: str, path: str
) -> None:
    def value() -> str:
        node = Config.fromfile(FOLDER / 'demo.py')
        for key in path.split('.'):
            node = node[key]
        return node

    monkeypatch.delenv(variable, raising=False)
    assert '$' not in value() and 'elsewhere' not in value()
    monkeypatch.setenv(variable, '/elsewhere')
    assert value().startswith('/elsewhere')


@pytest.mark.parametrize(('data', 'classes'), CROPS.items())
def test_crops_lie_where_a_variable_says_with_their_own_classes(
    monkeypatch: pytest.MonkeyPatch, data: str, classes: int
) -> None:
    monkeypatch.setenv(f'CDRA_{data.upper()}_ROOT', '/elsewhere')
    cfg = Config.fromfile(FOLDER / f'deit_tiny_{data}.py')
    assert cfg.model.decode_head.num_classes == classes
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert (dataset.data_root, len(dataset.metainfo.classes)) == ('/elsewhere', classes)
        assert Path(dataset.data_prefix.img_path).name == split
        assert Path(dataset.data_prefix.seg_map_path).name == split


def test_voc_trains_on_its_own_and_on_the_additional_labels() -> None:
    parts = load('dinov2_voc').train_dataloader.dataset.datasets
    assert [(part.data_prefix.seg_map_path, Path(part.ann_file).name) for part in parts] == [
        ('SegmentationClass', 'train.txt'),
        ('SegmentationClassAug', 'aug.txt'),
    ]


@pytest.mark.parametrize('name', PAPER)
def test_paper_protocol_is_what_the_cited_code_does(name: str) -> None:
    cfg = load(name)
    assert cfg.train_dataloader.batch_size == 12
    assert cfg.train_dataloader.sampler == dict(type='DefaultSampler', shuffle=True)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=3e-4, weight_decay=1e-2)
    assert cfg.param_scheduler == [] and cfg.train_cfg.max_epochs == 100
    assert 'reg4' in cfg.model.backbone.model_name
    assert 'datasets' not in cfg.train_dataloader.dataset  # VOC without SBD's labels
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        steps = {step.type: step for step in loader.dataset.pipeline}
        assert set(steps) == {'LoadImageFromFile', 'LoadAnnotations', 'Resize', 'PackSegInputs'}
        assert steps['Resize'] == dict(type='Resize', scale=(490, 490), keep_ratio=False)
    # An ignored pixel counts for nothing, as in PyTorch's own cross-entropy.
    assert cfg.model.decode_head.loss_decode.avg_non_ignore
    head = build_without_memory(name).decode_head
    assert isinstance(head.convs, torch.nn.Identity) and head.dropout is None
    assert head.conv_seg.kernel_size == (1, 1)
    assert cfg.model.test_cfg == dict(mode='whole')


@pytest.mark.parametrize(
    ('name', 'length', 'first', 'highest', 'middle', 'last'),
    [
        # Warm-up multiplies the cosine: the highest share is the cosine's where warm-up ends.
        ('demo', 200, 1e-3, 0.854, (100, 0.5), 0),
        ('dinov2_ade20k', 8000, 1e-3, 0.916, (4000, 0.5), 0),
    ],
)
def test_rate_warms_up_and_ends_where_training_ends(
    name: str, length: int, first: float, highest: float, middle: tuple[int, float], last: float
) -> None:
    cfg = load(name)
    rate = cfg.optim_wrapper.optimizer.lr
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedulers = [
        PARAM_SCHEDULERS.build({'end': length, **scheduler}, default_args=dict(optimizer=optimizer))
        for scheduler in cfg.param_scheduler
    ]
    shares = []
    for _ in range(length):
        shares.append(optimizer.param_groups[0]['lr'] / rate)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert shares[0] == pytest.approx(first)
    assert max(shares) == pytest.approx(highest, abs=0.01)
    assert shares[middle[0]] == pytest.approx(middle[1], abs=0.02)
    assert shares[-1] == pytest.approx(last, abs=2e-3)
