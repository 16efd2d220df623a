"""The kernels of the operations on blocks equal the same loops.

They are tested natively where there is a GPU, and in the interpreter (`interpreted`).
"""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

from cdra_mm.core.adapters import block_ops, kernel_choice, kernel_tables
from tests.core.adapters.block_layers import LIES, Layers, check_copies, check_gradients
from tests.core.interpreted import (
    DEVICE,
    INTERPRETED,
    NATIVE,
    multiply_bfloat16_exactly,
    once_more,
    run_interpreted,
    runs,
)

pytest.importorskip('triton', reason='the kernels are for GPUs, where torch brings Triton')
kernels = pytest.importorskip('cdra_mm.core.adapters.block_kernels')
gradients = pytest.importorskip('cdra_mm.core.adapters.gradient_kernels')
checks = pytest.importorskip('cdra_mm.core.adapters.kernel_check')

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
    multiply_bfloat16_exactly(monkeypatch)
    monkeypatch.setattr(kernel_choice, 'kernels_run', lambda device: True)
    for module, name in ((kernels, 'write_blocks'), (gradients, 'write_factor_gradients')):
        plain = getattr(module, name)

        def noted(*arguments, plain=plain):
            calls.append(1)
            return plain(*arguments)

        monkeypatch.setattr(module, name, noted)
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
def test_kernels_take_the_gradients_of_the_factors(sizes, dtype):
    # Of half precision a GPU rounds sums over tokens and factors to TF32, which the interpreter
    # does not.
    rounded = NATIVE and dtype != torch.float32
    check_gradients(Layers(sizes, device=DEVICE), dtype, 2**-6 if rounded else 1e-4)


@runs
@pytest.mark.parametrize('tokens', [0, 1, 64, 65, 130])
@pytest.mark.parametrize('programs', [1, 2, 512])
@pytest.mark.parametrize('at_a_time', [32, 64])
def test_tokens_are_shared_out(monkeypatch, tokens, programs, at_a_time):
    """No run, one or several, the last of which may have few or no tokens."""
    monkeypatch.setattr(gradients, 'PROGRAMS', programs)
    monkeypatch.setattr(gradients, 'TOKENS', at_a_time)
    check_gradients(Layers(SIZES['fused'], device=DEVICE), torch.float32, 1e-4, tokens=tokens)


@runs
def test_signs_that_are_yet_to_be_turned():
    """Addresses do not tell them."""
    layers = Layers(SIZES['fused'], device=DEVICE)
    dy, x = torch.randn(5, 60, device=DEVICE), torch.randn(5, 33, device=DEVICE)
    of_blocks = [], layers.factors, layers.indices, layers.scales
    found = block_ops.factor_gradients(torch._neg_view(dy), torch._neg_view(x), *of_blocks)
    for one, right in zip(found, block_ops.factor_gradients(dy, x, *of_blocks), strict=True):
        assert torch.equal(one, right)
    found = block_ops.factor_gradients(torch._neg_view(dy), x, *of_blocks)
    for one, right in zip(found, block_ops.factor_gradients(-dy, x, *of_blocks), strict=True):
        assert torch.equal(one, right)


@runs
def test_many_terms_are_added_up(monkeypatch):
    """More runs than are loaded at once, the last of them not full."""
    monkeypatch.setattr(gradients, 'TERMS', 2)
    layers = Layers([(140, 20, [(135, 9, 2)])], device=DEVICE)
    check_gradients(layers, torch.float32, 1e-4, tokens=300)


@runs
@pytest.mark.parametrize('as_it_lies', LIES.values(), ids=LIES)
def test_gradients_are_taken_as_they_lie(as_it_lies):
    layers = Layers(SIZES['fused'], device=DEVICE)
    check_gradients(layers, torch.float32, 1e-4, as_it_lies=as_it_lies)


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
        layers.scales = [3 * scale for scale in layers.scales]
        check_copies(layers, torch.float32, 1e-5)
        check_gradients(layers, torch.float32, 3e-4)


@runs
def test_number_of_tables_is_limited(monkeypatch):
    monkeypatch.setattr(kernel_tables, 'KEPT_TABLES', 3)
    kept = [Layers(SIZES['one_entry'], seed=seed, device=DEVICE) for seed in range(6)]
    for layers in (*kept, *kept):
        check_copies(layers, torch.float32, 1e-5)
    assert len(kernel_tables._tables) == 3


@runs
@pytest.mark.parametrize('default', [torch.float64, torch.bfloat16])
def test_self_check_passes_whatever_is_the_default(default):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        with torch.autocast(DEVICE, torch.bfloat16):
            checks.check_kernels(torch.device(DEVICE))
    finally:
        torch.set_default_dtype(before)
    kernels.write_blocks(torch.ones(1), [], [], [], [], [])  # counts as a use


@runs
def test_self_check_passes_and_would_notice(monkeypatch):
    checks.check_kernels(torch.device(DEVICE))
    plain = gradients._sum_rows

    def one_term_less(*arguments):
        for row in plain(*arguments):
            yield [*row[:3], row[3] - 1, *row[4:]]

    monkeypatch.setattr(gradients, '_sum_rows', one_term_less)
    # A GPU's allocator may give the same addresses once more, and with them the first check's
    # tables and results: every result is wrong, and no table is known.
    monkeypatch.setattr(kernel_tables, '_tables', OrderedDict())
    monkeypatch.setattr(kernel_tables, '_used', {})
    with pytest.raises(RuntimeError, match='its gradients are off'):
        checks.check_kernels(torch.device(DEVICE))
    kernels.write_blocks(torch.ones(1), [], [], [], [], [])  # nothing to write; and it counts


@once_more
def test_kernel_laws_in_the_interpreter():
    run_interpreted(__file__)
