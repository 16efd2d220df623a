"""What ``torch.save`` wrote, read without running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cdra_mm.errors import CheckpointError
from cdra_mm.storage.regular_file import open_regular

from .allowed_types import AllowedType, ForeignTypeError
from .numpy_types import NUMPY_TYPES
from .plain_types import PLAIN_TYPES
from .tensors import TENSOR_TYPES, Storage, Storages
from .torch_archive import read_archive
from .torch_legacy import read_legacy
from .value_building import build_values

__all__ = ['MapLocation', 'read_torch', 'read_torch_stream']

TYPES = {**PLAIN_TYPES, **NUMPY_TYPES, **TENSOR_TYPES}
ALONE = 'save its state_dict alone, with the code it comes from, or name another file'

MapLocation = str | torch.device | Mapping[str, str] | Callable[..., Any] | None


def read_torch(
    path: str | Path,
    *,
    types: Mapping[str, AllowedType] | None = None,
    map_location: MapLocation = None,
    otherwise: str = ALONE,
) -> Any:
    """Reads what ``torch.save`` wrote, in either of its formats.

    Args:
        path: The file.
        types: What it may name beside tensors, numpy's arrays and harmless types of the
            standard library.
        map_location: Where the tensors go, as ``map_location`` of ``torch.load``; None for the CPU.
        otherwise: What to do about a file that holds more than that, for the message.

    Returns:
        What the file holds. Bytes that can be changed come as bytes, dicts with a factory as dicts.

    Raises:
        CheckpointError: If it is missing, no regular file, damaged, of another format, or holds a
            type that is not known to be harmless.
    """
    file, size = open_regular(path, 'checkpoint')
    with file:
        return read_torch_stream(
            file, size, str(path), types=types, map_location=map_location, otherwise=otherwise
        )


def read_torch_stream(
    file: BinaryIO,
    size: int,
    name: str,
    *,
    types: Mapping[str, AllowedType] | None = None,
    map_location: MapLocation = None,
    otherwise: str = ALONE,
) -> Any:
    """`read_torch` of bytes that lie elsewhere.

    Args:
        file: The bytes, which can be gone back in.
        size: How many.
        name: For messages.
        types: See `read_torch`.
        map_location: See `read_torch`.
        otherwise: See `read_torch`.

    Raises:
        CheckpointError: See `read_torch`.
    """
    with _named(name, size, otherwise):
        start = file.read(265)
        known = {**TYPES, **(types or {})}
        if start[:2] == b'PK':
            tree, storages, length = read_archive(file, size, known)
        elif start[257:262] == b'ustar':
            raise ForeignTypeError('a tar archive, as torch wrote before release 0.1.10')
        else:
            tree, storages, length = read_legacy(file, size, known)
    _put(storages, map_location)
    with _named(name, size, otherwise):
        return build_values(tree, length)


@contextmanager
def _named(name: str, size: int, otherwise: str) -> Any:
    try:
        yield
    except ForeignTypeError as error:
        raise CheckpointError(
            f'{name} holds more than tensors and plain settings ({error}), and nothing in a file '
            f'is executed here: {otherwise}'
        ) from None
    except (MemoryError, torch.OutOfMemoryError):
        raise CheckpointError(f'{name} ({size:,} bytes) does not fit into the memory') from None
    except OSError as error:
        raise CheckpointError(f'{name} cannot be read ({error}): copy it again') from None
    except (
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError,
    ) as error:  # fmt: skip
        # Faults that were looked for, and what odd values may raise where values are made of them.
        raise CheckpointError(
            f'{name} is no checkpoint, or is cut off or damaged ({error}; {size:,} bytes): copy or '
            'download it again, or name a file that torch.save wrote'
        ) from None


def _put(storages: Storages, map_location: MapLocation) -> None:
    """Moves the bytes of the storages to where they are asked for."""
    for storage in storages.found.values():
        target = _target(storage, map_location)
        if target is not None and storage.content is not None:
            storage.content = storage.content.to(target)


def _target(storage: Storage, map_location: MapLocation) -> str | torch.device | None:
    if isinstance(map_location, str | torch.device) or map_location is None:
        return map_location
    if isinstance(map_location, Mapping):
        return map_location.get(storage.location, storage.location)
    # A function that gets a storage and where it was.
    assert storage.content is not None
    moved = map_location(storage.content.untyped_storage(), storage.location)
    return storage.location if moved is None else moved.device
