"""The adapted product in C++: the same bits as in Python, and when it is taken."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import re
import shutil
import stat
import sys
import threading
import time
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cdra_mm.core import ConfigError
from cdra_mm.core.adapters import copied_linear as copied
from cdra_mm.core.adapters import joint_blocks, layers_to_copy, native_linear
from cdra_mm.core.adapters.copied_weights import carriers, choose_product
from cdra_mm.core.adapters.joint_blocks import JointBlocks, join_blocks
from cdra_mm.core.adapters.kept_copies import KeptCopies
from cdra_mm.core.adapters.layer_copy import Layer, copy_layers
from cdra_mm.core.adapters.native_linear import NATIVE, Native
from cdra_mm.core.native import building
from tests.core.adapters.native import native, needs_compiler
from tests.core.adapters.test_compact_linear import COPIED, KEPT, Problem, taking
from tests.core.problems import adapted
from tests.models import images

pytestmark = needs_compiler
CPU = torch.device('cpu')
SIZES = {
    'one block': (12, 9, [(5, 4, 2)]),
    'three blocks': (12, 9, [(3, 4, 2), (2, 5, 1), (4, 1, 3)]),
    'wider than the input': (12, 9, [(3, 4, 2), (2, 5, 1), (4, 7, 3)]),
}


class Layers:
    """A layer of `Problem`, its copy, and what is trained of it."""

    def __init__(
        self, problem, strategy, *, input_learns=True, bias_learns=True, factors_learn=True
    ):
        self.x = problem.x.detach().clone().requires_grad_(input_learns)
        self.bias = problem.bias.detach().clone().requires_grad_(bias_learns)
        self.factors = [f.detach().clone().requires_grad_(factors_learn) for f in problem.factors]
        joint = join_blocks(problem.blocks, CPU, tuple(problem.weight.shape))
        self.layer = Layer(problem.weight, self.bias, joint, self.factors)
        if strategy in KEPT:
            self.kept = KeptCopies([self.layer], self.x.dtype)
            self.kept.refresh([self.layer])
            self.copy = self.kept.copy_of(0, self.layer, self.x.dtype)
        else:
            self.copy = copy_layers([self.layer], self.x.dtype)[0]

    def __call__(self):
        return copied.multiply_by_copy(self.x, self.layer, self.copy)

    @property
    def learning(self):
        return [t for t in (self.x, self.bias, *self.factors) if t.requires_grad]


def in_both(run):
    """What a function gives with Python's product and with that in C++, which must be asked for."""
    with native(False):
        python = run()
    with native(True):
        compiled = run()
    return python, compiled


def one(strategy='copied, through the block', sizes='three blocks', dtype=torch.float32, **given):
    return Layers(Problem(*SIZES[sizes], dtype), strategy, **given)


def node_of(y):
    return y.grad_fn.name()


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('strategy', [*COPIED, *KEPT])
@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    tokens=st.sampled_from([(3,), (2, 3), (2, 1, 3), (0, 3)]),
    runs=st.booleans(),
    scale=st.sampled_from([1.0, 0.5]),
    learns=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any),
    narrow=st.booleans(),
)
def test_bits_are_those_of_python(strategy, sizes, dtype, tokens, runs, scale, learns, narrow):
    problem = Problem(
        *SIZES[sizes], dtype, scale=scale, tokens=tokens, runs=runs and sizes == 'one block'
    )
    if dtype == torch.bfloat16:  # under autocast: a base in half precision is not copied at once
        problem.weight, problem.bias = problem.weight.float(), problem.bias.float()
    problem.factors = [f if narrow else f.float() for f in problem.factors]
    names = 'input_learns', 'bias_learns', 'factors_learn'

    def run():
        layer = Layers(problem, strategy, **dict(zip(names, learns, strict=True)))
        y = layer()
        # Neither the input nor the gradient need lie in one piece.
        upstream = torch.randn(*tokens, 2 * y.shape[-1], generator=torch.Generator().manual_seed(1))
        y.backward(upstream.to(dtype)[..., ::2])
        return node_of(y), [y.detach(), *(t.grad for t in layer.learning)]

    with taking(strategy):
        (slow, wanted), (fast, found) = in_both(run)
    assert (slow, fast) == ('_CopiedLinearBackward', 'CopiedLinearBackward')
    assert len(found) == len(wanted)
    for mine, right in zip(found, wanted, strict=True):
        assert mine.dtype == right.dtype
        assert torch.equal(mine, right)


