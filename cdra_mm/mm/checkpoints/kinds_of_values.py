"""Whether a value of a checkpoint is of the kind that the run has in its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from cdra_mm.errors import CheckpointError

__all__ = ['compare', 'damaged', 'is_count', 'is_number', 'require', 'same_kind']

LATEST = 1 << 53  # of an iteration, an epoch
FLAGS = (bool, type(None))


def compare(given: Mapping[str, Any], own: Mapping[str, Any], what: str) -> None:
    """Each entry of one's own has a counterpart of its kind; only switches may be lacking."""
    for key, value in own.items():
        if key in given:
            require(same_kind(given[key], value), f'{key} of {what}', given[key])
        elif not isinstance(value, FLAGS):
            raise damaged(f'{what} lacks {key}')


def same_kind(given: Any, own: Any) -> bool:
    """Whether a value is of the kind of one's own."""
    if isinstance(own, FLAGS):
        return isinstance(given, FLAGS) or (
            own is None and (is_number(given) or isinstance(given, str))
        )
    if isinstance(own, str):
        return isinstance(given, str)
    if isinstance(own, Tensor):
        return isinstance(given, Tensor) and given.shape == own.shape
    if is_number(own):
        whole = isinstance(own, int) and not isinstance(own, bool)
        finite = is_number(given) and (math.isfinite(given) or not math.isfinite(own))
        return finite and (not whole or float(given).is_integer())
    if isinstance(own, list | tuple):
        if not isinstance(given, list | tuple):
            return False
        if isinstance(own, tuple):
            return len(given) == len(own) and all(map(same_kind, given, own))
        # A list may have become longer or shorter; 1 and 0.5 in it are of two kinds.
        return not own or all(any(same_kind(value, one) for one in own) for value in given)
    return not callable(own)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number that can count iterations."""
    return type(value) is int and 0 <= value < LATEST


def is_number(value: Any) -> bool:
    """Whether a value is one number."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_complex()
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) or isinstance(value, float | np.floating)
    except (TypeError, ValueError, OverflowError):
        return False


def require(holds: bool, what: str, given: Any) -> None:
    """Refuses what does not hold.

    Raises:
        CheckpointError: Names it, and shows it where it is short.
    """
    if not holds:
        shown = ' '.join(repr(given).split())[:60] if _is_short(given) else type(given).__name__
        raise damaged(f'{what} is {shown}')


def _is_short(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def damaged(what: str) -> CheckpointError:
    """What is said of a checkpoint of which a value is wrong."""
    return CheckpointError(
        f'the checkpoint is damaged, or was made with another config: {what}; use another '
        'checkpoint, or the config it was trained with'
    )
