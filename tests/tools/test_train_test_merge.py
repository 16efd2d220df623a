"""The command lines, run as a user runs them, at tiny size."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.utils import register_all_modules

from cdra_mm.core import Plan

from .project import (
    OPTIONS,
    REPOSITORY,
    Ended,
    call,
    command,
    environment,
    finish,
    make_project,
    refusal,
    start,
    succeed,
)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder in which each way of naming the method was trained, one in a process of its own."""
    register_all_modules(init_default_scope=False)
    folder = make_project(tmp_path_factory.mktemp('project'))
    finish(start(folder, command('train', 'block.py', '--work-dir', 'block')))
    succeed(folder, 'train', 'hook.py', '--work-dir', 'hook')
    succeed(folder, 'train', 'plain.py', '--work-dir', 'options', '--cfg-options',
            'default_hooks.cdra.type=cdra_mm.CDRAHook', *OPTIONS)  # fmt: skip
    return folder


@pytest.fixture(scope='module')
def merged(project):
    """The merged checkpoint, and what the tool printed."""
    words = command('merge', 'block.py', 'block/epoch_2.pth', 'out/merged.pth')
    return project / 'out/merged.pth', finish(start(project, words))


def read(path):
    return json.loads(path.read_text())


def refuse(folder, tool, *arguments):
    """The line with which a command is refused."""
    return refusal(call(folder, tool, *arguments))


def test_three_ways_of_naming_the_method_make_one_plan(project):
    plans = [(project / way / 'cdra_plan.json').read_text() for way in ('block', 'hook', 'options')]
    assert plans[0] == plans[1] == plans[2]
    assert Plan.from_json(plans[0]).blocks


def test_train_leaves_a_summary(project):
    summary = read(project / 'block/summary.json')
    assert summary['method'] == 'cdra'
    assert 0 < summary['percent_of_backbone'] <= 5
    assert summary['checkpoint_bytes'] == (project / 'block/epoch_2.pth').stat().st_size


def test_test_gives_an_adapted_checkpoint_its_metrics_with_and_without_the_hook(project):
    finish(start(project, command(
        'test', 'plain.py', 'block/epoch_2.pth', '--work-dir', 'tested_plain',
        '--out', 'predictions.pkl',
    )))  # fmt: skip
    succeed(project, 'test', 'block.py', 'block/epoch_2.pth', '--work-dir', 'tested')
    trained = read(project / 'block/summary.json')['metrics']
    assert read(project / 'tested/summary.json')['test_metrics'] == trained
    assert read(project / 'tested_plain/summary.json')['test_metrics'] == trained
    assert (project / 'predictions.pkl').stat().st_size > 0


def test_merged_checkpoint_loads_strictly_into_the_stock_model(project, merged):
    path, printed = merged
    checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(Config.fromfile(project / 'plain.py').model)
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    assert not [key for key in checkpoint['state_dict'] if 'cdra' in key]
    base = torch.load(project / 'base.pth', weights_only=True)['state_dict']
    changed = [k for k, v in base.items() if not torch.equal(v, checkpoint['state_dict'][k])]
    plan = Plan.from_json((project / 'block/cdra_plan.json').read_text())
    names = {f'backbone.{entry.name.partition(":")[0]}' for entry in (*plan.blocks, *plan.vectors)}
    assert set(changed) == names | {f'backbone.{name}' for name in plan.also_train}
    assert 'largest difference' in printed and 'MiB' in printed


def test_merged_checkpoint_says_where_it_comes_from(merged):
    meta = torch.load(merged[0], map_location='cpu', weights_only=True)['meta']
    assert list(meta['dataset_meta']['classes']) == ['dark', 'light']
    assert meta['cdra_merged']['method'] == 'cdra'
    assert meta['cdra_merged']['settings']['method.budget_percent'] == 5.0
    assert 'CDRA' not in meta['cfg'] and 'cdra' not in meta['cfg']
    assert 'VisionTransformer' in meta['cfg']


