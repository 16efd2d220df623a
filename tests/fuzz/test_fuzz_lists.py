"""Damaged lists of images: refused, or read as a slow reader reads them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import DataError
from cdra_mm.data.listed import JsonSplit, ListSplit

from .effort import FUZZ, assert_both, judged
from .mutations import damaged_bytes, damaged_json

pytest.importorskip('mmpretrain')

PLAIN = dict(serialize_data=False)  # which would collect garbage every time
PATHS = ['images/a.jpg', 'images/b c.jpg', 'images/é.jpg', 'd.jpg']
LABELS = ['0', '2', '-1', '3', '99999999999', '9' * 5000, '1.0', 'x', '٣', '']
ENTRIES = ['../out.jpg', '/etc/passwd', 'images/../../out.jpg', 'images/../d.jpg', '.', '..', '']
ENTRIES += ['a\x00b.jpg', 'x' * 300, 'missing.jpg', 'images', 'images/./a.jpg', 'images//a.jpg']
ENTRIES += [
    '~/a.jpg',
    'C:\\a.jpg',
    '..\\out.jpg',
    '\ud800.jpg',
    ' ',
    'images/a.jpg/',
    'd.jpg/../d.jpg',
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A task with four images, beside an image that is none of its own."""
    task = tmp_path / 'root' / 'task'
    (task / 'images').mkdir(parents=True)
    for path in PATHS:
        (task / path).write_bytes(b'image')
    (task.parent / 'out.jpg').write_bytes(b'image')
    return task


SEPARATORS = [' ', '  ', '\t', '', '\u00a0', '\x0b']
LINES = st.one_of(
    st.sampled_from(ENTRIES).map('{} 0'.format),
    st.tuples(
        st.sampled_from([*PATHS, *ENTRIES]), st.sampled_from(SEPARATORS), st.sampled_from(LABELS)
    ).map(''.join),
    st.text(max_size=12),
)


@st.composite
def lists(draw) -> bytes:
    """Text lists: whole ones with odd lines in between, and whole ones with damaged bytes."""
    whole = [f'{path} {label % 3}' for label, path in enumerate(PATHS)]
    kept = draw(st.lists(st.sampled_from(whole), unique=True, min_size=1))
    if draw(st.booleans()):
        return draw(damaged_bytes(['\n'.join(kept).encode()]))
    for line in draw(st.lists(LINES, max_size=2)):
        kept.insert(draw(st.integers(0, len(kept))), line)
    text = draw(st.sampled_from(['\n', '\r\n'])).join(kept)
    start = draw(st.sampled_from(['', '\ufeff', '\n\n']))
    return (start + text).encode('utf-8', 'surrogatepass')


def test_damaged_text_list_is_refused_or_read_line_by_line(root: Path):
    from cdra_mm.mm.datasets import VTAB1k

    split = ListSplit(name='train800', count=None, part='task', num_classes=3)

    def look(content: bytes) -> None:
        (root / 'train800.txt').write_bytes(content)
        data = judged('text list', lambda: VTAB1k(str(root), 'train800', num_classes=3, **PLAIN))
        listing = split.read(root.parent)
        if data is None:
            assert listing.faults or not listing.samples
            return
        given = [(data.get_data_info(i)['img_path'], data.get_data_info(i)['gt_label'])
                 for i in range(len(data))]  # fmt: skip
        expected = []
        for line in content.decode('utf-8-sig').splitlines():
            if line.strip():
                label = line.split()[-1]
                path = line.strip()[: -len(label)].strip()
                expected.append((str(root / path), int(label)))
        assert given == expected
        assert all(label in (0, 1, 2) for _, label in given)
        assert_inside(root, [path for path, _ in given])
        assert not listing.faults
        assert [(str(s.image), s.label) for s in listing.samples] == given

    @FUZZ
    @given(lists())
    def check(content: bytes) -> None:
        look(content)

    for entry in ENTRIES:
        look(f'images/a.jpg 0\n{entry} 1'.encode('utf-8', 'surrogatepass'))
    check()
    assert_both('text list')


def assert_inside(root: Path, paths: list[str]) -> None:
    """Every image lies below the folder, and none is listed twice."""
    real = [os.path.realpath(path) for path in paths]
    assert all(path.startswith(f'{root}{os.sep}') and os.path.isfile(path) for path in real)
    assert len(set(real)) == len(real)


ORIGINALS = [
    {'images/a.jpg': 1, 'images/b c.jpg': 2},
    {'images/a.jpg': 7, 'd.jpg': -3, 'images/é.jpg': 7},
]


def test_damaged_json_list_is_refused_or_read_entry_by_entry(root: Path):
    from cdra_mm.mm.datasets import FGVC

    (root / 'val.json').write_text('{"val.jpg": 1}')
    (root / 'test.json').write_text('{"test.jpg": 1}')
    split = JsonSplit(name='train', count=None, part='task')
    entries = st.dictionaries(st.sampled_from([*PATHS, *ENTRIES]), st.integers(1, 2), min_size=1)
    texts = st.one_of(
        damaged_json(ORIGINALS).map(lambda text: text.encode('utf-8', 'surrogateescape')),
        entries.map(lambda labels: json.dumps(labels).encode()),
    )

    def look(content: bytes) -> None:
        (root / 'train.json').write_bytes(content)
        data = judged('JSON list', lambda: read(FGVC, root))
        listing = split.read(root.parent)
        if data is None:
            assert listing.faults or not listing.samples
            return
        written = json.loads(content.decode('utf-8-sig'))
        ids = sorted({1, *written.values()})
        given = {
            data.get_data_info(i)['img_path']: ids[data.get_data_info(i)['gt_label']]
            for i in range(len(data))
        }
        assert given == {str(root / path): id_ for path, id_ in written.items()}
        assert_inside(root, list(given))
        assert not listing.faults
        assert {str(s.image): s.label for s in listing.samples} == given

    @FUZZ
    @given(texts, st.booleans())
    def check(content: bytes, bom: bool) -> None:
        look(b'\xef\xbb\xbf' * bom + content)

    for entry in ENTRIES:
        look(json.dumps({'images/a.jpg': 1, entry: 1}).encode())
    check()
    assert_both('JSON list')


def read(kind, root: Path):
    """The data set with as many classes as its lists hold, which the first refusal tells."""
    try:
        return kind(str(root), 'train', num_classes=99, **PLAIN)
    except DataError as error:
        number = re.search(r'set num_classes=(\d+)', str(error))
        if number is None:
            raise
    return kind(str(root), 'train', num_classes=int(number[1]), **PLAIN)
