"""The measurements for a GPU run through on a CPU, as far as one has what they need."""

from __future__ import annotations

import json
import time

import pytest

from cdra_mm.benchmark import compared_models, gpu_check
from cdra_mm.benchmark.gpu_check import Part, main, parts, table
from cdra_mm.benchmark.gpu_goals import SCORED, STEPS

from .tiny import tiny_case

LONG = 1000.0
FOUND = {'candidates': {'a': {'seconds': 1.0}}, 'skipped': {}}


def use(monkeypatch, *given):
    monkeypatch.setattr(gpu_check, 'parts', lambda case: [Part(*part) for part in given])


def last_table(capsys):
    lines = capsys.readouterr().out.rpartition('\n\n')[2].splitlines()
    return dict(line.split('  ', 1) for line in lines)


def test_parts_cover_what_the_goals_need():
    names = [part.name for part in parts(tiny_case(device='cuda'))]
    assert len(set(names)) == len(names) == len(STEPS) + len(SCORED) + 1
    assert 'compile' in names[-1]  # what takes longest must cost no other part its time
    assert sum(part.seconds for part in parts(tiny_case(device='cuda'))) < 380


def test_every_step_has_lora_beside_it(monkeypatch):
    """Compiled ones, too."""
    asked = {}

    def compare(case, *, peers, **options):
        asked[case.mode, case.batch, case.image_size] = peers
        return FOUND

    monkeypatch.setattr(gpu_check, 'compare_steps', compare)
    for part in parts(tiny_case(device='cuda')):
        if part.name.startswith('step'):
            part.run(0.0)
    assert asked == dict.fromkeys(STEPS, ('peft',))


def test_results_are_written_and_shown_last(tmp_path, capsys, monkeypatch):
    case = tiny_case(dtype='bf16')
    use(monkeypatch, ('step', LONG, gpu_check._steps(case, ())))
    file = tmp_path / 'found.json'
    assert main(['--json', str(file), '--repeats', '2', '--seconds', '2000'], case=case) == 0
    found = json.loads(file.read_text())
    assert found['complete'] and found['results'][0]['part'] == 'step'
    shown = last_table(capsys)
    assert shown.pop('kernel tests').strip() == 'passed'
    assert ' x ' in shown['step: ours paper'] and 'of full' in shown['step: ours paper']
    # Goals are about other settings than these.
    judged = {name: text.strip() for name, text in shown.items() if name.startswith('goal: ')}
    assert judged == found['goals'] and set(judged.values()) == {'not measured'}


def test_part_that_fails_does_not_end_the_others(tmp_path, capsys, monkeypatch):
    def broken(until):
        raise RuntimeError('no such kernel')

    use(
        monkeypatch,
        ('one', LONG, broken),
        ('two', LONG, lambda until: FOUND),
        ('three', 1e9, broken),
    )
    file = tmp_path / 'found.json'
    options = ['--json', str(file), '--tests', '1', '--seconds', '9999']
    assert main(options, case=tiny_case()) == 1
    shown = last_table(capsys)
    assert shown['kernel tests'].strip() == 'FAILED' and '1000.00 ms' in shown['two: a']
    assert 'RuntimeError: no such kernel' in shown['one: everything']
    assert 'left out' in shown['three']
    assert len(json.loads(file.read_text())['results']) == 2


def test_candidate_that_fails_does_not_end_the_part(capsys, monkeypatch):
    """A CUDA graph that cannot be captured, say: each such one has its line, and is a failure."""

    def broken(model):
        raise ValueError('not while capturing\nat line 3')

    monkeypatch.setattr(compared_models, 'full', broken)
    case = tiny_case()
    use(monkeypatch, ('step', LONG, gpu_check._steps(case, ())))
    assert main(['--repeats', '2', '--seconds', '9999'], case=case) == 1
    shown = last_table(capsys)
    assert shown['step: full'].strip() == 'skipped: ValueError: not while capturing'
    assert all(f'step: {name}' in shown for name in ('frozen limit', 'ours paper', 'ours spt'))


def test_part_that_takes_too_long_is_cut_off(capsys, monkeypatch):
    def endless(until):
        while True:
            try:
                time.sleep(30)
            except Exception:  # what a library does when it tries another way
                continue

    use(monkeypatch, ('one', 0.2, endless), ('two', 0.2, lambda until: FOUND))
    begin = time.monotonic()
    assert main(['--seconds', '60', '--tests', '124'], case=tiny_case()) == 1
    assert time.monotonic() - begin < 20
    shown = last_table(capsys)
    assert 'cut off after 0 s' in shown['one: everything'] and '1000.00 ms' in shown['two: a']
    assert shown['kernel tests'].strip() == 'CUT OFF at their share of the time'


def test_candidates_whose_turn_comes_too_late_are_left_out():
    record = gpu_check._steps(tiny_case(), ())(time.monotonic() - 1)
    assert record['candidates'] == {} and not record['failed']
    assert set(record['skipped'].values()) == {'left out: no time for it'}


def test_table_shows_ratios_and_bytes():
    entry = {'seconds': 0.01, 'ratio_vs_frozen_limit': 1.2, 'ratio_vs_peft_lora': 0.5}
    entry |= {'peak_bytes': 2**30, 'peak_bytes_above_rest': 2**20}
    record = {'mode': 'graph', 'candidates': {'ours paper': entry}, 'skipped': {'x': 'why'}}
    (line, skipped) = table('step', record)
    assert line == (
        'step: ours paper',
        '10.00 ms, x 1.200, x 0.500 of LoRA, peak 1,024 MiB, above rest 1 MiB',
    )
    assert skipped == ('step: x', 'skipped: why')


def test_no_gpu_is_said(capsys):
    with pytest.raises(SystemExit):
        main([], case=tiny_case(device='cuda'))
    assert 'PyTorch sees no GPU here' in capsys.readouterr().err
