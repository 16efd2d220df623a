"""Layers with blocks to try the operations on, and what these must give.

Needs nothing but torch, so that a bare machine with a GPU can run it.
"""

from __future__ import annotations

import itertools

import torch

from cdra_mm.core.adapters import block_ops
from cdra_mm.core.adapters.joint_blocks import vector_begins
from tests.reference import block_ops as reference

LIES = {  # how a gradient or an input may lie in memory
    'transposed': lambda x: x.t().contiguous().t(),
    'in_a_larger_one': lambda x: torch.cat([x, x], 1)[:, x.shape[1] :],
    'repeated': lambda x: x[:1].expand_as(x),
}


class Layers:
    """Weights with blocks of random places and sizes, and tensors that are only copied."""

    def __init__(self, sizes, *, seed=0, weight=torch.float32, factor=torch.float32, device='cpu'):
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape, dtype):
            return torch.randn(shape, generator=generator).to(device, dtype)

        self.weights, self.factors, self.indices, self.counts, self.scales = [], [], [], [], []
        for o, i, blocks in sizes:
            self.weights.append(randn(o * len(blocks), i, dtype=weight))
            self.counts.append(len(blocks))
            for at, (height, width, rank) in enumerate(blocks):
                rows = at * o + torch.randperm(o, generator=generator)[:height]
                cols = torch.randperm(i, generator=generator)[:width]
                self.indices += [rows.to(device), cols.to(device)]
                self.factors += [
                    randn(rank, len(cols), dtype=factor),
                    randn(len(rows), rank, dtype=factor),
                ]
                self.scales.append(float(torch.rand((), generator=generator)) + 0.5)
        self.plain = [randn(n, dtype=weight) for n in (1, 70)]

    @property
    def arguments(self):
        return (
            self.weights, self.plain, self.factors, self.indices, self.counts, self.scales,
        )  # fmt: skip


def check_copies(layers, dtype, tolerance):
    found = block_ops.adapted_copies(*layers.arguments, dtype)
    wanted = reference.adapted_copies(*layers.arguments)
    assert len(found) == len(wanted) == len(layers.weights) + len(layers.plain)
    for copy, right in zip(found, wanted, strict=True):
        assert copy.dtype == dtype
        assert copy.data_ptr() % 64 == 0
        torch.testing.assert_close(copy.double().cpu(), right, rtol=tolerance, atol=tolerance)


def check_gradients(layers, dtype, tolerance, *, tokens=11, as_it_lies=lambda x: x):
    """Of every layer, from the whole input and from the columns of its blocks."""
    generator, at = torch.Generator().manual_seed(1), 0
    for weight, count in zip(layers.weights, layers.counts, strict=True):
        which = slice(2 * at, 2 * (at + count))
        factors, indices = layers.factors[which], layers.indices[which]
        scales = layers.scales[at : at + count]
        at += count
        dy, x = (
            as_it_lies(torch.randn(tokens, n, generator=generator).to(factors[0].device, dtype))
            for n in weight.shape
        )
        wanted = reference.factor_gradients(dy, x, factors, indices, scales)
        columns = [x[:, cols] for cols in indices[1::2]]
        widths = [one.shape[1] for one in columns]
        apart = torch.cat(columns, 1), list(itertools.accumulate(widths, initial=0))[:-1]
        places = vector_begins(widths)
        wide = torch.full((tokens, places[-1]), torch.inf, dtype=dtype, device=x.device)
        for begin, one in zip(places, columns, strict=False):
            wide[:, begin : begin + one.shape[1]] = one
        for taken, begins in ((x, []), apart, (wide, places[:-1])):
            given = dy, as_it_lies(taken), begins
            found = block_ops.factor_gradients(*given, factors, indices, scales)
            for gradient, factor, right in zip(found, factors, wanted, strict=True):
                assert gradient.dtype == factor.dtype
                assert gradient.is_contiguous()
                torch.testing.assert_close(
                    gradient.double().cpu(), right, rtol=tolerance, atol=tolerance
                )
