"""Runs whose adapted products go through copies train what the others do."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core import ConfigError
from cdra_mm.core.adapters.copied_weights import product_of
from cdra_mm.mm.hook import CDRAHook

from . import toy
from .test_life_cycle import weights
from .test_resume import WINDOW, amp, amp_on_cpu, assert_exact, config

assert amp_on_cpu  # a fixture


def trained(folder, name, product, **options):
    torch.compiler.reset()
    runner = toy.train(config(folder, name, cdra=dict(product=product), **options))
    assert product_of(runner.model.backbone) == product
    return weights(runner)


CASES = {
    'plain': dict(),
    'accumulation': dict(optim_wrapper=WINDOW),
    'averaged weights': dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)]),
    'recomputed blocks': dict(activation_checkpointing=['backbone.layers.1', 'backbone.layers.2']),
    'compiled': dict(
        compile=dict(backend='eager'),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=3, val_interval=100),
    ),
    'validated midway': dict(
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6, val_interval=2)
    ),
}


@pytest.mark.parametrize('product', ['copied', 'kept'])
@pytest.mark.parametrize('case', CASES)
def test_runs_end_with_the_same_weights(tmp_path, case, product):
    """In full precision, where nothing is rounded, up to the order of sums."""
    mine = trained(tmp_path, 'copied', product, **CASES[case])
    plain = {key: value for key, value in CASES[case].items() if key != 'compile'}
    theirs = trained(tmp_path, 'factored', 'factored', **plain)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=2e-3, atol=2e-4)


def test_a_rounded_update_is_seen(tmp_path, amp_on_cpu):
    """In half precision the two differ, so the comparison above would notice another product."""
    options = dict(optim_wrapper=amp('bfloat16'))
    mine, theirs = (trained(tmp_path, name, name, **options) for name in ('copied', 'factored'))
    assert any(not torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize('product', ['copied', 'kept'])
@pytest.mark.parametrize('case', ['bf16', 'recomputed'])
def test_resume_is_exact(tmp_path, case, product, amp_on_cpu):
    options = dict(optim_wrapper=amp('bfloat16'), cdra=dict(product=product))
    if case == 'recomputed':
        options['activation_checkpointing'] = ['backbone.layers.1']
    assert_exact(config, tmp_path, (3,), **options)


def test_unknown_product_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match="product='fast': expected one of auto, copied, factored"):
        CDRAHook(product='fast')
