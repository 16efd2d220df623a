"""One run at a time in a work directory, until its process has ended in whatever way."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import time

import pytest

from cdra_mm.core import ConfigError
from cdra_mm.mm import work_lock
from cdra_mm.mm.work_lock import LOCK, hold_work_dir

# What a run does, without what takes long to import.
HOLD = """
import fcntl, json, os, sys, time
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(handle, fcntl.LOCK_EX)
os.pwrite(handle, json.dumps(dict(host='far', process=os.getpid(), since='noon')).encode(), 0)
print('held', flush=True)
time.sleep(100)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    words = [sys.executable, '-c', HOLD, str(tmp_path / LOCK)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path, other):
    with pytest.raises(ConfigError, match=rf'in use: process {other.pid} on far \(since noon\)'):
        hold_work_dir(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    lock = hold_work_dir(tmp_path)
    assert f'"process": {os.getpid()}' in (tmp_path / LOCK).read_text()
    lock.release()


def test_the_same_process_holds_it_as_long_as_anybody_asks(tmp_path):
    first = hold_work_dir(tmp_path)
    assert hold_work_dir(tmp_path / '.') is first
    taken = [sys.executable, '-c', 'import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], '
             'os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)', str(tmp_path / LOCK)]  # fmt: skip
    assert subprocess.run(taken, capture_output=True).returncode != 0
    del first
    gc.collect()
    assert subprocess.run(taken, capture_output=True).returncode == 0


def test_a_worker_does_not_hold_the_lock_of_its_killed_run(tmp_path):
    """A data loader's workers are forked, and outlive the run by some seconds."""
    reader, writer = os.pipe()
    run = os.fork()
    if run == 0:
        lock = hold_work_dir(tmp_path)  # noqa: F841
        if os.fork() == 0:
            os.write(writer, b'x')
            time.sleep(5)
        else:
            time.sleep(100)
        os._exit(0)
    assert os.read(reader, 1) == b'x'
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    hold_work_dir(tmp_path).release()


def test_where_there_are_no_locks_it_is_said_and_the_run_goes_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    said: list[str] = []
    monkeypatch.setattr(work_lock.fcntl, 'flock', refuse)
    monkeypatch.setattr(
        work_lock.MMLogger,
        'get_current_instance',
        lambda: type('Logger', (), {'warning': staticmethod(said.append)}),
    )
    lock = hold_work_dir(tmp_path)
    assert hold_work_dir(tmp_path) is lock
    assert len(said) == 1 and 'cannot be locked' in said[0] and 'No locks' in said[0]


def test_a_link_in_its_place_is_not_written_through(tmp_path):
    precious = tmp_path / 'precious'
    precious.write_text('mine')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / LOCK).symlink_to(precious)
    hold_work_dir(tmp_path / 'run')
    assert precious.read_text() == 'mine'
