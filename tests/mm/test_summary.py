"""The summary is JSON whatever was measured, and nothing is lost for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cdra_mm.mm.summary import SUMMARY, plain_values, update_summary


@pytest.fixture
def warned(monkeypatch):
    """The warnings of the unit."""
    lines: list[str] = []
    monkeypatch.setattr(
        'cdra_mm.mm.summary.MMLogger.get_current_instance',
        lambda: type('Logger', (), {'warning': staticmethod(lines.append)}),
    )
    return lines


def strict(folder: Path):
    def refuse(text):
        raise AssertionError(f'{text} is no JSON')

    return json.loads((folder / SUMMARY).read_text(), parse_constant=refuse)


def test_values_of_any_type_become_json():
    given = {
        'a': float('nan'), 'b': np.float32('inf'), 'c': torch.tensor([1.0, float('-inf')]),
        'd': np.int64(3), 'e': Path('x'), 5: (1, None, True), 'f': np.zeros((2, 1)), 'g': {2},
    }  # fmt: skip
    plain = {
        'a': None, 'b': None, 'c': [1.0, None], 'd': 3, 'e': 'x', '5': [1, None, True],
        'f': [[0.0], [0.0]], 'g': [2],
    }  # fmt: skip
    assert plain_values(given) == plain


def test_entries_are_kept_and_numbers_that_are_not_finite_are_null(tmp_path, warned):
    update_summary(tmp_path, {'mIoU': float('nan'), 'method': 'cdra'})
    update_summary(tmp_path, {'test_metrics': {'aAcc': np.float64('inf')}})
    assert strict(tmp_path) == {'mIoU': None, 'method': 'cdra', 'test_metrics': {'aAcc': None}}
    # What a release before has written.
    (tmp_path / SUMMARY).write_text('{"old": NaN, "seconds": 3}')
    update_summary(tmp_path, {'new': 1})
    assert strict(tmp_path) == {'old': None, 'seconds': 3, 'new': 1}
    assert not warned


@pytest.mark.parametrize('damage', [b'{"method": "cd', b'[1, 2]', b'', b'\xff\xfe', b'[' * 100_000])
def test_a_damaged_summary_is_kept_aside(tmp_path, warned, damage):
    for number, aside in ((1, f'{SUMMARY}.damaged'), (2, f'{SUMMARY}.damaged.2')):
        (tmp_path / SUMMARY).write_bytes(damage)
        update_summary(tmp_path, {'number': number})
        assert strict(tmp_path) == {'number': number}
        assert (tmp_path / aside).read_bytes() == damage
        assert aside in warned[-1]
    assert len(warned) == 2


@pytest.mark.parametrize('what', ['a folder', 'a missing folder'])
def test_a_summary_that_cannot_be_written_is_a_warning(tmp_path, warned, what):
    folder = tmp_path
    if what == 'a folder':
        (tmp_path / SUMMARY).mkdir()
    else:
        (tmp_path / 'file').write_text('')
        folder = tmp_path / 'file' / 'run'
    update_summary(folder, {'a': 1})
    assert len(warned) == 1 and 'is not kept' in warned[0]
