"""A download ends with exactly the file that was asked for, or with a clear error."""

from __future__ import annotations

import hashlib
import io
import random
import socket
from functools import partial
from pathlib import Path

import pytest

from cdra_mm.data import download as download_module
from cdra_mm.data.download import verify
from cdra_mm.errors import DataError
from cdra_mm.progress import progress_line

from .archive_server import Behaviour, serve

CONTENT = random.Random(0).randbytes(300_000)
MD5 = 'md5:' + hashlib.md5(CONTENT).hexdigest()

# No waiting between tries, no terminal.
download = partial(download_module.download, pause=0.0, timeout=10.0)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('no_proxy', '127.0.0.1')


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / 'new folder' / 'archive.zip'


def part_of(path: Path) -> Path:
    return path.with_name(path.name + '.part')


def test_download_writes_the_file_and_leaves_no_part(target: Path) -> None:
    with serve(Behaviour(CONTENT)) as server:
        assert download(server.url, target, size=len(CONTENT), checksum=MD5) == target
    assert target.read_bytes() == CONTENT
    assert [p.name for p in target.parent.iterdir()] == ['archive.zip']
    assert server.ranges == ['']


def test_download_goes_on_where_it_broke_off(target: Path) -> None:
    with serve(Behaviour(CONTENT, break_after=[100_000, 50_000])) as server:
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ['', 'bytes=100000-', 'bytes=150000-']


def test_download_takes_up_the_part_of_an_earlier_run(target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT[:70_000])
    with serve(Behaviour(CONTENT)) as server:
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ['bytes=70000-']


def test_download_starts_anew_where_ranges_are_not_served(target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(b'x' * 1000)
    with serve(Behaviour(CONTENT, ranges_served=False, break_after=[200_000])) as server:
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ['bytes=1000-', 'bytes=200000-']


def test_download_of_a_complete_part_asks_for_nothing_more(target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT)
    with serve(Behaviour(CONTENT)) as server:
        download(server.url, target, size=len(CONTENT), checksum=MD5)
        assert server.ranges == []
        # Without a known length the server says that nothing is left (416).
        target.rename(part_of(target))
        download(server.url, target, checksum=MD5)
    assert server.ranges == [f'bytes={len(CONTENT)}-']
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize('size', [None, len(CONTENT)])
def test_download_drops_a_part_that_is_longer_than_the_file(target: Path, size: int | None) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT + b'more')
    with serve(Behaviour(CONTENT)) as server:
        download(server.url, target, size=size, checksum=MD5)
    assert target.read_bytes() == CONTENT
    assert server.ranges[-1] == ''


def test_download_works_without_a_stated_length(target: Path) -> None:
    with serve(Behaviour(CONTENT, without_length=True)) as server:
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == CONTENT


def test_download_keeps_what_came_of_a_chunked_answer(target: Path) -> None:
    with serve(Behaviour(CONTENT, chunked=True, break_after=[100_000])) as server:
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ['', 'bytes=100000-']


def test_download_tries_again_when_the_server_is_busy(target: Path) -> None:
    with serve(Behaviour(CONTENT, statuses=[503, 429])) as server:
        download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert len(server.ranges) == 3


def test_download_gives_up_on_a_server_that_promises_more_than_it_sends(target: Path) -> None:
    with serve(Behaviour(CONTENT, announced=len(CONTENT) + 10, ranges_served=False)) as server:
        with pytest.raises(DataError, match=r'gave up after 3 tries .*300000 bytes are kept'):
            download(server.url, target, attempts=3)
    assert len(server.ranges) == 4  # the first brought bytes, three more brought nothing new
    assert not target.exists()
    assert part_of(target).read_bytes() == CONTENT


def test_download_refuses_a_file_of_another_length_before_fetching_it(target: Path) -> None:
    with serve(Behaviour(CONTENT)) as server:
        with pytest.raises(DataError, match='offers 300000 bytes, expected 299999'):
            download(server.url, target, size=len(CONTENT) - 1)
    assert list(target.parent.iterdir()) == []
    assert len(server.ranges) == 1


def test_download_removes_a_copy_with_a_wrong_checksum(target: Path) -> None:
    damaged = b'\0' + CONTENT[1:]
    with serve(Behaviour(damaged)) as server:
        with pytest.raises(DataError, match=r'has md5 \w+, expected \w+; the bad copy was removed'):
            download(server.url, target, checksum=MD5)
    assert list(target.parent.iterdir()) == []


def test_download_mends_a_part_that_belongs_to_another_file_on_the_next_run(target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(b'\0' * 1000)
    with serve(Behaviour(CONTENT)) as server:
        with pytest.raises(DataError, match='expected'):
            download(server.url, target, checksum=MD5)
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ['bytes=1000-', '']


def test_download_does_not_append_a_range_that_was_not_asked_for(target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT[:1000])
    with serve(Behaviour(CONTENT, wrong_range=True)) as server:
        download(server.url, target, checksum=MD5)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ['bytes=1000-', '']


def test_download_does_not_repeat_what_cannot_pass(target: Path) -> None:
    with serve(Behaviour(CONTENT, statuses=[404] * 3)) as server:
        with pytest.raises(DataError, match='answered 404 Not Found.*--archive'):
            download(server.url, target)
    assert len(server.ranges) == 1


def test_download_names_a_server_that_is_not_there(target: Path) -> None:
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{unused.getsockname()[1]}/archive.zip'
        with pytest.raises(DataError, match=r'gave up after 2 tries .*refused'):
            download(url, target, attempts=2)


def test_download_keeps_a_file_that_is_there_and_right(target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    download('http://127.0.0.1:1/archive.zip', target, size=len(CONTENT), checksum=MD5)


def test_download_never_overwrites_a_file_that_is_wrong(target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b'mine')
    with pytest.raises(DataError, match='is not the expected file .*: delete it'):
        download('http://127.0.0.1:1/archive.zip', target, checksum=MD5)
    assert target.read_bytes() == b'mine'


@pytest.mark.parametrize('url', ['file:///etc/hostname', 'ftp://127.0.0.1/a', 'archive.zip'])
def test_download_takes_web_addresses_only(url: str, target: Path) -> None:
    with pytest.raises(DataError, match='no http or https address'):
        download(url, target)


def test_download_names_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with serve(Behaviour(CONTENT)) as server:
        with pytest.raises(DataError, match='cannot write'):
            download(server.url, tmp_path / 'file' / 'archive.zip')


def test_download_reports_bytes_from_where_it_resumed(target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT[:1000])
    with serve(Behaviour(CONTENT)) as server:
        download(server.url, target, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (1000, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_verify_reads_any_algorithm(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    path.write_bytes(CONTENT)
    verify(path, size=len(CONTENT), checksum='sha1:' + hashlib.sha1(CONTENT).hexdigest().upper())
    with pytest.raises(DataError, match='has 300000 bytes, expected 1'):
        verify(path, size=1)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_line_is_drawn_on_a_terminal_only() -> None:
    log, terminal = io.StringIO(), _Terminal()
    for stream in (log, terminal):
        show = progress_line('archive.zip', stream=stream)
        show(0, 4 << 20)
        show(4 << 20, 4 << 20)
    assert log.getvalue() == ''
    assert '4.00M/4.00M' in terminal.getvalue()
    assert terminal.getvalue().endswith('\n')
