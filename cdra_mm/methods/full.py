"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from cdra_mm.core import Plan

__all__ = ['Full']


@dataclass(frozen=True)
class Full:
    """The row "Full" of the papers' tables."""

    name: ClassVar[str] = 'full'
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
        """None: the whole backbone is trained as it is. See `Method.plan`."""
        return None
