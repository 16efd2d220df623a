"""How mmengine reads checkpoint files: nothing in a file is executed.

A checkpoint of torch is a pickle, a program for a small machine. onedl-mmengine reads a file that
torch refuses once more without any limit, and so runs whatever it holds; the original mmengine
0.10.7 cannot resume a run under torch 2.6 and later; and a reading that torch limits still sets the
state of numpy's types from the file. So mmengine's loaders are replaced with the reader of this
package.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from mmengine.runner import CheckpointLoader

from cdra_mm.errors import CheckpointError
from cdra_mm.reading import read_torch
from cdra_mm.reading.torch_file import MapLocation, read_torch_stream

from .cached_files import cached_file
from .checkpoint_types import CHECKPOINT_TYPES
from .checkpoints.checked import check_checkpoint
from .host.checkpoint_loaders import plain_loaders, replace_loader, replace_readers

__all__ = ['TRUST', 'guard_checkpoints', 'load_checkpoint', 'read_checkpoint']

# torch's own switches: the first lets files run code, the second overrides every argument.
TRUST, FORCE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
ADDRESSES = ('http://', 'https://')
OTHERWISE = (
    'save its state_dict alone, or, if you trust whoever made it, set the environment variable '
    f'{TRUST}=1'
)


def guard_checkpoints() -> None:
    """Lets mmengine read its own checkpoint files, and nothing that could run code.

    The hook, the wrapper of a backbone and the tools call it; importing this package changes
    nothing. It holds for the process, and for every reader that goes through mmengine's
    ``CheckpointLoader``: its loaders are registered anew, the way mmengine provides for, and two
    functions that these call (``load_from_http``, ``_safe_torch_load``) are replaced in mmengine's
    module. ``torch.load`` itself stays as it is. To call it again changes nothing. Nothing is done
    where the user sets torch's switch `TRUST` to 1.
    """
    if _is_trusted():
        return
    replace_readers(_read_any, read_address)
    for prefix, loader in plain_loaders().items():
        if hasattr(loader, 'is_strict'):
            continue  # ours
        strict = _strict(loader)
        if prefix == '':
            strict = read_checkpoint
        elif prefix in ADDRESSES:
            strict = read_address
        replace_loader(prefix, strict)


def load_checkpoint(path: str | Path) -> Any:
    """What a checkpoint file or address holds, on the CPU, by whatever loader mmengine has for it.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: See `read_checkpoint`.
    """
    guard_checkpoints()
    return CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


def read_checkpoint(filename: str | Path, map_location: MapLocation = None) -> Any:
    """What mmengine's loader of local files is replaced with.

    Args:
        filename: Path of the file.
        map_location: Where the tensors go, as in ``torch.load``; None for the CPU.

    Returns:
        What the file holds, without the text of a config that mmengine would run on resume.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it holds a type that could run code, or is no checkpoint.
    """
    path = Path(filename).expanduser()
    if not path.exists():
        raise FileNotFoundError(f'{filename} can not be found.')
    return _read_any(path, map_location)


def read_address(filename: str, map_location: MapLocation = None) -> Any:
    """What mmengine's loader of addresses is replaced with.

    Raises:
        CheckpointError: See `read_checkpoint`; or if it cannot be downloaded.
    """
    return _read_any(cached_file(filename, _require_weights), map_location, str(filename))


def _read_any(
    file: str | Path | BinaryIO, map_location: MapLocation = None, name: str = '', **_: Any
) -> Any:
    """Reads a path or bytes; takes what mmengine's own function takes."""
    if isinstance(file, str | Path):
        found = read_torch(
            file, types=CHECKPOINT_TYPES, map_location=map_location, otherwise=OTHERWISE
        )
        return check_checkpoint(found, name or str(file))
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    name = name or 'the checkpoint'
    found = read_torch_stream(
        file, size, name, types=CHECKPOINT_TYPES, map_location=map_location, otherwise=OTHERWISE
    )
    return check_checkpoint(found, name)


# mmengine names a loader in its log by what follows the first ten letters.
read_checkpoint.__name__, read_address.__name__ = 'load_from_local', 'load_from_http'
read_checkpoint.is_strict = read_address.is_strict = True  # type: ignore[attr-defined]


def _require_weights(path: Path) -> None:
    """Raises CheckpointError where a file holds no tensors that a model could load."""
    loaded = read_checkpoint(path)
    parts = [loaded, *loaded.values()] if isinstance(loaded, Mapping) else []
    values = (value for part in parts if isinstance(part, Mapping) for value in part.values())
    if not any(isinstance(value, torch.Tensor) for value in values):
        raise CheckpointError(f'{path} holds no weights: expected a state dict of tensors')


def _strict(loader: Callable[..., Any]) -> Callable[..., Any]:
    """A loader of a storage service, which may call ``torch.load``: under its strictest limits."""

    @functools.wraps(loader)
    def load(filename: str, *args: Any, **kwargs: Any) -> Any:
        before = os.environ.get(FORCE)
        os.environ[FORCE] = '1'
        try:
            return check_checkpoint(loader(filename, *args, **kwargs), filename)
        except (RuntimeError, ValueError, EOFError, KeyError) as error:
            if isinstance(error, CheckpointError):
                raise
            reason = ' '.join(str(error).split())[:200]
            raise CheckpointError(f'{filename} cannot be read: {reason}; {OTHERWISE}') from None
        finally:
            if before is None:
                del os.environ[FORCE]
            else:
                os.environ[FORCE] = before

    load.is_strict = True  # type: ignore[attr-defined]
    return load


def _is_trusted() -> bool:
    return os.environ.get(TRUST, '0').lower() in ('1', 'y', 'yes', 'true')
