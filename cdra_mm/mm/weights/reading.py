"""Weight files of any project as plain dicts of tensors; nothing in a file is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdra_mm.errors import CheckpointError
from cdra_mm.reading import read_npz, read_safetensors, read_torch

from ..cached_files import cached_file, is_http
from ..checkpoint_types import WEIGHT_TYPES

__all__ = ['local_copy', 'read_state_dict', 'unwrap']

# Under what key training code keeps the weights, the first that is there.
WRAPPERS = ('state_dict', 'model', 'teacher', 'module')


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a file under the names that they have in it.

    Args:
        path: A ``.safetensors`` or ``.npz`` file, or what ``torch.save`` wrote (any other ending);
            or the http(s) address of one, which is kept in torch.hub's folder of checkpoints.
            Wrappers such as ``{'model': ...}`` are taken off, prefixes of names are not.

    Returns:
        The tensors, on the CPU, in the types that they have in the file.

    Raises:
        CheckpointError: If the file is missing, damaged, holds no tensors, holds objects that
            only running code from the file could build, or cannot be downloaded.
    """
    file = local_copy(path)
    if not file.exists() or file.is_dir():
        what = 'is a folder' if file.exists() else 'does not exist'
        raise CheckpointError(
            f'weight file {path} {what}: put it there, or name another one in '
            'model.backbone.init_cfg.checkpoint (the shipped configs also read an environment '
            'variable, see the config)'
        )
    reader = READERS.get(file.suffix.lower(), _read_torch)
    weights = {k: v for k, v in unwrap(reader(file)).items() if isinstance(v, Tensor)}
    if not weights:
        raise CheckpointError(f'{path} holds no weights: expected a state dict of tensors')
    return weights


def unwrap(checkpoint: Any) -> Mapping[str, Any]:
    """The state dict inside ``{'state_dict': ...}``, ``{'model': ...}``, ``{'teacher': ...}``.

    Example:
        >>> unwrap({'epoch': 3, 'model': {'module': {'weight': 1}}})
        {'weight': 1}
    """
    while isinstance(checkpoint, Mapping):
        inner = [checkpoint[key] for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)]
        if not inner:
            return checkpoint
        checkpoint = inner[0]
    return {}


def local_copy(path: str | Path) -> Path:
    """The file of an address, see `cached_file`; a path as it is.

    Raises:
        CheckpointError: If it cannot be had.
    """
    return cached_file(str(path), read_state_dict) if is_http(path) else Path(path).expanduser()


def _read_npz(path: Path) -> Mapping[str, Any]:
    return {name: _tensor(path, name, array) for name, array in read_npz(path)}


def _tensor(path: Path, name: str, array: Any) -> Tensor:
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise CheckpointError(
            f'{path}: {name} is of type {array.dtype}, and torch has no such numbers'
        ) from None


def _read_torch(path: Path) -> Any:
    return read_torch(path, types=WEIGHT_TYPES)


READERS = {'.safetensors': read_safetensors, '.npz': _read_npz}
