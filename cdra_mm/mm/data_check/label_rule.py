"""Which label ids a head's loss can take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from ..registry_classes import class_of, default_of

__all__ = ['LabelRule', 'label_rule', 'last_head']


@dataclass(frozen=True)
class LabelRule:
    """What the labels of a head have to be.

    Attributes:
        num_classes: Classes of the head.
        limit: Ids run from 0 to ``limit - 1``; None where the loss itself decides.
        ignored: Id that the head ignores, None where it has none.
    """

    num_classes: int
    limit: int | None
    ignored: int | None

    def wrong(self, ids: Sequence[int]) -> list[int]:
        """Those ids that are neither a class nor ignored, in order."""
        if self.limit is None:
            return []
        return [i for i in ids if not 0 <= i < self.limit and i != self.ignored]

    def expected(self) -> str:
        """The rule in words."""
        words = f'the head has num_classes={self.num_classes} (ids 0 to {(self.limit or 1) - 1})'
        return words + (f' and ignores {self.ignored}' if self.ignored is not None else '')


def last_head(model: Any) -> Any:
    """The head that gives the result, of a model or of its config; None where there is none."""
    # A cascade holds its heads in a list; an empty head is false, so its absence is asked for.
    heads = [head for key in ('decode_head', 'head') if (head := _get(model, key)) is not None]
    head = heads[0] if heads else None
    if isinstance(head, list | tuple | nn.ModuleList):
        return head[-1] if len(head) else None
    return head


def label_rule(head: Any) -> LabelRule | None:
    """What the labels of a head have to be.

    An id beyond the outputs of a head ends in an error of its loss (on a GPU in a failed assertion
    that names nothing). A head with one output tells 0 from 1 where it has a sigmoid; where it has
    none it may be no classifier at all, and the loss decides.

    Args:
        head: A head, or its config (inside the scope that its type is registered in).

    Returns:
        The rule; None for a head without classes.
    """
    num_classes = _get(head, 'num_classes')
    if not isinstance(num_classes, int) or num_classes < 1:
        return None
    limit: int | None = num_classes
    if (_get(head, 'out_channels') or num_classes) == 1:
        losses = [
            loss for key in ('loss_decode', 'loss_module', 'loss') for loss in _all(head, key)
        ]
        limit = 2 if any(_get(loss, 'use_sigmoid') for loss in losses) else None
    ignored = _get(head, 'ignore_index')
    return LabelRule(num_classes, limit, ignored if isinstance(ignored, int) else None)


def _all(head: Any, key: str) -> Iterator[Any]:
    loss = _get(head, key)
    if isinstance(loss, list | tuple | nn.ModuleList):
        yield from loss
    elif isinstance(loss, Mapping | nn.Module):
        yield loss


def _get(thing: Any, key: str) -> Any:
    """A setting of an object, or of a config: there with the default of the class it names."""
    if not isinstance(thing, Mapping):
        return getattr(thing, key, None)
    if key in thing or 'type' not in thing:
        return thing.get(key)
    return default_of(class_of(MODELS, thing['type']), key)
