"""Launches are counted as a GPU would pay for them; ours are fewer than full fine-tuning's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdra_mm.benchmark import compared_models
from cdra_mm.benchmark.launch_counter import LaunchCounter
from cdra_mm.benchmark.launches import compare_launches, count_step
from cdra_mm.benchmark.report import render

from .tiny import tiny_case

NAMES = ('scores (Eq. 3)', 'mean gradients (descent)')


def test_views_and_memory_are_no_launches():
    x = torch.ones(4, 6)
    with LaunchCounter() as counter:
        x.view(2, 12).t().split(1)[0].detach()
        x[1:, 2].unsqueeze(0).expand(5, 3)
        torch.empty(3)
        x.new_empty(2)
    assert counter.counts == {}


def test_operations_that_compute_or_write_are():
    x = torch.ones(4, 6)
    with LaunchCounter() as counter:
        y = x + x
        y.mul_(2)
        y.to(torch.bfloat16)
        y @ y.t()
    assert counter.counts == {'add': 1, 'mul_': 1, '_to_copy': 1, 'mm': 1}


def test_forward_and_backward_of_a_step():
    layer = nn.Linear(3, 2, bias=False)
    x = torch.ones(5, 3)
    counts = count_step(layer, lambda: layer(x).sum())
    assert counts == {'forward': {'mm': 1, 'sum': 1}, 'backward': {'ones_like': 1, 'mm': 1}}


def test_ours_launch_less_than_full_fine_tuning():
    """Each adapted layer pays for a gather, and two kernels for its factors' gradients."""
    pytest.importorskip('peft')
    record = compare_launches(tiny_case(dtype='bf16'))
    found = {name: entry['launches'] for name, entry in record['candidates'].items()}
    layers = 8
    for blocks in ('paper', 'spt'):
        ours = found[f'ours {blocks}, copied']
        assert found['frozen limit'] < ours < found['full'] < found['peft LoRA r=8']
        assert ours < found[f'ours {blocks}, factored']
        made = record['candidates'][f'ours {blocks}, copied']['by_operation']
        assert made['forward']['adapted_copies'] == 1
        assert made['backward']['factor_gradients'] == 2 * layers
        assert 'index_select' not in made['backward']
        # A gather, or a copy of a run, is one launch a layer, whatever a CPU makes of it.
        assert sum(made['forward'].get(name, 0) for name in ('index_select', 'clone')) <= layers
    assert 'x full' in render([record])


@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
def test_scoring_a_batch_launches_little_more_than_a_backward(dtype):
    """One kernel for the squares of a matrix; all vectors, and what is finite, in a few."""
    record = compare_launches(tiny_case(dtype=dtype), peers=())
    found = {name: entry['launches'] for name, entry in record['candidates'].items()}
    depth = 2
    matrices, vectors = depth * 4, depth * 8
    eq3, mean = (found[f'{name}, each batch more'] for name in NAMES)
    # Of each layer norm's scale the product with the normed input; of each vector no operation.
    layer_norms, once = 2 * depth, 25
    assert eq3 < found['full'] + 4 * layer_norms + once
    counted = record['candidates'][f'{NAMES[0]}, each batch more']['by_operation']
    assert counted['add_squared_gradients'] == matrices
    # Autograd adds each gradient up by one operation.
    assert mean < found['full'] + matrices + vectors + once


def test_what_is_not_installed_is_skipped(monkeypatch):
    monkeypatch.setattr(compared_models, 'installed', lambda module: False)
    record = compare_launches(tiny_case(), blocks=['spt'])
    assert record['skipped'] == {'peft LoRA': 'peft is not installed: pip install peft'}
