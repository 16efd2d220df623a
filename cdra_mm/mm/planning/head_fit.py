"""The head is fitted on frozen features, before anything is scored or adapted.

A head that was just drawn sends gradients into the backbone that say more about the draw than
about the task (Kumar et al., ICLR 2022, fit the head first for that reason). The features are
computed once and gone through again and again, so some hundred steps cost little more than one
pass over the images.

By default it is fitted only as far as its weights move by `MOVED`: a head that has learnt a few
images by heart leaves the backbone no gradient (docs/methods.md has what either costs).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from mmengine.dist import all_gather_object, broadcast
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from cdra_mm.core.model.evaluation import evaluation_mode
from cdra_mm.errors import CDRAError, ConfigError, DataError

from ..host.model_patches import as_single_process
from ..host.runner_parts import iterations_a_step
from ..optimizer_parameters import single_optimizer
from ..rebuild import plain_model, remember_configs
from .held_batch import HeldBatch
from .label_check import named_loss
from .sample_losses import prepared
from .scoring import seeded_batches, show_progress
from .scoring_state import kept_flags, plain_forward, preserved_random_state

__all__ = ['MOVED', 'fit_head']

MOVED = 0.05  # learning rate times steps: about as far as Adam moves a weight
MOST = 100  # steps by default
ROOM = 2 << 30  # bytes of features, images and labels that are held
TOLD = 0.1  # the losses in the log are means over this share of the iterations


class _NotFinite(DataError):
    """A loss that is none."""


def fit_head(
    runner: Runner, backbone: nn.Module, iters: int | None, seed: int, num_samples: int = 400
) -> int:
    """Trains all of a run's model but its backbone, in place.

    By the run's own loss and optimizer, at the optimizer's own rate all the time. Augmentations
    are drawn once a sample. On several processes each does the same by itself, and the head of the
    first counts. What training draws afterwards is what it would draw without.

    Where nobody has asked for it (`iters` is None) nothing stops a run that would train without:
    the head is then left as it was, and it is said why.

    Args:
        runner: A runner whose training loop is built and weights are loaded.
        backbone: The plain backbone inside ``runner.model``.
        iters: Iterations, of the training loader's batch size. None: as many as move a weight by
            about `MOVED` at the head's learning rate, at most `MOST` steps; none where one moves it
            much further, or it cannot be fitted.
        seed: Of the samples drawn, their augmentations and their order.
        num_samples: Most samples to draw, at least a batch.

    Returns:
        The iterations.

    Raises:
        ConfigError: If iterations are given, and nothing but the backbone can be trained, or by
            several optimizers.
        DataError: If a sample cannot be loaded or has labels that do not fit; if iterations are
            given, also if a loss is not finite.
    """
    logger, begin = MMLogger.get_current_instance(), time.time()
    model = plain_model(runner)
    inside = {id(parameter) for parameter in backbone.parameters()}
    head = [p for p in model.parameters() if p.requires_grad and id(p) not in inside]
    if not head:
        if iters is None:
            return 0
        raise ConfigError(
            f'head_iters={iters}: {type(model).__name__} has nothing to train but its backbone; '
            'leave it out'
        )
    before = [(t, t.detach().clone()) for t in (*head, *_buffers(model, backbone))]
    losses: list[float] = []
    error: Exception | None = None
    try:
        held = _fit(runner, model, backbone, iters, seed, num_samples, losses)
    except Exception as found:  # of any head and loss
        error = found
    told = [each for each in all_gather_object(_told(error)) if each]
    if told:
        for tensor, value in before:
            tensor.data.copy_(value)
        is_fault = iters is not None or any(fault for _, fault in told)
        if is_fault and error is not None:
            raise error
        if is_fault:
            raise DataError(f'another process cannot fit the head: {told[0][0]}')
        logger.warning(
            f'the head is not fitted first ({told[0][0]}); head_iters=0 leaves it as it is '
            'without this line'
        )
        return 0
    if not losses:
        logger.info('the head is not fitted first: one step at its rate would move it too far')
        return 0
    for tensor, _ in before:
        broadcast(tensor.data)
    few = max(1, round(len(losses) * TOLD))
    logger.info(
        f'fitted the head on frozen features: {len(losses)} iterations over {held} batches, loss '
        f'{sum(losses[:few]) / few:.4g} -> {sum(losses[-few:]) / few:.4g}, '
        f'{time.time() - begin:.1f} s'
    )
    return len(losses)


def _told(error: Exception | None) -> tuple[str, bool] | None:
    """An error as other processes are told of it, and whether training would meet it, too."""
    if error is None:
        return None
    text = str(error) if isinstance(error, CDRAError) else f'{type(error).__name__}: {error}'
    return text, isinstance(error, DataError) and not isinstance(error, _NotFinite)


def _fit(
    runner: Runner,
    model: BaseModel,
    backbone: nn.Module,
    iters: int | None,
    seed: int,
    num_samples: int,
    losses: list[float],
) -> int:
    """Trains the head, in place; the losses are added to the list.

    Returns:
        Number of batches.
    """
    with ExitStack() as stack:
        stack.enter_context(preserved_random_state())
        stack.enter_context(_frozen(model, backbone))
        stack.enter_context(plain_forward(model))
        stack.enter_context(as_single_process())
        config = remember_configs(runner)['optim_wrapper']
        what = 'it is fitted by one' if iters is None else 'head_iters needs one; leave it out'
        wrapper = single_optimizer(runner, backbone, config, iters or MOST, what)
        if iters is None:
            iters = _default_iters(wrapper)
            wrapper.initialize_count_status(runner.model, 0, iters)
        show = show_progress(
            iters, MMLogger.get_current_instance(), 'fitting the head', 'iterations'
        )
        held: list[HeldBatch] = []
        batches = _batches(runner, model, iters, seed, num_samples)
        for batch in _passes(batches, held, iters, seed):
            torch.manual_seed(seed + len(losses))  # of dropout, whoever has loaded the batch
            losses.append(_step(model, backbone, batch, wrapper))
            if not math.isfinite(losses[-1]):
                raise _NotFinite(
                    f'the loss of the head on frozen features is {losses[-1]} at iteration '
                    f"{len(losses)}: lower the head's learning rate, or look for images without "
                    'any label'
                )
            show(len(losses))
    return len(held)


def _default_iters(wrapper: OptimWrapper) -> int:
    """See `fit_head`."""
    rate = max(group['lr'] for group in wrapper.optimizer.param_groups)
    steps = round(min(MOST, MOVED / rate)) if rate > 0 else 0
    return steps * iterations_a_step(wrapper)


def _batches(
    runner: Runner, model: BaseModel, iters: int, seed: int, num_samples: int
) -> Iterator[HeldBatch]:
    """As many batches as are asked for, may be and there are; at least one.

    Raises:
        DataError: If there are no samples, or one cannot be loaded.
    """
    loader = runner.train_loop.dataloader
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None) or 1
    if not iters:
        return
    if not len(loader.dataset):
        raise DataError('the training data set is empty: nothing to fit the head on')
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(loader.dataset), generator=generator).tolist()
    if len(order) < size:  # as an endless sampler fills its batches
        order = (order * -(-size // len(order)))[:size]
    order = order[: max(1, min(iters, min(len(order), num_samples) // size)) * size]
    for data in seeded_batches(loader, order, size, seed):
        data = prepared(model, data)
        yield HeldBatch(data['inputs'], data['data_samples'])


def _passes(
    batches: Iterator[HeldBatch], held: list[HeldBatch], iters: int, seed: int
) -> Iterator[HeldBatch]:
    """The batches, and then those for which there was room again, each time in another order.

    Args:
        batches: All of them.
        held: Takes those that are held.
        iters: How many to give.
        seed: Of the orders.
    """
    used = 0
    for batch in batches:
        held.append(batch)
        yield batch
        used += batch.size
        if used + batch.size > ROOM:
            break
    generator = torch.Generator().manual_seed(seed)
    for number in range(iters - len(held)):
        if number % len(held) == 0:
            order = torch.randperm(len(held), generator=generator).tolist()
        yield held[order[number % len(held)]]


def _step(model: BaseModel, backbone: nn.Module, batch: HeldBatch, wrapper: OptimWrapper) -> float:
    samples = copy.deepcopy(batch.samples)  # models change labels in place
    with batch.frozen(backbone), named_loss(model, samples), wrapper.optim_context(model):
        loss, _ = model.parse_losses(model.loss(batch.inputs, samples))
    wrapper.update_params(loss)
    return float(loss.detach())


@contextmanager
def _frozen(model: nn.Module, backbone: nn.Module) -> Iterator[None]:
    """The backbone is in evaluation mode and frozen, the rest is trained; then all is as before."""
    with evaluation_mode(model), kept_flags(model.parameters()):
        model.train()  # what that keeps frozen or in evaluation stays so
        backbone.train(False)
        for module in backbone.modules():
            module.training = False
        for parameter in backbone.parameters():
            parameter.requires_grad_(False)
        yield


def _buffers(model: nn.Module, backbone: nn.Module) -> Iterator[Tensor]:
    inside = {id(buffer) for buffer in backbone.buffers()}
    return (buffer for buffer in model.buffers() if id(buffer) not in inside)
