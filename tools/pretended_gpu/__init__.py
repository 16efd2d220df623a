"""Runs torch's CUDA build without a GPU; what that tells and what not: docs/pretended_gpu.md."""

from __future__ import annotations

from .inside import Counts, counts, without_values

__all__ = ['Counts', 'counts', 'without_values']
