"""The weights of a batch whose samples belong to different tasks.

    y[s] = x[s] (W + sum_i scale_i * scatter_{R_i, C_i}(up_i down_i))^T + b[s]

where i are the blocks of sample s' task, and b its bias.

The model runs once for each sample, in torch's ``vmap``: there a batch is always known for what it
is, wherever a model puts it (windows, tokens first), and a bias, a norm's vectors or a token may be
another for each sample. The product by a frozen weight stays one product of the whole batch; to it
the compact blocks of each task are added, in the rows of its own samples. Samples of a task follow
each other, so that those rows are a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cdra_mm.errors import PlanError

from .adapter import CallAdapter, ParameterAdapter
from .block_index import BlockIndex, columns_of
from .compact_linear import wide_factors
from .low_rank import LowRank
from .stand_in import StandIn

__all__ = [
    'FoldedAttention',
    'Group',
    'MixedWeight',
    'Update',
    'Updates',
    'refuse_calls',
    'update_of',
]


class Group(NamedTuple):
    """Samples of one task in a batch: ``start`` to ``stop``."""

    start: int
    stop: int


class Update(NamedTuple):
    """What a task adds to a weight.

    Attributes:
        blocks: See `compact_linear.compact_linear`.
        factors: Likewise.
        rest: Whatever is no low-rank block, as a matrix ``[O, I]``; None where there is nothing.
    """

    blocks: Sequence[BlockIndex]
    factors: Sequence[Tensor]
    rest: Tensor | None


def update_of(
    adapters: Sequence[ParameterAdapter], base: Tensor, whole: Tensor | None = None
) -> Update:
    """What the adapters of a weight add to it.

    Args:
        adapters: Those of one task.
        base: The weight, ``[O, I]``.
        whole: The weight's own value in that task, where it is another.
    """
    adapters = [adapter.moved(base.device) for adapter in adapters]
    low_rank = [a for a in adapters if isinstance(a, LowRank)]
    others = [a for a in adapters if not isinstance(a, LowRank)]
    rest = None if whole is None else whole.to(base.device)
    for adapter in others:
        rest = adapter.added_to(base if rest is None else rest)
    factors = [factor for a in low_rank for factor in (a.down, a.up)]
    blocks = [a.block for a in low_rank]
    return Update(blocks, factors, None if rest is None else rest - base)


class Updates:
    """What each task adds to a weight, with its samples; one object to ``vmap``."""

    def __init__(self, by_group: Sequence[tuple[Group, Update]]) -> None:
        self.by_group = by_group


class MixedWeight(StandIn):
    """A weight with the updates of several tasks, each for its own samples.

    Args:
        name: Its name in the model.
        base: The weight, ``[O, I]``.
        updates: What the tasks add.
        which: Task of the sample, a number in ``vmap``: it says which dimension is the batch's
            where nothing else does.
    """

    def __init__(self, name: str, base: Tensor, updates: Updates, which: Tensor) -> None:
        super().__init__(name, base)
        self.updates, self.which = updates, which

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `StandIn.product`."""
        y = F.linear(x, self.base, bias)
        return cast(Tensor, _AddUpdates.apply(y, x, self.which, self.updates))

    def whole(self) -> Tensor:
        """See `StandIn.whole`."""
        raise PlanError(
            f'{self.name} is not used by F.linear alone: a mixed batch cannot run through it; call '
            'the tasks one after another with use()'
        )


