"""The commands: `cdra NAME`, and the scripts in tools/ of a checkout.

A command is a module with a docstring (its ``--help``), ``add_arguments(parser)`` and
``main(arguments)``; the arguments also hold ``command_line``, for a record. What a command needs is
imported when it runs, so that ``--help`` loads no torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from cdra_mm.command_line import Parser, cdra, command, run, worded
from cdra_mm.errors import CDRAError, ConfigError
from cdra_mm.version import __version__

__all__ = ['COMMANDS', 'main', 'run_command', 'start']

COMMANDS = {
    'train': 'train a model; adapted where its config says so',
    'test': 'test a checkpoint, adapted or plain',
    'merge': 'make a plain checkpoint, an adapter file, a PEFT folder or ONNX of a checkpoint',
    'predict': 'predict every image of a folder',
    'analyze': 'pictures and a report of what runs tune, cost and give',
    'plan': 'score a backbone and say what would be trained, without training',
    'new': 'write a config for your own images and masks',
    'data prepare': 'fetch, unpack, convert and check a data set',
    'data check': "look at every file of a config's data",
    'convert': 'give weights of another project the names of an OpenMMLab backbone',
}
HELP = ('-h', '--help')


def main() -> None:
    """The program ``cdra``; ends the process."""
    run(lambda: start(sys.argv[1:]))


def run_command(name: str) -> None:
    """The script of one command; ends the process."""
    run(lambda: _run(name, sys.argv[1:]))


def start(words: Sequence[str]) -> None:
    """Runs the command that a command line names.

    Raises:
        ConfigError: If there is no such command.
    """
    if not words or words[0] in HELP:
        print(_overview('', COMMANDS))
        return
    if words[0] == '--version':
        print(f'cdra {__version__}')
        return
    for length in (1, 2):
        name = ' '.join(words[:length])
        if name in COMMANDS:
            _run(name, words[length:])
            return
    group = {name: text for name, text in COMMANDS.items() if name.split()[0] == words[0]}
    if group and (len(words) == 1 or words[1] in HELP):
        print(_overview(f'{words[0]} ', group))
        return
    given = ' '.join(words[:2] if group else words[:1])
    raise ConfigError(
        f'there is no command {given!r}: expected one of {", ".join(group or COMMANDS)} (see '
        f'{cdra()} --help)'
    )


def _run(name: str, words: Sequence[str]) -> None:
    module = import_module(f'{__name__}.{name.replace(" ", "_")}')
    parser = Parser(
        prog=command(name),
        description=worded(module.__doc__ or ''),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    given = argparse.Namespace(command_line=command(name, *words))
    arguments = parser.parse_args(words, given)
    try:
        module.main(arguments)
    except Exception as error:
        if isinstance(error, CDRAError) or 'mmengine' not in sys.modules:
            raise
        fault = _config_fault(error)
        if fault is None:
            raise
        raise fault from error


def _config_fault(error: Exception) -> ConfigError | None:
    from cdra_mm.mm.config_faults import config_fault

    try:
        return config_fault(error)
    except Exception:  # it reads what others have left in their calls; the error itself counts
        return None


def _overview(group: str, commands: dict[str, str]) -> str:
    """What ``--help`` prints without a command."""
    width = max(map(len, commands))
    return '\n'.join(
        [
            f'usage: {cdra()} {group}COMMAND ...',
            '',
            'Fine-tunes vision transformers by touching half a percent of their weights.',
            '',
            *(f'  {name:{width}}  {text}' for name, text in commands.items()),
            '',
            f'{cdra()} {group}COMMAND --help says more of each.',
        ]
    )
