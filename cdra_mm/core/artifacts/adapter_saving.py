"""An adapted model becomes an adapter file (`files`): what it has learnt, and what it relies on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from cdra_mm.errors import CheckpointError
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
from ..model.digests import DIGESTS_KEY, digests_of, pack_digests
from ..model.own_state import PLAN_KEY, base_state
from .files import FORMAT, FORMAT_VERSION, TEXTS, digest_of
from .state_keys import learnt_of

__all__ = ['adapter_content', 'save_adapter']


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
    tensors, own = adapter_content(model, metrics=metrics, carry=carry, digests=digests)
    own['digest'] = digest_of(own, tensors)
    names = {name for texts in TEXTS.values() for name in texts}
    taken = sorted({*own, 'metrics', *names} & set(metadata or {}))
    if taken:
        raise CheckpointError(f'metadata {taken[0]!r} is a name of the file format: use another')
    extra = {**own, **(metadata or {})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=extra))


def adapter_content(
    model: nn.Module,
    *,
    metrics: Mapping[str, Any] | None = None,
    carry: Iterable[str] | None = None,
    digests: Mapping[str, str] | None = None,
    head: nn.Module | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and texts of an adapter file, as yet without its digest.

    Args:
        model: See `save_adapter`, as for the others.
        metrics: What was measured.
        carry: Names of the weights and buffers to carry.
        digests: Table of the frozen weights.
        head: A part of the model that the plan does not cover, trained or not.

    Returns:
        The tensors, copies on the CPU, and the metadata.

    Raises:
        CheckpointError: See `save_adapter`.
    """
    plan = plan_of(model)
    if plan is None:
        raise CheckpointError(f'{type(model).__name__} has no adapters: apply a plan first')
    merged = [name for name, adapter in adapters(model).items() if adapter.merged]
    if merged:
        raise CheckpointError(f'{len(merged)} adapters are merged: call unmerge_adapters first')
    state = base_state(model)
    whole = set(trained_whole(plan))
    beside = (_beside(model, state) | _names_in(model, head)) & state.keys() - whole
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
    return tensors, own


def _names_in(model: nn.Module, head: nn.Module | None) -> set[str]:
    """Names of a model's own tensors that a head holds, where it is a part of the model."""
    if head is None:
        return set()
    held = {id(tensor) for tensor in (*head.parameters(), *head.buffers())}
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return {name for name, tensor in named if id(tensor) in held}


def _beside(model: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Names of what is trained, or was left as it is, beside the plan."""
    trained = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }
    return (trained | names_beside(model)) & state.keys()
