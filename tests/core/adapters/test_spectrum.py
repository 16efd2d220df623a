"""Singular values of an update, and its effective rank."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core.adapters.spectrum import effective_rank, update_spectrum


def test_update_spectrum_is_that_of_the_product():
    up, down = torch.randn(9, 3), torch.randn(3, 7)
    expected = torch.linalg.svdvals(2 * (up.double() @ down.double()))[:3]
    torch.testing.assert_close(update_spectrum(up, down, 2.0), expected)


@pytest.mark.parametrize(
    ('spectrum', 'rank'), [((5.0,) * 7, 7), ([1.0, 0.0], 1), (torch.zeros(2), 0)]
)
def test_effective_rank_counts_equal_directions(spectrum, rank):
    assert effective_rank(spectrum) == pytest.approx(rank)


def test_effective_rank_lies_between_one_and_all_and_knows_no_scale():
    assert 1 < effective_rank((9.0, 1.0, 0.0)) < 2
    assert effective_rank((1.0, 0.5)) == pytest.approx(effective_rank((10.0, 5.0)))


def test_a_spectrum_of_what_is_not_finite_is_not_a_number():
    up, down = torch.ones(4, 2), torch.ones(2, 3)
    for value in (torch.nan, torch.inf):
        spoiled = up.clone()
        spoiled[1, 1] = value
        assert update_spectrum(spoiled, down).isnan().tolist() == [True, True]
        assert update_spectrum(up, spoiled.t()[:, :3]).isnan().all()
