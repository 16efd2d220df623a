"""The low-rank adapter of a compact block (CDRA-SPT, Eq. 6).

    W' = W + scale * scatter_{R,C}( up @ down )        up [|R|, r], down [r, |C|]

With all rows and columns it is LoRA. Rows or columns that follow each other need no gathering:
`LowRank.block` says so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..model.targets import Target
from .adapter import ParameterAdapter, register_kind
from .block_index import BlockIndex, Index

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
        dropout: Probability with which an entry of the input is dropped in training.
    """

    kind = 'low_rank'

    rows: Tensor
    cols: Tensor

    def __init__(
        self,
        target: Target,
        like: Tensor,
        rows: Tensor,
        cols: Tensor,
        rank: int,
        scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(target.parameter)
        if len(target.shape) != 2:
            raise ValueError(f'{target.name} is no matrix')
        check_index(rows, target.shape[0], 'rows')
        check_index(cols, target.shape[1], 'cols')
        self.start, self.scale, self.dropout = target.start, float(scale), float(dropout)
        dtype = master_dtype(like)
        self.register_buffer('rows', rows.to(like.device), persistent=False)  # the plan has them
        self.register_buffer('cols', cols.to(like.device), persistent=False)
        self.down = nn.Parameter(torch.zeros(rank, len(cols), device=like.device, dtype=dtype))
        self.up = nn.Parameter(torch.zeros(len(rows), rank, device=like.device, dtype=dtype))
        self.runs = _run(rows), _run(cols)

    @property
    def block(self) -> BlockIndex:
        """Rows and columns in the whole parameter, where they are a run as a slice, and scale."""
        (first, cols), start = self.runs, self.start
        rows: Index = self.rows + start if start else self.rows
        if first is not None:
            rows = slice(first.start + start, first.stop + start)
        return rows, self.cols if cols is None else cols, self.scale

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """``down`` and ``up``."""
        own = self._parameters  # a step asks for them often, and `nn.Module.__getattr__` is slow
        down, up = own.get('down'), own.get('up')
        return (self.down, self.up) if down is None or up is None else (down, up)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """``down`` Kaiming-uniform (a = sqrt 5), ``up`` zero: the update starts at zero."""
        bound = 1 / math.sqrt(self.down.shape[1])
        values = torch.rand(self.down.shape, generator=generator, device=generator.device) * 2 - 1
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
