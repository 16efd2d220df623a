"""What a config puts into a checkpoint is read again, or refused before training."""

from __future__ import annotations

import datetime
import enum
import pathlib

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.registry import DATASETS
from mmengine.runner import CheckpointLoader, Runner

from cdra_mm.core import CheckpointError
from cdra_mm.mm.checkpoints.plain_state import make_plain, same_meaning

from . import toy


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


ONE_CYCLE = [dict(type='OneCycleLR', eta_max=1e-2, total_steps=4, by_epoch=False)]
ODD = dict(
    root=pathlib.Path('/data'), ids=range(3), groups=frozenset('ab'), area=np.arange(3),
    share=np.float32(0.5), made=datetime.date(2026, 1, 2), level=Level.LOW,
    names=np.array(['a', None], object), nested=ConfigDict(a=[ConfigDict(b=1)]),
)  # fmt: skip


@DATASETS.register_module(force=True)
class OddData(toy.ToyData):
    """Says more of itself than text."""

    METAINFO = {**toy.ToyData.METAINFO, **ODD}


@DATASETS.register_module(force=True)
class ObjectData(toy.ToyData):
    METAINFO = {**toy.ToyData.METAINFO, 'colour': Colour.RED}


def config(folder, work_dir, data='ToyData', **options):
    cfg = toy.config(
        folder,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=4, val_interval=100),
        param_scheduler=ONE_CYCLE,
        work_dir=str(folder / work_dir),
        cdra=dict(num_samples=4, visualize=False),
        **options,
    )
    cfg.default_hooks.checkpoint.interval = 2
    cfg.train_dataloader.dataset.type = data
    return cfg


def test_a_run_with_odd_settings_is_resumed_exactly(tmp_path, capsys):
    toy.train(config(tmp_path, 'whole', 'OddData'))
    path = tmp_path / 'whole/iter_2.pth'
    stored = torch.load(path, weights_only=False)
    assert not any(callable(v) for state in stored['param_schedulers'] for v in state.values())
    read = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    meta = read['meta']['dataset_meta']
    assert meta['root'] == '/data' and meta['ids'] == [0, 1, 2] and meta['groups'] == {'a', 'b'}
    assert meta['made'] == '2026-01-02' and meta['names'] == ['a', None]
    assert meta['area'].tolist() == [0, 1, 2] and meta['nested'] == {'a': [{'b': 1}]}
    capsys.readouterr()
    runner = toy.train(config(tmp_path, 'cut', 'OddData', resume=True, load_from=str(path)))
    assert 'metainfo from the resumed checkpoint' not in capsys.readouterr().out
    assert runner.iter == 4
    whole, cut = (
        CheckpointLoader.load_checkpoint(str(tmp_path / f'{name}/iter_4.pth'))['state_dict']
        for name in ('whole', 'cut')
    )
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


def test_a_checkpoint_with_the_curve_of_a_scheduler_is_resumed(tmp_path):
    """As earlier releases, and runs without the hook, wrote it."""
    toy.train(config(tmp_path, 'run'))
    checkpoint = torch.load(tmp_path / 'run/iter_2.pth', weights_only=False)
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    checkpoint['param_schedulers'][0]['anneal_func'] = OneCycleParamScheduler._annealing_cos
    torch.save(checkpoint, tmp_path / 'old.pth')
    cfg = config(tmp_path, 'resumed', resume=True, load_from=str(tmp_path / 'old.pth'))
    assert toy.train(cfg).iter == 4


def test_what_cannot_be_stored_is_refused_before_training(tmp_path):
    runner = Runner.from_cfg(config(tmp_path, 'run', 'ObjectData'))
    with pytest.raises(CheckpointError, match=r'meta.dataset_meta.colour .*Colour'):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize(
    'value, named',
    [
        ({'f': print}, 'part.f'),
        ([torch.Generator()], r'part\[0\]'),
        ('\ud800', 'no Unicode'),
        (1 << 5000, 'bits'),
    ],
)
def test_what_a_hook_adds_is_named(value, named):
    with pytest.raises(CheckpointError, match=named):
        make_plain({'part': value})


def test_weights_and_optimizer_stay_as_they_are():
    state = {'weight': torch.ones(2)}
    checkpoint = {'state_dict': state, 'optimizer': {'state': object()}, 'hub': HistoryBuffer()}
    make_plain(checkpoint)
    assert checkpoint['state_dict'] is state


def test_the_plain_form_means_the_same():
    assert same_meaning(
        {'root': '/data', 'ids': [0, 1]}, {'root': pathlib.Path('/data'), 'ids': range(2)}
    )
    assert not same_meaning({'root': '/data'}, {'root': pathlib.Path('/other')})
