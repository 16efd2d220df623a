"""Values for the pretended GPU: operations on its tensors are computed on the CPU, in its memory.

As on a real one, tensors of two devices in one operation are refused. Random numbers are the CPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._tensor_str import _str
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ['Values', 'on_cpu']

aten = torch.ops.aten
GPU, CPU = torch.device('cuda', 0), torch.device('cpu')

CUDA_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

# They only make a tensor or look at one.
AS_THEY_ARE = {
    aten._has_compatible_shallow_copy_type.default,
    aten._has_same_storage_numel.default,
    aten._pin_memory.default,
    aten.alias.default,
    aten.detach.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.is_pinned.default,
    aten.is_same_size.default,
    aten.lift_fresh.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.record_stream.default,
    aten.resize_.default,
    aten.set_.source_Storage,
    aten.set_.source_Storage_storage_offset,
    aten.set_.source_Tensor,
}
COPYING = {'copy_', '_to_copy', '_foreach_copy_', 'set_'}
# Indices may lie on the CPU.
INDEXING = {'index', '_unsafe_index', 'index_put', 'index_put_', '_unsafe_index_put'}
INDEXING |= {'_index_put_impl_'}
# Operations that are written in Python: what they do is computed, call by call.
IN_PYTHON = {'cdra_mm'}


class Values(TorchDispatchMode):
    """Computes all operations on tensors of the pretended GPU, also those of a backward.

    An operation that torch has for a GPU alone raises what torch says of it on a CPU.
    """

    @contextmanager
    def used(self) -> Iterator[None]:
        """Computes within it; attention takes what a CPU has, too."""
        with _patched(), self:
            yield

    @contextmanager
    def left(self) -> Iterator[None]:
        """Computes nothing within it, which lies inside of `used`."""
        self.__exit__(None, None, None)
        try:
            with _patched(back=True):
                yield
        finally:
            self.__enter__()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        given, _ = tree_flatten((args, kwargs))
        here = [a for a in given if _is_ours(a)]
        asked = kwargs.get('device')
        asked = None if asked is None else torch.device(asked)
        if not here and (asked is None or asked.type != 'cuda'):
            return func(*args, **kwargs)
        namespace, _, name = func._schema.name.partition('::')
        if namespace in IN_PYTHON:
            with self:
                return func.redispatch(CUDA_KEYS, *args, **kwargs)
        if func._can_decompose():  # under inference_mode they come as they were called
            with self:
                return func.decompose(*args, **kwargs)
        if func in AS_THEY_ARE or namespace == 'prim' or _is_view(func):
            return func(*args, **kwargs)
        _check_devices(func, name, args, given, bool(here))
        if kwargs.get('pin_memory'):
            kwargs['pin_memory'] = False
        if name == '_to_copy':
            kwargs.pop('non_blocking', None)
        given, _ = tree_flatten((args, kwargs))
        on_host = tree_map(_to_host, (args, kwargs))
        result = func(*on_host[0], **on_host[1])
        device = asked or (args[0].device if name == '_to_copy' else GPU)
        # What is changed in place is given back as it was given.
        same = {id(b): a for a, b in zip(given, tree_flatten(on_host)[0], strict=True)}
        return tree_map(lambda found: _given_back(found, same, device), result)


def on_cpu(tensor: Tensor) -> Tensor:
    """A CPU tensor in the same memory."""
    memory = tensor.untyped_storage()
    storage: Any = torch.UntypedStorage(0)
    if memory.nbytes():
        place = memory.data_ptr(), CPU, memory.nbytes()
        storage = torch._C._construct_storage_from_data_pointer(*place)
    shape = tensor.storage_offset(), tensor.shape, tensor.stride()
    found = torch.empty(0, dtype=tensor.dtype).set_(storage, *shape)
    if tensor.is_conj():
        found = found.conj()
    return torch._neg_view(found) if tensor.is_neg() else found


def _is_ours(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == 'cuda'


def _is_view(func: Any) -> bool:
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _to_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return on_cpu(value) if _is_ours(value) else value
    if isinstance(value, torch.device):
        return CPU
    if isinstance(value, torch.Generator) and value.device.type == 'cuda':
        return torch.default_generator
    return value


def _given_back(found: Any, same: dict[int, Any], device: torch.device) -> Any:
    if not isinstance(found, Tensor):
        return found
    if id(found) in same:
        return same[id(found)]
    if device.type != 'cuda':
        return found
    result = torch.empty_strided(found.shape, found.stride(), dtype=found.dtype, device=GPU)
    if found.numel():
        on_cpu(result).copy_(found)
    return result


def _check_devices(
    func: Any, name: str, args: tuple[Any, ...], given: list[Any], tensors: bool
) -> None:
    """Refuses what a real GPU refuses: operands on the CPU, but for single numbers.

    Args:
        func: The operation.
        name: Of it.
        args: That it is called with.
        given: All of them, and the keywords, in a row.
        tensors: Whether one of them is on the GPU, and not the result alone.

    Raises:
        RuntimeError: Begins as torch's own.
    """
    for value in given:
        if isinstance(value, torch.Generator) and value.device.type != 'cuda':
            raise RuntimeError(
                f'Expected a generator of the same device, but {func} got one of a CPU'
            )
    if name in COPYING or not tensors:
        return
    if name in INDEXING:
        given = [args[0], *args[2:3]]
    operands = [value for value in given if isinstance(value, Tensor)]
    if any(value.dim() and value.device.type != 'cuda' for value in operands):
        devices = ', '.join(f'{value.device}{list(value.shape)}' for value in operands)
        raise RuntimeError(
            f'Expected all tensors to be on the same device, but {func} got {devices}'
        )


@contextmanager
def _patched(back: bool = False) -> Iterator[None]:
    """Without kernels of attention that a CPU lacks, and with prints that show values.

    Args:
        back: The other way round.
    """
    try:
        _patch(not back)
        yield
    finally:
        _patch(back)


def _patch(on: bool) -> None:
    torch.backends.cuda.enable_flash_sdp(not on)
    torch.backends.cuda.enable_mem_efficient_sdp(not on)
    torch.backends.mha.set_fastpath_enabled(not on)
    torch._tensor_str._str = _shown if on else _str


def _shown(self: Tensor, *, tensor_contents: str | None = None) -> str:
    """torch leaves all modes when it prints a tensor."""
    if type(self) not in (Tensor, torch.nn.Parameter) or not _is_ours(self):
        return _str(self, tensor_contents=tensor_contents)
    return _str(on_cpu(self.detach())).removesuffix(')') + ", device='cuda:0')"
