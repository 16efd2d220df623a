"""From a name to a complete data set on disk."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import DataError
from .camvid import convert_camvid
from .demo import make_demo
from .download import download
from .layout import Report, check
from .sources import Source, find_source
from .staging import staged
from .unpack import unpack

__all__ = ['prepare']


def prepare(name: str, root: str | Path, *, archive: str | Path | None = None) -> Report:
    """Bring a data set into ``root``, unless it is complete there already.

    Everything is made in a temporary folder, counted, and moved into place at the end; nothing that
    exists is overwritten. A downloaded archive is removed afterwards, a given one stays.

    Args:
        name: A key of :data:`~cdra_mm.data.SOURCES`.
        root: Folder of the data set: ``data/ade`` for ade20k, ``data`` for voc, ``data/camvid``,
            ``data/demo``.
        archive: The publisher's archive, when it has been fetched by other means.

    Returns:
        What is there now.

    Raises:
        DataError: If the data set is unknown, cannot be fetched, or a part of it is there already.
    """
    source, root = find_source(name), Path(root)
    report = check(name, root)
    if report.complete:
        return report
    for entry in source.entries:
        if (root / entry).exists():
            raise DataError(f'{root / entry} exists, but {report.problem()}: move it away first')
    if source.name == 'demo':
        if archive is not None:
            raise DataError('demo data are generated: --archive does not go with them')
        make_demo(root)
        return check(name, root)
    if archive is None:
        fetched = download(
            source.url, root / source.archive, size=source.size, checksum=source.checksum
        )
        _install(source, root, fetched)
        fetched.unlink()
    else:
        _install(source, root, Path(archive))
    return check(name, root)


def _install(source: Source, root: Path, archive: Path) -> None:
    with staged(root, source.entries) as folder:
        if source.name == 'camvid':
            unpack(archive, folder / 'segnet', inside=source.inside)
            convert_camvid(folder / 'segnet', folder)
        else:
            target = folder / source.entries[0]
            target.parent.mkdir(parents=True, exist_ok=True)
            unpack(archive, target, inside=source.inside)
        problem = check(source.name, folder).problem()
        if problem:
            # The temporary folder is gone when this is read: say what the archive lacks.
            raise DataError(f'{archive}: {problem.replace(str(folder), "this archive")}')
