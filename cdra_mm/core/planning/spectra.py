"""What a few directions of a gradient hold: the largest singular values of it and its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['Spectrum', 'block_spectra', 'leading_directions', 'scaled']

OVERSAMPLING = 8  # directions beside the ranks asked for
ROUNDS = 6  # of subspace iteration, at most
SETTLED = 1e-4  # relative growth of what is found in a round after which no other follows
ROUNDS_WHOLE = 3  # for gains alone


class Spectrum(NamedTuple):
    """What the leading directions of a block B hold, right singular vectors v_k of length 1.

    Attributes:
        squares: The largest squared singular values, falling fp64 ``[r]``.
        sums: The sums of the absolute entries of ``B v_k``, fp64 ``[r]`` in the same order.
    """

    squares: Tensor
    sums: Tensor


def leading_directions(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest singular values of a matrix, and their right singular vectors.

    By subspace iteration (Halko et al., SIAM Review 2011, Algorithm 4.4) from a fixed start: the
    whole decomposition of a large matrix takes a hundred times as long. Small matrices are
    decomposed as they are.

    Args:
        matrix: ``[O, I]``, of any floating type.
        rank: r, at most the smaller side.

    Returns:
        Values, fp32 ``[r]``, falling; and vectors, fp32 ``[r, I]``, orthonormal.
    """
    parts, scale = scaled(matrix)
    values, vectors = _decomposed(parts, rank, ROUNDS, SETTLED)
    return values[:rank] * scale, vectors[:rank]


def block_spectra(
    ordered: Tensor, heights: Sequence[int], widths: Sequence[int], max_rank: int
) -> dict[tuple[int, int], Spectrum]:
    """The leading directions of the blocks of the first rows and columns.

    A block is projected onto what it makes of the leading directions of the whole matrix: products
    that all blocks share, and one of its own. The squares are never above the true ones, and on
    gradients of pretrained models at most 0.5 % below; the sums may lie on either side, and are
    less certain where singular values are almost equal.

    Args:
        ordered: A matrix by `scaled`, those of its rows and columns first that blocks have.
        heights: Numbers of rows, rising, each for a block with each of `widths`.
        widths: Likewise of columns.
        max_rank: Largest number of directions.

    Returns:
        Of r directions by ``(height, width)``, r at most `max_rank`.
    """
    rank = min(max_rank, *ordered.shape)
    values, directions = _decomposed(ordered, rank, ROUNDS_WHOLE)
    directions = directions[: rank + OVERSAMPLING]
    followed = ordered.new_zeros(ordered.shape[0], len(directions))
    before, spectra = 0, {}
    for width in widths:
        followed += ordered[:, before:width] @ directions[:, before:width].T
        before = width
        for height in heights:
            most = min(rank, height, width)
            if (height, width) == ordered.shape:
                squares, images = values[:most].double().square(), followed[:, :most]
                spectra[height, width] = Spectrum(squares, _sums(images))
                continue
            basis = torch.linalg.qr(followed[:height]).Q
            part = basis.T @ ordered[:height, :width]
            # Of sixteen by sixteen entries; the values of `part` itself take ten times as long.
            squares, left = torch.linalg.eigh((part @ part.T).double())
            squares = squares.flip(0)[:most].clamp_min(0)
            left = basis @ left.flip(1)[:, :most].to(basis.dtype)
            spectra[height, width] = Spectrum(squares, _sums(left) * squares.sqrt())
    return spectra


def scaled(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """In fp32, over its largest entry, and that: its squares could leave the range of fp32."""
    wide = gradient.float()
    low, high = wide.aminmax()
    scale = torch.maximum(-low, high).clamp_min(torch.finfo(torch.float32).tiny)
    return wide / scale, scale


def _sums(columns: Tensor) -> Tensor:
    return columns.abs().sum(0, dtype=torch.float64)


def _decomposed(
    matrix: Tensor, rank: int, rounds: int, settled: float = 0.0
) -> tuple[Tensor, Tensor]:
    """See `leading_directions`; gives some more than are asked for.

    Args:
        matrix: One by `scaled`, in any order.
        rank: r.
        rounds: Of subspace iteration, at most.
        settled: It ends where the energy of r directions grows by no more than this share.
    """
    width = rank + OVERSAMPLING
    if min(matrix.shape) <= 2 * width:
        _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
        return values, vectors
    generator = torch.Generator().manual_seed(0)
    begin = torch.randn(matrix.shape[1], width, generator=generator, device=generator.device)
    basis = torch.linalg.qr(matrix @ begin.to(matrix.device)).Q
    found = 0.0
    for _ in range(rounds):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis, triangle = torch.linalg.qr(matrix @ basis)
        if settled:
            before, found = found, float(torch.linalg.svdvals(triangle)[:rank].square().sum())
            if found <= before * (1 + settled):
                break
    _, values, vectors = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return values, vectors
