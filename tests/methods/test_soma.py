"""SoMA: the minor singular components, beside a base that keeps its weights."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from cdra_mm.core import (
    ConfigError,
    PlanError,
    adapters,
    apply_plan,
    build_adapters,
    find_layers,
    find_targets,
    fingerprint,
    load_adapter,
    merge_adapters,
    save_adapter,
    unmerge_adapters,
)
from cdra_mm.methods import Request, make_method
from cdra_mm.methods.base import FROZEN
from cdra_mm.methods.soma import minor_factors
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
from tests.models import MODELS, images, spread

CONFIG = {'type': 'soma', 'rank': 2}


def components(weight, rank):
    """Those of the smallest singular values, as the released code takes them of torch's SVD."""
    left, values, right = torch.linalg.svd(weight.detach(), full_matrices=False)
    root = values[-rank:].sqrt()
    return left[:, -rank:] * root, root[:, None] * right[-rank:]


@pytest.mark.parametrize('shape', [(8, 8), (12, 5), (5, 12)])
def test_minor_factors_are_the_last_of_a_singular_value_decomposition(shape):
    weight = torch.randn(shape, dtype=torch.float64)
    ours, theirs = minor_factors(weight, 3), components(weight, 3)
    torch.testing.assert_close(ours[0] @ ours[1], theirs[0] @ theirs[1])
    for own, other in zip(ours, theirs, strict=True):  # the same but for signs
        assert own.shape == other.shape
        torch.testing.assert_close(own.abs(), other.abs())


@pytest.mark.parametrize('kind', MODELS)
def test_soma_starts_as_the_base_trains_what_it_declares_and_travels(kind, tmp_path):
    base, x = MODELS[kind]().double().eval(), images(3, torch.float64)[0]
    config = {**CONFIG, 'frozen_blocks': 1}
    model, plan = adapt(base, config)
    torch.testing.assert_close(model(x), base(x), **EXACT)
    assert fingerprint(model) == fingerprint(base)
    model, plan = adapt(base, config, moved=True)
    assert_trains_exactly(base, model, plan, x)
    assert_travels(base, model, plan, x, tmp_path)


def test_soma_starts_as_the_base_bit_by_bit():
    base, x = timm_vit().float(), inputs().float()
    model, _ = adapt(base, CONFIG)
    assert torch.equal(model(x), base(x))
    assert all(a.up.any() and a.down.any() for n, a in adapters(model).items())


def test_soma_equals_the_residual_and_the_trained_components_with_all_gradients():
    """The released code's form: a weight without its minor part, and B A beside it."""
    base, x = timm_vit(), inputs()
    model, plan = adapt(base, {**CONFIG, 'frozen_blocks': 0}, moved=True)
    theirs = copy.deepcopy(base).requires_grad_(False)
    weights = {name: parameter.clone() for name, parameter in theirs.named_parameters()}
    leaves = {}
    targets = find_targets(base)
    for name, adapter in adapters(model).items():
        target = targets[name]
        up0, down0 = components(base.get_parameter(target.path)[target.start : target.stop], 2)
        own = {n: p.detach().clone().requires_grad_() for n, p in adapter.named_parameters()}
        rows = weights[target.path][target.start : target.stop] - up0 @ down0
        rows = rows + own['up'] @ own['down']
        whole = weights[target.path]
        weights[target.path] = torch.slice_scatter(whole, rows, 0, target.start, target.stop)
        leaves[name] = own
    for vector in plan.vectors:
        leaves[vector.name] = model.get_parameter(vector.name).detach().clone().requires_grad_()
        weights[vector.name] = leaves[vector.name]
    y = torch.func.functional_call(theirs, weights, (x,))
    torch.testing.assert_close(model(x), y)
    model(x).square().sum().backward()
    y.square().sum().backward()
    for name, adapter in adapters(model).items():
        for own, parameter in adapter.named_parameters():
            torch.testing.assert_close(parameter.grad, leaves[name][own].grad)
    for vector in plan.vectors:
        grad = model.get_parameter(vector.name).grad
        torch.testing.assert_close(grad, leaves[vector.name].grad)


