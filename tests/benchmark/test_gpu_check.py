"""The measurements for a GPU run through on a CPU, as far as one has what they need."""

from __future__ import annotations

import json

import pytest

from cdra_mm.benchmark import gpu_check
from cdra_mm.benchmark.gpu_check import Part, main, parts, table

from .tiny import tiny_case


def test_parts_cover_every_goal():
    case = tiny_case(device='cuda')
    names = [part.name for part in parts(case)]
    assert len(set(names)) == len(names)
    for mode, _ in gpu_check.GOALS:
        assert any(f', {mode},' in name for name in names)
    assert sum(part.seconds for part in parts(case)) < 420


def test_results_are_written_and_shown_last(tmp_path, capsys, monkeypatch):
    case = tiny_case(dtype='bf16')
    monkeypatch.setattr(
        gpu_check, 'parts', lambda case: [Part('step', 0, gpu_check._steps(case, []))]
    )
    file = tmp_path / 'found.json'
    assert main(['--json', str(file), '--repeats', '2'], case=case) == 0
    found = json.loads(file.read_text())
    assert found['complete'] and found['results'][0]['part'] == 'step'
    shown = capsys.readouterr().out.rpartition('\n\n')[2].splitlines()
    assert shown[0].split() == ['kernel', 'tests', 'passed']
    assert any('ours paper' in line and '(goal 1.30: ' in line for line in shown)


def test_part_that_fails_does_not_end_the_others(tmp_path, capsys, monkeypatch):
    def broken():
        raise RuntimeError('no such kernel')

    monkeypatch.setattr(
        gpu_check,
        'parts',
        lambda case: [
            Part('one', 0, broken),
            Part('two', 0, lambda: {'candidates': {'a': {'seconds': 1.0}}, 'skipped': {}}),
            Part('three', 1e9, broken),
        ],
    )
    file = tmp_path / 'found.json'
    assert main(['--json', str(file), '--tests', '1'], case=tiny_case()) == 1
    out = capsys.readouterr().out
    assert 'FAILED' in out and 'RuntimeError: no such kernel' in out
    assert 'two: a' in out and '1000.00 ms' in out and 'left out' in out
    assert len(json.loads(file.read_text())['results']) == 2


@pytest.mark.parametrize(('ratio', 'word'), [(1.05, 'met'), (1.2, 'MISSED')])
def test_table_says_whether_a_goal_is_met(ratio, word):
    entry = {'seconds': 0.01, 'ratio_vs_frozen_limit': ratio, 'peak_bytes_above_rest': 2**30}
    record = {'mode': 'graph', 'candidates': {'ours paper': entry}, 'skipped': {'x': 'why'}}
    (line, skipped) = table('step', record)
    assert line == (
        'step: ours paper',
        f'10.00 ms, x {ratio:.3f}, (goal 1.10: {word}), peak 1,024 MiB',
    )
    assert skipped == ('step: x', 'skipped: why')


def test_no_gpu_is_said(capsys):
    with pytest.raises(SystemExit):
        main([], case=tiny_case(device='cuda'))
    assert 'PyTorch sees no GPU here' in capsys.readouterr().err
