"""A matrix in int8 equals the oracle, multiplies like what it stands for, and keeps one byte."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from cdra_mm.core import PlanError, digests_of
from cdra_mm.core.model.row_int8 import RowInt8, is_int8, quantize
from tests.reference import int8 as reference


def matrix(rows=6, cols=5, seed=0):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def layer(bias=True):
    """A linear layer in int8, and one with the values that it stands for."""
    torch.manual_seed(0)
    small = nn.Linear(5, 6, bias)
    small.weight = nn.Parameter(quantize(small.weight), requires_grad=False)
    plain = nn.Linear(5, 6, bias)
    plain.load_state_dict(small.state_dict())
    plain.weight.requires_grad_(False)
    return small, plain


class Kept:
    """What autograd puts aside for the backward."""

    def __enter__(self):
        self.tensors = []
        hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._hooks = hooks
        hooks.__enter__()
        return self

    def __exit__(self, *error):
        self._hooks.__exit__(*error)

    def _keep(self, tensor):
        self.tensors.append(tensor)
        return tensor


@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1.0, 1e-3, 1e30, 1e-36, 0.0]),
)
def test_quantize_equals_the_oracle_and_changes_nothing_the_second_time(seed, rows, cols, size):
    weight = matrix(rows, cols, seed) * size
    weight[seed % rows] *= 3
    small = quantize(weight)
    assert torch.equal(small.whole(), reference.quantized(weight))
    again = quantize(small.whole())
    assert torch.equal(again.codes, small.codes) and torch.equal(again.scales, small.scales)
    error = (small.whole().double() - weight.double()).abs()
    bound = small.scales.double() * (0.5 + 127 * 2.0**-16)
    assert bool((error <= bound).all())


def test_a_matrix_takes_a_byte_an_entry_and_four_a_row():
    small = quantize(matrix(64, 48))
    assert small.nbytes == 64 * 48 + 4 * 64
    assert small.dtype == torch.float32 and small.shape == (64, 48) and is_int8(small)


@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shape', [(7,), (2, 3), ()])
def test_a_product_and_its_gradient_are_those_of_the_plain_weight(dtype, bias, shape):
    small, plain = layer(bias)
    given = [torch.randn(*shape, 5, generator=torch.Generator().manual_seed(1)) for _ in range(1)]
    found = []
    for one in (small, plain):
        x = given[0].clone().requires_grad_()
        with torch.autocast('cpu', dtype or torch.bfloat16, enabled=dtype is not None):
            y = one(x)
        found.append((y, *torch.autograd.grad(y.float().square().sum(), x)))
    for ours, right in zip(*found, strict=True):
        assert ours.dtype == right.dtype and torch.equal(ours, right)


@pytest.mark.parametrize('autocast', [False, True])
def test_no_whole_weight_is_kept_for_the_backward(autocast):
    small, _ = layer()
    x = torch.randn(2, 3, 5, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast), Kept() as kept:
        small(x)
    assert [is_int8(tensor) for tensor in kept.tensors] == [True]


@pytest.mark.parametrize('batch_first', [True, False])
def test_torch_attention_keeps_no_whole_weight_either(batch_first):
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=batch_first).requires_grad_(False)
    small = copy.deepcopy(plain)
    for module, name in ((small, 'in_proj_weight'), (small.out_proj, 'weight')):
        made = quantize(getattr(module, name))
        setattr(module, name, nn.Parameter(made, requires_grad=False))
    plain.load_state_dict(small.state_dict())
    x = torch.randn(3, 3, 8, requires_grad=True)
    with Kept() as kept:
        y = small(x, x, x)[0]
    assert torch.equal(y, plain(x, x, x)[0])
    assert sum(map(is_int8, kept.tensors)) == 2
    assert not any(t.shape[-2:] == (8, 24) for t in kept.tensors if not is_int8(t))
    with torch.inference_mode():
        assert torch.equal(small.eval()(x, x, x)[0], plain.eval()(x, x, x)[0])


def test_a_cast_is_noted_only():
    small = quantize(matrix())
    half = small.to(torch.bfloat16)
    assert is_int8(half) and half.dtype == torch.bfloat16
    assert torch.equal(half.whole(), small.whole().to(torch.bfloat16))
    assert torch.equal(small.double().whole().float(), small.whole())
    whole = small.to(torch.int64)
    assert not is_int8(whole) and torch.equal(whole, small.whole().to(torch.int64))


def test_a_view_is_in_int8_and_shows_the_same():
    small = quantize(matrix())
    for view in (lambda w: w.t(), lambda w: w[1:3], lambda w: w[:, 2], lambda w: w.expand(4, 6, 5),
                 lambda w: w.chunk(2)[1], lambda w: w.t()[2:].unsqueeze(0),
                 lambda w: w.view(2, 3, 5), lambda w: w.unbind(1)[3]):  # fmt: skip
        part = view(small)
        assert is_int8(part) and torch.equal(part.whole(), view(small.whole()))
        assert part.clone().whole().equal(part.whole())
    flat = small.view(30)  # rows have scales of their own: a plain tensor
    assert not is_int8(flat) and torch.equal(flat, small.whole().view(30))


def test_nothing_is_written_into_a_view():
    small = quantize(matrix())
    for part in (small[1:3], small.t()):
        with pytest.raises(PlanError, match='a part of a weight that is kept in int8'):
            part.zero_()


def test_what_is_written_is_quantised():
    small, values = quantize(matrix()), matrix(seed=1)
    small.copy_(values)
    assert torch.equal(small.whole(), quantize(values).whole())
    assert small.mul_(2) is small
    assert torch.equal(small.whole(), quantize(values).whole() * 2)
    torch._foreach_mul_([small], 0.5)
    assert torch.equal(small.whole(), quantize(values).whole())


def test_its_digest_is_that_of_what_it_was_made_of_and_follows_what_is_written():
    weight, other = matrix(), matrix(seed=1)
    small = nn.Parameter(quantize(weight), requires_grad=False)
    assert digests_of({'w': small}) == digests_of({'w': weight})
    small.data.lerp_(small.whole(), 0.1)  # an average of equals
    assert digests_of({'w': small}) == digests_of({'w': weight})
    small.data.copy_(other)  # shares its memory
    assert digests_of({'w': small}) == digests_of({'w': other})
    kept = copy.deepcopy(small)
    small.data.copy_(quantize(weight))
    assert digests_of({'w': small}) == digests_of({'w': weight})
    assert digests_of({'w': kept}) == digests_of({'w': other})


def test_a_module_can_be_moved_copied_and_cast():
    small, plain = layer()
    for change in (lambda m: m.to('meta'), copy.deepcopy, lambda m: m.to(torch.bfloat16)):
        changed = change(copy.deepcopy(small))
        assert is_int8(changed.weight) and isinstance(changed.weight, nn.Parameter)
    x = torch.randn(2, 5).to(torch.bfloat16)
    assert torch.equal(changed(x), plain.to(torch.bfloat16)(x))


@pytest.mark.parametrize('weights_only', [True, False])
def test_a_state_dict_comes_back_bit_for_bit(weights_only):
    small, plain = layer()
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=weights_only)
    found, _ = layer()
    found.weight.data.zero_()
    found.load_state_dict(state)
    assert torch.equal(found.weight.codes, small.weight.codes)
    assert torch.equal(found.weight.scales, small.weight.scales)
    assert found.weight.origin == small.weight.origin
    plain.weight.data.zero_()
    plain.load_state_dict(state)
    assert torch.equal(plain.weight, small.weight.whole())


def test_it_cannot_be_trained():
    small, _ = layer()
    with pytest.raises(PlanError, match=r'a weight of \[6, 5\] is kept in int8 and cannot be trai'):
        small.requires_grad_(True)


def test_the_size_alone_asks_for_no_values(monkeypatch):
    small = quantize(matrix())
    monkeypatch.setattr(RowInt8, 'whole', None)
    assert small.new_zeros(3).shape == (3,) and type(small.new_zeros(3)) is torch.Tensor
    assert torch.zeros_like(small).shape == small.shape
    assert torch.zeros_like(small).is_contiguous()


def test_a_compiled_layer_computes_the_same():
    small, _ = layer()
    compiled = torch.compile(small, backend='aot_eager')
    x = torch.randn(2, 5, requires_grad=True)
    assert torch.equal(compiled(x), small(x))
    (found,) = torch.autograd.grad(compiled(x).sum(), x)
    (right,) = torch.autograd.grad(F.linear(x, small.weight).sum(), x)
    torch.testing.assert_close(found, right)
