"""Every image of a folder predicted, and written where nothing is lost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from mmengine.config import Config
from mmengine.device import get_device
from PIL import Image

from cdra_mm.columns import csv_text
from cdra_mm.data.image_files import ImageFiles, find_images, unique_names
from cdra_mm.errors import ConfigError, DataError
from cdra_mm.progress import logged_progress
from cdra_mm.storage import write_atomically, write_text

from ..backbone import keep_base, wrap_backbone
from ..inputs import check_weight_file, named_downloads
from ..model_kind import is_kind

__all__ = ['Outcome', 'predict_folder']

OVERLAYS = 'overlays'


class Predictor(Protocol):
    """What `predict_folder` asks of a kind of model.

    Attributes:
        folder: Where a file for each image goes, '' where there is none.
        table: Name of the table.
        header: Its columns.
    """

    folder: str
    table: str
    header: tuple[str, ...]

    def load(self, path: Path) -> Any:
        """An image, ready for the model."""

    def predict(self, data: Any) -> Any:
        """The data sample of a loaded image."""

    def write(self, sample: Any, path: Path) -> None:
        """Writes the file for an image, where there is one."""

    def rows(self, name: Path, sample: Any) -> list[tuple[Any, ...]]:
        """Its rows of the table."""

    def picture(self, path: Path, sample: Any) -> Any:
        """The image with its prediction, uint8 ``[H, W, 3]``, red first."""


@dataclass(frozen=True)
class Outcome:
    """What came of a folder.

    Attributes:
        num_images: Images that were predicted.
        skipped: Images that could not be read, with the reason.
        num_others: Files that are no images.
        table: The table that was written.
    """

    num_images: int
    skipped: tuple[tuple[Path, str], ...]
    num_others: int
    table: Path


def predict_folder(
    cfg: Config,
    checkpoint: str,
    images: Path,
    out: Path,
    *,
    overlays: bool = False,
    force: bool = False,
    device: str | None = None,
    top: int = 1,
    tell: Callable[[str], Any] = print,
) -> Outcome:
    """Predicts the images below a folder.

    Args:
        cfg: Config of an mmseg or mmpretrain model, from `launch.prepare_config`.
        checkpoint: Path or address of a checkpoint, adapted or plain.
        images: A folder, or one image.
        out: Where the predictions go. It is not searched for images.
        overlays: Whether to write each image with its prediction in it, too.
        force: Whether files that are there may be replaced.
        device: Where the model runs; by default a GPU where there is one.
        top: Of a classifier: how many classes of each image are told.
        tell: Takes a line of what happens.

    Raises:
        ConfigError: If the config is of another task, or the device is not there.
        CheckpointError: If the checkpoint does not fit, or a file cannot be written.
        DataError: If no image is there or can be read, or a file would be overwritten.
    """
    kind = _predictor(_kind(cfg))
    found = find_images(images, without=out)
    if not found.names:
        raise DataError(
            f'no image below {images} ({len(found.others)} other files): expected files that end '
            'in .jpg, .jpeg, .png, .tif, .tiff, .bmp, .ppm, .pgm or .webp'
        )
    names = unique_names(found.names, '.png')
    folders = [folder for folder in (kind.folder, overlays and OVERLAYS) if folder]
    files = [Path(folder) / name for folder in folders for name in names.values()]
    _refuse_overwriting(found, out, [Path(kind.table), *files], force)
    check_weight_file(checkpoint)
    place = _device(device)
    cfg = copy.deepcopy(cfg)
    keep_base(cfg)
    wrap_backbone(cfg)
    with named_downloads(cfg):
        predictor: Predictor = kind(cfg, checkpoint, place, top)
    show = logged_progress('predicting', tell, unit='images')
    rows: list[tuple[Any, ...]] = []
    skipped: list[tuple[Path, str]] = []
    for done, name in enumerate(found.names):
        show(done, len(found.names))
        path = found.root / name
        try:
            data = predictor.load(path)
        except Exception as error:  # decoders raise anything on a damaged file
            reason = ' '.join(str(error).split())[:200] or type(error).__name__
            skipped.append((path, reason))
            tell(f'skipped: {path} cannot be read ({reason})')
            continue
        sample = predictor.predict(data)
        rows += predictor.rows(name, sample)
        if predictor.folder:
            predictor.write(sample, out / predictor.folder / names[name])
        if overlays:
            picture = Image.fromarray(predictor.picture(path, sample))
            write_atomically(out / OVERLAYS / names[name], partial(picture.save, format='PNG'))
    show(len(found.names), len(found.names))
    if not rows:
        raise DataError(
            f'none of {len(skipped)} images below {images} can be read, the first for: '
            f'{skipped[0][1]}'
        )
    table = out / predictor.table
    write_text(table, csv_text(predictor.header, rows))
    done = len(found.names) - len(skipped)
    return Outcome(done, tuple(skipped), len(found.others), table)


def _kind(cfg: Config) -> str:
    if cfg.get('model') is None:
        raise ConfigError('the config has no model')
    for kind in ('segmentor', 'classifier'):
        if is_kind(cfg, kind):
            return kind
    raise ConfigError(
        f'the model of the config is {cfg.model.get("type")} of {cfg.get("default_scope")}: '
        'expected a segmentor of mmseg or a classifier of mmpretrain'
    )


def _predictor(kind: str) -> Any:
    """The class for a kind of model; its package alone is loaded."""
    if kind == 'segmentor':
        from .segmentation import Segmentation

        return Segmentation
    from .classification import Classification

    return Classification


def _refuse_overwriting(found: ImageFiles, out: Path, files: list[Path], force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f'{out} is a file: name a folder for the predictions')
    there = [out / file for file in files if (out / file).exists()]
    if not there:
        return
    inputs = {(found.root / name).resolve() for name in found.names}
    own = [path for path in there if path.resolve() in inputs]
    if own:
        raise DataError(
            f'{own[0]} is one of the images and would be overwritten: name another --out'
        )
    if not force:
        raise DataError(
            f'{len(there)} of the files to be written exist (first: {there[0]}): name another '
            '--out, or replace them with --force'
        )


def _device(name: str | None) -> str:
    if name is None:
        return str(get_device())
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f'--device {name} cannot be used ({str(error).splitlines()[0]}): expected cpu, or a '
            'device that is there'
        ) from None
    return name
