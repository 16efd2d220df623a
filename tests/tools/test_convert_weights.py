"""tools/convert_weights.py: what it writes loads strictly, what it refuses is not written."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
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
from safetensors.torch import load_file

from cdra_mm.errors import CheckpointError
from cdra_mm.mm.weights import read_common, read_state_dict
from cdra_mm.mm.weights.architectures import backbone_config
from tests.mm import weights_peers as peers

BEIT = dict(use_abs_pos_emb=False, use_rel_pos_bias=True, global_pool='token')
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def convert(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the tool; gives its exit code, what it prints, and its error."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        tool = repository / 'tools' / 'convert_weights.py'
        monkeypatch.setattr(sys, 'argv', [str(tool), *map(str, arguments)])
        code = 0
        capsys.readouterr()
        try:
            runpy.run_path(str(tool), run_name='__main__')
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def saved(model: nn.Module, folder: Path) -> Path:
    path = folder / 'in.pth'
    torch.save({'model': model.state_dict()}, path)
    return path


SOURCES = {
    'vit': lambda: peers.timm_vit(),
    'deit-distilled': lambda: peers.timm_distilled(),
    'no-class-position': lambda: peers.timm_vit(no_embed_class=True),
    'clip-like': lambda: peers.timm_vit(pre_norm=True),
    'fc-norm': lambda: peers.timm_vit(global_pool='avg'),
    'dinov2': lambda: peers.timm_dinov2(),
    'swiglu': lambda: peers.timm_swiglu(),
    'beit': lambda: peers.timm_beit(**BEIT),
    'beit-positions': lambda: peers.timm_beit(**(BEIT | dict(use_abs_pos_emb=True))),
    'swin': lambda: peers.timm_swin(mlp_ratio=4),
}
ONLY_MMPRETRAIN = {'deit-distilled', 'dinov2', 'swiglu', 'beit-positions'}


@pytest.mark.parametrize('package', ['mmpretrain', 'mmseg'])
@pytest.mark.parametrize('source', SOURCES)
def test_the_backbone_that_a_file_asks_for_takes_it_strictly(
    tmp_path: Path, convert: Run, source: str, package: str
) -> None:
    path, out = saved(SOURCES[source](), tmp_path), tmp_path / 'out.pth'
    code, printed, error = convert(path, out, '--to', package)
    if package == 'mmseg' and source in ONLY_MMPRETRAIN:
        assert code == 2 and error.startswith(f'error: {path}: ') and not out.exists()
        return
    assert code == 0, error
    assert 'matched (' in printed and '   0 missing\n' in printed and 'dropped (head' in printed
    config = backbone_config(read_common(read_state_dict(path)), package)
    stock = MODELS.build(ConfigDict(config))
    stock.load_state_dict(torch.load(out, weights_only=True)['state_dict'], strict=True)


def test_a_config_gives_the_image_size(tmp_path: Path, convert: Run) -> None:
    peer = peers.timm_vit()
    path, out, config = saved(peer, tmp_path), tmp_path / 'out.safetensors', tmp_path / 'config.py'
    arch, size = peers.ARCH, dict(img_size=32, patch_size=4)
    config.write_text(
        "default_scope = 'mmpretrain'\n"
        f"backbone = dict(type='VisionTransformer', arch={arch}, **{size})\n"
        "model = dict(type='ImageClassifier', backbone=backbone)\n"
    )
    code, printed, error = convert(path, out, '--config', config)
    assert code == 0, error
    assert f'backbone of {config}' in printed
    stock = peers.mmpretrain_vit(**size)
    stock.load_state_dict(load_file(out), strict=True)
    assert stock.pos_embed.shape[1] == 65
    assert peers.difference(peers_at(peer, 32), stock, peers.image(32)) < 1e-5
    config.write_text(config.read_text().replace("'num_layers': 2", "'num_layers': 3"))
    code, _, error = convert(path, tmp_path / 'other.pth', '--config', config)
    assert code == 2 and '12 weights are missing' in error and error.count('\n') == 1
    config.write_text('model = dict()\n')
    code, _, error = convert(path, tmp_path / 'other.pth', '--config', config)
    assert code == 2 and 'has no model.backbone' in error


def peers_at(peer: nn.Module, size: int) -> nn.Module:
    """The peer at another image size, with the positions that the stock backbone interpolates."""
    from tests.reference.position_embedding import resize

    other = peers.timm_vit(img_size=size)
    state = dict(peer.state_dict())
    grid = (size // peers.PATCH, size // peers.PATCH)
    state['pos_embed'] = resize(state['pos_embed'], 1, grid).float()
    other.load_state_dict(state, strict=True)
    return other


def test_a_partial_match_is_written_on_demand_only(tmp_path: Path, convert: Run) -> None:
    path, out = saved(peers.timm_dinov2(), tmp_path), tmp_path / 'out.pth'
    code, printed, error = convert(path, out, '--to', 'mmseg')
    assert code == 2 and error.count('\n') == 1 and 'no layer scale there' in error
    assert '   4 unexpected (blocks.0.ls1.gamma' in printed and not out.exists()
    code, printed, error = convert(path, out, '--to', 'mmseg', '--allow-partial')
    assert code == 0, error
    state = torch.load(out, weights_only=True)['state_dict']
    peers.mmseg_vit().load_state_dict(state, strict=True)

    whole = torch.load(path, weights_only=True)['model']
    del whole['cls_token']
    torch.save(whole, path)
    code, _, error = convert(path, tmp_path / 'no_token.pth')
    assert code == 2
    config = tmp_path / 'config.py'
    config.write_text(
        f"model = dict(backbone=dict(type='mmpretrain.VisionTransformer', arch={peers.ARCH}, "
        'img_size=16, patch_size=4, layer_scale_init_value=1.0))\n'
    )
    arguments = (path, tmp_path / 'no_token.pth', '--config', config, '--allow-partial')
    code, printed, error = convert(*arguments)
    assert code == 0 and '   1 missing (cls_token)' in printed, error
    state = torch.load(tmp_path / 'no_token.pth', weights_only=True)['state_dict']
    assert 'cls_token' not in state and 'layers.1.attn.gamma1.weight' in state


@pytest.mark.parametrize(
    ('state', 'message'),
    [
        ({}, 'holds no weights'),
        ({'layer1.0.conv1.weight': torch.zeros(1)}, 'unknown network'),
        ({'blocks.0.attn.qkv.weight': torch.zeros(36, 12)}, 'patch_embed.proj.weight is missing'),
    ],
)
def test_foreign_files_end_in_one_line(
    tmp_path: Path, convert: Run, state: Any, message: str
) -> None:
    torch.save(state, tmp_path / 'in.pth')
    code, _, error = convert(tmp_path / 'in.pth', tmp_path / 'out.pth')
    assert code == 2 and error.count('\n') == 1 and message in error
    assert [path.name for path in tmp_path.iterdir()] == ['in.pth']


def test_nothing_is_overwritten(tmp_path: Path, convert: Run) -> None:
    path, out = saved(peers.timm_vit(), tmp_path), tmp_path / 'out.pth'
    before = path.read_bytes()
    code, _, error = convert(path, path, '--force')
    assert code == 2 and 'is the file to convert' in error and path.read_bytes() == before
    out.write_text('kept')
    code, _, error = convert(path, out)
    assert code == 2 and '--force replaces it' in error and out.read_text() == 'kept'
    code, _, error = convert(path, out, '--force')
    assert code == 2 and 'no file of weights alone' in error and out.read_text() == 'kept'
    torch.save({'state_dict': {}}, out)
    assert convert(path, out, '--force')[0] == 0
    for name, part in (('out.txt', 'ends in .pth'), ('in.pth/out.pth', 'not a writable folder')):
        code, _, error = convert(path, tmp_path / name)
        assert code == 2 and part in error
    code, _, error = convert(tmp_path / 'none.pth', tmp_path / 'other.pth')
    assert code == 2 and 'does not exist' in error


def test_a_file_without_positions_is_refused() -> None:
    state = peers.timm_vit().state_dict()
    del state['pos_embed']
    with pytest.raises(CheckpointError, match='no positions'):
        backbone_config(read_common(state), 'mmpretrain')


@pytest.mark.shared
def test_deit_tiny_keeps_the_tokens_of_timm(tmp_path: Path, convert: Run, shared: Path) -> None:
    timm = pytest.importorskip('timm')
    path, out = shared / 'models/deit_tiny_in1k_timm.safetensors', tmp_path / 'out.pth'
    code, printed, error = convert(path, out)
    assert code == 0, error
    assert '150 matched' in printed and '2 dropped' in printed
    reference = timm.create_model('deit_tiny_patch16_224').eval()
    reference.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=True)
    stock = peers.mmpretrain_vit(arch='deit-tiny', img_size=224, patch_size=16)
    stock.load_state_dict(torch.load(out, weights_only=True)['state_dict'], strict=True)
    # Tokens of this file reach 200: in single precision rounding alone may come near 1e-5.
    assert peers.difference(reference.double(), stock.double(), peers.image(224).double()) < 1e-5
