"""`block_ops.adapted_copies` on an NVIDIA GPU: one launch for the blocks of all layers.

Every program takes a tile of one block. Where its tensors lie is a row of a `kernel_tables` table.

Importing this needs Triton; `block_ops` does so when there is a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..flat_layout import begins_of
from .kernel_launches import Launch, compiled_run
from .kernel_tables import bits_of, look_of, table_of

__all__ = ['write_blocks']

TILE = 64  # rows and columns of a tile

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


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
    key = 'write', look_of([*weights, *factors, *indices]), *counts, *scales
    table = table_of(key, _tiles(weights, factors, indices, counts, scales), flat.device)
    constants = table.shape[1], TYPES[weights[0].dtype], TILE
    with torch.cuda.device_of(flat):  # Triton launches on the current device
        compiled = _write_tiles[(len(table),)](flat, table, *constants)
    run = compiled_run(compiled, len(table))
    return None if run is None else lambda address: run(address, table, *constants)


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
                    yield [*pointers, *sizes, r, c, bits_of(scales[i])]
        block += count
