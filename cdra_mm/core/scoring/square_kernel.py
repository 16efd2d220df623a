"""Squared per-sample gradients of a weight on an NVIDIA GPU, without writing any gradient.

    total[o, i] += sum_b ( sum_t grad[b, t, o] * x[b, t, i] )^2

A matrix product whose epilogue squares: a program holds one tile of one sample's
gradient in registers, and when the last token of the sample is in, adds its
square to a second tile. Only the sum over samples goes to memory, so that the
cost is that of the ordinary weight gradient. Importing this needs Triton; `squares` does
so when there is a GPU.

Work is spread by whole tiles as long as they fill every multiprocessor. The tiles
left over, which would leave most of them idle, are cut along the batch instead:

    tiles     0 1 2 3 | 4 5 6 7 | 8              9 tiles, 4 multiprocessors
    programs  0 1 2 3   4 5 6 7   8 9 10 11      the last four: a quarter of the samples each

Those parts are written to a scratch of at most one tile per multiprocessor (8.7 MB
on an H100, whatever the model) and added in order by a second kernel. No atomics:
the same input gives the same bits on the same kind of GPU.

Legend: B samples, T tokens, I input width, O output width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ['DTYPES', 'LAUNCH', 'STAGES', 'add_squared_gradients', 'split_tiles', 'tokens_per_step']

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Fixed, not autotuned: tuning would compile and time each choice for every layer shape of a model,
# and which tile wins decides the order of the sums, so that results would vary between runs.
TILE = 128
"""Rows and columns of a tile.

Two fp32 tiles of 128x128 are half the registers of a multiprocessor; the next size would take all.
"""
LAUNCH = {'num_warps': 8, 'enable_fp_fusion': True}
STAGES = {2: {64: 3, 32: 4}, 4: {16: 3}}
"""Depth of the load pipeline by bytes per entry and tokens per step.

