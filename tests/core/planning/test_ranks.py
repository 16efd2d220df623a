"""Eq. 7: the largest rank whose parameters the selected entries pay for."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import CDRAError, dynamic_rank
from cdra_mm.core.planning.ranks import LARGEST, exact, unbounded_rank
from tests.reference import ranks as reference

RULES = st.sampled_from(['eq7', 'count'])


@st.composite
def blocks(draw, max_side=60):
    """Selected entries, block sides and weight shape that can occur together."""
    o, i = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    r, c = draw(st.integers(1, o)), draw(st.integers(1, i))
    return draw(st.integers(max(r, c), r * c)), r, c, (o, i)


# Doubles that are not the decimal numbers they are written as, and whole numbers.
ALPHAS = st.sampled_from([1, 1.0, 0.1, 0.3, 1.1, 2, 2.5, 10, 20, 1e-7, 1e300]) | st.floats(0.01, 50)


@given(block=blocks(), rule=RULES, min_rank=st.integers(0, 3), alpha=ALPHAS)
def test_dynamic_rank_equals_trying_every_rank(block, rule, min_rank, alpha):
    options = dict(rule=rule, min_rank=min_rank, alpha=alpha)
    actual = dynamic_rank(*block, **options)
    assert isinstance(actual, int)
    assert actual == reference.dynamic_rank(*block, **options)


@given(blocks=st.lists(blocks(), min_size=1, max_size=4), rule=RULES, alpha=ALPHAS)
def test_ranks_of_tensors_are_those_of_numbers(blocks, rule, alpha):
    """As the search for a budget computes them, also where products are beyond int64."""
    n, rows, cols = (torch.tensor([block[i] for block in blocks]) for i in range(3))
    area = max(math.prod(block[3]) for block in blocks)
    ranks = unbounded_rank(n, rows, cols, area, rule, exact(alpha))
    assert ranks.dtype == torch.int64
    for rank, (number, high, wide, _) in zip(ranks.tolist(), blocks, strict=True):
        assert rank == min(unbounded_rank(number, high, wide, area, rule, exact(alpha)), LARGEST)


@pytest.mark.parametrize('rule', ['eq7', 'count'])
@pytest.mark.parametrize('alpha', [0.1, 0.3, 1.1, 2.3, 20, 0.123456789012345])
def test_ranks_of_large_tensors_are_exact_at_the_edge(rule, alpha):
    """Sides of a model of billions of parameters; one entry decides, where doubles say nothing."""
    shape, sides = (12288, 49152), (9001, 40009)
    factor = Fraction(Decimal(repr(alpha)))
    price = sum(sides) * (Fraction(math.prod(shape), math.prod(sides)) if rule == 'eq7' else 1)
    for rank in (1, 7, 64):
        enough = math.ceil(rank * price / factor)
        n = torch.tensor([enough - 1, enough])
        given = [torch.tensor([side, side]) for side in sides]
        ranks = unbounded_rank(n, *given, math.prod(shape), rule, factor).tolist()
        assert ranks == [rank - 1, rank]


@given(block=blocks(), rule=RULES, alpha=st.integers(2, 9))
def test_a_whole_factor_is_as_many_times_the_entries(block, rule, alpha):
    n, r, c, shape = block
    once = dynamic_rank(n * alpha, r, c, shape, rule=rule)
    assert dynamic_rank(n, r, c, shape, rule=rule, alpha=alpha) == once


@given(block=blocks(), rule=st.integers(1, 70))
def test_dynamic_rank_fixed_is_capped_by_the_smaller_side(block, rule):
    assert dynamic_rank(*block, rule=rule) == min(rule, block[1], block[2])


@given(block=blocks())
def test_dynamic_rank_never_trains_more_than_was_selected(block):
    n, r, c, shape = block
    eq7, count = (dynamic_rank(*block, rule=rule) for rule in ('eq7', 'count'))
    assert eq7 * (r + c) * shape[0] * shape[1] <= n * r * c
    assert eq7 <= count
    assert count * (r + c) <= n


@given(block=blocks())
def test_dynamic_rank_rules_agree_where_the_block_is_the_whole_weight(block):
    n, r, c, _ = block
    assert dynamic_rank(n, r, c, (r, c)) == dynamic_rank(n, r, c, (r, c), rule='count')


@given(
    rows=st.integers(1, 2**20),
    cols=st.integers(1, 2**20),
    times=st.tuples(st.integers(1, 2**10), st.integers(1, 2**10)),
    rank=st.integers(1, 1000),
)
def test_dynamic_rank_is_exact_where_doubles_are_not(rows, cols, times, rank):
    """At the very edge of the constraint, with products beyond 2^53: one entry decides."""
    shape = (rows * times[0], cols * times[1])
    enough = rank * (rows + cols) * times[0] * times[1]
    largest = min(rows, cols)
    assert dynamic_rank(enough, rows, cols, shape) == min(rank, largest)
    assert dynamic_rank(enough - 1, rows, cols, shape) == min(rank - 1, largest)


def test_dynamic_rank_worked_examples():
    """Half of a 768 x 768 query in a 400 x 500 block, and a block as SPT's masks have them."""
    assert dynamic_rank(100_000, 400, 500, (768, 768)) == 37
    assert dynamic_rank(100_000, 400, 500, (768, 768), rule='count') == 111
    assert dynamic_rank(2774, 199, 41, (768, 768)) == 0
    assert dynamic_rank(2774, 199, 41, (768, 768), rule='count') == 11
    assert dynamic_rank(2774, 199, 41, (768, 768), alpha=20) == 3
    # 0.3 * 70 is the 21 that a rank costs; the double nearest to 0.3 is less.
    assert dynamic_rank(70, 10, 11, (20, 20), rule='count', alpha=0.3) == 1
    assert dynamic_rank(2774, 199, 41, (768, 768), min_rank=1) == 1
    assert dynamic_rank(2774, 199, 41, (768, 768), rule=8) == 8


