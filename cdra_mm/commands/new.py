"""Writes a config for your own images and masks, which trains as it is.

cdra new data/mine/images data/mine/masks mine.py --classes background crack rust
cdra train mine.py

It looks at every file: which mask is whose, sizes, channels, what values the masks hold and how
often. Sub-folders called train, val and test are splits; without a val folder a share of the
training images is drawn, and images that belong together (tiles, slices, frames) stay together.
On a terminal it asks for what it cannot know; elsewhere, or with --yes, it takes the defaults.
Your files are only read: masks that OpenMMLab cannot read (0 and 255, colours) are written anew
into a new folder where --convert-masks names one. See docs/new_config.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cdra_mm.command_line import command
from cdra_mm.heavy_imports import heavy_imports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument('images', type=Path, metavar='IMAGES', help='folder of the images')
    parser.add_argument('masks', type=Path, metavar='MASKS', help='folder of the masks')
    parser.add_argument('out', type=Path, metavar='OUT.py', help='the config to write')
    _add_label_options(parser.add_argument_group('what the masks mean'))
    _add_split_options(parser.add_argument_group('pairs and splits'))
    _add_model_options(parser.add_argument_group('model and run'))
    parser.add_argument('--yes', action='store_true', help='ask nothing: take the defaults')
    parser.add_argument('--force', action='store_true', help='replace OUT.py where it exists')


def _add_label_options(group: Any) -> None:
    group.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='names in the order of the values; or NAME=VALUE for each, where VALUE is a number or '
        "'#rrggbb' and a name may come several times",
    )
    group.add_argument(
        '--ignore', nargs='+', metavar='VALUE', help='values that are no class (default: 255)'
    )
    group.add_argument(
        '--convert-masks',
        type=Path,
        metavar='NEW_FOLDER',
        help='where masks are written anew that cannot be read as they are',
    )


def _add_split_options(group: Any) -> None:
    group.add_argument(
        '--image-suffix', default='', metavar='END', help='how names of images end, such as .jpg'
    )
    group.add_argument(
        '--mask-suffix', default='', metavar='END', help='how names of masks end, such as _mask.png'
    )
    group.add_argument(
        '--val-share',
        type=float,
        default=0.2,
        metavar='SHARE',
        help='share of the training images for the validation (default: 0.2)',
    )
    group.add_argument('--seed', type=int, default=0, help='of that draw, and of the run')
    group.add_argument(
        '--group-by',
        metavar='REGEX',
        help="what names of images that belong together share, such as '^(patient[0-9]+)_'; '' for "
        'nothing (default: what is left without counters at the end)',
    )


def _add_model_options(group: Any) -> None:
    group.add_argument('--backbone', metavar='NAME', help='dinov2-small, dinov2-base (default) ...')
    group.add_argument(
        '--weights', default='', metavar='FILE', help='a weight file instead; it says its backbone'
    )
    group.add_argument('--head', metavar='NAME', help='linear (default), linear4 or upernet')
    group.add_argument(
        '--crop', type=int, metavar='PIXELS', help="side of crops (default: the weights')"
    )
    group.add_argument(
        '--short-side',
        type=int,
        metavar='PIXELS',
        help='what short sides of images are brought to (default: their median, at least a crop, '
        'at most two)',
    )
    group.add_argument('--batch-size', type=int, metavar='N', help='images a step (default: 8)')
    group.add_argument('--iterations', type=int, default=4000, metavar='N', help='default: 4000')
    group.add_argument(
        '--budget',
        type=float,
        metavar='PERCENT',
        help='share of the backbone that is trained (default: 0.5)',
    )


def _ask(question: str, default: str) -> str:
    answer = input(f'{question}{f" [{default}]" if default else ""}: ').strip()
    return answer or default


def main(args: argparse.Namespace) -> None:
    """Writes the config."""
    with heavy_imports():
        from cdra_mm.mm.new_config import NewConfigOptions, new_config

    others = ('yes', 'convert_masks', 'command_line')
    options = {k: v for k, v in vars(args).items() if k not in others}
    wanted = NewConfigOptions(
        **options,
        convert=args.convert_masks,
        command=args.command_line,
    )
    talks = sys.stdin.isatty() and sys.stdout.isatty() and not args.yes
    out = new_config(wanted, ask=_ask if talks else None)
    print(f'written and tried: {out}')
    print(f'train with: {command("train", out)}')
