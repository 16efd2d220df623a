"""Every method through the same hook: what is trained, resumed, loaded and merged."""

from __future__ import annotations

import pytest
import torch
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader

from cdra_mm.core import CDRAError, Plan, adapters
from cdra_mm.methods import METHODS
from cdra_mm.mm.checkpoints.record import base_state
from cdra_mm.mm.export.merging import merge_checkpoint

from . import toy
from .test_life_cycle import Stop, assert_same, weights

# mmengine does not bring random numbers back on a resumption: no dropout.
SETTINGS = {
    'spt_lora': dict(rank=2, budget_percent=20.0, dropout=0.0),
    'spt_adapter': dict(rank=2, budget_percent=20.0, dropout=0.0),
    'gps': dict(loss='task'),
    'lora': dict(rank=2),
    'soma': dict(rank=2),
    'dora': dict(rank=2),
    'mona': dict(bottleneck=2, dropout=0.0),
    'adapter': dict(bottleneck=2),
    'vpt_shallow': dict(num_prompts=2),
    'vpt_deep': dict(num_prompts=2),
    'noah': dict(
        prompt_dims=[1, 2],
        lora_dims=[1, 2],
        adapter_dims=[2],
        dropout=0.0,
        budget_percent=20.0,
        supernet_iters=2,
        population=2,
        num_parents=1,
        num_mutations=1,
        num_crossovers=1,
        generations=1,
    ),
}
MERGING = {'cdra', 'lora', 'spt_lora', 'gps', 'rlrr', 'bias', 'partial', 'apla', 'soma', 'dora'}
# What has no adapter is a plain model already, or is stored whole.
KEEPING = {'adapter', 'vpt_shallow', 'vpt_deep', 'mlp', 'spt_adapter', 'noah', 'mona'}


def config(folder, name, task, **options):
    settings = {'type': name, **SETTINGS.get(name, {})}
    cfg = toy.config(folder, task, cdra=dict(method=settings), **options)
    if name != 'cdra':
        del cfg.default_hooks.cdra['budget_percent']
    cfg.train_cfg.max_iters = 4
    cfg.default_hooks.checkpoint.interval = 2
    cfg.param_scheduler[0].update(T_max=4, end=4)
    return cfg


# A classifier reads the class token, has the head that `mlp` replaces, and other losses; what else
# is trained on it is the same, and `test_methods_backbones` has every method on one.
ON_A_CLASSIFIER = ('cdra', 'gps', 'mlp', 'noah', 'vpt_shallow', 'vpt_deep')
RUNS = [*((name, 'seg') for name in METHODS), *((name, 'cls') for name in ON_A_CLASSIFIER)]


@pytest.fixture(scope='module', params=RUNS, ids='-'.join)
def run(request, tmp_path_factory):
    """A finished run of each method on a segmentor, of some on a classifier."""
    name, task = request.param
    folder = tmp_path_factory.mktemp(f'{name}_{task}')
    return name, task, folder, toy.train(config(folder, name, task))


def test_table_of_this_file_names_every_method():
    assert MERGING | KEEPING | {'linear', 'full'} == set(METHODS)


def test_run_trains_exactly_what_its_plan_says(run):
    name, _, folder, runner = run
    backbone = runner.model.backbone
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    optimized = {id(p) for g in runner.optim_wrapper.optimizer.param_groups for p in g['params']}
    assert optimized == {id(p) for p in runner.model.parameters() if p.requires_grad}
    if name != 'full':
        plan = Plan.from_json((folder / 'run/cdra_plan.json').read_text())
        own = dict(backbone.named_parameters())
        assert plan.method == name
        assert plan.num_trainable == sum(own[n].numel() for n in trained)
        assert (plan.num_trainable > 0) is (name != 'linear')
    base = torch.load(toy.base_file(folder), weights_only=True)['state_dict']
    for key, value in base_state(backbone).items():
        assert key in trained or torch.equal(value, base[key]), key
    fresh = base_state(backbone)
    assert all(not torch.equal(fresh[key], base[key]) for key in trained if key in fresh)


def test_run_that_was_killed_and_resumed_ends_the_same(run):
    name, task, folder, runner = run
    work_dir = str(folder / 'killed')
    stopped = config(folder, name, task, work_dir=work_dir)
    stopped.custom_hooks = [dict(type='StopAt', at=2)]
    with pytest.raises(Stop):
        toy.train(stopped)
    resumed = toy.train(config(folder, name, task, work_dir=work_dir, resume=True))
    assert resumed.iter == 4
    assert_same(weights(resumed), weights(runner))


def test_checkpoint_of_a_run_loads_by_itself(run):
    name, task, folder, runner = run
    cfg = config(folder, name, task, work_dir=str(folder / 'test'))
    cfg.load_from = str(folder / 'run/iter_4.pth')
    tested = Runner.from_cfg(cfg)
    tested.test()
    assert_same(weights(tested), weights(runner))


def test_checkpoint_of_a_run_merges_or_says_why_not(run):
    name, task, folder, runner = run
    cfg, path = config(folder, name, task), str(folder / 'run/iter_4.pth')
    if name not in MERGING:
        with pytest.raises(CDRAError, match='does not merge|do not merge|plain|no adapters'):
            merge_checkpoint(cfg, path)
        return
    merged = merge_checkpoint(cfg, path)
    assert merged.num_adapters == len(adapters(runner.model.backbone))
    names = CheckpointLoader.load_checkpoint(toy.base_file(folder))['state_dict'].keys()
    own = {k.removeprefix('backbone.') for k in merged.checkpoint['state_dict'] if 'head' not in k}
    assert own == set(names)
