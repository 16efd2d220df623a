"""The supervised contrastive loss, and scores by it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import ConfigError, Plan, find_targets
from cdra_mm.mm.hook import CDRAHook
from cdra_mm.mm.planning.contrastive import contrastive_loss, supervised_contrastive
from cdra_mm.mm.planning.scoring import SeededSamples
from tests.reference.contrastive import supervised_contrastive as reference

from . import toy
from .test_scoring import ready, score

CONTRASTIVE = dict(statistic='per_batch', score_loss='supervised_contrastive')


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    width=st.integers(1, 4),
    temperature=st.sampled_from([0.07, 1.0]),
    seed=st.integers(0, 9),
)
def test_supervised_contrastive_equals_the_sum_over_pairs(labels, width, temperature, seed):
    twice = [label for label in labels for _ in range(2)]
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(twice), width, generator=generator, requires_grad=True)
    wide = features.detach().double().requires_grad_()
    ours = supervised_contrastive(features, torch.tensor(twice), temperature)
    theirs = reference(wide, twice, temperature)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)
    (a,), (b,) = torch.autograd.grad(ours, features), torch.autograd.grad(theirs, wide)
    torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


def by_hand(runner, num_samples, batch_size, statistic, seed=0):
    """Ordinary backwards of the reference loss over pairs of views, squared or added up."""
    model, backbone = runner.model, runner.model.backbone
    targets = find_targets(backbone)
    loader = runner.train_loop.dataloader
    order = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(seed))
    chosen = sorted(order[:num_samples].tolist())
    batches = [chosen[i : i + batch_size] for i in range(0, num_samples, batch_size)]
    total = {name: torch.zeros(target.shape) for name, target in targets.items()}
    model.eval()
    for batch in batches:
        views = [
            SeededSamples(loader.dataset, s)[index] for s in (seed, seed + 1) for index in batch
        ]
        data = model.data_preprocessor(loader.collate_fn(views), True)
        labels = [int(sample.gt_label) for sample in data['data_samples']]
        model.zero_grad()
        reference(model.backbone(data['inputs'])[-1], labels, 0.07).backward()
        for name, target in targets.items():
            grad = dict(backbone.named_parameters())[target.path].grad
            own = grad[target.start : target.stop]
            summed = own * len(batch) / num_samples
            total[name] += summed if statistic == 'summed' else own**2 / len(batches)
    model.zero_grad()
    return {name: t.abs() if statistic == 'summed' else t for name, t in total.items()}


@pytest.mark.parametrize(
    ('batch_size', 'statistic'), [(8, 'per_batch'), (3, 'per_batch'), (3, 'summed')]
)
def test_contrastive_scores_equal_those_by_hand(tmp_path, batch_size, statistic):
    cfg = toy.config(tmp_path, 'cls')
    cfg.train_dataloader.dataset.jitter = True
    runner = ready(cfg)
    runner.model.head.fc.weight.data.zero_()  # no head takes part
    options = dict(CONTRASTIVE, statistic=statistic)
    scores, count = score(runner, num_samples=8, batch_size=batch_size, **options)
    expected = by_hand(runner, 8, batch_size, statistic)
    assert count == 8 and scores.keys() == expected.keys()
    for name in scores:
        torch.testing.assert_close(
            scores[name], expected[name], rtol=1e-3, atol=1e-5 * float(expected[name].max() + 1e-12)
        )


def test_contrastive_scores_need_one_label_an_image(tmp_path):
    with pytest.raises(ConfigError, match=r"EncoderDecoder have none or several.*loss='task'"):
        score(ready(toy.config(tmp_path)), **CONTRASTIVE)


def test_contrastive_scores_are_of_whole_batches(tmp_path):
    with pytest.raises(ConfigError, match="statistic='per_sample': a contrastive loss is one of a"):
        options = dict(CONTRASTIVE, statistic='per_sample')
        score(ready(toy.config(tmp_path, 'cls')), **options)


def test_hook_takes_the_statistic_of_its_method_unless_told():
    assert CDRAHook().planner.statistic == 'mean_gradient'
    assert CDRAHook(allocation='scores').planner.statistic == 'per_sample'
    assert CDRAHook(method=dict(type='gps')).planner.statistic == 'summed'
    assert CDRAHook(method=dict(type='spt_lora')).planner.statistic == 'per_batch'
    hook = CDRAHook(method=dict(type='spt_lora'), statistic='per_sample')
    assert hook.planner.statistic == hook.settings['statistic'] == 'per_sample'


def gps_run(folder, task):
    hook = dict(method=dict(type='gps'), batch_size=8)
    limits = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100)
    return toy.train(toy.config(folder, task, cdra=hook, train_cfg=limits))


def test_gps_run_of_a_classifier_trains_one_connection_a_neuron_and_the_biases(tmp_path):
    runner = gps_run(tmp_path, 'cls')
    plan = Plan.from_json((tmp_path / 'run' / 'cdra_plan.json').read_text())
    assert plan.settings['statistic'] == 'summed' and plan.settings['num_samples'] == 8
    rows = 3 * (32 * 5 + 64)
    trained = sum(p.numel() for p in runner.model.backbone.parameters() if p.requires_grad)
    assert trained == plan.num_trainable == 2 * rows + 32


def test_gps_run_of_a_segmentor_is_told_to_take_the_training_loss(tmp_path):
    with pytest.raises(ConfigError, match="use method=dict.type='gps', loss='task'."):
        gps_run(tmp_path, 'seg')


def test_contrastive_loss_counts_images_not_views(tmp_path):
    runner = ready(toy.config(tmp_path, 'cls'))
    loader = runner.train_loop.dataloader
    views = [loader.dataset[index] for index in (0, 0, 1, 1, 2, 2)]
    loss, number = contrastive_loss(runner.model, loader.collate_fn(views))
    assert number == 3 and loss.dim() == 0
