"""Every strategy of the adapted product: values, gradients, and what it keeps for the backward."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cdra_mm.core.adapters import compact_linear as module
from cdra_mm.core.adapters import copied_linear as copied
from cdra_mm.core.adapters.compact_linear import compact_linear
from cdra_mm.core.adapters.joint_blocks import join_blocks
from cdra_mm.core.adapters.kept_copies import KeptCopies
from cdra_mm.core.adapters.layer_copy import Layer

IN_PLACE = {  # (merged, widest block whose own gradient is taken)
    'merged, through the block': (True, 1 << 30),
    'merged, through the factors': (True, 0),
    'factored': (False, 0),
}
COPIED = {  # widest block whose own gradient is taken
    'copied, through the block': 1 << 40,
    'copied, through the factors': 0,
}
KEPT = {  # widest block whose own gradient is taken
    'kept, through the block': 1 << 30,
    'kept, through the factors': 0,
}
STRATEGIES = [*IN_PLACE, *COPIED, *KEPT]


each_strategy = pytest.mark.parametrize('strategy', STRATEGIES)
each_in_place = pytest.mark.parametrize('strategy', IN_PLACE)


@contextmanager
def taking(strategy):
    """Makes a product take one of its ways whatever the shapes and types are."""
    with pytest.MonkeyPatch.context() as patch:
        if strategy in COPIED:
            patch.setattr(copied, 'LARGEST_BLOCK', COPIED[strategy])
            yield
            return
        if strategy in KEPT:
            patch.setattr(module, 'SMALL_BLOCK', KEPT[strategy])
            yield
            return
        full, small = IN_PLACE[strategy]
        patch.setattr(module, 'takes_merged', lambda x, weight: full)
        patch.setattr(module, 'SMALL_BLOCK', small)
        yield


class Problem:
    """A layer with adapters on `heights` rows each (a fused layer has several), and its inputs."""

    def __init__(self, o, i, sizes, dtype, *, scale=0.5, seed=0, tokens=(3, 4), runs=False):
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        part = o // len(sizes)
        self.x, self.weight, self.bias = randn(*tokens, i), randn(o, i), randn(o)
        self.blocks, self.factors, self.indices = [], [], []
        for at, (r, c, rank) in enumerate(sizes):
            rows = at * part + torch.randperm(part, generator=generator)[:r]
            cols = torch.randperm(i, generator=generator)[:c]
            if runs:
                rows, cols = (torch.arange(len(x)) + int(x.min()) for x in (rows, cols))
                cols = cols - max(0, int(cols.max()) + 1 - i)
                rows = rows - max(0, int(rows.max()) + 1 - (at + 1) * part)
            self.indices.append((rows, cols))
            given = [slice(int(x[0]), int(x[-1]) + 1) if runs else x for x in (rows, cols)]
            self.blocks.append((*given, scale))
            self.factors += [randn(rank, c), randn(r, rank)]

    def run(self, strategy):
        with taking(strategy):
            return self.product(strategy, self.x, self.bias, self.factors)

    def product(self, strategy, x, bias, factors):
        if strategy in IN_PLACE:
            return compact_linear(x, self.weight, bias, self.blocks, factors)
        joint = join_blocks(self.blocks, self.weight.device, tuple(self.weight.shape))
        assert joint.disjoint
        layer = Layer(self.weight, bias, joint, list(factors))
        if strategy in COPIED:
            return copied.copied_linear(x, layer)
        kept = KeptCopies([layer], x.dtype)
        kept.refresh([layer])
        return copied.copied_linear(x, layer, kept.copy_of(0, layer, x.dtype))

    def reference(self):
        """By the dense product in fp64, and autograd."""
        weight = self.weight.double()
        for (rows, cols), (_, _, scale), down, up in zip(
            self.indices, self.blocks, self.factors[::2], self.factors[1::2], strict=True
        ):
            delta = scale * up.double() @ down.double()
            weight = weight.index_put((rows[:, None], cols), delta, accumulate=True)
        return F.linear(self.x.double(), weight, self.bias.double())

    def gradients(self, y, strategy):
        """Of the input (where it asks for one), the bias and all factors."""
        inputs = [t for t in (self.x, self.bias, *self.factors) if t.requires_grad]
        torch.manual_seed(1)
        with taking(strategy):
            return torch.autograd.grad(y, inputs, torch.randn(y.shape, dtype=torch.float64).to(y))

    def requires_grad(self):
        for tensor in (self.x, self.bias, *self.factors):
            tensor.requires_grad_()
        return self


SIZES = {
    'one adapter': (9, 7, [(4, 3, 2)]),
    'all columns': (9, 7, [(4, 7, 2)]),
    'fused, narrow': (9, 12, [(2, 3, 2), (3, 1, 1), (1, 4, 1)]),
    'fused, wider than x together': (9, 7, [(2, 3, 2), (3, 4, 1), (1, 2, 1)]),
    'everything': (5, 6, [(5, 6, 5)]),
}


@each_strategy
@pytest.mark.parametrize('runs', [False, True], ids=['indices', 'runs'])
@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
def test_strategy_passes_gradcheck(strategy, sizes, runs):
    problem = Problem(*sizes, torch.float64, runs=runs).requires_grad()
    inputs = (problem.x, problem.bias, *problem.factors)

    def run(x, bias, *factors):
        return problem.product(strategy, x, bias, factors)

    with taking(strategy):
        assert torch.autograd.gradcheck(run, inputs)


@each_strategy
@given(
    o=st.integers(1, 12),
    i=st.integers(1, 12),
    adapters=st.integers(1, 3),
    tokens=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    runs=st.booleans(),
    data=st.data(),
)
def test_strategy_equals_the_dense_product(strategy, o, i, adapters, tokens, runs, data):
    def size(limit):
        return data.draw(st.integers(1, limit))

    sizes = [(size(o), size(i), size(4)) for _ in range(adapters)]
    problem = Problem(o * adapters, i, sizes, torch.float64, tokens=tokens, runs=runs)
    problem.requires_grad()
    y, expected = problem.run(strategy), problem.reference()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        problem.gradients(y, strategy),
        problem.gradients(expected, strategy),
        rtol=1e-11,
        atol=1e-11,
    )


@each_strategy
@pytest.mark.parametrize('sizes', [(96, 64, [(20, 30, 4)]), (96, 64, [(9, 40, 3)] * 3)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_strategy_is_as_exact_as_its_type(strategy, sizes, dtype):
    problem = Problem(*sizes, dtype, tokens=(50,)).requires_grad()
    # Every product rounds once to the type, and a few are chained: eight roundings of the largest.
    bound = 8 * torch.finfo(dtype).eps
    y, expected = problem.run(strategy), problem.reference()
    grads = problem.gradients(y, strategy), problem.gradients(expected, strategy)
    pairs = [(y, expected), *zip(*grads, strict=True)]
    for actual, wanted in pairs:
        assert actual.dtype == dtype
        error = (actual.double() - wanted.double()).detach().abs().max()
        assert float(error) <= bound * float(wanted.detach().abs().max())


def kept_bytes(problem, strategy):
    """Bytes kept for the backward, each storage once, without the layer's own tensors."""
    own = {t.data_ptr() for t in (problem.weight, problem.bias, *problem.factors)}
    own |= {index.data_ptr() for pair in problem.indices for index in pair}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = problem.run(strategy)
    assert y.requires_grad
    return sum(kept.values())