@pytest.mark.parametrize('blocks', [[(3, 4, 2)], [(3, 4, 2), (2, 9, 1), (4, 1, 3)]])
@pytest.mark.parametrize('strategy', COPIED)
def test_columns_that_a_gpu_takes_in_vain_change_nothing(monkeypatch, strategy, blocks):
    """So that it can load vectors; what lies in them may be anything."""

    def run():
        problem = Problem(12, 60, blocks, torch.float64)
        used = torch.cat([cols for _, cols in problem.indices])
        layer = Layers(problem, strategy)
        y = layer()
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double())
        taken = layer.layer.joint
        columns = [taken.cols[b : b + w] for b, w in zip(taken.begins, taken.widths, strict=True)]
        assert torch.equal(torch.cat(columns), used)
        assert taken.width == len(taken.cols)
        return taken.width, [t.grad for t in layer.learning]

    with taking(strategy):
        (width, wanted), _ = in_both(run)
        monkeypatch.setattr(joint_blocks, '_takes_vectors', lambda device: True)
        for vain, found in in_both(run):
            assert vain > width and vain % (2 * joint_blocks.VECTOR) == 0
            torch.testing.assert_close(found, wanted)
        moved = Layers(Problem(12, 60, blocks, torch.float64), strategy).layer.joint
        monkeypatch.undo()
        assert moved.moved(CPU).width == width


@pytest.mark.parametrize('product', ['copied', 'kept'])
@pytest.mark.parametrize('autocast', [False, True])
def test_model_is_the_same_to_the_bit(product, autocast):
    def run():
        _, model, _ = adapted('fused', dtype=torch.float32)
        choose_product(model, product)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            loss = model(images(2, torch.float32)[0]).float().square().mean()
            loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    wanted, found = in_both(run)
    assert len(found) == len(wanted) > 20
    assert all(map(torch.equal, found, wanted))


def test_output_may_be_written_to():
    def run():
        layer = one()
        torch.relu_(layer()).sum().backward()
        return [t.grad for t in layer.learning]

    wanted, found = in_both(run)
    assert all(map(torch.equal, found, wanted))


def test_no_graph_without_gradients():
    def run():
        with torch.no_grad():
            y = one()()
        assert not y.requires_grad
        assert not one(input_learns=False, bias_learns=False, factors_learn=False)().requires_grad
        return y

    assert torch.equal(*in_both(run))


def messages_of(fault):
    """What a fault says in Python and in C++."""

    def run():
        with pytest.raises(RuntimeError) as caught:
            fault()
        return str(caught.value)

    return in_both(run)


def test_second_derivative_is_refused():
    def fault():
        layer = one()
        grads = torch.autograd.grad(layer().sum(), layer.learning, create_graph=True)
        sum(g.square().sum() for g in grads).backward()

    def through_the_gradient():
        layer = one()
        y = layer()
        upstream = torch.ones_like(y, requires_grad=True)
        grads = torch.autograd.grad(y, layer.learning, upstream, create_graph=True)
        assert all(g.requires_grad for g in grads)
        sum(g.square().sum() for g in grads).backward()

    python, compiled = messages_of(through_the_gradient)
    assert 'differentiate twice' in python
    assert compiled == python
    python, compiled = messages_of(fault)
    assert compiled == python  # the gradients do not hang on anything


def test_gradients_of_nothing_are_zero():
    """A function after it that gives no gradient: torch fills in zeros for one in Python."""

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.sum()

        @staticmethod
        def backward(ctx, grad):
            return None

    def run():
        layer = one()
        Nothing.apply(layer()).backward()
        return [t.grad for t in layer.learning]

    python, compiled = in_both(run)
    assert all(map(torch.equal, compiled, python))
    assert not any(grad.any() for grad in compiled)


def test_write_between_forward_and_backward_is_noticed():
    def of_a_factor():
        layer = one()
        y = layer()
        with torch.no_grad():
            layer.factors[1].add_(1)
        y.sum().backward()

    def of_the_input():
        layer = one(sizes='wider than the input', input_learns=False)
        y = layer()
        layer.x.add_(1)
        y.sum().backward()

    for fault in (of_a_factor, of_the_input):
        python, compiled = messages_of(fault)
        assert 'modified by an inplace operation' in python
        assert 'modified by an inplace operation' in compiled


def test_graph_is_there_once():
    def twice():
        loss = one()().sum()
        loss.backward()
        loss.backward()

    for message in messages_of(twice):
        assert 'backward through the graph a second time' in message

    def kept():
        layer = one()
        loss = layer().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        return [t.grad for t in layer.learning]

    python, compiled = in_both(kept)
    assert all(map(torch.equal, compiled, python))


def test_the_same_is_saved():
    """For the memory, and for who takes it elsewhere (`torch.autograd.graph.save_on_cpu`)."""

    def run():
        saved = []
        layer = one()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            layer().sum().backward()
        return saved

    python, compiled = in_both(run)
    assert len(python) == len(compiled) >= 8
    assert all(map(torch.equal, compiled, python))


def test_nothing_is_left_after_the_graph():
    with native(True):
        layer = one()
        joint = layer.layer.joint
        before = sys.getrefcount(joint)
        y = layer()
        assert sys.getrefcount(joint) == before + 1
        y.sum().backward()
        found = weakref.ref(layer.factors[0])
        del y
        assert sys.getrefcount(joint) == before
        del layer
        gc.collect()
        assert found() is None


