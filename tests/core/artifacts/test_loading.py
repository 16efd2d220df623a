"""An adapter file is tied to the whole of its base, and brings along what the base cannot have."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from cdra_mm.core import (
    CDRAError,
    CheckpointError,
    NamedAdapters,
    adapters,
    apply_plan,
    find_targets,
    fingerprint_of,
    load_adapter,
    plan_from_masks,
    save_adapter,
    trained_whole,
)
from cdra_mm.core.artifacts.files import digest_of, read_adapter
from tests.core.problems import adapted, move, outputs, random_plan
from tests.models import TinyViT, images


class WithBatchNorm(nn.Module):
    """Convolutions and batch norms in front of the blocks and between them, as LeViT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.vit = TinyViT()
        self.register_buffer('table', torch.arange(5))
        self.register_buffer('scratch', torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.vit(self.stem(x))


def fresh(seed=0):
    torch.manual_seed(seed)
    return WithBatchNorm().eval()


def trained(keep_trainable=()):
    """A model whose adapters and statistics have moved, and its outputs."""
    model = fresh()
    plan = plan_from_masks(
        {'vit.blocks.0.attn.proj.weight': torch.ones(8, 8).bool()},
        rank_rule=2,
        also_train={'vit.cls_token': 8, 'stem.0.weight': 81},
    )
    apply_plan(model, plan, keep_trainable=keep_trainable)
    move(model)
    model.train()
    for _ in range(3):
        model(images(4, torch.float32)[0] + 1)
    return model.eval()


def features(model):
    return outputs(model, torch.float32)


def test_statistics_that_changed_in_training_are_carried(tmp_path):
    model, path = trained(), tmp_path / 'a.safetensors'
    save_adapter(model, path)
    file = read_adapter(path)
    names = ('num_batches_tracked', 'running_mean', 'running_var')
    assert file.carried == tuple(f'stem.1.{name}' for name in names)
    assert 'table' in file.digests and 'scratch' not in file.digests
    assert {'stem.0.bias', 'vit.patch_embed.weight', 'vit.norm.weight'} <= file.digests.keys()
    base = fresh()
    off = (features(base) - features(model)).abs().max()
    load_adapter(base, path)
    assert off > 1e-3 and torch.equal(features(base), features(model))
    again = tmp_path / 'again.safetensors'
    save_adapter(base, again)
    assert read_adapter(again).carried == file.carried
    assert read_adapter(again).digests == file.digests


def test_a_model_of_unknown_beginnings_carries_all_its_buffers(tmp_path):
    model = trained()
    del model.__dict__['_cdra_base']
    save_adapter(model, tmp_path / 'a.safetensors')
    assert 'table' in read_adapter(tmp_path / 'a.safetensors').carried
    base = fresh()
    load_adapter(base, tmp_path / 'a.safetensors')
    assert torch.equal(features(base), features(model))


OUTSIDE = ['stem.0.bias', 'stem.1.weight', 'table', 'vit.patch_embed.bias', 'vit.norm.weight']


@pytest.mark.parametrize('name', OUTSIDE)
def test_every_frozen_weight_and_buffer_is_checked_and_named(name, tmp_path):
    path = tmp_path / 'a.safetensors'
    save_adapter(trained(), path)
    base = fresh()
    base.state_dict()[name].view(-1)[0] += 1
    with pytest.raises(CheckpointError, match=rf'other base weights: 1 tensor differs: {name};'):
        load_adapter(base, path)
    assert not adapters(base) and all(p.requires_grad for p in base.parameters())
    load_adapter(base, path, may_differ=name)
    assert adapters(base)


def test_other_sizes_and_types_are_named_with_both(tmp_path):
    path = tmp_path / 'a.safetensors'
    save_adapter(trained(), path)
    base = fresh()
    base.vit.norm.half()
    base.table = torch.arange(6)
    message = r'differ: table \(int64 6 here, int64 5 there\), .*float16 8 here, float32 8'
    with pytest.raises(CheckpointError, match=message):
        load_adapter(base, path)
    load_adapter(base, path, may_differ=['table', 'vit.norm.weight', 'vit.norm.bias'])


def test_what_is_missing_or_new_in_the_model_is_refused(tmp_path):
    path = tmp_path / 'a.safetensors'
    save_adapter(trained(), path)
    base = fresh()
    del base.table
    base.extra = nn.Linear(2, 2)
    message = r'table \(missing here\), extra.weight \(not there\), extra.bias \(not there\)'
    with pytest.raises(CheckpointError, match=message):
        load_adapter(base, path)
    with pytest.raises(CheckpointError, match=r'may_differ: neither .* has .* buffer tabel'):
        load_adapter(base, path, may_differ=['tabel'])
    load_adapter(base, path, may_differ=['table', 'extra.weight', 'extra.bias'])


def test_what_was_trained_beside_the_plan_is_left_to_its_owner(tmp_path):
    path = tmp_path / 'a.safetensors'
    save_adapter(trained(keep_trainable=['vit.head']), path)
    assert read_adapter(path).beside == ('vit.head.bias', 'vit.head.weight')
    base = fresh()
    base.vit.head = nn.Linear(8, 7)
    load_adapter(base, path)
    save_adapter(base, tmp_path / 'again.safetensors')
    assert read_adapter(tmp_path / 'again.safetensors').beside == read_adapter(path).beside


def test_weights_that_nobody_else_has_are_carried_where_that_is_asked_for(tmp_path):
    model, path = trained(), tmp_path / 'a.safetensors'
    save_adapter(model, path, carry=['vit.patch_embed.weight', 'stem.1.running_mean'])
    base = fresh()
    nn.init.normal_(base.vit.patch_embed.weight)
    base.stem[1].load_state_dict(model.stem[1].state_dict())
    load_adapter(base, path)
    assert torch.equal(features(base), features(model))
    base = fresh()
    base.vit.patch_embed = nn.Conv2d(3, 8, 2, 2)
    with pytest.raises(CheckpointError, match=r'brings vit.patch_embed.weight of shape \(8, 3, 4'):
        load_adapter(base, path)
    with pytest.raises(CheckpointError, match='carry: WithBatchNorm has no .* nothing'):
        save_adapter(model, path, carry=['nothing'])


def test_a_known_table_is_not_made_again(tmp_path, monkeypatch):
    from cdra_mm.core import digests_of
    from cdra_mm.core.artifacts import adapter_saving

    base = fresh()
    table = digests_of(base.state_dict())
    model, hashed = trained(), []
    monkeypatch.setattr(adapter_saving, 'digests_of', lambda tensors: hashed.extend(tensors) or {})
    save_adapter(model, tmp_path / 'a.safetensors', digests=table)
    assert not hashed


def test_named_adapters_put_statistics_on_and_take_them_off(tmp_path):
    model, path = trained(), tmp_path / 'a.safetensors'
    save_adapter(model, path)
    base = fresh()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    named = NamedAdapters(base)
    named.add('a', path)
    named.add('b', random_plan(base))
    named.use('a')
    assert torch.equal(features(base), features(model))
    named.use('b')
    assert torch.equal(base.stem[1].running_mean, before['stem.1.running_mean'])
    base.train()(images(4, torch.float32)[0])
    base.eval()
    moved = base.stem[1].running_mean.clone()
    named.use(None)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    named.use('a')
    assert torch.equal(features(base), features(model))
    named.use('b')
    assert torch.equal(base.stem[1].running_mean, moved)
    assert not torch.equal(moved, before['stem.1.running_mean'])


def version_1(path):
    """The file as releases before this one wrote it."""
    with safe_open(path, 'pt') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    state = adapted('fused')[0].state_dict()
    plan = read_adapter(path).plan
    competing = {target.path for target in find_targets(adapted('fused')[0]).values()}
    names = competing - set(trained_whole(plan))
    old = fingerprint_of({name: state[name] for name in competing})
    metadata['plan'] = replace(plan, fingerprint=old).to_json()
    tensors = {key: value for key, value in tensors.items() if not key.startswith('cdra_')}
    assert json.loads(metadata.pop('beside')) == []
    metadata['version'] = '1'
    metadata['base_fingerprint'] = fingerprint_of({n: state[n] for n in names})
    metadata['digest'] = digest_of(metadata, tensors)
    save_file(tensors, path, metadata=metadata)


def test_files_of_version_1_are_read_and_what_they_do_not_know_is_said(tmp_path):
    base, model, _ = adapted('fused')
    path = tmp_path / 'a.safetensors'
    save_adapter(model, path)
    version_1(path)
    with pytest.warns(UserWarning, match='version 1, which knows the weights that compete only'):
        load_adapter(base, path)
    assert torch.equal(outputs(base), outputs(model))
    other = adapted('fused')[0]
    with torch.no_grad():
        other.blocks[1].mlp.fc2.weight[3, 2] += 1e-3
    with pytest.raises(CDRAError, match='other base weights'):
        load_adapter(other, path)
