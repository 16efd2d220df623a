"""Whether the learning rate suits the weights: looked at a few times, early in the training.

An optimizer like Adam moves a parameter by about its rate a step, whatever the weights are. A rate
that suits healthy weights replaces small ones within the warm-up, and what the head is then given
is no feature any more. So three things are measured at iterations 16, 32, 64, 128, ... until the
rate's peak is `AFTER_PEAK` iterations past:

    the update     of the adapters relative to the weights that they change
                   (`AdapterGrowth.relative_updates`): the median of the kind of adapter where it is
                   largest, less what it was at the start
    the drift      of the features that the head is given (`FeatureDrift`)
    the loss       the mean of the last `WINDOW` iterations beside that of the first, when the
                   adapters had not moved: what the head alone began with

The first look that finds weights replaced, a loss that has risen under a considerable update, or
features that are replaced while nothing is learnt, says so in one line with the rate to try. Good
runs replace features too, so the loss decides. The thresholds come from the runs in
docs/reliability.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, median
from typing import Any, NamedTuple

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from .adapter_growth import AdapterGrowth
from .backbone import find_backbone
from .checkpoints.record import Record
from .feature_drift import FeatureDrift
from .optimizer_parameters import named_optimizers
from .rebuild import plain_model

__all__ = ['RateWatch']

KEY = 'cdra_rate_watch'  # in the message hub: what a resumed run has to know
FIRST = 16  # iterations before the first look
AFTER_PEAK = 64  # iterations at the full rate that are watched
WINDOW = 8  # iterations whose loss is averaged
REPLACED = 0.8  # an update nearly as large as the weights that it changes
DRIFTED = 0.8  # of the features; to nothing at all would be 1
CONSIDERABLE = 0.1  # an update
RISEN = 1.05  # the loss over that of the start
UNLEARNT = 0.85  # the same, after so many iterations:
LEARNT_BY = 64


class Look(NamedTuple):
    """What one look has found.

    Attributes:
        update: Median relative update since the start, of one kind of adapter.
        largest: The largest of that kind.
        kind: The kind.
        drift: Of the features; 0 where it is not measured.
        first: Mean loss of the first iterations; nan where a model has no single loss.
        last: Mean loss of the last iterations.
        done: Iterations until then.
    """

    update: float
    largest: float
    kind: str
    drift: float
    first: float
    last: float
    done: int

    @property
    def is_ruin(self) -> bool:
        """Whether it is that of a run that is being ruined."""
        if not math.isfinite(self.update):
            return False  # `DivergenceHook` has to say more about it
        drifted = self.drift >= DRIFTED
        most = UNLEARNT if drifted and self.done >= LEARNT_BY else RISEN
        moved = drifted or self.update >= CONSIDERABLE
        return self.update >= REPLACED or (moved and self.last > most * self.first)

    def __str__(self) -> str:
        found = [
            f'the update is {self.update:.3g} times (median; largest {self.largest:.3g}) as large '
            f'as the weights that it changes ({self.kind})'
        ]
        if self.drift:
            found.append(f'the features have moved by {self.drift:.2g} of their norm')
        if not math.isnan(self.last):
            found.append(f'the loss is {self.last:.4g} ({self.first:.4g} at the start)')
        return ', '.join(found)


class RateWatch(Hook):
    """Warns once where the adapters outgrow the weights that they change.

    Only the main process looks. A checkpoint carries what was found so far, so that a resumed run
    neither forgets it nor says it twice.

    Args:
        record: Gives the record of the run, None as long as there is none.
    """

    priority = 'LOW'  # the loss of the iteration is noted by then

    def __init__(self, record: Callable[[], Record | None]) -> None:
        self.record = record
        self._growth: AdapterGrowth | None = None  # None: nothing to watch, or no longer
        self._drift: FeatureDrift | None = None
        self._groups: list[dict[str, Any]] = []
        self._state: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Begins, or goes on where the checkpoint was written."""
        record = self.record()
        self._end()
        if record is None or not record.plan or not is_main_process():
            return
        backbone = find_backbone(plain_model(runner))
        growth = AdapterGrowth(backbone)
        start = {kind: median(found) for kind, found in growth.relative_updates().items()}
        if runner.iter == 0:
            self._state = {'start': start, 'rate': 0.0, 'peak': 0, 'done': not start}
        else:
            self._state = dict(runner.message_hub.runtime_info.get(KEY, {'done': True}))
        if self._state['done']:
            return
        runner.message_hub.update_info(KEY, self._state)
        self._growth = growth
        self._groups = _groups_of(runner, [growth.adapters[name] for name in growth.bases])
        # What has moved before, in another run or from a start that is not zero, is no drift of
        # this run. A compiled step has no place for the hook.
        if not any(self._state['start'].values()) and not runner.cfg.get('compile'):
            self._drift = FeatureDrift(backbone)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Follows the rate up to its peak."""
        if self._growth is None:
            return
        rate = max((float(group['lr']) for group in self._groups), default=0.0)
        if rate > self._state['rate']:
            self._state.update(rate=rate, peak=runner.iter + 1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Looks, at a power of two."""
        done = runner.iter + 1
        if self._growth is None or done < FIRST or done & (done - 1):
            return
        look = self._look(runner, self._growth, done)
        if look.is_ruin:
            self._warn(runner, look)
        if look.is_ruin or done >= self._state['peak'] + AFTER_PEAK:
            self._end()

    def _end(self) -> None:
        """Looks no more."""
        self._growth = None
        self._state['done'] = True
        if self._drift:
            self._drift.close()
        self._drift = None

    def _look(self, runner: Runner, growth: AdapterGrowth, done: int) -> Look:
        found = [(0.0, 0.0, '')]
        for kind, updates in growth.relative_updates().items():
            start = self._state['start'].get(kind, 0.0)
            found.append((median(updates) - start, max(updates), kind))
        drift = self._drift.measure(runner) if self._drift else 0.0
        return Look(*max(found), drift, *_losses(runner, done), done)

    def _warn(self, runner: Runner, look: Look) -> None:
        full = max(_full_rate(group) for group in self._groups)
        # With Adam the update grows no faster than the rate: a tenth for each factor of ten.
        share = 10.0 ** -max(1, math.ceil(math.log10(max(look.update, 1.0))))
        MMLogger.get_current_instance().warning(
            f'the learning rate may be too high for these weights: at iteration {runner.iter + 1} '
            f'{look}, at lr={self._state["rate"]:.3g} of {full:.3g}; try lr={full * share:.3g} for '
            f'the backbone{_setting(runner, share)}'
        )


