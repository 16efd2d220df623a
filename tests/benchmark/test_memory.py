"""Saved bytes by hand, and peak memory of a process."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from cdra_mm.benchmark.memory import (
    CLEAR_REFS,
    allocated,
    in_child,
    peak_above_rest,
    peaks_since,
    saved_bytes,
)
from cdra_mm.sizing.block_sizes import KINDS, adapt, drawn_plan

from .tiny import tiny_case


def test_saved_bytes_of_two_layers_by_hand():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(4, 5)
    # The input [4, 5] of the first layer; the relu's result [4, 7], which both the relu
    # and the second layer keep. Weights do not count.
    assert saved_bytes(model, lambda: model(x).sum()) == 4 * (4 * 5 + 4 * 7)


def test_saved_bytes_of_a_frozen_layer_is_nothing():
    model = nn.Linear(5, 7).requires_grad_(False)
    x = torch.randn(4, 5, requires_grad=True)
    assert saved_bytes(model, lambda: model(x).sum()) == 0


def test_saved_bytes_counts_what_is_kept_twice_once():
    x = torch.randn(4, 5)
    layers = nn.ModuleList([nn.Linear(5, 2), nn.Linear(5, 2)])
    assert saved_bytes(layers, lambda: (layers[0](x) + layers[1](x)).sum()) == 4 * 4 * 5


class Hiding(torch.autograd.Function):
    """Puts its input aside without telling autograd."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = {'x': [x.clone()]}
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def test_saved_bytes_finds_what_a_function_hides():
    x = torch.randn(4, 5, requires_grad=True)
    assert saved_bytes(nn.Identity(), lambda: Hiding.apply(x).sum()) == 4 * 4 * 5


def test_saved_bytes_of_adapters_are_their_columns_and_indices():
    case = tiny_case()
    batch = case.make_batch()

    def saved(share):
        model = case.make_model()
        adapt(model, drawn_plan(model, KINDS['spt'], share=share))
        return saved_bytes(model, lambda: case.losses(model, batch).sum())

    assert 0 < saved(0.0) < saved(0.5) < saved(1.0)


def allocate(megabytes):
    """Bytes at the peak of a run that holds so many MB, and the process."""
    return peak_above_rest(lambda: torch.ones(megabytes << 18), 'cpu'), os.getpid()


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason='needs Linux /proc')
def test_peak_of_a_child_is_what_it_allocates():
    peak, process = in_child(allocate, 64)
    assert process != os.getpid()
    assert 63 << 20 < peak < 70 << 20


def test_child_that_is_killed_is_out_of_memory():
    with pytest.raises(MemoryError):
        in_child(os._exit, 9)
    assert 'MALLOC_MMAP_THRESHOLD_' not in os.environ


def test_peak_since_counts_what_was_made_before_the_run(monkeypatch):
    """Weights, copies that are kept and AdamW's state: 100 before, 60 made, a step takes 25."""
    held = {'now': 100, 'peak': 0}
    fake = {
        'synchronize': lambda: None,
        'memory_allocated': lambda: held['now'],
        'max_memory_allocated': lambda: held['peak'],
        'reset_peak_memory_stats': lambda: held.update(peak=held['now']),
    }
    for name, function in fake.items():
        monkeypatch.setattr(torch.cuda, name, function)
    before = allocated('cuda')
    held['now'] += 40  # weights

    def step():
        held['now'] = 160  # with the optimizer's state, from the first step on
        held['peak'] = max(held['peak'], held['now'] + 25)

    found = peaks_since(before, step, 'cuda')
    assert found == {'peak_bytes_above_rest': 25, 'peak_bytes': 85}
    assert allocated('cpu') == 0
