"""Every classification config: loads, builds, and has its final run."""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmpretrain')

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from cdra_mm.core import ConfigError
from cdra_mm.mm.datasets import FGVC_SETS, TASK_CLASSES
from cdra_mm.mm.launch import load_config, set_work_dir

REPO = Path(__file__).parents[1]
TINY = ['cdra/deit_tiny_caltech101', 'cdra/deit_tiny_cifar10', 'cdra/vit_tiny32_cifar10']
VTAB = sorted(f'vtab/{path.stem}' for path in (REPO / 'configs/vtab').glob('*.py'))
SETS = sorted(f'fgvc/{path.stem}' for path in (REPO / 'configs/fgvc').glob('*.py'))
CONFIGS = [*TINY, *VTAB, *SETS]
# Classes by folder: VTAB's 19 tasks (Zhai et al., 2019), FGVC's five sets as VPT has them.
CLASSES = dict(
    cifar=100, caltech101=102, dtd=47, oxford_flowers102=102, oxford_iiit_pet=37, svhn=10,
    sun397=397, patch_camelyon=2, eurosat=10, resisc45=45, diabetic_retinopathy=5,
    clevr_count=8, clevr_dist=6, dmlab=6, kitti=4, dsprites_loc=16, dsprites_ori=16,
    smallnorb_azi=18, smallnorb_ele=9,
    CUB_200_2011=200, NABirds=555, OxfordFlowers=102, StanfordDogs=120, StanfordCars=196,
)  # fmt: skip
# Training, choosing, reporting; and in the final run.
SPLITS = {
    'vtab': (['train800', 'val200', 'test'], ['train800val200', 'test', 'test']),
    'cdra': (['train800', 'val200', 'test'], ['train800val200', 'test', 'test']),
    'fgvc': (['train', 'val', 'test'], ['trainval', 'test', 'test']),
}
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


@cache
def _read(name: str, *overrides: str, final_run: bool) -> Config:
    return load_config(REPO / f'configs/{name}.py', overrides, final_run=final_run)


def load(name: str, *overrides: str, final_run: bool = False) -> Config:
    """A copy of a config that is read once: reading takes longer than most of what is asked."""
    return copy.deepcopy(_read(name, *overrides, final_run=final_run))


def folders(cfg: Config) -> set[str]:
    return {Path(cfg[loader].dataset.data_root).name for loader in LOADERS}


def test_configs_found_are_all_tasks_and_all_sets() -> None:
    assert (len(VTAB), len(SETS)) == (19, 5)
    assert VTAB == sorted(f'vtab/{task}' for task in TASK_CLASSES)
    assert {folder for name in SETS for folder in folders(load(name))} == set(FGVC_SETS)
    known = {name: fgvc.num_classes for name, fgvc in FGVC_SETS.items()}
    assert {**TASK_CLASSES, **known} == CLASSES


@pytest.mark.parametrize('name', CONFIGS)
def test_config_states_its_command_data_memory_and_result(name: str) -> None:
    docstring = (REPO / f'configs/{name}.py').read_text(encoding='utf-8').split('"""')[1]
    assert f'Command: python tools/train.py configs/{name}.py\n' in docstring
    assert '--final' in docstring and 'Memory:' in docstring and 'esult:' in docstring
    variable, folder = re.search(r'Data: (CDRA_\w+_ROOT)/(\w+)', docstring).groups()
    cfg = load(name)
    assert folders(cfg) == {folder}
    assert variable == ('CDRA_FGVC_ROOT' if name in SETS else 'CDRA_VTAB_ROOT')


@pytest.mark.parametrize('name', CONFIGS)
def test_config_builds_a_model_of_the_protocols_classes(name: str) -> None:
    cfg = load(name)
    init_default_scope('mmpretrain')
    cfg.model.backbone.pop('init_cfg')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    (folder,) = folders(cfg)
    assert model.head.fc.out_features == (10 if folder == 'cifar10' else CLASSES[folder])
    assert model.head.fc.in_features == model.backbone.embed_dims == (192 if name in TINY else 768)
    assert len(model.backbone.layers) == (6 if 'tiny32' in name else 12)


@pytest.mark.parametrize('name', CONFIGS)
def test_config_trains_as_spt_does_within_the_papers_share(name: str) -> None:
    cfg = load(name)
    hook = cfg.default_hooks.cdra
    assert hook.type == 'cdra_mm.CDRAHook' and hook.method == dict(type='cdra')
    assert hook.budget_percent == (0.86 if name in SETS else 0.49)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-3, weight_decay=1e-4)
    assert cfg.train_cfg.max_epochs == 100 and cfg.param_scheduler[0].end == 10
    batch = 32 if name in SETS else 64
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.model.backbone.drop_path_rate == 0.1
    steps = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert (('RandomCrop' in steps), ('RandomFlip' in steps)) == (name in SETS, name in SETS)


