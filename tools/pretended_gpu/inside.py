"""For code that runs on the pretended GPU: what was counted, and where values are computed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .values import Values

__all__ = ['Counts', 'counts', 'is_inside', 'prepared', 'without_values']

# Set around the run of a script; None where no values are computed.
_values: Values | None = None


@dataclass(frozen=True)
class Counts:
    """What the host has asked of the device; the difference of two is what lies between.

    Attributes:
        launches: Kernels, those of cuBLAS and those that a graph records among them.
        gemms: Those of cuBLAS.
        to_device: Copies from the host.
        from_device: Copies to the host.
        inside_device: Copies from the device to itself.
        fills: Of memory with one byte.
        waits: Times that the host waits until the device is done.
        graph_launches: CUDA graphs that were launched.
    """

    launches: int
    gemms: int
    to_device: int
    from_device: int
    inside_device: int
    fills: int
    waits: int
    graph_launches: int

    def __sub__(self, earlier: Counts) -> Counts:
        pairs = zip(astuple(self), astuple(earlier), strict=True)
        return Counts(*[now - before for now, before in pairs])


NUMBER = len(Counts.__dataclass_fields__)


def is_inside() -> bool:
    """Whether this process runs on the pretended GPU."""
    return hasattr(ctypes.CDLL(None), 'pretended_counts')


def counts() -> Counts:
    """What was counted since the process began.

    What the values mode computes is not counted: it launches nothing.

    Raises:
        RuntimeError: If this process does not run on the pretended GPU.
    """
    if not is_inside():
        raise RuntimeError('not on a pretended GPU: start with python -m tools.pretended_gpu')
    found = (ctypes.c_long * NUMBER).in_dll(ctypes.CDLL(None), 'pretended_counts')
    return Counts(*found)


@contextmanager
def without_values() -> Iterator[None]:
    """Launches and counts in the values mode, too; what is computed then has no values.

    Tensors that are made before keep theirs.
    """
    if _values is None:
        yield
    else:
        with _values.left():
            yield


@contextmanager
def prepared(values: bool) -> Iterator[None]:
    """Makes torch fit for the pretended GPU.

    Args:
        values: Whether to compute values.
    """
    global _values
    import torch

    # cuDNN is not replaced: it would look for the real driver.
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    with ExitStack() as stack:
        if values:
            from .values import Values

            _values = Values()
            stack.callback(_forget_values)
            stack.enter_context(_values.used())
        yield


def _forget_values() -> None:
    global _values
    _values = None


def environment(library: str) -> dict[str, str]:
    """The variables of a process on the pretended GPU.

    What Triton and inductor compile for it stays apart from what they compile for a real one.

    Args:
        library: Path of the built library.
    """
    folder = os.path.dirname(library)
    before = os.environ.get('LD_PRELOAD', '')
    return {
        'TRITON_CACHE_DIR': os.path.join(folder, 'triton'),
        'TORCHINDUCTOR_CACHE_DIR': os.path.join(folder, 'inductor'),
        **os.environ,
        'LD_PRELOAD': f'{library} {before}'.strip(),
        'TRITON_LIBCUDA_PATH': folder,
    }
