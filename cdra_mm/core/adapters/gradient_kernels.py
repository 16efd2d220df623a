"""`block_ops.factor_gradients` on an NVIDIA GPU: two launches for all blocks of a layer.

    G = dy[:, R]^T x[:, C],   d down = scale up^T G,   d up = scale G down^T

Both are linear in G, so no G is ever whole: a program takes a tile of it over a run of tokens,
gathering rows and columns as it loads them, and multiplies the tile by its parts of ``up`` and
``down``. Those are terms of the gradients, which a second kernel adds up, always in one order.
Between the two lie a few MiB at most, whatever the number of tokens, where a product of its own
would gather rows of dy first.

Importing this needs Triton; `block_ops` does so when there is a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..flat_layout import begins_of
from .joint_blocks import VECTOR
from .kernel_launches import Launch, compiled_run
from .kernel_tables import bits_of, look_of, table_of

__all__ = ['write_factor_gradients']

TILE = 64  # rows and columns of a tile of G
TOKENS = 32  # that one product takes at a time
RANKS = 16  # likewise: the least that tl.dot does
# About so many where tokens suffice, a few for each multiprocessor: one alone waits for its loads.
PROGRAMS = 512
WIDTH = 128  # entries of a factor that a program adds up
TERMS = 32  # of each entry, that it loads at once
# Products of fp32 by tensor cores. Thrice TF32 is fp32 but for the last bit or two. G of half
# precision is rounded to TF32, no coarser than a product in half precision rounds it.
PRECISION = {4: 'tf32x3', 2: 'tf32'}


# A number that is 1 would be a constant, and numbers of tokens would compile it anew. Of `x_token`
# it has to know whether rows begin where vectors do.
@triton.jit(do_not_specialize=['tokens', 'chunk', 'splits', 'dy_token'])
def _term_tiles(
    terms,
    dy,
    x,
    table,
    tokens,
    chunk,
    splits,
    dy_token,
    x_token,
    GATHERED: tl.constexpr,
    VECTOR: tl.constexpr,
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: the terms of a tile of one block's G, over a run of tokens."""
    entry = table + tl.program_id(0).to(tl.int64) * FIELDS
    rows = tl.load(entry).to(tl.pointer_type(tl.int64))
    cols = tl.load(entry + 1).to(tl.pointer_type(tl.int64))
    down = tl.load(entry + 2).to(tl.pointer_type(tl.float32))
    up = tl.load(entry + 3).to(tl.pointer_type(tl.float32))
    height, width, rank = tl.load(entry + 4), tl.load(entry + 5), tl.load(entry + 6)
    r = tl.load(entry + 7) + tl.arange(0, ROWS)
    c = tl.load(entry + 8) + tl.arange(0, COLS)
    scale = tl.load(entry + 10).to(tl.int32).to(tl.float32, bitcast=True)
    split = tl.program_id(1)
    # Where the terms of each factor begin for one run, how many a run has, and which of them it is.
    to_down = terms + tl.load(entry + 11) * splits
    to_up = terms + tl.load(entry + 12) * splits
    to_down += (split * tl.load(entry + 13) + tl.load(entry + 14)) * rank * width
    to_up += (split * tl.load(entry + 15) + tl.load(entry + 16)) * rank * height

    has_row, has_col = r < height, c < width
    row = tl.load(rows + r, mask=has_row, other=0).to(tl.int32)
    there = has_col  # what is read of x
    if not GATHERED:
        col = tl.load(cols + c, mask=has_col, other=0).to(tl.int32)
    else:
        first_col = tl.load(entry + 9).to(tl.int32)
        if VECTOR > 1:  # whole vectors; of the last one some columns are not the block's
            first_col = tl.multiple_of(first_col, VECTOR)
            at = tl.multiple_of(tl.load(entry + 8).to(tl.int32), VECTOR) + tl.arange(0, COLS)
            whole = (width.to(tl.int32) + VECTOR - 1) // VECTOR * VECTOR
            there = at < tl.multiple_of(whole, VECTOR)
            col = first_col + at
        else:
            col = first_col + c.to(tl.int32)
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    t = tl.arange(0, TOKENS)[:, None]
    first = split * chunk
    left = tl.minimum(first + chunk, tokens) - first  # tokens that are left
    dy += first.to(tl.int64) * dy_token
    x += first.to(tl.int64) * x_token
    # What the next product takes is on its way while one is computed: vectors without being asked.
    d = tl.load(dy + (t * dy_token + row[None, :]), mask=(t < left) & has_row[None, :], other=0.0)
    if VECTOR == 1:
        v = tl.load(x + (t * x_token + col[None, :]), mask=(t < left) & there[None, :], other=0.0)
    for done in range(0, left, TOKENS):
        if VECTOR > 1:
            mask = (t < left - done) & there[None, :]
            v_now = tl.load(x + (t * x_token + col[None, :]), mask=mask, other=0.0)
        dy += dy_token.to(tl.int64) * TOKENS
        x += tl.cast(x_token, tl.int64) * TOKENS
        mask = (t < left - done - TOKENS) & has_row[None, :]
        d_next = tl.load(dy + (t * dy_token + row[None, :]), mask=mask, other=0.0)
        if VECTOR > 1:
            total = tl.dot(tl.trans(d), v_now, total, input_precision=PRECISION)
        else:
            mask = (t < left - done - TOKENS) & there[None, :]
            v_next = tl.load(x + (t * x_token + col[None, :]), mask=mask, other=0.0)
            total = tl.dot(tl.trans(d), v, total, input_precision=PRECISION)
            v = v_next
        d = d_next
    # Columns of vectors that are not the block's may hold what is not finite.
    total = tl.where(has_col[None, :], scale * total, 0.0)
    for begin in tl.range(0, rank, RANKS, num_stages=1):
        k = begin + tl.arange(0, RANKS)
        has_rank = k < rank
        factor = tl.load(
            up + r[None, :] * rank + k[:, None],
            mask=has_row[None, :] & has_rank[:, None],
            other=0.0,
        )
        part = tl.dot(factor, total, input_precision=PRECISION)
        to = to_down + k[:, None] * width + c[None, :]
        tl.store(to, part, mask=has_rank[:, None] & has_col[None, :])
        factor = tl.load(
            down + k[None, :] * width + c[:, None],
            mask=has_rank[None, :] & has_col[:, None],
            other=0.0,
        )
        part = tl.dot(total, factor, input_precision=PRECISION)
        to = to_up + r[:, None] * rank + k[None, :]
        tl.store(to, part, mask=has_row[:, None] & has_rank[None, :])


