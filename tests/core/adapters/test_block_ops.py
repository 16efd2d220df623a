"""The operations on blocks equal loops over entries, and are what torch asks of an operation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core.adapters import kernel_choice
from tests.core.adapters.block_layers import LIES, Layers, check_copies, check_gradients

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
        # The products of 11 tokens are rounded, and added up over up to 4 rows or columns.
        check_gradients(layers, torch.bfloat16, 16 * torch.finfo(torch.bfloat16).eps)
        check_gradients(layers, torch.float32, 1e-5)


def test_operations_keep_the_rules_of_torch():
    """Schema, fake tensors, compilation: what `torch.compile` relies on."""
    layers = Layers([(8, 4, [(4, 3, 2)] * 2), (8, 8, [(5, 6, 1)])])
    layers.plain = [torch.randn(64)]  # without padding, which holds whatever it may
    copies = torch.ops.cdra_mm.adapted_copies.default
    torch.library.opcheck(copies, (*layers.arguments, torch.bfloat16))
    gradients = torch.ops.cdra_mm.factor_gradients.default
    layers = Layers([(9, 8, [(8, 8, 8)] * 2)])  # without padding
    for columns, begins in ((8, []), (16, [0, 8])):
        given = torch.randn(5, 18), torch.randn(5, columns), begins
        of_blocks = layers.factors, layers.indices, layers.scales
        torch.library.opcheck(gradients, (*given, *of_blocks))


@pytest.mark.parametrize('as_it_lies', LIES.values(), ids=LIES)
def test_gradients_are_taken_as_they_lie(as_it_lies):
    check_gradients(Layers([(9, 8, [(4, 5, 2)] * 2)]), torch.float32, 1e-5, as_it_lies=as_it_lies)


def test_no_kernels_on_a_cpu(recwarn):
    assert not kernel_choice.kernels_run(torch.device('cpu'))
    assert not recwarn


@pytest.fixture
def _asked_anew():
    kernel_choice.kernels_run.cache_clear()
    kernel_choice._say_slower.cache_clear()
    yield
    kernel_choice.kernels_run.cache_clear()
    kernel_choice._say_slower.cache_clear()


@pytest.mark.usefixtures('_asked_anew')
def test_gpu_that_is_too_old_takes_the_slower_way_with_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    with pytest.warns(
        UserWarning, match='slower than it could be.* compute capability 8.0'
    ) as seen:
        for _ in range(2):
            assert not kernel_choice.kernels_run(torch.device('cuda', 0))
    assert len(seen) == 1


@pytest.mark.usefixtures('_asked_anew')
def test_type_that_the_kernels_lack_takes_the_slower_way_with_one_line(monkeypatch):
    """Never a wrong result: the same loops hold."""
    monkeypatch.setattr(kernel_choice, 'kernels_run', lambda device: True)
    layers = Layers([(9, 7, [(4, 3, 2)])], weight=torch.float64, factor=torch.float64)
    with pytest.warns(UserWarning, match='not torch.float64') as seen:
        for _ in range(2):
            check_copies(layers, torch.float64, 1e-12)
    assert len(seen) == 1


def test_kernels_never_get_tensors_of_two_devices(monkeypatch):
    """They read addresses."""
    monkeypatch.setattr(kernel_choice, 'kernels_run', lambda device: True)
    here, elsewhere = torch.ones(2, 2), torch.ones(2, 2, device='meta')
    index = torch.arange(2)
    assert kernel_choice.take_kernels([here, index], [here], [here], here.dtype)
    assert not kernel_choice.take_kernels([here, index], [here], [elsewhere], here.dtype)
    assert not kernel_choice.take_kernels([here, index.to('meta')], [here], [here], here.dtype)


def test_kernels_never_get_indices_that_lie_apart(monkeypatch):
    """They read one after another."""
    monkeypatch.setattr(kernel_choice, 'kernels_run', lambda device: True)
    here, index = torch.ones(2, 2), torch.arange(4)
    assert kernel_choice.take_kernels([index[:2]], [here], [here], here.dtype)
    assert not kernel_choice.take_kernels([index[::2]], [here], [here], here.dtype)


def test_kernels_never_get_blocks_of_nothing(monkeypatch):
    monkeypatch.setattr(kernel_choice, 'kernels_run', lambda device: True)
    here = torch.ones(2, 2)
    assert kernel_choice.take_kernels([], [here], [here, here], here.dtype)
    assert not kernel_choice.take_kernels([], [here], [here, here[:0]], here.dtype)


def test_parts_of_larger_factors_are_named_as_what_they_are(monkeypatch):
    monkeypatch.setattr(kernel_choice, 'kernels_run', lambda device: True)
    whole = torch.ones(4, 4)
    kernel_choice._say_slower.cache_clear()
    with pytest.warns(UserWarning, match='need contiguous factors, not parts of larger ones'):
        assert not kernel_choice.take_kernels([whole], [whole], [whole[:, :2]], whole.dtype)
