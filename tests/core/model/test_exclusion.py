"""What a user leaves out of the competition."""

from __future__ import annotations

import pytest

from cdra_mm.core import ConfigError, find_targets
from cdra_mm.core.model.exclusion import exclude_targets
from tests.models import TinyViT

TARGETS = find_targets(TinyViT())


def gone(*exclude):
    left = exclude_targets(TARGETS, exclude)
    assert list(left) == [name for name in TARGETS if name in left]  # in their order
    return TARGETS.keys() - left.keys()


def test_exclude_nothing():
    assert gone() == set()


def test_exclude_roles_parameters_parts_and_modules():
    assert gone('norm') == {name for name, t in TARGETS.items() if t.role == 'norm'}
    assert gone('blocks.0.attn.proj.weight') == {'blocks.0.attn.proj.weight'}
    qkv = 'blocks.1.attn.qkv.weight'
    assert gone(qkv) == {f'{qkv}:{part}' for part in 'qkv'}
    assert gone(f'{qkv}:k') == {f'{qkv}:k'}
    assert gone('blocks.1.mlp') == {n for n in TARGETS if n.startswith('blocks.1.mlp.')}
    assert gone('norm', 'blocks.1') == gone('norm') | gone('blocks.1')


@pytest.mark.parametrize(
    ('entry', 'near'),
    [
        ('norms', 'norm'),
        ('blocks.0.atn.proj.weight', 'blocks.0.attn.proj.weight'),
        ('blocks.0.mpl', 'blocks.0.mlp'),
    ],
)
def test_exclude_refuses_what_does_not_compete(entry, near):
    with pytest.raises(ConfigError, match=f"exclude: '{entry}' .*did you mean '{near}'.*a role"):
        gone('bias', entry)


def test_exclude_refuses_to_leave_nothing():
    with pytest.raises(ConfigError, match='leaves nothing to compete'):
        gone('blocks')
