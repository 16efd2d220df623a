"""Adapter files: what was learnt, a few MB, with the plan that says where it goes.

A safetensors file: tensors and text, nothing that could run. Its metadata:

format, version     what wrote it
cdra_mm             release of this package
plan                the plan, JSON text; names the method and its settings
base_fingerprint    of the weights that the plan leaves frozen, as they were when it was saved
method              the plan's, for those who only look into the file
metrics             JSON object, where there are any
digest              SHA-256 of plan, metrics and tensors: nothing else shows a flipped bit
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..version import __version__
from .adapt import (
    Place,
    adapters,
    check_fits,
    freeze_rest,
    plan_of,
    planned_adapters,
    trained_whole,
)
from .errors import CheckpointError, PlanError
from .fingerprints import fingerprint, fingerprint_of
from .layers import adapt_module
from .plan import Plan
from .state_keys import adapter_prefix
from .targets import find_targets, parameter_of, resolve
from .writing import write_atomically

__all__ = [
    'AdapterFile',
    'build_from_file',
    'load_adapter',
    'put_on',
    'read_adapter',
    'save_adapter',
]

FORMAT = 'cdra_mm.adapter'
FORMAT_VERSION = '1'


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file, read and not yet put on a model.

    Attributes:
        path: Where it lies.
        plan: Its plan.
        tensors: What was learnt, by state-dict key.
        base_fingerprint: Of the frozen weights that it was trained on.
        metrics: What was measured when it was saved.
    """

    path: str
    plan: Plan
    tensors: Mapping[str, Tensor]
    base_fingerprint: str
    metrics: Mapping[str, Any]