def test_hooks_of_its_node_run():
    def run():
        seen, layer = [], one()
        y = layer()
        y.register_hook(lambda g: 2 * g)
        y.grad_fn.register_hook(lambda ins, outs: seen.append((len(ins), len(outs))))
        y.sum().backward()
        return seen, [t.grad for t in layer.learning]

    (seen, wanted), (also, found) = in_both(run)
    assert [outs for _, outs in seen] == [outs for _, outs in also] == [1]
    assert all(map(torch.equal, found, wanted))


def test_error_of_the_gradients_in_python_arrives():
    def broken(*_):
        raise ZeroDivisionError('of my own')

    with native(True):
        NATIVE.tell(0, broken)
        layer = one()
        with pytest.raises(ZeroDivisionError, match='of my own'):
            layer().sum().backward()


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_who_looks_at_operations_sees_them():
    def run():
        layer = one()
        with Seen() as mode:
            layer().sum().backward()
        return mode.names

    python, compiled = in_both(run)
    assert compiled == python
    assert len(python) > 5


def copying():
    """A model whose products go through copies that each forward makes, and its images."""
    _, model, _ = adapted('fused', dtype=torch.float32)
    choose_product(model, 'copied')
    return model, images(2, torch.float32)[0]


def test_who_looks_at_a_forward_sees_all_of_it():
    def run():
        model, batch = copying()
        model(batch)
        with Seen() as mode:
            model(batch).sum().backward()
        return mode.names

    python, compiled = in_both(run)
    assert compiled == python
    assert 'cdra_mm.adapted_copies.default' in python


def within(model, context):
    """Has one layer of a model run in a context of its own."""
    layer = model.blocks[0].mlp.fc1
    plain = layer.forward

    def forward(x):
        with context():
            return plain(x)

    layer.forward = forward
    return model


def test_who_looks_at_one_layer_sees_its_product():
    """It makes a copy of its own then."""

    def run():
        model, batch = copying()
        modes = []

        def look():
            modes.append(Seen())
            return modes[-1]

        y = within(model, look)(batch)
        return modes[0].names, y.detach()

    (seen, wanted), (also, found) = in_both(run)
    assert set(seen) - set(also) == set()
    assert 'aten.addmm.default' in also
    assert torch.equal(found, wanted)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_layer_under_another_autocast(dtype):
    """The copies are of the type of the model's."""

    def other():
        return torch.autocast('cpu', dtype, enabled=dtype is not torch.float32)

    def run():
        model, batch = copying()
        within(model, other)
        with torch.autocast('cpu', torch.bfloat16):
            y = model(batch)
        y.float().square().sum().backward()
        return [y, *(p.grad for p in model.parameters() if p.grad is not None)]

    python, compiled = in_both(run)
    assert all(map(torch.equal, compiled, python))


@pytest.mark.parametrize('which', ['weight', 'bias', 'up'])
def test_parameter_with_operations_of_its_own(which):
    class Twice(nn.Parameter):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func.__name__ != '__get__':
                called.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    called = []

    def run():
        model, batch = copying()
        layer = model.blocks[0].mlp.fc1
        home = layer.cdra.get_submodule('weight') if which == 'up' else layer
        plain = home._parameters[which]
        home._parameters[which] = Twice(plain.detach(), plain.requires_grad)
        model(batch)
        called.clear()
        y = model(batch)
        return sorted(set(called)), y.detach()

    python, compiled = in_both(run)
    assert torch.equal(compiled[1], python[1])
    assert python[0] and compiled[0] == python[0]


@pytest.mark.parametrize('given', [None, [1.0], 'x'])
def test_input_that_is_no_tensor_is_refused(given):
    with native(True):
        model, batch = copying()
        layer = model.blocks[0].mlp.fc1
        layer.register_forward_pre_hook(lambda *_: (given,))
        with pytest.raises((AttributeError, TypeError)):
            model(batch)


def test_layer_that_learns_within_inference():
    def run():
        model, batch = copying()
        layer, found = model.blocks[0].mlp.fc1, []
        plain = layer.forward

        def forward(x):
            with torch.inference_mode(False), torch.enable_grad():
                y = plain(x.clone())
                y.square().sum().backward()
                found.extend(p.grad for p in layer.parameters() if p.grad is not None)
            return y.detach()

        layer.forward = forward
        with torch.inference_mode():
            model(batch)
        return found

    python, compiled = in_both(run)
    assert len(python) == 3  # of both factors and the bias
    assert all(map(torch.equal, compiled, python))


@pytest.mark.parametrize('learns', [False, True])
def test_model_saves_the_same(learns):
    def run():
        model, batch = copying()
        for p in model.parameters():
            p.requires_grad_(p.requires_grad and learns)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append((t.shape, t.dtype)) or t, lambda t: t
        ):
            model(batch.requires_grad_())
        return saved

    python, compiled = in_both(run)
    assert sorted(map(str, compiled)) == sorted(map(str, python))


