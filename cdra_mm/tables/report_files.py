"""A report in a results folder: as text and as JSON, with the frontier as a picture."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from cdra_mm.pictures import render, styled
from cdra_mm.storage import write_atomically, write_text

from .report import Report
from .report_text import report_text

__all__ = ['write_report']

FORMS = ('png', 'svg')


def write_report(report: Report, out: Path) -> None:
    """Writes ``report.md``, ``report.json`` and, of two methods or more, ``frontier.png`` and .svg.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    write_text(out / 'report.md', report_text(report))
    write_text(out / 'report.json', json.dumps(report.to_json(), indent=1) + '\n')
    draw = report.picture()
    if draw is None:
        return
    with styled():
        figure = draw()
    for form in FORMS:
        write_atomically(out / f'frontier.{form}', partial(_write, render(figure, form)))


def _write(content: bytes, path: str) -> None:
    Path(path).write_bytes(content)