def save_adapter(
    model: nn.Module,
    path: str | Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes everything that the plan trains to a safetensors file.

    Args:
        model: A model with a plan applied; its adapters must not be merged.
        path: The file; written under a temporary name, then renamed.
        metrics: What was measured, plain numbers by name.
        metadata: Further text to keep.

    Raises:
        CheckpointError: If the model has no plan, or merged adapters, or the
            metadata has a name of the format's own.
    """
    plan = plan_of(model)
    if plan is None:
        raise CheckpointError(f'{type(model).__name__} has no adapters: apply a plan first')
    merged = [name for name, adapter in adapters(model).items() if adapter.merged]
    if merged:
        raise CheckpointError(f'{len(merged)} adapters are merged: call unmerge_adapters first')
    tensors = {key: value.detach().cpu().contiguous() for key, value in _trained(model, plan)}
    own = {
        'format': FORMAT,
        'version': FORMAT_VERSION,
        'cdra_mm': __version__,
        'plan': plan.to_json(),
        'base_fingerprint': _frozen_fingerprint(model, plan),
        'method': plan.method,
    }
    if metrics:
        own['metrics'] = json.dumps(dict(metrics), default=float)  # of numpy's numbers
    own['digest'] = _digest(own, tensors)
    taken = sorted({*own, 'metrics'} & set(metadata or {}))
    if taken:
        raise CheckpointError(f'metadata {taken[0]!r} is a name of the file format: use another')
    extra = {**own, **(metadata or {})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=extra))


def load_adapter(model: nn.Module, path: str | Path, *, check_base: bool = True) -> Plan:
    """Applies the plan of an adapter file to a plain model and loads its values.

    All or nothing: a file that is refused leaves the model as it was.

    Args:
        model: The model with the base weights that the adapter was made for.
        path: A file written by `save_adapter`.
        check_base: Refuse other base weights than those it was trained on.

    Returns:
        The plan.

    Raises:
        CheckpointError: If the file is missing, truncated or foreign, or was
            trained on other base weights.
        PlanError: If the model or its base weights are not those of the plan.
    """
    file = read_adapter(path)
    places = build_from_file(model, file, check_base=check_base)
    whole = {name: file.tensors[name] for name in trained_whole(file.plan)}
    put_on(model, file.plan, places, whole)
    return file.plan


def read_adapter(path: str | Path) -> AdapterFile:
    """Reads an adapter file; no model is needed.

    Raises:
        CheckpointError: If the file is missing, truncated or foreign.
        PlanError: If its plan is damaged or of another version.
    """
    try:
        with safe_open(str(path), framework='pt') as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f'{path}: no such adapter file') from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f'{path} is truncated or no safetensors file ({error}): save the adapter again'
        ) from None
    if metadata.get('format') != FORMAT:
        raise CheckpointError(f'{path} is no adapter of cdra_mm: expected what save_adapter wrote')
    if metadata.get('version') != FORMAT_VERSION:
        raise CheckpointError(
            f'{path} has version {metadata.get("version")!r}: this release reads version '
            f'{FORMAT_VERSION}; load it with the release that wrote it '
            f'({metadata.get("cdra_mm", "unknown")})'
        )
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f'{path}: {key} holds values that are no finite numbers: the training has '
                'diverged, or the file is damaged; use an earlier checkpoint'
            )
    if 'base_fingerprint' not in metadata:
        raise CheckpointError(f'{path} is damaged: it does not name its base weights')
    plan = Plan.from_json(metadata.get('plan', ''))
    metrics = _read_metrics(path, metadata.get('metrics', '{}'))
    if (
        metadata.get('digest') != _digest(metadata, tensors)
        or metadata.get('method') != plan.method
    ):
        raise CheckpointError(
            f'{path} is damaged: its values or its plan are not those that were saved; copy or '
            'save it again'
        )
    return AdapterFile(str(path), plan, tensors, metadata['base_fingerprint'], metrics)


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    parts = (metadata['plan'], metadata.get('metrics', ''), fingerprint_of(dict(tensors)))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read_metrics(path: str | Path, text: str) -> dict[str, Any]:
    try:
        metrics = json.loads(text)
    except (ValueError, RecursionError):
        metrics = None
    if not isinstance(metrics, dict):
        raise CheckpointError(f'{path} is damaged: its metrics are no JSON object')
    return metrics


def build_from_file(model: nn.Module, file: AdapterFile, *, check_base: bool = True) -> list[Place]:
    """The adapters of a file with their values, built but not yet put on.

    Args:
        model: The plain model; it is left as it is.
        file: The file.
        check_base: See `load_adapter`.

    Raises:
        CheckpointError: If the tensors contradict the plan, or the base weights are others.
        PlanError: If the plan does not fit the model.
    """
    plan = file.plan
    check_fits(model, plan if check_base else replace(plan, fingerprint=''))
    places = planned_adapters(model, plan)
    expected = {name: _base(model, name) for name in trained_whole(plan)}
    for path, suffix, adapter in places:
        prefix = adapter_prefix(f'{path}.{suffix}')
        expected |= {prefix + key: value for key, value in adapter.named_parameters()}
    differ = sorted(
        key
        for key in expected.keys() | file.tensors.keys()
        if key not in file.tensors
        or key not in expected
        or expected[key].shape != file.tensors[key].shape
    )
    if differ:
        raise CheckpointError(
            f'{file.path} is damaged: {len(differ)} tensors do not fit its plan, the first is '
            f'{differ[0]}'
        )
    if check_base and _frozen_fingerprint(model, plan) != file.base_fingerprint:
        raise CheckpointError(
            f'{file.path} was trained on other base weights (fingerprint '
            f'{file.base_fingerprint[:12]}, this model has '
            f'{_frozen_fingerprint(model, plan)[:12]}): load those into the model first, or pass '
            'check_base=False to take it all the same'
        )
    with torch.no_grad():
        for path, suffix, adapter in places:
            prefix = adapter_prefix(f'{path}.{suffix}')
            for key, parameter in adapter.named_parameters():
                parameter.copy_(file.tensors[prefix + key])
    return places


def put_on(model: nn.Module, plan: Plan, places: list[Place], whole: Mapping[str, Tensor]) -> None:
    """Puts built adapters on a plain model, sets what is trained whole, and freezes the rest.

    Args:
        model: The plain model.
        plan: The plan.
        places: Its adapters.
        whole: Values of the base parameters that it trains whole, by name.
    """
    for path, suffix, adapter in places:
        adapt_module(model, path, suffix, adapter)
    with torch.no_grad():
        for name, value in whole.items():
            _base(model, name).copy_(value)
    freeze_rest(model, plan)


def _trained(model: nn.Module, plan: Plan) -> list[tuple[str, Tensor]]:
    """What the plan trains: (state-dict key, parameter)."""
    found: list[tuple[str, Tensor]] = []
    for name, adapter in adapters(model).items():
        prefix = adapter_prefix(name)
        found += [(prefix + key, value) for key, value in adapter.named_parameters()]
    return found + [(name, _base(model, name)) for name in trained_whole(plan)]


def _base(model: nn.Module, name: str) -> nn.Parameter:
    return parameter_of(model, resolve(model, name))


def _frozen_fingerprint(model: nn.Module, plan: Plan) -> str:
    """Fingerprint of the competing weights that the plan does not train whole.

    Those are the same before and after training. Where the model has no transformer blocks, of
    the weights that the plan names.
    """
    try:
        names = {target.path for target in find_targets(model).values()}
    except PlanError:
        named = [r.name for r in plan.blocks] + [r.name for r in plan.vectors]
        named += [r.name for r in plan.sparse]
        names = {resolve(model, name).path for name in named}
    return fingerprint(model, names - set(trained_whole(plan)))