def test_merged_checkpoint_tests_as_the_adapted_one(project, merged):
    succeed(project, 'test', 'plain.py', merged[0], '--work-dir', 'tested_merged')
    trained = read(project / 'block/summary.json')['metrics']
    assert read(project / 'tested_merged/summary.json')['test_metrics'] == trained


def test_resume_refuses_other_settings_and_goes_on_with_its_own(project):
    line = refuse(
        project, 'train', 'block.py', '--work-dir', 'other', '--resume', 'block/epoch_1.pth',
        '--cfg-options', 'cdra.budget_percent=6.0',
    )  # fmt: skip
    assert 'budget_percent' in line and '5.0' in line and '6.0' in line
    words = ('block.py', '--work-dir', 'block', '--resume')
    succeed(project, 'train', *words, '--cfg-options', 'train_cfg.max_epochs=3')
    assert (project / 'block/epoch_3.pth').is_file()


def test_train_and_test_without_the_method_are_plain_runs(project):
    succeed(project, 'train', 'plain.py', '--work-dir', 'nothing_of_ours')
    state = torch.load(project / 'nothing_of_ours/epoch_2.pth', weights_only=False)['state_dict']
    assert not [key for key in state if 'cdra' in key]
    assert not (project / 'nothing_of_ours/cdra_plan.json').exists()


