"""DoRA: equal to peft's from the same values with all gradients; it merges and comes back."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from cdra_mm.core import (
    ConfigError,
    PlanError,
    adapters,
    find_targets,
    merge_adapters,
    unmerge_adapters,
)
from tests.core.problems import move
from tests.methods.adapted import (
    EXACT,
    adapt,
    assert_merges_and_comes_out_again,
    assert_trains_exactly,
    assert_travels,
    inputs,
    plan_for,
    timm_vit,
    tiny,
)
from tests.models import MODELS, images

CONFIG = {'type': 'dora', 'rank': 2, 'alpha': 3, 'targets': 'all'}


@pytest.mark.parametrize('kind', MODELS)
def test_dora_starts_as_the_base_trains_what_it_declares_and_travels(kind, tmp_path):
    base, x = MODELS[kind]().double().eval(), images(3, torch.float64)[0]
    model, plan = adapt(base, CONFIG)
    torch.testing.assert_close(model(x), base(x), **EXACT)
    shapes = [t.shape for t in find_targets(base).values() if len(t.shape) == 2]
    assert plan.num_trainable == sum(2 * (rows + cols) + rows for rows, cols in shapes)
    model, plan = adapt(base, CONFIG, moved=True)
    assert_trains_exactly(base, model, plan, x)
    assert_travels(base, model, plan, x, tmp_path)


def test_dora_starts_as_the_base_bit_by_bit():
    base, x = timm_vit(), inputs()
    model, _ = adapt(base, CONFIG)
    assert torch.equal(model(x), base(x))


def test_dora_equals_peft_with_all_gradients():
    peft = pytest.importorskip('peft')
    base, x = timm_vit(), inputs()
    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=r'blocks\.\d+\.(attn\.proj|mlp\.fc[12])',
        use_dora=True,
    )
    theirs = peft.get_peft_model(copy.deepcopy(base), config).double().eval()
    model, plan = adapt(base, {**CONFIG, 'targets': ['proj', 'fc1', 'fc2']})
    assert plan.num_trainable == theirs.get_nb_trainable_parameters()[0]
    pairs = []
    for path, layer in theirs.named_modules():
        if not hasattr(layer, 'lora_A'):
            continue
        ours = adapters(model)[f'{path.removeprefix("base_model.model.")}.weight']
        magnitude = layer.lora_magnitude_vector['default'].weight
        torch.testing.assert_close(ours.magnitude, magnitude)  # both at their start
        down, up = layer.lora_A['default'].weight, layer.lora_B['default'].weight
        pairs += [(ours.magnitude, magnitude), (ours.down, down), (ours.up, up)]
    assert len(pairs) == 3 * 9
    move(model)
    with torch.no_grad():
        for a, b in pairs:
            b.copy_(a)
    torch.testing.assert_close(model(x), theirs(x))
    for twin in (model, theirs):
        twin(x).square().sum().backward()
    for a, b in pairs:
        assert a.grad.abs().max() > 0
        torch.testing.assert_close(a.grad, b.grad)


def test_dora_of_a_part_of_a_fused_matrix_equals_rows_that_are_written_out():
    """q and v, where peft has no counterpart; the norm is no function to the gradient."""
    base, x = timm_vit(depth=1), inputs()
    model, _ = adapt(base, {**CONFIG, 'targets': ['q', 'v']}, moved=True)
    plain = base.requires_grad_(False)
    leaves, weight = {}, plain.blocks[0].attn.qkv.weight
    for part, start in (('q', 0), ('v', 16)):
        ours = adapters(model)[f'blocks.0.attn.qkv.weight:{part}']
        own = {n: p.detach().clone().requires_grad_() for n, p in ours.named_parameters()}
        v = weight[start : start + 8] + 1.5 * own['up'] @ own['down']
        rows = own['magnitude'][:, None] * v / v.norm(dim=1, keepdim=True).detach()
        weight = torch.slice_scatter(weight, rows, 0, start, start + 8)
        leaves[part] = ours, own
    y = torch.func.functional_call(plain, {'blocks.0.attn.qkv.weight': weight}, (x,))
    torch.testing.assert_close(model(x), y)
    model(x).square().sum().backward()
    y.square().sum().backward()
    for ours, own in leaves.values():
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, own[name].grad)


@pytest.mark.parametrize('kind', ['fused', 'swiglu', 'mha', 'windowed'])
def test_dora_merges_and_comes_out_again(kind):
    base, x = MODELS[kind]().double().eval(), images(3, torch.float64)[0]
    model, _ = adapt(base, CONFIG, moved=True)
    assert_merges_and_comes_out_again(base, model, x)


def test_dora_of_a_row_of_zeros_leaves_it_and_stays_finite():
    base, x = timm_vit(), inputs()
    with torch.no_grad():
        base.blocks[0].mlp.fc1.weight[1] = 0
    model, _ = adapt(base, {**CONFIG, 'targets': 'fc1'})
    assert torch.equal(model(x), base(x))
    model(x).square().sum().backward()
    own = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in own)


def test_dora_refuses_to_take_out_what_a_magnitude_of_zero_has_lost():
    model, _ = adapt(timm_vit(), CONFIG, moved=True)
    with torch.no_grad():
        next(iter(adapters(model).values())).magnitude[:2] = 0
    merge_adapters(model)
    with pytest.raises(PlanError, match='2 magnitudes are 0, the merged weight does not hold'):
        unmerge_adapters(model)


def test_dora_in_half_precision_keeps_its_type_and_fp32_masters():
    base = timm_vit().to(torch.bfloat16)
    model, _ = adapt(base, CONFIG)
    x = inputs().to(torch.bfloat16)
    assert torch.equal(model(x), base(x))
    assert {p.dtype for a in adapters(model).values() for p in a.parameters()} == {torch.float32}
    model, _ = adapt(timm_vit().float(), CONFIG, moved=True)
    with torch.autocast('cpu', torch.bfloat16):
        assert model(inputs().float()).isfinite().all()


def test_dora_trains_as_many_parameters_of_vit_b_as_its_formula_says():
    """24 matrices of 768 x 768: rank 8 on both sides and 768 magnitudes."""
    with torch.device('meta'):
        model = VisionTransformer(num_classes=0)
    assert plan_for(model, {'type': 'dora'}).num_trainable == 24 * (8 * 2 * 768 + 768) == 313_344


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        (dict(rank=0), ConfigError, 'rank=0: expected an integer of at least 1'),
        (dict(alpha=0), ConfigError, 'alpha=0: expected a number above 0'),
        (dict(targets=[]), ConfigError, r'targets=\[\]: expected roles'),
        (dict(targets=['q', 'w1']), PlanError, "no matrix of the role 'w1': targets may be q, k"),
        (dict(rank=9, targets='fc1'), PlanError, r'is 16 x 8: a rank of 9 is no low rank'),
    ],
)
def test_dora_refuses_settings_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        plan_for(tiny(), {**CONFIG, **settings})
