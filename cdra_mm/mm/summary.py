"""``summary.json``: what a run trained, what it cost and what it gave."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from torch import nn

from cdra_mm.core import count_parameters
from cdra_mm.errors import CheckpointError
from cdra_mm.storage import write_text

__all__ = ['SUMMARY', 'parameter_summary', 'plain_values', 'update_summary']

SUMMARY = 'summary.json'


def parameter_summary(backbone: nn.Module, trained: Mapping[int, nn.Parameter]) -> dict[str, Any]:
    """Trained parameters of a model: backbone, rest ("head"), percent of the backbone.

    Args:
        backbone: The backbone.
        trained: What the optimizer trains, by id (see `trained_parameters`).
    """
    _, total = count_parameters(backbone)
    inside = {id(p) for p in backbone.parameters()}
    trainable = sum(p.numel() for key, p in trained.items() if key in inside)
    head = sum(p.numel() for key, p in trained.items() if key not in inside)
    return {
        'trainable_backbone': trainable,
        'trainable_head': head,
        'backbone_parameters': total,
        'percent_of_backbone': 100 * trainable / total,
    }


def update_summary(work_dir: str | Path, entries: Mapping[str, Any]) -> None:
    """Writes entries into the summary of a work directory, keeping the others.

    It is JSON that anything reads: a number that is not finite becomes null. What was trained is
    never lost for a summary: one that cannot be read is kept aside as ``summary.json.damaged``, and
    one that cannot be written is a warning.
    """
    path = Path(work_dir) / SUMMARY
    try:
        with _one_at_a_time(path.parent):
            kept = _read(path)
            text = json.dumps({**kept, **plain_values(entries)}, indent=2, allow_nan=False)
            write_text(path, text + '\n')
    except (CheckpointError, OSError) as error:
        MMLogger.get_current_instance().warning(f'the summary of the run is not kept: {error}')


def _read(path: Path) -> dict[str, Any]:
    """The entries that are there; a damaged file is moved aside."""
    try:
        text = path.read_text(encoding='utf-8')
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        text = ''
    try:
        kept = json.loads(text)
        if isinstance(kept, dict):
            return dict(plain_values(kept))  # a release before wrote NaN
        fault = 'it holds no entries'
    except (ValueError, RecursionError) as error:
        fault = str(error)
    aside = _free_name(path.with_name(f'{path.name}.damaged'))
    os.replace(path, aside)
    MMLogger.get_current_instance().warning(
        f'{path} is damaged ({fault}): it is kept as {aside.name}, and a new one is begun'
    )
    return {}


def _free_name(path: Path) -> Path:
    names = (path, *(path.with_name(f'{path.name}.{number}') for number in range(2, 1000)))
    return next((name for name in names if not os.path.lexists(name)), path)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """A test may end in the work directory of a training while that ends too."""
    handle = None
    try:
        with suppress(OSError):  # no locks there: then without
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def plain_values(value: Any) -> Any:
    """Any value as JSON has it: numbers of any array type, nothing that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_values(entry) for entry in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, 'tolist'):
        return plain_values(value.tolist())
    return str(value)
