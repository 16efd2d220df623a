#!/usr/bin/env python
"""Fetch, unpack and check a data set.

    python tools/prepare_data.py demo    data/demo
    python tools/prepare_data.py ade20k  data/ade
    python tools/prepare_data.py voc     data
    python tools/prepare_data.py camvid  data/camvid

The folders are those of the shipped configs. A download that breaks off goes on where it stopped
when the command is run again; nothing that exists is overwritten.

Downloads of ADE20K and VOC are compared with a known checksum. None is published for CamVid: the
CRCs in its archive and the number of files are checked, as with an archive given by --archive.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cdra_mm.command_line import run
from cdra_mm.core.errors import DataError
from cdra_mm.data import SOURCES, check, prepare


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'error: {message} (see --help)\n')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _Parser(
        prog='prepare_data.py',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('name', metavar='NAME', help=f'one of: {", ".join(SOURCES)}')
    parser.add_argument('root', metavar='ROOT', type=Path, help='folder of the data set')
    parser.add_argument(
        '--check',
        action='store_true',
        help='only count what is there; exit 0 when it is complete, 2 when it is not',
    )
    parser.add_argument(
        '--archive',
        metavar='FILE',
        type=Path,
        help="the publisher's archive, when it was fetched by other means",
    )
    args = parser.parse_args(argv)
    if args.check and args.archive is not None:
        parser.error('--check and --archive do not go together')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.check:
        report = check(args.name, args.root)
        hint = f'; make it with: python tools/prepare_data.py {args.name} {args.root}'
    else:
        report = prepare(args.name, args.root, archive=args.archive)
        hint = ''
    print('\n'.join(report.lines()))
    if not report.complete:
        raise DataError(report.problem() + hint)
    print('complete')


if __name__ == '__main__':
    run(main)
