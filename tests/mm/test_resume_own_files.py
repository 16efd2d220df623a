"""A run goes on from, and removes, its own checkpoints and nothing else."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, METRICS

from cdra_mm.core import CheckpointError
from cdra_mm.mm.checkpoints.own_files import OwnFiles
from cdra_mm.mm.checkpoints.resuming import latest_checkpoint

from . import toy
from .test_resume import config
from .test_resume_saving import checkpoints, latest, save

VALIDATIONS = count()


@METRICS.register_module(force=True)
class EverBetter(BaseMetric):
    """Each validation of this process is better than all before."""

    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict[str, float]:
        return {'loss': -float(next(VALIDATIONS))}


@HOOKS.register_module(force=True)
class HookOfTheirOwn(CheckpointHook):
    """A class of the user's, which removes as mmengine does."""


HOOK_TYPES = ['CheckpointHook', 'HookOfTheirOwn']


def short(folder: Path, work_dir: str, hook: str = 'CheckpointHook', iters: int = 4, **options):
    loop = dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=2)
    cfg = config(folder, work_dir, train_cfg=loop, val_evaluator=dict(type='EverBetter'), **options)
    cfg.default_hooks.checkpoint.update(
        type=hook, interval=2, save_best='loss', rule='less', max_keep_ckpts=1
    )
    return cfg


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A folder with the work directory of a run of four iterations."""
    folder = tmp_path_factory.mktemp('original')
    toy.train(short(folder, 'run'))
    return folder


@pytest.fixture
def original(made, tmp_path):
    """The same for one test, its pointer and its message hub with paths as after a move."""
    shutil.copytree(made, tmp_path / 'a')
    run = tmp_path / 'a/run'
    path = run / 'iter_4.pth'
    (run / 'last_checkpoint').write_text(str(path))
    change_hub(path, path, best_ckpt=str(run / 'best_loss_iter_4.pth'), last_ckpt=str(path))
    assert checkpoints(run) == ['best_loss_iter_4.pth', 'iter_4.pth']
    return tmp_path / 'a'


def change_hub(source: Path, target: Path, **info) -> None:
    checkpoint = torch.load(source, weights_only=False)
    checkpoint['message_hub']['runtime_info'].update(info)
    torch.save(checkpoint, target)


@pytest.mark.parametrize('hook', HOOK_TYPES)
def test_a_copied_work_directory_leaves_the_original_alone(original, hook, capsys):
    run, copy = original / 'run', original / 'copy'
    shutil.copytree(run, copy)
    before = {path: path.read_bytes() for path in run.glob('*.pth')}
    runner = toy.train(short(original, 'copy', hook, iters=6, resume=True))
    assert runner._load_from == str(copy / 'iter_4.pth')
    assert {path: path.read_bytes() for path in run.glob('*.pth')} == before
    # Its own outdated ones are removed.
    assert checkpoints(copy) == ['best_loss_iter_6.pth', 'iter_6.pth']
    printed = capsys.readouterr()
    assert f'going on from its own {copy}/iter_4.pth' in printed.out + printed.err


@pytest.mark.parametrize('hook', HOOK_TYPES)
@pytest.mark.parametrize('what', ['folder', 'file', 'named like ours'])
def test_what_a_checkpoint_names_is_not_removed(original, tmp_path, hook, what, capsys):
    precious = tmp_path / ('best_loss_iter_2.pth' if what == 'named like ours' else 'thesis')
    if what == 'folder':
        precious.mkdir()
        (precious / 'chapter').write_text('1')
    else:
        precious.write_text('1')
    run = original / 'run'
    change_hub(run / 'iter_4.pth', run / 'iter_4.pth', best_ckpt=str(precious))
    toy.train(short(original, 'run', hook, iters=6, resume=True))
    assert precious.exists() and (what != 'folder' or (precious / 'chapter').exists())
    printed = capsys.readouterr()
    assert f'{precious} (best_ckpt of the checkpoint that is resumed) is no' in (
        printed.out + printed.err
    )
    # The best one of before is nobody's now, and stays.
    assert checkpoints(run) == ['best_loss_iter_4.pth', 'best_loss_iter_6.pth', 'iter_6.pth']


@pytest.mark.parametrize('hook', HOOK_TYPES)
def test_a_folder_or_a_link_with_the_name_of_a_checkpoint_stays(original, hook):
    run, elsewhere = original / 'run', original / 'elsewhere'
    elsewhere.mkdir()
    (elsewhere / 'chapter').write_text('1')
    (run / 'iter_1.pth').mkdir()
    (run / 'iter_1.pth/chapter').write_text('1')
    (run / 'iter_2.pth').symlink_to(elsewhere)
    change_hub(run / 'iter_4.pth', run / 'iter_4.pth', keep_ckpt_ids=[1, 2, 4])
    toy.train(short(original, 'run', hook, iters=6, resume=True))
    assert (run / 'iter_1.pth/chapter').exists() and (elsewhere / 'chapter').exists()
    assert (run / 'iter_2.pth').is_symlink() and not (run / 'iter_4.pth').exists()


def test_a_checkpoint_of_another_folder_brings_no_numbers_to_remove(original):
    other = original / 'other'
    save(other, 'iter_4.pth')
    cfg = short(original, 'other', iters=6, resume=True)
    cfg.load_from = str(original / 'run/iter_4.pth')
    toy.train(cfg)
    assert 'iter_4.pth' in checkpoints(other), 'it is of somebody else'


@pytest.mark.parametrize(
    ('entry', 'value'),
    [
        ('keep_ckpt_ids', ['../../thesis']),
        ('keep_ckpt_ids', [True]),
        ('keep_ckpt_ids', {4: 4}),
        ('best_ckpt', 4),
        ('best_score', 'high'),
        ('best_score', []),
    ],
)
def test_entries_of_another_type_are_refused(original, entry, value):
    path = original / 'run/iter_4.pth'
    change_hub(path, path, **{entry: value})
    with pytest.raises(CheckpointError, match=f'{entry} of its runtime_info is'):
        toy.train(short(original, 'run', iters=6, resume=True))


def test_only_checkpoints_of_a_run_are_taken_for_one(tmp_path):
    save(tmp_path, 'iter_2.pth', 'merged_1.pth', 'vit-b16.pth', 'best_mIoU_iter_9.pth', 'my_7.pth')
    torch.save(
        {'state_dict': {}, 'meta': {'text': 'message_hub optimizer'}}, tmp_path / 'iter_8.pth'
    )
    (tmp_path / 'iter_9.pth').mkdir()
    said: list[str] = []
    assert latest(tmp_path, said.append) == tmp_path / 'iter_2.pth' and len(said) == 1
    # A run says how it names them, and its own come first.
    own = OwnFiles((tmp_path,), ('my_{}.pth', 'iter_{}.pth'))
    assert [path.name for path in own.numbered()] == ['my_7.pth', 'iter_2.pth']


def test_a_copy_without_checkpoints_goes_on_from_the_original_and_says_so(tmp_path):
    save(tmp_path / 'run', 'iter_2.pth', 'iter_4.pth')
    copy = tmp_path / 'copy'
    copy.mkdir()
    (copy / 'last_checkpoint').write_text(str(tmp_path / 'run/iter_4.pth'))
    said: list[str] = []
    assert latest(copy, said.append) == tmp_path / 'run/iter_4.pth'
    assert len(said) == 1 and 'no checkpoint of its own' in said[0]
    save(copy, 'iter_2.pth')  # of before the pointer was copied
    assert latest(copy, said.append) == copy / 'iter_2.pth'
    assert 'outside of this run' in said[1]


def test_checkpoints_in_an_out_dir_are_the_own_ones(tmp_path):
    cfg = config(tmp_path, 'run')
    cfg.default_hooks.checkpoint.update(out_dir=str(tmp_path / 'store'), filename_tmpl='my_{}.pth')
    own = OwnFiles.of_config(cfg)
    assert own.folders == (tmp_path / 'run', tmp_path / 'store/run')
    save(tmp_path / 'run')
    (tmp_path / 'store').mkdir()
    save(tmp_path / 'store/run', 'my_5.pth')
    assert latest_checkpoint(own, lambda _: None) == tmp_path / 'store/run/my_5.pth'
    (tmp_path / 'run/last_checkpoint').write_text(str(tmp_path / 'store/run/my_5.pth'))
    assert latest_checkpoint(own, pytest.fail) == tmp_path / 'store/run/my_5.pth'
