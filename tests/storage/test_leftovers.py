"""What a killed process has left is removed or put back; nothing else is touched."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cdra_mm.storage.leftovers import clear_leftovers


@pytest.fixture(scope='module')
def gone():
    """The number of a process that has ended."""
    words = [sys.executable, '-c', 'import os; print(os.getpid())']
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def test_leftovers_of_dead_processes_are_removed(tmp_path, gone):
    names = [
        f'.iter_4.pth.{gone}.tmp', f'.iter_4.pth.{os.getppid()}.tmp', 'iter_2.pth', '.notes.tmp',
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).write_bytes(b'x')
    said: list[str] = []
    clear_leftovers(tmp_path, said.append)
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])
    assert said == [f'removed {tmp_path / names[0]}: an earlier process was writing it']


def test_a_half_written_folder_is_removed(tmp_path, gone):
    half = tmp_path / f'.lora.{gone}.tmp'
    half.mkdir()
    (half / 'adapter_config.json').write_text('{')
    (tmp_path / 'lora').mkdir()
    clear_leftovers(tmp_path, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ['lora']


@pytest.mark.parametrize('replaced', [False, True])
def test_a_folder_that_was_moved_away_comes_back_unless_it_was_replaced(tmp_path, gone, replaced):
    old = tmp_path / f'.lora.{gone}.old'
    old.mkdir()
    (old / 'a').write_text('old')
    if replaced:
        (tmp_path / 'lora').mkdir()
        (tmp_path / 'lora' / 'a').write_text('new')
    said: list[str] = []
    clear_leftovers(tmp_path, said.append)
    assert [path.name for path in tmp_path.iterdir()] == ['lora']
    assert (tmp_path / 'lora' / 'a').read_text() == ('new' if replaced else 'old')
    assert said[0].startswith('removed' if replaced else 'restored')


def test_a_link_is_removed_and_not_what_it_names(tmp_path, gone):
    (tmp_path / 'mine').mkdir()
    (tmp_path / f'.lora.{gone}.tmp').symlink_to(tmp_path / 'mine')
    clear_leftovers(tmp_path, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ['mine']


def test_what_cannot_be_removed_is_told_and_stops_nothing(tmp_path, gone, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError('not yours')

    (tmp_path / f'.lora.{gone}.tmp').mkdir()
    monkeypatch.setattr('shutil.rmtree', refuse)
    said: list[str] = []
    clear_leftovers(tmp_path, said.append)
    assert len(said) == 1 and said[0].endswith('stays: not yours')
    clear_leftovers(tmp_path / 'missing', pytest.fail)