class _AddUpdates(torch.autograd.Function):
    """Adds to ``y`` what each task's blocks make of ``x``; its real work is below ``vmap``."""

    @staticmethod
    def forward(y: Tensor, x: Tensor, which: Tensor, updates: Updates) -> Tensor:
        raise RuntimeError('a mixed batch runs in vmap')

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: mixed batches have no backward."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        y: Tensor,
        x: Tensor,
        which: Tensor,
        updates: Updates,
    ) -> tuple[Tensor, int]:
        """All samples at once, ``[B, ..., O]`` and ``[B, ..., I]``."""
        count = info.batch_size
        x = _batch_first(x, in_dims[1], count)
        y = _batch_first(y, in_dims[0], count).contiguous()
        if in_dims[0] is None:
            y = y.clone()
        # The type of the product has been chosen already, where autocast chooses it.
        with torch.autocast(y.device.type, enabled=False):
            for (start, stop), update in updates.by_group:
                own = x[start:stop].reshape(-1, x.shape[-1]).to(y.dtype)
                into = y[start:stop].view(-1, y.shape[-1])
                if update.blocks:
                    factors = [factor.to(y.dtype) for factor in update.factors]
                    _add_blocks(into, own, update.blocks, factors)
                if update.rest is not None:
                    into.addmm_(own, update.rest.to(y.dtype).t())
        return y, 0


def _add_blocks(
    y: Tensor, x: Tensor, blocks: Sequence[BlockIndex], factors: Sequence[Tensor]
) -> None:
    """Adds to ``y [T, O]`` what blocks make of ``x [T, I]``, in place."""
    each = zip(blocks, factors[::2], strict=True)
    hidden = torch.cat([(down @ columns_of(x, cols).t()).t() for (_, cols, _), down in each], 1)
    _, up = wide_factors(y.new_empty(1).expand(y.shape[1], x.shape[1]), blocks, factors)
    y.addmm_(hidden, up.t())


def _batch_first(tensor: Tensor, dim: int | None, count: int) -> Tensor:
    if dim is None:
        return tensor.expand(count, *tensor.shape)
    return tensor.movedim(dim, 0)


class FoldedAttention(TorchFunctionMode):
    """Attention of all samples by one call, which ``vmap`` would otherwise split on a CPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in the place of every function."""
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            names = ('query', 'key', 'value', 'attn_mask')
            given = dict(zip(names, args, strict=False)) | kwargs
            q, k, v = (given.pop(name) for name in names[:3])
            mask = given.pop('attn_mask', None)
            if len(args) <= len(names) and min(q.dim(), k.dim(), v.dim()) == 4:
                return _Folded.apply(q, k, v, mask, given)
        return func(*args, **kwargs)


class _Folded(torch.autograd.Function):
    """Attention with the samples of ``vmap`` as samples of one batch."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Any, rest: Mapping[str, Any]) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: mixed batches have no backward."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        rest: Mapping[str, Any],
    ) -> tuple[Tensor, int]:
        """Queries, keys and values ``[B, N, heads, T, E]`` as ``[B * N, heads, T, E]``."""
        count = info.batch_size
        q, k, v = (
            _batch_first(tensor, dim, count)
            for tensor, dim in zip((q, k, v), in_dims[:3], strict=True)
        )
        if isinstance(mask, Tensor) and (mask.dim() > 2 or in_dims[3] is not None):
            mask = _batch_first(mask, in_dims[3], count)
            while mask.dim() < q.dim():
                mask = mask.unsqueeze(1)
            shape = (*q.shape[:3], q.shape[3], k.shape[3])
            mask = mask.expand(shape).flatten(0, 1)
        out = F.scaled_dot_product_attention(
            q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask, **rest
        )
        return out.reshape(*q.shape[:2], *out.shape[1:]), 0


def refuse_calls(name: str, adapters: Mapping[str, nn.Module]) -> None:
    """Refuses a task whose adapters cannot be mixed.

    Raises:
        PlanError: If one changes what a module computes.
    """
    calls = [(path, a) for path, a in adapters.items() if isinstance(a, CallAdapter)]
    if calls:
        path, adapter = calls[0]
        raise PlanError(
            f'{name!r} has adapters of the kind {adapter.kind!r} (the first is {path}), which '
            'change what a module computes, not a weight: they cannot run in a mixed batch; call '
            'the task by itself with use()'
        )
