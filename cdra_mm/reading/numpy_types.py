"""Arrays and numbers of numpy in a pickle: made anew of plain bytes.

numpy's own types let a pickle set their state, which nothing checks: a type whose state says that
its values are objects reads addresses from the file. Here a type is one of a fixed list, by its
code, and an array is made of exactly the bytes that its shape needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from .allowed_types import AllowedType, PendingObject, ReadingError

__all__ = ['NUMPY_TYPES', 'plain_array', 'plain_dtype']

# Boolean, whole, real and complex numbers, and texts of a fixed length; no objects, no records.
PLAIN = re.compile(r'[<>|=]?(b1|\?|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SU]\d{1,9})')
MOST_DIMENSIONS = 32

Finish = Callable[[Any], Any]


def plain_dtype(code: Any, order: str = '') -> np.dtype[Any]:
    """The type of plain values that a code names.

    Args:
        code: Such as ``f4`` or ``<i8``.
        order: Byte order to give it, '' for that of the code.

    Raises:
        ReadingError: If it is none.
    """
    if not isinstance(code, str) or not PLAIN.fullmatch(code):
        raise ReadingError(f'numpy values of type {str(code)[:40]!r}, which are no plain numbers')
    try:
        return np.dtype(order + code.lstrip('<>|=') if order in ('<', '>') else code)
    except (TypeError, ValueError) as error:
        raise ReadingError(f'numpy values of type {code[:40]!r}: {error}') from None


def plain_array(
    data: bytes, dtype: np.dtype[Any], shape: Any, fortran: bool = False
) -> np.ndarray[Any, Any]:
    """An array of its own memory.

    Raises:
        ReadingError: If shape and bytes do not fit.
    """
    if not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS:
        raise ReadingError('an array without a shape')
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in shape):
        raise ReadingError('an array of a shape that is none')
    if math.prod(shape) * dtype.itemsize != len(data) or (dtype.itemsize == 0 and any(shape)):
        raise ReadingError(
            f'an array of {math.prod(shape):,} values of {dtype} in {len(data):,} bytes'
        )
    order: Literal['F', 'C'] = 'F' if fortran else 'C'
    flat = np.frombuffer(data, dtype, math.prod(shape)) if data else np.empty(shape, dtype)
    array = flat.reshape(shape, order=order).astype(dtype.newbyteorder('='), order=order)
    if dtype.kind == 'b' and data and np.frombuffer(data, np.uint8).max() > 1:
        raise ReadingError('truth values that are neither true nor false')
    return array


def _dtype(made: PendingObject) -> np.dtype[Any]:
    """The type that a pickle describes: its code, and a state that may only tell its byte order."""
    if made.kind.name != 'numpy.dtype' or not made.args:
        raise ReadingError('numpy values without a type')
    if not isinstance(made.state, tuple | type(None)) or len(made.state or ()) not in (0, 8):
        raise ReadingError('a numpy type with a state that plain numbers have not')
    _, order, sub, names, fields, size, alignment, _ = made.state or (3, '', *[None] * 3, -1, -1, 0)
    if (sub, names, fields) != (None, None, None) or not isinstance(order, str):
        raise ReadingError('a numpy type with fields, which plain numbers have not')
    dtype = plain_dtype(made.args[0], order)
    text = dtype.kind in 'SU'
    if size != (dtype.itemsize if text else -1) and not (text and size == -1):
        raise ReadingError('a numpy type with another size than that of its values')
    return dtype


def _type_value(made: PendingObject, finish: Finish) -> np.dtype[Any]:
    return _dtype(made)


def _array(made: PendingObject, finish: Finish) -> np.ndarray[Any, Any]:
    state = made.state
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], PendingObject):
        raise ReadingError('an array without values')
    _, shape, described, fortran, data = state
    if not isinstance(data, bytes):
        raise ReadingError('an array of objects, which are no plain numbers')
    return plain_array(data, _dtype(described), shape, bool(fortran))


def _buffer_array(made: PendingObject, finish: Finish) -> np.ndarray[Any, Any]:
    if len(made.args) != 4 or not isinstance(made.args[1], PendingObject):
        raise ReadingError('an array without values')
    data, described, shape, order = made.args
    if not isinstance(data, bytes):
        raise ReadingError('an array of no bytes')
    return plain_array(data, _dtype(described), shape, order == 'F')


def _number(made: PendingObject, finish: Finish) -> Any:
    if len(made.args) != 2 or not isinstance(made.args[0], PendingObject):
        raise ReadingError('a number without a type')
    described, data = made.args
    if not isinstance(data, bytes):
        raise ReadingError('a number of no bytes')
    return plain_array(data, _dtype(described), ())[()]


def _types() -> dict[str, AllowedType]:
    types = [AllowedType('numpy.dtype', _type_value), AllowedType('numpy.ndarray')]
    for core in ('numpy.core', 'numpy._core'):  # numpy 1 and 2
        types += [
            AllowedType(f'{core}.multiarray._reconstruct', _array),
            AllowedType(f'{core}.multiarray.scalar', _number),
            AllowedType(f'{core}.numeric._frombuffer', _buffer_array),
        ]
    return {allowed.name: allowed for allowed in types}


NUMPY_TYPES = _types()
