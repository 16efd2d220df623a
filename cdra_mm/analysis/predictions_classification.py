"""What a classifier predicts: the confusion matrix, and the share of each class that is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cdra_mm.pictures import INK, new_figure

from .class_bars import draw_class_bars, shortened
from .picture import Picture, Table
from .predictions import Show, predict
from .run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['classification_pictures']

NUMBERED = 12  # classes up to which a cell holds its number
NAMED = 45  # names that fit beside the matrix


def classification_pictures(
    run: Run, *, max_images: int | None = None, by_value: bool = True, show: Show | None = None
) -> list[Picture]:
    """The confusion matrix, and the share of each class that is predicted right.

    Args:
        run: A run; one whose model is no classifier has no such pictures.
        max_images: At most so many validation images are predicted, evenly spaced.
        by_value: Classes by falling share; otherwise in the order of the data set.
        show: Called with the number of images done and of all.
    """
    with predict(run, 'classifier', max_images=max_images, show=show) as predicted:
        if predicted is None:
            return []
        pairs = [
            (int(sample.gt_label), int(sample.pred_label))
            for sample in predicted.samples
            if _one_label(sample)
        ]
    if not pairs:
        run.missing.append(
            'The confusion matrix cannot be shown: it needs one true and one predicted class for '
            'each validation image.'
        )
        return []
    size = max(len(predicted.classes), 1 + max(max(pair) for pair in pairs))
    classes = [*predicted.classes, *(f'class {i}' for i in range(len(predicted.classes), size))]
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, tuple(np.array(pairs).T), 1)
    where = predicted.described
    return [_confusion(counts, classes, where), _right(counts, classes, where, by_value)]


def _one_label(sample: object) -> bool:
    labels = [getattr(sample, name, None) for name in ('gt_label', 'pred_label')]
    return all(label is not None and label.numel() == 1 for label in labels)


def _confusion(counts: np.ndarray, classes: Sequence[str], where: str) -> Picture:
    right = 100 * np.trace(counts) / counts.sum()
    wrong = counts - np.diag(np.diag(counts))
    worst = np.unravel_index(wrong.argmax(), wrong.shape)
    often = (
        f' The most frequent confusion: {classes[worst[0]]} taken for {classes[worst[1]]} '
        f'({wrong[worst]} of {counts[worst[0]].sum()}).'
        if wrong.any()
        else ''
    )
    rows = [
        (classes[i], classes[j], int(counts[i, j]), 100 * counts[i, j] / counts[i].sum())
        for i, j in zip(*np.nonzero(counts), strict=True)
    ]
    return Picture(
        'confusion',
        'Confusion matrix',
        f'{where[0].upper()}{where[1:]}: {right:.1f} % right. A row is a true class, a column what '
        f'it was predicted as; what is right lies on the diagonal.{often}',
        partial(_draw_confusion, counts, classes),
        Table(('true class', 'predicted class', 'images', 'percent of the true class'), rows),
        'predictions',
    )


def _right(counts: np.ndarray, classes: Sequence[str], where: str, by_value: bool) -> Picture:
    of_all = counts.sum(1)
    with np.errstate(invalid='ignore'):
        share = 100 * np.diag(counts) / of_all
    rows = [
        (name, None if math.isnan(share[i]) else float(share[i]), int(of_all[i]))
        for i, name in enumerate(classes)
    ]
    return Picture(
        'class_accuracy',
        'Images of each class that are predicted right',
        f'Over {where}. A class with few images jumps in large steps: see the table.',
        partial(draw_class_bars, classes, share, 'images predicted right', by_value=by_value),
        Table(('class', 'predicted right (percent)', 'images'), rows),
        'predictions',
    )


def _draw_confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    size = len(classes)
    figure = new_figure(7.5, 7.0 if size > NUMBERED else 2.2 + 0.38 * size)
    axes = figure.subplots()
    shares = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    image = axes.imshow(shares, vmin=0, vmax=100, aspect='auto')
    if size <= NUMBERED:
        for i in range(size):
            for j in range(size):
                colour = INK if shares[i, j] > 55 else 'white'
                axes.text(j, i, str(counts[i, j]), ha='center', va='center', color=colour)
    step = math.ceil(size / NAMED)
    at = range(0, size, step)
    names = [shortened(classes[i], 18) for i in at]
    small = 8 if size <= 20 else 6
    axes.set_xticks(at, names, rotation=90, fontsize=small)
    axes.set_yticks(at, names, fontsize=small)
    named = '' if step == 1 else f' (one in {step} named)'
    axes.set_xlabel(f'predicted class{named}')
    axes.set_ylabel(f'true class{named}')
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.035, pad=0.01)
    bar.set_label('percent of the true class')
    bar.outline.set_visible(False)
    return figure
