"""What leaves this package: LoRA in PEFT's format, ONNX. Each gives the outputs of the original."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip('mmengine')
pytest.importorskip('timm')

import mmengine
from mmengine.registry import MODELS, DefaultScope

import cdra_mm
from cdra_mm.core import (
    CDRAError,
    CheckpointError,
    apply_plan,
    find_targets,
    fingerprint,
    merge_adapters,
    plan_from_masks,
    plan_of,
)
from cdra_mm.core.adapters.adapted import remember_plan
from cdra_mm.methods import Request, make_method
from cdra_mm.mm.backbones import TimmViT
from cdra_mm.mm.export.cdra_format import to_cdra, write_cdra
from cdra_mm.mm.export.peft_format import to_peft, write_peft
from cdra_mm.mm.weights import convert
from tests.core.problems import move, random_masks

from . import weights_peers as peers
from .toy import SIZE, config

# timm's network, and the backbone of the same architecture.
PAIRS = {
    'vit': (peers.timm_vit, peers.mmpretrain_vit),
    'vit-mmseg': (peers.timm_vit, peers.mmseg_vit),
    'deit-distilled': (peers.timm_distilled, peers.mmpretrain_distilled),
    'dinov2': (peers.timm_dinov2, peers.mmpretrain_dinov2),
    'swiglu': (peers.timm_swiglu, peers.mmpretrain_swiglu),
}


def adapted_backbone(build, weights=None, plan=None):
    """A backbone with blocks, partly and wholly trained vectors and a token, moved by training."""
    backbone = peers.perturbed(build())
    if weights is not None:
        backbone.load_state_dict(convert(weights, backbone).weights)
    if plan is None:
        token = getattr(backbone, 'cls_token', None)
        also = {} if token is None else {'cls_token': token.numel()}
        plan = plan_from_masks(random_masks(backbone), rank_rule=2, beta=4, also_train=also)
    scaled = (replace(b, scale=1 + i % 3 / 2) for i, b in enumerate(plan.blocks))
    apply_plan(backbone, replace(plan, blocks=tuple(scaled)))
    move(backbone)
    return backbone


def exported(backbone, folder, names=None):
    adapter = to_peft(backbone, lambda: backbone(peers.image()), names)
    write_peft(adapter, folder, {'source': '{}'})
    return adapter


def peft_model(model, folder):
    peft = pytest.importorskip('peft', reason='peft (extra test) is not installed')
    return peft.PeftModel.from_pretrained(model, folder)


@pytest.mark.parametrize('pair', PAIRS)
def test_peft_puts_the_adapter_on_timm_with_equal_outputs(pair, tmp_path):
    timm, build = PAIRS[pair]
    base = timm()
    backbone = adapted_backbone(build, base.state_dict())
    adapter = exported(backbone, tmp_path / 'lora')
    assert adapter.names == 'timm' and len(set(adapter.config['rank_pattern'].values())) > 1
    before = peers.tokens(base, peers.image())
    model = peft_model(base, tmp_path / 'lora')
    inner = model.base_model.model
    assert peers.difference(inner, backbone, peers.image()) < 1e-5
    assert (before - peers.tokens(inner, peers.image())).abs().max() > 0.1
    merged = model.merge_and_unload()
    assert peers.difference(merged, backbone, peers.image()) < 1e-5
    assert sorted(p.name for p in (tmp_path / 'lora').iterdir()) == [
        'adapter_config.json',
        'adapter_model.safetensors',
    ]


def test_peft_takes_every_tensor_of_the_folder(tmp_path):
    base = peers.timm_vit()
    adapter = exported(adapted_backbone(peers.mmpretrain_vit, base.state_dict()), tmp_path / 'a')
    model = peft_model(base, tmp_path / 'a')
    held = {key.replace('.default.', '.'): value for key, value in model.state_dict().items()}
    for key, value in load_file(tmp_path / 'a' / 'adapter_model.safetensors').items():
        assert torch.equal(held[key], value), key
    assert 'cls_token' in adapter.copied and 'blocks.0.norm1.weight' in adapter.copied


def test_fused_matrix_becomes_one_lora_of_the_summed_rank(tmp_path):
    backbone = adapted_backbone(peers.mmpretrain_vit)
    plan = plan_of(backbone)
    exported(backbone, tmp_path / 'a')
    tensors = load_file(tmp_path / 'a' / 'adapter_model.safetensors')
    settings = json.loads((tmp_path / 'a' / 'adapter_config.json').read_text())
    for layer in ('0', '1'):
        blocks = [b for b in plan.blocks if b.name.startswith(f'layers.{layer}.attn.qkv.weight')]
        name = f'blocks.{layer}.attn.qkv'
        rank = sum(block.rank for block in blocks)
        assert settings['rank_pattern'][name] == rank > 2
        down = tensors[f'base_model.model.{name}.lora_A.weight']
        up = tensors[f'base_model.model.{name}.lora_B.weight']
        assert down.shape == (rank, peers.WIDTH) and up.shape == (3 * peers.WIDTH, rank)
        change = settings['alpha_pattern'][name] / rank * up @ down
        module = backbone.layers[int(layer)].attn.qkv
        expected = module.weight - module._parameters['weight']
        torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-6)


def test_peft_puts_the_adapter_on_the_backbone_itself(tmp_path):
    backbone = adapted_backbone(peers.mmpretrain_swin)
    image = peers.image(peers.SWIN_SIZE)
    adapter = to_peft(backbone, lambda: backbone(image))
    assert adapter.names == 'config'
    write_peft(adapter, tmp_path / 'a', {})
    model = peft_model(peers.perturbed(peers.mmpretrain_swin()), tmp_path / 'a')
    assert peers.difference(backbone, model.base_model.model, image) < 1e-5


def test_peft_puts_the_adapter_of_a_timm_backbone_on_timm(tmp_path):
    def build():
        sizes = dict(embed_dim=12, depth=2, num_heads=2, patch_size=8)
        return TimmViT('vit_tiny_patch16_224', img_size=16, options=sizes)

    backbone = adapted_backbone(build)
    assert exported(backbone, tmp_path / 'a').names == 'timm'
    base = build()
    peers.perturbed(base)
    peft_model(base.vit, tmp_path / 'a')
    with torch.no_grad():
        ours, theirs = backbone(peers.image())[-1], base(peers.image())[-1]
    assert (ours - theirs).abs().max() < 1e-5 and ours.std() > 0.1


@pytest.mark.parametrize('pair', PAIRS)
def test_peft_cdra_puts_the_adapter_on_timm_and_off_again(pair, tmp_path):
    pytest.importorskip('peft', '0.21', reason='peft (extra peft) is not installed')
    theirs, ours = PAIRS[pair]
    base = peers.perturbed(theirs())
    weights = base.state_dict()
    plain = peers.perturbed(ours())
    plain.load_state_dict(convert(weights, plain).weights)
    backbone = adapted_backbone(ours, weights)
    with torch.no_grad():
        before = base(peers.image())
    write_cdra(to_cdra(backbone, plain), tmp_path / 'cdra', {'source': '{}'})
    model = peft_model(base, tmp_path / 'cdra')
    assert peers.difference(backbone, model.base_model.model, peers.image()) < 1e-5
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(model(peers.image()), before)


@pytest.mark.parametrize('build', [peers.mmpretrain_swin, peers.mmpretrain_beit])
def test_peft_cdra_takes_weights_that_are_used_without_calling_their_layer(build, tmp_path):
    pytest.importorskip('peft', '0.21', reason='peft (extra peft) is not installed')
    backbone, plain = adapted_backbone(build), peers.perturbed(build())
    write_cdra(to_cdra(backbone, plain, 'config'), tmp_path / 'cdra', {'source': '{}'})
    size = peers.SWIN_SIZE if build is peers.mmpretrain_swin else peers.SIZE
    model = peft_model(peers.perturbed(build()), tmp_path / 'cdra')
    assert peers.difference(backbone, model.base_model.model, peers.image(size)) < 1e-5


def test_peft_cdra_refuses_another_base():
    pytest.importorskip('peft', '0.21', reason='peft (extra peft) is not installed')
    backbone = adapted_backbone(peers.mmpretrain_vit)
    plan = replace(
        plan_of(backbone), fingerprint=fingerprint(peers.perturbed(peers.mmpretrain_vit()))
    )
    remember_plan(backbone, plan)
    with pytest.raises(CDRAError, match='other base weights'):
        to_cdra(backbone, peers.mmpretrain_vit())
    merge_adapters(backbone)
    with pytest.raises(CDRAError, match='unmerge_adapters'):
        to_cdra(backbone, peers.mmpretrain_vit())


UNFIT = {
    'functional projection': (peers.mmseg_vit, 'config', 'out_proj.weight is used without calling'),
    'functional qkv': (peers.mmpretrain_beit, None, 'without calling its layer'),
    'bare parameter': (peers.mmseg_vit, 'config', 'bare parameter'),
    'timm names of a Swin': (peers.mmpretrain_swin, 'timm', '--names config'),
    'unknown names': (peers.mmpretrain_vit, 'torch', "names='torch'"),
}


@pytest.mark.parametrize('case', UNFIT)
def test_peft_refuses_where_its_lora_would_do_something_else(case):
    build, names, message = UNFIT[case]
    plan = None
    if case == 'bare parameter':  # q and v, which are rows of it, and nothing else
        plan = make_method(dict(type='lora', rank=2)).plan(Request(build()))
    backbone = adapted_backbone(build, plan=plan)
    size = peers.SWIN_SIZE if 'Swin' in case else peers.SIZE
    with pytest.raises(CDRAError, match=message):
        to_peft(backbone, lambda: backbone(peers.image(size)), names)


@pytest.mark.parametrize(
    ('method', 'message'),
    [
        (dict(type='adapter'), "kind 'bottleneck'"),
        (dict(type='vpt_deep', num_prompts=2), "kind 'prompts'"),
        (dict(type='rlrr'), "kind '(affine|rescaling|shift)'"),
        (dict(type='bias'), 'adapts no matrix'),
        (dict(type='gps'), "kind 'entries'"),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)
def test_peft_refuses_methods_that_are_no_low_rank_update(method, message):
    backbone = peers.perturbed(peers.mmpretrain_vit())
    scores = {name: torch.rand(t.shape) for name, t in find_targets(backbone).items()}
    plan = make_method(method).plan(Request(backbone, scores))
    apply_plan(backbone, plan)
    with pytest.raises(CDRAError, match=message):
        to_peft(backbone, lambda: backbone(peers.image()))


def test_peft_refuses_merged_adapters_and_a_plain_backbone():
    backbone = adapted_backbone(peers.mmpretrain_vit)
    merge_adapters(backbone)
    with pytest.raises(CDRAError, match='unmerge_adapters'):
        to_peft(backbone, lambda: None)
    with pytest.raises(CDRAError, match='no adapters'):
        to_peft(peers.mmpretrain_vit(), lambda: None)


@pytest.fixture
def onnx_runtime():
    pytest.importorskip('onnxscript', reason='onnxscript (extra export) is not installed')
    return pytest.importorskip('onnxruntime', reason='onnxruntime (extra export) is not installed')


def toy_model(folder, task):
    cfg = config(folder, task)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    return peers.perturbed(model)


@pytest.mark.parametrize('task', ['seg', 'cls'])
def test_onnx_file_gives_the_outputs_of_the_model(task, tmp_path, onnx_runtime):
    import onnx

    from cdra_mm.mm.export.onnx_export import export_onnx

    model, size = toy_model(tmp_path, task), (SIZE, SIZE + 8)
    assert export_onnx(model, tmp_path / 'a.onnx', (3, *size), {'classes': ['a', 'b']}) < 1e-4
    session = onnx_runtime.InferenceSession(tmp_path / 'a.onnx')
    images = torch.randn(5, 3, *size)
    (actual,) = session.run(['logits'], {'images': images.numpy()})
    with torch.no_grad():
        if task == 'seg':
            expected = model.encode_decode(images, [dict(ori_shape=size, img_shape=size)])
            assert actual.shape[2:] == size
        else:
            expected = model(images, mode='tensor')
    torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata['classes']) == ['a', 'b']
    assert json.loads(metadata['mean']) == [30.0] * 3 and json.loads(metadata['std']) == [60.0] * 3
    content = (tmp_path / 'a.onnx').read_bytes()
    for place in (torch.__file__, mmengine.__file__, cdra_mm.__file__, __file__, tmp_path):
        folder = Path(place).parent  # of the exporter, what it traced, and who asked
        assert str(folder).encode() not in content
    proto = onnx.load_from_string(content)
    for tensor in proto.graph.initializer:
        tensor.ClearField('raw_data')  # random bytes may spell anything
    assert b'.py' not in proto.SerializeToString()


def test_onnx_export_that_differs_is_refused(tmp_path, onnx_runtime, monkeypatch):
    import onnx

    from cdra_mm.mm.export import onnx_export

    program = SimpleNamespace(model_proto=onnx.ModelProto())
    monkeypatch.setattr(torch.onnx, 'export', lambda *_, **__: program)
    for difference in (1e-3, float('nan')):
        monkeypatch.setattr(onnx_export, '_difference', lambda *_, value=difference: value)
        model = toy_model(tmp_path, 'cls')
        with pytest.raises(CheckpointError, match='other outputs'):
            onnx_export.export_onnx(model, tmp_path / 'a.onnx', (3, SIZE, SIZE), {})
        assert not (tmp_path / 'a.onnx').exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(size=(SIZE, 0)), '--shape'),
        (dict(LARGEST=1000), '2 GiB'),
    ],
    ids=str,
)
def test_onnx_refuses_what_cannot_be_exported(change, message, tmp_path, onnx_runtime, monkeypatch):
    from cdra_mm.mm.export import onnx_export
    from cdra_mm.onnx_files import writing

    size = change.pop('size', (SIZE, SIZE))
    for name, value in change.items():
        monkeypatch.setattr(writing, name, value)
    with pytest.raises(CDRAError, match=message):
        onnx_export.export_onnx(toy_model(tmp_path, 'cls'), tmp_path / 'a.onnx', (3, *size), {})
