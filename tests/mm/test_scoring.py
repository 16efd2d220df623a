"""The sensitivity pass: exact per-sample scores from the run's own data and loss."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS as HEADS

from cdra_mm.core import DataError, ScoreError, find_targets
from cdra_mm.mm.planning.scoring import SeededSamples, score_backbone
from cdra_mm.mm.planning.withheld import withheld_parameters

from . import toy


def ready(cfg) -> Runner:
    """A runner as it is when the hook scores."""
    runner = Runner.from_cfg(cfg)
    runner.train_loop  # noqa: B018 - builds it
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner._init_model_weights()
    return runner


def score(runner: Runner, **options):
    options = dict(num_samples=6, batch_size=4, statistic='per_sample', seed=0) | options
    return score_backbone(runner, runner.model.backbone, **options)


def one_by_one(runner: Runner, num_samples: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """The oracle: a batch of one, an ordinary backward, squares of ``.grad``."""
    model, backbone = runner.model, runner.model.backbone
    targets = find_targets(backbone)
    parameters = dict(backbone.named_parameters())
    total = {name: torch.zeros(t.shape) for name, t in targets.items()}
    dataset = runner.train_loop.dataloader.dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    model.eval()
    for index in order[:num_samples].tolist():
        sample = SeededSamples(dataset, seed)[index]
        data = runner.train_loop.dataloader.collate_fn([sample])
        data = model.data_preprocessor(data, True)
        model.zero_grad()
        loss, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
        loss.backward()
        for name, target in targets.items():
            grad = parameters[target.path].grad
            if grad is not None:
                total[name] += grad[target.start : target.stop] ** 2 / num_samples
    model.zero_grad()
    return total


@pytest.mark.parametrize('task', ['seg', 'cls'])
def test_scores_equal_a_loop_over_batches_of_one(tmp_path, task):
    cfg = toy.config(tmp_path, task)
    cfg.train_dataloader.dataset.jitter = True
    if task == 'seg':  # an auxiliary head, ignored pixels with a mean over the others
        aux = dict(cfg.model.decode_head, in_index=0)
        loss = dict(type='CrossEntropyLoss', avg_non_ignore=True, loss_weight=0.4)
        cfg.model.auxiliary_head = dict(aux, loss_decode=loss, ignore_index=0)
    runner = ready(cfg)
    scores, count = score(runner)
    expected = one_by_one(runner, 6)
    assert count == 6 and scores.keys() == expected.keys()
    for name in scores:
        torch.testing.assert_close(
            scores[name], expected[name], rtol=1e-4, atol=1e-6 * float(expected[name].max() + 1e-12)
        )


def test_scores_do_not_depend_on_the_batch_size(tmp_path):
    cfg = toy.config(tmp_path)
    cfg.train_dataloader.dataset.jitter = True
    runner = ready(cfg)
    a, b = score(runner, batch_size=1)[0], score(runner, batch_size=5)[0]
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6 * float(a[name].max()))


def test_a_model_is_left_as_it_was_found(tmp_path):
    runner = ready(toy.config(tmp_path, 'cls'))
    model = runner.model
    model.head.fc.weight.data.zero_()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    score(runner)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert 'extract_feat' not in vars(model)


@HEADS.register_module()
class TwoStageHead(FCNHead):
    """Gives its loss what no prediction is made of, as K-Net's, and moves a buffer, as EMANet's."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.register_buffer('seen', torch.zeros(()))

    def forward(self, inputs):
        maps = super().forward(inputs)
        if not self.training:
            return maps
        self.seen += 1
        return [maps, maps]

    def loss_by_feat(self, maps, samples):
        both = [super(TwoStageHead, self).loss_by_feat(stage, samples) for stage in maps]
        return {name: (both[0][name] + both[1][name]) / 2 for name in both[0]}


def test_a_head_gives_its_loss_what_it_gives_in_training(tmp_path):
    found = []
    for kind in ('FCNHead', 'TwoStageHead'):
        cfg = toy.config(tmp_path)
        cfg.model.decode_head.update(type=kind, dropout_ratio=0.5)
        runner = ready(cfg)
        assert withheld_parameters(runner, runner.model.backbone, 0) == {}
        before = {k: v.clone() for k, v in runner.model.state_dict().items()}
        found.append(score(runner)[0])
        assert all(torch.equal(v, before[k]) for k, v in runner.model.state_dict().items())
        assert all(module.training for module in runner.model.modules())
    for name, scores in found[0].items():
        torch.testing.assert_close(found[1][name], scores)


