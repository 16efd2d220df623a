"""What of a run's backbone competes, and what the log says about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.logging import MMLogger
from torch import nn

from cdra_mm.core import Target
from cdra_mm.core.model.exclusion import exclude_targets

__all__ = ['competing_targets']

FEW = 0.5  # of the backbone's parameters: below it the log says so


def competing_targets(
    backbone: nn.Module, targets: Mapping[str, Target], exclude: Sequence[str]
) -> dict[str, Target]:
    """The targets of a backbone without what the user leaves out.

    The log says where less than half of the backbone competes.

    Raises:
        ConfigError: See `exclude_targets`.
    """
    logger = MMLogger.get_current_instance()
    left = exclude_targets(targets, exclude)
    total = sum(parameter.numel() for parameter in backbone.parameters())
    share = sum(target.numel for target in left.values()) / total
    if share < FEW:
        logger.info(
            f'{share:.0%} of the parameters of {type(backbone).__name__} compete: the linear '
            'layers, norms and scales of its transformer blocks'
            + (f' without {", ".join(exclude)}' if exclude else '')
            + '; the others stay frozen'
        )
    return left
