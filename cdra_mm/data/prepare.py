"""From a name to a complete data set on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cdra_mm.errors import DataError

from .completeness import Report, check
from .download import download
from .optional import optional_module
from .source import Source
from .staging import staged
from .unpack import DamagedArchiveError

__all__ = ['prepare']


def prepare(name: str, root: str | Path, *, archive: str | Path | None = None) -> Report:
    """Bring a data set into ``root``, unless it is complete there already.

    Everything is made in a temporary folder, counted, and moved into place at the end; nothing that
    exists is overwritten. Archives that this call downloads are removed afterwards; those given, or
    in ``root`` already, are used and stay. Parts that are complete, such as some tasks of VTAB-1k,
    stay as they are while the rest is added.

    Args:
        name: A key of :data:`~cdra_mm.data.SOURCES`.
        root: Folder of the data set: ``data/ade`` for ade20k, ``data`` for voc, ``data/camvid``,
            ``data/demo``, ``data/vtab-1k``, ``data/fgvc`` for the fine-grained sets.
        archive: The publisher's archive when it has been fetched by other means; the folder that
            holds them under the publisher's names where a data set comes in several files.

    Raises:
        DataError: If the data set is unknown, cannot be fetched, or a part of it is there already.
    """
    root = Path(root)
    report = check(name, root)
    if report.complete:
        return report
    source = report.source
    parts = report.parts()
    whole = [part for part in parts if part and not report.part_troubles(part, parts[part])]
    source = replace(source, entries=tuple(e for e in source.entries if e not in whole))
    for entry in source.entries:
        if (root / entry).exists() and not _only_kept(root / entry, source):
            raise DataError(f'{root / entry} exists, but {report.problem()}: move it away first')
    if not source.entries:  # what is wrong is in parts that are not made here
        return report
    for module, package in source.packages:
        optional_module(module, package)  # before anything is downloaded
    if archive is not None:
        _install(source, root, _given(source, Path(archive)), Path(archive))
        return check(name, root)
    if not all(file.url for file in source.files):
        what = 'the folder of the files' if len(source.files) > 1 else 'the file'
        raise DataError(
            f'{name} cannot be fetched by this program: {source.by_hand}; '
            f'name {what} with --archive'
        )
    paths = {file.name: root / file.name for file in source.files}
    # Told before anything is fetched: who put these there may have no other copy.
    found = {path for path in paths.values() if os.path.lexists(path)}
    for file in source.files:
        download(file.url, paths[file.name], size=file.size, checksum=file.checksum)
    try:
        _install(source, root, paths, None)
    except DamagedArchiveError as error:
        if error.archive in found:
            raise DataError(f'{error}; move it away to have it fetched') from error
        if error.archive not in paths.values():
            raise
        # Kept, it would be taken for the right one by the next run.
        error.archive.unlink(missing_ok=True)
        raise DataError(f'{error}; the bad copy was removed, run again') from error
    for path in set(paths.values()) - found:
        path.unlink()
    return check(name, root)


def _given(source: Source, archive: Path) -> dict[str, Path]:
    """The files that ``--archive`` names, by the publisher's names."""
    names = [file.name for file in source.files]
    if not names:
        raise DataError(f'{source.name} data are generated: --archive does not go with them')
    if archive.is_dir():
        missing = [name for name in names if not (archive / name).is_file()]
        if missing:
            raise DataError(f'{archive} lacks {", ".join(missing)} (needed: {", ".join(names)})')
        return {name: archive / name for name in names}
    if not archive.is_file():
        raise DataError(f'{archive} is not there or is no file')
    if len(names) > 1:
        raise DataError(
            f'{source.name} comes in {len(names)} files ({", ".join(names)}): '
            f'--archive takes the folder that holds them, not {archive}'
        )
    return {names[0]: archive}


def _only_kept(entry: Path, source: Source) -> bool:
    """Whether all that an entry holds are files that are used as they are."""
    return entry.is_dir() and all(path.name in source.kept for path in entry.iterdir())


def _install(source: Source, root: Path, files: Mapping[str, Path], given: Path | None) -> None:
    with staged(root, source.entries, kept=source.kept) as folder:
        for entry in source.entries:
            for name in source.kept:
                for place in (root / entry, given):
                    if place is not None and (place / name).is_file():
                        (folder / entry).mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(place / name, folder / entry / name)
                        break
        source.convert(files, folder)
        made = check(source.name, folder)
        # Parts that are in place already are not made again.
        states = tuple(s for s in made.states if s.split.part in ('', *source.entries))
        problem = replace(made, states=states).problem()
        if problem:
            # The temporary folder is gone when this is read: say what the archives lack.
            names = ' and '.join(str(path) for path in files.values()) or source.name
            problem = problem.replace(f'{folder}/', '').replace(str(folder), 'this archive')
            again = '' if given else '; delete it to fetch it again' if files else ''
            raise DataError(f'{names}: {problem}{again}')
