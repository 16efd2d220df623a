"""Each kind of model that people give to peft: what is equal by law is equal bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip('peft', '0.21', reason='peft (extra peft) is not installed')

from peft import PeftModel

from cdra_mm.core import adapters, apply_plan, merge_adapters, remove_adapters
from cdra_mm.peft import CdraConfig
from cdra_mm.peft.files import slots_of

from .clients import CLIENTS, config_of, output, trained


@pytest.fixture(scope='module', params=CLIENTS)
def client(request):
    return CLIENTS[request.param]


@pytest.fixture(scope='module')
def config(client):
    return config_of(client)


@pytest.fixture(scope='module')
def model(client, config):
    return trained(client, config)


def values(model, name='default'):
    return model.base_model._values(name)


def test_fresh_adapter_is_the_base_and_a_trained_one_is_not(client, config, model):
    from peft import get_peft_model

    base = output(client, client.build())
    assert config.plan.blocks and config.plan.num_trainable > 100
    assert torch.equal(output(client, get_peft_model(client.build(), config)), base)
    assert (output(client, model) - base).abs().max() > 1e-3
    moved = [bool(value.any()) for value in values(model)]
    assert all(moved) and len(moved) == len(list(slots_of(config.plan)))


def test_saved_adapter_comes_back(client, model, tmp_path):
    model.save_pretrained(tmp_path)
    expected = output(client, model)
    read = PeftModel.from_pretrained(client.build(), tmp_path)
    assert torch.equal(output(client, read), expected)
    read.load_adapter(tmp_path, 'second')
    read.set_adapter('second')
    assert torch.equal(output(client, read), expected)
    assert all(map(torch.equal, values(read, 'second'), values(model)))


def test_disabled_adapter_is_the_base(client, model):
    base, adapted = output(client, client.build()), output(client, model)
    with model.disable_adapter():
        assert torch.equal(output(client, model), base)
    assert torch.equal(output(client, model), adapted)


def test_merge_is_that_of_core(client, model, tmp_path):
    """Core trains vectors and tokens in place: they are given to it as entries, as here."""
    plan = model.peft_config['default'].plan
    own = dict(zip(slots_of(plan), values(model), strict=True))
    vectors = tuple(
        v if v.indices else replace(v, indices=tuple(range(v.length))) for v in plan.vectors
    )
    core = client.build()
    apply_plan(core, replace(plan, vectors=vectors, fingerprint=''))
    by_name = {(name, tensor): value for (name, tensor, _), value in own.items()}
    with torch.no_grad():
        for name, adapter in adapters(core).items():
            for tensor, parameter in adapter.named_parameters():
                parameter.copy_(by_name[name, tensor])
        for name in plan.also_train:
            parameter = core.get_parameter(name)
            delta = by_name[name, 'value'].view_as(parameter)
            parameter.copy_((parameter.double() + delta.double()).float())
    merge_adapters(core)
    remove_adapters(core)
    model.save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(client.build(), tmp_path).merge_and_unload()
    assert type(merged) is type(core)
    expected = core.state_dict()
    assert merged.state_dict().keys() == expected.keys()
    for key, value in merged.state_dict().items():
        if not key.startswith(tuple(client.head)):
            assert torch.equal(value, expected[key]), key
    torch.testing.assert_close(output(client, merged), output(client, model), rtol=1e-4, atol=1e-5)


def test_merged_adapter_comes_out_again(client, model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = output(client, model)
    model.merge_adapter()
    torch.testing.assert_close(output(client, model), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(output(client, model), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_unloaded_model_is_the_base_but_for_its_head(client, model, tmp_path):
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(client.build(), tmp_path).unload()
    base = client.build().state_dict()
    assert plain.state_dict().keys() == base.keys()
    for key, value in plain.state_dict().items():
        assert torch.equal(value, base[key]) or key.startswith(tuple(client.head)), key
    assert not any(hasattr(type(module), 'base_class') for module in plain.modules())


def test_config_of_a_folder_gives_a_fresh_adapter_of_its_plan(client, config, model, tmp_path):
    from peft import get_peft_model

    model.save_pretrained(tmp_path)
    read = CdraConfig.from_pretrained(tmp_path)
    assert list(slots_of(read.plan)) == list(slots_of(config.plan))
    fresh = get_peft_model(client.build(), read)
    assert torch.equal(output(client, fresh), output(client, client.build()))
