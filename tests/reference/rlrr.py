"""RLRR (CVPR 2024) on a dense copy: effective weights from leaf parameters, written out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .layers import suffixes


def dense_parameters(base: nn.Module, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain parameters that an adapted model stands for, differentiable.

    Args:
        base: The plain model.
        trained: Adapter tensors by state-dict key.
    """
    plain = {name: value.detach() for name, value in base.named_parameters()}
    for name, tensors in suffixes(trained).items():
        path, _, part = name.partition(':')
        if 'scale_out' in tensors:
            s_out, s_in = tensors['scale_out'], tensors['scale_in']
            weight = plain[path]
            parts = {'w1': 2, 'w2': 2, '': 1}.get(part, 3)
            at = {'k': 1, 'v': 2, 'w2': 1}.get(part, 0) * (len(weight) // parts)
            rows = [
                row + s_out[i - at] * row * s_in if at <= i < at + len(s_out) else row
                for i, row in enumerate(weight)
            ]
            plain[path] = torch.stack(rows)
        elif 'scale' in tensors:
            module = path.rpartition('.')[0]
            scale, shift = tensors['scale'], tensors.get('shift')
            weight = plain[f'{module}.weight']
            plain[f'{module}.weight'] = torch.stack(
                [s * w for s, w in zip(scale, weight, strict=True)]
            )
            if shift is not None:
                plain[f'{module}.bias'] = plain[f'{module}.bias'] * scale + shift
        else:
            plain[path] = plain[path] + tensors['shift']
    return plain


def dense_output(base: nn.Module, trained: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The output of the plain model with these effective parameters."""
    return functional_call(base, dense_parameters(base, trained), (x,))
