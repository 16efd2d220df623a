"""The program `cdra`: what it lists, whom it calls, and that its help loads no torch."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from cdra_mm.command_line import SCRIPTS
from cdra_mm.commands import COMMANDS, start
from cdra_mm.errors import ConfigError

NOTHING_HEAVY = (
    'import sys\n'
    'from cdra_mm.commands import start\n'
    'try:\n    start(sys.argv[1:])\n'
    'except SystemExit as stop:\n    assert not stop.code\n'
    'heavy = {"torch", "mmengine", "mmseg", "mmpretrain", "matplotlib"} & set(sys.modules)\n'
    'assert not heavy, heavy\n'
)


def test_every_command_has_a_script_and_every_script_a_command(repository):
    assert sorted(COMMANDS) == sorted(SCRIPTS)
    for script in SCRIPTS.values():
        assert (repository / 'tools' / script.split()[0]).is_file()


@pytest.mark.parametrize('words', [[], ['--help'], ['data'], ['data', '-h'], ['--version']])
def test_overview_ends_well(words, capsys):
    start(words)
    out = capsys.readouterr().out
    assert ('data check' in out) == (words != ['--version'])


@pytest.mark.parametrize('name', COMMANDS)
def test_help_of_a_command_says_its_line(name, capsys):
    with pytest.raises(SystemExit) as stop:
        start([*name.split(), '--help'])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert out.startswith(f'usage: cdra {name} [-h]')
    assert (
        import_module(f'cdra_mm.commands.{name.replace(" ", "_")}').__doc__.splitlines()[0] in out
    )


@pytest.mark.parametrize(
    'words',
    [
        ['--help'],
        *([*name.split(), '--help'] for name in ('train', 'new', 'analyze', 'data check')),
    ],
    ids=' '.join,
)
def test_help_loads_no_torch(words, repository):
    run = subprocess.run(
        [sys.executable, '-c', NOTHING_HEAVY, *words],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_data_are_prepared_without_torch(repository, tmp_path):
    pytest.importorskip('sklearn', reason='the demo data need scikit-learn')
    run = subprocess.run(
        [sys.executable, '-c', NOTHING_HEAVY, 'data', 'prepare', 'demo', str(tmp_path / 'd')],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith('complete\n')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['tain'], "no command 'tain': expected one of train, test"),
        (['data', 'chek', 'x'], "no command 'data chek': expected one of data prepare, data check"),
        (['--force'], "no command '--force'"),
    ],
)
def test_unknown_command_is_named_with_those_that_are_there(words, message):
    with pytest.raises(ConfigError, match=message):
        start(words)


def test_wrong_words_of_a_command_end_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        start(['predict', 'a.py', 'b.pth', 'images', '--out', 'x', '--top', '0'])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == 'error: argument --top: 0: expected 1 or more (see cdra predict --help)'


def test_data_are_checked_by_the_name_of_a_shipped_config(tmp_path, monkeypatch):
    pytest.importorskip('mmseg')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match='--workers -1: expected a count'):
        start(['data', 'check', 'cdra/demo', '--workers', '-1'])
    with pytest.raises(ConfigError, match=r'config cdra/dem does not exist.*cdra/\{deit_tiny'):
        start(['data', 'check', 'cdra/dem'])
