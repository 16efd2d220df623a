"""Files of addresses: whatever a server sends, nothing wrong enters the folder of checkpoints."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip('mmengine')

from mmengine.runner import CheckpointLoader

import cdra_mm.mm
from cdra_mm.core import CheckpointError
from cdra_mm.mm import compatibility
from cdra_mm.mm.weights import read_state_dict
from tests.data.archive_server import Behaviour, serve

assert cdra_mm.mm  # its import guards mmengine's loaders

if not hasattr(CheckpointLoader._get_checkpoint_loader('http://a/b.pth'), 'is_strict'):
    pytest.skip('this torch reads everything', allow_module_level=True)


class Call:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def file_of(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


GOOD = file_of({'state_dict': {'weight': torch.ones(2)}})
OTHER = file_of({'state_dict': {'weight': torch.zeros(2)}})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


def kept(hub: Path) -> list[str]:
    return sorted(path.name for path in hub.rglob('*') if path.is_file())


def by_mmengine(address: str) -> Any:
    return CheckpointLoader.load_checkpoint(address, map_location='cpu')['state_dict']


READERS = pytest.mark.parametrize('read', [by_mmengine, read_state_dict])


def hashed(content: bytes) -> str:
    return f'net_20230426-{hashlib.sha256(content).hexdigest()[:8]}.pth'


@READERS
def test_two_addresses_with_one_name_are_two_files(hub, read):
    with serve(Behaviour(GOOD)) as one, serve(Behaviour(OTHER)) as two:
        for _ in range(2):
            assert read(f'{one.url}/net.pth')['weight'].sum() == 2
            assert read(f'{two.url}/net.pth')['weight'].sum() == 0
        assert len(one.ranges) == len(two.ranges) == 1
    assert kept(hub) == ['net.pth', 'net.pth']


@READERS
def test_a_name_with_a_hash_is_kept_under_it_and_taken_again(hub, read):
    name = hashed(GOOD)
    with serve(Behaviour(GOOD)) as one, serve(Behaviour(OTHER)) as two:
        assert read(f'{one.url}/{name}')['weight'].sum() == 2
        assert read(f'{two.url}/{name}')['weight'].sum() == 2
        assert not two.ranges
    assert kept(hub) == [name] and (hub / name).is_file()


@READERS
def test_a_file_that_is_not_what_its_name_says_does_not_enter(hub, read):
    name = hashed(GOOD)
    with serve(Behaviour(OTHER)) as server:
        with pytest.raises(CheckpointError, match=f'{name} gives another file than its name says'):
            read(f'{server.url}/{name}')
        assert kept(hub) == []
        server.content = GOOD
        assert read(f'{server.url}/{name}')['weight'].sum() == 2


@READERS
def test_a_file_that_was_put_under_an_official_name_is_refused(hub, read):
    name = hashed(GOOD)
    hub.mkdir(parents=True)
    (hub / name).write_bytes(OTHER)
    with pytest.raises(CheckpointError, match=f'{name} is not what its name says.*delete it'):
        read(f'http://127.0.0.1:9/{name}')


@READERS
@pytest.mark.parametrize('what', ['program', 'text', 'no weights', 'cut off'])
def test_what_is_no_weight_file_does_not_enter(hub, tmp_path, read, what):
    trace = tmp_path / 'executed'
    content = {
        'program': file_of({'state_dict': {'weight': torch.ones(2)}, 'meta': Call(trace)}),
        'text': b'please log in',
        'no weights': file_of({'state_dict': {}, 'meta': 3}),
        'cut off': GOOD[:-200],
    }[what]
    with serve(Behaviour(content)) as server:
        with pytest.raises(CheckpointError, match=r'net\.pth gives no weight file: .*not kept'):
            read(f'{server.url}/net.pth')
    assert kept(hub) == [] and not trace.exists()


def test_names_of_model_zoos_are_fetched_in_the_same_way(hub, monkeypatch):
    from mmengine.runner import checkpoint

    with serve(Behaviour(OTHER)) as server:
        zoo = {'net': f'{server.url}/{hashed(GOOD)}'}
        monkeypatch.setattr(checkpoint, 'get_external_models', lambda: zoo)
        before = checkpoint.load_from_http
        with pytest.raises(CheckpointError, match='another file than its name says'):
            by_mmengine('open-mmlab://net')
    assert kept(hub) == [] and checkpoint.load_from_http is before


@pytest.mark.parametrize('address', ['http://127.0.0.1:9/', 'http://127.0.0.1:9/a/..'])
def test_an_address_without_a_file_name_is_refused(hub, address):
    with pytest.raises(CheckpointError, match='names no file'):
        compatibility.cached_file(address, print)
