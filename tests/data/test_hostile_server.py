"""Servers that break the rules: one clear line, nothing lost, and the next run completes."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest

from cdra_mm.data import download as download_module
from cdra_mm.errors import DataError

from .archive_server import Behaviour, serve

OLD = random.Random(0).randbytes(50_000)
NEW = random.Random(1).randbytes(50_000)
MD5 = 'md5:' + hashlib.md5(OLD).hexdigest()

download = partial(download_module.download, pause=0.0, timeout=5.0, attempts=2)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('no_proxy', '127.0.0.1')


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / 'downloads' / 'archive.zip'


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def break_off(server: Behaviour, target: Path, after: int) -> None:
    """A first run that ends with a partial file of ``after`` bytes."""
    server.break_after, served = [after, 0, 0], server.ranges_served
    server.ranges_served = True
    with pytest.raises(DataError, match=f'{after} bytes are kept in .*run again'):
        download(f'{server.url}/archive.zip', target)
    server.ranges_served = served
    server.break_after.clear()
    server.ranges.clear()


HEADERS = {'an ETag': '"1"', 'a weak ETag': 'W/"1"', 'neither': ''}


@pytest.mark.parametrize('etag', HEADERS.values(), ids=HEADERS.keys())
def test_download_goes_on_in_the_next_run_while_the_file_is_the_same(
    etag: str, target: Path
) -> None:
    with serve(Behaviour(OLD, etag=etag)) as server:
        break_off(server, target, 20_000)
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == OLD
    assert server.ranges == ['bytes=20000-']
    assert names(target.parent) == ['archive.zip']


@pytest.mark.parametrize('honours', [True, False], ids=['If-Range', 'no If-Range'])
@pytest.mark.parametrize('etag', ['"{}"', 'W/"{}"'])
def test_download_never_joins_two_versions_of_a_file(
    etag: str, honours: bool, target: Path
) -> None:
    with serve(Behaviour(OLD, etag=etag.format(1), if_range=honours)) as server:
        break_off(server, target, 20_000)
        server.content, server.etag = NEW, etag.format(2)
        download(server.url, target)
    assert target.read_bytes() == NEW
    assert names(target.parent) == ['archive.zip']
    # A strong ETag lets the server send the new file at once; otherwise the old part is dropped.
    at_once = honours and etag.startswith('"')
    assert server.ranges == (['bytes=20000-'] if at_once else ['bytes=20000-', ''])


def test_download_notices_another_length_where_there_is_no_etag(target: Path) -> None:
    with serve(Behaviour(OLD)) as server:
        break_off(server, target, 20_000)
        server.content = NEW + b'longer'
        download(server.url, target)
    assert target.read_bytes() == NEW + b'longer'
    assert server.ranges == ['bytes=20000-', '']


def test_download_follows_redirects_and_resumes_behind_them(target: Path) -> None:
    with serve(Behaviour(OLD)) as server:
        break_off(server, target, 20_000)
        server.redirects = [f'{server.url}/elsewhere']
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == OLD
    assert server.ranges == ['bytes=20000-', 'bytes=20000-']


def test_download_says_where_redirects_lead_nowhere(target: Path) -> None:
    with serve(Behaviour(OLD)) as server:
        server.redirects = [server.url] * 50
        with pytest.raises(DataError, match='answered 302'):
            download(server.url, target)
        assert names(target.parent) == []
        server.redirects = ['file:///etc/hostname']
        with pytest.raises(DataError, match='answered 302'):
            download(server.url, target)


@pytest.mark.parametrize(
    'page',
    [
        {'content_type': 'text/html; charset=utf-8', 'content': b'Too many users'},
        {'content': b'\n<!DOCTYPE html><html><title>Virus scan warning'},
        {'content': b'<HTML><body>Sign in'},
    ],
)
@pytest.mark.parametrize('resumes', [True, False])
def test_download_does_not_take_a_page_for_the_file(
    page: dict, resumes: bool, target: Path
) -> None:
    with serve(Behaviour(OLD)) as server:
        if resumes:
            break_off(server, target, 20_000)
        server.ranges_served = False
        for name, value in page.items():
            setattr(server, name, value)
        with pytest.raises(DataError, match='web page instead of the file .*--archive'):
            download(server.url, target)
        # What had been fetched before the page is still there, and completes.
        server.content, server.content_type, server.ranges_served = OLD, '', True
        server.ranges.clear()
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == OLD
    assert server.ranges == (['bytes=20000-'] if resumes else [''])


def test_download_gives_up_on_a_server_that_falls_silent(target: Path) -> None:
    with serve(Behaviour(OLD, stall_after=[20_000, 0, 0])) as server:
        with pytest.raises(DataError, match='gave up after 2 tries .*timed out.*20000 bytes are'):
            download(server.url, target, timeout=0.2)
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == OLD
    assert server.ranges[-1] == 'bytes=20000-'


@pytest.mark.parametrize('status', [404, 403, 500])
def test_download_keeps_the_part_when_the_server_refuses(status: int, target: Path) -> None:
    with serve(Behaviour(OLD)) as server:
        break_off(server, target, 20_000)
        server.statuses = [status] * 5
        with pytest.raises(DataError, match=f'answered {status}'):
            download(server.url, target)
        server.statuses.clear()
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == OLD
    assert server.ranges[-1] == 'bytes=20000-'


def test_download_of_a_file_that_is_announced_too_short_is_refused(target: Path) -> None:
    with serve(Behaviour(OLD, announced=40_000)) as server:
        with pytest.raises(DataError, match='offers 40000 bytes, expected 50000'):
            download(server.url, target, size=len(OLD))
        with pytest.raises(DataError, match='md5 .*the bad copy was removed, run again'):
            download(server.url, target, checksum=MD5)
        assert names(target.parent) == []
        server.announced = None
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == OLD


def ade_zip(path: Path) -> bytes:
    with zipfile.ZipFile(path, 'w') as file:
        for split in ('training', 'validation'):
            for i in range(2):
                file.writestr(f'ADEChallengeData2016/images/{split}/{i}.jpg', OLD)
                file.writestr(f'ADEChallengeData2016/annotations/{split}/{i}.png', b'png')
    return path.read_bytes()


@pytest.mark.parametrize('lie', ['too short', 'another file'])
def test_prepare_removes_a_fetched_archive_that_is_damaged(
    lie: str, run, tmp_path: Path, shrink
) -> None:
    """Without a known checksum: kept, it would be taken for the right one by every later run."""
    content = ade_zip(tmp_path / 'a.zip')
    root = tmp_path / 'ade'
    with serve(Behaviour(content)) as server:
        shrink('ade20k', address=server.url)
        if lie == 'too short':
            server.announced = len(content) - 5000
        else:
            server.content = NEW
        code, _, errors = run('ade20k', root)
        assert code == 2 and len(errors) == 1
        assert 'the bad copy was removed, run again' in errors[0]
        assert names(root) == []
        server.content, server.announced = content, None
        assert run('ade20k', root)[0] == 0
    assert names(root) == ['ADEChallengeData2016']


FETCH = """
import sys
from cdra_mm import command_line
from cdra_mm.data.download import download
command_line.run(lambda: download(sys.argv[1], sys.argv[2]))
"""


def test_interrupted_download_leaves_its_part_and_one_line(target: Path, repository: Path) -> None:
    part = target.with_name('archive.zip.part')
    with serve(Behaviour(OLD, stall_after=[20_000])) as server:
        process = subprocess.Popen(
            [sys.executable, '-c', FETCH, server.url, str(target)],
            env={**os.environ, 'PYTHONPATH': str(repository), 'no_proxy': '127.0.0.1'},
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background job ignores Ctrl-C, and so would all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        while process.poll() is None and not (part.is_file() and part.stat().st_size):
            time.sleep(0.01)
        time.sleep(0.3)  # until it waits for bytes that do not come
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (130, 'interrupted\n')
        assert part.read_bytes() == OLD[: part.stat().st_size] and part.stat().st_size > 0
        kept = part.stat().st_size
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == OLD
    assert server.ranges == ['', f'bytes={kept}-']
