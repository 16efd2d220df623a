"""What is said of a base file that fills a backbone only in part."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cdra_mm.core import find_targets
from cdra_mm.methods import Method
from cdra_mm.spelling import first_of

from .base_source import BaseSource

__all__ = ['describe_missing']

LISTED = 3


def describe_missing(
    backbone: nn.Module,
    source: BaseSource,
    missing: Sequence[str],
    method: Method,
    also_train: Sequence[str],
) -> str:
    """A warning: what starts as it was initialised, what of it stays so, and how to train it.

    Args:
        backbone: The plain backbone.
        source: Where its weights come from.
        missing: Names of the parameters that it does not bring.
        method: The method of the run.
        also_train: Names of what the run trains whole besides.
    """
    matrices = {name for name, parameter in backbone.named_parameters() if parameter.dim() > 1}
    held = len(matrices - set(missing))
    text = (
        f'{source.describe()} brings {held} of the {len(matrices)} weight matrices of '
        f'{type(backbone).__name__}; missing are {first_of(missing, LISTED)}: they start as they '
        'were initialised (at random), and are stored in checkpoints and adapter files'
    )
    trained = set(also_train) if method.needs_scores else set()
    trained |= {target.path for target in find_targets(backbone).values()}
    frozen = [name for name in missing if name not in trained]
    if not frozen:
        return text
    if not method.needs_scores:
        return f'{text}. Unless {method.name} trains them they stay so, frozen for good'
    whole = [*(name for name in also_train if name in dict(backbone.named_parameters())), *frozen]
    return (
        f'{text}. {len(frozen)} of them stay so, frozen for good, since they do not compete '
        f'({first_of(frozen, LISTED)}): to train them whole, set also_train={whole}, and '
        'also_train_in_budget=False to keep what they cost out of the budget'
    )
