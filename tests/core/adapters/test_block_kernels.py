"""The kernels of the operations on blocks equal the same loops.

They are tested natively where there is a GPU, and in the interpreter (`interpreted`).
"""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

from cdra_mm.core.adapters import block_ops, kernel_tables
from tests.core.adapters.block_layers import Layers, check_copies, check_gradients
from tests.core.interpreted import DEVICE, INTERPRETED, NATIVE, once_more, run_interpreted, runs

pytest.importorskip('triton', reason='the kernels are for GPUs, where torch brings Triton')
kernels = pytest.importorskip('cdra_mm.core.adapters.block_kernels')

SIZES = {
    'one_entry': [(1, 1, [(1, 1, 1)])],
    'tiles_with_tails': [(70, 150, [(66, 130, 3)]), (9, 7, [(4, 3, 2)])],
    'exact_tiles': [(64, 64, [(64, 64, 1)])],
    'fused': [(20, 33, [(5, 9, 2), (7, 4, 1), (1, 8, 3)])],
    'more_ranks_than_a_product_takes': [(30, 40, [(20, 30, 18)])],
}


@pytest.fixture(autouse=True)
def _kernels_used(monkeypatch):
    """The interpreter runs them on a CPU's tensors; every call is noted."""
    calls = []
    monkeypatch.setattr(block_ops, 'kernels_run', lambda device: True)
    for name in ('write_blocks', 'write_factor_gradients'):
        plain = getattr(kernels, name)

        def noted(*arguments, plain=plain):
            calls.append(1)
            return plain(*arguments)

        monkeypatch.setattr(kernels, name, noted)
    yield
    if INTERPRETED or NATIVE:
        assert calls


@runs
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('weight', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
def test_kernel_writes_the_blocks(sizes, weight, dtype):
    # The interpreter cuts off the digits that a GPU rounds.
    tolerance = max(1e-5, torch.finfo(dtype).eps / (1 if INTERPRETED else 2))
    check_copies(Layers(sizes, weight=weight, device=DEVICE), dtype, tolerance)


@runs
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
def test_kernel_takes_the_gradients_of_the_factors(sizes, dtype):
    check_gradients(Layers(sizes, device=DEVICE), dtype, 1e-4)


@runs
@pytest.mark.parametrize('blocks', [3, 4, 5])
def test_kernel_tells_the_blocks_of_a_layer_apart(blocks):
    layers = Layers([(9, 12, [(3 + i, 5 + i, 1 + i) for i in range(blocks)])], device=DEVICE)
    check_gradients(layers, torch.float32, 1e-4)


@runs
def test_tables_follow_the_tensors():
    """New factors at other addresses, other sizes at the same ones, and the old ones once more."""
    first, second = (Layers(SIZES['fused'], seed=seed, device=DEVICE) for seed in (0, 1))
    for layers in (first, second, first):
        check_copies(layers, torch.float32, 1e-5)
        check_gradients(layers, torch.float32, 1e-4)
        for factor in layers.factors:
            factor.data.mul_(-2)  # in place: the same table, the new values
        check_copies(layers, torch.float32, 1e-5)
        check_gradients(layers, torch.float32, 1e-4)


@runs
def test_number_of_tables_is_limited(monkeypatch):
    monkeypatch.setattr(kernel_tables, 'KEPT_TABLES', 3)
    kept = [Layers(SIZES['one_entry'], seed=seed, device=DEVICE) for seed in range(6)]
    for layers in (*kept, *kept):
        check_copies(layers, torch.float32, 1e-5)
    assert len(kernel_tables._tables) == 3


@runs
def test_self_check_passes_and_would_notice(monkeypatch):
    kernels.check_kernels(torch.device(DEVICE))
    plain = kernels._strips

    def one_term_less(*arguments):
        for row in plain(*arguments):
            yield [*row[:4], row[4] - 1, *row[5:]]

    monkeypatch.setattr(kernels, '_strips', one_term_less)
    # A GPU's allocator may give the same addresses once more, and with them the first check's
    # tables and results: every result is wrong, and no table is known.
    monkeypatch.setattr(kernel_tables, '_tables', OrderedDict())
    with pytest.raises(RuntimeError, match='its gradients are off'):
        kernels.check_kernels(torch.device(DEVICE))
    kernels.write_blocks(torch.ones(1), [], [], [], [], [])  # nothing to write; and it counts


@once_more
def test_kernel_laws_in_the_interpreter():
    run_interpreted(__file__)
