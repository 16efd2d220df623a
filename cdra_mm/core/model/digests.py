"""Which base a plan or an adapter belongs to: a table of digests of its weights.

The table has a text for each of a model's own tensors by name: type, shape and 16 bytes of SHA-256,
such as ``float32 1x197x768 0f3a...``. It is made once a run; every check compares a part of it, and
names what differs. There are two short forms of it:

- `pack_digests`: the same table as a small tensor, in checkpoints and adapter files.
- `fingerprint`: a text in plans, of the weights that compete. It has 8 bytes for each of them in
  the order of their names: enough to tell which weight is another one, and where 16 are kept nobody
  can make a second tensor of the same digest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import Tensor, nn

from ..packed import pack_text, unpack_text
from .row_int8 import RowInt8
from .targets import find_targets
from .tensor_digest import BYTES, add_bytes, digest_of, form_of

__all__ = [
    'DIGESTS_KEY',
    'differences',
    'digests_of',
    'fingerprint',
    'fingerprint_differences',
    'fingerprint_of',
    'list_differences',
    'pack_digests',
    'unpack_digests',
]

# In a checkpoint or an adapter file, the table of the weights that it relies on.
DIGESTS_KEY = 'cdra_digests'
MARK = b'CDD1'
SCHEME = '3:'  # begins fingerprints; those of earlier releases begin otherwise
SHORT = 8  # bytes of each digest in a fingerprint; in a table there are `BYTES`


def digests_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The table of named tensors: type, shape and digest of each."""
    return {name: f'{form_of(value)} {_digest(value)}' for name, value in tensors.items()}


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
        if form_of(state[name]) != form:
            yield f'{name} ({form_of(state[name])} here, {form} there)'
        elif _digest(state[name]) != digest:
            yield name


def list_differences(found: Collection[str]) -> str:
    """How many differ and the first of them, for messages."""
    first = ', '.join(list(found)[:3])
    what = '1 tensor differs' if len(found) == 1 else f'{len(found)} tensors differ'
    return f'{what}: {first}{", ..." if len(found) > 3 else ""}'


def pack_digests(digests: Mapping[str, str]) -> Tensor:
    """A table as uint8 ``[n]``, in the order of the names; `unpack_digests` gives it back."""
    parts = {name: digests[name].rpartition(' ') for name in sorted(digests)}
    data = bytes.fromhex(''.join(digest for _, _, digest in parts.values()))
    return pack_text(MARK, {name: form for name, (form, _, _) in parts.items()}, data)


def unpack_digests(tensor: Tensor) -> dict[str, str]:
    """Reads `pack_digests`.

    Raises:
        ValueError: If it is damaged.
    """
    forms, data = unpack_text(MARK, tensor)
    if not isinstance(forms, dict) or not all(isinstance(form, str) for form in forms.values()):
        raise ValueError('it is no table of digests')
    if len(data) != BYTES * len(forms):
        raise ValueError(f'{len(data)} bytes of digests for {len(forms)} names')
    digests = (data[at : at + BYTES].hex() for at in range(0, len(data), BYTES))
    return {
        name: f'{form} {digest}'
        for (name, form), digest in zip(forms.items(), digests, strict=True)
    }


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
    table = _table(model, names, digests)
    short = (_short(name, table[name]) for name in sorted(table))
    return SCHEME + base64.urlsafe_b64encode(b''.join(short)).decode()


def fingerprint_differences(
    given: str,
    model: nn.Module,
    digests: Mapping[str, str] | None = None,
    names: Iterable[str] | None = None,
) -> list[str]:
    """What of the weights that compete in a model is other than a fingerprint says.

    Args:
        given: A `fingerprint` of them.
        model: The model; adapters do not count.
        digests: The table of its weights, where it is known already.
        names: What the fingerprint covers; default: what competes.

    Returns:
        Names, or one text where the fingerprint is of other names.
    """
    table = _table(model, names, digests)
    try:
        known = base64.b64decode(given.removeprefix(SCHEME), b'-_', validate=True)
    except (binascii.Error, ValueError):
        known = b''
    if not given.startswith(SCHEME) or len(known) != SHORT * len(table):
        number = f'of {len(known) // SHORT} weights, here {len(table)} compete'
        return [f'a fingerprint {number}' if known else f'the fingerprint {given[:12]!r}']
    return [
        name
        for at, name in enumerate(sorted(table))
        if known[SHORT * at : SHORT * (at + 1)] != _short(name, table[name])
    ]


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors, in the order of their names, as hexadecimal text."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        add_bytes(digest, tensor)
    return digest.hexdigest()


def _table(
    model: nn.Module, names: Iterable[str] | None, digests: Mapping[str, str] | None
) -> dict[str, str]:
    """The part of the table of a model; of what competes by default."""
    if names is None:
        names = {target.path for target in find_targets(model).values()}
    names = set(names)
    if digests is None:
        state = model.state_dict()
        return digests_of({name: state[name] for name in names})
    return {name: digests[name] for name in names}


def _short(name: str, text: str) -> bytes:
    return hashlib.sha256(f'{name} {text}'.encode()).digest()[:SHORT]


def _digest(tensor: Tensor) -> str:
    """That of a weight in int8 is that of the weight which it was made of."""
    return tensor.origin if isinstance(tensor, RowInt8) else digest_of(tensor)