@pytest.mark.parametrize('kind', ['fused', 'swiglu', 'mha', 'windowed'])
def test_soma_merges_and_comes_out_again(kind):
    base, x = MODELS[kind]().double().eval(), images(3, torch.float64)[0]
    model, _ = adapt(base, {**CONFIG, 'biases': False}, moved=True)
    assert_merges_and_comes_out_again(base, model, x)


def trained_file(base, folder):
    model, plan = adapt(base, CONFIG, moved=True)
    save_adapter(model, folder / 'a.safetensors')
    return model, plan


def test_soma_reloads_the_same_bits_on_the_same_machine(tmp_path):
    """In fp32, merged too; the file holds no starting values."""
    base, x = timm_vit().float(), inputs().float()
    model, plan = trained_file(base, tmp_path)
    loaded = copy.deepcopy(base)
    load_adapter(loaded, tmp_path / 'a.safetensors')
    assert torch.equal(loaded(x), model(x))
    learnt = sum(v.nbytes for key, v in model.state_dict().items() if '.cdra.' in key)
    matrices = sum(2 * sum(resolved.shape) for resolved in matrices_of(base, plan))
    assert learnt == 4 * matrices == 4 * sum(part.num_params for part in plan.parts)
    for twin in (model, loaded):
        merge_adapters(twin)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def matrices_of(base, plan):
    return [find_targets(base)[part.name] for part in plan.parts]


def other_basis(squares, vectors):
    """What another machine may return: other signs, another basis within the minor part."""
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(2, 2, generator=generator, dtype=torch.float64))
    vectors = vectors.clone()
    vectors[:, 2:] = -vectors[:, 2:]
    vectors[:, :2] = vectors[:, :2] @ turn
    return squares, vectors


def test_soma_reloads_the_same_weights_where_singular_vectors_come_out_otherwise(
    tmp_path, monkeypatch
):
    base, x = timm_vit(), inputs()
    model, _ = trained_file(base, tmp_path)
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, 'eigh', lambda gram: other_basis(*eigh(gram)))
    loaded = copy.deepcopy(base)
    load_adapter(loaded, tmp_path / 'a.safetensors')
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-10, atol=1e-10)
    ours, theirs = (next(iter(adapters(m).values()))._factors for m in (model, loaded))
    assert not torch.allclose(ours[0], theirs[0])


def test_soma_of_a_state_dict_starts_from_the_base_that_comes_with_it():
    """Built beside random weights, loaded with its own."""
    base, x = timm_vit(), inputs()
    model, _ = adapt(base, CONFIG, moved=True)
    again = timm_vit()
    spread(again)
    build_adapters(again, model.state_dict())
    assert not torch.allclose(again(x), model(x))  # it has used the other base
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x), model(x), **EXACT)


def test_soma_merged_state_in_a_merged_model_still_comes_out():
    base, x = timm_vit(), inputs()
    model, _ = adapt(base, CONFIG, moved=True)
    y = model(x)
    merge_adapters(model)
    model.load_state_dict(model.state_dict())
    unmerge_adapters(model)
    torch.testing.assert_close(model(x), y)
    weight = 'blocks.1.attn.proj.weight'
    torch.testing.assert_close(model.state_dict()[weight], base.state_dict()[weight])


def test_soma_in_half_precision_and_under_autocast_starts_as_the_base():
    base, x = timm_vit().to(torch.bfloat16), inputs().to(torch.bfloat16)
    model, _ = adapt(base, CONFIG)
    assert torch.equal(model(x), base(x))
    own = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in own} == {torch.float32}
    model, base = adapt(timm_vit().float(), CONFIG)[0], None
    x = inputs().float()
    with torch.autocast('cpu', torch.bfloat16):
        y = model(x)
    move(model, seed=3)
    adapter = next(a for a in adapters(model).values() if len(a.up) == 8)
    weight = torch.zeros(24, 8)
    expected = adapter.added_to(weight)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(adapter.added_to(weight), expected)  # in fp32, whatever the product is
    assert y.isfinite().all()


