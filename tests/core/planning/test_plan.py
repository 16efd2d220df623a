"""The plan record: what it counts, JSON there and back, and what it refuses to read."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import Part, Plan, PlanError, SparseMatrix, plan_from_masks
from tests.core.planning.test_compaction import masks


def example():
    """A plan with everything in it."""
    generator = torch.Generator().manual_seed(1)
    chosen = {
        'a.weight:q': torch.rand(6, 5, generator=generator) < 0.8,
        'b.weight': torch.rand(4, 9, generator=generator) < 0.1,
        'a.bias': torch.tensor([True, False, True]),
        'c.bias': torch.tensor([True] + [False] * 9),
    }
    plan = plan_from_masks(
        chosen,
        also_train={'cls_token': 7},
        settings={'gamma': 0.5, 'note': 'é', 'list': [1, None]},
        fingerprint='abc',
    )
    return dataclasses.replace(
        plan,
        blocks=tuple(dataclasses.replace(b, scale=0.25, dropout=0.1) for b in plan.blocks),
        sparse=(SparseMatrix('d.weight', (3, 4), (1, 7, 11)),),
        parts=(Part('e.prompts', 'prompts', {'number': 5, 'text': 'x'}, 20),),
    )


def test_record_is_plain_and_apart_from_the_plan():
    plan = example()
    record = plan.to_record()
    assert not any(map(dataclasses.is_dataclass, [*record.values(), *record['blocks']]))
    record['blocks'][0]['rows'] = record['parts'][0]['sizes']['number'] = None
    record['settings']['gamma'] = record['also_train']['cls_token'] = None
    assert plan == example()


def test_plan_example_holds_every_kind_of_record():
    """Or the tests below would test less than they say."""
    plan = example()
    assert [b.name for b in plan.blocks] == ['a.weight:q']
    assert [b.name for b in plan.dropped] == ['b.weight']
    assert [(v.name, v.indices) for v in plan.vectors] == [('a.bias', None), ('c.bias', (0,))]


def test_plan_counts_what_it_trains():
    plan = example()
    block = plan.blocks[0]
    assert block.num_params == block.rank * (len(block.rows) + len(block.cols))
    assert block.density == block.num_sensitive / (len(block.rows) * len(block.cols))
    assert [v.num_params for v in plan.vectors] == [3, 1]
    assert [m.num_params for m in plan.sparse] == [3]
    assert plan.num_trainable == block.num_params + 3 + 1 + 3 + 20 + 7


def test_plan_is_frozen():
    plan = example()
    for record in (plan, plan.blocks[0], plan.vectors[0], plan.sparse[0], plan.parts[0]):
        field = dataclasses.fields(record)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, field, None)


def test_plan_json_round_trip():
    plan = example()
    text = plan.to_json()
    again = Plan.from_json(text)
    assert again == plan
    assert again.to_json() == text
    assert again.num_trainable == plan.num_trainable
    assert isinstance(again.blocks[0].rows, tuple) and isinstance(again.blocks[0].rows[0], int)


@given(
    chosen=st.lists(masks(), min_size=1, max_size=3),
    min_rank=st.integers(0, 1),
    rule=st.sampled_from(['eq7', 'count', 2]),
    fingerprint=st.text(max_size=5),
)
def test_plan_json_round_trip_of_random_plans(chosen, min_rank, rule, fingerprint):
    named = {f'm{i}.weight': mask for i, mask in enumerate(chosen)}
    named['v.bias'] = chosen[0].flatten()
    plan = plan_from_masks(named, rank_rule=rule, min_rank=min_rank, fingerprint=fingerprint)
    assert Plan.from_json(plan.to_json()) == plan


def test_plan_json_is_plain_json():
    json.loads(example().to_json(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    'text', ['', '{', 'null', '[]', '3', '"plan"', '{}', '[' * 100_000, '\x00', '{"version": 1}']
)
def test_plan_refuses_what_is_no_plan(text):
    with pytest.raises(PlanError):
        Plan.from_json(text)


@pytest.mark.parametrize('value', [None, b'\xff\xfe', 3])
def test_plan_refuses_what_is_no_text(value):
    with pytest.raises(PlanError):
        Plan.from_json(value)


@given(st.integers(0, 10_000))
def test_plan_refuses_a_truncated_text(length):
    text = example().to_json()
    with pytest.raises(PlanError):
        Plan.from_json(text[: length % len(text)])


def test_plan_refuses_another_version():
    record = json.loads(example().to_json())
    for version in (record['version'] + 1, 0, '1', None):
        with pytest.raises(PlanError, match=f'(?s)version.*{version}'):
            Plan.from_json(json.dumps({**record, 'version': version}))


def places(record, path=()):
    """Paths of every key of the JSON record, except inside free-form settings."""
    items = record.items() if isinstance(record, dict) else enumerate(record)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list) and key != 'settings':
            yield from places(value, (*path, key))


def holder(record, path):
    for key in path[:-1]:
        record = record[key]
    return record


RECORD = json.loads(example().to_json())
KEYS = [
    path
    for path in places(RECORD)
    if isinstance(path[-1], str) and path[0] != 'also_train' and 'sizes' not in path[:-1]
]
JUNK = {
    'text': 'junk',
    'null': None,
    'negative': -1,
    'fraction': 0.5,
    'huge': 10**9,
    'list': [[]],
    'true': True,
    'object': {'a': 1},
}


@pytest.mark.parametrize('path', KEYS, ids=lambda p: '.'.join(map(str, p)))
def test_plan_refuses_a_missing_key(path):
    record = copy.deepcopy(RECORD)
    del holder(record, path)[path[-1]]
    with pytest.raises(PlanError):
        Plan.from_json(json.dumps(record))


@pytest.mark.parametrize('junk', JUNK)
def test_plan_refuses_a_value_of_another_kind(junk):
    """Each value of the record in turn becomes junk: refused, or a sound plan of that value."""
    refused = 0
    free = ('number',)  # what a part is built with is its kind's to judge
    for path in places(RECORD):
        if path == ('version',):
            continue
        record = copy.deepcopy(RECORD)
        holder(record, path)[path[-1]] = JUNK[junk]
        try:
            plan = Plan.from_json(json.dumps(record))
        except PlanError:
            refused += 1
            continue
        kept = holder(json.loads(plan.to_json()), path)[path[-1]]
        assert type(kept) is type(JUNK[junk]) and kept == JUNK[junk], path
        harmless = {
            'text': ('method', 'fingerprint', 'name', 'kind', *free),
            'null': ('indices',),
            'negative': free,
            'fraction': ('scale', 'dropout', *free),
            'huge': ('num_competing', 'length', 'cls_token', 'scale', 'num_params', 0, 1, *free),
            'true': free,
            'object': ('settings', 'also_train', 'sizes'),
        }
        assert path[-1] in harmless.get(junk, ()) or path[-1] == 'text', path
    assert refused > 30


BLOCK = {
    'name': 'x',
    'shape': [4, 5],
    'rows': [0, 2],
    'cols': [1, 3, 4],
    'rank': 2,
    'num_sensitive': 4,
    'scale': 1.0,
    'dropout': 0.0,
}
BAD_BLOCKS = {
    'row outside': {'rows': [0, 4]},
    'column outside': {'cols': [5]},
    'row twice': {'rows': [2, 2]},
    'no rows': {'rows': []},
    'rank above the smaller side': {'rank': 3},
    'rank 0 among the adapted': {'rank': 0},
    'more selected than the weight holds': {'num_sensitive': 21},
    'three sides': {'shape': [4, 5, 6]},
    'no side': {'shape': []},
    'a key too many': {'alpha': 1},
    'no scale': {'scale': 0},
    'all dropped': {'dropout': 1.0},
}


@pytest.mark.parametrize('change', BAD_BLOCKS.values(), ids=BAD_BLOCKS)
def test_plan_refuses_a_block_that_contradicts_itself(change):
    Plan.from_json(json.dumps({**RECORD, 'blocks': [BLOCK]}))
    with pytest.raises(PlanError):
        Plan.from_json(json.dumps({**RECORD, 'blocks': [{**BLOCK, **change}]}))


VECTOR = {'name': 'y', 'length': 4, 'indices': [1, 3], 'num_sensitive': 2}
BAD_VECTORS = {
    'index outside': {'indices': [4]},
    'index negative': {'indices': [-1]},
    'index twice': {'indices': [1, 1]},
    'no index': {'indices': []},
    'no length': {'length': 0},
    'more selected than it holds': {'num_sensitive': 5},
}


@pytest.mark.parametrize('change', BAD_VECTORS.values(), ids=BAD_VECTORS)
def test_plan_refuses_a_vector_that_contradicts_itself(change):
    Plan.from_json(json.dumps({**RECORD, 'vectors': [VECTOR]}))
    with pytest.raises(PlanError):
        Plan.from_json(json.dumps({**RECORD, 'vectors': [{**VECTOR, **change}]}))


SPARSE = {'name': 'z', 'shape': [2, 3], 'indices': [5, 0]}
BAD_SPARSE = {
    'index outside': {'indices': [6]},
    'index twice': {'indices': [1, 1]},
    'no index': {'indices': []},
    'no list': {'indices': None},
    'one side': {'shape': [6]},
}


@pytest.mark.parametrize('change', BAD_SPARSE.values(), ids=BAD_SPARSE)
def test_plan_refuses_a_sparse_matrix_that_contradicts_itself(change):
    Plan.from_json(json.dumps({**RECORD, 'sparse': [SPARSE]}))
    with pytest.raises(PlanError):
        Plan.from_json(json.dumps({**RECORD, 'sparse': [{**SPARSE, **change}]}))


def test_plan_refuses_a_name_twice():
    with pytest.raises(PlanError, match='x'):
        Plan.from_json(json.dumps({**RECORD, 'blocks': [BLOCK, BLOCK]}))


def test_plan_refuses_settings_that_are_not_plain():
    """At the latest when it is written, and before anything is."""
    with pytest.raises((PlanError, TypeError), match='(?i)tensor'):
        plan_from_masks(
            {'a.weight': torch.ones(2, 2, dtype=torch.bool)}, settings={'x': torch.ones(1)}
        ).to_json()
