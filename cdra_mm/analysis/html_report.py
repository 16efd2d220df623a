"""``report.html``: one file that opens anywhere, without a network."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from cdra_mm.errors import ConfigError
from cdra_mm.storage import write_text

from .picture import GROUPS, Saved
from .summary_text import Sections

__all__ = ['REPORT', 'check_folder', 'report_page', 'write_report']

REPORT = 'report.html'
GENERATOR = '<meta name="generator" content="cdra_mm.analysis">'
MOST_SVG = 250_000  # bytes: larger drawings are slow to show, and a PNG is smaller
MOST_CSV = 500_000

# Pictures keep a width at which their letters can be read; a narrow window scrolls them sideways.
STYLE = """
*{box-sizing:border-box}
body{margin:0;background:#fff;color:#222;font:16px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:16px}
h1{font-size:1.7em;line-height:1.2;margin:.6em 0 .2em;overflow-wrap:anywhere}
h2{font-size:1.35em;margin:2em 0 .4em;padding-top:.5em;border-top:2px solid #0072b2}
h3{font-size:1.1em;margin:1.6em 0 .3em}
p,li{overflow-wrap:anywhere}
p{margin:.4em 0}
nav a{margin-right:1em}
a{color:#00568a}
figure{margin:0 0 2em}
.picture{overflow-x:auto;border:1px solid #ddd;padding:6px}
.picture img{display:block;width:100%;min-width:620px;height:auto}
figcaption{color:#444;margin-top:.5em}
.numbers{font-size:.9em}
.missing{background:#fff6e6;border-left:4px solid #e69f00;padding:.4em 1em}
.table{overflow-x:auto}
table{border-collapse:collapse}
th,td{padding:.25em .8em .25em 0;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}
@media print{.picture{overflow:visible}.picture img{min-width:0}figure{break-inside:avoid}}
"""


def check_folder(folder: str | Path) -> Path:
    """The folder of a report, made if need be.

    Raises:
        ConfigError: If it is no folder, cannot be written, or holds something else.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f'{folder} cannot be the folder of a report: {error}') from None
    if held and not _is_ours(folder / REPORT):
        raise ConfigError(
            f'{folder} holds other files and no report of ours: name a new or empty folder'
        )
    return folder


def _is_ours(page: Path) -> bool:
    return page.is_file() and GENERATOR in page.read_text(encoding='utf-8', errors='replace')[:2000]


def write_report(
    folder: str | Path,
    title: str,
    sections: Sequence[tuple[str, Sections]],
    saved: Sequence[Saved],
    missing: Sequence[str],
) -> Path:
    """Writes the page.

    Args:
        folder: Where it goes.
        title: Its heading.
        sections: Name and sections of each run.
        saved: The pictures.
        missing: What cannot be shown and why.

    Raises:
        CheckpointError: If it cannot be written.
    """
    path = Path(folder) / REPORT
    write_text(path, report_page(title, sections, saved, missing))
    return path


def report_page(
    title: str,
    sections: Sequence[tuple[str, Sections]],
    saved: Sequence[Saved],
    missing: Sequence[str],
) -> str:
    """The page as text; see `write_report`. Everything in it is escaped."""
    groups = [
        (key, heading, [entry for entry in saved if entry.picture.group == key])
        for key, heading in GROUPS.items()
    ]
    groups = [group for group in groups if group[2]]
    parts = [
        '<!DOCTYPE html>',
        '<html lang="en"><head><meta charset="utf-8">',
        GENERATOR,
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>{_text(title)}</title>',
        f'<style>{STYLE}</style></head><body><main>',
        f'<h1>{_text(title)}</h1>',
        '<nav>' + ' '.join(f'<a href="#{key}">{_text(h)}</a>' for key, h, _ in groups) + '</nav>',
    ]
    parts += _comparison(sections) if len(sections) > 1 else _section_lines(sections[0][1])
    if missing:
        parts.append('<section class="missing"><h3>What cannot be shown, and why</h3><ul>')
        parts += [f'<li>{_text(reason)}</li>' for reason in missing]
        parts.append('</ul></section>')
    for key, heading, members in groups:
        parts.append(f'<section id="{key}"><h2>{_text(heading)}</h2>')
        for entry in members:
            parts += _figure(entry)
        parts.append('</section>')
    parts.append('</main></body></html>')
    return '\n'.join(parts) + '\n'


def _section_lines(sections: Sections) -> list[str]:
    parts = []
    for heading, sentences in sections:
        parts.append(f'<h3>{_text(heading)}</h3>')
        parts += [f'<p>{_text(sentence)}</p>' for sentence in sentences]
    return parts


def _comparison(sections: Sequence[tuple[str, Sections]]) -> list[str]:
    """One line a run: the sections in columns."""
    headings = [heading for heading, _ in sections[0][1]]
    parts = ['<div class="table"><table><tr><th>Run</th>']
    parts += [f'<th>{_text(heading)}</th>' for heading in headings]
    for name, own in sections:
        parts.append(f'</tr><tr><th>{_text(name)}</th>')
        parts += [f'<td>{" ".join(map(_text, sentences))}</td>' for _, sentences in own]
    return [*parts, '</tr></table></div>']


def _figure(saved: Saved) -> list[str]:
    picture, table = saved.picture, saved.files['csv']
    size = table.stat().st_size
    if size <= MOST_CSV:
        address = _address('text/csv', table)
        numbers = f'<a download="{_text(table.name)}" href="{address}">the numbers (CSV)</a>'
    else:
        numbers = f'the numbers are in {_text(table.name)} beside this page'
    return [
        f'<figure id="{_text(picture.name)}"><h3>{_text(picture.title)}</h3>',
        f'<div class="picture"><img alt="{_text(picture.title)}" src="{_image(saved)}"></div>',
        f'<figcaption>{_text(picture.caption)} <span class="numbers">[{numbers}]</span>'
        '</figcaption></figure>',
    ]


def _image(saved: Saved) -> str:
    """The drawing, sharp at any size, unless it is large and there is a PNG."""
    svg, png = saved.files.get('svg'), saved.files.get('png')
    if svg is not None and (png is None or svg.stat().st_size <= MOST_SVG):
        return _address('image/svg+xml', svg)
    assert png is not None
    return _address('image/png', png)


def _address(kind: str, path: Path) -> str:
    return f'data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}'


def _text(text: object) -> str:
    return html.escape(str(text), quote=True)
