"""What a supernet has learnt, measured again by models of their own."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing

from cdra_mm.core import adapters, apply_plan
from cdra_mm.mm.planning.supernet import trials_in

from . import toy
from .test_noah_run import plan_of, ready


def trained(runner, backbone, trials, iters=3):
    trials.train(
        plan_of(backbone), lambda: plan_of(backbone), epochs=1, iters=iters, lr_mult=1.0,
        held_out=0.4, max_held_out=200,
    )  # fmt: skip


def twin_of(runner, backbone, trials, size):
    """The model with the first rows of the shared weights, as a model of its own."""
    shared = trials._shared.shared
    model = copy.deepcopy(runner.model)
    apply_plan(model.backbone, plan_of(backbone, size))
    for name, adapter in adapters(model.backbone).items():
        adapter.down.data.copy_(shared[name]['down'][:size].detach())
        adapter.up.data.copy_(shared[name]['up'][:, :size].detach())
    return model.eval()


@pytest.mark.parametrize('size', [1, 2])
def test_fitness_of_a_classifier_is_its_accuracy(tmp_path, size):
    runner, backbone = ready(tmp_path)
    with trials_in(runner, backbone, 0) as trials:
        trained(runner, backbone, trials, iters=20)
        fitness = trials.fitness(plan_of(backbone, size))
        assert trials.fitness(plan_of(backbone, size)) == fitness
        model = twin_of(runner, backbone, trials, size)
    right = []
    for index in trials.held_out:
        image = runner.train_loop.dataloader.dataset[index]['inputs']
        data = model.data_preprocessor(dict(inputs=[image]), False)
        with torch.no_grad():
            logits = model.head(model.extract_feat(data['inputs']))
        right.append(int(logits.argmax()) == index % toy.CLASSES)
    assert len(right) == 10 and fitness == pytest.approx(sum(right) / 10) and 0 < fitness < 1


def test_fitness_of_a_segmentor_is_its_negative_loss(tmp_path):
    runner, backbone = ready(tmp_path, 'seg')
    with trials_in(runner, backbone, 0) as trials:
        trained(runner, backbone, trials)
        fitness = [trials.fitness(plan_of(backbone, size)) for size in (1, 2)]
        model = twin_of(runner, backbone, trials, 2)
    losses = []
    for index in trials.held_out:
        sample = runner.train_loop.dataloader.dataset[index]
        data = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
        data = model.data_preprocessor(data, True)
        with torch.no_grad():
            total, _ = model.parse_losses(model.loss(**data))
        losses.append(float(total))
    assert fitness[1] == pytest.approx(-sum(losses) / len(losses), rel=1e-5) != fitness[0]


def test_supernet_trains_blocks_whose_activations_would_be_computed_again(tmp_path):
    """A reentrant checkpoint gives a first block no gradient: its modules would never move."""
    runner, backbone = ready(tmp_path)
    turn_on_activation_checkpointing(backbone, [f'layers.{i}' for i in range(3)])
    plain = [block.forward for block in backbone.layers]
    with trials_in(runner, backbone, 0) as trials:
        trained(runner, backbone, trials)
        assert all(values['up'].any() for values in trials._shared.shared.values())
    assert [block.forward for block in backbone.layers] == plain
