"""What a checkpoint may have in the place of a run's value."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cdra_mm.mm.checkpoints.kinds_of_values import is_number, same_kind


@pytest.mark.parametrize(
    ('given', 'own', 'fits'),
    [
        ([1, 0.5], [1, 0.5], True),  # weights of restarts
        ([0.5, 1, 1], [1, 0.5], True),
        ([1, 0.5], [1, 2], False),
        (['a'], [1.0], False),
        ([], [1.0], True),
        ((0.8, 1), (0.9, 0.999), True),
        ((0.8,), (0.9, 0.999), False),
        ((0.8, 'a'), (0.9, 0.999), False),
        (np.float32(0.25), -math.inf, True),  # the best of a metric so far
        (np.float32(math.nan), -math.inf, True),
        (math.nan, 1.0, False),
        (2.0, 1, True),
        (2.5, 1, False),
    ],
)
def test_kinds(given, own, fits):
    assert same_kind(given, own) is fits


def test_what_is_one_number():
    numbers = [1, 0.5, math.inf, np.float32(math.nan), np.float64(1), torch.tensor(1.0)]
    assert all(map(is_number, numbers))
    others = [True, 'a', None, [1.0], np.ones(2), torch.ones(2), 1j]
    assert not any(map(is_number, others))
