"""The work of ``cdra analyze``: runs in, a folder of pictures and a report out."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.logging import MMLogger

from cdra_mm.errors import ConfigError
from cdra_mm.progress import progress_line

from .comparison import comparison_pictures, name_apart
from .curves import curve_pictures
from .html_report import check_folder, write_report
from .picture import Picture, Saved
from .pictures_of_run import learnt_pictures, plan_pictures
from .predictions_classification import classification_pictures
from .predictions_segmentation import segmentation_pictures
from .regions import Region, regions_of
from .run import Run, read_run
from .summary_text import summary_sections

__all__ = ['analyze']


def analyze(arguments: argparse.Namespace) -> Path:
    """Draws everything and writes the report.

    Raises:
        CDRAError: If an input is wrong; see `read_run` and `check_folder`.
    """
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    if arguments.max_images < 1:
        raise ConfigError(f'--max-images {arguments.max_images}: expected at least 1')
    if len(arguments.runs) > 1 and arguments.matrix:
        raise ConfigError('--matrix names a matrix of one run: give one run, or leave it out')
    runs = name_apart([read_run(path, arguments.config) for path in arguments.runs])
    folder = check_folder(arguments.out)  # before the long work
    regions = {name: regions_of(run) for name, run in runs.items()}
    if len(runs) > 1:
        title = 'Comparison of ' + ', '.join(runs)
        pictures, missing = comparison_pictures(runs, regions)
    else:
        (name, run), *_ = runs.items()
        title = f'What {name} tunes'
        pictures = list(_pictures_of(run, regions[name], arguments))
        missing = list(dict.fromkeys(run.missing))  # both kinds of predictions may say the same
    saved = _save(pictures, folder, arguments.format)
    sections = [(name, summary_sections(run, regions[name])) for name, run in runs.items()]
    page = write_report(folder, title, sections, saved, missing)
    print(f'{page}: {len(saved)} pictures with their numbers')
    for reason in missing:
        print(f'not shown: {reason}')
    return page


def _pictures_of(
    run: Run, regions: list[Region], arguments: argparse.Namespace
) -> Iterator[Picture]:
    yield from plan_pictures(run, regions, arguments.matrix)
    yield from curve_pictures(run)
    yield from learnt_pictures(run, regions)
    if arguments.no_predictions:
        run.missing.append('Predictions were left out, as asked.')
        return
    show = progress_line('predicting', unit='images')
    most, images = arguments.max_images, arguments.images
    yield from segmentation_pictures(run, max_images=most, images=images, show=show)
    yield from classification_pictures(run, max_images=most, show=show)


def _save(pictures: Sequence[Picture], folder: Path, forms: Sequence[str]) -> list[Saved]:
    show, saved = progress_line('drawing', unit='pictures'), list[Saved]()
    for picture in pictures:
        show(len(saved), len(pictures))
        saved.append(picture.save(folder, forms))
        show(len(saved), len(pictures))
    return saved
