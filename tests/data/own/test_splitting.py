"""A share that is drawn keeps groups together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import ConfigError
from cdra_mm.data.own.splitting import detect_groups, groups_by, split_by_share

NAMED = {
    'tiles': ([f'tile_{i}_{r}_{c}' for i in range(6) for r in (0, 1) for c in (0, 1)], 'tile_0'),
    'slices': ([f'patient{i:02}_slice{s:02}' for i in range(5) for s in range(4)], 'patient00'),
    'folders': ([f'case{i}/{s}' for i in range(5) for s in range(4)], 'case0'),
    'scenes before tiles': (
        [f't{t}_p{p}_r{r}c0' for t in range(4) for p in range(3) for r in range(2)], 't0'),
    'films': ([f'{film}_f{i:05}' for film in ('S5V', '0T', 'R06', '1E') for i in range(3)], 'S5V'),
}  # fmt: skip
ALONE = {
    'one counter': [f'img_{i:04}' for i in range(20)],
    'numbers': [str(i) for i in range(20)],
    'kinds': [f'{kind}_{i}' for kind in ('town', 'park', 'shop', 'den') for i in range(5)],
    'one name each': ['a_1', 'b_1', 'c_1', 'd_1'],
}  # fmt: skip


@pytest.mark.parametrize('case', NAMED)
def test_counters_at_the_end_make_groups(case):
    names, first = NAMED[case]
    groups, said = detect_groups(names)
    assert groups[0] == first and 'groups of names such as' in said
    assert all(name.startswith(group) for name, group in zip(names, groups, strict=True))


@pytest.mark.parametrize('case', ALONE)
def test_names_that_only_count_are_no_groups(case):
    assert detect_groups(ALONE[case]) == (ALONE[case], '')


@given(
    groups=st.lists(st.integers(0, 8), min_size=2).filter(lambda found: len(set(found)) > 1),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_groups_are_never_torn_and_both_sides_have_some(groups, share, seed):
    drawn = split_by_share(groups, share, seed)
    assert 0 < sum(drawn) < len(groups)
    for group in set(groups):
        assert len({d for d, g in zip(drawn, groups, strict=True) if g == group}) == 1
    assert drawn == split_by_share(groups, share, seed)


def test_share_of_single_images_is_met_and_follows_the_seed():
    names = [str(i) for i in range(50)]
    draws = [split_by_share(names, 0.2, seed) for seed in (0, 1)]
    assert [sum(draw) for draw in draws] == [10, 10] and draws[0] != draws[1]


def test_expression_says_what_belongs_together():
    names = ['p1_a', 'p1_b', 'p2_a']
    assert groups_by(names, r'^(p\d+)_') == ['p1', 'p1', 'p2']
    assert groups_by(names, r'p\d') == ['p1', 'p1', 'p2']
    assert groups_by(names, '') == names


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: groups_by(['a'], '('), 'no regular expression'),
        (lambda: groups_by(['a'], 'b'), 'finds nothing in a'),
        (lambda: split_by_share([1, 1], 0.5, 0), 'all 2 images are one group'),
        (lambda: split_by_share([1, 2], 1.5, 0), '--val-share 1.5: expected a share'),
    ],
)
def test_what_cannot_be_split_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
