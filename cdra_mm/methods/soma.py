"""SoMA: the minor singular components of every matrix are trained (Yun et al., CVPR 2025).

    W = U S V^T,   W' = W - B0 A0 + B A      B0 = U_r S_r^1/2 [O, r],   A0 = S_r^1/2 V_r^T [r, I]

U_r, S_r, V_r belong to the r smallest singular values; B and A start at B0 and A0, so that the
start is the base bit by bit. The early blocks stay frozen, the biases of the adapted layers are
trained.

The base keeps its weights here: what is added is the difference ``B A - B0 A0``, where the
released code (ysj9909/SoMA) puts the residual ``W - B0 A0`` into the weight. B0 and A0 are not
stored: they are computed from the base when they are needed, in fp64 on the CPU. Their product
is that of the projection on a subspace, ``U_r U_r^T W``, which signs of singular vectors or another
basis of the subspace do not change; machines agree on it to ``sigma_r eps sigma_1^2 / (sigma_r+1^2
- sigma_r^2)``, far below fp32's rounding where the two values are apart. Where they are not, there
is no such subspace, and the matrix is refused.

Where else the code and this differ, or the code has two ways:

- *Decomposition.* The code's configs use an exact SVD in fp32; here it is that of the Gram matrix
  of the shorter side in fp64. The code's default (``svd_lowrank``) approximates the *largest*
  components and is not what its configs use; neither are its ramp of ranks and its alpha, which
  equals the rank there: a scale of 1.
- *Frozen blocks.* 8 of the 24 of DINOv2-L, whatever the model; here a third of the blocks.
- *Biases* of the adapted layers are trained, as the code does it. It also sets the mask token to be
  trained, on which no loss depends.
- *Rates.* The configs train the backbone at half of the head's rate (1e-4) and let weight decay
  fall from 0.05 to 1e-5 along a cosine, which pulls B and A to zero, so W' to the residual. That is
  the optimizer's: ``paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5)))`` and a
  ``CosineAnnealingParamScheduler`` with ``param_name='weight_decay', eta_min=1e-5``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from cdra_mm.core import ParameterAdapter, Part, Plan, Target, Vector, find_layers, register_kind
from cdra_mm.core.adapters.low_rank import master_dtype
from cdra_mm.errors import PlanError
from cdra_mm.settings import count, setting

from .base import Method, Request
from .roles import ALL, as_roles, check_rank, matrices_with

__all__ = ['MinorComponents', 'SoMA', 'minor_factors']

# Squares of singular values closer than this, relative to the largest, are the same.
CLOSEST = 1e-12


@register_kind
class MinorComponents(ParameterAdapter):
    """``W' = W + up down - up0 down0`` for a matrix.

    The product runs with the effective weight: its gradient ``[O, I]`` lives for one layer at a
    time.

    Args:
        target: The matrix ``[O, I]``.
        like: Its parameter, which gives device and floating type.
        rank: r.
    """

    kind = 'minor_components'

    def __init__(self, target: Target, like: Tensor, rank: int) -> None:
        super().__init__(target.parameter)
        if len(target.shape) != 2 or not 0 < rank <= min(target.shape):
            raise ValueError(f'rank {rank} of {target.shape}')
        self.target, self.start, self.stop = target.name, target.start, target.stop
        new: dict[str, Any] = dict(device=like.device, dtype=master_dtype(like))
        self.down = nn.Parameter(torch.zeros(rank, target.shape[1], **new))
        self.up = nn.Parameter(torch.zeros(target.shape[0], rank, **new))
        # No buffers: they follow from the base, and no process has to hand them to another.
        self._factors: tuple[Tensor, Tensor] | None = None
        self._base: tuple[Tensor] | None = (like,)  # until the initial values are set

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """``up0`` and ``down0``: the update starts at zero."""
        if self._base is not None:
            self._start_of(self._base[0])
        assert self._factors is not None
        for parameter, value in zip((self.up, self.down), self._factors, strict=True):
            parameter.copy_(value)

    def added_to(self, base: Tensor) -> Tensor:
        """See `ParameterAdapter.added_to`."""
        up0, down0 = self._start_of(base)
        with torch.autocast(base.device.type, enabled=False):
            delta = self.up @ self.down - up0 @ down0
            changed = (base[self.start : self.stop] + delta).to(base.dtype)
        if len(changed) == len(base):
            return changed
        return torch.slice_scatter(base, changed, 0, self.start, self.stop)

    @torch.no_grad()
    def merge_(self, module: nn.Module, sign: int = 1) -> None:
        """See `Adapter.merge_`."""
        weight = cast(Tensor, module._parameters[self.parameter])
        up0, down0 = (factor.double() for factor in self._start_of(weight))
        rows = weight[self.start : self.stop]
        delta = self.up.double() @ self.down.double() - up0 @ down0
        rows.copy_((rows.double() + sign * delta).to(rows.dtype))
        self.merged = sign > 0

    def _start_of(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """``up0`` and ``down0`` of the base parameter, which is plain when they are first asked."""
        if self._factors is None:
            plain = base.detach()[self.start : self.stop]
            up, down = minor_factors(plain, self.down.shape[0], self.target)
            self._factors = up.to(self.up), down.to(self.down)
        elif self._factors[0].device != self.up.device:
            up, down = self._factors
            self._factors = up.to(self.up.device), down.to(self.down.device)
        self._base = None
        return self._factors

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.merged:
            self._factors = None  # another base may have come with it

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f'{self.parameter}, {self.up.shape[0]}x{self.down.shape[1]}, rank={len(self.down)}'


def minor_factors(weight: Tensor, rank: int, name: str = 'the matrix') -> tuple[Tensor, Tensor]:
    """``U_r S_r^1/2`` and ``S_r^1/2 V_r^T`` of the r smallest singular values, fp64 on the CPU.

    Args:
        weight: ``[O, I]``.
        rank: r.
        name: What an error calls it.

    Returns:
        ``[O, r]`` and ``[r, I]``, the largest of them first.

    Raises:
        PlanError: If the r-th and the next smallest singular value are the same.
    """
    wide = weight.detach().to('cpu', torch.float64)
    short = wide if wide.shape[0] <= wide.shape[1] else wide.t()  # its rows are fewer
    squares, vectors = torch.linalg.eigh(short @ short.t())  # rising
    if rank < len(squares) and squares[rank] - squares[rank - 1] <= CLOSEST * squares[-1]:
        values = ' and '.join(
            f'{max(float(s), 0.0) ** 0.5:.3g}' for s in squares[rank - 1 : rank + 1]
        )
        raise PlanError(
            f'{name}: its smallest singular values number {rank} and {rank + 1} are {values}, the '
            f'same to rounding, so that no {rank} minor components stand apart: give another rank, '
            'or leave its role out of targets'
        )
    left = vectors[:, :rank].flip(1)
    right = left.t() @ short  # S_r V_r^T
    roots = right.norm(dim=1).sqrt()
    up, down = left * roots, right / roots.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    return (up, down) if short is wide else (down.t(), up.t())


@dataclass(frozen=True)
class SoMA(Method):
    """Singular value decomposed Minor components Adaptation.

    Attributes:
        rank: r, 16 in the paper's configs.
        targets: Roles to adapt, as those of `LoRA`; ``'all'`` is every matrix.
        frozen_blocks: Transformer blocks that stay frozen, from the first; None is a third of them.
        biases: Train the biases of the adapted layers.
    """

    name: ClassVar[str] = 'soma'

    rank: int = setting(16, minimum=1)
    targets: str | Sequence[str] = ALL
    frozen_blocks: int | None = count(None, minimum=0)
    biases: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, 'targets', as_roles(self.targets))

    def plan(self, request: Request) -> Plan | None:
        """The matrices of the roles in the later blocks, and their biases. See `Method.plan`.

        Raises:
            PlanError: If the backbone has no matrix of a role, none in its later blocks, or one
                smaller than the rank.
        """
        backbone = request.backbone
        layers = find_layers(backbone)
        frozen = len(layers) // 3 if self.frozen_blocks is None else self.frozen_blocks
        late = tuple(f'{path}.' for path in layers[frozen:])
        matrices = [
            target
            for target in matrices_with(request, self.targets)
            if f'{target.module}.'.startswith(late)
        ]
        if not matrices:
            raise PlanError(
                f'frozen_blocks={frozen}: {type(backbone).__name__} has {len(layers)} transformer '
                'blocks, and no matrix behind the frozen ones that may be trained: give fewer'
            )
        for target in matrices:
            check_rank(target, self.rank)
        sizes = {'rank': self.rank}
        parts = tuple(
            Part(t.name, MinorComponents.kind, sizes, self.rank * sum(t.shape)) for t in matrices
        )
        vectors = _biases(request, matrices) if self.biases else ()
        return request.record(self, parts=parts, vectors=tuple(vectors))


def _biases(request: Request, matrices: Sequence[Target]) -> list[Vector]:
    """The biases of the layers of matrices; those of a fused one may be held by its attention."""
    owners = {target.module for target in matrices}
    owners |= {target.module.rpartition('.')[0] for target in matrices if target.part}
    found = [t for t in request.targets().values() if t.role == 'bias' and t.module in owners]
    return [Vector(t.name, t.numel, None, t.numel) for t in found]
