"""Many tasks where more is shared than their user thinks: threads, copies, heads, gradients."""

from __future__ import annotations

import copy
import io
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

import cdra_mm.methods
from cdra_mm.core import (
    Block,
    ConfigError,
    MultiTask,
    NamedAdapters,
    Plan,
    PlanError,
    quantize_base,
)
from tests.core.problems import random_plan
from tests.models import images

from .many import backbone, many, other_kinds

assert cdra_mm.methods  # its import makes the kinds known that the plans below name


def batch(count):
    return images(count, torch.float64)[0]


def test_batches_of_threads_wait_for_each_other():
    several = many()
    x, tasks = batch(3), ['t0', 't1', 't2']
    expected = several(x, tasks=tasks)
    before = dict(several.backbone.named_parameters())
    wrong = []

    def serve():
        for _ in range(3):
            try:
                found = several(x, tasks=tasks)
                wrong.extend(not torch.equal(found[i], expected[i]) for i in (0, 2))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(wrong), wrong
    assert dict(several.backbone.named_parameters()) == before


@pytest.mark.parametrize('copied', ['pickled', 'deepcopy'])
def test_copy_of_a_model_is_one_of_its_own(copied):
    several = many()
    several.use('t1')
    several.use('t0')
    x, tasks = batch(3), ['t0', 't1', 't2']
    expected = several(x, tasks=tasks)
    if copied == 'pickled':
        file = io.BytesIO()
        torch.save(several, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copy.deepcopy(several)
    assert twin.current == 't0' and torch.equal(twin(x), several(x))
    with torch.no_grad():
        for parameter in several.parameters():
            parameter.zero_()
    found = twin(x, tasks=tasks)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])


@pytest.mark.parametrize('name', ['keys', 'training', 'a.b', '', 5, None])
def test_refused_task_leaves_no_trace(name):
    several = many()
    several.use('t0')
    with pytest.raises(PlanError, match='the name .* of a task'):
        several.add(name, random_plan(backbone()), nn.Linear(8, 3).double())
    with pytest.raises(PlanError, match='is a function: expected a torch'):
        several.add('new', random_plan(backbone()), lambda x: x)
    with pytest.raises(PlanError, match="source of 'new' is a int"):
        several.add('new', 3)
    assert several.names == tuple(several.heads) == ('t0', 't1', 't2')
    assert several.current == 't0'


def test_named_adapters_are_of_something():
    named = NamedAdapters(backbone())
    for name, source in (('a', None), (5, Plan())):
        with pytest.raises(PlanError, match='expected a name, and the path of an adapter file'):
            named.add(name, source)
    assert not named.names


def test_head_that_would_train_the_base_or_another_task_is_refused():
    several = many()
    plan = random_plan(backbone())
    tied = nn.Linear(8, 8, bias=False)
    tied.weight = several.backbone.blocks[0].attn.proj.weight
    with pytest.raises(PlanError, match='shares weight with blocks.0.attn.proj.weight of the base'):
        several.add('tied', plan, tied)
    part = nn.Sequential(several.heads['t0'], nn.ReLU())
    with pytest.raises(
        PlanError, match=r"another task, 't0', or shares weights with it \(0.weight\)"
    ):
        several.add('part', plan, part)
    assert several.names == ('t0', 't1', 't2')


@pytest.mark.parametrize('part', ['backbone.blocks.1', 'heads.t1.norm'])
def test_part_in_training_mode_is_named(part):
    several = many()
    several.get_submodule(part).train()
    with pytest.raises(PlanError, match=f'{part.removeprefix("backbone.")} is in training mode'):
        several(batch(2), tasks=['t0', 't1'])
    if part.startswith('heads'):
        assert len(several(batch(2), tasks=['t0', 't0'])) == 2  # t1 is in no use


def test_batch_of_no_samples_has_no_outputs():
    assert many()(batch(1)[:0], tasks=[]) == []


class Told(nn.Module):
    """A backbone that is given more than images, and gives more than tensors."""

    def __init__(self):
        super().__init__()
        self.inner = backbone()

    def forward(self, given):
        found = self.inner(given['images'])
        return dict(found=found if given['whole'] else found[:, :2], nothing=None, classes=3)


