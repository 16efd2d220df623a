"""Settings of the hook itself, and a plan that is handed in."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest
import torch

from cdra_mm import CDRAHook
from cdra_mm.core import ConfigError, Plan, PlanError, find_targets, plan_of
from cdra_mm.methods import CDRA, METHODS

from . import toy

SHORT = dict(type='IterBasedTrainLoop', max_iters=1, val_interval=100)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(num_samples=0), 'num_samples=0: expected a count'),
        (dict(batch_size=-1), 'batch_size=-1: expected a count'),
        (dict(statistic='mean'), "statistic='mean': expected one of per_sample, per_batch, summed"),
        (dict(gama=0.1), r"'gama' \(did you mean 'gamma'\?\)"),
        (dict(gamma=0.1, budget_percent=1.0), 'gamma=0.1, budget_percent=1.0: give only one'),
        (dict(score_dtype='float16'), "score_dtype='float16': expected one of float32, bfloat16"),
        (dict(score_device='gpu'), "score_device='gpu': expected 'cpu', or None"),
        (dict(method=dict(type='lineer')), r"'lineer' is unknown \(did you mean 'linear'\?\)"),
    ],
)
def test_wrong_settings_are_refused_when_the_hook_is_built(settings, message):
    with pytest.raises(ConfigError, match=message):
        CDRAHook(**settings)


def test_every_setting_is_described_with_type_or_values_and_default():
    parameters = inspect.signature(CDRAHook).parameters.values()
    text = inspect.getdoc(CDRAHook)
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY or parameter.name == 'method':
            (line,) = re.findall(rf'^    {parameter.name}: .*(?:\n      .*)*', text, re.MULTILINE)
            assert re.search('default', line, re.IGNORECASE), line
    for field in fields(CDRA):
        (line,) = re.findall(rf'^        (?:\w+, )?{field.name}(?:, \w+)?: .*', text, re.MULTILINE)
        assert re.search("int|float|bool|'", line), line
    assert 'Likewise' not in text


def test_a_budget_beside_another_method_is_its_budget_too():
    settings = dict(budget_percent=0.7, rank_rule='count')
    assert CDRAHook(method=dict(type='spt_lora'), **settings).method.budget_percent == 0.7
    own = CDRAHook(method=dict(type='spt_lora', budget_percent=0.3), **settings)
    assert own.method.budget_percent == 0.3


def test_settings_of_cdra_beside_another_method_are_left_unused():
    assert CDRAHook(method=dict(type='linear'), budget_percent=1.0).method.name == 'linear'


@pytest.mark.parametrize(
    ('text', 'error', 'message'),
    [
        (None, ConfigError, r'plan.*cannot be read'),
        ('{"version": 1', PlanError, 'not JSON'),
        (Plan(method='cdra', fingerprint='0' * 64).to_json(), PlanError, 'other base weights'),
    ],
)
def test_a_plan_file_that_does_not_fit_is_refused(tmp_path, text, error, message):
    path = tmp_path / 'plan.json'
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        toy.train(toy.config(tmp_path, cdra=dict(plan=str(path))))


def test_a_backbone_without_transformer_blocks_is_refused(tmp_path):
    cfg = toy.config(tmp_path, 'cls')
    cfg.model.backbone = dict(type='LeNet5')
    cfg.model.head.in_channels = 84
    with pytest.raises(PlanError, match='no adaptable weight in LeNet5'):
        toy.train(cfg)


@pytest.mark.parametrize(
    ('allocation', 'words'),
    [
        ('scores', r'budget_params=3 is too small.*trains \d+ parameters'),
        ('descent', r'budget of 3 trainable .* 32 are also_train: the smallest adapter has \d+'),
    ],
)
def test_a_budget_too_small_names_the_smallest_that_works(tmp_path, allocation, words):
    torch.manual_seed(0)
    cdra = dict(budget_percent=None, budget_params=3, allocation=allocation)
    with pytest.raises(PlanError, match=words):
        toy.train(toy.config(tmp_path, cdra=cdra))


def test_exclude_is_a_setting_of_the_record_only_where_it_is_given():
    assert 'exclude' not in CDRAHook().settings  # as in records from before there was one
    assert CDRAHook(exclude='norm').settings['exclude'] == ['norm']
    hook = CDRAHook(exclude=('norm', 'layers.0'), method=dict(type='spt_lora'))
    assert hook.settings['exclude'] == ['norm', 'layers.0']
    assert 'exclude' not in CDRAHook(exclude='norm', method=dict(type='lora')).settings


@pytest.mark.parametrize('name', [name for name, cls in METHODS.items() if cls.added])
def test_settings_that_earlier_releases_lacked_are_recorded_only_where_they_differ(name):
    """So a run of an earlier release goes on, and one that differs is told from it."""
    added = METHODS[name].added
    settings = CDRAHook(method={'type': name, **added}).settings
    assert not settings.keys() & {f'method.{key}' for key in added}
    known = {f'method.{field.name}' for field in fields(METHODS[name]) if field.name not in added}
    assert known <= settings.keys()


def test_a_factor_on_the_rank_is_a_setting_of_the_record_where_it_is_given():
    assert CDRAHook(rank_alpha=2.5).settings['method.rank_alpha'] == 2.5


@pytest.mark.parametrize('method', ['cdra', 'spt_lora', 'gps'])
def test_exclude_is_respected_by_methods_that_score(tmp_path, method):
    settings = dict(type=method, loss='task') if method == 'gps' else dict(type=method)
    left_out = ('norm', 'bias', 'layers.0')
    cdra = dict(method=settings, exclude=left_out)
    runner = toy.train(toy.config(tmp_path, cdra=cdra, train_cfg=SHORT))
    plan = plan_of(runner.model.backbone)
    trained = {r.name for r in (*plan.blocks, *plan.sparse, *plan.vectors)}
    targets = find_targets(runner.model.backbone)
    assert trained
    for name in trained & targets.keys():
        assert targets[name].role not in ('norm', 'bias') and not name.startswith('layers.0.')
    assert plan.settings['exclude'] == list(left_out)


def test_exclude_is_said_to_be_unused_by_a_method_without_scores(tmp_path, capsys):
    cdra = dict(method=dict(type='lora'), exclude='norm')
    toy.train(toy.config(tmp_path, cdra=cdra, train_cfg=SHORT))
    assert "exclude=['norm']: not used, lora has no scores" in capsys.readouterr().out


def test_scores_in_bf16_are_a_setting_that_a_plan_and_its_run_record(tmp_path):
    plain, half = CDRAHook(), CDRAHook(score_dtype='bfloat16', score_device='cpu')
    assert half.settings == {**plain.settings, 'score_dtype': 'bfloat16'}
    settings = dict(score_dtype='bfloat16', score_device='cpu', rank_rule='count')
    runner = toy.train(toy.config(tmp_path, cdra=settings, train_cfg=SHORT))
    plan = plan_of(runner.model.backbone)
    assert plan.blocks and plan.settings['score_dtype'] == 'bfloat16'
