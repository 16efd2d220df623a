"""Tensors in a file of torch: the claims of the pickle, held against the bytes that are there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from .allowed_types import AllowedType, ForeignTypeError, PendingObject, ReadingError

__all__ = ['TENSOR_TYPES', 'Storage', 'Storages', 'read_bytes', 'storage_dtype']

TYPES = {
    'Float': torch.float32, 'Double': torch.float64, 'Half': torch.float16,
    'BFloat16': torch.bfloat16, 'Long': torch.int64, 'Int': torch.int32, 'Short': torch.int16,
    'Char': torch.int8, 'Byte': torch.uint8, 'Bool': torch.bool,
    'ComplexFloat': torch.complex64, 'ComplexDouble': torch.complex128,
}  # fmt: skip
# Types that have no class of storages.
LATER = {name: getattr(torch, name) for name in dir(torch) if name.startswith('float8_')}
LATER |= {name: getattr(torch, name) for name in ('uint16', 'uint32', 'uint64')}
MOST_DIMENSIONS = 64
LARGEST = 1 << 62  # of a size; what is larger is no number of bytes

Finish = Callable[[Any], Any]


@dataclass(eq=False)
class Storage:
    """Bytes that tensors share.

    Attributes:
        key: Its name in the file.
        location: The device it was on.
        dtype: Of its values; None for plain bytes.
        size: How many values it holds.
        content: Its bytes, uint8, once they are read.
    """

    key: str
    location: str
    dtype: torch.dtype | None
    size: int
    content: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """How many bytes it claims to hold."""
        return self.size * (self.dtype.itemsize if self.dtype else 1)


@dataclass
class Storages:
    """The storages that a pickle names, by key."""

    found: dict[str, Storage] = field(default_factory=dict)

    def named(self, identity: Any) -> Storage:
        """The storage of a persistent id, ``('storage', type, key, location, size, ...)``."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6):
            raise ReadingError('a persistent id that names no storage')
        what, kind, key, location, size = identity[:5]
        if what != 'storage' or not isinstance(kind, AllowedType):
            raise ReadingError('a persistent id that names no storage')
        if len(identity) == 6 and identity[5] is not None:
            raise ForeignTypeError('a view of a storage, as torch wrote before release 0.4')
        if not isinstance(key, str) or not isinstance(location, str) or type(size) is not int:
            raise ReadingError('a storage without name, device or size')
        known = self.found.get(key)
        storage = Storage(key, location, storage_dtype(kind), size)
        if not 0 <= size < LARGEST:
            raise ReadingError('a storage of a size that is none')
        if known is None:
            self.found[key] = storage
        elif (known.dtype, known.size, known.location) != (storage.dtype, size, location):
            raise ReadingError(f'two storages named {key[:40]!r}')
        return self.found[key]


def storage_dtype(kind: AllowedType) -> torch.dtype | None:
    """The type of the values in a class of storages, None for plain bytes."""
    name = kind.name.rpartition('.')[2].removesuffix('Storage')
    if name != 'Untyped' and name not in TYPES:
        raise ForeignTypeError(f'the storage {kind.name}')
    return TYPES.get(name)


def read_bytes(file: BinaryIO, size: int) -> Tensor:
    """The next bytes of a file as uint8; the caller knows that there are so many."""
    content = bytearray(size)
    if file.readinto(content) != size:  # type: ignore[attr-defined]
        raise ReadingError('it ends within a tensor')
    return torch.frombuffer(content, dtype=torch.uint8) if size else torch.empty(0).byte()


def _tensor_of(
    storage: Any, offset: Any, shape: Any, strides: Any, dtype: torch.dtype | None = None
) -> Tensor:
    if not isinstance(storage, Storage) or storage.content is None:
        raise ReadingError('a tensor without a storage')
    dtype = dtype or storage.dtype
    if dtype is None:
        raise ReadingError('a tensor without a type')
    numbers = (offset, *_sizes(shape), *_sizes(strides))
    if len(shape) != len(strides) or not all(type(n) is int and 0 <= n < LARGEST for n in numbers):
        raise ReadingError('a tensor with a shape that is none')
    held = storage.num_bytes // dtype.itemsize
    count = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if count and (count > held or last >= held):
        raise ReadingError(
            f'a tensor of {count:,} values ({list(shape)}) where {held:,} are stored'
        )
    content = storage.content
    if storage.num_bytes % dtype.itemsize:
        raise ReadingError('a storage that ends within a value')
    if dtype == torch.bool and content.numel() and int(content.max()) > 1:
        raise ReadingError('truth values that are neither true nor false')
    if not count:
        return torch.empty(shape, dtype=dtype, device=content.device)
    return content.view(dtype).as_strided(tuple(shape), tuple(strides), offset)


