"""What differs between projects beyond names: shapes, orders of channels, numbering.

All functions take and return weights under the common names (see `layouts`).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ['QKV', 'from_jax', 'merging_from_unfold', 'merging_to_unfold', 'tidy_swin',
           'tidy_tokens']  # fmt: skip

Weights = dict[str, Tensor]

QKV = ('query', 'key', 'value')
MERGING = re.compile(r'layers\.\d+\.downsample\.(?:reduction|norm)\.(?:weight|bias)')


def tidy_tokens(weights: Weights) -> Weights:
    """A ViT's weights with its gated FFN in one form.

    timm holds the SwiGLU of DINOv2's giant as ``fc1 [2H, E]`` and ``fc2 [E, H]``, the original as
    ``w12`` and ``w3``.
    """
    tidy = dict(weights)
    for name, fc2 in weights.items():
        block = re.fullmatch(r'(blocks\.\d+\.mlp\.)fc2\.weight', name)
        fc1 = weights.get(f'{block[1]}fc1.weight') if block else None
        if block and fc1 is not None and fc1.shape[0] == 2 * fc2.shape[-1]:
            for old, new in (('fc1', 'w12'), ('fc2', 'w3')):
                for kind in ('weight', 'bias'):
                    if f'{block[1]}{old}.{kind}' in tidy:
                        tidy[f'{block[1]}{new}.{kind}'] = tidy.pop(f'{block[1]}{old}.{kind}')
    return tidy


def tidy_swin(weights: Weights) -> Weights:
    """A Swin's weights with the downsampling at the end of a stage, the last norm numbered.

    Microsoft's stages end with their downsampling, timm's begin with it, so that stage 0 has none.
    """
    later = 0 if 'layers.0.downsample.reduction.weight' in weights else 1
    stages = {int(name.split('.')[1]) for name in weights if name.startswith('layers.')}
    tidy = {}
    for name, tensor in weights.items():
        if MERGING.fullmatch(name):
            _, stage, rest = name.split('.', 2)
            name = f'layers.{int(stage) - later}.{rest}'
        tidy[re.sub(r'^norm\.', f'norm{max(stages, default=0)}.', name)] = tensor
    return tidy


def merging_to_unfold(weights: Weights) -> Weights:
    """Reorders the patch merging's inputs from Swin's order to `torch.nn.Unfold`'s.

    Swin concatenates the C channels of the pixels (0, 0), (1, 0), (0, 1), (1, 1) of a 2 x 2 patch.
    Unfold holds, channel by channel, the pixels (0, 0), (0, 1), (1, 0), (1, 1).
    """
    return _reorder(
        weights, lambda x: x.unflatten(-1, (2, 2, -1)).movedim(-1, -3).transpose(-1, -2)
    )


def merging_from_unfold(weights: Weights) -> Weights:
    """The inverse of `merging_to_unfold`."""
    return _reorder(
        weights, lambda x: x.unflatten(-1, (-1, 2, 2)).transpose(-1, -2).movedim(-3, -1)
    )


def _reorder(weights: Weights, change: Callable[[Tensor], Tensor]) -> Weights:
    return {
        name: change(tensor).flatten(-3).contiguous() if MERGING.fullmatch(name) else tensor
        for name, tensor in weights.items()
    }


def from_jax(weights: Weights) -> Weights:
    """Weights as torch holds them: kernels transposed, heads joined, q, k and v fused.

    Kernels are ``[in, out]``, those of q, k and v ``[E, heads, E / heads]``, that of the output of
    the attention ``[heads, E / heads, E]``, that of the patches ``[height, width, in, out]``.
    """
    torched: Weights = {}
    for name, tensor in weights.items():
        block = re.fullmatch(r'(blocks\.\d+\.attn\.)(query|key|value|proj)\.(weight|bias)', name)
        if block and tensor.dim() == 3:
            tensor = tensor.flatten(0, 1) if block[2] == 'proj' else tensor.flatten(1)
        elif block and block[2] in QKV:
            tensor = tensor.flatten()
        if tensor.dim() == 4:
            tensor = tensor.permute(3, 2, 0, 1)
        elif tensor.dim() == 2:
            tensor = tensor.T
        torched[name] = tensor.contiguous()
    for name in list(torched):
        block = re.fullmatch(r'(blocks\.\d+\.attn\.)query\.(weight|bias)', name)
        parts = [f'{block[1]}{part}.{block[2]}' for part in QKV] if block else []
        if block and all(part in torched for part in parts):
            torched[f'{block[1]}qkv.{block[2]}'] = torch.cat([torched.pop(p) for p in parts])
    return tidy_tokens(torched)
