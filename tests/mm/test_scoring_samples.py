"""Which samples are scored, and that each gradient is of one of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS

from cdra_mm.core import ConfigError, DataError, find_targets
from cdra_mm.mm.planning.competing import competing_targets
from cdra_mm.mm.rebuild import plain_model

from . import toy
from .test_scoring import one_by_one, ready, score

IGNORED = np.full((toy.SIZE, toy.SIZE), 255, np.uint8)


@MODELS.register_module(force=True)
class Siamese(EncoderDecoder):
    """An image and its mirror image as two dates, stacked as a batch of 2B."""

    def extract_feat(self, inputs):
        features = self.backbone(torch.cat([inputs, inputs.flip(-1)]))
        return tuple((first - second).abs() for first, second in map(halves, features))


@MODELS.register_module(force=True)
class Stacked(EncoderDecoder):
    """Features of both dates, twice as many as there are samples."""

    def extract_feat(self, inputs):
        return self.backbone(torch.cat([inputs, inputs.flip(-1)]))

    def loss(self, inputs, data_samples):
        features = tuple(torch.cat(halves(f), 1)[:, :32] for f in self.extract_feat(inputs))
        return self._decode_head_forward_train(features, data_samples)


def halves(tensor):
    return tensor.chunk(2)


def close(actual, expected):
    for name, score_ in expected.items():
        torch.testing.assert_close(
            actual[name], score_, rtol=1e-4, atol=1e-6 * float(score_.max() + 1e-12)
        )


def lovasz(folder, monkeypatch, unlabelled, **options):
    """A run under a loss that is not a number where every pixel is ignored."""
    real = toy.picture
    monkeypatch.setattr(
        toy, 'picture', lambda i: (real(i)[0], IGNORED if i in unlabelled else real(i)[1])
    )
    cfg = toy.config(folder, **options)
    cfg.model.decode_head.loss_decode = [
        dict(type='CrossEntropyLoss'),
        dict(type='LovaszLoss', reduction='none'),
    ]
    return ready(cfg)


@pytest.mark.parametrize('model', ['EncoderDecoder', 'Siamese'])
def test_scores_of_siamese_models_equal_a_loop_over_batches_of_one(tmp_path, model, capsys):
    cfg = toy.config(tmp_path)
    cfg.model.type = model
    runner = ready(cfg)
    scores, _ = score(runner)
    close(scores, one_by_one(runner, 6))
    lines = [
        line for line in capsys.readouterr().out.splitlines() if 'one sample at a time' in line
    ]
    assert len(lines) == (model == 'Siamese')


def test_features_of_more_samples_than_the_batch_has_are_named(tmp_path):
    cfg = toy.config(tmp_path)
    cfg.model.type = 'Stacked'
    runner = ready(cfg)
    message = r'extract_feat of Stacked gives features of shape \(8, 32, 4, 4\) for a batch of 4'
    with pytest.raises(ConfigError, match=message):
        score(runner)
    scores, _ = score(runner, batch_size=1)  # as the message says
    close(scores, one_by_one(runner, 6))


def test_samples_without_a_label_are_left_out_and_counted(tmp_path, monkeypatch, capsys):
    runner = lovasz(tmp_path, monkeypatch, unlabelled={2, 3, 5})
    scores, count = score(runner, num_samples=24)
    assert count == 21
    said = [line for line in capsys.readouterr().out.splitlines() if 'no labelled pixel' in line]
    assert len(said) == 1
    assert '3 of 24 training samples (toy_2.png ...) have no labelled pixel' in said[0]
    kept = {
        name: torch.zeros(target.shape)
        for name, target in find_targets(runner.model.backbone).items()
    }
    parameters = dict(runner.model.backbone.named_parameters())
    runner.model.eval()
    loader = runner.train_loop.dataloader
    for index in set(range(24)) - {2, 3, 5}:
        data = loader.collate_fn([loader.dataset[index]])
        data = runner.model.data_preprocessor(data, True)
        loss, _ = runner.model.parse_losses(runner.model.loss(**data))
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        grads = dict(zip(parameters, grads, strict=True))
        for name, target in find_targets(runner.model.backbone).items():
            if grads[target.path] is not None:
                kept[name] += grads[target.path][target.start : target.stop] ** 2 / 21
    close(scores, kept)


def test_samples_without_a_label_per_batch(tmp_path, monkeypatch):
    """A batch's mean is one over those that are left; a batch without any does not count."""
    labelled = lovasz(tmp_path, monkeypatch, unlabelled=set())
    expected, _ = score(labelled, num_samples=24, batch_size=6, statistic='per_batch')
    order = list(range(24))
    # Three batches as they were, one without labels: the mean of the three.
    monkeypatch.undo()
    runner = lovasz(tmp_path, monkeypatch, unlabelled=set(order[18:]))
    three, count = score(runner, num_samples=24, batch_size=6, statistic='per_batch')
    assert count == 18
    name = 'layers.0.attn.proj.weight'
    assert not torch.allclose(three[name], expected[name])
    monkeypatch.undo()
    labelled = lovasz(tmp_path, monkeypatch, unlabelled=set())
    monkeypatch.setattr(type(labelled.train_loop.dataloader.dataset), '__len__', lambda self: 18)
    expected, _ = score(labelled, num_samples=18, batch_size=6, statistic='per_batch')
    close(three, expected)


