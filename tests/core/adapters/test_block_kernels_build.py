"""What the kernels for blocks compile to: no GPU is needed, the assembler comes with Triton."""

from __future__ import annotations

import pytest

pytest.importorskip('triton', reason='the kernels are for GPUs, where torch brings Triton')
kernels = pytest.importorskip('cdra_mm.core.adapters.block_kernels')


@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('dtype', ['bf16', 'fp32'])
def test_kernels_compile_without_a_gpu(dtype, capability):
    """What the interpreter runs need not be what the compiler takes."""
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    target = GPUTarget('cuda', capability, 32)
    constant = {'FIELDS': 13, 'WEIGHT': tl.float32, 'TILE': kernels.TILE}
    tensors = {'flat': f'*{dtype}', 'table': '*i64'}
    signature = {**tensors, **dict.fromkeys(constant, 'constexpr')}
    assert compile(ASTSource(kernels._write_tiles, signature, constant), target=target).asm['cubin']
    constant = {'FIELDS': 11, 'TILE': kernels.TILE, 'RANKS': kernels.RANKS}
    tensors = {'flat': '*fp32', 'gradient': f'*{dtype}', 'table': '*i64'}
    signature = {**tensors, **dict.fromkeys(constant, 'constexpr')}
    made = compile(ASTSource(kernels._factor_tiles, signature, constant), target=target)
    assert made.asm['cubin']
    assert made.metadata.shared <= 96 * 1024  # what consumer GPUs have
