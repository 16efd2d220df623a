"""Adapter files: what was learnt, a few MB, with the plan that says where it goes.

A safetensors file: tensors and text, nothing that could run. Its tensors are the backbone's part of
a run's checkpoint, under the same names:

cdra_plan           the plan (`core.planning.packed_plan`); it names the method and its settings
cdra_digests        a digest of each base weight and buffer that the file relies on
<adapter>.<name>    what the adapters have learnt (`state_keys`)
<name>              what the plan trains whole; any other is a base weight or buffer whose value is
                    carried, because whoever loads the file cannot have it

and its metadata:

format, version     what wrote it
cdra_mm             release of this package
beside              JSON list: what was trained beside the plan (a head), and is not in the file
method              the plan's, for those who only look into the file
metrics             JSON object, where there are any
digest              SHA-256 of the tensors and the texts above: nothing else shows a flipped bit

Together they name everything that the model holds. Versions 1 and 2 are still read: they had the
plan as text, and of their base a table as text (2) or one ``base_fingerprint`` (1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cdra_mm.errors import CheckpointError, PlanError
from cdra_mm.reading.safetensors_file import open_safetensors
from cdra_mm.storage.strict_json import strict_json

from ..adapters.adapted import (
    trained_whole,
)
from ..model.digests import (
    DIGESTS_KEY,
    fingerprint_of,
    unpack_digests,
)
from ..model.own_state import PLAN_KEY
from ..planning.packed_plan import unpack_plan
from ..planning.plan import Plan
from .state_keys import is_adapter_key

__all__ = [
    'FORMAT',
    'FORMAT_VERSION',
    'TEXTS',
    'AdapterFile',
    'adapter_from',
    'digest_of',
    'read_adapter',
]

FORMAT = 'cdra_mm.adapter'
FORMAT_VERSION = '3'
# Texts that say where a file belongs, in each version that is read.
TEXTS = {
    '1': ('plan', 'base_fingerprint'),
    '2': ('plan', 'digests', 'carried', 'beside'),
    '3': ('beside',),
}
PACKED = (PLAN_KEY, DIGESTS_KEY)


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file, read and not yet put on a model.

    Attributes:
        path: Where it lies.
        plan: Its plan.
        tensors: What was learnt and what is carried, by state-dict key.
        digests: Table of the base weights and buffers that it relies on.
        carried: Names of the base weights and buffers that it brings along.
        beside: Names of what was trained beside the plan.
        metrics: What was measured when it was saved.
        base_fingerprint: Of a file of version 1, in the place of the table.
    """

    path: str
    plan: Plan
    tensors: Mapping[str, Tensor]
    digests: Mapping[str, str]
    carried: tuple[str, ...]
    beside: tuple[str, ...]
    metrics: Mapping[str, Any]
    base_fingerprint: str = ''


def read_adapter(path: str | Path) -> AdapterFile:
    """Reads an adapter file; no model is needed.

    Raises:
        CheckpointError: If the file is missing, truncated or foreign.
        PlanError: If its plan is damaged or of another version.
    """
    file = open_safetensors(path, 'adapter file')
    if file.metadata.get('format') != FORMAT:
        raise CheckpointError(f'{path} is no adapter of cdra_mm: expected what save_adapter wrote')
    return adapter_from(path, file.metadata, file.tensors())


