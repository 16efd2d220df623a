"""Converted weights give the features that the network they come from gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')
pytest.importorskip('timm')

from cdra_mm.mm.weights import convert, read_state_dict

from . import weights_peers as peers

BEIT = dict(use_rel_pos_bias=True, global_pool='token')
# timm adds the shared table to every block, OpenMMLab's backbones hold a copy in each.
SHARED = dict(use_shared_rel_pos_bias=True, global_pool='token')
CASES = {
    'vit': (peers.timm_vit, {}, peers.mmpretrain_vit, {}),
    'vit-mmseg': (peers.timm_vit, {}, peers.mmseg_vit, {}),
    'deit-distilled': (peers.timm_distilled, {}, peers.mmpretrain_distilled, {}),
    'deit3': (peers.timm_dinov2, dict(no_embed_class=True), peers.mmpretrain_dinov2, {}),
    'clip-like': (
        *(peers.timm_vit, dict(pre_norm=True), peers.mmpretrain_vit, dict(pre_norm=True)),
    ),
    'clip-like-mmseg': (
        *(peers.timm_vit, dict(pre_norm=True)),
        *(peers.mmseg_vit, dict(pre_norm=True, patch_bias=False)),
    ),
    'no-class-token': (
        *(peers.timm_vit, dict(class_token=False, global_pool='avg', fc_norm=False)),
        *(peers.mmpretrain_vit, dict(with_cls_token=False)),
    ),
    'dinov2': (peers.timm_dinov2, {}, peers.mmpretrain_dinov2, {}),
    'swiglu': (peers.timm_swiglu, {}, peers.mmpretrain_swiglu, {}),
    'beit': (peers.timm_beit, BEIT, peers.mmpretrain_beit, {}),
    'beit-mmseg': (peers.timm_beit, BEIT, peers.mmseg_beit, {}),
    'beit-positions': (
        *(peers.timm_beit, BEIT | dict(use_abs_pos_emb=True)),
        *(peers.mmpretrain_beit, dict(use_abs_pos_emb=True)),
    ),
    'beit-shared-to-shared': (
        *(peers.timm_beit, SHARED | dict(use_abs_pos_emb=False), peers.mmpretrain_beit),
        dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True),
    ),
    'beit-shared-to-own': (
        *(peers.timm_beit, SHARED | dict(use_abs_pos_emb=False), peers.mmpretrain_beit, {}),
    ),
    'beit-shared-mmseg': (
        *(peers.timm_beit, SHARED | dict(use_abs_pos_emb=False), peers.mmseg_beit, {}),
    ),
    'swin': (peers.timm_swin, {}, peers.mmpretrain_swin, {}),
    'swin-mmseg': (peers.timm_swin, {}, peers.mmseg_swin, {}),
}


@pytest.mark.parametrize('case', CASES)
def test_convert_keeps_the_features(case: str) -> None:
    build_peer, peer_settings, build, settings = CASES[case]
    if case.startswith('beit'):
        peer_settings = dict(use_abs_pos_emb=False) | peer_settings
    peer, backbone = build_peer(**peer_settings), build(**settings)
    load(backbone, peer.state_dict())
    images = peers.image(peers.SWIN_SIZE if case.startswith('swin') else peers.SIZE)
    assert peers.difference(peer, backbone, images) < 1e-5


def load(backbone: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Through the stock backbone's own strict load; norms that no file holds stay as they are."""
    converted = convert(state_dict, backbone)
    keys = backbone.load_state_dict(converted.weights, strict=not converted.match.initial)
    assert set(keys.missing_keys) == set(converted.match.initial) and not keys.unexpected_keys


@torch.no_grad()
@pytest.mark.parametrize('build', [peers.mmpretrain_swin, peers.mmseg_swin])
def test_swin_keeps_the_maps_of_every_stage(build: Any) -> None:
    peer, backbone = peers.timm_swin(), build()
    load(backbone, peers.original_swin(peer.state_dict()))
    x = peer.patch_embed(peers.image(peers.SWIN_SIZE))
    maps = backbone(peers.image(peers.SWIN_SIZE))
    for i, stage in enumerate(peer.layers):
        x = stage(x)
        norm = peer.norm if i == 2 else torch.nn.LayerNorm(x.shape[-1])
        assert (norm(x).permute(0, 3, 1, 2) - maps[i]).abs().max() < 1e-5


@pytest.mark.parametrize('build', [peers.mmpretrain_vit, peers.mmseg_vit])
def test_google_npz_keeps_the_features_of_its_reader(build: Any, tmp_path: Path) -> None:
    path = tmp_path / 'tiny.npz'
    peers.write_google_npz(peers.timm_vit(), path)
    peer, backbone = peers.perturbed(peers.timm_vit()), build()
    for parameter in peer.parameters():
        parameter.data.zero_()
    peer.load_pretrained(str(path))
    load(backbone, read_state_dict(path))
    assert peers.difference(peer, backbone, peers.image()) < 1e-5


def test_mae_keeps_the_features_and_drops_its_decoder() -> None:
    peer, backbone = peers.timm_vit(), peers.mmpretrain_vit()
    decoder = {f'decoder_{name}': tensor for name, tensor in peer.state_dict().items()}
    state = {k: v for k, v in peer.state_dict().items() if not k.startswith('head')}
    state = {'model': state | decoder | {'mask_token': torch.zeros(1, 1, 12)}}
    converted = convert(state, backbone)
    backbone.load_state_dict(converted.weights, strict=True)
    assert peers.difference(peer, backbone, peers.image()) < 1e-5
    assert set(converted.dropped) == {*decoder, 'mask_token'}


ROUND_TRIPS = {
    'vit': (peers.mmpretrain_vit, peers.mmseg_vit),
    'beit': (peers.mmpretrain_beit, peers.mmseg_beit),
    'swin': (peers.mmpretrain_swin, peers.mmseg_swin),
}


@pytest.mark.parametrize('case', ROUND_TRIPS)
@pytest.mark.parametrize('back', [False, True])
def test_convert_between_mmpretrain_and_mmseg_keeps_the_features(case: str, back: bool) -> None:
    build, build_other = ROUND_TRIPS[case][::-1] if back else ROUND_TRIPS[case]
    peer, other = peers.perturbed(build()), build_other()
    state = {f'backbone.{name}': tensor for name, tensor in peer.state_dict().items()}
    load(other, {'state_dict': state | {'decode_head.conv_seg.weight': torch.zeros(1)}})
    images = peers.image(peers.SWIN_SIZE if case == 'swin' else peers.SIZE)
    length = min(peers.tokens(peer, images).shape[1], peers.tokens(other, images).shape[1])
    pair = [peers.tokens(model, images)[:, -length:] for model in (peer, other)]
    assert (pair[0] - pair[1]).abs().max() < 1e-5 and pair[0].std() > 0.1
