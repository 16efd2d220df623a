"""docs/methods.md: its table names every method, and its commands build what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmpretrain')

from cdra_mm.methods import METHODS, make_method
from cdra_mm.mm.hook import CDRAHook
from cdra_mm.mm.launch import load_config, prepare_config

from .mm.test_methods_runs import KEEPING, MERGING

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'docs/methods.md').read_text(encoding='utf-8')
HOOK = 'default_hooks.cdra.'
CDRA = METHODS['cdra']()


def sections() -> dict[str, list[list[str]]]:
    """The commands of each code block, as words, by the first two words before it."""
    found: dict[str, list[list[str]]] = {}
    texts = re.split(r'^```(?:python)?$', TEXT, flags=re.MULTILINE)
    for before, block in zip(texts[::2], texts[1::2], strict=False):
        lines = [line for line in block.strip().splitlines() if line.startswith('python ')]
        if not lines:
            continue
        name = ' '.join(before.strip().split('\n\n')[-1].split()[:2]).strip(',:')
        found[name] = [shlex.split(line) for line in lines]
    return found


COMMANDS = [command for commands in sections().values() for command in commands]


def options_of(command: list[str]) -> list[str]:
    return command[command.index('--cfg-options') + 1 :]


def hook_of(command: list[str]) -> CDRAHook:
    """The hook of a command of `tools/train.py`, as the tool builds it."""
    assert command[:2] == ['python', 'tools/train.py'] and command[3] == '--work-dir'
    cfg = prepare_config(load_config(ROOT / command[2], options_of(command)))
    settings = dict(cfg.default_hooks.cdra)
    assert settings.pop('type') == 'cdra_mm.CDRAHook'
    return CDRAHook(**settings)


def test_table_has_one_row_with_a_valid_line_for_every_method():
    rows = re.findall(r'^\| [^|]+ \| `(dict\(.*?\))` \| [^|]+ \| (\w+) \|', TEXT, re.MULTILINE)
    merges = {}
    for line, word in rows:
        config: dict[str, Any] = eval(line, {'dict': dict})
        make_method(config)
        assert config['type'] not in merges
        merges[config['type']] = word
    words = dict.fromkeys(MERGING, 'yes') | dict.fromkeys(KEEPING, 'no')
    assert merges == words | {'linear': 'plain', 'full': 'plain'}
    assert set(merges) == set(METHODS)


def test_every_row_of_the_ablations_has_a_command_and_a_folder_of_its_own():
    counts = {name: len(commands) for name, commands in sections().items()}
    tables = {'Table 4': 6, 'Table 5': 4, 'Table 6': 4, 'Table 7': 5}
    assert counts == {**tables, 'At equal': 1, '## Our': 10}
    assert len({command[4] for command in COMMANDS}) == len(COMMANDS)


@pytest.mark.parametrize('command', COMMANDS, ids=[command[4] for command in COMMANDS])
def test_command_builds_the_hook_that_it_asks_for(command):
    hook = hook_of(command)
    asked = dict(option.removeprefix(HOOK).split('=') for option in options_of(command))
    kind = asked.pop('method.type', 'cdra')
    assert hook.method.name == kind
    for name, value in asked.items():
        name = name.removeprefix('method.')
        place = hook.method if name in vars(hook.method) else hook.planner
        held = getattr(place, name)
        text = f'[{",".join(held)}]' if isinstance(held, list) else str(held)
        assert text == value, name
    changed = {k for k in vars(CDRA) if kind == 'cdra' and getattr(hook.method, k) != vars(CDRA)[k]}
    decided = {'start'} if 'allocation' in asked else set()  # by the allocation
    assert changed <= {*asked, 'budget_percent'} | decided


def test_commands_of_one_table_differ():
    for commands in sections().values():
        kinds = [(hook.method, hook.planner.statistic) for hook in map(hook_of, commands)]
        assert len(set(map(str, kinds))) == len(kinds)
