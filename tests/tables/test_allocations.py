"""The study of allocations: all variants from one head, runs that go on, paired differences."""

from __future__ import annotations

import json
import math

import pytest
import torch

from cdra_mm.benchmark.small_tasks import Task
from cdra_mm.benchmark.small_training import SmallModel, sample_losses, small_loss
from cdra_mm.core import ConfigError, Plan
from cdra_mm.tables import allocation_setting
from cdra_mm.tables.allocation_setting import VARIANTS, Setting, Variant
from cdra_mm.tables.allocations import compare, main
from tests.benchmark.test_rounding import dense, tiny_vit, vtab  # noqa: F401


@pytest.fixture
def setting():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (24, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(24) % 3
    images[labels == 1, 0] //= 4
    images[labels == 2, 1] //= 4
    return Setting(Task((images, labels), (images[:6], labels[:6]), 3), tiny_vit, 0, 4, 40)


def test_the_head_is_fitted_on_frozen_features(setting):
    drawn, fitted = setting.drawn.state_dict(), setting.model.state_dict()
    changed = {name for name, value in fitted.items() if not torch.equal(value, drawn[name])}
    assert changed == {'head.weight', 'head.bias'}
    images, labels = setting.task.train
    with torch.no_grad():
        before, after = (
            float(small_loss(m.eval()(images), labels)) for m in (setting.drawn, setting.model)
        )
    assert after < 0.7 * before


def test_every_variant_plans_within_half_a_percent_and_trains(setting):
    total = sum(p.numel() for p in setting.model.backbone.parameters())
    state = {name: value.clone() for name, value in setting.model.state_dict().items()}
    shown = {name: v for name, v in VARIANTS.items() if not v.fitted or v.start}
    for name, variant in shown.items():
        plan, start = setting.plan(variant)
        assert bool(plan.num_trainable) is (name != 'linear'), name
        if variant.method is None or variant.method['type'] == 'cdra':
            assert plan.num_trainable <= total // 200, name
        assert set(start) == ({b.name for b in plan.blocks} if variant.start else set()), name
    found = setting.train(*setting.plan(Variant(start=True)), 1e-3)
    assert found['params'] <= total // 200 and math.isfinite(found['val_loss'])
    for name, value in setting.model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_training_starts_with_the_drawn_or_the_fitted_head(setting):
    setting.iterations = 1
    drawn, fitted = (setting.train(Plan(), {}, 1e-3, fitted=value) for value in (False, True))
    assert fitted['train_loss'] < 0.8 * drawn['train_loss']


def test_losses_of_samples_are_means_over_what_has_a_label():
    model = SmallModel(tiny_vit(32), 3, True).eval()
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 32, 32))
    labels[1, :16] = 255
    with torch.no_grad():
        found = sample_losses(model)(model, (images, labels))
        for n in range(2):
            alone = small_loss(model(images[n : n + 1]), labels[n : n + 1])
            torch.testing.assert_close(found[n], alone)


def test_a_run_that_is_there_is_not_run_again(vtab, dense, tmp_path, capsys, monkeypatch):  # noqa: F811
    runs = tmp_path / 'runs.jsonl'
    words = ['--runs', str(runs), '--vtab', f'{vtab}:32', '--rates', '1e-3', '1e-2']
    words += ['--head-iterations', '3', '--iterations', '2', '--weights', 'none']
    words += ['--against', 'bias', '--variants']
    main([*words, 'bias'], backbone=lambda _, size: tiny_vit(size))
    first = runs.read_text().splitlines()
    assert [json.loads(line)['variant'] for line in first] == ['head', 'bias', 'bias']
    monkeypatch.setattr(allocation_setting, 'fit_small_head', None)
    main([*words, 'bias'], backbone=lambda _, size: tiny_vit(size))
    assert runs.read_text().splitlines() == first
    assert 'vtab' in capsys.readouterr().out


def run(task, variant, rate, seed, metric):
    return dict(task=task, variant=variant, rate=rate, seed=seed, metric=metric)


def test_differences_are_paired_over_tasks_and_seeds_at_each_ones_best_rate():
    runs = [
        *(
            run('a', 'lora', r, s, m)
            for r, s, m in [(1, 0, 50), (1, 1, 52), (2, 0, 60), (2, 1, 40)]
        ),
        run('b', 'lora', 1, 0, 10),
        *(run('a', 'bias', 2, s, m) for s, m in [(0, 53), (1, 53)]),
        run('b', 'bias', 2, 0, 16),
    ]
    text = compare(runs, 'lora')
    # Pairs 53 - 50, 53 - 52, 16 - 10 at the rates whose means are best: mean 3.33, error 1.45.
    line = next(line for line in text.splitlines() if line.startswith('bias'))
    assert '53.0' in line and '16.0' in line and '+3.33 (1.45), 3' in line
    line = next(line for line in text.splitlines() if line.startswith('lora'))
    assert '51.0' in line and 'a 1' in line  # of 1 and 2, so at an edge


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--variants', 'lara'], "'lara'.*did you mean 'lora'"),
        (['--against', 'nobody'], "'nobody'"),
        ([], 'has no run: give --vtab or --dense'),
    ],
)
def test_wrong_words_are_refused(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        main(['--runs', str(tmp_path / 'none.jsonl'), *words])
