"""A picture with its caption and the numbers behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdra_mm.columns import csv_text
from cdra_mm.errors import ConfigError
from cdra_mm.pictures import render, styled
from cdra_mm.storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['FORMS', 'GROUPS', 'Picture', 'Saved', 'Table']

FORMS = ('png', 'svg')
# The parts of a report, in its order, and their headings.
GROUPS = {
    'plan': 'What is tuned',
    'training': 'How it was trained',
    'predictions': 'What it predicts',
    'comparison': 'The runs side by side',
}


@dataclass(frozen=True)
class Table:
    """Numbers with a heading for each column.

    Attributes:
        header: Names of the columns, units included.
        rows: One entry for each column; None where there is no value.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f'a row has {len(row)} entries, the header {len(self.header)}')

    def to_csv(self) -> str:
        """The table as CSV text."""
        return csv_text(self.header, self.rows)


@dataclass(frozen=True)
class Saved:
    """What `Picture.save` wrote.

    Attributes:
        picture: The picture.
        files: Its files by their ending: ``csv`` and the forms asked for.
    """

    picture: Picture
    files: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A picture of a report, drawn when it is saved: one figure is alive at a time.

    Attributes:
        name: Stem of its files: small letters, digits and ``_``.
        title: Its heading; also read out in place of the picture.
        caption: What it shows, in plain words.
        draw: Makes the figure (`cdra_mm.pictures.new_figure`). It is called within
            `cdra_mm.pictures.styled`, and may be called again.
        table: The numbers that it shows.
        group: The part of the report that it belongs to, a key of `GROUPS`.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]
    table: Table
    group: str = 'plan'

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f'group {self.group!r}: expected one of {", ".join(GROUPS)}')
        if not self.name or set(self.name) - set('abcdefghijklmnopqrstuvwxyz0123456789_'):
            raise ValueError(f'name {self.name!r}: expected small letters, digits and _')

    def figure(self) -> Figure:
        """The figure, drawn anew."""
        with styled():
            return self.draw()

    def save(self, folder: str | Path, forms: Sequence[str] = FORMS) -> Saved:
        """Writes the numbers as CSV and the picture in each form.

        Args:
            folder: Where the files ``<name>.<form>`` go.
            forms: Of `FORMS`.

        Raises:
            ConfigError: If a form is unknown.
            CheckpointError: If a file cannot be written.
        """
        unknown = sorted(set(forms) - set(FORMS))
        if unknown:
            raise ConfigError(f'format {unknown[0]!r}: expected one of {", ".join(FORMS)}')
        contents = {'csv': self.table.to_csv().encode()}
        figure = self.figure()
        contents |= {form: render(figure, form) for form in forms}
        files = {form: Path(folder) / f'{self.name}.{form}' for form in contents}
        for form, path in files.items():
            write_atomically(path, partial(_write, contents[form]))
        return Saved(self, files)


def _write(data: bytes, path: str) -> None:
    Path(path).write_bytes(data)
