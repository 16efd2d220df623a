"""Lists of images with class ids, as VTAB-1k (text) and the FGVC sets (JSON) have them.

Read once and the same for whoever counts a data set and whoever trains on it: what a list says, and
everything that is wrong with it. No image is looked for.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .layout import Fault

__all__ = ['EXPECTED', 'ListFile', 'read_json_list', 'read_text_list']

EXPECTED = 'expected one flat object {"relative/path.jpg": class id}'


@dataclass
class ListFile:
    """What a list says.

    Attributes:
        labels: Class id by path, in the order of the list; sound entries only.
        faults: What is wrong with the file or with entries, in their order.
    """

    labels: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._spelled: dict[str, tuple[str, int]] = {}  # normal form: as given, and its position

    def add(self, path: str, label: int, position: int, where: Callable[[str, int], str]) -> None:
        """Takes an entry, unless its path is none of the folder's or stands in the list already.

        Args:
            path: As the list gives it, relative to the folder of the images.
            label: Its class id.
            position: Of the entry.
            where: Gives file and line of a path at a position.
        """
        normal = os.path.normpath(path)
        if os.path.isabs(path) or normal.split(os.sep)[0] == os.pardir:
            what = f'{path} leaves the data folder; paths are relative to it'
        elif not path.strip() or '\0' in path:
            what = f'{path!r} is no path'
        elif normal in self._spelled:
            what = f'{path} is listed already at {where(*self._spelled[normal])}'
        else:
            self._spelled[normal] = path, position
            self.labels[path] = label
            return
        self.faults.append(Fault(f'{where(path, position)}:', what))


def read_text_list(file: Path, num_classes: int | None = None) -> ListFile:
    """Reads lines of a path, a space and a zero-based class id; blank lines are skipped.

    Args:
        file: The list; it exists.
        num_classes: Ids are below it; None where it is not known.
    """
    found = ListFile()
    for number, line in enumerate(_text(file, found).splitlines(), 1):
        # Paths may contain spaces: the id is what follows the last one.
        fields = line.strip().rsplit(maxsplit=1)
        if not fields:
            continue
        what = ''
        # Longer digits are no id, and int() refuses very long ones in its own words.
        if len(fields) != 2 or not re.fullmatch(r'-?[0-9]{1,9}', fields[1]):
            what = f'expected "path label", got {line.strip()[:200]!r}'
        elif not 0 <= int(fields[1]) < (num_classes or 1 << 31):
            known = f' for {num_classes} classes (0 to {num_classes - 1})' if num_classes else ''
            what = f'label {fields[1]} is out of range{known}; correct the list or num_classes'
        if what:
            found.faults.append(Fault(f'{file}:{number}:', what))
        else:
            found.add(fields[0], int(fields[1]), number, lambda _, line: f'{file}:{line}')
    return found


class _Pairs(list[tuple[str, Any]]):
    """The entries of a JSON object in their order, repeated names included."""


def read_json_list(file: Path) -> ListFile:
    """Reads one flat object of paths and class ids, which may be any integers.

    Args:
        file: The list; it exists.
    """
    found = ListFile()
    text = _text(file, found)
    if found.faults:
        return found
    try:
        entries: Any = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        what = f'malformed JSON in column {error.colno} ({error.msg}); {EXPECTED}'
        return ListFile(faults=[Fault(f'{file}:{error.lineno}:', what)])
    except (RecursionError, ValueError) as error:  # nested too deep, an integer too long
        return ListFile(faults=[Fault(f'{file}:', f'no list of images ({error}); {EXPECTED}')])
    if not isinstance(entries, _Pairs):
        what = f'its content is a {type(entries).__name__}; {EXPECTED}'
        return ListFile(faults=[Fault(f'{file}:', what)])
    seen: dict[str, int] = {}

    def where(path: str, occurrence: int) -> str:
        return _place(file, text, path, occurrence)

    for path, label in entries:
        occurrence = seen[path] = seen.get(path, -1) + 1
        if type(label) is int:  # bool is an int, and no id
            found.add(path, label, occurrence, where)
            continue
        given = 'an object' if isinstance(label, _Pairs) else repr(label)[:80]
        what = f'the class id of {path!r} must be an integer, got {given}; {EXPECTED}'
        found.faults.append(Fault(f'{where(path, occurrence)}:', what))
    return found


def _text(file: Path, found: ListFile) -> str:
    """Text of a list, with or without a byte order mark; notes where it is none."""
    try:
        return file.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        found.faults.append(Fault(str(file), f'is not UTF-8 text (byte {error.start})'))
        return ''


def _place(file: Path, text: str, path: str, occurrence: int) -> str:
    """File and line of an entry; the file alone where its name is written in another way."""
    spellings = {json.dumps(path), json.dumps(path, ensure_ascii=False)}
    spellings |= {text.replace('/', r'\/') for text in spellings}
    pattern = '|'.join(map(re.escape, spellings))
    matches = [match.start() for match in re.finditer(rf'(?:{pattern})\s*:', text)]
    if occurrence >= len(matches):
        return str(file)
    return f'{file}:{text.count(chr(10), 0, matches[occurrence]) + 1}'
