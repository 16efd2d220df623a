"""What a segmentor predicts: images with their errors, and IoU and Dice of each class."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdra_mm.pictures import FRAME, new_figure

from .class_bars import draw_class_bars, shortened
from .picture import Picture, Table
from .predictions import Predicted, Show, predict
from .run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['Areas', 'segmentation_pictures']

NUM_SHOWN = 4  # images
NAMED = 12  # classes in the legend of an image
LONGEST_SIDE = 640  # pixels of a shown image
NEITHER = (0.93, 0.93, 0.93)  # colour of pixels without a truth


@dataclass(frozen=True)
class Areas:
    """Pixels of each class, of one image or added up over many. All int64 ``[classes]``.

    Attributes:
        both: In truth and prediction.
        truth: In the truth.
        predicted: In the prediction, where there is a truth.
    """

    both: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, predicted: np.ndarray, classes: int, ignored: int) -> Areas:
        """The areas of label maps ``[H, W]``; pixels whose truth is `ignored` do not count."""
        counted = truth != ignored
        truth, predicted = truth[counted], predicted[counted]
        maps = (truth[truth == predicted], truth, predicted)
        counts = (np.bincount(labels[labels < classes], minlength=classes) for labels in maps)
        return cls(*counts)

    def __add__(self, other: Areas) -> Areas:
        return Areas(
            self.both + other.both, self.truth + other.truth, self.predicted + other.predicted
        )

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union in percent; not a number where a class is nowhere."""
        with np.errstate(invalid='ignore'):
            return 100 * self.both / (self.truth + self.predicted - self.both)

    @property
    def dice(self) -> np.ndarray:
        """Dice coefficient in percent, likewise."""
        with np.errstate(invalid='ignore'):
            return 200 * self.both / (self.truth + self.predicted)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes in truth or prediction, in percent; not a number without any."""
        known = self.iou[~np.isnan(self.iou)]
        return float(known.mean()) if len(known) else math.nan


@dataclass(frozen=True)
class _Shown:
    """An image to show."""

    path: str
    truth: np.ndarray
    predicted: np.ndarray
    areas: Areas

    @property
    def share_wrong(self) -> float:
        """Wrong pixels over all with a truth, in percent."""
        return 100 * (1 - self.areas.both.sum() / max(1, self.areas.truth.sum()))


def segmentation_pictures(
    run: Run,
    *,
    max_images: int | None = None,
    images: Sequence[str] = (),
    num_shown: int = NUM_SHOWN,
    by_value: bool = True,
    show: Show | None = None,
) -> list[Picture]:
    """Images with truth, prediction and errors, and IoU and Dice of each class.

    Args:
        run: A run; one whose model is no segmentor has no such pictures.
        max_images: At most so many validation images are predicted, evenly spaced.
        images: File names, without their ending, of the images to show. Default: the worst, that
            is those with the lowest mean IoU over the classes in their truth or prediction.
        num_shown: How many of the worst to show.
        by_value: Classes by falling IoU; otherwise in the order of the data set.
        show: Called with the number of images done and of all.
    """
    with predict(run, 'segmentor', max_images=max_images, show=show) as predicted:
        if predicted is None:
            return []
        total, shown = _look(predicted, images, num_shown)
    if total is None:
        run.missing.append('Predictions cannot be shown: the validation images have no truth.')
        return []
    for name in images:
        if name not in {Path(entry.path).stem for entry in shown}:
            run.missing.append(f'Image {name} is not among {predicted.described}.')
    how = 'chosen' if images else 'worst'
    pictures = [_class_picture(total, predicted, by_value)]
    for position, entry in enumerate(shown, 1):
        pictures.append(_image_picture(f'{how}_image_{position}', entry, predicted, how))
    return pictures


def _look(
    predicted: Predicted, images: Sequence[str], num_shown: int
) -> tuple[Areas | None, list[_Shown]]:
    """All areas added up, and the images to show; no other image is held."""
    ignored = _ignored_label(predicted.config)
    total: Areas | None = None
    chosen: list[_Shown] = []
    worst: list[tuple[float, int, _Shown]] = []
    for position, sample in enumerate(predicted.samples):
        if 'gt_sem_seg' not in sample:
            continue
        truth = sample.gt_sem_seg.data.squeeze(0).cpu().numpy()
        guess = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
        areas = Areas.of(truth, guess, len(predicted.classes), ignored)
        total = areas if total is None else total + areas
        path = str(sample.get('img_path', f'image {position}'))
        step = math.ceil(max(truth.shape) / LONGEST_SIDE)
        small = np.where(truth == ignored, -1, truth.astype(np.int16))[::step, ::step]
        entry = _Shown(path, small, guess.astype(np.int16)[::step, ::step], areas)
        if images:
            if Path(path).stem in images:
                chosen.append(entry)
        elif not math.isnan(areas.mean_iou):
            heapq.heappush(worst, (-areas.mean_iou, -position, entry))
            if len(worst) > num_shown:
                heapq.heappop(worst)  # the best of them
    return total, chosen or [entry for _, _, entry in sorted(worst, reverse=True)]


def _ignored_label(config: Mapping[str, Any]) -> int:
    """The label that the run's own metric ignores; 255 where it names none, as in mmseg."""
    evaluators = config.get('test_evaluator') or ()
    for evaluator in evaluators if isinstance(evaluators, list | tuple) else [evaluators]:
        if 'ignore_index' in evaluator:
            return int(evaluator['ignore_index'])
    return 255


