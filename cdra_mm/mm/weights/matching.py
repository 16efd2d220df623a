"""How the names and shapes of a state dict fit a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from cdra_mm.errors import CheckpointError

__all__ = ['Match', 'compare_weights', 'list_names', 'require_complete']


@dataclass(frozen=True)
class Match:
    """How the names and shapes of a state dict fit a model.

    Attributes:
        matched: Names that both have, in one shape (or in one that the model resizes).
        missing: Names that only the model has.
        unexpected: Names that only the state dict has.
        reshaped: Names that both have in different shapes.
        initial: Names that only the model has and that such files need not hold: they stay as
            they were initialised.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    initial: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f'{len(self.matched)} weights matched']
        for word in ('missing', 'unexpected', 'reshaped'):
            parts.append(f'{len(getattr(self, word))} {word}{list_names(getattr(self, word))}')
        if self.initial:
            parts.append(f'{len(self.initial)} left as initialised{list_names(self.initial)}')
        return ', '.join(parts)


def list_names(names: Collection[str], most: int = 3) -> str:
    """The first few names in brackets, with a space in front; nothing for none.

    Example:
        >>> list_names(['a', 'b', 'c', 'd'])
        ' (a, b, c ...)'
    """
    shown = ', '.join(list(names)[:most])
    return f' ({shown}{" ..." if len(names) > most else ""})' if names else ''


def compare_weights(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    resized: Collection[str] = (),
    optional: str = '',
) -> Match:
    """How a state dict fits a model.

    Args:
        model: The model.
        state_dict: Weights under the model's own names.
        resized: Names of positions that the model brings to its own size on loading.
        optional: Regular expression of names that the state dict need not hold.
    """
    own = model.state_dict()
    common = [name for name in own if name in state_dict]
    reshaped = tuple(
        name
        for name in common
        if own[name].shape != state_dict[name].shape
        and not (name in resized and own[name].shape[-1] == state_dict[name].shape[-1])
    )
    absent = [name for name in own if name not in state_dict]
    initial = tuple(name for name in absent if re.fullmatch(optional, name))
    return Match(
        matched=tuple(name for name in common if name not in set(reshaped)),
        missing=tuple(name for name in absent if name not in set(initial)),
        unexpected=tuple(name for name in state_dict if name not in own),
        reshaped=reshaped,
        initial=initial,
    )


def require_complete(match: Match, what: str) -> None:
    """Raise when only a part of a backbone would be loaded.

    mmengine only warns, and trains on from random weights.

    Args:
        match: The comparison.
        what: What is loaded into what, for the message.

    Raises:
        CheckpointError: If a weight is missing, unexpected, or has another shape.
    """
    for word in ('reshaped', 'missing', 'unexpected'):
        wrong = getattr(match, word)
        if wrong:
            raise CheckpointError(
                f'{what}: {len(wrong)} weights are {word} (first: {wrong[0]}), so the file belongs '
                'to another architecture (depth, width, patch size, layer scale ...) than the '
                f'backbone. {match}'
            )
