"""A run as the place where a method tries out plans before it decides (NOAH's supernet).

The run's own model, training data, loss and optimizer train the shared adapters and the heads;
afterwards the model is what it was before, bit for bit, and so are the random numbers.

On several processes each does the whole by itself, on the same samples: nothing is sent but
the plan at the end. A process sees one process' batches, so more of them make no larger batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cdra_mm.core import Plan, adapters, remove_adapters
from cdra_mm.core.model.evaluation import evaluation_mode
from cdra_mm.errors import DataError, ScoreError
from cdra_mm.methods import SharedAdapters

from ..host.model_patches import as_single_process, without_recomputation
from ..optimizer_parameters import single_optimizer
from ..parallel.score_reduction import ScoreReduction
from ..rebuild import plain_model, remember_configs
from .label_check import check_labels, named_loss
from .sample_losses import per_sample_losses
from .scoring import SeededSamples, seeded_batches, show_progress
from .scoring_state import autocast, plain_forward, preserved_buffers, preserved_random_state

__all__ = ['RunTrials', 'trials_in']

TOLD = 25  # measured subnets between two lines of the log


@contextmanager
def trials_in(runner: Runner, backbone: nn.Module, seed: int) -> Iterator[RunTrials]:
    """The trials of a run; everything is as it was before when they end.

    Args:
        runner: A runner whose training loop is built and weights are loaded.
        backbone: The plain backbone inside ``runner.model``.
        seed: Seed of all that is random in them.

    Raises:
        ScoreError: If another process has failed.
    """
    reduction = ScoreReduction()
    with preserved_random_state(), _kept_model(plain_model(runner), backbone):
        try:
            yield RunTrials(runner, backbone, seed)
            reduction.add_up((), 0)
        except Exception as error:  # whatever it is, the others must not wait for it
            reduction.fail(error)
            raise


class RunTrials:
    """See `cdra_mm.methods.Trials`.

    Attributes:
        seed: Likewise.
        held_out: Indices of the training samples that are measured on, ascending.
        trained_on: Those of the others.
    """

    def __init__(self, runner: Runner, backbone: nn.Module, seed: int) -> None:
        self.runner, self.backbone, self.seed = runner, backbone, seed
        self.model = plain_model(runner)
        self.loader: DataLoader[Any] = runner.train_loop.dataloader
        self.logger = MMLogger.get_current_instance()
        self.held_out: list[int] = []
        self.trained_on: list[int] = []
        self._batches: list[Any] = []
        self._shared: SharedAdapters | None = None
        self._tried: list[float] = []

    def train(
        self,
        largest: Plan,
        draw: Callable[[], Plan],
        *,
        epochs: int,
        iters: int | None,
        lr_mult: float,
        held_out: float,
        max_held_out: int,
    ) -> None:
        """See `Trials.train`.

        The optimizer is the run's own; its learning rates fall to zero along a cosine, each
        step. Sample order, augmentations and dropout depend on the seed alone, not on workers.

        Raises:
            DataError: If there are too few samples, or one cannot be used.
            ConfigError: If the run has several optimizers.
            ScoreError: If the loss is not finite.
        """
        self._split(held_out, max_held_out)
        batch_size = min(self.loader.batch_size or 1, len(self.trained_on))
        total = iters or epochs * (len(self.trained_on) // batch_size)
        self.logger.info(
            f'training a supernet of {largest.num_trainable:,} parameters for {total} iterations '
            f'on {len(self.trained_on)} samples, {len(self.held_out)} are held out'
        )
        self._shared = SharedAdapters(self.backbone, largest, self.seed)
        wrapper = self._optimizer(total, lr_mult)
        groups = wrapper.optimizer.param_groups
        rates = [group['lr'] for group in groups]
        batches = DataLoader(
            _Passes(self.loader.dataset, self.seed),
            batch_sampler=_passes(self.trained_on, batch_size, total, self.seed),
            num_workers=self.loader.num_workers,
            collate_fn=self.loader.collate_fn,
        )
        self.model.train()
        show = show_progress(total, self.logger, 'supernet', 'iterations')
        for step, data in enumerate(batches):
            check_labels(self.model, data['data_samples'])
            for group, rate in zip(groups, rates, strict=True):
                group['lr'] = rate * (1 + math.cos(math.pi * step / total)) / 2
            torch.manual_seed(_mixed(self.seed, step))
            alone, once = as_single_process(), without_recomputation(self.model)
            named = named_loss(self.model, data['data_samples'])
            with alone, once, named, self._shared.applied(draw()):
                # Not the instance's own, which may be compiled for one set of adapters.
                log = type(self.model).train_step(self.model, data, wrapper)
            loss = float(log['loss'].detach())
            if not math.isfinite(loss):
                raise ScoreError(
                    f'the loss of the supernet is {loss} at iteration {step + 1}: lower '
                    'supernet_lr_mult or the learning rate of the run'
                )
            show(step + 1)

    @torch.no_grad()
    def fitness(self, plan: Plan) -> float:
        """Top-1 accuracy where images have one label each, otherwise the negative mean loss.

        In evaluation mode, on the held-out samples as the training pipeline gives them, with
        augmentations that depend on the sample alone. NOAH measures classifiers only, by top-1.

        Raises:
            ScoreError: If the loss is not finite.
        """
        assert self._shared is not None, 'train comes first'
        if not self._batches:
            size = self.loader.batch_size or 1
            self._batches = list(seeded_batches(self.loader, self.held_out, size, self.seed))
        with ExitStack() as stack:
            stack.enter_context(as_single_process())
            stack.enter_context(self._shared.applied(plan))
            stack.enter_context(evaluation_mode(self.model))
            stack.enter_context(plain_forward(self.model))
            stack.enter_context(autocast(self.runner))
            values = torch.cat([_worth(self.model, data) for data in self._batches])
        fitness = float(values.double().mean())
        if not math.isfinite(fitness):
            raise ScoreError(
                f'a subnet has a fitness of {fitness} on the held-out samples: look for samples '
                'without any label, or lower supernet_lr_mult'
            )
        self._tried.append(fitness)
        if len(self._tried) % TOLD == 0:
            best = max(self._tried)
            self.logger.info(f'measured {len(self._tried)} subnets, the best has {best:.4g}')
        return fitness

    def _split(self, held_out: float, max_held_out: int) -> None:
        size = len(self.loader.dataset)  # type: ignore[arg-type]
        number = min(round(size * held_out), max_held_out)
        if not 0 < number < size:
            raise DataError(
                f'held_out={held_out} of {size} training samples are {number}: expected at least '
                'one, and one left to train on'
            )
        order = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed)).tolist()
        self.held_out, self.trained_on = sorted(order[:number]), sorted(order[number:])

    def _optimizer(self, total: int, lr_mult: float) -> OptimWrapper:
        """The run's optimizer, for the shared adapters and the heads."""
        config = remember_configs(self.runner)['optim_wrapper']
        what = 'a supernet is trained by one optimizer; use a method that does not search'
        wrapper = single_optimizer(self.runner, self.backbone, config, total, what)
        for group in wrapper.optimizer.param_groups:
            group['lr'] *= lr_mult
        return wrapper


