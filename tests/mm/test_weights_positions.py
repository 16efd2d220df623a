"""Positions of another image size, through every backbone's own way of loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')
pytest.importorskip('timm')

from cdra_mm.errors import CheckpointError
from cdra_mm.mm.backbone import attach_loader
from cdra_mm.mm.weights import convert
from cdra_mm.mm.weights.positions import resize_geometric
from tests.reference import position_embedding as reference

from . import weights_peers as peers

SIZES = [(16, 16), (32, 32), (8, 8), (24, 40)]


def loaded(backbone: torch.nn.Module, peer: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """Through init_cfg, from a file with the names of timm."""
    path = folder / 'base.pth'
    torch.save({'model': peer.state_dict()}, path)
    backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    attach_loader(backbone).init_weights()
    return backbone


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(
    ('build_peer', 'build', 'extra'),
    [
        (peers.timm_vit, peers.mmpretrain_vit, 1),
        (peers.timm_distilled, peers.mmpretrain_distilled, 2),
        (peers.timm_vit, peers.mmseg_vit, 1),
    ],
)
def test_pos_embed_equals_the_reference(
    tmp_path: Path, build_peer: Any, build: Any, extra: int, size: tuple[int, int]
) -> None:
    peer = build_peer()
    backbone = loaded(build(img_size=size), peer, tmp_path)
    grid = (size[0] // peers.PATCH, size[1] // peers.PATCH)
    expected = reference.resize(peer.pos_embed.detach(), extra, grid)
    assert backbone.pos_embed.shape == expected.shape
    assert (backbone.pos_embed - expected).abs().max() < 1e-5


def test_pos_embed_of_dinov2_goes_from_518_to_224(tmp_path: Path) -> None:
    peer = peers.timm_dinov2(img_size=518, patch_size=14, depth=1)
    arch = peers.ARCH | dict(num_layers=1)
    backbone = peers.mmpretrain_dinov2(arch=arch, img_size=224, patch_size=14)
    loaded(backbone, peer, tmp_path)
    assert peer.pos_embed.shape[1] == 1 + 37**2
    expected = reference.resize(peer.pos_embed.detach(), 1, (16, 16))
    assert (backbone.pos_embed - expected).abs().max() < 1e-5


def test_pos_embed_without_class_token_is_resized(tmp_path: Path) -> None:
    peer = peers.timm_vit()
    backbone = peers.mmpretrain_vit(with_cls_token=False, img_size=24)
    loaded(backbone, peer, tmp_path)
    expected = reference.resize(peer.pos_embed.detach()[:, 1:], 0, (6, 6))
    assert (backbone.pos_embed - expected).abs().max() < 1e-5


@pytest.mark.parametrize('build', [peers.mmpretrain_vit, peers.mmseg_vit])
def test_pos_embed_of_a_rectangle_loads_as_it_is_or_is_refused(build: Any) -> None:
    for size in ((16, 32), (16, 24)):  # 4 x 6 patches and a class token could be 5 x 5 patches
        peer, backbone = peers.timm_vit(img_size=size), build(img_size=size)
        backbone.load_state_dict(convert(peer.state_dict(), backbone).weights, strict=True)
        assert torch.equal(backbone.pos_embed, peer.pos_embed)
    state = peers.timm_vit(img_size=(16, 32)).state_dict()
    with pytest.raises(CheckpointError, match='33 positions, 1 of them .* no square'):
        convert(state, build(img_size=32))


def test_native_pos_embed_of_mmseg_is_resized_by_a_plain_load() -> None:
    """As load_from does it; mmseg itself resizes in init_weights only."""
    state = peers.perturbed(peers.mmseg_vit()).state_dict()
    backbone = attach_loader(peers.mmseg_vit(img_size=(24, 40)))
    backbone.load_state_dict(state, strict=True)
    expected = reference.resize(state['pos_embed'], 1, (6, 10))
    assert (backbone.pos_embed - expected).abs().max() < 1e-5


@pytest.mark.parametrize(('old', 'new'), [((7, 7), (13, 13)), ((7, 7), (9, 15)), ((9, 9), (7, 7))])
def test_geometric_resizing_equals_the_reference(old: Any, new: Any) -> None:
    tables = torch.randn(2, *old)
    resized = resize_geometric(tables, new)
    for table, actual in zip(tables, resized, strict=True):
        assert (actual - reference.resize_table(table, new)).abs().max() < 1e-4


TABLES = {
    'beit': (peers.timm_beit, peers.mmpretrain_beit, 3),
    'beit-mmseg': (peers.timm_beit, peers.mmseg_beit, 3),
    'swin': (peers.timm_swin, peers.mmpretrain_swin, 0),
}


@pytest.mark.parametrize('native', [False, True])
@pytest.mark.parametrize('case', TABLES)
def test_tables_equal_the_reference(tmp_path: Path, case: str, native: bool) -> None:
    """With names of timm and with OpenMMLab's own, whose interpolation SciPy no longer has."""
    build_peer, build, extra = TABLES[case]
    settings = dict(window_size=6) if case == 'swin' else dict(img_size=(24, 24))
    swin = dict(use_abs_pos_emb=False, use_rel_pos_bias=True, global_pool='token')
    peer = peers.perturbed(build()) if native else build_peer(**({} if case == 'swin' else swin))
    backbone = loaded(build(**settings), peer, tmp_path)
    modules = [m for m in backbone.modules() if hasattr(m, 'relative_position_bias_table')]
    givens = [m for m in peer.modules() if hasattr(m, 'relative_position_bias_table')]
    for module, given in zip(modules, givens, strict=True):
        old = given.relative_position_bias_table.detach()
        table = module.relative_position_bias_table.detach()
        assert table.shape[0] == 11 * 11 + extra
        for head in range(old.shape[1]):
            expected = reference.resize_table(old[:49, head].reshape(7, 7), (11, 11))
            assert (table[:121, head].reshape(11, 11) - expected).abs().max() < 1e-4
        assert torch.equal(table[121:], old[49:])
        index = module.relative_position_index
        assert index.max() == table.shape[0] - 1


def test_tables_of_a_rectangle_equal_the_reference(tmp_path: Path) -> None:
    swin = dict(use_abs_pos_emb=False, use_rel_pos_bias=True, global_pool='token')
    peer = peers.timm_beit(**swin)
    backbone = loaded(peers.mmseg_beit(img_size=(16, 24)), peer, tmp_path)
    old = peer.blocks[1].attn.relative_position_bias_table.detach()
    table = backbone.layers[1].attn.relative_position_bias_table.detach()
    expected = reference.resize_table(old[:49, 1].reshape(7, 7), (7, 11))
    assert (table[:77, 1].reshape(7, 11) - expected).abs().max() < 1e-4
    assert torch.equal(table[77:], old[49:])


def test_tables_of_mmseg_swin_are_resized_as_its_own_files_are(tmp_path: Path) -> None:
    native = peers.perturbed(peers.mmseg_swin())
    # It cannot read the index of another window, which its published files do not hold.
    known = {k: v for k, v in native.state_dict().items() if not k.endswith('position_index')}
    torch.save(known, tmp_path / 'native.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'native.pth'))
    stock = peers.mmseg_swin(window_size=6, init_cfg=init_cfg)
    stock.init_weights()
    state = {f'module.{name}': tensor for name, tensor in native.state_dict().items()}
    ours = attach_loader(peers.mmseg_swin(window_size=6))
    ours.load_state_dict(state, strict=True)
    expected = stock.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in ours.state_dict().items())
