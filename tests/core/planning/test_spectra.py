"""The leading directions of a gradient against its whole decomposition."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core.planning.spectra import block_spectra, leading_directions, scaled


@pytest.mark.parametrize('shape', [(96, 200), (200, 96), (5, 40)])
def test_leading_directions_are_those_of_the_whole_decomposition(shape):
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    values = 1 / torch.arange(1, len(v) + 1) ** 0.7
    matrix = u * values @ v * 1e-12  # gradients are small, and their squares no fp32 numbers
    found, directions = leading_directions(matrix, 4)
    torch.testing.assert_close(found, values[:4] * 1e-12, rtol=1e-4, atol=0)
    overlap = (directions @ v[:4].T).abs()
    torch.testing.assert_close(overlap, torch.eye(4), rtol=0, atol=2e-2)


def test_a_flat_spectrum_costs_little_accuracy():
    matrix = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.svdvals(matrix)[:8].square().sum()
    assert leading_directions(matrix, 8)[0].square().sum() > 0.97 * exact


@pytest.mark.parametrize('shape', [(96, 200), (40, 33), (7, 5)])
def test_spectra_of_blocks_are_those_of_their_own_decompositions(shape):
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(side, 12, generator=generator) for side in shape)
    matrix, _ = scaled(left * torch.arange(1.0, 13) ** -1.5 @ right.T)
    heights, widths = ([max(1, side // 4), side] for side in shape)
    found = block_spectra(matrix, heights, widths, max_rank=6)
    assert set(found) == {(height, width) for height in heights for width in widths}
    for (height, width), (squares, sums) in found.items():
        u, s, _ = torch.linalg.svd(matrix[:height, :width].double(), full_matrices=False)
        exact, exact_sums = s[:6].square(), (u[:, :6] * s[:6]).abs().sum(0)
        assert squares.shape == sums.shape == exact.shape
        torch.testing.assert_close(squares, exact, rtol=5e-3, atol=1e-6 * float(exact[0]))
        torch.testing.assert_close(sums, exact_sums, rtol=3e-2, atol=1e-3 * float(exact_sums[0]))
