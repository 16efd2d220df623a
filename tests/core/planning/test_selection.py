"""Selection: one global top-k by index, the same on every machine (design D4)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import PlanError, select
from cdra_mm.core.planning import selection
from tests.reference.selection import top_k

VALUES = st.one_of(
    st.sampled_from([0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 0.5]),
    st.floats(0, 2.0**127, width=32, allow_subnormal=True),
)
SHAPES = st.sampled_from([(1,), (5,), (1, 1), (2, 3), (3, 2), (4, 4), (1, 7)])


@st.composite
def score_dicts(draw):
    """Scores of one to four tensors with heavy ties and zeros."""
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=4))
    return {
        f'w{len(shapes) - i}': torch.tensor(
            draw(st.lists(VALUES, min_size=math.prod(s), max_size=math.prod(s)))
        ).reshape(s)
        for i, s in enumerate(shapes)
    }


def assert_masks(actual, expected):
    assert list(actual) == list(expected)
    for name, mask in actual.items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected[name]), name


@given(scores=score_dicts(), data=st.data())
def test_select_equals_sorting_everything(scores, data):
    total = sum(score.numel() for score in scores.values())
    count = data.draw(st.integers(1, total))
    before = {name: score.clone() for name, score in scores.items()}
    masks = select(scores, num_sensitive=count)
    assert sum(int(mask.sum()) for mask in masks.values()) == count
    assert_masks(masks, top_k(scores, count))
    assert all(torch.equal(scores[name], before[name]) for name in scores)


@given(scores=score_dicts(), data=st.data(), chunk=st.integers(1, 5))
def test_select_across_chunks_equals_sorting_everything(scores, data, chunk):
    """Ties that begin in one chunk and end in another, and chunks that end in a row."""
    count = data.draw(st.integers(1, sum(score.numel() for score in scores.values())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, 'CHUNK', chunk)
        assert_masks(select(scores, num_sensitive=count), top_k(scores, count))


@given(scores=score_dicts(), data=st.data(), chunk=st.integers(1, 5))
def test_select_of_bf16_scores_equals_sorting_everything(scores, data, chunk):
    """Also where one target has them and another fp32."""
    count = data.draw(st.integers(1, sum(score.numel() for score in scores.values())))
    halves = data.draw(st.sets(st.sampled_from(sorted(scores))))
    scores = {name: s.bfloat16() if name in halves else s for name, s in scores.items()}
    if any(bool(score.isinf().any()) for score in scores.values()):
        return  # rounded up from the largest numbers of fp32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, 'CHUNK', chunk)
        assert_masks(select(scores, num_sensitive=count), top_k(scores, count))


@given(scores=score_dicts(), gamma=st.floats(1e-6, 1.0))
def test_select_gamma_is_a_fraction_rounded_down_to_at_least_one(scores, gamma):
    total = sum(score.numel() for score in scores.values())
    count = max(1, math.floor(gamma * total))
    assert_masks(select(scores, gamma=gamma), top_k(scores, count))


def test_select_everything():
    scores = {'a': torch.zeros(3, 4), 'b': torch.ones(5)}
    assert all(bool(mask.all()) for mask in select(scores, gamma=1.0).values())


def test_select_gives_each_target_a_mask_of_its_own():
    """They are made in one buffer, one after the other."""
    masks = select({'a': torch.zeros(2, 2), 'b': torch.ones(3)}, num_sensitive=3)
    masks['b'].fill_(False)
    masks['a'].fill_(True)
    assert not masks['b'].any()


def test_select_of_a_target_without_entries():
    masks = select({'a': torch.ones(0, 3), 'b': torch.ones(2)}, num_sensitive=2)
    assert masks['a'].shape == (0, 3) and masks['a'].dtype == torch.bool
    assert masks['b'].all()


def test_masks_above_are_made_in_one_place():
    """A mask of its own for each target of a large model would be a second model in memory."""
    scores = {name: torch.rand(size) for name, size in {'a': 6, 'b': 6, 'c': 4}.items()}
    masks = selection.masks_above(scores, selection.Threshold(0, 0))
    assert len({mask.data_ptr() for _, mask in masks}) == 1


def test_masks_above_lie_where_their_scores_do():
    """The meta device stands for any other than the CPU's."""
    scores = {'a': torch.rand(6), 'b': torch.rand(4, device='meta')}
    masks = selection.masks_above(scores, selection.Threshold(0, 0))
    assert [mask.device.type for _, mask in masks] == ['cpu', 'meta']


def test_select_zeros_do_not_flood_in():
    """A threshold test ``>= 0`` would take all of them."""
    scores = {'a': torch.zeros(4, 4), 'b': torch.zeros(8)}
    scores['b'][6] = 1e-30
    masks = select(scores, num_sensitive=3)
    assert masks['b'].nonzero().flatten().tolist() == [6]
    assert masks['a'].flatten().nonzero().flatten().tolist() == [0, 1]


def test_select_breaks_ties_by_dict_order_not_by_name():
    scores = {'z': torch.ones(2, 2), 'a': torch.ones(2, 2)}
    masks = select(scores, num_sensitive=5)
    assert masks['z'].all()
    assert masks['a'].tolist() == [[True, False], [False, False]]


