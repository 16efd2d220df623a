"""The config of a CDRA adapter: a plan, beside what every config of peft has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor

from cdra_mm.core import Block, Plan
from cdra_mm.errors import ConfigError, PlanError
from cdra_mm.settings import check_types

from .files import plan_in, tensors_of

__all__ = ['PEFT_TYPE', 'CdraConfig', 'in_rising_order']


class CdraType(str, Enum):
    """Our entry beside those of ``peft.PeftType``, which cannot be added to."""

    CDRA = 'CDRA'


PEFT_TYPE = CdraType.CDRA
# Not in adapter_config.json: the plan is beside the values that it says the places of.
NOT_JSON = ('plan', 'start')
# Whoever edits that file by hand may write anything.
TYPES = {
    'base_fingerprint': str,
    'modules_to_save': Sequence[str] | None,
    'seed': int,
    'init_weights': bool,
    'inference_mode': bool,
    'start': Mapping | None,
}


@dataclass
class CdraConfig(PeftConfig):
    """Where a model gets which blocks, and what peft wants to know.

    Args:
        plan: What is trained; its names are relative to the model that is given to
            ``get_peft_model``. Rows and columns are put in rising order, and what the plan dropped
            is left out. `cdra_config` makes one from a model and its data.
        base_fingerprint: Digests of the base weights that the plan was made for; where it is
            empty those of the model that the adapter is put on first.
        modules_to_save: Modules that are trained whole and saved with the adapter: the head.
        seed: Seed of the first factors.
        init_weights: Whether the update starts at zero. False draws all values, for tests.
        start: First ``down`` of blocks by name, ``[r, |C|]``, in the order of the plan's columns.

    Raises:
        ConfigError: If a value is of another type.
        PlanError: If the plan trains what cannot be switched off again, or nothing, or a start
            fits no block of it.
    """

    plan: Plan | None = field(default=None, repr=False)
    base_fingerprint: str = ''
    modules_to_save: list[str] | None = None
    target_modules: list[str] | None = field(default=None, init=False, repr=False)
    seed: int = 0
    init_weights: bool = True
    start: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        check_types({name: getattr(self, name) for name in TYPES}, TYPES)
        if self.plan is None:
            return
        if not isinstance(self.plan, Plan):
            raise ConfigError(
                f'plan is a {type(self.plan).__name__}: expected a cdra_mm.core.Plan '
                '(Plan.from_json reads a plan file)'
            )
        _check_kinds(self.plan)
        self.plan, self.start = in_rising_order(self.plan, self.start or {})
        self.base_fingerprint = self.base_fingerprint or self.plan.fingerprint

    def require_plan(self) -> Plan:
        """The plan.

        Raises:
            ConfigError: If there is none, as in what ``PeftConfig.from_pretrained`` gives.
        """
        if self.plan is None:
            raise ConfigError(
                'this CdraConfig has no plan, so nothing says what to train: make one with '
                'cdra_mm.peft.cdra_config, or read that of a saved adapter with '
                'CdraConfig.from_pretrained(folder). A saved adapter is loaded by peft '
                '(PeftModel.from_pretrained, AutoPeftModel): load_adapter and from_pretrained of a '
                'transformers model see adapter_config.json alone'
            )
        return self.plan

    def to_dict(self) -> dict[str, Any]:
        """What goes into adapter_config.json: all but the plan."""
        kept = (f.name for f in fields(self) if f.init and f.name not in NOT_JSON)
        return {name: getattr(self, name) for name in kept}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Writes adapter_config.json; the plan goes into the file of values.

        Args:
            save_directory: The folder.
            **kwargs: As ``PeftConfig.save_pretrained`` takes them.
        """
        if self.auto_mapping is not None:  # peft would name the class that adapters have made
            kwargs.pop('auto_mapping_dict', None)
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> CdraConfig:
        """The config of a saved adapter, with the plan that lies beside its values.

        Args:
            pretrained_model_name_or_path: Folder or name on the Hub.
            subfolder: Of that folder.
            **kwargs: As ``PeftConfig.from_pretrained`` takes them.

        Raises:
            CheckpointError: If the file of values is missing or damaged, or has no plan.
            ConfigError: If the adapter is of another method.
        """
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        if not isinstance(config, CdraConfig):
            raise ConfigError(
                f'{pretrained_model_name_or_path} is an adapter of the method '
                f'{str(config.peft_type)}, not of CDRA: read it by PeftConfig.from_pretrained'
            )
        given, _, _ = cls._split_kwargs(kwargs)
        tensors = tensors_of(pretrained_model_name_or_path, subfolder, **given)
        config.plan = plan_in(tensors, pretrained_model_name_or_path)
        _check_kinds(config.plan)
        return config


def in_rising_order(
    plan: Plan, start: Mapping[str, Tensor]
) -> tuple[Plan, dict[str, Tensor] | None]:
    """A plan whose rows and columns rise, without what it dropped, and the start in that order.

    The order of the rows and columns of a block means nothing to its update. Rising they take a
    fifth of the bytes.

    Raises:
        PlanError: If a start fits no block.
    """
    first = dict(start)
    shapes = {block.name: (block.rank, len(block.cols)) for block in plan.blocks}
    for name, down in first.items():
        given = tuple(down.shape) if isinstance(down, Tensor) else type(down).__name__
        if given != shapes.get(name):
            raise PlanError(
                f'start: {name} has a first factor of {given}, expected '
                + (f'a tensor {shapes[name]}' if name in shapes else 'the name of a block')
            )
    for block in plan.blocks:
        if block.name in first:
            order = sorted(range(len(block.cols)), key=block.cols.__getitem__)
            first[block.name] = first[block.name][:, torch.tensor(order, device='cpu')]
    blocks = tuple(map(_rising, plan.blocks))
    return replace(plan, blocks=blocks, dropped=()), first or None


def _rising(block: Block) -> Block:
    return replace(block, rows=tuple(sorted(block.rows)), cols=tuple(sorted(block.cols)))


def _check_kinds(plan: Plan) -> None:
    """Refuses a plan that trains what is no change of a weight, or nothing."""
    if plan.parts:
        part = plan.parts[0]
        raise PlanError(
            f'the plan of {plan.method!r} has {len(plan.parts)} parts of other kinds (the first is '
            f'{part.name}, of the kind {part.kind!r}): cdra_mm.peft takes blocks, vectors and '
            "single entries; use the method 'cdra'"
        )
    single = [block.name for block in plan.blocks]
    single += [record.name for record in plan.vectors] + [record.name for record in plan.sparse]
    twice = [name for name in single if name in plan.also_train]
    if twice:
        raise PlanError(
            f'{twice[0]} is trained in part and whole by one plan: take it out of one of the two'
        )
    if not plan.num_trainable:
        raise PlanError(f'the plan of {plan.method!r} trains nothing: give it a larger budget')
