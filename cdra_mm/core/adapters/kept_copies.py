"""Copies of adapted weights that stay from forward to forward, for small models on a CPU.

    W'[R_i, C_i] = round(W[R_i, C_i] + scale_i up_i down_i)                    (Eq. 6)

A copy differs from its weight in the entries of its blocks alone, so they alone are written again,
all layers' together, and only where a factor's values have changed since. Values are compared, not
counts of writes: averaged weights and older optimizers write through ``data``, which leaves no
trace. Those of factors as they are, those of a frozen weight by its products with a random vector
(as R. Freivalds checks products of matrices, 1977): one pass over it, at each of its layer's own.

A graph that still has copies saved is not written under: then others are made, and it keeps its
own.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from .layer_copy import Copy, Layer, versions_of
from .native_linear import NATIVE

__all__ = ['KeptCopies', 'bytes_kept', 'can_keep']

# Entries of a frozen weight in each product with the random vector: with so few its pass is as fast
# as a sum, with a row of them half as fast.
RUN = 64
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
    """Bytes that `KeptCopies` holds.

    The copies, sketches of the weights, of each entry of a block place and values, the factors.
    """
    weights = [layer.weight for layer in layers]
    copies = sum(weight.numel() for weight in weights) * dtype.itemsize
    sketches = sum(weight.nbytes // _run_of(weight) for weight in weights)
    entry = torch.int64.itemsize + 2 * weights[0].element_size()
    factors = sum(factor.nbytes for layer in layers for factor in layer.factors)
    return copies + sketches + entry * sum(layer.joint.size for layer in layers) + factors


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
            self._sketches = [_sketch_of(weight) for weight in self._weights]
            inside = [_positions(layer) for layer in layers]
            self._base = torch.cat([v[i] for v, i in zip(flat, inside, strict=True)])
            begins = itertools.accumulate((len(values) for values in flat), initial=0)
            self._positions = torch.cat([i + b for i, b in zip(inside, begins, strict=False)])
            self._entries = torch.empty_like(self._base)
            begun, written = (_blocks_in(all_, layers) for all_ in (self._base, self._entries))
            self._blocks = list(zip(begun, written, strict=True))
            self._flat, self._copies = self._all_copied()
        self._written: list[list[Tensor]] | None = None  # each layer's factors, as they were then
        self._base_changed = False
        self._lent: dict[int, weakref.ref[Tensor]] = {}  # what graphs may have saved

    def tensors(self) -> list[Tensor]:
        """All that is held: the copies, and what they are written from."""
        factors = itertools.chain.from_iterable(self._written or [])
        return [self._flat, self._positions, self._base, self._entries, *self._sketches, *factors]

    def fit(self, layers: Sequence[Layer], dtype: torch.dtype) -> bool:
        """Whether these are copies of layers in a type, but for the entries of their blocks."""
        return (
            dtype == self.dtype
            and len(layers) == len(self._joints)
            and all(self._is_of(i, layer) for i, layer in enumerate(layers))
            and not self._base_changed
        )

    def refresh(self, layers: Sequence[Layer]) -> None:
        """Writes the updates of their blocks as the factors are now.

        Args:
            layers: Those that the copies fit, see `fit`.
        """
        with torch.inference_mode(False), torch.no_grad():
            written = self._written
            factors = [factor for layer in layers for factor in layer.factors]
            if written and _are_equal(factors, [one for layer in written for one in layer]):
                return
            self._written = None  # what follows may be interrupted
            if self._lent:  # a graph needs those that there are
                self._flat, self._copies = self._all_copied()
                self._lent = {}
            self._write(layers)
            self._written = [[factor.clone() for factor in layer.factors] for layer in layers]

    def copy_of(self, index: int, layer: Layer, dtype: torch.dtype) -> Copy | None:
        """That of one layer, as it is; None where it is out of date.

        A hook that runs after `refresh` may have written to the layer.

        Args:
            index: The layer's place among those that these were made of.
            layer: The layer as it is now.
            dtype: Type of the product.
        """
        written = self._written
        if dtype != self.dtype or written is None or not self._is_of(index, layer):
            return None
        if not _are_equal(layer.factors, written[index]):
            return None
        if not torch.equal(_sketch_of(self._weights[index]), self._sketches[index]):
            self._base_changed = True
            return None
        return Copy(self._lend(self._copies[index]), None, kept=True)

    def _is_of(self, index: int, layer: Layer) -> bool:
        same = self._joints[index] is layer.joint
        return same and self._marks[index] == _marks_of(layer.weight)

    def _lend(self, copy: Tensor) -> Tensor:
        """Another tensor of the same memory, which lives as long as a graph has it saved."""
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


def _sketch_of(weight: Tensor) -> Tensor:
    """Products of its entries, some at a time, with a random vector."""
    run = _run_of(weight)
    return weight.view(-1, run).mv(_random_vector(run, weight.dtype))


def _run_of(weight: Tensor) -> int:
    return math.gcd(weight.numel(), RUN)


@cache
def _random_vector(length: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator('cpu').manual_seed(length)
    return torch.randn(length, generator=generator, dtype=dtype, device='cpu')


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


def _are_equal(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors have the same types, shapes and values."""
    native = NATIVE.take(tensors[0].device, kept=True)
    same = None if native is None else native.same_values(tensors, others)
    if same is not None:
        return cast(bool, same)
    return all(
        one.dtype == other.dtype and torch.equal(one, other)
        for one, other in zip(tensors, others, strict=True)
    )
