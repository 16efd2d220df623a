"""What cannot be resumed is refused by name; nothing is left out silently."""

from __future__ import annotations

import re
import struct
import zipfile

import pytest
import torch
from mmengine.runner import Runner

from cdra_mm.core import CheckpointError
from cdra_mm.mm.checkpoints.keys import RECORD_KEY

from . import toy
from .test_resume import config

RECORD = 'backbone.' + RECORD_KEY


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run with a checkpoint after each of two iterations: (folder, last checkpoint)."""
    folder = tmp_path_factory.mktemp('run')
    toy.train(short(folder, 'run'))
    return folder, torch.load(folder / 'run/iter_2.pth', weights_only=False)


def short(folder, work_dir, **options):
    loop = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100)
    return config(folder, work_dir, train_cfg=loop, **options)


def adapter_key(state, tensor):
    return next(key for key in state if '.cdra.' in key and key.endswith(f'.{tensor}'))


def without_adapters(checkpoint):
    state = checkpoint['state_dict']
    checkpoint['state_dict'] = {k: v for k, v in state.items() if '.cdra.' not in k}


def without_one_adapter(checkpoint):
    state = checkpoint['state_dict']
    prefix = adapter_key(state, 'up').removesuffix('up')
    checkpoint['state_dict'] = {k: v for k, v in state.items() if not k.startswith(prefix)}


def without_a_factor(checkpoint):
    del checkpoint['state_dict'][adapter_key(checkpoint['state_dict'], 'up')]


def with_a_short_factor(checkpoint):
    state = checkpoint['state_dict']
    state[adapter_key(state, 'up')] = state[adapter_key(state, 'up')][:-1]


def without_a_head_weight(checkpoint):
    del checkpoint['state_dict']['decode_head.conv_seg.weight']


def with_another_head(checkpoint):
    state = checkpoint['state_dict']
    state['decode_head.conv_seg.weight'] = state['decode_head.conv_seg.weight'][:2]


def without_record(checkpoint):
    del checkpoint['state_dict'][RECORD]


def with_half_a_record(checkpoint):
    state = checkpoint['state_dict']
    state[RECORD] = state[RECORD][: len(state[RECORD]) // 2]


def with_a_record_of_tomorrow(checkpoint):
    text = bytes(checkpoint['state_dict'][RECORD].tolist())
    text = re.sub(rb'"version":\d\}$', b'"version":9}', text)
    checkpoint['state_dict'][RECORD] = torch.frombuffer(bytearray(text), dtype=torch.uint8)


def without_optimizer(checkpoint):
    del checkpoint['optimizer']


def without_schedulers(checkpoint):
    del checkpoint['param_schedulers']


def without_message_hub(checkpoint):
    del checkpoint['message_hub']


def without_iteration(checkpoint):
    del checkpoint['meta']['iter']


def with_fewer_optimized(checkpoint):
    checkpoint['optimizer']['param_groups'][0]['params'].pop()


def with_moments_of_another(checkpoint):
    state = checkpoint['optimizer']['state']
    first = next(i for i, entry in state.items() if entry['exp_avg'].numel() > 1)
    state[first]['exp_avg'] = state[first]['exp_avg'][..., :-1]


def with_averages(checkpoint):
    checkpoint['ema_state_dict'] = {}


DAMAGES = {
    without_adapters: r'lacks backbone\..*\.cdra\.',
    without_one_adapter: r'lacks backbone\..*\.cdra\.',
    without_a_factor: r'lacks backbone\..*\.up',
    with_a_short_factor: r'\.up of its state_dict is .* expected',
    without_a_head_weight: 'lacks decode_head.conv_seg.weight',
    with_another_head: r'decode_head.conv_seg.weight .* is \[2, 32, 1, 1\], expected \[4, 32',
    without_record: 'not written by a run with CDRAHook',
    with_half_a_record: 'record of the checkpoint is damaged',
    with_a_record_of_tomorrow: 'record version 9',
    without_optimizer: 'has no optimizer.*load_from without resume',
    without_schedulers: 'has no param_schedulers',
    without_message_hub: 'has no message_hub',
    without_iteration: 'meta has no iter',
    with_fewer_optimized: r'its optimizer has groups of \[.* parameters, the run trains',
    with_moments_of_another: 'exp_avg of parameter .* in its optimizer is',
    with_averages: 'written with EMAHook, and the config has no',
}


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_or_foreign_checkpoint_is_refused(run, tmp_path, damage):
    folder, _ = run
    checkpoint = torch.load(folder / 'run/iter_1.pth', weights_only=False)
    damage(checkpoint)
    torch.save(checkpoint, tmp_path / 'iter_1.pth')
    cfg = short(folder, 'resumed', resume=True, load_from=str(tmp_path / 'iter_1.pth'))
    with pytest.raises(CheckpointError, match=DAMAGES[damage]):
        toy.train(cfg)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(cdra=dict(method=dict(type='lora'))), "method='cdra', the config says 'lora'"),
        (dict(cdra=dict(num_samples=4)), 'num_samples=8, the config says 4'),
        (
            dict(cdra=dict(allocation='scores')),
            "allocation='descent', the config says 'scores'",
        ),
        (dict(cdra=dict(start='random')), "start='gradient', the config says 'random'"),
        (dict(cdra=dict(max_rank=4)), 'max_rank=8, the config says 4'),
        (dict(custom_hooks=[dict(type='EMAHook')]), 'written without EMAHook, and the config has'),
    ],
    ids=['method', 'samples', 'allocation', 'start', 'rank', 'averages'],
)
def test_another_run_is_not_gone_on_with(run, options, message):
    folder, _ = run
    cfg = short(folder, 'other', resume=True, **options)
    cfg.load_from = str(folder / 'run/iter_1.pth')
    with pytest.raises(CheckpointError, match=message):
        toy.train(cfg)


@pytest.mark.parametrize('where', ['end', 'middle'])
def test_a_damaged_file_is_refused_and_whole_ones_are_named(run, tmp_path, where):
    folder, _ = run
    path = folder / 'run/iter_1.pth'
    whole = path.read_bytes()
    (tmp_path / 'iter_1.pth').write_bytes(whole)
    with zipfile.ZipFile(path) as archive:  # not in what pads its members
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    lengths = struct.unpack_from('<HH', whole, largest.header_offset + 26)
    middle = largest.header_offset + 30 + sum(lengths) + largest.file_size // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    (tmp_path / 'iter_2.pth').write_bytes(whole[:-500] if where == 'end' else flipped)
    cfg = short(folder, 'resumed', resume=True, load_from=str(tmp_path / 'iter_2.pth'))
    with pytest.raises(CheckpointError, match=r'iter_2.pth.*damaged.*whole are iter_1.pth beside'):
        toy.train(cfg)


def test_gradients_of_another_model_are_refused(run, tmp_path):
    folder, _ = run
    checkpoint = torch.load(folder / 'run/iter_1.pth', weights_only=False)
    checkpoint['cdra_midway'] = {'gradients': {'decode_head.conv_seg.bias': torch.zeros(3)}}
    torch.save(checkpoint, tmp_path / 'iter_1.pth')
    cfg = short(folder, 'resumed', resume=True, load_from=str(tmp_path / 'iter_1.pth'))
    with pytest.raises(CheckpointError, match='gradient of decode_head.conv_seg.bias fits no'):
        toy.train(cfg)


def test_resume_in_an_empty_folder_says_that_it_starts_from_the_beginning(tmp_path, capsys):
    runner = Runner.from_cfg(short(tmp_path, 'run', resume=True))
    runner.train()
    captured = capsys.readouterr()
    assert 'no checkpoint in' in captured.out + captured.err
    assert runner.iter == 2