def adapter_from(
    path: str | Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> AdapterFile:
    """What the texts and tensors of an adapter file say, checked.

    Args:
        path: Where they are from, for messages.
        metadata: The texts.
        tensors: The tensors.

    Raises:
        CheckpointError: See `read_adapter`.
        PlanError: See `read_adapter`.
    """
    version = str(metadata.get('version'))
    if version not in TEXTS:
        raise CheckpointError(
            f'{path} has version {metadata.get("version")!r}: this release reads the versions '
            f'{", ".join(TEXTS)}; load it with the release that wrote it '
            f'({metadata.get("cdra_mm", "unknown")})'
        )
    lacking = [key for key in TEXTS[version] if key not in metadata]
    lacking += [key for key in PACKED if version == FORMAT_VERSION and key not in tensors]
    if lacking:
        raise CheckpointError(
            f'{path} is damaged: it lacks {lacking[0]}, so that it does not name its base weights '
            'and what goes where'
        )
    held = {key: value for key, value in tensors.items() if key not in PACKED}
    beside = tuple(_read_json(path, metadata.get('beside', '[]'), 'beside', list))
    changed = CheckpointError(
        f'{path} is damaged: its values or its plan are not those that were saved; copy or '
        'save it again'
    )
    try:
        plan, digests, carried = _described(path, version, metadata, tensors)
    except PlanError:
        if metadata.get('digest') != digest_of(metadata, tensors):
            raise changed from None
        raise
    _check_names(path, digests, carried, beside)
    for key, tensor in held.items():
        if not _is_sound(tensor, key in carried):
            raise CheckpointError(
                f'{path}: {key} holds values that are no finite numbers: the training has '
                'diverged, or the file is damaged; use an earlier checkpoint'
            )
    metrics = _read_json(path, metadata.get('metrics', '{}'), 'metrics', dict, finite=False)
    if (
        metadata.get('digest') != digest_of(metadata, tensors)
        or metadata.get('method') != plan.method
    ):
        raise changed
    return AdapterFile(
        str(path),
        plan,
        held,
        digests,
        carried,
        beside,
        metrics,
        base_fingerprint=metadata['base_fingerprint'] if version == '1' else '',
    )


def _described(
    path: str | Path, version: str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> tuple[Plan, dict[str, str], tuple[str, ...]]:
    """Plan, table of digests and names of what is carried."""
    if version == FORMAT_VERSION:
        plan = unpack_plan(tensors[PLAN_KEY])
        try:
            digests = unpack_digests(tensors[DIGESTS_KEY])
        except ValueError as error:
            raise CheckpointError(f'{path} is damaged: its table of digests, {error}') from None
        whole = set(trained_whole(plan))
        rest = (key for key in sorted(tensors) if key not in whole and key not in PACKED)
        return plan, digests, tuple(key for key in rest if not is_adapter_key(key))
    plan = Plan.from_json(metadata['plan'])
    if version == '1':
        return plan, {}, ()
    carried = tuple(_read_json(path, metadata['carried'], 'carried', list))
    return plan, _read_json(path, metadata['digests'], 'digests', dict), carried


def digest_of(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors of a file and of the texts that say where they belong, in hex."""
    version = str(metadata.get('version'))
    parts = [metadata.get('plan', ''), metadata.get('metrics', ''), fingerprint_of(tensors)]
    if version != '1':
        parts += [metadata.get(key, '') for key in TEXTS['2'][1:]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_names(
    path: str | Path, digests: Mapping[str, Any], carried: tuple[Any, ...], beside: tuple[Any, ...]
) -> None:
    if not all(isinstance(text, str) for text in (*digests.values(), *carried, *beside)):
        raise CheckpointError(f'{path} is damaged: it does not name its base weights by texts')
    named = [*digests, *carried, *beside]
    if len(set(named)) != len(named):
        raise CheckpointError(f'{path} is damaged: it names a base weight twice')


def _read_json(
    path: str | Path,
    text: str,
    what: str,
    kind: type,
    finite: bool = True,
) -> Any:
    """A JSON text of the metadata; metrics may be no finite numbers, as Python writes them."""
    try:
        value = strict_json(text, finite=finite)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        expected = 'object' if kind is dict else 'list'
        raise CheckpointError(f'{path} is damaged: its {what} are no JSON {expected}')
    return value


def _is_sound(tensor: Tensor, is_carried: bool) -> bool:
    """Whether values may be those of a training; buffers may be whole numbers, or masks of inf."""
    if not tensor.is_floating_point():
        return is_carried
    wrong = tensor.isnan() if is_carried else ~tensor.isfinite()
    return not bool(wrong.any())