def _sizes(value: Any) -> tuple[Any, ...]:
    if (
        isinstance(value, PendingObject)
        and value.kind.name == 'torch.Size'
        and len(value.args) == 1
    ):
        value = value.args[0]
    if not isinstance(value, tuple | list) or len(value) > MOST_DIMENSIONS:
        raise ReadingError('a tensor without a shape')
    return tuple(value)


def _tensor(made: PendingObject, finish: Finish) -> Tensor:
    if len(made.args) < 4:
        raise ReadingError('a tensor without a shape')
    storage, offset, shape, strides, *rest = made.args
    tensor = _tensor_of(storage, offset, _sizes(shape), _sizes(strides))
    return _marked(tensor, bool(rest) and rest[0] is True)


def _tensor_of_type(made: PendingObject, finish: Finish) -> Tensor:
    if len(made.args) < 7:
        raise ReadingError('a tensor without a type')
    storage, offset, shape, strides, trained, _, dtype, *_ = made.args
    dtype = finish(dtype)
    if not isinstance(dtype, torch.dtype):
        raise ReadingError('a tensor without a type')
    tensor = _tensor_of(storage, offset, _sizes(shape), _sizes(strides), dtype)
    return _marked(tensor, trained is True)


def _marked(tensor: Tensor, trained: bool) -> Tensor:
    can = tensor.is_floating_point() or tensor.is_complex()
    return tensor.requires_grad_() if trained and can else tensor


def _parameter(made: PendingObject, finish: Finish) -> nn.Parameter:
    data = finish(made.args[0]) if made.args else None
    trained = len(made.args) > 1 and made.args[1] is True
    if not isinstance(data, Tensor):
        raise ReadingError('a parameter without values')
    can = data.is_floating_point() or data.is_complex()
    return nn.Parameter(data.detach(), requires_grad=trained and can)


def _with_attributes(made: PendingObject, finish: Finish) -> Any:
    """A tensor to which code has tied attributes; those are left behind."""
    if len(made.args) != 4 or not isinstance(made.args[0], AllowedType):
        raise ReadingError('a tensor of a class of its own')
    function, cls, args, _ = made.args
    plain = ('torch.Tensor', 'torch.nn.parameter.Parameter')
    if (
        function.name not in TENSOR_TYPES
        or not isinstance(cls, AllowedType)
        or cls.name not in plain
    ):
        raise ForeignTypeError('a tensor of a class of its own')
    if not isinstance(args, tuple) or function.build in (None, _with_attributes):
        raise ReadingError('a tensor without values')
    return function.build(PendingObject(function, args), finish)


def _size(made: PendingObject, finish: Finish) -> torch.Size:
    sizes = finish(_sizes(made.args[0] if made.args else ()))
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in sizes):
        raise ReadingError('a shape that is none')
    return torch.Size(sizes)


def _device(made: PendingObject, finish: Finish) -> torch.device:
    try:
        return torch.device(*made.args)
    except (TypeError, RuntimeError):
        raise ReadingError('a device that is none') from None


def _types() -> dict[str, AllowedType]:
    made = {
        'torch._utils._rebuild_tensor': _tensor,
        'torch._utils._rebuild_tensor_v2': _tensor,
        'torch._utils._rebuild_tensor_v3': _tensor_of_type,
        'torch._utils._rebuild_parameter': _parameter,
        'torch._utils._rebuild_parameter_with_state': _parameter,
        'torch._tensor._rebuild_from_type_v2': _with_attributes,
        'torch.Size': _size,
        'torch.device': _device,
    }
    types = [AllowedType(name, build) for name, build in made.items()]
    types += [AllowedType('torch.Tensor'), AllowedType('torch.nn.parameter.Parameter')]
    for name in (*TYPES, 'Untyped'):
        types += [AllowedType(f'{module}.{name}Storage') for module in ('torch', 'torch.storage')]
    dtypes = {str(dtype).rpartition('.')[2]: dtype for dtype in TYPES.values()} | LATER
    types += [AllowedType(f'torch.{name}', value=dtype) for name, dtype in dtypes.items()]
    return {allowed.name: allowed for allowed in types}


TENSOR_TYPES = _types()