def test_compiled_block_of_an_eager_model():
    """Torch cannot trace what the model's forward has made in C++ for its layers."""

    def run():
        torch._dynamo.reset()
        model, batch = copying()
        model.blocks[0] = torch.compile(model.blocks[0], backend='aot_eager', fullgraph=True)
        model(batch).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    python, compiled = in_both(run)
    assert len(python) == len(compiled) > 20
    torch.testing.assert_close(compiled, python)


class Launches:
    """Stands for a kernel: what was launched by Python, and what again."""

    def __init__(self, monkeypatch, name):
        self.prepared, self.again = [], []
        self.capturing, self.error = False, None
        monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: self.capturing)
        write = getattr(native_linear, name)

        def wrapped(flat, *given):
            write(flat, *given)
            self.prepared.append(flat.data_ptr())
            return self.launch

        monkeypatch.setattr(native_linear, name, wrapped)

    def launch(self, *addresses):
        assert all(isinstance(address, int) for address in addresses)
        if self.error is not None:
            raise self.error
        self.again.append(addresses)

    def of(self, run):
        before = len(self.prepared), len(self.again)
        run()
        return len(self.prepared) - before[0], len(self.again) - before[1]


def write_in_place(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0)


def move_factor(model):
    up = model.blocks[0].mlp.fc2.cdra.get_submodule('weight').up
    up.data = up.data.clone()


def turn_factor(model):
    """Only how it lies in its memory is another."""
    up = model.blocks[0].mlp.fc2.cdra.get_submodule('weight').up
    up.data = up.data.as_strided(up.shape, (1, len(up)))


@pytest.mark.parametrize('change', [write_in_place, move_factor, turn_factor])
@pytest.mark.parametrize('name', ['_write_gradients', '_write_copies'])
def test_kernel_is_launched_again_where_all_lies_as_it_did(name, change, monkeypatch):
    launches = Launches(monkeypatch, name)
    with native(True):
        model, batch = copying()

        def step():
            model(batch).sum().backward()

        number, again = launches.of(step)
        assert number >= 1 and again == 0
        assert launches.of(step) == (0, number)
        change(model)
        prepared = int(change is not write_in_place)  # of one layer, or of all that are made as one
        assert launches.of(step) == (prepared, number - prepared)
        assert launches.of(step) == (0, number)


@pytest.mark.parametrize('name', ['_write_gradients', '_write_copies'])
def test_kernel_is_not_launched_again_for_another_type(name, monkeypatch):
    launches = Launches(monkeypatch, name)
    with native(True):
        model, batch = copying()

        def step(dtype):
            with torch.autocast('cpu', dtype):
                y = model(batch)
            y.float().sum().backward()

        number, _ = launches.of(lambda: step(torch.bfloat16))
        assert launches.of(lambda: step(torch.bfloat16)) == (0, number)
        assert launches.of(lambda: step(torch.float16)) == (number, 0)


def test_kernel_is_not_launched_again_for_other_sizes_or_strides(monkeypatch):
    launches = Launches(monkeypatch, '_write_gradients')
    with native(True):
        model, batch = copying()
        lie = [lambda grad: grad]

        def watch(_, __, y):
            y.register_hook(lie[0])

        model.blocks[0].mlp.fc2.register_forward_hook(watch)

        def step(images):
            model(images).sum().backward()

        number, _ = launches.of(lambda: step(batch))
        assert launches.of(lambda: step(batch)) == (0, number)
        assert launches.of(lambda: step(batch[:1])) == (number, 0)
        assert launches.of(lambda: step(batch[:1])) == (0, number)
        lie[0] = lambda grad: torch.cat([grad, grad], -1)[..., : grad.shape[-1]]
        assert launches.of(lambda: step(batch[:1])) == (1, number - 1)
        assert launches.of(lambda: step(batch[:1])) == (0, number)
        lie[0] = lambda grad: grad
        assert launches.of(lambda: step(batch[:1])) == (1, number - 1)


@pytest.mark.parametrize('name', ['_write_gradients', '_write_copies'])
def test_kernel_is_not_launched_again_into_a_graph(name, monkeypatch):
    """Which needs what is kept for it where Python launches."""
    launches = Launches(monkeypatch, name)
    with native(True):
        model, batch = copying()
        number, _ = launches.of(lambda: model(batch).sum().backward())
        launches.capturing = True
        assert launches.of(lambda: model(batch).sum().backward()) == (number, 0)
        launches.capturing = False
        assert launches.of(lambda: model(batch).sum().backward()) == (0, number)


