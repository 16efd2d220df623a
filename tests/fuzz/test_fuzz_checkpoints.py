"""Damaged files of torch and numpy are refused in one line, or read as what they say."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.reading import read_npz, read_torch
from cdra_mm.reading.safetensors_file import read_safetensors
from tests.reading.files import archive

from .effort import FUZZ, assert_both, judged
from .mutations import JUNK, damaged_bytes

CHECKPOINT = dict(
    state_dict=dict(weight=torch.arange(6.0).reshape(2, 3), flags=torch.tensor([True, False])),
    meta=dict(epoch=3, area=np.arange(3), score=np.float64(0.5), names=('a', 'b')),
    optimizer=dict(state={0: dict(step=torch.tensor(2.0))}, param_groups=[dict(lr=0.1)]),
)
# Operations that take more than they should: names, calls, states, the memo, marks.
OPCODES = [bytes([code]) for code in b'cRbq()}]u0e.\x81\x85\x93Q\x88N2tlds'] + [
    b'cbuiltins\nexec\n', b'cnumpy\ndtype\n', b'h\x00', b'h\xff', b'K\x01', b'X\x01\x00\x00\x00a',
    b'X\xff\xff\xff\x7f', b'\x8a\xff', b'\x8b\xff\xff\xff\x7f', b'(((((((', b'\x85' * 200,
]  # fmt: skip


@pytest.fixture(scope='module')
def files() -> dict[str, list[bytes]]:
    """Files of both formats of torch, and of numpy packed and not."""
    found: dict[str, list[bytes]] = {'torch': [], 'npz': []}
    for is_archive in (True, False):
        stream = io.BytesIO()
        torch.save(CHECKPOINT, stream, _use_new_zipfile_serialization=is_archive)
        found['torch'].append(stream.getvalue())
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, a=np.arange(6.0).reshape(2, 3), b=np.array(['x', 'yz']))
        found['npz'].append(stream.getvalue())
    return found


def read(path: Path, content: bytes, kind: str) -> Any:
    path.unlink(missing_ok=True)  # tensors read before may still be the old one's memory
    path.write_bytes(content)
    if kind == 'npz':
        return dict(read_npz(path))
    return read_torch(path)


@pytest.mark.parametrize('kind', ['torch', 'npz'])
def test_damaged_bytes_are_refused_or_read(files, tmp_path, kind):
    for content in files[kind]:
        judged(kind, lambda content=content: read(tmp_path / 'a', content, kind))

    @FUZZ
    @given(damaged_bytes(files[kind], most_at=3000))
    def check(content: bytes) -> None:
        judged(kind, lambda: read(tmp_path / 'a', content, kind))

    check()
    assert_both(kind)


def test_damaged_pickles_are_refused_or_read(tmp_path):
    stream = io.BytesIO()
    torch.save(CHECKPOINT, stream)
    with zipfile.ZipFile(stream) as file:
        names = file.namelist()
        program = file.read('archive/data.pkl')
        stored = {n.split('/')[-1]: file.read(n) for n in names if '/data/' in n}
    judged('pickle', lambda: read_torch(archive(tmp_path / 'a', program, stored)))

    @FUZZ
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content = bytearray(program)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(content)))
            more = data.draw(st.sampled_from(OPCODES) | st.binary(max_size=3))
            content[at : at + data.draw(st.integers(0, 4))] = more
        judged('pickle', lambda: read_torch(archive(tmp_path / 'a', bytes(content), stored)))

    check()
    assert_both('pickle')


def test_any_plain_value_is_read_as_it_is(tmp_path):
    @FUZZ
    @given(JUNK)
    def check(value: Any) -> None:
        torch.save(value, tmp_path / 'a.pth')
        found = judged('value', lambda: [read_torch(tmp_path / 'a.pth')])
        if found is not None:
            assert pickle.dumps(found[0]) == pickle.dumps(value)

    check()
    assert_both('value')


def test_damaged_safetensors_are_refused_or_read(tmp_path):
    from safetensors.torch import save

    content = save(dict(a=torch.ones(2, 3), b=torch.arange(4)), {'key': 'text'})

    @FUZZ
    @given(damaged_bytes([content], most_at=300))
    def check(damaged: bytes) -> None:
        (tmp_path / 'a').unlink(missing_ok=True)
        (tmp_path / 'a').write_bytes(damaged)
        judged('safetensors', lambda: read_safetensors(tmp_path / 'a'))

    check()
    assert_both('safetensors')
