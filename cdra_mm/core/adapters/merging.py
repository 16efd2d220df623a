"""Adapters go into the plain weights, out of them again, or off the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn

from cdra_mm.errors import PlanError

from .adapted import adapters, forget_plan
from .adapter import Adapter
from .adapter_set import AdapterSet
from .copied_weights import detach_copies
from .sharding import refuse_sharded
from .small_base import refuse_int8

__all__ = [
    'NOT_INTO_INT8',
    'merge_adapters',
    'remove_adapters',
    'restore_classes',
    'unmerge_adapters',
]

# Consequence and advice, see `refuse_int8`.
NOT_INTO_INT8 = (
    'a merge would be rounded to it',
    'put the base in full precision back first, cdra_mm.core.restore_base',
)


def merge_adapters(model: nn.Module) -> None:
    """Puts every adapter into its plain weights, in place; merged ones are skipped.

    A merged model computes exactly what a plain one computes with the merged
    weights, and its state dict holds no adapter.

    Raises:
        PlanError: If one is of a kind that does not merge, or the weights are spread over
            processes, or in int8; the model is then unchanged.
    """
    refuse_sharded(model, 'nothing can be merged into a part of a weight')
    refuse_int8(model, *NOT_INTO_INT8)
    fixed = [name for name, adapter in adapters(model).items() if not adapter.can_merge]
    if fixed:
        raise PlanError(
            f'{len(fixed)} adapters do not merge into plain weights (the first is {fixed[0]}): '
            'the model needs them, and this package, for inference'
        )
    for module, adapter in _carried(model):
        if not adapter.merged:
            adapter.merge_(module)


def unmerge_adapters(model: nn.Module) -> None:
    """Takes merged adapters out of the base weights again.

    The base comes back up to one rounding of its type per merge: within
    ``2 * eps * max(|W|, |W'|)`` of each entry.
    """
    for module, adapter in _carried(model):
        if adapter.merged:
            adapter.merge_(module, sign=-1)


def remove_adapters(model: nn.Module, *, discard: bool = False) -> None:
    """Gives every module its plain class back and drops the adapters.

    Args:
        model: An adapted model.
        discard: Drop adapters that are not merged, and with them what they learnt.

    Raises:
        PlanError: If adapters are not merged and `discard` is False, or the weights are spread
            over processes.
    """
    refuse_sharded(model, 'its adapters cannot be taken off')
    unmerged = [name for name, adapter in adapters(model).items() if not adapter.merged]
    if unmerged and not discard:
        raise PlanError(
            f'{len(unmerged)} adapters are not merged (the first is {unmerged[0]}): call '
            'merge_adapters first, or pass discard=True to lose them'
        )
    for _, adapter in _carried(model):
        adapter.detach(model)
    restore_classes(model)
    forget_plan(model)


def restore_classes(model: nn.Module) -> None:
    """Gives every adapted module its plain class back, without its adapters."""
    for module in list(model.modules()):
        if hasattr(type(module), 'base_class'):
            base = cast('type[nn.Module]', type(module).base_class)  # type: ignore[attr-defined]
            del module.cdra
            module.__class__ = base
    detach_copies(model)


def _carried(model: nn.Module) -> Iterator[tuple[nn.Module, Adapter]]:
    """Every adapted module with each of its adapters."""
    for module in model.modules():
        if hasattr(type(module), 'base_class'):
            for adapter in cast(AdapterSet, module.cdra).children():
                yield module, cast(Adapter, adapter)
