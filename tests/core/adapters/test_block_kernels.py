"""The kernels of the operations on blocks equal the same loops.

They are tested natively where there is a GPU, and in the interpreter (`interpreted`).
"""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core.adapters import block_ops
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
    for name in ('write_blocks', 'take_factor_gradients'):
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
@pytest.mark.parametrize('blocks', [3, 4])
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
    monkeypatch.setattr(kernels, 'KEPT_TABLES', 3)
    kept = [Layers(SIZES['one_entry'], seed=seed, device=DEVICE) for seed in range(6)]
    for layers in (*kept, *kept):
        check_copies(layers, torch.float32, 1e-5)
    assert len(kernels._tables) == 3


@runs
def test_self_check_passes_and_would_notice(monkeypatch):
    kernels.check_kernels(torch.device(DEVICE))
    plain = kernels._strips
    monkeypatch.setattr(
        kernels, '_strips', lambda *a: ([*row[:-1], row[-1] + 1] for row in plain(*a))
    )
    with pytest.raises(RuntimeError, match='its gradients are off'):
        kernels.check_kernels(torch.device(DEVICE))
    kernels.write_blocks(torch.ones(1), [], [], [], [], [], [])  # nothing to write; and it counts


@once_more
def test_kernel_laws_in_the_interpreter():
    run_interpreted(__file__)


@pytest.mark.skipif(INTERPRETED, reason='interpreted kernels are not compiled')
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('dtype', ['bf16', 'fp32'])
def test_kernels_compile_without_a_gpu(dtype, capability):
    """What the interpreter runs need not be what the compiler takes."""
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    target = GPUTarget('cuda', capability, 32)
    constant = {'FIELDS': 13, 'WEIGHT': tl.float32, 'TILE': kernels.TILE}
    tensors = {'flat': f'*{dtype}', 'table': '*i64', 'scales': '*fp32'}
    signature = {**tensors, **dict.fromkeys(constant, 'constexpr')}
    assert compile(ASTSource(kernels._write_tiles, signature, constant), target=target).asm['cubin']
    constant = {'FIELDS': 10, 'TILE': kernels.TILE, 'RANKS': kernels.RANKS}
    tensors = {'flat': '*fp32', **{f'g{i}': f'*{dtype}' for i in range(4)}}
    tensors |= {'table': '*i64', 'scales': '*fp32'}
    signature = {**tensors, **dict.fromkeys(constant, 'constexpr')}
    made = compile(ASTSource(kernels._factor_tiles, signature, constant), target=target)
    assert made.asm['cubin']
    assert made.metadata.shared <= 96 * 1024  # what consumer GPUs have
