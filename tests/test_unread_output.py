"""A reader who leaves early, as in ``| head -1``, changes nothing of what a command does."""

from __future__ import annotations

import logging
import os
import runpy
import subprocess
import sys
from contextlib import contextmanager

import pytest

from cdra_mm.command_line import run
from cdra_mm.commands import COMMANDS, main
from cdra_mm.unread_output import unread_output_is_dropped

TOOLS = ('benchmark', 'demo', 'mask_table', 'prepare_data', 'stress', 'table4', 'tables', 'train')


@contextmanager
def unread():
    """Stdout is what a process has in ``| head``, once head has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    # It is closed in the end, which fails where a text is left in it.
    with open(writing, 'w') as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'stdout', stream)
        yield
        assert sys.stdout is stream


@pytest.mark.parametrize(
    'words', [[], ['data'], *(name.split() for name in COMMANDS)], ids=' '.join
)
def test_help_of_every_command_ends_well(words, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['cdra', *words, '--help'])
    with unread():
        try:
            main()
        except SystemExit as stop:
            assert not stop.code


@pytest.mark.parametrize('tool', TOOLS)
def test_help_of_every_tool_ends_well(tool, monkeypatch, repository):
    path = repository / 'tools' / f'{tool}.py'
    monkeypatch.setattr(sys, 'argv', [str(path), '--help'])
    monkeypatch.syspath_prepend(path.parent)  # as for a script
    with unread(), pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name='__main__')
    assert not stop.value.code


def test_work_goes_on_and_ends_with_its_own_code():
    done = []

    def work():
        for i in range(3):
            print('x' * 70_000, flush=True)  # more than a pipe takes
            done.append(i)
        raise FileNotFoundError('gone')

    with unread(), pytest.raises(SystemExit) as stop:
        run(work)
    assert done == [0, 1, 2] and stop.value.code == 2


def test_a_log_says_nothing_of_it_on_stderr(capsys):
    with unread(), unread_output_is_dropped():
        handler = logging.StreamHandler(sys.stdout)
        handler.emit(logging.makeLogRecord({'msg': 'step 1'}))
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('options', [[], ['-u']], ids=['buffered', 'unbuffered'])
def test_process_leaves_no_word_on_stderr(options, repository):
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, *options, '-m', 'cdra_mm', '--help']
    try:
        ended = subprocess.run(
            words, cwd=repository, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, '')


def test_a_pipe_that_is_read_gets_every_word():
    reading, writing = os.pipe()
    with open(writing, 'w') as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'stdout', stream)
        print('before')
        with unread_output_is_dropped():
            print('wíthin')
        print('after')
    with open(reading) as end:
        assert end.read() == 'before\nwíthin\nafter\n'


def test_streams_that_are_no_pipes_stay(capsys):
    before = sys.stdout
    with unread_output_is_dropped():
        assert sys.stdout is before
