"""Adapted models inside what trains them: compilation, checkpointing, DDP, frozen first layers."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from cdra_mm.core import apply_plan, freeze_rest, plan_from_masks
from cdra_mm.core.adapters import compact_linear
from cdra_mm.core.adapters.copied_weights import choose_product
from tests.core.adapters.native import native, needs_compiler
from tests.core.problems import adapted
from tests.models import MODELS, images


def output_and_gradients(model, run, count=3):
    model.zero_grad()
    y = run(images(count, torch.float32)[0])
    y.square().mean().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert len(grads) > 20
    return {'output': y.detach(), **grads}


@pytest.mark.parametrize(
    ('kind', 'many_tokens'), [*((kind, 0) for kind in MODELS), ('fused', float('inf'))]
)
def test_compiled_model_is_the_eager_one(monkeypatch, kind, many_tokens):
    """In one graph, with its backward traced too; merged and factored."""
    monkeypatch.setattr(compact_linear, 'MANY_TOKENS', many_tokens)
    _, model, _ = adapted(kind, dtype=torch.float32)
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(twin, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(
        output_and_gradients(twin, compiled), output_and_gradients(model, model)
    )


def test_compiled_copies_are_the_eager_ones():
    _, model, _ = adapted('fused', dtype=torch.float32)
    choose_product(model, 'copied')
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(nn.Sequential(twin), backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(
        output_and_gradients(twin, compiled), output_and_gradients(model, model)
    )


@pytest.mark.parametrize('product', ['copied', 'factored'])
def test_compiled_activation_may_write_to_its_input(product):
    _, model, _ = adapted('fused', dtype=torch.float32)
    choose_product(model, product)
    for block in model.blocks:
        block.mlp.act = nn.ReLU(inplace=True)
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(nn.Sequential(twin), backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(
        output_and_gradients(twin, compiled), output_and_gradients(model, model)
    )


@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointed_model_has_the_same_gradients(reentrant):
    _, model, _ = adapted('fused', dtype=torch.float32)
    expected = output_and_gradients(model, model)

    def run(x):
        return checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

    torch.testing.assert_close(output_and_gradients(model, run), expected)


def replica(rank, path):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{path}/meeting', rank=rank, world_size=2
    )
    _, model, _ = adapted('fused', dtype=torch.float32)
    replicas = DistributedDataParallel(model)
    x = images(4, torch.float32)[0].chunk(2)[rank]
    replicas(x).square().mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    torch.save(grads, path / f'{rank}.pt')
    del replicas  # freed later, its reducer may hold the group's last reference and wait for ever
    torch.distributed.destroy_process_group()


def test_replicas_share_the_gradient_of_the_whole_batch(tmp_path):
    """DDP, without looking for unused parameters."""
    mp.spawn(replica, (tmp_path,), nprocs=2)
    _, model, _ = adapted('fused', dtype=torch.float32)
    expected = output_and_gradients(model, model, count=4)
    del expected['output']
    for rank in range(2):
        actual = torch.load(tmp_path / f'{rank}.pt', weights_only=True)
        torch.testing.assert_close(actual, expected)


def save_products(_, operation, *args, **kwargs):
    saved = operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize(
    ('way', 'product'),
    [('plain', 'copied'), ('selective', 'copied'), ('selective', 'kept'), ('compiled', 'copied')],
)
@pytest.mark.parametrize('taken', [False, pytest.param(True, marks=needs_compiler)])
def test_checkpointed_blocks_have_the_same_gradients(taken, way, product):
    """What a layer multiplies by is made before its block, and once more within its backward."""
    torch.compiler.reset()
    _, model, _ = adapted('fused', dtype=torch.float32)
    choose_product(model, product)
    twin = copy.deepcopy(model)
    options = {'use_reentrant': False}
    if way == 'selective':
        contexts = create_selective_checkpoint_contexts
        options['context_fn'] = functools.partial(contexts, save_products)
    for block in twin.blocks:
        plain = block.forward
        called = torch.compile(plain, backend='aot_eager') if way == 'compiled' else plain
        block.forward = functools.partial(checkpoint, called, **options)
    with native(taken):
        found, wanted = output_and_gradients(twin, twin), output_and_gradients(model, model)
    torch.testing.assert_close(found, wanted)


def test_backward_ends_at_the_first_adapted_layer():
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    plan = plan_from_masks({'2.weight': torch.ones(6, 6).bool()}, rank_rule=2)
    apply_plan(model, plan)
    freeze_rest(model, plan)
    x = torch.randn(5, 6)
    for layer, recorded in zip(model, [False, False, True, True], strict=True):
        x = layer(x)
        assert x.requires_grad is recorded


@pytest.mark.parametrize('columns', [1, 7])
@pytest.mark.parametrize('many_tokens', [0, float('inf')], ids=['merged', 'factored'])
def test_compiled_layer_without_gradients_is_the_eager_one(monkeypatch, columns, many_tokens):
    """With one adapter and with two: a forward's arguments must reach it whatever their number."""
    monkeypatch.setattr(compact_linear, 'MANY_TOKENS', many_tokens)
    torch.manual_seed(columns)
    for height in (12, 24):
        layer = nn.Linear(20, height)
        blocks = []
        for start in range(0, height, 12):
            rows = start + torch.randperm(12)[:5]
            blocks.append((rows, torch.randperm(20)[:columns], 1.0))
        factors = [f for _ in blocks for f in (torch.randn(2, columns), torch.randn(5, 2))]

        def run(x, layer=layer, blocks=blocks, factors=factors):
            weight, bias = layer.weight.detach(), layer.bias.detach()
            return compact_linear.compact_linear(x, weight, bias, blocks, factors)

        torch.compiler.reset()
        compiled, x = torch.compile(run, backend='aot_eager', fullgraph=True), torch.randn(3, 20)
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled):
                torch.testing.assert_close(compiled(x), run(x))
