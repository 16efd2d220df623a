"""Many tasks on one base: each computes what it computes alone, also beside others in one batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import cdra_mm.methods
from cdra_mm.core import (
    Block,
    CDRAError,
    ConfigError,
    MultiTask,
    Part,
    Plan,
    PlanError,
    adapters,
    load_adapter,
    save_adapter,
)
from cdra_mm.core.adapters.adapter import ParameterAdapter
from cdra_mm.core.adapters.apply import planned_adapters
from cdra_mm.core.adapters.mixed_weights import update_of
from cdra_mm.core.artifacts import named_adapters
from cdra_mm.core.model.targets import parameter_of, resolve
from tests.core.problems import move, outputs, random_plan
from tests.models import MODELS, images

from .many import Dense, backbone, lora_plan, many, other_kinds

assert cdra_mm.methods  # its import makes the kinds known that the plans below name


def leaves(value):
    return list(value.values()) if isinstance(value, dict) else [value]


@torch.no_grad()
def assert_as_one_by_one(several, x, tasks, tolerance=1e-12):
    """Of the largest output of each sample; rounding alone sets them apart."""
    found = several(x, tasks=tasks)
    assert len(found) == len(tasks)
    for index, task in enumerate(tasks):
        several.use(task)
        alone = several(x[index : index + 1])
        for one, other in zip(leaves(found[index]), leaves(alone), strict=True):
            assert one.shape == other.shape[1:]
            assert float((one - other[0]).abs().max()) <= tolerance * float(other.abs().max())
    several.use(None)


@pytest.mark.parametrize('kind', MODELS)
def test_mixed_batch_is_its_samples_one_by_one(kind):
    several = many(kind)
    tasks = ['t1', 't0', 't2', 't1', 't0', 't2', 't2']
    assert_as_one_by_one(several, images(len(tasks), torch.float64)[0], tasks)


@pytest.fixture(scope='module')
def kinds():
    """CDRA, LoRA, other kinds of changed weights, and nothing but a token."""
    model = backbone()
    plans = [random_plan(model), lora_plan(model), other_kinds(model)]
    return many(plans=[*plans, Plan(also_train={'cls_token': 8})])


@settings(max_examples=25, deadline=None)
@given(
    tasks=st.lists(st.sampled_from(['t0', 't1', 't2', 't3']), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_any_mixture_is_its_samples_one_by_one(kinds, tasks, seed):
    assert_as_one_by_one(kinds, images(len(tasks), torch.float64, seed)[0], tasks)


def test_statistics_that_a_task_has_changed_are_its_own():
    several = many(batch_norm=True, plans=[random_plan(backbone(batch_norm=True))] * 2)
    several.use('t0')
    several.backbone.train()
    several.backbone(images(6, torch.float64, 3)[0] * 4)
    several.eval()
    several.use(None)
    assert_as_one_by_one(several, images(4, torch.float64)[0], ['t0', 't1', 't1', 't0'])


@pytest.mark.parametrize(
    'dtype, tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)], ids=str
)
def test_mixed_batch_in_other_types(dtype, tolerance):
    several = many(dtype=dtype)
    tasks = ['t0', 't1', 't2', 't0']
    assert_as_one_by_one(several, images(4, dtype)[0], tasks, tolerance)


def test_batch_of_one_task_is_what_use_gives_bit_for_bit():
    several = many()
    x = images(5, torch.float64)[0]
    found = torch.stack(several(x, tasks=['t2'] * 5))
    several.use('t2')
    assert torch.equal(found, several(x))
    assert several.current == 't2'


def test_task_in_use_is_what_its_adapter_and_head_are_alone(tmp_path):
    several = many()
    for name in (*several.names, *several.names):
        several.use(name)
        save_adapter(several.backbone, tmp_path / 'a.safetensors')
        alone = backbone()
        load_adapter(alone, tmp_path / 'a.safetensors')
        expected = several.heads[name](outputs(alone))
        for one, other in zip(leaves(outputs(several)), leaves(expected), strict=True):
            assert torch.equal(one, other)
    several.use(None)
    assert torch.equal(outputs(several), outputs(backbone()))


class Products(TorchDispatchMode):
    """Counts the matrix products in which a tensor takes part."""

    def __init__(self, weight):
        self.place, self.count = weight.data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = ('mm', 'addmm', 'bmm', 'baddbmm', 'matmul', 'linear')
        if func.overloadpacket.__name__ in names:
            given = [value for value in args if isinstance(value, torch.Tensor)]
            self.count += any(tensor.data_ptr() == self.place for tensor in given)
        return func(*args, **(kwargs or {}))


def test_base_weight_is_multiplied_once_for_all_tasks():
    several = many()
    model = several.backbone
    for weight in (model.blocks[0].attn.qkv.weight, model.blocks[1].mlp.fc2.weight):
        with Products(weight) as products:
            several(images(6, torch.float64)[0], tasks=['t0', 't1', 't2'] * 2)
        assert products.count == 1


def test_memory_is_that_of_one_base():
    several = many()
    base = sum(p.numel() * p.element_size() for p in backbone().state_dict().values())
    places = {name: p.data_ptr() for name, p in several.backbone.named_parameters()}
    sizes = several.num_bytes()
    assert sizes[None] == base and set(sizes) == {None, *several.names}
    for name in several.names:
        several.use(name)
        plan = several._named.plan_of(name)
        index = sum(8 * (len(b.rows) + len(b.cols)) for b in plan.blocks)
        index += sum(8 * len(v.indices or ()) for v in plan.vectors)
        head = sum(t.numel() * t.element_size() for t in several.heads[name].state_dict().values())
        assert sizes[name] == 8 * plan.num_trainable + index + head
        now = {n: p.data_ptr() for n, p in several.backbone.named_parameters() if n in places}
        assert now == places


def test_second_use_of_a_name_fits_nothing_anew(monkeypatch):
    several = many()
    several.use('t0')
    expected = [outputs(several)]
    several.use('t2')
    expected.append(outputs(several))

    def fail(*_):
        raise AssertionError('adapters are fitted again')

    monkeypatch.setattr(named_adapters, 'put_on', fail)
    for name, output in zip(('t0', 't2') * 2, expected * 2, strict=True):
        several.use(name)
        assert torch.equal(outputs(several), output)


def test_adapters_follow_the_mode_that_the_model_was_put_into_meanwhile():
    several = many()
    several.use('t0')
    several.use('t1')
    several.train()
    several.use('t0')
    assert all(module.training for module in several.backbone.modules())
    several.eval()
    several.use('t1')
    assert not any(module.training for module in several.backbone.modules())


def test_training_a_task_leaves_the_others_and_the_base_as_they_are():
    several = many()
    x = images(4, torch.float64)[0]
    before = {}
    for name in (None, 't0', 't1'):
        several.use(name)
        before[name] = outputs(several)
    several.use('t2')
    plan = several._named.plan_of('t2')
    trained = [p for p in several.parameters() if p.requires_grad]
    head = sum(p.numel() for p in several.heads['t2'].parameters())
    assert sum(p.numel() for p in trained) == plan.num_trainable + head
    optimizer = torch.optim.SGD(trained, lr=0.1)
    at_first = [p.detach().clone() for p in trained]
    several(x).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(trained, at_first, strict=True))
    for name, expected in before.items():
        several.use(name)
        for one, other in zip(leaves(outputs(several)), leaves(expected), strict=True):
            assert torch.equal(one, other)


def test_kind_that_cannot_be_mixed_is_named_and_runs_alone():
    model = backbone()
    call = Plan(parts=(Part('blocks.0.norm1.affine', 'affine', {}, 16),))
    several = many(plans=[random_plan(model), random_plan(model, 5, 1), call])
    x = images(2, torch.float64)[0]
    with pytest.raises(PlanError, match=r"'t2' has adapters of the kind 'affine' .*blocks.0.norm1"):
        several(x, tasks=['t0', 't2'])
    assert several.current is None and torch.equal(outputs(several), outputs(backbone()))
    assert len(several(x, tasks=['t2', 't2'])) == 2


class Transposed(nn.Linear):
    """Uses its weight in another way than ``F.linear``."""

    def forward(self, x):
        return x @ self.weight.t() + self.bias


def test_weight_that_is_used_otherwise_is_named_and_the_base_is_left_whole():
    torch.manual_seed(0)
    model = nn.Sequential(Transposed(4, 4), nn.Linear(4, 4)).eval()
    before = dict(model.named_parameters())
    all_four = tuple(range(4))
    several = MultiTask(model)
    for name in ('0.weight', '1.weight'):
        plan = Plan(blocks=(Block(name, (4, 4), all_four, all_four, 1, 0),))
        several.add(name[0], plan)
    several.eval()
    with pytest.raises(PlanError, match='0.weight is not used by F.linear alone'):
        several(torch.ones(2, 4), tasks=['0', '1'])
    assert dict(model.named_parameters()) == before and not adapters(model)
    several.use('0')
    assert several(torch.ones(2, 4)).shape == (2, 4)


def test_model_that_looks_at_its_values_is_refused():
    class Looking(nn.Sequential):
        def forward(self, x):
            return super().forward(x if bool((x > 0).any()) else -x)

    several = MultiTask(Looking(nn.Linear(4, 4)).eval()).eval()
    all_four = tuple(range(4))
    for name in 'ab':
        several.add(name, Plan(blocks=(Block('0.weight', (4, 4), all_four, all_four, 1, 0),)))
    with pytest.raises(PlanError, match='Looking does with a batch what cannot be done'):
        several(torch.ones(2, 4), tasks=['a', 'b'])


def test_refusals_name_what_is_wrong(tmp_path):
    several = many()
    x = images(2, torch.float64)[0]
    plan = random_plan(backbone())
    for given_tasks, match in (
        ('t0', "tasks='t0': expected the task of every sample"),
        (['t0'], '1 tasks for 2 samples'),
        ([], '0 tasks for 2 samples'),
        (['t0', 't00'], r"no adapter 't00' \(did you mean 't0'\?\)"),
    ):
        with pytest.raises(CDRAError, match=match):
            several(x, tasks=given_tasks)
    for name, head, match in (
        ('t0', None, "'t0' already"),
        ('a.b', None, 'has a dot'),
        ('', None, 'empty'),
        ('new', several.heads['t0'], 'that of another task'),
    ):
        with pytest.raises(PlanError, match=match):
            several.add(name, plan, head)
    with pytest.raises(ConfigError, match="call='features': TinyViT has no such method"):
        MultiTask(backbone(), 'features')
    several.train()
    with pytest.raises(PlanError, match=r'call eval\(\) first'):
        several(x, tasks=['t0', 't1'])
    assert several.names == tuple(several.heads) == ('t0', 't1', 't2')


def test_removed_task_is_gone_with_its_head():
    several = many()
    several.use('t1')
    several.remove('t1')
    assert several.current is None and tuple(several.heads) == several.names == ('t0', 't2')
    several.add('t1', random_plan(backbone()), Dense(8, 2).double())
    assert several.names == ('t0', 't2', 't1')


def test_named_method_of_the_backbone_is_called():
    class Backbone(nn.Sequential):
        def tokens(self, x):
            return self[0](x) * 2

    several = MultiTask(Backbone(nn.Linear(4, 4)).eval(), 'tokens').eval()
    all_four = tuple(range(4))
    for name in 'ab':
        several.add(name, Plan(blocks=(Block('0.weight', (4, 4), all_four, all_four, 1, 0),)))
        several.use(name)
        move(several)
    several.use(None)
    x = torch.ones(2, 4)
    assert torch.equal(several(x), several.backbone[0](x) * 2)
    assert_as_one_by_one(several, x, ['a', 'b'], 1e-5)


@pytest.mark.parametrize('plan_of', [random_plan, other_kinds])
def test_tasks_that_are_not_in_use_come_along_to_another_device(plan_of):
    """Added on the CPU, used on another: 'meta' has no values, and is refused beside those."""
    model, seen = backbone(), 0
    for path, suffix, adapter in planned_adapters(model, plan_of(model)):
        if isinstance(adapter, ParameterAdapter):
            base = parameter_of(model, resolve(model, f'{path}.{suffix}')).to('meta')
            blocks, factors, rest = update_of([adapter], base)
            indices = [index for block in blocks for index in block[:2]]
            held = [v for v in (*factors, *indices, rest) if isinstance(v, torch.Tensor)]
            assert {tensor.device.type for tensor in held} == {'meta'}
            seen += 1
    assert seen > 1
