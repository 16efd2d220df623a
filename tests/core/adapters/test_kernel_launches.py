"""Launches of kernels once more, and the tables that they read; no kernel runs."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core.adapters import kernel_launches, kernel_tables
from tests.core.adapters.block_layers import Layers

pytest.importorskip('triton', reason='the kernels are for GPUs, where torch brings Triton')
kernels = pytest.importorskip('cdra_mm.core.adapters.block_kernels')
gradients = pytest.importorskip('cdra_mm.core.adapters.gradient_kernels')


class Noted:
    """Takes the place of a kernel and of what it compiles to; notes what either is called with."""

    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        grid = (*grid, 1, 1)[:3]

        def call(*given):
            self.calls.append((grid, given))
            return self

        return call


@pytest.mark.parametrize('begins', [(), (0, 9, 13)])
def test_launched_again_is_what_was_launched(monkeypatch, begins):
    """But for the addresses, which are given."""
    made, added, written = Noted(), Noted(), Noted()
    monkeypatch.setattr(gradients, '_term_tiles', made)
    monkeypatch.setattr(gradients, '_sum_terms', added)
    monkeypatch.setattr(kernels, '_write_tiles', written)
    monkeypatch.setattr(kernel_launches, '_takes_all_arguments', lambda: True)
    layers = Layers([(20, 33, [(5, 9, 2), (7, 4, 1), (1, 8, 3)])])
    dy, x = torch.ones(70, 60), torch.ones(70, 21 if begins else 33)
    of_blocks = layers.factors, layers.indices, layers.scales
    flat = torch.empty(4096)
    again = gradients.write_factor_gradients(flat, dy, x, begins, *of_blocks)
    again(1, 2, 3)
    (grid, given), (grid_then, then) = made.calls
    assert grid == grid_then and then[1:3] == (2, 3) and given[1] is dy and given[2] is x
    assert given[3:] == then[3:]
    (grid, given), (grid_then, then) = added.calls
    assert grid == grid_then and given[0] is flat and then[0] == 1 and given[2:] == then[2:]
    assert made.calls[1][1][0] == then[1]  # the terms
    again = kernels.write_blocks(
        flat, layers.weights, layers.factors, layers.indices, layers.counts, layers.scales
    )
    again(7)
    (grid, given), (grid_then, then) = written.calls
    assert grid == grid_then and given[0] is flat and then[0] == 7 and given[1:] == then[1:]


def test_columns_that_lie_apart_are_not_launched_again(monkeypatch):
    """What was launched read a copy."""
    monkeypatch.setattr(gradients, '_term_tiles', Noted())
    monkeypatch.setattr(gradients, '_sum_terms', Noted())
    monkeypatch.setattr(kernel_launches, '_takes_all_arguments', lambda: True)
    layers = Layers([(1, 1, [(1, 1, 1)])])
    of_blocks = layers.factors, layers.indices, layers.scales
    for dy, x in (
        (torch.ones(2, 4).t(), torch.ones(4, 2)),
        (torch.ones(4, 2), torch.ones(2, 4).t()),
    ):
        given = torch.empty(128), dy, x, ()
        assert gradients.write_factor_gradients(*given, *of_blocks) is None


def test_rows_that_are_far_apart_are_copied():
    """Places in them are numbers of 32 bits."""
    far = torch.empty(2**25 + 3).as_strided((2, 3), (2**25, 1))
    assert gradients._readable(far).stride() == (3, 1)
    near = torch.empty(2**20 + 3).as_strided((2, 3), (2**20, 1))
    assert gradients._readable(near) is near


def test_table_that_is_still_used_is_not_made_again(monkeypatch):
    """Though many others were seen since: a CUDA graph that is captured then could not have one."""
    monkeypatch.setattr(kernel_tables, 'KEPT_TABLES', 1)
    device = torch.device('cpu')
    first = kernel_tables.table_of('first', iter([[1]]), device)
    for n in range(3):
        kernel_tables.table_of(n, iter([[n]]), device)
    assert kernel_tables.table_of('first', iter([[2]]), device) is first
    kernel_tables.table_of('other', iter([[3]]), device)
    del first
    assert kernel_tables.table_of('first', iter([[4]]), device).tolist() == [[4]]