@pytest.mark.parametrize('kept', [True, False])
def test_launch_that_another_thread_has_replaced(kept, monkeypatch):
    """While Python is asked, others run: none of theirs is launched."""
    model, batch = copying()
    up = model.blocks[0].mlp.fc2.cdra.get_submodule('weight').up
    plain, own = native_linear._write_copies, up.data
    launched, others = [], []

    def write(*given):
        plain(*given)
        address = up.data_ptr()
        return (lambda *_: launched.append(address)) if kept or address == own.data_ptr() else None

    def meanwhile():
        up.data = own.clone()
        with torch.no_grad():
            model(batch)
        up.data = own

    def is_capturing():
        if others:
            thread = threading.Thread(target=others.pop())
            thread.start()
            thread.join()
        return False

    monkeypatch.setattr(native_linear, '_write_copies', write)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', is_capturing)
    with native(True):
        model(batch)
        others.append(meanwhile)
        model(batch)
    assert set(launched) <= {own.data_ptr()}


def test_gradient_whose_sign_is_yet_to_be_turned(monkeypatch):
    """Nothing is launched by its address."""
    launches = Launches(monkeypatch, '_write_gradients')
    with native(True):
        model, batch = copying()
        turned = []

        def watch(_, __, y):
            if turned:
                y.register_hook(lambda grad: torch._neg_view(-grad))

        model.blocks[0].mlp.fc2.register_forward_hook(watch)
        number, _ = launches.of(lambda: model(batch).sum().backward())
        assert launches.of(lambda: model(batch).sum().backward()) == (0, number)
        turned.append(True)
        assert launches.of(lambda: model(batch).sum().backward()) == (0, number - 1)


@pytest.mark.parametrize('name', ['_write_gradients', '_write_copies'])
def test_error_of_a_launch_arrives(name, monkeypatch):
    launches = Launches(monkeypatch, name)
    with native(True):
        model, batch = copying()
        model(batch).sum().backward()
        launches.error = ZeroDivisionError('of the driver')
        with pytest.raises(ZeroDivisionError, match='of the driver'):
            model(batch).sum().backward()
        assert not any(module.cdra.copies for module in carriers(model))


def test_model_that_its_weights_know_is_let_go():
    with native(True):
        model, batch = copying()
        model.blocks[0].mlp.fc1._parameters['weight'].owner = model
        model.blocks[0].mlp.fc2.cdra.get_submodule('weight').up.owner = model
        model(batch).sum().backward()
        assert layers_to_copy._SEARCH in model.__dict__
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None


def test_transforms_say_what_they_said():
    def by_func():
        layer = one()

        def loss(x):
            return copied.multiply_by_copy(x, layer.layer, layer.copy).sum()

        torch.func.grad(loss)(layer.x.detach())

    def forward_mode():
        layer = one()
        with torch.autograd.forward_ad.dual_level():
            x = torch.autograd.forward_ad.make_dual(layer.x.detach(), torch.ones_like(layer.x))
            copied.multiply_by_copy(x, layer.layer, layer.copy)

    for fault in (by_func, forward_mode):
        python, compiled = messages_of(fault)
        assert compiled == python


def test_other_kinds_of_tensors_take_python():
    class Own(torch.Tensor):
        pass

    def run():
        layer = one()
        layer.x = layer.x.detach().as_subclass(Own).requires_grad_()
        return node_of(layer())

    assert in_both(run) == ('_CopiedLinearBackward', '_CopiedLinearBackward')


def test_values_are_compared_by_bits():
    with native(True) as module:
        nan, zero = torch.tensor([float('nan'), 1]), torch.zeros(2)
        same = module.same_values
        assert same([nan, zero], [nan.clone(), zero.clone()])
        assert not same([zero], [-zero])
        assert not same([zero], [zero.double()])
        assert not same([zero], [zero[:1]])
        assert not same([zero], [])
        assert same([torch.ones(2, 3).t()], [torch.ones(3, 2)])
        assert not same([torch.arange(6.0).view(2, 3).t()], [torch.arange(6.0).view(3, 2)])


def test_other_fields_are_refused():
    """And what was set up before is left as it was."""
    with native(True) as module:
        with pytest.raises(RuntimeError, match='fields of JointBlocks'):
            module.set_up(JointBlocks._fields[::-1], 1, 1, 1, *[lambda: 0] * 4)
        layer = one()
        layer().sum().backward()
        assert layer.factors[0].grad is not None


@pytest.mark.parametrize('taken', [False, True])
def test_columns_that_are_all_of_one_token_are_kept_apart(taken):
    """They lie in the input in one piece, and must not see what is written to it later."""

    def run(write):
        problem = Problem(12, 9, [(5, 4, 2)], torch.float32, tokens=(1,), runs=True)
        layer = Layers(problem, 'copied, through the block', input_learns=False)
        y = layer()
        if write:
            layer.x.add_(1)
        y.sum().backward()
        return [factor.grad for factor in layer.factors]

    with native(taken):
        wanted, found = run(False), run(True)
    assert all(map(torch.equal, found, wanted))


def test_values_that_are_none_are_left_to_torch():
    with native(True) as module:
        with FakeTensorMode() as mode:
            fake = mode.from_tensor(torch.ones(2))
            assert module.same_values([fake], [fake]) is None
        assert module.same_values([fake], [torch.ones(2)]) is None
        assert module.same_values([torch.ones(2, device='meta')], [torch.ones(2)]) is None


