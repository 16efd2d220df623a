"""What the command lines share: their words, common options, and how a wrong input ends.

Importing this module loads neither torch nor OpenMMLab, so ``--help`` is quick and
a missing OpenMMLab can be told in one line.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from cdra_mm.unread_output import unread_output_is_dropped

__all__ = [
    'Parser',
    'add_config_arguments',
    'add_launcher_arguments',
    'cdra',
    'command',
    'one_line',
    'program',
    'run',
    'script',
    'worded',
]

# The script of a checkout behind each command, and what makes it do that.
SCRIPTS = {
    'train': 'train.py',
    'test': 'test.py',
    'merge': 'merge.py',
    'analyze': 'analyze.py',
    'predict': 'predict.py',
    'new': 'new_config.py',
    'data prepare': 'prepare_data.py',
    'data check': 'prepare_data.py --check --config',
    'convert': 'convert_weights.py',
    'plan': 'plan.py',
}
PACKAGE = Path(__file__).resolve().parent
NAMED = re.compile(rf'\bcdra ({"|".join(SCRIPTS)})\b')

WRONG_INPUT = 2
INTERRUPTED = 130
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
OPENMMLAB = ('mmengine', 'mmcv', 'mmseg', 'mmpretrain')


def command(name: str, *arguments: object) -> str:
    """A command line as the user of this process can type it.

    Started by a script of a checkout (``python tools/train.py``) it names the script that does the
    same, in the folder that the user named; started by ``python -m cdra_mm`` that; otherwise
    ``cdra``.

    Args:
        name: A key of ``SCRIPTS``.
        arguments: What follows, quoted for a shell where it has to be.

    Example:
        >>> command('data prepare', 'demo', 'my data')
        "cdra data prepare demo 'my data'"
    """
    folder = _script_folder()
    if folder is not None:
        words = f'python {folder / SCRIPTS[name]}'
    else:
        words = f'{cdra()} {name}'
    return ' '.join([words, *(shlex.quote(str(word)) for word in arguments)])


def cdra() -> str:
    """The program of all commands, as the user of this process can type it."""
    started = Path(sys.argv[0] if sys.argv else '').resolve()
    return f'python -m {PACKAGE.name}' if started == PACKAGE / '__main__.py' else 'cdra'


def program(name: str) -> str:
    """What torchrun or a Python interpreter is given to start a command.

    Example:
        >>> program('train')
        '-m cdra_mm train'
    """
    folder = _script_folder()
    return f'-m {PACKAGE.name} {name}' if folder is None else str(folder / SCRIPTS[name])


def script(name: str) -> str:
    """Another script of the checkout that this process was started from; '' outside of one."""
    folder = _script_folder()
    return '' if folder is None else str(folder / name)


def worded(text: str) -> str:
    """A text with every ``cdra NAME`` in it as the user can type it; see `command`."""
    return NAMED.sub(lambda found: command(found[1]), text)


def _script_folder() -> Path | None:
    """The folder of scripts that this process was started from, as it was named."""
    started = Path(sys.argv[0] if sys.argv else '')
    ours = started.suffix == '.py' and started.resolve().parent == PACKAGE.parent / 'tools'
    return started.parent if ours else None


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with that line and exit code 2."""
        self.exit(WRONG_INPUT, f'error: {message} (see {self.prog} --help)\n')


def run(main: Callable[[], object]) -> None:
    """Runs the main function of a command and ends the process.

    What the user can mend (`CDRAError`, a file that is not there, a full disk, a
    missing OpenMMLab) becomes one line ``error: ...`` on stderr and exit code 2 (a run that
    has diverged: 1), an interruption exit code 130. Anything else is a bug and keeps its traceback.
    A reader of the output who leaves early (``| head``) changes nothing of what is done.
    """
    with unread_output_is_dropped():
        _run(main)


def _run(main: Callable[[], object]) -> None:
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
    parser.add_argument(
        'config',
        help='config file of an mmseg or mmpretrain model, or the name of a shipped one '
        '(cdra/dinov2_ade20k)',
    )
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
