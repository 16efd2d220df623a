"""Every shipped config loads, builds its model, and reads its paths from the environment."""

import re
from pathlib import Path

import pytest

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from mmseg.registry import DATASETS, MODELS

REPO = Path(__file__).parents[1]
CONFIGS = sorted((REPO / 'configs/cdra').glob('*.py'))
NAMES = [path.stem for path in CONFIGS]
# Percent of the backbone's parameters that each config's plan may train.
BUDGETS = {
    'deit_tiny_caltech101': 0.49,
    'deit_tiny_caltech101_final': 0.49,
    'deit_tiny_camvid': 0.5,
    'demo': 1.0,
    'dinov2_ade20k': 0.82,
    'dinov2_voc': 0.7,
}


def load(name: str) -> Config:
    return Config.fromfile(REPO / f'configs/cdra/{name}.py')


def build_model(cfg: Config) -> torch.nn.Module:
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.pop('init_cfg')
    return MODELS.build(cfg.model)


def test_configs_found_are_the_ones_known_here() -> None:
    assert len(CONFIGS) == 6
    assert NAMES == sorted(BUDGETS)


@pytest.mark.parametrize('name', NAMES)
def test_config_states_its_command_memory_and_result(name: str) -> None:
    text = (REPO / f'configs/cdra/{name}.py').read_text(encoding='utf-8')
    docstring = text.split('"""')[1]
    assert f'python tools/train.py configs/cdra/{name}.py' in docstring
    assert 'Memory:' in docstring and re.search(r'[Rr]esult:', docstring)


@pytest.mark.parametrize('name', NAMES)
def test_config_carries_the_hook_with_its_budget(name: str) -> None:
    hook = load(name).default_hooks.cdra
    assert hook.type == 'cdra_mm.CDRAHook'
    assert hook.budget_percent == BUDGETS[name]


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('method', ['linear', 'full'])
def test_config_method_is_one_option_on_the_command_line(name: str, method: str) -> None:
    cfg = load(name)
    cfg.merge_from_dict({'default_hooks.cdra.method.type': method})
    assert cfg.default_hooks.cdra.method == dict(type=method)
    assert cfg.default_hooks.checkpoint.type == 'CheckpointHook'


@pytest.mark.parametrize('name', NAMES)
def test_config_text_round_trips(name: str, tmp_path: Path) -> None:
    cfg = load(name)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


@pytest.mark.parametrize('name', NAMES)
def test_config_builds_its_model(name: str) -> None:
    model = build_model(load(name))
    head = model.decode_head if hasattr(model, 'decode_head') else model.head
    assert head.in_channels == model.backbone.embed_dims


@pytest.mark.parametrize('name', ['demo', 'deit_tiny_camvid', 'dinov2_ade20k', 'dinov2_voc'])
def test_segmentation_config_agrees_on_classes_and_patches(name: str) -> None:
    cfg = load(name)
    dataset = cfg.val_dataloader.dataset
    metainfo = dataset.get('metainfo') or DATASETS.get(dataset.type).METAINFO
    assert len(metainfo['classes']) == len(metainfo['palette']) == cfg.model.decode_head.num_classes
    height, width = cfg.model.data_preprocessor.size
    assert height % cfg.model.backbone.patch_size == width % cfg.model.backbone.patch_size == 0
    padding = cfg.model.data_preprocessor.seg_pad_val
    assert padding == cfg.model.decode_head.get('ignore_index', 255)
    assert padding == cfg.val_evaluator.get('ignore_index', 255)
    assert padding == cfg.test_evaluator.get('ignore_index', 255)


