"""Unpacking a zip or tar archive without trusting it.

A member that would land outside the folder, a link or a device is refused before anything is
written; the folder appears under its name only when it is whole.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO

from cdra_mm.errors import DataError
from cdra_mm.progress import Progress, progress_line

__all__ = ['DamagedArchiveError', 'unpack']

# What reading a damaged, encrypted or oddly compressed archive raises.
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    NotImplementedError,
)


# A set of images hardly shrinks when it is packed: what grows more than this is made to fill disks.
LARGEST_GROWTH = 100
SMALL = 1 << 30  # bytes, unpacked, below which growth does not matter


class DamagedArchiveError(DataError):
    """An archive that cannot be used, and would not be the next time either.

    Attributes:
        archive: The archive.
    """

    def __init__(self, archive: Path, message: str) -> None:
        super().__init__(message)
        self.archive = archive


@dataclass(frozen=True)
class _Member:
    """A file of an archive: its path cut into parts, its length, and how to read it."""

    parts: tuple[str, ...]
    size: int
    refused: str  # why it must not be unpacked; empty for a plain file
    open: Callable[[], IO[bytes]]


def unpack(
    archive: str | Path,
    folder: str | Path,
    *,
    inside: str = '',
    progress: Progress | None = None,
) -> int:
    """Unpack an archive, or one folder of it, into a new folder.

    Args:
        archive: A zip file or a tar file, compressed or not, told apart by content.
        folder: Folder to make; its parent must exist.
        inside: Name of the folder within the archive to unpack, at whatever depth (the shallowest
            one counts); what lies elsewhere is left out. Everything when empty.
        progress: Called with (files done, total); a line on the terminal by default.

    Raises:
        DataError: If the archive is damaged, unsafe, of another kind, or lacks ``inside``; if the
            folder exists or cannot be written. Nothing is left behind then.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        raise DataError(f'{folder} exists already: move it away first')
    label = f'unpacking {archive.name}'
    show = progress_line(label, unit='files') if progress is None else progress
    try:
        with _members(archive) as members:
            chosen = _below(archive, members, inside)
            _check(archive, chosen, folder.parent)
            _write(chosen, folder, show)
    except DAMAGED as error:
        message = f'{archive} is damaged or cannot be read: {error}'
        raise DamagedArchiveError(archive, message) from error
    except OSError as error:
        raise DataError(f'cannot unpack {archive} into {folder}: {error}') from error
    return len(chosen)


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    """The files of an open archive; folders are made as their files need them."""
    if not archive.is_file():
        raise DataError(f'{archive} is not there or is no file')
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            _refuse_growth(archive, sum(info.file_size for info in file.infolist()))
            yield [_zip_member(file, info) for info in file.infolist() if not info.is_dir()]
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            yield list(_tar_members(archive, file))
    else:
        raise DamagedArchiveError(archive, f'{archive} is neither a zip nor a tar archive')


def _zip_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    refused = 'is a link or a special file' if kind not in (0, stat.S_IFREG) else ''
    name = info.orig_filename
    return _Member(_parts(name), info.file_size, refused or _escape(name), lambda: file.open(info))


def _tar_members(archive: Path, file: tarfile.TarFile) -> Iterator[_Member]:
    total = 0
    for info in file:
        # At once: all of a packed tar has to be unpacked to find its members.
        total += info.size
        _refuse_growth(archive, total)
        if not info.isdir():
            yield _tar_member(file, info)


def _refuse_growth(archive: Path, unpacked: int) -> None:
    packed = archive.stat().st_size
    if unpacked > max(SMALL, LARGEST_GROWTH * packed):
        raise DamagedArchiveError(
            archive,
            f'{archive} would grow from {packed >> 20} MiB to more than {unpacked >> 20} MiB, '
            f'over {LARGEST_GROWTH} times: no set of images does; nothing was unpacked',
        )


def _tar_member(file: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    def read() -> IO[bytes]:
        opened = file.extractfile(info)
        assert opened is not None  # only for members that are no files, refused above
        return opened

    refused = '' if info.isreg() else 'is a link or a special file'
    return _Member(_parts(info.name), info.size, refused or _escape(info.name), read)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split('/') if part not in ('', '.'))


def _escape(name: str) -> str:
    """Why a member's name is unsafe, on this or another system; empty when it is not."""
    path = PureWindowsPath(name)  # it sees what either system would: /, \\, C: and ..
    if path.drive or path.root or '..' in path.parts:
        return 'would be written outside the folder'
    if '\\' in name or '\0' in name or not _parts(name):
        return 'has no usable name'
    return ''


def _below(archive: Path, members: list[_Member], inside: str) -> list[_Member]:
    """The members below the folder ``inside``, named relative to it."""
    if not inside:
        return members
    prefixes = {
        m.parts[: i + 1] for m in members for i, part in enumerate(m.parts[:-1]) if part == inside
    }
    if not prefixes:
        top = ', '.join(sorted({m.parts[0] for m in members if m.parts})[:5]) or 'nothing'
        message = f'{archive} holds no folder {inside!r} (it holds: {top})'
        raise DamagedArchiveError(archive, message)
    prefix = min(prefixes, key=lambda p: (len(p), p))
    return [
        _Member(m.parts[len(prefix) :], m.size, m.refused, m.open)
        for m in members
        if m.parts[: len(prefix)] == prefix
    ]


def _check(archive: Path, members: list[_Member], parent: Path) -> None:
    for member in members:
        if member.refused:
            name = '/'.join(member.parts)
            raise DataError(f'{archive}: {name!r} {member.refused}; nothing was unpacked')
    needed, free = sum(m.size for m in members), shutil.disk_usage(parent).free
    if needed > free:
        raise DataError(f'{parent} has {free >> 20} MiB free, {needed >> 20} MiB are needed')


def _write(members: list[_Member], folder: Path, show: Progress) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
    try:
        # A folder of its own below: mkdtemp's is readable by nobody else, and would stay so.
        whole = temporary / 'unpacked'
        whole.mkdir()
        for done, member in enumerate(members):
            show(done, len(members))
            target = whole.joinpath(*member.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            # 'x': a second member of the same name must not replace the first.
            with member.open() as source, target.open('xb') as out:
                shutil.copyfileobj(source, out)
        show(len(members), len(members))
        whole.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
