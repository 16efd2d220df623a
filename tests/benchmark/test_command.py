"""The command line: what it refuses, prints and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from cdra_mm.benchmark import command
from cdra_mm.benchmark.arguments import BENCHMARKS, BY_NAME_ALONE, PEER_NAMES, parser
from cdra_mm.benchmark.command import COMPARED, JOBS, checked, main
from cdra_mm.benchmark.peers import PEERS
from cdra_mm.benchmark.report import render
from cdra_mm.benchmark.step import STEP_PEERS
from cdra_mm.core import ConfigError
from cdra_mm.sizing.block_sizes import KINDS

from .tiny import build_tiny

SMALL = '--image-size 32 --batch 2 --repeats 2 --device cpu --peers loop'.split()


def run(*words):
    main(parser().parse_args([*words]), build=build_tiny)


def test_names_of_the_command_line_are_those_of_the_code():
    assert set(PEER_NAMES) == {*PEERS, *STEP_PEERS} and {*BENCHMARKS, *BY_NAME_ALONE} == set(JOBS)
    assert set(parser().get_default('blocks')) == set(KINDS)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            ['--model', 'vit-bb'],
            "model 'vit-bb' is unknown (did you mean 'ViT-B'?): expected",
        ),
        (['--peers', 'loop,opacuss'], "peer 'opacuss' is unknown (did you mean 'opacus'?)"),
        (['--blocks', 'papr'], "--blocks 'papr' is unknown (did you mean 'paper'?)"),
        (['--blocks', 'gone.npz@0.4'], '--blocks gone.npz@0.4: there is no such file'),
        (['--entries', '86'], "--entries '86' is unknown (did you mean '86M'?)"),
        (['--batch', '0'], '--batch 0: expected at least 1'),
        (['--repeats', '0'], '--repeats 0: expected at least 1'),
    ],
)
def test_wrong_option_is_refused_with_the_nearest(words, message):
    with pytest.raises(ConfigError) as caught:
        run('scores', *words)
    assert message in str(caught.value)


def test_absent_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ConfigError, match='PyTorch sees no GPU here; use --device cpu'):
        checked(parser().parse_args(['scores', '--device', 'cuda']))


def test_size_that_is_no_multiple_of_the_patch_is_refused(tmp_path):
    words = ['scores', '--image-size', '225', '--json', str(tmp_path / 'out.json')]
    with pytest.raises(ConfigError, match='225: expected a multiple of 16'):
        main(parser().parse_args(words))
    assert not list(tmp_path.iterdir())


def test_json_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(JOBS, 'scores', lambda *_: pytest.fail('ran'))
    (tmp_path / 'file').write_text('')
    for path in (tmp_path, tmp_path / 'file' / 'out.json'):
        with pytest.raises(ConfigError, match='expected a file that can be written'):
            run('scores', *SMALL, '--json', str(path))


@pytest.mark.parametrize(('name', 'device'), [('vit-b', 'cpu'), ('ViT-TI', 'cpu')])
def test_settings_have_the_defaults_of_the_device(name, device):
    found = checked(parser().parse_args(['step', '--model', name, '--device', device]))
    assert found['model'].lower() == name.lower() and found['model'].startswith('ViT-')
    assert (found['batch'], found['dtype'], found['threads']) == ([8], 'fp32', 1)


def test_run_prints_a_table_and_writes_json(tmp_path, capsys):
    path = tmp_path / 'new' / 'out.json'
    run('step', *SMALL, '--blocks', 'spt', '--json', str(path))
    out = capsys.readouterr().out
    assert out.startswith('machine: ') and 'torch' in out
    assert 'frozen limit' in out and 'ours spt' in out and 'x frozen limit (quartiles)' in out
    content = json.loads(path.read_text())
    assert content['complete'] and content['settings']['blocks'] == ['spt']
    (record,) = content['results']
    assert record['benchmark'] == 'step' and record['candidates']['ours spt']['saved_bytes'] > 0
    assert content['machine']['versions']['torch'] == torch.__version__


def test_run_takes_every_size_and_batch(tmp_path):
    path = tmp_path / 'out.json'
    words = ['--image-size', '16', '32', '--batch', '1', '2', '--repeats', '1', '--peers', 'none']
    run('inference', *words, '--device', 'cpu', '--json', str(path))
    found = [(r['image_size'], r['batch']) for r in json.loads(path.read_text())['results']]
    assert found == [(16, 1), (16, 2), (32, 1), (32, 2)]


def test_interrupted_run_keeps_its_results(tmp_path, monkeypatch):
    path = tmp_path / 'out.json'
    real, wanted = COMPARED['inference']

    def second_is_interrupted(case, **options):
        if case.batch == 2:
            raise KeyboardInterrupt
        return real(case, **options)

    monkeypatch.setitem(COMPARED, 'inference', (second_is_interrupted, wanted))
    words = ['--image-size', '32', '--repeats', '1', '--device', 'cpu', '--peers', 'none']
    with pytest.raises(KeyboardInterrupt):
        run('inference', *words, '--batch', '1', '2', '--json', str(path))
    content = json.loads(path.read_text())
    assert not content['complete'] and [r['batch'] for r in content['results']] == [1]


def test_size_that_does_not_fit_is_reported_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    real, wanted = COMPARED['inference']

    def large_fails(case, **options):
        if case.batch == 64:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB')
        return real(case, **options)

    monkeypatch.setitem(COMPARED, 'inference', (large_fails, wanted))
    path = tmp_path / 'out.json'
    words = ['--image-size', '32', '--repeats', '1', '--device', 'cpu', '--peers', 'none']
    run('inference', *words, '--batch', '64', '1', '--json', str(path))
    assert 'skipped everything: out of memory: CUDA out of memory' in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert content['complete']
    assert [(r['batch'], bool(r['candidates'])) for r in content['results']] == [
        (64, False),
        (1, True),
    ]


def test_growth_measures_the_common_setting_once(monkeypatch, capsys):
    calls = []

    def fake(case, *, scale, share, peers):
        calls.append((case, scale, share))
        return {'benchmark': 'growth', **case.describe(), 'skipped': {}}

    monkeypatch.setattr(command, 'compare_growth', fake)
    run('growth', *SMALL)
    assert len(calls) == len(set(calls)) > 8
    out = capsys.readouterr().out
    assert 'model ViT-L' in out and 'adapted share 25%' in out and 'block scale 2' in out


def test_rendered_table_says_what_was_skipped_and_why():
    entry = {'seconds': 0.5, 'ratio_vs_backward': 1.05, 'ratio_vs_backward_quartiles': [1, 1.1]}
    record = {
        'benchmark': 'scores',
        'model': 'ViT-S',
        'image_size': 224,
        'batch': 8,
        'dtype': 'fp32',
        'device': 'cpu',
        'repeats': 5,
        'candidates': {'ours': {**entry, 'remark': 'one backward'}},
        'skipped': {'Opacus': 'opacus is not installed: pip install opacus'},
    }
    lines = render([record]).splitlines()
    assert lines[0] == 'scores: ViT-S, 224 px, batch 8, fp32, cpu, median of 5 rounds'
    assert lines[3].split() == ['ours', '500.0', '1.050', '(1.00', 'to', '1.10)']
    assert lines[4:] == [
        '  ours: one backward',
        '  skipped Opacus: opacus is not installed: pip install opacus',
    ]


def test_tool_ends_wrong_input_with_one_line(repository):
    result = subprocess.run(
        [sys.executable, 'tools/benchmark.py', 'scores', '--model', 'resnet'],
        cwd=repository,
        env={**os.environ, 'PYTHONPATH': str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: model 'resnet' is unknown")
    assert result.stderr.count('\n') == 1