def test_no_sample_with_a_label_is_refused(tmp_path, monkeypatch):
    runner = lovasz(tmp_path, monkeypatch, unlabelled=set(range(24)))
    with pytest.raises(DataError, match=r'none of the .* \(toy_\d+\.png .*labelled pixel.*ignore'):
        score(runner)


def test_an_unlabelled_sample_with_a_finite_loss_counts(tmp_path, monkeypatch, capsys):
    real = toy.picture
    monkeypatch.setattr(toy, 'picture', lambda i: (real(i)[0], real(i)[1] if i else IGNORED))
    _, count = score(ready(toy.config(tmp_path)), num_samples=24)
    assert count == 24 and 'no labelled pixel' not in capsys.readouterr().out


def test_labels_that_the_model_pads_are_padded_once(tmp_path):
    """The loss runs again where a weight is used twice, on the same batch."""
    cfg = toy.config(tmp_path)
    cfg.model.data_preprocessor.size = (toy.SIZE + 8, toy.SIZE + 8)
    runner = ready(cfg)
    block = runner.model.backbone.layers[0]
    block.ln2 = block.ln1
    scores, _ = score(runner)
    close(scores, one_by_one(runner, 6))


def left_by(runner, *exclude):
    """What competes of a run's backbone."""
    backbone = plain_model(runner).backbone
    return competing_targets(backbone, find_targets(backbone), exclude)


def test_exclude_leaves_targets_out(tmp_path):
    runner = ready(toy.config(tmp_path))
    every, _ = score(runner)
    left, _ = score(
        runner, targets=left_by(runner, 'norm', 'layers.2', 'layers.0.attn.proj.weight')
    )
    assert left.keys() < every.keys()
    assert all(torch.equal(left[name], every[name]) for name in left)
    assert not any(n.startswith('layers.2.') or '.ln' in n for n in left)
    assert 'layers.0.attn.proj.bias' in left and 'layers.0.attn.proj.weight' not in left
    with pytest.raises(ConfigError, match="'norms' is nothing .*did you mean 'norm'"):
        left_by(runner, 'norms')


def test_the_log_says_where_little_competes(tmp_path, capsys):
    runner = ready(toy.config(tmp_path, log_level='INFO'))
    left_by(runner)
    assert 'parameters of VisionTransformer compete' not in capsys.readouterr().out
    left_by(runner, 'layers.2', 'fc1')
    out = capsys.readouterr().out
    assert '% of the parameters of VisionTransformer compete' in out
    assert 'without layers.2, fc1' in out
