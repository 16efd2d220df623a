"""Weight files of any project as plain dicts of tensors; nothing in a file is executed."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cdra_mm.core.errors import CheckpointError

from ..cached_files import cached_file, is_http

__all__ = ['local_copy', 'read_state_dict', 'unwrap']

# Under what key training code keeps the weights, the first that is there.
WRAPPERS = ('state_dict', 'model', 'teacher', 'module')


class _Ignored:
    """Stands for an object beside the weights that is of no interest here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What the checkpoints of DeiT, MAE and BEiT (the arguments of the command line) and of mmengine
# (its log buffers) hold beside tensors. Only the first is a class of its own; for the others
# something inert is built, so that even ``getattr`` gets nowhere.
HARMLESS: list[Any] = [
    argparse.Namespace,
    *(
        (_Ignored, name)
        for name in (
            *('mmengine.logging.history_buffer.HistoryBuffer', 'builtins.getattr'),
            *(
                f'numpy{core}.multiarray.{name}'
                for core in ('.core', '._core')
                for name in ('scalar', '_reconstruct')
            ),
            *('numpy.dtype', 'numpy.ndarray', 'pathlib.PosixPath', 'pathlib.WindowsPath'),
        )
    ),
]


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
    if not file.is_file():
        what = 'is a folder' if file.is_dir() else 'does not exist'
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


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{path} is not a readable safetensors file: {error}') from None


def _read_npz(path: Path) -> Mapping[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError('a single array')
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f'{path} is not a readable npz file of numbers: {error}') from None


def _read_torch(path: Path) -> Any:
    try:
        return _load_safely(path)
    except pickle.UnpicklingError as error:
        if 'Unsupported global' in str(error) or 'Unsupported class' in str(error):
            name = str(error).partition('Unsupported ')[2].split('\n')[0].split('. ')[0]
            reason = f'holds more than tensors and plain settings (unsupported {name.strip()})'
        else:
            reason = 'is damaged, or not a file that torch.save wrote'
        raise CheckpointError(
            f'{path} {reason}, and reading it could run code from the file: save its state dict '
            'alone, with the code it comes from, or name another file'
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f'{path} is cut off or damaged ({reason}; {path.stat().st_size:,} bytes): copy or '
            'download it again'
        ) from None


def _load_safely(path: Path) -> Any:
    allow = getattr(torch.serialization, 'safe_globals', None)
    if allow is None:  # before torch 2.5 files of pure tensors only
        return torch.load(path, map_location='cpu', weights_only=True)
    with allow(HARMLESS):
        return torch.load(path, map_location='cpu', weights_only=True)


READERS = {'.safetensors': _read_safetensors, '.npz': _read_npz}
