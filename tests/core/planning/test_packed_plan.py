"""A plan as a small tensor: the same plan comes back, in few bytes, and no claim is believed."""

from __future__ import annotations

import json
import math
import random
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import Block, Plan, PlanError, SparseMatrix
from cdra_mm.core.packed import HEAD, pack_text, unpack_text
from cdra_mm.core.planning.packed_indices import MOST_IN_RUNS, num_bytes, pack, unpack
from cdra_mm.core.planning.packed_plan import MARK, pack_plan, unpack_plan
from cdra_mm.core.planning.records import Positions
from tests.golden import PLAN


@st.composite
def indices(draw):
    """Different indices below a size: in any order, rising, or a run."""
    size = draw(st.sampled_from([1, 2, 3, 8, 100, 768, 3072, 1 << 21, 1 << 40]))
    found = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=60, unique=True))
    order = draw(st.sampled_from(['any', 'rising', 'run']))
    if order == 'run':
        return list(range(min(found), min(size, min(found) + len(found)))), size
    return sorted(found) if order == 'rising' else found, size


@given(indices())
def test_indices_come_back(case):
    given_indices, size = case
    form, data = pack(given_indices, size)
    assert num_bytes(form, size) == len(data)
    assert unpack(form, data, size) == given_indices
    assert pack(given_indices, size) == (form, data)


def test_indices_take_few_bits():
    """Rising entries near their entropy, others the bits of the size, all of a matrix none."""
    drawn = sorted(random.Random(0).sample(range(768 * 768), 3000))
    share = 3000 / 768**2
    entropy = -math.log2(share) - (1 - share) / share * math.log2(1 - share)
    assert 8 * len(pack(drawn, 768 * 768)[1]) / 3000 < 1.04 * entropy
    mixed = random.Random(0).sample(range(768), 400)
    assert len(pack(mixed, 768)[1]) == 400 * 10 // 8
    assert pack(range(3072), 3072) == (['run', 0, 3072], b'')


def test_plan_comes_back_from_a_tensor():
    plan = Plan.from_json(PLAN.read_text())
    packed = pack_plan(plan)
    assert packed.dtype == torch.uint8 and packed.dim() == 1
    assert unpack_plan(packed) == plan and torch.equal(pack_plan(plan), packed)
    assert len(packed) < len(PLAN.read_text()) / 3


def test_positions_come_back_and_cost_little_beside_a_plan_without():
    """Of a ViT-B's size; a plan without them is written as it was before there were any."""
    layers = tuple(f'layers.{i}' for i in range(12))
    roles = {f'{at}.attn.qkv.weight:{part}': part for at in layers for part in 'qkv'}
    roles |= {f'{at}.{path}': 'bias' for at in layers for path in ('attn.proj.bias', 'ln1.bias')}
    plan = Plan(positions=Positions(layers, roles))
    assert unpack_plan(pack_plan(plan)) == plan == Plan.from_json(plan.to_json())
    assert len(pack_plan(plan)) - len(pack_plan(Plan())) < 1000
    assert 'positions' not in Plan().to_record()


def test_plan_without_anything_comes_back():
    assert unpack_plan(pack_plan(Plan())) == Plan()


def changed(change):
    """A packed plan of one block and one sparse matrix with a change of its text."""
    plan = Plan(
        blocks=(Block('a', (8, 8), tuple(range(8)), (5, 2, 7), 1, 4),),
        sparse=(SparseMatrix('b', (8, 8), (3, 9, 40)),),
    )
    record, data = unpack_text(MARK, pack_plan(plan))
    return pack_text(MARK, *change(record, data))


def with_rows(form, shape=(8, 8)):
    def change(record, data):
        record['blocks'][0] |= {'rows': form, 'shape': list(shape)}
        return record, data

    return change


FALSE = {
    'more rows than there are': with_rows(['run', 0, 9]),
    'a run without end': with_rows(['run', 0, MOST_IN_RUNS + 1], (1 << 40, 8)),
    'more bits than there are': with_rows(['bits', 1 << 40]),
    'gaps without their bits': with_rows(['gaps', 0, 8, 8]),
    'more codes than bits': with_rows(['gaps', 3, 100, 8]),
    'a negative count': with_rows(['run', 0, -1]),
    'no whole number': with_rows(['run', 0, 1.5]),
    'another form': with_rows(['list', 3]),
    'a list of indices': with_rows([0, 1, 2]),
    'nothing': with_rows(None),
    'no shape': with_rows(['run', 0, 8], (8,)),
    'a bit too many': lambda record, data: (record, data + b'\0'),
    'a bit less': lambda record, data: (record, data[:-1]),
    'a key less': lambda record, data: ({k: v for k, v in record.items() if k != 'sparse'}, data),
    'a list of records': lambda record, data: ([record], data),
    'another version': lambda record, data: (record | {'version': 9}, data),
}


@pytest.mark.parametrize('change', FALSE.values(), ids=FALSE)
def test_what_a_packed_plan_claims_is_compared_with_what_is_there(change):
    with pytest.raises(PlanError):
        unpack_plan(changed(change))


@pytest.mark.parametrize('length', [0, 3, 12, 40, -1])
def test_packed_plan_that_is_cut_off_is_refused(length):
    with pytest.raises(PlanError, match='packed plan is damaged'):
        unpack_plan(pack_plan(Plan.from_json(PLAN.read_text()))[:length])


def test_packed_plan_that_would_grow_without_end_is_refused():
    text = json.dumps(' ' * (1 << 26)).encode()
    content = HEAD.pack(MARK, len(text), 0) + zlib.compress(text, 9)
    assert len(content) < 1 << 17
    bomb = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    with pytest.raises(PlanError, match=r'claims 67,108,866 bytes in'):
        unpack_plan(bomb)
    for tensor in (torch.zeros(20), torch.zeros(20, 2, dtype=torch.uint8), None):
        with pytest.raises(PlanError, match='no uint8'):
            unpack_plan(tensor)


def test_regular_masks_of_real_size_come_back():
    nearly_dense = tuple(k for k in range(768 * 300) if k % 5000)
    column = tuple(range(5, 20_000 * 10, 10))
    everything = tuple(range(768 * 300))
    sizes = [((768, 300), nearly_dense)] * 4 + [((20_000, 10), column)] * 4
    sizes += [((768, 300), everything)] * 40  # more than may be claimed by runs
    entries = (SparseMatrix(f's{i}', *entry) for i, entry in enumerate(sizes))
    plan = Plan(sparse=tuple(entries))
    assert sum(len(entry.indices) for entry in plan.sparse[8:]) > MOST_IN_RUNS
    assert unpack_plan(pack_plan(plan)) == plan


def test_bits_cost_a_file_what_they_claim():
    """Zeros that are many indices: a compressed stream of them would be tiny."""
    indices = tuple(range(0, 80_000 * 8, 2))
    packed = pack_plan(Plan(sparse=(SparseMatrix('s', (80_000, 8), indices),)))
    assert len(packed) > len(indices) // 8
