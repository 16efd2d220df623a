"""What torch.save wrote is read as it is; nothing runs, and empty claims cost no memory."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from cdra_mm.core import CheckpointError
from cdra_mm.reading import read_torch

from .files import Call, Name, archive, array, dtype, floats, pickled, tensor

META = dict(
    array=np.arange(3), fortran=np.asfortranarray(np.ones((2, 3), 'f4')), empty=np.empty((0, 2)),
    big_endian=np.arange(3, dtype='>i4'), number=np.float64(3.5), flag=np.bool_(True),
    texts=np.array(['a', 'bc']), path=pathlib.Path('/a/b'), range=range(3), set={1, 2},
    frozen=frozenset('a'), moment=datetime.datetime(2020, 1, 2, 3, 4, 5, 6),
    day=datetime.date(2020, 1, 2), span=datetime.timedelta(3, 4), bytes=b'\xff\x00', none=b'',
    settings=argparse.Namespace(x=1), slice=slice(1, 2), dtype=torch.float32,
    size=torch.Size([1, 2]), device=torch.device('cpu'), complex=1 + 2j, nested=(1, (2, [3])),
    default=collections.defaultdict(list, {1: [2]}), kind=np.dtype('f4'), word='ä', big=2**100,
)  # fmt: skip


def weights() -> collections.OrderedDict:
    state = collections.OrderedDict(
        view=torch.randn(3, 4)[:, ::2],
        parameter=torch.nn.Parameter(torch.ones(2)),
        half=torch.ones(2).half(),
        flags=torch.tensor([True, False]),
        empty=torch.empty(0, 3),
        scalar=torch.tensor(3.0),
        complex=torch.ones(2, dtype=torch.complex64),
        whole=torch.arange(4),
    )
    state['same'] = state['view']
    state._metadata = collections.OrderedDict({'': {'version': 1}})
    return state


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('is_archive', [True, False])
def test_what_torch_wrote_is_read_as_it_is(tmp_path, protocol, is_archive):
    state = weights()
    if is_archive:  # types that the old format cannot store
        state['small'] = torch.ones(3).to(torch.float8_e4m3fn)
        state['unsigned'] = torch.ones(3, dtype=torch.uint16)
    torch.save(
        dict(state_dict=state, meta=META), tmp_path / 'a.pth', pickle_protocol=protocol,
        _use_new_zipfile_serialization=is_archive,
    )  # fmt: skip
    read = read_torch(tmp_path / 'a.pth')
    assert list(read['state_dict']) == list(state)
    assert read['state_dict']._metadata == {'': {'version': 1}}
    for name, value in state.items():
        found = read['state_dict'][name]
        assert type(found) is type(value) and found.dtype == value.dtype
        assert found.shape == value.shape and found.requires_grad == value.requires_grad
        assert found.tolist() == value.tolist() if value.itemsize > 1 else True
    assert read['state_dict']['view'].data_ptr() == read['state_dict']['same'].data_ptr()
    for name, value in META.items():
        found = read['meta'][name]
        assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value
        if isinstance(value, np.ndarray | np.generic):
            assert type(found) is type(value) and found.dtype == value.dtype.newbyteorder('=')


def nested(depth, kind=lambda inner: [inner]):
    value = []
    for _ in range(depth):
        value = kind(value)
    return value


def deep(depth, opcode):
    """A value inside so many others, too deep to be pickled by Python."""
    return b'\x80\x02]' + opcode * depth + b'.'


def laughter():
    value = ['ha'] * 10
    for _ in range(12):
        value = [value] * 10
    return value


def itself():
    value = []
    value.append(value)
    return value


EVIL_STATE = (3, '|', None, None, None, 8, 8, 63)
IN_PICKLE = {
    'a call': (pickle.dumps(Call(os.system, 'true'), 2), 'posix.system'),
    'exec': (pickle.dumps(Call(exec, 'pass'), 2), 'builtins.exec'),
    'getattr': (pickle.dumps(Call(getattr, Call(dict), 'clear'), 2), 'builtins.getattr'),
    'a class of torch': (pickled(Call(Name('torch.nn.Linear'), 1, 1)), 'torch.nn.Linear'),
    'a state of a tensor': (pickled(Call(Name('torch.Tensor'), state={'a': 1})), 'torch.Tensor'),
    'a state of a dict': (b'\x80\x02}}b.', 'state for what has none'),
    'extension registry': (b'\x80\x02\x82\x01.', 'EXT1'),
    'a buffer from outside': (b'\x80\x05\x97.', 'NEXT_BUFFER'),
    'a name that is no text': (b'\x80\x04\x8c\x01aK\x01\x93.', 'no text'),
    'nothing': (b'', 'no pickle'),
    'an end without a value': (b'\x80\x02.', 'no pickle'),
    'deep lists': (pickled(nested(150)), 'inside each other'),
    'very deep tuples': (deep(100_000, b'\x85'), 'inside each other'),
    'a deep key': (b'\x80\x02}]' + b'\x85' * 100_000 + b'K\x01s.', 'a key that is a'),
    'a repeated value': (pickled(laughter()), 'repeats itself'),
    'a value in itself': (pickled(itself()), 'holds itself'),
    'a long number': (pickled(1 << 5000), 'bits'),
    'half a character': (pickled('\ud800'), 'no Unicode'),
    'a type with a state': (
        pickled(array(dtype('f8', EVIL_STATE), (1,), b'0' * 8)), 'another size',
    ),
    'a type of objects': (pickled(array(dtype('O8'), (1,), b'0' * 8)), 'no plain numbers'),
    'a type with fields': (
        pickled(dtype('f8', (3, '<', None, ('a',), {}, -1, -1, 0))), 'a numpy type with fields',
    ),
    'a type of long texts': (pickled(array(dtype('U99999999'), (1,), b'0')), 'of <U99999999'),
    'a big array': (pickled(array(dtype('f8'), (1 << 50,), b'0' * 8)), 'values of float64 in 8'),
    'objects in an array': (pickled(array(dtype('f8'), (1,), [1])), 'array of objects'),
    'a shape of texts': (pickled(array(dtype('f8'), ('a',), b'0' * 8)), 'a shape that is none'),
    'an endless range': (pickled(Call(Name('builtins.range'), 'a')), 'no numbers'),
    'a month of 99': (
        pickled(Call(Name('datetime.date'), b'\x07\xe4\x63\x01')), 'date that is none',
    ),
    'a setting of an object': (
        pickled(Call(Name('argparse.Namespace'), state={'__class__': 1})), 'no name of its own',
    ),
    'memory by a number': (pickled(Call(Name('builtins.bytearray'), 1 << 60)), 'bytes of no bytes'),
}  # fmt: skip


@pytest.mark.parametrize('content, reason', IN_PICKLE.values(), ids=IN_PICKLE)
def test_a_pickle_that_does_more_is_refused(tmp_path, content, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_torch(archive(tmp_path / 'a.pth', content))
    assert '\n' not in str(caught.value) and 'a.pth' in str(caught.value)


EXPANDED = 'values .* where 4 are stored'
CLAIMS = {
    'more than is stored': (tensor((5,), (1,)), EXPANDED),
    'an expanded view': (tensor((1 << 40, 1 << 10), (0, 0)), EXPANDED),
    'a place behind the end': (tensor((2,), (1,), offset=3), EXPANDED),
    'a negative place': (tensor((2,), (1,), offset=-1), 'a shape that is none'),
    'a negative step': (tensor((2,), (-1,)), 'a shape that is none'),
    'a shape of texts': (tensor(('a',), (1,)), 'a shape that is none'),
    'no steps': (tensor((2,), ()), 'a shape that is none'),
    'more dimensions than torch has': (tensor((1,) * 65, (1,) * 65), 'without a shape'),
    'a storage that is short': (tensor((5,), (1,), size=5), 'of which 16 are there'),
    'a storage of petabytes': (tensor((1,), (1,), size=1 << 50), 'of which 16 are there'),
    'a storage that is missing': (tensor((1,), (1,), size=-4), 'a size that is none'),
    'truth values of others': (
        tensor((16,), (1,), size=16, kind='torch.BoolStorage'), 'neither true nor false',
    ),
    'a storage of another kind': (tensor((1,), (1,), kind='torch.QInt8Storage'), 'QInt8'),
}  # fmt: skip


@pytest.mark.parametrize('claim, reason', CLAIMS.values(), ids=CLAIMS)
def test_a_tensor_that_claims_what_is_not_there_is_refused(tmp_path, claim, reason):
    content = pickled({'weight': claim})
    with pytest.raises(CheckpointError, match=reason):
        read_torch(archive(tmp_path / 'a.pth', content, {'0': floats(1, 2, 3, 4)}))


def test_the_honest_claim_is_taken(tmp_path):
    path = archive(
        tmp_path / 'a.pth', pickled({'w': tensor((2,), (2,))}), {'0': floats(1, 2, 3, 4)}
    )
    assert read_torch(path)['w'].tolist() == [1, 3]


def test_archives_of_other_kinds_are_named(tmp_path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / 'script.pt'))
    with pytest.raises(CheckpointError, match='a TorchScript program'):
        read_torch(tmp_path / 'script.pt')
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
        file.writestr('readme.txt', 'text')
    with pytest.raises(CheckpointError, match=r'that torch.save did not write'):
        read_torch(tmp_path / 'a.zip')
    with tarfile.open(tmp_path / 'a.tar', 'w') as file:
        file.add(tmp_path / 'a.zip')
    with pytest.raises(CheckpointError, match='a tar archive'):
        read_torch(tmp_path / 'a.tar')
    (tmp_path / 'plain.pkl').write_bytes(pickle.dumps({'a': 1}))
    with pytest.raises(CheckpointError, match='pickle that torch.save did not write'):
        read_torch(tmp_path / 'plain.pkl')
    path = archive(tmp_path / 'big.pth', pickled({}), byteorder=b'big')
    with pytest.raises(CheckpointError, match='another byte order'):
        read_torch(path)


def test_a_packed_archive_is_refused_before_it_grows(tmp_path):
    path = archive(tmp_path / 'a.pth', b'0' * 1_000_000, packed=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match='is packed'):
        read_torch(path)


def test_members_that_overlap_or_lie_outside_are_refused(tmp_path):
    path = archive(tmp_path / 'a.pth', pickled({}), {'0': floats(1), '1': floats(2)})
    whole = path.read_bytes()
    second = [i for i in range(len(whole)) if whole[i : i + 4] == b'PK\x01\x02'][2]
    for offset, reason in ((0, 'not where'), (1 << 30, 'not where|no whole')):
        path.write_bytes(whole[: second + 42] + offset.to_bytes(4, 'little') + whole[second + 46 :])
        with pytest.raises(CheckpointError, match=reason):
            read_torch(path)


@pytest.mark.parametrize('is_archive', [True, False])
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, is_archive):
    path = tmp_path / 'a.pth'
    torch.save(dict(a=torch.ones(50), b=[1, 'x']), path, _use_new_zipfile_serialization=is_archive)
    whole = path.read_bytes()
    for length in range(0, len(whole), max(len(whole) // 60, 1)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r'a\.pth'):
            read_torch(path)


def test_what_is_no_file_is_neither_waited_for_nor_opened(tmp_path):
    os.mkfifo(tmp_path / 'pipe.pth')
    (tmp_path / 'loop.pth').symlink_to(tmp_path / 'loop.pth')
    for name, reason in (
        ('pipe.pth', 'is a pipe'),
        ('loop.pth', 'cannot be read'),
        ('', 'is a folder'),
        ('none.pth', 'does not exist'),
        ('a\0b', 'null byte'),
    ):
        with pytest.raises(CheckpointError, match=reason):
            read_torch(tmp_path / name)
    with pytest.raises(CheckpointError, match='is a device'):
        read_torch('/dev/null')


def test_tensors_go_where_they_are_asked_for(tmp_path):
    torch.save(dict(w=torch.ones(2)), tmp_path / 'a.pth')
    for place in ('cpu', torch.device('meta'), {'cpu': 'meta'}, lambda storage, where: None):
        found = read_torch(tmp_path / 'a.pth', map_location=place)['w']
        assert found.device.type == ('cpu' if place == 'cpu' or callable(place) else 'meta')
