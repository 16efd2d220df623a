"""Where a tool may write: never over what it reads, and with ``--force`` only over its own kind."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from cdra_mm.core.artifacts.files import FORMAT as ADAPTER_FORMAT
from cdra_mm.core.artifacts.task_files import TASK_FORMAT
from cdra_mm.errors import CheckpointError

from ..checkpoints.index import holds, is_run_checkpoint, read_index

__all__ = [
    'check_destination',
    'is_adapter',
    'is_merged',
    'is_onnx',
    'is_peft',
    'is_task',
    'is_weights',
]

_PEFT_FILES = {'adapter_config.json', 'adapter_model.safetensors'}
_TAIL = 2**16  # bytes; ONNX keeps its metadata at the end of the file


def check_destination(
    out: Path,
    inputs: Iterable[tuple[str, str]],
    *,
    folder: bool = False,
    force: bool = False,
    what: str = '',
    is_own: Callable[[Path], bool] = lambda _: True,
) -> None:
    """Refuses a place that is not to be written to, before any work.

    Args:
        out: The file or folder to write.
        inputs: What is read: what it is, and its path or address. Links of both kinds count.
        folder: Whether a folder is written.
        force: Whether what is there may be replaced.
        what: What is written, for the message.
        is_own: Whether what is there is of this kind.

    Raises:
        CheckpointError: If it is an input, is there without `force`, is nothing that this could
            have written, or its folder cannot be written to.
    """
    for name, path in inputs:
        if '://' not in path and _is_same(out, Path(path).expanduser()):
            raise CheckpointError(f'{out} is {name}, which is read: name another one to write')
    if os.path.lexists(out):
        mode = os.stat(out).st_mode if out.exists() else os.lstat(out).st_mode
        if folder != stat.S_ISDIR(mode) or not (folder or stat.S_ISREG(mode)):
            found = 'folder' if stat.S_ISDIR(mode) else 'file' if stat.S_ISREG(mode) else 'no file'
            raise CheckpointError(
                f'{out} is {found if found == "no file" else "a " + found}, and a '
                f'{"folder" if folder else "file"} is to be written: nothing was written'
            )
        if not force:
            raise CheckpointError(f'{out} exists (--force replaces it): nothing was written')
        if not is_own(out):
            raise CheckpointError(
                f'{out} is no {what}, so --force does not replace it: name another, or move it away'
            )
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise CheckpointError(f'{out} cannot be written: {above} is not a writable folder')


def is_merged(path: Path) -> bool:
    """Whether a file is a merged checkpoint."""
    return holds(read_index(path), 'cdra_merged')


def is_adapter(path: Path) -> bool:
    """Whether a file is an adapter file."""
    return _format_of(path) == ADAPTER_FORMAT


def is_task(path: Path) -> bool:
    """Whether a file is a task file."""
    return _format_of(path) == TASK_FORMAT


def is_onnx(path: Path) -> bool:
    """Whether a file is an ONNX model that was exported here: it says what it comes from."""
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return b'num_adapters' in file.read()


def is_peft(path: Path) -> bool:
    """Whether a folder holds a PEFT adapter and nothing else."""
    names = {entry.name for entry in path.iterdir()}
    return 'adapter_config.json' in names and names <= _PEFT_FILES


def is_weights(path: Path) -> bool:
    """Whether a file holds weights and no run that could go on."""
    if path.suffix.lower() == '.safetensors':
        return _format_of(path) not in (None, ADAPTER_FORMAT, TASK_FORMAT)
    index = read_index(path)
    return index is not None and not is_run_checkpoint(index)


def _format_of(path: Path) -> str | None:
    """What a safetensors file says of itself, '' where it says nothing; None where it is none."""
    try:
        with safe_open(str(path), framework='pt') as file:
            return str((file.metadata() or {}).get('format', ''))
    except (OSError, SafetensorError):
        return None


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()
