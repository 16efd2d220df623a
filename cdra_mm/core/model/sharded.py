"""Weights that are spread over processes, of which this one holds a part."""

from __future__ import annotations

from torch import Tensor

__all__ = ['is_sharded']


def is_sharded(tensor: Tensor) -> bool:
    """Whether a parameter is a part of one: a DTensor of FSDP2, or a view of FSDP's flat one."""
    # Known without torch.distributed, which not every build of torch has.
    return hasattr(tensor, 'full_tensor') or bool(getattr(tensor, '_fsdp_flattened', False))
