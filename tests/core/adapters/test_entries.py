"""Single trained entries of a matrix: what a dense effective weight gives, without its gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from cdra_mm.core import (
    Block,
    Part,
    Plan,
    PlanError,
    SparseMatrix,
    adapters,
    apply_plan,
    build_adapters,
    load_adapter,
    merge_adapters,
    save_adapter,
    unmerge_adapters,
)
from cdra_mm.core.adapters import adapter_set, entries
from tests.reference.layers import dense_model


def reference(x, weight, bias, index, value):
    """By a dense weight whose every entry gets a gradient."""
    wide = weight.flatten().clone()
    for n, i in enumerate(index.tolist()):
        wide = wide.index_put((torch.tensor(i),), wide[i] + value[n].to(wide.dtype))
    return F.linear(x, wide.view(weight.shape), bias)


def problem(out=5, width=4, tokens=3, number=6, dtype=torch.float64):
    x = torch.randn(2, tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(out, width, dtype=dtype)
    bias = torch.randn(out, dtype=dtype, requires_grad=True)
    index = torch.randperm(out * width)[:number]
    value = torch.randn(number, dtype=dtype, requires_grad=True)
    return x, weight, bias, index, value


def placed(index, weight):
    return entries.place_entries([index], weight.shape[1])


@given(st.integers(1, 7), st.integers(1, 6), st.integers(0, 5), st.integers(1, 42))
def test_entries_linear_equals_the_dense_weight(out, width, tokens, number):
    """Values and all gradients, any share of entries, also of no tokens."""
    x, weight, bias, index, value = problem(out, width, tokens, min(number, out * width))
    ours = entries.entries_linear(x, weight, bias, placed(index, weight), value)
    dense = reference(x, weight, bias, index, value)
    torch.testing.assert_close(ours, dense)
    seed = torch.randn_like(dense)
    inputs = (x, bias, value)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(dense, inputs, seed),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('scratch', [1, 10**9])
def test_entries_linear_gradient_entry_by_entry_equals_through_the_block(monkeypatch, scratch):
    """Scattered entries of a large block are summed one by one, in pieces."""
    x, weight, bias, _, _ = problem(out=200, width=150)
    index = torch.arange(150) * 150 + torch.randperm(150)
    value = torch.randn(150, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(entries, 'SCRATCH_NUMBERS', scratch)
    monkeypatch.setattr(torch.Tensor, 't', lambda _: pytest.fail('the block was made'))
    ours = entries.entries_linear(x, weight, bias, placed(index, weight), value)
    (grad,) = torch.autograd.grad(ours.square().sum(), value)
    monkeypatch.undo()
    (dense,) = torch.autograd.grad(reference(x, weight, bias, index, value).square().sum(), value)
    torch.testing.assert_close(grad, dense, rtol=1e-5, atol=1e-4)  # summed in fp32


def test_entries_linear_gradcheck():
    x, weight, bias, index, value = problem()
    places = placed(index, weight)
    torch.autograd.gradcheck(
        lambda x, bias, value: entries.entries_linear(x, weight, bias, places, value),
        (x, bias, value),
    )


def test_entries_linear_in_bf16_adds_small_values_in_fp32():
    """W + value is rounded once, for the product: the value itself keeps its precision."""
    weight = torch.ones(1, 1, dtype=torch.bfloat16)
    value = torch.full((1,), 2.0**-7 * 0.75)
    index = torch.tensor([0])
    x = torch.ones(1, 1, dtype=torch.bfloat16)
    assert entries.entries_linear(x, weight, None, placed(index, weight), value).item() == 1 + 2**-7
    value.requires_grad_()
    entries.entries_linear(x, weight, None, placed(index, weight), value).sum().backward()
    assert value.grad.dtype == torch.float32 and value.grad.item() == 1


class Fused(nn.Module):
    """A fused qkv, as ViTs have it."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x):
        return self.qkv(x)


class Model(nn.Sequential):
    def __init__(self):
        super().__init__(Fused())


def mixed_plan():
    """Entries of q and of k, a low-rank block of v: SPT decides for each."""
    return Plan(
        method='x',
        sparse=(
            SparseMatrix('0.qkv.weight:q', (4, 4), (3, 9)),
            SparseMatrix('0.qkv.weight:k', (4, 4), (15, 0, 2)),
        ),
        blocks=(Block('0.qkv.weight:v', (4, 4), (1, 3), (0, 2, 3), 2, 6),),
    )


def adapted(plan, dtype=torch.float64):
    torch.manual_seed(0)
    base = Model().to(dtype)
    model = apply_plan(copy.deepcopy(base), plan)
    with torch.no_grad():
        for adapter in adapters(model).values():
            for parameter in adapter.parameters():
                parameter.copy_(torch.randn_like(parameter))
    return base, model


@pytest.mark.parametrize('kinds', [('sparse',), ('blocks',), ('sparse', 'blocks')])
def test_entries_and_blocks_of_one_fused_weight(kinds):
    full = mixed_plan()
    plan = Plan(method='x', **{kind: getattr(full, kind) for kind in kinds})
    base, model = adapted(plan)
    dense = dense_model(base, model.state_dict())
    x = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    y, expected = model(x), dense(x)
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    y.backward(seed)
    (dx,) = torch.autograd.grad(expected, x, seed, retain_graph=True)
    torch.testing.assert_close(x.grad, dx)
    expected.backward(seed)
    gradient = dense[0].qkv.weight.grad
    for name, adapter in adapters(model).items():
        part = gradient.chunk(3)['qkv'.index(name[-1])]
        if hasattr(adapter, 'value'):
            torch.testing.assert_close(adapter.value.grad, part.flatten()[adapter.index])
        else:
            block = part[adapter.rows][:, adapter.cols]
            torch.testing.assert_close(adapter.down.grad, adapter.up.t() @ block)
            torch.testing.assert_close(adapter.up.grad, block @ adapter.down.t())


