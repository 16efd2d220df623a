"""Downloading one file with the standard library: resumed, checked, never half written.

The bytes go to ``NAME.part``; a transfer that breaks off is taken up where it stopped, in this run
or the next. Only a file of the right length and checksum gets its real name. ``NAME.part.tag``
holds what the server says of the file's version (its ETag, else its date; its length): when that
changes between two tries the partial file is dropped, since halves of two versions make no whole.

What happens to the partial file: a broken connection, a stall, an interruption (Ctrl-C), an answer
of 4xx or 5xx and a web page instead of the file keep it; another version of the file, a range that
was not asked for and a wrong length or checksum at the end remove it. A server that does not serve
ranges sends everything again.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from cdra_mm.errors import DataError
from cdra_mm.progress import Progress, progress_line

__all__ = ['download', 'verify']

CHUNK = 1 << 20  # bytes
PAGE_STARTS = (b'<!doctype html', b'<html')
TRANSIENT = (408, 425, 429)  # HTTP answers worth another try, besides 5xx
BROKEN_OFF = (OSError, http.client.HTTPException)  # URLError and timeouts are OSErrors


class _BrokenOffError(Exception):
    """The transfer stopped early for a reason that may pass."""


def download(
    url: str,
    path: str | Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    attempts: int = 5,
    timeout: float = 60.0,
    pause: float = 1.0,
    progress: Progress | None = None,
) -> Path:
    """Fetch ``url`` into ``path``, taking up a partial file left by an earlier try.

    Args:
        url: An http or https address.
        path: File to write; kept as it is when it exists and passes the checks.
        size: Expected length in bytes, where known.
        checksum: Expected ``algorithm:hexdigest``, where known.
        attempts: Tries in a row that bring nothing new before giving up; one that brings new bytes
            starts the count again.
        timeout: Seconds without an answer after which a try counts as broken off.
        pause: Seconds before a try that follows progress, doubled each time after.
        progress: Called with (bytes done, total); a line on the terminal by default.

    Raises:
        DataError: If the file cannot be had, is not the expected one, or cannot be written. A
            partial file stays for the next run unless its content proved wrong.
    """
    path = Path(path)
    if urlsplit(url).scheme not in ('http', 'https'):
        raise DataError(f'{url!r} is no http or https address')
    if path.exists():
        try:
            verify(path, size=size, checksum=checksum)
        except DataError as error:
            raise DataError(f'{path} is not the expected file ({error}): delete it') from None
        return path
    part = path.with_name(path.name + '.part')
    show = progress_line(path.name) if progress is None else progress
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        best = _length(part)
        failures = 0
        while True:
            try:
                _transfer(url, part, size, timeout, show)
                break
            except _BrokenOffError as error:
                got = _length(part)
                failures = 0 if got > best else failures + 1
                best = max(best, got)
                if failures >= attempts:
                    raise DataError(_gave_up(url, part, got, failures, error)) from error
                time.sleep(pause * 2**failures)
        try:
            verify(part, size=size, checksum=checksum)
        except DataError as error:
            _drop(part)
            raise DataError(f'{url}: {error}; the bad copy was removed, run again') from None
        os.replace(part, path)
        _tag(part).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f'cannot write {path}: {error.strerror or error}') from error
    return path


def verify(path: str | Path, *, size: int | None = None, checksum: str | None = None) -> None:
    """Compare a file with its known length and checksum.

    Args:
        path: The file.
        size: Expected length in bytes; not compared when ``None``.
        checksum: Expected ``algorithm:hexdigest``; not compared when ``None``.

    Raises:
        DataError: If one differs.
    """
    path = Path(path)
    if size is not None and _length(path) != size:
        raise DataError(f'{path.name} has {_length(path)} bytes, expected {size}')
    if checksum is None:
        return
    algorithm, _, expected = checksum.partition(':')
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open('rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected.lower():
        raise DataError(f'{path.name} has {algorithm} {digest.hexdigest()}, expected {expected}')


def _transfer(url: str, part: Path, size: int | None, timeout: float, show: Progress) -> None:
    """One try: append to ``part`` what it lacks, or write it anew where that is not served."""
    offset = _length(part)
    if size is not None and offset > size:
        _drop(part)
        offset = 0
    if offset and offset == size:
        return
    headers = {'User-Agent': 'cdra-mm', 'Accept-Encoding': 'identity'}
    if offset:
        headers['Range'] = f'bytes={offset}-'
        version, _ = _noted(part)
        if version.startswith('"'):  # only a strong ETag promises the same bytes
            headers['If-Range'] = version
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and offset:
                if _stated_total(error.headers.get('Content-Range')) == offset:
                    return
                _drop(part)
                raise _BrokenOffError('the partial file did not fit and was dropped') from error
            if error.code >= 500 or error.code in TRANSIENT:
                raise _BrokenOffError(f'the server answered {error.code}') from error
            raise DataError(
                f'{url}: the server answered {error.code} {error.reason}; '
                'fetch the file by other means and name it with --archive'
            ) from error
    except BROKEN_OFF as error:
        raise _BrokenOffError(str(getattr(error, 'reason', error))) from error
    with response:
        _receive(url, response, part, offset, size, show)


def _receive(
    url: str,
    response: http.client.HTTPResponse,
    part: Path,
    offset: int,
    size: int | None,
    show: Progress,
) -> None:
    """Write an answer's body to ``part``, from ``offset`` on if that is what the server sends."""
    version = response.headers.get('ETag') or response.headers.get('Last-Modified') or ''
    if response.status == 206:
        content_range = response.headers.get('Content-Range', '')
        if not content_range.startswith(f'bytes {offset}-'):
            _drop(part)
            raise _BrokenOffError(f'the server sent {content_range!r} instead of what was asked')
        total = _stated_total(content_range)
        now = (version, '' if total is None else str(total))
        if any(a and b and a != b for a, b in zip(now, _noted(part), strict=True)):
            _drop(part)
            raise _BrokenOffError('the file changed on the server, the partial one was dropped')
    else:
        offset = 0  # the server does not resume: it sends everything again
        length = response.headers.get('Content-Length', '')
        total = int(length) if length.isdecimal() else None
    if size is not None and total is not None and total != size:
        raise DataError(
            f'{url}: the server offers {total} bytes, expected {size}: not the same file'
        )
    wanted = size if total is None else total
    _check_space(part.parent, wanted, offset)

    done = offset
    chunk = _read(response)
    # Looked at before a partial file is overwritten.
    if not offset and _is_page(response, chunk):
        raise DataError(
            f'{url}: the server sent a web page instead of the file (it asks for a login or a '
            'confirmation, or has reached a quota); open the address in a browser and name the '
            'file with --archive'
        )
    with part.open('ab' if offset else 'wb') as file:
        _tag(part).write_text(f'{version}\n{"" if total is None else total}', encoding='utf-8')
        show(done, wanted)
        while chunk:
            file.write(chunk)
            done += len(chunk)
            show(done, wanted)
            chunk = _read(response)
    if wanted is not None and done < wanted:
        raise _BrokenOffError(f'the connection closed after {done} of {wanted} bytes')


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        # read1: what has arrived is written at once, so that nothing of it is lost.
        return response.read1(CHUNK)
    except BROKEN_OFF as error:
        raise _BrokenOffError(str(error)) from error


def _is_page(response: http.client.HTTPResponse, start: bytes) -> bool:
    return response.headers.get_content_type() == 'text/html' or start[
        :100
    ].lstrip().lower().startswith(PAGE_STARTS)


def _check_space(folder: Path, wanted: int | None, have: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted is not None and wanted - have > free:
        raise DataError(
            f'{folder} has {free >> 20} MiB free, {(wanted - have) >> 20} MiB are needed'
        )


def _stated_total(content_range: str | None) -> int | None:
    match = re.search(r'/(\d+)$', content_range or '')
    return int(match[1]) if match else None


def _tag(part: Path) -> Path:
    return part.with_name(part.name + '.tag')


def _noted(part: Path) -> tuple[str, str]:
    """Version and total length that belong to the partial file; empty where nothing was said."""
    tag = _tag(part)
    version, _, total = (tag.read_text(encoding='utf-8') if tag.is_file() else '').partition('\n')
    return version, total


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _gave_up(url: str, part: Path, got: int, failures: int, error: Exception) -> str:
    kept = f'{got} bytes are kept in {part}; run again to go on from there' if got else 'run again'
    return f'{url}: gave up after {failures} tries without progress ({error}); {kept}'
