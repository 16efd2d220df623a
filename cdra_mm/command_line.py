"""What the command lines share: common options, and how a wrong input ends.

Importing this module loads neither torch nor OpenMMLab, so ``--help`` is quick and
a missing OpenMMLab can be told in one line.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator

__all__ = ['add_config_arguments', 'add_launcher_arguments', 'one_line', 'run']

WRONG_INPUT = 2
INTERRUPTED = 130
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
OPENMMLAB = ('mmengine', 'mmcv', 'mmseg', 'mmpretrain')


def run(main: Callable[[], object]) -> None:
    """Runs the main function of a tool and ends the process.

    What the user can mend (`CDRAError`, a file that is not there, a full disk, a
    missing OpenMMLab) becomes one line ``error: ...`` on stderr and exit code 2 (a run that
    has diverged: 1), an interruption exit code 130. Anything else is a bug and keeps its traceback.

    Args:
        main: Takes nothing; what it returns is ignored.
    """
    try:
        main()
    except KeyboardInterrupt as interrupt:
        print(': '.join(['interrupted', *map(str, interrupt.args)]), file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            remedy = 'make room and run the same command again, a training with --resume'
            print(f'error: {one_line(error)}: {remedy}', file=sys.stderr)
            sys.exit(WRONG_INPUT)
        if not _is_wrong_input(error):
            raise
        print(f'error: {one_line(error)}', file=sys.stderr)
        sys.exit(getattr(error, 'exit_code', WRONG_INPUT))


def one_line(error: BaseException) -> str:
    r"""The message of an error without line breaks.

    A data loader's worker sends its whole traceback as the message; of that only
    the last line counts, which is ``package.Error: message``.

    Example:
        >>> one_line(ValueError('first\n  second'))
        'first second'
        >>> one_line(ValueError('Caught\nOriginal Traceback:\n x\na.Error: no file'))
        'no file'
    """
    text = str(error).strip() or type(error).__name__
    if 'Original Traceback' in text:
        text = text.splitlines()[-1].partition(': ')[2] or text.splitlines()[-1]
    return ' '.join(text.split())


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds CONFIG and ``--cfg-options``."""
    parser.add_argument('config', help='config file of an mmseg or mmpretrain model')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY=VALUE',
        help='change settings of the config, for example train_cfg.max_iters=100; '
        'lists as key="[a,b]", tuples as key="(a,b)", without spaces',
    )


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--work-dir``, ``--launcher`` and ``--local-rank``."""
    parser.add_argument(
        '--work-dir', help='where logs and results go (default: ./work_dirs/<name of the config>)'
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how several processes are started; pytorch: by torchrun',
    )
    # Given by launchers of old, torchrun sets the environment variable itself.
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)


def set_local_rank(args: argparse.Namespace) -> None:
    """Hands ``--local-rank`` on in the environment, where mmengine looks for it."""
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))


def _is_wrong_input(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError):
        return True
    if isinstance(error, ImportError):
        return any(getattr(link, 'name', None) in OPENMMLAB for link in _chain(error))
    errors = sys.modules.get('cdra_mm.errors')
    return errors is not None and isinstance(error, errors.CDRAError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