def test_select_of_non_contiguous_scores_counts_in_logical_order():
    base = torch.tensor([[3.0, 1.0, 1.0], [1.0, 1.0, 2.0]])
    scores = {'a': base.t(), 'b': base[:, ::2]}
    plain = {name: score.contiguous() for name, score in scores.items()}
    for count in range(1, 11):
        assert_masks(select(scores, num_sensitive=count), top_k(plain, count))


def test_select_of_many_entries_with_few_values():
    generator = torch.Generator().manual_seed(0)
    scores = {
        name: torch.randint(0, 40, shape, generator=generator).float().pow(2) / 7
        for name, shape in {'a': (300, 200), 'b': (300,), 'c': (100, 300)}.items()
    }
    for count in (1, 977, 45150, 90299):
        assert_masks(select(scores, num_sensitive=count), top_k(scores, count))


def test_select_of_values_that_differ_in_the_last_bit():
    one = torch.tensor(1.0)
    up = torch.nextafter(one, torch.tensor(2.0))
    tiny = torch.tensor(1e-45)
    scores = {'a': torch.stack([one, up, one, tiny]), 'b': torch.stack([up, 2 * tiny, tiny, one])}
    for count in range(1, 9):
        assert_masks(select(scores, num_sensitive=count), top_k(scores, count))


def test_select_of_values_at_the_edges_of_neighbouring_buckets():
    edges = torch.tensor([0x3F800000, 0x3F810000, 0x3F820000], dtype=torch.int32)
    scores = {'a': edges.view(torch.float32), 'b': (edges - 1).view(torch.float32)}
    for count in range(1, 7):
        assert_masks(select(scores, num_sensitive=count), top_k(scores, count))


def test_select_of_ties_at_the_upper_edge_of_a_bucket():
    """No lower half is larger, so nothing of the bucket comes before them."""
    score = torch.tensor([0x3F80FFFF] * 3, dtype=torch.int32).view(torch.float32)
    assert select({'a': score}, num_sensitive=2)['a'].tolist() == [True, True, False]


def test_select_of_the_largest_number_there_is():
    score = torch.tensor([1.0, torch.finfo(torch.float32).max, 2.0])
    assert select({'a': score}, num_sensitive=1)['a'].tolist() == [False, True, False]


def test_kth_largest_counts_beyond_what_fp32_holds(monkeypatch):
    """2^24 + 1 entries lie above: a count rounded to fp32 is one less."""

    def counts(numbers):
        histogram = torch.zeros(selection.BUCKETS, dtype=torch.int64)
        for bucket, number in numbers.items():
            histogram[bucket] = number
        return histogram

    coarse, fine = counts({7: 2**24 + 1, 3: 10}), counts({9: 1, 8: 9})
    monkeypatch.setattr(selection, 'coarse_histogram', lambda name, score: coarse)
    monkeypatch.setattr(selection, 'fine_histogram', lambda score, upper: (0, fine))
    threshold = selection.kth_largest({'a': torch.ones(1)}, 2**24 + 2)
    assert threshold == (3 << 16 | 9, 1)


SCORES = {'a': torch.ones(2, 5), 'b': torch.ones(10)}


@pytest.mark.parametrize(
    ('given_', 'message'),
    [
        ({}, '(?s)gamma.*num_sensitive|num_sensitive.*gamma'),
        ({'gamma': 0.5, 'num_sensitive': 3}, '(?s)gamma.*num_sensitive|num_sensitive.*gamma'),
        ({'gamma': 0.0}, r'gamma.*0'),
        ({'gamma': -0.1}, r'gamma.*-0\.1'),
        ({'gamma': 1.5}, r'gamma.*1\.5'),
        ({'gamma': float('nan')}, r'gamma.*nan'),
        ({'num_sensitive': 0}, r'num_sensitive.*0'),
        ({'num_sensitive': -4}, r'num_sensitive.*-4'),
        ({'num_sensitive': 21}, r'(?s)num_sensitive.*21.*20|20.*21'),
        ({'num_sensitive': 2.5}, r'num_sensitive.*2\.5'),
    ],
)
def test_select_refuses_a_count_that_makes_no_sense(given_, message):
    with pytest.raises(PlanError, match=message):
        select(SCORES, **given_)


@pytest.mark.parametrize(
    'value', [-1.0, -1e-45, float('nan'), -float('nan'), float('inf'), -float('inf')]
)
def test_select_refuses_a_score_that_is_no_square(value):
    scores = {'a': torch.ones(3), 'blocks.0.bad.weight': torch.ones(2, 2)}
    scores['blocks.0.bad.weight'][1, 0] = value
    for count in (1, 7):
        with pytest.raises(PlanError, match='blocks.0.bad.weight'):
            select(scores, num_sensitive=count)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_select_refuses_scores_of_another_type(dtype):
    """Their bit patterns would be read as those of fp32 numbers."""
    with pytest.raises(PlanError, match=rf'bad\.weight.*{dtype}'):
        select({'a': torch.ones(3), 'bad.weight': torch.ones(2, 2, dtype=dtype)}, num_sensitive=1)


def test_select_refuses_no_scores():
    with pytest.raises(PlanError):
        select({}, gamma=0.5)
