"""Copies that stay between forwards: when they do, what is written, and what a graph still has.

That they are never out of date is in test_copied_weights.py, their values and gradients against the
dense product in test_compact_linear.py.
"""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from cdra_mm.core import apply_plan, plan_from_masks, remove_adapters
from cdra_mm.core.adapters import copied_linear, copied_weights, kept_copies
from cdra_mm.core.adapters.copied_weights import carriers, choose_product
from cdra_mm.core.model.graph import nodes_of
from tests.core.problems import adapted, by_blocks
from tests.models import images


def kept(dtype=torch.float32, product='kept'):
    _, model, _ = adapted('fused', dtype=dtype)
    choose_product(model, product)
    return model


def run(model, count=2):
    return model(images(count, next(model.parameters()).dtype)[0])


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def low_rank(model):
    return [p for name, p in model.named_parameters() if name.endswith(('.down', '.up'))]


def change(model, factor=1.3):
    with torch.no_grad():
        for parameter in trained(model):
            parameter.mul_(factor)


def copies_in(model):
    """The copies after a forward, by path."""
    with torch.no_grad():
        run(model)
    kept, found = copied_weights._KEPT[model], {}
    for path, module in model.named_modules():
        for name, (_, index) in getattr(getattr(module, 'cdra', None), 'kept_copies', {}).items():
            found[path, name] = kept._copies[index]
    assert len(found) > 5
    return found


def addresses(copies):
    return {where: one.data_ptr() for where, one in copies.items()}


def calls_of(monkeypatch, where, name):
    """Arguments of each call of a function."""
    called, plain = [], getattr(where, name)

    def note(*args, **kwargs):
        called.append(args)
        return plain(*args, **kwargs)

    monkeypatch.setattr(where, name, note)
    return called


def test_copies_stay_and_their_blocks_alone_are_written():
    model = kept()
    first = copies_in(model)
    before = {where: one.clone() for where, one in first.items()}
    change(model)
    second = copies_in(model)
    assert addresses(second) == addresses(first)
    for (path, _), one in second.items():
        module = model.get_submodule(path)
        own = torch.zeros(one.shape, dtype=torch.bool)
        for adapter in module.cdra.of('weight'):
            own[(adapter.rows + adapter.start)[:, None], adapter.cols] = True
        assert own.any() and not own.all()
        assert torch.equal(one[~own], module._parameters['weight'][~own])
        assert (one != before[path, 'weight'])[own].float().mean() > 0.9


def test_nothing_is_written_where_no_value_has_changed(monkeypatch):
    model = kept()
    written = calls_of(monkeypatch, kept_copies.KeptCopies, '_write')
    for _ in range(3):
        run(model)
    assert len(written) == 1
    change(model)
    run(model)
    assert len(written) == 2


def test_graph_that_needs_its_copies_keeps_them():
    """Its gradients are those of before, whatever is computed before its backward."""
    model = kept()
    x = images(2, torch.float32)[0].requires_grad_()
    y = model(x)
    wanted = torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]
    again = model(x)  # which holds them once more
    first = addresses(copies_in(model))
    seen = []
    for _ in range(2):
        for parameter in low_rank(model):
            parameter.data.mul_(3)
        run(model).sum().backward()
        seen.append(addresses(copies_in(model)))
    assert seen[0] != first
    assert seen[1] == seen[0]  # which the graph does not need
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), x)[0], wanted)


