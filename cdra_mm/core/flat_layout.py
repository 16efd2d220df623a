"""Where tensors begin that are laid out one after another in a flat one."""

from __future__ import annotations

__all__ = ['padded']

ALIGNMENT = 64  # entries: at least 128 bytes, in fp32 the 256 of an allocation of its own


def padded(numel: int) -> int:
    """Entries that a tensor takes up, so that the next one is aligned.

    Example:
        >>> padded(1), padded(64), padded(65)
        (64, 64, 128)
    """
    return -(-numel // ALIGNMENT) * ALIGNMENT