def test_entries_merge_and_come_out_again():
    base, model = adapted(mixed_plan())
    x = torch.randn(3, 4, dtype=torch.float64)
    before = model(x)
    merge_adapters(model)
    torch.testing.assert_close(model(x), before)
    assert sum(key.endswith('value') for key in model.state_dict()) == 0
    unmerge_adapters(model)
    torch.testing.assert_close(model(x), before)


def test_entries_build_again_from_a_state_dict_and_from_a_file(tmp_path):
    base, model = adapted(mixed_plan())
    state = model.state_dict()
    again = copy.deepcopy(base)
    build_adapters(again, state)
    again.load_state_dict(state)
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(again(x), model(x))
    save_adapter(model, tmp_path / 'a.safetensors')
    loaded = copy.deepcopy(base)
    assert load_adapter(loaded, tmp_path / 'a.safetensors') == mixed_plan()
    assert torch.equal(loaded(x), model(x))


def test_block_scale_travels_and_dropout_is_off_in_evaluation(tmp_path):
    block = Block('0.qkv.weight', (12, 4), tuple(range(12)), (0, 1, 2, 3), 2, 0, 4.0, 0.5)
    base, model = adapted(Plan(method='x', blocks=(block,)))
    x = torch.randn(300, 4, dtype=torch.float64)
    (adapter,) = adapters(model).values()
    model.eval()
    expected = base(x).detach() + 4 * x @ adapter.down.detach().t() @ adapter.up.detach().t()
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(dense_scaled(base, adapter)(x), expected)
    model.train()
    draws = torch.stack([model(x).detach() for _ in range(200)])
    assert not torch.equal(draws[0], draws[1])
    spread = draws.std(0) / 200**0.5
    assert float(((draws.mean(0) - expected) / spread.clamp_min(1e-9)).abs().max()) < 6
    again = copy.deepcopy(base)
    build_adapters(again, model.state_dict())
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(x), expected)


def dense_scaled(base, adapter):
    model = copy.deepcopy(base)
    with torch.no_grad():
        model[0].qkv.weight += 4 * adapter.up @ adapter.down
    return model


@pytest.mark.parametrize(
    ('plan', 'message'),
    [
        (Plan(sparse=(SparseMatrix('0.qkv.weight:q', (5, 4), (1,)),)), 'another architecture'),
        (Plan(sparse=(SparseMatrix('0.no.weight', (4, 4), (1,)),)), 'no parameter'),
        (Plan(parts=(Part('0.qkv.weight', 'entries', {'index': 3}, 1),)), 'cannot be put on'),
        (Plan(parts=(Part('0.qkv.weight', 'wings', {}, 1),)), "'wings' is unknown"),
    ],
)
def test_entries_that_do_not_fit_change_nothing(plan, message):
    model = Model()
    with pytest.raises(PlanError, match=message):
        apply_plan(model, plan)
    assert not adapters(model) and all(p.requires_grad for p in model.parameters())


def test_adapter_put_on_a_model_in_evaluation_drops_nothing():
    block = Block('0.qkv.weight', (12, 4), tuple(range(12)), (0, 1, 2, 3), 2, 0, 1.0, 0.5)
    model = Model().double().eval()
    apply_plan(model, Plan(method='x', blocks=(block,)))
    for adapter in adapters(model).values():
        assert not adapter.training


@pytest.mark.parametrize('kinds', [('sparse',), ('sparse', 'blocks')])
def test_where_entries_lie_is_looked_for_once(monkeypatch, kinds):
    """On a GPU a step would wait for it."""
    made, place = [], entries.place_entries
    monkeypatch.setattr(
        adapter_set, 'place_entries', lambda *given: made.append(given) or place(*given)
    )
    full = mixed_plan()
    _, model = adapted(Plan(method='x', **{kind: getattr(full, kind) for kind in kinds}))
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    expected = model(x)
    for _ in range(2):
        model(x).sum().backward()
    assert len(made) == 1
    for adapter in adapters(model).values():
        if isinstance(adapter, entries.Entries):  # as a move to another device does
            adapter.index = adapter.index.clone()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert len(made) == 2


@pytest.mark.parametrize('kinds', [('sparse',), ('sparse', 'blocks')])
def test_single_entries_compile_into_one_graph(kinds):
    full = mixed_plan()
    _, model = adapted(Plan(method='x', **{kind: getattr(full, kind) for kind in kinds}))
    model = nn.Sequential(model)  # torch compiles hooks of what it is given apart
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    wanted = model(x)
    torch._dynamo.reset()
    found = torch.compile(model, backend='aot_eager', fullgraph=True)(x)
    values = [p for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), values), torch.autograd.grad(wanted.sum(), values)
    )


def test_a_step_may_follow_an_evaluation_in_inference_mode():
    _, model = adapted(mixed_plan())
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    with torch.inference_mode():
        expected = model(x)
    found = model(x)
    found.sum().backward()
    torch.testing.assert_close(found, expected)
