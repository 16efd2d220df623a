"""Memory: the peak above the resting state, and the bytes kept for the backward."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from cdra_mm.core.adapters.copied_weights import kept_tensors
from cdra_mm.core.model.graph import nodes_of
from cdra_mm.core.model.own_state import tensors_in

__all__ = [
    'allocated',
    'in_child',
    'kept_bytes',
    'peak_above_rest',
    'peaks_since',
    'saved_bytes',
]

STATUS, CLEAR_REFS = Path('/proc/self/status'), Path('/proc/self/clear_refs')


def peak_above_rest(run: Callable[[], Any], device: str) -> int | None:
    """Bytes that a run needs at its peak above what is held before it.

    On a GPU these are bytes of PyTorch's allocator. On a CPU it is the process's
    resident memory, so call it in a fresh process (`in_child`); None where the
    system does not tell (it is Linux's /proc that does).
    """
    run()  # libraries keep buffers from their first call on: they belong to the rest
    gc.collect()
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        CLEAR_REFS.write_text('5')  # sets the peak back to the present value
        before = _status('VmRSS')
        run()
        return max(0, _status('VmHWM') - before)
    except (OSError, AttributeError):
        return None


def allocated(device: str) -> int:
    """Bytes that PyTorch's allocator has given out on a GPU, garbage left out; 0 on a CPU."""
    if device != 'cuda':
        return 0
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def peaks_since(before: int, run: Callable[[], Any], device: str) -> dict[str, int | None]:
    """Peak of a run on a GPU above the rest, and with all that is held since ``before``.

    Args:
        before: What was `allocated` before the model and its optimizer were made.
        run: One step.
        device: ``'cuda'``.

    Returns:
        ``peak_bytes_above_rest``, and ``peak_bytes``: weights, kept copies and the optimizer's
        state included.
    """
    above = peak_above_rest(run, device)
    whole = None if above is None else above + allocated(device) - before
    return {'peak_bytes_above_rest': above, 'peak_bytes': whole}


def _status(key: str) -> int:
    match = re.search(rf'^{key}:\s+(\d+) kB', STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function of a module in a fresh process and returns its result.

    Raises:
        MemoryError: If the system ended the process, which it does when memory runs out.
    """
    context = multiprocessing.get_context('spawn')
    with _environment({'MALLOC_MMAP_THRESHOLD_': str(1 << 17)}):
        # Tensors then come from the system and go back to it: the resident memory is what is held.
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                return pool.submit(function, *arguments).result()
            except BrokenProcessPool:
                raise MemoryError('the process was ended by the system: out of memory?') from None


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward keeps for its backward, what is there between steps left out.

    Counts every storage once, whichever operations keep it: what autograd saves, and what
    custom functions put aside as attributes.

    Args:
        model: Its parameters and buffers do not count, nor copies that it keeps (`kept_bytes`).
        forward: Runs the forward and returns the loss.
    """
    forward()  # makes what is kept from then on
    own = {
        tensor.untyped_storage().data_ptr()
        for tensors in (model.parameters(), model.buffers(), kept_tensors(model))
        for tensor in tensors
    }
    # The storages are held, so that no address is used twice.
    held: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    for tensor in _put_aside(loss):
        keep(tensor)
    return sum(storage.nbytes() for storage in held.values())


def kept_bytes(model: nn.Module) -> int:
    """Bytes that a model holds between forwards beside its weights (`kept_copies`)."""
    return sum(tensor.untyped_storage().nbytes() for tensor in kept_tensors(model))


def _put_aside(loss: Tensor) -> Iterator[Tensor]:
    """Tensors that nodes of the graph hold as plain attributes."""
    for node in nodes_of(loss):
        yield from tensors_in(getattr(node, '__dict__', {}))
