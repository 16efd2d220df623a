"""A task file brings back adapter and head, or says in one line why not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from cdra_mm.core import (
    CDRAError,
    CheckpointError,
    ConfigError,
    MultiTask,
    adapters,
    apply_plan,
    load_adapter,
    read_task,
    save_adapter,
    save_task,
)
from cdra_mm.core.artifacts import task_files
from tests.core.problems import move, outputs, random_plan
from tests.models import MODELS

from .many import Dense, backbone, many


def texts(path):
    with safe_open(str(path), 'pt') as file:
        return file.metadata()


def written(folder, **options):
    several = many()
    several.save('t0', folder / 'a.safetensors', **options)
    return several, folder / 'a.safetensors'


def again(path, head=None, **options):
    several = MultiTask(backbone())
    several.add('x', path, head, **options)
    several.use('x')
    return several.eval()


def test_task_comes_back_bit_for_bit(tmp_path):
    several, path = written(tmp_path, classes=['a', 'b', 'c'], metrics={'mIoU': 1.5})
    several.use('t0')
    restored = again(path, nn.Linear(8, 3).double())
    assert torch.equal(outputs(restored), outputs(several))
    assert restored.classes_of('x') == ('a', 'b', 'c')
    file = read_task(path)
    assert (file.kind, file.dtype, file.adapter.metrics) == ('Linear', '', {'mIoU': 1.5})


def test_linear_head_is_built_and_another_is_asked_for(tmp_path):
    several, path = written(tmp_path)
    head = read_task(path).build_head()
    assert torch.equal(head.weight, several.heads['t0'].weight.float())
    several.save('t1', tmp_path / 'b.safetensors')
    with pytest.raises(CheckpointError, match=r'its head is a Dense.*head=\.\.\.'):
        again(tmp_path / 'b.safetensors')
    several.use('t1')
    restored = again(tmp_path / 'b.safetensors', Dense(8, 3).double())
    assert torch.equal(outputs(restored)['map'], outputs(several)['map'])


def test_head_inside_of_the_model_is_the_head(tmp_path):
    """A classifier as a whole: the file fits its base without that head, or with another one."""
    torch.manual_seed(0)
    model = MODELS['fused']().double().eval()
    apply_plan(model, random_plan(model), keep_trainable=['head'])
    move(model)
    save_task(model, tmp_path / 'a.safetensors', model.head)
    restored = again(tmp_path / 'a.safetensors', nn.Linear(8, 3).double())
    assert torch.equal(outputs(restored), outputs(model))
    torch.manual_seed(0)
    frozen = MODELS['fused']().double().eval()
    apply_plan(frozen, random_plan(frozen))  # which freezes the head
    save_task(frozen, tmp_path / 'b.safetensors', frozen.head)
    restored = again(tmp_path / 'b.safetensors', nn.Linear(8, 3).double())
    assert torch.equal(outputs(restored), outputs(frozen))


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
def test_named_type_rounds_adapters_and_head_alone(dtype, tmp_path):
    several, path = written(tmp_path, dtype=dtype)
    several.save('t0', tmp_path / 'full.safetensors')
    full, narrow = load_file(tmp_path / 'full.safetensors'), load_file(path)
    learnt = {key for key in full if '.cdra.' in key or key.startswith('cdra_head.')}
    assert {'cls_token', 'cdra_plan'} <= full.keys() - learnt and len(learnt) > 10
    for key, value in full.items():
        kept = value.to(getattr(torch, dtype)) if key in learnt else value
        assert narrow[key].dtype == kept.dtype and torch.equal(narrow[key], kept)
    restored = again(path, nn.Linear(8, 3).double())
    assert all(p.dtype == torch.float64 for p in restored.parameters())


def test_type_that_does_not_hold_the_values_is_refused(tmp_path):
    several = many()
    with torch.no_grad():
        several.heads['t0'].bias[0] = 1e6
    with pytest.raises(CheckpointError, match=r'cdra_head.bias .* float16 \(up to 1e\+06\)'):
        several.save('t0', tmp_path / 'a.safetensors', dtype='float16')
    with pytest.raises(ConfigError, match="dtype='half'"):
        several.save('t0', tmp_path / 'a.safetensors', dtype='half')
    assert not list(tmp_path.iterdir())
    several.save('t0', tmp_path / 'a.safetensors', dtype='bfloat16')


def test_other_head_is_refused_and_left_as_it_is(tmp_path):
    _, path = written(tmp_path)
    head = nn.Linear(8, 4).double()
    before = head.weight.clone()
    with pytest.raises(CheckpointError, match=r'bias of shape \(3,\), the Linear .* \(4,\)'):
        again(path, head)
    assert torch.equal(head.weight, before)
    with pytest.raises(CheckpointError, match=r'bias of shape \(3,\), the Dense .* None'):
        again(path, Dense(8, 3).double())


def test_other_base_is_refused(tmp_path):
    _, path = written(tmp_path)
    model = backbone()
    with torch.no_grad():
        model.norm.weight[0] += 1
    several, head = MultiTask(model), nn.Linear(8, 3).double()
    before = head.weight.clone()
    with pytest.raises(CheckpointError, match='norm.weight'):
        several.add('x', path, head)
    assert torch.equal(head.weight, before)
    several.add('x', path, may_differ='norm.weight')
    assert several.names == ('x',)


def test_adapter_file_is_a_task_without_a_head(tmp_path):
    model = backbone()
    apply_plan(model, random_plan(model))
    move(model)
    save_adapter(model, tmp_path / 'a.safetensors')
    assert torch.equal(outputs(again(tmp_path / 'a.safetensors')), outputs(model))
    save_task(model, tmp_path / 'b.safetensors')
    restored = again(tmp_path / 'b.safetensors')
    assert (
        torch.equal(outputs(restored), outputs(model))
        and read_task(tmp_path / 'b.safetensors').head == {}
    )
    with pytest.raises(CheckpointError, match='no adapter of cdra_mm'):
        load_adapter(backbone(), tmp_path / 'b.safetensors')


def changed(path, out, tensors=None, **metadata):
    save_file({**load_file(path), **(tensors or {})}, out, metadata={**texts(path), **metadata})
    return out


def described(**head):
    return json.dumps({'kind': 'Linear', 'classes': [], **head})


@pytest.mark.parametrize(
    'metadata',
    [
        {'head': 'x'},
        {'head': '[]'},
        {'head': described(kind=3)},
        {'head': described(kind='')},
        {'head': described(classes=[1])},
        {'head': described(classes={'a': 1})},
        {'head': described(kind='x' * 10000)},
        {'head': ''},
        {'dtype': 'float16'},
        {'task_version': '2'},
        {'task_version': '9' * 10000},
        {'format': 'cdra_mm.other'},
        {'format': 'cdra_mm.adapter'},
        {'digest': '0'},
        {'beside': '["head"]'},
        {'method': 'other'},
    ],
    ids=str,
)
@pytest.mark.parametrize('forged', [False, True])
def test_changed_text_is_refused_in_one_line(metadata, forged, tmp_path):
    """Also where whoever changed it has made the digest anew."""
    _, path = written(tmp_path)
    told = {**texts(path), **metadata}
    if forged:
        if set(metadata) <= {'dtype'} or 'x' * 10000 in metadata.get('head', ''):
            return  # what it says is no more than a note, or asks for a head
        metadata = {**metadata, 'task_digest': task_files._task_digest(told, load_file(path))}
    with pytest.raises(CDRAError) as caught:
        read_task(changed(path, tmp_path / 'b.safetensors', **metadata))
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize('name', ['cdra_head.weight', 'cls_token', 'cdra_plan', 'cdra_digests'])
def test_changed_value_is_refused(name, tmp_path):
    _, path = written(tmp_path)
    values = load_file(path)[name].clone()
    values.view(-1).view(torch.uint8)[3] ^= 64
    with pytest.raises(CheckpointError, match='is damaged'):
        read_task(changed(path, tmp_path / 'b.safetensors', {name: values}))


def test_cut_off_and_foreign_files_are_refused(tmp_path):
    _, path = written(tmp_path)
    content = path.read_bytes()
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        (tmp_path / 'b.safetensors').write_bytes(content[:size])
        with pytest.raises(CheckpointError, match='truncated or no safetensors'):
            read_task(tmp_path / 'b.safetensors')
    save_file({'a': torch.ones(1)}, tmp_path / 'c.safetensors')
    with pytest.raises(CheckpointError, match='no task of cdra_mm'):
        read_task(tmp_path / 'c.safetensors')
    with pytest.raises(CheckpointError, match='gone'):
        read_task(tmp_path / 'gone.safetensors')


def test_head_of_a_diverged_training_is_refused(tmp_path):
    several = many()
    with torch.no_grad():
        several.heads['t0'].weight[0, 0] = torch.nan
    several.save('t0', tmp_path / 'a.safetensors')
    with pytest.raises(CheckpointError, match=r'cdra_head\.weight|weight of its head'):
        read_task(tmp_path / 'a.safetensors')


def test_model_without_a_plan_and_head_with_adapters_are_refused(tmp_path):
    model = backbone()
    with pytest.raises(CheckpointError, match='apply a plan first'):
        save_task(model, tmp_path / 'a.safetensors')
    plan = random_plan(model)
    apply_plan(model, plan)
    with pytest.raises(CheckpointError, match='has adapters itself'):
        save_task(model, tmp_path / 'a.safetensors', model)
    with pytest.raises(CheckpointError, match="'head' is a name of the file format"):
        save_task(model, tmp_path / 'a.safetensors', metadata={'head': 'x'})
    assert adapters(model) and not list(tmp_path.iterdir())
