"""Eq. 4: the block of rows and columns that holds every selected entry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import compact
from cdra_mm.core.planning import compaction
from tests.reference import compaction as reference


@st.composite
def masks(draw, max_side=9):
    """Bool matrices with at least one selected entry, some very sparse."""
    o, i = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    selected = draw(st.sets(st.integers(0, o * i - 1), min_size=1, max_size=o * i))
    mask = torch.zeros(o * i, dtype=torch.bool)
    mask[list(selected)] = True
    return mask.reshape(o, i)


@given(mask=masks())
def test_compact_equals_counting(mask):
    rows, cols = compact(mask)
    assert rows.dtype == cols.dtype == torch.int64
    assert (rows.tolist(), cols.tolist()) == reference.compact(mask)


@given(mask=masks(), chunk=st.integers(1, 30))
def test_compact_in_chunks_of_rows_equals_counting(mask, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, 'CHUNK', chunk)
        rows, cols = compact(mask)
    assert (rows.tolist(), cols.tolist()) == reference.compact(mask)


@given(mask=masks())
def test_compact_covers_every_selected_entry_and_nothing_empty(mask):
    rows, cols = compact(mask)
    block = mask[rows][:, cols]
    assert block.sum() == mask.sum()
    assert block.any(0).all() and block.any(1).all()
    assert len(set(rows.tolist())) == len(rows) and len(set(cols.tolist())) == len(cols)


@given(mask=masks())
def test_compact_puts_the_fullest_first_and_ties_by_index(mask):
    for indices, counts in zip(compact(mask), (mask.sum(1), mask.sum(0)), strict=True):
        keys = [(-int(counts[i]), i) for i in indices.tolist()]
        assert keys == sorted(keys)


@given(mask=masks())
def test_compact_of_the_transpose_swaps_rows_and_columns(mask):
    rows, cols = compact(mask)
    transposed = compact(mask.t())
    assert torch.equal(transposed[0], cols) and torch.equal(transposed[1], rows)


def test_compact_keeps_ties_in_order_in_a_large_mask():
    """Where an unstable sort starts to show."""
    mask = torch.zeros(5000, 3, dtype=torch.bool)
    mask[::2, 0] = True
    mask[::3, 1] = True
    rows, cols = compact(mask)
    assert (rows.tolist(), cols.tolist()) == reference.compact(mask)


def test_compact_counts_where_the_mask_lies():
    """The meta device stands for any other than the CPU's."""
    for counts in compaction._counts(torch.ones(3, 4, dtype=torch.bool, device='meta')):
        assert counts.is_meta and counts.dtype == torch.int32  # exact, whatever the size


@pytest.mark.parametrize('dtype', [torch.float32, torch.int64, torch.uint8])
def test_compact_refuses_a_mask_that_hides_its_polarity(dtype):
    with pytest.raises(TypeError, match=str(dtype)):
        compact(torch.ones(2, 2, dtype=dtype))


@pytest.mark.parametrize('shape', [(4,), (2, 2, 2), ()])
def test_compact_refuses_what_is_no_matrix(shape):
    with pytest.raises(ValueError, match='(?i)matrix|shape|2-D'):
        compact(torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize('shape', [(3, 4), (0, 4), (3, 0)])
def test_compact_refuses_a_mask_that_selects_nothing(shape):
    with pytest.raises(ValueError, match='(?i)nothing|empty|no selected'):
        compact(torch.zeros(shape, dtype=torch.bool))
