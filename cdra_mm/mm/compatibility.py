"""How mmengine reads checkpoint files: nothing in a file is executed.

A checkpoint of torch is a pickle, a program for a small machine. From release 2.6 on
``torch.load`` runs only what builds tensors and plain types, unless told otherwise.
Checkpoints of mmengine also hold the history of the logged values: its own ``HistoryBuffer``
and numpy arrays. mmengine 0.10.7, the last original release, does not tell torch so, and
cannot resume a run; the fork does, but reads a file that torch refuses once more without any limit,
and so runs whatever it holds, and asks for no limit at all where a file comes from an address.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from mmengine.utils import digit_version

from cdra_mm.core.errors import CheckpointError

from .cached_files import cached_file

__all__ = ['TRUST', 'checkpoint_types', 'guard_checkpoints', 'read_checkpoint']

# The first release of torch whose default is weights_only=True.
STRICT_TORCH = '2.6'
# mmengine's prefixes of addresses on the web.
HTTP = ('http://', 'https://')
# What HistoryBuffer stores of itself: its four functions, by name.
STATISTICS = ('min', 'max', 'current', 'mean')
# torch's own switches: the first lets files run code, the second overrides every argument.
TRUST, FORCE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


def guard_checkpoints() -> None:
    """Lets mmengine read its own checkpoint files, and nothing that could run code.

    Its loaders are registered anew, the way mmengine provides for: those of local files and of http
    addresses are replaced, the others are called with torch's switch for strict reading set, and
    fetch what they need from http addresses in the same way. ``torch.load`` itself stays as it is.
    Nothing is done with a torch before 2.6, whose strict reading cannot be told what else is
    harmless, nor where the user sets torch's switch `TRUST` to 1.
    """
    if digit_version(torch.__version__) < digit_version(STRICT_TORCH) or _is_trusted():
        return
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        if hasattr(loader, 'is_strict'):
            continue
        if prefix == '':
            strict = read_checkpoint
        else:
            strict = _fetching(loader) if prefix in HTTP else _strict(loader)
        CheckpointLoader.register_scheme(prefixes=prefix, loader=strict, force=True)


def read_checkpoint(filename: str | Path, map_location: Any = None) -> Any:
    """What mmengine's loader of local files is replaced with.

    Args:
        filename: Path of the file.
        map_location: Where the tensors go, as in ``torch.load``.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it holds a type that could run code, or is no checkpoint.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{filename} can not be found.')
    with _refusing(filename), torch.serialization.safe_globals(checkpoint_types()):
        return torch.load(path, map_location=map_location, weights_only=True)


# mmengine names a loader in its log by what follows the first ten letters.
read_checkpoint.__name__ = 'load_from_local'
read_checkpoint.is_strict = True  # type: ignore[attr-defined]


def _fetching(loader: Callable[..., Any]) -> Callable[..., Any]:
    """What mmengine's loader of http addresses is replaced with: checked before it is kept."""

    @functools.wraps(loader)
    def load(filename: str, map_location: Any = None, **options: Any) -> Any:
        # mmengine's options, a folder and a progress bar, are not used by any of its callers.
        return read_checkpoint(cached_file(filename, _require_weights), map_location)

    load.is_strict = True  # type: ignore[attr-defined]
    return load


def _require_weights(path: Path) -> None:
    """Raises CheckpointError where a file holds no tensors that a model could load."""
    loaded = read_checkpoint(path)
    parts = [loaded, *loaded.values()] if isinstance(loaded, Mapping) else []
    values = (value for part in parts if isinstance(part, Mapping) for value in part.values())
    if not any(isinstance(value, torch.Tensor) for value in values):
        raise CheckpointError(f'{path} holds no weights: expected a state dict of tensors')


