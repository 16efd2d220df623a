"""Folders are written whole or not at all."""

from __future__ import annotations

import os

import pytest

from cdra_mm.core import CheckpointError, write_folder


@pytest.fixture
def folder_writer(tmp_path):
    """A folder with an old file, and what writes a new one."""
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'old.txt').write_text('old')
    return tmp_path / 'out', lambda folder: (folder / 'new.txt').write_text('new')


def test_folder_is_replaced_whole(folder_writer):
    folder, write = folder_writer
    write_folder(folder, write)
    assert [p.name for p in folder.iterdir()] == ['new.txt']
    assert [p.name for p in folder.parent.iterdir()] == ['out']


def test_folder_that_cannot_be_written_stays_as_it_was(folder_writer):
    folder, write = folder_writer

    def full(temporary):
        write(temporary)
        raise OSError('No space left on device')

    with pytest.raises(CheckpointError, match='No space left.*nothing was changed'):
        write_folder(folder, full)
    assert [p.name for p in folder.iterdir()] == ['old.txt']
    assert [p.name for p in folder.parent.iterdir()] == ['out']


def test_folder_comes_back_where_the_new_one_cannot_be_renamed(folder_writer, monkeypatch):
    folder, write = folder_writer
    replace, calls = os.replace, []

    def fail_once(source, target):
        calls.append(source)
        if len(calls) == 2:  # the old one is out of the way
            raise OSError('Input/output error')
        replace(source, target)

    monkeypatch.setattr(os, 'replace', fail_once)
    with pytest.raises(CheckpointError, match='Input/output error'):
        write_folder(folder, write)
    assert len(calls) == 3 and [p.name for p in folder.iterdir()] == ['old.txt']
