"""The operations of `block_ops` on an NVIDIA GPU: one launch for the blocks of all layers.

Every program takes a tile of one block. Where its tensors lie is a row of a `kernel_tables` table.

Importing this needs Triton; `block_ops` does so when there is a GPU.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..flat_layout import begins_of
from .kernel_tables import table_of

__all__ = ['Launch', 'check_kernels', 'write_blocks', 'write_factor_gradients']

TILE = 64  # rows and columns of a tile
RANKS = 16  # ranks that one product takes at a time: the least that tl.dot does
# From Triton 3.3 on a compiled kernel is called with all arguments, constants too.
CALLS_COMPILED = tuple(map(int, triton.__version__.split('.')[:2])) >= (3, 3)
# Launches a kernel again over the same table, given the addresses of what it was launched with: of
# tensors of the same types, aligned to 16 bytes where those were.
Launch = Callable[..., None]

_TL = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _write_tiles(
    flat,
    table,
    FIELDS: tl.constexpr,
    WEIGHT: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: a tile of a block, ``flat[begin + row * width + col] = W + scale up down``."""
    entry = table + tl.program_id(0).to(tl.int64) * FIELDS
    weight = tl.load(entry).to(tl.pointer_type(WEIGHT))
    down = tl.load(entry + 1).to(tl.pointer_type(tl.float32))
    up = tl.load(entry + 2).to(tl.pointer_type(tl.float32))
    rows = tl.load(entry + 3).to(tl.pointer_type(tl.int64))
    cols = tl.load(entry + 4).to(tl.pointer_type(tl.int64))
    begin = tl.load(entry + 5)
    height, width, rank = tl.load(entry + 6), tl.load(entry + 7), tl.load(entry + 8)
    stride = tl.load(entry + 9)  # of the weight's rows, and of its copy's
    r = tl.load(entry + 10) + tl.arange(0, TILE)
    c = tl.load(entry + 11) + tl.arange(0, TILE)
    scale = tl.load(entry + 12).to(tl.int32).to(tl.float32, bitcast=True)

    has_row, has_col = r < height, c < width
    update = tl.zeros((TILE, TILE), dtype=tl.float32)
    for k in range(rank):
        left = tl.load(up + r * rank + k, mask=has_row, other=0.0)
        right = tl.load(down + k * width + c, mask=has_col, other=0.0)
        update += left[:, None] * right[None, :]
    row = tl.load(rows + r, mask=has_row, other=0)
    col = tl.load(cols + c, mask=has_col, other=0)
    at = row[:, None] * stride + col[None, :]
    inside = has_row[:, None] & has_col[None, :]
    value = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32) + scale * update
    tl.store(flat + begin + at, value.to(flat.dtype.element_ty), mask=inside)


def write_blocks(
    flat: Tensor,
    weights: Sequence[Tensor],
    factors: Sequence[Tensor],
    indices: Sequence[Tensor],
    counts: Sequence[int],
    scales: Sequence[float],
) -> Launch | None:
    """Writes the blocks of `block_ops.adapted_copies` into its result, which holds plain copies.

    Args:
        flat: The copies, one after another, each padded.
        weights: fp32, bf16 or fp16, contiguous, all of one type; first in `flat`.
        factors: fp32, contiguous.
        indices: int64, contiguous.
        counts: See `block_ops.adapted_copies`.
        scales: Likewise.

    Returns:
        Its launch, by the address of `flat`.
    """
    if not factors:
        return None
    key = 'write', _look_of([*weights, *factors, *indices]), *counts, *scales
    table = table_of(key, _tiles(weights, factors, indices, counts, scales), flat.device)
    weight = _TL[weights[0].dtype]
    with torch.cuda.device_of(flat):  # Triton launches on the current device
        compiled = _write_tiles[(len(table),)](
            flat, table, FIELDS=table.shape[1], WEIGHT=weight, TILE=TILE
        )
    return _launch_again(compiled, table, table.shape[1], weight, TILE)


