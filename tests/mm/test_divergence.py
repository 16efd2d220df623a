"""A run that has diverged ends with an error, and its last good checkpoint stays the last."""

from __future__ import annotations

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from cdra_mm.core import CDRAError, CheckpointError, DivergedError
from cdra_mm.mm.divergence import refuse_diverged

from . import toy
from .test_resume import config
from .test_resume_saving import checkpoints


@HOOKS.register_module(force=True)
class Ruins(Hook):
    """Makes a trained tensor, or the loss alone, not finite after an iteration."""

    priority = 'VERY_HIGH'

    def __init__(self, at: int, what: str) -> None:
        self.at, self.what = at, what

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 < self.at:
            return
        head = runner.model.decode_head
        if self.what == 'weight':
            head.conv_seg.weight.data[0, 0] = float('nan')
        elif self.what == 'statistic':
            head.convs[0].bn.running_var[0] = float('inf')
        else:
            runner.message_hub.update_scalar('train/loss', float('nan'))


def ruined(folder, at, what, **options):
    return config(folder, 'run', custom_hooks=[dict(type='Ruins', at=at, what=what)], **options)


@pytest.mark.parametrize('what', ['weight', 'statistic'])
def test_nothing_is_written_of_a_run_that_has_diverged(tmp_path, what):
    cfg = ruined(tmp_path, 3, what)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    with pytest.raises(DivergedError) as caught:
        toy.train(cfg)
    message = str(caught.value)
    name = {'weight': 'decode_head.conv_seg.weight', 'statistic': 'decode_head.convs.0.bn.running'}
    assert 'at iteration 3 1 of' in message and name[what] in message
    assert f'last good checkpoint is {tmp_path}/run/iter_2.pth' in message and 'lr=0.01' in message
    assert checkpoints(tmp_path / 'run') == ['iter_2.pth']
    assert not list((tmp_path / 'run').glob('*.safetensors'))
    assert caught.value.exit_code == 1 and CDRAError.exit_code == 2


def test_a_run_without_checkpoints_stops_at_the_first_loss_that_is_not_finite(tmp_path):
    cfg = config(tmp_path, 'run')
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=1e30)
    cfg.default_hooks.checkpoint.update(interval=100, save_last=False)
    with pytest.raises(DivergedError, match=r'iteration [234] .*no checkpoint was written.*lr=1e'):
        toy.train(cfg)
    assert {path.name for path in (tmp_path / 'run').glob('*.safetensors')} == set()


def test_a_run_that_ends_as_it_diverges_writes_no_adapter_file(tmp_path):
    cfg = ruined(tmp_path, 6, 'weight')
    cfg.default_hooks.checkpoint.update(interval=100, save_last=False)
    with pytest.raises(DivergedError, match='no checkpoint was written'):
        toy.train(cfg)
    assert not (tmp_path / 'run/cdra_adapter.safetensors').exists()
    assert not (tmp_path / 'run/summary.json').exists()


def test_a_loss_that_is_not_finite_stops_nothing_while_the_weights_are(tmp_path, capsys):
    runner = toy.train(ruined(tmp_path, 5, 'loss'))
    assert runner.iter == 6 and (tmp_path / 'run/iter_6.pth').is_file()
    printed = capsys.readouterr()
    assert 'the loss of the last iteration is not finite' in printed.out + printed.err


def test_weights_that_are_not_finite_are_not_exported():
    model = torch.nn.Linear(2, 2)
    refuse_diverged(model, 'a.pth')
    model.weight.data[0, 0] = float('inf')
    with pytest.raises(CheckpointError, match='a.pth: weight is not finite'):
        refuse_diverged(model, 'a.pth')
