"""A config that has changed since the checkpoint: followed, told or refused, never ignored."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from mmengine.runner import Runner

from cdra_mm.core import CheckpointError, ConfigError
from cdra_mm.mm.checkpoints.checked_optimizer import OPTIMIZER_KEY

from . import toy
from .test_resume import by_epochs, config


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Runs of two epochs of three iterations: (folder); checkpoints by iterations and by epochs."""
    folder = tmp_path_factory.mktemp('made')
    toy.train(by_epochs(folder, 'iters', **window()))
    cfg = by_epochs(folder, 'epochs', **window())
    cfg.default_hooks.checkpoint.by_epoch = True
    toy.train(cfg)
    return folder


def window(**options):
    optimizer = dict(type='AdamW', lr=1e-2)
    return dict(optim_wrapper=dict(type='OptimWrapper', optimizer=optimizer) | options)


def go_on(folder, work_dir, checkpoint, tmp_path, **options):
    """The config of a run that resumes a checkpoint in a folder of its own."""
    cfg = by_epochs(folder, work_dir, **window(**options.pop('wrapper', {})), **options)
    cfg.work_dir, cfg.resume = str(tmp_path / 'run'), True
    cfg.load_from = str(folder / checkpoint)
    return cfg


@pytest.mark.parametrize('size', [6, 16])  # epochs of 2 and of 4 iterations
@pytest.mark.parametrize('checkpoint', ['iters/iter_3.pth', 'epochs/epoch_1.pth'])
@pytest.mark.parametrize('accumulated', [1, 3])
def test_an_epoch_of_another_length_is_gone_on_with_from_the_end_of_one(
    made, tmp_path, checkpoint, size, accumulated, capsys
):
    cfg = go_on(made, 'x', checkpoint, tmp_path, wrapper=dict(accumulative_counts=accumulated))
    cfg.train_dataloader.dataset.size = size
    cfg.train_dataloader.batch_size = 4
    by_epoch = 'epoch_1' in checkpoint
    cfg.default_hooks.checkpoint.update(by_epoch=by_epoch, interval=100)
    runner = toy.train(cfg)
    end = 3 + -(-size // 4)
    assert (runner.epoch, runner.iter, runner.max_iters) == (2, end, end)
    # The last iteration is known as such: it is saved, and steps.
    name = 'epoch_2.pth' if by_epoch else f'iter_{end}.pth'
    assert (tmp_path / 'run' / name).is_file()
    assert runner.optim_wrapper._inner_count == runner.optim_wrapper._max_counts == end
    printed = capsys.readouterr()
    assert f'ends at iteration {end} instead of' in printed.out + printed.err


def test_an_accumulation_of_another_length_is_refused_within_a_window(tmp_path):
    toy.train(config(tmp_path, 'whole', **window(accumulative_counts=4)))
    for iteration in (3, 4):
        cfg = config(tmp_path, f'from_{iteration}', resume=True, **window(accumulative_counts=2))
        cfg.load_from = str(tmp_path / f'whole/iter_{iteration}.pth')
        if iteration == 4:
            assert toy.train(cfg).iter == 6
            continue
        with pytest.raises(CheckpointError, match='3 iterations into .* would be 1 by the config'):
            toy.train(cfg)


def test_another_plan_is_refused_and_its_file_stays(made, tmp_path):
    plan = tmp_path / 'run/cdra_plan.json'
    plan.parent.mkdir()
    record = json.loads((made / 'iters/cdra_plan.json').read_text())
    assert record.pop('positions')['layers']
    plan.write_text(json.dumps(record))
    cfg = go_on(made, 'x', 'iters/iter_3.pth', tmp_path, cdra=dict(plan=str(plan)))
    assert toy.train(cfg).iter == 6  # the same one, as an earlier release wrote it
    text = plan.read_text()
    assert '"version"' in text
    toy.train(by_epochs(tmp_path, 'other', cdra=dict(budget_percent=2.0)))
    shutil.copy(tmp_path / 'other/cdra_plan.json', plan)
    edited = plan.read_text()
    cfg = go_on(made, 'x', 'iters/iter_3.pth', tmp_path, cdra=dict(plan=str(plan)))
    with pytest.raises(CheckpointError, match='another plan than plan=.*leave that setting out'):
        toy.train(cfg)
    assert plan.read_text() == edited
    plan.unlink()
    with pytest.raises(ConfigError, match='cannot be read'):
        toy.train(cfg)


def test_another_optimizer_is_refused(made, tmp_path):
    sgd = dict(optimizer=dict(type='SGD', lr=1e-2, momentum=0.9))
    adam = dict(optimizer=dict(type='Adam', lr=1e-2))
    for wrapper, own in ((sgd, 'SGD'), (adam, 'Adam')):
        cfg = go_on(made, 'x', 'iters/iter_3.pth', tmp_path, wrapper=wrapper)
        with pytest.raises(CheckpointError, match=f'an optimizer AdamW, the config has {own}'):
            toy.train(cfg)


def test_another_optimizer_is_refused_where_the_checkpoint_does_not_name_it(made, tmp_path):
    checkpoint = torch.load(made / 'iters/iter_3.pth', weights_only=False)
    del checkpoint['meta'][OPTIMIZER_KEY]  # as releases before wrote it
    (tmp_path / 'old').mkdir()
    torch.save(checkpoint, tmp_path / 'old/iter_3.pth')
    sgd = dict(optimizer=dict(type='SGD', lr=1e-2, momentum=0.9))
    for wrapper, refused in ((sgd, True), ({}, False)):
        cfg = go_on(made, 'x', 'iters/iter_3.pth', tmp_path, wrapper=wrapper)
        cfg.load_from = str(tmp_path / 'old/iter_3.pth')
        if not refused:
            assert toy.train(cfg).iter == 6
            continue
        with pytest.raises(CheckpointError, match='an optimizer of another type'):
            toy.train(cfg)


def test_settings_that_are_not_followed_are_told(made, tmp_path, capsys):
    other = dict(optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.5))
    options = dict(wrapper=other, cdra=dict(save_base=True))
    cfg = go_on(made, 'x', 'iters/iter_3.pth', tmp_path, **options)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.optim_wrapper.param_groups[0]['weight_decay'] == 0.01
    printed = capsys.readouterr()
    told = printed.out + printed.err
    assert 'lr is 0.01, not 0.003; weight_decay is 0.01, not 0.5' in told
    assert 'save_base=True is not followed' in told


def test_a_run_with_the_same_config_is_told_nothing(made, tmp_path, capsys):
    toy.train(go_on(made, 'x', 'iters/iter_3.pth', tmp_path))
    printed = capsys.readouterr()
    told = printed.out + printed.err
    assert not any(word in told for word in ('not followed', 'settings of the', 'instead of'))
