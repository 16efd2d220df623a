"""Folders are written whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
from itertools import count

import pytest

from cdra_mm.core import CheckpointError, write_atomically, write_folder, write_text
from cdra_mm.storage import writing as unit


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


STEPS = {os: ('mkdir', 'fsync', 'replace', 'unlink', 'rmdir'), unit: ('_swap',)}


def dying(real, done, step):
    def act(*args, **kwargs):
        if next(done) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    return act


def write_and_die(folder, write, swaps, step):
    """Writes in a process of its own, which is killed before its `step`-th change of the disk."""
    done = count()
    if not swaps:
        unit._swap = lambda *_: False
    for owner, names in STEPS.items():
        for name in names:
            setattr(owner, name, dying(getattr(owner, name), done, step))
    write_folder(folder, write)


@pytest.mark.parametrize('swaps', [True, False])
def test_folder_is_whole_after_a_kill_at_any_step(folder_writer, swaps):
    folder, write = folder_writer
    gone = []
    for step in count():
        process = multiprocessing.get_context('fork').Process(
            target=write_and_die, args=(folder, write, swaps, step)
        )
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        gone.append(not folder.exists())
        if folder.exists():
            assert [p.name for p in folder.iterdir()] in (['old.txt'], ['new.txt'])
        else:  # the next one to come that way puts it back
            unit.clear_leftovers(folder.parent, lambda _: None)
            assert [p.name for p in folder.iterdir()] == ['old.txt']
    assert step > 4 and sum(gone) == (0 if swaps else 1)
    assert [p.name for p in folder.parent.iterdir()] == ['out']


def test_a_file_takes_the_place_of_what_killed_writers_of_it_have_left(tmp_path):
    process = multiprocessing.Process(target=int)
    process.start()
    process.join()
    names = [f'.out.pth.{process.pid}.tmp', f'.other.pth.{process.pid}.tmp']
    for name in names:
        (tmp_path / name).write_text('half')
    write_text(tmp_path / 'out.pth', 'whole')
    assert {path.name for path in tmp_path.iterdir()} == {'out.pth', names[1]}


def test_a_device_or_a_folder_is_never_replaced_by_a_file(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    (tmp_path / 'folder').mkdir()
    for path in (pipe, tmp_path / 'folder'):
        with pytest.raises(CheckpointError, match=r'a device .*nothing was changed'):
            write_atomically(path, pytest.fail)
    assert pipe.is_fifo()


def test_folder_comes_back_where_the_new_one_cannot_be_renamed(folder_writer, monkeypatch):
    folder, write = folder_writer
    monkeypatch.setattr(unit, '_swap', lambda *_: False)
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
