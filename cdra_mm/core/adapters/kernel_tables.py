"""Tables that the kernels of `block_ops` read, in the GPU's memory.

A table is made when tensors are seen for the first time and kept, so that a step copies nothing to
the GPU, also while a CUDA graph is being captured.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakValueDictionary

import torch
from torch import Tensor

__all__ = ['bits_of', 'look_of', 'table_of']

KEPT_TABLES = 4096  # one of a model's copies, two of each layer: some hundred for the largest ViT

_tables: OrderedDict[Hashable, Tensor] = OrderedDict()
# Those that a launch holds, which may be of a model that is trained while many others are tried.
_used: WeakValueDictionary[Hashable, Tensor] = WeakValueDictionary()
_captured: dict[Hashable, Tensor] = {}  # a graph reads them as long as it lives


def table_of(key: Hashable, rows: Iterator[list[int]], device: torch.device) -> Tensor:
    """A table of int64 on the device; made once for a key.

    It holds nothing but what its key says, so it is never out of date.

    Args:
        key: All that the rows are made of.
        rows: The rows of the table, read where it is made.
        device: Where it goes.

    Raises:
        RuntimeError: If it would have to be made while a CUDA graph is being captured.
    """
    found = _captured.get(key)
    if found is None:
        found = _tables.pop(key, None)
    if found is None:
        found = _used.get(key)
    capturing = device.type == 'cuda' and torch.cuda.is_current_stream_capturing()
    if found is None:
        if capturing:
            raise RuntimeError(
                'a CUDA graph is being captured of blocks that are seen for the first time: run '
                'the step once or more before the capture'
            )
        found = _used[key] = _made_apart(list(rows), device)
    if capturing:
        _captured[key] = found
    elif key not in _captured:
        _tables[key] = found
        while len(_tables) > KEPT_TABLES:
            _tables.popitem(last=False)
    return found


def _made_apart(rows: list[list[int]], device: torch.device) -> Tensor:
    """A tensor in the memory that is everyone's.

    Before torch records a CUDA graph it runs a step whose memory is the graph's (inductor's
    `cudagraph_trees`), and refuses one in which anything but results stays. That holds for the
    thread that runs it.
    """
    with ThreadPoolExecutor(1) as other:
        return other.submit(torch.tensor, rows, dtype=torch.int64, device=device).result()


def look_of(tensors: Sequence[Tensor]) -> Hashable:
    """Where the memory of each begins, and its sizes."""
    return tuple([(tensor.data_ptr(), tensor.shape) for tensor in tensors])


def bits_of(value: float) -> int:
    """A number as the bits of fp32: a table has one type."""
    return int.from_bytes(struct.pack('<f', value), 'little', signed=True)
