"""Whether kernels written in Triton can be used on a device; what is said where they cannot."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch

__all__ = ['KERNEL_DTYPES', 'failure_of', 'missing_for_kernels']

KERNEL_DTYPES = {torch.float32, torch.bfloat16, torch.float16}


def missing_for_kernels(device: torch.device) -> str:
    """What kernels need that a device has not, '' if it has all."""
    if device.type != 'cuda' or torch.version.cuda is None:
        return 'an NVIDIA GPU'  # torch calls AMD's cuda too: their shared memory is too small
    if torch.cuda.get_device_capability(device) < (8, 0) or find_spec('triton') is None:
        return 'Triton and compute capability 8.0'
    return ''


def failure_of(check: Callable[[], None]) -> str:
    """What went wrong when kernels were run once, and what they need; '' if nothing.

    Args:
        check: Runs them, and raises RuntimeError where a result is wrong.
    """
    try:
        check()
    except Exception as error:  # many kinds: Triton calls a C compiler and writes a cache
        needs = "Triton 3, a C compiler and Python's headers"
        return f'({type(error).__name__}: {error}); needed are {needs}'
    return ''
