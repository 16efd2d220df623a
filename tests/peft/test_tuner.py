"""A tuner that people switch, sum, merge, copy and save: on one small ViT."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip('peft', '0.21', reason='peft (extra peft) is not installed')
pytest.importorskip('timm')

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict

from cdra_mm.core import Block, Plan, Vector, plan_from_masks
from cdra_mm.core.adapters import compact_linear
from cdra_mm.core.adapters.adapter_set import AdapterSet
from cdra_mm.core.adapters.copied_weights import choose_product
from cdra_mm.errors import CheckpointError, ConfigError, PlanError
from cdra_mm.peft import CdraConfig

from .clients import CLIENTS, config_of, images, output, trained

VIT = CLIENTS['timm ViT']


@pytest.fixture(scope='module')
def config():
    return config_of(VIT)


@pytest.fixture(scope='module')
def other(config):
    """A config of other blocks."""
    found = config_of(VIT, allocation='energy', budget_percent=5, also_train=[])
    return replace(found, modules_to_save=None)


@pytest.fixture
def model(config):
    return trained(VIT, copy.deepcopy(config))


@pytest.fixture
def two(config, other):
    """A model with two trained adapters, 'default' and 'other', the first in use."""
    model = trained(VIT, copy.deepcopy(config))
    model.add_adapter('other', replace(copy.deepcopy(other), init_weights=False, seed=3))
    return model.eval()


def backbone(model):
    """What the backbone of a peft model gives, without its head."""
    with torch.no_grad():
        return model.base_model.model.forward_features(images())


def whole(model):
    """What the model under a peft model gives, by the forward that makes the copies."""
    with torch.no_grad():
        return model.base_model.model(images())


def test_linear_layers_run_the_operation_of_core(other, monkeypatch):
    model = get_peft_model(VIT.build(), copy.deepcopy(other))
    seen = []
    own = compact_linear._apply
    monkeypatch.setattr(
        compact_linear, '_apply', lambda *given: seen.append(len(given[3])) or own(*given)
    )
    output(VIT, model)
    blocks = model.peft_config['default'].plan.blocks
    assert sum(seen) == len(blocks) > 3
    assert max(seen) > 1  # q, k and v of a fused matrix in one product


def test_adapters_are_switched(two):
    first = backbone(two)
    two.set_adapter('other')
    second = backbone(two)
    two.set_adapter('default')
    assert torch.equal(backbone(two), first) and (first - second).abs().max() > 1e-2
    alone = get_peft_model(VIT.build(), replace(two.peft_config['other'])).eval()
    with torch.no_grad():
        pairs = zip(
            alone.base_model._tensors('default'), two.base_model._values('other'), strict=True
        )
        for own, value in pairs:
            own.copy_(value)
    assert torch.equal(backbone(alone), second)


def test_only_the_adapter_in_use_is_trained(two):
    def names():
        return {n for n, p in two.named_parameters() if p.requires_grad}

    assert all('.default.' in name for name in names())
    two.set_adapter('other')
    assert names() and all('.other.' in name for name in names())
    two.base_model.set_adapter(['default', 'other'], inference_mode=True)
    assert not names()


@pytest.mark.parametrize('product', ['copied', 'kept'])
def test_copies_of_the_weights_follow_what_is_in_use(two, product):
    """As on a GPU, where a layer's products run through a copy of its weight."""
    found = {}
    for by in (product, 'factored'):
        choose_product(two.base_model.model, by)
        for layer in two.base_model._layers():
            layer.product = by
        names = ('default', 'other', 'default')
        found[by] = [(two.set_adapter(name), whole(two))[1] for name in names]
    torch.testing.assert_close(found[product], found['factored'], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[product][0], found[product][1], rtol=1e-3)


def test_forward_does_not_ask_again_what_is_in_use(two, monkeypatch):
    """Which would break the graph of a compiled one."""

    def fail(*_):
        raise AssertionError('joined in a forward')

    two.set_adapter('other')
    two.set_adapter('default')
    monkeypatch.setattr(AdapterSet, 'join', fail)
    backbone(two)


