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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from cdra_mm.errors import CheckpointError, PlanError
from cdra_mm.reading.safetensors_file import open_safetensors
from cdra_mm.storage.strict_json import strict_json
from cdra_mm.storage.writing import write_atomically
from cdra_mm.version import __version__

from ..adapters.adapted import (
    adapters,
    changed_buffers,
    names_beside,
    noted_digests,
    packed_plan_of,
    plan_of,
    trained_whole,
)
from ..model.digests import (
    DIGESTS_KEY,
    digests_of,
    fingerprint_of,
    pack_digests,
    unpack_digests,
)
from ..model.own_state import PLAN_KEY, base_state
from ..planning.packed_plan import unpack_plan
from ..planning.plan import Plan
from .state_keys import is_adapter_key, learnt_of

__all__ = ['AdapterFile', 'read_adapter', 'save_adapter']

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


def save_adapter(
    model: nn.Module,
    path: str | Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    carry: Iterable[str] | None = None,
    digests: Mapping[str, str] | None = None,
) -> None:
    """Writes everything that the plan trains to a safetensors file, and what it relies on.

    Of each frozen weight and buffer the file holds a digest, and loading it into a model with
    another one is refused; or it carries the value.

    Args:
        model: A model with a plan applied; its adapters must not be merged.
        path: The file; written under a temporary name, then renamed.
        metrics: What was measured, plain numbers by name.
        metadata: Further text to keep.
        carry: Names of the weights and buffers to carry: those that whoever loads the file cannot
            have. Default: the buffers that have changed since the plan was applied (statistics
            of batch norms).
        digests: Table of the frozen weights, where it is known already.

    Raises:
        CheckpointError: If the model has no plan, or merged adapters, or lacks what it shall
            carry, or the metadata has a name of the format's own.
    """
    plan = plan_of(model)
    if plan is None:
        raise CheckpointError(f'{type(model).__name__} has no adapters: apply a plan first')
    merged = [name for name, adapter in adapters(model).items() if adapter.merged]
    if merged:
        raise CheckpointError(f'{len(merged)} adapters are merged: call unmerge_adapters first')
    state = base_state(model)
    whole = set(trained_whole(plan))
    beside = _beside(model, state) - whole
    carried = set(changed_buffers(model) - beside if carry is None else carry) - whole
    foreign = sorted(carried - state.keys())
    if foreign:
        raise CheckpointError(f'carry: {type(model).__name__} has no weight or buffer {foreign[0]}')
    beside -= carried
    frozen = {key: value for key, value in state.items() if key not in whole | carried | beside}
    given = {**noted_digests(model), **(digests or {})}
    known = {key: text for key, text in given.items() if key in frozen}
    known |= digests_of({key: value for key, value in frozen.items() if key not in known})
    tensors: dict[str, Tensor] = dict(learnt_of(adapters(model).items()))
    tensors |= {name: state[name] for name in whole | carried}
    packed = packed_plan_of(model)
    assert packed is not None
    tensors |= {PLAN_KEY: packed, DIGESTS_KEY: pack_digests(known)}
    # Copies: two names of one tensor are no file of safetensors.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    own = {
        'format': FORMAT,
        'version': FORMAT_VERSION,
        'cdra_mm': __version__,
        'beside': json.dumps(sorted(beside)),
        'method': plan.method,
    }
    if metrics:
        own['metrics'] = json.dumps(dict(metrics), default=float)  # of numpy's numbers
    own['digest'] = _digest(own, tensors)
    names = {name for texts in TEXTS.values() for name in texts}
    taken = sorted({*own, 'metrics', *names} & set(metadata or {}))
    if taken:
        raise CheckpointError(f'metadata {taken[0]!r} is a name of the file format: use another')
    extra = {**own, **(metadata or {})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=extra))


def read_adapter(path: str | Path) -> AdapterFile:
    """Reads an adapter file; no model is needed.

    Raises:
        CheckpointError: If the file is missing, truncated or foreign.
        PlanError: If its plan is damaged or of another version.
    """
    file = open_safetensors(path, 'adapter file')
    metadata, tensors = file.metadata, file.tensors()
    if metadata.get('format') != FORMAT:
        raise CheckpointError(f'{path} is no adapter of cdra_mm: expected what save_adapter wrote')
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
        if metadata.get('digest') != _digest(metadata, tensors):
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
        metadata.get('digest') != _digest(metadata, tensors)
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


def _beside(model: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Names of what is trained, or was left as it is, beside the plan."""
    trained = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }
    return (trained | names_beside(model)) & state.keys()


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
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
