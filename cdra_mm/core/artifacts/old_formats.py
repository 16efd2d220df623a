"""What earlier releases wrote, as what is written now.

Adapters of state dicts held more than what they have learnt: the indices, the scale and the dropout
that their plan has too. Adapter files of version 1 knew their base by one fingerprint of the
weights that compete.
"""

from __future__ import annotations

import warnings
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.errors import CheckpointError, PlanError

from ..adapters.adapted import trained_whole
from ..model.digests import fingerprint_of
from ..model.targets import find_targets, parameter_of, resolve
from ..planning.plan import Plan, SparseMatrix, Vector
from .state_keys import adapter_prefix

__all__ = ['check_old_fingerprint', 'drop_repeated']


def drop_repeated(state_dict: MutableMapping[str, Tensor], prefix: str, plan: Plan) -> None:
    """Takes out of a state dict of an earlier release what its plan has too, in place.

    Raises:
        CheckpointError: If the two contradict each other, or it is not there.
    """
    for key, expected in _repeated(plan).items():
        given = state_dict.pop(prefix + key, None)
        fits = isinstance(given, Tensor) and given.dim() == expected.dim()
        if not fits or not torch.equal(given.cpu().to(expected.dtype), expected):  # type: ignore[union-attr]
            raise CheckpointError(
                f'the checkpoint is damaged: {key} is not what its plan says; use another one'
            )


def _repeated(plan: Plan) -> dict[str, Tensor]:
    """What adapters of a plan held beside what they learn, by their keys."""
    found: dict[str, Any] = {}
    for block in plan.blocks:
        at = adapter_prefix(block.name)
        found |= {f'{at}rows': block.rows, f'{at}cols': block.cols}
        if block.scale != 1:
            found[f'{at}scaling'] = float(block.scale)
    single: tuple[Vector | SparseMatrix, ...] = (*plan.vectors, *plan.sparse)
    for entry in single:
        if entry.indices is not None:
            found[adapter_prefix(entry.name) + 'index'] = entry.indices
    for part in plan.parts:
        at, sizes = adapter_prefix(part.name), part.sizes
        if isinstance(sizes.get('starts'), str):
            found[f'{at}starts'] = [int(start) for start in sizes['starts'].split()]
        elif part.kind == 'bottleneck':
            found[f'{at}starts'] = [0]
        if sizes.get('dropout'):
            found[f'{at}dropping'] = float(sizes['dropout'])
    types = {
        key: torch.float64 if isinstance(v, float) else torch.int64 for key, v in found.items()
    }
    return {k: torch.tensor(v, dtype=types[k], device='cpu') for k, v in found.items()}


def check_old_fingerprint(model: nn.Module, path: str, plan: Plan, given: str) -> None:
    """The check of version 1: the competing weights that the plan does not train whole.

    Those are the same before and after training. Where the model has no transformer blocks, the
    weights that the plan names.

    Raises:
        CheckpointError: If the model has others.
    """
    try:
        names = {target.path for target in find_targets(model).values()}
    except PlanError:
        named = [record.name for record in plan.blocks] + [record.name for record in plan.vectors]
        named += [record.name for record in plan.sparse]
        names = {resolve(model, name).path for name in named}
    frozen = names - set(trained_whole(plan))
    here = fingerprint_of({name: parameter_of(model, resolve(model, name)) for name in frozen})
    if here != given:
        raise CheckpointError(
            f'{path} was trained on other base weights (fingerprint {given[:12]}, this model has '
            f'{here[:12]}): load those into the model first, or pass check_base=False to take it '
            'all the same'
        )
    warnings.warn(
        f'{path} is of version 1, which knows the weights that compete only: whether the others '
        '(patch embedding, norms outside of the blocks, buffers) are those of its training is not '
        'known; save the adapter again with this release',
        stacklevel=4,
    )