def test_sum_of_adapters_in_use_is_the_weighted_adapter(two):
    two.base_model.set_adapter(['default', 'other'])
    together = backbone(two)
    two.add_weighted_adapter(['default', 'other'], [1.0, 1.0], 'sum')
    two.base_model.set_adapter('sum')
    torch.testing.assert_close(backbone(two), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('weight', [0.3, -2.0])
def test_weighted_adapter_is_that_share_of_each_update(weight, two):
    base = VIT.build().state_dict()

    def change(adapters):
        merged = copy.deepcopy(two).base_model.merge_and_unload(adapter_names=adapters)
        return {k: v - base[k] for k, v in merged.state_dict().items() if not k.startswith('head')}

    two.add_weighted_adapter(['default', 'other'], [weight, 1.0], 'sum')
    one, second, both = (change([name]) for name in ('default', 'other', 'sum'))
    for key, value in both.items():
        torch.testing.assert_close(value, weight * one[key] + second[key], rtol=1e-4, atol=1e-5)


def test_weighted_adapter_of_a_rank_above_its_block():
    def adapter(seed, rows):
        block = Block('blocks.0.attn.proj.weight', (32, 32), rows, (3, 5), 2, 4)
        return CdraConfig(plan=Plan(blocks=(block,)), init_weights=False, seed=seed)

    model = get_peft_model(VIT.build(), adapter(0, (1, 2, 9))).eval()
    model.add_adapter('other', adapter(1, (1, 2, 4)))
    model.base_model.set_adapter(['default', 'other'])
    together = backbone(model)
    model.add_weighted_adapter(['default', 'other'], [1, 1], 'sum')
    assert model.peft_config['sum'].plan.blocks[0].rank == 2
    model.base_model.set_adapter('sum')
    torch.testing.assert_close(backbone(model), together, rtol=1e-4, atol=1e-5)


def test_deleted_adapter_leaves_the_other(two):
    two.set_adapter('other')
    second = backbone(two)
    two.set_adapter('default')
    with pytest.warns(UserWarning, match='was active'):
        two.delete_adapter('default')
    assert two.active_adapters == ['other'] and torch.equal(backbone(two), second)
    assert not any('.default.' in key for key in two.state_dict())
    two.delete_adapter('other')
    assert torch.equal(backbone(two), VIT.build().forward_features(images()))


def test_several_merged_adapters_come_out_again_bit_for_bit(two):
    before = {key: value.clone() for key, value in two.state_dict().items()}
    first = backbone(two)
    two.merge_adapter(adapter_names=['default', 'other'])
    assert (backbone(two) - first).abs().max() > 1e-2
    with two.disable_adapter():
        assert torch.equal(backbone(two), VIT.build().forward_features(images()))
    two.unmerge_adapter()
    assert all(torch.equal(value, before[key]) for key, value in two.state_dict().items())


def test_merged_adapter_is_saved_as_it_is(model, tmp_path):
    expected = get_peft_model_state_dict(model)
    model.merge_adapter()
    kept = get_peft_model_state_dict(model)
    assert all(torch.equal(kept[key], value) for key, value in expected.items())
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match='Unmerging'):
        model.load_adapter(tmp_path, 'again')  # of the base as it was before the merge


def test_safe_merge_refuses_values_that_are_not_finite(model):
    before = backbone(model)
    value = model.base_model._tensors('default')[1]
    kept = value.detach().clone()
    value.data.fill_(float('inf'))
    with pytest.raises(ValueError, match='NaNs detected'):
        model.merge_adapter(safe_merge=True)
    value.data.copy_(kept)
    model.unmerge_adapter()
    assert torch.equal(backbone(model), before)


def test_copy_of_a_model_is_a_model_of_its_own(model):
    before = backbone(model)
    twin = copy.deepcopy(model)
    for tensor in twin.base_model._tensors('default'):
        tensor.data.zero_()
    assert torch.equal(backbone(model), before)
    assert torch.equal(backbone(twin), VIT.build().forward_features(images()))


@pytest.mark.parametrize('reentrant', [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant, config):
    def gradients(checkpointed):
        model = get_peft_model(VIT.build(), replace(copy.deepcopy(config), init_weights=False))
        blocks = model.base_model.model.blocks
        images_ = images().requires_grad_()
        x = model.base_model.model.patch_embed(images_)
        for block in blocks:
            if checkpointed:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant)
            else:
                x = block(x)
        x.square().sum().backward()
        return [t.grad for t in model.base_model._tensors('default') if t.grad is not None]

    plain, again = gradients(False), gradients(True)
    assert len(plain) > 5 and all(map(torch.equal, plain, again))


def test_bf16_base_has_adapters_in_fp32(config, tmp_path):
    model = get_peft_model(
        VIT.build().bfloat16(), replace(copy.deepcopy(config), base_fingerprint='')
    )
    assert {t.dtype for t in model.base_model._tensors('default')} == {torch.float32}
    with torch.no_grad():
        assert model(images().bfloat16()).dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    read = PeftModel.from_pretrained(VIT.build().bfloat16(), tmp_path)
    assert {t.dtype for t in read.base_model._tensors('default')} == {torch.float32}