def test_without_openmmlab_the_tools_say_so(project):
    code = (
        'import runpy, sys; sys.modules["mmengine"] = None; sys.argv = ["train", "plain.py"]; '
        f'runpy.run_path({str(REPOSITORY / "tools/train.py")!r}, run_name="__main__")'
    )
    ended = subprocess.run(
        [sys.executable, '-c', code], cwd=project, env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    line = refusal(Ended(ended.returncode, ended.stdout, ended.stderr))
    assert line.startswith('error: ') and 'cdra-mm[onedl]' in line


def test_foreign_checkpoint_is_refused_not_tested(project):
    torch.save({'state_dict': {'conv1.weight': torch.ones(2)}}, project / 'foreign.pth')
    line = refuse(project, 'test', 'plain.py', 'foreign.pth', '--work-dir', 'foreign')
    assert 'conv1.weight' in line and 'ImageClassifier' in line


BAD_TRAININGS = {
    'missing config': (['blok.py'], ["blok.py does not exist (did you mean 'block.py'?)"]),
    'syntax error': (['broken.py'], ['broken.py', 'SyntaxError']),
    'missing data': (
        ['block.py', '--cfg-options', 'train_dataloader.dataset.data_root=nowhere'],
        ['nowhere (train_dataloader.dataset) does not exist', 'put the data there'],
    ),
    'missing data that a command makes': (
        ['block.py', '--cfg-options', 'val_dataloader.dataset.data_prefix=nothing',
         'prepare_data=python_tools/prepare_data.py'],
        ['data/nothing (val_dataloader.dataset)', 'make it with python_tools/prepare_data.py'],
    ),
    'missing weights': (
        ['block.py', '--cfg-options', 'model.backbone.init_cfg.checkpoint=gone.pth'],
        ['gone.pth (model.backbone.init_cfg.checkpoint) does not exist'],
    ),
    'unknown key': (
        ['block.py', '--cfg-options', 'cdra.bugdet_percent=1'],
        ["no setting 'bugdet_percent'", "did you mean 'budget_percent'?"],
    ),
    'unknown method': (
        ['block.py', '--cfg-options', 'cdra.method.type=linaer'], ["did you mean 'linear'?"],
    ),
    'two budgets': (
        ['block.py', '--cfg-options', 'cdra.gamma=0.1'], ['give only one', 'gamma=0.1'],
    ),
    'contradiction': (
        ['block.py', '--cfg-options', 'default_hooks.cdra.num_samples=9'], ['num_samples=8', '9'],
    ),
    'no key=value': (['block.py', '--cfg-options', 'cdra'], ['expected key=value']),
    'value that does not fit': (
        ['block.py', '--cfg-options', 'pipeline.7.type=x'], ['--cfg-options pipeline.7.type=x'],
    ),
    'settings that are no dict': (['block.py', '--cfg-options', 'cdra=0.5'], ['expected a dict']),
    'missing plan': (['block.py', '--cfg-options', 'cdra.plan=no.json'], ['no.json']),
    'no batch size to scale by': (['block.py', '--auto-scale-lr'], ['base_batch_size']),
    'missing checkpoint': (['block.py', '--resume', 'gone.pth'], ['gone.pth (--resume)']),
    'cut off checkpoint': (['block.py', '--resume', 'cut.pth'], ['cut.pth', 'cut off']),
    'unwritable work directory': (['block.py', '--work-dir', 'base.pth/run'], ['base.pth/run']),
    'launcher of nothing': (['block.py', '--launcher', 'pytorch'], ['torchrun']),
}  # fmt: skip


@pytest.fixture
def damaged(project, monkeypatch):
    """The project with a broken config, a cut off checkpoint and one that is no checkpoint."""
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    content = (project / 'block/epoch_2.pth').read_bytes()
    (project / 'cut.pth').write_bytes(content[: len(content) // 2])
    (project / 'text.pth').write_text('not found')
    (project / 'broken.py').write_text('model = dict(\n')
    return project


@pytest.mark.parametrize('case', BAD_TRAININGS)
def test_train_refuses_in_one_line(case, damaged):
    arguments, expected = BAD_TRAININGS[case]
    if '--work-dir' not in arguments:
        arguments = [arguments[0], '--work-dir', 'refused', *arguments[1:]]
    line = refuse(damaged, 'train', *arguments)
    assert line.startswith('error: '), line
    for text in expected:
        assert text in line


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU can train in mixed precision')
def test_train_refuses_amp_without_gpu(damaged):
    assert 'needs a GPU' in refuse(damaged, 'train', 'block.py', '--amp')


@pytest.mark.parametrize('tool', ['test', 'merge'])
@pytest.mark.parametrize(
    ('name', 'expected'),
    [('gone.pth', 'does not exist'), ('cut.pth', 'cut off'), ('text.pth', 'no checkpoint'),
     ('block', 'is a folder')],
)  # fmt: skip
def test_bad_checkpoint_is_refused_in_one_line(tool, name, expected, damaged):
    out = ['never.pth'] if tool == 'merge' else []
    line = refuse(damaged, tool, 'block.py', name, *out)
    assert name in line and expected in line
    assert not (damaged / 'never.pth').exists()


BAD_MERGES = {
    'plain checkpoint': ('nothing_to_do.pth', 'new.pth', 'plain checkpoint already'),
    'other model': ('block/epoch_2.pth', 'new.pth', 'does not fit'),
    'method without adapters': ('linear.pth', 'new.pth', "'linear'"),
    'existing file': ('block/epoch_2.pth', 'nothing_to_do.pth', '--force'),
    'the base': ('block/epoch_2.pth', 'base.pth', 'is the base weights'),
    'folder': ('block/epoch_2.pth', 'data', 'is a folder'),
    'below a file': ('block/epoch_2.pth', 'base.pth/new.pth', 'base.pth is not a writable folder'),
}


@pytest.mark.parametrize('case', BAD_MERGES)
def test_merge_refuses_in_one_line(case, damaged):
    source, out, expected = BAD_MERGES[case]
    state = torch.load(damaged / 'base.pth', weights_only=True)['state_dict']
    torch.save({'state_dict': state}, damaged / 'nothing_to_do.pth')
    from cdra_mm.mm.checkpoints.record import Record

    record = Record(method='linear', plan=Plan(method='linear'))
    torch.save(
        {'state_dict': {**state, **{f'backbone.{k}': v for k, v in record.to_state().items()}}},
        damaged / 'linear.pth',
    )
    before = (damaged / 'base.pth').read_bytes()
    config = ['block.py', source, out]
    if case == 'other model':
        config += ['--cfg-options', 'model.head.num_classes=3']
    line = refuse(damaged, 'merge', *config)
    assert line.startswith('error: ') and expected in line, line
    assert (damaged / 'base.pth').read_bytes() == before
    assert not (damaged / 'new.pth').exists()
