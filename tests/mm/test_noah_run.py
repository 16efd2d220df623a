"""NOAH's supernet and search inside a run; `test_methods_runs` has the life of such runs."""

from __future__ import annotations

import copy
import json
import math
import random

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from cdra_mm.core import (
    CDRAError,
    CheckpointError,
    ConfigError,
    DataError,
    Plan,
    ScoreError,
    adapters,
)
from cdra_mm.methods import Request, make_method
from cdra_mm.mm.export.merging import merge_checkpoint
from cdra_mm.mm.planning import supernet
from cdra_mm.mm.planning.supernet import RunTrials, trials_in

from . import toy
from .test_life_cycle import Stop, assert_same, weights

SETTINGS = dict(
    type='noah',
    prompt_dims=[1, 2],
    lora_dims=[1, 2],
    adapter_dims=[2, 4],
    dropout=0.0,
    budget_percent=3.0,
    supernet_iters=4,
    population=4,
    num_parents=2,
    num_mutations=2,
    num_crossovers=2,
    generations=1,
)
TASKS = pytest.mark.parametrize('task', ['seg', 'cls'])


def config(folder, task, *, noah=None, **options):
    cfg = toy.config(folder, task, cdra=dict(method={**SETTINGS, **(noah or {})}), **options)
    del cfg.default_hooks.cdra['budget_percent']
    cfg.train_cfg.max_iters = 4
    cfg.default_hooks.checkpoint.interval = 2
    cfg.param_scheduler[0].update(T_max=4, end=4)
    return cfg


def ready(folder, task='cls', **options):
    """A runner at the point where the hook asks for the plan, with its plain backbone."""
    cfg = config(folder, task, **options)
    cfg.default_hooks.pop('cdra')
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner._init_model_weights()
    return runner, runner.model.backbone


def search(runner, backbone, seed=0, **settings):
    """A plan of a run, and its trials."""
    with trials_in(runner, backbone, seed) as trials:
        method = make_method({**SETTINGS, **settings})
        return method.plan(Request(backbone, trials=trials)), trials


def test_run_searches_trains_resumes_loads_and_does_not_merge(tmp_path, task='seg'):
    whole = toy.train(config(tmp_path, task))
    backbone = whole.model.backbone
    plan = Plan.from_json((tmp_path / 'run/cdra_plan.json').read_text())
    total = sum(p.numel() for n, p in backbone.named_parameters() if '.cdra.' not in f'.{n}')
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == plan.num_trainable <= 0.03 * total
    assert plan.settings['tried'] >= 4 and plan.settings['seed'] == 0
    summary = json.loads((tmp_path / 'run/summary.json').read_text())
    assert summary['method'] == 'noah' and summary['scoring_seconds'] > 0

    killed = config(tmp_path, task, work_dir=str(tmp_path / 'killed'))
    killed.custom_hooks = [dict(type='StopAt', at=2)]
    with pytest.raises(Stop):
        toy.train(killed)
    resumed = toy.train(config(tmp_path, task, work_dir=str(tmp_path / 'killed'), resume=True))
    assert_same(weights(resumed), weights(whole))

    path = str(tmp_path / 'run/iter_4.pth')
    cfg = config(tmp_path, task, work_dir=str(tmp_path / 'test'), load_from=path)
    tested = Runner.from_cfg(cfg)
    tested.test()
    assert_same(weights(tested), weights(whole))
    with pytest.raises(CDRAError, match='do not merge'):
        merge_checkpoint(config(tmp_path, task), path)
    other = config(tmp_path, task, noah=dict(generations=2), resume=True, load_from=path)
    with pytest.raises(CheckpointError, match=r'method\.generations=1.*2'):
        toy.train(other)


@TASKS
def test_trials_leave_model_and_random_numbers_as_they_were(tmp_path, task):
    runner, backbone = ready(tmp_path, task)
    runner.model.eval()
    runner.model.backbone.layers[0].train()
    next(backbone.parameters()).requires_grad_(False)
    model = runner.model

    def state():
        flags = [(n, p.requires_grad, p.grad) for n, p in model.named_parameters()]
        return flags, [m.training for m in model.modules()], torch.get_rng_state().tolist()

    before, tensors = state(), copy.deepcopy(model.state_dict())
    numbers = random.getstate(), np.random.get_state()[1].tolist()
    classes = [type(module) for module in model.modules()]
    with trials_in(runner, backbone, 0) as trials:
        make_method(SETTINGS).plan(Request(backbone, trials=trials))
        inside = {k: v.clone() for k, v in model.state_dict().items()}
    changed = {key.split('.')[0] for key, v in inside.items() if not torch.equal(v, tensors[key])}
    assert changed == {'decode_head' if task == 'seg' else 'head'}  # or nothing was shown
    assert state() == before and not adapters(backbone)
    assert_same(dict(model.state_dict()), dict(tensors))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == numbers
    assert [type(module) for module in model.modules()] == classes
    with pytest.raises(RuntimeError, match='stop'), trials_in(runner, backbone, 0) as trials:
        trials.train(
            plan_of(backbone), lambda: stop(), epochs=1, iters=None, lr_mult=1.0,
            held_out=0.2, max_held_out=200,
        )  # fmt: skip
    assert state() == before and not adapters(backbone)
    assert_same(dict(model.state_dict()), dict(tensors))


