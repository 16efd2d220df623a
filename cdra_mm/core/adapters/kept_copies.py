"""Copies of adapted weights that stay from forward to forward, for small models on a CPU.

    W'[R_i, C_i] = round(W[R_i, C_i] + scale_i up_i down_i)                    (Eq. 6)

A copy differs from its weight in the entries of its blocks alone, so they alone are written again,
all layers' together, and only where a factor's values have changed since. Values are compared, not
counts of writes: averaged weights and older optimizers write through ``data``, which leaves no
trace. Of the frozen weights, too many to compare in each forward, address and count of writes are,
and the values of some entries spread over each: who writes through ``data`` to a few entries of a
frozen weight has to say so (`copied_weights.let_go`).

A graph that still has copies saved is not written under: then others are made, and it keeps its
own.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layer_copy import Copy, Layer, versions_of

__all__ = ['KeptCopies', 'bytes_kept', 'can_keep']

# Entries of each frozen weight whose values are compared in a forward.
PROBES = 61
_KEYS = itertools.count()


def can_keep(layers: Sequence[Layer]) -> bool:
    """Whether `KeptCopies` knows how to keep the copies of layers."""
    if type(layers[0].weight.detach()) is not Tensor:
        return False  # a mode that computes without values is on
    for weight in (layer.weight for layer in layers):
        if type(weight) is not nn.Parameter:  # but what ``functional_call`` lends for one forward
            return False
        if weight.is_inference():  # its writes leave no mark
            return False
        if weight.device.type != 'cpu' or not weight.is_contiguous():
            return False
    return True


def bytes_kept(layers: Sequence[Layer], dtype: torch.dtype) -> int:
    """Bytes that `KeptCopies` holds: the copies, and of each entry of a block place and values."""
    copies = sum(layer.weight.numel() for layer in layers) * dtype.itemsize
    entry = torch.int64.itemsize + 2 * layers[0].weight.element_size()
    factors = sum(factor.nbytes for layer in layers for factor in layer.factors)
    return copies + factors + entry * sum(layer.joint.size for layer in layers)


class KeptCopies:
    """The copies of layers that lie on a CPU.

    Args:
        layers: At least one; see `can_keep`. Their weights have one type.
        dtype: Type of the copies.
    """

    def __init__(self, layers: Sequence[Layer], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._joints = [layer.joint for layer in layers]
        self._marks = [_marks_of(layer.weight) for layer in layers]
        with torch.inference_mode(False), torch.no_grad():
            # Their memory, not the tensors: whatever hangs on those may go.
            self._weights = [layer.weight.detach() for layer in layers]
            flat = [weight.view(-1) for weight in self._weights]
            # An odd step, so that it meets every column of an even number.
            self._probes = [values[:: max(1, len(values) // PROBES) | 1] for values in flat]
            self._probed = [probe.clone() for probe in self._probes]
            inside = [_positions(layer) for layer in layers]
            self._base = torch.cat([v[i] for v, i in zip(flat, inside, strict=True)])
            begins = itertools.accumulate((len(values) for values in flat), initial=0)
            self._positions = torch.cat([i + b for i, b in zip(inside, begins, strict=False)])
            self._entries = torch.empty_like(self._base)
            begun, written = (_blocks_in(all_, layers) for all_ in (self._base, self._entries))
            self._blocks = list(zip(begun, written, strict=True))
            sizes = [sum(factor.numel() for factor in layer.factors) for layer in layers]
            self._ends = list(itertools.accumulate(sizes))
            self._flat, self._copies = self._all_copied()
        self._values: Tensor | None = None  # of all factors, as they were written
        self._lent: dict[int, weakref.ref[Tensor]] = {}  # what graphs may have saved

    def tensors(self) -> list[Tensor]:
        """All that is held: the copies, and what they are written from."""
        held = [self._flat, self._positions, self._base, self._entries, *self._probed]
        return held if self._values is None else [*held, self._values]

    def fit(self, layers: Sequence[Layer], dtype: torch.dtype) -> bool:
        """Whether these are copies of layers in a type, but for the entries of their blocks."""
        return (
            dtype == self.dtype
            and len(layers) == len(self._joints)
            and all(self._is_of(i, layer) for i, layer in enumerate(layers))
            and torch.equal(torch.cat(self._probes), torch.cat(self._probed))
        )

    def refresh(self, layers: Sequence[Layer]) -> None:
        """Writes the updates of their blocks as the factors are now.

        Args:
            layers: Those that the copies fit, see `fit`.
        """
        with torch.inference_mode(False), torch.no_grad():
            values = _values_of(layers)
            if self._values is not None and torch.equal(values, self._values):
                return
            self._values = None  # what follows may be interrupted
            if self._lent:  # a graph needs those that there are
                self._flat, self._copies = self._all_copied()
                self._lent = {}
            self._write(layers)
            self._values = values

    def copy_of(self, index: int, layer: Layer, dtype: torch.dtype) -> Copy | None:
        """That of one layer, as it is; None where it is out of date.

        A hook that runs after `refresh` may have written to the layer.

        Args:
            index: The layer's place among those that these were made of.
            layer: The layer as it is now.
            dtype: Type of the product.
        """
        if dtype != self.dtype or self._values is None or not self._is_of(index, layer):
            return None
        with torch.no_grad():
            values, end = _values_of([layer]), self._ends[index]
            same = torch.equal(values, self._values[end - len(values) : end])
            if not same or not torch.equal(self._probes[index], self._probed[index]):
                return None
            return Copy(self._lend(self._copies[index]), None, [], [], kept=True)

    def _is_of(self, index: int, layer: Layer) -> bool:
        same = self._joints[index] is layer.joint
        return same and self._marks[index] == _marks_of(layer.weight)

    def _lend(self, copy: Tensor) -> Tensor:
        """Another tensor of the same memory, which lives as long as a graph has it saved."""
        with torch.inference_mode(False):
            lent, key, all_lent = copy.detach(), next(_KEYS), self._lent
        all_lent[key] = weakref.ref(lent, lambda _: all_lent.pop(key, None))
        return lent

    def _all_copied(self) -> tuple[Tensor, list[Tensor]]:
        """Copies as yet without updates, and the tensor that they are parts of."""
        sizes = [weight.numel() for weight in self._weights]
        flat = self._weights[0].new_empty(sum(sizes), dtype=self.dtype)
        parts = zip(flat.split_with_sizes(sizes), self._weights, strict=True)
        copies = [part.view(weight.shape) for part, weight in parts]
        torch._foreach_copy_(copies, self._weights)
        return flat, copies

    def _write(self, layers: Sequence[Layer]) -> None:
        """Writes the entries of all blocks."""
        blocks = iter(self._blocks)
        for layer in layers:
            downs, ups = layer.factors[::2], layer.factors[1::2]
            for down, up, scale in zip(downs, ups, layer.joint.scales, strict=True):
                base, entries = next(blocks)
                up, down = up.to(base.dtype), down.to(base.dtype)
                torch.addmm(base, up, down, alpha=scale, out=entries)  # autocast leaves it alone
        self._flat.scatter_(0, self._positions, self._entries.to(self.dtype))


def _marks_of(weight: Tensor) -> tuple[int, int]:
    """What changes where a weight gets other memory, or is written to in a way that leaves one."""
    return weight.data_ptr(), versions_of([weight])[0]


def _positions(layer: Layer) -> Tensor:
    """Where the entries of its blocks lie in its weight, block after block."""
    width, indices = layer.weight.shape[1], layer.joint.indices
    each = zip(indices[::2], indices[1::2], strict=True)
    return torch.cat([(rows[:, None] * width + cols[None, :]).view(-1) for rows, cols in each])


def _blocks_in(values: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """The parts of a flat tensor that are all blocks' entries in turn, ``[|R|, |C|]`` each."""
    shapes = [
        shape
        for layer in layers
        for shape in zip(layer.joint.heights, layer.joint.widths, strict=True)
    ]
    pieces = values.split_with_sizes([height * width for height, width in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _values_of(layers: Sequence[Layer]) -> Tensor:
    """Those of all their factors, one after another."""
    return torch.cat([factor.reshape(-1) for layer in layers for factor in layer.factors])
