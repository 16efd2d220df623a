"""timm and DINOv2 weight files for mmpretrain's ``VisionTransformer``.

Importing this module lets mmengine read local ``.safetensors`` files wherever it reads a
checkpoint: ``init_cfg=dict(type='Pretrained', checkpoint='deit_tiny.safetensors')``. A config asks
for the import with ``custom_imports = dict(imports=['cdra_mm.mm.weights'])``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cdra_mm.core.errors import CheckpointError

# timm / facebookresearch name -> mmpretrain name. ``None``: mmpretrain's ViT has no such weight
# and does not need it.
OUTER_NAMES = {
    'cls_token': 'cls_token',
    'pos_embed': 'pos_embed',
    'mask_token': None,
    'patch_embed.proj': 'patch_embed.projection',
    'norm': 'ln1',
    'head': None,
}
BLOCK_NAMES = {
    'norm1': 'ln1',
    'norm2': 'ln2',
    'attn.qkv': 'attn.qkv',
    'attn.proj': 'attn.proj',
    'mlp.fc1': 'ffn.layers.0.0',
    'mlp.fc2': 'ffn.layers.1',
    'mlp.w12': 'ffn.w12',
    'mlp.w3': 'ffn.w3',
    'ls1.gamma': 'attn.gamma1.weight',
    'ls2.gamma': 'ffn.gamma2.weight',
}

TIMM_BLOCK = re.compile(r'blocks\.(\d+)\.(.+)')
MMPRETRAIN_BLOCK = re.compile(r'(?:backbone\.)?layers\.(\d+)\.')


@dataclass(frozen=True)
class Match:
    """How the names and shapes of a state dict fit a model.

    Attributes:
        matched: Names that both have, in one shape.
        missing: Names that only the model has.
        unexpected: Names that only the state dict has.
        reshaped: Names that both have in different shapes.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f'{len(self.matched)} weights matched']
        for word in ('missing', 'unexpected', 'reshaped'):
            names = getattr(self, word)
            parts.append(f'{len(names)} {word}' + (f' ({", ".join(names[:3])})' if names else ''))
        return ', '.join(parts)


