"""The contract of a fine-tuning method.

A method looks at a backbone, and at scores when it asks for them, and says what
is trained. That is all: the framework scores, applies the plan, rebuilds the
optimizer and writes checkpoints, the same for every method. A new method is one
file with one dataclass, plus one line in `cdra_mm.methods.METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from cdra_mm.core import Plan

__all__ = ['Method']


class Method(Protocol):
    """A dataclass of plain settings with one decision to make.

    Attributes:
        name: Its name in configs and tables.
        needs_scores: Whether `plan` wants sensitivity scores (Eq. 3).

    A method that is scored in its own way says so by two more attributes: ``statistic``
    (``'per_batch'``; default ``'per_sample'``, and the hook's setting goes first) and
    ``score_loss`` (``'supervised_contrastive'``; default ``'task'``, the training loss).
    """

    name: ClassVar[str]
    needs_scores: ClassVar[bool]

    def plan(
        self,
        backbone: nn.Module,
        scores: Mapping[str, Tensor] | None,
        *,
        also_train: Mapping[str, int],
        settings: Mapping[str, Any],
        fingerprint: str,
    ) -> Plan | None:
        """Decides what is trained.

        Args:
            backbone: The backbone with its pretrained weights.
            scores: Scores by target name; None unless `needs_scores`.
            also_train: Parameters that may be trained whole, name -> entries.
            settings: Further plain values to keep in the plan.
            fingerprint: Fingerprint of the base weights.

        Returns:
            The plan, or None to train the whole backbone.
        """
        ...