def test_second_backward_after_a_write_is_that_of_before():
    """Two losses of one forward, with a teacher that is the same model between them, say."""
    model = kept()
    x = images(2, torch.float32)[0].requires_grad_()
    loss = model(x).square().mean()
    wanted = torch.autograd.grad(loss, x, retain_graph=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        other = model(x).square().mean()  # torch looks at no versions here
    torch.autograd.grad(other, x, retain_graph=True)
    for parameter in low_rank(model):
        parameter.data.mul_(3)
    run(model)
    torch.testing.assert_close(torch.autograd.grad(loss, x), wanted)
    torch.testing.assert_close(torch.autograd.grad(other, x), wanted)


def test_steps_of_training_write_in_place():
    """Also where the last loss is still held, as a runner's log holds it."""
    model = kept()
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    losses, seen = [], set()
    for _ in range(4):
        losses.append(run(model).square().mean())
        losses[-1].backward()
        optimizer.step()
        seen.add(tuple(addresses(copies_in(model)).values()))
    assert len(seen) == 1


@pytest.mark.parametrize('reentrant', [False, True])
def test_recomputed_blocks_take_the_kept_copies(monkeypatch, reentrant):
    model = by_blocks(kept(), reentrant)
    run(model).sum().backward()
    change(model)
    made = calls_of(monkeypatch, copied_linear, 'copy_layers')
    run(model).sum().backward()
    assert not made


def test_recomputed_blocks_after_a_change_are_current():
    """With the weights as they are then, as those of a plain model."""
    grads = []
    for product in ('kept', 'factored'):
        model = kept(torch.float64, product)
        run(model)
        x = torch.linspace(-1, 1, 2 * 5 * 8, dtype=torch.float64).view(2, 5, 8).requires_grad_()
        y = checkpoint(model.blocks[0], x, use_reentrant=False)
        for parameter in trained(model):
            parameter.data.mul_(3)
        grads.append(torch.autograd.grad(y.square().sum(), x)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('frozen', [False, True], ids=['factors', 'base'])
def test_layer_called_by_itself_sees_what_was_written_through_data(frozen):
    model, other = kept(torch.float64), kept(torch.float64, 'factored')
    run(model)
    for one in (model, other):
        for parameter in one.parameters():
            if parameter.requires_grad is not frozen:
                parameter.data.mul_(2)
    layer, plain = (one.blocks[0].mlp.fc1 for one in (model, other))
    x = torch.linspace(-1, 1, 3 * layer.in_features, dtype=torch.float64).view(3, -1)
    torch.testing.assert_close(layer(x), plain(x))


def exchange(values):
    return values.index_copy_(0, torch.tensor([3, 11]), values[[11, 3]])


@pytest.mark.parametrize('within', [False, True], ids=['before', 'within'])
@pytest.mark.parametrize(
    'write',
    [
        lambda values: values[-1].fill_(0),
        lambda values: values[7].add_(1e-6),
        lambda values: values[0].mul_(-1),
        exchange,
    ],
    ids=['zero', 'little', 'sign', 'exchange'],
)
def test_few_frozen_entries_written_through_data_are_seen(monkeypatch, write, within):
    """An outlier that is set to zero, entries that change places; before a forward or within."""
    model, other = kept(torch.float64), kept(torch.float64, 'factored')
    assert torch.equal(run(model), before := run(model))
    for one in (model, other):
        values = one.blocks[1].mlp.fc1._parameters['weight'].data.view(-1)

        def write_now(*_, values=values):
            write(values)

        if within:
            with one.blocks[0].register_forward_hook(write_now):
                run(one)
        else:
            write_now()
    made = calls_of(monkeypatch, kept_copies.KeptCopies, '_all_copied')
    for _ in range(3):
        torch.testing.assert_close(run(model), run(other), rtol=0, atol=1e-13)
    assert (run(model) - before).abs().max() > 1e-10
    assert len(made) == 1


def test_last_layer_is_left_out_for_a_while():
    """With dropout it goes through no copy in training, though nobody has written to it."""
    model, other = kept(torch.float64), kept(torch.float64, 'factored')
    for one in (model, other):
        last = [m for m in carriers(one) if list(m.cdra.of('weight'))][-1]
        for adapter in last.cdra.of('weight'):
            adapter.dropout = 0.5
        run(one.eval())
        change(one)
        run(one.train())
    torch.testing.assert_close(run(model.eval()), run(other.eval()))


def products_of(y):
    names = {node.name() for node in nodes_of(y)}
    return {'copied' if 'CopiedLinear' in n else 'apart' for n in names if 'Linear' in n}


@pytest.fixture
def anywhere(monkeypatch):
    """The blocks of the models here are most of their weights."""
    monkeypatch.setattr(copied_weights, 'MOST_WRITTEN', 1.0)


def test_small_models_keep_copies_by_themselves(monkeypatch, anywhere):
    model = kept(product='auto')
    assert products_of(run(model)) == {'copied'}
    held = sum(one.nbytes for one in copied_weights.kept_tensors(model))
    monkeypatch.setattr(copied_weights, 'LARGEST_KEPT', held)
    other = kept(product='auto')
    assert products_of(run(other)) == {'copied'}
    monkeypatch.setattr(copied_weights, 'LARGEST_KEPT', held - 1)
    other = kept(product='auto')
    assert products_of(run(other)) == {'apart'}
    choose_product(other, 'kept')
    assert products_of(run(other)) == {'copied'}
    choose_product(other, 'factored')
    assert products_of(run(other)) == {'apart'}


@pytest.mark.parametrize('rows', [1, 2])
def test_models_whose_weights_change_everywhere_keep_none(rows):
    """LoRA's blocks are whole matrices: it would write all of them in each step."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:rows] = True
    apply_plan(model, plan_from_masks({'1.weight': mask}, rank_rule=1))
    assert products_of(model(torch.randn(3, 4))) == {'copied' if rows == 1 else 'apart'}


def test_half_precision_base_is_not_held_twice():
    model = kept().bfloat16()
    run(model)
    assert model not in copied_weights._KEPT


def test_half_precision_is_multiplied_apart(anywhere):
    """No update is lost in the rounding."""
    model = kept(product='auto')
    with torch.autocast('cpu', torch.bfloat16):
        assert products_of(run(model)) == {'apart'}
    assert products_of(run(model)) == {'copied'}


def test_types_take_turns():
    """Trained under autocast, validated without."""
    model, other = kept(), kept(product='factored')
    for _ in range(2):
        with torch.autocast('cpu', torch.bfloat16):
            torch.testing.assert_close(run(model), run(other), rtol=0.05, atol=0.05)
            assert {one.dtype for one in copies_in(model).values()} == {torch.bfloat16}
        torch.testing.assert_close(run(model), run(other))
        assert {one.dtype for one in copies_in(model).values()} == {torch.float32}
        change(model)
        change(other)


def test_little_is_seen_under_autocast(monkeypatch):
    """The frozen weights are compared in their own type."""
    model = kept()
    made = calls_of(monkeypatch, kept_copies.KeptCopies, '_all_copied')
    with torch.autocast('cpu', torch.bfloat16):
        for _ in range(3):
            run(model)
        assert len(made) == 1
        model.blocks[1].mlp.fc1._parameters['weight'].data.view(-1)[7].mul_(1 + 1e-4)
        for _ in range(3):
            run(model)
    assert len(made) == 2


def test_first_forward_in_inference_mode():
    model, other = kept(torch.float64), kept(torch.float64, 'factored')
    for _ in range(2):
        with torch.inference_mode():
            torch.testing.assert_close(run(model), run(other))
        change(model)
        change(other)
        torch.testing.assert_close(run(model), run(other))
        run(model).sum().backward()
        run(other).sum().backward()
    mine, theirs = ([p.grad for p in trained(one)] for one in (model, other))
    torch.testing.assert_close(mine, theirs)


def test_copies_made_in_inference_mode_beside_a_graph_are_trained_through():
    """What is made in inference mode cannot be in a graph."""
    model = kept()
    pending = run(model)
    change(model)
    with torch.inference_mode():
        run(model)
    run(model).sum().backward()
    assert pending.requires_grad


def test_copies_go_with_the_adapters_and_with_the_model():
    model = kept()
    run(model)
    held = copied_weights._KEPT[model]
    other = copy.deepcopy(model)
    assert other not in copied_weights._KEPT
    assert not any(module.cdra.kept_copies for module in carriers(other))
    gone = weakref.ref(held)
    del held
    remove_adapters(model, discard=True)
    gc.collect()
    assert gone() is None
    model = kept()
    run(model)
    gone = weakref.ref(copied_weights._KEPT[model])
    del model
    gc.collect()
    assert gone() is None


def test_another_product_lets_them_go():
    model = kept()
    run(model)
    gone = weakref.ref(copied_weights._KEPT[model])
    choose_product(model, 'factored')
    run(model)
    gc.collect()
    assert gone() is None
    assert not any(module.cdra.kept_copies for module in carriers(model))


def test_copies_lie_where_the_weights_do():
    model, other = kept(), kept(product='factored')
    try:
        torch.set_default_device('meta')
        with torch.device('cpu'):
            x = images(2, torch.float32)[0]
        found, wanted = model(x), other(x)
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(found, wanted)


def test_failed_write_is_written_again():
    """Not taken for one that was done, with copies that have no updates yet."""
    model = kept()
    wanted = run(model)  # a graph that is still needed: others are made
    up = next(p for name, p in model.named_parameters() if name.endswith('.up'))
    whole = up.data
    up.data = torch.ones(len(whole), whole.shape[1] + 1)
    with pytest.raises(RuntimeError):
        run(model)
    up.data = whole
    torch.testing.assert_close(run(model), wanted)


@pytest.mark.parametrize('where', ['model', 'layer'])
def test_what_a_hook_writes_before_a_layer_is_seen(where):
    """Of averaged weights, say: the copies were written before it."""
    model, other = kept(torch.float64), kept(torch.float64, 'factored')
    for one in (model, other):

        def write(*_, one=one):
            for parameter in low_rank(one):
                parameter.data.mul_(1.5)

        (one if where == 'model' else one.blocks[1].mlp.fc1).register_forward_pre_hook(write)
    for _ in range(2):
        torch.testing.assert_close(run(model), run(other))


def test_other_ways_into_a_model_are_multiplied_apart(anywhere):
    """What is called past the model's forward would make its own copy each time."""
    model = kept(product='auto')
    run(model)
    change(model)
    x = torch.linspace(-1, 1, 2 * 5 * 8).view(2, 5, 8)
    assert products_of(model.blocks[0](x)) == {'apart'}
    assert products_of(run(model)) == {'copied'}
    assert products_of(model.blocks[0](x)) == {'copied'}


def test_inner_autocast_rounds_no_update(anywhere):
    model = kept(product='auto')
    run(model)
    x = torch.linspace(-1, 1, 2 * 5 * 8).view(2, 5, 8)
    with torch.autocast('cpu', torch.bfloat16):
        assert products_of(model.blocks[0](x)) == {'apart'}


def test_weights_that_are_lent_for_one_forward_are_not_kept(anywhere, monkeypatch):
    model = kept(product='auto')
    made = calls_of(monkeypatch, kept_copies.KeptCopies, '__init__')
    x = images(2, torch.float32)[0]
    others = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(model, others, (x,)), run(model))
    assert len(made) == 1


def test_weights_that_know_their_model_do_not_hold_it():
    model = kept()
    model.blocks[0].mlp.fc1._parameters['weight'].owner = model
    run(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_weight_that_does_not_lie_in_order_is_not_kept():
    model, other = kept(), kept(product='factored')
    for one in (model, other):
        weight = one.blocks[0].mlp.fc1._parameters['weight']
        weight.data = weight.data.t().contiguous().t()
    torch.testing.assert_close(run(model), run(other))
    assert model not in copied_weights._KEPT


def test_weights_of_inference_mode_are_not_kept():
    """Writes to them are not counted."""
    model = kept()
    with torch.inference_mode():
        model.blocks[0].mlp.fc1._parameters['weight'] = nn.Parameter(
            model.blocks[0].mlp.fc1._parameters['weight'].clone(), requires_grad=False
        )
        run(model)
    assert model not in copied_weights._KEPT


def test_fake_weights_are_not_kept():
    model, mode = kept(), FakeTensorMode(allow_non_fake_inputs=True)
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                fake = mode.from_tensor(value.detach())
                module._parameters[name] = nn.Parameter(fake, value.requires_grad)
    with mode:
        assert model(torch.ones(2, 3, 8, 8)).shape[0] == 2
    assert model not in copied_weights._KEPT


def test_backward_under_autocast_rounds_no_gradient_of_a_factor():
    model = kept()
    run(model)
    layer, grads = model.blocks[0].mlp.fc1, []
    factors = low_rank(layer)
    x = torch.linspace(-1, 1, 3 * layer.in_features).view(3, -1)
    for enabled in (False, True):
        y = layer(x)
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            grads.append(torch.autograd.grad(y, factors, torch.ones_like(y) / 3))
    torch.testing.assert_close(*grads, rtol=0, atol=0)
