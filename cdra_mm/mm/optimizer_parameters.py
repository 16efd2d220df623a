"""The run's optimizer for exactly what is trained.

The config's own constructor decides how each parameter is treated (rates and decay by kind, by
name, by layer). Of a bias or a norm that is trained in part it has to see the bias or the norm
itself: what is added to some of its entries is a parameter of another name, in another module.
So it sees the base parameter as trainable, and the entries take its place afterwards.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from cdra_mm.core import ParameterAdapter, adapters
from cdra_mm.errors import ConfigError

__all__ = [
    'build_optimizer',
    'named_optimizers',
    'named_wrappers',
    'quiet_about',
    'single_optimizer',
    'trained_parameters',
]

Pair = tuple[nn.Parameter, nn.Parameter]


def build_optimizer(runner: Runner, backbone: nn.Module, config: Any) -> Any:
    """Builds an ``optim_wrapper`` for the parameters of now.

    Returns:
        The wrapper. Its optimizers hold what requires a gradient and no state of anything else.

    Raises:
        ConfigError: If an optimizer has nothing left to train.
    """
    pairs = list(_entries_of(backbone))
    bases = [base for base, _ in pairs]
    try:
        for base in bases:
            base.requires_grad_(True)
        with quiet_about('requires_grad'):
            wrapper = runner.build_optim_wrapper(copy.deepcopy(config))
    finally:
        for base in bases:
            base.requires_grad_(False)
    groups = [g for _, optimizer in named_optimizers(wrapper) for g in optimizer.param_groups]
    for base, entries in pairs:
        _take_place(groups, base, entries)
    for name, optimizer in named_optimizers(wrapper):
        _keep_trainable(name, optimizer)
    return wrapper


def single_optimizer(
    runner: Runner, backbone: nn.Module, config: Any, iterations: int, what: str
) -> OptimWrapper:
    """An optimizer for a training before the training, at the run's own rates.

    Args:
        runner: The run.
        backbone: Its plain backbone.
        config: Of the ``optim_wrapper``.
        iterations: Length of that training.
        what: Who needs it and what to do without, for the error.

    Raises:
        ConfigError: If there are several.
    """
    wrapper = build_optimizer(runner, backbone, config)
    if isinstance(wrapper, OptimWrapperDict):  # which is an OptimWrapper by class
        raise ConfigError(f'optim_wrapper is a {type(wrapper).__name__}: {what}')
    runner.scale_lr(wrapper, runner.auto_scale_lr)
    wrapper.initialize_count_status(runner.model, 0, iterations)
    found: OptimWrapper = wrapper
    return found


def named_optimizers(wrapper: OptimWrapper | OptimWrapperDict) -> list[tuple[str, Optimizer]]:
    """The optimizers of a wrapper by name; a single one has none."""
    return [(name, part.optimizer) for name, part in named_wrappers(wrapper).items()]


def named_wrappers(wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, OptimWrapper]:
    """The wrappers of one optimizer each by name; a single one has none."""
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {'': wrapper}


def trained_parameters(
    wrapper: OptimWrapper | OptimWrapperDict, *, at_any_rate: bool = False
) -> dict[int, nn.Parameter]:
    """What an optimizer trains, by id: it holds it, at a rate above 0, and a gradient is asked for.

    Args:
        wrapper: The run's.
        at_any_rate: Count also what has a rate of 0. A rate that a schedule starts at 0 always
            counts: its ``initial_lr`` is above 0.
    """
    return {
        id(parameter): parameter
        for _, optimizer in named_optimizers(wrapper)
        for group in optimizer.param_groups
        if at_any_rate or max(float(group['lr']), float(group.get('initial_lr', 0))) > 0
        for parameter in group['params']
        if parameter.requires_grad
    }


def _entries_of(backbone: nn.Module) -> Iterator[Pair]:
    """Base parameters that are trained in part, each with what is added to entries of it."""
    for name, adapter in adapters(backbone).items():
        if isinstance(adapter, ParameterAdapter) and adapter.trains_entries and not adapter.merged:
            module = backbone.get_submodule(name.rpartition('.')[0])
            base = module._parameters[adapter.parameter]
            (entries,) = adapter.parameters()
            assert base is not None
            yield base, entries


def _take_place(groups: list[dict[str, Any]], base: nn.Parameter, entries: nn.Parameter) -> None:
    """Moves entries into the group of their base parameter; where it is in none, they stay."""
    home = next((g for g in groups if any(p is base for p in g['params'])), None)
    if home is None or any(p is entries for p in home['params']):
        return
    for group in groups:
        group['params'][:] = [p for p in group['params'] if p is not entries]
    home['params'].append(entries)


def _keep_trainable(name: str, optimizer: Optimizer) -> None:
    """mmengine hands every parameter to the optimizer; a frozen one has no place in it.

    Some optimizers make a state for each parameter at once (Adagrad): it goes too.
    """
    groups = optimizer.param_groups
    for group in groups:
        for parameter in group['params']:
            if not parameter.requires_grad:
                optimizer.state.pop(parameter, None)
        group['params'][:] = [p for p in group['params'] if p.requires_grad]
    groups[:] = [group for group in groups if group['params']]
    if not groups:
        which = f'optimizer {name!r} of the optim_wrapper' if name else 'the optimizer'
        raise ConfigError(
            f'{which} has nothing left to train: what it is for is frozen; leave it out, or '
            'choose a method that trains it'
        )


@contextmanager
def quiet_about(words: str) -> Iterator[None]:
    """Keeps lines with these words out of mmengine's log.

    Of a paramwise_cfg it has one for each frozen parameter, and three for each trained one.
    """

    def keep(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    logger = MMLogger.get_current_instance()
    logger.addFilter(keep)
    for handler in logger.handlers:
        handler.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
        for handler in logger.handlers:
            handler.removeFilter(keep)
