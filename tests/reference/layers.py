"""Eq. 6 by a loop of scatter, and the dense model that an adapted one must equal."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cdra_mm.core.planning.packed_plan import unpack_plan
from cdra_mm.core.planning.plan import Plan

from .scores import view


def add_block(weight: Tensor, rows: Tensor, cols: Tensor, up: Tensor, down: Tensor) -> None:
    """``weight[rows][:, cols] += up @ down``, in place, one entry at a time, ``r`` terms each."""
    for a, i in enumerate(rows.tolist()):
        for b, j in enumerate(cols.tolist()):
            for r in range(down.shape[0]):
                weight[i, j] += up[a, r].to(weight) * down[r, b].to(weight)


def suffixes(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Adapter tensors of a state dict by target: ``a.cdra.weight:q.up -> {'a.weight:q': ..}``.

    Rows, columns and indices are those of the plan that the state dict brings along.
    """
    found: dict[str, dict[str, Tensor]] = {}
    plan = unpack_plan(state['cdra_plan']) if 'cdra_plan' in state else Plan()
    for block in plan.blocks:
        sides = dict(rows=torch.tensor(block.rows), cols=torch.tensor(block.cols))
        found[block.name] = sides | dict(scale=torch.tensor(block.scale))
    for entry in (*plan.vectors, *plan.sparse):
        if entry.indices is not None:
            found[entry.name] = dict(index=torch.tensor(entry.indices))
    for key, tensor in state.items():
        module, mark, rest = key.rpartition('.cdra.')
        if mark:
            suffix, field = rest.rsplit('.', 1)
            found.setdefault(f'{module}.{suffix}', {})[field] = tensor
    # A module that stands in two places comes under two names; the plan has one of them.
    places = {
        (sides['up'] if 'up' in sides else sides['value']).data_ptr(): sides
        for sides in found.values()
        if {'rows', 'index'} & {*sides}
    }
    for name, sides in found.items():
        learnt = sides.get('up', sides.get('value'))
        if learnt is not None:
            found[name] = places.get(learnt.data_ptr(), sides)
    return found


@torch.no_grad()
def dense_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain state dict that an adapted one stands for: each weight with its change added."""
    plain = {
        key: value.detach().clone()
        for key, value in state.items()
        if '.cdra.' not in key and key != 'cdra_plan'
    }
    for name, tensors in suffixes(state).items():
        target = view(plain[name.split(':')[0]], name)
        if 'up' in tensors:
            add_block(target, *(tensors[field] for field in ('rows', 'cols', 'up', 'down')))
        else:
            for index, value in zip(
                tensors['index'].tolist(), tensors['value'].flatten(), strict=True
            ):
                at = divmod(index, target.shape[1]) if target.dim() == 2 else index
                target[at] += value.to(target)
    return plain


def dense_model(base: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``base`` with the weights that the adapted state dict stands for."""
    model = copy.deepcopy(base)
    model.load_state_dict(dense_state(state))
    return model
