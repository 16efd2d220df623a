"""A safetensors file says nothing of itself that its bytes do not bear out."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import save

from cdra_mm.core import CheckpointError
from cdra_mm.reading.safetensors_file import open_safetensors, read_safetensors

ENTRY = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}


def written(path, header, body=bytes(8), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text) if length is None else length) + text + body)
    return path


def test_a_file_is_read_as_it_is(tmp_path):
    tensors = dict(a=torch.ones(2), b=torch.arange(3), c=torch.zeros(0, 2).bfloat16())
    (tmp_path / 'a').write_bytes(save(tensors, {'key': 'text'}))
    file = open_safetensors(tmp_path / 'a')
    assert file.metadata == {'key': 'text'} and file.shapes['c'] == (0, 2)
    found = read_safetensors(tmp_path / 'a')
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert read_safetensors(written(tmp_path / 'b', {'w': ENTRY}))['w'].tolist() == [0, 0]


DAMAGES = {
    'petabytes': ({'w': {**ENTRY, 'shape': [1 << 50], 'data_offsets': [0, 1 << 52]}}, 'bytes of'),
    'more values than bytes': ({'w': {**ENTRY, 'shape': [3]}}, 'claims 12 bytes, 8 are there'),
    'a product beyond 64 bits': ({'w': {**ENTRY, 'shape': [1 << 40, 1 << 40]}}, 'claims'),
    'a negative size': ({'w': {**ENTRY, 'shape': [-2]}}, 'no whole numbers'),
    'a shape of texts': ({'w': {**ENTRY, 'shape': ['2']}}, 'no whole numbers'),
    'an unknown type': ({'w': {**ENTRY, 'dtype': 'F31'}}, "unknown type 'F31'"),
    'an overlap': ({'w': ENTRY, 'v': ENTRY}, 'does not begin where'),
    'a gap': ({'w': {**ENTRY, 'data_offsets': [8, 16]}}, 'does not begin where'),
    'a list': ([], 'no JSON object'),
    'an entry of text': ({'w': 'x'}, 'is not dtype, shape and data_offsets'),
    'metadata that is no text': ({'__metadata__': {'a': 1}, 'w': ENTRY}, 'no text by name'),
    'deep nesting': (b'[' * 50_000, 'nested too deep'),
    'nesting that Python takes': (b'[' * 300 + b']' * 300, 'nested too deep'),
    'one name twice': (b'{"a": 1, "a": 2}', 'stands twice'),
    'no JSON': (b'\x80\x02', 'no safetensors file'),
}


@pytest.mark.parametrize('header, reason', DAMAGES.values(), ids=DAMAGES)
def test_a_header_that_does_not_fit_is_refused(tmp_path, header, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_safetensors(written(tmp_path / 'a', header))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('length', [1 << 63, 99_999_999, 1 << 40])
def test_a_header_longer_than_the_file_is_refused(tmp_path, length):
    with pytest.raises(CheckpointError, match='a header of'):
        open_safetensors(written(tmp_path / 'a', {'w': ENTRY}, length=length))