def test_backward_under_autocast():
    def run():
        layer = one()
        y = layer()
        with torch.autocast('cpu', torch.bfloat16):
            y.square().sum().backward()
        return [t.grad for t in layer.learning]

    wanted, found = in_both(run)
    assert all(map(torch.equal, found, wanted))


def test_gradient_that_cannot_be_folded():
    def run():
        problem = Problem(96, 80, [(50, 40, 2)], torch.float64, tokens=(4, 50))
        layer = Layers(problem, 'copied, through the block')
        g = torch.randn(50, 4, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        layer().transpose(0, 1).backward(g)
        return [t.grad for t in layer.learning]

    wanted, found = in_both(run)
    assert all(map(torch.equal, found, wanted))


def test_weight_that_asks_for_a_gradient_gets_none():
    def run():
        layer = one(input_learns=False, bias_learns=False, factors_learn=False)
        layer.layer.weight.requires_grad_(True)
        layer().sum().backward()
        return layer.layer.weight.grad

    assert in_both(run) == (None, None)


def test_several_threads_go_back_through_one_graph():
    """All but the first are told that it is gone, and none ends the process."""

    def back(loss, layer, barrier, found):
        barrier.wait()
        try:
            torch.autograd.grad(loss, layer.learning)
        except RuntimeError as error:
            found.append(str(error))
        else:
            found.append('')

    with native(True):
        for _ in range(1200):
            layer, found, barrier = one(), [], threading.Barrier(4)
            loss = layer().sum()
            threads = [
                threading.Thread(target=back, args=(loss, layer, barrier, found)) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all(not text or 'second time' in text for text in found)
            assert len(found) == 4


# When it is taken.


@pytest.fixture
def compiled():
    with native(True):
        return building.built_file()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """One on which nothing was compiled yet, and one that asks for nothing."""
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path / 'cache'))
    monkeypatch.delenv('CDRA_NATIVE', raising=False)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    monkeypatch.setattr(native_linear, 'LOOK', 0.0)
    return tmp_path


def compiler(machine, monkeypatch, script):
    path = machine / 'cxx'
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv('CXX', str(path))
    return path


def fresh():
    made = Native()
    made.tell(1, print)
    return made


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def parts(machine):
    return sorted(path.name for path in (machine / 'cache').rglob('*') if path.is_file())


def test_it_is_compiled_beside_the_training_and_then_taken(compiled, machine, monkeypatch):
    """By a compiler that takes what was compiled before, but not before it may."""
    go = machine / 'go'
    script = (
        f'while [ ! -e {go} ]; do sleep 0.02; done\n'
        f'while [ "$1" != -o ]; do shift; done\ncp {compiled} "$2"'
    )
    compiler(machine, monkeypatch, script)
    fresh_one = fresh()
    assert fresh_one.take(CPU, kept=True) is None
    assert fresh_one.take(CPU, kept=True) is None
    assert [name.endswith('.part') for name in parts(machine)] == [True]
    assert fresh_one.take(CPU, kept=False) is None  # products of a CPU that are not kept: never
    go.touch()
    until(lambda: fresh_one.take(CPU, kept=True) is not None)
    assert parts(machine) == ['cdra_native.so']
    assert fresh_one.take(CPU, kept=False) is None
    monkeypatch.setenv('CXX', '/nowhere')  # the next process has nothing to compile
    assert fresh().take(CPU, kept=True) is not None


def test_others_of_a_machine_wait_for_the_first(machine, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '1')
    compiler(machine, monkeypatch, 'exit 1')
    other = fresh()
    assert other.take(CPU, kept=True) is None
    assert not parts(machine)


def test_never(machine, monkeypatch):
    monkeypatch.setenv('CDRA_NATIVE', '0')
    assert fresh().take(CPU, kept=True) is None
    assert not parts(machine)


@pytest.mark.parametrize('value', ['2', 'yes'])
def test_other_values_are_refused(machine, monkeypatch, value):
    monkeypatch.setenv('CDRA_NATIVE', value)
    with pytest.raises(ConfigError, match=f"CDRA_NATIVE='{value}': expected 0"):
        fresh().take(CPU, kept=True)


