"""Linear probing: the backbone is frozen, only the head is trained.

The row "Linear" of VPT (Jia et al., ECCV 2022) and of the papers after it.

VPT's code (KMnP/vpt) trains its rows by SGD with momentum 0.9, the rate and weight decay of a grid
for each task, keeps the frozen encoder in evaluation mode (no dropout, no drop path) and starts the
head's bias at -4.6. Here it is trained as all rows are (docs/methods.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cdra_mm.core import Plan

from .base import Method, Request

__all__ = ['Linear']


@dataclass(frozen=True)
class Linear(Method):
    """The row "Linear" of the papers' tables."""

    name: ClassVar[str] = 'linear'
    trains_inside: ClassVar[bool] = False

    def plan(self, request: Request) -> Plan | None:
        """Nothing of the backbone is trained. See `Method.plan`."""
        return request.record(self)