def _class_picture(total: Areas, predicted: Predicted, by_value: bool) -> Picture:
    iou, dice, classes = total.iou, total.dice, predicted.classes
    header = ('class', 'IoU (percent)', 'Dice (percent)', 'pixels in truth', 'pixels predicted')
    rows = [
        (name, _known(iou[i]), _known(dice[i]), int(total.truth[i]), int(total.predicted[i]))
        for i, name in enumerate(classes)
    ]
    means = f'mIoU {np.nanmean(iou):.1f} %, mean Dice {np.nanmean(dice):.1f} %'
    return Picture(
        'class_iou_dice',
        'IoU and Dice of each class',
        f'Over {predicted.described}: {means}. The pixels of all images are added up before they '
        'are divided, as the usual metric does. Both compare the pixels predicted as a class with '
        'those that belong to it; Dice counts the pixels in both twice.',
        partial(
            draw_class_bars, classes, iou, 'IoU', dots=dice, dots_label='Dice', by_value=by_value
        ),
        Table(header, rows),
        'predictions',
    )


def _image_picture(name: str, shown: _Shown, predicted: Predicted, how: str) -> Picture:
    areas, classes = shown.areas, predicted.classes
    header = ('class', 'IoU (percent)', 'pixels in truth', 'pixels predicted', 'pixels in both')
    rows = [
        (classes[i], _known(areas.iou[i]), *(int(n[i]) for n in (areas.truth, areas.predicted)))
        + (int(areas.both[i]),)
        for i in np.flatnonzero(areas.truth + areas.predicted).tolist()
    ]
    why = (
        f'one of the worst of {predicted.described} (lowest mean IoU over the classes in an image)'
        if how == 'worst'
        else 'chosen by name'
    )
    file = Path(shown.path).name
    return Picture(
        name,
        f'Prediction of {file}',
        f'{file}, {why}: mean IoU {areas.mean_iou:.1f} %, {shown.share_wrong:.1f} % of the pixels '
        'wrong. Pixels without a truth are light grey and do not count.',
        partial(_draw_image, shown, predicted),
        Table(header, rows),
        'predictions',
    )


def _draw_image(shown: _Shown, predicted: Predicted) -> Figure:
    height, width = shown.truth.shape
    figure = new_figure(7.5, 7.5 * height / width + 1.1)
    panels = figure.subplots(2, 2)
    image = _read_image(shown.path, (width, height))
    colours = _colours(predicted)
    grey = np.repeat(image.mean(2, keepdims=True), 3, axis=2) * 0.5 + 0.45
    wrong = (shown.truth >= 0) & (shown.truth != shown.predicted)
    from matplotlib.colors import to_rgb

    grey[wrong] = to_rgb(FRAME)
    grey[shown.truth < 0] = NEITHER
    titles = ('Image', 'Truth', 'Prediction', f'Errors: {shown.share_wrong:.1f} % of the pixels')
    maps = (image, colours[shown.truth], colours[shown.predicted], grey)
    for axes, title, pixels in zip(panels.flat, titles, maps, strict=True):
        axes.imshow(pixels)
        axes.set_title(title)
        axes.set_axis_off()
    _name_classes(figure, shown, predicted, colours)
    return figure


def _name_classes(figure: Figure, shown: _Shown, predicted: Predicted, colours: np.ndarray) -> None:
    """A legend of the largest classes in the image."""
    from matplotlib.patches import Patch

    size = shown.areas.truth + shown.areas.predicted
    largest = sorted(np.flatnonzero(size).tolist(), key=lambda i: -size[i])
    patches = [
        Patch(color=colours[i], label=shortened(predicted.classes[i])) for i in largest[:NAMED]
    ]
    if len(largest) > NAMED:
        label = f'and {len(largest) - NAMED} smaller ones'
        patches.append(Patch(facecolor='none', edgecolor='none', label=label))
    patches.append(Patch(color=FRAME, label='error'))
    figure.legend(handles=patches, loc='outside lower center', ncols=5, handlelength=1)


def _colours(predicted: Predicted) -> np.ndarray:
    """Red, green and blue of each class, 0 to 1, and of no class in the last row (index -1)."""
    if predicted.palette:
        own = np.asarray(predicted.palette, dtype=float)[:, :3] / 255
    else:
        from matplotlib import colormaps

        # Neighbours in the list far apart on the scale.
        at = (np.arange(len(predicted.classes)) * 0.6180339887) % 1
        own = colormaps['turbo'](at)[:, :3]
    return np.concatenate([own, [NEITHER]])


def _read_image(path: str, size: tuple[int, int]) -> np.ndarray:
    """An image, 0 to 1 ``[H, W, 3]``; light grey where its file cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert('RGB').resize(size), dtype=float) / 255
    except (OSError, UnidentifiedImageError):
        return np.full((size[1], size[0], 3), NEITHER[0])


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
