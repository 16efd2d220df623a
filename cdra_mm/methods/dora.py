"""DoRA: magnitude and direction of every output of a matrix (Liu et al., ICML 2024).

    W' = m * V / ||V||,   V = W + alpha / rank * B A          m [O],  ||.|| of each row of V

Eq. 5 of the paper, with the vectors that its code and peft norm: the weights of one output, which
are the columns of the paper's ``k x d`` and the rows of an ``nn.Linear``. m starts at ``||W||``, B
at zero, so that the start is the base. As Section 4.3 proposes, and as peft does it, the norm is a
constant to the gradient:

    dL/dm = rowsum(G * V) / ||V||,   dL/dV = (m / ||V||) G          G = dL/dW'

From the same values outputs and gradients are those of peft's ``LoraConfig(use_dora=True)``. In the
plan of q, k and v of a fused matrix each part has a ``down`` of its own, as for `lora`; norms are
those of rows, which no part shares with another. The paper adapts the FFN too; the default here is
that of the row "LoRA", from which it then differs in m alone. Dropout, which the paper's code has
on the input of the low-rank branch, is left out: the norm is that of a weight that sees no dropout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from cdra_mm.core import ParameterAdapter, Part, Plan, Target, register_kind
from cdra_mm.core.adapters.low_rank import master_dtype
from cdra_mm.errors import PlanError
from cdra_mm.settings import setting

from .base import Method, Request
from .roles import as_roles, check_rank, matrices_with

__all__ = ['DoRA', 'MagnitudeDirection']


@register_kind
class MagnitudeDirection(ParameterAdapter):
    """``W' = m * V / ||V||`` with ``V = W + scale up down``, by rows.

    The product runs with the effective weight, which the norm needs anyway.

    Args:
        target: The matrix ``[O, I]``.
        like: Its parameter, which gives device, floating type and the initial magnitudes.
        rank: r.
        scale: Factor of the update.
    """

    kind = 'magnitude_direction'

    def __init__(self, target: Target, like: Tensor, rank: int, scale: float) -> None:
        super().__init__(target.parameter)
        if len(target.shape) != 2 or not 0 < rank <= min(target.shape):
            raise ValueError(f'rank {rank} of {target.shape}')
        if not 0 < scale < math.inf:
            raise ValueError(f'scale is {scale}')
        self.start, self.stop, self.scale = target.start, target.stop, float(scale)
        new: dict[str, Any] = dict(device=like.device, dtype=master_dtype(like))
        self.down = nn.Parameter(torch.zeros(rank, target.shape[1], **new))
        self.up = nn.Parameter(torch.zeros(target.shape[0], rank, **new))
        with torch.no_grad():  # B is zero: V is W
            self.magnitude = nn.Parameter(_norms(self._direction(like)))
        self._factor: Tensor | None = None  # m / ||V|| of a merged weight

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """``down`` Kaiming-uniform (a = sqrt 5), ``up`` zero; the magnitudes are those of W."""
        values = torch.rand(self.down.shape, generator=generator, device=generator.device) * 2 - 1
        self.down.copy_(values / math.sqrt(self.down.shape[1]))
        self.up.zero_()

    def added_to(self, base: Tensor) -> Tensor:
        """See `ParameterAdapter.added_to`."""
        with torch.autocast(base.device.type, enabled=False):
            direction = self._direction(base)
            factor = self.magnitude / _norms(direction.detach())
            changed = (factor[:, None] * direction).to(base.dtype)
        if len(changed) == len(base):
            return changed
        return torch.slice_scatter(base, changed, 0, self.start, self.stop)

    @torch.no_grad()
    def merge_(self, module: nn.Module, sign: int = 1) -> None:
        """See `Adapter.merge_`.

        Raises:
            PlanError: If the merged weight lost a row, where the magnitude is 0.
        """
        weight = cast(Tensor, module._parameters[self.parameter])
        rows = weight[self.start : self.stop]
        delta = self.scale * (self.up.double() @ self.down.double())
        if sign > 0:
            direction = rows.double() + delta
            self._factor = self.magnitude.double() / _norms(direction)
            wide = self._factor[:, None] * direction
        else:
            assert self._factor is not None
            lost = int((self._factor == 0).sum())
            if lost:
                raise PlanError(
                    f'{self.parameter}: {lost} magnitudes are 0, the merged weight does not hold '
                    'the base there; load the checkpoint that is not merged'
                )
            wide = rows.double() / self._factor[:, None] - delta
        rows.copy_(wide.to(rows.dtype))
        self.merged = sign > 0

    def _direction(self, base: Tensor) -> Tensor:
        """V ``[O, I]``."""
        return base[self.start : self.stop] + self.scale * (self.up @ self.down)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f'{self.parameter}, {self.up.shape[0]}x{self.down.shape[1]}, rank={len(self.down)}'


def _norms(direction: Tensor) -> Tensor:
    """The norm of each row ``[O]``; a row of zeros, which has no direction, stays one of zeros."""
    norms: Tensor = torch.linalg.vector_norm(direction, dim=1)
    return norms.clamp_min(torch.finfo(norms.dtype).tiny)


@dataclass(frozen=True)
class DoRA(Method):
    """Weight-Decomposed Low-Rank Adaptation.

    Attributes:
        rank: r.
        alpha: Numerator of the scale ``alpha / rank``.
        targets: Roles to adapt, as those of `LoRA`; ``'all'`` is every matrix.
    """

    name: ClassVar[str] = 'dora'

    rank: int = setting(8, minimum=1)
    alpha: float = setting(8, above=0)
    targets: str | Sequence[str] = ('q', 'v')

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, 'targets', as_roles(self.targets))

    def plan(self, request: Request) -> Plan | None:
        """Adapts the matrices of the roles; nothing else is trained. See `Method.plan`.

        Raises:
            PlanError: If the backbone has no matrix of a role, or a matrix is smaller than the
                rank.
        """
        parts = []
        for target in matrices_with(request, self.targets):
            check_rank(target, self.rank)
            rows, cols = target.shape
            number = self.rank * (rows + cols) + rows
            sizes = {'rank': self.rank, 'scale': self.alpha / self.rank}
            parts.append(Part(target.name, MagnitudeDirection.kind, sizes, number))
        return request.record(self, parts=tuple(parts))
