"""Any source file in init_cfg of any backbone that our hook or wrapper has taken in hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')
pytest.importorskip('timm')

from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_checkpoint
from safetensors.torch import load_file, save_file

from cdra_mm.errors import CheckpointError
from cdra_mm.mm.backbone import attach_loader
from cdra_mm.mm.checkpoints.base_source import BaseSource
from cdra_mm.mm.checkpoints.base_weights import reproduced_names
from cdra_mm.mm.weights import convert, convert_on_load

from . import toy
from . import weights_peers as peers

BEIT = dict(use_abs_pos_emb=False, use_rel_pos_bias=True, global_pool='token')
PAIRS = {
    'mmpretrain-vit': (peers.timm_vit, {}, peers.mmpretrain_vit),
    'mmpretrain-beit': (peers.timm_beit, BEIT, peers.mmpretrain_beit),
    'mmpretrain-swin': (peers.timm_swin, {}, peers.mmpretrain_swin),
    'mmseg-vit': (peers.timm_vit, {}, peers.mmseg_vit),
    'mmseg-beit': (peers.timm_beit, BEIT, peers.mmseg_beit),
    'mmseg-swin': (peers.timm_swin, {}, peers.mmseg_swin),
}


def write(peer: nn.Module, form: str, folder: Path) -> str:
    """A peer's weights in the wrappers and formats that projects publish them in."""
    state = dict(peer.state_dict())
    path = folder / f'tiny.{form.rpartition(".")[2]}'
    if form == 'flat.safetensors':
        save_file(state, path)
    elif form == 'flat.pth':
        torch.save(state, path)
    elif form == 'model.pth':
        torch.save({'model': state, 'epoch': 3}, path)
    elif form == 'teacher.pth':
        prefixed = {f'module.backbone.{name}': tensor for name, tensor in state.items()}
        torch.save({'student': prefixed, 'teacher': prefixed}, path)
    return str(path)


def built(build: Any, **kwargs: Any) -> nn.Module:
    return attach_loader(build(**kwargs))


@pytest.mark.parametrize('form', ['flat.pth', 'flat.safetensors', 'model.pth', 'teacher.pth'])
@pytest.mark.parametrize('pair', PAIRS)
def test_init_cfg_takes_a_foreign_file(tmp_path: Path, pair: str, form: str) -> None:
    build_peer, settings, build = PAIRS[pair]
    peer = build_peer(**settings)
    init_cfg = dict(type='Pretrained', checkpoint=write(peer, form, tmp_path))
    backbone = built(build, init_cfg=init_cfg)
    backbone.init_weights()
    images = peers.image(peers.SWIN_SIZE if 'swin' in pair else peers.SIZE)
    assert peers.difference(peer, backbone, images) < 1e-5


def test_wrapper_takes_a_google_file(tmp_path: Path) -> None:
    peer, path = peers.timm_vit(), tmp_path / 'tiny.npz'
    peers.write_google_npz(peer, path)
    inner = dict(type='mmpretrain.VisionTransformer', arch=peers.ARCH, img_size=peers.SIZE)
    inner |= dict(patch_size=peers.PATCH, out_type='raw')
    inner['init_cfg'] = dict(type='Pretrained', checkpoint=str(path))
    backbone = MODELS.build(ConfigDict(type='cdra_mm.CDRABackbone', backbone=inner))
    backbone.init_weights()
    backbone.eval()
    assert peers.difference(peer, backbone, peers.image()) < 1e-5


def test_stock_mmpretrain_takes_safetensors_of_timm_without_the_hook(tmp_path: Path) -> None:
    for name, init in (('vit', {}), ('dinov2', {}), ('beit', BEIT)):
        peer = getattr(peers, f'timm_{name}')(**init)
        init_cfg = dict(type='Pretrained', checkpoint=write(peer, 'flat.safetensors', tmp_path))
        backbone = getattr(peers, f'mmpretrain_{name}')(init_cfg=init_cfg)
        backbone.init_weights()
        assert peers.difference(peer, backbone, peers.image()) < 1e-5


