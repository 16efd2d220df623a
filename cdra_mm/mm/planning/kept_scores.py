"""``cdra_scores.safetensors``: what the sensitivity pass of a run has found, kept for pictures.

For every competing target the file holds

    mask/<target>       the selected entries, a bit an entry       uint8 ``[ceil(n / 8)]``
    row_sums/<target>   sums of the scores, matrices only          fp32 ``[O]``
    col_sums/<target>                                              fp32 ``[I]``
    scores/<target>     the scores themselves, for ``'all'`` only  bfloat16, in the target's shape

and ``totals``, the sum of each target's scores, fp64, in the order of the targets. bfloat16 has
the range of fp32 and three digits: enough for a picture, while the masks stay exact. It is written
tensor by tensor, and read target by target: no copy of all scores is ever made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

from cdra_mm.core import Plan
from cdra_mm.core.planning.plan import Block, Vector
from cdra_mm.core.planning.selection import kth_largest, masks_above
from cdra_mm.core.planning.threads import one_thread
from cdra_mm.errors import CheckpointError, PlanError
from cdra_mm.reading.safetensors_file import open_safetensors
from cdra_mm.storage import write_atomically
from cdra_mm.storage.strict_json import strict_json

__all__ = [
    'KEEP',
    'SCORES_FILE',
    'Kept',
    'adapted_masks',
    'read_kept',
    'selected_masks',
    'write_kept',
]

SCORES_FILE = 'cdra_scores.safetensors'
KEEP = ('masks', 'all')
FORMAT = 'cdra_mm.scores.1'
BYTES = {'F64': 8, 'F32': 4, 'BF16': 2, 'U8': 1}

Value = TypeVar('Value')


class Stored(Mapping[str, Value]):
    """Entries of a file that are read when they are asked for, and not held."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Value]) -> None:
        self.names, self.read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Value:
        if name not in self.names:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Kept:
    """What a run has kept of its scores, by target name.

    Attributes:
        masks: Selected entries, bool, in the target's shape.
        row_sums: Sums of the scores over the columns, fp32 ``[O]``; matrices only.
        col_sums: Sums over the rows, fp32 ``[I]``; matrices only.
        totals: Sum of the scores of each target.
        scores: The scores, bfloat16; empty unless all were kept.
        shapes: Shape of each target.
        meta: How they came about; plain types.
    """

    masks: Mapping[str, Tensor]
    row_sums: Mapping[str, Tensor]
    col_sums: Mapping[str, Tensor]
    totals: Mapping[str, float]
    scores: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    meta: Mapping[str, Any]