def test_a_zero_head_is_scored_through_random_weights_and_said_so(tmp_path, capsys):
    runner = ready(toy.config(tmp_path, 'cls'))
    runner.model.head.fc.weight.data.zero_()
    scores, _ = score(runner)
    assert all(bool(torch.isfinite(s).all()) for s in scores.values())
    assert any(float(s.max()) > 0 for s in scores.values())
    assert not runner.model.head.fc.weight.any()
    assert 'head.fc.weight is all zeros' in capsys.readouterr().out


def test_activation_checkpointing_does_not_change_the_scores(tmp_path):
    runner = ready(toy.config(tmp_path))
    expected, _ = score(runner)
    from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing

    turn_on_activation_checkpointing(runner.model, ['backbone.layers.1'])
    scores, _ = score(runner)
    assert all(torch.equal(scores[name], expected[name]) for name in scores)
    assert hasattr(vars(runner.model.backbone.layers[1])['forward'], '__wrapped__')


def test_mixing_of_samples_is_off(tmp_path):
    cfg = toy.config(tmp_path, 'cls')
    expected, _ = score(ready(cfg))
    cfg = toy.config(tmp_path, 'cls')
    cfg.model.data_preprocessor.batch_augments = dict(augments=dict(type='Mixup', alpha=1.0))
    cfg.model.data_preprocessor.num_classes = toy.CLASSES
    runner = ready(cfg)
    augments = runner.model.data_preprocessor.batch_augments
    torch.manual_seed(0)
    scores, _ = score(runner)
    assert runner.model.data_preprocessor.batch_augments is augments is not None
    assert expected.keys() == scores.keys()


def test_fewer_samples_than_asked_uses_all_and_warns(tmp_path, capsys):
    runner = ready(toy.config(tmp_path))
    _, count = score(runner, num_samples=400)
    assert count == 24
    assert 'num_samples=400: the training set has 24' in capsys.readouterr().out


def test_labels_out_of_range_are_named_with_their_image(tmp_path, monkeypatch):
    runner = ready(toy.config(tmp_path))
    wrong = np.full((toy.SIZE, toy.SIZE), 9, np.uint8)
    monkeypatch.setattr(toy, 'picture', lambda i, real=toy.picture: (real(i)[0], wrong))
    with pytest.raises(DataError, match=r'toy_\d+\.png has the label ids \[9\].*num_classes=4'):
        score(runner)


def test_the_ignore_index_is_no_wrong_label(tmp_path, monkeypatch):
    runner = ready(toy.config(tmp_path))
    mask = np.full((toy.SIZE, toy.SIZE), 255, np.uint8)
    mask[:8] = 1
    monkeypatch.setattr(toy, 'picture', lambda i, real=toy.picture: (real(i)[0], mask))
    score(runner)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path, monkeypatch):
    runner = ready(toy.config(tmp_path))

    def broken(index):
        raise OSError('broken data stream')

    monkeypatch.setattr(toy, 'picture', broken)
    with pytest.raises(DataError, match=r'toy_\d+\.png\) cannot be loaded: OSError: broken data'):
        score(runner)


def test_a_loss_that_is_not_finite_names_the_image(tmp_path, monkeypatch):
    runner = ready(toy.config(tmp_path))
    real = runner.model.loss

    def loss(inputs, samples):
        losses = real(inputs, samples)
        if samples[0].img_path == 'toy_3.png':
            losses['decode.loss_ce'] = losses['decode.loss_ce'] * float('nan')
        return losses

    monkeypatch.setattr(runner.model, 'loss', loss)
    message = r'training image toy_3\.png: the loss of sample \d+ is nan'
    with pytest.raises(ScoreError, match=message):
        score(runner, num_samples=24)


def test_an_empty_data_set_is_refused(tmp_path, monkeypatch):
    runner = ready(toy.config(tmp_path))
    monkeypatch.setattr(type(runner.train_loop.dataloader.dataset), '__len__', lambda self: 0)
    with pytest.raises(DataError, match='training data set is empty'):
        score(runner)


def test_the_seed_decides_which_samples_and_augmentations(tmp_path):
    cfg = toy.config(tmp_path)
    cfg.train_dataloader.dataset.jitter = True
    runner = ready(cfg)
    same, other = score(runner), score(runner, seed=1)
    again = score(runner)
    assert all(torch.equal(same[0][n], again[0][n]) for n in same[0])
    assert not all(torch.equal(same[0][n], other[0][n]) for n in same[0])


def test_soft_labels_are_not_class_ids():
    from mmpretrain.structures import DataSample

    from cdra_mm.mm.planning.label_check import check_labels

    head = torch.nn.Module()
    head.num_classes = 3
    model = torch.nn.Module()
    model.head = head
    check_labels(model, [DataSample().set_gt_score(torch.tensor([0.2, 0.3, 0.5]))])
    sample = DataSample().set_gt_label(3)
    with pytest.raises(DataError, match=r'\[3\]'):
        check_labels(model, [sample])
