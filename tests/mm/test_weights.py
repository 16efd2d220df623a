"""Weight files of other projects: read without running code, recognised, refused when not whole."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')
pytest.importorskip('timm')

from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from cdra_mm.errors import CheckpointError
from cdra_mm.mm.weights import compare, convert, read_common, read_state_dict
from tests.data.archive_server import Behaviour, serve

from . import weights_peers as peers


def saved(state: Any, folder: Path, name: str = 'tiny.pth') -> Path:
    if name.endswith('safetensors'):
        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    return folder / name


@pytest.fixture
def timm_state() -> dict[str, Tensor]:
    return dict(peers.timm_vit().state_dict())


# Reading.


def test_read_gives_raw_names_and_types(tmp_path: Path, timm_state: dict[str, Tensor]) -> None:
    state = {name: tensor.half() for name, tensor in timm_state.items()}
    args = argparse.Namespace(model='mae', folder=['a'])
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    files = [
        saved(state, tmp_path, 'a.safetensors'),
        saved(state, tmp_path, 'b.bin'),
        saved({'model': state, 'args': args, 'epoch': 3}, tmp_path, 'c.pth'),
        saved({'student': {}, 'teacher': state, 'loss': np.float64(1)}, tmp_path, 'd.pt'),
        saved({'state_dict': state, 'message_hub': {'loss': history}}, tmp_path, 'e.pth'),
        saved({'model': {'module': state}}, tmp_path, 'f.pth'),
    ]
    for file in files:
        read = read_state_dict(file)
        assert read.keys() == state.keys(), file
        assert all(torch.equal(read[name], state[name]) for name in state)
        assert {tensor.dtype for tensor in read.values()} == {torch.float16}


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), 'w'))


@pytest.mark.parametrize('legacy', [False, True])
def test_read_never_runs_code_of_a_pickle(tmp_path: Path, legacy: bool) -> None:
    trap = tmp_path / 'sprung'
    file = tmp_path / 'bad.pth'
    state = {'model': {'weight': torch.zeros(1)}, 'args': Trap(trap)}
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r'bad\.pth holds more than tensors .*open'):
        read_state_dict(file)
    file.write_bytes(pickle.dumps(state))
    with pytest.raises(CheckpointError, match=r'bad\.pth '):
        read_state_dict(file)
    assert not trap.exists()
    file = tmp_path / 'bad.npz'
    np.savez(file, weight=np.array([Trap(trap)], dtype=object))
    with pytest.raises(CheckpointError, match=r'bad\.npz is not a readable npz file of numbers'):
        read_state_dict(file)
    assert not trap.exists()


@pytest.mark.parametrize('name', ['tiny.pth', 'tiny.safetensors', 'tiny.npz'])
@pytest.mark.parametrize('damage', ['missing', 'truncated', 'cut to 40 bytes', 'empty', 'folder'])
def test_unreadable_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    if name.endswith('npz'):
        peers.write_google_npz(peers.timm_vit(), path)
    else:
        saved(dict(peers.timm_vit().state_dict()), tmp_path, name)
    whole = path.read_bytes()
    path.unlink()
    if damage == 'folder':
        path.mkdir()
    elif damage != 'missing':
        path.write_bytes(whole[: {'truncated': -100, 'cut to 40 bytes': 40}.get(damage, 0)])
    with pytest.raises(
        CheckpointError, match=rf'{name}.* (does not exist|is a folder|damaged|truncated|is n)'
    ):
        read_state_dict(path)


@pytest.mark.parametrize('state', [{}, {'model': {}}, [], {'epoch': 3}])
def test_a_file_without_weights_is_refused(tmp_path: Path, state: Any) -> None:
    with pytest.raises(CheckpointError, match='holds no weights'):
        read_state_dict(saved(state, tmp_path))


# Addresses.


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


def test_read_takes_addresses_and_keeps_the_file(
    tmp_path: Path, hub: Path, timm_state: dict[str, Tensor]
) -> None:
    file = saved({'model': timm_state}, tmp_path)
    with serve(Behaviour(file.read_bytes())) as server:
        address = f'{server.url}/tiny.pth?download=1'
        assert read_state_dict(address).keys() == timm_state.keys()
        assert read_state_dict(address).keys() == timm_state.keys()
        assert len(server.ranges) == 1
    assert [path.name for path in hub.rglob('*') if path.is_file()] == ['tiny.pth']


def test_a_failed_download_is_named_and_leaves_no_file(hub: Path) -> None:
    with serve(Behaviour(b'', statuses=[404])) as server:
        address = f'{server.url}/tiny.pth'
        with pytest.raises(CheckpointError, match=rf'cannot download {address}.*404'):
            read_state_dict(address)
    assert not any(path.is_file() for path in hub.rglob('*'))


@pytest.mark.parametrize('name', ['tiny.safetensors', 'tiny.npz'])
def test_mmengine_reads_addresses(tmp_path: Path, hub: Path, name: str) -> None:
    peer, path = peers.timm_vit(), tmp_path / name
    if name.endswith('npz'):
        peers.write_google_npz(peer, path)
    else:
        save_file(peer.state_dict(), path)
    with serve(Behaviour(path.read_bytes())) as server:
        address = f'{server.url}/{name}'
        init_cfg = dict(type='Pretrained', checkpoint=address)
        backbone = peers.mmpretrain_vit(init_cfg=init_cfg)
        backbone.init_weights()
    assert list(hub.rglob(name))
    assert peers.difference(peer, backbone, peers.image()) < 1e-5


def test_other_paths_and_addresses_keep_their_loader() -> None:
    def loader(path: str) -> str:
        return CheckpointLoader._get_checkpoint_loader(path).__name__

    ours = 'load_from_weight_file'
    for path in ('a/b.safetensors', 'b.npz', 'http://a/b.npz', 'https://a/b.safetensors?x=1#y'):
        assert loader(path) == ours, path
    assert loader('a/b.pth') == 'load_from_local'
    assert loader('https://a/b.pth') == 'load_from_http'
    assert loader('https://a/npz/b.pth?name=c.npz') == 'load_from_http'
    assert loader('s3://a/b.safetensors') == 'load_from_ceph'


def test_mmengine_gets_unknown_networks_as_they_are(tmp_path: Path) -> None:
    state = {'layer1.0.conv1.weight': torch.ones(1).half()}
    loaded = CheckpointLoader.load_checkpoint(str(saved(state, tmp_path, 'resnet.safetensors')))
    assert loaded['state_dict'].keys() == state.keys()


def test_mmengine_gets_native_names_untouched(tmp_path: Path) -> None:
    for build in (peers.mmpretrain_vit, peers.mmpretrain_beit, peers.mmpretrain_swin):
        state = build().state_dict()
        loaded = CheckpointLoader.load_checkpoint(str(saved(state, tmp_path, 'a.safetensors')))
        assert loaded['state_dict'].keys() == state.keys()
        assert all(torch.equal(loaded['state_dict'][name], state[name]) for name in state)


# What is recognised and what is refused.


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(names)}


@pytest.mark.parametrize(
    'prefix', ['module.', 'backbone.', 'module.backbone.', 'teacher.backbone.']
)
def test_prefixes_and_what_lies_beside_them_are_taken_off(
    timm_state: dict[str, Tensor], prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in timm_state.items()}
    state |= {'student.backbone.cls_token': torch.zeros(1), prefix + 'dino_head.mlp.0.weight': 0}
    state['dino_head.last_layer.weight'] = torch.zeros(1)
    converted = convert({'teacher': state}, peers.mmpretrain_vit())
    plain = convert(timm_state, peers.mmpretrain_vit())
    assert converted.weights.keys() == plain.weights.keys()
    assert {
        'student.backbone.cls_token',
        'dino_head.last_layer.weight',
        f'{prefix}head.bias',
    } <= set(converted.dropped)


def test_half_precision_becomes_float32(timm_state: dict[str, Tensor]) -> None:
    state = {name: tensor.half() for name, tensor in timm_state.items()}
    converted = convert(state, peers.mmpretrain_vit())
    assert {tensor.dtype for tensor in converted.weights.values()} == {torch.float32}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: without(s, 'blocks.1.mlp.fc2.bias'), r'blocks\.1 differ in mlp\.fc2\.bias'),
        (lambda s: without(s, 'blocks.0.'), r'blocks are missing: the file holds only \[1\]'),
        (lambda s: without(s, 'blocks.'), r'unknown network \(cls_token'),
        (
            lambda s: s | {'blocks.0.cross.weight': s['cls_token']},
            r'blocks\.0\.cross\.weight is no',
        ),
        (
            lambda s: s | {'layer1.conv.weight': s['cls_token']},
            r'layer1\.conv\.weight is no weight',
        ),
        (lambda s: {'layer1.0.conv1.weight': s['cls_token']}, r'unknown network \(layer1'),
        (lambda s: {}, r'unknown network'),
    ],
)
def test_foreign_or_incomplete_files_are_refused(
    timm_state: dict[str, Tensor], change: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_common(change(timm_state))


@pytest.mark.parametrize(
    ('build_peer', 'build', 'settings', 'message'),
    [
        ('timm_vit', 'mmpretrain_vit', dict(arch=peers.ARCH | dict(num_layers=3)), '12 .*missing'),
        (
            'timm_vit',
            'mmpretrain_vit',
            dict(arch=peers.ARCH | dict(num_layers=1)),
            '12 .*unexpected',
        ),
        ('timm_vit', 'mmpretrain_vit', dict(patch_size=8), r'reshaped \(first: patch_embed'),
        ('timm_vit', 'mmpretrain_vit', dict(layer_scale_init_value=1.0), 'missing.*gamma1'),
        (
            'timm_vit',
            'mmpretrain_vit',
            dict(qkv_bias=False),
            r'unexpected \(first: layers\.0\.attn',
        ),
        ('timm_vit', 'mmseg_vit', dict(patch_bias=False), r'set patch_bias=True.*unexpected'),
        ('timm_vit', 'mmseg_vit', dict(mlp_ratio=3), 'reshaped'),
        ('timm_dinov2', 'mmpretrain_vit', {}, r'set layer_scale_init_value .*unexpected'),
        ('timm_dinov2', 'mmseg_vit', {}, r'no layer scale there: use mmpretrain'),
        ('timm_swiglu', 'mmpretrain_dinov2', {}, r'swiglu_fused'),
        ('timm_distilled', 'mmpretrain_vit', {}, r'unexpected \(first: dist_token'),
        ('timm_distilled', 'mmseg_vit', {}, r'dist_token .*mmpretrain\.DistilledVision'),
        ('timm_beit', 'mmpretrain_vit', {}, r'it is a BEiT'),
        ('timm_vit', 'mmseg_beit', {}, r'blocks\.0|pos_embed|unexpected'),
        ('timm_swin', 'mmpretrain_vit', {}, r'no counterpart there'),
        ('timm_vit', 'mmpretrain_swin', {}, r'no counterpart there'),
        ('timm_swin', 'mmseg_swin', dict(depths=(2, 2, 1)), r'13 weights are missing'),
    ],
)
def test_weights_of_another_architecture_are_refused(
    build_peer: str, build: str, settings: dict[str, Any], message: str
) -> None:
    extra = dict(use_abs_pos_emb=False, use_rel_pos_bias=True) if build_peer == 'timm_beit' else {}
    state = getattr(peers, build_peer)(**extra).state_dict()
    with pytest.raises(CheckpointError, match=message):
        convert(state, getattr(peers, build)(**settings))


def test_register_tokens_are_refused_with_what_to_use() -> None:
    state = peers.timm_vit(reg_tokens=2).state_dict()
    with pytest.raises(
        CheckpointError, match='reg_token.*register tokens are known to .*timm only'
    ):
        convert(state, peers.mmpretrain_vit())


def test_other_backbones_take_nothing(timm_state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match='Linear takes no weights of other projects'):
        convert(timm_state, torch.nn.Linear(1, 1))


def test_comparison_tells_what_stays_initialised(timm_state: dict[str, Tensor]) -> None:
    match = compare(without(timm_state, 'norm.'), peers.mmpretrain_vit()).match
    assert match.initial == ('ln1.weight', 'ln1.bias') and not match.missing
    assert '2 left as initialised (ln1.weight, ln1.bias)' in str(match)
    match = compare(without(timm_state, 'cls_token'), peers.mmpretrain_vit()).match
    assert match.missing == ('cls_token',)
