"""What the kernels for blocks compile to: no GPU is needed, the assembler comes with Triton."""

from __future__ import annotations

import re

import pytest

from cdra_mm.core.adapters.joint_blocks import VECTOR

pytest.importorskip('triton', reason='the kernels are for GPUs, where torch brings Triton')
kernels = pytest.importorskip('cdra_mm.core.adapters.block_kernels')
gradients = pytest.importorskip('cdra_mm.core.adapters.gradient_kernels')


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
    numbers = ('tokens', 'chunk', 'splits', 'dy_token', 'x_token')
    tensors = {'terms': '*fp32', 'dy': f'*{dtype}', 'x': f'*{dtype}', 'table': '*i64'}
    half, tile, tokens = dtype == 'bf16', gradients.TILE, gradients.TOKENS
    for gathered, vector in ((False, 1), (True, 1), (True, VECTOR)):
        constant = {'GATHERED': gathered, 'VECTOR': vector, 'FIELDS': 17, 'ROWS': tile}
        factor = 2 if half and vector > 1 else 1
        constant |= {'COLS': factor * tile, 'TOKENS': factor * tokens, 'RANKS': gradients.RANKS}
        constant |= {'PRECISION': gradients.PRECISION[2 if half else 4]}
        signature = {
            **tensors, **dict.fromkeys(numbers, 'i32'), **dict.fromkeys(constant, 'constexpr'),
        }  # fmt: skip
        multiples = [*range(len(tensors)), len(tensors) + numbers.index('x_token')]
        multiple = {(i,): [['tt.divisibility', 16]] for i in multiples if vector > 1}
        source = ASTSource(gradients._term_tiles, signature, constant, multiple)
        made = compile(source, target=target)
        assert made.asm['cubin']
        assert made.metadata.shared <= 96 * 1024  # what consumer GPUs have
        loads = re.findall(r'cp\.async.* 0x10;|cp\.async\.cg.*', made.asm['ptx'])
        assert bool(loads) == (vector > 1), 'vectors are loaded 16 bytes at a time, on their way'
    constant = {'FIELDS': 5, 'WIDTH': gradients.WIDTH, 'TERMS': gradients.TERMS}
    tensors = {'flat': '*fp32', 'terms': '*fp32', 'table': '*i64', 'splits': 'i32'}
    signature = {**tensors, **dict.fromkeys(constant, 'constexpr')}
    made = compile(ASTSource(gradients._sum_terms, signature, constant), target=target)
    assert made.asm['cubin']
