"""Adapters over a base in int8 compute what they do over the values that int8 stands for."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cdra_mm.core import (
    ConfigError,
    NamedAdapters,
    PlanError,
    ScoreError,
    apply_plan,
    base_state,
    digests_of,
    estimate_scores,
    find_targets,
    fingerprint,
    load_adapter,
    merge_adapters,
    quantize_base,
    remove_adapters,
    restore_base,
    save_adapter,
)
from cdra_mm.core.adapters.copied_weights import choose_product
from cdra_mm.core.adapters.small_base import base_bytes, check_base_dtype, quantized_names
from cdra_mm.core.artifacts.files import read_adapter
from cdra_mm.core.model.row_int8 import is_int8
from tests.core.model.test_row_int8 import Kept
from tests.core.problems import adapted, outputs, random_plan
from tests.models import MODELS, images, losses
from tests.reference import int8 as reference

FP32 = torch.float32


def small(kind='fused', **options):
    """A plain base in fp32, and an adapted model over it in int8."""
    base, model, plan = adapted(kind, dtype=FP32, **options)
    return base, quantize_base(model), plan


def own(model):
    return dict(model.named_parameters())


def pair(kind):
    """An adapted model in int8, and one whose whole weights are what the oracle says."""
    _, model, _ = small(kind)
    _, dense, _ = adapted(kind, dtype=FP32)
    reference.quantize_dense(dense, quantized_names(model))
    return model, dense


def gradients(model, autocast=False, again=False):
    """Loss and gradients of what is trained, and of the images."""
    x, labels = images(3)
    x.requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        run = (lambda y: checkpoint(model, y, use_reentrant=False)) if again else model
        loss = nn.functional.cross_entropy(run(x).float(), labels)
    return loss, *torch.autograd.grad(loss, [x, *trained], allow_unused=True)


@pytest.mark.parametrize('kind', MODELS)
@pytest.mark.parametrize('product', ['factored', 'copied'])
@pytest.mark.parametrize('autocast', [False, True])
def test_outputs_and_gradients_are_those_over_the_whole_values(kind, product, autocast):
    model, dense = pair(kind)
    for one in (model, dense):
        choose_product(one, product)
    found, right = gradients(model, autocast), gradients(dense, autocast)
    for ours, theirs in zip(found, right, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize('autocast', [False, True])
def test_recomputed_activations_give_the_same_gradients(autocast):
    _, model, _ = small()
    found, right = gradients(model, autocast, again=True), gradients(model, autocast)
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize('kind', MODELS)
@pytest.mark.parametrize('product', ['factored', 'copied'])
@pytest.mark.parametrize('autocast', [False, True])
def test_no_whole_weight_is_kept_for_the_backward(kind, product, autocast):
    _, model, _ = small(kind)
    choose_product(model, product)
    shapes = {own(model)[name].shape for name in quantized_names(model)}
    shapes -= {p.shape for p in model.parameters() if not is_int8(p)}  # these stay whole
    shapes -= {p.shape[::-1] for p in model.parameters() if not is_int8(p)}
    shapes |= {shape[::-1] for shape in shapes}
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast), Kept() as kept:
        losses(model, images(5)).mean()
    whole = [t for t in kept.tensors if t.shape in shapes and not is_int8(t)]
    assert not [tuple(t.shape) for t in whole]
    assert sum(map(is_int8, kept.tensors)) >= len(quantized_names(model))


def test_all_frozen_matrices_take_a_byte_an_entry_and_nothing_else_changes():
    base, model, _ = small()
    plain = own(base)
    names = {target.path for target in find_targets(base).values() if len(target.shape) == 2}
    assert set(quantized_names(model)) == names
    spared = sum(3 * plain[name].numel() - 4 * len(plain[name]) for name in names)
    _, twin, _ = adapted('fused', dtype=FP32)
    assert base_bytes(twin) - base_bytes(model) == spared
    for name, parameter in model.named_parameters():
        if name in plain and name not in names and not parameter.requires_grad:
            assert torch.equal(parameter, plain[name])
    assert not any(parameter.requires_grad for parameter in (own(model)[name] for name in names))


def test_what_is_trained_whole_stays_in_fp32():
    model = MODELS['fused']()
    name = 'blocks.0.mlp.fc1.weight'
    plan = random_plan(model)
    kept = tuple(block for block in plan.blocks if block.name != name)
    plan = replace(plan, blocks=kept, also_train={name: own(model)[name].numel()})
    apply_plan(model, plan)
    quantize_base(model)
    assert name not in quantized_names(model) and own(model)[name].requires_grad
    assert quantized_names(model)


def test_it_trains_and_only_the_adapters_move():
    _, model, _ = small(moved=False)
    before = {key: value.clone() for key, value in base_state(model).items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    values = []
    for _ in range(20):
        loss = losses(model, images(8)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.8 * values[0]
    for name in quantized_names(model):
        assert torch.equal(own(model)[name].codes, before[name].codes)


@pytest.mark.parametrize('kind', MODELS)
def test_a_merge_goes_into_the_base_in_full_precision(kind):
    base, model, _ = small(kind)
    _, twin, _ = adapted(kind, dtype=FP32)
    restore_base(model, base.state_dict())
    assert not quantized_names(model)
    for one in (model, twin):
        merge_adapters(one)
        remove_adapters(one)
    found, right = model.state_dict(), twin.state_dict()
    assert found.keys() == right.keys()
    assert all(torch.equal(found[key], right[key]) for key in right)


def test_a_base_that_was_read_from_half_precision_is_put_back_from_it():
    torch.manual_seed(0)
    model = MODELS['fused']()
    file = {key: value.half() for key, value in model.state_dict().items()}
    model.load_state_dict(file)
    right = copy.deepcopy(model.state_dict())
    apply_plan(model, random_plan(model))
    quantize_base(model)
    restore_base(model, file)
    held = base_state(model)
    assert all(torch.equal(held[key], right[key]) for key in right)


def test_a_base_in_int8_is_no_base_to_put_back():
    _, model, _ = small()
    with pytest.raises(PlanError, match='not the one that was quantised'):
        restore_base(model, copy.deepcopy(model.state_dict()))


def test_tables_and_fingerprints_are_those_of_the_base_that_was_quantised():
    base, model, plan = small(moved=False)
    assert fingerprint(model) == fingerprint(base) == plan.fingerprint
    names = quantized_names(model)
    state = base_state(model)
    right = digests_of({name: own(base)[name] for name in names})
    assert digests_of({name: state[name] for name in names}) == right
    other = MODELS['fused']()
    known = digests_of(base_state(other))
    quantize_base(other, digests=known)
    assert digests_of(base_state(other)) == known


def test_an_adapter_file_is_the_same_and_fits_either_base(tmp_path):
    base, model, _ = small()
    _, twin, _ = adapted('fused', dtype=FP32)
    save_adapter(model, tmp_path / 'int8.safetensors')
    save_adapter(twin, tmp_path / 'fp32.safetensors')
    files = [read_adapter(tmp_path / f'{name}.safetensors') for name in ('int8', 'fp32')]
    assert files[0].digests == files[1].digests and files[0].plan == files[1].plan
    assert files[0].tensors.keys() == files[1].tensors.keys()
    assert all(
        torch.equal(files[0].tensors[key], files[1].tensors[key]) for key in files[0].tensors
    )
    found = {}
    for name in ('fp32', 'int8'):
        found[name] = copy.deepcopy(base)
        if name == 'int8':
            quantize_base(found[name])
        load_adapter(found[name], tmp_path / 'int8.safetensors')
    assert torch.equal(outputs(found['int8'], FP32), outputs(model, FP32))
    assert torch.equal(outputs(found['fp32'], FP32), outputs(twin, FP32))
    assert not torch.equal(outputs(model, FP32), outputs(twin, FP32))


def test_an_adapter_of_another_base_is_refused_on_int8_too(tmp_path):
    _, model, _ = small()
    save_adapter(model, tmp_path / 'a.safetensors')
    torch.manual_seed(5)
    other = quantize_base(MODELS['fused']())
    with pytest.raises(ValueError, match='was trained on other base weights'):
        load_adapter(other, tmp_path / 'a.safetensors')


def test_a_training_goes_on_from_its_state_bit_for_bit(tmp_path):
    def steps(model, optimizer, count):
        for at in range(count):
            optimizer.zero_grad()
            losses(model, images(4, seed=at)).mean().backward()
            optimizer.step()

    def make():
        _, model, _ = small(moved=False)
        trained = [p for p in model.parameters() if p.requires_grad]
        return model, torch.optim.AdamW(trained, lr=1e-2)

    whole, optimizer = make()
    steps(whole, optimizer, 3)
    torch.save({'model': whole.state_dict(), 'optimizer': optimizer.state_dict()}, tmp_path / 'x')
    steps(whole, optimizer, 2)
    resumed, optimizer = make()
    loaded = torch.load(tmp_path / 'x', weights_only=True)
    resumed.load_state_dict(loaded['model'])
    optimizer.load_state_dict(loaded['optimizer'])
    steps(resumed, optimizer, 2)
    for (name, ours), right in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, right), name


def test_a_weight_that_modules_share_is_one_in_int8():
    model = MODELS['fused']()
    first, second = (model.blocks[i].mlp.fc1 for i in range(2))
    second.weight = first.weight
    right = copy.deepcopy(model).eval()
    quantize_base(model.eval())
    assert is_int8(first.weight) and second.weight is first.weight
    reference.quantize_dense(right, quantized_names(model))
    assert torch.equal(outputs(model, FP32), outputs(right, FP32))
    torch.manual_seed(0)


def test_adapters_are_switched_over_one_base_in_int8(tmp_path):
    base, model, plan = small()
    save_adapter(model, tmp_path / 'a.safetensors')
    wanted = outputs(model, FP32)
    plain = quantize_base(copy.deepcopy(base))
    alone = outputs(plain, FP32)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        named = NamedAdapters(plain)
        named.add('a', tmp_path / 'a.safetensors')
        named.use('a')
        assert torch.equal(outputs(plain, FP32), wanted)
        named.use(None)
    assert torch.equal(outputs(plain, FP32), alone)


def test_to_quantise_twice_changes_nothing():
    _, model, _ = small()
    before = [own(model)[name] for name in quantized_names(model)]
    quantize_base(model)
    after = [own(model)[name] for name in quantized_names(model)]
    assert all(a is b for a, b in zip(before, after, strict=True))


def other_base(model, base):
    state = base.state_dict()
    state['blocks.0.mlp.fc1.weight'] = state['blocks.0.mlp.fc1.weight'] + 1
    restore_base(model, state)


def lacking_base(model, base):
    state = base.state_dict()
    del state['blocks.1.mlp.fc2.weight']
    restore_base(model, state)


REFUSED = {
    'merge': (
        lambda model, base: merge_adapters(model),
        PlanError,
        r'8 weights are kept in int8 \(the first is blocks.0.attn.qkv.weight\): a merge would be '
        'rounded to it; put the base in full precision back',
    ),
    'other base': (other_base, PlanError, r'not the one that was quantised \(1 tensor differs: '
                   r'blocks.0.mlp.fc1.weight\)'),
    'lacking base': (lacking_base, PlanError, r'blocks.1.mlp.fc2.weight \(missing there\)'),
    'scores': (
        lambda model, base: estimate_scores(quantize_base(base), [images(2)], losses),
        ScoreError,
        'is kept in int8, which gets no gradient: score the base in full precision',
    ),
    'trained': (
        lambda model, base: quantize_base(model, names=['blocks.0.norm1.weight']),
        PlanError,
        'only frozen weights|only fp32 matrices',
    ),
    'unknown': (
        lambda model, base: quantize_base(model, names=['blocks.9.weight']),
        PlanError,
        "TinyViT has no parameter 'blocks.9.weight' to keep in int8",
    ),
    'half': (
        lambda model, base: quantize_base(base.to(torch.bfloat16)),
        PlanError,
        r'is bfloat16 \[8, 8\]: only fp32 matrices can be kept in int8',
    ),
    'vector': (
        lambda model, base: quantize_base(base, names=['blocks.0.norm1.weight']),
        PlanError,
        r'blocks.0.norm1.weight is float32 \[8\]: only fp32 matrices',
    ),
    'word': (
        lambda model, base: check_base_dtype('int4'),
        ConfigError,
        r"base_dtype='int4': expected None \(as it is loaded\) or one of int8",
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(case):
    base, model, _ = small()
    before = copy.deepcopy(model.state_dict())
    act, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        act(model, base)
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert quantized_names(model)


def test_a_base_with_merged_adapters_is_not_quantised():
    _, model, _ = adapted('fused', dtype=FP32)
    merge_adapters(model)
    with pytest.raises(PlanError, match='adapters are merged .* would be quantised with them'):
        quantize_base(model)


def test_a_plan_that_trains_a_matrix_of_int8_is_refused():
    model = quantize_base(MODELS['fused']())
    name = 'blocks.0.mlp.fc1.weight'
    plan = replace(random_plan(model), also_train={name: own(model)[name].numel()})
    with pytest.raises(PlanError, match=f'also_train names {name}, which is kept in int8'):
        apply_plan(model, plan)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64], ids=str)
def test_restored_weights_are_of_the_type_that_the_model_was_cast_to(dtype):
    base, model, _ = small()
    model.to(dtype)
    restore_base(model, base.state_dict())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert outputs(model, dtype=dtype).dtype == dtype


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weight_that_is_not_finite_is_not_quantised(value):
    _, model, _ = adapted('fused', dtype=FP32)
    weight = model.blocks[0].mlp.fc1._parameters['weight']
    weight.data[0, 0] = value
    with pytest.raises(PlanError, match='blocks.0.mlp.fc1.weight holds values that are no finite'):
        quantize_base(model)
    assert not quantized_names(model)


def test_names_and_values_of_what_is_quantised_are_looked_at():
    _, model, _ = adapted('fused', dtype=FP32)
    with pytest.raises(PlanError, match="names='norm.weight': expected a list"):
        quantize_base(model, names='norm.weight')
    with pytest.raises(PlanError, match='is on meta, without values'):
        quantize_base(model.to('meta'))


def test_base_that_is_quantised_while_serving_can_carry_a_training():
    _, model, _ = adapted('fused', dtype=FP32)
    with torch.inference_mode():
        quantize_base(model)
    model(images(2, FP32)[0]).sum().backward()
    assert quantized_names(model)
