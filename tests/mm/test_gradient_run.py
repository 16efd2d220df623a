"""A run whose blocks come from the mean gradient, through the hook."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdra_mm import CDRAHook
from cdra_mm.core import Block, ConfigError, Plan, PlanError, adapters, load_adapter
from cdra_mm.core.planning.offers import CURRENCIES, START_LENGTH
from cdra_mm.core.scoring.scores import STATISTICS
from cdra_mm.methods import CDRA
from cdra_mm.mm.planning import run_plan
from cdra_mm.mm.planning.kept_scores import SCORES_FILE, read_kept

from . import toy

ENERGY = dict(type='cdra', allocation='energy', start='gradient')
NONE = dict(type='IterBasedTrainLoop', max_iters=1, val_interval=100)
STILL = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-12))


def downs(runner):
    found = adapters(runner.model.backbone)
    return {n: a.down.detach().clone() for n, a in found.items() if hasattr(a, 'down')}


@pytest.mark.parametrize('allocation', CURRENCIES)
def test_a_run_plans_starts_trains_and_is_written_and_read_as_any_other(tmp_path, allocation):
    method = dict(type='cdra', allocation=allocation, start='gradient')
    cfg = toy.config(tmp_path, cdra=dict(method=method, keep_scores='all'))
    runner = toy.train(cfg)
    plan = Plan.from_json((tmp_path / 'run/cdra_plan.json').read_text())
    total = sum(p.numel() for n, p in runner.model.backbone.named_parameters() if 'cdra' not in n)
    assert 0.04 * total < plan.num_trainable <= 0.05 * total
    assert plan.settings['allocation'] == allocation and plan.settings['start'] == 'gradient'
    assert plan.settings['statistic'] == 'mean_gradient'
    assert 0.2 < plan.settings['energy_share'] < 1
    kept = read_kept(tmp_path / 'run' / SCORES_FILE)
    block = plan.blocks[0]
    mask = kept.masks[block.name]
    assert int(mask.sum()) == len(block.rows) * len(block.cols)
    assert mask[list(block.rows)][:, list(block.cols)].all()
    assert min(float(kept.scores[name].min()) for name in kept.shapes) >= 0
    summary = json.loads((tmp_path / 'run/summary.json').read_text())
    assert summary['method'] == 'cdra'


def test_a_start_along_the_gradient_is_drawn_from_the_data_also_for_a_plan_of_a_file(tmp_path):
    still = dict(train_cfg=NONE, optim_wrapper=STILL)
    first = downs(toy.train(toy.config(tmp_path, cdra=dict(method=ENERGY), **still)))
    for down in first.values():
        gram = down @ down.T / START_LENGTH**2
        torch.testing.assert_close(gram, torch.eye(len(down)), rtol=0, atol=1e-4)
    path = tmp_path / 'plan.json'
    path.write_text((tmp_path / 'run/cdra_plan.json').read_text())
    again = toy.config(
        tmp_path, cdra=dict(method=ENERGY, plan=str(path)), work_dir=str(tmp_path / 'b'), **still
    )
    second = downs(toy.train(again))
    assert first.keys() == second.keys()
    for name, down in first.items():
        torch.testing.assert_close(second[name], down, rtol=1e-4, atol=1e-5)
    drawn = dict(type='cdra', allocation='energy', start='random')
    third = downs(
        toy.train(
            toy.config(tmp_path, cdra=dict(method=drawn), work_dir=str(tmp_path / 'c'), **still)
        )
    )
    assert third.keys() == first.keys()
    assert all(not torch.allclose(third[name], down) for name, down in first.items())


def test_a_run_resumes_with_its_own_factors(tmp_path):
    cdra = dict(method=ENERGY)
    whole = toy.train(toy.config(tmp_path, cdra=cdra, work_dir=str(tmp_path / 'whole')))
    half = toy.config(tmp_path, cdra=cdra, work_dir=str(tmp_path / 'half'))
    half.train_cfg.max_iters = 4
    toy.train(half)
    rest = toy.config(tmp_path, cdra=cdra, work_dir=str(tmp_path / 'half'), resume=True)
    runner = toy.train(rest)
    for name, down in downs(whole).items():
        assert torch.equal(downs(runner)[name], down), name


def test_its_adapter_file_is_read_on_the_base(tmp_path):
    runner = toy.train(toy.config(tmp_path, cdra=dict(method=ENERGY)))
    (path,) = Path(tmp_path / 'run').glob('*.safetensors')
    fresh = toy.Runner.from_cfg(toy.config(tmp_path, cdra=dict(method=ENERGY)))
    fresh._init_model_weights()
    load_adapter(fresh.model.backbone, path)
    images = torch.randn(2, 3, 32, 32)
    runner.model.eval(), fresh.model.eval()
    with torch.no_grad():
        found, expected = fresh.model.backbone(images)[0], runner.model.backbone(images)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(allocation='energie'), 'allocation='),
        (
            dict(start='gradient', allocation='scores'),
            "start='gradient': not used with allocation='scores'",
        ),
        (
            dict(max_rank=4, allocation='scores'),
            "max_rank=4: not used with allocation='scores'",
        ),
        (
            dict(max_rank=4, min_rank=1),
            "max_rank=4: goes with allocation='descent', min_rank with 'scores'",
        ),
        (
            dict(start='gradient', gamma=0.1),
            "start='gradient': goes with allocation='descent', gamma with 'scores'",
        ),
        (dict(allocation='energy', max_rank=0), 'max_rank=0'),
        (dict(allocation='energy', rank_rule='count'), "rank_rule='count': not used with alloc"),
        (dict(allocation='energy', gamma=0.1), 'gamma=0.1: not used with allocation='),
        (dict(allocation='descent', gamma=0.1), 'gamma=0.1: not used with allocation='),
        (dict(allocation='energy', quadrant='00'), "quadrant='00': not used with allocation="),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        CDRA(**settings)


def test_squares_do_not_serve_an_allocation_by_gradients_nor_gradients_the_paper():
    with pytest.raises(ConfigError, match="statistic='per_sample': expected one of mean_gradient"):
        CDRAHook(method=ENERGY, statistic='per_sample')
    with pytest.raises(
        ConfigError, match="statistic='mean_gradient': expected one of per_sample, per"
    ):
        CDRAHook(statistic='mean_gradient', allocation='scores')


@pytest.mark.parametrize(
    ('settings', 'allocation', 'start'),
    [
        (dict(), 'descent', 'gradient'),
        (dict(budget_params=1000, compete='matrices'), 'descent', 'gradient'),
        (dict(start='random'), 'descent', 'random'),
        (dict(allocation='energy'), 'energy', 'gradient'),
        (dict(max_rank=4), 'descent', 'gradient'),
        (dict(allocation='scores'), 'scores', 'random'),
        (dict(rank_rule='eq7'), 'scores', 'random'),
        (dict(gamma=0.1), 'scores', 'random'),
        (dict(quadrant='00', start='random'), 'scores', 'random'),
    ],
)
def test_the_default_is_descent_unless_a_setting_is_the_papers(settings, allocation, start):
    method = CDRA(**settings)
    assert (method.allocation, method.start, method.rank_rule) == (allocation, start, 'eq7')
    assert replace(method) == method
    hook = CDRAHook(**settings)
    assert hook.method == method
    assert hook.planner.statistic == ('per_sample' if allocation == 'scores' else 'mean_gradient')


@pytest.mark.parametrize('statistic', STATISTICS)
def test_a_statistic_of_scores_asks_for_the_papers_allocation(statistic):
    assert CDRAHook(statistic=statistic).method == CDRA(allocation='scores')
    assert CDRAHook(statistic='mean_gradient').method == CDRA()


def test_plans_and_checkpoints_of_the_paper_say_nothing_of_it(tmp_path):
    hook = CDRAHook(allocation='scores')
    assert not {'allocation', 'max_rank', 'start'} & {k.split('.')[-1] for k in hook.settings}
    assert CDRAHook(method=ENERGY).settings['method.allocation'] == 'energy'


def test_a_start_for_a_plan_that_has_none_or_does_not_fit_is_refused_before_scoring(
    tmp_path, monkeypatch
):
    def never(*_, **__):
        raise AssertionError('scored')

    monkeypatch.setattr(run_plan, 'score_backbone', never)
    name = 'layers.0.ffn.layers.0.0.weight'
    wide = Plan(blocks=(Block(name, (96, 32), (0, 95), (0, 1), 1, 0),))
    bias = Plan(method='bias', also_train={'layers.0.ln1.bias': 32})
    for plan, words in (
        (wide, 'it belongs to another architecture'),
        (bias, 'is of bias and has no low-rank block.* leave start out'),
    ):
        path = tmp_path / 'plan.json'
        path.write_text(plan.to_json())
        cfg = toy.config(tmp_path, cdra=dict(method=ENERGY, plan=str(path)))
        with pytest.raises(PlanError, match=words):
            toy.train(cfg)


@pytest.mark.parametrize('method', [ENERGY, dict(type='cdra')])
def test_what_is_trained_whole_does_not_compete(tmp_path, method):
    also, cdra = 'layers.0.ln1.weight', dict(method=method, budget_percent=30)
    cfg = toy.config(tmp_path, cdra=dict(cdra, also_train=[also]), train_cfg=NONE)
    toy.train(cfg)
    plan = Plan.from_json((tmp_path / 'run/cdra_plan.json').read_text())
    assert plan.also_train == {also: 32}
    assert also not in {vector.name for vector in plan.vectors} and plan.vectors


def test_vectors_alone_are_planned_and_trained(tmp_path):
    runner = toy.train(toy.config(tmp_path, cdra=dict(compete='vectors'), train_cfg=NONE))
    plan = Plan.from_json((tmp_path / 'run/cdra_plan.json').read_text())
    assert plan.vectors and not plan.blocks
    assert runner.iter == 1
    scores = dict(compete='vectors', allocation='scores')
    with pytest.raises(PlanError, match="compete='vectors': no matrix competes"):
        toy.train(toy.config(tmp_path, cdra=scores, work_dir=str(tmp_path / 'b'), train_cfg=NONE))


@pytest.mark.parametrize(('given', 'begins'), [(None, 'random'), ('gradient', 'gradient')])
@pytest.mark.parametrize('inside', [False, True])
def test_a_given_plan_begins_as_its_record_says(given, begins, inside):
    """At random unless a start is asked for; of the scores and a plan of its own as ever."""
    settings = dict(method=dict(type='cdra', start=given)) if inside else dict(start=given)
    hook = CDRAHook(plan='plan.json', **settings)
    recorded = hook.settings.get('method.start', 'random')  # what a record without it means
    assert (hook.method.start, recorded) == (begins, begins)
    assert hook.method.needs_start is (begins == 'gradient')
    assert CDRAHook(**settings).method.start == 'gradient'


@pytest.mark.parametrize(
    'written',
    [
        dict(beta=5), dict(quadrant=10), dict(size_ratio=1.0), dict(case1=True), dict(min_rank=0),
        dict(rank_alpha=1), dict(lora_rank=8), dict(alpha=10), dict(gamma=0.01),
    ],
    ids=lambda written: next(iter(written)),
)  # fmt: skip
def test_a_setting_of_the_papers_steps_is_of_scores_also_at_its_default(written):
    """Otherwise one row of a sweep over it would be of another method."""
    for settings in (written, dict(method=dict(type='cdra', **written))):
        assert CDRAHook(**settings).method.allocation == 'scores'
    if 'gamma' in written:
        assert CDRAHook(gamma=None).method.allocation == 'descent'  # not given
    else:
        assert CDRAHook(**written, allocation='energy').method.allocation == 'energy'
    with pytest.raises(ConfigError, match='max_rank=4: '):
        CDRAHook(**written, max_rank=4)
