"""Copies of adapted weights are never out of date, whatever has changed the weights before.

Each law compares a model that computes through copies with its twin that does not, in fp64. Those
about a change of the weights were seen failing with copies that are kept from forward to forward
without a look at the weights.
"""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cdra_mm.core import (
    ConfigError,
    NamedAdapters,
    adapters,
    apply_plan,
    merge_adapters,
    plan_from_masks,
    remove_adapters,
    unmerge_adapters,
)
from cdra_mm.core.adapters.copied_weights import carriers, choose_product, product_of
from cdra_mm.core.model.graph import nodes_of
from tests.core.problems import adapted, by_blocks, random_plan
from tests.models import MODELS, images

PRODUCT = 'copied'


@pytest.fixture(params=['copied', 'kept'], autouse=True)
def product(request, monkeypatch):
    """Every law for copies that each forward makes, and for those that stay between forwards."""
    monkeypatch.setattr(sys.modules[__name__], 'PRODUCT', request.param)


def copied(kind='fused', dtype=torch.float64):
    _, model, _ = adapted(kind, dtype=dtype)
    choose_product(model, PRODUCT)
    return model


def twin(model):
    """A copy that computes without copies."""
    other = copy.deepcopy(model)
    choose_product(other, 'factored')
    return other


def results(model, run=None, *, autocast=False, dtype=torch.float64):
    """Output and gradients."""
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        y = (model if run is None else run)(images(3, dtype)[0])
    y.double().square().mean().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert len(grads) > 20
    return {'output': y.detach(), **grads}


def assert_current(model):
    torch.testing.assert_close(results(model), results(twin(model)), rtol=1e-9, atol=1e-12)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def is_copied(y):
    """Whether a product through a copy is in the graph of a tensor."""
    return any('CopiedLinear' in node.name() for node in nodes_of(y))


@pytest.mark.parametrize('kind', MODELS)
def test_model_computes_what_its_twin_does(kind):
    model = copied(kind)
    assert is_copied(model(images(3, torch.float64)[0]))
    assert not is_copied(twin(model)(images(3, torch.float64)[0]))
    assert_current(model)


