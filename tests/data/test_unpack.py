"""Unpacking writes inside its folder only, and all of an archive or nothing."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from cdra_mm.data import unpack as unpack_module
from cdra_mm.data.unpack import DamagedArchiveError, unpack
from cdra_mm.errors import DataError

FILES = {'top/a.txt': b'a' * 5000, 'top/deep/er/b.txt': b'b', 'other/c.txt': b'c'}


def make_zip(path: Path, files: dict[str, bytes], *extra: tuple[zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
        for info, content in extra:
            file.writestr(info, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo, mode: str = 'w') -> Path:
    with tarfile.open(path, mode) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for info in extra:
            file.addfile(info)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder that does not exist yet, alone in its parent."""
    (tmp_path / 'parent').mkdir()
    return tmp_path / 'parent' / 'out'


@pytest.mark.parametrize('kind', ['zip', 'w', 'w:gz', 'w:xz'])
def test_unpack_writes_every_file_whatever_the_archive_is_called(
    kind: str, tmp_path: Path, out: Path
) -> None:
    archive = tmp_path / 'archive.bin'
    make_zip(archive, FILES) if kind == 'zip' else make_tar(archive, FILES, mode=kind)
    assert unpack(archive, out) == 3
    assert tree(out) == FILES
    assert os.listdir(out.parent) == ['out']


@pytest.mark.parametrize('make', [make_zip, make_tar])
def test_unpack_takes_one_folder_at_whatever_depth(make, tmp_path: Path, out: Path) -> None:
    archive = make(tmp_path / 'archive', {**FILES, 'a/a/deep/x': b'first by name, but lower'})
    assert unpack(archive, out, inside='deep') == 1
    assert tree(out) == {'er/b.txt': b'b'}


def test_unpack_names_what_the_archive_holds_instead(tmp_path: Path, out: Path) -> None:
    archive = make_zip(tmp_path / 'archive', FILES)
    with pytest.raises(DataError, match=r"holds no folder 'a.txt' \(it holds: other, top\)"):
        unpack(archive, out, inside='a.txt')
    assert os.listdir(out.parent) == []


ESCAPES = [
    'a\\b',
    '.',
    '../evil',
    'a/../../evil',
    '/tmp/evil',
    'C:/evil',
    '..\\evil',
    'a\\..\\..\\evil',
    'a/..',
]


@pytest.mark.parametrize('name', ESCAPES)
@pytest.mark.parametrize('make', [make_zip, make_tar])
def test_unpack_refuses_a_path_that_leaves_the_folder(
    make, name: str, tmp_path: Path, out: Path
) -> None:
    archive = make(tmp_path / 'archive', {'good.txt': b'good', name: b'evil'})
    with pytest.raises(DataError, match='nothing was unpacked'):
        unpack(archive, out)
    assert os.listdir(out.parent) == []
    assert sorted(os.listdir(tmp_path)) == ['archive', 'parent']


