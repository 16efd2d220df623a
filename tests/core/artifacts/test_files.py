"""Adapter files: small, complete, and refused where they do not belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from cdra_mm.core import (
    CDRAError,
    CheckpointError,
    adapters,
    apply_plan,
    load_adapter,
    merge_adapters,
    plan_from_masks,
    save_adapter,
)
from cdra_mm.core.artifacts.files import read_adapter
from cdra_mm.core.model.digests import DIGESTS_KEY, pack_digests
from cdra_mm.core.model.own_state import PLAN_KEY
from cdra_mm.core.planning.packed_plan import unpack_plan
from tests.core.problems import adapted, adapter_keys, move, outputs, trainable_names
from tests.models import MODELS, TinyViT

KINDS = pytest.mark.parametrize('kind', MODELS)


@pytest.fixture
def saved(tmp_path):
    """A fresh base, the adapted model, and the file it was saved to."""
    base, model, _ = adapted('fused')
    path = tmp_path / 'adapter.safetensors'
    save_adapter(model, path)
    return base, model, path


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@KINDS
def test_adapter_file_round_trip(kind, dtype, tmp_path):
    """Factors, partly and wholly trained vectors and tokens: the outputs are the same bits."""
    base, model, _ = adapted(kind, dtype=dtype)
    path = tmp_path / 'adapter.safetensors'
    save_adapter(model, path)
    load_adapter(base, path)
    assert torch.equal(outputs(base, dtype), outputs(model, dtype))
    state = base.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    names = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (base, model)]
    assert names[0] == names[1]


def test_adapter_file_path_may_be_text(saved, tmp_path):
    base, model, path = saved
    save_adapter(model, str(path))
    load_adapter(base, str(path))
    assert torch.equal(outputs(base), outputs(model))


def test_adapter_file_is_safetensors_with_the_plan_and_without_the_base(saved):
    _, model, path = saved
    plan = adapted('fused')[2]
    tensors, metadata = contents(path)
    keys = set(tensors)
    assert keys == trainable_names(plan) | {PLAN_KEY, DIGESTS_KEY}
    assert adapter_keys(plan) <= keys
    assert unpack_plan(tensors[PLAN_KEY]) == plan
    assert not any('blocks.' in text for text in metadata.values())
    state = model.state_dict()  # the part of it that a checkpoint would hold
    assert all(torch.equal(tensors[key], state[key]) for key in keys - {DIGESTS_KEY})


def contents(path):
    """Tensors and metadata of a safetensors file."""
    with safe_open(path, 'pt') as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def assert_same_contents(path, other):
    (tensors, metadata), (others, other_metadata) = contents(path), contents(other)
    assert metadata == other_metadata and list(tensors) == list(others)
    assert all(torch.equal(tensors[key], others[key]) for key in tensors)


def test_adapter_file_saved_over_an_older_one_replaces_it(saved):
    _, model, path = saved
    path.write_text('older')
    save_adapter(model, path)
    again = path.parent / 'again.safetensors'
    save_adapter(model, again)
    assert_same_contents(again, path)
    again.unlink()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_adapter_file_of_a_loaded_model_is_the_same(saved, tmp_path):
    base, _, path = saved
    load_adapter(base, path)
    again = tmp_path / 'again.safetensors'
    save_adapter(base, again)
    assert_same_contents(again, path)


def test_adapter_file_of_a_merged_model_is_refused_or_the_same(saved, tmp_path):
    base, model, _ = saved
    expected = outputs(model)
    merge_adapters(model)
    path = tmp_path / 'merged.safetensors'
    try:
        save_adapter(model, path)
    except CDRAError as error:
        assert 'merge' in str(error) and not path.exists()
    else:
        load_adapter(base, path)
        torch.testing.assert_close(outputs(base), expected, rtol=1e-12, atol=1e-12)


def unchanged(model, expected):
    """The model is as plain as before a refused load."""
    assert adapters(model) == {}
    assert not any('.cdra.' in key for key in model.state_dict())
    assert torch.equal(outputs(model), expected)
    assert all(p.requires_grad for p in model.parameters())


def refuse(model, path, message):
    expected = outputs(model)
    with pytest.raises(CDRAError, match=message):
        load_adapter(model, path)
    unchanged(model, expected)


def test_load_adapter_refuses_other_base_weights(saved):
    _, _, path = saved
    refuse(TinyViT().double().eval(), path, '(?i)base')


def test_load_adapter_notices_one_changed_weight_of_the_base(saved):
    base, _, path = saved
    with torch.no_grad():
        base.blocks[1].mlp.fc2.weight[3, 2] += 1e-3
    refuse(base, path, '(?i)base')


@pytest.mark.parametrize(
    'build',
    [
        lambda: TinyViT(dim=16),
        lambda: TinyViT(depth=1),
        lambda: TinyViT(ffn='swiglu'),
        lambda: MODELS['windowed'](),
    ],
)
def test_load_adapter_refuses_another_architecture(saved, build):
    refuse(build().double().eval(), saved[2], r'(?i)blocks\.|stages\.|base')


def test_load_adapter_refuses_an_adapted_model(saved):
    _, model, path = saved
    expected = outputs(model)
    with pytest.raises(CDRAError, match='(?i)already|adapted'):
        load_adapter(model, path)
    assert torch.equal(outputs(model), expected)


def test_load_adapter_refuses_a_missing_file(saved, tmp_path):
    refuse(saved[0], tmp_path / 'nowhere.safetensors', r'nowhere\.safetensors')


def test_load_adapter_refuses_a_folder(saved, tmp_path):
    refuse(saved[0], tmp_path, tmp_path.name)


@pytest.mark.parametrize('keep', [0, 5, 8, 100, 0.5, 0.99])
def test_load_adapter_refuses_a_truncated_file(saved, keep):
    base, _, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(CheckpointError, match=path.name):
        load_adapter(base, path)
    unchanged(base, outputs(base))


def test_load_adapter_refuses_a_file_of_another_kind(saved, tmp_path):
    base, model, _ = saved
    path = tmp_path / 'foreign.safetensors'
    save_file({'lora_A.weight': torch.zeros(2, 2)}, path)
    refuse(base, path, r'foreign\.safetensors')
    save_file({'lora_A.weight': torch.zeros(2, 2)}, path, metadata={'format': 'pt'})
    refuse(base, path, r'foreign\.safetensors')
    path = tmp_path / 'model.pth'
    torch.save(model.state_dict(), path)
    refuse(base, path, r'model\.pth')


def rewritten(path, change):
    """The file with its tensors or metadata changed."""
    tensors, metadata = change(*contents(path))
    save_file(tensors, path, metadata=metadata)


def without(key):
    return lambda tensors, metadata: ({k: v for k, v in tensors.items() if k != key}, metadata)


def one_more(tensors, metadata):
    return tensors | {'blocks.0.mlp.fc1.weight': torch.zeros(16, 8)}, metadata


def other_shape(tensors, metadata):
    key = next(key for key in tensors if key.endswith('.up'))
    return tensors | {key: tensors[key][:-1].contiguous()}, metadata


def token_of(*shape):
    return lambda tensors, metadata: (tensors | {'cls_token': torch.zeros(shape)}, metadata)


def broken_plan(tensors, metadata):
    return tensors, {key: value[:-9] for key, value in metadata.items()}


@pytest.mark.parametrize(
    'change',
    [
        without('cls_token'),
        without('blocks.0.mlp.fc1.cdra.weight.up'),
        one_more,
        other_shape,
        token_of(3),
        token_of(8),
        broken_plan,
    ],
    ids=['no token', 'no factor', 'one more', 'shape', 'other token', 'flat token', 'plan'],
)
def test_load_adapter_refuses_a_file_that_contradicts_its_plan(saved, change):
    base, _, path = saved
    rewritten(path, change)
    refuse(base, path, '.')


def test_save_adapter_refuses_a_plain_model(tmp_path):
    with pytest.raises(CDRAError, match='(?i)adapt'):
        save_adapter(TinyViT(), tmp_path / 'x.safetensors')
    assert not list(tmp_path.iterdir())


def test_save_adapter_refuses_a_folder_it_cannot_write_to(saved, tmp_path):
    _, model, _ = saved
    (tmp_path / 'file').write_text('kept')
    with pytest.raises(CDRAError, match='file.*nothing was changed'):
        save_adapter(model, tmp_path / 'file' / 'x.safetensors')
    assert (tmp_path / 'file').read_text() == 'kept'


def test_save_adapter_that_fails_keeps_the_old_file(saved, monkeypatch):
    import safetensors.torch

    _, model, path = saved
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError('No space left on device')

    for name in ('save_file', 'save'):
        monkeypatch.setattr(safetensors.torch, name, full)
    from cdra_mm.core.artifacts import adapter_saving

    for name in ('save_file', 'save'):
        monkeypatch.setattr(adapter_saving, name, full, raising=False)
    with pytest.raises((CDRAError, OSError), match='No space left'):
        save_adapter(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def plain_plan(tmp_path, **options):
    """A file whose plan names no base, of a model whose base is at `seed`."""
    model = TinyViT()
    mask = torch.ones(8, 8, dtype=torch.bool)
    masks = {'blocks.0.attn.proj.weight': mask, 'blocks.0.norm1.bias': torch.ones(8).bool()}
    apply_plan(model, plan_from_masks(masks, rank_rule=1, **options))
    move(model)
    save_adapter(model, tmp_path / 'x.safetensors')
    return model


def test_file_of_a_plan_without_fingerprint_names_its_base_all_the_same(tmp_path):
    torch.manual_seed(1)
    model = plain_plan(tmp_path, also_train={'cls_token': 8})
    torch.manual_seed(1)
    same, other = TinyViT(), TinyViT()
    load_adapter(same, tmp_path / 'x.safetensors')
    assert torch.equal(outputs(same.double().eval()), outputs(model.double().eval()))
    refuse(other.double().eval(), tmp_path / 'x.safetensors', 'check_base=False')


def test_load_adapter_takes_another_base_where_that_is_asked_for(saved):
    _, model, path = saved
    other = TinyViT().double().eval()
    load_adapter(other, path, check_base=False)
    assert adapters(other).keys() == adapters(model).keys()
    assert isinstance(other.blocks[0].attn.proj, nn.Linear)
    expected = model.state_dict()
    learnt = [key for key in expected if '.cdra.' in key or key == 'cls_token']
    assert learnt and all(torch.equal(other.state_dict()[key], expected[key]) for key in learnt)


def test_adapter_file_tells_what_it_is(saved, tmp_path):
    from cdra_mm import __version__

    _, model, _ = saved
    path = tmp_path / 'told.safetensors'
    save_adapter(model, path, metrics={'mIoU': np.float32(43.5)}, metadata={'author': 'me'})
    metadata = contents(path)[1]
    assert metadata['format'] == 'cdra_mm.adapter' and metadata['version'] == '3'
    assert metadata['cdra_mm'] == __version__ and metadata['author'] == 'me'
    assert metadata['method'] == adapted('fused')[2].method
    assert read_adapter(path).metrics == {'mIoU': 43.5}
    with pytest.raises(CheckpointError, match="'plan'"):
        save_adapter(model, path, metadata={'plan': '{}'})


def metadata_with(**changes):
    def change(tensors, metadata):
        kept = {key: value for key, value in metadata.items() if key not in changes}
        return tensors, kept | {key: value for key, value in changes.items() if value is not None}

    return change


def packed(key, change):
    return lambda tensors, metadata: (tensors | {key: change(tensors[key])}, metadata)


def not_finite(tensors, metadata):
    key = next(key for key in tensors if key.endswith('.up'))
    return tensors | {key: torch.full_like(tensors[key], float('nan'))}, metadata


def whole_numbers(tensors, metadata):
    key = next(key for key in tensors if key.endswith('.up'))
    return tensors | {key: tensors[key].long()}, metadata


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (metadata_with(version='4'), "version '4'"),
        (metadata_with(version=None), 'version None'),
        (metadata_with(version='1'), 'base weights'),
        (metadata_with(version='2'), 'lacks plan'),
        (without(DIGESTS_KEY), 'lacks cdra_digests'),
        (without(PLAN_KEY), 'lacks cdra_plan'),
        (packed(DIGESTS_KEY, lambda held: held[:-1]), 'table of digests, '),
        (packed(DIGESTS_KEY, lambda held: pack_digests({})), 'not those that were saved'),
        (packed(PLAN_KEY, lambda held: held[:40]), 'its plan are not those that were saved'),
        (packed(PLAN_KEY, lambda held: held.float()), 'its plan are not those that were saved'),
        (metadata_with(beside='["norm.weight"]'), 'twice'),
        (metadata_with(beside='[1]'), 'by texts'),
        (metadata_with(beside='{'), 'beside are no JSON list'),
        (metadata_with(metrics='[1'), 'metrics'),
        (not_finite, 'no finite numbers'),
        (whole_numbers, 'no finite numbers'),
    ],
)
def test_load_adapter_refuses_a_changed_file(saved, change, message):
    base, _, path = saved
    rewritten(path, change)
    refuse(base, path, message)