def _strict(loader: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(loader)
    def load(filename: str, *args: Any, **kwargs: Any) -> Any:
        before = os.environ.get(FORCE)
        os.environ[FORCE] = '1'
        # Names of model zoos (open-mmlab://, torchvision://) end in this function of mmengine's.
        fetch = checkpoint.load_from_http
        checkpoint.load_from_http = _fetching(fetch)
        try:
            with _refusing(filename), torch.serialization.safe_globals(checkpoint_types()):
                return loader(filename, *args, **kwargs)
        finally:
            checkpoint.load_from_http = fetch
            if before is None:
                del os.environ[FORCE]
            else:
                os.environ[FORCE] = before

    load.is_strict = True  # type: ignore[attr-defined]
    return load


@contextmanager
def _refusing(filename: str | Path) -> Iterator[None]:
    """Names the file and the reason where torch refuses to read it."""
    try:
        yield
    except UnpicklingError as error:
        reason = _reason(str(error))
        if not reason or 'operand' in reason:  # no pickle at all
            raise CheckpointError(
                f'{filename} is no checkpoint, or damaged: name a file that torch.save wrote'
            ) from None
        raise CheckpointError(
            f'{filename} holds more than tensors and plain settings ({reason}), and reading it '
            'could run code from the file: save its state_dict alone, or, if you trust whoever '
            f'made it, set the environment variable {TRUST}=1'
        ) from None
    except (RuntimeError, EOFError) as error:
        if isinstance(error, RuntimeError) and 'PytorchStreamReader' not in str(error):
            raise
        raise CheckpointError(
            f'{filename} is cut off or damaged: copy or download it again, or name another'
        ) from None


def _reason(text: str) -> str:
    """What torch objects to, out of a message that mostly says how to switch it off."""
    for line in text.splitlines():
        line = line.rpartition('WeightsUnpickler error:')[2].strip()
        if re.match(r'(?i)trying to|unsupported|the checkpoint asks', line):
            return line.partition('. ')[0].partition(' was not an allowed')[0].rstrip('.')
    return ''


def _is_trusted() -> bool:
    return os.environ.get(TRUST, '0').lower() in ('1', 'y', 'yes', 'true')


def checkpoint_types() -> list[tuple[Callable[..., Any], str]]:
    """The types and functions in mmengine's checkpoints beyond torch's own.

    None of them can run foreign code, so a checkpoint still cannot bring any along.

    Returns:
        Pairs of what to call and the name that stands for it in the file, the form that
        ``torch.serialization.safe_globals`` takes. numpy's functions appear under the names
        that numpy 1 and numpy 2 write.
    """
    plain = '?' + np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + 'US'
    dtypes = {type(np.dtype(code)) for code in plain} - {np.dtype}
    # Both are the functions that numpy itself puts into a pickle.
    rebuild_array = np.empty(0).__reduce__()[0]
    rebuild_number = np.float64(0).__reduce__()[0]
    types: list[tuple[Callable[..., Any], str]] = [
        (HistoryBuffer, f'{HistoryBuffer.__module__}.{HistoryBuffer.__qualname__}'),
        # A function of a class is stored as getattr(class, name).
        (_statistic, 'builtins.getattr'),
        (argparse.Namespace, 'argparse.Namespace'),  # settings in files of DeiT, MAE, BEiT
        (slice, 'builtins.slice'),
        (np.ndarray, 'numpy.ndarray'),
        (np.dtype, 'numpy.dtype'),
    ]
    types += [(dtype, f'{dtype.__module__}.{dtype.__qualname__}') for dtype in dtypes]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        types += [(rebuild_array, f'{module}._reconstruct'), (rebuild_number, f'{module}.scalar')]
    return types


def _statistic(owner: type, name: str) -> Callable[..., Any]:
    """Stands in for ``getattr``, which could reach anything."""
    if owner is HistoryBuffer and name in STATISTICS:
        return getattr(HistoryBuffer, name)
    raise UnpicklingError(
        f'the checkpoint asks for {owner!r}.{name}, which no checkpoint of mmengine holds'
    )
