"""Files of torch made by hand: any pickle, any storages, any directory."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

STORED = zipfile.ZIP_STORED


class Call:
    """Pickled as a call of ``function``, then a state that is set."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) + (() if state is None else (state,))

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


class Writer(pickle._Pickler):  # type: ignore[name-defined]
    """Writes a name that need not exist for a `Name`, a persistent id for a `Stored`."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.identity if isinstance(obj, Stored) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Name):
            self.write(f'c{obj.module}\n{obj.name}\n'.encode())
        else:
            super().save(obj, save_persistent_id)

    def save_reduce(
        self, func: Any, args: Any, state: Any = None, *rest: Any, **named: Any
    ) -> None:
        if isinstance(func, Name):
            self.save(func)
            self.save(args)
            self.write(pickle.REDUCE)
            if state is not None:
                self.save(state)
                self.write(pickle.BUILD)
        else:
            super().save_reduce(func, args, state, *rest, **named)


class Name:
    """A name in a pickle."""

    def __init__(self, full: str) -> None:
        self.module, _, self.name = full.rpartition('.')

    def __call__(self) -> None:
        """So that it may stand for a function."""


class Stored:
    """A storage, by its persistent id."""

    def __init__(self, size: Any, key: Any = '0', kind: str = 'torch.FloatStorage') -> None:
        self.identity = ('storage', Name(kind), key, 'cpu', size)


def pickled(value: Any, protocol: int = 2) -> bytes:
    from io import BytesIO

    stream = BytesIO()
    Writer(stream, protocol).dump(value)
    return stream.getvalue()


def archive(
    path: Path,
    content: bytes,
    storages: dict[str, bytes] | None = None,
    packed: int = STORED,
    **more: bytes,
) -> Path:
    """An archive as torch.save writes them."""
    with zipfile.ZipFile(path, 'w', packed) as file:
        file.writestr('archive/data.pkl', content)
        for name, text in more.items():
            file.writestr(f'archive/{name.replace("__", ".")}', text)
        for key, data in (storages or {}).items():
            file.writestr(f'archive/data/{key}', data)
        file.writestr('archive/version', b'3\n')
    return path


def tensor(
    shape: Any, strides: Any, size: Any = 4, offset: Any = 0, kind: str = 'torch.FloatStorage'
) -> Call:
    """A tensor that claims these."""
    build = Name('torch._utils._rebuild_tensor_v2')
    return Call(build, Stored(size, kind=kind), offset, shape, strides, False, None)


def array(dtype: Any, shape: Any, data: Any) -> Call:
    """A numpy array that claims these."""
    build = Name('numpy.core.multiarray._reconstruct')
    return Call(build, Name('numpy.ndarray'), (0,), b'b', state=(1, shape, dtype, False, data))


def dtype(code: Any, state: Any = (3, '<', None, None, None, -1, -1, 0)) -> Call:
    return Call(Name('numpy.dtype'), code, False, True, state=state)


def floats(*values: float) -> bytes:
    return struct.pack(f'<{len(values)}f', *values)