def _tiles(
    weights: Sequence[Tensor],
    factors: Sequence[Tensor],
    indices: Sequence[Tensor],
    counts: Sequence[int],
    scales: Sequence[float],
) -> Iterator[list[int]]:
    """The rows of the table of `_write_tiles`."""
    block = 0
    begins = begins_of(weight.numel() for weight in weights)
    for weight, count, begin in zip(weights, counts, begins[:-1], strict=True):
        for i in range(block, block + count):
            down, up = factors[2 * i], factors[2 * i + 1]
            pointers = [t.data_ptr() for t in (weight, down, up, *indices[2 * i : 2 * i + 2])]
            height, (rank, width) = len(up), down.shape
            sizes = [begin, height, width, rank, weight.shape[1]]
            for r in range(0, height, TILE):
                for c in range(0, width, TILE):
                    yield [*pointers, *sizes, r, c, _bits(scales[i])]
        block += count


def _look_of(tensors: Sequence[Tensor]) -> Hashable:
    """Where the memory of each begins, and its sizes."""
    return tuple([(tensor.data_ptr(), tensor.shape) for tensor in tensors])


@triton.jit
def _factor_tiles(
    flat,
    gradient,
    table,
    FIELDS: tl.constexpr,
    TILE: tl.constexpr,
    RANKS: tl.constexpr,
):
    """One program: some columns of a ``down`` gradient, or some rows of an ``up`` gradient."""
    entry = table + tl.program_id(0).to(tl.int64) * FIELDS
    of_up = tl.load(entry)
    other = tl.load(entry + 1).to(tl.pointer_type(tl.float32))  # the other factor
    out = flat + tl.load(entry + 2)
    g = gradient + tl.load(entry + 3)
    # The gradient as [long, free]: sums run over `long`, the tile is of `free`.
    long, free, rank = tl.load(entry + 4), tl.load(entry + 5), tl.load(entry + 6)
    long_stride, free_stride = tl.load(entry + 7), tl.load(entry + 8)
    f = tl.load(entry + 9) + tl.arange(0, TILE)
    scale = tl.load(entry + 10).to(tl.int32).to(tl.float32, bitcast=True)
    # up [|R|, r] is read as [long, rank]; down [r, |C|] likewise, by its strides.
    other_long = tl.where(of_up == 1, 1, rank)
    other_rank = tl.where(of_up == 1, long, 1)
    out_rank = tl.where(of_up == 1, 1, free)
    out_free = tl.where(of_up == 1, rank, 1)

    has_free = f < free
    for first in range(0, rank, RANKS):
        k = first + tl.arange(0, RANKS)
        has_rank = k < rank
        total = tl.zeros((RANKS, TILE), dtype=tl.float32)
        for begin in range(0, long, TILE):
            s = begin + tl.arange(0, TILE)
            has_long = s < long
            left = tl.load(
                other + s[None, :] * other_long + k[:, None] * other_rank,
                mask=has_long[None, :] & has_rank[:, None],
                other=0.0,
            )
            right = tl.load(
                g + s[:, None] * long_stride + f[None, :] * free_stride,
                mask=has_long[:, None] & has_free[None, :],
                other=0.0,
            ).to(tl.float32)
            total = tl.dot(left, right, total, input_precision='ieee')
        there = out + k[:, None] * out_rank + f[None, :] * out_free
        tl.store(there, scale * total, mask=has_rank[:, None] & has_free[None, :])


