"""The most bytes that operations hold at once, on any device: on the meta one nothing is there."""

from __future__ import annotations

import weakref
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ['FusedAttention', 'LiveBytes']


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations inside make, for as long as they live.

    What was there before does not count. Scratch inside of a kernel is not seen, nor what an
    allocator rounds up.

    Attributes:
        now: Bytes that are alive.
        peak: The most that were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Those that come from outside are known before the results are looked at.
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._see(tensor, counts=False)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor, counts=True)
        return out

    def _see(self, tensor: Tensor, *, counts: bool) -> None:
        if tensor.layout is torch.sparse_coo:  # two tensors that have storages
            for part in (tensor._indices(), tensor._values()):
                self._see(part, counts=counts)
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counts else 0

        def gone(_: Any) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class FusedAttention(TorchFunctionMode):
    """Attention keeps what a fused kernel keeps of it: no map of tokens by tokens.

    On the meta device torch would lay such a map out, as no GPU does for what a ViT computes.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            named = (kwargs[name] for name in ('query', 'key', 'value') if name in kwargs)
            return cast(Any, _Fused).apply(*(*args, *named)[:3])
        return func(*args, **kwargs)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return tuple(torch.empty_like(tensor) for tensor in (query, key, value))
