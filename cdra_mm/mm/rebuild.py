"""What mmengine has cached about the model's parameters, made anew after they changed.

A parameter that is added after the optimizer was built gets gradients but never
a step; DDP's buckets and an EMA copy are stale in the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.model import BaseModel, BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from cdra_mm.errors import ConfigError

from .host.runner_parts import is_built, replace_model, replace_optimizer
from .optimizer_parameters import build_optimizer

__all__ = ['check_rebuildable', 'plain_model', 'rebuild', 'remember_configs']


def plain_model(runner: Runner) -> BaseModel:
    """The runner's model without what wraps it: for several processes, for test-time augmentation.

    mmengine loads a checkpoint into this model too, without a prefix.
    """
    model: BaseModel = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def remember_configs(runner: Runner) -> dict[str, Any]:
    """The configs that `rebuild` needs, from the runner's config.

    Raises:
        ConfigError: If the optimizer was handed over as an object.
    """
    check_rebuildable(runner)
    return {
        'optim_wrapper': copy.deepcopy(runner.cfg.get('optim_wrapper')),
        'param_scheduler': copy.deepcopy(runner.cfg.get('param_scheduler')),
        'model_wrapper_cfg': copy.deepcopy(runner.cfg.get('model_wrapper_cfg')),
    }


def check_rebuildable(runner: Runner) -> None:
    """Raises ConfigError where the optimizer or a scheduler is not given as a config."""
    for name in ('optim_wrapper', 'param_scheduler'):
        config = runner.cfg.get(name)
        found = type(config) if config is None and name == 'optim_wrapper' else _built(config)
        if found is not None:
            raise ConfigError(
                f'{name} is {found.__name__}: the trainable parameters change, so it must '
                'be built again; give it as a config (a dict with a type), not as an object'
            )


def _built(config: Any) -> type | None:
    """The class of the first object in a config that is built already."""
    if is_built(config):
        return type(config)
    parts = config.values() if isinstance(config, dict) else config
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        return None
    return next((found for found in map(_built, parts) if found is not None), None)


def rebuild(runner: Runner, configs: dict[str, Any]) -> None:
    """Builds wrapper, optimizer, schedulers and EMA again for the parameters of now.

    Args:
        runner: A runner in training.
        configs: From `remember_configs`.
    """
    was_training = runner.model.training
    model = plain_model(runner)
    if is_model_wrapper(runner.model):
        replace_model(runner, copy.deepcopy(configs['model_wrapper_cfg']), model)
    runner.model.train(was_training)
    replace_optimizer(
        runner,
        build_optimizer(runner, model.backbone, configs['optim_wrapper']),
        copy.deepcopy(configs['param_scheduler']),
    )
    runner.optim_wrapper.initialize_count_status(
        runner.model, runner.train_loop.iter, runner.train_loop.max_iters
    )
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            hook.before_run(runner)
