"""Task files: all that a task adds to a base, its adapter and its head, in one file.

A safetensors file with the tensors of an adapter file (`files`), and

cdra_head.<name>    what the head holds: parameters and persistent buffers

and its metadata, beside what an adapter file has (whose digest covers the adapter's part):

format, task_version    what wrote it
head                    JSON object: ``kind`` (class of the head, for people; ``Linear`` is built
                        again by name), ``classes`` (names of the classes, or none)
dtype                   in which type what was learnt is stored, '' as it was trained
task_digest             SHA-256 of the head's tensors and of the texts above

In half precision go the values of the adapters and of the head. What replaces values of the base
(vectors trained whole, weights carried along) is stored as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cdra_mm.errors import CheckpointError, ConfigError
from cdra_mm.reading.safetensors_file import open_safetensors
from cdra_mm.storage.strict_json import strict_json
from cdra_mm.storage.writing import write_atomically

from ..adapters.adapted import adapters
from ..model.digests import fingerprint_of
from .adapter_saving import adapter_content
from .files import FORMAT, AdapterFile, adapter_from, digest_of
from .state_keys import is_adapter_key

__all__ = ['DTYPES', 'TASK_FORMAT', 'TaskFile', 'check_head', 'fill_head', 'read_task', 'save_task']

TASK_FORMAT = 'cdra_mm.task'
TASK_VERSION = '1'
HEAD = 'cdra_head.'
DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
_TEXTS = ('format', 'task_version', 'head', 'dtype', 'digest')


@dataclass(frozen=True)
class TaskFile:
    """A task file, read and not yet put on a model.

    Attributes:
        path: Where it lies.
        adapter: Its adapter.
        head: What its head holds, by name; empty where the task has none.
        kind: Class of the head, '' where there is none.
        classes: Names of the classes, empty where unknown.
        dtype: Type in which what was learnt is stored, '' as it was trained.
    """

    path: str
    adapter: AdapterFile
    head: Mapping[str, Tensor]
    kind: str
    classes: tuple[str, ...]
    dtype: str

    def build_head(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The head, where it is a linear layer; `nn.Identity` where there is none.

        Args:
            dtype: Its type, that of what it is given; default: torch's own.

        Raises:
            CheckpointError: If it is anything else: a file says which values, not which program.
        """
        if not self.kind:
            return nn.Identity()
        weight = self.head.get('weight')
        names = {'weight', 'bias'} if 'bias' in self.head else {'weight'}
        if self.kind != 'Linear' or weight is None or weight.dim() != 2 or names != set(self.head):
            raise CheckpointError(
                f'{self.path}: its head is a {self.kind[:40]}, and only a Linear is built from a '
                'file alone: make the head as it was in training and pass it as head=...'
            )
        has_bias = 'bias' in self.head
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias, dtype=dtype)
        fill_head(head, self)
        return head


def save_task(
    model: nn.Module,
    path: str | Path,
    head: nn.Module | None = None,
    *,
    dtype: str | None = None,
    classes: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    carry: Iterable[str] | None = None,
    digests: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes what a task adds to its base: the adapter of a model, and a head.

    Args:
        model: A model with a plan applied, as for `save_adapter`.
        path: The file; written under a temporary name, then renamed.
        head: The head, a module of its own or a part of the model; None for a task without one.
        dtype: Type in which the values of the adapters and the head are stored: ``'float32'``,
            ``'float16'`` or ``'bfloat16'``; None: as they were trained, so that they come back bit
            for bit.
        classes: Names of the classes.
        metrics: What was measured, plain numbers by name.
        carry: See `save_adapter`.
        digests: See `save_adapter`.
        metadata: Further text to keep.

    Raises:
        CheckpointError: If the model has no plan, or merged adapters, or a value is no finite
            number, also when it is stored in half precision.
        ConfigError: If the type is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f'dtype={dtype!r}: expected one of {", ".join(DTYPES)}, or None')
    _check_classes(classes, head)
    tensors, own = adapter_content(model, metrics=metrics, carry=carry, digests=digests, head=head)
    if head is not None:
        if adapters(head):
            raise CheckpointError(
                f'the head, a {type(head).__name__}, has adapters itself: merge them first'
            )
        state = _state_of(head).items()
        tensors |= {HEAD + k: v.detach().cpu().contiguous().clone() for k, v in state}
    for key, tensor in tensors.items():
        if dtype is not None and (is_adapter_key(key) or key.startswith(HEAD)):
            tensors[key] = _stored(key, tensor, DTYPES[dtype])
    own |= {'format': TASK_FORMAT, 'task_version': TASK_VERSION, 'dtype': dtype or ''}
    kind = '' if head is None else type(head).__name__
    own['head'] = json.dumps({'kind': kind, 'classes': [str(name) for name in classes]})
    own['digest'] = digest_of(own, {k: v for k, v in tensors.items() if not k.startswith(HEAD)})
    own['task_digest'] = _task_digest(own, tensors)
    taken = sorted({*own, 'metrics'} & set(metadata or {}))
    if taken:
        raise CheckpointError(f'metadata {taken[0]!r} is a name of the file format: use another')
    extra = {**own, **(metadata or {})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=extra))


