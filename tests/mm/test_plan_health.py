"""What a plan holds of the scores, what is unhealthy about it, and what a training takes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from cdra_mm.core import Block, Plan, Vector
from cdra_mm.mm.plan_health import masses_of, plan_health
from cdra_mm.mm.plan_only import plan_only

from . import toy

MATRICES = [*(f'a{n}' for n in range(8)), 'd0']


def block(name, rank, num_sensitive):
    return Block(name, (4, 4), (0, 1), (0, 1), rank, num_sensitive)


def plan(adapted=5, dropped=1, lost=10):
    return Plan(
        blocks=tuple(block(f'a{n}', 1, 10) for n in range(adapted)),
        dropped=tuple(block(f'd{n}', 0, lost) for n in range(dropped)),
        vectors=(Vector('v', 4, None, 2),),
        num_competing=10_000,
        num_sensitive=adapted * 10 + dropped * lost + 2,
    )


def energy_plan():
    return replace(plan(), settings={'statistic': 'mean_gradient'})


def masses(**changed):
    return {**{f'a{n}': 1.0 for n in range(8)}, 'd0': 1.0, 'v': 1.0, **changed}


def test_shares_are_those_of_the_scores_and_entries():
    found = plan_health(plan(), masses(a0=1.5), MATRICES)
    assert found.held == pytest.approx((1.5 + 4 + 1) / 10.5)
    assert found.lost == pytest.approx(10 / 62)
    assert found.adapted == pytest.approx(5 / 9)
    assert found.largest[0] == ('a0', pytest.approx(1.5 / 10.5))
    assert not found.warnings
    assert 'hold 61.9 % of all scores; the largest: a0 14.3 %' in found.text


@pytest.mark.parametrize(
    ('case', 'changed', 'words'),
    [
        (plan(), dict(d0=3.0), r'd0 alone holds 25 % of all scores .*mean and std'),
        (plan(lost=60), {}, r"54 % of the selected entries lie in matrices .*rank_rule='count'"),
        (energy_plan(), dict(d0=3.0), r"d0 alone holds 25 % of the mean gradients' energy"),
        (plan(adapted=0, lost=0), {}, r'0 % of the matrices are adapted: .*budget'),
    ],
)
def test_what_is_unhealthy_is_said_with_a_remedy(case, changed, words):
    (warning,) = plan_health(case, masses(**changed), MATRICES).warnings
    assert re.search(words, warning)


def test_a_part_of_the_matrices_may_lie_in_one_of_them():
    assert not plan_health(plan(), masses(d0=3.0), [*MATRICES, 'withheld']).warnings


def test_a_plan_without_scores_has_no_health():
    assert plan_health(plan(), {}, MATRICES) is None
    assert plan_health(Plan(vectors=(Vector('v', 4, None, 2),)), masses(), MATRICES) is None


@pytest.mark.parametrize('signed', [False, True])
def test_masses_are_sums_of_scores_or_of_squares(signed):
    scores = {'a': torch.tensor([[1.0, -2.0]]), 'b': torch.tensor([3.0])}
    expected = {'a': 5.0, 'b': 9.0} if signed else {'a': -1, 'b': 3}
    assert masses_of(scores, signed=signed) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize('method', [dict(allocation='scores'), {}])
def test_a_run_says_it_and_a_plan_says_what_training_takes(tmp_path, method):
    cfg = toy.config(tmp_path, cdra=dict(method=dict(type='cdra', **method)), log_level='INFO')
    cfg.default_hooks.checkpoint.interval = -1
    cfg.default_hooks.checkpoint.save_last = False
    cfg.train_cfg.val_interval = 1  # and yet nothing is validated
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=dict(backbone=dict(lr_mult=0.5)))
    runner = toy.Runner.from_cfg(cfg)
    path = plan_only(runner)
    read = Plan.from_json(path.read_text())
    (log,) = (tmp_path / 'run').glob('*/*.log')
    text = log.read_text()
    what = 'all scores' if method else "the mean gradients' energy"
    assert re.search(rf'the trained targets hold \d+\.\d % of {what}; the largest: layers', text)
    adapter = 4 * read.num_trainable / 2**20
    assert re.search(
        rf'iteration of 4 images takes .* s here, 8 of them .*: {adapter:.2f} MiB', text
    )
    assert '(val)' not in text
    assert 'paramwise_options' not in text  # mmengine's: three lines for each parameter
    assert not list((tmp_path / 'run').glob('*.pth'))