@pytest.mark.parametrize('rule', ['eq8', '', 0, -2, 1.5, True, None])
def test_dynamic_rank_refuses_an_unknown_rule(rule):
    with pytest.raises(CDRAError, match=r'(?s)rule.*eq7.*count|eq7.*count.*rule'):
        dynamic_rank(10, 2, 3, (4, 5), rule=rule)


@pytest.mark.parametrize(
    ('alpha', 'message'),
    [
        (0, 'rank_alpha=0: expected a number above 0'),
        (-0.5, 'rank_alpha=-0.5: expected a number above 0'),
        (math.nan, 'rank_alpha=nan: expected a finite number'),
        (math.inf, 'rank_alpha=inf: expected a finite number'),
        ('20', "rank_alpha='20': expected a finite number"),
        (True, 'rank_alpha=True: expected a finite number'),
        (None, 'rank_alpha=None: expected a finite number'),
    ],
)
def test_dynamic_rank_refuses_a_factor_that_is_none(alpha, message):
    with pytest.raises(CDRAError, match=f'^{re.escape(message)}$'):
        dynamic_rank(10, 2, 3, (4, 5), alpha=alpha)


def test_dynamic_rank_refuses_a_factor_beside_a_fixed_rank():
    message = 'rank_alpha=2 with rank_rule=8: a fixed rank does not depend on the selected entries'
    with pytest.raises(CDRAError, match=message):
        dynamic_rank(10, 2, 3, (4, 5), rule=8, alpha=2)
    assert dynamic_rank(10, 2, 3, (4, 5), rule=1, alpha=1.0) == 1


@pytest.mark.parametrize('min_rank', [-1, 0.5, True])
def test_dynamic_rank_refuses_a_min_rank_that_is_no_count(min_rank):
    with pytest.raises(CDRAError, match=f'min_rank.*{min_rank}'):
        dynamic_rank(10, 2, 3, (4, 5), min_rank=min_rank)


@pytest.mark.parametrize('block', [(5, 0, 3), (5, 2, 0), (5, 5, 3), (5, 2, 6)])
def test_dynamic_rank_refuses_a_block_that_does_not_fit(block):
    with pytest.raises(CDRAError, match='4.*5'):
        dynamic_rank(*block, (4, 5))
