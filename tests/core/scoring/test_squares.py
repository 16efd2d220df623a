"""Every way to add squared gradients gives the same sums, and holds little beside them."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch

from cdra_mm.core import triton_support
from cdra_mm.core.scoring import squares
from tests.reference.scores import add_squares as reference

DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WAYS = {'chosen': squares.add_squares, 'by_chunk': squares._add_by_chunk}


def problem(samples=7, tokens=5, width=6, height=9, dtype=torch.float32, device='cpu'):
    """Random rows of a larger total, x and grad; x and grad lie tokens first."""
    fused = torch.rand(3 * height, width).to(device)
    x = torch.randn(tokens, samples, width).to(device, dtype).transpose(0, 1)
    grad = torch.randn(tokens, samples, height).to(device, dtype).transpose(0, 1)
    return fused[height : 2 * height], x, grad


def assert_adds(add, total, x, grad, rtol=1e-5):
    expected = reference(total, x, grad)
    add(total, x, grad)
    atol = rtol * float(expected.abs().max())
    torch.testing.assert_close(total.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('add', WAYS.values(), ids=WAYS)
def test_squares_equal_the_loop(add, device, dtype):
    if add is squares.add_squares and (device, dtype) == ('cpu', torch.bfloat16):
        pytest.skip('rounds each gradient once: see the next test')
    assert_adds(add, *problem(dtype=dtype, device=device))


@pytest.mark.parametrize('tokens', [5, 300])
def test_squares_of_bfloat16_on_a_cpu_round_each_gradient_once(tokens):
    """A rounded gradient is off by 2^-8 at most, its square by 2^-7; sums stay fp32."""
    total, x, grad = problem(samples=40, tokens=tokens, dtype=torch.bfloat16)
    total.zero_()
    expected = reference(total, x, grad)
    squares.add_squares(total, x, grad)
    torch.testing.assert_close(total.double(), expected, rtol=2**-7 + 2**-14, atol=1e-6)
    # As many up as down: no bias, which sums in bf16 would have.
    assert abs(float((total.double() / expected - 1).mean())) < 5e-4


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('add', WAYS.values(), ids=WAYS)
def test_squares_of_mixed_types(add, device):
    total, x, grad = problem(device=device)
    assert_adds(add, total, x.bfloat16(), grad)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('sizes', [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_squares_of_nothing_are_zero(sizes, device):
    total, x, grad = problem(*sizes, device=device)
    before = total.clone()
    squares.add_squares(total, x, grad)
    assert torch.equal(total, before)


@pytest.mark.parametrize('held', [0, 1, 3, 100])
def test_squares_by_chunk_hold_as_many_gradients_as_fit(monkeypatch, held):
    """One sample at a time where not even one fits."""
    total, x, grad = problem()
    monkeypatch.setattr(squares, 'SCRATCH_BYTES', held * 4 * (2 * 9 * 6 + 5 * 6 + 5 * 9))
    seen = []
    plain = squares._products
    monkeypatch.setattr(squares, '_products', lambda x, grad: seen.append(len(x)) or plain(x, grad))
    assert_adds(squares._add_by_chunk, total, x, grad)
    assert max(seen) == min(max(held, 1), 7)
    assert sum(seen) == 7


def test_squares_leave_the_kernel_to_gpus(recwarn):
    squares._kernel_runs.cache_clear()
    for device in ('cpu', 'meta', 'mps'):
        assert not squares._kernel_runs(torch.device(device), torch.float32)
    assert not [w for w in recwarn if 'Triton kernel' in str(w.message)]


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has an H100."""
    monkeypatch.setattr(torch.version, 'cuda', '12.8')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    monkeypatch.setattr(triton_support, 'find_spec', lambda name: object())
    for known in (squares._kernel_runs, squares._say_slower):
        known.cache_clear()
    yield torch.device('cuda')
    for known in (squares._kernel_runs, squares._say_slower):
        known.cache_clear()


def test_squares_say_once_that_the_kernel_does_not_run(monkeypatch, gpu, recwarn):
    """No C compiler, no headers, an old Triton: scores are the same, only slower."""
    monkeypatch.setitem(sys.modules, 'cdra_mm.core.scoring.square_kernel', None)
    for _ in range(2):
        assert not squares._kernel_runs(gpu, torch.bfloat16)
    (warning,) = [w for w in recwarn if 'Triton kernel' in str(w.message)]
    assert 'bfloat16 does not run on cuda (ModuleNotFoundError' in str(warning.message)


@pytest.mark.parametrize('what', ['an old GPU', 'an AMD GPU', 'no Triton', 'an unknown type'])
def test_squares_say_once_what_the_kernel_needs(monkeypatch, gpu, recwarn, what):
    """One line a process, for all GPUs and types; scores are the same, only slower."""
    dtypes, text = (torch.bfloat16, torch.float32), 'needs Triton and compute capability 8.0'
    if what == 'an old GPU':
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    elif what == 'an AMD GPU':
        monkeypatch.setattr(torch.version, 'cuda', None)
        text = 'needs an NVIDIA GPU'
    elif what == 'no Triton':
        monkeypatch.setattr(triton_support, 'find_spec', lambda name: None)
    else:
        dtypes, text = (torch.float64,), 'knows fp32, bf16 and fp16, not torch.float64'
    warnings.simplefilter('always')
    for device in (gpu, torch.device('cuda', 1)):
        for dtype in dtypes:
            assert not squares._kernel_runs(device, dtype)
    (warning,) = [w for w in recwarn if 'Triton kernel' in str(w.message)]
    assert str(warning.message) == f'scoring is slower than it could be: the Triton kernel {text}'


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('dtype', DTYPES[1:], ids=str)
def test_squares_use_the_kernel_on_a_gpu(monkeypatch, dtype):
    pytest.importorskip('triton')
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip('the kernel needs an NVIDIA GPU of compute capability 8.0')
    monkeypatch.setattr(squares, '_add_by_chunk', None)
    assert_adds(squares.add_squares, *problem(dtype=dtype, device='cuda'))
