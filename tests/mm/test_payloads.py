"""Files that would leave a mark if anything in them ran, through the ways that read them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner

from cdra_mm.analysis.run import read_run
from cdra_mm.core import CheckpointError
from cdra_mm.mm.export.merging import merge_checkpoint
from tests.reading.files import Call, Name, array, dtype, pickled

from . import toy

STEPS = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100)


def config(folder: Path, work_dir: str, **options: Any) -> Config:
    cfg = toy.config(
        folder, train_cfg=STEPS, work_dir=str(folder / work_dir), log_level='ERROR',
        cdra=dict(num_samples=4, visualize=False), **options,
    )  # fmt: skip
    cfg.default_hooks.checkpoint.interval = 1
    return cfg


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('payloads')
    toy.train(config(folder, 'run'))
    return folder


def loaded(folder: Path) -> dict[str, Any]:
    return torch.load(folder / 'run/iter_1.pth', weights_only=False)


class Marked:
    """A place that must stay empty."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / 'mark'
        self.program = f'import os\nos.mkdir({str(self.path)!r})\n'


@pytest.fixture
def mark(tmp_path: Path):
    mark = Marked(tmp_path)
    yield mark
    assert not mark.path.exists(), 'something in the file was executed'


def resume(folder: Path, path: Path) -> None:
    Runner.from_cfg(config(folder, 'resumed', resume=True, load_from=str(path))).train()


def test(folder: Path, path: Path) -> None:
    Runner.from_cfg(config(folder, 'tested', load_from=str(path))).test()


def merge(folder: Path, path: Path) -> None:
    merge_checkpoint(config(folder, 'merged'), str(path))


def analyze(folder: Path, path: Path) -> None:
    read_run(path)


test.__test__ = False  # type: ignore[attr-defined]
WAYS = [resume, test, merge, analyze]


def test_text_of_a_config_is_never_run(folder, tmp_path, mark):
    checkpoint = loaded(folder)
    exec(mark.program)  # it would leave a mark
    mark.path.rmdir()
    checkpoint['meta'] |= {'cfg': mark.program, 'config': mark.program}
    checkpoint['message_hub']['runtime_info']['cfg'] = mark.program
    torch.save(checkpoint, tmp_path / 'iter_1.pth')
    for way in WAYS:
        way(folder, tmp_path / 'iter_1.pth')
    run = read_run(tmp_path / 'iter_1.pth')
    assert run.config is None and any('--config' in line for line in run.missing)


def test_the_config_of_a_checkpoint_comes_from_the_command_line(folder, tmp_path):
    (tmp_path / 'own.py').write_text('model = dict(type="Own")\n')
    run = read_run(folder / 'run/iter_1.pth', tmp_path / 'own.py')
    assert run.config.model.type == 'Own'
    assert not any('--config' in line for line in run.missing)


EVIL_TYPE = dtype('f8', (3, '|', None, None, None, 8, 8, 63))
PAYLOADS: dict[str, tuple[Callable[[Marked], Any], str]] = {
    'a command': (lambda mark: Call(os.system, f'mkdir {mark.path}'), 'posix.system'),
    'exec': (lambda mark: Call(exec, mark.program), 'builtins.exec'),
    'a function of ours': (
        lambda mark: Call(Path.mkdir, mark.path), 'a call of what builtins.getattr gives',
    ),
    'a chain of getattr': (
        lambda mark: Call(getattr, Call(getattr, HistoryBuffer, '__init__'), '__globals__'),
        'getattr',
    ),
    'a config': (
        lambda mark: Call(Name('mmengine.config.config.Config.fromstring'), mark.program, '.py'),
        'Config.fromstring',
    ),
    'a state of a type': (lambda mark: array(EVIL_TYPE, (1,), b'0' * 8), 'another size'),
    'a state of a buffer': (
        lambda mark: Call(HistoryBuffer, state={'update': mark.program}), 'HistoryBuffer',
    ),
    'a type built by name': (
        lambda mark: Call(Name('mmengine.registry.build_from_cfg'), {'type': 'os.mkdir'}),
        'build_from_cfg',
    ),
    'a lazy object': (
        lambda mark: Call(Name('mmengine.config.lazy.LazyObject'), 'os'), 'LazyObject',
    ),
}  # fmt: skip


