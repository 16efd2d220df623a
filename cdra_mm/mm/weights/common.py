"""Weights of any project under the common names, and from there under a layout's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cdra_mm.errors import CheckpointError

from .layouts import OPENMMLAB_BEIT, OPENMMLAB_SWIN, OPENMMLAB_VIT, Layout, recognise
from .matching import list_names
from .reading import unwrap

__all__ = ['HINTS', 'CommonWeights', 'hint_for', 'read_common', 'write_as', 'write_openmmlab']

# Outside the backbone, or computed from the window size: classifiers, what pretraining alone
# needs, and the buffers of relative positions.
DROPPED = re.compile(
    r'(?:head|head_dist|fc|pre_logits|lm_head|dino_head|ibot_head|aux_head|contrast_head)[./].*'
    r'|mask_token|decoder_.*|.*\.(?:relative_position_index|attn_mask)'
)
# What to say of weights that a backbone has no place for, by common name.
HINTS = {
    r'reg_token': 'register tokens are known to backbones of timm only',
    r'dist_token': 'a distilled DeiT needs mmpretrain.DistilledVisionTransformer',
    r'blocks\.\d+\.ls\d\.gamma': 'no layer scale there: use mmpretrain.VisionTransformer',
    r'blocks\.\d+\.mlp\.w.*': 'no SwiGLU there: use mmpretrain.VisionTransformer',
    r'blocks\.\d+\.attn\.[qv]_bias': 'it is a BEiT: use mmpretrain.BEiTViT or mmseg.BEiT',
}
BLOCK = re.compile(r'((?:layers\.\d+\.)?blocks)\.(\d+)\.(.+)')


@dataclass(frozen=True)
class CommonWeights:
    """Weights under the common names (see `layouts`).

    Attributes:
        layout: Whose names they had.
        weights: The weights, floating point ones as float32.
        dropped: Names in the file of what was left out.
    """

    layout: Layout
    weights: dict[str, Tensor]
    dropped: tuple[str, ...]


def read_common(state_dict: Mapping[str, Any]) -> CommonWeights:
    """Weights of a known project under the common names.

    Args:
        state_dict: The file's weights, also inside wrappers such as ``{'model': ...}``.

    Raises:
        CheckpointError: If the names are of no known project, one of them has no counterpart,
            or blocks are missing or differ in which weights they hold.
    """
    state_dict = unwrap(state_dict)
    found = recognise(state_dict)
    if found is None:
        raise CheckpointError(
            f'weights of an unknown network{list_names(state_dict)}: expected the names of timm, '
            'DINOv2, MAE, BEiT, Swin, Google (.npz), mmpretrain or mmseg, such as '
            'blocks.0.attn.qkv.weight'
        )
    layout, prefix = found
    weights, dropped = {}, []
    for name, tensor in state_dict.items():
        own = name.removeprefix(prefix)
        if not isinstance(tensor, Tensor):
            continue
        if not name.startswith(prefix) or DROPPED.fullmatch(own):
            dropped.append(name)
            continue
        common = layout.common_name(own)
        if common is None:
            raise CheckpointError(
                f'{name} is no weight of {layout.name}: the network is another one, or a variant '
                'that is not supported'
            )
        weights[common] = tensor.float() if tensor.is_floating_point() else tensor
    weights = layout.after_reading(weights)
    _require_equal_blocks(weights)
    return CommonWeights(layout, weights, tuple(dropped))


def _require_equal_blocks(weights: Mapping[str, Tensor]) -> None:
    """Raise unless blocks are numbered without a gap and hold the same weights."""
    stages: dict[str, dict[int, set[str]]] = {}
    for name in weights:
        block = BLOCK.fullmatch(name)
        if block:
            stages.setdefault(block[1], {}).setdefault(int(block[2]), set()).add(block[3])
    first: set[str] | None = None
    for stage, blocks in stages.items():
        if sorted(blocks) != list(range(len(blocks))):
            raise CheckpointError(
                f'blocks are missing: the file holds only {sorted(blocks)} of {stage}'
            )
        for index, names in sorted(blocks.items()):
            first = names if first is None else first
            if names ^ first:
                raise CheckpointError(
                    f'the first block and {stage}.{index} differ in '
                    f'{", ".join(sorted(names ^ first))}: the file is incomplete'
                )


def write_openmmlab(common: CommonWeights) -> dict[str, Tensor]:
    """Weights under the names that mmpretrain gives them, for a backbone not known yet.

    Raises:
        CheckpointError: If one has no counterpart there.
    """
    names = common.weights
    if any(re.fullmatch(r'layers\.\d+\.blocks\..*', name) for name in names):
        layout = OPENMMLAB_SWIN
    elif any(re.fullmatch(r'blocks\.\d+\.attn\.q_bias', name) for name in names):
        layout = OPENMMLAB_BEIT
    else:
        layout = OPENMMLAB_VIT
    weights, unplaced = write_as(common.weights, layout)
    if unplaced:
        raise CheckpointError(
            f'{unplaced[0]} has no counterpart in {layout.name}{hint_for(unplaced, HINTS)}'
        )
    return weights


def write_as(
    weights: Mapping[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights under the names of a layout, and the common names of those that it lacks."""
    written, unplaced = {}, []
    for name, tensor in layout.before_writing(dict(weights)).items():
        own = layout.own_name(name)
        if own is None:
            unplaced.append(name)
        else:
            written[own] = tensor
    return written, tuple(unplaced)


def hint_for(names: Sequence[str], hints: Mapping[str, str]) -> str:
    """What to do about the first of the names that something is known of."""
    known = (text for name in names for mark, text in hints.items() if re.fullmatch(mark, name))
    text = next(known, '')
    return f' ({text})' if text else ''
