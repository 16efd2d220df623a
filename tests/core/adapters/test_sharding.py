"""A base that two processes share plans, trains and is saved as one process has it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from cdra_mm.core import (
    ConfigError,
    PlanError,
    average_gradients,
    load_adapter,
    merge_adapters,
    shard_base,
)
from cdra_mm.core.adapters import sharding
from tests.core.adapters.sharded_run import CASES, play, run
from tests.core.problems import adapted
from tests.models import MODELS

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('sharded')


@pytest.fixture(scope='module')
def processes(folder):
    run(folder)
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(2)]


@pytest.fixture(params=CASES)
def pair(request, processes, folder):
    """What two processes had of a case, and one."""
    return [process[request.param] for process in processes], play(folder, request.param)


def test_two_processes_make_the_plan_of_one(pair):
    both, alone = pair
    assert both[0]['plan'] == both[1]['plan'] == alone['plan']
    assert alone['adapters']


def test_two_steps_of_two_processes_are_those_of_one_bit_for_bit(pair):
    """One that takes the halves of the batch in turn: the same products, added in one order."""
    both, alone = pair
    for process in both:
        assert process['trained'].keys() == alone['trained'].keys()
        for name, value in process['trained'].items():
            assert torch.equal(value, alone['trained'][name]), name


def test_either_process_writes_what_one_does(pair):
    both, alone = pair
    texts, tensors = alone['file']
    for process in both:
        assert process['file'][0] == texts and process['file'][1].keys() == tensors.keys()
        for name, value in process['file'][1].items():
            assert torch.equal(value, tensors[name]), name


def test_each_process_holds_half_of_the_base(pair):
    both, alone = pair
    assert alone['held'] == 1 and not any(alone['sharded'])
    for process in both:
        assert all(process['sharded']) and process['held'] < 0.6


@pytest.mark.parametrize(('use', 'message'), [
    ('score', r'PlanError: \S+ is spread over processes \(FSDP\): a part .* scored nor adapted'),
    ('targets', r'PlanError: \S+ is spread over processes \(FSDP\): .* cdra_mm.core.shard_base'),
    ('flat', r'PlanError: \S+ is spread over processes \(FSDP\): a part of a weight'),
    ('fingerprint', r'CheckpointError: a digest is one of a whole weight'),
    ('load', r'PlanError: \S+ is spread over processes'),
    ('merge', r'PlanError: \S+ is spread over processes \(FSDP\): nothing can be merged'),
    ('remove', r'PlanError: \S+ is spread over processes \(FSDP\): its adapters cannot be'),
    ('again', r'PlanError: \S+ is spread over processes \(FSDP\): it cannot be sharded again'),
    ('too early', 'PlanError: TinyViT has no adapters: apply a plan before its base is sharded'),
])  # fmt: skip
def test_uses_that_need_whole_weights_are_refused_by_name(processes, use, message):
    for process in processes:
        assert re.match(message, process['fused-float32']['refusals'][use])


def test_file_of_a_shared_base_loads_into_a_whole_model(processes, folder):
    torch.manual_seed(0)
    model = MODELS['fused']()
    load_adapter(model, folder / 'fused-float32_2_0.safetensors')
    state = model.state_dict()
    for name, value in processes[0]['fused-float32']['trained'].items():
        assert name.startswith('head.') or torch.equal(state[name], value)


def test_sharding_without_a_group_is_refused():
    _, model, _ = adapted('fused')
    for use in (shard_base, average_gradients):
        with pytest.raises(ConfigError, match='init_process_group'):
            use(model)


def test_sharding_with_merged_adapters_is_refused(monkeypatch):
    monkeypatch.setattr(sharding, '_require_group', lambda: None)
    _, model, _ = adapted('fused')
    merge_adapters(model)
    with pytest.raises(PlanError, match='adapters are merged .*unmerge them before'):
        shard_base(model)


def test_torch_that_cannot_leave_adapters_whole_is_named(monkeypatch):
    monkeypatch.setattr(sharding, '_require_group', lambda: None)
    monkeypatch.setattr('torch.distributed.fsdp.fully_shard', lambda module, *, mesh=None: module)
    with pytest.raises(ConfigError, match='ignored_params.*2.7 or newer'):
        shard_base(adapted('fused')[1])


def test_sharding_of_layers_that_are_lists_takes_their_parts(monkeypatch):
    """A list is never called, so torch refuses it as a unit."""
    units = []

    def fully_shard(module, *, ignored_params=None):
        units.append(module)

    monkeypatch.setattr(sharding, '_require_group', lambda: None)
    monkeypatch.setattr('torch.distributed.broadcast', lambda *given: None)
    monkeypatch.setattr('torch.distributed.fsdp.fully_shard', fully_shard)
    model = adapted('fused')[1]
    model.blocks = nn.ModuleList(nn.ModuleList([b.attn, b.mlp]) for b in model.blocks)
    shard_base(model)
    assert units == [*model.blocks[0], *model.blocks[1], model]
