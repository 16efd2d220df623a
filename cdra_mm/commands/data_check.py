"""Looks at every file that a config's training, validation and tests would read.

    cdra data check cdra/demo
    cdra data check mine.py --workers 4

Each is read through the config's own loading steps: sizes, classes by split, labels that the head
cannot take, files that cannot be read. Nothing is written. Exit status: 0 when all is good, 2 when
it is not.
"""

from __future__ import annotations

import argparse

from cdra_mm.command_line import add_config_arguments
from cdra_mm.errors import ConfigError, DataError
from cdra_mm.heavy_imports import heavy_imports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_config_arguments(parser)
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--workers``."""
    parser.add_argument(
        '--workers',
        type=int,
        metavar='COUNT',
        help="processes that read a config's data; default: one for each core, at most 8",
    )


def main(args: argparse.Namespace) -> None:
    """Looks, and ends with the first thing that is wrong."""
    if args.workers is not None and args.workers < 0:
        raise ConfigError(f'--workers {args.workers}: expected a count')

    with heavy_imports():
        from cdra_mm.mm.data_check import check_config_data
        from cdra_mm.mm.launch import load_config, prepare_config

    cfg = prepare_config(load_config(args.config, args.cfg_options))
    report = check_config_data(cfg, workers=args.workers)
    print('\n'.join(report.lines()))
    problem = report.problem()
    if problem:
        raise DataError(problem)
    print('good')
