"""The sensitivity pass of a run: its own training data, model and loss as batches.

Exactness rests on the losses of single samples (`sample_losses`).
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from cdra_mm.core import estimate_scores, find_targets
from cdra_mm.core.model.evaluation import evaluation_mode
from cdra_mm.core.scoring.losses import LossFn
from cdra_mm.core.scoring.mean_gradients import mean_gradients
from cdra_mm.core.scoring.zero_head import nonzero_head
from cdra_mm.errors import CDRAError, ConfigError, DataError, ScoreError
from cdra_mm.progress import logged_progress

from ..host.model_patches import as_single_process
from ..parallel.score_reduction import ScoreReduction, own_share
from ..rebuild import plain_model
from .contrastive import TwoViews, contrastive_loss, join_views
from .label_check import counted_labels
from .sample_losses import per_sample_losses
from .scoring_state import autocast, plain_forward, preserved_random_state
from .unlabelled import Unlabelled, no_labels

__all__ = [
    'SeededSamples',
    'drawn_samples',
    'score_backbone',
    'seeded_batches',
    'show_progress',
]


class SeededSamples(Dataset[Any]):
    """A data set whose random augmentations depend on the sample alone.

    Each sample is drawn from random generators seeded by ``(seed, index)``: the
    same on every rank, with any batch size and any number of workers.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        mixed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
        random.seed(mixed)
        np.random.seed(mixed)
        torch.manual_seed(mixed)
        try:
            return self.dataset[index]
        except CDRAError:
            raise
        except Exception as error:
            raise DataError(
                f'training sample {index} ({_path_of(self.dataset, index)}) cannot be loaded: '
                f'{type(error).__name__}: {error}'
            ) from error


def score_backbone(
    runner: Runner,
    backbone: nn.Module,
    *,
    num_samples: int,
    batch_size: int | None,
    statistic: str,
    seed: int,
    score_loss: str = 'task',
    targets: Collection[str] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
) -> tuple[dict[str, Tensor], int]:
    """Scores a run's backbone on its training data (Eq. 3), over all ranks.

    Args:
        runner: A runner whose training loop is built and weights are loaded.
        backbone: The backbone inside ``runner.model``.
        num_samples: Training samples to use, drawn with `seed`; fewer where the
            data set is smaller, with a warning.
        batch_size: Samples per batch; default: the training data loader's.
        statistic: See `estimate_scores`; or ``'mean_gradient'`` (`mean_gradients`).
        seed: Seed of the drawing and of the augmentations.
        score_loss: ``'task'``, the run's training loss, or ``'supervised_contrastive'``
            (`contrastive`), which mixes the samples of a batch: not for ``per_sample``.
        targets: Names of what is scored; default: all that `find_targets` finds.
        dtype: See `estimate_scores`.
        device: See `estimate_scores`.

    Returns:
        Scores (or mean gradients) by target name, relative to the backbone, the same on all ranks;
        and the number of samples (without those that `unlabelled` leaves out). Which samples are
        scored (and, but for ``per_sample``, in which batches) does not depend on the number of
        ranks; the order of the sums does, so two world sizes agree to rounding.

    Raises:
        DataError: If a sample cannot be loaded or has labels out of range, or none has labels.
        ScoreError: See `estimate_scores`; names the image. Or another rank has failed.
        ConfigError: If the loss does not fit the statistic or the model.
    """
    contrastive = score_loss == 'supervised_contrastive'
    unlabelled = Unlabelled(statistic != 'per_sample')
    loss: LossFn = contrastive_loss
    if not contrastive:
        loss = partial(per_sample_losses, unlabelled=unlabelled)
    if contrastive and statistic == 'per_sample':
        raise ConfigError(
            f'statistic={statistic!r}: a contrastive loss is one of a whole batch, not of its '
            "samples; leave statistic out or give 'summed' or 'per_batch'"
        )
    logger = MMLogger.get_current_instance()
    logger.info(f'scoring the backbone on up to {num_samples} training samples')
    begin = time.time()
    if targets is None:
        targets = find_targets(backbone)  # before any long work
    model = plain_model(runner)
    loader = runner.train_loop.dataloader
    indices = drawn_samples(len(loader.dataset), num_samples, seed, logger)
    size = batch_size or loader.batch_size or 1
    mine = own_share(indices, size if statistic != 'per_sample' else 1)
    batches = seeded_batches(loader, mine, size, seed, two_views=contrastive)
    reduction = ScoreReduction()

    def alone(_: nn.Module, data: Any) -> Any:
        # It may be called again on the same batch, and models pad the labels in place.
        data = {**data, 'data_samples': copy.deepcopy(data['data_samples'])}
        with as_single_process():
            return loss(model, data)

    def add_up(sums: Sequence[Tensor], count: int) -> int:
        return unlabelled.require_others(reduction.add_up(sums, count - unlabelled.count))

    with ExitStack() as stack:
        stack.enter_context(preserved_random_state())
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(plain_forward(model))
        if not contrastive:  # which sees no head
            own = list(backbone.parameters())
            stack.enter_context(nonzero_head(model, own, seed, logger.warning))
        stack.enter_context(autocast(runner))
        tally = stack.enter_context(counted_labels())
        try:
            common: dict[str, Any] = dict(
                targets=targets,
                progress=show_progress(len(mine), logger, 'scoring'),
                combine=add_up,
                dtype=dtype,
                device=device,
            )
            noted = unlabelled.noted(batches)
            if statistic == 'mean_gradient':
                scores = mean_gradients(backbone, noted, alone, **common)
            else:
                scores = estimate_scores(
                    backbone, noted, alone, statistic=statistic, warn=logger.warning, **common
                )
        except Exception as error:  # whatever it is, the others must not wait for it
            named = _naming_image(error, mine, loader.dataset)
            if isinstance(error, ScoreError) and tally.all_ignored(model):
                named = no_labels(f'{len(mine)} images')
            reduction.fail(named)
            raise named from error.__cause__
    for mistake in tally.likely_mistakes(model, loader.dataset, len(indices)):
        logger.warning(mistake)
    count = len(indices) - unlabelled.tell(logger, len(indices))
    logger.info(f'scored {count} samples in {time.time() - begin:.1f} s')
    return scores, count


