"""Linear probing: the backbone is frozen, only the head is trained."""

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
