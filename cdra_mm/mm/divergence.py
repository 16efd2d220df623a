"""A run that has diverged is stopped before it replaces a good checkpoint with a useless one.

A loss that is not finite once is no fault: mixed precision skips such steps. A trained parameter
that is not finite never comes back, and from then on nothing is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cdra_mm.errors import CheckpointError, DivergedError
from cdra_mm.last_checkpoint import pointed_at

from .rebuild import plain_model

__all__ = ['DivergenceHook', 'check_finite', 'refuse_diverged']


def check_finite(runner: Runner) -> None:
    """Looks at every trained parameter and every statistic of a batch norm.

    One reduction a tensor, and a single wait for the device.

    Raises:
        DivergedError: Names the first that is not finite, the last good checkpoint and the rates.
    """
    named = list(_learnt(plain_model(runner)))
    if not named:
        return
    finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in named]).tolist()
    if all(finite):
        return
    name = named[finite.index(False)][0]
    last = pointed_at(runner.work_dir)
    if last is not None and last.is_file():
        good = f'the last good checkpoint is {last}'
        again = 'start again with a lower one, from its weights with load_from'
    else:
        good, again = 'no checkpoint was written yet', 'start again with a lower one'
    raise DivergedError(
        f'the run has diverged: at iteration {runner.iter + 1} {finite.count(False)} of '
        f'{len(finite)} trained tensors are not finite ({name} is the first); {good}. The likely '
        f'cause is the learning rate ({_rates(runner)}): {again}, or clip the gradients '
        '(optim_wrapper.clip_grad)'
    )


def refuse_diverged(model: nn.Module, path: str) -> None:
    """Refuses to make anything of a checkpoint whose weights are not finite.

    Raises:
        CheckpointError: Names the first.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise CheckpointError(
                f'{path}: {name} is not finite, so its run has diverged: use an earlier checkpoint'
            )


class DivergenceHook(Hook):
    """Looks at the parameters whenever the loss is not finite, and at the end of the run.

    Reading the loss costs nothing: mmengine has brought it to the CPU for its log.
    """

    # After mmengine's RuntimeInfoHook has noted the loss, before anything is saved.
    priority = 'BELOW_NORMAL'

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stops a run whose loss and parameters are not finite."""
        if not _loss_is_finite(runner):
            check_finite(runner)

    def after_train(self, runner: Runner) -> None:
        """Says so where the last loss was not finite, though the parameters are."""
        if not _loss_is_finite(runner):
            MMLogger.get_current_instance().warning(
                'the loss of the last iteration is not finite: look at the log from where on, and '
                'at the learning rate and the labels'
            )


def _learnt(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter.detach()
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            for name in ('running_mean', 'running_var'):
                statistic = getattr(module, name)
                if statistic is not None:
                    yield f'{path}.{name}', statistic


def _loss_is_finite(runner: Runner) -> bool:
    scalars = runner.message_hub.log_scalars
    history = scalars.get('train/loss')
    return history is None or math.isfinite(history.current())


def _rates(runner: Runner) -> str:
    wrapper = runner.optim_wrapper
    parts = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    rates = {
        group.get('initial_lr', group['lr']) for p in parts for group in p.optimizer.param_groups
    }
    return 'lr=' + ', '.join(f'{rate:g}' for rate in sorted(rates))