def drawn_samples(size: int, num_samples: int, seed: int, logger: MMLogger) -> list[int]:
    """Which samples of a training set are scored: drawn by the seed, in the order of the set.

    Args:
        size: Samples of the set.
        num_samples: Samples to score; all, with a warning, where there are fewer.
        seed: Of the draw.
        logger: Gets the warning.

    Raises:
        DataError: If the set is empty.
    """
    if size == 0:
        raise DataError('the training data set is empty: nothing to score on')
    if num_samples > size:
        logger.warning(f'num_samples={num_samples}: the training set has {size}, using all of them')
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:num_samples].tolist())


def seeded_batches(
    loader: DataLoader[Any],
    indices: Sequence[int],
    batch_size: int,
    seed: int,
    *,
    two_views: bool = False,
) -> DataLoader[Any]:
    """Batches of some training samples in this order, the same each time (see `SeededSamples`)."""
    samples: Dataset[Any] = SeededSamples(loader.dataset, seed)
    collate: Any = loader.collate_fn
    if two_views:
        samples = TwoViews(samples, SeededSamples(loader.dataset, seed + 1))
        collate = partial(join_views, collate)
    return DataLoader(
        Subset(samples, indices),
        batch_size=batch_size,
        shuffle=False,
        num_workers=loader.num_workers,
        collate_fn=collate,
    )


def _naming_image(error: Exception, mine: Sequence[int], dataset: Any) -> Exception:
    """The error with the image in place of a sample's position."""
    if isinstance(error, ScoreError) and error.sample is not None:
        return ScoreError(f'training image {_path_of(dataset, mine[error.sample])}: {error}')
    return error


def _path_of(dataset: Any, index: int) -> str:
    try:
        info = dataset.get_data_info(index)
        return str(info.get('img_path', f'index {index}'))
    except Exception:  # only for a message: any data set may be handed in
        return f'index {index}'


def show_progress(
    total: int, logger: MMLogger, label: str, unit: str = 'samples'
) -> Callable[[int], None]:
    """Shows how many are done, on the first process: on the terminal, or four times in the log."""
    if get_rank() != 0:
        return lambda done: None
    show = logged_progress(label, logger.info, unit=unit)
    return lambda done: show(done, total)