def _groups_of(runner: Runner, adapters: list[nn.Module]) -> list[dict[str, Any]]:
    """The optimizers' groups that hold anything of these adapters."""
    own = {id(parameter) for adapter in adapters for parameter in adapter.parameters()}
    return [
        group
        for _, optimizer in named_optimizers(runner.optim_wrapper)
        for group in optimizer.param_groups
        if any(id(parameter) in own for parameter in group['params'])
    ]


def _full_rate(group: dict[str, Any]) -> float:
    """The highest rate that a schedule has announced or reached."""
    return max(float(group.get(key, 0.0)) for key in ('lr', 'initial_lr', 'max_lr'))


def _losses(runner: Runner, done: int) -> tuple[float, float]:
    """Mean losses of the first and the last iterations, nan where a model has no single loss."""
    history = runner.message_hub.log_scalars.get('train/loss')
    values = [] if history is None else history.data[0][-done:].tolist()
    if len(values) < 2 * WINDOW:
        return math.nan, math.nan
    return fmean(values[:WINDOW]), fmean(values[-WINDOW:])


def _setting(runner: Runner, share: float) -> str:
    """The option that lowers the backbone's rate and keeps the head's, of a usual config."""
    config = runner.cfg.get('optim_wrapper') or {}
    if isinstance(runner.optim_wrapper, OptimWrapperDict) or 'optimizer' not in config:
        return ''
    keys = (config.get('paramwise_cfg') or {}).get('custom_keys') or {}
    now = (keys.get('backbone') or {}).get('lr_mult', 1.0)
    option = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
    return f' ({option}={now * share:.3g} keeps the rate of the head)'
