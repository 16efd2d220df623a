"""Fetch, unpack, convert and check a data set.

    cdra data prepare demo            data/demo
    cdra data prepare ade20k          data/ade
    cdra data prepare voc             data
    cdra data prepare camvid          data/camvid
    cdra data prepare vtab            data/vtab-1k
    cdra data prepare cub             data/fgvc
    cdra data prepare oxford_flowers  data/fgvc
    cdra data prepare stanford_dogs   data/fgvc
    cdra data prepare nabirds         data/fgvc --archive nabirds.tar.gz
    cdra data prepare stanford_cars   data/fgvc --archive folder_of_its_four_files

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
ADE20K take minutes. A folder of VTAB-1k may also be that of a single task.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cdra_mm.command_line import command
from cdra_mm.data import SOURCES, inspect_data, prepare
from cdra_mm.errors import ConfigError, DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument('name', metavar='NAME', help=f'one of: {", ".join(SOURCES)}')
    parser.add_argument('root', metavar='ROOT', type=Path, help='folder of the data set')
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--check`` and ``--archive``."""
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


def main(args: argparse.Namespace) -> None:
    """Makes the data set, or looks at it."""
    if args.check and args.archive is not None:
        raise ConfigError('--check and --archive do not go together')
    if args.check:
        inspection = inspect_data(args.name, args.root)
        lines, problem = inspection.lines(), inspection.problem()
        if inspection.report.absent_parts():
            problem += f'; make it with: {command("data prepare", args.name, args.root)}'
    else:
        report = prepare(args.name, args.root, archive=args.archive)
        lines, problem = report.lines(), report.problem()
    print('\n'.join(lines))
    if problem:
        raise DataError(problem)
    print('complete')
