"""The whole way with the real train.py and test.py, at tiny size."""

from __future__ import annotations

import csv
import json

import pytest

pytest.importorskip('mmpretrain')

from cdra_mm.tables import study
from cdra_mm.tables.study_options import parser
from tests.tools.project import REPOSITORY, make_project

GRID = """
metrics = {'accuracy/top1': 'top-1'}
methods = dict(
    linear=dict(title='Linear', method=dict(type='linear')),
    cdra=dict(
        title='CDRA',
        method=dict(type='cdra', budget_percent=5.0),
        search={'optim_wrapper.optimizer.lr': [1e-3, 1e-2]},
    ),
)
options = {'default_hooks.cdra.num_samples': 8, 'train_cfg.max_epochs': 1}
tasks = dict(
    tested=dict(title='Tested', config='plain.py', report='test'),
    final=dict(title='Final', config='final.py', report='final_run'),
)
"""
FINAL = """
_base_ = 'plain.py'
final_run = dict(val_dataloader=dict(dataset=dict(data_prefix='train')))
"""


def test_tables_of_real_runs_choose_train_test_and_show(tmp_path, monkeypatch, capsys):
    folder = make_project(tmp_path)
    (folder / 'grid.py').write_text(GRID)
    (folder / 'final.py').write_text(FINAL)
    monkeypatch.chdir(folder)
    monkeypatch.setenv('PYTHONPATH', str(REPOSITORY))
    words = ['grid.py', '--out', 'out', '--devices', 'cpu']
    parts = (
        ['--methods', 'linear', '--tasks', 'tested'],
        ['--methods', 'cdra', '--tasks', 'final', '--jobs', '2'],
        ['--show', '--format', 'csv'],
    )
    for part in parts:
        study.main(parser().parse_args([*words, *part]), REPOSITORY / 'tools')
    progress, _, shown = capsys.readouterr().out.rpartition('family,')
    assert 'cdra final: validation chose optim_wrapper.optimizer.lr=' in progress
    linear, cdra = csv.DictReader(['family,' + shown.splitlines()[0], *shown.splitlines()[1:]])
    linear_summary, cdra_summary = (
        json.loads((folder / 'out' / job / 'summary.json').read_text())
        for job in ('linear/tested/final,seed0', 'cdra/final/final,seed0')
    )
    assert float(linear['Tested']) == pytest.approx(
        linear_summary['test_metrics']['accuracy/top1'], rel=1e-5
    )
    assert float(cdra['Final']) == pytest.approx(cdra_summary['metrics']['accuracy/top1'], rel=1e-5)
    assert (linear['Final'], linear['Params, %'], cdra['Tested']) == ('', '', '')
    assert cdra_summary['method'] == 'cdra' and 0 < cdra_summary['percent_of_backbone'] <= 5
