"""Archives of numpy: arrays of plain numbers, and nothing for empty claims."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from cdra_mm.core import CheckpointError
from cdra_mm.reading import read_npz


def read(path):
    return dict(read_npz(path))


def header(text, body=b'', length=None):
    text = text.encode()
    size = len(text) if length is None else length
    return b'\x93NUMPY\x01\x00' + size.to_bytes(2, 'little') + text + body


def archive(path, content, packed=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', packed) as file:
        file.writestr('a.npy', content)
    return path


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, save):
    arrays = dict(
        a=np.arange(6).reshape(2, 3), b=np.ones((2, 3), 'f4', order='F'), c=np.float16(2),
        d=np.array([True]), e=np.zeros((0, 4)), f=np.array(['x', 'yz']), g=np.zeros(100_000),
    )  # fmt: skip
    save(tmp_path / 'a.npz', **arrays)
    found = read(tmp_path / 'a.npz')
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype and np.array_equal(found[name], value)


def test_objects_are_refused(tmp_path):
    np.savez(tmp_path / 'a.npz', a=np.array([{}], object))
    with pytest.raises(CheckpointError, match='no plain numbers'):
        read(tmp_path / 'a.npz')


CLAIM = "{'descr': '<f4', 'fortran_order': False, 'shape': (1125899906842624,), }\n"
CONTENTS = {
    'petabytes': (header(CLAIM), r'claims 4,503,599,627,370,496 bytes, 0 are there'),
    'no array': (b'text', 'is no array'),
    'a long header': (header('', length=60_000), 'has a header of 60,000'),
    'a header that is no dict': (header('[' * 3000), 'header of an array is damaged'),
    'a call in the header': (header("__import__('os')"), 'header of an array is damaged'),
    'a negative shape': (header(CLAIM.replace('1125899906842624', '-1')), 'shape that is none'),
    'a record': (header(CLAIM.replace("'<f4'", "[('a', '<f4')]")), 'no plain numbers'),
}


@pytest.mark.parametrize('content, reason', CONTENTS.values(), ids=CONTENTS)
def test_claims_are_held_against_the_bytes(tmp_path, content, reason):
    with pytest.raises(CheckpointError, match=reason):
        read(archive(tmp_path / 'a.npz', content))


def test_what_would_grow_to_gigabytes_is_refused(tmp_path):
    path = archive(tmp_path / 'a.npz', b'0')
    content = bytearray(path.read_bytes())
    at = content.rindex(b'PK\x01\x02') + 24  # the length that the directory states
    content[at : at + 4] = (3 << 30).to_bytes(4, 'little')
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='would grow to 3,221,225,472'):
        read(path)


def test_an_archive_that_is_cut_off_or_none_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(100))
    whole = buffer.getvalue()
    for length in range(0, len(whole), 37):
        (tmp_path / 'a.npz').write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r'a\.npz'):
            read(tmp_path / 'a.npz')
