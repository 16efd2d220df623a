"""A JSON list of images: one flat object ``{"relative/path.jpg": class id}``, entry by entry."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cdra_mm.errors import DataError

from .listed_images import check_relative, read_text

__all__ = ['read_labels']

EXPECTED = 'expected one flat object {"relative/path.jpg": class id}'


class _Pairs(list[tuple[str, Any]]):
    """The entries of a JSON object in their order, repeated names included."""


def read_labels(file: Path) -> dict[str, int]:
    """Reads a list of images and their class ids.

    Returns:
        Class id by path, in the order of the file. Ids are the file's own, any integers.

    Raises:
        DataError: If the file is not UTF-8, no JSON, no flat object or empty, a class id is no
            integer, or a path is repeated or leaves the folder. Names the line.
    """
    text = read_text(file)
    entries = _parse(text, file)
    labels: dict[str, int] = {}
    spelled: dict[str, str] = {}
    for path, label in entries:
        if type(label) is not int:  # bool is an int, and no id
            given = 'an object' if isinstance(label, _Pairs) else repr(label)[:80]
            raise DataError(
                f'{_place(file, text, path)}: the class id of {path!r} must be an integer, '
                f'got {given}; {EXPECTED}'
            )
        try:
            key = check_relative(path, str(file))
        except DataError:  # the line is looked for only where it is told
            key = check_relative(path, _place(file, text, path))
        if key in spelled:
            first = _place(file, text, spelled[key])
            again = _place(file, text, path, occurrence=int(path == spelled[key]))
            raise DataError(f'{again}: {path} is listed already at {first}')
        spelled[key] = path
        labels[path] = label
    if not labels:
        raise DataError(f'{file} lists no image; {EXPECTED}')
    return labels


def _parse(text: str, file: Path) -> _Pairs:
    try:
        entries: Any = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise DataError(
            f'{file}:{error.lineno}: malformed JSON in column {error.colno} ({error.msg}); '
            f'{EXPECTED}'
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deep, an integer too long
        raise DataError(f'{file}: no list of images ({error}); {EXPECTED}') from None
    if not isinstance(entries, _Pairs):
        raise DataError(f'{file}: its content is a {type(entries).__name__}; {EXPECTED}')
    return entries


def _place(file: Path, text: str, path: str, occurrence: int = 0) -> str:
    """File and line of an entry; the file alone where its name is written in another way."""
    spellings = {json.dumps(path), json.dumps(path, ensure_ascii=False)}
    spellings |= {text.replace('/', r'\/') for text in spellings}
    pattern = '|'.join(map(re.escape, spellings))
    matches = [match.start() for match in re.finditer(rf'(?:{pattern})\s*:', text)]
    if occurrence >= len(matches):
        return str(file)
    return f'{file}:{text.count(chr(10), 0, matches[occurrence]) + 1}'
