"""The record of a data set: where it comes from, how it is converted, what it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .expected_contents import ExpectedContents
from .layout import Split
from .unpack import unpack

__all__ = ['Archive', 'Convert', 'Source', 'install']

Convert = Callable[[Mapping[str, Path], Path], object]
"""Makes the entries of a data set in a folder from the publisher's files, given by their names."""


@dataclass(frozen=True)
class Archive:
    """A file of the publisher.

    Attributes:
        name: File name under which it is stored while it is needed, and looked for in the folder
            that ``--archive`` names.
        url: Its address; empty where a program cannot fetch it.
        size: Length in bytes, where known.
        checksum: ``algorithm:hexdigest``, where known.
    """

    name: str
    url: str = ''
    size: int | None = None
    checksum: str | None = None


@dataclass(frozen=True)
class Source:
    """A data set: its publisher's files and its layout once prepared.

    Attributes:
        name: Name on the command line.
        title: Name and licence in a sentence, for messages.
        entries: What is put into the root folder, and nothing else is touched there.
        splits: The splits of a complete copy, those of one part together.
        convert: Makes the entries from the files.
        files: The publisher's files; none for generated data.
        by_hand: Where the files come from, for those that a program cannot fetch.
        packages: Module and package of each import that the conversion needs.
        kept: Names of files in an entry that are used when they are there already.
        fit: What a particular folder changes of the splits.
    """

    name: str
    title: str
    entries: tuple[str, ...]
    splits: tuple[Split, ...]
    convert: Convert
    files: tuple[Archive, ...] = ()
    by_hand: str = ''
    packages: tuple[tuple[str, str], ...] = ()
    kept: tuple[str, ...] = ()
    fit: Callable[[tuple[Split, ...], Path], ExpectedContents] | None = None

    def fitted(self, root: Path) -> tuple[Source, tuple[str, ...]]:
        """The data set as the folder calls for, and notes on it.

        Returns:
            The record with the splits to expect there, and sentences for the listing.
        """
        if self.fit is None:
            return self, ()
        expected = self.fit(self.splits, root)
        entries = self.entries if expected.entries is None else expected.entries
        return replace(self, splits=expected.splits, entries=entries), expected.notes


def install(files: Mapping[str, Path], out: Path, *, inside: str, entry: str) -> None:
    """Converts a set whose only archive has the layout that is read: unpacks one folder of it.

    Args:
        files: The archive, under any name.
        out: Folder in which to make the entry.
        inside: Folder within the archive.
        entry: Path of the data set in ``out``.

    Raises:
        DataError: If the archive cannot be unpacked.
    """
    (archive,) = files.values()
    (out / entry).parent.mkdir(parents=True, exist_ok=True)
    unpack(archive, out / entry, inside=inside)
