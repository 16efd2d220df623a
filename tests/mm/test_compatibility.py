"""Checkpoints of mmengine are read, and nothing in a file is executed."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip('mmengine')

from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, checkpoint

from cdra_mm.core import CheckpointError
from cdra_mm.mm.cached_files import _cache_path
from cdra_mm.mm.compatibility import TRUST, guard_checkpoints


class Call:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """As mmengine's: what lies in torch's folder of downloads is read without a limit."""
    path = Path(torch.hub.get_dir(), 'checkpoints', filename.rpartition('/')[2])
    return torch.load(path, map_location=map_location, weights_only=False)


load_from_http.__module__ = checkpoint.__name__
PLAIN = {
    prefix: getattr(loader, '__wrapped__', loader)
    for prefix, loader in CheckpointLoader._schemes.items()
} | dict.fromkeys(('http://', 'https://'), load_from_http)


@pytest.fixture(autouse=True)
def original_mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in 0.10.7: nothing in mmengine tells torch what its checkpoints hold."""

    def load_from_local(filename: str, map_location: Any = None) -> Any:
        return torch.load(filename, map_location=map_location)

    monkeypatch.delattr(checkpoint, 'get_torch_safe_globals', raising=False)
    monkeypatch.setattr(checkpoint, 'load_from_local', load_from_local)
    load_from_local.__module__ = checkpoint.__name__
    monkeypatch.setattr(checkpoint, 'load_from_http', PLAIN['https://'])
    monkeypatch.setattr(checkpoint, '_safe_torch_load', torch.load, raising=False)
    monkeypatch.setattr(CheckpointLoader, '_schemes', {**PLAIN, '': load_from_local})


def load(path: Path) -> Any:
    return CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """Weights, and beside them what a run has logged."""
    hub = MessageHub('compatibility')
    for value in (0.5, np.float32(0.25), torch.tensor(0.125)):
        hub.update_scalar('train/loss', value)
    hub.update_info('best_score', np.float64(71.5))
    meta = dict(area=np.arange(3), seen=np.ones(2, bool), mean=np.zeros(2, np.float32))
    weights = OrderedDict(weight=torch.ones(2))
    torch.save(
        dict(state_dict=weights, message_hub=hub.state_dict(), meta=meta), tmp_path / 'a.pth'
    )
    return tmp_path / 'a.pth'


def renamed(path: Path, old: str, new: str) -> Path:
    """A copy of a file of torch.save in which a module has another name."""
    copy = path.with_name('renamed.pth')
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, 'w') as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith('data.pkl'):
                assert f'c{old}\n'.encode() in content
                content = content.replace(f'c{old}\n'.encode(), f'c{new}\n'.encode())
            target.writestr(name, content)
    return copy


def test_strict_reading_gives_back_what_a_run_logged(run_file):
    with pytest.raises(UnpicklingError):
        load(run_file)
    guard_checkpoints()
    loaded = load(run_file)
    losses = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(losses, HistoryBuffer)
    assert losses.data[0].tolist() == [0.5, 0.25, 0.125] and losses.statistics('max') == 0.5
    assert loaded['message_hub']['runtime_info']['best_score'] == 71.5
    assert loaded['meta']['area'].tolist() == [0, 1, 2] and loaded['meta']['seen'].all()


@pytest.mark.parametrize('module', ['numpy.core.multiarray', 'numpy._core.multiarray'])
def test_arrays_of_either_numpy_are_read(run_file, module):
    own = np.empty(0).__reduce__()[0].__module__
    guard_checkpoints()
    loaded = load(renamed(run_file, own, module))
    assert loaded['meta']['area'].tolist() == [0, 1, 2]
    assert loaded['message_hub']['runtime_info']['best_score'] == 71.5


@pytest.mark.parametrize(
    'call',
    [
        Call(getattr, HistoryBuffer, '__init__'),
        Call(getattr, np.ndarray, 'tofile'),
        Call(eval, '1 + 1'),
        Call(os.path.join, 'a'),
    ],
)
def test_nothing_else_is_allowed(tmp_path, call):
    guard_checkpoints()
    torch.save(call, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=f'a.pth holds more than tensors.*{TRUST}'):
        load(tmp_path / 'a.pth')