def test_values_are_read_without_memory_for_first_ones(model, tmp_path):
    model.save_pretrained(tmp_path)
    read = PeftModel.from_pretrained(VIT.build(), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(output(VIT, read), output(VIT, model))


def test_weight_that_two_modules_share_is_adapted_in_both():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0)

    def build():
        torch.manual_seed(1)
        twin = copy.deepcopy(layer)
        twin.linear1.weight = layer.linear1.weight
        return nn.Sequential(layer, twin).eval()

    block = Block('0.linear1.weight', (32, 16), (1, 4, 7), (2, 3), 2, 3)
    model = get_peft_model(
        copy.deepcopy(build()), CdraConfig(plan=Plan(blocks=(block,)), init_weights=False)
    )
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        adapted = model.eval()(x)
        with model.disable_adapter():
            assert torch.equal(model(x), build()(x))
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(x), adapted, rtol=1e-4, atol=1e-5)
    assert merged[0].linear1.weight is merged[1].linear1.weight
    assert (adapted - build()(x)).abs().max() > 1e-3


def lora_of(count):
    """A LoRA on all linear layers of the blocks, with about as many parameters; and how many."""
    layers = ['qkv', 'proj', 'fc1', 'fc2']
    by_rank = {}
    for rank in range(1, 5):
        lora = LoraConfig(r=rank, target_modules=r'blocks\..*\.(' + '|'.join(layers) + ')')
        model = get_peft_model(tiny(), lora)
        by_rank[sum(p.numel() for p in model.parameters() if p.requires_grad)] = model
    number = min(by_rank, key=lambda n: abs(n - count))
    return by_rank[number], number


def tiny():
    """A DeiT-Tiny's sizes in four blocks."""
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    return timm.models.VisionTransformer(embed_dim=192, depth=4, num_heads=3, num_classes=0)


def test_files_are_no_larger_than_those_of_a_lora(tmp_path):
    from cdra_mm.core import find_targets

    masks = {}
    for name, target in find_targets(tiny()).items():
        rows = torch.rand(target.shape[0]) < 0.3
        mask = torch.rand(target.shape) < 0.02
        masks[name] = mask & rows[:, None] if mask.dim() == 2 else mask & rows
    plan = plan_from_masks(masks, rank_rule=2)
    lora, number = lora_of(plan.num_trainable)
    lora.save_pretrained(tmp_path / 'lora')
    get_peft_model(tiny(), CdraConfig(plan=plan)).save_pretrained(tmp_path / 'cdra')

    def size(name):
        files = ('adapter_model.safetensors', 'adapter_config.json')
        return sum((tmp_path / name / file).stat().st_size for file in files)

    assert size('cdra') - 4 * plan.num_trainable <= size('lora') - 4 * number
    assert len(json.loads((tmp_path / 'cdra/adapter_config.json').read_text())) < 15


def test_another_plan_under_a_name_is_refused(two, tmp_path):
    two.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match='of another plan'):
        two.load_adapter(tmp_path, 'other')


def test_refused_name_leaves_the_model_as_it_was(config):
    model = VIT.build()
    with pytest.raises(ConfigError, match='has a dot'):
        get_peft_model(model, copy.deepcopy(config), adapter_name='a.b')
    with pytest.raises(ConfigError, match='has no module that ends with'):
        get_peft_model(model, replace(copy.deepcopy(config), modules_to_save=['classifier']))
    assert model.state_dict().keys() == VIT.build().state_dict().keys()
    assert not any(hasattr(type(module), 'base_class') for module in model.modules())


@pytest.mark.filterwarnings('ignore:You are trying to modify')
@pytest.mark.filterwarnings('ignore:Already found')
def test_second_peft_model_of_a_model_has_nothing_of_the_first(model, other):
    """As where a cell of a notebook is run twice, with another plan."""
    base = model.base_model.model
    model.merge_adapter()
    again = get_peft_model(base, replace(copy.deepcopy(other), init_weights=False)).eval()
    alone = get_peft_model(VIT.build(), replace(copy.deepcopy(other), init_weights=False)).eval()
    assert torch.equal(backbone(again), backbone(alone))
    own = again.peft_config['default'].plan.num_trainable
    assert sum(t.numel() for n, t in again.named_parameters() if '.cdra.' in n) == own


def test_values_stay_in_memory_where_the_base_is_on_meta(model, tmp_path):
    model.save_pretrained(tmp_path)
    read = PeftModel.from_pretrained(VIT.build().to('meta'), tmp_path, low_cpu_mem_usage=True)
    pairs = zip(
        read.base_model._values('default'), model.base_model._values('default'), strict=True
    )
    assert all(torch.equal(own, value) for own, value in pairs)


