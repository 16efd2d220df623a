"""What a checkpoint has to carry that is written in the middle of something.

mmengine's checkpoints are complete at the end of an epoch and after an optimizer step. In between
it loses two things on resume: the gradient gathered so far (``accumulative_counts``), and, in an
epoch-based loop with ``CheckpointHook(by_epoch=False)``, the place within the epoch: it starts that
epoch again, so the run has more iterations than its schedule. Both come back here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.dist import get_world_size
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor

from cdra_mm.errors import CheckpointError

from ..host.runner_parts import RestOfEpoch, end_loop_at, open_iterations
from ..rebuild import plain_model

__all__ = ['MIDWAY_KEY', 'restore_midway', 'midway_state']

MIDWAY_KEY = 'cdra_midway'


def midway_state(runner: Runner, epoch: int, epoch_iters: int) -> dict[str, Any]:
    """What is lost if a run goes on from the checkpoint that is being written.

    Args:
        runner: The run.
        epoch: The epoch that the checkpoint says to go on with.
        epoch_iters: Iterations of the current epoch that are done.

    Returns:
        ``gradients`` by parameter name and ``waiting``, the iterations they are of; ``epoch_iters``
        and ``epoch_length``; empty between two windows at the start of an epoch.
    """
    state: dict[str, Any] = {}
    waiting = open_iterations(runner.optim_wrapper)
    if waiting and get_world_size() == 1:
        state['waiting'] = waiting
        named = plain_model(runner).named_parameters()
        state['gradients'] = {
            name: parameter.grad.detach().cpu().clone()
            for name, parameter in named
            if parameter.requires_grad and parameter.grad is not None
        }
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    if by_epoch and epoch_iters and epoch == runner.epoch:
        state |= {'epoch_iters': epoch_iters, 'epoch_length': len(runner.train_dataloader)}
    return state


def restore_midway(runner: Runner, state: Mapping[str, Any]) -> None:
    """Puts a resumed run where its checkpoint was written.

    Args:
        runner: A run whose weights and optimizer are resumed.
        state: From `midway_state`.

    Raises:
        CheckpointError: If the gradients are not those of the trained parameters or of another
            window, or the epoch has another length now and the run is within it.
    """
    logger = MMLogger.get_current_instance()
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        _count_iterations(runner, runner.train_loop, state)
    waiting = open_iterations(runner.optim_wrapper)
    if state.get('waiting', waiting) != waiting:
        raise CheckpointError(
            f'the checkpoint was written {state["waiting"]} iterations into a gradient '
            f'accumulation, which would be {waiting} by the config: use the accumulative_counts it '
            'was written with, or a checkpoint at a multiple of it'
        )
    gradients: Mapping[str, Tensor] = state.get('gradients', {})
    if gradients and get_world_size() == 1:
        named = dict(plain_model(runner).named_parameters())
        for name, gradient in gradients.items():
            parameter = named.get(name)
            if parameter is None or parameter.shape != gradient.shape:
                raise CheckpointError(
                    f'the checkpoint is damaged: its gradient of {name} fits no parameter; resume '
                    'another one'
                )
            parameter.grad = gradient.to(parameter.device, parameter.dtype)
        logger.info(
            f'the gradients of {waiting} iterations that waited for an optimizer step came back '
            'with the checkpoint'
        )
    elif waiting:
        logger.warning(
            f'the checkpoint was written {waiting} iterations into a gradient accumulation, and '
            'the gradients of several processes are not stored: theirs are lost. Checkpoints at '
            'multiples of accumulative_counts resume exactly'
        )
    if state.get('epoch_iters'):
        _finish_epoch(runner, int(state['epoch_iters']), int(state['epoch_length']))


def _count_iterations(runner: Runner, loop: EpochBasedTrainLoop, state: Mapping[str, Any]) -> None:
    """The iterations of the whole run, where epochs had another length before it was resumed.

    mmengine counts epochs times length. With another batch size or number of processes the last
    iteration would then come too early or never, with what is done there: a step of the optimizer,
    a checkpoint.
    """
    length, epochs_left = len(loop.dataloader), loop.max_epochs - loop.epoch
    done = int(state.get('epoch_iters', 0))
    left = epochs_left * length - (length if _is_end(state) else min(done, length))
    if left < 0 or loop.iter + left == loop.max_iters:
        return
    MMLogger.get_current_instance().warning(
        f'an epoch has {length} iterations now, and had another number before iteration '
        f'{loop.iter}, from which the run goes on: it ends at iteration {loop.iter + left} instead '
        f'of {loop.max_iters}. Schedules that count iterations go on with their own count'
    )
    end_loop_at(loop, loop.iter + left)
    runner.optim_wrapper.initialize_count_status(runner.model, loop.iter, loop.max_iters)


def _is_end(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written after the last iteration of an epoch."""
    return bool(state.get('epoch_iters')) and state['epoch_iters'] == state.get('epoch_length')


def _finish_epoch(runner: Runner, done: int, length: int) -> None:
    """The first epoch leaves out what was done of it."""
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop) and done == length:
        done = length = len(loop.dataloader)  # all of it, whatever its length
    if not isinstance(loop, EpochBasedTrainLoop) or len(loop.dataloader) != length:
        now = f'{len(loop.dataloader)}' if isinstance(loop, EpochBasedTrainLoop) else 'no'
        raise CheckpointError(
            f'the checkpoint was written at iteration {done} of the {length} of an epoch, which '
            f'has {now} iterations now: resume with the loop, batch size and number of processes '
            'it was written with, or from the end of an epoch'
        )
    RestOfEpoch(loop, done)
    MMLogger.get_current_instance().info(
        f'going on within the epoch: leaving out {done} of {length} iterations'
    )