OPTIMIZERS = {
    'AdamW': lambda ps: torch.optim.AdamW(ps, lr=0.1),
    'AdamW, foreach': lambda ps: torch.optim.AdamW(ps, lr=0.1, foreach=True),
    'AdamW, fused': lambda ps: torch.optim.AdamW(ps, lr=0.1, fused=True),
    'SGD': lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize('make', OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_of_an_optimizer_are_seen(make):
    model = copied()
    optimizer = make(trained(model))
    for _ in range(2):
        results(model)
        optimizer.step()
        assert_current(model)


def test_gradients_accumulate_over_forwards():
    model = copied()
    other = twin(model)
    for one in (model, other):
        one.zero_grad()
        for count in (1, 2, 3):
            one(images(count, torch.float64)[0]).square().mean().backward()
    mine, theirs = ([p.grad for p in trained(one)] for one in (model, other))
    torch.testing.assert_close(mine, theirs)


def test_two_forwards_before_their_backwards():
    """And a change of the weights between them: each backward has the copies of its forward."""
    model = copied()
    first = model(images(2, torch.float64)[0])
    model.eval()
    with torch.no_grad():
        model(images(4, torch.float64)[0])  # an evaluation in between
    second = model(images(3, torch.float64)[0])
    (first.sum() + second.square().sum()).backward()
    mine = [p.grad for p in trained(model)]
    other = twin(model)
    other.zero_grad()
    first, second = (other(images(count, torch.float64)[0]) for count in (2, 3))
    (first.sum() + second.square().sum()).backward()
    torch.testing.assert_close(mine, [p.grad for p in trained(other)])


CHANGES = {
    'through data, as averaged weights come': lambda p: p.data.copy_(p.data * 3 + 0.1),
    'by new data': lambda p: setattr(p, 'data', p.data * 3 + 0.1),
    'in place': lambda p: torch.no_grad()(p.mul_)(3),
}


@pytest.mark.parametrize('frozen', [False, True], ids=['factors', 'base'])
@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_writes_that_leave_no_trace_are_seen(change, frozen):
    model = copied()
    results(model)
    for parameter in model.parameters():
        if parameter.requires_grad is not frozen:
            change(parameter)
    assert_current(model)


def test_loaded_state_is_seen():
    model = copied()
    results(model)
    other = copied()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    model.load_state_dict(other.state_dict())
    assert_current(model)
    torch.testing.assert_close(results(model), results(other))
    model.load_state_dict(copied().state_dict(), assign=True)
    assert_current(model)


def test_merged_and_unmerged_models_are_seen():
    model = copied()
    expected = results(model)['output']
    merge_adapters(model)
    with torch.no_grad():
        torch.testing.assert_close(model(images(3, torch.float64)[0]), expected)
    unmerge_adapters(model)
    assert_current(model)
    next(iter(adapters(model).values())).merge_(carriers(model)[0])  # one of them alone
    assert_current(model)


def test_several_adapters_take_turns():
    torch.manual_seed(0)
    model = MODELS['fused']().double().eval()
    plans = {'one': random_plan(model, 0), 'two': random_plan(model, 5, 1)}
    named = NamedAdapters(model)
    generator = torch.Generator().manual_seed(3)
    for name, plan in plans.items():
        named.add(name, plan)
        named.use(name)
        choose_product(model, PRODUCT)
        with torch.no_grad():
            for p in trained(model):
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    for name in ('one', 'two', 'one'):
        named.use(name)
        assert product_of(model) == PRODUCT
        assert is_copied(model(images(3, torch.float64)[0]))
        assert_current(model)


def test_model_moves_and_changes_type():
    model = copied()
    results(model)
    model.float()
    model.double()
    assert_current(model)


def test_layer_called_by_itself_is_current():
    model = copied()
    results(model)
    layer = model.blocks[0].mlp.fc1
    x = torch.randn(4, layer.in_features, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(layer(x), twin(model).blocks[0].mlp.fc1(x))
        with torch.no_grad():
            for parameter in trained(model):
                parameter.data.mul_(1.2)


def test_forward_that_fails_leaves_no_copy():
    model = copied()
    handle = model.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(images(3, torch.float64)[0])
    handle.remove()
    assert not any(module.cdra.copies for module in carriers(model))


def assert_layer_is_current(model):
    """Of a layer that is called by itself, with whatever a forward of the model has left."""
    layer, plain = (one.blocks[0].mlp.fc1 for one in (model, twin(model)))
    x = torch.randn(4, layer.in_features, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))


def test_forward_hooks_that_someone_clears_leave_no_copy():
    model = copied()
    for module in model.modules():
        module._forward_hooks.clear()
    results(model)
    assert not any(module.cdra.copies for module in carriers(model))


@pytest.mark.parametrize('change', [CHANGES['in place'], None], ids=['in place', 'loaded'])
def test_copies_of_an_interrupted_forward_are_not_taken_after_a_change(change):
    """A KeyboardInterrupt goes past torch's hooks, also those that are always called."""
    model = copied()

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = model.norm.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(images(3, torch.float64)[0])
    handle.remove()
    left = any(module.cdra.copies for module in carriers(model))
    assert left is (PRODUCT == 'copied')  # kept ones are not handed out before they are asked for
    if change is None:
        state = model.state_dict()
        model.load_state_dict({k: v * 2 if v.is_floating_point() else v for k, v in state.items()})
    else:
        for parameter in trained(model):
            change(parameter)
    assert_layer_is_current(model)


class Inner(nn.Module):
    """Calls its layer with other parameters, in its own forward."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        others = {name: p * 2 for name, p in self.layer.named_parameters()}
        return torch.func.functional_call(self.layer, others, x)


def test_parameters_that_a_forward_replaces_are_seen():
    model = Inner().double()
    apply_plan(model, plan_from_masks({'layer.weight': torch.ones(6, 6).bool()}, rank_rule=2))
    torch.nn.init.normal_(next(iter(adapters(model).values())).up)
    choose_product(model, PRODUCT)
    x = torch.randn(3, 6, dtype=torch.float64)
    found = []
    for one in (model, twin(model)):
        one(x).square().sum().backward()
        found.append([one(x).detach(), *(p.grad for p in trained(one))])
    torch.testing.assert_close(*found)


def test_gradients_within_inference_mode():
    """What is made in inference mode cannot be in a graph."""
    model = copied()
    x = torch.randn(4, model.blocks[0].mlp.fc1.in_features, dtype=torch.float64)
    grads = []

    def explain(*_):
        with torch.inference_mode(False), torch.enable_grad():
            z = x.clone().requires_grad_()
            grads.append(torch.autograd.grad(model.blocks[0].mlp.fc1(z).sum(), z)[0])

    model.norm.register_forward_pre_hook(explain)
    with torch.inference_mode():
        model(images(3, torch.float64)[0].clone())
    z = x.clone().requires_grad_()
    expected = torch.autograd.grad(twin(model).blocks[0].mlp.fc1(z).sum(), z)
    torch.testing.assert_close(grads, list(expected))


@pytest.mark.parametrize('dtype', [torch.int64, torch.bfloat16, torch.float64])
def test_input_of_another_type_is_refused_as_by_a_plain_layer(dtype):
    """Not multiplied by a weight that is cut to whole numbers."""
    model = copied(dtype=torch.float32)
    layer = model.blocks[0].mlp.fc1
    x = torch.ones(4, layer.in_features, dtype=dtype)
    with pytest.raises(RuntimeError, match='same dtype'):
        nn.Linear(layer.in_features, 3)(x)
    with pytest.raises(RuntimeError, match='same dtype'):
        layer(x)


def test_model_that_is_moved_tensor_by_tensor():
    """As loaders for large models do: `nn.Module.to` is not called."""
    model = copied()
    expected = results(model)
    held = [dict(m._parameters) for m in model.modules()]
    buffers = [dict(m._buffers) for m in model.modules()]
    held = [{k: v if v is None else v.detach().clone() for k, v in d.items()} for d in held]
    buffers = [{k: v if v is None else v.clone() for k, v in d.items()} for d in buffers]
    needed = [p.requires_grad for p in model.parameters()]
    model.to('meta')
    for module, own, more in zip(model.modules(), held, buffers, strict=True):
        for name, value in own.items():
            module._parameters[name] = None if value is None else nn.Parameter(value)
        module._buffers.update(more)
    for parameter, one in zip(model.parameters(), needed, strict=True):
        parameter.requires_grad_(one)
    torch.testing.assert_close(results(model), expected)


def test_nothing_is_held_between_forwards():
    model = copied()
    results(model)
    assert not any(module.cdra.copies for module in carriers(model))
    assert_current(pickle.loads(pickle.dumps(model)))  # and it can be pickled, hooks and all


def test_removed_adapters_leave_no_hook():
    model = copied()
    remove_adapters(model, discard=True)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model._forward_hooks_always_called


@pytest.mark.parametrize('autocast', [False, True], ids=['fp32', 'autocast'])
@pytest.mark.parametrize('reentrant', [False, True])
@pytest.mark.parametrize('kind', ['fused', 'mha'])
def test_recomputed_blocks_have_the_same_gradients(kind, reentrant, autocast):
    """Bit for bit, though the second time each layer makes its own copy."""
    model = copied(kind, torch.float32)
    again = by_blocks(copied(kind, torch.float32), reentrant)
    options = dict(autocast=autocast, dtype=torch.float32)
    mine, wanted = results(again, **options), results(model, **options)
    if kind == 'mha' and reentrant:  # torch's own forward is taken without gradients
        torch.testing.assert_close(mine['output'], wanted['output'], rtol=0.05, atol=0.05)
        return
    torch.testing.assert_close(mine, wanted, rtol=0, atol=0)


@pytest.mark.parametrize('reentrant', [False, True])
def test_recomputed_model_has_the_same_gradients(reentrant):
    model = copied('fused', torch.float32)

    def run(x):
        return checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

    options = dict(autocast=True, dtype=torch.float32)
    torch.testing.assert_close(results(model, run, **options), results(model, **options))


@pytest.mark.parametrize('kind', ['fused', 'mha'])
def test_compiled_model_is_the_eager_one(kind):
    """Whole, training and not; torch takes the hooks of what it is given apart."""
    model = copied(kind, torch.float32)
    twin_model = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(twin_model, backend='aot_eager', fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(
            results(twin_model, compiled, dtype=torch.float32), results(model, dtype=torch.float32)
        )
        for one in (twin_model, model):
            with torch.no_grad():
                for parameter in trained(one):
                    parameter.mul_(1.1)
    with torch.no_grad():
        x = images(3, torch.float32)[0]
        torch.testing.assert_close(compiled(x), model(x))


class Around(torch.nn.Module):
    """What holds an adapted backbone, as a segmentor does."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize('kind', ['fused', 'mha'])
def test_what_holds_an_adapted_model_compiles_into_one_graph(kind):
    model = copied(kind, torch.float32)
    graphs = []

    def count(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(Around(model), backend=count, fullgraph=True)
    found = results(model, compiled, dtype=torch.float32)
    assert len(graphs) == 1 and any('adapted_copies' in name for name in graphs[0])
    torch.testing.assert_close(found, results(model, dtype=torch.float32))


@pytest.mark.parametrize('grad', [False, True])
def test_exported_program_needs_none_of_our_operations(grad):
    """Where it runs there is no such package."""
    model, x = copied(dtype=torch.float32), images(2, torch.float32)[0]
    with torch.set_grad_enabled(grad):
        program = torch.export.export(model, (x,))
    called = {str(node.target) for node in program.run_decompositions().graph.nodes}
    assert not [name for name in called if name.startswith('cdra_mm.')]
    torch.testing.assert_close(program.module()(x), twin(model)(x))
    assert is_copied(model(x))


def test_factors_of_two_types():
    """Of one layer, though a plan makes none such."""
    model = copied(dtype=torch.float32)
    low_rank = [a for name, a in adapters(model).items() if hasattr(a, 'down') and 'qkv' in name]
    low_rank[0].half()
    other = twin(model)
    mine, wanted = (results(one, dtype=torch.float32) for one in (model, other))
    torch.testing.assert_close(mine, wanted, rtol=1e-2, atol=1e-3)


def test_copy_of_a_model_within_its_forward_has_no_copies():
    """Averaged weights, say, or a checkpoint that a hook of a layer writes."""
    model, made = copied(), []

    def take(*_):
        made.append(copy.deepcopy(carriers(model)))
        made.append(pickle.loads(pickle.dumps(carriers(model))))

    model.norm.register_forward_pre_hook(take)
    with torch.no_grad():
        model(images(3, torch.float64)[0])
    assert len(made) == 2
    assert not any(module.cdra.copies for modules in made for module in modules)


def test_half_precision_base_is_never_held_twice():
    """Its layers' copies are made one at a time, also in the backward."""
    model = copied('fused', torch.float32)
    model.bfloat16()
    held = []
    model.blocks[1].register_forward_hook(
        lambda *_: held.append(sum(len(m.cdra.copies) for m in carriers(model)))
    )
    found = results(model, dtype=torch.bfloat16)
    assert held == [0]
    assert all(torch.isfinite(value).all() for value in found.values())


def test_copy_is_the_merged_weight_in_its_type(monkeypatch):
    """Training under autocast sees what the merged model will be, but for ties of the rounding."""
    model = copied('fused', torch.float32)
    held = {}

    def note(module, _):
        for name, m in model.named_modules():
            if m in carriers(model) and 'weight' in m._parameters:
                weight, dtype = m._parameters['weight'], torch.bfloat16
                made = m.cdra.copies.get('weight')
                if made:
                    held[name] = made.weight
                layer = m.cdra.layer_of_copy('weight', weight, m.bias)
                kept = layer and m.cdra.kept_copy_of('weight', layer, dtype)
                if kept:
                    held[name] = kept.weight

    model.norm.register_forward_pre_hook(note)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        model(images(3, torch.float32)[0])
    assert len(held) > 5
    merge_adapters(model)
    for name, weight in held.items():
        merged = model.get_submodule(name)._parameters['weight'].bfloat16()
        assert (weight != merged).float().mean() < 0.02
        torch.testing.assert_close(weight, merged, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize('dropout', [0.0, 0.5])
def test_dropout_and_overlap_go_the_other_way(dropout):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    plan = plan_from_masks({'1.weight': torch.ones(6, 6).bool()}, rank_rule=2)
    blocks = tuple(
        type(b)(b.name, b.shape, b.rows, b.cols, b.rank, b.num_sensitive, dropout=dropout)
        for b in plan.blocks
    )
    apply_plan(model, type(plan)(method='cdra', blocks=blocks))
    choose_product(model, PRODUCT)
    x = torch.randn(3, 6)
    assert is_copied(model.train()(x)) is not bool(dropout)
    assert is_copied(model.eval()(x))


def test_unknown_product_is_refused():
    model = copied()
    with pytest.raises(ConfigError, match=r"product='merged': expected one of auto, copied, facto"):
        choose_product(model, 'merged')
