"""The command line of the tables: its options.

Loads neither torch nor OpenMMLab, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse

__all__ = ['parser']


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """The parser; values are checked by `study`."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        'table',
        help='name of a file in configs/tables such as vtab, path of a grid file, or cost',
    )
    made.add_argument('--out', metavar='DIR', help='results folder (work_dirs/tables/<table>)')
    made.add_argument('--methods', nargs='+', metavar='NAME', help='rows of the table (all)')
    made.add_argument('--tasks', nargs='+', metavar='NAME', help='tasks of the table (all)')
    made.add_argument('--seeds', nargs='+', metavar='N', help="seeds (the table's own)")
    made.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY=VALUE',
        help='settings of the configs for every run, put over those of the grid; what is given is '
        'not searched for',
    )
    made.add_argument(
        '--no-search',
        action='store_true',
        help="take the configs' own settings instead of choosing them on the validation split",
    )
    made.add_argument(
        '--search-seeds',
        type=int,
        metavar='N',
        help="how many of the seeds, the first, choose settings by their mean (the table's own, 1)",
    )
    what = made.add_mutually_exclusive_group()
    what.add_argument('--dry-run', action='store_true', help='list the runs, start none')
    what.add_argument('--show', action='store_true', help='print the table of what is done so far')
    made.add_argument(
        '--format',
        choices=['terminal', 'markdown', 'csv', 'latex'],
        default='terminal',
        help='how the table is printed; all four are written into the results folder',
    )
    made.add_argument(
        '--report',
        action='store_true',
        help='print the report over tasks in place of the table: means, ranks, differences in '
        'pairs, choices at an edge; report.md, report.json and frontier.png are written anyway',
    )
    made.add_argument(
        '--against',
        metavar='NAME',
        help='row that the report compares all others with (the one of the best mean rank)',
    )
    made.add_argument(
        '--on',
        choices=['test', 'validation'],
        default='test',
        help='images that the figures are of, in a study in memory; validation: what rates were '
        'chosen on, printed and not written (test)',
    )
    place = made.add_argument_group('where the runs go')
    place.add_argument(
        '--devices', nargs='+', metavar='ID', help="GPUs, such as 0 1, or 'cpu' (all visible GPUs)"
    )
    place.add_argument(
        '--jobs', type=int, default=1, metavar='N', help='runs at a time on each device (1)'
    )
    place.add_argument(
        '--launcher',
        metavar='COMMAND',
        help="put before the command of every run: 'srun --gres=gpu:1', or 'torchrun --standalone "
        "--nproc_per_node=4 --no-python'; --jobs is then the number of runs at a time",
    )
    place.add_argument(
        '--processes',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='--launcher of train.py and test.py: pytorch with torchrun',
    )
    place.add_argument(
        '--cold',
        action='store_true',
        help='start an interpreter for every training and test, as under a launcher; otherwise '
        'they are forked from one that has imported what all of them need',
    )
    place.add_argument(
        '--timeout', type=float, metavar='MINUTES', help='end a training or test after that long'
    )
    place.add_argument(
        '--drop-checkpoints',
        action='store_true',
        help='delete the checkpoints that each run has written when it is done; its adapter file '
        'and what else lies there stay',
    )
    cost = made.add_argument_group('for cost alone')
    cost.add_argument('--model', metavar='NAME', help='ViT-Ti, ViT-S, ... (CPU: ViT-S, GPU: ViT-B)')
    cost.add_argument('--batch', type=int, metavar='N', help='images at a time (CPU: 8, GPU: 32)')
    return made