@pytest.mark.parametrize(
    'kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
@pytest.mark.parametrize('goal', ['good.txt', '../../outside', '/etc/passwd'])
def test_unpack_refuses_links_and_devices_of_a_tar(
    kind: bytes, goal: str, tmp_path: Path, out: Path
) -> None:
    info = tarfile.TarInfo('link')
    info.type, info.linkname = kind, goal
    archive = make_tar(tmp_path / 'archive', {'good.txt': b'good'}, info)
    with pytest.raises(DataError, match="'link' is a link or a special file"):
        unpack(archive, out)
    assert os.listdir(out.parent) == []


def test_unpack_refuses_links_of_a_zip(tmp_path: Path, out: Path) -> None:
    info = zipfile.ZipInfo('link')
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive = make_zip(tmp_path / 'archive', {'good.txt': b'good'}, (info, b'/etc/passwd'))
    with pytest.raises(DataError, match="'link' is a link or a special file"):
        unpack(archive, out)
    assert os.listdir(out.parent) == []


def test_unpack_leaves_out_links_that_lie_elsewhere(tmp_path: Path, out: Path) -> None:
    info = tarfile.TarInfo('docs/link')
    info.type, info.linkname = tarfile.SYMTYPE, '../README'
    archive = make_tar(tmp_path / 'archive', FILES, info)
    assert unpack(archive, out, inside='top') == 2


def test_unpack_refuses_a_second_member_of_the_same_name(tmp_path: Path, out: Path) -> None:
    archive = make_tar(tmp_path / 'archive', {'a/b': b'1', './a/b': b'2'})
    with pytest.raises(DataError, match='cannot unpack'):
        unpack(archive, out)
    assert os.listdir(out.parent) == []


def test_unpack_does_not_keep_modes_or_owners(tmp_path: Path, out: Path) -> None:
    info = tarfile.TarInfo('set_uid')
    info.mode = 0o6777
    archive = make_tar(tmp_path / 'archive', {}, info)
    previous = os.umask(0o022)
    try:
        unpack(archive, out)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((out / 'set_uid').stat().st_mode) == 0o644
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


@pytest.mark.parametrize('keep', [0.3, 0.7, 0.97])
@pytest.mark.parametrize('kind', ['zip', 'w', 'w:gz'])
def test_unpack_leaves_nothing_of_a_truncated_archive(
    kind: str, keep: float, tmp_path: Path, out: Path
) -> None:
    files = {f'folder/{i}': os.urandom(3000) for i in range(10)}
    archive = tmp_path / 'archive'
    make_zip(archive, files) if kind == 'zip' else make_tar(archive, files, mode=kind)
    content = archive.read_bytes()
    if kind == 'w':  # a tar is padded with zeros: count from its last file
        content = content[: content.rindex(files['folder/9'][-8:])]
    archive.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match='archive'):
        unpack(archive, out)
    assert os.listdir(out.parent) == []


def test_unpack_notices_a_flipped_bit_of_a_zip(tmp_path: Path, out: Path) -> None:
    archive = tmp_path / 'archive'
    with zipfile.ZipFile(archive, 'w') as file:
        file.writestr('a', b'0' * 1000)
    archive.write_bytes(archive.read_bytes().replace(b'0' * 1000, b'0' * 999 + b'1'))
    with pytest.raises(DataError, match='damaged.*CRC'):
        unpack(archive, out)
    assert os.listdir(out.parent) == []


def test_unpack_refuses_what_does_not_fit_on_the_disk(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_zip(tmp_path / 'bomb', {'zeros': bytes(30 << 20)})
    usage = namedtuple('usage', 'total used free')(10 << 20, 0, 10 << 20)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(DataError, match='10 MiB free, 30 MiB are needed'):
        unpack(archive, out)
    assert os.listdir(out.parent) == []


@pytest.mark.parametrize('kind', ['zip', 'w:gz', 'w:xz'])
@pytest.mark.parametrize('inside', ['', 'small'])
def test_unpack_refuses_what_grows_as_no_images_do(
    kind: str, inside: str, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {'small/a': b'a', **{f'zeros/{i}': bytes(4 << 20) for i in range(3)}}
    path = tmp_path / 'bomb'
    make_zip(path, files) if kind == 'zip' else make_tar(path, files, mode=kind)
    monkeypatch.setattr(unpack_module, 'SMALL', 10 << 20)
    with pytest.raises(DamagedArchiveError, match='over 100 times: .*nothing was unpacked'):
        unpack(path, out, inside=inside)
    assert os.listdir(out.parent) == []
    monkeypatch.setattr(unpack_module, 'SMALL', 20 << 20)
    assert unpack(path, out) == 4


def test_unpack_says_what_is_no_archive(tmp_path: Path, out: Path) -> None:
    (tmp_path / 'page.zip').write_text('<html>please log in</html>')
    with pytest.raises(DataError, match='neither a zip nor a tar'):
        unpack(tmp_path / 'page.zip', out)
    with pytest.raises(DataError, match='is not there or is no file'):
        unpack(tmp_path / 'missing.zip', out)


def test_unpack_never_touches_a_folder_that_exists(tmp_path: Path, out: Path) -> None:
    out.mkdir()
    (out / 'mine').write_text('kept')
    with pytest.raises(DataError, match='exists already'):
        unpack(make_zip(tmp_path / 'archive', FILES), out)
    assert tree(out) == {'mine': b'kept'}
