"""What of a run's backbone competes, and what the log says about it."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.logging import MMLogger
from torch import nn

from cdra_mm.core import Target, find_targets
from cdra_mm.core.exclusion import exclude_targets
from cdra_mm.core.targets import tied_parameters

__all__ = ['competing_targets']

FEW = 0.5  # of the backbone's parameters: below it the log says so


def competing_targets(
    backbone: nn.Module, exclude: Sequence[str], logger: MMLogger
) -> dict[str, Target]:
    """The targets of a backbone without what the user leaves out.

    Args:
        backbone: The backbone.
        exclude: See `exclude_targets`.
        logger: Is told where less than half of the backbone competes, and which parameters
            of it do not because several modules share them.

    Raises:
        ConfigError: See `exclude_targets`.
        PlanError: See `find_targets`.
    """
    targets = find_targets(backbone)
    tied = tied_parameters(backbone)
    if tied:
        logger.warning(
            f'{len(tied)} parameters are shared by several modules and do not compete, as an '
            f'adapter would change one of their uses only: {" = ".join(tied[0])}'
            + (' ...' if len(tied) > 1 else '')
        )
    targets = exclude_targets(targets, exclude)
    total = sum(parameter.numel() for parameter in backbone.parameters())
    share = sum(target.numel for target in targets.values()) / total
    if share < FEW:
        logger.info(
            f'{share:.0%} of the parameters of {type(backbone).__name__} compete: the linear '
            'layers, norms and scales of its transformer blocks'
            + (f' without {", ".join(exclude)}' if exclude else '')
            + '; the others stay frozen'
        )
    return targets
