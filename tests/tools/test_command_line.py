"""How a command ends, and how it is worded."""

from __future__ import annotations

import sys

import pytest

from cdra_mm.command_line import command, one_line, program, run, script, worded
from cdra_mm.core import ConfigError, DataError


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (ConfigError('a\n  b'), 2, 'error: a b'),
        (FileNotFoundError(2, 'Gone', 'x.png'), 2, "error: [Errno 2] Gone: 'x.png'"),
        (ModuleNotFoundError('no mmcv', name='mmcv'), 2, 'error: no mmcv'),
        (KeyboardInterrupt(), 130, 'interrupted'),
    ],
)  # fmt: skip
def test_wrong_input_ends_in_one_line(error, code, line, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == code
    assert capsys.readouterr().err == line + '\n'


@pytest.mark.parametrize('error', [ValueError('bug'), ModuleNotFoundError('x', name='x')])
def test_bug_keeps_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        run(main)


def test_message_of_a_worker_is_its_last_line():
    text = 'Caught DataError in worker 0.\nOriginal Traceback (most recent call last):\n  x\n'
    assert one_line(DataError(text + 'cdra_mm.errors.DataError: a.png: gone')) == 'a.png: gone'


@pytest.mark.parametrize(
    ('started', 'folder', 'expected', 'torchrun', 'shell'),
    [
        ('/env/bin/cdra', '.', 'cdra data prepare', '-m cdra_mm train', ''),
        ('tools/train.py', '.', 'python tools/prepare_data.py', 'tools/train.py', 'tools/a.sh'),
        ('train.py', 'tools', 'python prepare_data.py', 'train.py', 'a.sh'),
        ('../tools/demo.py', 'docs', 'python ../tools/prepare_data.py', '../tools/train.py',
         '../tools/a.sh'),
        ('cdra_mm/__main__.py', '.', 'python -m cdra_mm data prepare', '-m cdra_mm train', ''),
        ('elsewhere/tools/train.py', '.', 'cdra data prepare', '-m cdra_mm train', ''),
        ('tests/conftest.py', '.', 'cdra data prepare', '-m cdra_mm train', ''),
    ],
)  # fmt: skip
def test_commands_are_worded_as_the_process_was_started(
    started, folder, expected, torchrun, shell, repository, monkeypatch
):
    monkeypatch.chdir(repository / folder)
    monkeypatch.setattr(sys, 'argv', [started, 'x'])
    assert command('data prepare', 'demo', 'a b') == f"{expected} demo 'a b'"
    assert (program('train'), script('a.sh')) == (torchrun, shell)
    assert worded('do cdra data prepare NAME, not cdra x') == f'do {expected} NAME, not cdra x'


def test_check_of_a_config_has_options_in_the_script(monkeypatch, repository):
    monkeypatch.chdir(repository)
    assert command('data check', 'a.py') == 'cdra data check a.py'
    monkeypatch.setattr(sys, 'argv', ['tools/train.py'])
    assert command('data check', 'a.py') == 'python tools/prepare_data.py --check --config a.py'


def test_no_message_names_a_script_by_itself(repository):
    """`command` words them: an installed user has no tools folder."""
    told = []
    for path in sorted((repository / 'cdra_mm').rglob('*.py')):
        room = path.relative_to(repository / 'cdra_mm').parts[0]
        if room not in ('tables', 'benchmark'):  # laboratory, of a checkout alone
            lines = path.read_text().splitlines()
            told += [f'{path}:{n}' for n, line in enumerate(lines, 1) if 'python tools/' in line]
    # The docstring of `command` itself.
    assert [t for t in told if 'command_line.py' not in t] == []