def test_process_that_has_no_state_dict_writes_nothing(other, tmp_path):
    """A state dict that is gathered on one process is empty on the others."""
    model = get_peft_model(VIT.build(), copy.deepcopy(other))
    model.save_pretrained(tmp_path, state_dict={}, is_main_process=False)
    assert not list(tmp_path.iterdir())


def test_base_weight_that_comes_along_unchanged_is_no_harm(model, tmp_path):
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path)
    file = tmp_path / 'adapter_model.safetensors'
    along = {'base_model.model.norm.weight': VIT.build().norm.weight.detach()}
    save_file({**load_file(file), **along}, file)
    read = PeftModel.from_pretrained(VIT.build(), tmp_path)
    assert torch.equal(output(VIT, read), output(VIT, model))


WEIGHTED = {
    'no adapter': (dict(adapters=['third'], weights=[1]), "'third'"),
    'weights': (dict(adapters=['default'], weights=[1, 2]), '2 weights for 1'),
    'name': (dict(adapters=['default'], weights=[1], adapter_name='other'), "'other' already"),
    'svd': (dict(adapters=['default'], weights=[1], combination_type='svd'), "expected 'cat'"),
}


@pytest.mark.parametrize('case', WEIGHTED)
def test_sums_that_are_not_defined_are_refused(case, two):
    given, message = WEIGHTED[case]
    with pytest.raises(ConfigError, match=message):
        two.add_weighted_adapter(**{'adapter_name': 'sum', **given})
    assert set(two.peft_config) == {'default', 'other'}


def test_sum_of_two_heads_is_refused(config):
    model = trained(VIT, copy.deepcopy(config))
    model.add_adapter('other', copy.deepcopy(config))
    with pytest.raises(ConfigError, match='modules_to_save along'):
        model.add_weighted_adapter(['default', 'other'], [1, 1], 'sum')


def test_sum_of_a_block_and_entries_is_refused():
    name = 'blocks.0.norm1.bias'
    one = CdraConfig(plan=Plan(vectors=(Vector(name, 32, None, 1),)))
    model = get_peft_model(VIT.build(), one)
    model.add_adapter('whole', CdraConfig(plan=Plan(also_train={name: 32})))
    with pytest.raises(ConfigError, match='no sum'):
        model.add_weighted_adapter(['default', 'whole'], [1, 1], 'sum')


def test_trainable_parameters_are_those_of_the_plan(config, capsys):
    model = get_peft_model(VIT.build(), copy.deepcopy(config))
    head = sum(p.numel() for p in VIT.build().head.parameters())
    trainable, _ = model.get_nb_trainable_parameters()
    assert trainable == config.plan.num_trainable + head
    model.print_trainable_parameters()
    assert f'{trainable:,}' in capsys.readouterr().out


def test_config_of_one_call_goes_onto_its_base_alone():
    made = config_of(VIT)
    assert made.base_fingerprint
    get_peft_model(VIT.build(), copy.deepcopy(made))
    other = VIT.build()
    other.blocks[0].attn.qkv.weight.data[0, 0] += 1
    with pytest.raises(PlanError, match='other base weights'):
        get_peft_model(other, made)


def test_further_adapter_goes_onto_a_converted_model_of_the_same_base(two, tmp_path):
    two.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(VIT.build(), tmp_path).to(torch.bfloat16)
    model.load_adapter(tmp_path / 'other', 'other')
    model.set_adapter('other')
    whole = PeftModel.from_pretrained(VIT.build(), tmp_path)
    whole.load_adapter(tmp_path / 'other', 'other')
    whole.to(torch.bfloat16).set_adapter('other')
    x = images().to(torch.bfloat16)
    assert torch.equal(model(x), whole(x))
    with pytest.raises(PlanError, match='other base weights'):
        PeftModel.from_pretrained(VIT.build().to(torch.bfloat16), tmp_path)


def test_heads_that_peft_adds_to_a_task_may_be_absent():
    client = CLIENTS['ViT']
    made = replace(config_of(client), task_type='SEQ_CLS')
    model = get_peft_model(client.build(), made)
    assert model.base_model.model.classifier.modules_to_save['default'].weight.requires_grad
    assert output(client, model).shape == (4, 3)


def test_a_helper_of_peft_that_switches_casting_has_nothing_to_switch(model):
    from peft.helpers import disable_input_dtype_casting

    x = images()
    expected = model(x)
    with disable_input_dtype_casting(model):
        assert torch.equal(model(x), expected)
