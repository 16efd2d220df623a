"""The kernel that squares gradients in its epilogue equals the loop over samples and tokens.

It is tested natively where there is a GPU, and in the interpreter (`interpreted`).
"""

from __future__ import annotations

import pytest
import torch

from tests.core.interpreted import (
    DEVICE,
    INTERPRETED,
    NATIVE,
    multiply_bfloat16_exactly,
    once_more,
    run_interpreted,
    runs,
)
from tests.reference.scores import add_squares as reference

triton = pytest.importorskip('triton', reason='the kernel is for GPUs, where torch brings Triton')
tl = pytest.importorskip('triton.language')
kernel = pytest.importorskip('cdra_mm.core.scoring.square_kernel')

# B, T, I, O and multiprocessors, with what it is about.
SHAPES = {
    'smaller_than_a_tile': (2, 5, 7, 9, 4),
    'one_of_each': (1, 1, 1, 1, 1),
    'one_token': (6, 1, 130, 40, 2),
    'one_sample': (1, 33, 64, 96, 132),
    'exactly_one_tile_and_step': (3, 64, 128, 128, 1),
    'vit_tokens_ragged_tiles': (2, 197, 130, 257, 4),
    'long_steps_with_a_tail': (2, 65, 129, 16, 1),
    'uneven_parts': (7, 3, 20, 30, 3),
    'whole_and_cut_tiles': (5, 9, 300, 140, 4),
    'more_processors_than_work': (3, 4, 260, 130, 132),
    'two_groups_of_tiles': (2, 2, 200, 1200, 6),
}
DTYPES = {str(dtype).removeprefix('torch.'): dtype for dtype in kernel.DTYPES}


@pytest.fixture(autouse=True)
def _exact_bfloat16(monkeypatch):
    multiply_bfloat16_exactly(monkeypatch)


def problem(samples, tokens, width, height, dtype=torch.float32):
    """Random total, x and grad; the total starts at about the size of what is added."""
    x = torch.randn(samples, tokens, width).to(dtype)
    grad = torch.randn(samples, tokens, height).to(dtype)
    total = samples * tokens * torch.rand(height, width)
    return tuple(tensor.to(DEVICE) for tensor in (total, x, grad))


def assert_adds(total, x, grad, processors, rtol=1e-5):
    """In place, within ``rtol`` of the largest entry: operands are exact, the sums fp32."""
    expected = reference(total, x, grad)
    kernel.add_squared_gradients(total, x, grad, processors)
    torch.testing.assert_close(
        total.double(), expected, rtol=0, atol=rtol * float(expected.abs().max())
    )


@runs
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernel_adds_the_squares(shape, dtype):
    *sizes, processors = shape
    assert_adds(*problem(*sizes, dtype), processors)


LAYOUTS = {
    'tokens_first': lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    'channels_before_tokens': lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    'part_of_a_wider_tensor': lambda t: torch.cat([t, t + 1, t], dim=2)[..., : t.shape[2]],
    'every_second_token': lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
    'the_same_for_all': lambda t: t[:1, :1, :1].expand(t.shape),
}


@runs
@pytest.mark.parametrize('of_grad', LAYOUTS)
@pytest.mark.parametrize('of_x', LAYOUTS)
def test_kernel_reads_any_layout(of_x, of_grad):
    total, x, grad = problem(3, 35, 20, 140, torch.float16)
    x, grad = LAYOUTS[of_x](x), LAYOUTS[of_grad](grad)
    assert not (x.is_contiguous() or grad.is_contiguous())
    assert_adds(total, x, grad, 4)


@runs
@pytest.mark.parametrize('processors', [1, 2, 132])
def test_kernel_writes_its_rows_only(processors):
    """The value rows of a fused weight; and a transposed total, whose columns are far apart."""
    total, x, grad = problem(3, 10, 150, 140)
    for make in (torch.empty, lambda rows, columns: torch.empty(columns, rows).t()):
        fused = make(3 * 140, 150).fill_(7.0).to(DEVICE)
        rows = fused[140:280]
        rows.copy_(total)
        assert_adds(rows, x, grad, processors)
        assert bool((fused[:140] == 7).all()) and bool((fused[280:] == 7).all())