def write_factor_gradients(
    flat: Tensor,
    gradient: Tensor,
    places: Sequence[int],
    factors: Sequence[Tensor],
    scales: Sequence[float],
    also: Sequence[int] = (),
) -> Launch | None:
    """Writes the result of `block_ops.factor_gradients`.

    Args:
        flat: The gradients of the factors, fp32, one after another, each padded.
        gradient: See `block_ops.factor_gradients`.
        places: Likewise.
        factors: fp32, contiguous.
        scales: See `block_ops.factor_gradients`.
        also: Other places, which a CUDA graph that is captured later may ask for: its table is
            made now.

    Returns:
        Its launch, by the addresses of `flat` and `gradient`.
    """
    look = _look_of(factors)

    def table_for(places: Sequence[int]) -> Tensor:
        key = 'factors', look, *places, *scales
        return table_of(key, _strips(places, factors, scales), flat.device)

    table = table_for(places)
    if also and not torch.cuda.is_current_stream_capturing():
        table_for(also)
    number, fields = table.shape
    with torch.cuda.device_of(flat):
        compiled = _factor_tiles[(number,)](
            flat, gradient, table, FIELDS=fields, TILE=TILE, RANKS=RANKS
        )
    return _launch_again(compiled, table, fields, TILE, RANKS)


def _strips(
    places: Sequence[int], factors: Sequence[Tensor], scales: Sequence[float]
) -> Iterator[list[int]]:
    """The rows of the table of `_factor_tiles`."""
    begins = begins_of(factor.numel() for factor in factors)
    for i, scale in enumerate(scales):
        down, up = factors[2 * i], factors[2 * i + 1]
        begin, stride = places[2 * i : 2 * i + 2]
        (height, rank), width = up.shape, down.shape[1]
        for of_up, other, long, free in ((0, up, height, width), (1, down, width, height)):
            strides = (1, stride) if of_up else (stride, 1)
            fields = of_up, other.data_ptr(), begins[2 * i + of_up], begin, long, free, rank
            for first in range(0, free, TILE):
                yield [*fields, *strides, first, _bits(scale)]


def _launch_again(compiled: Any, table: Tensor, *constants: Any) -> Launch | None:
    """Triton's search for the compiled kernel takes as long again as the launch itself."""
    if compiled is None or not CALLS_COMPILED:  # the interpreter compiles none
        return None
    run = compiled[(len(table), 1, 1)]
    return lambda *addresses: run(*addresses, table, *constants)


def _bits(value: float) -> int:
    """A number as the bits of fp32: a table has one type."""
    return int.from_bytes(struct.pack('<f', value), 'little', signed=True)


def check_kernels(device: torch.device) -> None:
    """Runs both kernels once on small whole numbers, which no type rounds.

    Raises:
        RuntimeError: If one computes something else than torch does.
    """
    generator, cpu = torch.Generator().manual_seed(0), torch.device('cpu')

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=generator, device=cpu).float().to(device)

    weight, down, up = numbers(80, 96), numbers(2, 70), numbers(66, 2)
    rows, cols = (torch.randperm(n, generator=generator, device=cpu) for n in weight.shape)
    rows, cols = rows.to(device), cols.to(device)
    rows, cols = rows[:66].contiguous(), cols[:70].contiguous()
    flat = weight.flatten().bfloat16()
    write_blocks(flat, [weight], [down, up], [rows, cols], [1], [2.0])
    expected = weight.clone()
    expected[rows[:, None], cols] += 2 * (up @ down)
    begins = begins_of([down.numel(), up.numel()])
    grads = flat.new_empty(begins[-1], dtype=torch.float32)
    write_factor_gradients(grads, flat, [0, weight.shape[1]], [down, up], [2.0])
    grads = torch.cat([grads[: down.numel()], grads[begins[1] :][: up.numel()]])
    wide = flat.view(weight.shape)[:66, :70].float()
    wanted = torch.cat([(2 * up.t() @ wide).flatten(), (2 * wide @ down.t()).flatten()])
    for what, found, right in (
        ('copies', flat.float(), expected.flatten()),
        ('gradients', grads, wanted),
    ):
        if not torch.equal(found, right):
            raise RuntimeError(f'its {what} are off by up to {(found - right).abs().max().item()}')