def _worth(model: BaseModel, data: Any) -> Tensor:
    """1 or 0 for each image where all have one label, otherwise each negative loss, ``[B]``."""
    if not all('gt_label' in s and s.gt_label.numel() == 1 for s in data['data_samples']):
        return -per_sample_losses(model, data).cpu()
    labels = [sample.gt_label.item() for sample in data['data_samples']]
    found = model(**model.data_preprocessor(data, False), mode='predict')
    right = [int(x.pred_score.argmax()) == y for x, y in zip(found, labels, strict=True)]
    return torch.tensor(right, dtype=torch.float64)


class _Passes(Dataset[Any]):
    """The samples of many passes: ``(n, index)`` is a sample with the augmentations of pass n."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return SeededSamples(self.dataset, _mixed(self.seed, key[0]))[key[1]]


def _passes(
    indices: list[int], batch_size: int, total: int, seed: int
) -> list[list[tuple[int, int]]]:
    """Batches of shuffled passes; what is too few for a batch at the end of one is left out."""
    per_pass = len(indices) // batch_size
    generator = torch.Generator().manual_seed(seed)
    batches: list[list[tuple[int, int]]] = []
    for number in range(math.ceil(total / per_pass)):
        order = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
        batches += [
            [(number, index) for index in order[at * batch_size : (at + 1) * batch_size]]
            for at in range(per_pass)
        ]
    return batches[:total]


def _mixed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


@contextmanager
def _kept_model(model: nn.Module, backbone: nn.Module) -> Iterator[None]:
    """Takes adapters off, and gives everything that a training changes its old value back."""
    modes = [(module, module.training) for module in model.modules()]
    frozen = {id(parameter) for parameter in backbone.parameters()}
    parameters = [(p, p.requires_grad) for p in model.parameters()]
    values = [(p, p.detach().clone()) for p in model.parameters() if id(p) not in frozen]
    try:
        with preserved_buffers(list(model.modules())):
            yield
    finally:
        if adapters(backbone):
            remove_adapters(backbone, discard=True)
        for module, mode in modes:
            module.training = mode
        for parameter, trainable in parameters:
            parameter.requires_grad_(trainable).grad = None
        for parameter, value in values:
            parameter.data.copy_(value)
