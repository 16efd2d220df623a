"""The operations on blocks equal loops over entries, and are what torch asks of an operation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
    # Views of a wider matrix, as they come from the product of all blocks.
    device = factors[0].device
    blocks = [torch.randn(h + 2, w + 3).to(device, dtype)[1 : h + 1, 2 : w + 2] for h, w in shapes]
    found = block_ops.factor_gradients(blocks, factors, scales)
    wanted = reference.factor_gradients(blocks, factors, scales)
    for gradient, factor, right in zip(found, factors, wanted, strict=True):
        assert gradient.dtype == factor.dtype
        assert gradient.is_contiguous()
        torch.testing.assert_close(gradient.double().cpu(), right, rtol=tolerance, atol=tolerance)


size = st.integers(1, 9)
blocks = st.lists(st.tuples(size, size, st.integers(1, 4)), min_size=1, max_size=3)


@given(
    sizes=st.lists(st.tuples(size, size, blocks), min_size=1, max_size=3), seed=st.integers(0, 9)
)
def test_operations_equal_the_loops(sizes, seed):
    layers = Layers(sizes, seed=seed, weight=torch.float64, factor=torch.float64)
    check_copies(layers, torch.float64, 1e-12)
    check_gradients(layers, torch.float64, 1e-11)


@pytest.mark.parametrize('weight', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_updates_are_added_in_full_precision_and_rounded_once(weight, autocast):
    layers = Layers([(9, 7, [(4, 3, 2)] * 2)], weight=weight)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        check_copies(layers, torch.bfloat16, torch.finfo(torch.bfloat16).eps / 2)
        check_copies(layers, torch.float32, 1e-6)
        check_gradients(layers, torch.bfloat16, 1e-5)


def test_operations_keep_the_rules_of_torch():
    """Schema, fake tensors, compilation: what `torch.compile` relies on."""
    layers = Layers([(8, 4, [(4, 3, 2)] * 2), (8, 8, [(5, 6, 1)])])
    layers.plain = [torch.randn(64)]  # without padding, which holds whatever it may
    copies = torch.ops.cdra_mm.adapted_copies.default
    torch.library.opcheck(copies, (*layers.arguments, torch.bfloat16))
    gradients = torch.ops.cdra_mm.factor_gradients.default
    given_blocks = [torch.randn(4, 3), torch.randn(4, 3), torch.randn(5, 6)]
    torch.library.opcheck(gradients, (given_blocks, layers.factors, layers.scales))


def test_no_kernels_on_a_cpu():
    assert not block_ops.kernels_run(torch.device('cpu'))
