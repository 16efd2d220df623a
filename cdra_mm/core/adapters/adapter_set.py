"""The adapters of one module, which are its child ``cdra``."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .adapter import Adapter, CallAdapter, ParameterAdapter
from .entries import Entries, EntryPlaces, place_entries
from .joint_blocks import JointBlocks, join_blocks
from .layer_copy import Copy, Layer, may_keep_copy
from .low_rank import LowRank

if TYPE_CHECKING:
    from .kept_copies import KeptCopies

__all__ = ['AdapterSet']


class _Joined(NamedTuple):
    """The low-rank adapters of one weight, and their blocks as one."""

    adapters: list[LowRank]
    blocks: JointBlocks


class AdapterSet(nn.Module):
    """The adapters of one module, by parameter (``weight``, ``weight:q`` ...) or kind.

    Attributes:
        product: How its products are computed; see `copied_weights.choose_product`.
        copies: By parameter, while the model's forward runs: the copy of the weight and how to
            multiply by it, a `MadeCopy` or what the module in C++ has in its place.
        kept_copies: By parameter: who keeps its copy between forwards, and its place there.
        borrowed: Adapters of another module whose parameter this one shares (a tied weight), by
            the name that the parameter has here. They are the other's children, not this one's:
            a state dict holds them once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.product = 'auto'
        self.copies: dict[str, Any] = {}
        self.kept_copies: dict[str, tuple[weakref.ref[KeptCopies], int]] = {}
        self.borrowed: dict[str, list[ParameterAdapter]] = {}
        self._joined: dict[str, _Joined] = {}
        self._placed: dict[str, tuple[list[Tensor], EntryPlaces]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without copies: who copies or pickles a model within its forward gets none."""
        return {**self.__dict__, 'copies': {}, 'kept_copies': {}, '_placed': {}}

    def present(self) -> Iterator[Adapter]:
        """All adapters that are this module's own."""
        yield from cast('Iterator[Adapter]', self.children())

    def join(self, module: nn.Module) -> None:
        """Takes note of the blocks of each weight, after adapters have come."""
        self._joined = {}
        own = (a.parameter for a in self.present() if isinstance(a, ParameterAdapter))
        for name in dict.fromkeys([*own, *self.borrowed]):
            weight = module._parameters[name]
            every = list(self.of(name, merged=True))
            found = [a for a in every if isinstance(a, LowRank)]
            if found and len(found) == len(every) and weight is not None and weight.dim() == 2:
                if not found[0].rows.is_meta:
                    blocks, shape = [a.block for a in found], (weight.shape[0], weight.shape[1])
                    joint = join_blocks(blocks, found[0].rows.device, shape)
                    self._joined[name] = _Joined(found, joint)

    def blocks_of(self, parameter: str) -> list[LowRank]:
        """The low-rank adapters of a parameter that has a `layer_of_copy`."""
        return self._joined[parameter].adapters

    def has_blocks(self, parameter: str) -> bool:
        """Whether a parameter has a `layer_of_copy`, if nothing speaks against it just now."""
        return parameter in self._joined

    def entries_of(self, parameter: str) -> list[Any]:
        """Where its blocks are noted, see `layers_to_copy.Found`; `join` makes other ones."""
        joined = self._joined
        blocks = [joined, parameter, joined[parameter]] if parameter in joined else []
        return [self.__dict__, '_joined', joined, *blocks]

    def layer_of_copy(self, parameter: str, weight: Tensor, bias: Tensor | None) -> Layer | None:
        """What a copy of a weight would be made of.

        None with dropout, with adapters of other kinds, with some that are merged and some that are
        not, with blocks that overlap.
        """
        joined = self._joined.get(parameter)
        if joined is None or not joined.blocks.disjoint:
            return None
        factors: list[Tensor] = []
        for adapter in joined.adapters:
            if adapter.merged or (adapter.dropout and adapter.training):
                return None
            factors += adapter.factors
        if joined.blocks.indices[0].device != weight.device:
            joined = joined._replace(blocks=joined.blocks.moved(weight.device))
            self._joined[parameter] = joined
        return Layer(weight, bias, joined.blocks, factors)

    def kept_copy_of(self, parameter: str, layer: Layer, dtype: torch.dtype) -> Copy | None:
        """The copy of a layer that stays between forwards and serves it, if there is one."""
        if parameter not in self.kept_copies or not may_keep_copy(self.product, layer.weight):
            return None
        keeper, index = self.kept_copies[parameter]
        kept = keeper()
        return None if kept is None else kept.copy_of(index, layer, dtype)

    def places_of(self, parameter: str, entries: Sequence[Entries], width: int) -> EntryPlaces:
        """Where single entries of a matrix lie, looked for once as long as they stay.

        Args:
            parameter: The matrix.
            entries: Its adapters of single entries, at least one.
            width: Columns of the matrix.
        """
        indices = [adapter.index for adapter in entries]
        known = self._placed.get(parameter)
        # Moved to another device, or loaded, an index is another tensor.
        if known is None or not _are_same(known[0], indices):
            with torch.inference_mode(False):  # a later step trains by them
                places = place_entries([adapter.flat for adapter in entries], width)
            known = self._placed[parameter] = indices, places
        return known[1]

    def of(self, parameter: str, *, merged: bool = False) -> Iterator[ParameterAdapter]:
        """The unmerged adapters of one base parameter, or all."""
        own = (a for a in self.present() if isinstance(a, ParameterAdapter))
        mine = (a for a in own if a.parameter == parameter)
        for adapter in (*mine, *self.borrowed.get(parameter, ())):
            if merged or not adapter.merged:
                yield adapter

    def calls(self) -> Iterator[CallAdapter]:
        """The unmerged adapters of what the module computes."""
        for adapter in self.present():
            if isinstance(adapter, CallAdapter) and not adapter.merged:
                yield adapter

    def effective(self, parameter: str, base: Tensor) -> Tensor:
        """The base parameter with its adapters added."""
        for adapter in self.of(parameter):
            base = adapter.added_to(base)
        return base


def _are_same(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(tensors) == len(others) and all(map(operator.is_, tensors, others))
