"""Tables that the kernels of `block_kernels` read, in the GPU's memory, and their launches.

A table is made when tensors are seen for the first time and kept, so that a step copies nothing to
the GPU, also while a CUDA graph is being captured.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

__all__ = ['keep_launch', 'launch_of', 'table_of']

KEPT_TABLES = 4096  # a few layers' at a time, or each layer's: some hundred for the largest ViT

Launch = Callable[..., None]

_tables: OrderedDict[Hashable, Tensor] = OrderedDict()
_launches: OrderedDict[Hashable, Launch] = OrderedDict()
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
    found = _tables.pop(key, None) if key not in _captured else _captured[key]
    capturing = device.type == 'cuda' and torch.cuda.is_current_stream_capturing()
    if found is None:
        if capturing:
            raise RuntimeError(
                'a CUDA graph is being captured of blocks that are seen for the first time: run '
                'the step once or more before the capture'
            )
        found = _made_apart(list(rows), device)
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


def launch_of(key: Hashable, *given: Tensor) -> Launch | None:
    """The launch that was kept for a key and such tensors as are given, or None.

    None while a CUDA graph is being captured: `table_of` keeps what the graph reads.
    """
    found = _launches.get((key, tuple(map(_look_of, given))))
    if found is None or torch.cuda.is_current_stream_capturing():
        return None
    return found if torch.cuda.current_device() == given[0].get_device() else None


def keep_launch(
    key: Hashable, given: Sequence[Tensor], compiled: Any, table: Tensor, *constants: int
) -> None:
    """Keeps the launch of a kernel for `launch_of`; see there when it is not kept.

    Triton looks at each call for the compiled kernel that fits, which takes as long again as the
    launch itself.

    Args:
        key: All that the table is made of.
        given: Its first arguments, which change from launch to launch.
        compiled: What it returned when it was launched with them.
        table: Its next argument; a program for each row.
        constants: What it was compiled for, its last arguments.
    """
    if torch.cuda.is_current_stream_capturing():
        return
    run = compiled[(len(table), 1, 1)]
    look = tuple(map(_look_of, given))
    _launches[key, look] = lambda *given: run(*given, table, *constants)
    while len(_launches) > KEPT_TABLES:
        _launches.popitem(last=False)


def _look_of(tensor: Tensor) -> tuple[torch.dtype, bool, int]:
    """What a kernel is compiled for, and where it runs."""
    return tensor.dtype, tensor.data_ptr() % 16 == 0, tensor.get_device()
