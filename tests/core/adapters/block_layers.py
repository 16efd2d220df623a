"""Layers with blocks to try the operations on, and what these must give.

Needs nothing but torch, so that a bare machine with a GPU can run it.
"""

from __future__ import annotations

import itertools

import torch

from cdra_mm.core.adapters import block_ops
from tests.reference import block_ops as reference


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


def check_gradients(layers, dtype, tolerance, *, of=slice(None)):
    factors, scales = layers.factors, layers.scales[of]
    factors = [f for i in range(len(layers.scales))[of] for f in factors[2 * i : 2 * i + 2]]
    pairs = zip(factors[::2], factors[1::2], strict=True)
    shapes = [(len(up), down.shape[1]) for down, up in pairs]
    # Each begins somewhere and has rows that are longer, as in the product of all blocks.
    wide = [torch.randn(h + 2, w + 3).to(factors[0].device, dtype) for h, w in shapes]
    blocks = [g[1 : h + 1, 2 : w + 2] for g, (h, w) in zip(wide, shapes, strict=True)]
    begins = itertools.accumulate((g.numel() for g in wide), initial=0)
    places = [(b + w + 3 + 2, w + 3) for b, (_, w) in zip(begins, shapes, strict=False)]
    gradient = torch.cat([g.flatten() for g in wide])
    found = block_ops.factor_gradients(gradient, sum(places, ()), factors, scales)
    wanted = reference.factor_gradients(blocks, factors, scales)
    for gradient, factor, right in zip(found, factors, wanted, strict=True):
        assert gradient.dtype == factor.dtype
        assert gradient.is_contiguous()
        torch.testing.assert_close(gradient.double().cpu(), right, rtol=tolerance, atol=tolerance)
