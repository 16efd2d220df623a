"""Sharded models are refused by name, before anything is lost."""

from __future__ import annotations

import pytest
from mmengine.registry import MODEL_WRAPPERS, RUNNERS
from mmengine.runner import Runner
from torch import nn

from cdra_mm.core import ConfigError
from cdra_mm.mm.launch import build_runner

from . import toy


def test_strategy_is_refused_before_the_model_is_built(tmp_path):
    cfg = toy.config(tmp_path, runner_type='FlexibleRunner', strategy=dict(type='FSDPStrategy'))
    cfg.model.type = 'NoSuchModel'
    with pytest.raises(ConfigError, match=r'FlexibleRunner \(strategy FSDPStrategy\).*use DDP'):
        build_runner(cfg)


def test_strategy_that_mmengine_would_ignore_is_refused(tmp_path):
    cfg = toy.config(tmp_path, strategy=dict(type='DeepSpeedStrategy'))
    with pytest.raises(ConfigError, match='strategy=DeepSpeedStrategy: without runner_type'):
        build_runner(cfg)


def test_flexible_runner_without_the_method_is_mmengines_business(tmp_path):
    cfg = toy.config(tmp_path, runner_type='FlexibleRunner', env_cfg={})
    del cfg.default_hooks['cdra']
    assert type(build_runner(cfg)).__name__ == 'FlexibleRunner'


def test_hook_under_a_flexible_runner_stops_it(tmp_path):
    runner = RUNNERS.build(toy.config(tmp_path, runner_type='FlexibleRunner', env_cfg={}))
    with pytest.raises(ConfigError, match=r'FlexibleRunner \(strategy SingleDeviceStrategy\)'):
        runner.train()
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_wrapper_that_is_not_ddp_stops_the_run(tmp_path):
    class Sharded(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    runner = Runner.from_cfg(toy.config(tmp_path))
    MODEL_WRAPPERS.register_module(name='Sharded', module=Sharded)
    try:
        runner.model = Sharded(runner.model)
        with pytest.raises(ConfigError, match='model wrapper Sharded: .*use DDP'):
            runner.call_hook('before_run')
    finally:
        MODEL_WRAPPERS.module_dict.pop('Sharded')


def test_model_that_was_sharded_before_the_run_stops_it(tmp_path):
    runner = Runner.from_cfg(toy.config(tmp_path))
    # What a parameter of FSDP says of itself; a real one needs a group of processes.
    runner.model.backbone.layers[1].ln1.weight._fsdp_flattened = True
    with pytest.raises(ConfigError, match=r'layers.1.ln1.weight is a part of a weight.*use DDP'):
        runner.call_hook('before_run')