@pytest.fixture(params=['archive', 'pickle'])
def hostile(request, tmp_path):
    """A checkpoint that writes a file when it is unpickled, in both formats of torch.save."""
    traces = tmp_path / 'executed'
    traces.mkdir()
    path, call = tmp_path / 'hostile.pth', Call(os.mkdir, str(traces / 'here'))
    weights = dict(weight=torch.ones(2))
    torch.save(
        dict(state_dict=weights, meta=call), path,
        _use_new_zipfile_serialization=request.param == 'archive',
    )  # fmt: skip
    yield path
    assert not list(traces.iterdir()), 'the file was executed'


def refuse(read, path, *arguments):
    with pytest.raises(CheckpointError, match='hostile.pth'):
        read(path, *arguments)


def test_the_hostile_file_would_write(hostile):
    torch.load(hostile, weights_only=False)
    (hostile.parent / 'executed' / 'here').rmdir()


@pytest.mark.parametrize('is_fork', [True, False])
def test_no_loader_of_mmengine_executes_a_file(hostile, is_fork, monkeypatch):
    def load_again(filename: str, map_location: Any = None) -> Any:
        try:
            return torch.load(filename, map_location=map_location, weights_only=True)
        except UnpicklingError:
            return torch.load(filename, map_location=map_location, weights_only=False)

    if is_fork:
        load_again.__module__ = checkpoint.__name__
        CheckpointLoader.register_scheme('', load_again, force=True)
    guard_checkpoints()
    before = os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
    refuse(load, hostile)
    # An address whose file was downloaded before.
    monkeypatch.setattr(torch.hub, '_hub_dir', str(hostile.parent / 'hub'))
    kept = _cache_path('https://nowhere.invalid/hostile.pth')
    kept.parent.mkdir(parents=True)
    shutil.copy(hostile, kept)
    refuse(load, 'https://nowhere.invalid/hostile.pth')
    assert os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD') == before


def test_no_loader_of_ours_executes_a_file(hostile):
    from cdra_mm.core.artifacts.files import read_adapter
    from cdra_mm.mm.backbones.timm_weights import load_weights
    from cdra_mm.mm.checkpoints.base_source import BaseSource
    from cdra_mm.mm.checkpoints.base_weights import load_base
    from cdra_mm.mm.inputs import check_weight_file
    from cdra_mm.mm.weights import read_state_dict

    guard_checkpoints()
    refuse(read_state_dict, hostile)
    refuse(read_adapter, hostile)
    refuse(lambda path: load_weights(torch.nn.Linear(1, 1), str(path)), hostile)
    for kind in ('checkpoint', 'init_cfg'):
        backbone = BaseModule()
        backbone.add_module('weight', torch.nn.Linear(1, 1))
        failed = load_base(backbone, BaseSource(kind, str(hostile)), lambda: False)
        assert 'CheckpointError' in failed and 'hostile.pth' in failed
    if not zipfile.is_zipfile(hostile):  # of an archive only the directory is looked at
        refuse(check_weight_file, hostile)
    renamed = hostile.with_name('hostile.pth.safetensors')
    hostile.rename(renamed)
    refuse(read_adapter, renamed)
    refuse(read_state_dict, renamed)
    refuse(read_state_dict, renamed.rename(renamed.with_suffix('.npz')))


def test_a_trusted_file_is_read_as_before(hostile, monkeypatch):
    monkeypatch.setenv(TRUST, '1')
    guard_checkpoints()
    assert load(hostile)['state_dict'].keys() == {'weight'}
    (hostile.parent / 'executed' / 'here').rmdir()


def test_files_with_the_settings_of_a_command_line_are_read(tmp_path):
    guard_checkpoints()
    settings = argparse.Namespace(lr=0.1, names=np.array(['a', 'bc']))
    torch.save(dict(model=dict(weight=torch.ones(2)), args=settings), tmp_path / 'deit.pth')
    assert vars(load(tmp_path / 'deit.pth')['args'])['lr'] == 0.1


def test_torch_itself_stays_strict(run_file):
    before = set(torch.serialization.get_safe_globals())
    guard_checkpoints()
    load(run_file)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(UnpicklingError):
        torch.load(run_file)


def test_import_of_the_package_allows_what_the_process_needs(repository, run_file):
    """In a fresh process, by mmengine's own loader, whichever mmengine is installed."""
    code = (
        'import sys, cdra_mm.mm; from mmengine.runner import CheckpointLoader\n'
        'loaded = CheckpointLoader.load_checkpoint(sys.argv[1], map_location="cpu")\n'
        'print(loaded["message_hub"]["runtime_info"]["best_score"])'
    )
    result = subprocess.run(
        [sys.executable, '-c', code, str(run_file)],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == '71.5'
