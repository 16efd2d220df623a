#!/usr/bin/env python
"""Fetch, unpack, convert and check a data set, or check the data of a config.

python tools/prepare_data.py NAME ROOT [--archive PATH]
python tools/prepare_data.py NAME ROOT --check
python tools/prepare_data.py --config CONFIG --check [--workers COUNT]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cdra_mm.command_line import Parser, run, worded
from cdra_mm.commands import data_check, data_prepare
from cdra_mm.data import SOURCES


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog='prepare_data.py',
        description=f'{__doc__}\n{worded(data_prepare.__doc__ or "")}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('name', metavar='NAME', nargs='?', help=f'one of: {", ".join(SOURCES)}')
    parser.add_argument('root', metavar='ROOT', nargs='?', type=Path, help='folder of the data set')
    data_prepare.add_options(parser)
    parser.add_argument(
        '--config', metavar='CONFIG', help='with --check: look at the data of this config instead'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY=VALUE',
        help='with --config: change settings of the config',
    )
    data_check.add_options(parser)
    args = parser.parse_args(argv)
    if args.config is not None:
        if not args.check or args.name is not None:
            parser.error('--config goes with --check, and without NAME and ROOT')
    elif args.root is None:
        parser.error('expected NAME and ROOT, or --config CONFIG --check')
    elif args.cfg_options or args.workers is not None:
        parser.error('--cfg-options and --workers go with --config')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    (data_prepare if args.config is None else data_check).main(args)


if __name__ == '__main__':
    run(main)