@pytest.mark.skipif(not INTERPRETED, reason='watched in the interpreter')
@pytest.mark.parametrize('processors', [1, 4])
@pytest.mark.parametrize('sizes', [(2, 5, 7, 9), (3, 33, 130, 140)])
def test_kernel_stays_within_its_tensors(monkeypatch, sizes, processors):
    """Also where what it would read beyond them could not change the result."""
    from triton.runtime import interpreter

    total, x, grad = problem(*sizes)
    held = [total, x, grad]
    plain_empty = torch.Tensor.new_empty
    builder = interpreter.InterpreterBuilder

    def noted_empty(tensor, *size, **options):
        held.append(plain_empty(tensor, *size, **options))
        return held[-1]

    def watched(name):
        plain = getattr(builder, name)

        def access(self, pointers, *rest):
            mask = rest[0 if name == 'create_masked_load' else 1].data
            used = pointers.data[mask].astype('int64')
            assert not used.size or any(
                tensor.data_ptr() <= used.min()
                and used.max() < tensor.data_ptr() + tensor.numel() * tensor.element_size()
                for tensor in held
            )
            return plain(self, pointers, *rest)

        monkeypatch.setattr(builder, name, access)

    monkeypatch.setattr(torch.Tensor, 'new_empty', noted_empty)
    watched('create_masked_load')
    watched('create_masked_store')
    assert_adds(total, x, grad, processors)


@runs
@pytest.mark.parametrize('sizes', [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_kernel_adds_nothing_where_there_is_nothing(sizes):
    total, x, grad = problem(*sizes)
    before = total.clone()
    kernel.add_squared_gradients(total, x, grad, 4)
    assert torch.equal(total, before)


@runs
@pytest.mark.filterwarnings('ignore:invalid value encountered:RuntimeWarning')
def test_kernel_shows_what_is_not_finite():
    """And only there: padding does not multiply a stray infinity by zero."""
    total, x, grad = problem(3, 5, 6, 7)
    x[1, 2, 3] = torch.inf
    grad[2, 0, 4] = torch.nan
    kernel.add_squared_gradients(total, x, grad, 2)
    bad = ~torch.isfinite(total)
    expected = torch.zeros_like(bad)
    expected[:, 3] = expected[4] = True
    assert torch.equal(bad, expected)


@runs
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_kernel_repeats_bit_for_bit(dtype):
    total, x, grad = problem(12, 20, 150, 300, dtype)
    results = []
    for _ in range(5 if NATIVE else 2):
        result = total.clone()
        kernel.add_squared_gradients(result, x, grad, 4 if INTERPRETED else None)
        results.append(result)
    assert all(torch.equal(results[0], result) for result in results[1:])


@runs
@pytest.mark.parametrize('processors', [2, 3, 4, 5, 132])
def test_kernel_adds_parts_in_the_order_of_samples(processors):
    """Values whose squares are exact: the order of their sums alone decides the last bits."""
    samples = 12
    values = torch.randint(2048, 4096, (samples,)).float()
    total, x, grad = problem(samples, 1, 3, 5)
    x, grad = torch.ones_like(x), values.view(-1, 1, 1).expand(grad.shape).to(DEVICE)
    splits = kernel.split_tiles(1, samples, processors)[1]
    added = torch.zeros(())
    for part in range(splits):
        inner = torch.zeros(())
        for value in values[part * samples // splits : (part + 1) * samples // splits]:
            inner = inner + value**2
        added = added + inner
    expected = total + added.to(DEVICE)
    kernel.add_squared_gradients(total, x, grad, processors)
    assert torch.equal(total, expected)


@runs
def test_kernel_scratch_is_one_tile_per_multiprocessor(monkeypatch):
    sizes = []
    plain = torch.Tensor.new_empty

    def noted(tensor, size, **options):
        sizes.append(size)
        return plain(tensor, size, **options)

    monkeypatch.setattr(torch.Tensor, 'new_empty', noted)
    total, x, grad = problem(40, 1, 300, 300)
    kernel.add_squared_gradients(total, x, grad, 29)
    assert max(sizes) == 27 * kernel.TILE**2  # 9 tiles in 3 parts


@pytest.mark.parametrize('tiles', [1, 3, 4, 9, 36, 144])
@pytest.mark.parametrize('samples', [1, 2, 31, 500])
@pytest.mark.parametrize('processors', [1, 4, 13, 132])
def test_split_tiles_fills_the_processors_once(tiles, samples, processors):
    whole, splits = kernel.split_tiles(tiles, samples, processors)
    cut = tiles - whole
    assert 0 <= cut < max(processors, 2)
    assert 1 <= splits <= samples
    assert cut * splits <= processors
    if cut:
        assert whole % processors == 0
        assert splits > 1
        assert splits == samples or cut * (splits + 1) > processors


def test_split_tiles_of_the_documented_case():
    assert kernel.split_tiles(9, 32, 4) == (8, 4)


@pytest.mark.parametrize(('tokens', 'step'), [(1, 32), (50, 64), (197, 32), (1025, 64), (1370, 64)])
def test_tokens_per_step_pads_little(tokens, step):
    assert kernel.tokens_per_step(tokens, 2) == step
    assert kernel.tokens_per_step(tokens, 4) == 16


@once_more
def test_kernel_law_in_the_interpreter():
    run_interpreted(__file__)
