"""What of a backbone no method may train, found by evidence and not by names.

frozen      what its owner freezes: ``requires_grad`` is off when the planning begins, or goes off
            when the model's ``train()`` is called (``frozen_stages`` of mmpretrain's ViT and of
            Swin are one each)
unreached   what gets no gradient from the run's own training loss: blocks behind the last of
            ``out_indices``, a mask token, a norm whose output nobody takes

The first is asked by calling ``train()``, the second by one forward of two training samples in
evaluation mode, whose graph tells it. Blocks that are computed again in the backward pass hide
their weights from the graph, and give them their gradients all the same: where there may be such,
a backward pass follows, whose gradients are dropped as they arrive.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from mmengine.dist import all_gather_object
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn

from cdra_mm.core.model.evaluation import evaluation_mode
from cdra_mm.core.model.graph import leaves_of
from cdra_mm.errors import DataError
from cdra_mm.methods.base import FROZEN, UNREACHED
from cdra_mm.spelling import first_of

from ..host.model_patches import as_single_process, run_loss
from ..rebuild import plain_model
from .sample_losses import prepared
from .scoring import SeededSamples
from .scoring_state import (
    autocast,
    kept_flags,
    outputs_for_loss,
    plain_forward,
    preserved_random_state,
)

__all__ = ['frozen_by_train', 'withheld_parameters']

PROBED = 2  # samples: enough for a loss, and fewer than any training step holds
NAMED = 3


def withheld_parameters(
    runner: Runner, backbone: nn.Module, seed: int, *, probe: bool = True
) -> dict[str, str]:
    """The parameters of a run's backbone that cannot be trained, the same on every rank.

    Args:
        runner: A runner whose training loop is built and weights are loaded.
        backbone: The plain backbone inside ``runner.model``.
        seed: Seed of the samples drawn.
        probe: Whether to ask what the training loss depends on; otherwise only the frozen are
            found (see `Method.trains_inside`).

    Returns:
        Name -> why: `FROZEN` or `UNREACHED`.

    Raises:
        DataError: If a sample cannot be loaded or has labels out of range.
    """
    logger = MMLogger.get_current_instance()
    own = dict(backbone.named_parameters(remove_duplicate=False))
    frozen = {name for name, p in own.items() if not p.requires_grad}
    with kept_flags(own.values()):
        for name, parameter in own.items():
            parameter.requires_grad_(name not in frozen)
        frozen |= set(frozen_by_train(plain_model(runner), backbone))
    withheld = dict.fromkeys(sorted(frozen), FROZEN)
    left = {name: parameter for name, parameter in own.items() if name not in frozen}
    reached = _reached(runner, left, seed, logger) if probe else left
    withheld |= dict.fromkeys([name for name in left if name not in reached], UNREACHED)
    for why in (FROZEN, UNREACHED):
        names = [name for name in own if withheld.get(name) == why]
        if names:
            entries = sum(own[name].numel() for name in names)
            logger.info(
                f'{len(names)} backbone parameters ({entries:,} entries) do not compete and are '
                f'not adapted, {why}: {first_of(names, NAMED)}'
            )
    return withheld


def frozen_by_train(model: nn.Module, backbone: nn.Module) -> list[str]:
    """Names of the backbone's parameters whose ``requires_grad`` goes off in ``model.train()``.

    The modes of the modules are what they were; what went off stays off.
    """
    before = [name for name, p in backbone.named_parameters() if p.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
    finally:
        for module, mode in modes:
            module.training = mode
    now = dict(backbone.named_parameters())
    return [name for name in before if not now[name].requires_grad]


def _reached(
    runner: Runner, parameters: dict[str, nn.Parameter], seed: int, logger: MMLogger
) -> set[str]:
    """Names of those that get a gradient; all of them where the loss does not run in this way."""
    found: set[str] = set()
    failure: Exception | None = None
    try:
        found = _with_gradient(runner, parameters, seed) if parameters else set()
    except Exception as error:  # whatever it is, the others must not wait for it
        failure = error
    told = [isinstance(failure, DataError), '' if failure is None else _short(failure)]
    reports = all_gather_object((sorted(found), *told))
    if isinstance(failure, DataError):
        raise failure
    for rank, (_, bad_data, words) in enumerate(reports):
        if bad_data:
            raise DataError(f'process {rank}: {words}')
    failures = [words for _, _, words in reports if words]
    if failures:
        logger.warning(
            'which backbone parameters the training loss depends on cannot be found before '
            f'training, so all are taken to be trainable ({failures[0]})'
        )
        return set(parameters)
    return set().union(*(names for names, _, _ in reports))


def _with_gradient(runner: Runner, parameters: dict[str, nn.Parameter], seed: int) -> set[str]:
    model = plain_model(runner)
    loader = runner.train_loop.dataloader
    size = min(loader.batch_size or 1, PROBED, len(loader.dataset))
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(len(loader.dataset), generator=generator)[:size].sort().values
    reached: set[int] = set()

    def arrived(parameter: torch.Tensor) -> None:
        reached.add(id(parameter))
        parameter.grad = None  # a large backbone's gradients are as large as it is

    everything = list(model.parameters())
    asked = {id(parameter) for parameter in parameters.values()}
    with ExitStack() as stack:
        stack.enter_context(preserved_random_state())
        stack.enter_context(kept_flags(everything))
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(plain_forward(model))
        stack.enter_context(autocast(runner))
        stack.enter_context(as_single_process())
        for parameter in everything:
            parameter.requires_grad_(id(parameter) in asked)
            if id(parameter) in asked:
                stack.callback(parameter.register_post_accumulate_grad_hook(arrived).remove)
        samples = SeededSamples(loader.dataset, seed)
        data = prepared(model, loader.collate_fn([samples[index] for index in indices.tolist()]))
        with torch.enable_grad(), outputs_for_loss(model):
            loss, _ = model.parse_losses(run_loss(model, data))
            if loss.requires_grad:
                leaves = leaves_of(loss)
                if leaves is None:
                    loss.backward()
                else:
                    reached |= leaves & asked
    return {name for name, parameter in parameters.items() if id(parameter) in reached}


def _short(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).partition(chr(10))[0]}'[:300]
