"""From a model, its data and its loss to a config, in one call: scores, plan, config."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import find_batch_size, send_to_device
from torch import Tensor, nn

from cdra_mm.core import Plan, estimate_scores, find_targets, resolve
from cdra_mm.core.model.exclusion import exclude_targets
from cdra_mm.core.model.targets import parameter_of
from cdra_mm.core.scoring.losses import LossFn
from cdra_mm.core.scoring.mean_gradients import mean_gradients
from cdra_mm.core.scoring.scores import STATISTICS
from cdra_mm.core.scoring.zero_head import nonzero_head
from cdra_mm.errors import ConfigError, PlanError
from cdra_mm.methods import CDRA, Request, make_method
from cdra_mm.methods.cdra import settings_beside
from cdra_mm.progress import progress_line
from cdra_mm.settings import check_types
from cdra_mm.spelling import did_you_mean

from .base import check_base_of, saved_modules
from .config import CdraConfig

__all__ = ['cdra_config', 'mean_loss']

# Of the arguments of `cdra_config` beside those that are called.
TYPES = {
    'model': nn.Module,
    'modules_to_save': Sequence[str] | None,
    'backbone': str,
    'exclude': Sequence[str],
    'also_train': Sequence[str],
    'num_samples': int,
    'seed': int,
    'progress': bool,
}


def mean_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """The loss of a transformers model, which computes it from the labels in its batch.

    Args:
        model: Called as ``model(**batch)``; what it gives has a ``loss``, the mean of the batch.
        batch: A dict of tensors.

    Returns:
        The mean loss of the batch, and its number of samples.
    """
    if not isinstance(batch, Mapping):
        raise ConfigError(
            f'a batch is a {type(batch).__name__}: expected a dict that the model takes, with its '
            'labels; give loss_fn= for other models'
        )
    loss = getattr(model(**batch), 'loss', None)
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f'{type(model).__name__} gave no loss: put the labels into the batch, or give loss_fn='
        )
    return loss, int(find_batch_size(batch) or 1)


def cdra_config(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn = mean_loss,
    *,
    modules_to_save: Sequence[str] | None = None,
    backbone: str = '',
    exclude: Sequence[str] = (),
    also_train: Sequence[str] = (),
    num_samples: int = 400,
    statistic: str | None = None,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> CdraConfig:
    """Scores a model on training data, decides what is trained of it, and gives the config.

    Args:
        model: The model with its pretrained weights; it is left as it was.
        batches: Training batches, a data loader for example; tensors are moved to the model.
        loss_fn: Called as ``loss_fn(model, batch)``; returns the losses of the samples ``[B]``, or
            ``(mean loss, B)``. The default takes a transformers model's own loss.
        modules_to_save: Modules that are trained whole and saved with the adapter: the head. Their
            parameters do not count for a percentage.
        backbone: Path of the module whose blocks compete; default: all blocks of the model, but
            for those in `modules_to_save`.
        exclude: What does not compete, as for the hook of OpenMMLab runs: roles (``'norm'``),
            parameters or modules of the backbone.
        also_train: Parameters of the backbone that are trained whole besides, within the budget:
            tokens, a position embedding.
        num_samples: How many samples are scored; whole batches are taken.
        statistic: Of scores, see `estimate_scores`; default: what the allocation asks for.
        seed: Seed of the first factors.
        progress: Whether a terminal shows how far it is.
        **settings: Of the method `cdra_mm.methods.CDRA`: ``budget_percent``, ``budget_params``,
            ``allocation='descent'`` (default), ``'energy'`` or ``'scores'``, ``start``, ``compete``
            and so on.

    Raises:
        ConfigError: If a setting or a name is unknown.
        ScoreError: If there is no batch, or a loss or gradient is not finite.
        PlanError: If the model has no transformer block, or the budget is too small.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))
        >>> batches = [(torch.randn(4, 2, 16), torch.tensor([0, 1, 2, 0]))]
        >>> loss_fn = lambda model, batch: nn.functional.cross_entropy(
        ...     model(batch[0]), batch[1], reduction='none')
        >>> config = cdra_config(
        ...     model, batches, loss_fn, modules_to_save=['2'], budget_percent=10)
        >>> config.plan.num_trainable <= 217
        True
    """
    check_types(
        dict(
            model=model, modules_to_save=modules_to_save, backbone=backbone, exclude=exclude,
            also_train=also_train, num_samples=num_samples, seed=seed, progress=progress,
        ),
        TYPES,
    )  # fmt: skip
    if isinstance(batches, Mapping | Tensor) or not isinstance(batches, Iterable):
        raise ConfigError(
            f'batches is a {type(batches).__name__}: expected a data loader or a list of batches '
            '(one batch alone: put it into a list)'
        )
    method = make_method({'type': CDRA.name, **settings_beside(settings, statistic)})
    assert isinstance(method, CDRA)
    statistic = statistic or method.statistic
    known = ('mean_gradient',) if method.by_gradient else STATISTICS
    if statistic not in known:
        raise ConfigError(f'statistic={statistic!r}: expected one of {", ".join(known)}')
    part = _submodule(model, backbone)
    prefix = f'{backbone}.' if backbone else ''
    heads = saved_modules(model, modules_to_save or ())
    saved = {id(parameter) for module in heads for parameter in module.parameters()}
    targets = exclude_targets(find_targets(part), exclude)
    targets = {n: t for n, t in targets.items() if id(parameter_of(part, t)) not in saved}
    if not targets:
        raise PlanError(
            f'nothing competes in {backbone or type(model).__name__}: modules_to_save='
            f'{list(modules_to_save or ())!r} trains all of its blocks'
        )
    whole = {name: parameter_of(part, resolve(part, name)).numel() for name in also_train}
    targets = {n: t for n, t in targets.items() if t.path not in whole}
    if method.budget_percent is not None:
        total = sum(p.numel() for p in part.parameters() if id(p) not in saved)
        share = int(total * method.budget_percent / 100)
        if not share:
            raise ConfigError(
                f'budget_percent={method.budget_percent}: of {total} parameters that is less than '
                'one; give more, or budget_params'
            )
        method = replace(method, budget_percent=None, budget_params=share)
    given: dict[str, Any] = {} if method.by_gradient else dict(statistic=statistic)
    score = mean_gradients if method.by_gradient else estimate_scores
    counted = _Counted(batches, num_samples, next(model.parameters()).device, progress)
    own = [parameter for parameter in part.parameters() if id(parameter) not in saved]
    with nonzero_head(model, own, seed, warnings.warn):
        found = score(
            model, counted, loss_fn, targets=[prefix + n for n in targets],
            progress=counted.show, **given,
        )  # fmt: skip
    scores = {name.removeprefix(prefix): value for name, value in found.items()}
    how = dict(statistic=statistic, num_samples=counted.done, seed=seed)
    plan = method.plan(Request(part, scores, also_train=whole, settings=how))
    assert plan is not None
    start = method.first_factors(plan, scores)
    config = CdraConfig(
        plan=_below(plan, prefix),
        start={prefix + name: value for name, value in start.items()},
        modules_to_save=list(modules_to_save) if modules_to_save else None,
        seed=seed,
    )
    check_base_of(model, config)  # which notes what it was made for
    return config


class _Counted:
    """Batches on the model's device until there are enough samples, and how far that is."""

    def __init__(
        self, batches: Iterable[Any], num_samples: int, device: torch.device, progress: bool
    ) -> None:
        if num_samples < 1:
            raise ConfigError(f'num_samples={num_samples}: expected at least 1')
        self.batches, self.wanted, self.device = batches, num_samples, device
        data = getattr(batches, 'dataset', None)
        self.total = min(num_samples, len(data)) if isinstance(data, Sized) else num_samples
        self.done = 0
        self._line = progress_line('scoring', unit='samples') if progress else None

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield send_to_device(batch, self.device)
            if self.done >= self.wanted:
                return

    def show(self, done: int) -> None:
        """Notes how many samples are done."""
        self.done = done
        if self._line is not None:
            self._line(min(done, self.total), self.total)


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        known = [name for name, _ in model.named_modules() if name]
        hint = did_you_mean(path, known)
        raise ConfigError(
            f'backbone={path!r}: {type(model).__name__} has no such module{hint}'
        ) from None


def _below(plan: Plan, prefix: str) -> Plan:
    """A plan of a module with its names as the whole model has them."""
    return replace(
        plan,
        blocks=tuple(replace(block, name=prefix + block.name) for block in plan.blocks),
        vectors=tuple(replace(vector, name=prefix + vector.name) for vector in plan.vectors),
        sparse=tuple(replace(matrix, name=prefix + matrix.name) for matrix in plan.sparse),
        also_train={prefix + name: numel for name, numel in plan.also_train.items()},
        dropped=(),
    )