def read_task(path: str | Path) -> TaskFile:
    """Reads a task file, or an adapter file as a task without a head; no model is needed.

    Raises:
        CheckpointError: If the file is missing, truncated, foreign or damaged.
        PlanError: If its plan is damaged or of another version.
    """
    file = open_safetensors(path, 'task file')
    metadata, tensors = file.metadata, file.tensors()
    if metadata.get('format') == FORMAT:
        return TaskFile(str(path), adapter_from(path, metadata, tensors), {}, '', (), '')
    if metadata.get('format') != TASK_FORMAT:
        raise CheckpointError(
            f'{path} is no task of cdra_mm: expected what save_task or save_adapter wrote'
        )
    if metadata.get('task_version') != TASK_VERSION:
        raise CheckpointError(
            f'{path} has version {str(metadata.get("task_version"))[:20]!r} of task files: this '
            f'release reads {TASK_VERSION}; load it with the release that wrote it '
            f'({metadata.get("cdra_mm", "unknown")[:20]})'
        )
    if metadata.get('task_digest') != _task_digest(metadata, tensors):
        raise CheckpointError(
            f'{path} is damaged: its values or its texts are not those that were saved; copy or '
            'save it again'
        )
    head = {k.removeprefix(HEAD): v for k, v in tensors.items() if k.startswith(HEAD)}
    for key, tensor in head.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise CheckpointError(
                f'{path}: {key} of its head holds values that are no numbers: the training has '
                'diverged; use an earlier checkpoint'
            )
    rest = {key: value for key, value in tensors.items() if not key.startswith(HEAD)}
    kind, classes = _described(path, metadata.get('head', ''), head)
    adapter = adapter_from(path, metadata, rest)
    return TaskFile(str(path), adapter, head, kind, classes, metadata.get('dtype', ''))


def check_head(head: nn.Module, file: TaskFile) -> None:
    """Checks that a head has exactly the tensors of a file.

    Raises:
        CheckpointError: If it has not.
    """
    state = _state_of(head)
    for key in sorted(state.keys() | file.head.keys()):
        there, here = (
            tuple(tensors[key].shape) if key in tensors else None for tensors in (file.head, state)
        )
        if there != here:
            raise CheckpointError(
                f'{file.path}: its head has {key} of shape {there}, the {type(head).__name__} that '
                f'was given {here}: make the head as it was in training'
            )


@torch.no_grad()
def fill_head(head: nn.Module, file: TaskFile) -> None:
    """Gives a head the values of a file, in the head's own types: all or nothing.

    Raises:
        CheckpointError: See `check_head`.
    """
    check_head(head, file)
    for key, value in _state_of(head).items():
        value.copy_(file.head[key])


def _check_classes(classes: Sequence[str], head: nn.Module | None) -> None:
    """Refuses names that are not those of the classes of a head."""
    if isinstance(classes, str):
        raise ConfigError(f'classes={classes!r}: expected a list of names')
    if classes and type(head) is nn.Linear and len(classes) != head.out_features:
        raise ConfigError(
            f'{len(classes)} names of classes for a head of {head.out_features}: give one for each'
        )


def _state_of(head: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in head.state_dict().items() if isinstance(v, Tensor)}


def _stored(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of floating-point numbers in a type, any other as it is."""
    if not tensor.is_floating_point():
        return tensor
    narrow = tensor.to(dtype)
    if not bool(narrow.isfinite().all()) and bool(tensor.isfinite().all()):
        raise CheckpointError(
            f'{key} holds values beyond {str(dtype).removeprefix("torch.")} (up to '
            f'{float(tensor.abs().max()):.3g}): use bfloat16 or float32'
        )
    return narrow


def _task_digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    head = fingerprint_of({k: v for k, v in tensors.items() if k.startswith(HEAD)})
    parts = [*(metadata.get(key, '') for key in _TEXTS), head]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _described(
    path: str | Path, text: str, head: Mapping[str, Tensor]
) -> tuple[str, tuple[str, ...]]:
    """Kind of the head and names of the classes."""
    try:
        said = strict_json(text)
        kind, classes = said['kind'], said['classes']
        if not isinstance(kind, str) or not isinstance(classes, list) or bool(head) > bool(kind):
            raise ValueError('kind, classes')
        if not all(isinstance(name, str) for name in classes):
            raise ValueError('classes')
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f'{path} is damaged: it does not say what its head is') from None
    return kind, tuple(classes)