def convert_timm_vit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a timm or DINOv2 ViT's weights to mmpretrain's names.

    Args:
        state_dict: The weights under timm's names. The classifier and ``mask_token`` are dropped.

    Returns:
        The weights under mmpretrain's names without a prefix, floating point ones as float32.

    Raises:
        CheckpointError: If there is no block, a block's weight has no counterpart, blocks are not
            numbered 0, 1, 2 ..., or differ in which weights they hold.
    """
    converted: dict[str, Tensor] = {}
    names_of: dict[int, set[str]] = {}
    for name, tensor in state_dict.items():
        block = TIMM_BLOCK.fullmatch(name)
        if block:
            new = _renamed(block[2], BLOCK_NAMES)
            if new is None:
                raise CheckpointError(
                    f'{name} has no counterpart in mmpretrain.VisionTransformer: this is not a '
                    'plain ViT, DeiT or DINOv2 checkpoint'
                )
            names_of.setdefault(int(block[1]), set()).add(new)
            new = f'layers.{block[1]}.{new}'
        elif name in ('reg_token', 'register_tokens'):
            raise CheckpointError(
                f'{name}: mmpretrain.VisionTransformer has no register tokens; use a checkpoint '
                'without them or a timm backbone'
            )
        else:
            new = _renamed(name, OUTER_NAMES, default=name)
        if new is not None:
            converted[new] = tensor.float() if tensor.is_floating_point() else tensor
    _require_equal_blocks(names_of)
    return converted


def _renamed(name: str, table: Mapping[str, str | None], default: str | None = None) -> str | None:
    """``name`` by the table, which names either the parameter itself or its module."""
    if name in table:
        return table[name]
    module, _, parameter = name.rpartition('.')
    if module not in table:
        return default
    return None if table[module] is None else f'{table[module]}.{parameter}'


def _require_equal_blocks(names_of: Mapping[int, set[str]]) -> None:
    """Raise unless the blocks are numbered without a gap and hold the same weights."""
    if not names_of:
        raise CheckpointError('no block: expected names such as blocks.0.attn.qkv.weight')
    if sorted(names_of) != list(range(len(names_of))):
        raise CheckpointError(f'blocks are missing: the file holds only {sorted(names_of)}')
    for index, names in names_of.items():
        odd = names ^ names_of[0]
        if odd:
            raise CheckpointError(
                f'blocks 0 and {index} differ in {", ".join(sorted(odd))}: the file is incomplete'
            )


def compare_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Match:
    """How a state dict fits a model; ``pos_embed`` may differ in length, for it is resized."""
    own = model.state_dict()
    common = [name for name in own if name in state_dict]
    fits = [
        name
        for name in common
        if own[name].shape == state_dict[name].shape or name.endswith('pos_embed')
    ]
    return Match(
        matched=tuple(fits),
        missing=tuple(name for name in own if name not in state_dict),
        unexpected=tuple(name for name in state_dict if name not in own),
        reshaped=tuple(name for name in common if name not in set(fits)),
    )


def require_block_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Match:
    """Raise when only a part of the transformer blocks would be loaded.

    mmengine only warns, and trains on from random weights.

    Args:
        model: The backbone.
        state_dict: Weights under the backbone's own names.

    Returns:
        The comparison, for a log line.

    Raises:
        CheckpointError: If a block's weight is missing, unexpected, or has another shape.
    """
    match = compare_weights(model, state_dict)
    for word in ('missing', 'unexpected', 'reshaped'):
        wrong = [name for name in getattr(match, word) if MMPRETRAIN_BLOCK.match(name)]
        if wrong:
            raise CheckpointError(
                f'{len(wrong)} block weights are {word} (first: {wrong[0]}): the weights belong to '
                f'another architecture than the backbone of the config. {match}'
            )
    return match


def read_vit_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file, converted from timm's names where it uses them.

    Args:
        path: The file. Weights that bear mmpretrain's names already keep them.

    Returns:
        The weights, floating point ones as float32.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds no ViT.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f'weight file {path} does not exist: put it there, or name another one in '
            'model.backbone.init_cfg.checkpoint (the shipped configs also read an environment '
            'variable, see the config)'
        )
    try:
        state_dict = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f'{path} is not a readable safetensors file: {error}') from None
    if any(MMPRETRAIN_BLOCK.match(name) for name in state_dict):
        return {k: v.float() if v.is_floating_point() else v for k, v in state_dict.items()}
    try:
        return convert_timm_vit(state_dict)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from None


def load_vit_weights(model: nn.Module, path: str | Path) -> Match:
    """Load a ``.safetensors`` file into an mmpretrain ``VisionTransformer``.

    Args:
        model: The backbone, changed in place.
        path: The file, as for ``read_vit_weights``.

    Returns:
        What matched, what did not; also logged.

    Raises:
        CheckpointError: As ``read_vit_weights`` and ``require_block_weights`` do; the model is
            then unchanged.
    """
    state_dict = read_vit_weights(path)
    match = require_block_weights(model, state_dict)
    model.load_state_dict({name: state_dict[name] for name in match.matched}, strict=False)
    print_log(f'{path}: {match}', logger='current')
    return match


# mmengine matches the registered text against the path as a regular expression; addresses of
# other schemes are longer prefixes and keep their own loaders.
@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$', force=True)
def load_from_safetensors(
    filename: str, map_location: str | torch.device | None = None
) -> dict[str, dict[str, Tensor]]:
    """The loader that mmengine calls for local ``.safetensors`` files.

    Args:
        filename: The file.
        map_location: The device to put the weights on.

    Returns:
        ``{'state_dict': weights}`` under mmpretrain's names, without a prefix.
    """
    weights = read_vit_weights(filename)
    print_log(f'{filename}: {len(weights)} weights under mmpretrain names', logger='current')
    if map_location is not None:
        weights = {name: tensor.to(map_location) for name, tensor in weights.items()}
    return dict(state_dict=weights)
