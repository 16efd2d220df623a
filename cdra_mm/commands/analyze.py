"""Pictures and a report of what a run tunes, what it cost and what it gave.

cdra analyze work_dirs/demo --out report
cdra analyze work_dirs/a work_dirs/b --out comparison

The report is DIR/report.html, one file that opens without a network; beside it lie the
pictures (PNG, SVG) and their numbers (CSV). A checkpoint, an adapter file or a plan will do
instead of a work directory: the report says what it cannot show then.
"""

from __future__ import annotations

import argparse

from cdra_mm.heavy_imports import heavy_imports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        'runs',
        nargs='+',
        metavar='RUN',
        help='a work directory, a checkpoint (.pth), an adapter file (.safetensors) or a plan '
        '(.json); several are compared',
    )
    parser.add_argument(
        '--config',
        metavar='CONFIG',
        help='the config of the run, for a checkpoint that is named alone: what a checkpoint holds '
        'of it is text, and never run',
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='where the report goes')
    parser.add_argument(
        '--matrix',
        metavar='NAME',
        help='the matrix shown before and after reorganising (default: one of median size)',
    )
    parser.add_argument(
        '--format',
        nargs='+',
        choices=['png', 'svg'],
        default=['png', 'svg'],
        help='files to write of each picture (default: both)',
    )
    parser.add_argument(
        '--no-predictions',
        action='store_true',
        help='leave the predictions out: they need the data set and run the model',
    )
    parser.add_argument(
        '--max-images',
        type=int,
        default=200,
        metavar='N',
        help='validation images to predict at most (default: 200)',
    )
    parser.add_argument(
        '--images',
        nargs='+',
        default=[],
        metavar='NAME',
        help='validation images to show, by file name (default: the worst ones)',
    )


def main(arguments: argparse.Namespace) -> None:
    """Writes the report."""
    with heavy_imports():
        from cdra_mm.analysis.full_report import analyze

    analyze(arguments)
