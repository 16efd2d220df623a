"""What a command of the tables leaves and prints in the end: the table and the report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cdra_mm.storage import write_text

from .edges import Edge
from .grid import Grid
from .report import make_report
from .report_files import write_report
from .report_text import report_text
from .table import Results, make_table
from .text_formats import FORMATS, SUFFIXES

__all__ = ['show']


def show(
    grid: Grid,
    results: Results,
    edges: Sequence[Edge],
    arguments: argparse.Namespace,
    out: Path | None,
) -> None:
    """Prints the table or the report of what is done, and writes both.

    Args:
        grid: The grid.
        results: Its runs that are done.
        edges: Choices at an edge of what was tried.
        arguments: What `study_options.parser` read.
        out: Where the table in all formats and the report are written; None for nowhere.

    Raises:
        ConfigError: If the row to compare with is unknown.
        CheckpointError: If a file cannot be written.
    """
    table = make_table(grid, results)
    report = make_report(grid, results, edges, against=arguments.against)
    if out is not None:
        for name, write in FORMATS.items():
            write_text(out / f'table.{SUFFIXES[name]}', write(table))
        write_report(report, out)
    text = report_text(report) if arguments.report else FORMATS[arguments.format](table)
    print(text, end='', flush=True)
