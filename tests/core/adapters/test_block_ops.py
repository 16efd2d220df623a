"""The operations on blocks equal loops over entries, and are what torch asks of an operation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core.adapters import block_ops
from tests.core.adapters.block_layers import Layers, check_copies, check_gradients
from tests.reference import block_ops as reference

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
    layers = Layers([(9, 8, [(8, 8, 8)] * 2), (20, 40, [(16, 32, 4)])])  # without padding
    given = torch.randn(2 * 64 + 16 * 32), [0, 8, 64, 8, 128, 32]
    torch.library.opcheck(gradients, (*given, layers.factors, layers.scales))


def test_a_gradient_may_be_a_part_of_a_tensor_or_lie_transposed():
    """Places count from its own first entry, in its own order."""
    layers = Layers([(9, 8, [(4, 5, 2)] * 2)])
    whole = torch.randn(10, 8)
    for gradient in (torch.cat([torch.ones(3, 10), whole.t()])[3:], whole.t()):
        found = block_ops.factor_gradients(
            gradient, [0, 10, 4 * 10 + 5, 10], layers.factors, layers.scales
        )
        blocks = [gradient[:4, :5], gradient[4:, 5:]]
        wanted = reference.factor_gradients(blocks, layers.factors, layers.scales)
        for one, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(one.double(), right, rtol=1e-5, atol=1e-5)


def test_no_kernels_on_a_cpu(recwarn):
    assert not block_ops.kernels_run(torch.device('cpu'))
    assert not recwarn


@pytest.fixture
def _asked_anew():
    block_ops.kernels_run.cache_clear()
    block_ops._say_slower.cache_clear()
    yield
    block_ops.kernels_run.cache_clear()
    block_ops._say_slower.cache_clear()


@pytest.mark.usefixtures('_asked_anew')
def test_gpu_that_is_too_old_takes_the_slower_way_with_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    with pytest.warns(
        UserWarning, match='slower than it could be.* compute capability 8.0'
    ) as seen:
        for _ in range(2):
            assert not block_ops.kernels_run(torch.device('cuda', 0))
    assert len(seen) == 1


@pytest.mark.usefixtures('_asked_anew')
def test_type_that_the_kernels_lack_takes_the_slower_way_with_one_line(monkeypatch):
    """Never a wrong result: the same loops hold."""
    monkeypatch.setattr(block_ops, 'kernels_run', lambda device: True)
    layers = Layers([(9, 7, [(4, 3, 2)])], weight=torch.float64, factor=torch.float64)
    with pytest.warns(UserWarning, match='not torch.float64') as seen:
        for _ in range(2):
            check_copies(layers, torch.float64, 1e-12)
    assert len(seen) == 1


def test_kernels_never_get_tensors_of_two_devices(monkeypatch):
    """They read addresses."""
    monkeypatch.setattr(block_ops, 'kernels_run', lambda device: True)
    here, elsewhere = torch.ones(2, 2), torch.ones(2, 2, device='meta')
    index = torch.arange(2)
    assert block_ops._take_kernels([here, index], [here], [here], here.dtype)
    assert not block_ops._take_kernels([here, index], [here], [elsewhere], here.dtype)
    assert not block_ops._take_kernels([here, index.to('meta')], [here], [here], here.dtype)


def test_parts_of_larger_factors_are_named_as_what_they_are(monkeypatch):
    monkeypatch.setattr(block_ops, 'kernels_run', lambda device: True)
    whole = torch.ones(4, 4)
    block_ops._say_slower.cache_clear()
    with pytest.warns(UserWarning, match='need contiguous factors, not parts of larger ones'):
        assert not block_ops._take_kernels([whole], [whole], [whole[:, :2]], whole.dtype)
