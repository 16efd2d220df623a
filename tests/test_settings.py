"""Settings say their types and ranges; one message for each way to be wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from cdra_mm.errors import ConfigError, PlanError
from cdra_mm.settings import check_settings, count, probability, setting


@dataclass(frozen=True)
class Example:
    rank: int = setting(8, minimum=1)
    scale: float = setting(1.0, above=0)
    share: float | None = setting(None, above=0, maximum=1, what='a fraction')
    number: int | None = count(None, 0)
    dropout: float = probability(0.0)
    loss: str = setting('task', choices=('task', 'other'), note='two')
    free: int = -3

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    'taken',
    [{}, dict(rank=1, scale=1e-9), dict(share=1, number=0), dict(dropout=0.9), dict(loss='other')],
)
def test_settings_within_their_ranges_are_taken(taken):
    example = Example(**taken)
    assert all(getattr(example, name) == value for name, value in taken.items())


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(rank=0), 'rank=0: expected an integer of at least 1'),
        (dict(rank=True), 'rank=True: expected an integer'),
        (dict(scale=0), 'scale=0: expected a number above 0'),
        (dict(scale=float('nan')), 'scale=nan: expected a finite number'),
        (dict(share=0.0), 'share=0.0: expected a fraction in (0, 1]'),
        (dict(share=1.1), 'share=1.1: expected a fraction in (0, 1]'),
        (dict(number=-1), 'number=-1: expected a count of at least 0'),
        (dict(dropout=1.0), 'dropout=1.0: expected a probability in [0, 1)'),
        (dict(dropout=None), 'dropout=None: expected a finite number'),
        (dict(loss='x'), "loss='x': expected one of 'task', 'other' (two)"),
        (dict(loss=None), "loss=None: expected one of 'task', 'other' (two)"),
        (dict(free='a'), "free='a': expected an integer"),
    ],
)
def test_settings_out_of_their_ranges_are_refused_by_name(wrong, message):
    with pytest.raises(ConfigError, match=f'^{re.escape(message)}'):
        Example(**wrong)


def test_settings_raise_the_error_of_their_room():
    example = Example()
    object.__setattr__(example, 'rank', 0)
    with pytest.raises(PlanError, match='rank=0'):
        check_settings(example, PlanError)
