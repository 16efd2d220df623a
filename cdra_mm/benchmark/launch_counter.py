"""Counts what a GPU would launch."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ['LaunchCounter']

# Names that take memory or look at it, though their schemas do not say so.
NO_KERNEL = frozenset(
    'empty empty_like empty_strided new_empty new_empty_strided _unsafe_view _reshape_alias '
    'lift_fresh detach promote_types'.split()
)
# Kernels of an operation that has more than one.
KERNELS = {'factor_gradients': 2}


class LaunchCounter(TorchDispatchMode):
    """Counts the operations that run a kernel.

    Attributes:
        counts: Number of launches by the operation's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Counts one operation and runs it; what it calls inside is part of it."""
        name = func._schema.name.rpartition('::')[2]
        if name not in NO_KERNEL and not _is_view(func):
            self.counts[name] += KERNELS.get(name, 1)
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    """Whether what an operation returns is another look at its input, by its schema."""
    aliases = [r.alias_info for r in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
