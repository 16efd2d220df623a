"""Eq. 7: the largest rank whose parameters the selected entries pay for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import CDRAError, dynamic_rank
from tests.reference import ranks as reference

RULES = st.sampled_from(['eq7', 'count'])


@st.composite
def blocks(draw, max_side=60):
    """Selected entries, block sides and weight shape that can occur together."""
    o, i = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    r, c = draw(st.integers(1, o)), draw(st.integers(1, i))
    return draw(st.integers(max(r, c), r * c)), r, c, (o, i)


@given(block=blocks(), rule=RULES, min_rank=st.integers(0, 3))
def test_dynamic_rank_equals_trying_every_rank(block, rule, min_rank):
    actual = dynamic_rank(*block, rule=rule, min_rank=min_rank)
    assert isinstance(actual, int)
    assert actual == reference.dynamic_rank(*block, rule=rule, min_rank=min_rank)


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
    assert dynamic_rank(2774, 199, 41, (768, 768), min_rank=1) == 1
    assert dynamic_rank(2774, 199, 41, (768, 768), rule=8) == 8


@pytest.mark.parametrize('rule', ['eq8', '', 0, -2, 1.5, True, None])
def test_dynamic_rank_refuses_an_unknown_rule(rule):
    with pytest.raises(CDRAError, match=r'(?s)rule.*eq7.*count|eq7.*count.*rule'):
        dynamic_rank(10, 2, 3, (4, 5), rule=rule)


@pytest.mark.parametrize('min_rank', [-1, 0.5, True])
def test_dynamic_rank_refuses_a_min_rank_that_is_no_count(min_rank):
    with pytest.raises(CDRAError, match=f'min_rank.*{min_rank}'):
        dynamic_rank(10, 2, 3, (4, 5), min_rank=min_rank)


@pytest.mark.parametrize('block', [(5, 0, 3), (5, 2, 0), (5, 5, 3), (5, 2, 6)])
def test_dynamic_rank_refuses_a_block_that_does_not_fit(block):
    with pytest.raises(CDRAError, match='4.*5'):
        dynamic_rank(*block, (4, 5))
