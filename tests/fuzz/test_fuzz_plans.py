"""Damaged plans: refused, or valid and applied to the letter."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import Plan, adapters, apply_plan
from tests.models import images

from .effort import FUZZ, assert_both, judged
from .mutations import SCALARS, damaged_json
from .plans import is_valid, model, plans


def same(a: Any, b: Any) -> bool:
    """Equal, types included: 1, 1.0 and True are three values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), 'a name stands twice'
    return dict(pairs)


def test_damaged_plan_is_refused_or_says_what_was_read():
    originals = [json.loads(plan.to_json()) for plan in plans()]

    @FUZZ
    @given(damaged_json(originals))
    def check(text: str) -> None:
        plan = judged('plan JSON, read', lambda: Plan.from_json(text))
        if plan is None:
            return
        record = json.loads(text, object_pairs_hook=no_duplicates)
        assert same(json.loads(plan.to_json()), record)
        assert is_valid(record)
        assert Plan.from_json(plan.to_json()) == plan
        assert_applied_or_untouched('plan JSON, applied', plan)

    check()
    assert_both('plan JSON, read')
    assert_both('plan JSON, applied')


def test_damaged_sizes_of_a_part_are_refused_or_kept():
    """A part is built with whatever its plan says: sizes of any kind, in any number."""
    originals = [plan for plan in plans() if plan.parts and not plan.fingerprint]
    assert len(originals) >= 4

    @FUZZ
    @given(st.sampled_from(originals), st.data())
    def check(original: Plan, data: st.DataObject) -> None:
        record = json.loads(original.to_json())
        part = data.draw(st.sampled_from(record['parts']))
        record['parts'] = [part]
        part['num_params'] = data.draw(st.sampled_from([part['num_params'], 1, 10**6, 1 << 62]))
        keys = st.sampled_from([*part['sizes'], 'other', 'rank', 'dropout'])
        sizes = SCALARS | st.integers(-3, 20) | st.sampled_from(['0 8', '0 8 16', '-8', '8 0'])
        part['sizes'] |= data.draw(st.dictionaries(keys, sizes, max_size=2))
        plan = judged('part of a plan, read', lambda: Plan.from_json(json.dumps(record)))
        if plan is not None:
            assert_applied_or_untouched('part of a plan, applied', plan)

    check()
    assert_both('part of a plan, read')
    assert_both('part of a plan, applied')


def assert_applied_or_untouched(kind: str, plan: Plan) -> None:
    """On a copy of the model it trains what it says, or nothing has changed."""
    adapted = copy.deepcopy(model())
    names = list(adapted.state_dict())
    if judged(kind, lambda: apply_plan(adapted, plan)) is None:
        assert not adapters(adapted)
        assert list(adapted.state_dict()) == names
        assert all(p.requires_grad for p in adapted.parameters())
        return
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == plan.num_trainable
    assert torch.isfinite(adapted(images(2)[0])).all()
