"""Whatever happens while a checkpoint is written, a whole one is there to go on from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.registry import METRICS
from mmengine.runner import Runner

from cdra_mm.core import CheckpointError
from cdra_mm.mm.checkpoints.own_files import OwnFiles
from cdra_mm.mm.checkpoints.resuming import latest_checkpoint, with_resume_advice

from . import toy
from .test_life_cycle import assert_same, weights
from .test_resume import config


class Killed(BaseException):
    """What nothing of a run catches."""


@METRICS.register_module(force=True)
class FallingLoss(BaseMetric):
    """Each validation is better than the one before."""

    value = 1.0

    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict[str, float]:
        self.value /= 2
        return {'loss': self.value}


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


@pytest.fixture
def writings(monkeypatch):
    """The whole checkpoints that were there whenever one was being written."""
    seen: list[list[str]] = []
    real = LocalBackend.put

    def put(backend, data, path):
        seen.append(checkpoints(Path(path).parent))
        real(backend, data, path)

    monkeypatch.setattr(LocalBackend, 'put', put)
    return seen


def test_an_old_checkpoint_goes_after_the_new_one_is_there(tmp_path, writings):
    cfg = config(tmp_path, 'run')
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=1, interval=2)
    toy.train(cfg)
    assert writings == [[], ['iter_2.pth'], ['iter_4.pth']]
    assert checkpoints(tmp_path / 'run') == ['iter_6.pth']
    assert (tmp_path / 'run/last_checkpoint').read_text() == str(tmp_path / 'run/iter_6.pth')


def test_the_best_checkpoint_goes_after_a_better_one_is_there(tmp_path, writings):
    cfg = config(tmp_path, 'run')
    cfg.train_cfg.val_interval = 3
    cfg.default_hooks.checkpoint.update(save_best='loss', rule='less', interval=3)
    cfg.val_evaluator = dict(type='FallingLoss')
    toy.train(cfg)
    best = ['best_loss_iter_3.pth', 'best_loss_iter_6.pth']
    later = ['iter_3.pth', 'iter_6.pth']
    assert writings == [
        [], later[:1], [best[0], later[0]],  # written, best, written again with the best's name
        [best[0], later[0]], [best[0], *later], [*best, *later],
    ]  # fmt: skip
    assert checkpoints(tmp_path / 'run') == [best[1], *later]


@pytest.mark.parametrize('last_act', ['replace', 'point', 'remove'])
def test_a_run_that_dies_while_it_saves_goes_on_exactly(tmp_path, monkeypatch, last_act):
    def build(work_dir, **options):
        cfg = config(tmp_path, work_dir, **options)
        cfg.default_hooks.checkpoint.update(max_keep_ckpts=1, interval=2)
        return cfg

    def die(*_, **__):
        raise Killed

    whole = toy.train(build('whole'))
    replace = os.replace
    with monkeypatch.context() as patch:
        if last_act == 'remove':
            patch.setattr('cdra_mm.mm.checkpoints.saving.remove_own', die)
        else:
            name = 'iter_4.pth' if last_act == 'replace' else 'last_checkpoint'

            def rename(old, new):
                target = Path(new)
                if target.name == name and (target.parent / 'iter_2.pth').exists():
                    if last_act == 'replace' or (target.parent / 'iter_4.pth').exists():
                        die()
                replace(old, new)

            patch.setattr('os.replace', rename)
        with pytest.raises(Killed):
            toy.train(build('cut'))
    left = {'replace': ['iter_2.pth'], 'point': ['iter_2.pth', 'iter_4.pth']}
    assert checkpoints(tmp_path / 'cut') == left.get(last_act, left['point'])
    pointed = 'iter_4.pth' if last_act == 'remove' else 'iter_2.pth'
    assert latest(tmp_path / 'cut', pytest.fail) == tmp_path / 'cut' / pointed
    resumed = toy.train(build('cut', resume=True))
    assert_same(weights(whole), weights(resumed))
    # What was outdated when the run died is removed by its successor.
    assert checkpoints(tmp_path / 'cut') == ['iter_6.pth']


def save(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        torch.save({'state_dict': {}, 'message_hub': {}, 'optimizer': {}}, folder / name)


def latest(folder: Path, say) -> Path | None:
    return latest_checkpoint(OwnFiles((folder,)), say)


def test_latest_checkpoint_is_the_one_pointed_to(tmp_path):
    assert latest(tmp_path, pytest.fail) is None
    save(tmp_path, 'iter_2.pth', 'iter_10.pth')
    (tmp_path / 'last_checkpoint').write_text('/moved/since/iter_2.pth')
    assert latest(tmp_path, pytest.fail) == tmp_path / 'iter_2.pth'


@pytest.mark.parametrize('pointer', [None, '', 'iter_99.pth', 'iter_11.pth'])
def test_latest_checkpoint_is_the_newest_whole_one_where_the_pointer_fails(tmp_path, pointer):
    save(tmp_path, 'iter_2.pth', 'iter_10.pth', 'best_mIoU_iter_20.pth', 'notes.pth')
    (tmp_path / 'iter_11.pth').write_bytes((tmp_path / 'iter_10.pth').read_bytes()[:-100])
    if pointer is not None:
        text = str(tmp_path / pointer) if pointer else ''
        (tmp_path / 'last_checkpoint').write_text(text)
    said: list[str] = []
    assert latest(tmp_path, said.append) == tmp_path / 'iter_10.pth'
    assert len(said) == 1 and (pointer or 'last_checkpoint') in said[0]
    assert said[0].endswith(f'going on from the newest whole checkpoint, {tmp_path}/iter_10.pth')


def test_latest_checkpoint_refuses_when_none_is_whole(tmp_path):
    for name in ('iter_2.pth', 'iter_4.pth'):
        (tmp_path / name).write_bytes(b'PK half')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_4.pth'))
    with pytest.raises(CheckpointError, match=r'iter_4.pth.*no other .*\(iter_2.pth\)'):
        latest(tmp_path, pytest.fail)


def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    for wanted in ('no checkpoint was written yet', 'iter_2.pth; go on with .* --resume'):
        with pytest.raises(KeyboardInterrupt, match=wanted), with_resume_advice(tmp_path):
            raise KeyboardInterrupt
        save(tmp_path, 'iter_2.pth')
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_2.pth'))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    words = ['mount', '-t', 'tmpfs', '-o', 'size=512k', 'none', str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f'no small file system: {error}')
    if mounted.returncode:
        pytest.skip(f'no small file system: {mounted.stderr.strip()}')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path, small_disk):
    cfg = config(tmp_path, 'whole')
    whole = toy.train(cfg)
    size = (tmp_path / 'whole/iter_6.pth').stat().st_size
    cfg = config(tmp_path, 'cut')
    cfg.default_hooks.checkpoint.out_dir = str(small_disk)
    cfg.default_hooks.checkpoint.interval = 2
    filling = small_disk / 'filling'
    filling.write_bytes(bytes(512 * 1024 - 3 * size // 2))  # room for one checkpoint
    with pytest.raises(CheckpointError, match=r'iter_4.pth cannot be written.*No space.*iter_2'):
        toy.train(cfg)
    assert [path.name for path in (small_disk / 'cut').iterdir()] == ['iter_2.pth']
    filling.unlink()
    cfg = config(tmp_path, 'cut', resume=True)
    assert_same(weights(whole), weights(toy.train(cfg)))


def test_a_checkpoint_that_cannot_be_renamed_leaves_nothing_behind(tmp_path, monkeypatch):
    runner = Runner.from_cfg(config(tmp_path, 'run'))
    monkeypatch.setattr('os.replace', lambda *_: (_ for _ in ()).throw(OSError('no')))
    with pytest.raises(CheckpointError, match='cannot be written'):
        runner.train()
    assert not list((tmp_path / 'run').glob('*.pth')) + list((tmp_path / 'run').glob('.*.tmp'))
