"""What adapter_model.safetensors holds: all values in one tensor, and the plan that places them.

    base_model.model.cdra_values   every trained value, in the order of `slot_names`   [n]
    base_model.model.cdra_plan     the plan in few bits (`core.planning.packed_plan`)  uint8 [m]
    ...                            what ``modules_to_save`` names, as peft writes it

A tensor for each factor would cost as much for its name as the plan does for all its indices: one
flat tensor makes up for the places, which LoRA does not have to store.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from cdra_mm.core import Plan
from cdra_mm.core.planning.packed_plan import pack_plan, unpack_plan
from cdra_mm.errors import CheckpointError, PlanError
from cdra_mm.reading.safetensors_file import read_safetensors

__all__ = ['check_rest', 'pack_adapter', 'plan_in', 'slots_of', 'tensors_of', 'unpack_adapter']

PREFIX = 'base_model.model.'
VALUES, PLAN = PREFIX + 'cdra_values', PREFIX + 'cdra_plan'

# What values may be of.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

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
    if flat.dim() != 1 or len(flat) != sum(sizes) or flat.dtype not in FLOATS:
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


def check_rest(
    model: nn.Module, tensors: Mapping[str, Tensor], adapter_name: str, path: str
) -> None:
    """Looks at what an adapter brings along beside its values: peft would load all of it.

    Args:
        model: The model, with the adapter on it.
        tensors: What is brought along, by the model's names.
        adapter_name: The adapter.
        path: The file, or what it belongs to, for messages.

    Raises:
        CheckpointError: If modules that are trained whole hold values that are no numbers, or a
            weight of the base would be another.
    """
    saved: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            keys = module.adapter_state_dict_load_map(adapter_name).values()
            saved |= {f'{name}.{key}' for key in keys}
    own: dict[str, Tensor] = {}
    own.update(model.named_parameters(remove_duplicate=False))
    own.update(model.named_buffers(remove_duplicate=False))
    for key, value in tensors.items():
        if key in saved:
            if value.is_floating_point() and bool(value.float().isnan().any()):
                raise CheckpointError(
                    f'{path} holds values of {key} that are no numbers: the training has diverged, '
                    'or the file is damaged; use an earlier checkpoint'
                )
            continue
        there = own.get(key, own.get(key.removeprefix(PREFIX)))
        if there is not None and (there.is_meta or not torch.equal(there.cpu(), value.cpu())):
            raise CheckpointError(
                f'{path} holds other values of {key.removeprefix(PREFIX)}, which its plan does not '
                'train: name the module in modules_to_save, or take the tensor out of the file'
            )


def tensors_of(source: str, subfolder: str | None = None, **options: Any) -> Mapping[str, Tensor]:
    """The tensors of a saved adapter, on the CPU.

    Args:
        source: Folder or name on the Hub.
        subfolder: Of that folder.
        **options: Of the Hub, as ``load_peft_weights`` takes them.

    Raises:
        CheckpointError: If a folder has no file of values, or a damaged one.
    """
    folder = Path(source, subfolder or '')
    file, pickled = folder / SAFETENSORS_WEIGHTS_NAME, folder / WEIGHTS_NAME
    if file.exists():
        return read_safetensors(file, 'file of values')
    if folder.is_dir() and not pickled.exists():
        raise CheckpointError(
            f'{folder} has no {SAFETENSORS_WEIGHTS_NAME}: copy it from where the adapter was saved'
        )
    try:
        tensors: Mapping[str, Tensor] = load_peft_weights(
            source, device='cpu', subfolder=subfolder, **options
        )
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        if not pickled.exists():
            raise
        raise CheckpointError(
            f'{pickled} is damaged, or holds more than tensors: nothing in it was executed; save '
            f'the adapter as {SAFETENSORS_WEIGHTS_NAME}'
        ) from error
    return tensors


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