def stop():
    raise RuntimeError('stop')


def plan_of(backbone, size=2):
    method = make_method(dict(type='lora', rank=size))
    return method.plan(Request(backbone))


def test_search_does_not_depend_on_workers_or_on_the_random_state(tmp_path):
    plans = []
    for workers, state in ((0, 1), (2, 9)):
        runner, backbone = ready(tmp_path, 'seg')
        runner.train_loop.dataloader.num_workers = workers
        torch.manual_seed(state)
        plans.append(search(runner, backbone, dropout=0.3)[0])
    assert plans[0] == plans[1]
    other = search(*ready(tmp_path, 'seg'), seed=1, dropout=0.3)[0]
    assert other.settings['fitness'] != plans[0].settings['fitness']


def test_supernet_never_sees_the_held_out_samples(tmp_path, monkeypatch):
    runner, backbone = ready(tmp_path)
    seen = []
    plain = type(runner.model).loss

    def loss(self, inputs, samples, **kwargs):
        seen.extend(sample.img_path for sample in samples)
        return plain(self, inputs, samples, **kwargs)

    monkeypatch.setattr(type(runner.model), 'loss', loss)
    _, trials = search(runner, backbone, supernet_iters=None, supernet_epochs=3, held_out=0.25)
    held = {f'toy_{index}.png' for index in trials.held_out}
    assert len(trials.held_out) == 6 and not held & set(seen)
    # 18 others: four batches of four in each of three passes, no sample twice in a pass.
    assert len(seen) == 3 * 16
    for begin in (0, 16, 32):
        assert len(set(seen[begin : begin + 16])) == 16
    assert seen[:16] != seen[16:32]
    assert len(search(runner, backbone, max_held_out=2)[1].held_out) == 2


def test_supernet_trains_with_the_optimizer_of_the_run(tmp_path, monkeypatch):
    """Its own rates for each group, halved, along a cosine; nothing of the base is in it."""
    runner, backbone = ready(tmp_path)
    runner.cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.1),
        paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.0)}),
    )
    base = {id(p) for p in backbone.parameters()}
    rates, held = [], set()
    plain = type(runner.model).train_step

    def train_step(self, data, wrapper):
        rates.append(sorted({round(g['lr'], 6) for g in wrapper.optimizer.param_groups}))
        held.update(id(p) for g in wrapper.optimizer.param_groups for p in g['params']
                    if p.requires_grad)  # fmt: skip
        return plain(self, data, wrapper)

    monkeypatch.setattr(type(runner.model), 'train_step', train_step)
    search(runner, backbone)
    factors = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert rates == [[round(0.05 * f, 6), round(0.5 * f, 6)] for f in factors]
    assert held and not held & base


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        (dict(held_out=0.01), DataError, 'held_out=0.01 of 24 training samples are 0'),
        (dict(supernet_lr_mult=1e30), ScoreError, 'loss of the supernet is .* supernet_lr_mult'),
        (dict(budget_percent=0.1), CDRAError, 'the limit is 32 parameters, the smallest subnet'),
    ],
)
def test_search_errors_name_the_setting(tmp_path, settings, error, message):
    runner, backbone = ready(tmp_path)
    with pytest.raises(error, match=message):
        search(runner, backbone, **{'supernet_iters': 8, **settings})
    assert not adapters(backbone)


def test_search_refuses_an_optimizer_that_is_no_config(tmp_path):
    runner, backbone = ready(tmp_path)
    runner.cfg.optim_wrapper = None
    with pytest.raises(ConfigError, match='optim_wrapper.*config'):
        search(runner, backbone)


def test_search_checks_labels_before_the_loss_crashes_on_them(tmp_path):
    runner, backbone = ready(tmp_path)
    runner.model.head.num_classes = 3
    with pytest.raises(DataError, match='num_classes=3'):
        search(runner, backbone)


def test_other_processes_are_told_of_a_failure(tmp_path, monkeypatch):
    told = []

    class ScoreReduction:
        def add_up(self, sums, count):
            told.append('done')
            return 0

        def fail(self, error):
            told.append(str(error))

    monkeypatch.setattr(supernet, 'ScoreReduction', ScoreReduction)
    runner, backbone = ready(tmp_path)
    with trials_in(runner, backbone, 0) as trials:
        assert isinstance(trials, RunTrials)
    with pytest.raises(RuntimeError), trials_in(runner, backbone, 0):
        stop()
    assert told == ['done', 'stop']