class Found(nn.Linear):
    """A head that takes its part of it."""

    def forward(self, given):
        assert given['nothing'] is None and given['classes'] == 3
        return dict(logits=super().forward(given['found']), loss=None)


@pytest.mark.parametrize('tasks', [['a', 'a', 'a'], ['a', 'b', 'a']])
def test_what_is_no_tensor_is_handed_through(tasks):
    several = MultiTask(Told())
    for seed, name in enumerate('ab'):
        block = Block('inner.blocks.0.attn.proj.weight', (8, 8), (0, 3), (1, 2), 1, 1)
        several.add(name, Plan(blocks=(block,)), Found(8, 3).double(), seed=seed)
    several.eval()
    given = dict(images=batch(3), whole=True)
    found = several(given, tasks=tasks)
    assert found[1]['loss'] is None
    for at, name in enumerate(tasks):
        several.use(name)
        torch.testing.assert_close(found[at]['logits'], several(given)['logits'][at])


def test_gradient_of_what_two_tasks_train_whole_stays_with_its_task():
    several = many(plans=[other_kinds(backbone()), other_kinds(backbone())]).train()
    token = several.backbone.cls_token
    several.use('t0')
    several(batch(2)).sum().backward()
    own = token.grad.clone()
    several.use('t1')
    assert token.grad is None
    several.use('t0')
    assert torch.equal(token.grad, own)


def test_task_that_is_added_while_serving_can_be_trained(tmp_path):
    several, path = many(), tmp_path / 'a.safetensors'
    several.save('t0', path)
    with torch.inference_mode():
        several.add('planned', random_plan(backbone()), seed=4)
        several.add('read', path)
        several(batch(2), tasks=['planned', 'read'])
    for name in ('planned', 'read'):
        several.use(name)
        several(batch(2)).sum().backward()
        trained = [p for p in several.parameters() if p.requires_grad]
        assert trained and not any(p.is_inference() for p in trained)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16], ids=str)
def test_head_from_a_file_is_of_the_type_of_the_base(dtype, tmp_path):
    many().save('t0', tmp_path / 'a.safetensors')
    several = MultiTask(backbone(dtype=dtype))
    several.add('a', tmp_path / 'a.safetensors', check_base=False)
    several.use('a')
    assert several(images(2, dtype)[0]).dtype == dtype
    if dtype == torch.float64:
        assert torch.equal(several.heads['a'].weight, many().heads['t0'].weight)


def test_state_dict_says_which_tasks_it_leaves_out(tmp_path):
    several = many()
    several.use('t1')
    with pytest.warns(UserWarning, match=r"in use alone \('t1'\); those of 't0', 't2' are not"):
        several.state_dict()


@pytest.mark.parametrize(
    'classes, match', [('abc', "classes='abc': expected a list"), (['a'], '1 names of classes for')]
)
def test_names_of_classes_are_those_of_the_head(classes, match, tmp_path):
    with pytest.raises(ConfigError, match=match):
        many().save('t0', tmp_path / 'a.safetensors', classes=classes)


def test_base_of_many_tasks_in_int8():
    several = many(dtype=torch.float32)
    full = several.num_bytes()[None]
    quantize_base(several.backbone)
    assert several.num_bytes()[None] < full
    x = images(3, torch.float32)[0]
    found = several(x, tasks=['t0', 't2', 't0'])
    several.use('t0')
    torch.testing.assert_close(found[0], several(x)[0], rtol=1e-4, atol=1e-5)


def test_task_that_trains_what_is_in_int8_is_refused_and_the_others_go_on():
    plans = [other_kinds(backbone()), random_plan(backbone())]
    several = many(dtype=torch.float32, plans=[replace(plan, fingerprint='') for plan in plans])
    several.use('t1')
    quantize_base(several.backbone)
    with pytest.raises(PlanError, match="'t0' trains blocks.1.mlp.fc2.weight whole, which is kept"):
        several.use('t0')
    assert several.current == 't1'
    several.use(None)
    several.use('t1')