def test_soma_used_without_gradients_first_trains_afterwards():
    base, x = timm_vit(), inputs()
    model, plan = adapt(base, CONFIG)
    other = copy.deepcopy(base)
    build_adapters(other, model.state_dict())
    with torch.inference_mode():
        other(x)
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        other(x)
    other(x).sum().backward()


def test_soma_trains_as_many_parameters_as_its_formula_says():
    """Of each of the last two thirds: rank 16 on q, k, v, proj and the FFN, and the biases."""

    def formula(width, hidden, depth):
        matrices = 16 * (4 * 2 * width + 2 * (width + hidden))
        return (depth - depth // 3) * (matrices + 4 * width + hidden + width)

    for width, heads in ((768, 12), (192, 3)):  # ViT-B, DeiT-Ti
        with torch.device('meta'):
            model = VisionTransformer(embed_dim=width, num_heads=heads, num_classes=0)
        plan = plan_for(model, {'type': 'soma'})
        assert plan.num_trainable == formula(width, 4 * width, 12)
    assert formula(768, 3072, 12) == 1_824_768 and formula(192, 768, 12) == 456_192


def test_soma_leaves_the_first_third_of_the_blocks_frozen():
    base = tiny(depth=7)
    layers = find_layers(base)

    def adapted_blocks(**settings):
        plan = plan_for(base, {**CONFIG, **settings})
        names = [record.name for record in (*plan.parts, *plan.vectors)]
        return [layer for layer in layers if any(n.startswith(f'{layer}.') for n in names)]

    assert adapted_blocks() == layers[2:]
    assert adapted_blocks(frozen_blocks=0) == layers
    assert adapted_blocks(frozen_blocks=6) == layers[6:]
    withheld = {n: FROZEN for n, _ in base.named_parameters() if n.startswith('blocks.3.')}
    plan = make_method(CONFIG).plan(Request(base, withheld=withheld))
    assert not any('blocks.3.' in part.name for part in plan.parts)
    assert plan.parts[0].name.startswith('blocks.2.')  # counted in all blocks


def test_soma_trains_the_biases_of_adapted_layers_alone():
    plan = plan_for(tiny('mha'), {**CONFIG, 'targets': ['proj'], 'frozen_blocks': 1})
    assert [v.name for v in plan.vectors] == ['blocks.1.attn.attn.out_proj.bias']
    plan = plan_for(tiny('mha'), {**CONFIG, 'targets': ['q'], 'frozen_blocks': 1})
    assert [v.name for v in plan.vectors] == ['blocks.1.attn.attn.in_proj_bias']
    assert not plan_for(tiny(), {**CONFIG, 'biases': False}).vectors


def test_soma_refuses_a_matrix_whose_minor_part_does_not_stand_apart():
    base = timm_vit()
    with torch.no_grad():
        torch.nn.init.eye_(base.blocks[1].attn.proj.weight)
    plan = plan_for(base, CONFIG)
    message = (
        r'blocks\.1\.attn\.proj\.weight: its smallest singular values number 2 and 3 are 1 and 1'
    )
    with pytest.raises(PlanError, match=message):
        apply_plan(base, plan)
    assert adapters(base) == {}


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        (dict(rank=0), ConfigError, 'rank=0: expected an integer of at least 1'),
        (dict(frozen_blocks=-1), ConfigError, 'frozen_blocks=-1: expected a count'),
        (dict(biases=1), ConfigError, 'biases=1: expected True or False'),
        (dict(targets=[]), ConfigError, r'targets=\[\]: expected roles'),
        (dict(targets=['w1']), PlanError, "no matrix of the role 'w1': targets may be q, k"),
        (dict(rank=9), PlanError, r'a rank of 9 is no low rank'),
        (dict(frozen_blocks=2), PlanError, 'frozen_blocks=2: TinyViT has 2 transformer blocks'),
    ],
)
def test_soma_refuses_settings_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        plan_for(tiny(), {**CONFIG, **settings})
