"""Linear probing: the backbone is frozen, only the head is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from cdra_mm.core import Plan

__all__ = ['Linear']


@dataclass(frozen=True)
class Linear:
    """The row "Linear" of the papers' tables."""

    name: ClassVar[str] = 'linear'
    needs_scores: ClassVar[bool] = False

    def plan(
        self,
        backbone: nn.Module,
        scores: Mapping[str, Tensor] | None,
        *,
        also_train: Mapping[str, int],
        settings: Mapping[str, Any],
        fingerprint: str,
    ) -> Plan | None:
        """Nothing of the backbone is trained. See `Method.plan`."""
        return Plan(method=self.name, settings=dict(settings), fingerprint=fingerprint)