@triton.jit(do_not_specialize=['splits'])
def _sum_terms(
    flat,
    terms,
    table,
    splits,
    FIELDS: tl.constexpr,
    WIDTH: tl.constexpr,
    TERMS: tl.constexpr,
):
    """One program: some entries of a factor's gradient."""
    entry = table + tl.program_id(0).to(tl.int64) * FIELDS
    of_factor = terms + tl.load(entry) * splits
    out = flat + tl.load(entry + 1)
    numel, number = tl.load(entry + 2), tl.load(entry + 3) * splits
    at = tl.load(entry + 4) + tl.arange(0, WIDTH)
    inside = at < numel
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    for begin in range(0, number, TERMS):
        n = begin + tl.arange(0, TERMS)
        mask = (n < number)[:, None] & inside[None, :]
        total += tl.sum(tl.load(of_factor + n[:, None] * numel + at[None, :], mask, 0.0), axis=0)
    tl.store(out + at, total, mask=inside)


class _Sizes(NamedTuple):
    """Of a block: rows, columns, rank; tiles along both; columns of a tile."""

    height: int
    width: int
    rank: int
    down: int
    across: int
    wide: int


def write_factor_gradients(
    flat: Tensor,
    dy: Tensor,
    x: Tensor,
    begins: Sequence[int],
    factors: Sequence[Tensor],
    indices: Sequence[Tensor],
    scales: Sequence[float],
    programs: int = PROGRAMS,
) -> Launch | None:
    """Writes the result of `block_ops.factor_gradients`.

    Args:
        flat: The gradients of the factors, fp32, one after another, each padded.
        dy: fp32, bf16 or fp16 ``[T, O]``.
        x: Of the same type ``[T, I]``, or columns of it.
        begins: See `block_ops.factor_gradients`.
        factors: fp32, contiguous.
        indices: int64, contiguous.
        scales: See `block_ops.factor_gradients`.
        programs: Runs of tokens are made as long as lets there be no more of the first kernel's.

    Returns:
        Its launches, by the addresses of `flat`, `dy` and `x`.
    """
    rows, cols = _readable(dy), _readable(x)
    vector = _vector_of(cols, begins)
    # Twice as much goes into the registers where x does not: vectors go to shared memory.
    twice = dy.element_size() == 2 and vector > 1
    at_a_time = 2 * TOKENS if twice else TOKENS
    wide = 2 * TILE if twice and max(map(len, indices[1::2])) > TILE else TILE
    sizes = _sizes_of(factors, wide)
    key = look_of([*factors, *indices]), *scales, *begins, wide
    tiles = table_of(
        ('terms', *key), _tile_rows(sizes, factors, indices, begins, scales), flat.device
    )
    sums = table_of(('sums', *key), _sum_rows(sizes), flat.device)
    chunk, splits = _runs(programs // len(tiles), len(dy), at_a_time)
    length = splits * sum(_terms_of(size) for size in sizes)
    numbers = len(dy), chunk, splits, rows.stride(0), cols.stride(0)
    shape = tiles.shape[1], TILE, wide, at_a_time, RANKS
    of_tiles = bool(begins), vector, *shape, PRECISION[dy.element_size()]
    of_sums = sums.shape[1], WIDTH, TERMS
    with torch.cuda.device_of(flat):  # Triton launches on the current device
        terms = flat.new_empty(length)
        first = _term_tiles[(len(tiles), splits)](terms, rows, cols, tiles, *numbers, *of_tiles)
        second = _sum_terms[(len(sums),)](flat, terms, sums, splits, *of_sums)
    make, add = compiled_run(first, len(tiles), splits), compiled_run(second, len(sums))
    if make is None or add is None or rows is not dy or cols is not x:
        return None
    device = flat.device

    def launch(to: int, dy: int, x: int) -> None:
        terms = torch.empty(length, dtype=torch.float32, device=device)
        make(terms.data_ptr(), dy, x, tiles, *numbers, *of_tiles)
        add(to, terms.data_ptr(), sums, splits, *of_sums)

    return launch


def _readable(x: Tensor) -> Tensor:
    """As the first kernel reads it, by its address: it knows no sign that is yet to be turned."""
    x = x.resolve_neg()
    # Places within a product's tokens are numbers of 32 bits.
    return x if x.stride(1) == 1 and x.stride(0) < 2**24 else x.contiguous()


def _vector_of(x: Tensor, begins: Sequence[int]) -> int:
    """How many columns of x can be loaded at once, `VECTOR` or 1."""
    places = *begins, x.shape[1]
    aligned = x.stride(0) % (2 * VECTOR) == 0 and x.data_ptr() % 16 == 0
    return VECTOR if begins and aligned and all(at % VECTOR == 0 for at in places) else 1


def _sizes_of(factors: Sequence[Tensor], wide: int) -> list[_Sizes]:
    sizes = []
    for down, up in zip(factors[::2], factors[1::2], strict=True):
        height, (rank, width) = len(up), down.shape
        sizes.append(_Sizes(height, width, rank, -(-height // TILE), -(-width // wide), wide))
    return sizes


def _runs(most: int, tokens: int, at_a_time: int) -> tuple[int, int]:
    """Tokens of a run, and how many runs there are."""
    products = max(1, -(-tokens // at_a_time))
    of_a_run = -(-products // max(1, min(most, products)))
    return of_a_run * at_a_time, -(-products // of_a_run)


def _terms_of(size: _Sizes) -> int:
    """Numbers that a run of tokens gives for both factors of a block."""
    return size.rank * (size.down * size.width + size.across * size.height)


def _tile_rows(
    sizes: Sequence[_Sizes],
    factors: Sequence[Tensor],
    indices: Sequence[Tensor],
    begins: Sequence[int],
    scales: Sequence[float],
) -> Iterator[list[int]]:
    """The rows of the table of `_term_tiles`."""
    begin = 0
    for i, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        pair = slice(2 * i, 2 * i + 2)
        pointers = [t.data_ptr() for t in (*indices[pair], *factors[pair])]
        first_col = begins[i] if begins else 0
        to_up = begin + size.rank * size.down * size.width
        for r in range(size.down):
            for c in range(size.across):
                places = begin, to_up, size.down, r, size.across, c
                tile = r * TILE, c * size.wide, first_col, bits_of(scale)
                yield [*pointers, *size[:3], *tile, *places]
        begin += _terms_of(size)


def _sum_rows(sizes: Sequence[_Sizes]) -> Iterator[list[int]]:
    """The rows of the table of `_sum_terms`."""
    numels = [n for size in sizes for n in (size.rank * size.width, size.rank * size.height)]
    numbers = [n for size in sizes for n in (size.down, size.across)]
    begin = 0
    for to, numel, number in zip(begins_of(numels), numels, numbers, strict=False):
        for at in range(0, numel, WIDTH):
            yield [begin, to, numel, number, at]
        begin += numel * number