@pytest.mark.parametrize('name', CONFIGS)
def test_final_run_trains_on_all_and_tests_once(name: str) -> None:
    chosen, final = load(name), load(name, final_run=True)
    expected = SPLITS[name.split('/')[0]]
    for cfg, splits in zip((chosen, final), expected, strict=True):
        assert [cfg[loader].dataset.split for loader in LOADERS] == splits
        assert folders(cfg) == folders(chosen)
        assert cfg.train_cfg.max_epochs == 100
    assert chosen.train_cfg.val_interval == 10
    assert final.train_cfg.val_interval > final.train_cfg.max_epochs
    # Nothing else differs.
    for cfg in (chosen, final):
        cfg.train_cfg.pop('val_interval')
        for loader in LOADERS:
            cfg[loader].dataset.pop('split')
    assert final.to_dict() == chosen.to_dict()


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.startswith('fgvc/')])
def test_final_run_of_fgvc_trains_on_train_alone_where_asked(name: str) -> None:
    """As SPT and VPT do; `--final` alone takes train and val, as GPS and RLRR do."""
    cfg = load(name, 'train_dataloader.dataset.split=train', final_run=True)
    assert [cfg[loader].dataset.split for loader in LOADERS] == ['train', 'test', 'test']


def test_options_count_more_than_the_final_run() -> None:
    cfg = load('vtab/dtd', 'train_cfg.val_interval=7', final_run=True)
    assert cfg.train_cfg.val_interval == 7
    assert cfg.train_dataloader.dataset.split == 'train800val200'


def test_the_same_final_run_is_reached_by_options_alone() -> None:
    for base, name in (('vtab', 'vtab/dtd'), ('fgvc', 'fgvc/cub')):
        text = (REPO / f'configs/_base_/datasets/{base}.py').read_text(encoding='utf-8')
        options = re.search(r'``--cfg-options ([^`]+)``', text).group(1).split()
        assert load(name, *options).to_dict() == load(name, final_run=True).to_dict()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a = dict(b=1)', r'none\.py has no final_run.*--final'),
        ('a = dict(b=1)\nfinal_run = 3', r'none\.py has no final_run'),
        ('a = dict(b=1)\nfinal_run = dict()', r'none\.py has no final_run'),
        (
            'train_cfg = dict(b=1)\nfinal_run = dict(trian_cfg=dict(b=2))',
            r"none\.py changes trian_cfg.*did you mean 'train_cfg'",
        ),
    ],
)
def test_final_run_that_is_missing_or_wrong_names_the_config(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / 'none.py'
    path.write_text(f'{text}\n')
    load_config(path)
    with pytest.raises(ConfigError, match=message):
        load_config(path, final_run=True)


@pytest.mark.parametrize(
    ('own', 'option', 'expected'),
    [
        (None, None, './work_dirs/dtd_final'),
        ('runs/own/', None, 'runs/own_final'),
        # A config that a final run has dumped.
        ('runs/own_final', None, 'runs/own_final'),
        ('runs/own', 'runs/given', 'runs/given'),
    ],
)
def test_final_run_does_not_write_into_the_folder_of_the_choice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: Any, option: Any, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = Config(dict(work_dir=own))
    set_work_dir(cfg, 'configs/vtab/dtd.py', option, suffix='_final')
    assert cfg.work_dir == expected and (tmp_path / expected).is_dir()


@pytest.mark.parametrize(
    ('name', 'variable', 'path'),
    [
        ('vtab/svhn', 'CDRA_VTAB_ROOT', 'train_dataloader.dataset.data_root'),
        ('fgvc/nabirds', 'CDRA_FGVC_ROOT', 'val_dataloader.dataset.data_root'),
        ('vtab/svhn', 'CDRA_VIT_B16', 'model.backbone.init_cfg.checkpoint'),
        ('cdra/deit_tiny_caltech101', 'CDRA_DEIT_TINY', 'model.backbone.init_cfg.checkpoint'),
    ],
)
def test_environment_variable_moves_data_or_weights(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str, path: str
) -> None:
    def value() -> str:
        node = load_config(REPO / f'configs/{name}.py')
        for key in path.split('.'):
            node = node[key]
        return node

    monkeypatch.delenv(variable, raising=False)
    assert '$' not in value() and 'elsewhere' not in value()
    monkeypatch.setenv(variable, '/elsewhere')
    assert value().startswith('/elsewhere')
