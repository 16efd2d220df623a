"""Symmetric int8 per output row, one number after another."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def scale_of(row: list[float]) -> float:
    """The largest magnitude over 127, to 16 significant bits (ties to even)."""
    exact = torch.tensor(max(abs(value) for value in row)) / 127  # rounded to fp32
    scale = max(float(exact), 2.0**-100)
    mantissa, exponent = math.frexp(scale)
    return math.ldexp(round(mantissa * 2**16), exponent - 16)


def quantized(weight: Tensor) -> Tensor:
    """What a matrix in int8 stands for, fp32 ``[O, I]``."""
    rows = []
    for row in weight.tolist():
        scale = scale_of(row)
        quotients = (torch.tensor(row) / torch.tensor(scale)).tolist()  # in fp32
        codes = [min(127, max(-127, round(quotient))) for quotient in quotients]
        rows.append([code * scale for code in codes])
    return torch.tensor(rows, dtype=torch.float64).float()


def quantize_dense(model: nn.Module, names: Mapping[str, object] | list[str]) -> None:
    """Puts the values that int8 stands for into whole fp32 weights, in place."""
    with torch.no_grad():
        own = dict(model.named_parameters(remove_duplicate=False))
        for name in names:
            own[name].copy_(quantized(own[name]))
