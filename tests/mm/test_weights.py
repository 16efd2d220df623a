"""timm weights under mmpretrain's names: the same tokens, and nothing loaded by halves."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.runner import CheckpointLoader
from mmpretrain.models import VisionTransformer
from safetensors.torch import save_file

from cdra_mm.core.errors import CheckpointError
from cdra_mm.mm.weights import (
    compare_weights,
    convert_timm_vit,
    load_vit_weights,
    read_vit_weights,
    require_block_weights,
)

ARCH = dict(embed_dims=12, num_layers=2, num_heads=2, feedforward_channels=24)


def tiny_timm(**kwargs) -> torch.nn.Module:
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=2, mlp_ratio=2, num_classes=5,
        **kwargs,
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def tiny_mm(checkpoint: str | None = None, **kwargs) -> VisionTransformer:
    init_cfg = dict(type='Pretrained', checkpoint=checkpoint) if checkpoint else None
    settings = dict(arch=ARCH, img_size=16, patch_size=4, out_type='raw') | kwargs
    backbone = VisionTransformer(init_cfg=init_cfg, **settings)
    backbone.eval()  # which does not return the backbone
    return backbone


@torch.no_grad()
def tokens_differ(timm_model: torch.nn.Module, mm_model: torch.nn.Module, size: int) -> float:
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    image = image.to(mm_model.pos_embed.dtype)
    expected = timm_model.forward_features(image)
    assert expected.std() > 0.1
    return (mm_model(image)[0] - expected).abs().max().item()


def test_init_cfg_reads_safetensors_through_stock_mmengine(tmp_path: Path) -> None:
    timm_model = tiny_timm()
    path = str(tmp_path / 'tiny.safetensors')
    save_file(timm_model.state_dict(), path)
    backbone = tiny_mm(path)
    backbone.init_weights()
    assert tokens_differ(timm_model, backbone, 16) < 1e-5


def test_layer_scale_is_renamed() -> None:
    timm_model = tiny_timm(init_values=1e-2)
    backbone = tiny_mm(layer_scale_init_value=1e-5)
    backbone.load_state_dict(convert_timm_vit(timm_model.state_dict()), strict=True)
    assert tokens_differ(timm_model, backbone, 16) < 1e-5


def test_swiglu_is_renamed() -> None:
    backbone = tiny_mm(layer_cfgs=dict(ffn_type='swiglu_fused'), layer_scale_init_value=1.0)
    outer = ('cls_token', 'pos_embed', 'mask_token', 'patch_embed.proj.weight', 'norm.weight')
    block = ('norm1.weight', 'attn.qkv.bias', 'mlp.w12.weight', 'mlp.w3.bias', 'ls2.gamma')
    names = [*outer, *(f'blocks.{i}.{name}' for i in (0, 1) for name in block)]
    converted = convert_timm_vit({name: torch.zeros(1) for name in names})
    assert len(converted) == len(names) - 1
    assert converted.keys() <= backbone.state_dict().keys()


def test_half_precision_becomes_float32_and_the_classifier_is_dropped() -> None:
    state_dict = {name: tensor.half() for name, tensor in tiny_timm().state_dict().items()}
    converted = convert_timm_vit(state_dict)
    assert {tensor.dtype for tensor in converted.values()} == {torch.float32}
    assert not any('head' in name for name in converted)


def test_names_of_mmpretrain_pass_through(tmp_path: Path) -> None:
    state_dict = tiny_mm().state_dict()
    save_file(state_dict, tmp_path / 'mm.safetensors')
    assert read_vit_weights(tmp_path / 'mm.safetensors').keys() == state_dict.keys()


def test_addresses_keep_their_own_loader() -> None:
    loader = CheckpointLoader._get_checkpoint_loader
    assert loader('folder/a.safetensors').__name__ == 'load_from_safetensors'
    assert loader('https://example.org/a.safetensors').__name__ == 'load_from_http'
    assert loader('folder/a.pth').__name__ == 'load_from_local'


def without(state_dict: dict, *names: str) -> dict:
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith(names)}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: without(s, 'blocks.1.mlp.fc2.bias'), r'blocks 0 and 1 differ in ffn\.layers\.1'),
        (lambda s: without(s, 'blocks.0.'), r'blocks are missing: the file holds only \[1\]'),
        (lambda s: without(s, 'blocks.'), r'no block: expected names such as blocks\.0'),
        (lambda s: s | {'blocks.0.attn.q_bias': s['cls_token']}, r'blocks\.0\.attn\.q_bias has no'),
        (lambda s: s | {'reg_token': s['cls_token'].clone()}, r'no register tokens'),
    ],
)
def test_incomplete_or_foreign_blocks_are_refused(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / 'odd.safetensors'
    save_file({k: v.clone() for k, v in change(tiny_timm().state_dict()).items()}, path)
    with pytest.raises(CheckpointError, match=rf'odd\.safetensors: .*{message}'):
        read_vit_weights(path)


@pytest.mark.parametrize(
    ('other', 'word'),
    [
        (dict(arch=ARCH | dict(num_layers=3)), 'missing'),
        (dict(arch=ARCH | dict(num_layers=1)), 'unexpected'),
        (dict(arch=ARCH | dict(feedforward_channels=36)), 'reshaped'),
        (dict(layer_scale_init_value=1.0), 'missing'),
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path: Path, other, word: str) -> None:
    path = tmp_path / 'tiny.safetensors'
    save_file(tiny_timm().state_dict(), path)
    backbone = tiny_mm(**other)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf'block weights are {word} \(first: layers\.'):
        load_vit_weights(backbone, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_comparison_counts_what_lies_outside_the_blocks() -> None:
    backbone = tiny_mm()
    state_dict = without(backbone.state_dict(), 'ln1') | {'fc_norm.weight': torch.ones(12)}
    match = require_block_weights(backbone, state_dict)
    assert match == compare_weights(backbone, state_dict)
    assert match.missing == ('ln1.weight', 'ln1.bias')
    assert '2 missing (ln1.weight, ln1.bias), 1 unexpected (fc_norm.weight)' in str(match)


def test_position_embedding_of_another_image_size_is_resized(tmp_path: Path) -> None:
    save_file(tiny_timm().state_dict(), tmp_path / 'tiny.safetensors')
    backbone = tiny_mm(img_size=32)
    match = load_vit_weights(backbone, tmp_path / 'tiny.safetensors')
    assert not match.reshaped and backbone.pos_embed.shape == (1, 65, 12)
    assert backbone.pos_embed.abs().max() > 0


@pytest.mark.parametrize('damage', ['missing', 'truncated', 'empty'])
def test_unreadable_files_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / 'tiny.safetensors'
    if damage != 'missing':
        save_file(tiny_timm().state_dict(), path)
        path.write_bytes(path.read_bytes()[: -100 if damage == 'truncated' else 0])
    message = 'does not exist: put it there' if damage == 'missing' else 'is not a readable'
    with pytest.raises(CheckpointError, match=rf'tiny\.safetensors {message}'):
        tiny_mm(str(path)).init_weights()


@pytest.mark.shared
def test_deit_tiny_gives_the_tokens_that_timm_gives(shared: Path) -> None:
    timm = pytest.importorskip('timm')
    path = shared / 'models/deit_tiny_in1k_timm.safetensors'
    from safetensors.torch import load_file

    reference = timm.create_model('deit_tiny_patch16_224').eval()
    reference.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=True)
    backbone = tiny_mm(str(path), arch='deit-tiny', img_size=224, patch_size=16)
    backbone.init_weights()
    assert not compare_weights(backbone, read_vit_weights(path)).missing
    # Tokens of this file reach 200: in single precision rounding alone may come near 1e-5.
    assert tokens_differ(reference.double(), backbone.double(), 224) < 1e-5
