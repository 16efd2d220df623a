"""Which base a plan or an adapter belongs to: a table of digests of its weights.

A model's own tensors are its parameters and persistent buffers, without adapters. The table has a
text for each by name: type, shape and 16 bytes of SHA-256, such as ``float32 1x197x768 0f3a...``.
It is made once; every check compares a part of it, and names what differs.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from .targets import find_targets

__all__ = [
    'base_buffers',
    'base_state',
    'changed_buffers',
    'differences',
    'digests_of',
    'fingerprint',
    'fingerprint_of',
    'fingerprint_of_digests',
    'forget_base',
    'list_differences',
    'names_beside',
    'remember_base',
    'same_scheme',
]

# Begins fingerprints that are made of a table; those of earlier releases are plain hexadecimal.
SCHEME = '2:'
BYTES = 16  # of each digest: nobody finds a second tensor of the same


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's own parameters and persistent buffers by name, adapted or not.

    The tensors share the memory of the model's.
    """
    adapters = tuple(
        f'{path}.cdra.'.lstrip('.')
        for path, module in model.named_modules(remove_duplicate=False)
        if hasattr(type(module), 'base_class')
    )
    return {
        key: value
        for key, value in model.state_dict().items()
        if isinstance(value, Tensor) and not key.startswith(adapters)
    }


def base_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of `base_state`: tables, and statistics that change in training."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {key: value for key, value in base_state(model).items() if key not in parameters}


def digests_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The table of named tensors: type, shape and digest of each."""
    return {name: f'{_form(value)} {_digest(value)}' for name, value in tensors.items()}


def differences(state: Mapping[str, Tensor], digests: Mapping[str, str]) -> Iterator[str]:
    """What differs from a table, one text a tensor, found as it is asked for.

    Args:
        state: Tensors by name; those that the table does not have are left alone.
        digests: The table.

    Yields:
        Names, with the reason where it is more than other values.
    """
    for name, expected in digests.items():
        if name not in state:
            yield f'{name} (missing here)'
            continue
        form, _, digest = expected.rpartition(' ')
        if _form(state[name]) != form:
            yield f'{name} ({_form(state[name])} here, {form} there)'
        elif _digest(state[name]) != digest:
            yield name


def list_differences(found: Collection[str]) -> str:
    """How many differ and the first of them, for messages."""
    first = ', '.join(list(found)[:3])
    what = '1 tensor differs' if len(found) == 1 else f'{len(found)} tensors differ'
    return f'{what}: {first}{", ..." if len(found) > 3 else ""}'


def fingerprint(
    model: nn.Module,
    names: Iterable[str] | None = None,
    *,
    digests: Mapping[str, str] | None = None,
) -> str:
    """One text for base weights, equal for equal names, types, shapes and values.

    Args:
        model: The model; adapters do not count.
        names: State-dict keys to cover. Default: the parameters that compete
            (`find_targets`), so that a head or a resized position embedding
            makes no difference.
        digests: The table of the model's weights, where it is known already.
    """
    if names is None:
        names = _competing(model)
    if digests is None:
        state = model.state_dict()
        digests = digests_of({name: state[name] for name in names})
    return fingerprint_of_digests({name: digests[name] for name in names})


def fingerprint_of_digests(digests: Mapping[str, str]) -> str:
    """One text for a table."""
    lines = ''.join(f'{name} {digests[name]}\n' for name in sorted(digests))
    return SCHEME + hashlib.sha256(lines.encode()).hexdigest()


def same_scheme(given: str, model: nn.Module, digests: Mapping[str, str] | None = None) -> str:
    """The fingerprint of what competes in a model, made in the way in which `given` was."""
    if given.startswith(SCHEME):
        return fingerprint(model, digests=digests)
    state = model.state_dict()
    return fingerprint_of({name: state[name] for name in _competing(model)})


def remember_base(model: nn.Module, beside: Iterable[str]) -> None:
    """Notes on a model what `save_adapter` has to tell apart later.

    Args:
        model: The model, its buffers still those of the base.
        beside: Paths of its own submodules or tensors that its plan does not cover (a head).
    """
    paths = tuple(beside)
    names = [
        name
        for name in base_state(model)
        if any(not path or f'{name}.'.startswith(f'{path}.') for path in paths)
    ]
    model.__dict__['_cdra_base'] = (digests_of(base_buffers(model)), frozenset(names))


def forget_base(model: nn.Module) -> None:
    """Takes the notes off a model that is plain again."""
    model.__dict__.pop('_cdra_base', None)


def changed_buffers(model: nn.Module) -> set[str]:
    """Names of the buffers that are no longer the base's; all where the base is not known."""
    noted, _ = model.__dict__.get('_cdra_base', ({}, ()))
    now = digests_of(base_buffers(model))
    return {name for name, digest in now.items() if noted.get(name) != digest}


def names_beside(model: nn.Module) -> set[str]:
    """Names of a model's own tensors that its plan does not cover."""
    _, beside = model.__dict__.get('_cdra_base', ({}, ()))
    return set(beside)


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors, in the order of their names, as hexadecimal text."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        _update(digest, tensor)
    return digest.hexdigest()


def _competing(model: nn.Module) -> set[str]:
    return {target.path for target in find_targets(model).values()}


def _form(tensor: Tensor) -> str:
    """Type and shape, such as ``float32 768x768``."""
    shape = 'x'.join(map(str, tensor.shape)) or 'scalar'
    return f'{str(tensor.dtype).removeprefix("torch.")} {shape}'


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    _update(digest, tensor)
    return digest.digest()[:BYTES].hex()


def _update(digest: hashlib._Hash, tensor: Tensor) -> None:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    if data.numel():
        digest.update((ctypes.c_char * data.numel()).from_address(data.data_ptr()))
