"""The runner: what it has built and what it is about to load, and parts of it replaced.

mmengine's public properties build what they are asked for (``train_loop`` a data loader and its
workers); these look, and build nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.optim import _ParamScheduler as ParamScheduler
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.optim import Optimizer

__all__ = [
    'OpenCheckpointHook',
    'RestOfEpoch',
    'built_loops',
    'config_dict',
    'end_loop_at',
    'leave_validation_out',
    'is_built',
    'is_resumed',
    'iterations_a_step',
    'loaded_from',
    'open_iterations',
    'packages',
    'replace_checkpoint_hooks',
    'replace_model',
    'replace_optimizer',
    'replace_save_checkpoint',
    'resume_from',
    'set_config_filename',
    'set_package',
    'start_anew',
    'trains',
    'visual_backends',
]


def trains(runner: Runner) -> bool:
    """Whether the runner is in a training: then its loop is built, and no config any more."""
    return runner._train_loop is not None and not isinstance(runner._train_loop, dict)


def built_loops(runner: Runner) -> tuple[tuple[str, Any], ...]:
    """The splits with their loops; those that are not built yet are configs, or None."""
    return (
        ('train', runner._train_loop),
        ('val', runner._val_loop),
        ('test', runner._test_loop),
    )


def is_resumed(runner: Runner) -> bool:
    """Whether the run goes on from a checkpoint, rather than only beginning with its weights."""
    return bool(runner._resume)


def loaded_from(runner: Runner) -> str | None:
    """The checkpoint that the run loads or resumes; None for none, or one still to be found."""
    return None if runner._load_from is None else str(runner._load_from)


def resume_from(runner: Runner, path: str) -> None:
    """Has the run go on from this checkpoint."""
    runner._load_from = path


def start_anew(runner: Runner) -> None:
    """Has the run begin, where there is nothing to resume."""
    runner._resume = False


def replace_model(runner: Runner, wrapper: Any, model: nn.Module) -> None:
    """Wraps a model for several processes again, and compiles it again where the run does."""
    runner.model = runner.wrap_model(wrapper, model)
    runner._maybe_compile('train_step')


def replace_optimizer(runner: Runner, wrapper: Any, schedulers: Any | None) -> None:
    """Puts a new optimizer in the place of the run's own.

    Args:
        runner: A runner in training.
        wrapper: The built ``optim_wrapper``.
        schedulers: Config of its schedulers, None where there is none.
    """
    runner.optim_wrapper = wrapper
    runner.scale_lr(wrapper, runner.auto_scale_lr)
    if schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(schedulers)


def replace_save_checkpoint(runner: Runner, save: Callable[[Callable[..., None]], Any]) -> None:
    """Has a run save its checkpoints another way; once.

    Args:
        runner: The runner.
        save: Makes the new function; gets the runner's own.
    """
    if 'save_checkpoint' not in runner.__dict__:
        runner.save_checkpoint = save(runner.save_checkpoint)


class OpenCheckpointHook(CheckpointHook):
    """mmengine's hook, whose two steps of saving a class may put its own in the place of."""

    file_backend: Any

    @classmethod
    def replacing(cls, hook: CheckpointHook) -> OpenCheckpointHook:
        """A hook with the settings and the state of a plain one."""
        new = cls.__new__(cls)
        new.__dict__ = hook.__dict__
        return new

    def write_numbered(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """Saves the checkpoint of a step."""
        super()._save_checkpoint_with_step(runner, step, meta)

    def write_best(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Saves the best checkpoint, if it is this one."""
        super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def noting_removals(self) -> Iterator[list[str]]:
        """Removes nothing inside; gives the list of what would have been removed."""
        backend = self.file_backend
        later = _LaterRemoval(backend)
        try:
            self.file_backend = later
            yield later.paths
        finally:
            self.file_backend = backend

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        self.write_numbered(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        self.write_best(runner, metrics)


class _LaterRemoval:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.paths: list[str] = []

    def remove(self, path: str) -> None:
        self.paths.append(path)

    rmtree = remove

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def replace_checkpoint_hooks(runner: Runner, cls: type[OpenCheckpointHook]) -> None:
    """Puts a hook of this class in the place of each plain one; those of other classes stay."""
    for position, hook in enumerate(runner.hooks):
        if type(hook) is CheckpointHook:
            runner.hooks[position] = cls.replacing(hook)


def iterations_a_step(wrapper: OptimWrapper) -> int:
    """How many iterations a wrapper gathers gradients of for a step of its optimizer."""
    return int(wrapper._accumulative_counts)


def open_iterations(wrapper: OptimWrapper | OptimWrapperDict) -> int:
    """Iterations whose gradients wait for the next optimizer step, 0 between two windows."""
    parts = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return max(
        0
        if part._inner_count == part._max_counts
        else part._inner_count % part._accumulative_counts
        for part in parts
    )


def leave_validation_out(loop: Any) -> None:
    """Has a training loop never validate; its interval is set anew at every iteration."""
    loop.val_begin = sys.maxsize


def end_loop_at(loop: EpochBasedTrainLoop, iteration: int) -> None:
    """Sets the last iteration of a loop, which has counted epochs times their length."""
    loop._max_iters = iteration


class RestOfEpoch:
    """A data loader without its first batches, once; then the loop has its own loader back.

    Args:
        loop: The loop, whose loader is replaced.
        done: How many batches are left out.
    """

    def __init__(self, loop: EpochBasedTrainLoop, done: int) -> None:
        self._loop, self._loader, self._done = loop, loop.dataloader, done
        loop.dataloader = self

    def __iter__(self) -> Iterator[Any]:
        loop, done = self._loop, self._done
        run_iter = loop.run_iter
        # The loop counts from 0: hooks are told the position in the epoch.
        loop.run_iter = lambda position, batch: run_iter(position + done, batch)
        if done < len(self._loader):
            batches = iter(self._loader)
            for _ in range(done):
                next(batches)
            yield from batches
        loop.dataloader = self._loader
        del loop.run_iter

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def is_built(config: Any) -> bool:
    """Whether it is an optimizer, its wrapper or a scheduler rather than the config of one."""
    return isinstance(config, OptimWrapper | Optimizer | ParamScheduler)


def visual_backends(runner: Runner) -> list[Any]:
    """Where the run's visualizer sends what it is shown."""
    return list(runner.visualizer._vis_backends.values())


def config_dict(cfg: Config) -> MutableMapping[str, Any]:
    """The dict inside a config, whose values can be replaced as they are."""
    found: MutableMapping[str, Any] = cfg._cfg_dict
    return found


def set_config_filename(cfg: Config, path: str) -> None:
    """Sets what mmengine names the dump of a config, and the experiment, by."""
    object.__setattr__(cfg, '_filename', path)  # its own makes an entry of the config


def set_package(module: str, distribution: str, *, replace: bool = False) -> None:
    """Tells mmengine which distribution carries the configs of a module.

    Args:
        module: As in ``module::path`` of a config.
        distribution: Its name.
        replace: Whether an entry that is there is replaced.
    """
    if replace or module not in MODULE2PACKAGE:
        MODULE2PACKAGE[module] = distribution


def packages() -> dict[str, str]:
    """The modules that mmengine knows the distributions of."""
    return dict(MODULE2PACKAGE)
