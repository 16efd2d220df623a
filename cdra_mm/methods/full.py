"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cdra_mm.core import Plan

from .base import Method, Request

__all__ = ['Full']


@dataclass(frozen=True)
class Full(Method):
    """The row "Full" of the papers' tables."""

    name: ClassVar[str] = 'full'
    trains_inside: ClassVar[bool] = False

    def plan(self, request: Request) -> Plan | None:
        """None: the whole backbone is trained, but for what it freezes itself. See `Method.plan`.

        Raises:
            PlanError: If it freezes all of itself.
        """
        request.parameters()
        return None
