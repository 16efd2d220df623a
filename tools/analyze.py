"""Pictures and a report of what a run tunes, what it cost and what it gave.

python tools/analyze.py work_dirs/demo --out report
python tools/analyze.py work_dirs/a work_dirs/b --out comparison

The report is DIR/report.html, one file that opens without a network; beside it lie the
pictures (PNG, SVG) and their numbers (CSV). A checkpoint, an adapter file or a plan will do
instead of a work directory: the report says what it cannot show then.
"""

from __future__ import annotations

import argparse

from cdra_mm.command_line import run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    return parser.parse_args()


def main() -> None:
    arguments = parse_args()

    from cdra_mm.analysis.full_report import analyze

    analyze(arguments)


if __name__ == '__main__':
    run(main)
