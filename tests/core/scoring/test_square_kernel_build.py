"""What the kernel compiles to: no GPU is needed, the assembler comes with Triton."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip('triton', reason='the kernel is for GPUs, where torch brings Triton')
kernel = pytest.importorskip('cdra_mm.core.scoring.square_kernel')

BINARIES = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
DTYPES = {str(dtype).removeprefix('torch.'): dtype for dtype in kernel.DTYPES}
POINTERS = {'total': '*fp32', 'parts': '*fp32'}
COMMON = {'TILE': kernel.TILE, 'GROUP': kernel.GROUP}
CONFIGS = {
    f'{name}_{step}': (name, step)
    for name, dtype in DTYPES.items()
    for step in kernel.STAGES[dtype.itemsize]
}
GPUS = {'sm80': 80, 'sm86': 86, 'sm90': 90}
REGISTERS = 65536  # of a multiprocessor


def build(function, capability, constants, pointers, aligned=True, **options):
    """What a launch would compile; ``aligned``: pointers and sizes are multiples of 16."""
    compiler = pytest.importorskip('triton.compiler')
    target = pytest.importorskip('triton.backends.compiler').GPUTarget('cuda', capability, 32)
    if not (BINARIES / 'ptxas').exists():
        pytest.skip(f'no assembler in {BINARIES}')
    signature = {
        name: 'constexpr' if name in constants else pointers.get(name, 'i32')
        for name in function.arg_names
    }
    plain = {'samples', 'tokens', 'whole', 'splits', *constants}
    attributes = {
        (place,): [['tt.divisibility', 16]]
        for place, name in enumerate(function.arg_names)
        if aligned and name not in plain
    }
    source = compiler.ASTSource(function, signature, constants, attributes)
    return compiler.compile(source, target=target, options=options)


def build_tiles(capability, name, step, aligned=True):
    pointer = {'bfloat16': '*bf16', 'float16': '*fp16', 'float32': '*fp32'}[name]
    contiguous = {'total_i': 1, 'x_i': 1, 'grad_o': 1}
    return build(
        kernel._add_tiles,
        capability,
        {**COMMON, **contiguous, 'STEP': step},
        {**POINTERS, 'x': pointer, 'grad': pointer},
        aligned,
        num_stages=kernel.STAGES[DTYPES[name].itemsize][step],
        **kernel.LAUNCH,
    )


def resources(binary, folder):
    """Registers, stack and local memory (spills) per thread, as the assembler noted them."""
    if not (BINARIES / 'cuobjdump').exists():
        pytest.skip(f'no cuobjdump in {BINARIES}')
    (folder / 'kernel.cubin').write_bytes(binary.asm['cubin'])
    command = [BINARIES / 'cuobjdump', '-res-usage', folder / 'kernel.cubin']
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r'(REG|STACK|LOCAL):(\d+)', text))
    return {key: int(value) for key, value in found.items()}


def threads(binary):
    return 32 * binary.metadata.num_warps


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize('capability', GPUS.values(), ids=GPUS)
def test_kernel_fits_the_gpu(capability, config, tmp_path):
    """No spills, the shared memory of a consumer GPU, and copies that run ahead of the products."""
    binary = build_tiles(capability, *config)
    assert binary.metadata.shared <= 99 * 1024
    code = binary.asm['ptx']
    # While a step runs, the copies of both operands for all but two of the stages are still out.
    still_out = re.findall(r'cp\.async\.wait_group\s+(\d+)', code)
    assert max(map(int, still_out)) >= 2 * (binary.metadata.num_stages - 2)
    assert 'cp.async.cg.shared.global' in code  # 16 bytes at a time
    if config[0] != 'float32':  # tensor cores; Hopper's run on while the next copies are issued
        expected = r'wgmma\.wait_group\.sync\.aligned\s+1' if capability == 90 else r'mma\.sync'
        assert re.search(expected, code)
    used = resources(binary, tmp_path)
    assert used['STACK'] == used['LOCAL'] == 0
    assert used['REG'] * threads(binary) <= REGISTERS


@pytest.mark.parametrize('name', DTYPES)
def test_kernel_fits_the_gpu_at_odd_sizes(name, tmp_path):
    """Entries are then loaded one by one, which spills some registers: slow, but it can run."""
    binary = build_tiles(90, name, max(kernel.STAGES[DTYPES[name].itemsize]), aligned=False)
    assert binary.metadata.shared <= 99 * 1024
    assert resources(binary, tmp_path)['REG'] * threads(binary) <= REGISTERS


@pytest.mark.parametrize('capability', GPUS.values(), ids=GPUS)
def test_kernel_that_adds_parts_fits_the_gpu(capability, tmp_path):
    constants = {**COMMON, 'STRIP': kernel.STRIP, 'total_i': 1}
    binary = build(kernel._add_parts, capability, constants, POINTERS, **kernel.LAUNCH)
    assert binary.metadata.shared <= 99 * 1024
    used = resources(binary, tmp_path)
    assert used['STACK'] == used['LOCAL'] == 0
