"""Adapters as a CDRA adapter of Hugging Face peft: a folder that `cdra_mm.peft` loads.

Blocks and single entries are written as they are. What a run trains in place (vectors, tokens) is
written as what was added to it, so that peft can switch it off:

    value = trained - base                                  of every entry
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cdra_mm.core import adapters, base_state, digests_of, find_targets, fingerprint, plan_of
from cdra_mm.core.adapters.apply import check_base
from cdra_mm.core.adapters.entries import Entries
from cdra_mm.core.adapters.low_rank import LowRank
from cdra_mm.core.planning.plan import Block, Plan
from cdra_mm.errors import PlanError
from cdra_mm.storage import write_folder

from .peft_format import PREFIX, renaming

if TYPE_CHECKING:
    from cdra_mm.peft import CdraConfig

__all__ = ['CdraAdapter', 'to_cdra', 'write_cdra']

_Record = TypeVar('_Record', bound=Any)


@dataclass(frozen=True)
class CdraAdapter:
    """What goes into the folder.

    Attributes:
        config: Its config, with the plan in the destination's names.
        tensors: ``adapter_model.safetensors``.
        names: Whose names they are, ``'timm'`` or ``'config'``.
    """

    config: CdraConfig
    tensors: dict[str, Tensor]
    names: str


def to_cdra(
    backbone: nn.Module, plain: nn.Module, names: str | None = None, carried: Iterable[str] = ()
) -> CdraAdapter:
    """The adapters of a backbone as an adapter of `cdra_mm.peft`.

    Args:
        backbone: An adapted backbone with its plan, not merged.
        plain: The same backbone with its base weights.
        names: As for `peft_format.to_peft`.
        carried: Names of frozen weights and buffers that whoever loads the folder cannot have:
            their values go into it, and peft copies them into the base model.

    Raises:
        ConfigError: If timm's names are asked for and not known, or peft is missing.
        PlanError: If the plan trains what is no change of a weight, or `plain` is another base.
    """
    from cdra_mm.peft import CdraConfig
    from cdra_mm.peft.files import pack_adapter, slots_of

    plan = plan_of(backbone)
    if plan is None:
        raise PlanError(f'{type(backbone).__name__} has no adapters: apply a plan first')
    _check_kinds(backbone)
    if plan.fingerprint:
        check_base(plain, plan.fingerprint)
    rename, _, names = renaming(backbone, names)
    base, state = base_state(plain), base_state(backbone)
    values: dict[tuple[str, str], Tensor] = {
        (name, key): parameter.detach()
        for name, adapter in adapters(backbone).items()
        for key, parameter in adapter.named_parameters()
    }
    for block in plan.blocks:  # in the order of rising rows and columns, as the config's plan
        rows, cols = (torch.tensor(index).argsort() for index in (block.rows, block.cols))
        values[block.name, 'down'] = values[block.name, 'down'][:, cols]
        values[block.name, 'up'] = values[block.name, 'up'][rows]
    for name, _, _ in slots_of(plan):
        if name in state:  # trained in place
            values.setdefault((name, 'value'), (state[name].double() - base[name].double()).float())
    slots = [values[name, key] for name, key, _ in slots_of(plan)]
    config = CdraConfig(
        plan=_renamed(plan, rename),
        base_fingerprint=_fingerprint(plain, rename, carried),
        inference_mode=True,
    )
    tensors = pack_adapter(config.require_plan(), slots)
    tensors |= {PREFIX + rename(name): state[name] for name in carried}
    kept = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    return CdraAdapter(config, kept, names)


def write_cdra(adapter: CdraAdapter, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Writes the folder, whole or not at all.

    Raises:
        CheckpointError: If it cannot be written.
    """

    def write(folder: Path) -> None:
        adapter.config.save_pretrained(str(folder))
        save_file(
            adapter.tensors,
            folder / 'adapter_model.safetensors',
            metadata={'format': 'pt', **metadata},
        )

    write_folder(path, write)


def _check_kinds(backbone: nn.Module) -> None:
    present = adapters(backbone)
    foreign = [n for n, a in present.items() if not isinstance(a, LowRank | Entries)]
    if foreign:
        raise PlanError(
            f'{len(foreign)} adapters are no blocks and no entries (the first is {foreign[0]}, of '
            f'the kind {present[foreign[0]].kind!r}): cdra_mm.peft has no place for them; write '
            '--format merged or adapter'
        )
    merged = [name for name, adapter in present.items() if adapter.merged]
    if merged:
        raise PlanError(f'{len(merged)} adapters are merged: call unmerge_adapters first')


def _renamed(plan: Plan, rename: Callable[[str], str]) -> Plan:
    """A plan in other names; the parts of fused matrices are called the same everywhere."""

    def name_of(name: str) -> str:
        path, mark, part = name.partition(':')
        return rename(path) + mark + part

    def each(records: Iterable[_Record]) -> tuple[_Record, ...]:
        return tuple(replace(record, name=name_of(record.name)) for record in records)

    blocks: tuple[Block, ...] = each(plan.blocks)
    return replace(
        plan,
        blocks=blocks,
        vectors=each(plan.vectors),
        sparse=each(plan.sparse),
        also_train={name_of(name): numel for name, numel in plan.also_train.items()},
        dropped=(),
        fingerprint='',
        positions=None,
    )


def _fingerprint(plain: nn.Module, rename: Callable[[str], str], carried: Iterable[str]) -> str:
    """That of the base in the destination's names; none where the folder itself brings a part."""
    state = base_state(plain)
    competing = {target.path for target in find_targets(plain).values()}
    if competing & set(carried):
        return ''
    table = digests_of({rename(name): state[name] for name in competing})
    return fingerprint(plain, table, digests=table)
