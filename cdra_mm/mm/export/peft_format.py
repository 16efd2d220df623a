"""Adapters in the on-disk format of Hugging Face PEFT: a folder that ``PeftModel`` loads.

A compact block becomes an ordinary LoRA of the same update: factors padded with zeros to all
rows and columns, the scale in alpha. Blocks of one matrix (q, k and v of a fused qkv) stand in
one LoRA of the summed rank, each in its own rows:

    W' - W = alpha / r * B @ A      A = [down_q; down_k; down_v] in their columns   [r, I]
                                    B = [up_q, up_k, up_v] in their rows            [O, r]

LoRA has no place for vectors and tokens that are trained, nor for what the named base does not
bring (weights that its file lacks, statistics that changed in training). Their final values go into
the file under the names of the base weights: PEFT loads the file with
``load_state_dict(strict=False)`` (as it does for its own ``bias='all'``), and so copies them into
the base model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cdra_mm.core import ParameterAdapter, adapters, base_state, plan_of, resolve, trained_whole
from cdra_mm.core.adapters.adapter_set import AdapterSet
from cdra_mm.core.adapters.compact_linear import wide_factors
from cdra_mm.core.adapters.entries import Entries
from cdra_mm.core.adapters.low_rank import LowRank
from cdra_mm.core.model.targets import parameter_of
from cdra_mm.errors import ConfigError, PlanError
from cdra_mm.storage import write_folder

from ..weights.destinations import destination_of
from ..weights.layouts import MMSEG_VIT, OPENMMLAB_VIT, TIMM_VIT, Layout

__all__ = ['NAMES', 'PREFIX', 'PeftAdapter', 'renaming', 'to_peft', 'write_peft']

NAMES = ('timm', 'config')
PREFIX = 'base_model.model.'
# Layouts whose weights are timm's but for their names.
NAMED_LIKE_TIMM = (OPENMMLAB_VIT, MMSEG_VIT)
# timm packs DINOv2's SwiGLU under the names of a plain FFN.
SWIGLU = {'w12': 'fc1', 'w3': 'fc2'}


@dataclass(frozen=True)
class PeftAdapter:
    """What goes into the folder.

    Attributes:
        config: ``adapter_config.json``.
        tensors: ``adapter_model.safetensors``.
        names: Whose names they are, ``'timm'`` or ``'config'``.
        copied: Names of the base weights that PEFT copies into the base model.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    names: str
    copied: tuple[str, ...]


def to_peft(
    backbone: nn.Module,
    forward: Callable[[], object],
    names: str | None = None,
    carried: Iterable[str] = (),
) -> PeftAdapter:
    """The adapters of a backbone as a LoRA of PEFT.

    Args:
        backbone: An adapted backbone with its plan, not merged.
        forward: Runs the backbone once, on any image: PEFT reaches layers that are called only.
        names: ``'timm'``: for timm's model of the same architecture; ``'config'``: for this
            backbone itself, without adapters. Default: timm's where they are known.
        carried: Names of frozen weights and buffers that whoever loads the folder cannot have:
            their values go into it too.

    Raises:
        ConfigError: If timm's names are asked for and not known.
        PlanError: If the plan trains what PEFT's LoRA cannot hold.
    """
    plan = plan_of(backbone)
    if plan is None:
        raise PlanError(f'{type(backbone).__name__} has no adapters: apply a plan first')
    present = adapters(backbone)
    _check_kinds(backbone, present)
    rename, same_modules, names = renaming(backbone, names)
    matrices: dict[str, list[LowRank]] = {}
    copied: dict[str, Tensor] = {}
    for name, adapter in present.items():
        target = resolve(backbone, name)
        if isinstance(adapter, LowRank):
            matrices.setdefault(target.path, []).append(adapter)
        elif isinstance(adapter, ParameterAdapter):
            copied[target.path] = adapter.added_to(_base(backbone, name))
    for name in trained_whole(plan):
        copied[name] = _base(backbone, name)
    if not matrices:
        raise PlanError(
            f'the plan of {plan.method!r} adapts no matrix: there is no LoRA to write; write '
            '--format merged or adapter'
        )
    if same_modules:
        _check_called(backbone, forward, matrices)
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for name, blocks in matrices.items():
        module, _, parameter = rename(name).rpartition('.')
        if parameter != 'weight':
            raise PlanError(
                f'{name} is a bare parameter: PEFT puts LoRA on linear layers only; write --format '
                'merged or adapter'
            )
        down, up, scale = _joined(blocks, _base(backbone, name).shape)
        ranks[module], alphas[module] = len(down), scale * len(down)
        tensors[f'{PREFIX}{module}.lora_A.weight'] = down
        tensors[f'{PREFIX}{module}.lora_B.weight'] = up
    state = base_state(backbone)
    brought = {name: state[name] for name in carried if name not in copied}
    for name, value in {**copied, **brought}.items():
        module, _, parameter = rename(name).rpartition('.')
        inside = f'{module}.base_layer' if module in ranks else module
        tensors[PREFIX + f'{inside}.{parameter}'.lstrip('.')] = value
    config = _config(ranks, alphas, max(block.dropout for block in plan.blocks))
    if copied:
        config['bias'] = 'all'  # so PEFT warns that switching it off does not give the base back
    kept = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    return PeftAdapter(config, kept, names, tuple(map(rename, copied)))


