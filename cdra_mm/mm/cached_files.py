"""Files of addresses, kept in torch's folder of checkpoints: checked before they enter it.

A name in that folder stands for one content. Names that end with a hash, as OpenMMLab's and torch's
do (``NAME-5641ca5a.pth``, the first digits of the SHA-256), stand for what has it: the hash is
compared when the file is fetched, and each time it is taken from the folder. Any other name stands
for whatever its server sends, and so lies in a folder of its own for each address.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from mmengine.dist import barrier, is_main_process

from cdra_mm.data.download import download
from cdra_mm.errors import CheckpointError, DataError

__all__ = ['DownloadError', 'cached_file', 'is_http']

HASH = re.compile(r'-(?P<digits>[0-9a-f]{8,64})$')
ATTEMPTS = 3
CHUNK = 1 << 20  # bytes


class DownloadError(CheckpointError):
    """A file cannot be had, or is not what it should be.

    Attributes:
        address: Its address.
    """

    def __init__(self, address: str, what: str) -> None:
        super().__init__(
            f'{what}; fetch the file by other means and put its path in the place of the address'
        )
        self.address = address


def is_http(path: str | Path) -> bool:
    """Whether it is an http or https address."""
    return urlsplit(str(path)).scheme in ('http', 'https')


def cached_file(address: str, check: Callable[[Path], object]) -> Path:
    """The file of an address, fetched unless it was before.

    With several processes the first one fetches, the others wait.

    Args:
        address: An http or https address.
        check: Reads a file as its caller is going to, and raises CheckpointError where it cannot;
            only what it reads enters the folder.

    Raises:
        CheckpointError: If it cannot be had, or is not what its name says.
    """
    file = _cache_path(address)
    try:
        if is_main_process():
            _fetch(address, file, check)
    finally:
        barrier()  # also when it failed: the others would wait for ever
    if not file.is_file():
        _fetch(address, file, check)
    return file


def _cache_path(address: str) -> Path:
    """Where the file of an address belongs."""
    name = PurePosixPath(urlsplit(address).path).name
    if name in ('', '.', '..') or '\0' in name:
        raise CheckpointError(f'{address} names no file: expected an address that ends with one')
    folder = Path(torch.hub.get_dir(), 'checkpoints')
    if _stated_hash(name):
        return folder / name
    return folder / hashlib.sha256(address.encode()).hexdigest()[:16] / name


def _stated_hash(name: str) -> str:
    """The first digits of the SHA-256 that a file name states; '' where it states none."""
    found = HASH.search(PurePosixPath(name).stem)
    digits = found['digits'] if found else ''
    return '' if _is_date(digits) else digits


def _is_date(digits: str) -> bool:
    """Whether it is a day such as 20230426, which names end with too."""
    try:
        return len(digits) == 8 and datetime.strptime(digits, '%Y%m%d').year >= 1990
    except ValueError:
        return False


def _fetch(address: str, file: Path, check: Callable[[Path], object]) -> None:
    stated = _stated_hash(file.name)
    if file.exists():
        if stated and _hash(file)[: len(stated)] != stated:
            raise CheckpointError(
                f'{file} is not what its name says (SHA-256 {_hash(file)[: len(stated)]}...): '
                'something else was put there; delete it, and it is fetched again'
            )
        return
    fetched = file.with_name(f'.unchecked.{file.name}')  # with its ending, by which it is read
    fetched.unlink(missing_ok=True)
    try:
        try:
            download(address, fetched, attempts=ATTEMPTS)
        except DataError as error:
            reason = str(error).partition('; ')[0].removeprefix(f'{address}: ')
            raise DownloadError(address, f'cannot download {address}: {reason}') from None
        if stated and _hash(fetched)[: len(stated)] != stated:
            raise DownloadError(
                address,
                f'{address} gives another file than its name says (SHA-256 '
                f'{_hash(fetched)[: len(stated)]}..., expected {stated}...): it was not kept',
            )
        try:
            check(fetched)
        except CheckpointError as error:
            reason = str(error).replace(str(fetched), file.name)
            raise DownloadError(
                address, f'{address} gives no weight file: {reason}; it was not kept'
            ) from None
        os.replace(fetched, file)
    finally:
        fetched.unlink(missing_ok=True)


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open('rb') as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