At most 96 KiB of shared memory, which consumer GPUs have too. fp32 runs on the ordinary cores, with
the precision of fp32; short steps keep its operands in registers.
"""
STEP_COST = 8  # what a step costs beside its tokens, in tokens; an estimate, not measured
STRIP = 16  # rows of a tile that one program of the second kernel adds up
GROUP = 8  # rows of tiles that are walked together: their operands meet in the L2 cache


@triton.jit
def _corner(tile, height, width, TILE: tl.constexpr, GROUP: tl.constexpr):
    """First row and column of a tile; tiles go down within strips of ``GROUP`` rows of tiles."""
    across = tl.cdiv(width, TILE)
    first = tile // (GROUP * across) * GROUP
    down = tl.minimum(tl.cdiv(height, TILE) - first, GROUP)
    within = tile % (GROUP * across)
    return (first + within % down) * TILE, within // down * TILE


@triton.jit(do_not_specialize=['samples', 'tokens', 'whole', 'splits'])
def _add_tiles(
    total,
    x,
    grad,
    parts,
    samples,
    tokens,
    height,
    width,
    whole,
    splits,
    total_o,
    total_i,
    x_b,
    x_t,
    x_i,
    grad_b,
    grad_t,
    grad_o,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    STEP: tl.constexpr,
):
    """One program: one tile over all samples, or for those after ``whole`` over a part of them.

    ``total_o`` to ``grad_o`` are strides, in entries.
    """
    program = tl.program_id(0)
    over = tl.maximum(program - whole, 0)
    tile = tl.where(program < whole, program, whole + over // splits)
    pieces = tl.where(program < whole, 1, splits)
    part = over % splits
    first = part * samples // pieces
    last = (part + 1) * samples // pieces

    corner_o, corner_i = _corner(tile, height, width, TILE, GROUP)
    o = corner_o + tl.arange(0, TILE)
    i = corner_i + tl.arange(0, TILE)
    step = tl.arange(0, STEP)
    # Offsets are int64: a batch of activations can exceed 2^31 entries.
    o_long, i_long, step_long = o.to(tl.int64), i.to(tl.int64), step.to(tl.int64)
    # grad is read as its transpose, straight into the shape the product wants: with tl.trans the
    # load is not pipelined before Hopper. Loads are coalesced along the contiguous axis either way.
    grad_tile = grad + o_long[:, None] * grad_o + step_long[None, :] * grad_t
    x_tile = x + step_long[:, None] * x_t + i_long[None, :] * x_i

    # One loop over all tokens of all samples. A loop per sample would drain the pipeline of loads
    # every few steps (197 tokens are 7). What the next loads depend on (b, t) is kept out of the
    # branch, so that they are issued while products run. The branch, not a select, empties the
    # tile: a select would cost a pass over it in every step.
    products = tl.zeros((TILE, TILE), tl.float32)
    squares = tl.zeros((TILE, TILE), tl.float32)
    b = first.to(tl.int64)
    t = tl.full((), 0, tl.int32)
    for _ in range((last - first) * tl.cdiv(tokens, STEP)):
        t_long = t.to(tl.int64)
        grad_here = grad_tile + (b * grad_b + t_long * grad_t)
        x_here = x_tile + (b * x_b + t_long * x_t)
        real = step < tokens - t
        grad_block = tl.load(grad_here, mask=(o < height)[:, None] & real[None, :], other=0.0)
        x_block = tl.load(x_here, mask=real[:, None] & (i < width)[None, :], other=0.0)
        products = tl.dot(grad_block, x_block, products, input_precision='ieee')
        is_last = t + STEP >= tokens
        if is_last:
            squares += products * products
            products = tl.zeros((TILE, TILE), tl.float32)
        b = tl.where(is_last, b + 1, b)
        t = tl.where(is_last, 0, t + STEP)

    if program < whole:
        inside = (o < height)[:, None] & (i < width)[None, :]
        here = total + o_long[:, None] * total_o + i_long[None, :] * total_i
        tl.store(here, tl.load(here, mask=inside) + squares, mask=inside)
    else:
        entry = tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
        tl.store(parts + over.to(tl.int64) * (TILE * TILE) + entry, squares)


@triton.jit(do_not_specialize=['whole', 'splits'])
def _add_parts(
    total,
    parts,
    height,
    width,
    whole,
    splits,
    total_o,
    total_i,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    STRIP: tl.constexpr,
):
    """One program: ``STRIP`` rows of one tile that was cut; its parts are added in order."""
    strips: tl.constexpr = TILE // STRIP
    cut = tl.program_id(0) // strips
    row = tl.program_id(0) % strips * STRIP + tl.arange(0, STRIP)
    column = tl.arange(0, TILE)
    here = parts + cut.to(tl.int64) * splits * (TILE * TILE) + row[:, None] * TILE + column[None, :]
    squares = tl.zeros((STRIP, TILE), tl.float32)
    for part in range(splits):
        squares += tl.load(here + part * (TILE * TILE))
    corner_o, corner_i = _corner(whole + cut, height, width, TILE, GROUP)
    o, i = corner_o + row, corner_i + column
    inside = (o < height)[:, None] & (i < width)[None, :]
    there = total + o.to(tl.int64)[:, None] * total_o + i.to(tl.int64)[None, :] * total_i
    tl.store(there, tl.load(there, mask=inside) + squares, mask=inside)


def split_tiles(tiles: int, samples: int, processors: int) -> tuple[int, int]:
    """How many tiles take all samples, and into how many parts the others are cut.

    The parts are at most one per multiprocessor, and none is empty: 9 tiles of
    32 samples on 4 multiprocessors are ``(8, 4)``.
    """
    over = tiles % processors
    splits = min(samples, processors // over) if over else 1
    return (tiles - over, splits) if splits > 1 else (tiles, 1)


def tokens_per_step(tokens: int, itemsize: int) -> int:
    """The step with the least padding: 197 tokens are 7 x 32 rather than 4 x 64."""
    return min(STAGES[itemsize], key=lambda step: triton.cdiv(tokens, step) * (step + STEP_COST))


def add_squared_gradients(
    total: Tensor, x: Tensor, grad: Tensor, processors: int | None = None
) -> None:
    """Adds ``sum_b (grad[b]^T x[b])^2`` to ``total``, with fp32 sums.

    Any strides will do; entries that follow each other along the last axis are read fastest.

    Args:
        total: fp32 ``[O, I]``; may be a view of some rows of a larger matrix.
        x: ``[B, T, I]``, one of `DTYPES`.
        grad: ``[B, T, O]``, of the same type.
        processors: How many programs to run at a time. Default: one per
            multiprocessor of the device, which is what their registers allow.
    """
    samples, tokens, width = x.shape
    height = grad.shape[-1]
    if not min(samples, tokens, width, height):
        return
    if processors is None:
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    tiles = triton.cdiv(height, TILE) * triton.cdiv(width, TILE)
    whole, splits = split_tiles(tiles, samples, processors)
    cut = tiles - whole
    parts = total.new_empty(cut * splits * TILE * TILE) if cut else total
    step = tokens_per_step(tokens, x.dtype.itemsize)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _add_tiles[(whole + cut * splits,)](
            total,
            x,
            grad,
            parts,
            samples,
            tokens,
            height,
            width,
            whole,
            splits,
            *total.stride(),
            *x.stride(),
            *grad.stride(),
            TILE=TILE,
            GROUP=GROUP,
            STEP=step,
            num_stages=STAGES[x.dtype.itemsize][step],
            **LAUNCH,
        )
        if cut:
            _add_parts[(cut * (TILE // STRIP),)](
                total,
                parts,
                height,
                width,
                whole,
                splits,
                *total.stride(),
                TILE=TILE,
                GROUP=GROUP,
                STRIP=STRIP,
                **LAUNCH,
            )