def write_peft(adapter: PeftAdapter, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Writes the folder, whole or not at all.

    Raises:
        CheckpointError: If it cannot be written.
    """

    def write(folder: Path) -> None:
        text = json.dumps(adapter.config, indent=2, sort_keys=True) + '\n'
        (folder / 'adapter_config.json').write_text(text, encoding='utf-8')
        save_file(
            adapter.tensors,
            folder / 'adapter_model.safetensors',
            metadata={'format': 'pt', **metadata},
        )

    write_folder(path, write)


def _base(backbone: nn.Module, name: str) -> nn.Parameter:
    return parameter_of(backbone, resolve(backbone, name))


def _check_kinds(backbone: nn.Module, present: Mapping[str, Any]) -> None:
    foreign = [
        name
        for name, adapter in present.items()
        if not isinstance(adapter, LowRank)
        and not (isinstance(adapter, Entries) and len(resolve(backbone, name).shape) == 1)
    ]
    if foreign:
        kind = present[foreign[0]].kind
        raise PlanError(
            f'{len(foreign)} adapters are no low-rank updates (the first is {foreign[0]}, of the '
            f"kind {kind!r}): PEFT's LoRA cannot hold them; write --format merged or adapter"
        )
    for path, module in backbone.named_modules():
        if isinstance(module, AdapterSet) and module.borrowed:
            raise PlanError(
                f'{path.rpartition(".")[0]} shares an adapted weight with another layer: PEFT puts '
                'a LoRA on one of them only; write --format merged or adapter'
            )
    merged = [name for name, adapter in present.items() if adapter.merged]
    if merged:
        raise PlanError(f'{len(merged)} adapters are merged: call unmerge_adapters first')


def _check_called(
    backbone: nn.Module, forward: Callable[[], object], matrices: Mapping[str, Any]
) -> None:
    called: set[str] = set()
    with ExitStack() as stack, torch.no_grad():
        for path in {name.rpartition('.')[0] for name in matrices}:
            hook = backbone.get_submodule(path).register_forward_pre_hook(
                lambda *_, path=path: called.add(path)
            )
            stack.callback(hook.remove)
        forward()
    for name in matrices:
        if name.rpartition('.')[0] not in called:
            raise PlanError(
                f'{name} is used without calling its layer (as nn.MultiheadAttention and BEiT do '
                'it): a LoRA of PEFT would do nothing there; write --format merged or adapter'
            )


def renaming(backbone: nn.Module, names: str | None) -> tuple[Callable[[str], str], bool, str]:
    """What gives the destination's names, whether its modules are these, and whose they are."""
    if names not in (None, *NAMES):
        raise ConfigError(f'names={names!r}: expected one of {", ".join(NAMES)}')
    if names == 'config':
        return lambda name: name, True, 'config'
    if _is_timm(backbone):
        return lambda name: name.removeprefix('vit.'), True, 'timm'
    destination = destination_of(backbone)
    if destination is not None and destination.layout in NAMED_LIKE_TIMM:
        layout = destination.layout
        return lambda name: _timm_name(layout, name), False, 'timm'
    if names == 'timm':
        raise ConfigError(
            f"timm's names for the weights of {type(backbone).__name__} are not known, or the "
            'weights differ in more than their names: use --names config'
        )
    return lambda name: name, True, 'config'


def _is_timm(backbone: nn.Module) -> bool:
    from ..backbones import TimmViT

    return isinstance(backbone, TimmViT)


def _timm_name(layout: Layout, name: str) -> str:
    common = layout.common_name(name)
    own = TIMM_VIT.own_name(common) if common else None
    if own is None:
        raise PlanError(f"{name} has no counterpart in timm's model: use --names config")
    gated = re.fullmatch(r'(blocks\.\d+\.mlp\.)(w12|w3)(\.\w+)', own)
    return f'{gated[1]}{SWIGLU[gated[2]]}{gated[3]}' if gated else own


@torch.no_grad()
def _joined(adapters: list[LowRank], shape: torch.Size) -> tuple[Tensor, Tensor, float]:
    """The adapters of a matrix as one LoRA: A ``[r, I]``, B ``[O, r]``, and the scale of both."""
    scales = {adapter.scale for adapter in adapters}
    scale = scales.pop() if len(scales) == 1 else 1.0
    blocks = [(rows, cols, own / scale) for rows, cols, own in (a.block for a in adapters)]
    factors = [factor for a in adapters for factor in (a.down, a.up)]
    return *wide_factors(factors[0].new_empty(1).expand(shape), blocks, factors), scale


def _config(
    ranks: Mapping[str, int], alphas: Mapping[str, float], dropout: float
) -> dict[str, Any]:
    """The entries of PEFT's ``LoraConfig`` that are not its defaults."""
    return {
        'peft_type': 'LORA',
        'task_type': None,
        'base_model_name_or_path': None,
        'inference_mode': True,
        'target_modules': sorted(ranks),
        'r': max(ranks.values()),
        'lora_alpha': max(ranks.values()),
        'rank_pattern': dict(ranks),
        'alpha_pattern': dict(alphas),
        'lora_dropout': dropout,
        'bias': 'none',
        'fan_in_fan_out': False,
        'use_rslora': False,
    }
