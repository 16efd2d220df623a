"""How a table is written: for a terminal, as Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from cdra_mm.columns import csv_text

from .table import Cell, Column, Table

__all__ = ['FORMATS', 'SUFFIXES']

NOTHING = '-'
LATEX = {
    '\\': r'\textbackslash{}', '%': r'\%', '&': r'\&', '_': r'\_', '#': r'\#', '$': r'\$',
    '{': r'\{', '}': r'\}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
    '±': r'$\pm$',
}  # fmt: skip


def terminal(table: Table) -> str:
    """Aligned columns under two lines of titles; families are headings."""
    rows = [(title, texts) for _, title, texts in _texts(table)]
    titles = [column.title for column in table.columns]
    widths = [
        max(len(text) for text in (title, *(texts[i] for _, texts in rows)))
        for i, title in enumerate(titles)
    ]
    first = max(len(text) for text in ('', *(title for title, _ in rows))) + 2
    lines = [table.title, '']
    if any(column.group for column in table.columns):
        lines.append((' ' * first + _group_line(table.columns, widths)).rstrip())
    heads = [title.rjust(width) for title, width in zip(titles, widths, strict=True)]
    lines.append(' ' * first + '  '.join(heads))
    lines.append('-' * len(lines[-1]))
    for family, entries in groupby(_texts(table), lambda entry: entry[0]):
        if family:
            lines.append(f'{family}:')
        for _, title, texts in entries:
            cells = [text.rjust(width) for text, width in zip(texts, widths, strict=True)]
            lines.append(f'{title.ljust(first)}{"  ".join(cells)}')
    return '\n'.join([*lines, '', *table.notes]) + '\n'


def markdown(table: Table) -> str:
    """A GitHub table; the best figure of a column is bold."""
    lines = [f'**{table.title}**', '']
    heads = [_two(column, ': ') for column in table.columns]
    lines.append(_pipes(['', *heads]))
    lines.append(_pipes(['---', *('---:' for _ in heads)]))
    for family, entries in groupby(_texts(table, best='**{}**'), lambda entry: entry[0]):
        if family:
            lines.append(_pipes([f'*{family}*', *('' for _ in heads)]))
        lines += [_pipes([title, *texts]) for _, title, texts in entries]
    return '\n'.join([*lines, '', *(f'{note}  ' for note in table.notes)]).rstrip() + '\n'


def comma_separated(table: Table) -> str:
    """A row a method, in full precision: each figure, its spread and its number of seeds."""
    heads = ['family', 'method']
    for column in table.columns:
        name = _two(column, ': ')
        heads += [name] if column.share else [name, f'{name} (spread)', f'{name} (seeds)']
    lines: list[list[object]] = []
    for family, rows in table.families:
        for title, cells in rows:
            words: list[object] = [family, title]
            for column, cell in zip(table.columns, cells, strict=True):
                figures = [cell.mean, cell.spread]
                texts = ['' if value is None else f'{value:.6g}' for value in figures]
                words += texts[:1] if column.share else [*texts, len(cell.values)]
            lines.append(words)
    return csv_text(heads, lines)


def latex(table: Table) -> str:
    """A ``table*`` for the package booktabs; the best figure of a column is bold."""
    width = 1 + len(table.columns)
    over, under = [''], ['']
    for group, columns in groupby(table.columns, lambda column: column.group):
        count = len(list(columns))
        over.append(rf'\multicolumn{{{count}}}{{c}}{{{_escape(group)}}}')
    under += [_escape(column.title) for column in table.columns]
    lines = [
        r'% needs \usepackage{booktabs}',
        r'\begin{table*}',
        r'\centering',
        rf'\begin{{tabular}}{{l{"r" * (width - 1)}}}',
        r'\toprule',
    ]
    if any(column.group for column in table.columns):
        lines.append(' & '.join(over) + r' \\')
    lines.append(' & '.join(under) + r' \\')
    texts = _texts(table, best=r'\textbf{{{}}}', escape=_escape)
    for family, entries in groupby(texts, lambda entry: entry[0]):
        lines.append(r'\midrule')
        if family:
            lines.append(rf'\multicolumn{{{width}}}{{l}}{{\emph{{{_escape(family)}}}}} \\')
        lines += [' & '.join([_escape(title), *cells]) + r' \\' for _, title, cells in entries]
    caption = _escape(' '.join([f'{table.title}.', *table.notes]))
    lines += [r'\bottomrule', r'\end{tabular}', rf'\caption{{{caption}}}', r'\end{table*}']
    return '\n'.join(lines) + '\n'


FORMATS: dict[str, Callable[[Table], str]] = {
    'terminal': terminal,
    'markdown': markdown,
    'csv': comma_separated,
    'latex': latex,
}
SUFFIXES = {'terminal': 'txt', 'markdown': 'md', 'csv': 'csv', 'latex': 'tex'}


def _texts(
    table: Table, *, best: str = '{}', escape: Callable[[str], str] = str
) -> Iterator[tuple[str, str, list[str]]]:
    """Family, title and cells of each row; a mean that equals the best as shown is marked."""
    shown = [table.best(i) for i in range(len(table.columns))]
    for family, rows in table.families:
        for title, cells in rows:
            texts = []
            for column, cell, top in zip(table.columns, cells, shown, strict=True):
                text = escape(_text(column, cell))
                wins = cell.complete and top is not None and _round(cell) == f'{top:.1f}'
                texts.append(best.format(text) if wins else text)
            yield family, title, texts


def _text(column: Column, cell: Cell) -> str:
    """A cell as text.

    Example:
        >>> _text(Column('A'), Cell((70.0, 72.0), 3)), _text(Column('P', share=True), Cell((0.5,)))
        ('71.0 ± 1.4 (2)', '0.50')
        >>> _text(Column('A'), Cell())
        '-'
    """
    if cell.mean is None:
        return NOTHING
    if column.share:
        return f'{cell.mean:.2f}'
    spread = '' if cell.spread is None else f' ± {cell.spread:.1f}'
    return _round(cell) + spread + ('' if cell.complete else f' ({len(cell.values)})')


def _round(cell: Cell) -> str:
    return NOTHING if cell.mean is None else f'{cell.mean:.1f}'


def _two(column: Column, between: str) -> str:
    return between.join(text for text in (column.group, column.title) if text)


def _group_line(columns: tuple[Column, ...], widths: list[int]) -> str:
    """The line of groups; widens the last column of a group whose name needs it."""
    parts, start = [], 0
    for group, members in groupby(columns, lambda column: column.group):
        end = start + len(list(members))
        width = sum(widths[start:end]) + 2 * (end - start - 1)
        widths[end - 1] += max(0, len(group) - width)
        name = f' {group} ' if len(group) + 2 <= width else group
        parts.append(name.center(width, '-' if group and end - start > 1 else ' '))
        start = end
    return '  '.join(parts)


def _pipes(cells: list[str]) -> str:
    return f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in cells)} |'


def _escape(text: str) -> str:
    return ''.join(LATEX.get(letter, letter) for letter in text)
