"""A plan as one small tensor, which is how checkpoints and adapter files keep it.

Its text is the plan's JSON, in which each list of indices is the form of `packed_indices`; their
bits follow in the order of the text, each list from a byte of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from cdra_mm.errors import PlanError

from ..packed import pack_text, unpack_text
from .packed_indices import MOST_IN_RUNS, num_bytes, pack, unpack
from .plan import Plan

__all__ = ['pack_plan', 'unpack_plan']

MARK = b'CDP1'


def pack_plan(plan: Plan) -> Tensor:
    """The plan as uint8 ``[n]``; `unpack_plan` gives an equal one back."""
    record, pieces, left = plan.to_record(), [], MOST_IN_RUNS
    for entry, key, size in _lists(record):
        form, bits = pack(entry[key], size, left)
        left -= form[2] if form[0] == 'run' else 0
        entry[key] = form
        pieces.append(bits)
    return pack_text(MARK, record, b''.join(pieces))


def unpack_plan(tensor: Tensor) -> Plan:
    """Reads `pack_plan`.

    Raises:
        PlanError: If it is damaged or of another version.
    """
    try:
        record, data = unpack_text(MARK, tensor)
        at = in_runs = 0
        for entry, key, size in _lists(record):
            form, length = entry[key], num_bytes(entry[key], size)
            in_runs += form[2] if form[0] == 'run' else 0
            if at + length > len(data) or in_runs > MOST_IN_RUNS:
                raise ValueError(f'{key} of {str(entry["name"])[:80]} claims more than is there')
            entry[key] = unpack(form, data[at : at + length], size)
            at += length
        if at != len(data):
            raise ValueError('it holds more than its text says')
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(f'the packed plan is damaged ({error}): use another file') from None
    return Plan.from_record(record)


def _lists(record: Any) -> Iterator[tuple[dict[str, Any], str, int]]:
    """Every list of indices of a record: in which entry, under which key, below what."""
    for entry in (*record['blocks'], *record['dropped']):
        height, width = entry['shape']
        yield entry, 'rows', _size(height)
        yield entry, 'cols', _size(width)
    for entry in record['vectors']:
        if entry['indices'] is not None:
            yield entry, 'indices', _size(entry['length'])
    for entry in record['sparse']:
        height, width = entry['shape']
        yield entry, 'indices', _size(height) * _size(width)


def _size(value: Any) -> int:
    if type(value) is not int or not 1 <= value < 1 << 63:
        raise ValueError(f'a shape of {str(value)[:30]}')
    return value
