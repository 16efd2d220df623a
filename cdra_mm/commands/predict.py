"""Predicts every image of a folder with an mmseg or mmpretrain model, adapted or plain.

cdra predict cdra/demo work_dirs/demo/iter_300.pth images --out predicted
cdra predict CONFIG merged.pth images --out predicted --overlays

A segmentor writes DIR/masks, a PNG of class ids for each image (8 bits, 16 with more than 256
classes), and DIR/shares.csv, the share of each class in its pixels. A classifier writes
DIR/labels.csv, labels with scores. --overlays adds DIR/overlays, the images with what was
predicted. Folders are searched with all below them and keep their names; of a.jpg and a.png the
masks are a.jpg.png and a.png.png.

Exit status: 0 when every image was predicted, 1 when some could not be read (each is named, the
others are written), 2 when nothing was written for wrong input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cdra_mm.command_line import add_config_arguments
from cdra_mm.heavy_imports import heavy_imports

SOME_SKIPPED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='path or address of the checkpoint')
    parser.add_argument('images', type=Path, help='a folder of images, or one image')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='where they go')
    parser.add_argument(
        '--overlays', action='store_true', help='write the images with their predictions, too'
    )
    parser.add_argument(
        '--top',
        type=_count,
        default=1,
        metavar='K',
        help='of a classifier: how many classes of each image to write (default: 1)',
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ... (default: a GPU if there is one)')
    parser.add_argument('--force', action='store_true', help='replace files that exist')


def main(args: argparse.Namespace) -> None:
    """Predicts; ends the process with 1 where some images were skipped."""
    with heavy_imports():
        from cdra_mm.mm.launch import load_config, prepare_config
        from cdra_mm.mm.prediction import predict_folder

    outcome = predict_folder(
        prepare_config(load_config(args.config, args.cfg_options)),
        args.checkpoint,
        args.images,
        args.out,
        overlays=args.overlays,
        force=args.force,
        device=args.device,
        top=args.top,
    )
    others = f', {outcome.num_others} files that are no images' if outcome.num_others else ''
    skipped = f', {len(outcome.skipped)} skipped' if outcome.skipped else ''
    print(f'{outcome.num_images} images predicted{skipped}{others}: {outcome.table}')
    if outcome.skipped:
        sys.exit(SOME_SKIPPED)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text}: expected 1 or more')
    return int(text)
