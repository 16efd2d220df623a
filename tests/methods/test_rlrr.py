"""RLRR: rescaled weights, shifted biases, affine norms; all of it merges."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cdra_mm.core import (
    Part,
    Plan,
    PlanError,
    adapters,
    apply_plan,
    build_adapters,
    find_targets,
    load_adapter,
    merge_adapters,
    remove_adapters,
    save_adapter,
    unmerge_adapters,
)
from cdra_mm.methods import Request, make_method
from tests.core.problems import move
from tests.models import MODELS, images
from tests.reference.rlrr import dense_output

KINDS = {
    **{kind: (MODELS[kind], 8) for kind in ('fused', 'swiglu', 'mha', 'windowed')},
    'timm_vit': (
        lambda: VisionTransformer(
            img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=3
        ),
        16,
    ),
    'timm_swin': (
        lambda: SwinTransformer(
            img_size=16,
            patch_size=2,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(2, 2),
            window_size=4,
            num_classes=3,
        ),
        16,
    ),
}


def plan_for(model):
    return make_method({'type': 'rlrr'}).plan(Request(model, also_train={'cls_token': 8}))


def adapted(kind, dtype=torch.float64):
    """The base, its adapted twin, both in eval mode, and images."""
    torch.manual_seed(0)
    build, size = KINDS[kind]
    base = build().to(dtype).eval()
    model = copy.deepcopy(base)
    apply_plan(model, plan_for(model))
    x = images(2, dtype)[0] if size == 8 else torch.randn(2, 3, size, size, dtype=dtype)
    return base, model, x


def trained_tensors(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('kind', KINDS)
def test_rlrr_equals_dense_weights_with_gradients(kind):
    base, model, x = adapted(kind)
    move(model)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in trained_tensors(model).items()}
    ours, dense = model(x), dense_output(base, leaves, x)
    torch.testing.assert_close(ours, dense)
    seed = torch.randn_like(ours)
    ours.backward(seed)
    dense.backward(seed)
    for name, parameter in trained_tensors(model).items():
        torch.testing.assert_close(parameter.grad, leaves[name].grad)


@pytest.mark.parametrize('kind', KINDS)
def test_rlrr_merges_into_the_plain_model_and_comes_out_again(kind):
    base, model, x = adapted(kind)
    move(model)
    before = model(x)
    merge_adapters(model)
    torch.testing.assert_close(model(x), before)
    plain = KINDS[kind][0]().double().eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), before)
    unmerge_adapters(model)
    torch.testing.assert_close(model(x), before)
    state = model.state_dict()
    for name, value in base.state_dict().items():
        torch.testing.assert_close(state[name], value)
    merge_adapters(model)
    remove_adapters(model)
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize('kind', ['fused', 'timm_swin'])
def test_rlrr_builds_again_from_a_state_dict_and_from_a_file(kind, tmp_path):
    base, model, x = adapted(kind)
    move(model)
    state = model.state_dict()
    again = copy.deepcopy(base)
    build_adapters(again, state)
    again.load_state_dict(state)
    assert torch.equal(again(x), model(x))
    save_adapter(model, tmp_path / 'a.safetensors')
    loaded = copy.deepcopy(base)
    assert load_adapter(loaded, tmp_path / 'a.safetensors') == plan_for(base)
    assert torch.equal(loaded(x), model(x))


def test_rlrr_trains_as_many_parameters_as_its_formula_says():
    """Per block 4 (3 E) + (E + 2 H) + (H + 2 E) + 2 (2 E), the embedding and the last norm 2 E."""
    base, model, _ = adapted('timm_vit')
    e, hidden, depth = 12, 48, 2
    block = 4 * 3 * e + (e + 2 * hidden) + (hidden + 2 * e) + 4 * e
    expected = depth * block + 2 * 2 * e
    assert plan_for(base).num_trainable == expected
    assert sum(p.numel() for p in trained_tensors(model).values()) == expected
    assert all('.cdra.' in name for name in trained_tensors(model))


def test_rlrr_trains_288768_parameters_of_vit_b():
    """As many as the released code, q, k and v apart."""
    with torch.device('meta'):
        model = VisionTransformer(num_classes=0)
    assert plan_for(model).num_trainable == 288_768


def test_rlrr_starts_rescaled_but_with_plain_biases_and_norms():
    """Kaiming-uniform on both sides: the mean square of s_out s_in is 4 / I, not 0."""
    base, model, x = adapted('timm_vit')
    assert not torch.allclose(model(x), base(x))
    for name, adapter in adapters(model).items():
        if adapter.kind == 'rescaling':
            width = len(adapter.scale_in)
            for scale, bound in (
                (adapter.scale_out, 6**0.5),
                (adapter.scale_in, (6 / width) ** 0.5),
            ):
                assert 0.5 * bound < float(scale.detach().abs().max()) <= bound, name
        elif adapter.kind == 'shift':
            assert not adapter.shift.any()
        else:
            assert adapter.scale.eq(1).all() and not adapter.shift.any()
    again = copy.deepcopy(base)
    apply_plan(again, plan_for(base))
    assert torch.equal(again(x), model(x))  # seeded


def test_rlrr_moves_every_trained_parameter_and_no_other():
    _, model, x = adapted('mha')
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained_tensors(model).items()}
    optimizer = torch.optim.SGD(trained_tensors(model).values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    after = dict(model.named_parameters())
    unmoved = [n for n in before if torch.equal(before[n], after[n])]
    assert not unmoved
    assert all(torch.equal(frozen[n], after[n]) for n in frozen)


def test_rlrr_without_biases_has_no_shifts_and_still_merges():
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2, qkv_bias=False, num_classes=0
    ).double()
    model.patch_embed.proj = nn.Conv2d(3, 12, 8, 8, bias=False).double()
    plan = plan_for(model)
    names = {part.name for part in plan.parts}
    assert 'blocks.0.attn.qkv.bias' not in names and 'blocks.0.attn.proj.bias' in names
    apply_plan(model.eval(), plan)
    move(model)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    before = model(x)
    keys = set(model.state_dict())
    assert 'patch_embed.proj.cdra.affine.scale' in keys
    assert 'patch_embed.proj.cdra.affine.shift' not in keys
    merge_adapters(model)
    torch.testing.assert_close(model(x), before)


def test_rlrr_in_bf16_rounds_once_and_keeps_masters_in_fp32():
    _, model, x = adapted('fused', torch.bfloat16)
    assert {p.dtype for p in trained_tensors(model).values()} == {torch.float32}
    assert model(x).dtype == torch.bfloat16
    qkv = model.blocks[0].attn.qkv
    base = qkv._parameters['weight']
    expected = base.float()[:8] * (
        1 + torch.outer(qkv.cdra.get_submodule('weight:q').scale_out,
                        qkv.cdra.get_submodule('weight:q').scale_in)
    )  # fmt: skip
    assert torch.equal(qkv.weight[:8], expected.bfloat16())


@pytest.mark.parametrize(
    ('kind', 'zero', 'message'),
    [
        (
            'rescaling',
            lambda a: (a.scale_out.fill_(-1), a.scale_in.fill_(1)),
            r'is 0 in \d+ places',
        ),
        ('affine', lambda a: (a.scale.zero_(),), r'is 0 in \d+ places'),
    ],
)
def test_rlrr_refuses_to_unmerge_what_was_multiplied_by_zero(kind, zero, message):
    _, model, _ = adapted('fused')
    with torch.no_grad():
        zero(next(a for a in adapters(model).values() if a.kind == kind))
    merge_adapters(model)
    with pytest.raises(PlanError, match=message):
        unmerge_adapters(model)


class TwoStems(nn.Module):
    """A model whose stem is no single convolution."""

    def __init__(self, count):
        super().__init__()
        self.stem = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(count)])
        self.body = MODELS['fused']().blocks


@pytest.mark.parametrize('count', [0, 2])
def test_rlrr_refuses_a_backbone_without_one_patch_embedding(count):
    with pytest.raises(PlanError, match=f'expected one convolution.*found {count}'):
        plan_for(TwoStems(count))


@pytest.mark.parametrize(
    ('part', 'message'),
    [
        (Part('blocks.0.norm1.weight', 'rescaling', {}, 16), 'no matrix'),
        (Part('blocks.0.attn.qkv.weight', 'shift', {}, 24), 'no vector'),
        (Part('blocks.0.mlp.fc1.affine', 'affine', {}, 32), 'no norm or convolution'),
        (Part('blocks.0.attn.proj.weight', 'rescaling', {}, 99), '16 parameters, the plan says 99'),
    ],
)
def test_rlrr_parts_that_do_not_fit_are_refused(part, message):
    with pytest.raises(PlanError, match=message):
        apply_plan(MODELS['fused'](), Plan(method='rlrr', parts=(part,)))


def test_rlrr_initial_change_has_the_size_that_the_docstring_states():
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=192, depth=1, num_heads=2, num_classes=0
    )
    weights = {name: model.get_parameter(t.path).clone() for name, t in find_targets(model).items()}
    apply_plan(model, plan_for(model))
    proj = 'blocks.0.attn.proj.weight'
    ratio = model.blocks[0].attn.proj.weight / weights[proj] - 1
    assert math.isclose(float(ratio.detach().square().mean().sqrt()), 2 / 192**0.5, rel_tol=0.2)