FAULTS = {
    'no compiler': (None, 'no C.. compiler was found'),
    'not that one': ('/nowhere/cxx -O1', "CXX='/nowhere/cxx -O1' names no program"),
    'complaints': (
        'echo "it.cpp:1: error: no" >&2; echo more >&2; exit 1',
        'failed: it.cpp:1: error: no',
    ),
    'silent failure': ('exit 3', 'failed: it said nothing'),
    'odd quotes': ('/nowhere "', 'No closing quotation'),
    'no library': ('while [ "$1" != -o ]; do shift; done; echo text > "$2"', 'cannot be loaded'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_what_is_missing_is_said_once_and_python_goes_on(machine, monkeypatch, fault):
    script, message = FAULTS[fault]
    if script is None:
        monkeypatch.setenv('PATH', str(machine))
        monkeypatch.delenv('CXX', raising=False)
    elif script.startswith('/'):
        monkeypatch.setenv('CXX', script)
    else:
        compiler(machine, monkeypatch, script)
    one_ = fresh()
    with pytest.warns(UserWarning, match='slower than it could be') as warned:
        until(lambda: one_.take(CPU, kept=True) is None and one_._over)
        assert one_.take(CPU, kept=True) is None
    (warning,) = warned
    assert re.search(message, str(warning.message))
    assert not [name for name in parts(machine) if name.endswith('.part')]
    monkeypatch.setenv('CDRA_NATIVE', '1')
    asked = fresh()
    for _ in range(3):  # whoever catches it is not left with Python
        with pytest.raises(ConfigError, match=message):
            asked.take(CPU, kept=True)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_folder_that_cannot_be_written(machine, monkeypatch):
    (machine / 'cache').mkdir(mode=0o500)
    with pytest.warns(UserWarning, match='cannot be written'):
        assert fresh().take(CPU, kept=True) is None


def test_user_without_a_home(machine, monkeypatch):
    def no_home(*_):
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.delenv('TORCH_EXTENSIONS_DIR')
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(building.Path, 'home', no_home)
    with pytest.warns(UserWarning, match='determine home directory'):
        assert fresh().take(CPU, kept=True) is None


def test_source_that_is_missing(machine, monkeypatch):
    monkeypatch.setattr(building, 'SOURCE', machine / 'nothing.cpp')
    with pytest.warns(UserWarning, match=r'nothing\.cpp'):
        assert fresh().take(CPU, kept=True) is None


@pytest.mark.parametrize('share', [0, 0.5, 0.999])
def test_file_that_was_cut_is_compiled_again(compiled, machine, monkeypatch, share):
    """To load it would end the process."""
    whole, path = compiled.read_bytes(), building.built_file()
    path.parent.mkdir(parents=True)
    path.write_bytes(whole[: int(share * len(whole))])
    compiler(machine, monkeypatch, f'while [ "$1" != -o ]; do shift; done; cp {compiled} "$2"')
    again = fresh()
    until(lambda: again.take(CPU, kept=True) is not None)
    assert path.stat().st_mode & 0o777 == 0o755


def test_child_leaves_the_compiler_to_its_parent(machine, monkeypatch):
    compiler(machine, monkeypatch, 'sleep 30')
    parent = fresh()
    assert parent.take(CPU, kept=True) is None
    monkeypatch.setattr(building.os, 'getpid', lambda: -1)
    parent._building._process.kill()
    parent._building._process.wait()
    assert parent.take(CPU, kept=True) is None
    assert not parent._over


def test_folder_that_is_relative(machine, monkeypatch):
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', '-x')
    monkeypatch.chdir(machine)
    before = building.built_file()
    assert before.is_absolute()


def test_cache_that_is_a_file(machine):
    (machine / 'cache').write_text('')
    with pytest.warns(UserWarning, match='cannot be written'):
        assert fresh().take(CPU, kept=True) is None


def test_other_torch_or_source_is_another_file(monkeypatch, tmp_path):
    before = building.built_file()
    monkeypatch.setattr(torch, '__version__', '9.9')
    assert building.built_file() != before
    monkeypatch.undo()
    assert building.built_file() == before
    for path in building.source_files():
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(building, 'SOURCE', tmp_path / building.SOURCE.name)
    assert building.built_file() == before
    (tmp_path / 'node.h').write_text('')
    assert building.built_file() != before


def test_trained_model_takes_it():
    with native(True):
        _, model, _ = adapted('fused', dtype=torch.float32)
        choose_product(model, 'kept')
        y = nn.Sequential(model)(images(2, torch.float32)[0])
        names, todo = set(), [y.grad_fn]
        while todo:
            node = todo.pop()
            names.add(node.name())
            todo += [n for n, _ in node.next_functions if n is not None and n.name() not in names]
    assert 'CopiedLinearBackward' in names
    assert '_CopiedLinearBackward' not in names


# What a search before a forward, and a layer in it, see of changes.


def replace_factor(model):
    layer = model.blocks[0].mlp.fc2.cdra.get_submodule('weight')
    layer.up = nn.Parameter(layer.up.detach() + 1)


def write_factor(model):
    with torch.no_grad():
        model.blocks[0].mlp.fc2.cdra.get_submodule('weight').up.add_(1)


def load_assigned(model):
    state = {k: v + 1 if k.endswith('.up') else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def merge_one(model):
    layer = model.blocks[0].mlp.fc2
    adapter = layer.cdra.get_submodule('weight')
    adapter.merge_(layer)
    with torch.no_grad():
        adapter.up.add_(1)  # of what is in the weight now


def switch_off(model):
    """As peft's adapters are: others are in use from now on, here none."""
    layer = model.blocks[0].mlp.fc2
    layer.cdra.of = lambda *_, **__: iter(())
    layer.cdra.join(layer)


def drop_inputs(model):
    model.blocks[0].mlp.fc2.cdra.get_submodule('weight').dropout = 1.0
    model.train()


def parametrize(model):
    class Twice(nn.Module):
        def forward(self, value):
            return 2 * value

    layer = model.blocks[0].mlp.fc2.cdra.get_submodule('weight')
    torch.nn.utils.parametrize.register_parametrization(layer, 'up', Twice())


def replace_state(model):
    """As `copy` and `pickle` do: the dictionary of parameters is another."""
    adapter = model.blocks[0].mlp.fc2.cdra.get_submodule('weight')
    other = copy.deepcopy(adapter)
    with torch.no_grad():
        other.up.add_(1)
    adapter.__setstate__(other.__dict__)


def replace_dictionary(model):
    layer = model.blocks[0].mlp.fc2
    bias = nn.Parameter(torch.ones_like(layer.bias))
    layer._parameters = {**layer._parameters, 'bias': bias}


def replace_bias(model):
    model.blocks[0].mlp.fc2.bias = nn.Parameter(torch.ones_like(model.blocks[0].mlp.fc2.bias))


def replace_weight(model):
    layer = model.blocks[0].mlp.fc2
    layer.weight_ = layer._parameters['weight']
    layer._parameters['weight'] = nn.Parameter(layer._parameters['weight'] + 1, False)


def without_bias(model):
    model.blocks[0].mlp.fc2.bias = None


def to_double(model):
    model.double()


def choose_factored(model):
    choose_product(model, 'factored')


CHANGES = [
    replace_factor, write_factor, load_assigned, merge_one, switch_off, drop_inputs, parametrize,
    replace_bias, replace_weight, without_bias, to_double, choose_factored, replace_state,
    replace_dictionary,
]  # fmt: skip


def after(change, product, *, within=False):
    """What a model computes in a forward after a change, or after one in the forward itself."""
    _, model, _ = adapted('fused', dtype=torch.float32)
    choose_product(model, product)
    batch = images(2, torch.float32)[0]
    for _ in range(2):
        model(batch).sum().backward()
    if within:
        once = model.blocks[0].mlp.fc1.register_forward_hook(lambda *_: change(model))
    else:
        change(model)
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=False):
        y = model(batch.to(model.pos_embed.dtype))
    y.square().sum().backward()
    if within:
        once.remove()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('product', ['copied', 'kept'])
def test_changes_between_forwards_are_seen(product, change):
    wanted, found = in_both(lambda: after(change, product))
    unchanged = after(lambda model: None, product)
    assert change in (choose_factored, to_double, merge_one) or not torch.equal(
        wanted[0], unchanged[0]
    )
    assert len(found) == len(wanted)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize(
    'change',
    [
        replace_factor,
        write_factor,
        replace_bias,
        replace_weight,
        without_bias,
        replace_state,
        replace_dictionary,
    ],
)
@pytest.mark.parametrize('product', ['copied', 'kept'])
def test_changes_within_a_forward_are_seen(product, change):
    wanted, found = in_both(lambda: after(change, product, within=True))
    assert not torch.equal(wanted[0], after(lambda model: None, product)[0])
    assert all(map(torch.equal, found, wanted))


@pytest.fixture
def searches(monkeypatch):
    """Grows by each search of a model."""
    found, plain = [], layers_to_copy._searched
    monkeypatch.setattr(layers_to_copy, '_searched', lambda model: found.append(1) or plain(model))
    return found


def test_autocast_that_is_switched_is_seen(searches):
    def run():
        _, model, _ = adapted('fused', dtype=torch.float32)
        choose_product(model, 'copied')
        batch, found = images(2, torch.float32)[0], []
        searches.clear()
        for on in (True, True, False, False, True):
            with torch.autocast('cpu', torch.bfloat16, enabled=on):
                found.append(model(batch).detach())
        return found

    wanted, found = in_both(run)
    assert all(map(torch.equal, found, wanted))
    assert wanted[0].dtype != wanted[2].dtype
    assert len(searches) == 3  # in C++; else each forward asked for copies of the last one's type


def test_copies_of_a_model_look_for_themselves():
    def run():
        _, model, _ = adapted('fused', dtype=torch.float32)
        choose_product(model, 'copied')
        batch = images(2, torch.float32)[0]
        model(batch)
        found = []
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            write_factor(twin)
            found += [twin(batch).detach(), model(batch).detach()]
        assert not torch.equal(found[0], found[1])
        return found

    wanted, found = in_both(run)
    assert all(map(torch.equal, found, wanted))


def test_search_is_done_once(searches):
    with native(True):
        _, model, _ = adapted('fused', dtype=torch.float32)
        choose_product(model, 'copied')
        for _ in range(3):
            model(images(2, torch.float32)[0]).sum().backward()
        assert len(searches) == 1