def test_a_classifier_of_mmpretrain_loads_into_mmseg(tmp_path: Path) -> None:
    peer = peers.perturbed(peers.mmpretrain_vit())
    state = {f'backbone.{name}': tensor for name, tensor in peer.state_dict().items()}
    path = tmp_path / 'classifier.pth'
    torch.save({'state_dict': state | {'head.layers.head.weight': torch.zeros(2)}}, path)
    backbone = built(peers.mmseg_vit, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    backbone.init_weights()
    assert peers.difference(peer, backbone, peers.image()) < 1e-5


@pytest.mark.parametrize('pair', PAIRS)
def test_native_weights_pass_through_untouched(pair: str) -> None:
    backbone = PAIRS[pair][2]()
    for prefix in ('', 'backbone.'):
        state = {prefix + name: tensor for name, tensor in backbone.state_dict().items()}
        state['decode_head.weight'] = torch.zeros(1)
        given = dict(state)
        if prefix:
            convert_on_load(backbone, given, prefix)
        else:
            del state['decode_head.weight'], given['decode_head.weight']
            convert_on_load(backbone, given, prefix)
        assert list(given) == list(state)
        assert all(given[name] is tensor for name, tensor in state.items())


def test_foreign_names_inside_a_whole_model_are_converted() -> None:
    peer = peers.timm_vit()
    model = nn.Module()
    model.backbone = built(peers.mmpretrain_vit)
    state = {f'backbone.{name}': tensor for name, tensor in peer.state_dict().items()}
    model.load_state_dict(state, strict=True)
    assert peers.difference(peer, model.backbone, peers.image()) < 1e-5


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: {k: v for k, v in s.items() if 'blocks.1' not in k}, '12 weights are missing'),
        (lambda s: {k: v for k, v in s.items() if k != 'blocks.1.norm1.bias'}, 'is incomplete'),
        (lambda s: {'layer1.0.conv1.weight': torch.zeros(1)}, r'unknown network \(layer1'),
        (lambda s: {'model': {}}, r'unknown network'),
    ],
)
@pytest.mark.parametrize('pair', ['mmpretrain-vit', 'mmseg-vit'])
def test_a_partial_match_is_an_error_and_changes_nothing(
    tmp_path: Path, pair: str, change: Any, message: str
) -> None:
    backbone = built(PAIRS[pair][2])
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    torch.save(change(dict(peers.timm_vit().state_dict())), tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(backbone, str(tmp_path / 'bad.pth'), map_location='cpu')
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize('form', ['model.pth', 'flat.safetensors'])
@pytest.mark.parametrize('pair', PAIRS)
def test_a_foreign_base_brings_back_all_but_what_no_file_holds(
    tmp_path: Path, pair: str, form: str
) -> None:
    build_peer, settings, build = PAIRS[pair]
    path = write(build_peer(**settings), form, tmp_path)
    backbone = built(build, init_cfg=dict(type='Pretrained', checkpoint=path))
    backbone.init_weights()
    back = reproduced_names(backbone, BaseSource('init_cfg', path))
    absent = {'norm0.weight', 'norm0.bias', 'norm1.weight', 'norm1.bias'} if 'swin' in pair else {}
    assert set(backbone.state_dict()) - back == set(absent)


def test_a_slim_checkpoint_finds_its_foreign_base_again(tmp_path: Path) -> None:
    peer = peers.timm_vit(
        img_size=toy.SIZE, patch_size=8, embed_dim=32, depth=3, mlp_ratio=2, num_heads=2
    )
    torch.save({'model': peer.state_dict()}, tmp_path / 'foreign.pth')
    cfg = toy.config(tmp_path)
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'foreign.pth')
    runner = toy.train(cfg)
    state = torch.load(tmp_path / 'run' / 'iter_8.pth', weights_only=False)['state_dict']
    assert 'backbone.layers.0.attn.qkv.weight' not in state and 'backbone.pos_embed' not in state

    fresh = MODELS.build(cfg.model.backbone | dict(type='mmpretrain.VisionTransformer'))
    load_checkpoint_into(attach_loader(fresh), state)
    trained = runner.model.backbone.state_dict()
    assert fresh.state_dict().keys() == trained.keys()
    assert all(torch.equal(trained[name], tensor) for name, tensor in fresh.state_dict().items())
    qkv = 'blocks.0.attn.qkv.weight'
    assert torch.equal(fresh.state_dict()['layers.0.attn.qkv.weight'], peer.state_dict()[qkv])


def load_checkpoint_into(backbone: nn.Module, state: dict[str, torch.Tensor]) -> None:
    prefix = 'backbone.'
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    backbone.load_state_dict(own, strict=True)


@pytest.mark.shared
@pytest.mark.parametrize('build', [peers.mmpretrain_vit, peers.mmseg_vit])
def test_deit_tiny_gives_the_tokens_that_timm_gives(shared: Path, build: Any) -> None:
    timm = pytest.importorskip('timm')
    path = shared / 'models/deit_tiny_in1k_timm.safetensors'
    reference = timm.create_model('deit_tiny_patch16_224').eval()
    reference.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=True)
    settings = dict(img_size=224, patch_size=16)
    settings['init_cfg'] = dict(type='Pretrained', checkpoint=str(path))
    if build is peers.mmpretrain_vit:
        settings['arch'] = 'deit-tiny'
    else:
        settings |= dict(embed_dims=192, num_layers=12, num_heads=3, mlp_ratio=4)
    backbone = built(build, **settings)
    backbone.init_weights()
    assert convert(load_file(path), backbone).match.missing == ()
    # Tokens of this file reach 200: in single precision rounding alone may come near 1e-5.
    assert peers.difference(reference.double(), backbone.double(), peers.image(224).double()) < 1e-5
