"""The backbone as one compiled graph in training, and mmengine's ``compile`` beside the hook.

mmengine's own compiles a whole step: in preprocessing, losses and the optimizer torch ends the
graph again and again. Nearly all of a step is the backbone's, forward and backward, so here that
alone is compiled, whole, for the few shapes that training has. Whatever torch cannot compile runs
as it is, with one line that says why. Validation, whose images have many shapes, is never compiled.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn

from cdra_mm.core.model.own_state import tensors_in
from cdra_mm.errors import ConfigError

__all__ = [
    'check_compile',
    'compile_backbone',
    'help_config_compile',
    'leave_uncompiled',
    'refuse_two',
]

# What is compiled is one graph, or nothing; a graph for each shape.
DEFAULTS = {'fullgraph': True, 'dynamic': False}
MOST_SHAPES = 4  # that training is compiled for: each takes up to minutes and its own memory
MOST_AGAIN = 3  # times that a graph is made once more for a shape that has one
# Hooks that come later are asked for, and DistributedDataParallel cuts no graph into buckets: what
# is trained here is a few MB.
DYNAMO = {'skip_nnmodule_hook_guards': False, 'optimize_ddp': False}
UNUSED = ('model', 'disable', 'name')  # of `torch.compile`
TYPES: dict[str, Any] = {
    'fullgraph': bool,
    'dynamic': (bool, type(None)),
    'backend': (str, Callable),
    'mode': (str, type(None)),
}
Options = Mapping[str, Any] | bool
_numbers = itertools.count()


def check_compile(given: Options) -> None:
    """Checks the setting ``compile`` of `CDRAHook`.

    Args:
        given: False, True, or options of `torch.compile`.

    Raises:
        ConfigError: If torch knows no such option, or refuses its value; for a backend that the
            kernels cannot be run by.
    """
    if given is False:
        return
    options = {} if given is True else dict(given)
    known = [name for name in inspect.signature(torch.compile).parameters if name not in UNUSED]
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f'compile: {name!r} is unknown: expected one of {", ".join(known)}')
        if name in TYPES and not isinstance(value, TYPES[name]):
            raise ConfigError(f'compile: {name}={value!r} is none of its values in torch.compile')
    if options.get('backend') == 'cudagraphs':
        raise ConfigError(
            "compile: backend='cudagraphs' copies tensors whose addresses the kernels have noted; "
            "give mode='reduce-overhead', which records CUDA graphs too"
        )
    try:
        torch.compile(check_compile, **options)
    except Exception as error:  # torch's own words; of many types
        raise ConfigError(f'compile={options}: torch.compile refuses it: {error}') from error


def refuse_two(runner: Runner, given: Options) -> None:
    """Refuses that mmengine compiles whole steps and the hook the backbone.

    Raises:
        ConfigError: Says so.
    """
    if given is not False and runner.cfg.get('compile'):
        raise ConfigError(
            'compile stands in the config and in CDRAHook: that of the config compiles whole '
            'steps, that of CDRAHook the backbone alone; leave one of them out'
        )


def compile_backbone(backbone: nn.Module, given: Options) -> None:
    """Compiles the calls of a backbone in training, from now on; see `leave_uncompiled`.

    Args:
        backbone: As it is trained, adapters included.
        given: See `check_compile`.
    """
    if given is False:
        return
    _use_python_numbers(backbone)
    options = DEFAULTS | ({} if given is True else dict(given))
    backbone._compiled_call_impl = _CompiledCall(backbone, options)


def leave_uncompiled(backbone: nn.Module) -> None:
    """Undoes `compile_backbone`."""
    if isinstance(backbone._compiled_call_impl, _CompiledCall):
        backbone._compiled_call_impl = None


def help_config_compile(runner: Runner) -> None:
    """Keeps mmengine's ``compile`` away from what torch cannot compile of a step.

    Args:
        runner: Of a run whose optimizer is the one it trains with.
    """
    wrapper = runner.optim_wrapper
    if runner.cfg.get('compile') and 'update_params' not in vars(wrapper):
        _use_python_numbers(runner.model)
        # Some releases of torch end with an error of their own where they trace the optimizer of a
        # config with `paramwise_cfg`, and none has anything to gain there.
        wrapper.update_params = torch.compiler.disable(wrapper.update_params)


class _CompiledCall:
    """Stands in for what ``module(...)`` calls, as `nn.Module.compile` has it.

    Copies and pickles of the module go without it.
    """

    def __init__(self, module: nn.Module, options: Mapping[str, Any]) -> None:
        self.module = module
        self.of_each_shape = options['dynamic'] is False
        self.shapes: set[Any] = set()
        self.refused = self.failed = False  # a shape; to be compiled at all
        self.again = 0

        # Of a function around the module torch makes one graph, its hooks included. It counts the
        # graphs of each code by itself: that of one run is not that of another.
        def call(*args: Any, **kwargs: Any) -> Any:
            return module._call_impl(*args, **kwargs)

        call.__code__ = call.__code__.replace(co_name=f'call_{next(_numbers)}')
        self.compiled: Callable[..., Any] = torch.compile(call, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        training = self.module.training and torch.is_grad_enabled()
        if not training or self.failed or torch.compiler.is_compiling():
            return self.module._call_impl(*args, **kwargs)
        shape = tuple(x.shape for x in tensors_in((args, kwargs)))
        known = shape in self.shapes
        if not known and not self._takes(shape):
            return self.module._call_impl(*args, **kwargs)
        before = _graphs_made()
        try:
            with torch._dynamo.config.patch(DYNAMO):
                result = self.compiled(*args, **kwargs)
        except Exception as error:  # of whatever type: of torch's compilers, or of the model
            reason = _reason(error)
        else:
            if known and self.of_each_shape and _graphs_made() > before:
                self._note_another()
            return result
        result = self.module._call_impl(*args, **kwargs)  # an error of the model is raised by it
        self._give_up(reason)
        return result

    def _takes(self, shape: Any) -> bool:
        """Whether a new shape is compiled for."""
        sizes = ', '.join(str(list(one)) for one in shape)
        if self.of_each_shape and len(self.shapes) >= MOST_SHAPES:
            if not self.refused:
                self.refused = True
                _say(
                    f'the backbone is compiled for {MOST_SHAPES} shapes: inputs {sizes} and all '
                    'other new ones run uncompiled (one crop size and drop_last=True give one '
                    'shape; compile=dict(dynamic=True) makes one graph of many)'
                )
            return False
        if self.of_each_shape or not self.shapes:
            MMLogger.get_current_instance().info(
                f'compiling the backbone for inputs {sizes}: this step takes longer than others'
            )
        self.shapes.add(shape)
        return True

    def _note_another(self) -> None:
        """A graph was made for a shape that had one."""
        self.again += 1
        if self.again > MOST_AGAIN:
            self._give_up(
                'what it depends on changes from step to step, as a hook does that keeps a list or '
                'a number (TORCH_LOGS=recompiles names it)'
            )

    def _give_up(self, reason: str) -> None:
        self.failed = True
        _say(f'the backbone is not compiled: {reason}')


def _graphs_made() -> int:
    """How many torch has made in this process."""
    return int(torch._dynamo.utils.counters['stats']['unique_graphs'])


def _reason(error: Exception) -> str:
    """What a compiler said, or what it was raised by: the type, first line and explanation."""
    error = getattr(error, 'inner_exception', error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = lines[:1] + [line for line in lines[1:] if line.startswith('Explanation:')][:1]
    where = ' (TORCH_LOGS=graph_breaks names the place)'
    return f'{type(error).__name__}: {"; ".join(words) or "without a word"}{where}'


def _say(text: str) -> None:
    MMLogger.get_current_instance().warning(text)


def _use_python_numbers(model: nn.Module) -> None:
    """Numbers of numpy that modules keep, as numbers of Python: the same values.

    Torch takes one of numpy for a tensor, and ends the graph where a forward asks whether it is
    zero, as every DropPath does.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, np.generic) and isinstance(value.item(), int | float):
                vars(module)[name] = value.item()