@pytest.mark.parametrize(
    ('name', 'variable', 'path'),
    [
        ('demo', 'CDRA_DEMO_ROOT', 'train_dataloader.dataset.data_root'),
        ('demo', 'CDRA_DEMO_ROOT', 'test_dataloader.dataset.data_root'),
        ('deit_tiny_camvid', 'CDRA_CAMVID_ROOT', 'train_dataloader.dataset.data_root'),
        ('deit_tiny_camvid', 'CDRA_CAMVID_ROOT', 'test_dataloader.dataset.data_root'),
        ('dinov2_ade20k', 'CDRA_ADE20K_ROOT', 'train_dataloader.dataset.data_root'),
        ('dinov2_ade20k', 'CDRA_ADE20K_ROOT', 'val_dataloader.dataset.data_root'),
        ('dinov2_voc', 'CDRA_VOC_ROOT', 'train_dataloader.dataset.datasets.1.data_root'),
        ('dinov2_voc', 'CDRA_VOC_ROOT', 'val_dataloader.dataset.data_root'),
        ('deit_tiny_caltech101', 'CDRA_VTAB_ROOT', 'train_dataloader.dataset.data_root'),
        ('deit_tiny_caltech101_final', 'CDRA_VTAB_ROOT', 'val_dataloader.dataset.data_root'),
        ('demo', 'CDRA_VIT_TINY32', 'model.backbone.init_cfg.checkpoint'),
        ('deit_tiny_camvid', 'CDRA_DEIT_TINY', 'model.backbone.init_cfg.checkpoint'),
        ('deit_tiny_caltech101', 'CDRA_DEIT_TINY', 'model.backbone.init_cfg.checkpoint'),
        ('dinov2_voc', 'CDRA_DINOV2_BASE', 'model.backbone.init_cfg.checkpoint'),
    ],
)
def test_environment_variable_moves_data_or_weights(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str, path: str
) -> None:
    def value() -> str:
        node = load(name)
        for key in path.split('.'):
            node = node[int(key)] if key.isdigit() else node[key]
        return node

    monkeypatch.delenv(variable, raising=False)
    assert '$' not in value() and 'elsewhere' not in value()
    monkeypatch.setenv(variable, '/elsewhere')
    assert value().startswith('/elsewhere')


def test_cosine_ends_where_training_ends_and_warm_up_multiplies_it() -> None:
    cfg = load('demo')
    for iterations in (20, 200):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([parameter], lr=1e-3)
        built = [
            PARAM_SCHEDULERS.build(
                {'end': iterations, **scheduler}, default_args=dict(optimizer=optimizer)
            )
            for scheduler in cfg.param_scheduler
        ]
        rates = []
        for _ in range(iterations):
            rates.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            for scheduler in built:
                scheduler.step()
        assert rates[0] == pytest.approx(1e-6)
        assert 0 <= rates[-1] < 1e-5
        if iterations == 200:
            assert rates[100] == pytest.approx(5e-4)


def test_final_config_trains_on_all_and_tests_once() -> None:
    chosen, final = load('deit_tiny_caltech101'), load('deit_tiny_caltech101_final')
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    assert [chosen[name].dataset.split for name in loaders] == ['train800', 'val200', 'test']
    assert [final[name].dataset.split for name in loaders] == ['train800val200', 'test', 'test']
    assert final.train_cfg.val_interval > final.train_cfg.max_epochs
    assert final.train_cfg.max_epochs == chosen.train_cfg.max_epochs == 100


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize('name', ['deit_tiny_camvid', 'deit_tiny_caltech101'])
def test_config_trains_and_validates_without_the_hook(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: Path, name: str
) -> None:
    monkeypatch.setenv('CDRA_CAMVID_ROOT', str(shared / 'data/camvid'))
    monkeypatch.setenv('CDRA_VTAB_ROOT', str(shared / 'data/vtab-1k'))
    monkeypatch.setenv('CDRA_DEIT_TINY', str(shared / 'models/deit_tiny_in1k_timm.safetensors'))
    cfg = load(name)
    del cfg.default_hooks['cdra']
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = f'{name}_{tmp_path.name}'
    for loop in ('train', 'val'):
        loader = cfg[f'{loop}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.indices = 4
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    cfg.param_scheduler = []
    runner = Runner.from_cfg(cfg)
    before = runner.model.backbone.layers[0].attn.qkv.weight.clone()
    runner.train()
    assert not torch.equal(runner.model.backbone.layers[0].attn.qkv.weight, before)
    metric = 'mIoU' if name == 'deit_tiny_camvid' else 'accuracy/top1'
    assert 0 <= runner.message_hub.get_scalar(f'val/{metric}').current() <= 100