@pytest.mark.parametrize('payload', PAYLOADS)
@pytest.mark.parametrize('is_archive', [True, False])
def test_nothing_in_a_pickle_runs(folder, tmp_path, mark, payload, is_archive):
    make, reason = PAYLOADS[payload]
    path = tmp_path / 'iter_1.pth'
    write(path, {'state_dict': {}, 'meta': {'x': make(mark)}}, is_archive)
    for way in (merge, analyze):
        with pytest.raises(CheckpointError, match=reason) as caught:
            way(folder, path)
        assert 'iter_1.pth' in str(caught.value) and '\n' not in str(caught.value)
    with pytest.raises(CheckpointError, match=reason):
        CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


@pytest.mark.parametrize('way', WAYS)
def test_nothing_runs_in_any_command(folder, tmp_path, mark, way):
    path = tmp_path / 'iter_1.pth'
    torch.save({**loaded(folder), 'x': Call(os.mkdir, str(mark.path))}, path)
    with pytest.raises(CheckpointError, match=r'iter_1.pth holds more than .*posix.mkdir'):
        way(folder, path)


def write(path: Path, content: Any, is_archive: bool) -> None:
    """A file of torch.save whose pickle says this."""
    torch.save(0, path, _use_new_zipfile_serialization=is_archive)
    whole = path.read_bytes()
    if is_archive:
        from tests.reading.files import archive

        archive(path, pickled(content))
    else:
        start = re.search(rb'\x80\x02K\x00\.', whole)
        assert start
        path.write_bytes(whole[: start.start()] + pickled(content) + whole[start.end() :])


def test_numbers_of_numpy_are_read_without_their_state(folder, tmp_path):
    checkpoint = loaded(folder)
    checkpoint['message_hub']['runtime_info']['best_score'] = np.float64(0.5)
    torch.save(checkpoint, tmp_path / 'iter_1.pth')
    resume(folder, tmp_path / 'iter_1.pth')


FIELDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    'iteration': (lambda c: c['meta'].update(iter='1'), 'its meta has no iter'),
    'epoch': (lambda c: c['meta'].update(epoch=True), 'epoch of its meta is True'),
    'seed': (lambda c: c['meta'].update(seed=-1), 'seed of its meta is -1'),
    'meta': (lambda c: c.update(meta=[1]), 'its meta is a list'),
    'hub': (lambda c: c.update(message_hub=[]), 'its message_hub is list'),
    'logs': (
        lambda c: c['message_hub']['log_scalars'].update(a=1), 'a of its log_scalars is 1',
    ),
    'best': (
        lambda c: c['message_hub']['runtime_info'].update(best_ckpt=1), 'best_ckpt of its runtime',
    ),
    'weights': (lambda c: c['state_dict'].update(a=1), 'a of its state_dict is a int'),
    'moment': (lambda c: state(c).update(exp_avg=3.0), 'exp_avg of parameter 0'),
    'moment gone': (lambda c: state(c).pop('exp_avg'), 'exp_avg of parameter 0'),
    'moment of whole numbers': (
        lambda c: state(c).update(exp_avg=state(c)['exp_avg'].long()), 'exp_avg of parameter 0',
    ),
    'steps': (lambda c: state(c).update(step=torch.ones(3)), 'step of parameter 0'),
    'rate': (lambda c: group(c).update(lr='a'), "lr of its optimizer is 'a'"),
    'betas': (lambda c: group(c).update(betas=(0.9,)), 'betas of its optimizer'),
    'places': (lambda c: group(c).update(params='abc'), 'params of its optimizer'),
    'schedule': (
        lambda c: c['param_schedulers'][0].update(last_step=None), 'last_step of the state of its',
    ),
    'a method of a schedule': (
        lambda c: c['param_schedulers'][0].update(step=1), "has 'step', which this scheduler",
    ),
    'schedules': (lambda c: c.update(param_schedulers=[]), 'has 0 param_schedulers'),
    'midway': (lambda c: c.update(cdra_midway={'gradients': 1}), 'its gradients is a int'),
    'record': (lambda c: c['state_dict'].update({RECORD: torch.ones(3)}), 'record of the check'),
}  # fmt: skip
RECORD = 'backbone.cdra_record'


def state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint['optimizer']['state'][0]


def group(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint['optimizer']['param_groups'][0]


@pytest.mark.parametrize('field', FIELDS)
def test_a_field_of_a_wrong_type_is_one_line(folder, tmp_path, field):
    change, reason = FIELDS[field]
    checkpoint = loaded(folder)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / 'iter_1.pth')
    with pytest.raises(CheckpointError, match=reason) as caught:
        resume(folder, tmp_path / 'iter_1.pth')
    assert '\n' not in str(caught.value)
