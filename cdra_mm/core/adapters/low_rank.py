"""The low-rank adapter of a compact block (CDRA-SPT, Eq. 6).

    W' = W + scale * scatter_{R,C}( up @ down )        up [|R|, r], down [r, |C|]

With all rows and columns it is LoRA. Rows or columns that follow each other need no gathering:
`LowRank.block` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..model.targets import Target
from .adapter import ParameterAdapter, register_kind
from .compact_linear import BlockIndex, Index

__all__ = ['LowRank', 'check_index', 'master_dtype']


@register_kind
class LowRank(ParameterAdapter):
    """The low-rank adapter of one compact block.

    Args:
        target: The matrix.
        like: Its parameter, which gives device and floating type of the factors.
        rows: Rows of the block in the target, int64 ``[|R|]``.
        cols: Columns of the block, int64 ``[|C|]``.
        rank: r.
        scale: Factor of the update; the paper has none, LoRA's is alpha / r.
    """

    kind = 'low_rank'
    tensors = frozenset({'rows', 'cols', 'down', 'up'})
    optional = frozenset({'scaling'})

    rows: Tensor
    cols: Tensor
    scaling: Tensor  # where the scale is not 1

    def __init__(
        self,
        target: Target,
        like: Tensor,
        rows: Tensor,
        cols: Tensor,
        rank: int,
        scale: float = 1.0,
    ) -> None:
        super().__init__(target.parameter)
        if len(target.shape) != 2:
            raise ValueError(f'{target.name} is no matrix')
        check_index(rows, target.shape[0], 'rows')
        check_index(cols, target.shape[1], 'cols')
        self.start, self.scale = target.start, float(scale)
        self.dropout = 0.0  # of the input, in training; `freeze_rest` sets what the plan says
        dtype = master_dtype(like)
        self.register_buffer('rows', rows.to(like.device))
        self.register_buffer('cols', cols.to(like.device))
        if scale != 1:  # a state dict has to tell it, and loading one brings it
            self.register_buffer('scaling', torch.tensor(self.scale, dtype=torch.float64))
        self.down = nn.Parameter(torch.zeros(rank, len(cols), device=like.device, dtype=dtype))
        self.up = nn.Parameter(torch.zeros(len(rows), rank, device=like.device, dtype=dtype))
        self.runs = _run(rows), _run(cols)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.rows.is_meta:
            self.runs = _run(self.rows), _run(self.cols)
            if 'scaling' in self._buffers:
                self.scale = float(self.scaling)

    @property
    def block(self) -> BlockIndex:
        """Rows and columns in the whole parameter, where they are a run as a slice, and scale."""
        (first, cols), start = self.runs, self.start
        rows: Index = self.rows + start if start else self.rows
        if first is not None:
            rows = slice(first.start + start, first.stop + start)
        return rows, self.cols if cols is None else cols, self.scale

    @classmethod
    def sizes_of(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `Adapter.sizes_of`."""
        rank = len(tensors['down']) if tensors['down'].dim() == 2 else 0
        if rank < 1:
            raise ValueError('down is no matrix')
        sizes = {'rows': tensors['rows'], 'cols': tensors['cols'], 'rank': rank}
        if 'scaling' in tensors:
            sizes['scale'] = float(tensors['scaling'])
        return sizes

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """``down`` Kaiming-uniform (a = sqrt 5), ``up`` zero: the update starts at zero."""
        bound = 1 / math.sqrt(self.down.shape[1])
        values = torch.rand(self.down.shape, generator=generator) * 2 - 1
        self.down.copy_(values * bound)
        self.up.zero_()

    def delta_weight(self) -> Tensor:
        """The update of the block, ``[|R|, |C|]``."""
        return self.scale * (self.up @ self.down)

    def added_to(self, base: Tensor) -> Tensor:
        """The base plus the update of its block (Eq. 6), in the base's own order (Eq. 5).

        See `ParameterAdapter.added_to`.
        """
        delta = self.delta_weight().to(base.dtype)
        rows, cols, _ = self.block
        if isinstance(rows, slice) and isinstance(cols, slice):
            wide = base.clone()
            wide[rows, cols] += delta
            return wide
        index = ((self.rows + self.start)[:, None], self.cols[None, :])
        return base.index_put(index, delta, accumulate=True)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        rank, cols = self.down.shape
        return f'{self.parameter}, block={len(self.rows)}x{cols}, rank={rank}'


def _run(index: Tensor) -> slice | None:
    """The slice that takes the same, or None."""
    first = int(index[0])
    run = torch.arange(first, first + len(index), device=index.device)
    return slice(first, first + len(index)) if torch.equal(index, run) else None


def check_index(index: Tensor, size: int, what: str) -> None:
    """Raises ValueError unless a tensor is a non-empty list of indices below ``size``."""
    ok = index.dim() == 1 and index.dtype == torch.int64 and len(index) > 0
    if not ok or int(index.min()) < 0 or int(index.max()) >= size:
        raise ValueError(f'{what} are no indices below {size}')


def master_dtype(like: Tensor) -> torch.dtype:
    """Adapters are trained in fp32 at least: small updates vanish in half precision."""
    return torch.promote_types(like.dtype, torch.float32)
