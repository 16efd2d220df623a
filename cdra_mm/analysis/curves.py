"""How a run went, from its own log: loss, learning rate, metrics, growth of the adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cdra_mm.pictures import colour_of, new_figure

from .picture import Picture, Table
from .run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['curve_pictures']

Curves = dict[str, list[tuple[int, float]]]

OURS = 'cdra/'
COUNTERS = {'step', 'iter', 'epoch', 'time', 'data_time', 'memory'}
NUM_DRAWN = 7  # curves; beyond them colours would repeat


@dataclass(frozen=True)
class _Kind:
    """A picture of the log.

    Attributes:
        name: Of its files.
        title: Its heading.
        unit: What its values are.
        caption: What it shows.
    """

    name: str
    title: str
    unit: str
    caption: str


LOSS = _Kind(
    'curve_loss', 'Loss', 'training loss', 'The training loss; mmengine logs means of some steps.'
)
RATE = _Kind(
    'curve_learning_rate',
    'Learning rate',
    'learning rate',
    'The learning rate of the first parameter group (lr), and the one before any factor of a layer '
    '(base_lr).',
)
METRICS = _Kind('curve_metrics', 'Metrics on the validation images', 'metric', 'Each validation.')
GROWTH = _Kind(
    'curve_growth',
    'How far the adapters move the weights',
    'change over weight',
    "The Frobenius norm of the learnt change over that of the weight, a mean over each kind's "
    'adapters.',
)
IN_USE = _Kind(
    'curve_rank_in_use',
    'Ranks in use',
    'share of the planned ranks',
    'The effective rank of the learnt updates (1 where all directions are used alike) over the '
    'planned rank: low values mean that a smaller budget would do.',
)


def curve_pictures(run: Run) -> list[Picture]:
    """Training curves of a run; what its log does not hold is left out.

    Args:
        run: A run with ``scalars``: one entry a line, by rising ``step``.
    """
    training, ours, validation = [], [], []
    for entry in run.scalars:
        if 'loss' in entry or 'lr' in entry:
            training.append(entry)
        elif any(key.startswith(OURS) for key in entry):
            ours.append(entry)
        else:
            validation.append(entry)
    if not training:
        run.missing.append('Training curves cannot be shown: there is no log of the training.')
    losses = _curves(training, lambda key: 'loss' in key)
    if len(losses) == 2:  # the loss and its only part are the same
        losses = {'loss': losses['loss']} if 'loss' in losses else losses
    metrics = _curves(validation, lambda key: key not in COUNTERS)
    growth = f'{OURS}relative_change/'
    used = f'{OURS}rank_in_use'
    rates = _curves(training, lambda key: key in ('lr', 'base_lr'))
    if rates.get('lr') == rates.get('base_lr'):
        rates.pop('base_lr', None)
    found = (
        (LOSS, losses, 'iteration'),
        (METRICS, metrics, 'epoch' if _are_epochs(training, metrics) else 'iteration'),
        (RATE, rates, 'iteration'),
        (GROWTH, _renamed(_curves(ours, lambda key: key.startswith(growth)), growth), 'iteration'),
        (IN_USE, _renamed(_curves(ours, lambda key: key == used), OURS), 'iteration'),
    )
    return [_picture(kind, curves, axis) for kind, curves, axis in found if curves]


def _curves(entries: Sequence[Mapping[str, Any]], wanted: Any) -> Curves:
    curves: Curves = {}
    for entry in entries:
        for key, value in entry.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and key not in COUNTERS and wanted(key):
                curves.setdefault(key, []).append((entry['step'], float(value)))
    return curves


def _are_epochs(training: Sequence[Mapping[str, Any]], metrics: Curves) -> bool:
    """Whether validations are logged by epoch: no step of theirs is beyond the last epoch."""
    last = max((entry.get('epoch', 0) for entry in training), default=0)
    steps = [step for points in metrics.values() for step, _ in points]
    return bool(steps) and max(steps) <= last


def _renamed(curves: Curves, prefix: str) -> Curves:
    return {key.removeprefix(prefix).replace('_', ' '): points for key, points in curves.items()}


def _picture(kind: _Kind, curves: Curves, axis: str) -> Picture:
    steps = sorted({step for points in curves.values() for step, _ in points})
    columns = [dict(points) for points in curves.values()]
    rows = [(step, *(column.get(step) for column in columns)) for step in steps]
    left = len(curves) - NUM_DRAWN
    more = f' Of {len(curves)} curves {NUM_DRAWN} are drawn; all are in the table.' * (left > 0)
    return Picture(
        kind.name,
        kind.title,
        kind.caption + more,
        partial(_draw, kind, curves, axis),
        Table((axis, *curves), rows),
        'training',
    )


def _draw(kind: _Kind, curves: Curves, axis: str) -> Figure:
    figure = new_figure(7.5, 3.1)
    axes = figure.subplots()
    for position, (name, points) in enumerate(list(curves.items())[:NUM_DRAWN]):
        few = len(points) <= 30
        axes.plot(
            *zip(*points, strict=True),
            color=colour_of(position),
            marker='o' if few else None,
            markersize=3,
            label=name,
        )
    axes.set_xlabel(axis)
    axes.set_ylabel(kind.unit)
    axes.margins(y=0.08)
    axes.set_ylim(bottom=0, top=1.05 if kind is IN_USE else None)
    axes.ticklabel_format(axis='y', scilimits=(-3, 5))
    axes.locator_params(axis='x', integer=True)
    axes.grid()
    if len(curves) > 1 or kind is METRICS:
        figure.legend(loc='outside upper center', ncols=4)
    return figure
