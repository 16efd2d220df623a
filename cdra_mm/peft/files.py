"""What adapter_model.safetensors holds: all values in one tensor, and the plan that places them.

    base_model.model.cdra_values   every trained value, in the order of `slot_names`   [n]
    base_model.model.cdra_plan     the plan in few bits (`core.planning.packed_plan`)  uint8 [m]
    ...                            what ``modules_to_save`` names, as peft writes it

A tensor for each factor would cost as much for its name as the plan does for all its indices: one
flat tensor makes up for the places, which LoRA does not have to store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cdra_mm.core import Plan
from cdra_mm.core.planning.packed_plan import pack_plan, unpack_plan
from cdra_mm.errors import CheckpointError, PlanError

__all__ = ['pack_adapter', 'plan_in', 'slots_of', 'unpack_adapter']

PREFIX = 'base_model.model.'
VALUES, PLAN = PREFIX + 'cdra_values', PREFIX + 'cdra_plan'

# A target's name, the name of a tensor of its adapter, its shape.
Slot = tuple[str, str, tuple[int, ...]]


def slots_of(plan: Plan) -> Iterator[Slot]:
    """The trained tensors of a plan, in the order in which files hold them."""
    for block in plan.blocks:
        yield block.name, 'down', (block.rank, len(block.cols))
        yield block.name, 'up', (len(block.rows), block.rank)
    for vector in plan.vectors:
        yield vector.name, 'value', (vector.num_params,)
    for matrix in plan.sparse:
        yield matrix.name, 'value', (matrix.num_params,)
    for name, numel in plan.also_train.items():
        yield name, 'value', (numel,)


def pack_adapter(plan: Plan, values: Sequence[Tensor]) -> dict[str, Tensor]:
    """The two tensors of an adapter.

    Args:
        plan: Its plan.
        values: What was trained, as `slots_of` names it.
    """
    flat = torch.cat([value.detach().reshape(-1) for value in values])
    # The fingerprint is in adapter_config.json.
    return {VALUES: flat, PLAN: pack_plan(replace(plan, fingerprint=''))}


def unpack_adapter(tensors: Mapping[str, Tensor], plan: Plan, path: str) -> list[Tensor]:
    """The values of an adapter, as `slots_of` names them.

    Args:
        tensors: What the file holds.
        plan: The plan of the adapter that takes them.
        path: The file, or what it belongs to, for messages.

    Raises:
        CheckpointError: If they are of another plan, or not there, or damaged.
    """
    there = plan_in(tensors, path)
    # How it came about does not matter: only what it trains, and where.
    if _trained(there) != _trained(plan):
        raise CheckpointError(
            f'{path} holds an adapter of another plan ({there.num_trainable:,} trained values, '
            f'here {plan.num_trainable:,}): load it under another adapter name'
        )
    flat = tensors[VALUES]
    shapes = [shape for _, _, shape in slots_of(plan)]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    if flat.dim() != 1 or len(flat) != sum(sizes) or not flat.is_floating_point():
        raise CheckpointError(
            f'{path} is damaged: {VALUES} is {flat.dtype} {tuple(flat.shape)}, its plan trains '
            f'{sum(sizes):,} values'
        )
    if not bool(flat.isfinite().all()):
        raise CheckpointError(
            f'{path} holds values that are no finite numbers: the training has diverged, or the '
            'file is damaged; use an earlier checkpoint'
        )
    parts = torch.split(flat, sizes)
    return [part.reshape(shape).clone() for part, shape in zip(parts, shapes, strict=True)]


def plan_in(tensors: Mapping[str, Tensor], path: str) -> Plan:
    """The plan of an adapter's tensors.

    Raises:
        CheckpointError: If there is none, or a damaged one.
    """
    lacking = [key for key in (VALUES, PLAN) if key not in tensors]
    if lacking:
        raise CheckpointError(
            f'{path} is no CDRA adapter: it lacks {lacking[0]}; expected what save_pretrained of a '
            'CDRA adapter wrote'
        )
    try:
        return unpack_plan(tensors[PLAN])
    except PlanError as error:
        raise CheckpointError(f'{path}: {error}') from None


def _trained(plan: Plan) -> Plan:
    """What a plan trains, and nothing of how it was made."""
    return Plan(
        blocks=plan.blocks,
        vectors=plan.vectors,
        sparse=plan.sparse,
        also_train=dict(plan.also_train),
    )