def selected_masks(plan: Plan, scores: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The entries that a plan has selected, target by target.

    A plan of single entries lists them; every other plan is one global top-k over the
    scores, which is deterministic (`kth_largest`).

    Yields:
        Name and bool mask of each target; a mask lasts until the next is asked for.

    Raises:
        PlanError: If the plan has selected other entries than the largest ones.
    """
    listed = {matrix.name: matrix.indices for matrix in plan.sparse}
    if sum(len(indices) for indices in listed.values()) == plan.num_sensitive:
        for name, score in scores.items():
            mask = torch.zeros(score.shape, dtype=torch.bool)
            mask.view(-1)[torch.tensor(listed.get(name, ()), dtype=torch.int64)] = True
            yield name, mask
        return
    blocks: dict[str, Block | Vector] = {b.name: b for b in (*plan.blocks, *plan.dropped)}
    records = blocks | {vector.name: vector for vector in plan.vectors}
    for name, mask in masks_above(scores, kth_largest(scores, plan.num_sensitive)):
        record = records.get(name)
        if record is not None:
            inside = mask
            if isinstance(record, Block):
                inside = mask[list(record.rows)][:, list(record.cols)]
            if int(torch.count_nonzero(inside)) != record.num_sensitive:
                raise PlanError(
                    f'{name}: the plan of {plan.method} has not selected the entries with the '
                    'largest scores, so they cannot be told from its scores'
                )
        yield name, mask


def adapted_masks(plan: Plan, scores: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The entries that a plan of blocks and vectors can change, target by target."""
    blocks = {block.name: block for block in plan.blocks}
    whole = {vector.name for vector in plan.vectors if vector.indices is None}
    for name, score in scores.items():
        mask = torch.full(score.shape, name in whole, dtype=torch.bool)
        if name in blocks:
            rows, cols = (torch.tensor(index) for index in (blocks[name].rows, blocks[name].cols))
            mask[rows[:, None], cols[None, :]] = True
        yield name, mask


def write_kept(
    path: str | Path,
    scores: Mapping[str, Tensor],
    masks: Iterable[tuple[str, Tensor]],
    *,
    what: str = 'masks',
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Writes scores compactly; see the module.

    Args:
        path: The file; written under a temporary name, then renamed.
        scores: Non-negative scores by target name, matrices and vectors.
        masks: Name and bool mask of each target, in the order of `scores`; taken one by one.
        what: ``'masks'``, or ``'all'`` for the scores themselves too.
        meta: How they came about; plain types.

    Raises:
        CheckpointError: If the folder or disk does not take the file.
    """
    matrices = {name: score for name, score in scores.items() if score.dim() == 2}
    # By falling size of an entry: a reader wants every tensor at a multiple of it.
    layout: list[tuple[str, str, tuple[int, ...]]] = [('totals', 'F64', (len(scores),))]
    for name, score in matrices.items():
        layout += [(f'row_sums/{name}', 'F32', (score.shape[0],))]
        layout += [(f'col_sums/{name}', 'F32', (score.shape[1],))]
    if what == 'all':
        layout += [(f'scores/{name}', 'BF16', tuple(score.shape)) for name, score in scores.items()]
    layout += [(f'mask/{name}', 'U8', (-(-score.numel() // 8),)) for name, score in scores.items()]
    metadata = {
        'format': FORMAT,
        'shapes': json.dumps({name: list(score.shape) for name, score in scores.items()}),
        'meta': json.dumps({**(meta or {}), 'what': what}),
    }

    def data() -> Iterator[np.ndarray]:
        yield np.array([float(score.sum(dtype=torch.float64)) for score in scores.values()])
        for score in matrices.values():
            for dim in (1, 0):
                yield score.sum(dim, dtype=torch.float64).float().cpu().numpy()
        if what == 'all':
            for score in scores.values():
                yield score.bfloat16().cpu().contiguous().view(torch.int16).numpy()
        for name, (given, mask) in zip(scores, masks, strict=True):
            if given != name or mask.shape != scores[name].shape:
                raise ValueError(f'a mask of {given}, expected that of {name}')
            yield np.packbits(mask.reshape(-1).cpu().numpy(), bitorder='little')

    def write(temporary: str) -> None:
        with open(temporary, 'wb') as file, one_thread():
            _write_safetensors(file, layout, data(), metadata)

    write_atomically(path, write)


def read_kept(path: str | Path) -> Kept:
    """Reads what `write_kept` wrote; tensors are read when they are asked for.

    Raises:
        CheckpointError: If the file is missing, truncated or foreign.
    """
    try:
        file = open_safetensors(path, 'file of kept scores')
        metadata, names = file.metadata, file.shapes
        if metadata.get('format') != FORMAT:
            raise CheckpointError(f'{path} holds no kept scores: expected what write_kept wrote')
        shapes = _shapes(strict_json(metadata['shapes']))
        meta = strict_json(metadata['meta'])
        _check_layout(file.shapes, shapes)
        totals = file.tensor('totals').tolist()
    except CheckpointError:
        raise
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f'{path} is truncated or damaged ({error}): run again with keep_scores to make it anew'
        ) from None

    def mask(name: str) -> Tensor:
        shape = shapes[name]
        bits = file.tensor(f'mask/{name}').numpy()
        flat = np.unpackbits(bits, count=math.prod(shape), bitorder='little')
        return torch.from_numpy(flat).view(torch.bool).view(shape)

    def stored(kind: str) -> Mapping[str, Tensor]:
        held = [name for name in shapes if f'{kind}/{name}' in names]
        return Stored(held, lambda name: file.tensor(f'{kind}/{name}'))

    return Kept(
        masks=Stored(shapes, mask),
        row_sums=stored('row_sums'),
        col_sums=stored('col_sums'),
        totals=dict(zip(shapes, totals, strict=True)),
        scores=stored('scores'),
        shapes=shapes,
        meta=meta,
    )


def _shapes(found: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the targets: matrices and vectors."""
    for name, shape in found.items():
        if not isinstance(shape, list) or len(shape) not in (1, 2):
            raise ValueError(f'{name!r} is neither a matrix nor a vector')
        if not all(type(size) is int and 0 < size < 1 << 40 for size in shape):
            raise ValueError(f'the shape of {name!r} is none')
    return {name: tuple(shape) for name, shape in found.items()}


def _check_layout(
    held: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Every tensor has the shape that its target asks for."""
    expected: dict[str, tuple[int, ...]] = {'totals': (len(shapes),)}
    for name, shape in shapes.items():
        expected[f'mask/{name}'] = (-(-math.prod(shape) // 8),)
        if f'scores/{name}' in held:
            expected[f'scores/{name}'] = shape
        if len(shape) == 2:
            expected |= {f'row_sums/{name}': shape[:1], f'col_sums/{name}': shape[1:]}
    for name in sorted(expected.keys() | held.keys()):
        if held.get(name) != expected.get(name):
            raise ValueError(f'{name!r} is {held.get(name)}, expected {expected.get(name)}')


def _write_safetensors(
    file: BinaryIO,
    layout: Iterable[tuple[str, str, tuple[int, ...]]],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file as its arrays come; the package's writer wants all at once.

    A file is the length of the header (8 bytes, little endian), the header (JSON: type, shape and
    place of each tensor; padded by spaces to a multiple of 8) and the tensors without gaps.
    """
    header: dict[str, Any] = {'__metadata__': dict(metadata)}
    sizes, end = [], 0
    for name, kind, shape in layout:
        sizes.append(math.prod(shape) * BYTES[kind])
        begin, end = end, end + sizes[-1]
        header[name] = {'dtype': kind, 'shape': list(shape), 'data_offsets': [begin, end]}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    file.write(len(text).to_bytes(8, 'little') + text)
    for size, array in zip(sizes, arrays, strict=True):
        if array.nbytes != size:
            raise ValueError(f'{array.nbytes} bytes of a tensor, expected {size}')
        file.write(np.ascontiguousarray(array).data)
