#!/usr/bin/env python
"""Fetch, unpack, convert and check a data set.

    python tools/prepare_data.py demo            data/demo
    python tools/prepare_data.py ade20k          data/ade
    python tools/prepare_data.py voc             data
    python tools/prepare_data.py camvid          data/camvid
    python tools/prepare_data.py vtab            data/vtab-1k
    python tools/prepare_data.py cub             data/fgvc
    python tools/prepare_data.py oxford_flowers  data/fgvc
    python tools/prepare_data.py stanford_dogs   data/fgvc
    python tools/prepare_data.py nabirds         data/fgvc --archive nabirds.tar.gz
    python tools/prepare_data.py stanford_cars   data/fgvc --archive folder_of_its_four_files
    python tools/prepare_data.py --config my_config.py --check

The folders are those of the shipped configs. A download that breaks off goes on where it stopped
when the command is run again; nothing that exists is overwritten.

Downloads are compared with a checksum where one is known (cdra_mm/data/sources.py says where);
otherwise the CRCs in the archive and the number of files are checked, as with --archive.

NABirds is sent by its publisher on request and the addresses of Stanford Cars are gone: they need
--archive. The validation splits of cub, nabirds, stanford_dogs and stanford_cars are a tenth of the
training images, drawn with a fixed seed; the train.json, val.json and test.json of Visual Prompt
Tuning differ in the draw and are kept when they lie in the data set's folder, or in the folder that
--archive names.

--check decodes every image and label map, on all cores, and writes nothing: 22 thousand images of
ADE20K take minutes. A folder of VTAB-1k may also be that of a single task. With --config it reads
every file that a config's training, validation and tests would read, through the config's own
loading steps: sizes, classes by split, labels that the head cannot take, files that cannot be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cdra_mm.command_line import run
from cdra_mm.data import SOURCES, inspect_data, prepare
from cdra_mm.errors import DataError


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
    parser.add_argument('name', metavar='NAME', nargs='?', help=f'one of: {", ".join(SOURCES)}')
    parser.add_argument('root', metavar='ROOT', nargs='?', type=Path, help='folder of the data set')
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
    parser.add_argument(
        '--workers',
        type=int,
        metavar='COUNT',
        help='with --config: processes that read; default: one for each core, at most 8',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='only look at every file that is there, count images and classes and name what is '
        'wrong; exit 0 when the data set is complete and good, 2 when it is not',
    )
    parser.add_argument(
        '--archive',
        metavar='PATH',
        type=Path,
        help="the publisher's archive, when it was fetched by other means; for a data set of "
        'several files the folder that holds them under their own names',
    )
    args = parser.parse_args(argv)
    if args.config is not None:
        if not args.check or args.name is not None:
            parser.error('--config goes with --check, and without NAME and ROOT')
        if args.workers is not None and args.workers < 0:
            parser.error(f'--workers {args.workers}: expected a count')
    elif args.root is None:
        parser.error('expected NAME and ROOT, or --config CONFIG --check')
    elif args.cfg_options or args.workers is not None:
        parser.error('--cfg-options and --workers go with --config')
    if args.check and args.archive is not None:
        parser.error('--check and --archive do not go together')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.config is not None:
        report = check_config(args.config, args.cfg_options, args.workers)
        lines, problem = report.lines(), report.problem()
    elif args.check:
        inspection = inspect_data(args.name, args.root)
        lines, problem = inspection.lines(), inspection.problem()
        if inspection.report.absent_parts():
            problem += f'; make it with: python tools/prepare_data.py {args.name} {args.root}'
    else:
        report = prepare(args.name, args.root, archive=args.archive)
        lines, problem = report.lines(), report.problem()
    print('\n'.join(lines))
    if problem:
        raise DataError(problem)
    print('complete' if args.config is None else 'good')


def check_config(config: str, overrides: Sequence[str], workers: int | None):
    """Looks at the data of a config; OpenMMLab is loaded for this alone."""
    from cdra_mm.mm.data_check import check_config_data
    from cdra_mm.mm.launch import load_config, prepare_config

    return check_config_data(prepare_config(load_config(config, overrides)), workers=workers)


if __name__ == '__main__':
    run(main)
