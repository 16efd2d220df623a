"""Eq. 1: few selected entries are trained alone, many by a module or whole (SPT's rules).

===========  ==========================  ===============================================
what         size                        many from ``size / share`` selected entries on
===========  ==========================  ===============================================
a matrix     parameters of its module    share = `alpha`: the module, otherwise these entries
a vector     its length                  share = `beta`: all of it, otherwise these entries
===========  ==========================  ===============================================
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ['are_many', 'num_trained']

Count = TypeVar('Count', int, Tensor)


def are_many(num_sensitive: Count, size: int, share: float) -> Any:
    """Whether n selected entries are case 2 (Eq. 1). A bool, or a bool tensor."""
    # In float64, as Python does it: torch would take a Python float as float32.
    exact = num_sensitive if isinstance(num_sensitive, int) else num_sensitive.double()
    return exact * share >= size


def num_trained(num_sensitive: Tensor, size: int, share: float) -> Tensor:
    """Parameters that are trained for n selected entries (Eq. 1), int64, any shape."""
    many = are_many(num_sensitive, size, share) & (num_sensitive > 0)
    return torch.where(many, size, num_sensitive)