@each_in_place
@pytest.mark.parametrize('runs', [False, True], ids=['indices', 'runs'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_only_selected_columns_are_kept(strategy, dtype, runs):
    sizes = [(20, 5, 2), (20, 6, 2), (20, 7, 2)]
    problem = Problem(90, 64, sizes, dtype, tokens=(50,), runs=runs)
    hidden = 6 if strategy == 'factored' else 0
    kept = kept_bytes(problem.requires_grad(), strategy)
    assert kept == 50 * (5 + 6 + 7 + hidden) * dtype.itemsize


@each_in_place
def test_input_is_kept_where_the_columns_together_are_wider(strategy):
    problem = Problem(90, 64, [(20, 30, 2)] * 3, torch.float32, tokens=(50,)).requires_grad()
    hidden = 6 if strategy == 'factored' else 0
    assert kept_bytes(problem, strategy) == 50 * (64 + hidden) * 4


@pytest.mark.parametrize('columns', [5, 30], ids=['selected', 'whole'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_copied_weight_is_kept_unless_the_base_is_of_its_type(dtype, columns):
    """Beside the columns; a base in half precision is not held twice."""
    problem = Problem(96, 64, [(20, columns, 2)] * 3, dtype, tokens=(50,)).requires_grad()
    copy = 96 * 64 * 4 + 128 * 4 if dtype == torch.float32 else 0  # the bias is padded
    kept = kept_bytes(problem, 'copied, through the block') - copy
    assert kept == 50 * min(64, 3 * columns) * dtype.itemsize


@each_strategy
def test_nothing_is_kept_without_gradients(strategy):
    problem = Problem(9, 7, [(4, 3, 2)], torch.float32).requires_grad()
    with torch.no_grad():
        assert problem.run(strategy).grad_fn is None


@pytest.mark.parametrize(
    ('dtype', 'precision', 'tokens', 'merged'),
    [
        (torch.float64, 'highest', 30, True),
        (torch.float32, 'highest', 30, True),
        (torch.float32, 'highest', 9, False),  # 2.5 * 9 * 7 / (9 + 7) = 9.8
        (torch.float32, 'highest', 10, True),
        (torch.float32, 'high', 30, False),
        (torch.bfloat16, 'highest', 30, False),
        (torch.float16, 'highest', 30, False),
    ],
)
def test_weights_are_merged_in_full_precision_for_many_tokens(dtype, precision, tokens, merged):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        p = Problem(9, 7, [(4, 3, 2)], dtype, tokens=(tokens,)).requires_grad()
        y = compact_linear(p.x, p.weight, p.bias, p.blocks, p.factors)
    finally:
        torch.set_float32_matmul_precision(before)
    node = y.grad_fn
    while 'Linear' not in node.name():
        node = node.next_functions[0][0]
    assert ('_MergedLinear' in node.name()) is merged


@each_strategy
def test_input_without_gradient_gets_none(strategy):
    problem = Problem(9, 7, [(4, 3, 2)], torch.float64).requires_grad()
    wanted = problem.gradients(problem.run(strategy), strategy)[1:]
    problem.x = problem.x.detach()
    torch.testing.assert_close(problem.gradients(problem.run(strategy), strategy), wanted)
