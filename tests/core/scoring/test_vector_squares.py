"""Squares of vectors that are added together equal those of each by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdra_mm.core.scoring.score_sums import ScoreSums
from cdra_mm.core.scoring.vector_squares import VectorSquares

WHOLE = slice(None)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def sums_of(dtype=torch.float32, **lengths):
    vectors = {name: nn.Parameter(torch.zeros(length)) for name, length in lengths.items()}
    return ScoreSums(vectors, dtype)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('per_sample', [True, False])
def test_each_vector_gets_its_own_squares(per_sample, dtype):
    """A whole vector, one in two parts, two that share a layer's output, one of no vector."""
    sums = sums_of(dtype, whole=5, parts=6, left=3, right=2, untouched=4)
    sums['whole'][:] = 1  # of the batch before
    grads = {'a': drawn(4, 5), 'b': drawn(4, 2), 'c': drawn(4, 4), 'd': drawn(4, 7)}
    vectors = VectorSquares(per_sample, sums, 4)
    vectors.note(grads['d'][:, :3])
    vectors.note(grads['b'], [('parts', slice(0, 2), WHOLE)])
    vectors.note(grads['a'], [('whole', WHOLE, WHOLE)])
    vectors.note(grads['d'], [('left', WHOLE, slice(0, 3)), ('right', WHOLE, slice(5, 7))])
    vectors.note(grads['c'], [('parts', slice(2, 6), WHOLE)])
    finite = vectors.add()

    def squares(grad):
        grad = grad.double()
        return (grad if per_sample else grad.mean(0, keepdim=True)).square().sum(0)

    expected = {
        'whole': 1 + squares(grads['a']),
        'parts': torch.cat([squares(grads['b']), squares(grads['c'])]),
        'left': squares(grads['d'][:, :3]),
        'right': squares(grads['d'][:, 5:]),
        'untouched': torch.zeros(4).double(),
    }
    rtol = 1e-5 if dtype == torch.float32 else 2**-7  # rounded once
    for name, right in expected.items():
        torch.testing.assert_close(sums[name].double(), right, rtol=rtol, atol=0, msg=name)
    assert finite.tolist() == [True] * 4


def test_what_is_of_the_whole_batch_counts_once():
    """A weight that is used on something without a sample's axis, for ``per_batch``."""
    sums = sums_of(a=3, b=3)
    vectors = VectorSquares(False, sums, 4)
    one, several = drawn(1, 3), drawn(4, 3)
    vectors.note(one, [('a', WHOLE, WHOLE)])
    vectors.note(several, [('b', WHOLE, WHOLE)])
    vectors.add()
    torch.testing.assert_close(sums['a'], (one[0] / 4).square())
    torch.testing.assert_close(sums['b'], several.mean(0).square())


@pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf])
def test_a_sample_that_is_not_finite_is_told_even_where_nothing_is_scored(bad):
    vectors = VectorSquares(True, sums_of(a=3), 4)
    grads = drawn(4, 3)
    vectors.note(grads, [('a', WHOLE, WHOLE)])
    other = grads.clone()
    other[2, 1] = bad
    vectors.note(other)
    assert vectors.add().tolist() == [True, True, False, True]


def test_nothing_kept_is_nothing_added():
    sums = sums_of(a=3)
    assert VectorSquares(True, sums, 4).add() is None
    assert not sums['a'].any()
