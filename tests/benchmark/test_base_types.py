"""Types of a frozen base are compared by the bytes that they take and the step they compute."""

from __future__ import annotations

import pytest

from cdra_mm.benchmark import base_types
from cdra_mm.benchmark.base_types import BASES, compare_bases
from cdra_mm.benchmark.report import render

from .tiny import tiny_case


@pytest.fixture
def record(monkeypatch):
    monkeypatch.setattr(base_types, 'in_child', lambda *_: 1000)
    return compare_bases(tiny_case(), blocks=['paper'])


def test_weights_take_the_bytes_of_their_type_and_totals_add_up(record):
    found = record['candidates']
    assert found.keys() == BASES.keys()
    size = {name: entry['weight_bytes'] for name, entry in found.items()}
    assert size['int8'] == size['int8, autocast'] < size['bf16, autocast'] < size['fp32']
    assert size['fp32'] == size['fp32, autocast']
    narrow, small = (size['fp32'] - size[name] for name in ('bf16, autocast', 'int8'))
    assert 1.2 < small / narrow < 1.5  # 3 bytes an entry but for the scales, over 2
    for entry in found.values():
        parts = ('weight_bytes', 'kept_bytes', 'optimizer_bytes', 'peak_bytes_above_rest')
        assert entry['total_bytes'] == sum(entry[part] for part in parts)
        assert entry['seconds'] > 0 and entry['ratio_vs_fp32'] > 0


def test_table_shows_time_weights_and_total(record):
    text = render([record])
    for word in ('x fp32 (quartiles)', 'weights, MiB', 'AdamW', 'total', 'int8, autocast'):
        assert word in text
